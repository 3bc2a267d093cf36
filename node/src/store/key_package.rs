//! KeyPackages in stock: a one-time one is handed out once, in the transaction
//! that deletes it; a last-resort one stays.

use super::{Tx, moves, sql};
use bytes::Bytes;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as node;
use chancery_types::{Alias, DeviceId, Reason, Refusal};
use sqlx::Row as _;
use std::collections::{BTreeMap, HashSet};

/// Most unspent one-time KeyPackages for each device and suite.
const MAX_STOCK: i64 = 1024;

/// A KeyPackage with its cipher suite.
pub(crate) type Package = (u16, Bytes);

/// What a device publishes.
pub(crate) struct Published {
    pub(crate) one_time: Vec<Package>,
    pub(crate) last_resort: Vec<Package>,
    /// Forget the device's one-time KeyPackages first.
    pub(crate) replace: bool,
}

/// Adds one-time KeyPackages and replaces last-resort ones of the same suite.
pub(crate) async fn publish(
    tx: &mut Tx<'_>,
    alias: Alias,
    device: DeviceId,
    Published { one_time, last_resort, replace }: &Published,
) -> Result<Result<Vec<node::KeyPackageStock>, Refusal>, sqlx::Error> {
    if moves::homes(tx.tables.connection, &HashSet::from([alias])).await?.contains_key(&alias) {
        return Ok(Err(Refusal::new(Reason::AliasMoved, "the alias has another home now")));
    }
    if *replace {
        sqlx::query("DELETE FROM key_package WHERE alias = $1 AND device_id = $2 AND NOT last_resort")
            .bind(alias.as_bytes().as_slice())
            .bind(device.as_bytes().as_slice())
            .execute(&mut *tx.tables.connection)
            .await?;
    }
    let mut adding: BTreeMap<u16, i64> = BTreeMap::new();
    one_time.iter().for_each(|(suite, _)| *adding.entry(*suite).or_default() += 1);
    for stock in stock(tx, alias, device).await? {
        let more = u16::try_from(stock.cipher_suite).ok().and_then(|suite| adding.get(&suite));
        if i64::from(stock.one_time) + more.copied().unwrap_or(0) > MAX_STOCK {
            return Ok(Err(Refusal::new(
                Reason::QuotaExceeded,
                "at most 1024 KeyPackages of a suite in stock",
            )));
        }
    }
    for (suite, _) in last_resort {
        sqlx::query(
            "DELETE FROM key_package
             WHERE alias = $1 AND device_id = $2 AND cipher_suite = $3 AND last_resort",
        )
        .bind(alias.as_bytes().as_slice())
        .bind(device.as_bytes().as_slice())
        .bind(i64::from(*suite))
        .execute(&mut *tx.tables.connection)
        .await?;
    }
    let rows: Vec<_> = one_time
        .iter()
        .map(|package| (false, package))
        .chain(last_resort.iter().map(|package| (true, package)))
        .collect();
    let head = "INSERT INTO key_package (alias, device_id, cipher_suite, last_resort, message)";
    sql::insert(tx.tables.connection, head, 5, "", &rows, |statement, (last_resort, (suite, message))| {
        statement
            .bind(alias.as_bytes().as_slice())
            .bind(device.as_bytes().as_slice())
            .bind(i64::from(*suite))
            .bind(*last_resort)
            .bind(message.as_ref())
    })
    .await?;
    Ok(Ok(stock(tx, alias, device).await?))
}

async fn stock(
    tx: &mut Tx<'_>,
    alias: Alias,
    device: DeviceId,
) -> Result<Vec<node::KeyPackageStock>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT cipher_suite, count(*) FILTER (WHERE NOT last_resort), count(*) FILTER (WHERE last_resort)
         FROM key_package WHERE alias = $1 AND device_id = $2 GROUP BY cipher_suite ORDER BY cipher_suite",
    )
    .bind(alias.as_bytes().as_slice())
    .bind(device.as_bytes().as_slice())
    .fetch_all(&mut *tx.tables.connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(node::KeyPackageStock {
                cipher_suite: u32::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0),
                one_time: u32::try_from(row.try_get::<i64, _>(1)?).unwrap_or(u32::MAX),
                last_resort: row.try_get::<i64, _>(2)? > 0,
            })
        })
        .collect()
}

/// Takes one KeyPackage of each device of an alias: of the first wanted suite
/// for which every device has one.
pub(crate) async fn take(
    tx: &mut Tx<'_>,
    alias: Alias,
    suites: &[u16],
) -> Result<federation::AliasKeyPackages, sqlx::Error> {
    let devices: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT d.device_id FROM alias a JOIN device d ON d.account_id = a.account_id WHERE a.alias = $1",
    )
    .bind(alias.as_bytes().as_slice())
    .fetch_all(&mut *tx.tables.connection)
    .await?;
    let none = |reason: Reason| federation::AliasKeyPackages {
        alias: alias.to_wire(),
        key_packages: Vec::new(),
        reason: reason.as_str().to_owned(),
    };
    if devices.is_empty() {
        return Ok(none(Reason::AliasUnknown));
    }
    if moves::homes(tx.tables.connection, &HashSet::from([alias])).await?.contains_key(&alias) {
        return Ok(none(Reason::AliasMoved));
    }
    for suite in suites {
        let mut chosen = Vec::with_capacity(devices.len());
        for device in &devices {
            chosen.extend(next(tx, alias, device, *suite).await?);
        }
        if chosen.len() < devices.len() {
            continue;
        }
        let mut key_packages = Vec::with_capacity(chosen.len());
        for (id, last_resort, message) in chosen {
            if !last_resort {
                sqlx::query("DELETE FROM key_package WHERE id = $1")
                    .bind(id)
                    .execute(&mut *tx.tables.connection)
                    .await?;
            }
            key_packages.push(message);
        }
        return Ok(federation::AliasKeyPackages {
            alias: alias.to_wire(),
            key_packages,
            reason: String::new(),
        });
    }
    Ok(none(Reason::NoKeyPackage))
}

async fn next(
    tx: &mut Tx<'_>,
    alias: Alias,
    device: &[u8],
    suite: u16,
) -> Result<Option<(i64, bool, Bytes)>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT id, last_resort, message FROM key_package
         WHERE alias = $1 AND device_id = $2 AND cipher_suite = $3 ORDER BY last_resort, id LIMIT 1",
    )
    .bind(alias.as_bytes().as_slice())
    .bind(device)
    .bind(i64::from(suite))
    .fetch_optional(&mut *tx.tables.connection)
    .await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?, Bytes::from(row.try_get::<Vec<u8>, _>(2)?))))
        .transpose()
}
