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

use chancery_kit::store::Migrations;
use sqlx::migrate::Migrator;

/// The log's tables, versions 1 to 999, and those of the store that holds it, whose
/// versions begin at 1000.
pub fn migrations_with(own: &Migrations) -> Migrations {
    static SQLITE: Migrator = sqlx::migrate!("./migrations/sqlite");
    static POSTGRES: Migrator = sqlx::migrate!("./migrations/postgres");
    let both = |log: &Migrator, own: &Migrator| {
        Migrator::with_migrations(log.iter().chain(own.iter()).cloned().collect())
    };
    Migrations { sqlite: both(&SQLITE, &own.sqlite), postgres: both(&POSTGRES, &own.postgres) }
}

#[cfg(test)]
mod tests;
