//! Accounts, devices and aliases.

use super::{NodeStore, Tx, mailbox, seat, sql};
use chancery_node_core::mailbox::forget;
use chancery_types::{AccountId, Alias, DeviceId, Reason, Refusal};
use sqlx::Row as _;
use std::collections::HashSet;

/// Most aliases of an account.
const MAX_ALIASES: i64 = 16;
/// Most devices of an account.
const MAX_DEVICES: i64 = 16;

/// A device with its account's rights.
#[derive(Clone)]
pub(crate) struct DeviceRow {
    pub(crate) account_id: AccountId,
    pub(crate) auth_key: [u8; 32],
    /// SPIFFE id whose certificate the account needs.
    pub(crate) agent: Option<String>,
    /// How often it used or made secret keys, as it last said.
    pub(crate) store_count: u64,
}

/// The device, if this node knows it.
pub(crate) async fn device(store: &NodeStore, device: DeviceId) -> Result<Option<DeviceRow>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT d.account_id, d.auth_key, a.agent, d.store_count FROM device d
         JOIN account a ON a.account_id = d.account_id WHERE d.device_id = $1",
    )
    .bind(device.as_bytes().as_slice())
    .fetch_optional(store.readers())
    .await?;
    row.map(|row| {
        Ok(DeviceRow {
            account_id: sql::column(row.try_get::<Vec<u8>, _>(0)?, "device.account_id")?,
            auth_key: sql::array(&row.try_get::<Vec<u8>, _>(1)?, "device.auth_key")?,
            agent: row.try_get(2)?,
            store_count: sql::unsigned(row.try_get(3)?),
        })
    })
    .transpose()
}

/// Aliases of an account.
pub(crate) async fn aliases(store: &NodeStore, account: AccountId) -> Result<Vec<Alias>, sqlx::Error> {
    sqlx::query_scalar::<_, Vec<u8>>("SELECT alias FROM alias WHERE account_id = $1 ORDER BY added_at, alias")
        .bind(account.as_bytes().as_slice())
        .fetch_all(store.readers())
        .await?
        .into_iter()
        .map(|alias| sql::column(alias, "alias.alias"))
        .collect()
}

/// Devices say how often they have used or made secret keys; 0: one does not say.
pub(crate) async fn raise_counts(tx: &mut Tx<'_>, counts: &[(DeviceId, u64)]) -> Result<(), sqlx::Error> {
    for (device, count) in counts.iter().filter(|(_, count)| *count > 0) {
        sqlx::query("UPDATE device SET store_count = $2 WHERE device_id = $1 AND store_count < $2")
            .bind(device.as_bytes().as_slice())
            .bind(sql::signed(*count))
            .execute(&mut *tx.tables.connection)
            .await?;
    }
    Ok(())
}

/// A device that is to be added.
#[derive(Clone, Copy)]
pub(crate) struct NewDevice {
    pub(crate) device_id: DeviceId,
    pub(crate) auth_key: [u8; 32],
}

/// Opens an account, or finds it when the same device opened it before.
pub(crate) async fn open(
    tx: &mut Tx<'_>,
    fresh: AccountId,
    agent: Option<&str>,
    device: NewDevice,
    alias: Alias,
) -> Result<Result<AccountId, Refusal>, sqlx::Error> {
    if let Some((account, key)) = owner_of_device(tx, device.device_id).await? {
        let same = key == device.auth_key
            && owner_of_alias(tx, alias).await? == Some(account)
            && agent_of(tx, account).await?.as_deref() == agent;
        return Ok(if same { Ok(account) } else { Err(taken("device")) });
    }
    if owner_of_alias(tx, alias).await?.is_some() {
        return Ok(Err(taken("alias")));
    }
    sqlx::query("INSERT INTO account (account_id, agent, opened_at) VALUES ($1, $2, $3)")
        .bind(fresh.as_bytes().as_slice())
        .bind(agent)
        .bind(tx.now.millis())
        .execute(&mut *tx.tables.connection)
        .await?;
    insert_device(tx, fresh, device).await?;
    insert_alias(tx, fresh, alias).await?;
    Ok(Ok(fresh))
}

/// Adds a device; it reads what arrives from now on.
pub(crate) async fn add_device(
    tx: &mut Tx<'_>,
    account: AccountId,
    device: NewDevice,
) -> Result<Result<(), Refusal>, sqlx::Error> {
    if let Some((owner, key)) = owner_of_device(tx, device.device_id).await? {
        let same = owner == account && key == device.auth_key;
        return Ok(if same { Ok(()) } else { Err(taken("device")) });
    }
    if count(tx, "SELECT count(*) FROM device WHERE account_id = $1", account).await? >= MAX_DEVICES {
        return Ok(Err(Refusal::new(Reason::QuotaExceeded, "an account has at most 16 devices")));
    }
    insert_device(tx, account, device).await?;
    for alias in aliases_of(tx, account).await? {
        mailbox::start(tx, alias, device.device_id).await?;
    }
    Ok(Ok(()))
}

/// Removes a device with its KeyPackages and cursors.
pub(crate) async fn remove_device(
    tx: &mut Tx<'_>,
    account: AccountId,
    device: DeviceId,
) -> Result<Result<(), Refusal>, sqlx::Error> {
    match owner_of_device(tx, device).await? {
        None => return Ok(Ok(())),
        Some((owner, _)) if owner != account => {
            return Ok(Err(Refusal::new(Reason::DeviceUnknown, "no such device of this account")));
        }
        Some(_) => {}
    }
    if count(tx, "SELECT count(*) FROM device WHERE account_id = $1", account).await? == 1 {
        return Ok(Err(Refusal::new(Reason::LastDevice, "the last device of an account cannot be removed")));
    }
    seat::leave_all(tx, device).await?;
    for text in [
        "DELETE FROM key_package WHERE device_id = $1",
        "DELETE FROM mailbox_cursor WHERE device_id = $1",
        "DELETE FROM device WHERE device_id = $1",
    ] {
        sqlx::query(text).bind(device.as_bytes().as_slice()).execute(&mut *tx.tables.connection).await?;
    }
    for alias in aliases_of(tx, account).await? {
        forget(tx, &HashSet::from([alias])).await?;
    }
    Ok(Ok(()))
}

/// Adds an alias.
pub(crate) async fn add_alias(
    tx: &mut Tx<'_>,
    account: AccountId,
    alias: Alias,
) -> Result<Result<(), Refusal>, sqlx::Error> {
    match owner_of_alias(tx, alias).await? {
        Some(owner) if owner == account => return Ok(Ok(())),
        Some(_) => return Ok(Err(taken("alias"))),
        None => {}
    }
    if count(tx, "SELECT count(*) FROM alias WHERE account_id = $1", account).await? >= MAX_ALIASES {
        return Ok(Err(Refusal::new(Reason::QuotaExceeded, "an account has at most 16 aliases")));
    }
    insert_alias(tx, account, alias).await?;
    Ok(Ok(()))
}

fn taken(what: &'static str) -> Refusal {
    Refusal::new(Reason::AlreadyTaken, format!("the {what} id is taken; choose another at random"))
}

async fn owner_of_device(
    tx: &mut Tx<'_>,
    device: DeviceId,
) -> Result<Option<(AccountId, Vec<u8>)>, sqlx::Error> {
    let row = sqlx::query("SELECT account_id, auth_key FROM device WHERE device_id = $1")
        .bind(device.as_bytes().as_slice())
        .fetch_optional(&mut *tx.tables.connection)
        .await?;
    row.map(|row| Ok((sql::column(row.try_get::<Vec<u8>, _>(0)?, "device.account_id")?, row.try_get(1)?)))
        .transpose()
}

async fn agent_of(tx: &mut Tx<'_>, account: AccountId) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT agent FROM account WHERE account_id = $1")
        .bind(account.as_bytes().as_slice())
        .fetch_one(&mut *tx.tables.connection)
        .await
}

async fn owner_of_alias(tx: &mut Tx<'_>, alias: Alias) -> Result<Option<AccountId>, sqlx::Error> {
    sqlx::query_scalar::<_, Vec<u8>>("SELECT account_id FROM alias WHERE alias = $1")
        .bind(alias.as_bytes().as_slice())
        .fetch_optional(&mut *tx.tables.connection)
        .await?
        .map(|id| sql::column(id, "alias.account_id"))
        .transpose()
}

async fn aliases_of(tx: &mut Tx<'_>, account: AccountId) -> Result<Vec<Alias>, sqlx::Error> {
    sqlx::query_scalar::<_, Vec<u8>>("SELECT alias FROM alias WHERE account_id = $1")
        .bind(account.as_bytes().as_slice())
        .fetch_all(&mut *tx.tables.connection)
        .await?
        .into_iter()
        .map(|alias| sql::column(alias, "alias.alias"))
        .collect()
}

async fn count(tx: &mut Tx<'_>, text: &'static str, account: AccountId) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(text).bind(account.as_bytes().as_slice()).fetch_one(&mut *tx.tables.connection).await
}

async fn insert_device(tx: &mut Tx<'_>, account: AccountId, device: NewDevice) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO device (device_id, account_id, auth_key, added_at) VALUES ($1, $2, $3, $4)")
        .bind(device.device_id.as_bytes().as_slice())
        .bind(account.as_bytes().as_slice())
        .bind(device.auth_key.as_slice())
        .bind(tx.now.millis())
        .execute(&mut *tx.tables.connection)
        .await
        .map(drop)
}

async fn insert_alias(tx: &mut Tx<'_>, account: AccountId, alias: Alias) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO alias (alias, account_id, added_at) VALUES ($1, $2, $3)")
        .bind(alias.as_bytes().as_slice())
        .bind(account.as_bytes().as_slice())
        .bind(tx.now.millis())
        .execute(&mut *tx.tables.connection)
        .await
        .map(drop)
}
