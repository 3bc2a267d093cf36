//! The node's database. One file for each aggregate; all of them work on a
//! connection inside a transaction that the group-commit writer opened. What
//! letters need of it are the tables of `chancery_node_core`.

pub(crate) mod account;
pub(crate) mod cell;
pub(crate) mod count;
mod group;
pub(crate) mod key_package;
pub(crate) mod mailbox;
pub(crate) mod moves;
pub(crate) mod outbox;
pub(crate) mod restored;
pub(crate) mod seat;
mod sql;
mod submission;
mod tables;
#[cfg(test)]
mod tests;

use crate::wake::Wake;
use chancery_kit::serve::REFUSALS;
use chancery_kit::store::{Store, StoreError};
use chancery_node_core::tables::{self as core, After};
use chancery_types::{Clock, Entropy, Incarnation, NodeId, Refusal, Timestamp};
use futures::future::BoxFuture;
use sqlx::{Sqlite, SqliteConnection, SqlitePool};
use std::path::Path;
use std::sync::Arc;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// The database of one node.
#[derive(Clone)]
pub(crate) struct NodeStore {
    store: Store<Sqlite>,
    here: NodeId,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    wake: Arc<Wake>,
    incarnation: Incarnation,
}

impl NodeStore {
    /// Opens or creates the database.
    pub(crate) async fn open(
        path: &Path,
        here: NodeId,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, StoreError> {
        let store = Store::open(path, &MIGRATIONS).await?;
        let fresh = Incarnation::random(entropy.as_ref());
        let bytes = store
            .write("node.incarnation", move |c| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO meta (name, value) VALUES ('incarnation', $1) ON CONFLICT DO NOTHING",
                    )
                    .bind(fresh.as_bytes().as_slice())
                    .execute(&mut *c)
                    .await?;
                    sqlx::query_scalar::<_, Vec<u8>>("SELECT value FROM meta WHERE name = 'incarnation'")
                        .fetch_one(c)
                        .await
                })
            })
            .await?;
        let incarnation = sql::column(bytes, "meta.value")?;
        Ok(Self { store, here, clock, entropy, wake: Arc::new(Wake::default()), incarnation })
    }

    pub(crate) fn readers(&self) -> &SqlitePool {
        self.store.readers()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn entropy(&self) -> &dyn Entropy {
        self.entropy.as_ref()
    }

    pub(crate) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }

    pub(crate) const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Runs a transaction; wakes those whom it concerns after the commit. As
    /// with [`Store::write`], the job may run twice.
    pub(crate) async fn change<T, J>(&self, name: &'static str, job: J) -> Result<T, Refusal>
    where
        T: Send + 'static,
        J: for<'t, 'c> Fn(&'t mut Tx<'c>) -> BoxFuture<'t, Result<T, sqlx::Error>> + Send + Sync + 'static,
    {
        let (job, here, now) = (Arc::new(job), self.here.clone(), self.now());
        let (value, after) = self
            .store
            .write(name, move |connection| {
                let (job, here) = (Arc::clone(&job), here.clone());
                Box::pin(async move {
                    let mut tx = Tx { tables: Sql { connection }, here, now, after: After::default() };
                    let value = job(&mut tx).await?;
                    Ok((value, tx.after))
                })
            })
            .await?;
        self.wake.wake(&after);
        after.refused.into_iter().for_each(|reason| REFUSALS.add(reason));
        Ok(value)
    }
}

/// A transaction under way.
pub(crate) type Tx<'c> = core::Tx<Sql<'c>>;

/// The rows of a transaction: statements on its connection.
pub(crate) struct Sql<'c> {
    pub(crate) connection: &'c mut SqliteConnection,
}
