//! Ed25519 keys, a type for each role, and signatures with a context in front,
//! so that no signature counts in another place than it was made for.

use crate::Error;
use chancery_types::Entropy;
use ed25519_dalek::{Signature, Signer as _, VerifyingKey};
use std::fmt;

pub use ed25519_dalek::SigningKey;

/// Length of a signature in bytes.
pub const SIGNATURE_LENGTH: usize = 64;

/// What a signature is for; the text stands in front of what is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An authority's word.
    Attestation,
    /// A record.
    Record,
    /// A governance statement.
    Governance,
    /// What an evaluator says in a ceremony.
    CeremonyMessage,
    /// What a ceremony came to.
    CeremonyResult,
    /// What an evaluator answered in a day.
    EvaluationTotals,
    /// What a device claims to an authority.
    Enrolment,
    /// That an authority checked it.
    EnrolmentReceipt,
    /// That whoever holds a receipt is whom it names.
    EnrolmentRenewal,
    /// A broadcast channel.
    Channel,
    /// What is broadcast on it.
    Manifest,
}

impl Purpose {
    const fn context(self) -> &'static str {
        match self {
            Self::Attestation => "chancery attestation v1",
            Self::Record => "chancery record v1",
            Self::Governance => "chancery governance v1",
            Self::CeremonyMessage => "chancery ceremony message v1",
            Self::CeremonyResult => "chancery ceremony result v1",
            Self::EvaluationTotals => "chancery evaluation totals v1",
            Self::Enrolment => "chancery enrolment v1",
            Self::EnrolmentReceipt => "chancery enrolment receipt v1",
            Self::EnrolmentRenewal => "chancery enrolment renewal v1",
            Self::Channel => "chancery channel v1",
            Self::Manifest => "chancery manifest v1",
        }
    }

    fn message(self, bytes: &[u8]) -> Vec<u8> {
        [self.context().as_bytes(), &[0], bytes].concat()
    }
}

/// A new signing key.
pub fn generate(entropy: &dyn Entropy) -> SigningKey {
    let seed = zeroize::Zeroizing::new(entropy.array::<32>());
    SigningKey::from_bytes(&seed)
}

/// Signs context ‖ 0x00 ‖ `bytes`.
pub fn sign(purpose: Purpose, bytes: &[u8], key: &SigningKey) -> [u8; SIGNATURE_LENGTH] {
    key.sign(&purpose.message(bytes)).to_bytes()
}

/// Signatures that are checked together, in a fraction of the time that each would take.
///
/// Only the holder of a key can make a signature that counts here and not by itself (it
/// has a part of small order), so this is for those who ask whether that holder signed, not for
/// those who must all come to the same answer.
#[derive(Default)]
pub(crate) struct Batch {
    messages: Vec<Vec<u8>>,
    signatures: Vec<Signature>,
    keys: Vec<VerifyingKey>,
    malformed: bool,
}

impl Batch {
    /// Whether `signature` is this key's over context ‖ 0x00 ‖ `bytes`.
    pub(crate) fn add(
        &mut self,
        key: impl Into<VerifyingKey>,
        purpose: Purpose,
        bytes: &[u8],
        signature: &[u8],
    ) {
        match Signature::from_slice(signature) {
            Ok(signature) => {
                self.messages.push(purpose.message(bytes));
                self.signatures.push(signature);
                self.keys.push(key.into());
            }
            Err(_) => self.malformed = true,
        }
    }

    /// Whether all of them hold. If not, which does not is not known.
    pub(crate) fn verifies(&self) -> bool {
        let messages: Vec<&[u8]> = self.messages.iter().map(Vec::as_slice).collect();
        !self.malformed && ed25519_dalek::verify_batch(&messages, &self.signatures, &self.keys).is_ok()
    }
}

macro_rules! keys {
    ($($(#[doc = $doc:expr])* $name:ident = $what:literal;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(VerifyingKey);

        impl $name {
            /// Its 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }

            /// Its bytes, for a field of a message.
            pub fn to_wire(&self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(self.as_bytes())
            }

            /// Whether `signature` is this key's over context ‖ 0x00 ‖ `bytes`
            /// (RFC 8032, without its cofactor).
            pub fn verifies(&self, purpose: Purpose, bytes: &[u8], signature: &[u8]) -> bool {
                Signature::from_slice(signature)
                    .is_ok_and(|s| self.0.verify_strict(&purpose.message(bytes), &s).is_ok())
            }
        }

        impl From<&$name> for VerifyingKey {
            fn from(key: &$name) -> Self {
                key.0
            }
        }

        impl From<&SigningKey> for $name {
            fn from(key: &SigningKey) -> Self {
                Self(key.verifying_key())
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = Error;

            /// Refuses what is no point of the curve or of small order.
            fn try_from(bytes: &[u8]) -> Result<Self, Error> {
                let bytes = bytes.try_into().map_err(|_| Error::Field(concat!($what, " has not 32 bytes")))?;
                match VerifyingKey::from_bytes(bytes) {
                    Ok(key) if !key.is_weak() => Ok(Self(key)),
                    _ => Err(Error::Field(concat!($what, " is no Ed25519 key"))),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}

keys! {
    /// Signs one handle's records and nothing else.
    AccountKey = "account key";
    /// Signs the credentials of an account's devices.
    CredentialKey = "credential key";
    /// Signs an enrolment authority's attestations.
    AuthorityKey = "authority key";
    /// Signs governance statements.
    GovernanceKey = "governance key";
    /// Signs what an evaluator says in ceremonies, and its totals.
    EvaluatorKey = "evaluator key";
    /// Signs the device credentials of an administration's agent.
    AgentKey = "agent key";
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn a_signature_counts_for_its_purpose_alone() {
        let key = generate(&SeededEntropy::new(1));
        let signature = sign(Purpose::Record, b"text", &key);
        let public = AccountKey::from(&key);
        assert!(public.verifies(Purpose::Record, b"text", &signature));
        assert!(!public.verifies(Purpose::Governance, b"text", &signature));
        assert!(!public.verifies(Purpose::Record, b"test", &signature));
        assert!(!public.verifies(Purpose::Record, b"text", &signature[..63]));
    }

    #[test]
    fn small_order_keys_are_refused() {
        let mut identity = [0_u8; 32];
        identity[0] = 1;
        assert!(AccountKey::try_from(identity.as_slice()).is_err());
        assert!(AccountKey::try_from([0_u8; 31].as_slice()).is_err());
    }
}
