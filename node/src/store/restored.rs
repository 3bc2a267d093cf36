//! What a node's store needs after it was restored from a copy, before the node starts:
//! peers and devices saw more of the former store than the copy has. What is lost with it
//! is in `docs/chaos.md`.

use chancery_kit::store::StoreError;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use std::path::Path;

/// Positions of mailboxes that are left out: more than any store had given since the copy.
const LEFT_OUT: i64 = 1 << 32;
/// What must not be had twice. Some of the KeyPackages were handed out since the copy; of
/// the groups, members saw later epochs and sequences.
const NOT_TWICE: [&str; 4] = [
    "DELETE FROM meta WHERE name = 'incarnation'",
    "DELETE FROM key_package WHERE NOT last_resort",
    "DELETE FROM mls_group",
    "DELETE FROM member",
];

/// Makes the store another one: peers send again what it has not reported on, what comes
/// stands behind every position that a device has seen, and other groups take the place
/// of those that this node was the hub of. The node must not run.
pub(crate) async fn restored(path: &Path) -> Result<(), StoreError> {
    let mut node = SqliteConnectOptions::new().filename(path).connect().await?;
    // Not while the node, or another one of these, writes.
    let mut transaction = node.begin_with("BEGIN EXCLUSIVE").await?;
    for text in NOT_TWICE {
        sqlx::query(text).execute(&mut *transaction).await?;
    }
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
    use sqlx::SqliteConnection;
    use std::sync::Arc;

    async fn open(path: &Path) -> NodeStore {
        let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        NodeStore::open(path, "federal".parse().unwrap(), clock, entropy).await.unwrap()
    }

    async fn connect(path: &Path) -> SqliteConnection {
        SqliteConnectOptions::new().filename(path).connect().await.unwrap()
    }

    /// Position of one more item in some mailbox.
    async fn put(path: &Path) -> i64 {
        let insert = "INSERT INTO mailbox (alias, item, part, wants_events, wants_receipt, expires_at)
                      VALUES (zeroblob(16), zeroblob(1), 0, FALSE, FALSE, 1) RETURNING position";
        sqlx::query_scalar(insert).fetch_one(&mut connect(path).await).await.unwrap()
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
    async fn nothing_is_handed_out_or_numbered_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.db");
        drop(open(&path).await);
        for text in [
            "INSERT INTO key_package (alias, device_id, cipher_suite, last_resort, message)
             VALUES (x'01', x'01', 1, FALSE, x'01'), (x'01', x'01', 1, TRUE, x'02')",
            "INSERT INTO mls_group (group_id, epoch, sequence, chain) VALUES (x'01', 1, 1, x'01')",
            "INSERT INTO member (group_id, alias, node) VALUES (x'01', x'01', 'federal')",
        ] {
            sqlx::query(text).execute(&mut connect(&path).await).await.unwrap();
        }
        restored(&path).await.unwrap();
        let mut node = connect(&path).await;
        for (count, table) in [(1, "key_package"), (0, "mls_group"), (0, "member")] {
            let text = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
            let found: i64 = sqlx::query_scalar(text).fetch_one(&mut node).await.unwrap();
            assert_eq!(found, count, "{table}");
        }
    }

    #[tokio::test]
    async fn there_must_be_a_store() {
        let folder = tempfile::tempdir().unwrap();
        assert!(restored(&folder.path().join("node.db")).await.is_err());
    }
}
