//! Fixed-length ids as newtypes. Their `Debug` shows the type alone: aliases,
//! handles and their like must not reach a log.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// A field that should hold an id has another length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} has {found} bytes, expected {expected}")]
pub struct WrongLength {
    /// Which id.
    pub what: &'static str,
    /// Its length in bytes.
    pub expected: usize,
    /// What came.
    pub found: usize,
}

macro_rules! ids {
    ($($(#[doc = $doc:expr])* $name:ident[$length:literal] = $what:literal;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $length]);

        impl $name {
            /// Length in bytes.
            pub const LENGTH: usize = $length;

            /// From its bytes.
            pub const fn from_bytes(bytes: [u8; $length]) -> Self {
                Self(bytes)
            }

            /// Its bytes.
            pub const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }

            /// Its bytes, for a field of a message.
            pub fn to_wire(&self) -> Bytes {
                Bytes::copy_from_slice(&self.0)
            }

            /// A new random one.
            pub fn random(entropy: &dyn crate::Entropy) -> Self {
                Self(entropy.array())
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = WrongLength;

            fn try_from(bytes: &[u8]) -> Result<Self, WrongLength> {
                bytes.try_into().map(Self).map_err(|_| WrongLength {
                    what: $what,
                    expected: $length,
                    found: bytes.len(),
                })
            }
        }

        impl TryFrom<&Bytes> for $name {
            type Error = WrongLength;

            fn try_from(bytes: &Bytes) -> Result<Self, WrongLength> {
                bytes.as_ref().try_into()
            }
        }

        impl TryFrom<Vec<u8>> for $name {
            type Error = WrongLength;

            fn try_from(bytes: Vec<u8>) -> Result<Self, WrongLength> {
                bytes.as_slice().try_into()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}

ids! {
    /// Account of a person or organisation on its home node.
    AccountId[16] = "account id";
    /// Mailbox address, one for each handle.
    Alias[16] = "alias";
    /// SHA-256 of a stored blob.
    BlobId[32] = "blob id";
    /// Value of a hub's hash chain over a group's messages.
    Chain[32] = "chain value";
    /// Broadcast channel.
    ChannelId[16] = "channel id";
    /// Device of an account.
    DeviceId[16] = "device id";
    /// MLS group.
    GroupId[32] = "group id";
    /// First 32 bytes of the threshold VOPRF of an identifier.
    Handle[32] = "handle";
    /// A store's life between two restores.
    Incarnation[16] = "incarnation";
    /// KeyPackageRef (RFC 9420 §5.2).
    KeyPackageRef[32] = "KeyPackageRef";
    /// Message, chosen by its endpoint: UUID version 7.
    MessageId[16] = "message id";
    /// One device's place in a cell of a broadcast channel.
    SeatId[16] = "seat id";
}

impl MessageId {
    /// The usual text form of the UUID.
    pub fn to_text(self) -> String {
        uuid::Uuid::from_bytes(self.0).hyphenated().to_string()
    }

    /// From the usual text form of a UUID.
    pub fn from_text(text: &str) -> Option<Self> {
        uuid::Uuid::try_parse(text).ok().map(|id| Self(id.into_bytes()))
    }
}

impl Chain {
    /// Largest sequence or epoch that is taken from others: nobody gets there by
    /// counting, and what is larger does not fit every database.
    pub const LAST: u64 = 1 << 53;

    /// Value before the first message of a group.
    pub const START: Self = Self([0; 32]);

    /// Value after the message at `sequence`: SHA-256("chancery chain v1" ‖
    /// previous ‖ u64 sequence ‖ message id ‖ SHA-256(MLSMessage)), integers
    /// big-endian. `digest` is that of the MLSMessage as the hub received it.
    pub fn next(self, sequence: u64, id: &MessageId, digest: &[u8; 32]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"chancery chain v1");
        hash.update(self.0);
        hash.update(sequence.to_be_bytes());
        hash.update(id.0);
        hash.update(digest);
        Self(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_bytes() {
        assert_eq!(format!("{:?}", Alias::from_bytes([7; 16])), "Alias");
    }

    #[test]
    fn length_is_checked() {
        let error = Alias::try_from([0_u8; 15].as_slice()).unwrap_err();
        assert_eq!(error.to_string(), "alias has 15 bytes, expected 16");
    }

    #[test]
    fn message_ids_have_a_text_form() {
        let id = MessageId::from_bytes([0xab; 16]);
        assert_eq!(MessageId::from_text(&id.to_text()), Some(id));
        assert_eq!(MessageId::from_text("not a uuid"), None);
    }
}
