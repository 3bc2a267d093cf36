//! VOPRF(ristretto255, SHA-512) of [RFC 9497](https://www.rfc-editor.org/rfc/rfc9497),
//! mode 0x01: blind, evaluate a batch with one DLEQ proof, verify, finalize.
//! What the output means is [`crate::handle`]'s.

use crate::Error;
use chancery_types::Entropy;
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::{Identity as _, VartimeMultiscalarMul as _};
use sha2::{Digest as _, Sha512};
use std::fmt;
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

/// Length of a serialised element in bytes (Ne).
pub const ELEMENT_LENGTH: usize = 32;
/// Length of a serialised proof in bytes: c ‖ s.
pub const PROOF_LENGTH: usize = 64;
/// Length of an output in bytes (Nh).
pub const OUTPUT_LENGTH: usize = 64;
/// Elements that one call evaluates at most.
pub const MAX_BATCH: usize = 1_000;

/// `contextString` of mode VOPRF (RFC 9497, section 3.1).
const CONTEXT: &[u8] = b"OPRFV1-\x01-ristretto255-SHA512";

/// A group element other than the identity, with its canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Element {
    pub(crate) point: RistrettoPoint,
    bytes: [u8; ELEMENT_LENGTH],
}

impl Element {
    pub(crate) fn new(point: RistrettoPoint) -> Result<Self, Error> {
        if point == RistrettoPoint::identity() {
            return Err(Error::Element);
        }
        Ok(Self { point, bytes: point.compress().to_bytes() })
    }

    /// Its canonical encoding.
    pub const fn as_bytes(&self) -> &[u8; ELEMENT_LENGTH] {
        &self.bytes
    }

    /// Its encoding, for a field of a message.
    pub fn to_wire(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.bytes)
    }
}

impl TryFrom<&[u8]> for Element {
    type Error = Error;

    /// Refuses non-canonical encodings and the identity (RFC 9497, section 3.3).
    fn try_from(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: [u8; ELEMENT_LENGTH] = bytes.try_into().map_err(|_| Error::Element)?;
        let point = CompressedRistretto(bytes).decompress().ok_or(Error::Element)?;
        if point == RistrettoPoint::identity() {
            return Err(Error::Element);
        }
        Ok(Self { point, bytes })
    }
}

impl fmt::Debug for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Element")
    }
}

/// An evaluator's secret: the key, or a share of it.
#[derive(ZeroizeOnDrop)]
pub struct SecretKey(pub(crate) Scalar);

impl SecretKey {
    /// `DeriveKeyPair` (RFC 9497, section 3.2.1).
    ///
    /// # Errors
    /// `info` is longer than 65,535 bytes, or every counter gives zero.
    pub fn derive(seed: &[u8; 32], info: &[u8]) -> Result<Self, Error> {
        let length = u16::try_from(info.len()).map_err(|_| Error::TooLarge("key info is too long"))?;
        let input = Zeroizing::new([seed.as_slice(), &length.to_be_bytes(), info].concat());
        for counter in 0..=u8::MAX {
            let scalar = hash_to_scalar_with(b"DeriveKeyPair", &[&input, &[counter]]);
            if scalar != Scalar::ZERO {
                return Ok(Self(scalar));
            }
        }
        Err(Error::Internal("no key can be derived"))
    }

    /// A new random one.
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self(random_scalar(entropy))
    }

    /// From its canonical little-endian encoding, as kept in a key file.
    ///
    /// # Errors
    /// Not canonical, or zero.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, Error> {
        match Option::<Scalar>::from(Scalar::from_canonical_bytes(*bytes)) {
            Some(scalar) if scalar != Scalar::ZERO => Ok(Self(scalar)),
            _ => Err(Error::Field("a secret key is not a canonical scalar")),
        }
    }

    /// Its canonical little-endian encoding.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public key that belongs to it.
    ///
    /// # Errors
    /// Never: the key is not zero.
    pub fn public_key(&self) -> Result<Element, Error> {
        Element::new(RistrettoPoint::mul_base(&self.0))
    }

    /// `BlindEvaluate` of a batch with one proof (RFC 9497, section 3.3.2).
    ///
    /// # Errors
    /// The batch is empty or longer than [`MAX_BATCH`].
    pub fn evaluate(
        &self,
        blinded: &[Element],
        entropy: &dyn Entropy,
    ) -> Result<(Vec<Element>, Proof), Error> {
        check_batch(blinded.len())?;
        let evaluated =
            blinded.iter().map(|b| Element::new(b.point * self.0)).collect::<Result<Vec<_>, _>>()?;
        let public = self.public_key()?;
        let nonce = Zeroizing::new(random_scalar(entropy));
        let m = weighted(&public, blinded, &evaluated).0;
        let z = m * self.0;
        let t2 = RistrettoPoint::mul_base(&nonce);
        let t3 = m * *nonce;
        let c = challenge(&public, &[m, z, t2, t3]);
        Ok((evaluated, Proof { c, s: *nonce - c * self.0 }))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey")
    }
}

/// Proof that a batch was evaluated under one key (RFC 9497, section 2.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    c: Scalar,
    s: Scalar,
}

impl Proof {
    /// c ‖ s.
    pub fn to_bytes(self) -> [u8; PROOF_LENGTH] {
        let mut bytes = [0; PROOF_LENGTH];
        bytes[..32].copy_from_slice(self.c.as_bytes());
        bytes[32..].copy_from_slice(self.s.as_bytes());
        bytes
    }

    /// Whether `evaluated` is `blinded` under the key of `public`, element by
    /// element (`VerifyProof`, RFC 9497, section 2.2.2).
    pub fn verifies(&self, public: &Element, blinded: &[Element], evaluated: &[Element]) -> bool {
        if check_batch(blinded.len()).is_err() || blinded.len() != evaluated.len() {
            return false;
        }
        let (m, z) = weighted(public, blinded, evaluated);
        let t2 = RistrettoPoint::vartime_double_scalar_mul_basepoint(&self.c, &public.point, &self.s);
        let t3 = RistrettoPoint::vartime_multiscalar_mul([self.s, self.c], [m, z]);
        challenge(public, &[m, z, t2, t3]) == self.c
    }
}

impl TryFrom<&[u8]> for Proof {
    type Error = Error;

    /// Refuses non-canonical scalars.
    fn try_from(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; PROOF_LENGTH] =
            bytes.try_into().map_err(|_| Error::Field("a proof has not 64 bytes"))?;
        let (c, s) = bytes.split_at(32);
        let scalar = |half: &[u8]| {
            let half = half.try_into().ok()?;
            Option::<Scalar>::from(Scalar::from_canonical_bytes(half))
        };
        match (scalar(c), scalar(s)) {
            (Some(c), Some(s)) => Ok(Self { c, s }),
            _ => Err(Error::Field("a proof's scalars are not canonical")),
        }
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof")
    }
}

/// What hides one input from the evaluators; kept until the answer comes.
#[derive(ZeroizeOnDrop)]
pub struct Blind(Scalar);

impl fmt::Debug for Blind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blind")
    }
}

/// `Blind` (RFC 9497, section 3.3.1).
///
/// # Errors
/// The input is longer than 65,535 bytes or maps to the identity.
pub fn blind(input: &[u8], entropy: &dyn Entropy) -> Result<(Blind, Element), Error> {
    input_length(input)?;
    let point = hash_to_group(input);
    if point == RistrettoPoint::identity() {
        return Err(Error::Element);
    }
    let blind = Blind(random_scalar(entropy));
    let element = Element::new(point * blind.0)?;
    Ok((blind, element))
}

/// `Finalize` without its proof (RFC 9497, section 3.3.1): verify first.
///
/// # Errors
/// The input is longer than 65,535 bytes.
pub fn finalize(
    input: &[u8],
    blind: &Blind,
    evaluated: &Element,
) -> Result<Zeroizing<[u8; OUTPUT_LENGTH]>, Error> {
    let length = input_length(input)?;
    let inverse = Zeroizing::new(blind.0.invert());
    let unblinded = Zeroizing::new((evaluated.point * *inverse).compress().to_bytes());
    let mut hash = Sha512::new();
    hash.update(length.to_be_bytes());
    hash.update(input);
    hash.update(length_prefix(ELEMENT_LENGTH));
    hash.update(*unblinded);
    hash.update(b"Finalize");
    Ok(Zeroizing::new(hash.finalize().into()))
}

fn input_length(input: &[u8]) -> Result<u16, Error> {
    u16::try_from(input.len()).map_err(|_| Error::TooLarge("an input is longer than 65,535 bytes"))
}

fn check_batch(length: usize) -> Result<(), Error> {
    match length {
        0 => Err(Error::Field("a batch is empty")),
        1..=MAX_BATCH => Ok(()),
        _ => Err(Error::TooLarge("a batch has more than 1,000 elements")),
    }
}

/// `RandomScalar` by wide reduction (RFC 9497, section 4.7.2), never zero.
pub(crate) fn random_scalar(entropy: &dyn Entropy) -> Scalar {
    loop {
        let wide = Zeroizing::new(entropy.array::<64>());
        let scalar = Scalar::from_bytes_mod_order_wide(&wide);
        if scalar != Scalar::ZERO {
            return scalar;
        }
    }
}

/// `ComputeComposites` (RFC 9497, section 2.2.1): M and Z. The weights are
/// public, so variable time is fine.
fn weighted(public: &Element, c: &[Element], d: &[Element]) -> (RistrettoPoint, RistrettoPoint) {
    let mut hash = Sha512::new();
    hash.update(length_prefix(ELEMENT_LENGTH));
    hash.update(public.bytes);
    hash.update(length_prefix(b"Seed-".len() + CONTEXT.len()));
    hash.update(b"Seed-");
    hash.update(CONTEXT);
    let seed = hash.finalize();
    let mut weights = Vec::with_capacity(c.len());
    for (index, (c, d)) in (0_u16..).zip(c.iter().zip(d)) {
        weights.push(hash_to_scalar(&[
            &length_prefix(seed.len()),
            &seed,
            &index.to_be_bytes(),
            &length_prefix(ELEMENT_LENGTH),
            &c.bytes,
            &length_prefix(ELEMENT_LENGTH),
            &d.bytes,
            b"Composite",
        ]));
    }
    let m = RistrettoPoint::vartime_multiscalar_mul(&weights, c.iter().map(|e| e.point));
    let z = RistrettoPoint::vartime_multiscalar_mul(&weights, d.iter().map(|e| e.point));
    (m, z)
}

/// Challenge c over the transcript B, M, Z, t2, t3 (RFC 9497, section 2.2.1).
fn challenge(public: &Element, points: &[RistrettoPoint; 4]) -> Scalar {
    let prefix = length_prefix(ELEMENT_LENGTH);
    let [m, z, t2, t3] = points.map(|p| p.compress().to_bytes());
    hash_to_scalar(&[
        &prefix,
        &public.bytes,
        &prefix,
        &m,
        &prefix,
        &z,
        &prefix,
        &t2,
        &prefix,
        &t3,
        b"Challenge",
    ])
}

#[expect(clippy::cast_possible_truncation, reason = "called with lengths of hashes and labels")]
const fn length_prefix(length: usize) -> [u8; 2] {
    (length as u16).to_be_bytes()
}

/// `HashToGroup` (RFC 9497, section 4.1).
fn hash_to_group(input: &[u8]) -> RistrettoPoint {
    let mut uniform = expand(b"HashToGroup-", &[input]);
    let point = RistrettoPoint::from_uniform_bytes(&uniform);
    uniform.zeroize();
    point
}

/// `HashToScalar` (RFC 9497, section 4.1).
fn hash_to_scalar(parts: &[&[u8]]) -> Scalar {
    hash_to_scalar_with(b"HashToScalar-", parts)
}

fn hash_to_scalar_with(label: &[u8], parts: &[&[u8]]) -> Scalar {
    let mut uniform = expand(label, parts);
    let scalar = Scalar::from_bytes_mod_order_wide(&uniform);
    uniform.zeroize();
    scalar
}

/// `expand_message_xmd` with SHA-512 for 64 bytes, the length of one block
/// (RFC 9380, section 5.3.1), under the tag `label` ‖ context string.
fn expand(label: &[u8], parts: &[&[u8]]) -> [u8; 64] {
    const INPUT_BLOCK: [u8; 128] = [0; 128];
    let tag = |hash: &mut Sha512| {
        hash.update(label);
        hash.update(CONTEXT);
        // I2OSP(len(DST), 1); the longest tag has 41 bytes.
        hash.update(&length_prefix(label.len() + CONTEXT.len())[1..]);
    };
    let mut hash = Sha512::new();
    hash.update(INPUT_BLOCK);
    for part in parts {
        hash.update(part);
    }
    hash.update(64_u16.to_be_bytes());
    hash.update([0]);
    tag(&mut hash);
    let b0 = hash.finalize();
    let mut hash = Sha512::new();
    hash.update(b0);
    hash.update([1]);
    tag(&mut hash);
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
