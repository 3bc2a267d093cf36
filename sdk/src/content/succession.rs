//! The first message of a group that takes another one's place:
//! `application/vnd.chancery.succession+protobuf`.

use super::letter::{self, Composed};
use super::{Cardinality, ComposeError, ContentError, Disposition, Part};
use chancery_proto::content::v1 as wire;
use chancery_sdk_core::Succession;
use chancery_types::{Chain, Entropy, GroupId};
use prost::Message as _;
use prost::bytes::Bytes;

/// Media type of the part.
pub(super) const MEDIA_TYPE: &str = "application/vnd.chancery.succession+protobuf";

/// Two groups, a sequence, a chain value, and room for a later field.
const MAX_ENCODED: usize = 1024;

/// The message; see [`super::Letter::compose`].
///
/// # Errors
/// Those of composing any message.
pub fn compose_succession(
    said: &Succession,
    sender_uri: &str,
    room_uri: &str,
    entropy: &dyn Entropy,
) -> Result<Composed, ComposeError> {
    let (head_sequence, head_chain) =
        said.head.map_or((0, Bytes::new()), |(sequence, chain)| (sequence, chain.to_wire()));
    let succession = wire::Succession {
        thread_id: said.root.to_wire(),
        group_id: said.group.to_wire(),
        head_sequence,
        head_chain,
    };
    let part = Part {
        disposition: Disposition::UNSPECIFIED,
        language: String::new(),
        cardinality: Cardinality::Single {
            content_type: MEDIA_TYPE.to_owned(),
            content: succession.encode_to_vec(),
        },
    };
    letter::compose(part, None, sender_uri, room_uri, entropy)
}

pub(super) fn decode(content: &[u8]) -> Result<Succession, ContentError> {
    let read = || {
        let said = (content.len() <= MAX_ENCODED).then(|| wire::Succession::decode(content).ok())??;
        let head = match said.head_sequence {
            0 if said.head_chain.is_empty() => None,
            sequence @ 1..=Chain::LAST => Some((sequence, Chain::try_from(&said.head_chain).ok()?)),
            _ => return None,
        };
        Some(Succession {
            root: GroupId::try_from(&said.thread_id).ok()?,
            group: GroupId::try_from(&said.group_id).ok()?,
            head,
        })
    };
    read().ok_or(ContentError::Succession)
}
