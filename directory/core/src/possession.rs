//! Proofs of possession: Schnorr over ristretto255, made non-interactive.

use crate::Error;
use crate::oprf::{Element, PROOF_LENGTH, SecretKey, random_scalar};
use chancery_types::Entropy;
use curve25519_dalek::ristretto::RistrettoPoint;
use curve25519_dalek::scalar::Scalar;
use sha2::{Digest as _, Sha512};
use std::fmt;
use zeroize::Zeroizing;

/// Proof that somebody knows the discrete logarithm of an element (Schnorr):
/// R ‖ s with s = r + c·x, c over context, element and R.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Possession {
    commitment: Element,
    s: Scalar,
}

impl Possession {
    /// Proves that the prover knows `key`, in this context alone.
    ///
    /// # Errors
    /// Never: the key is not zero.
    pub(crate) fn prove(key: &SecretKey, context: &[u8], entropy: &dyn Entropy) -> Result<Self, Error> {
        let nonce = Zeroizing::new(random_scalar(entropy));
        let commitment = Element::new(RistrettoPoint::mul_base(&nonce))?;
        let c = Self::challenge(&key.public_key()?, &commitment, context);
        Ok(Self { commitment, s: *nonce + c * key.0 })
    }

    /// Whether whoever made it for this context knew the key of `public`.
    pub(crate) fn verifies(&self, public: &Element, context: &[u8]) -> bool {
        let c = Self::challenge(public, &self.commitment, context);
        RistrettoPoint::vartime_double_scalar_mul_basepoint(&-c, &public.point, &self.s)
            == self.commitment.point
    }

    /// R ‖ s.
    pub(crate) fn to_bytes(self) -> [u8; PROOF_LENGTH] {
        let mut bytes = [0; PROOF_LENGTH];
        bytes[..32].copy_from_slice(self.commitment.as_bytes());
        bytes[32..].copy_from_slice(self.s.as_bytes());
        bytes
    }

    fn challenge(public: &Element, commitment: &Element, context: &[u8]) -> Scalar {
        let mut hash = Sha512::new();
        hash.update(context);
        hash.update(public.as_bytes());
        hash.update(commitment.as_bytes());
        Scalar::from_bytes_mod_order_wide(&hash.finalize().into())
    }
}

impl TryFrom<&[u8]> for Possession {
    type Error = Error;

    /// Refuses what is no element and canonical scalar.
    fn try_from(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; PROOF_LENGTH] =
            bytes.try_into().map_err(|_| Error::Field("a proof has not 64 bytes"))?;
        let (commitment, s) = bytes.split_at(32);
        let s = s.try_into().map_err(|_| Error::Field("a proof has not 64 bytes"))?;
        let s = Option::<Scalar>::from(Scalar::from_canonical_bytes(s));
        let s = s.ok_or(Error::Field("a proof's scalars are not canonical"))?;
        Ok(Self { commitment: commitment.try_into()?, s })
    }
}

impl fmt::Debug for Possession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Possession")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn a_proof_holds_for_its_key_and_context_alone() {
        let entropy = SeededEntropy::new(1);
        let (key, other) = (SecretKey::random(&entropy), SecretKey::random(&entropy));
        let public = key.public_key().unwrap();
        let proof = Possession::prove(&key, b"here", &entropy).unwrap();
        assert!(proof.verifies(&public, b"here"));
        assert!(!proof.verifies(&public, b"there"));
        assert!(!proof.verifies(&other.public_key().unwrap(), b"here"));
        let bytes = proof.to_bytes();
        assert_eq!(Possession::try_from(bytes.as_slice()), Ok(proof));
        for bit in 0..512 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let accepted =
                Possession::try_from(bytes.as_slice()).is_ok_and(|proof| proof.verifies(&public, b"here"));
            assert!(!accepted, "bit {bit}");
        }
        assert!(Possession::try_from([0; 63].as_slice()).is_err());
    }
}
