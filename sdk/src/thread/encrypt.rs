//! Encrypting an application message, with the hub's chain head as associated data.

use super::Thread;
use crate::error::EndpointError;
use crate::identity;
use crate::store::Tx;
use chancery_proto::content::v1::AuthenticatedData;
use chancery_sdk_core::Queues as _;
use chancery_types::{MessageId, Timestamp};
use prost::Message as _;

/// Encrypts `body` in the thread's epoch; gives the MLSMessage.
pub(crate) fn encrypt(
    tx: &mut Tx<'_>,
    thread: &Thread,
    message_id: MessageId,
    expires: Timestamp,
    body: &[u8],
) -> Result<Vec<u8>, EndpointError> {
    let head_chain = match thread.head_sequence {
        0 => None,
        sequence => tx.chain(&thread.id, sequence)?,
    };
    let data = AuthenticatedData {
        message_id: message_id.to_wire(),
        head_sequence: if head_chain.is_some() { thread.head_sequence } else { 0 },
        head_chain: head_chain.map(|chain| chain.to_wire()).unwrap_or_default(),
        expires_at_ms: expires.millis(),
    };
    let leaf = identity::leaf(tx, thread.suite)?;
    let mut group = tx.take_group(&thread.id)?;
    group.set_aad(data.encode_to_vec());
    let message = group
        .create_message(&tx.provider(), &leaf, body)
        .map_err(EndpointError::mls("encrypt a message"))?
        .to_bytes()
        .map_err(EndpointError::mls("serialise a message"))?;
    tx.keep_group(thread.id, group);
    Ok(message)
}
