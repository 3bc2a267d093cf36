//! Broadcasts that came in. One is opened in two steps: its content key when the wrap comes, in the
//! transaction that takes the cell's key off the chain; its content when the blob is here.

use super::{ContentKey, blob, counts};
use crate::alarm::{self, Alarm};
use crate::content::MimiContent;
use crate::content::condition::{self, Profile};
use crate::error::EndpointError;
use crate::keepsake;
use crate::store::{StoreError, Tx};
use chancery_directory_core::manifest::{About, Manifest, SignedManifest};
use chancery_proto::directory::v1 as directory;
use chancery_types::{BlobId, ChannelId, NodeId, Timestamp};
use prost::Message as _;
use prost::bytes::Bytes;
use rusqlite::{OptionalExtension as _, params};
use zeroize::Zeroizing;

/// Under which the profile is kept.
const PROFILE: &str = "profile";

/// A broadcast that came in.
#[derive(Clone)]
pub struct Received {
    /// Growing.
    pub position: u64,
    /// What is known of it in public.
    pub manifest: Manifest,
    /// MIMI content, decrypted.
    pub content: Vec<u8>,
    /// Whether it is for the owner of this device, as far as it knows them ([`set_profile`]).
    pub is_for_owner: bool,
    /// A later broadcast of the channel that takes its place, or says that it is to be disregarded.
    pub superseded_by: Option<u64>,
}

/// A broadcast whose content is to be fetched.
pub struct Missing {
    /// Where it stands.
    pub position: u64,
    /// Its blob.
    pub blob: BlobId,
    /// Bytes of the blob.
    pub size: u64,
    /// The node that it was put on.
    pub owner: NodeId,
    expires_at: Timestamp,
}

impl Missing {
    /// Whether nodes have forgotten it by now.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires_at <= now
    }
}

/// Notes a broadcast whose content key is known; once.
///
/// # Errors
/// The store's.
pub(super) fn put(
    tx: &Tx<'_>,
    owner: &NodeId,
    manifest: &SignedManifest,
    content_key: &ContentKey,
) -> Result<(), EndpointError> {
    let said = manifest.manifest();
    tx.sql()
        .prepare_cached(
            "INSERT INTO broadcasts (channel, sequence, owner, manifest, content_key) \
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            said.channel.as_bytes(),
            said.sequence,
            owner.as_str(),
            manifest.wire().encode_to_vec(),
            content_key.as_bytes()
        ])?;
    Ok(())
}

/// Hash of the manifest of a broadcast that came in.
///
/// # Errors
/// The store's.
pub(super) fn hash(
    tx: &Tx<'_>,
    channel: &ChannelId,
    sequence: u64,
) -> Result<Option<[u8; 32]>, EndpointError> {
    let manifest: Option<Vec<u8>> = tx
        .sql()
        .prepare_cached("SELECT manifest FROM broadcasts WHERE channel = ?1 AND sequence = ?2")?
        .query_row(params![channel.as_bytes(), sequence], |row| row.get(0))
        .optional()?;
    manifest.map(|bytes| Ok(read(&bytes)?.hash())).transpose()
}

/// Broadcasts whose content is to be fetched, oldest first.
///
/// # Errors
/// The store's.
pub fn missing(tx: &Tx<'_>, most: usize) -> Result<Vec<Missing>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT position, manifest, owner FROM broadcasts \
         WHERE content IS NULL AND failure IS NULL ORDER BY position LIMIT ?1",
    )?;
    let rows = statement
        .query_map([most], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, String>(2)?)))?;
    rows.map(|row| {
        let (position, manifest, owner) = row?;
        let manifest = read(&manifest)?;
        let owner = owner.parse().map_err(|_| StoreError::Row { table: "broadcasts", column: "owner" })?;
        let said = manifest.manifest();
        Ok(Missing { position, blob: said.blob, size: said.blob_size, owner, expires_at: said.expires_at })
    })
    .collect()
}

/// Opens a content that was fetched. One that is not what its manifest says is not kept, and an
/// alarm is raised: its agent has told two things.
///
/// # Errors
/// The store's.
pub fn fetched(tx: &Tx<'_>, position: u64, bytes: Vec<u8>) -> Result<(), EndpointError> {
    let row: Option<(Vec<u8>, [u8; 32])> = tx
        .sql()
        .prepare_cached(
            "SELECT manifest, content_key FROM broadcasts WHERE position = ?1 AND content_key IS NOT NULL",
        )?
        .query_row([position], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((manifest, key)) = row else { return Ok(()) };
    let (manifest, key) = (read(&manifest)?, ContentKey::from_bytes(*Zeroizing::new(key)));
    match blob::open(bytes, &key, manifest.manifest()) {
        Ok(content) => {
            tx.sql().execute(
                "UPDATE broadcasts SET content = ?2, content_key = NULL WHERE position = ?1",
                params![position, content],
            )?;
            counts::note(tx, &manifest.manifest().channel, manifest.manifest().sequence, false)?;
        }
        Err(error) => {
            alarm::raise(tx, Alarm::FalseBroadcast, None)?;
            failed(tx, position, &error.to_string())?;
        }
    }
    Ok(())
}

/// A content will not come any more.
///
/// # Errors
/// The store's.
pub fn failed(tx: &Tx<'_>, position: u64, why: &str) -> Result<(), EndpointError> {
    tx.sql().execute(
        "UPDATE broadcasts SET failure = ?2, content_key = NULL WHERE position = ?1 AND content IS NULL",
        params![position, why],
    )?;
    Ok(())
}

/// Broadcasts behind a position, oldest first.
///
/// # Errors
/// The store's.
pub fn after(tx: &Tx<'_>, position: u64, most: usize) -> Result<Vec<Received>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT position, manifest, content FROM broadcasts \
         WHERE position > ?1 AND content IS NOT NULL ORDER BY position LIMIT ?2",
    )?;
    let profile = profile(tx)?;
    let rows = statement.query_map(params![position, most], |row| {
        Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?, row.get(2)?))
    })?;
    rows.map(|row| {
        let (position, manifest, content): (_, _, Vec<u8>) = row?;
        let manifest = read(&manifest)?.manifest().clone();
        let superseded_by = superseded_by(tx, &manifest)?;
        let condition = MimiContent::decode(&content).ok().and_then(|content| content.extensions.condition());
        let is_for_owner =
            condition.is_none_or(|condition| condition::applies(&condition, &profile, tx.now()));
        Ok(Received { position, manifest, content, is_for_owner, superseded_by })
    })
    .collect()
}

/// Keeps what the device knows of its owner, to judge for whom a broadcast is.
///
/// # Errors
/// The store's.
pub fn set_profile(tx: &Tx<'_>, profile: &Profile) -> Result<(), EndpointError> {
    keepsake::put(tx, PROFILE, &profile.encode_to_vec())
}

fn profile(tx: &Tx<'_>) -> Result<Profile, EndpointError> {
    let unreadable = |_| StoreError::Row { table: "keepsakes", column: "value" };
    let kept = keepsake::get(tx, PROFILE)?.map(|bytes| Profile::decode(bytes.as_slice()));
    Ok(kept.transpose().map_err(unreadable)?.unwrap_or_default())
}

/// The latest broadcast that corrects or recalls this one.
fn superseded_by(tx: &Tx<'_>, of: &Manifest) -> Result<Option<u64>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT manifest FROM broadcasts WHERE channel = ?1 AND sequence > ?2 ORDER BY sequence DESC",
    )?;
    let mut rows = statement.query(params![of.channel.as_bytes(), of.sequence])?;
    while let Some(row) = rows.next()? {
        let later = read(&row.get::<_, Vec<u8>>(0)?)?;
        let about = match later.manifest().about {
            Some(About::Corrects(sequence) | About::Recalls(sequence)) => sequence,
            None => continue,
        };
        if about == of.sequence {
            return Ok(Some(later.manifest().sequence));
        }
    }
    Ok(None)
}

/// When anything of a channel came last that is still good; for keys that are kept for stragglers.
pub(super) const fn kept_until(manifest: &Manifest) -> Timestamp {
    manifest.expires_at
}

fn read(bytes: &[u8]) -> Result<SignedManifest, EndpointError> {
    let unreadable = || StoreError::Row { table: "broadcasts", column: "manifest" };
    let wire = directory::SignedManifest::decode(Bytes::copy_from_slice(bytes)).map_err(|_| unreadable())?;
    Ok(SignedManifest::try_from(wire).map_err(|_| unreadable())?)
}
