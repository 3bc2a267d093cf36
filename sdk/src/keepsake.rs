//! Bytes kept by name: what the endpoint verified once and needs again.

use crate::error::EndpointError;
use crate::store::Tx;
use rusqlite::{OptionalExtension as _, params};

pub(crate) fn get(tx: &Tx<'_>, name: &str) -> Result<Option<Vec<u8>>, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached("SELECT value FROM keepsakes WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?)
}

pub(crate) fn put(tx: &Tx<'_>, name: &str, value: &[u8]) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "INSERT INTO keepsakes (name, value) VALUES (?1, ?2) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )?
        .execute(params![name, value])?;
    Ok(())
}

pub(crate) fn forget(tx: &Tx<'_>, name: &str) -> Result<(), EndpointError> {
    tx.sql().execute("DELETE FROM keepsakes WHERE name = ?1", [name])?;
    Ok(())
}
