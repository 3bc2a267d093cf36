//! The clear part of a PrivateMessage (RFC 9420 §6.3): what a delivery service
//! checks before it orders a message.

use crate::codec::{Reader, malformed};
use bytes::Bytes;
use chancery_types::{GroupId, Refusal};

/// What a PrivateMessage carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// Application data.
    Application,
    /// A commit.
    Commit,
}

/// Checks that an MLSMessage is a PrivateMessage of this group and epoch with
/// this kind of content.
///
/// # Errors
/// INVALID_FIELD: it is another one.
pub fn check(message: &Bytes, group: &GroupId, epoch: u64, content: ContentType) -> Result<(), Refusal> {
    let mut reader = Reader(message.clone());
    // ProtocolVersion mls10, WireFormat mls_private_message.
    if reader.take(4)?.as_ref() != [0, 1, 0, 2] {
        return Err(malformed());
    }
    let group_matches = reader.vector()?.as_ref() == group.as_bytes();
    let epoch_matches = reader.number(8)? == epoch;
    let expected = match content {
        ContentType::Application => 1,
        ContentType::Commit => 3,
    };
    let content_matches = reader.number(1)? == expected;
    let _authenticated_data = reader.vector()?;
    let _encrypted_sender_data = reader.vector()?;
    let _ciphertext = reader.vector()?;
    if group_matches && epoch_matches && content_matches && reader.0.is_empty() {
        Ok(())
    } else {
        Err(Refusal::field("the PrivateMessage is of another group, epoch or kind than its envelope"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A PrivateMessage whose secret parts are fillers.
    pub(crate) fn private_message(group: &GroupId, epoch: u64, content: ContentType, filler: &[u8]) -> Bytes {
        let kind = if content == ContentType::Application { 1 } else { 3 };
        let mut out = bytes::BytesMut::from(&[0, 1, 0, 2, 32][..]);
        out.extend_from_slice(group.as_bytes());
        out.extend_from_slice(&epoch.to_be_bytes());
        out.extend_from_slice(&[kind, 0, 0]);
        crate::codec::put_length(&mut out, filler.len()).unwrap();
        out.extend_from_slice(filler);
        out.freeze()
    }

    #[test]
    fn envelope_and_message_must_agree() {
        use ContentType::{Application, Commit};
        let group = GroupId::from_bytes([7; 32]);
        let message = private_message(&group, 3, Application, &[0; 100]);
        assert!(check(&message, &group, 3, Application).is_ok());
        assert!(check(&message, &group, 4, Application).is_err());
        assert!(check(&message, &group, 3, Commit).is_err());
        assert!(check(&message, &GroupId::from_bytes([8; 32]), 3, Application).is_err());
        for cut in 0..message.len() {
            assert!(check(&message.slice(..cut), &group, 3, Application).is_err());
        }
    }
}
