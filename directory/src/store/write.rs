//! What one batch of the sequencer writes beside its entries.

use super::{CHUNK, position};
use chancery_directory_core::map::{Item, Kind};
use chancery_directory_core::replay::ChannelChange;
use chancery_kit::store::values;
use chancery_proto::directory::v1 as wire;
use chancery_types::NodeId;
use prost::Message as _;
use sqlx::{AnyConnection, AssertSqlSafe};

/// A record with what its entry commits to.
pub(crate) struct NewBody {
    /// Its item in the map.
    pub(crate) item: Item,
    /// Entry of the version before.
    pub(crate) previous_index: Option<u64>,
    /// Serialised MapItems of it alone.
    pub(crate) bytes: Vec<u8>,
    /// The handle's entries of the day.
    pub(crate) changes: u32,
}

impl NewBody {
    pub(crate) fn new(item: Item, previous_index: Option<u64>, body: wire::RecordBody, changes: u32) -> Self {
        let listed = wire::MapItem {
            index: item.index(),
            sequenced_at_ms: item.sequenced_at().millis(),
            pending: item.kind() == Kind::Pending,
            content: Some(wire::map_item::Content::Body(body)),
        };
        let bytes = wire::MapItems { items: vec![listed] }.encode_to_vec();
        Self { item, previous_index, bytes, changes }
    }
}

/// Rows that one batch adds and removes.
#[derive(Default)]
pub(crate) struct NewRows {
    pub(crate) bodies: Vec<NewBody>,
    /// Items of handles that now stand in the map …
    pub(crate) items: Vec<Item>,
    /// … and entries that no longer do.
    pub(crate) gone: Vec<u64>,
    /// Entries whose bodies are erased, with all versions before them.
    pub(crate) erased: Vec<u64>,
    /// Entry of the latest root of the map.
    pub(crate) root: Option<u64>,
    /// Entries that hold statements.
    pub(crate) statements: Vec<u64>,
    /// What now stands for channels.
    pub(crate) channels: Vec<ChannelChange>,
    /// Totals: evaluator and day, digest, entry.
    pub(crate) totals: Vec<((NodeId, u32), [u8; 32], u64)>,
}

impl NewRows {
    /// Writes them in the caller's transaction.
    pub(crate) async fn write(&self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        self.write_bodies(connection).await?;
        self.write_items(connection).await?;
        self.erase(connection).await?;
        self.write_channels(connection).await?;
        for ((evaluator, day), digest, entry) in &self.totals {
            sqlx::query(
                "INSERT INTO evaluation_total (evaluator, day, digest, entry_index) VALUES ($1, $2, $3, $4)",
            )
            .bind(evaluator.as_str())
            .bind(i64::from(*day))
            .bind(digest.as_slice())
            .bind(position(*entry)?)
            .execute(&mut *connection)
            .await?;
        }
        for entry in &self.statements {
            sqlx::query("INSERT INTO statement (entry_index) VALUES ($1)")
                .bind(position(*entry)?)
                .execute(&mut *connection)
                .await?;
        }
        if let Some(root) = self.root {
            sqlx::query(
                "INSERT INTO map_root (id, entry_index) VALUES (1, $1) \
                 ON CONFLICT (id) DO UPDATE SET entry_index = excluded.entry_index",
            )
            .bind(position(root)?)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }

    async fn write_bodies(&self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        for chunk in self.bodies.chunks(CHUNK) {
            let text = format!(
                "INSERT INTO record_body \
                 (entry_index, previous_index, handle_prefix, item, sequenced_at_ms, changes) VALUES {}",
                values(chunk.len(), 6)
            );
            let mut query = sqlx::query(AssertSqlSafe(text));
            for body in chunk {
                query = query
                    .bind(position(body.item.index())?)
                    .bind(body.previous_index.map(position).transpose()?)
                    .bind(i64::from(u32::from_be_bytes(body.item.prefix())))
                    .bind(body.bytes.as_slice())
                    .bind(body.item.sequenced_at().millis())
                    .bind(i64::from(body.changes));
            }
            query.execute(&mut *connection).await?;
        }
        Ok(())
    }

    async fn write_items(&self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        let channels = self.channels.iter().map(|change| change.item);
        let items: Vec<_> = self.items.iter().copied().chain(channels).collect();
        for chunk in items.chunks(CHUNK) {
            let text = format!("INSERT INTO map_item (entry_index, item) VALUES {}", values(chunk.len(), 2));
            let mut query = sqlx::query(AssertSqlSafe(text));
            for item in chunk {
                query = query.bind(position(item.index())?).bind(item.to_bytes().to_vec());
            }
            query.execute(&mut *connection).await?;
        }
        let before = self.channels.iter().filter_map(|change| change.before);
        let gone: Vec<_> = self.gone.iter().copied().chain(before).collect();
        for_each_chunk(connection, &gone, |list| {
            format!("DELETE FROM map_item WHERE entry_index IN (VALUES {list})")
        })
        .await
    }

    async fn write_channels(&self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        for change in &self.channels {
            let head = change.item.index();
            sqlx::query(
                "INSERT INTO channel (channel_id, channel_index, head_index) VALUES ($1, $2, $3) \
                 ON CONFLICT (channel_id) DO UPDATE \
                 SET channel_index = excluded.channel_index, head_index = excluded.head_index",
            )
            .bind(change.id.as_bytes().as_slice())
            .bind(position(change.channel_index)?)
            .bind(position(head)?)
            .execute(&mut *connection)
            .await?;
            let Some((sequence, hash)) = change.manifest else { continue };
            sqlx::query(
                "INSERT INTO manifest (channel_id, sequence, hash, entry_index) VALUES ($1, $2, $3, $4)",
            )
            .bind(change.id.as_bytes().as_slice())
            .bind(position(sequence)?)
            .bind(hash.as_slice())
            .bind(position(head)?)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }

    async fn erase(&self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        for_each_chunk(connection, &self.erased, |list| {
            format!(
                "WITH RECURSIVE version (entry_index) AS (\
                   SELECT entry_index FROM record_body WHERE entry_index IN (VALUES {list}) \
                   UNION SELECT b.previous_index FROM record_body b JOIN version v \
                     ON b.entry_index = v.entry_index WHERE b.previous_index IS NOT NULL) \
                 DELETE FROM record_body WHERE entry_index IN (SELECT entry_index FROM version) \
                   OR previous_index IN (SELECT entry_index FROM version)"
            )
        })
        .await
    }
}

/// Keeps the checkpoint up to which a mirror has everything.
pub(crate) async fn mirrored(connection: &mut AnyConnection, note: &[u8]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO mirrored (id, checkpoint) VALUES (1, $1) \
         ON CONFLICT (id) DO UPDATE SET checkpoint = excluded.checkpoint",
    )
    .bind(note)
    .execute(connection)
    .await
    .map(drop)
}

async fn for_each_chunk(
    connection: &mut AnyConnection,
    entries: &[u64],
    text: impl Fn(String) -> String,
) -> Result<(), sqlx::Error> {
    for chunk in entries.chunks(CHUNK) {
        let mut query = sqlx::query(AssertSqlSafe(text(values(chunk.len(), 1))));
        for entry in chunk {
            query = query.bind(position(*entry)?);
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}
