//! PEM (RFC 7468) of what identity folders hold: chains, revocation lists,
//! one private key. Reading and writing the files is the shells' matter.

use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroize as _;

/// A text is not the PEM it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file is not PEM of the expected kind")]
pub struct ArmourError;

const CERTIFICATE: &str = "CERTIFICATE";
const CRL: &str = "X509 CRL";
const KEY: &str = "PRIVATE KEY";

/// Certificates, in the order given.
pub fn write_chain(chain: &[CertificateDer<'_>]) -> String {
    write(CERTIFICATE, chain)
}

/// Reads at least one certificate, and nothing else.
///
/// # Errors
/// It is something else.
pub fn read_chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, ArmourError> {
    Ok(read(CERTIFICATE, text)?.into_iter().map(CertificateDer::from).collect())
}

/// Revocation lists (DER), in the order given.
pub fn write_crls<T: AsRef<[u8]>>(lists: &[T]) -> String {
    write(CRL, lists)
}

/// Reads at least one revocation list, and nothing else.
///
/// # Errors
/// It is something else.
pub fn read_crls(text: &[u8]) -> Result<Vec<Vec<u8>>, ArmourError> {
    read(CRL, text)
}

/// Reads exactly one PKCS#8 private key.
///
/// # Errors
/// It is something else.
pub fn read_key(text: &[u8]) -> Result<PrivatePkcs8KeyDer<'static>, ArmourError> {
    let mut keys = read(KEY, text)?;
    let key = keys.pop().ok_or(ArmourError)?;
    if keys.is_empty() {
        return Ok(key.into());
    }
    keys.zeroize();
    Err(ArmourError)
}

fn write<T: AsRef<[u8]>>(tag: &str, items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(|item| pem::Pem::new(tag, item.as_ref())).collect();
    pem::encode_many_config(&items, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

fn read(tag: &str, text: &[u8]) -> Result<Vec<Vec<u8>>, ArmourError> {
    let items = pem::parse_many(text).map_err(|_| ArmourError)?;
    if items.is_empty() || items.iter().any(|item| item.tag() != tag) {
        return Err(ArmourError);
    }
    Ok(items.into_iter().map(pem::Pem::into_contents).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_kept_apart() {
        let chain = [CertificateDer::from(vec![1, 2]), CertificateDer::from(vec![3])];
        let text = write_chain(&chain);
        assert_eq!(read_chain(text.as_bytes()).unwrap(), chain);
        assert_eq!(read_crls(text.as_bytes()), Err(ArmourError));
        let lists = write_crls(&[[4, 5]]);
        assert_eq!(read_crls(lists.as_bytes()).unwrap(), [[4, 5]]);
        assert_eq!(read_chain([text, lists].concat().as_bytes()), Err(ArmourError));
        for nothing in [b"".as_slice(), b"-----BEGIN CERTIFICATE-----", b"\xff\xfe"] {
            assert_eq!(read_chain(nothing), Err(ArmourError));
        }
    }

    #[test]
    fn one_key_is_one_key() {
        let key = crate::profile::new_key().unwrap();
        assert!(read_key(key.as_bytes()).is_ok());
        assert!(read_key([key.as_bytes(), key.as_bytes()].concat().as_slice()).is_err());
    }
}
