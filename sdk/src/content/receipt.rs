//! The read receipt: `application/vnd.chancery.read-receipt+protobuf`, sent in
//! the thread with the reader's consent only. Consent is the caller's matter.

use super::letter::{self, Composed};
use super::{Cardinality, ComposeError, ContentError, Disposition, OverLimit, Part};
use chancery_proto::content::v1 as wire;
use chancery_types::{Entropy, MessageId, Timestamp};
use prost::Message as _;

/// Media type of the part.
pub(super) const MEDIA_TYPE: &str = "application/vnd.chancery.read-receipt+protobuf";

/// Most messages of one receipt.
const MAX_MESSAGES: usize = 256;

/// 256 ids of 18 bytes each with their heads, the time, and room for a later field.
const MAX_ENCODED: usize = 8 * 1024;

/// Says that messages were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadReceipt {
    /// Which; 1 to 256.
    pub message_ids: Vec<MessageId>,
    /// When the last of them was read, by the reader's clock.
    pub read_at: Timestamp,
}

impl ReadReceipt {
    /// The receipt as a message; see [`super::Letter::compose`].
    pub fn compose(
        &self,
        sender_uri: &str,
        room_uri: &str,
        entropy: &dyn Entropy,
    ) -> Result<Composed, ComposeError> {
        if self.message_ids.is_empty() {
            return Err(ComposeError::NoMessages);
        }
        if self.message_ids.len() > MAX_MESSAGES {
            return Err(OverLimit("messages of a read receipt").into());
        }
        let receipt = wire::ReadReceipt {
            message_ids: self.message_ids.iter().map(MessageId::to_wire).collect(),
            read_at_ms: self.read_at.millis(),
        };
        let part = Part {
            disposition: Disposition::UNSPECIFIED,
            language: String::new(),
            cardinality: Cardinality::Single {
                content_type: MEDIA_TYPE.to_owned(),
                content: receipt.encode_to_vec(),
            },
        };
        letter::compose(part, None, sender_uri, room_uri, entropy)
    }

    pub(super) fn decode(content: &[u8]) -> Result<Self, ContentError> {
        if content.len() > MAX_ENCODED {
            return Err(ContentError::ReadReceipt);
        }
        let receipt = wire::ReadReceipt::decode(content).map_err(|_| ContentError::ReadReceipt)?;
        if !(1..=MAX_MESSAGES).contains(&receipt.message_ids.len()) {
            return Err(ContentError::ReadReceipt);
        }
        let ids = receipt.message_ids.iter().map(MessageId::try_from).collect::<Result<_, _>>();
        Ok(Self {
            message_ids: ids.map_err(|_| ContentError::ReadReceipt)?,
            read_at: Timestamp::from_millis(receipt.read_at_ms),
        })
    }
}
