//! A store whose database is chosen when it starts: an SQLite file or PostgreSQL,
//! under the same SQL text (numbered placeholders, BIGINT, TEXT and bytes alone).

use super::{BEGIN_SQLITE, READERS, Store, StoreError, private_file};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, install_default_drivers};
use sqlx::migrate::Migrator;
use sqlx::{Any, Executor as _, Pool};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Where a server keeps its rows.
#[derive(Clone)]
pub enum DatabasePlace {
    /// An SQLite file (WAL, synchronous=FULL, mode 0600), made when there is none.
    File(PathBuf),
    /// A PostgreSQL database: `postgres://user@host/name`.
    Postgres(String),
}

impl DatabasePlace {
    /// SQL that joins a column of bytes over all rows, in an order: what SQLite and
    /// PostgreSQL do not name alike.
    pub fn joined_bytes(&self, column: &str, order: &str) -> String {
        match self {
            // Text in SQLite is bytes with a length, whatever they are.
            Self::File(_) => {
                format!("CAST(group_concat(CAST({column} AS TEXT), '' ORDER BY {order}) AS BLOB)")
            }
            Self::Postgres(_) => format!("string_agg({column}, ''::bytea ORDER BY {order})"),
        }
    }
}

impl<'de> serde::Deserialize<'de> for DatabasePlace {
    /// From one string: a URL of PostgreSQL, or the path of a file.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
        Ok(if is_postgres { Self::Postgres(text) } else { Self::File(text.into()) })
    }
}

/// Without user, password or path.
impl std::fmt::Debug for DatabasePlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        })
    }
}

/// The same tables in both dialects.
#[derive(Debug)]
pub struct Migrations {
    /// For SQLite.
    pub sqlite: Migrator,
    /// For PostgreSQL.
    pub postgres: Migrator,
}

const PRAGMAS: &str = "PRAGMA busy_timeout = 10000; PRAGMA cache_size = -32768; PRAGMA temp_store = MEMORY; \
                       PRAGMA foreign_keys = ON;";
/// The page size is fixed before the file's first page is written: small, since single
/// rows are read from all over the file.
const WRITER_PRAGMAS: &str = "PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                              PRAGMA journal_size_limit = 67108864;";

impl Store<Any> {
    /// Opens or creates the database and brings its schema up to date.
    ///
    /// # Errors
    /// It cannot be opened, or its schema is newer than `migrations`.
    pub async fn open_any(database: &DatabasePlace, migrations: &Migrations) -> Result<Self, StoreError> {
        install_default_drivers();
        let (writer, readers, migrations) = match database {
            DatabasePlace::File(path) => {
                private_file(path).map_err(|error| StoreError::File(error.into()))?;
                let writer = sqlite(path, "rwc", 1, WRITER_PRAGMAS).await?;
                ((writer, BEGIN_SQLITE), sqlite(path, "ro", READERS, "").await?, &migrations.sqlite)
            }
            DatabasePlace::Postgres(url) => {
                let options: AnyConnectOptions = url.parse()?;
                let writer = AnyPoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
                let readers = AnyPoolOptions::new().max_connections(READERS).connect_with(options).await?;
                ((writer, "BEGIN"), readers, &migrations.postgres)
            }
        };
        Self::with_pools(writer, readers, migrations).await
    }
}

async fn sqlite(path: &Path, mode: &str, most: u32, own: &'static str) -> Result<Pool<Any>, StoreError> {
    let mut url = "sqlite://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        let _ = match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                url.write_char(char::from(*byte))
            }
            _ => write!(url, "%{byte:02X}"),
        };
    }
    let options: AnyConnectOptions = format!("{url}?mode={mode}").parse()?;
    // A file does not go away: no question before each use.
    let opening = AnyPoolOptions::new().max_connections(most).test_before_acquire(false).after_connect(
        move |connection, _| {
            Box::pin(async move {
                connection.execute(own).await?;
                connection.execute(PRAGMAS).await.map(drop)
            })
        },
    );
    Ok(opening.connect_with(options).await?)
}
