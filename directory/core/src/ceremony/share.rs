//! A dealt share on its way to its holder: HPKE (RFC 9180), mode base, to a key
//! made for this dealer and party alone. Opening a complaint needs that key's
//! seed and gives nothing else away.

use super::Ceremony;
use crate::{Error, operation};
use bytes::Bytes;
use hkdf::Hkdf;
use hpke_rs::{HpkePrivateKey, HpkePublicKey};
use sha2::Sha512;
use zeroize::Zeroizing;

const INFO: &[u8] = b"chancery ceremony share v1";
/// Encapsulated key, share, tag.
const SEALED_LENGTH: usize = 32 + 32 + 16;

/// Seed of the key for one dealer's share, from a party's secret.
pub(super) fn seed(
    secret: &[u8; 32],
    ceremony: &Ceremony,
    dealer: u32,
) -> Result<Zeroizing<[u8; 32]>, Error> {
    let mut seed = Zeroizing::new([0; 32]);
    let info = [b"chancery ceremony share key v1".as_slice(), &ceremony.id, &dealer.to_be_bytes()].concat();
    Hkdf::<Sha512>::new(None, secret)
        .expand(&info, &mut *seed)
        .map_err(|_| Error::Internal("a share key cannot be derived"))?;
    Ok(seed)
}

/// The key pair of a seed (RFC 9180, section 7.1.3).
pub(super) fn key_pair(seed: &[u8; 32]) -> Result<(HpkePrivateKey, [u8; 32]), Error> {
    operation::key_pair(seed)
}

pub(super) fn seal(
    share: &[u8; 32],
    key: &[u8; 32],
    ceremony: &Ceremony,
    dealer: u32,
    party: u32,
) -> Result<Bytes, Error> {
    let info = info(ceremony, dealer, party);
    let (encapsulated, ciphertext) = operation::hpke()
        .seal(&HpkePublicKey::new(key.to_vec()), &info, &[], share, None, None, None)
        .map_err(|_| Error::Ceremony("a party's key for its share is not usable"))?;
    Ok([encapsulated, ciphertext].concat().into())
}

/// # Errors
/// [`Error::CannotOpen`].
pub(super) fn open(
    sealed: &[u8],
    key: &HpkePrivateKey,
    ceremony: &Ceremony,
    dealer: u32,
    party: u32,
) -> Result<Zeroizing<[u8; 32]>, Error> {
    if sealed.len() != SEALED_LENGTH {
        return Err(Error::CannotOpen);
    }
    let (encapsulated, ciphertext) = sealed.split_at(32);
    let info = info(ceremony, dealer, party);
    let opened = operation::hpke()
        .open(encapsulated, key, &info, &[], ciphertext, None, None, None)
        .map_err(|_| Error::CannotOpen)?;
    let opened = Zeroizing::new(opened);
    Ok(Zeroizing::new(opened.as_slice().try_into().map_err(|_| Error::CannotOpen)?))
}

/// Binds a share to its ceremony, dealer and party.
fn info(ceremony: &Ceremony, dealer: u32, party: u32) -> Vec<u8> {
    [INFO, &ceremony.id, &dealer.to_be_bytes(), &party.to_be_bytes()].concat()
}
