//! The root's private key at rest: XChaCha20-Poly1305 under a key that
//! argon2id (RFC 9106) makes of the operator's passphrase. The text is TOML.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use chancery_types::Entropy;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// RFC 9106, section 4, second recommended option.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// What a file may ask for at most.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
const MAX_PASSES: u32 = 16;
const CONTEXT: &[u8] = b"chancery root key v1";

/// Why a sealed key does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    #[error("the sealed root key does not parse")]
    Form,
    #[error("the passphrase is wrong, or the sealed root key was changed")]
    Passphrase,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    cipher: String,
    nonce: String,
    ciphertext: String,
}

/// Seals `secret`.
pub(crate) fn seal(
    secret: &str,
    passphrase: &SecretString,
    entropy: &dyn Entropy,
) -> Result<String, SealError> {
    let salt: [u8; 16] = entropy.array();
    let nonce: [u8; 24] = entropy.array();
    let key = stretch(passphrase, &salt, MEMORY_KIB, PASSES, LANES)?;
    let payload = Payload { msg: secret.as_bytes(), aad: CONTEXT };
    let cipher = XChaCha20Poly1305::new(key.as_slice().into());
    let ciphertext = cipher.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| SealError::Form)?;
    let file = File {
        kdf: "argon2id".to_owned(),
        memory_kib: MEMORY_KIB,
        passes: PASSES,
        lanes: LANES,
        salt: hex::encode(salt),
        cipher: "xchacha20poly1305".to_owned(),
        nonce: hex::encode(nonce),
        ciphertext: hex::encode(ciphertext),
    };
    toml::to_string(&file).map_err(|_| SealError::Form)
}

/// Opens what [`seal`] made.
pub(crate) fn open(text: &str, passphrase: &SecretString) -> Result<Zeroizing<String>, SealError> {
    let file: File = toml::from_str(text).map_err(|_| SealError::Form)?;
    let known = file.kdf == "argon2id"
        && file.cipher == "xchacha20poly1305"
        && file.memory_kib <= MAX_MEMORY_KIB
        && file.passes <= MAX_PASSES;
    if !known {
        return Err(SealError::Form);
    }
    let bytes = |text: &str| hex::decode(text).map_err(|_| SealError::Form);
    let nonce: [u8; 24] = bytes(&file.nonce)?.try_into().map_err(|_| SealError::Form)?;
    let key = stretch(passphrase, &bytes(&file.salt)?, file.memory_kib, file.passes, file.lanes)?;
    let ciphertext = bytes(&file.ciphertext)?;
    let payload = Payload { msg: &ciphertext, aad: CONTEXT };
    let opened = XChaCha20Poly1305::new(key.as_slice().into())
        .decrypt(XNonce::from_slice(&nonce), payload)
        .map_err(|_| SealError::Passphrase)?;
    String::from_utf8(opened).map(Zeroizing::new).map_err(|_| SealError::Form)
}

fn stretch(
    passphrase: &SecretString,
    salt: &[u8],
    memory_kib: u32,
    passes: u32,
    lanes: u32,
) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let params = argon2::Params::new(memory_kib, passes, lanes, Some(32)).map_err(|_| SealError::Form)?;
    let mut key = Zeroizing::new([0; 32]);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(passphrase.expose_secret().as_bytes(), salt, key.as_mut_slice())
        .map_err(|_| SealError::Form)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn opens_under_its_passphrase_only() {
        let passphrase = SecretString::from("correct horse");
        let sealed = seal("the key", &passphrase, &SeededEntropy::new(1)).unwrap();
        assert!(!sealed.contains("the key") && !sealed.contains(&hex::encode("the key")));
        assert_eq!(open(&sealed, &passphrase).unwrap().as_str(), "the key");
        let wrong = open(&sealed, &SecretString::from("correct horsf"));
        assert_eq!(wrong.unwrap_err(), SealError::Passphrase);
        let at = sealed.find("ciphertext = \"").unwrap() + 14;
        let mut changed = sealed.clone().into_bytes();
        changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
        let changed = String::from_utf8(changed).unwrap();
        assert_eq!(open(&changed, &passphrase).unwrap_err(), SealError::Passphrase);
        let greedy = sealed.replace("memory_kib = 65536", "memory_kib = 4294967295");
        assert_eq!(open(&greedy, &passphrase).unwrap_err(), SealError::Form);
        assert_eq!(open("", &passphrase).unwrap_err(), SealError::Form);
    }
}
