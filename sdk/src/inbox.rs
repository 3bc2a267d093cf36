//! What came in: letters at growing positions, read marks, and the signed
//! delivery receipts that go back with the acknowledgement of the mailbox.

use crate::content::MimiId;
use crate::content_view;
use crate::error::EndpointError;
use crate::event::{self, EventKind};
use crate::identity;
use crate::store::Tx;
use crate::thread::{self, Thread};
use chancery_proto::content::v1::{DeliveryReceipt, SignedDeliveryReceipt};
pub use chancery_sdk_core::Place;
use chancery_sdk_core::receive::Envelope;
use chancery_sdk_core::{Content, succession};
use chancery_types::{Alias, DeviceId, GroupId, MessageId, Timestamp};
use prost::Message as _;
use rusqlite::{OptionalExtension as _, Row, params};

pub(crate) const RECEIPT_CONTEXT: &[u8] = b"chancery delivery receipt v1\0";

const CALLER: &str = "inbox acknowledged";

/// An application message that was decrypted and checked.
pub(crate) struct Arrived {
    pub(crate) place: Place,
    pub(crate) message_id: MessageId,
    /// The letter's id: `message_id`, unless it was sent in another group before.
    pub(crate) letter: MessageId,
    pub(crate) sequence: u64,
    pub(crate) sender: Alias,
    pub(crate) sender_device: DeviceId,
    pub(crate) digest: [u8; 32],
    pub(crate) body: Vec<u8>,
}

/// A letter that came in.
#[derive(Clone)]
pub struct InboxItem {
    /// Growing.
    pub position: u64,
    /// The letter.
    pub message_id: MessageId,
    /// Its thread.
    pub thread: GroupId,
    /// Alias that sent it: the thread's other side, or this endpoint's own when
    /// another device of the account did.
    pub sender: Alias,
    /// Its content, decrypted; see [`crate::content::Body::open`].
    pub body: Vec<u8>,
    /// MIMI id, by which an answer names it; `None`: it is not MIMI content.
    pub content_id: Option<MimiId>,
    /// When it was committed here.
    pub received_at: Timestamp,
    /// When it was marked as read.
    pub read_at: Option<Timestamp>,
}

/// Keeps a letter and its receipt, and notes what it says about earlier ones.
pub(crate) fn arrive(tx: &mut Tx<'_>, thread: &Thread, arrived: Arrived) -> Result<Content, EndpointError> {
    let identity = identity::identity(tx)?;
    put_receipt(tx, thread, arrived.place, &arrived.message_id, &arrived.digest)?;
    let from_peer = arrived.sender == thread.peer;
    let seen = content_view::look(&identity.federation, &arrived.sender, &thread.root, &arrived.body);
    if let Some(said) = seen.succession {
        if said.root == thread.root {
            succession::follow(tx, thread, &said)?;
        }
        return Ok(Content::Note);
    }
    if let Some(read) = seen.read {
        if from_peer {
            for message_id in read.message_ids {
                if event::sent_in(tx, &message_id, &thread.root)? {
                    event::note(tx, &message_id, EventKind::Read, read.read_at, None)?;
                }
            }
        }
        return Ok(Content::Note);
    }
    if is_here(tx, &arrived.letter, &arrived.sender)? {
        return Ok(Content::Again);
    }
    tx.sql()
        .prepare_cached(
            "INSERT INTO inbox (message_id, group_id, sequence, sender, sender_device, body, content_id, \
             received_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            arrived.letter.as_bytes(),
            thread.id.as_bytes(),
            arrived.sequence,
            arrived.sender.as_bytes(),
            arrived.sender_device.as_bytes(),
            arrived.body,
            seen.id.map(|id| *id.as_bytes()),
            tx.now().millis()
        ])?;
    let position = u64::try_from(tx.sql().last_insert_rowid()).unwrap_or_default();
    if let Some(answered) = seen.in_reply_to.filter(|_| from_peer)
        && let Some(message_id) = event::sent_content(tx, &answered, &thread.root)?
    {
        event::note(tx, &message_id, EventKind::Answered, tx.now(), None)?;
    }
    Ok(Content::Letter(position))
}

/// Whether a letter came before, in a group whose place another one has taken.
fn is_here(tx: &Tx<'_>, letter: &MessageId, sender: &Alias) -> Result<bool, EndpointError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM inbox WHERE message_id = ?1 AND sender = ?2)";
    let mut statement = tx.sql().prepare_cached(sql)?;
    Ok(statement.query_row(params![letter.as_bytes(), sender.as_bytes()], |row| row.get(0))?)
}

/// A letter that is here came once more: its home has no receipt of it.
pub(crate) fn receipt_again(tx: &Tx<'_>, envelope: &Envelope<'_>) -> Result<(), EndpointError> {
    let (Some(thread), Some(digest)) = (thread::find(tx, &envelope.group)?, envelope.link().digest) else {
        return Ok(());
    };
    let sql = "SELECT EXISTS (SELECT 1 FROM inbox WHERE group_id = ?1 AND sequence = ?2)";
    let is_here = tx
        .sql()
        .prepare_cached(sql)?
        .query_row(params![envelope.group.as_bytes(), envelope.delivery.sequence], |row| row.get(0))?;
    if is_here {
        put_receipt(tx, &thread, envelope.place, &envelope.message_id, &digest)?;
    }
    Ok(())
}

fn put_receipt(
    tx: &Tx<'_>,
    thread: &Thread,
    place: Place,
    message_id: &MessageId,
    digest: &[u8; 32],
) -> Result<(), EndpointError> {
    let leaf = identity::leaf(tx, thread.suite)?;
    let receipt = DeliveryReceipt {
        message_id: message_id.to_wire(),
        message_digest: digest.to_vec().into(),
        device_id: identity::identity(tx)?.device.to_wire(),
        received_at_ms: tx.now().millis(),
    }
    .encode_to_vec();
    let signature = leaf.sign_bytes(&[RECEIPT_CONTEXT, &receipt].concat()).to_vec();
    let signed = SignedDeliveryReceipt { receipt: receipt.into(), signature: signature.into() };
    tx.sql()
        .prepare_cached("INSERT OR REPLACE INTO receipts (home, position, receipt) VALUES (?1, ?2, ?3)")?
        .execute(params![place.home, place.position, signed.encode_to_vec()])?;
    Ok(())
}

pub(crate) fn mark(tx: &Tx<'_>, name: &str) -> Result<u64, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached("SELECT value FROM marks WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?
        .unwrap_or(0))
}

pub(crate) fn raise_mark(tx: &Tx<'_>, name: &str, value: u64) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "INSERT INTO marks (name, value) VALUES (?1, ?2) \
             ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
        )?
        .execute(params![name, value])?;
    Ok(())
}

/// The next of growing numbers.
pub(crate) fn count_up(tx: &Tx<'_>, name: &str) -> Result<u64, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached(
            "INSERT INTO marks (name, value) VALUES (?1, 1) \
             ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
        )?
        .query_row([name], |row| row.get(0))?)
}

/// A home has what was acknowledged: the receipts may go. That nobody writes this
/// down at once only means that they may be sent again.
///
/// # Errors
/// The store's.
pub fn forget_receipts(tx: &Tx<'_>, home: i64, through: u64) -> Result<(), EndpointError> {
    let sql = "DELETE FROM receipts WHERE home = ?1 AND position <= ?2";
    tx.sql().prepare_cached(sql)?.execute(params![home, through])?;
    Ok(())
}

/// Position of the inbox that the caller says it has.
///
/// # Errors
/// The store's.
pub fn caller_position(tx: &Tx<'_>) -> Result<u64, EndpointError> {
    mark(tx, CALLER)
}

/// The caller has the letters up to a position.
///
/// # Errors
/// The store's.
pub fn set_caller_position(tx: &Tx<'_>, position: u64) -> Result<(), EndpointError> {
    raise_mark(tx, CALLER, position)
}

const COLUMNS: &str = "position, message_id, \
                       coalesce((SELECT root FROM threads WHERE threads.group_id = inbox.group_id), group_id), \
                       sender, body, content_id, received_at_ms, read_at_ms";

fn from_row(row: &Row<'_>) -> rusqlite::Result<InboxItem> {
    Ok(InboxItem {
        position: row.get(0)?,
        message_id: MessageId::from_bytes(row.get(1)?),
        thread: GroupId::from_bytes(row.get(2)?),
        sender: Alias::from_bytes(row.get(3)?),
        body: row.get(4)?,
        content_id: row.get::<_, Option<[u8; 32]>>(5)?.map(MimiId::from_bytes),
        received_at: Timestamp::from_millis(row.get(6)?),
        read_at: row.get::<_, Option<i64>>(7)?.map(Timestamp::from_millis),
    })
}

/// Letters of others after a position, oldest first; at most `limit`.
///
/// # Errors
/// The store's.
pub fn after(tx: &Tx<'_>, position: u64, limit: usize) -> Result<Vec<InboxItem>, EndpointError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM inbox WHERE position > ?1 \
         AND sender <> (SELECT alias FROM identity WHERE id = 1) ORDER BY position LIMIT ?2"
    );
    let mut statement = tx.sql().prepare_cached(&sql)?;
    Ok(statement.query_map(params![position, limit], from_row)?.collect::<Result<_, _>>()?)
}

/// A letter by its id.
///
/// # Errors
/// The store's.
pub fn find(tx: &Tx<'_>, message_id: &MessageId) -> Result<Option<InboxItem>, EndpointError> {
    let sql = format!("SELECT {COLUMNS} FROM inbox WHERE message_id = ?1 LIMIT 1");
    Ok(tx.sql().prepare_cached(&sql)?.query_row([message_id.as_bytes()], from_row).optional()?)
}

/// Marks letters as read; gives those that were not yet, by thread.
///
/// # Errors
/// The store's.
pub fn mark_read(
    tx: &Tx<'_>,
    message_ids: &[MessageId],
) -> Result<Vec<(GroupId, Vec<MessageId>)>, EndpointError> {
    let mut threads: Vec<(GroupId, Vec<MessageId>)> = Vec::new();
    let mut statement = tx.sql().prepare_cached(
        "UPDATE inbox SET read_at_ms = ?2 WHERE message_id = ?1 AND read_at_ms IS NULL RETURNING \
         coalesce((SELECT root FROM threads WHERE threads.group_id = inbox.group_id), group_id)",
    )?;
    for message_id in message_ids {
        let thread: Option<[u8; 32]> = statement
            .query_map(params![message_id.as_bytes(), tx.now().millis()], |row| row.get(0))?
            .next()
            .transpose()?;
        let Some(thread) = thread.map(GroupId::from_bytes) else { continue };
        match threads.iter_mut().find(|(id, _)| *id == thread) {
            Some((_, ids)) => ids.push(*message_id),
            None => threads.push((thread, vec![*message_id])),
        }
    }
    Ok(threads)
}
