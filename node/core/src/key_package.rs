//! What a node reads of a KeyPackage: that it is one, and its cipher suite.
//! Whether it belongs to whom it says is for the sender to check.

use chancery_types::Refusal;

/// Largest KeyPackage, in bytes of MLSMessage.
pub const MAX_KEY_PACKAGE: usize = 16 * 1024;

/// Cipher suite of an MLSMessage that holds a KeyPackage (RFC 9420 §6, §10).
///
/// # Errors
/// INVALID_FIELD: it is no KeyPackage; TOO_LARGE.
pub fn cipher_suite(message: &[u8]) -> Result<u16, Refusal> {
    crate::parcel::limit("KeyPackage", message.len(), MAX_KEY_PACKAGE)?;
    match message {
        // mls10, mls_key_package; then the KeyPackage: mls10, cipher_suite.
        [0, 1, 0, 5, 0, 1, high, low, _, ..] => Ok(u16::from_be_bytes([*high, *low])),
        _ => Err(Refusal::field("no MLSMessage with a KeyPackage")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_suite() {
        assert_eq!(cipher_suite(&[0, 1, 0, 5, 0, 1, 0, 0x4f, 0]).unwrap(), 0x4f);
        assert!(cipher_suite(&[0, 1, 0, 3, 0, 1, 0, 1, 0]).is_err());
        assert!(cipher_suite(&[]).is_err());
        assert!(cipher_suite(&vec![0; MAX_KEY_PACKAGE + 1]).is_err());
    }
}
