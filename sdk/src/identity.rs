//! Who this endpoint is: alias, device, home node, and its secret keys. One
//! endpoint is one device of one alias: two handles of a person share nothing,
//! so they are two endpoints.

use crate::credential::{self, PresentedDevice, RENEWED_AFTER};
use crate::error::EndpointError;
use crate::home;
use crate::mls::Suite;
use crate::store::{StoreError, Tx};
use chancery_types::{Alias, DeviceId, NodeId};
use ed25519_dalek::{Signer as _, SigningKey};
use openmls::credentials::{BasicCredential, CredentialWithKey};
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::types::SignatureScheme;
use rusqlite::{OptionalExtension as _, params};
use zeroize::Zeroizing;

/// What is public about this endpoint within its account.
#[derive(Clone)]
pub struct Identity {
    /// The federation's SPIFFE trust domain.
    pub federation: String,
    /// Home node.
    pub node: NodeId,
    /// The alias this endpoint reads.
    pub alias: Alias,
    /// The device.
    pub device: DeviceId,
    /// SPIFFE id of an agent; `None`: a person's device.
    pub agent: Option<String>,
    /// Key that signs the account's device credentials: stands in the record, or
    /// for an agent in the log.
    pub credential_key: [u8; 32],
}

/// Which of the endpoint's keys.
#[derive(Clone, Copy)]
pub(crate) enum OwnKey {
    /// Authenticates connections to the home node.
    Auth,
    /// Signs device credentials.
    Credential,
    /// Signs the record.
    Account,
}

/// A leaf key with its credential.
pub(crate) struct Leaf {
    key: SigningKey,
    credential: Vec<u8>,
}

impl Leaf {
    /// A leaf that is nobody's: of a seat in a broadcast channel's cell.
    pub(crate) const fn of_seat(key: SigningKey, credential: Vec<u8>) -> Self {
        Self { key, credential }
    }

    pub(crate) fn credential_with_key(&self) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(self.credential.clone()).into(),
            signature_key: self.key.verifying_key().to_bytes().to_vec().into(),
        }
    }

    pub(crate) fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl Signer for Leaf {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.sign_bytes(payload).to_vec())
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Makes the identity of the first device of an account, with all its keys.
/// Does nothing when there is one already.
///
/// # Errors
/// The store's.
pub fn create(
    tx: &mut Tx<'_>,
    federation: &str,
    node: &NodeId,
    agent: Option<&str>,
) -> Result<Identity, EndpointError> {
    if let Some(identity) = find(tx)? {
        return Ok(identity);
    }
    let credential_key = new_key(tx);
    let account_key = new_key(tx);
    insert(
        tx,
        &Identity {
            federation: federation.to_owned(),
            node: node.clone(),
            alias: Alias::random(tx.entropy()),
            device: DeviceId::random(tx.entropy()),
            agent: agent.map(str::to_owned),
            credential_key: credential_key.verifying_key().to_bytes(),
        },
        &Zeroizing::new(tx.entropy().array::<32>()),
        Some((&credential_key, &account_key)),
    )?;
    for suite in Suite::ALL {
        let key = new_leaf(tx, suite)?;
        sign_credential(tx, suite, &credential_key, &key)?;
    }
    identity(tx)
}

/// Signs the credential of a leaf key, as of now; gives it.
fn sign_credential(
    tx: &Tx<'_>,
    suite: Suite,
    signer: &SigningKey,
    leaf_key: &[u8; 32],
) -> Result<Vec<u8>, EndpointError> {
    let own = identity(tx)?;
    let agent = own.agent.as_deref();
    let signed = credential::sign(signer, own.alias, own.device, leaf_key, agent, tx.now());
    set_credential(tx, suite, &signed)?;
    Ok(signed)
}

/// The identity, if it was made.
///
/// # Errors
/// The store's.
pub fn find(tx: &Tx<'_>) -> Result<Option<Identity>, EndpointError> {
    let mut statement = tx.sql().prepare_cached(
        "SELECT federation, node, alias, device, agent, credential_key FROM identity WHERE id = 1",
    )?;
    let row = statement
        .query_row([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, [u8; 16]>(2)?,
                row.get::<_, [u8; 16]>(3)?,
                row.get::<_, Option<String>>(4)?,
                row.get::<_, [u8; 32]>(5)?,
            ))
        })
        .optional()?;
    row.map(|(federation, node, alias, device, agent, credential_key)| {
        Ok(Identity {
            federation,
            node: node.parse().map_err(|_| StoreError::Row { table: "identity", column: "node" })?,
            alias: Alias::from_bytes(alias),
            device: DeviceId::from_bytes(device),
            agent,
            credential_key,
        })
    })
    .transpose()
}

/// The identity.
pub(crate) fn identity(tx: &Tx<'_>) -> Result<Identity, EndpointError> {
    find(tx)?.ok_or(EndpointError::NotPossible("the endpoint has no alias yet"))
}

pub(crate) fn insert(
    tx: &Tx<'_>,
    identity: &Identity,
    auth_seed: &[u8; 32],
    account: Option<(&SigningKey, &SigningKey)>,
) -> Result<(), EndpointError> {
    tx.sql().execute(
        "INSERT INTO identity (id, federation, node, alias, device, agent, auth_seed, credential_key, \
         credential_seed, account_seed) VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            identity.federation,
            identity.node.as_str(),
            identity.alias.as_bytes(),
            identity.device.as_bytes(),
            identity.agent,
            auth_seed,
            identity.credential_key,
            account.map(|(credential, _)| Zeroizing::new(credential.to_bytes()).to_vec()),
            account.map(|(_, account)| Zeroizing::new(account.to_bytes()).to_vec()),
        ],
    )?;
    home::begin(tx, &identity.node)
}

pub(crate) fn new_key(tx: &Tx<'_>) -> SigningKey {
    SigningKey::from_bytes(&Zeroizing::new(tx.entropy().array::<32>()))
}

/// One of the endpoint's own keys.
pub(crate) fn key(tx: &Tx<'_>, which: OwnKey) -> Result<SigningKey, EndpointError> {
    let sql = match which {
        OwnKey::Auth => "SELECT auth_seed FROM identity WHERE id = 1",
        OwnKey::Credential => "SELECT credential_seed FROM identity WHERE id = 1",
        OwnKey::Account => "SELECT account_seed FROM identity WHERE id = 1",
    };
    let seed: Option<[u8; 32]> = tx.sql().query_row(sql, [], |row| row.get(0)).optional()?.flatten();
    let seed = Zeroizing::new(
        seed.ok_or(EndpointError::NotPossible("only the account's first device holds this key"))?,
    );
    Ok(SigningKey::from_bytes(&seed))
}

/// Makes the leaf key of a suite, without a credential yet; gives its public part.
pub(crate) fn new_leaf(tx: &Tx<'_>, suite: Suite) -> Result<[u8; 32], EndpointError> {
    let key = new_key(tx);
    tx.sql().execute(
        "INSERT INTO leaf_keys (suite, seed, credential) VALUES (?1, ?2, NULL)",
        params![suite.code(), *Zeroizing::new(key.to_bytes())],
    )?;
    Ok(key.verifying_key().to_bytes())
}

pub(crate) fn set_credential(tx: &Tx<'_>, suite: Suite, credential: &[u8]) -> Result<(), EndpointError> {
    tx.sql().execute(
        "UPDATE leaf_keys SET credential = ?2 WHERE suite = ?1",
        params![suite.code(), credential],
    )?;
    Ok(())
}

/// The leaf key of a suite with its credential, which is signed anew when it is old: where this device
/// can, and what it is used in next has the new one.
pub(crate) fn leaf(tx: &Tx<'_>, suite: Suite) -> Result<Leaf, EndpointError> {
    let mut statement = tx.sql().prepare_cached("SELECT seed, credential FROM leaf_keys WHERE suite = ?1")?;
    let row: Option<([u8; 32], Option<Vec<u8>>)> =
        statement.query_row([suite.code()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((seed, Some(credential))) = row else {
        return Err(EndpointError::NotPossible("this device has no credential yet"));
    };
    let key = tx.signing_key(&Zeroizing::new(seed));
    let made = PresentedDevice::parse(&credential)?.not_before();
    if tx.now().since(made) < RENEWED_AFTER {
        return Ok(Leaf { key, credential });
    }
    match self::key(tx, OwnKey::Credential) {
        Ok(signer) => {
            let credential = sign_credential(tx, suite, &signer, &key.verifying_key().to_bytes())?;
            Ok(Leaf { key, credential })
        }
        // A linked device has what it was given.
        Err(EndpointError::NotPossible(_)) => Ok(Leaf { key, credential }),
        Err(error) => Err(error),
    }
}

/// Notes another device of the account, with the key of its connections where this
/// device linked it.
pub(crate) fn add_own_device(
    tx: &Tx<'_>,
    device: DeviceId,
    auth_key: Option<[u8; 32]>,
) -> Result<(), EndpointError> {
    tx.sql().execute(
        "INSERT OR IGNORE INTO own_devices (device, auth_key) VALUES (?1, ?2)",
        params![device.as_bytes(), auth_key],
    )?;
    Ok(())
}

/// Devices that this one linked, with the keys of their connections.
pub(crate) fn linked_devices(tx: &Tx<'_>) -> Result<Vec<(DeviceId, [u8; 32])>, EndpointError> {
    let mut statement =
        tx.sql().prepare_cached("SELECT device, auth_key FROM own_devices WHERE auth_key IS NOT NULL")?;
    let rows = statement.query_map([], |row| Ok((DeviceId::from_bytes(row.get(0)?), row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether the account has another device, as far as this one knows.
pub(crate) fn has_other_devices(tx: &Tx<'_>) -> Result<bool, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM own_devices)")?
        .query_row([], |row| row.get(0))?)
}
