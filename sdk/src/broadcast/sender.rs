//! What an agent broadcasts, up to what its node gets. A broadcast is begun, logged, wrapped: its
//! content key and manifest are here before anybody hears of it, the log's proof before the first
//! wrap is made, and all wraps are made in the transaction that takes their keys off the chains.

use super::audience;
use super::{ContentKey, blob, handover, keys, schedule};
use crate::error::EndpointError;
use crate::inbox;
use crate::restored::STORE_COUNT;
use crate::store::{StoreError, Tx};
use chancery_directory_core::channel::Channel;
use chancery_directory_core::manifest::{self, About, Manifest, SignedManifest};
use chancery_proto::content::v1::EarlierBroadcast;
use chancery_proto::directory::v1 as directory;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as node;
use chancery_types::{ChannelId, NodeId, Reason, Refusal, Timestamp};
use prost::Message as _;
use prost::bytes::Bytes;
use rusqlite::{OptionalExtension as _, params};
use std::collections::BTreeSet;
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest life of a broadcast: as long as nodes keep its blob.
const LONGEST: Duration = Duration::from_hours(90 * 24);
/// How far ahead a broadcast may be asked for.
const AHEAD: Duration = Duration::from_hours(366 * 24);

/// What is to be broadcast.
#[derive(Clone)]
pub struct Order {
    /// Chosen by the caller: the same one with the same content is one broadcast.
    pub request_id: [u8; 16],
    /// SHA-256 over all that the caller asked for: the same id with another digest is refused.
    pub digest: [u8; 32],
    /// The channel, of this agent.
    pub channel: ChannelId,
    /// MIMI content.
    pub content: Vec<u8>,
    /// Whether it is an emergency.
    pub emergency: bool,
    /// An earlier broadcast that it is about.
    pub about: Option<About>,
    /// When it is handed out no more.
    pub expires: Timestamp,
    /// When it is to begin; `None`: at once.
    pub begins: Option<Timestamp>,
}

/// How far a broadcast is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Its sequence in the channel.
    pub sequence: u64,
    /// How far it is.
    pub state: State,
    /// For how many cells it was wrapped.
    pub cells: u32,
}

/// States of a broadcast at its agent; numbers as in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Its manifest is made.
    Begun = 0,
    /// The log has it.
    Logged = 1,
    /// All cells' wraps are made.
    Wrapped = 2,
    /// It waits until it is to begin; in no table of these.
    Scheduled = 3,
}

/// What a broadcast's manifest would be, but for what is random in it.
///
/// # Errors
/// The store's, or what is wrong with the order.
pub fn preview(tx: &Tx<'_>, order: &Order) -> Result<(Channel, Manifest), EndpointError> {
    let (channel, manifest, ..) = make(tx, order)?;
    Ok((channel, manifest))
}

/// Begins a broadcast, or keeps it until it is to begin. The same request again gives what became
/// of it.
///
/// # Errors
/// [`EndpointError::RequestIdReused`], the store's, or what is wrong with the order.
pub fn begin(tx: &Tx<'_>, order: &Order) -> Result<Begun, EndpointError> {
    if let Some(begun) = find(tx, &order.request_id, &order.digest)? {
        return Ok(begun);
    }
    match order.begins.filter(|begins| *begins > tx.now()) {
        Some(begins) => {
            permitted(tx, order)?;
            schedule::put(tx, order, begins)
        }
        None => start(tx, order),
    }
}

/// Makes content key, blob and manifest, and takes the next place in the channel.
pub(super) fn start(tx: &Tx<'_>, order: &Order) -> Result<Begun, EndpointError> {
    let (_, manifest, content_key, blob) = make(tx, order)?;
    let sequence = manifest.sequence;
    let bytes = directory::Manifest::from(&manifest).encode_to_vec();
    let hash = manifest::hash(&bytes);
    tx.sql().execute(
        "INSERT INTO own_broadcasts (channel, sequence, request_id, digest, state, manifest, blob, \
         content_key, logged, cells) VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, NULL, 0)",
        params![
            order.channel.as_bytes(),
            sequence,
            order.request_id,
            order.digest,
            bytes,
            blob,
            content_key.as_bytes()
        ],
    )?;
    tx.sql().execute(
        "UPDATE own_channels SET sequence = ?2, manifest_hash = ?3 WHERE channel = ?1",
        params![order.channel.as_bytes(), sequence, hash],
    )?;
    Ok(Begun { sequence, state: State::Begun, cells: 0 })
}

/// The channel, if this may be broadcast on it.
fn permitted(tx: &Tx<'_>, order: &Order) -> Result<Channel, EndpointError> {
    let channel = audience::own(tx, &order.channel)?
        .ok_or_else(|| Refusal::new(Reason::NotYourChannel, "the channel is not one of this agent's"))?;
    if channel.closed {
        return Err(
            Refusal::new(Reason::ChannelClosed, "nothing is broadcast on the channel any more").into()
        );
    }
    if order.emergency && !channel.emergency {
        return Err(Refusal::new(Reason::NotAccredited, "the channel carries no emergencies").into());
    }
    let begins = order.begins.map_or(tx.now(), |begins| begins.max(tx.now()));
    if begins > tx.now().after(AHEAD) {
        return Err(EndpointError::Invalid("a broadcast begins within a year"));
    }
    if order.expires <= begins || order.expires > begins.after(LONGEST) {
        return Err(EndpointError::Invalid("a broadcast expires within 90 days after it begins"));
    }
    Ok(channel)
}

fn make(tx: &Tx<'_>, order: &Order) -> Result<(Channel, Manifest, ContentKey, Vec<u8>), EndpointError> {
    let channel = permitted(tx, order)?;
    let (sequence, previous_hash): (u64, [u8; 32]) = tx.sql().query_row(
        "SELECT sequence + 1, manifest_hash FROM own_channels WHERE channel = ?1",
        [order.channel.as_bytes()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let content_key = ContentKey::random(tx.entropy());
    let sealed = blob::seal(&order.content, &content_key, &order.channel, sequence)
        .map_err(|_| EndpointError::Invalid("a broadcast has at most 64 MiB"))?;
    let manifest = Manifest {
        channel: order.channel,
        sequence,
        previous_hash,
        blob: sealed.id,
        blob_size: sealed.bytes.len() as u64,
        key_commitment: content_key.commitment(),
        category: channel.category,
        emergency: order.emergency,
        created_at: tx.now(),
        expires_at: order.expires,
        about: order.about,
    };
    Ok((channel, manifest, content_key, sealed.bytes))
}

/// What became of a request; `None`: it was not made.
///
/// # Errors
/// [`EndpointError::RequestIdReused`]; why it could not begin at its time; or the store's.
pub fn find(tx: &Tx<'_>, request_id: &[u8; 16], digest: &[u8; 32]) -> Result<Option<Begun>, EndpointError> {
    let found: Option<([u8; 32], Begun)> = tx
        .sql()
        .prepare_cached("SELECT digest, sequence, state, cells FROM own_broadcasts WHERE request_id = ?1")?
        .query_row([request_id], |row| {
            let state = match row.get::<_, u8>(2)? {
                0 => State::Begun,
                1 => State::Logged,
                _ => State::Wrapped,
            };
            Ok((row.get(0)?, Begun { sequence: row.get(1)?, state, cells: row.get(3)? }))
        })
        .optional()?;
    match found {
        None => schedule::find(tx, request_id, digest),
        Some((known, _)) if known != *digest => Err(EndpointError::RequestIdReused),
        Some((_, begun)) => Ok(Some(begun)),
    }
}

/// A broadcast that is to be brought on its way.
pub struct Due {
    /// Its manifest.
    pub manifest: Manifest,
    /// What nodes store, unless the agent's node has it.
    pub blob: Option<Bytes>,
    /// Whether the log has it.
    pub is_logged: bool,
}

/// The next broadcast that is not wrapped: of each channel the oldest goes first.
///
/// # Errors
/// The store's.
pub fn due(tx: &Tx<'_>) -> Result<Option<Due>, EndpointError> {
    let row: Option<(Vec<u8>, Option<Vec<u8>>, u8)> = tx
        .sql()
        .prepare_cached(
            "SELECT manifest, blob, state FROM own_broadcasts WHERE state < 2 \
             ORDER BY channel, sequence LIMIT 1",
        )?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    row.map(|(manifest, blob, state)| {
        Ok(Due { manifest: read_manifest(&manifest)?, blob: blob.map(Bytes::from), is_logged: state == 1 })
    })
    .transpose()
}

fn read_manifest(bytes: &[u8]) -> Result<Manifest, EndpointError> {
    let unreadable = || StoreError::Row { table: "own_broadcasts", column: "manifest" };
    let manifest = directory::Manifest::decode(bytes).ok().and_then(|manifest| manifest.try_into().ok());
    Ok(manifest.ok_or_else(unreadable)?)
}

/// Takes back what was begun from a sequence on, and gives the orders, the oldest first and, because its blob may
/// be gone, without its content. The log has none of them.
///
/// # Errors
/// The store's.
pub(super) fn take_back(tx: &Tx<'_>, channel: &ChannelId, from: u64) -> Result<Vec<Order>, EndpointError> {
    let is_begun =
        "SELECT EXISTS (SELECT 1 FROM own_broadcasts WHERE channel = ?1 AND sequence = ?2 AND state = 0)";
    if !tx.sql().query_row(is_begun, params![channel.as_bytes(), from], |row| row.get::<_, bool>(0))? {
        return Ok(Vec::new());
    }
    let mut statement = tx.sql().prepare_cached(
        "DELETE FROM own_broadcasts WHERE channel = ?1 AND sequence >= ?2 AND state = 0 \
         RETURNING request_id, digest, manifest, blob, content_key",
    )?;
    let rows = statement.query_map(params![channel.as_bytes(), from], |row| {
        let request = (row.get(0)?, row.get(1)?);
        Ok((request, row.get::<_, Vec<u8>>(2)?, row.get::<_, Option<_>>(3)?, row.get::<_, [u8; 32]>(4)?))
    })?;
    let mut begun = Vec::new();
    for row in rows {
        let ((request_id, digest), manifest, blob, key) = row?;
        let (manifest, key) = (read_manifest(&manifest)?, ContentKey::from_bytes(*Zeroizing::new(key)));
        let unreadable = |_| StoreError::Row { table: "own_broadcasts", column: "blob" };
        let content = blob.map(|blob| blob::open(blob, &key, &manifest)).transpose().map_err(unreadable)?;
        begun.push((manifest, content.unwrap_or_default(), request_id, digest));
    }
    begun.sort_by_key(|(manifest, ..)| manifest.sequence);
    if let Some((first, ..)) = begun.first() {
        tx.sql().execute(
            "UPDATE own_channels SET sequence = ?2 - 1, manifest_hash = ?3 WHERE channel = ?1",
            params![channel.as_bytes(), first.sequence, first.previous_hash],
        )?;
    }
    let order = |(manifest, content, request_id, digest): (Manifest, _, _, _)| Order {
        request_id,
        digest,
        channel: *channel,
        content,
        emergency: manifest.emergency,
        about: manifest.about,
        expires: manifest.expires_at,
        begins: None,
    };
    Ok(begun.into_iter().map(order).collect())
}

/// The agent's node has the blob.
///
/// # Errors
/// The store's.
pub fn uploaded(tx: &Tx<'_>, channel: &ChannelId, sequence: u64) -> Result<(), EndpointError> {
    tx.sql().execute(
        "UPDATE own_broadcasts SET blob = NULL WHERE channel = ?1 AND sequence = ?2",
        params![channel.as_bytes(), sequence],
    )?;
    Ok(())
}

/// The log has the manifest, and this is the proof.
///
/// # Errors
/// The store's.
pub fn logged(
    tx: &Tx<'_>,
    (channel, sequence): (&ChannelId, u64),
    proof: &directory::LoggedManifest,
) -> Result<(), EndpointError> {
    tx.sql().execute(
        "UPDATE own_broadcasts SET state = 1, logged = ?3 WHERE channel = ?1 AND sequence = ?2 AND state = 0",
        params![channel.as_bytes(), sequence, proof.encode_to_vec()],
    )?;
    Ok(())
}

/// Wraps a logged broadcast for all cells of its channel.
///
/// # Errors
/// The store's.
pub fn wrap(tx: &Tx<'_>, channel: &ChannelId, sequence: u64) -> Result<u32, EndpointError> {
    let (logged, key): (Vec<u8>, [u8; 32]) = tx.sql().query_row(
        "SELECT logged, content_key FROM own_broadcasts WHERE channel = ?1 AND sequence = ?2 AND state = 1",
        params![channel.as_bytes(), sequence],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let content_key = ContentKey::from_bytes(*Zeroizing::new(key));
    let unreadable = || StoreError::Row { table: "own_broadcasts", column: "logged" };
    let proof = directory::LoggedManifest::decode(logged.as_slice()).map_err(|_| unreadable())?;
    let signed = SignedManifest::try_from(proof.manifest.unwrap_or_default()).map_err(|_| unreadable())?;
    let rows = keys::rows(tx, channel)?;
    for node in rows.iter().map(|(node, _)| node).collect::<BTreeSet<_>>() {
        announce(tx, node, signed.manifest(), Bytes::copy_from_slice(&logged))?;
    }
    let mut cells = 0;
    for (node, row) in &rows {
        let (wraps, wrapped) = keys::wrap(tx, (node, *row), &signed, &content_key)?;
        cells += wrapped;
        let wraps =
            federation::Wraps { channel_id: channel.to_wire(), sequence, row: *row, wraps: wraps.into() };
        handover::queue(tx, node, node::cell_item::Item::Wraps(wraps))?;
    }
    inbox::count_up(tx, STORE_COUNT)?;
    let published = audience::own(tx, channel)?;
    let kept = u64::from(published.map_or(0, |channel| channel.history));
    tx.sql().execute(
        "UPDATE own_broadcasts SET state = 2, cells = ?3 WHERE channel = ?1 AND sequence = ?2",
        params![channel.as_bytes(), sequence, cells],
    )?;
    // Whoever has this store from here on opens none of those that late joiners may not have.
    tx.sql().execute(
        "UPDATE own_broadcasts SET content_key = NULL WHERE channel = ?1 AND sequence <= ?2",
        params![channel.as_bytes(), sequence.saturating_sub(kept)],
    )?;
    tx.sql().execute(
        "UPDATE own_channels SET wrapped = ?2 WHERE channel = ?1",
        params![channel.as_bytes(), sequence],
    )?;
    Ok(cells)
}

/// Sequence of the last broadcast of a channel that was wrapped.
///
/// # Errors
/// The store's.
pub fn wrapped(tx: &Tx<'_>, channel: &ChannelId) -> Result<u64, EndpointError> {
    let mut statement = tx.sql().prepare_cached("SELECT wrapped FROM own_channels WHERE channel = ?1")?;
    Ok(statement.query_row([channel.as_bytes()], |row| row.get(0))?)
}

fn announce(
    tx: &Tx<'_>,
    node: &NodeId,
    manifest: &Manifest,
    logged_manifest: Bytes,
) -> Result<(), EndpointError> {
    let announcement = federation::Announcement {
        channel_id: manifest.channel.to_wire(),
        sequence: manifest.sequence,
        logged_manifest,
        expires_at_ms: manifest.expires_at.millis(),
    };
    handover::queue(tx, node, node::cell_item::Item::Announcement(announcement))
}

/// A broadcast that those who come in may read.
struct Granted {
    logged: Vec<u8>,
    signed: SignedManifest,
    content_key: Vec<u8>,
}

fn granted(tx: &Tx<'_>, channel: &Channel) -> Result<Vec<Granted>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT logged, content_key FROM own_broadcasts \
         WHERE channel = ?1 AND state = 2 AND content_key IS NOT NULL ORDER BY sequence DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![channel.id.as_bytes(), channel.history], |row| {
        Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?))
    })?;
    let unreadable = || StoreError::Row { table: "own_broadcasts", column: "logged" };
    rows.map(|row| {
        let (logged, content_key) = row?;
        let proof = directory::LoggedManifest::decode(logged.as_slice()).map_err(|_| unreadable())?;
        let signed =
            SignedManifest::try_from(proof.manifest.unwrap_or_default()).map_err(|_| unreadable())?;
        Ok(Granted { logged, signed, content_key })
    })
    .collect()
}

/// What those who come in may read of before.
///
/// # Errors
/// The store's.
pub(super) fn history(tx: &Tx<'_>, channel: &Channel) -> Result<Vec<EarlierBroadcast>, EndpointError> {
    let earlier = |granted: Granted| EarlierBroadcast {
        sequence: granted.signed.manifest().sequence,
        manifest_hash: granted.signed.hash().to_vec().into(),
        content_key: granted.content_key.into(),
    };
    Ok(granted(tx, channel)?.into_iter().map(earlier).collect())
}

/// A home node that had no cell of a channel hears of what its residents may read of before.
///
/// # Errors
/// The store's.
pub(super) fn announce_earlier(tx: &Tx<'_>, channel: &Channel, node: &NodeId) -> Result<(), EndpointError> {
    let mut earlier = granted(tx, channel)?;
    earlier.reverse();
    earlier
        .into_iter()
        .try_for_each(|granted| announce(tx, node, granted.signed.manifest(), granted.logged.into()))
}

/// After this store was restored from a copy: the channel goes on behind what the directory's map
/// shows. What was begun and not wrapped is for cells that are given up; what waits may have begun.
///
/// # Errors
/// The store's.
pub fn resume(
    tx: &Tx<'_>,
    channel: &ChannelId,
    (sequence, manifest_hash): (u64, [u8; 32]),
) -> Result<(), EndpointError> {
    tx.sql().execute(
        "UPDATE own_channels SET sequence = ?2, manifest_hash = ?3, wrapped = ?2 WHERE channel = ?1",
        params![channel.as_bytes(), sequence, manifest_hash],
    )?;
    tx.sql().execute(
        "UPDATE own_broadcasts SET state = 2, blob = NULL, content_key = NULL WHERE channel = ?1",
        [channel.as_bytes()],
    )?;
    schedule::forget_all(tx)
}
