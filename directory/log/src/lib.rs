//! A durable log over SQL. [`Appender`] is its one writer: entries, hashes and
//! the signed head change in one transaction, together with whatever rows the
//! caller writes beside them. [`LogReader`] proves. [`Follower`] is the other
//! side: it believes a log while it grows. What entries mean, and verifying
//! proofs, is `chancery-directory-core`'s.

mod appender;
mod error;
mod follow;
mod frontier;
mod reader;

pub use appender::{Appender, Batch};
pub use error::LogError;
pub use follow::{Follower, directory_call};
pub use reader::LogReader;

/// The log's tables, versions 1 to 999: for the migrator of the store that
/// holds the log, beside that store's own.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations/sqlite");

/// A migrator for the log's tables and the store's own, whose versions begin at 1000.
pub fn migrations_with(own: &sqlx::migrate::Migrator) -> sqlx::migrate::Migrator {
    sqlx::migrate::Migrator::with_migrations(MIGRATIONS.iter().chain(own.iter()).cloned().collect())
}

#[cfg(test)]
mod tests;
