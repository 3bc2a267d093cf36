//! Sending, from a caller's request to a queued letter: once for each request
//! id, in a thread that exists or in a new one.

use crate::content::Letter as Content;
use crate::error::EndpointError;
use crate::identity::{self, Identity};
use crate::outbox::{self, Letter};
use crate::store::Tx;
use crate::thread::{self, Thread};
use chancery_sdk_core::Stand;
use chancery_types::{Entropy, GroupId, MessageId, Refusal, Timestamp};
use rusqlite::{OptionalExtension as _, params};

/// What a letter's content depends on: known only once its thread is.
pub struct Origin<'a> {
    /// The sender.
    pub identity: &'a Identity,
    /// The thread.
    pub thread: &'a GroupId,
    /// For the letter's salt.
    pub entropy: &'a dyn Entropy,
}

impl Origin<'_> {
    /// As [`crate::content::sender_uri`].
    pub fn sender_uri(&self) -> String {
        crate::content::sender_uri(&self.identity.federation, &self.identity.alias)
    }

    /// As [`crate::content::room_uri`].
    pub fn room_uri(&self) -> String {
        crate::content::room_uri(&self.identity.federation, self.thread)
    }
}

/// Makes a letter's bytes, inside the transaction that queues it.
pub type Compose = Box<dyn FnOnce(&Origin<'_>) -> Result<Vec<u8>, Refusal> + Send>;

/// Writes a letter once its thread is known.
pub fn letter(letter: Content) -> Compose {
    Box::new(move |origin| {
        let composed = letter.compose(&origin.sender_uri(), &origin.room_uri(), origin.entropy);
        Ok(composed.map_err(|error| Refusal::field(error.to_string()))?.bytes)
    })
}

/// What a caller wants sent, apart from where.
pub struct Order {
    /// Chosen by the caller; the same id sends once.
    pub request_id: [u8; 16],
    /// SHA-256 over all that the caller asked for: the same id with another
    /// digest is refused.
    pub digest: [u8; 32],
    /// Makes the content.
    pub compose: Compose,
    /// When to give up; at most 90 days ahead.
    pub expires: Timestamp,
    /// Whether events about the letter are wanted.
    pub wants_events: bool,
}

/// The message of an earlier request.
///
/// # Errors
/// [`EndpointError::RequestIdReused`] when the content was another.
pub fn find(
    tx: &Tx<'_>,
    request_id: &[u8; 16],
    digest: &[u8; 32],
) -> Result<Option<MessageId>, EndpointError> {
    let row: Option<([u8; 32], [u8; 16])> = tx
        .sql()
        .prepare_cached("SELECT digest, message_id FROM requests WHERE request_id = ?1")?
        .query_row([request_id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match row {
        Some((known, _)) if known != *digest => Err(EndpointError::RequestIdReused),
        row => Ok(row.map(|(_, message_id)| MessageId::from_bytes(message_id))),
    }
}

/// Queues a letter in `thread`; a request that was made before queues nothing
/// and gives the message of then. `by_identifier`: the thread remembers the request.
///
/// # Errors
/// [`EndpointError::RequestIdReused`], [`EndpointError::Invalid`], or what
/// composing gave.
pub fn queue(
    tx: &mut Tx<'_>,
    thread: &Thread,
    order: Order,
    by_identifier: bool,
) -> Result<MessageId, EndpointError> {
    if let Some(message_id) = find(tx, &order.request_id, &order.digest)? {
        return Ok(message_id);
    }
    let message_id = send(tx, thread, order.compose, order.expires, order.wants_events)?;
    tx.sql()
        .prepare_cached("INSERT INTO requests (request_id, digest, message_id) VALUES (?1, ?2, ?3)")?
        .execute(params![order.request_id, order.digest, message_id.as_bytes()])?;
    if by_identifier {
        thread::set_request(tx, &thread.id, &order.request_id)?;
    }
    Ok(message_id)
}

/// Queues a letter without a request: what the endpoint itself says.
///
/// # Errors
/// [`EndpointError::Invalid`], or what composing gave.
pub fn send(
    tx: &mut Tx<'_>,
    thread: &Thread,
    compose: Compose,
    expires: Timestamp,
    wants_events: bool,
) -> Result<MessageId, EndpointError> {
    if thread.stand == Stand::Closed {
        return Err(EndpointError::ThreadUnknown);
    }
    let identity = identity::identity(tx)?;
    let entropy = tx.entropy();
    let body = compose(&Origin { identity: &identity, thread: &thread.root, entropy })?;
    let message_id = entropy.message_id(tx.clock());
    let letter = Letter { message_id, body: &body, expires, wants_events };
    outbox::enqueue(tx, thread, &letter)?;
    Ok(message_id)
}
