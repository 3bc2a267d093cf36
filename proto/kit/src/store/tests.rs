use super::*;
use sqlx::ConnectOptions as _;
use std::os::unix::fs::PermissionsExt as _;

static MIGRATIONS: Migrator = sqlx::migrate!("tests/migrations");

async fn insert(store: &Store<Sqlite>, id: i64) -> Result<u64, StoreError> {
    store
        .write("insert", move |c| {
            Box::pin(async move {
                let done = sqlx::query("INSERT INTO thing (id) VALUES ($1)").bind(id).execute(c).await?;
                Ok(done.rows_affected())
            })
        })
        .await
}

async fn count(store: &Store<Sqlite>) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM thing").fetch_one(store.readers()).await.unwrap()
}

#[tokio::test]
async fn a_failing_job_does_not_take_its_group_along() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("a.db"), &MIGRATIONS).await.unwrap();
    insert(&store, 7).await.unwrap();
    let jobs = (0..64).map(|id| insert(&store, id));
    let results = futures::future::join_all(jobs).await;
    let failed: Vec<_> = results.iter().enumerate().filter(|(_, r)| r.is_err()).map(|(i, _)| i).collect();
    assert_eq!(failed, [7]);
    assert_eq!(count(&store).await, 64);
}

#[tokio::test]
async fn what_was_answered_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sub/a.db");
    let store = Store::open(&path, &MIGRATIONS).await.unwrap();
    insert(&store, 1).await.unwrap();
    drop(store);
    let again = Store::open(&path, &MIGRATIONS).await.unwrap();
    assert_eq!(count(&again).await, 1);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_newer_schema_refuses_to_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let store = Store::open(&path, &MIGRATIONS).await.unwrap();
    store
        .write("future", |c| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                     VALUES (9999, 'from the future', TRUE, x'00', 0)",
                )
                .execute(c)
                .await
                .map(drop)
            })
        })
        .await
        .unwrap();
    drop(store);
    assert!(matches!(Store::open(&path, &MIGRATIONS).await, Err(StoreError::Schema(_))));
}

#[test]
fn values_are_numbered() {
    assert_eq!(values(2, 3), "($1,$2,$3),($4,$5,$6)");
}

#[tokio::test]
async fn a_full_disk_has_its_own_reason() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("a.db"), &MIGRATIONS).await.unwrap();
    let full = store
        .write("fill", |c| {
            Box::pin(async move {
                // Not below what the file has already.
                sqlx::query("PRAGMA max_page_count = 1").execute(&mut *c).await?;
                let many = "WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 100000) \
                            INSERT INTO thing (id) SELECT id FROM n";
                sqlx::query(many).execute(c).await
            })
        })
        .await
        .map(drop)
        .unwrap_err();
    assert!(full.is_full(), "{full}");
    assert_eq!(Refusal::from(full).reason, Reason::Overloaded);
    assert_eq!(count(&store).await, 0);
    insert(&store, 1).await.unwrap();
    assert!(!insert(&store, 1).await.unwrap_err().is_full());
}

/// As SQLite does when a flush fails: the transaction ends, and nobody is told.
#[tokio::test]
async fn what_follows_a_transaction_that_ended_by_itself_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("a.db"), &MIGRATIONS).await.unwrap();
    let ended = store.write("end", |c| {
        Box::pin(async move {
            sqlx::query("ROLLBACK").execute(c).await?;
            Err::<(), _>(sqlx::Error::RowNotFound)
        })
    });
    ended.await.unwrap_err();
    insert(&store, 1).await.unwrap();
    insert(&store, 1).await.unwrap_err();
    insert(&store, 2).await.unwrap();
    assert_eq!(count(&store).await, 2);
}

/// A backup tool, or an operator's shell.
#[tokio::test]
async fn a_job_that_reads_first_waits_for_others_that_write() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let store = Store::open(&path, &MIGRATIONS).await.unwrap();
    let mut other = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let mut copying = Box::pin(store.write("copy", |c| {
        Box::pin(async move {
            let most: i64 =
                sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM thing").fetch_one(&mut *c).await?;
            sqlx::query("INSERT INTO thing (id) VALUES ($1)").bind(most + 1).execute(c).await
        })
    }));
    let waits = tokio::time::timeout(Duration::from_millis(100), &mut copying).await;
    assert!(waits.is_err(), "it waits for the lock");
    sqlx::query("INSERT INTO thing (id) VALUES (5)").execute(&mut other).await.unwrap();
    sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    copying.await.unwrap();
    insert(&store, 6).await.unwrap_err();
}
