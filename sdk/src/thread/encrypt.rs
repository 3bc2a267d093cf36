//! Encrypting an application message, with the hub's chain head as associated data.

use super::Thread;
use crate::error::EndpointError;
use crate::identity;
use crate::store::Tx;
use chancery_proto::content::v1::AuthenticatedData;
use chancery_sdk_core::{Item, Queues as _};
use prost::Message as _;
use prost::bytes::Bytes;

/// Encrypts an item's `body` in the thread's epoch; gives the MLSMessage.
pub(crate) fn encrypt(
    tx: &mut Tx<'_>,
    thread: &Thread,
    item: &Item,
    body: &[u8],
) -> Result<Vec<u8>, EndpointError> {
    let head_chain = match thread.head_sequence {
        0 => None,
        sequence => tx.chain(&thread.id, sequence)?,
    };
    let data = AuthenticatedData {
        message_id: item.message_id.to_wire(),
        head_sequence: if head_chain.is_some() { thread.head_sequence } else { 0 },
        head_chain: head_chain.map(|chain| chain.to_wire()).unwrap_or_default(),
        expires_at_ms: item.expires.millis(),
        letter_id: if item.letter == item.message_id { Bytes::new() } else { item.letter.to_wire() },
        thread_id: if thread.root == thread.id { Bytes::new() } else { thread.root.to_wire() },
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
