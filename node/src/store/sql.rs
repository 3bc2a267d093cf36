//! The little that every statement of the store shares.

use chancery_kit::store::values;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection};

/// A statement with its arguments.
pub(crate) type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// Row counts for which multi-row statements are prepared: few texts, so that
/// each is prepared once.
const ROWS: [usize; 4] = [64, 16, 4, 1];

/// `<head> VALUES (…),(…) <tail>` for all rows.
pub(crate) async fn insert<T>(
    connection: &mut SqliteConnection,
    head: &str,
    columns: usize,
    tail: &str,
    rows: &[T],
    bind: impl for<'q> Fn(Statement<'q>, &T) -> Statement<'q>,
) -> Result<(), sqlx::Error> {
    insert_returning(connection, head, columns, tail, rows, bind).await.map(drop)
}

/// As [`insert`], with the rows of a RETURNING clause; `head` may be any that a
/// VALUES list can follow.
pub(crate) async fn insert_returning<T>(
    connection: &mut SqliteConnection,
    head: &str,
    columns: usize,
    tail: &str,
    mut rows: &[T],
    bind: impl for<'q> Fn(Statement<'q>, &T) -> Statement<'q>,
) -> Result<Vec<SqliteRow>, sqlx::Error> {
    let mut returned = Vec::new();
    for size in ROWS {
        while rows.len() >= size {
            let (chunk, rest) = rows.split_at(size);
            let text = format!("{head} VALUES {} {tail}", values(size, columns));
            let mut statement = sqlx::query(AssertSqlSafe(text));
            for row in chunk {
                statement = bind(statement, row);
            }
            returned.extend(statement.fetch_all(&mut *connection).await?);
            rows = rest;
        }
    }
    Ok(returned)
}

/// Rows of `<head> IN (…) <tail>` for all keys.
pub(crate) async fn select_in<K>(
    connection: &mut SqliteConnection,
    head: &str,
    tail: &str,
    keys: impl IntoIterator<Item = K>,
) -> Result<Vec<SqliteRow>, sqlx::Error>
where
    K: for<'q> sqlx::Encode<'q, Sqlite> + sqlx::Type<Sqlite> + Clone + Send,
{
    let keys: Vec<K> = keys.into_iter().collect();
    let mut found = Vec::new();
    for chunk in keys.chunks(ROWS[0]) {
        // The last key again fills the list up to one of a few lengths.
        let size = ROWS.iter().rev().copied().find(|size| *size >= chunk.len()).unwrap_or(chunk.len());
        let text = format!("{head} IN {} {tail}", values(1, size));
        let mut statement = sqlx::query(AssertSqlSafe(text));
        for index in 0..size {
            statement = statement.bind(chunk.get(index).or(chunk.last()).cloned());
        }
        found.extend(statement.fetch_all(&mut *connection).await?);
    }
    Ok(found)
}

/// A column that should hold an id or name but does not: names table and column.
pub(crate) fn column<T, U>(value: U, column: &'static str) -> Result<T, sqlx::Error>
where
    T: TryFrom<U>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    T::try_from(value)
        .map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) })
}

/// A column that should hold so many bytes but does not: names table and column.
pub(crate) fn array<const N: usize>(value: &[u8], column: &'static str) -> Result<[u8; N], sqlx::Error> {
    value
        .try_into()
        .map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) })
}

/// A protobuf column that does not decode.
pub(crate) fn message<M: prost::Message + Default>(
    bytes: Vec<u8>,
    column: &'static str,
) -> Result<M, sqlx::Error> {
    M::decode(bytes::Bytes::from(bytes))
        .map_err(|error| sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) })
}

/// SQL integers are signed; sequences and epochs never come near the sign.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// See [`signed`].
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
