//! The directory's rows beside the log: bodies of records, the map's items, where
//! statements stand. The same SQL on SQLite and PostgreSQL; each statement takes
//! many rows.

pub(crate) mod read;
pub(crate) mod write;

use chancery_kit::store::{Migrations, StoreError};

/// Rows that one statement reads or writes at most.
const CHUNK: usize = 64;

/// Tables of the directory and its log.
pub(crate) fn migrations() -> Migrations {
    chancery_directory_log::migrations_with(&Migrations {
        sqlite: sqlx::migrate!("./migrations/sqlite"),
        postgres: sqlx::migrate!("./migrations/postgres"),
    })
}

fn position(entry: u64) -> Result<i64, sqlx::Error> {
    i64::try_from(entry).map_err(|e| sqlx::Error::Encode(Box::new(e)))
}

fn index(position: i64) -> Result<u64, StoreError> {
    u64::try_from(position).map_err(|e| unreadable("entry_index", e))
}

fn array<const N: usize>(bytes: Vec<u8>, column: &'static str) -> Result<[u8; N], StoreError> {
    bytes.try_into().map_err(|_| unreadable(column, "wrong length"))
}

/// A row that does not read, by table and column.
fn unreadable(
    column: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: source.into() }.into()
}
