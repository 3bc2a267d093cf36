//! What each administration has had evaluated today. Counted and flushed before
//! anything is answered, so that no crash gives an evaluation away for nothing.

use crate::DirectoryError;
use chancery_directory_core::totals::{MAX_ADMINISTRATIONS, Total};
use chancery_kit::store::{Store, StoreError};
use chancery_types::{NodeId, Reason, Refusal};
use sqlx::migrate::Migrator;
use sqlx::{Row as _, Sqlite, SqliteConnection};
use std::collections::BTreeMap;
use std::path::Path;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/evaluator");
/// Days that are kept after they were logged.
const KEPT_DAYS: i64 = 35;

/// How much may be evaluated in a day, by the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For the administration that asks.
    pub(super) administration: u64,
    /// For all together.
    pub(super) all: u64,
}

/// The counters of one evaluator. Cheap to clone.
#[derive(Clone)]
pub(super) struct Quota(Store<Sqlite>);

impl Quota {
    pub(super) async fn open(folder: &Path) -> Result<Self, DirectoryError> {
        Ok(Self(Store::open(&folder.join("evaluator.sqlite"), &MIGRATIONS).await?))
    }

    /// Counts `identifiers` for an administration.
    ///
    /// # Errors
    /// QUOTA_EXCEEDED: nothing may be answered; or the store's.
    pub(super) async fn take(
        &self,
        administration: &NodeId,
        day: u32,
        identifiers: usize,
        limits: Limits,
    ) -> Result<(), Refusal> {
        let count = i64::try_from(identifiers).unwrap_or(i64::MAX);
        let name = administration.clone();
        let granted = self.0.write("evaluator.count", move |connection| {
            let name = name.clone();
            Box::pin(async move { grant(connection, name.as_str(), day, count, limits).await })
        });
        if granted.await? {
            return Ok(());
        }
        let message =
            "the day's evaluations are used up; go on tomorrow (UTC), or have governance grant more";
        Err(Refusal::new(Reason::QuotaExceeded, message))
    }

    /// The oldest day before `today` that is not logged yet, with its totals.
    pub(super) async fn unlogged(
        &self,
        today: u32,
    ) -> Result<Option<(u32, BTreeMap<NodeId, Total>)>, DirectoryError> {
        let rows = sqlx::query(
            "SELECT day, administration, evaluated, refused FROM evaluation \
             WHERE day = (SELECT MIN(day) FROM evaluation WHERE logged = 0 AND day < $1) \
             ORDER BY administration",
        )
        .bind(i64::from(today))
        .fetch_all(self.0.readers())
        .await
        .map_err(StoreError::from)?;
        let mut found = None;
        for row in rows.iter().take(MAX_ADMINISTRATIONS) {
            let read = || -> Result<(i64, String, i64, i64), sqlx::Error> {
                Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?))
            };
            let (day, administration, evaluated, refused) = read().map_err(StoreError::from)?;
            let total = Total { evaluated: evaluated.unsigned_abs(), refused: refused.unsigned_abs() };
            let (_, totals) = found.get_or_insert_with(|| (u32::try_from(day).unwrap_or(0), BTreeMap::new()));
            totals.insert(administration.parse()?, total);
        }
        Ok(found)
    }

    /// Notes that a day is logged, and forgets what is long past.
    pub(super) async fn logged(&self, day: u32) -> Result<(), DirectoryError> {
        let day = i64::from(day);
        let noted = self.0.write("evaluator.logged", move |connection| {
            Box::pin(async move {
                sqlx::query("UPDATE evaluation SET logged = 1 WHERE day = $1")
                    .bind(day)
                    .execute(&mut *connection)
                    .await?;
                sqlx::query("DELETE FROM evaluation WHERE logged = 1 AND day < $1")
                    .bind(day - KEPT_DAYS)
                    .execute(connection)
                    .await
                    .map(drop)
            })
        });
        Ok(noted.await?)
    }
}

async fn grant(
    connection: &mut SqliteConnection,
    administration: &str,
    day: u32,
    count: i64,
    limits: Limits,
) -> Result<bool, sqlx::Error> {
    let day = i64::from(day);
    let used = sqlx::query(
        "SELECT COALESCE(SUM(evaluated), 0), COALESCE(SUM(CASE WHEN administration = $2 THEN evaluated END), 0) \
         FROM evaluation WHERE day = $1",
    )
    .bind(day)
    .bind(administration)
    .fetch_one(&mut *connection)
    .await?;
    let (all, own): (i64, i64) = (used.try_get(0)?, used.try_get(1)?);
    let fits = |used: i64, limit: u64| used.unsigned_abs().saturating_add(count.unsigned_abs()) <= limit;
    let granted = fits(all, limits.all) && fits(own, limits.administration);
    let (evaluated, refused) = if granted { (count, 0) } else { (0, count) };
    sqlx::query(
        "INSERT INTO evaluation (day, administration, evaluated, refused) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (day, administration) DO UPDATE SET \
         evaluated = evaluation.evaluated + excluded.evaluated, refused = evaluation.refused + excluded.refused",
    )
    .bind(day)
    .bind(administration)
    .bind(evaluated)
    .bind(refused)
    .execute(connection)
    .await?;
    Ok(granted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_day_ends_and_others_are_not_hurt() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b): (NodeId, NodeId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let limits = Limits { administration: 10, all: 15 };
        {
            let quota = Quota::open(folder.path()).await.unwrap();
            quota.take(&a, 7, 6, limits).await.unwrap();
            assert_eq!(quota.take(&a, 7, 5, limits).await.unwrap_err().reason, Reason::QuotaExceeded);
            quota.take(&a, 7, 4, limits).await.unwrap();
        }
        // Counters outlive the process.
        let quota = Quota::open(folder.path()).await.unwrap();
        assert!(quota.take(&a, 7, 1, limits).await.is_err());
        quota.take(&b, 7, 5, limits).await.unwrap();
        assert!(quota.take(&b, 7, 1, limits).await.is_err(), "all together");
        quota.take(&a, 8, 10, limits).await.unwrap();

        assert!(quota.unlogged(7).await.unwrap().is_none());
        let (day, totals) = quota.unlogged(9).await.unwrap().unwrap();
        assert_eq!(day, 7);
        assert_eq!(totals[&a], Total { evaluated: 10, refused: 6 });
        assert_eq!(totals[&b], Total { evaluated: 5, refused: 1 });
        quota.logged(7).await.unwrap();
        assert_eq!(quota.unlogged(9).await.unwrap().unwrap().0, 8);
        assert!(quota.unlogged(8).await.unwrap().is_none());
    }
}
