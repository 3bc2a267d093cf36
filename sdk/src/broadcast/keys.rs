//! The agent's chains of keys, in rows of 1,024 cells of one home node. All cells of a channel
//! stand at the same broadcast, so a row needs no more than epoch and key of each; a broadcast
//! reads it, wraps for each cell, and writes it back, and no group is loaded.

use super::chain::{Chain, WRAP_LENGTH};
use super::{BroadcastError, ContentKey};
use crate::error::EndpointError;
use crate::store::{StoreError, Tx};
use chancery_directory_core::manifest::SignedManifest;
use chancery_types::{ChannelId, NodeId, Refusal};
use rusqlite::{OptionalExtension as _, params};
use zeroize::Zeroizing;

/// Cells of a row.
const ROW: u32 = 1024;
/// Epoch and key.
const SLOT: usize = 8 + 32;

/// Puts the chain of a cell's new epoch, or takes a closed cell's away.
///
/// # Errors
/// The store's.
pub fn put(
    tx: &Tx<'_>,
    (channel, node, cell): (&ChannelId, &NodeId, u32),
    chain: Option<&Chain>,
) -> Result<(), EndpointError> {
    let row = cell / ROW;
    let mut keys = read(tx, channel, node, row)?;
    let start = (cell % ROW) as usize * SLOT;
    if keys.len() < start + SLOT {
        keys.resize(start + SLOT, 0);
    }
    if let Some(slot) = keys.get_mut(start..start + SLOT) {
        let (epoch, key) = slot.split_at_mut(8);
        epoch.copy_from_slice(&chain.map_or(0, Chain::epoch).to_be_bytes());
        key.copy_from_slice(chain.map_or(&[0; 32], |chain| chain.key()).as_slice());
    }
    write(tx, channel, node, row, &keys)
}

/// Which rows a channel has: home node and row.
///
/// # Errors
/// The store's.
pub fn rows(tx: &Tx<'_>, channel: &ChannelId) -> Result<Vec<(NodeId, u32)>, EndpointError> {
    let mut statement =
        tx.sql().prepare_cached("SELECT node, row FROM cell_keys WHERE channel = ?1 ORDER BY node, row")?;
    let rows =
        statement.query_map([channel.as_bytes()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
    rows.map(|row| {
        let (node, row) = row?;
        let node = node.parse().map_err(|_| StoreError::Row { table: "cell_keys", column: "node" })?;
        Ok((node, row))
    })
    .collect()
}

/// Wraps a broadcast's content key for the cells of a row and takes the key of each off its chain:
/// 56 bytes a cell, zeroes where there is none; and for how many cells.
///
/// # Errors
/// The store's; [`BroadcastError`] where the manifest is not of that content key.
pub(super) fn wrap(
    tx: &Tx<'_>,
    (node, row): (&NodeId, u32),
    manifest: &SignedManifest,
    content_key: &ContentKey,
) -> Result<(Vec<u8>, u32), EndpointError> {
    let said = manifest.manifest();
    let mut keys = read(tx, &said.channel, node, row)?;
    let mut wraps = Vec::with_capacity(keys.len() / SLOT * WRAP_LENGTH);
    let mut wrapped = 0;
    for slot in keys.chunks_exact_mut(SLOT) {
        let (epoch, key) = slot.split_at_mut(8);
        if key.iter().all(|byte| *byte == 0) {
            wraps.extend_from_slice(&[0; WRAP_LENGTH]);
            continue;
        }
        let number = epoch.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        let mut before = Zeroizing::new([0; 32]);
        before.copy_from_slice(key);
        let mut chain = Chain::new(number, said.sequence, *before);
        let wrap = chain.take(manifest).and_then(|wrap_key| wrap_key.wrap(content_key));
        wraps.extend_from_slice(&wrap.map_err(internal)?);
        key.copy_from_slice(chain.key());
        wrapped += 1;
    }
    write(tx, &said.channel, node, row, &keys)?;
    Ok((wraps, wrapped))
}

fn internal(error: BroadcastError) -> EndpointError {
    Refusal::new(chancery_types::Reason::Internal, error.to_string()).into()
}

fn read(
    tx: &Tx<'_>,
    channel: &ChannelId,
    node: &NodeId,
    row: u32,
) -> Result<Zeroizing<Vec<u8>>, EndpointError> {
    let keys: Option<Vec<u8>> = tx
        .sql()
        .prepare_cached("SELECT keys FROM cell_keys WHERE channel = ?1 AND node = ?2 AND row = ?3")?
        .query_row(params![channel.as_bytes(), node.as_str(), row], |row| row.get(0))
        .optional()?;
    Ok(Zeroizing::new(keys.unwrap_or_default()))
}

fn write(
    tx: &Tx<'_>,
    channel: &ChannelId,
    node: &NodeId,
    row: u32,
    keys: &[u8],
) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "INSERT INTO cell_keys (channel, node, row, keys) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (channel, node, row) DO UPDATE SET keys = excluded.keys",
        )?
        .execute(params![channel.as_bytes(), node.as_str(), row, keys])?;
    Ok(())
}
