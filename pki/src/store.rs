//! The authority's rows: certificates, join tokens, revocation lists. Each
//! function runs in a transaction of the caller's; what may be issued is
//! [`crate::authority`]'s matter.

use chancery_pki_core::{Party, Serial};
use chancery_types::Timestamp;
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnection;
use sqlx::{FromRow, SqliteExecutor};

pub(crate) static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// The one row of `authority`.
#[derive(Clone, FromRow)]
pub(crate) struct AuthorityRow {
    pub(crate) federation: String,
    pub(crate) root_der: Vec<u8>,
    pub(crate) issuing_der: Vec<u8>,
    pub(crate) root_crl: Vec<u8>,
    pub(crate) root_crl_number: i64,
    pub(crate) issuing_crl: Vec<u8>,
    pub(crate) issuing_crl_number: i64,
    pub(crate) issuing_crl_at_ms: i64,
}

pub(crate) async fn authority(
    connection: impl SqliteExecutor<'_>,
) -> Result<Option<AuthorityRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT federation, root_der, issuing_der, root_crl, root_crl_number, issuing_crl,
                issuing_crl_number, issuing_crl_at_ms
         FROM authority",
    )
    .fetch_optional(connection)
    .await
}

/// Writes the row, the first time or again; federation and root stay what they were first.
pub(crate) async fn put_authority(
    connection: &mut SqliteConnection,
    row: &AuthorityRow,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO authority (one, federation, root_der, issuing_der, root_crl, root_crl_number,
                                issuing_crl, issuing_crl_number, issuing_crl_at_ms)
         VALUES (1, $1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (one) DO UPDATE SET
             issuing_der = excluded.issuing_der, root_crl = excluded.root_crl,
             root_crl_number = excluded.root_crl_number, issuing_crl = excluded.issuing_crl,
             issuing_crl_number = excluded.issuing_crl_number,
             issuing_crl_at_ms = excluded.issuing_crl_at_ms",
    )
    .bind(&row.federation)
    .bind(&row.root_der)
    .bind(&row.issuing_der)
    .bind(&row.root_crl)
    .bind(row.root_crl_number)
    .bind(&row.issuing_crl)
    .bind(row.issuing_crl_number)
    .bind(row.issuing_crl_at_ms)
    .execute(connection)
    .await
    .map(drop)
}

pub(crate) async fn put_issuing_ca(
    connection: &mut SqliteConnection,
    serial: &Serial,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO issuing_ca (serial, issued_at_ms) VALUES ($1, $2)")
        .bind(serial.as_bytes().as_slice())
        .bind(now.millis())
        .execute(connection)
        .await
        .map(drop)
}

pub(crate) async fn revoke_issuing_cas(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE issuing_ca SET revoked_at_ms = $1 WHERE revoked_at_ms IS NULL")
        .bind(now.millis())
        .execute(connection)
        .await
        .map(drop)
}

/// Revoked issuing CAs, for the root's list.
pub(crate) async fn revoked_issuing_cas(
    connection: &mut SqliteConnection,
) -> Result<Vec<(Serial, Timestamp)>, sqlx::Error> {
    let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(
        "SELECT serial, revoked_at_ms FROM issuing_ca WHERE revoked_at_ms IS NOT NULL ORDER BY serial",
    )
    .fetch_all(connection)
    .await?;
    entries("issuing_ca", rows)
}

/// Revoked leaves that have not expired before `now`, for the issuing CA's list.
pub(crate) async fn revoked_leaves(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<Vec<(Serial, Timestamp)>, sqlx::Error> {
    let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(
        "SELECT serial, revoked_at_ms FROM certificate
         WHERE revoked_at_ms IS NOT NULL AND not_after_ms >= $1 ORDER BY serial",
    )
    .bind(now.millis())
    .fetch_all(connection)
    .await?;
    entries("certificate", rows)
}

fn entries(table: &'static str, rows: Vec<(Vec<u8>, i64)>) -> Result<Vec<(Serial, Timestamp)>, sqlx::Error> {
    let entry = |(serial, at): (Vec<u8>, i64)| {
        let serial = Serial::try_from(serial.as_slice()).map_err(|_| unreadable(table, "serial"))?;
        Ok((serial, Timestamp::from_millis(at)))
    };
    rows.into_iter().map(entry).collect()
}

fn unreadable(table: &'static str, column: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("{table}.{column} is unreadable").into())
}

/// A certificate to be written.
pub(crate) struct NewCertificate<'a> {
    pub(crate) serial: &'a Serial,
    pub(crate) party: &'a Party,
    pub(crate) names: &'a str,
    pub(crate) key_pin: &'a [u8; 32],
    pub(crate) leaf_der: &'a [u8],
    pub(crate) issuing_der: &'a [u8],
    pub(crate) issued_at: Timestamp,
    pub(crate) not_after: Timestamp,
}

pub(crate) async fn put_certificate(
    connection: &mut SqliteConnection,
    new: &NewCertificate<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO certificate (serial, party, names, key_pin, leaf_der, issuing_der, issued_at_ms,
                                  not_after_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(new.serial.as_bytes().as_slice())
    .bind(new.party.to_string())
    .bind(new.names)
    .bind(new.key_pin.as_slice())
    .bind(new.leaf_der)
    .bind(new.issuing_der)
    .bind(new.issued_at.millis())
    .bind(new.not_after.millis())
    .execute(connection)
    .await
    .map(drop)
}

/// A certificate as it was handed out.
#[derive(FromRow)]
pub(crate) struct CertificateRow {
    pub(crate) party: String,
    pub(crate) names: String,
    pub(crate) leaf_der: Vec<u8>,
    pub(crate) issuing_der: Vec<u8>,
    pub(crate) revoked_at_ms: Option<i64>,
}

pub(crate) async fn certificate(
    connection: impl SqliteExecutor<'_>,
    serial: &[u8],
) -> Result<Option<CertificateRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT party, names, leaf_der, issuing_der, revoked_at_ms FROM certificate WHERE serial = $1",
    )
    .bind(serial)
    .fetch_optional(connection)
    .await
}

/// Certificates that a party got at or after `since`.
pub(crate) async fn issued_since(
    connection: &mut SqliteConnection,
    party: &Party,
    since: Timestamp,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM certificate WHERE party = $1 AND issued_at_ms >= $2")
        .bind(party.to_string())
        .bind(since.millis())
        .fetch_one(connection)
        .await
}

pub(crate) async fn revoke_serial(
    connection: &mut SqliteConnection,
    serial: &Serial,
    now: Timestamp,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE certificate SET revoked_at_ms = $1
         WHERE serial = $2 AND revoked_at_ms IS NULL AND not_after_ms >= $1",
    )
    .bind(now.millis())
    .bind(serial.as_bytes().as_slice())
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// Revokes what a party has and withdraws the join tokens that wait for it.
pub(crate) async fn revoke_party(
    connection: &mut SqliteConnection,
    party: &Party,
    now: Timestamp,
) -> Result<u64, sqlx::Error> {
    sqlx::query("DELETE FROM join_token WHERE party = $1 AND csr_digest IS NULL")
        .bind(party.to_string())
        .execute(&mut *connection)
        .await?;
    let done = sqlx::query(
        "UPDATE certificate SET revoked_at_ms = $1
         WHERE party = $2 AND revoked_at_ms IS NULL AND not_after_ms >= $1",
    )
    .bind(now.millis())
    .bind(party.to_string())
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// A join token.
#[derive(FromRow)]
pub(crate) struct TokenRow {
    pub(crate) party: String,
    pub(crate) names: String,
    pub(crate) expires_at_ms: i64,
    pub(crate) csr_digest: Option<Vec<u8>>,
    pub(crate) serial: Option<Vec<u8>>,
}

pub(crate) async fn put_token(
    connection: &mut SqliteConnection,
    digest: &[u8; 32],
    party: &Party,
    names: &str,
    expires_at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO join_token (digest, party, names, expires_at_ms) VALUES ($1, $2, $3, $4)")
        .bind(digest.as_slice())
        .bind(party.to_string())
        .bind(names)
        .bind(expires_at.millis())
        .execute(connection)
        .await
        .map(drop)
}

pub(crate) async fn token(
    connection: &mut SqliteConnection,
    digest: &[u8; 32],
) -> Result<Option<TokenRow>, sqlx::Error> {
    sqlx::query_as("SELECT party, names, expires_at_ms, csr_digest, serial FROM join_token WHERE digest = $1")
        .bind(digest.as_slice())
        .fetch_optional(connection)
        .await
}

pub(crate) async fn spend_token(
    connection: &mut SqliteConnection,
    digest: &[u8; 32],
    csr_digest: &[u8; 32],
    serial: &Serial,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE join_token SET csr_digest = $1, serial = $2 WHERE digest = $3")
        .bind(csr_digest.as_slice())
        .bind(serial.as_bytes().as_slice())
        .bind(digest.as_slice())
        .execute(connection)
        .await
        .map(drop)
}
