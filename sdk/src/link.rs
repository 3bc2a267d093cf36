//! Linking a further device to an account by a scanned code: the new device
//! shows a request, a device that holds the credential key answers with a grant.
//! Both are bytes for a QR code; the grant has no secrets, but names the alias.

use crate::credential;
use crate::error::EndpointError;
use crate::identity::{self, Identity, OwnKey};
use crate::mls::Suite;
use crate::store::Tx;
use chancery_types::{Alias, DeviceId};
use ed25519_dalek::SigningKey;
use rusqlite::{OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Largest request or grant, in bytes.
const LIMIT: usize = 16 * 1024;
const VERSION: u8 = 1;
const PENDING_DEVICE: &str = "link device";
const PENDING_AUTH: &str = "link auth seed";

/// What the new device shows (CBOR).
#[derive(Serialize, Deserialize)]
struct Request {
    version: u8,
    device: [u8; 16],
    auth_key: [u8; 32],
    leaf_keys: Vec<(u16, [u8; 32])>,
}

/// What it gets back (CBOR).
#[derive(Serialize, Deserialize)]
struct Grant {
    version: u8,
    federation: String,
    node: String,
    alias: [u8; 16],
    agent: Option<String>,
    credential_key: [u8; 32],
    granted_by: [u8; 16],
    credentials: Vec<(u16, Vec<u8>)>,
    trust: Vec<u8>,
}

/// A device whose link was approved: its node must be told.
pub struct ApprovedDevice {
    /// The new device.
    pub device: DeviceId,
    /// Ed25519 key that will authenticate its connections.
    pub auth_key: [u8; 32],
    /// The grant to show to it.
    pub grant: Vec<u8>,
}

/// On the new device, whose store has no identity yet: what to show. Asked
/// again, it gives the same.
///
/// # Errors
/// [`EndpointError::NotPossible`] when the endpoint has an alias already.
pub fn request(tx: &mut Tx<'_>) -> Result<Vec<u8>, EndpointError> {
    if identity::find(tx)?.is_some() {
        return Err(EndpointError::NotPossible("the endpoint has an alias already"));
    }
    let (device, auth) = match pending(tx)? {
        Some(pending) => pending,
        None => {
            let device: [u8; 16] = tx.entropy().array();
            let auth = Zeroizing::new(tx.entropy().array::<32>());
            let mut insert =
                tx.sql().prepare_cached("INSERT INTO keepsakes (name, value) VALUES (?1, ?2)")?;
            insert.execute(params![PENDING_DEVICE, device])?;
            insert.execute(params![PENDING_AUTH, *auth])?;
            for suite in Suite::ALL {
                identity::new_leaf(tx, suite)?;
            }
            (device, auth)
        }
    };
    let mut leaf_keys = Vec::new();
    let mut seeds = tx.sql().prepare_cached("SELECT suite, seed FROM leaf_keys ORDER BY suite")?;
    for row in seeds.query_map([], |row| Ok((row.get::<_, u16>(0)?, row.get::<_, [u8; 32]>(1)?)))? {
        let (suite, seed) = row?;
        let seed = Zeroizing::new(seed);
        leaf_keys.push((suite, SigningKey::from_bytes(&seed).verifying_key().to_bytes()));
    }
    let auth_key = SigningKey::from_bytes(&auth).verifying_key().to_bytes();
    write(&Request { version: VERSION, device, auth_key, leaf_keys })
}

/// Device id and seed of its key, between request and grant.
type Pending = ([u8; 16], Zeroizing<[u8; 32]>);

fn pending(tx: &Tx<'_>) -> Result<Option<Pending>, EndpointError> {
    let device = tx
        .sql()
        .query_row("SELECT value FROM keepsakes WHERE name = ?1", [PENDING_DEVICE], |row| row.get(0))
        .optional()?;
    let auth = tx
        .sql()
        .query_row("SELECT value FROM keepsakes WHERE name = ?1", [PENDING_AUTH], |row| row.get(0))
        .optional()?;
    Ok(device.zip(auth.map(Zeroizing::new)))
}

/// On a device that holds the credential key: signs the new device's leaf keys.
/// `trust` is what the new device needs to trust the federation, as the caller
/// writes it.
///
/// # Errors
/// [`EndpointError::Invalid`] for bytes that are no request,
/// [`EndpointError::NotPossible`] on a linked device.
pub fn approve(tx: &mut Tx<'_>, request: &[u8], trust: &[u8]) -> Result<ApprovedDevice, EndpointError> {
    let request: Request = read(request)?;
    if request.version != VERSION || request.leaf_keys.len() != Suite::ALL.len() {
        return Err(EndpointError::Invalid("the link request is of another version"));
    }
    let identity = identity::identity(tx)?;
    let signer = identity::key(tx, OwnKey::Credential)?;
    let device = DeviceId::from_bytes(request.device);
    if device == identity.device {
        return Err(EndpointError::Invalid("the link request is this device's own"));
    }
    let credentials = request
        .leaf_keys
        .iter()
        .map(|(suite, key)| {
            let agent = identity.agent.as_deref();
            (*suite, credential::sign(&signer, identity.alias, device, key, agent, tx.now()))
        })
        .collect();
    identity::add_own_device(tx, device, Some(request.auth_key))?;
    let grant = Grant {
        version: VERSION,
        federation: identity.federation,
        node: identity.node.as_str().to_owned(),
        alias: *identity.alias.as_bytes(),
        agent: identity.agent,
        credential_key: identity.credential_key,
        granted_by: *identity.device.as_bytes(),
        credentials,
        trust: trust.to_owned(),
    };
    Ok(ApprovedDevice { device, auth_key: request.auth_key, grant: write(&grant)? })
}

/// On the new device: becomes a device of the account; gives the trust that
/// came with the grant.
///
/// # Errors
/// [`EndpointError::Invalid`] when the grant is not for this device's request
/// or does not verify.
pub fn accept(tx: &mut Tx<'_>, grant: &[u8]) -> Result<Vec<u8>, EndpointError> {
    let grant: Grant = read(grant)?;
    let (device, auth) =
        pending(tx)?.ok_or(EndpointError::NotPossible("this device has not asked to be linked"))?;
    let node = grant.node.parse().map_err(|_| EndpointError::Invalid("the grant names no node"))?;
    let identity = Identity {
        federation: grant.federation,
        node,
        alias: Alias::from_bytes(grant.alias),
        device: DeviceId::from_bytes(device),
        agent: grant.agent,
        credential_key: grant.credential_key,
    };
    if grant.version != VERSION || grant.credentials.len() != Suite::ALL.len() {
        return Err(EndpointError::Invalid("the grant is of another version"));
    }
    identity::insert(tx, &identity, &auth, None)?;
    for (code, credential) in &grant.credentials {
        let suite = Suite::from_code(*code).ok_or(EndpointError::Invalid("the grant names no suite"))?;
        identity::set_credential(tx, suite, credential)?;
        let own = identity::leaf(tx, suite)?.credential_with_key();
        let verified =
            crate::peer::verify_device(tx, &own.credential, own.signature_key.as_slice(), |presented| {
                crate::peer::signer_of_own(&identity, presented)
            });
        if !verified.is_ok_and(|own| own.device() == identity.device && own.alias() == identity.alias) {
            return Err(EndpointError::Invalid("the grant is not for this device"));
        }
    }
    identity::add_own_device(tx, DeviceId::from_bytes(grant.granted_by), None)?;
    tx.sql().execute("DELETE FROM keepsakes WHERE name IN (?1, ?2)", [PENDING_DEVICE, PENDING_AUTH])?;
    Ok(grant.trust)
}

fn write<T: Serialize>(value: &T) -> Result<Vec<u8>, EndpointError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(EndpointError::mls("write a link"))?;
    Ok(bytes)
}

fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, EndpointError> {
    if bytes.len() > LIMIT {
        return Err(EndpointError::Invalid("the code is too long"));
    }
    ciborium::from_reader(bytes).map_err(|_| EndpointError::Invalid("the code does not parse"))
}
