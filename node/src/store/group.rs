//! Groups whose hub is this node, and routes to the hubs of the others.

use super::sql;
use chancery_node_core::hub::Group;
use chancery_types::{Alias, Chain, GroupId, NodeId};
use sqlx::{Row as _, SqliteConnection};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The groups among `ids` that this node is the hub of, with their members.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    ids: &HashSet<GroupId>,
) -> Result<HashMap<GroupId, Group>, sqlx::Error> {
    let keys = || ids.iter().map(|id| id.as_bytes().as_slice());
    let head = "SELECT group_id, epoch, sequence, chain FROM mls_group WHERE group_id";
    let mut groups = HashMap::new();
    for row in sql::select_in(&mut *connection, head, "", keys()).await? {
        let id: GroupId = sql::column(row.try_get::<Vec<u8>, _>(0)?, "mls_group.group_id")?;
        let group = Group {
            epoch: sql::unsigned(row.try_get(1)?),
            sequence: sql::unsigned(row.try_get(2)?),
            chain: sql::column::<Chain, _>(row.try_get::<Vec<u8>, _>(3)?, "mls_group.chain")?,
            members: BTreeMap::new(),
        };
        groups.insert(id, group);
    }
    let head = "SELECT group_id, alias, node FROM member WHERE group_id";
    for row in sql::select_in(connection, head, "", keys()).await? {
        let id: GroupId = sql::column(row.try_get::<Vec<u8>, _>(0)?, "member.group_id")?;
        let alias: Alias = sql::column(row.try_get::<Vec<u8>, _>(1)?, "member.alias")?;
        let node: NodeId = sql::column(row.try_get::<String, _>(2)?, "member.node")?;
        if let Some(group) = groups.get_mut(&id) {
            group.members.insert(alias, node);
        }
    }
    Ok(groups)
}

/// Writes groups that a submission moved on.
pub(super) async fn save(
    connection: &mut SqliteConnection,
    groups: &[(GroupId, Group)],
) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO mls_group (group_id, epoch, sequence, chain)";
    let tail = "ON CONFLICT (group_id) DO UPDATE SET
                epoch = excluded.epoch, sequence = excluded.sequence, chain = excluded.chain";
    sql::insert(connection, head, 4, tail, groups, |statement, (id, group)| {
        statement
            .bind(id.as_bytes().as_slice())
            .bind(sql::signed(group.epoch))
            .bind(sql::signed(group.sequence))
            .bind(group.chain.as_bytes().as_slice())
    })
    .await
}

/// Notes members of a group that came in.
pub(super) async fn join(
    connection: &mut SqliteConnection,
    joined: &[(GroupId, Alias, NodeId)],
) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO member (group_id, alias, node)";
    sql::insert(connection, head, 3, "ON CONFLICT DO NOTHING", joined, |s, (group, alias, node)| {
        s.bind(group.as_bytes().as_slice()).bind(alias.as_bytes().as_slice()).bind(node.as_str())
    })
    .await
}

/// Forgets a member of a group.
pub(super) async fn leave(
    connection: &mut SqliteConnection,
    group: GroupId,
    alias: Alias,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM member WHERE group_id = $1 AND alias = $2")
        .bind(group.as_bytes().as_slice())
        .bind(alias.as_bytes().as_slice())
        .execute(connection)
        .await
        .map(drop)
}

/// Hubs of the groups among `ids` that aliases of this node were brought into
/// from elsewhere.
pub(super) async fn routes(
    connection: &mut SqliteConnection,
    ids: &HashSet<GroupId>,
) -> Result<HashMap<(GroupId, Alias), NodeId>, sqlx::Error> {
    let head = "SELECT group_id, alias, hub FROM route WHERE group_id";
    let keys = ids.iter().map(|id| id.as_bytes().as_slice());
    let mut routes = HashMap::new();
    for row in sql::select_in(connection, head, "", keys).await? {
        let group = sql::column(row.try_get::<Vec<u8>, _>(0)?, "route.group_id")?;
        let alias = sql::column(row.try_get::<Vec<u8>, _>(1)?, "route.alias")?;
        let hub = sql::column(row.try_get::<String, _>(2)?, "route.hub")?;
        routes.insert((group, alias), hub);
    }
    Ok(routes)
}

/// Notes that aliases of this node were brought into groups of other hubs.
pub(super) async fn add_routes(
    connection: &mut SqliteConnection,
    routes: &[(GroupId, Alias, NodeId)],
) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO route (group_id, alias, hub)";
    sql::insert(connection, head, 3, "ON CONFLICT DO NOTHING", routes, |s, (group, alias, hub)| {
        s.bind(group.as_bytes().as_slice()).bind(alias.as_bytes().as_slice()).bind(hub.as_str())
    })
    .await
}

/// In the groups of this hub an alias that was at home with `from` is so with `to`.
pub(super) async fn relocate(
    connection: &mut SqliteConnection,
    alias: Alias,
    from: &NodeId,
    to: &NodeId,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE member SET node = $3 WHERE alias = $1 AND node = $2")
        .bind(alias.as_bytes().as_slice())
        .bind(from.as_str())
        .bind(to.as_str())
        .execute(connection)
        .await
        .map(drop)
}
