//! What an agent has for cells, in the order in which it made it, until the agent's node has it.

use crate::error::EndpointError;
use crate::store::{StoreError, Tx};
use chancery_proto::node::v1 as node;
use chancery_types::NodeId;
use prost::Message as _;
use prost::bytes::Bytes;
use rusqlite::{OptionalExtension as _, params};

/// Bytes of one call with what waits for a home node.
const CALL_BYTES: usize = 3 * 1024 * 1024 - 64 * 1024;
/// Things in one call.
const CALL_ITEMS: usize = 64;

/// Puts something for cells behind all that waits for their home node.
///
/// # Errors
/// The store's.
pub(super) fn queue(tx: &Tx<'_>, node: &NodeId, item: node::cell_item::Item) -> Result<(), EndpointError> {
    let item = node::CellItem { item: Some(item) }.encode_to_vec();
    tx.sql()
        .prepare_cached("INSERT INTO cell_outbox (node, item) VALUES (?1, ?2)")?
        .execute(params![node.as_str(), item])?;
    Ok(())
}

/// What waits for one home node, as much as fits into a call.
pub struct Waiting {
    /// Which one.
    pub node: NodeId,
    /// In order.
    pub items: Vec<node::CellItem>,
    /// The last of it in the queue.
    pub through: i64,
}

/// What waits longest, and what waits with it for the same node.
///
/// # Errors
/// The store's.
pub fn waiting(tx: &Tx<'_>) -> Result<Option<Waiting>, EndpointError> {
    let first: Option<String> = tx
        .sql()
        .prepare_cached("SELECT node FROM cell_outbox ORDER BY id LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let Some(node) = first else { return Ok(None) };
    let sql = format!("SELECT id, item FROM cell_outbox WHERE node = ?1 ORDER BY id LIMIT {CALL_ITEMS}");
    let mut statement = tx.sql().prepare_cached(&sql)?;
    let mut rows = statement.query([&node])?;
    let (mut items, mut through, mut bytes) = (Vec::new(), 0, 0);
    while let Some(row) = rows.next()? {
        let item: Vec<u8> = row.get(1)?;
        bytes += item.len();
        if bytes > CALL_BYTES && !items.is_empty() {
            break;
        }
        through = row.get(0)?;
        let unreadable = |_| StoreError::Row { table: "cell_outbox", column: "item" };
        items.push(node::CellItem::decode(Bytes::from(item)).map_err(unreadable)?);
    }
    let node = node.parse().map_err(|_| StoreError::Row { table: "cell_outbox", column: "node" })?;
    Ok(Some(Waiting { node, items, through }))
}

/// A home node's call is answered: it has all up to there.
///
/// # Errors
/// The store's.
pub fn done(tx: &Tx<'_>, node: &NodeId, through: i64) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached("DELETE FROM cell_outbox WHERE node = ?1 AND id <= ?2")?
        .execute(params![node.as_str(), through])?;
    Ok(())
}
