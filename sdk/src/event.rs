//! What became of the letters sent from here: events at growing positions. An
//! event counts only for letters this device sent and wants events of, and a
//! delivery only under the signature of one of the recipient's devices.

use crate::alarm::{self, Alarm};
use crate::content::MimiId;
use crate::error::EndpointError;
use crate::inbox::RECEIPT_CONTEXT;
use crate::store::{StoreError, Tx};
use crate::thread::{self, Thread};
use chancery_proto::content::v1::{DeliveryReceipt, SignedDeliveryReceipt};
use chancery_proto::node::v1::{Event as WireEvent, event};
use chancery_sdk_core::{Stand, succession};
use chancery_types::{Alias, GroupId, MessageId, Reason, Timestamp};
use ed25519_dalek::{Signature, VerifyingKey};
use prost::Message as _;
use rusqlite::{OptionalExtension as _, params};

/// Longest serialised SignedDeliveryReceipt.
const RECEIPT_LIMIT: usize = 512;
/// Refusals that say that no device of the recipient reads the group any more: they have
/// lost its state, or their home has forgotten it.
const UNREADABLE: [Reason; 2] = [Reason::InvalidMessage, Reason::WrongHub];

/// What happened to a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The hub has committed it.
    Accepted,
    /// The recipient's node has committed it.
    Relayed,
    /// A device took it; its signature was checked. Terminal.
    Delivered,
    /// The recipient says it was read.
    Read,
    /// The recipient answered.
    Answered,
    /// It will not be delivered. Terminal.
    Failed,
    /// It expired before any device took it. Terminal.
    Expired,
}

impl EventKind {
    const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Relayed,
        Self::Delivered,
        Self::Read,
        Self::Answered,
        Self::Failed,
        Self::Expired,
    ];

    /// As in `chancery.agent.v1.EventKind`.
    pub const fn code(self) -> u8 {
        match self {
            Self::Accepted => 1,
            Self::Relayed => 2,
            Self::Delivered => 3,
            Self::Read => 4,
            Self::Answered => 5,
            Self::Failed => 6,
            Self::Expired => 7,
        }
    }

    const fn is_terminal(self) -> bool {
        matches!(self, Self::Delivered | Self::Failed | Self::Expired)
    }
}

/// Something that happened to a letter.
#[derive(Clone, Debug)]
pub struct Event {
    /// Growing.
    pub position: u64,
    /// The letter.
    pub message_id: MessageId,
    /// `request_id` under which it was sent; `None`: it was sent without one.
    pub request_id: Option<[u8; 16]>,
    /// What happened.
    pub kind: EventKind,
    /// When, by the clock of who saw it.
    pub occurred_at: Timestamp,
    /// Of a failure: a stable reason.
    pub reason: Option<String>,
}

/// Events after a position, oldest first; at most `limit`.
///
/// # Errors
/// The store's.
pub fn after(tx: &Tx<'_>, position: u64, limit: usize) -> Result<Vec<Event>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT events.position, events.message_id, requests.request_id, events.kind, \
         events.occurred_at_ms, events.reason FROM events \
         LEFT JOIN requests ON requests.message_id = events.message_id \
         WHERE events.position > ?1 ORDER BY events.position LIMIT ?2",
    )?;
    let rows = statement.query_map(params![position, limit], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, u8>(3)?, row.get(4)?, row.get(5)?))
    })?;
    rows.map(|row| {
        let (position, message_id, request_id, code, occurred_at, reason) = row?;
        let kind = EventKind::ALL
            .into_iter()
            .find(|kind| kind.code() == code)
            .ok_or(StoreError::Row { table: "events", column: "kind" })?;
        Ok(Event {
            position,
            message_id: MessageId::from_bytes(message_id),
            request_id,
            kind,
            occurred_at: Timestamp::from_millis(occurred_at),
            reason,
        })
    })
    .collect()
}

/// Notes an event, once for each kind, and one terminal outcome at most.
pub(crate) fn note(
    tx: &Tx<'_>,
    message_id: &MessageId,
    kind: EventKind,
    occurred_at: Timestamp,
    reason: Option<&str>,
) -> Result<(), EndpointError> {
    if kind.is_terminal() && has_ended(tx, message_id)? {
        return Ok(());
    }
    tx.sql()
        .prepare_cached(
            "INSERT OR IGNORE INTO events (message_id, kind, occurred_at_ms, reason) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![message_id.as_bytes(), kind.code(), occurred_at.millis(), reason])?;
    Ok(())
}

fn has_ended(tx: &Tx<'_>, message_id: &MessageId) -> Result<bool, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM events WHERE message_id = ?1 AND kind IN (3, 6, 7))")?
        .query_row([message_id.as_bytes()], |row| row.get(0))?)
}

/// Groups of a thread.
const GROUPS: &str = "(SELECT group_id FROM threads WHERE root = ?2)";

/// Whether a letter with events was sent from here in a thread.
pub(crate) fn sent_in(tx: &Tx<'_>, message_id: &MessageId, root: &GroupId) -> Result<bool, EndpointError> {
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM outbox WHERE message_id = ?1 AND group_id IN {GROUPS} \
         AND commits = 0 AND wants_events = 1)"
    );
    let mut statement = tx.sql().prepare_cached(&sql)?;
    Ok(statement.query_row(params![message_id.as_bytes(), root.as_bytes()], |row| row.get(0))?)
}

/// The letter with events that was sent from here in a thread with a MIMI id.
pub(crate) fn sent_content(
    tx: &Tx<'_>,
    content_id: &MimiId,
    root: &GroupId,
) -> Result<Option<MessageId>, EndpointError> {
    let sql = format!(
        "SELECT message_id FROM outbox WHERE content_id = ?1 AND group_id IN {GROUPS} AND wants_events = 1"
    );
    Ok(tx
        .sql()
        .prepare_cached(&sql)?
        .query_row(params![content_id.as_bytes(), root.as_bytes()], |row| row.get(0))
        .optional()?
        .map(MessageId::from_bytes))
}

/// Group, digest of the MLSMessage, and letter.
type Sent = ([u8; 32], Option<[u8; 32]>, [u8; 16]);

/// Takes an event that the home node tells. What is not about a letter of ours
/// to its recipient is ignored; a forged receipt raises an alarm.
///
/// # Errors
/// The store's.
pub fn observe(tx: &mut Tx<'_>, told: &WireEvent) -> Result<(), EndpointError> {
    let (Ok(sent_as), Ok(recipient)) =
        (MessageId::try_from(&told.message_id), Alias::try_from(&told.recipient))
    else {
        return Ok(());
    };
    let sent: Option<Sent> = tx
        .sql()
        .prepare_cached(
            "SELECT group_id, digest, message_id FROM outbox \
             WHERE sent_as = ?1 AND commits = 0 AND wants_events = 1",
        )?
        .query_row([sent_as.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((group, digest, message_id)) = sent else { return Ok(()) };
    let message_id = MessageId::from_bytes(message_id);
    let Some(thread) = thread::find(tx, &GroupId::from_bytes(group))? else { return Ok(()) };
    if thread.peer != recipient {
        return Ok(());
    }
    let at = Timestamp::from_millis(told.occurred_at_ms);
    match &told.kind {
        Some(event::Kind::Relayed(_)) => note(tx, &message_id, EventKind::Relayed, at, None),
        Some(event::Kind::Delivered(delivered)) => {
            if !is_genuine(tx, &thread, &sent_as, digest, &delivered.receipt)? {
                return alarm::raise(tx, Alarm::ForgedReceipt, Some(&thread.id));
            }
            note(tx, &message_id, EventKind::Delivered, at, None)
        }
        Some(event::Kind::Refused(reason)) => {
            note(tx, &message_id, EventKind::Failed, at, Some(reason))?;
            if UNREADABLE.iter().any(|unreadable| unreadable.as_str() == reason) {
                succession::end(tx, &thread.id, Stand::Ended)?;
            }
            Ok(())
        }
        Some(event::Kind::Expired(_)) => note(tx, &message_id, EventKind::Expired, at, None),
        None => Ok(()),
    }
}

/// Whether a receipt is signed by a device of the thread's other side, for
/// exactly the bytes that were sent.
fn is_genuine(
    tx: &Tx<'_>,
    thread: &Thread,
    message_id: &MessageId,
    digest: Option<[u8; 32]>,
    signed: &[u8],
) -> Result<bool, EndpointError> {
    let checked = || {
        let signed =
            (signed.len() <= RECEIPT_LIMIT).then(|| SignedDeliveryReceipt::decode(signed).ok())??;
        let receipt = DeliveryReceipt::decode(&*signed.receipt).ok()?;
        let signature = Signature::from_slice(&signed.signature).ok()?;
        (receipt.message_id == message_id.as_bytes().as_slice()
            && receipt.message_digest == digest?.as_slice())
        .then_some((signed, receipt, signature))
    };
    let Some((signed, receipt, signature)) = checked() else { return Ok(false) };
    let device = thread::members(tx, &thread.id)?.into_iter().find(|member| {
        member.alias == thread.peer && receipt.device_id == member.device.as_bytes().as_slice()
    });
    Ok(device.and_then(|device| VerifyingKey::from_bytes(&device.leaf_key).ok()).is_some_and(|key| {
        key.verify_strict(&[RECEIPT_CONTEXT, &signed.receipt].concat(), &signature).is_ok()
    }))
}
