//! Mailboxes: what waits for the devices of an alias, and how far each device has come.

use super::{NodeStore, Tx, sql};
use chancery_node_core::mailbox::{Delivered, Item, Origin};
use chancery_node_core::tables::{Expired, Gone, Untaken};
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, DeviceId, Timestamp};
use futures::TryStreamExt as _;
use prost::Message as _;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};
use std::collections::{HashMap, HashSet};

/// Bytes of items that are read for a device at once, about.
const READ_BYTES: usize = 1024 * 1024;

/// What waits for a device behind a position, oldest first, up to some bytes;
/// and whether there may be more. What has expired stops it: what remains of it comes
/// before what is behind it.
pub(crate) async fn read(
    store: &NodeStore,
    alias: Alias,
    device: DeviceId,
    after: u64,
    most: usize,
) -> Result<(Vec<node::SubscribeResponse>, bool), sqlx::Error> {
    // SQLite prepares a statement with a bound LIMIT anew each time.
    let mut rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT position, item, expires_at FROM mailbox
         WHERE alias = $1 AND position > $2 AND position > coalesce(
             (SELECT through FROM mailbox_cursor WHERE alias = $1 AND device_id = $3), 0)
           AND (only_device IS NULL OR only_device = $3)
           AND (except_device IS NULL OR except_device <> $3)
         ORDER BY position LIMIT {most}"
    )))
    .bind(alias.as_bytes().as_slice())
    .bind(sql::signed(after))
    .bind(device.as_bytes().as_slice())
    .fetch(store.readers());
    let now = store.now();
    let (mut items, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        let content: Vec<u8> = row.try_get(1)?;
        bytes += content.len();
        let expires_at = Timestamp::from_millis(row.try_get(2)?);
        if expires_at <= now {
            return Ok((items, false));
        }
        let position = sql::unsigned(row.try_get(0)?);
        items.push(node::SubscribeResponse { position, item: Some(item(content)?) });
        if bytes >= READ_BYTES {
            return Ok((items, true));
        }
    }
    let full = items.len() >= most;
    Ok((items, full))
}

/// A device that is new to an alias reads what arrives from now on.
pub(crate) async fn start(tx: &mut Tx<'_>, alias: Alias, device: DeviceId) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO mailbox_cursor (alias, device_id, through)
         SELECT $1, $2, coalesce(max(position), 0) FROM mailbox WHERE alias = $1
         ON CONFLICT DO NOTHING",
    )
    .bind(alias.as_bytes().as_slice())
    .bind(device.as_bytes().as_slice())
    .execute(&mut *tx.tables.connection)
    .await
    .map(drop)
}

/// Position up to which a device has acknowledged, for each alias.
pub(crate) async fn acknowledged(
    store: &NodeStore,
    device: DeviceId,
    aliases: &[Alias],
) -> Result<Vec<u64>, sqlx::Error> {
    // By the account's aliases, because the key of cursors begins with them.
    let rows = sqlx::query(
        "SELECT c.alias, c.through FROM device d JOIN alias a ON a.account_id = d.account_id
         JOIN mailbox_cursor c ON c.alias = a.alias AND c.device_id = d.device_id WHERE d.device_id = $1",
    )
    .bind(device.as_bytes().as_slice())
    .fetch_all(store.readers())
    .await?;
    let through = |row: &SqliteRow| {
        let alias: Alias = sql::column(row.try_get::<Vec<u8>, _>(0)?, "mailbox_cursor.alias")?;
        Ok::<_, sqlx::Error>((alias, sql::unsigned(row.try_get(1)?)))
    };
    let through = rows.iter().map(through).collect::<Result<HashMap<_, _>, _>>()?;
    Ok(aliases.iter().map(|alias| through.get(alias).copied().unwrap_or(0)).collect())
}

/// How many devices each alias has; an alias that is not here is left out.
pub(super) async fn devices(
    connection: &mut SqliteConnection,
    aliases: &HashSet<Alias>,
) -> Result<HashMap<Alias, u32>, sqlx::Error> {
    let head = "SELECT a.alias, count(*) FROM alias a JOIN device d ON d.account_id = a.account_id
                WHERE a.alias";
    let keys = aliases.iter().map(|alias| alias.as_bytes().as_slice());
    let mut counts = HashMap::new();
    for row in sql::select_in(connection, head, "GROUP BY a.alias", keys).await? {
        let alias = sql::column(row.try_get::<Vec<u8>, _>(0)?, "alias.alias")?;
        counts.insert(alias, u32::try_from(row.try_get::<i64, _>(1)?).unwrap_or(u32::MAX));
    }
    Ok(counts)
}

/// Puts items into mailboxes, each at the next position.
pub(super) async fn put(connection: &mut SqliteConnection, items: &[Item]) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO mailbox (alias, item, message_id, part, hub, sender, sender_node, wants_events, \
                wants_receipt, only_device, except_device, expires_at)";
    sql::insert(connection, head, 12, "", items, |statement, item| {
        let (mut hub, mut sender, mut sender_node, mut wants_events) = (None, None, None, false);
        match item.delivery.as_ref().map(|d| &d.origin) {
            Some(Origin::Hub(node)) => hub = Some(node.as_str()),
            Some(Origin::Here { sender: alias, sender_node: home, wants_events: wants }) => {
                sender = Some(alias.as_bytes().as_slice());
                sender_node = Some(home.as_str());
                wants_events = *wants;
            }
            None => {}
        }
        let response = node::SubscribeResponse { position: 0, item: Some(item.item.clone()) };
        statement
            .bind(item.alias.as_bytes().as_slice())
            .bind(response.encode_to_vec())
            .bind(item.delivery.as_ref().map(|d| d.message_id.as_bytes().as_slice()))
            .bind(item.delivery.as_ref().map_or(0, |d| i64::from(d.part)))
            .bind(hub)
            .bind(sender)
            .bind(sender_node)
            .bind(wants_events)
            .bind(item.delivery.as_ref().is_some_and(|d| d.wants_receipt))
            .bind(item.only_device.as_ref().map(|d| d.as_bytes().as_slice()))
            .bind(item.except_device.as_ref().map(|d| d.as_bytes().as_slice()))
            .bind(item.expires_at.millis())
    })
    .await
}

/// Deliveries behind a device's cursor and up to `through` that it may read and no
/// device has taken, oldest first.
pub(super) async fn untaken(
    connection: &mut SqliteConnection,
    (alias, device): (Alias, DeviceId),
    through: u64,
    most: usize,
) -> Result<Vec<Untaken>, sqlx::Error> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT position, message_id, part, hub, sender, sender_node, wants_events, wants_receipt FROM mailbox
         WHERE alias = $1 AND position <= $2 AND NOT taken AND message_id IS NOT NULL
           AND position > coalesce(
             (SELECT through FROM mailbox_cursor WHERE alias = $1 AND device_id = $3), 0)
           AND (except_device IS NULL OR except_device <> $3)
         ORDER BY position LIMIT {most}"
    )))
    .bind(alias.as_bytes().as_slice())
    .bind(sql::signed(through))
    .bind(device.as_bytes().as_slice())
    .fetch_all(connection)
    .await?;
    let untaken = |row: &SqliteRow| {
        Ok(Untaken { position: sql::unsigned(row.try_get("position")?), delivered: delivered(row)? })
    };
    rows.iter().map(untaken).collect()
}

/// Notes that a device has what stands at these positions.
pub(super) async fn take(
    connection: &mut SqliteConnection,
    positions: &HashSet<u64>,
) -> Result<(), sqlx::Error> {
    let positions = positions.iter().map(|position| sql::signed(*position));
    sql::select_in(connection, "UPDATE mailbox SET taken = TRUE WHERE position", "", positions)
        .await
        .map(drop)
}

/// Moves cursors forward, never back. Each device stands once: a statement may not
/// change a row twice.
pub(super) async fn raise_cursors(
    connection: &mut SqliteConnection,
    cursors: &[((Alias, DeviceId), u64)],
) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO mailbox_cursor (alias, device_id, through)";
    let tail = "ON CONFLICT (alias, device_id) DO UPDATE SET through = excluded.through
                WHERE excluded.through > mailbox_cursor.through";
    sql::insert(connection, head, 3, tail, cursors, |statement, ((alias, device), through)| {
        statement.bind(alias.as_bytes().to_vec()).bind(device.as_bytes().to_vec()).bind(sql::signed(*through))
    })
    .await
}

/// Deletes what the cursors of all devices of these aliases have passed; gives the
/// deliveries that no device had taken.
pub(super) async fn forget(
    connection: &mut SqliteConnection,
    aliases: &HashSet<Alias>,
) -> Result<Vec<Gone>, sqlx::Error> {
    let head = "SELECT a.alias, min(coalesce(c.through, 0)) FROM alias a
                JOIN device d ON d.account_id = a.account_id
                LEFT JOIN mailbox_cursor c ON c.alias = a.alias AND c.device_id = d.device_id
                WHERE a.alias";
    let keys = aliases.iter().map(|alias| alias.as_bytes().as_slice());
    let through: Vec<(Vec<u8>, i64)> = sql::select_in(&mut *connection, head, "GROUP BY a.alias", keys)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, sqlx::Error>>()?;
    let head = "WITH done (alias, through) AS (";
    let tail = ") DELETE FROM mailbox WHERE position IN (
                  SELECT m.position FROM done
                  JOIN mailbox m ON m.alias = done.alias AND m.position <= done.through)
                RETURNING alias, message_id, part, hub, sender, sender_node, wants_events, wants_receipt, taken";
    let rows = sql::insert_returning(connection, head, 2, tail, &through, |statement, (alias, through)| {
        statement.bind(alias.clone()).bind(*through)
    });
    let mut gone = Vec::new();
    for row in rows.await? {
        if is_untaken(&row)? {
            let recipient = sql::column(row.try_get::<Vec<u8>, _>("alias")?, "mailbox.alias")?;
            gone.push(Gone { recipient, delivered: delivered(&row)? });
        }
    }
    Ok(gone)
}

/// Rows that have expired.
pub(super) async fn expired(
    connection: &mut SqliteConnection,
    now: Timestamp,
    most: usize,
) -> Result<Vec<Expired>, sqlx::Error> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT position, alias, item, message_id, part, hub, sender, sender_node, wants_events,
           wants_receipt, taken FROM mailbox WHERE expires_at <= $1 ORDER BY expires_at LIMIT {most}"
    )))
    .bind(now.millis())
    .fetch_all(connection)
    .await?;
    let expired = |row: &SqliteRow| {
        Ok(Expired {
            position: sql::unsigned(row.try_get("position")?),
            recipient: sql::column(row.try_get::<Vec<u8>, _>("alias")?, "mailbox.alias")?,
            item: item(row.try_get("item")?)?,
            untaken: if is_untaken(row)? { Some(delivered(row)?) } else { None },
        })
    };
    rows.iter().map(expired).collect()
}

/// Another item stands in the place of one; nothing is reported of it.
pub(super) async fn replace(
    connection: &mut SqliteConnection,
    position: u64,
    item: &node::subscribe_response::Item,
    expires_at: Timestamp,
) -> Result<(), sqlx::Error> {
    let response = node::SubscribeResponse { position: 0, item: Some(item.clone()) };
    sqlx::query("UPDATE mailbox SET item = $2, expires_at = $3, message_id = NULL WHERE position = $1")
        .bind(sql::signed(position))
        .bind(response.encode_to_vec())
        .bind(expires_at.millis())
        .execute(connection)
        .await
        .map(drop)
}

/// Deletes rows.
pub(super) async fn remove(connection: &mut SqliteConnection, positions: &[u64]) -> Result<(), sqlx::Error> {
    let positions = positions.iter().map(|position| sql::signed(*position));
    sql::select_in(connection, "DELETE FROM mailbox WHERE position", "", positions).await.map(drop)
}

fn is_untaken(row: &SqliteRow) -> Result<bool, sqlx::Error> {
    Ok(row.try_get::<Option<Vec<u8>>, _>("message_id")?.is_some() && !row.try_get::<bool, _>("taken")?)
}

fn item(bytes: Vec<u8>) -> Result<node::subscribe_response::Item, sqlx::Error> {
    let response: node::SubscribeResponse = sql::message(bytes, "mailbox.item")?;
    response.item.ok_or_else(|| sqlx::Error::ColumnNotFound("mailbox.item".to_owned()))
}

fn delivered(row: &SqliteRow) -> Result<Delivered, sqlx::Error> {
    let origin = match row.try_get::<Option<String>, _>("hub")? {
        Some(hub) => Origin::Hub(sql::column(hub, "mailbox.hub")?),
        None => Origin::Here {
            sender: sql::column(row.try_get::<Vec<u8>, _>("sender")?, "mailbox.sender")?,
            sender_node: sql::column(row.try_get::<String, _>("sender_node")?, "mailbox.sender_node")?,
            wants_events: row.try_get("wants_events")?,
        },
    };
    Ok(Delivered {
        message_id: sql::column(row.try_get::<Vec<u8>, _>("message_id")?, "mailbox.message_id")?,
        part: u32::try_from(row.try_get::<i64, _>("part")?).unwrap_or(0),
        origin,
        wants_receipt: row.try_get("wants_receipt")?,
    })
}
