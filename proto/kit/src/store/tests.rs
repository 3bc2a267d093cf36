use super::*;
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
