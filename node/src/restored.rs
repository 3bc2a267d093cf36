//! What a node's store needs after it was restored from a copy, before the node starts:
//! peers and devices saw more of the former store than the copy has. What is lost with it
//! is in `docs/chaos.md`.

use chancery_kit::store::StoreError;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use std::path::Path;

/// Positions of mailboxes that are left out: more than any store had given since the copy.
const LEFT_OUT: i64 = 1 << 32;

/// Makes the store another one: peers send again what it has not reported on, and what
/// comes stands behind every position that a device has seen. The node must not run.
pub(crate) async fn restored(path: &Path) -> Result<(), StoreError> {
    let mut node = SqliteConnectOptions::new().filename(path).connect().await?;
    // Not while the node, or another one of these, writes.
    let mut transaction = node.begin_with("BEGIN EXCLUSIVE").await?;
    sqlx::query("DELETE FROM meta WHERE name = 'incarnation'").execute(&mut *transaction).await?;
    sqlx::query("UPDATE sqlite_sequence SET seq = seq + $1 WHERE name = 'mailbox'")
        .bind(LEFT_OUT)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(node.close().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::NodeStore;
    use chancery_types::{SystemClock, SystemEntropy};
    use std::sync::Arc;

    async fn open(path: &Path) -> NodeStore {
        let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        NodeStore::open(path, "federal".parse().unwrap(), clock, entropy).await.unwrap()
    }

    /// Position of one more item in some mailbox.
    async fn put(path: &Path) -> i64 {
        let mut node = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
        let insert = "INSERT INTO mailbox (alias, item, part, wants_events, wants_receipt, expires_at)
                      VALUES (zeroblob(16), zeroblob(1), 0, FALSE, FALSE, 1) RETURNING position";
        sqlx::query_scalar(insert).fetch_one(&mut node).await.unwrap()
    }

    #[tokio::test]
    async fn it_is_another_store_and_its_positions_are_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.db");
        let before = open(&path).await.incarnation();
        assert_eq!(open(&path).await.incarnation(), before);
        let position = put(&path).await;
        restored(&path).await.unwrap();
        assert!(open(&path).await.incarnation() != before);
        assert!(put(&path).await > position + LEFT_OUT);
    }

    #[tokio::test]
    async fn there_must_be_a_store() {
        let folder = tempfile::tempdir().unwrap();
        assert!(restored(&folder.path().join("node.db")).await.is_err());
    }
}
