//! MIMI content as types (draft-ietf-mimi-content-08, section 4 and appendix
//! A), and the id of a message (section 3.3). Bytes are the codec's matter.
//! `Debug` shows none of the content.

use super::codec;
use super::condition::Condition;
use super::{ContentError, OverLimit};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt;

/// Longest URI in bytes.
pub(super) const MAX_URI: usize = 2048;

/// Id of a message as other messages name it: 0x01, then the first 31 bytes of
/// a SHA-256. Not to be mixed up with [`chancery_types::MessageId`], which
/// nodes see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MimiId([u8; 32]);

impl MimiId {
    /// From its bytes. The first says how it was derived; only 1 is known, others are kept.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for MimiId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MimiId")
    }
}

/// Id of the encoded message `bytes` with `salt` (draft, section 3.3). URIs of
/// over 2048 bytes are refused.
pub fn message_id(
    sender_uri: &str,
    room_uri: &str,
    bytes: &[u8],
    salt: &[u8; 16],
) -> Result<MimiId, OverLimit> {
    let mut hash = Sha256::new();
    for uri in [sender_uri, room_uri] {
        let length = u16::try_from(uri.len()).ok().filter(|l| usize::from(*l) <= MAX_URI);
        hash.update(length.ok_or(OverLimit("URI"))?.to_be_bytes());
        hash.update(uri);
    }
    hash.update(bytes);
    hash.update(salt);
    let mut id: [u8; 32] = hash.finalize().into();
    id.copy_within(..31, 1);
    id[0] = 1;
    Ok(MimiId(id))
}

/// One message.
#[derive(Clone, PartialEq, Eq)]
pub struct MimiContent {
    /// Random, new for each message.
    pub salt: [u8; 16],
    /// The message that this one edits or deletes.
    pub replaces: Option<MimiId>,
    /// Messages with the same id belong together; at most 255 bytes. Empty: no topic.
    pub topic_id: Vec<u8>,
    /// When to forget it.
    pub expires: Option<Expiration>,
    /// The message that this one answers.
    pub in_reply_to: Option<MimiId>,
    /// Sender, room and what else there is.
    pub extensions: Extensions,
    /// The content.
    pub part: Part,
}

impl MimiContent {
    /// From bytes, in the deterministic encoding only. Limits are
    /// [`super::MAX_BYTES`], [`super::MAX_PARTS`], [`super::MAX_DEPTH`] and one
    /// for each string.
    pub fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        codec::decode(bytes)
    }

    /// The one encoding, under the same limits.
    pub fn encode(&self) -> Result<Vec<u8>, OverLimit> {
        codec::encode(self)
    }
}

/// When a message is to be forgotten, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expiration {
    /// After it was read.
    AfterReading(u32),
    /// Since the Unix epoch.
    At(u32),
}

/// Extension fields: 1 sender, 2 room, others kept as they came.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Extensions(
    /// Encoded key to encoded value. `BTreeMap` orders keys as RFC 8949, section 4.2.1 does.
    pub(super) BTreeMap<Vec<u8>, Vec<u8>>,
);

impl Extensions {
    pub(super) const SENDER: [u8; 1] = [1];
    pub(super) const ROOM: [u8; 1] = [2];
    /// Encoded name of ours: [`Condition`], as bytes.
    const CONDITION: &[u8] = b"\x76vnd.chancery.condition";

    /// Names a sender and a room; at most 2048 bytes each.
    pub fn new(sender_uri: &str, room_uri: &str) -> Result<Self, OverLimit> {
        Ok(Self(BTreeMap::from([
            (Self::SENDER.to_vec(), codec::encoded_text(sender_uri, MAX_URI)?),
            (Self::ROOM.to_vec(), codec::encoded_text(room_uri, MAX_URI)?),
        ])))
    }

    /// Who says to have sent it. `None`: the message does not say.
    pub fn sender_uri(&self) -> Option<&str> {
        codec::decoded_text(self.0.get(Self::SENDER.as_slice())?)
    }

    /// The same, under a condition.
    pub(super) fn under(mut self, condition: &Condition) -> Self {
        let bytes = minicbor::bytes::ByteVec::from(condition.encode_to_vec());
        // Vectors take all that is written to them.
        if let Ok(value) = minicbor::to_vec(bytes) {
            self.0.insert(Self::CONDITION.to_vec(), value);
        }
        self
    }

    /// For whom it is. `None`: for all who get it.
    pub fn condition(&self) -> Option<Condition> {
        let value = self.0.get(Self::CONDITION)?;
        Condition::decode(minicbor::decode::<&minicbor::bytes::ByteSlice>(value).ok()?.as_ref()).ok()
    }

    /// Where it says to have been sent. `None`: the message does not say.
    pub fn room_uri(&self) -> Option<&str> {
        codec::decoded_text(self.0.get(Self::ROOM.as_slice())?)
    }
}

/// One part of the content.
#[derive(Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is for.
    pub disposition: Disposition,
    /// Comma-separated language tags, at most 255 bytes. Empty: not stated.
    pub language: String,
    /// Nothing, one, elsewhere, or many.
    pub cardinality: Cardinality,
}

/// What a part is for. Values unknown here are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disposition(
    /// As on the wire.
    pub u8,
);

impl Disposition {
    /// Not stated.
    pub const UNSPECIFIED: Self = Self(0);
    /// To be shown.
    pub const RENDER: Self = Self(1);
    /// A reaction to another message.
    pub const REACTION: Self = Self(2);
    /// About its sender.
    pub const PROFILE: Self = Self(3);
    /// To be shown within the text.
    pub const INLINE: Self = Self(4);
    /// A small picture.
    pub const ICON: Self = Self(5);
    /// To be kept as a file.
    pub const ATTACHMENT: Self = Self(6);
    /// A call or conference.
    pub const SESSION: Self = Self(7);
    /// A glimpse of something else.
    pub const PREVIEW: Self = Self(8);
}

/// What a part holds.
#[derive(Clone, PartialEq, Eq)]
pub enum Cardinality {
    /// Nothing: a deletion, for example.
    Null,
    /// Bytes.
    Single {
        /// Media type with parameters, at most 255 bytes.
        content_type: String,
        /// The bytes.
        content: Vec<u8>,
    },
    /// Something kept elsewhere.
    External(Box<ExternalPart>),
    /// Several parts.
    Multi {
        /// How they belong together.
        semantics: Semantics,
        /// At least 2.
        parts: Vec<Part>,
    },
}

/// How the parts of a multipart belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Semantics {
    /// The reader takes one.
    ChooseOne,
    /// All of them or none.
    SingleUnit,
    /// Each that the reader understands.
    ProcessAll,
}

/// Something kept elsewhere, and how to open it (draft, section 4.5).
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalPart {
    /// Media type of what is inside, at most 255 bytes.
    pub content_type: String,
    /// Where it is, at most 2048 bytes.
    pub url: String,
    /// When it goes, seconds since the Unix epoch. 0: never.
    pub expires: u32,
    /// Bytes at `url`. 0: not stated.
    pub size: u64,
    /// IANA AEAD algorithm. 0: not encrypted.
    pub enc_alg: u16,
    /// Its key, at most 64 bytes.
    pub key: Vec<u8>,
    /// Its nonce, at most 64 bytes.
    pub nonce: Vec<u8>,
    /// Its associated data, at most 1024 bytes.
    pub aad: Vec<u8>,
    /// IANA named-information hash algorithm. 0: not hashed.
    pub hash_alg: u8,
    /// Hash of the bytes at `url`, at most 64 bytes.
    pub content_hash: Vec<u8>,
    /// For people, at most 1024 bytes.
    pub description: String,
    /// Suggested name, at most 255 bytes. Never a path.
    pub filename: String,
}

macro_rules! opaque {
    ($($name:ident),*) => {$(
        /// Shows the type alone.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}

opaque!(MimiContent, Extensions, Part, Cardinality, ExternalPart);
