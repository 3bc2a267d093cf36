//! Who the others are: verified records and the agents listed in the log, and
//! which key must have signed a device's credential. What stands here was
//! verified up to the log before it was written.

use crate::credential::{AgentName, CredentialError, PresentedDevice, VerifiedDevice};
use crate::error::EndpointError;
use crate::identity::Identity;
use crate::store::{StoreError, Tx};
use crate::thread::Thread;
use chancery_types::{Alias, NodeId};
use openmls::credentials::{BasicCredential, Credential};
use rusqlite::{OptionalExtension as _, params};

/// What a verified record says about a recipient.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    /// Mailbox address.
    pub alias: Alias,
    /// Home node.
    pub node: NodeId,
    /// Ed25519 key that signs the account's device credentials.
    pub credential_key: [u8; 32],
}

/// Keeps what a verified record says.
///
/// # Errors
/// The store's.
pub fn put(tx: &Tx<'_>, peer: &Peer) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached(
            "INSERT INTO peers (alias, node, credential_key) VALUES (?1, ?2, ?3) ON CONFLICT (alias) \
             DO UPDATE SET node = excluded.node, credential_key = excluded.credential_key",
        )?
        .execute(params![peer.alias.as_bytes(), peer.node.as_str(), peer.credential_key])?;
    Ok(())
}

/// What is known about an alias.
///
/// # Errors
/// The store's.
pub fn find(tx: &Tx<'_>, alias: Alias) -> Result<Option<Peer>, EndpointError> {
    let row: Option<(String, [u8; 32])> = tx
        .sql()
        .prepare_cached("SELECT node, credential_key FROM peers WHERE alias = ?1")?
        .query_row([alias.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    row.map(|(node, credential_key)| {
        let node = node.parse().map_err(|_| StoreError::Row { table: "peers", column: "node" })?;
        Ok(Peer { alias, node, credential_key })
    })
    .transpose()
}

/// Replaces the list of agents by a newly verified one: SPIFFE id and key.
///
/// # Errors
/// The store's.
pub fn replace_agents(tx: &Tx<'_>, agents: &[(AgentName, [u8; 32])]) -> Result<(), EndpointError> {
    tx.sql().execute("DELETE FROM agents", [])?;
    let mut insert =
        tx.sql().prepare_cached("INSERT OR REPLACE INTO agents (agent, mls_key) VALUES (?1, ?2)")?;
    for (agent, key) in agents {
        insert.execute(params![agent.spiffe_id(), key])?;
    }
    Ok(())
}

/// The other side of a thread: from its record, or an agent from its devices in the group.
pub(crate) fn of_thread(tx: &mut Tx<'_>, thread: &Thread) -> Result<Option<Peer>, EndpointError> {
    if let Some(peer) = find(tx, thread.peer)? {
        return Ok(Some(peer));
    }
    let group = match tx.take_group(&thread.id) {
        Err(EndpointError::ThreadUnknown) => return Ok(None),
        group => group?,
    };
    let mut found = None;
    for member in group.members() {
        let Ok(credential) = BasicCredential::try_from(member.credential) else { continue };
        let Ok(presented) = PresentedDevice::parse(credential.identity()) else { continue };
        if presented.alias() == thread.peer
            && let Some(agent) = presented.agent()
        {
            let credential_key = agent_key(tx, agent)?;
            found = Some(Peer { alias: thread.peer, node: agent.administration.clone(), credential_key });
        }
    }
    tx.keep_group(thread.id, group);
    Ok(found)
}

pub(crate) fn agent_key(tx: &Tx<'_>, agent: &AgentName) -> Result<[u8; 32], EndpointError> {
    tx.sql()
        .prepare_cached("SELECT mls_key FROM agents WHERE agent = ?1")?
        .query_row([agent.spiffe_id()], |row| row.get(0))
        .optional()?
        .ok_or_else(|| CredentialError::UnknownAgent.into())
}

/// The key that must have signed a device of a recipient with a known record.
pub(crate) fn signer_of_peer(
    tx: &Tx<'_>,
    peer: &Peer,
    presented: &PresentedDevice,
) -> Result<[u8; 32], EndpointError> {
    match presented.agent() {
        None => Ok(peer.credential_key),
        Some(agent) if agent.administration != peer.node => Err(CredentialError::WrongAdministration.into()),
        Some(agent) => agent_key(tx, agent),
    }
}

/// The key that must have signed another device of this account.
pub(crate) fn signer_of_own(
    identity: &Identity,
    presented: &PresentedDevice,
) -> Result<[u8; 32], EndpointError> {
    let claimed = presented.agent().map(AgentName::spiffe_id);
    if claimed != identity.agent {
        return Err(CredentialError::WrongSignature.into());
    }
    Ok(identity.credential_key)
}

/// The key that must have signed a device that comes up in a group: this
/// account's own, a listed agent's, or that of a person whose record is known.
pub(crate) fn signer_of_member(
    tx: &Tx<'_>,
    identity: &Identity,
    presented: &PresentedDevice,
) -> Result<[u8; 32], EndpointError> {
    if presented.alias() == identity.alias {
        return signer_of_own(identity, presented);
    }
    match (find(tx, presented.alias())?, presented.agent()) {
        (Some(peer), _) => signer_of_peer(tx, &peer, presented),
        (None, Some(agent)) if agent.federation == identity.federation => agent_key(tx, agent),
        (None, Some(_)) => Err(CredentialError::UnknownAgent.into()),
        (None, None) => Err(CredentialError::UnknownPerson.into()),
    }
}

/// Parses the credential of a leaf and checks it under the key that `signer` names.
pub(crate) fn verify_device(
    tx: &Tx<'_>,
    credential: &Credential,
    leaf_key: &[u8],
    signer: impl FnOnce(&PresentedDevice) -> Result<[u8; 32], EndpointError>,
) -> Result<VerifiedDevice, EndpointError> {
    let basic = BasicCredential::try_from(credential.clone()).map_err(|_| CredentialError::Malformed)?;
    let presented = PresentedDevice::parse(basic.identity())?;
    let signer = signer(&presented)?;
    Ok(presented.verify(&signer, leaf_key, tx.now())?)
}
