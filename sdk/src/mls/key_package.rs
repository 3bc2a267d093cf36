//! KeyPackages: made for this device, and checked when they are another's. A
//! node that hands out a false one is caught here.

use super::suite::{self, KEY_PACKAGE_LIFETIME, Suite};
use crate::credential::{CredentialError, VerifiedDevice};
use crate::error::EndpointError;
use crate::identity::{self, Identity};
use crate::inbox;
use crate::peer::{self, Peer};
use crate::restored::STORE_COUNT;
use crate::store::Tx;
use chancery_types::{Alias, KeyPackageRef};
use openmls::ciphersuite::hash_ref::KeyPackageRef as MlsKeyPackageRef;
use openmls::framing::{MlsMessageBodyIn, MlsMessageIn, MlsMessageOut};
use openmls::key_packages::KeyPackage;
use openmls::messages::Welcome;
use openmls::prelude::tls_codec::DeserializeBytes as _;
use openmls::versions::ProtocolVersion;
use openmls_traits::OpenMlsProvider as _;
use openmls_traits::storage::StorageProvider as _;
use rusqlite::params;
use std::time::Duration;

/// Largest KeyPackage taken from a node, in bytes.
const LIMIT: usize = 16 * 1024;
/// How long private parts outlive their KeyPackage: a Welcome may still be on its way.
const GRACE: Duration = Duration::from_hours(90 * 24);

/// KeyPackages of this device, as MLSMessages.
#[derive(Default)]
pub(crate) struct Made {
    /// To be handed out once each.
    pub(crate) one_time: Vec<Vec<u8>>,
    /// To be handed out when those are used up; one for each suite.
    pub(crate) last_resort: Vec<Vec<u8>>,
    /// [`STORE_COUNT`], these counted in.
    pub(crate) store_count: u64,
}

/// Makes `one_time` KeyPackages of each suite and, if wanted, one of last
/// resort of each; drops those whose time is over.
///
/// # Errors
/// The store's; [`EndpointError::NotPossible`] before the endpoint has its credentials.
pub(crate) fn make(
    tx: &mut Tx<'_>,
    one_time: &[(Suite, usize)],
    last_resort: bool,
) -> Result<Made, EndpointError> {
    prune(tx)?;
    let mut made = Made { store_count: inbox::count_up(tx, STORE_COUNT)?, ..Made::default() };
    for (suite, count) in one_time {
        for _ in 0..*count {
            made.one_time.push(make_one(tx, *suite, false)?);
        }
    }
    if last_resort {
        for suite in Suite::ALL {
            made.last_resort.push(make_one(tx, suite, true)?);
        }
    }
    Ok(made)
}

fn make_one(tx: &mut Tx<'_>, suite: Suite, last_resort: bool) -> Result<Vec<u8>, EndpointError> {
    let leaf = identity::leaf(tx, suite)?;
    let provider = tx.provider();
    let mut builder = KeyPackage::builder()
        .key_package_lifetime(suite::lifetime(tx.now()))
        .leaf_node_capabilities(suite::capabilities());
    if last_resort {
        builder = builder.mark_as_last_resort();
    }
    let bundle = builder
        .build(suite.ciphersuite(), &provider, &leaf, leaf.credential_with_key())
        .map_err(EndpointError::mls("make a KeyPackage"))?;
    let reference =
        bundle.key_package().hash_ref(provider.crypto()).map_err(EndpointError::mls("name a KeyPackage"))?;
    tx.sql()
        .prepare_cached(
            "INSERT INTO key_packages (reference, suite, last_resort, made_at_ms) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![
            serde_json::to_vec(&reference).map_err(EndpointError::mls("name a KeyPackage"))?,
            suite.code(),
            last_resort,
            tx.now().millis()
        ])?;
    MlsMessageOut::from(bundle.into_key_package())
        .to_bytes()
        .map_err(EndpointError::mls("serialise a KeyPackage"))
}

/// Whether a Welcome is for a KeyPackage of last resort of this device.
pub(crate) fn is_last_resort(tx: &Tx<'_>, welcome: &Welcome) -> Result<bool, EndpointError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM key_packages WHERE reference = ?1 AND last_resort = 1)";
    let mut statement = tx.sql().prepare_cached(sql)?;
    for secrets in welcome.secrets() {
        let reference =
            serde_json::to_vec(&secrets.new_member()).map_err(EndpointError::mls("name a KeyPackage"))?;
        if statement.query_row([reference], |row| row.get(0))? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn prune(tx: &mut Tx<'_>) -> Result<(), EndpointError> {
    let before = tx.now().before(KEY_PACKAGE_LIFETIME + GRACE).millis();
    let provider = tx.provider();
    let old: Vec<Vec<u8>> = tx
        .sql()
        .prepare_cached("DELETE FROM key_packages WHERE made_at_ms < ?1 RETURNING reference")?
        .query_map([before], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for reference in old {
        let reference: MlsKeyPackageRef = serde_json::from_slice(&reference)
            .map_err(EndpointError::mls("read the name of a KeyPackage"))?;
        provider.storage().delete_key_package(&reference)?;
    }
    Ok(())
}

/// A KeyPackage that leads back to the record of its alias.
#[derive(Clone)]
pub(crate) struct CheckedKeyPackage {
    pub(crate) key_package: KeyPackage,
    pub(crate) reference: KeyPackageRef,
    pub(crate) device: VerifiedDevice,
    pub(crate) suite: Suite,
}

/// Whose KeyPackage it should be.
#[derive(Clone, Copy)]
pub(crate) enum Owner<'a> {
    /// A recipient with a verified record.
    Peer(&'a Peer),
    /// Another device of this account.
    Own(&'a Identity),
}

impl Owner<'_> {
    fn alias(&self) -> Alias {
        match self {
            Self::Peer(peer) => peer.alias,
            Self::Own(identity) => identity.alias,
        }
    }
}

/// Checks a KeyPackage (an MLSMessage) that a node handed out for `owner`:
/// form, signatures, lifetime, suite, credential, credential's signer, alias
/// and leaf key.
///
/// # Errors
/// [`EndpointError::FalseKeyPackage`] or [`EndpointError::FalseCredential`];
/// for an agent that is not known to be listed
/// [`CredentialError::UnknownAgent`]: refresh the statements and try again.
pub(crate) fn check(
    tx: &Tx<'_>,
    owner: Owner<'_>,
    message: &[u8],
) -> Result<CheckedKeyPackage, EndpointError> {
    let (key_package, reference) = open(tx, message)?;
    let suite = Suite::of(key_package.ciphersuite())
        .ok_or(EndpointError::FalseKeyPackage("its cipher suite was not asked for"))?;
    let leaf = key_package.leaf_node();
    let device = peer::verify_device(tx, leaf.credential(), leaf.signature_key().as_slice(), |presented| {
        if presented.alias() != owner.alias() {
            return Err(CredentialError::WrongAlias.into());
        }
        match owner {
            Owner::Peer(peer) => peer::signer_of_peer(tx, peer, presented),
            Owner::Own(identity) => peer::signer_of_own(identity, presented),
        }
    })?;
    Ok(CheckedKeyPackage { reference, device, suite, key_package })
}

/// A KeyPackage that is well formed, signed by its leaf and in its lifetime, with its name; whose it
/// is and of which suite is for the caller.
///
/// # Errors
/// [`EndpointError::FalseKeyPackage`].
pub(crate) fn open(tx: &Tx<'_>, message: &[u8]) -> Result<(KeyPackage, KeyPackageRef), EndpointError> {
    if message.len() > LIMIT {
        return Err(EndpointError::FalseKeyPackage("it is larger than 16 KiB"));
    }
    let body = MlsMessageIn::tls_deserialize_exact_bytes(message).map(MlsMessageIn::extract);
    let Ok(MlsMessageBodyIn::KeyPackage(presented)) = body else {
        return Err(EndpointError::FalseKeyPackage("it is no KeyPackage"));
    };
    let provider = tx.provider();
    let key_package = presented
        .validate(provider.crypto(), ProtocolVersion::Mls10)
        .map_err(|_| EndpointError::FalseKeyPackage("it does not verify"))?;
    let lifetime = key_package.life_time();
    let now = u64::try_from(tx.now().seconds()).unwrap_or(0);
    if !lifetime.has_acceptable_range() || now < lifetime.not_before() || now >= lifetime.not_after() {
        return Err(EndpointError::FalseKeyPackage("its lifetime is wrong"));
    }
    let reference =
        key_package.hash_ref(provider.crypto()).map_err(EndpointError::mls("name a KeyPackage"))?;
    let reference =
        KeyPackageRef::try_from(reference.as_slice()).map_err(EndpointError::mls("name a KeyPackage"))?;
    Ok((key_package, reference))
}
