//! Mailboxes: what waits for the devices of an alias, how far each device has
//! come, and the terminal outcome of each delivery.

use super::{NodeStore, Tx, report, sql};
use bytes::Bytes;
use chancery_node_core::parcel::MAX_LIFE;
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, DeviceId, MessageId, NodeId, Reason, Timestamp};
use futures::TryStreamExt as _;
use prost::Message as _;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _};
use std::collections::{HashMap, HashSet};

/// Bytes of items that are read for a device at once, about.
const READ_BYTES: usize = 1024 * 1024;
/// Deliveries of one acknowledgement that are settled in one transaction.
pub(crate) const TAKEN_AT_ONCE: usize = 1024;

/// Something to put into a mailbox.
pub(crate) struct Item {
    pub(crate) alias: Alias,
    pub(crate) item: node::subscribe_response::Item,
    pub(crate) delivery: Option<Delivered>,
    pub(crate) only_device: Option<DeviceId>,
    pub(crate) except_device: Option<DeviceId>,
    pub(crate) expires_at: Timestamp,
}

/// Of a delivery: what its terminal report needs.
#[derive(Clone)]
pub(crate) struct Delivered {
    pub(crate) message_id: MessageId,
    pub(crate) part: u32,
    pub(crate) origin: Origin,
    /// Whether it is an application message.
    pub(crate) wants_receipt: bool,
}

/// Who wants the terminal report of a delivery.
#[derive(Clone)]
pub(crate) enum Origin {
    /// Another node is the hub.
    Hub(NodeId),
    /// This node is the hub.
    Here { sender: Alias, sender_node: NodeId, wants_events: bool },
}

impl Item {
    /// An event for the sender of a message.
    pub(crate) fn event(sender: Alias, event: node::Event, now: Timestamp) -> Self {
        Self::news(sender, node::subscribe_response::Item::Event(event), now)
    }

    /// Something that every device of an alias is to know.
    pub(crate) fn news(alias: Alias, item: node::subscribe_response::Item, now: Timestamp) -> Self {
        Self {
            alias,
            item,
            delivery: None,
            only_device: None,
            except_device: None,
            expires_at: now.after(MAX_LIFE),
        }
    }

    /// An outcome for the device that submitted.
    pub(crate) fn outcome(sender: Alias, device: DeviceId, outcome: wire::Outcome, now: Timestamp) -> Self {
        let news = Self::news(sender, node::subscribe_response::Item::Outcome(outcome), now);
        Self { only_device: Some(device), ..news }
    }
}

/// Puts items into mailboxes, in order.
pub(crate) async fn put(tx: &mut Tx<'_>, items: &[Item]) -> Result<(), sqlx::Error> {
    let head = "INSERT INTO mailbox (alias, item, message_id, part, hub, sender, sender_node, wants_events, \
                wants_receipt, only_device, except_device, expires_at)";
    sql::insert(tx.connection, head, 12, "", items, |statement, item| {
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
    .await?;
    tx.woken.aliases.extend(items.iter().map(|item| item.alias));
    Ok(())
}

/// What waits for a device behind a position, oldest first, up to some bytes;
/// and whether there may be more. Nothing expired.
pub(crate) async fn read(
    store: &NodeStore,
    alias: Alias,
    device: DeviceId,
    after: u64,
    most: usize,
) -> Result<(Vec<node::SubscribeResponse>, bool), sqlx::Error> {
    // SQLite prepares a statement with a bound LIMIT anew each time.
    let mut rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT position, item FROM mailbox
         WHERE alias = $1 AND position > $2 AND expires_at > $4 AND position > coalesce(
             (SELECT through FROM mailbox_cursor WHERE alias = $1 AND device_id = $3), 0)
           AND (only_device IS NULL OR only_device = $3)
           AND (except_device IS NULL OR except_device <> $3)
         ORDER BY position LIMIT {most}"
    )))
    .bind(alias.as_bytes().as_slice())
    .bind(sql::signed(after))
    .bind(device.as_bytes().as_slice())
    .bind(store.now().millis())
    .fetch(store.readers());
    let (mut items, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        let item: Vec<u8> = row.try_get(1)?;
        bytes += item.len();
        let mut response: node::SubscribeResponse = sql::message(item, "mailbox.item")?;
        response.position = sql::unsigned(row.try_get(0)?);
        items.push(response);
        if bytes >= READ_BYTES {
            return Ok((items, true));
        }
    }
    let full = items.len() >= most;
    Ok((items, full))
}

/// A device has committed everything up to `through`.
pub(crate) struct Acknowledgement {
    pub(crate) alias: Alias,
    pub(crate) device: DeviceId,
    pub(crate) through: u64,
    /// Delivery receipts by message.
    pub(crate) receipts: HashMap<MessageId, Bytes>,
}

/// Takes acknowledgements; says of each how far it was taken, which is less than
/// all when a device acknowledges more than [`TAKEN_AT_ONCE`] deliveries. The
/// first device that gives a receipt decides the terminal outcome of an
/// application message; what all devices have is forgotten.
pub(crate) async fn acknowledge(
    tx: &mut Tx<'_>,
    acknowledgements: &[Acknowledgement],
) -> Result<Vec<u64>, sqlx::Error> {
    let (mut settled, mut taken) = (Vec::new(), HashSet::new());
    let mut reached = Vec::with_capacity(acknowledgements.len());
    for acknowledgement in acknowledgements {
        let Acknowledgement { alias, device, through, receipts } = acknowledgement;
        let rows = unsettled(tx, *alias, *device, *through).await?;
        let full = rows.len() == TAKEN_AT_ONCE;
        let last = rows.last().filter(|_| full).map(|row| row.try_get::<i64, _>("position")).transpose()?;
        reached.push(last.map_or(*through, sql::unsigned));
        for row in &rows {
            let delivered = delivered(row)?;
            let receipt = receipts.get(&delivered.message_id).cloned();
            if delivered.wants_receipt && receipt.is_none() {
                continue;
            }
            // Another device of the account may be a call earlier.
            if !taken.insert(row.try_get::<i64, _>("position")?) {
                continue;
            }
            let receipt = receipt.filter(|_| delivered.wants_receipt).unwrap_or_default();
            let outcome = wire::report::Outcome::Delivered(wire::Delivered { receipt });
            settled.push(report::Settled { delivered, recipient: *alias, at: tx.now, outcome });
        }
    }
    // One row for each device: a statement may not change a row twice.
    let mut cursors = HashMap::new();
    for (acknowledgement, reached) in acknowledgements.iter().zip(&reached) {
        let cursor: &mut u64 = cursors.entry((acknowledgement.alias, acknowledgement.device)).or_default();
        *cursor = (*cursor).max(*reached);
    }
    let cursors: Vec<_> = cursors.into_iter().collect();
    let head = "INSERT INTO mailbox_cursor (alias, device_id, through)";
    let tail = "ON CONFLICT (alias, device_id) DO UPDATE SET through = excluded.through
                WHERE excluded.through > mailbox_cursor.through";
    sql::insert(tx.connection, head, 3, tail, &cursors, |statement, ((alias, device), through)| {
        statement.bind(alias.as_bytes().to_vec()).bind(device.as_bytes().to_vec()).bind(sql::signed(*through))
    })
    .await?;
    sql::select_in(tx.connection, "UPDATE mailbox SET taken = TRUE WHERE position", "", taken).await?;
    report::settle(tx, settled).await?;
    let aliases: HashSet<Alias> = acknowledgements.iter().map(|a| a.alias).collect();
    forget(tx, &aliases).await?;
    Ok(reached)
}

/// Deliveries that a device acknowledges and that no device has taken, oldest first.
async fn unsettled(
    tx: &mut Tx<'_>,
    alias: Alias,
    device: DeviceId,
    through: u64,
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    sqlx::query(AssertSqlSafe(format!(
        "SELECT position, message_id, part, hub, sender, sender_node, wants_events, wants_receipt FROM mailbox
         WHERE alias = $1 AND position <= $2 AND NOT taken AND message_id IS NOT NULL
           AND position > coalesce(
             (SELECT through FROM mailbox_cursor WHERE alias = $1 AND device_id = $3), 0)
           AND (except_device IS NULL OR except_device <> $3)
         ORDER BY position LIMIT {TAKEN_AT_ONCE}"
    )))
    .bind(alias.as_bytes().as_slice())
    .bind(sql::signed(through))
    .bind(device.as_bytes().as_slice())
    .fetch_all(&mut *tx.connection)
    .await
}

/// Deletes what every device of these aliases has. A message that none of them
/// could read has come to its end, too.
pub(crate) async fn forget(tx: &mut Tx<'_>, aliases: &HashSet<Alias>) -> Result<(), sqlx::Error> {
    let head = "SELECT a.alias, min(coalesce(c.through, 0)) FROM alias a
                JOIN device d ON d.account_id = a.account_id
                LEFT JOIN mailbox_cursor c ON c.alias = a.alias AND c.device_id = d.device_id
                WHERE a.alias";
    let keys = aliases.iter().map(|alias| alias.as_bytes().as_slice());
    let through: Vec<(Vec<u8>, i64)> = sql::select_in(tx.connection, head, "GROUP BY a.alias", keys)
        .await?
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, sqlx::Error>>()?;
    let head = "WITH done (alias, through) AS (";
    let tail = ") DELETE FROM mailbox WHERE position IN (
                  SELECT m.position FROM done
                  JOIN mailbox m ON m.alias = done.alias AND m.position <= done.through)
                RETURNING alias, message_id, part, hub, sender, sender_node, wants_events, wants_receipt, taken";
    let rows =
        sql::insert_returning(tx.connection, head, 2, tail, &through, |statement, (alias, through)| {
            statement.bind(alias.clone()).bind(*through)
        })
        .await?;
    ended(tx, &rows, || wire::report::Outcome::Refused(Reason::InvalidMessage.as_str().to_owned())).await
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
    .execute(&mut *tx.connection)
    .await
    .map(drop)
}

/// Expired deliveries: forgotten, and reported unless a device has them.
pub(crate) async fn expire(tx: &mut Tx<'_>, most: i64) -> Result<u64, sqlx::Error> {
    let rows = sqlx::query(
        "DELETE FROM mailbox WHERE position IN (
           SELECT position FROM mailbox WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)
         RETURNING alias, message_id, part, hub, sender, sender_node, wants_events, wants_receipt, taken",
    )
    .bind(tx.now.millis())
    .bind(most)
    .fetch_all(&mut *tx.connection)
    .await?;
    ended(tx, &rows, || wire::report::Outcome::Expired(true)).await?;
    Ok(rows.len() as u64)
}

/// Settles deleted deliveries that no device has taken.
async fn ended(
    tx: &mut Tx<'_>,
    rows: &[SqliteRow],
    outcome: impl Fn() -> wire::report::Outcome,
) -> Result<(), sqlx::Error> {
    let mut settled = Vec::new();
    for row in rows {
        if row.try_get::<Option<Vec<u8>>, _>("message_id")?.is_none() || row.try_get("taken")? {
            continue;
        }
        let recipient = sql::column(row.try_get::<Vec<u8>, _>("alias")?, "mailbox.alias")?;
        settled.push(report::Settled {
            delivered: delivered(row)?,
            recipient,
            at: tx.now,
            outcome: outcome(),
        });
    }
    report::settle(tx, settled).await
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
