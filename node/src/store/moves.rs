//! Aliases that go to another home, and those that come from one. Hubs hear of it
//! in line behind all that was submitted here; what they sent before stays in the
//! mailbox for the alias's devices.

use super::{NodeStore, Tx, group, sql};
use chancery_node_core::mailbox::{self, Item};
use chancery_node_core::moves::news;
use chancery_node_core::outbox;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, DeviceId, GroupId, NodeId, Reason, Refusal};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use std::collections::{HashMap, HashSet};

/// Routes in one answer or call.
pub(crate) const ROUTES_AT_ONCE: usize = 1000;
/// Most routes of an alias.
const MAX_ROUTES: u64 = 65_536 + ROUTES_AT_ONCE as u64;

/// How far a departure is.
pub(crate) struct Left {
    /// Hubs that have not noted it: what they sent before may still come.
    pub(crate) pending_hubs: u32,
    /// Position of the last item in the mailbox that is for the calling device.
    pub(crate) last_position: u64,
}

/// Hubs of an alias's groups behind a group, in the order of their ids.
pub(crate) async fn routes(
    store: &NodeStore,
    here: &NodeId,
    alias: Alias,
    after: &[u8],
) -> Result<Vec<(GroupId, NodeId)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT group_id, hub FROM route WHERE alias = $1 AND group_id > $2
         UNION SELECT group_id, $3 FROM member WHERE alias = $1 AND group_id > $2
         ORDER BY 1 LIMIT 1000",
    )
    .bind(alias.as_bytes().as_slice())
    .bind(after)
    .bind(here.as_str())
    .fetch_all(store.readers())
    .await?;
    rows.iter()
        .map(|row| {
            let group = sql::column(row.try_get::<Vec<u8>, _>(0)?, "route.group_id")?;
            Ok((group, sql::column(row.try_get::<String, _>(1)?, "route.hub")?))
        })
        .collect()
}

/// Notes the hubs of groups that an alias brings along.
pub(crate) async fn add_routes(
    tx: &mut Tx<'_>,
    alias: Alias,
    routes: &[(GroupId, NodeId)],
) -> Result<Result<(), Refusal>, sqlx::Error> {
    if sql::unsigned(count(tx, alias).await?) + routes.len() as u64 > MAX_ROUTES {
        return Ok(Err(Refusal::new(Reason::QuotaExceeded, "an alias is in at most 65,536 groups")));
    }
    let rows: Vec<_> = routes.iter().map(|(group, hub)| (*group, alias, hub.clone())).collect();
    group::add_routes(tx.tables.connection, &rows).await?;
    Ok(Ok(()))
}

/// The alias has another home from now on. Asked again: hubs of groups that came in
/// since are told.
pub(crate) async fn leave(
    tx: &mut Tx<'_>,
    (alias, device): (Alias, DeviceId),
    to: &NodeId,
    routes: u64,
) -> Result<Result<Left, Refusal>, sqlx::Error> {
    if *to == tx.here {
        return Ok(Err(Refusal::field("node is the alias's home already")));
    }
    let before = homes(tx.tables.connection, &HashSet::from([alias])).await?.remove(&alias);
    if before.as_ref().is_some_and(|before| before != to) {
        return Ok(Err(Refusal::new(Reason::AliasMoved, "the alias has gone to yet another home")));
    }
    if sql::unsigned(count(tx, alias).await?) != routes {
        return Ok(Err(Refusal::new(
            Reason::RoutesChanged,
            "the alias is in other groups than the new home was told; tell it and leave again",
        )));
    }
    let key = alias.as_bytes().as_slice();
    if before.is_none() {
        sqlx::query("INSERT INTO moved (alias, node, left_at) VALUES ($1, $2, $3)")
            .bind(key)
            .bind(to.as_str())
            .bind(tx.now.millis())
            .execute(&mut *tx.tables.connection)
            .await?;
        sqlx::query("DELETE FROM key_package WHERE alias = $1")
            .bind(key)
            .execute(&mut *tx.tables.connection)
            .await?;
        let moved = node::subscribe_response::Item::Moved(node::Moved { node: to.to_string() });
        mailbox::put(tx, &[Item::news(alias, moved, tx.now)]).await?;
    }
    group::relocate(tx.tables.connection, alias, &tx.here, to).await?;
    tell_hubs(tx, alias, to).await?;
    let pending: i64 =
        sqlx::query_scalar("SELECT count(*) FROM outbox WHERE kind = 4 AND sender = $1 AND state < 2")
            .bind(key)
            .fetch_one(&mut *tx.tables.connection)
            .await?;
    // As the calling device reads it.
    let last: i64 = sqlx::query_scalar(
        "SELECT coalesce(max(position), 0) FROM mailbox WHERE alias = $1 AND expires_at > $3
           AND (only_device IS NULL OR only_device = $2) AND (except_device IS NULL OR except_device <> $2)",
    )
    .bind(key)
    .bind(device.as_bytes().as_slice())
    .bind(tx.now.millis())
    .fetch_one(&mut *tx.tables.connection)
    .await?;
    let pending_hubs = u32::try_from(pending).unwrap_or(u32::MAX);
    Ok(Ok(Left { pending_hubs, last_position: sql::unsigned(last) }))
}

async fn tell_hubs(tx: &mut Tx<'_>, alias: Alias, to: &NodeId) -> Result<(), sqlx::Error> {
    let hubs: Vec<String> =
        sqlx::query_scalar("SELECT DISTINCT hub FROM route WHERE alias = $1 AND NOT told AND hub <> $2")
            .bind(alias.as_bytes().as_slice())
            .bind(tx.here.as_str())
            .fetch_all(&mut *tx.tables.connection)
            .await?;
    let hubs = hubs.into_iter().map(|hub| sql::column(hub, "route.hub")).collect::<Result<Vec<_>, _>>()?;
    let parcels: Vec<_> = hubs.into_iter().map(|hub| news(tx, hub, alias, to)).collect();
    outbox::push(tx, &parcels).await?;
    sqlx::query("UPDATE route SET told = TRUE WHERE alias = $1 AND NOT told")
        .bind(alias.as_bytes().as_slice())
        .execute(&mut *tx.tables.connection)
        .await
        .map(drop)
}

/// Aliases that left and are in groups of `hub`, with their new homes.
pub(super) async fn departed(
    connection: &mut SqliteConnection,
    hub: &NodeId,
) -> Result<Vec<(Alias, NodeId)>, sqlx::Error> {
    sqlx::query(
        "SELECT alias, node FROM moved
         WHERE EXISTS (SELECT 1 FROM route WHERE route.alias = moved.alias AND route.hub = $1)",
    )
    .bind(hub.as_str())
    .fetch_all(connection)
    .await?
    .iter()
    .map(home)
    .collect()
}

/// New homes of those among the aliases that have one.
pub(super) async fn homes(
    connection: &mut SqliteConnection,
    aliases: &HashSet<Alias>,
) -> Result<HashMap<Alias, NodeId>, sqlx::Error> {
    let head = "SELECT alias, node FROM moved WHERE alias";
    let keys = aliases.iter().map(|alias| alias.as_bytes().as_slice());
    sql::select_in(connection, head, "", keys).await?.iter().map(home).collect()
}

fn home(row: &SqliteRow) -> Result<(Alias, NodeId), sqlx::Error> {
    let alias = sql::column(row.try_get::<Vec<u8>, _>(0)?, "moved.alias")?;
    Ok((alias, sql::column(row.try_get::<String, _>(1)?, "moved.node")?))
}

async fn count(tx: &mut Tx<'_>, alias: Alias) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT group_id FROM route WHERE alias = $1
         UNION SELECT group_id FROM member WHERE alias = $1)",
    )
    .bind(alias.as_bytes().as_slice())
    .fetch_one(&mut *tx.tables.connection)
    .await
}
