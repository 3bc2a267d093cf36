//! Record operations on their way past a relay: HPKE (RFC 9180) to the
//! directory, and the answer back under a key exported from the same context.
//! Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, mode base.

use crate::Error;
use crate::padding::padded;
use crate::record::SignedRecord;
use aes_gcm::aead::Aead as _;
use aes_gcm::{Aes128Gcm, KeyInit as _};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::Entropy;
use hpke_rs::hpke_types::{AeadAlgorithm, KdfAlgorithm, KemAlgorithm};
use hpke_rs::{Context, Hpke, HpkePrivateKey, HpkePublicKey, Mode};
use hpke_rs_rust_crypto::HpkeRustCrypto;
use prost::Message as _;
use std::fmt;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Longest sealed operation in bytes.
pub const MAX_SEALED_OPERATION: usize = 16 * 1024;
/// Longest sealed answer in bytes.
const MAX_SEALED_RESULT: usize = 4 * 1024;
/// Operations are padded to a multiple of this many bytes …
const OPERATION_BLOCK: usize = 2_048;
/// … and answers of this many.
const RESULT_BLOCK: usize = 1_024;
const INFO: &[u8] = b"chancery record operation v1";
const EXPORT: &[u8] = b"chancery record result v1";
const NONCE_LENGTH: usize = 12;

/// The directory's HPKE key pair.
pub struct OperationKey {
    private: HpkePrivateKey,
    public: [u8; 32],
}

impl OperationKey {
    /// Derives the pair from 32 secret random bytes (RFC 9180, section 7.1.3).
    ///
    /// # Errors
    /// Never, for X25519.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, Error> {
        let (private, public) = key_pair(seed)?;
        Ok(Self { private, public })
    }

    /// The public key, as the log names it.
    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Opens a sealed operation.
    ///
    /// # Errors
    /// Too long, or does not open. From [`Opened::record`] on, refusals can be
    /// sealed to the caller.
    pub fn open(&self, request: &wire::PublishRequest) -> Result<Opened, Error> {
        if request.ciphertext.len() > MAX_SEALED_OPERATION {
            return Err(Error::TooLarge("a sealed operation has at most 16 KiB"));
        }
        if request.encapsulated_key.len() != 32 {
            return Err(Error::Field("an encapsulated key has not 32 bytes"));
        }
        let mut context = hpke()
            .setup_receiver(&request.encapsulated_key, &self.private, INFO, None, None, None)
            .map_err(|_| Error::CannotOpen)?;
        let plaintext = context.open(&[], &request.ciphertext).map_err(|_| Error::CannotOpen)?;
        let answer = ResultKey::export(&context)?;
        Ok(Opened { record: parse(plaintext.into()), answer })
    }
}

impl fmt::Debug for OperationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperationKey")
    }
}

/// What a sealed request held.
#[derive(Debug)]
pub struct Opened {
    /// The record to put, or why it is none.
    pub record: Result<SignedRecord, Error>,
    /// Seals the answer.
    pub answer: ResultKey,
}

fn parse(plaintext: Bytes) -> Result<SignedRecord, Error> {
    let operation = wire::RecordOperation::decode(plaintext)
        .map_err(|_| Error::Field("a record operation does not parse"))?;
    operation.record.ok_or(Error::Field("a record operation has no record"))?.try_into()
}

/// Seals a record to the directory, padded so that the length does not show
/// what is asked.
///
/// # Errors
/// The directory's key is no X25519 key, or the record is too long.
pub fn seal(
    record: wire::SignedRecord,
    directory: &[u8; 32],
) -> Result<(wire::PublishRequest, ResultKey), Error> {
    let operation = wire::RecordOperation { record: Some(record), padding: Bytes::new() };
    let plaintext = padded(operation, OPERATION_BLOCK, |operation, zeroes| operation.padding = zeroes);
    let plaintext = Zeroizing::new(plaintext);
    let (encapsulated_key, mut context) = hpke()
        .setup_sender(&HpkePublicKey::new(directory.to_vec()), INFO, None, None, None)
        .map_err(|_| Error::Field("the directory's HPKE key is not usable"))?;
    let ciphertext =
        context.seal(&[], &plaintext).map_err(|_| Error::Internal("an operation cannot be sealed"))?;
    if ciphertext.len() > MAX_SEALED_OPERATION {
        return Err(Error::TooLarge("a sealed operation has at most 16 KiB"));
    }
    let request =
        wire::PublishRequest { encapsulated_key: encapsulated_key.into(), ciphertext: ciphertext.into() };
    Ok((request, ResultKey::export(&context)?))
}

/// Seals and opens the answer to one operation.
#[derive(ZeroizeOnDrop)]
pub struct ResultKey([u8; 16]);

impl ResultKey {
    fn export(context: &Context<HpkeRustCrypto>) -> Result<Self, Error> {
        const IMPOSSIBLE: Error = Error::Internal("an HPKE context does not export");
        let secret = Zeroizing::new(context.export(EXPORT, 16).map_err(|_| IMPOSSIBLE)?);
        Ok(Self(secret.as_slice().try_into().map_err(|_| IMPOSSIBLE)?))
    }

    /// Seals the directory's answer, padded so that its length does not show the outcome.
    ///
    /// # Errors
    /// Never: the answer is short.
    pub fn seal(
        &self,
        result: wire::RecordOperationResult,
        entropy: &dyn Entropy,
    ) -> Result<wire::PublishResponse, Error> {
        let plaintext = padded(result, RESULT_BLOCK, |result, zeroes| result.padding = zeroes);
        let nonce = entropy.array::<NONCE_LENGTH>();
        let sealed = Aes128Gcm::new((&self.0).into())
            .encrypt(&nonce.into(), plaintext.as_slice())
            .map_err(|_| Error::Internal("an answer cannot be sealed"))?;
        Ok(wire::PublishResponse { ciphertext: [nonce.as_slice(), &sealed].concat().into() })
    }

    /// Opens the directory's answer.
    ///
    /// # Errors
    /// [`Error::CannotOpen`]: not the directory's, or changed on its way.
    pub fn open(&self, response: &wire::PublishResponse) -> Result<wire::RecordOperationResult, Error> {
        if response.ciphertext.len() > MAX_SEALED_RESULT {
            return Err(Error::TooLarge("a sealed answer has at most 4 KiB"));
        }
        let (nonce, sealed) =
            response.ciphertext.split_first_chunk::<NONCE_LENGTH>().ok_or(Error::CannotOpen)?;
        let plaintext =
            Aes128Gcm::new((&self.0).into()).decrypt(nonce.into(), sealed).map_err(|_| Error::CannotOpen)?;
        wire::RecordOperationResult::decode(Bytes::from(plaintext)).map_err(|_| Error::CannotOpen)
    }
}

impl fmt::Debug for ResultKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResultKey")
    }
}

/// The key pair of a seed (RFC 9180, section 7.1.3).
pub(crate) fn key_pair(seed: &[u8; 32]) -> Result<(HpkePrivateKey, [u8; 32]), Error> {
    const IMPOSSIBLE: Error = Error::Internal("an HPKE key pair cannot be derived");
    let (private, public) = hpke().derive_key_pair(seed).map_err(|_| IMPOSSIBLE)?.into_keys();
    Ok((private, public.as_slice().try_into().map_err(|_| IMPOSSIBLE)?))
}

/// The one suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, mode base.
pub(crate) fn hpke() -> Hpke<HpkeRustCrypto> {
    Hpke::new(Mode::Base, KemAlgorithm::DhKem25519, KdfAlgorithm::HkdfSha256, AeadAlgorithm::Aes128Gcm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn operation_and_answer_travel_sealed() {
        let entropy = SeededEntropy::new(1);
        let key = OperationKey::from_seed(&[3; 32]).unwrap();
        let world = testing::World::new(&entropy);
        let record = world.first_record(1);
        let (request, sender) = seal(record.clone(), key.public()).unwrap();
        assert!(!request.ciphertext.windows(64).any(|w| w == record.signature.as_ref()));
        let mut closing = world.draft(2, Some(1));
        closing.sealed_part = Bytes::new();
        let (closing, _) = seal(closing.sign(&world.account), key.public()).unwrap();
        assert_eq!(closing.ciphertext.len(), request.ciphertext.len());

        let opened = key.open(&request).unwrap();
        assert!(*opened.record.unwrap().wire() == record);
        use wire::record_operation_result::Result as Outcome;
        let sealed = |outcome| {
            let result = wire::RecordOperationResult { result: Some(outcome), padding: Bytes::new() };
            opened.answer.seal(result, &entropy).unwrap()
        };
        let logged = wire::LoggedOperation { index: 7, pending: false };
        let mut response = sealed(Outcome::Logged(logged));
        assert!(sender.open(&response).unwrap().result == Some(Outcome::Logged(logged)));
        let message = "m".repeat(500);
        let longer = sealed(Outcome::Refusal(wire::RecordRefusal { reason: "REASON".to_owned(), message }));
        assert_eq!(longer.ciphertext.len(), response.ciphertext.len());

        let mut spoilt = response.ciphertext.to_vec();
        spoilt[20] ^= 1;
        response.ciphertext = spoilt.into();
        assert!(matches!(sender.open(&response), Err(Error::CannotOpen)));
    }

    #[test]
    fn what_does_not_open_is_refused() {
        let key = OperationKey::from_seed(&[3; 32]).unwrap();
        let other = OperationKey::from_seed(&[4; 32]).unwrap();
        let (request, _) = seal(wire::SignedRecord::default(), key.public()).unwrap();
        assert_eq!(other.open(&request).unwrap_err(), Error::CannotOpen);
        assert!(matches!(key.open(&request).unwrap().record, Err(Error::Field(_))));
        let long = wire::PublishRequest { ciphertext: vec![0; MAX_SEALED_OPERATION + 1].into(), ..request };
        assert!(matches!(key.open(&long), Err(Error::TooLarge(_))));
        let short = wire::PublishRequest { encapsulated_key: Bytes::new(), ciphertext: Bytes::new() };
        assert!(matches!(key.open(&short), Err(Error::Field(_))));
        let zero = wire::PublishRequest { encapsulated_key: vec![0; 32].into(), ciphertext: Bytes::new() };
        assert_eq!(key.open(&zero).unwrap_err(), Error::CannotOpen);
    }
}
