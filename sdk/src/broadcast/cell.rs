//! A cell as an MLS group: its agent, the leaf that made it, is the only one that commits and
//! speaks. What both ends keep of it beside MLS is in `audience` and `seat`.

use crate::credential::{AgentName, CredentialError};
use crate::error::EndpointError;
use crate::identity::{self, Leaf};
use crate::mls::key_package;
use crate::mls::suite::{self, Suite};
use crate::peer;
use crate::store::{StoreError, Tx};
use chancery_proto::content::v1::CellKey;
use chancery_proto::federation::v1::AdmittedSeat;
use chancery_types::{GroupId, KeyPackageRef, Reason, Refusal, SeatId};
use openmls::credentials::BasicCredential;
use openmls::framing::{MlsMessageBodyIn, MlsMessageIn, ProcessedMessageContent, Sender};
use openmls::group::{MlsGroup, StagedWelcome, WelcomeError};
use openmls::key_packages::KeyPackage;
use openmls::messages::proposals::Proposal;
use openmls::prelude::tls_codec::{DeserializeBytes as _, Serialize as _};
use openmls::prelude::{LeafNodeIndex, MlsMessageOut, RatchetTreeIn};
use openmls_traits::OpenMlsProvider as _;
use prost::Message as _;
use prost::bytes::Bytes;

/// The agent made the group, so it is the first leaf.
fn agent_leaf() -> LeafNodeIndex {
    LeafNodeIndex::new(0)
}

/// A KeyPackage for one seat, whose key signs nothing else; gives the MLSMessage.
///
/// # Errors
/// The store's, or MLS's.
pub(super) fn seat_key_package(tx: &Tx<'_>, suite: Suite, seat: SeatId) -> Result<Vec<u8>, EndpointError> {
    key_package(tx, suite, &Leaf::of_seat(identity::new_key(tx), seat.as_bytes().to_vec()))
}

pub(super) fn key_package(tx: &Tx<'_>, suite: Suite, leaf: &Leaf) -> Result<Vec<u8>, EndpointError> {
    let bundle = KeyPackage::builder()
        .key_package_lifetime(suite::lifetime(tx.now()))
        .leaf_node_capabilities(suite::capabilities())
        .build(suite.ciphersuite(), &tx.provider(), leaf, leaf.credential_with_key())
        .map_err(EndpointError::mls("make a seat's KeyPackage"))?;
    MlsMessageOut::from(bundle.into_key_package())
        .to_bytes()
        .map_err(EndpointError::mls("serialise a KeyPackage"))
}

/// A seat's KeyPackage that may come into a cell.
pub(super) struct Joiner {
    pub(super) seat: SeatId,
    key_package: KeyPackage,
    reference: KeyPackageRef,
}

/// Checks a seat's KeyPackage: form, signatures, suite, lifetime, and that it names the seat and
/// nobody else. One of last resort might be in several cells.
///
/// # Errors
/// [`EndpointError::FalseKeyPackage`].
pub(super) fn check(
    tx: &Tx<'_>,
    suite: Suite,
    seat: SeatId,
    message: &[u8],
) -> Result<Joiner, EndpointError> {
    let (key_package, reference) = key_package::open(tx, message)?;
    if Suite::of(key_package.ciphersuite()) != Some(suite) || key_package.last_resort() {
        return Err(EndpointError::FalseKeyPackage("it is of another suite, or of last resort"));
    }
    let credential = BasicCredential::try_from(key_package.leaf_node().credential().clone());
    if !credential.is_ok_and(|credential| credential.identity() == seat.as_bytes()) {
        return Err(EndpointError::FalseKeyPackage("it names another seat"));
    }
    Ok(Joiner { seat, key_package, reference })
}

/// A new epoch of a cell, as the home node gets it.
pub(super) struct NewEpoch {
    pub(super) epoch: u64,
    pub(super) commit: Vec<u8>,
    pub(super) welcome: Vec<u8>,
    pub(super) admitted: Vec<AdmittedSeat>,
    pub(super) tree: Vec<u8>,
    pub(super) key: Vec<u8>,
}

/// Makes a cell with nobody in it but this agent.
///
/// # Errors
/// The store's, or MLS's.
pub(super) fn create(tx: &mut Tx<'_>, suite: Suite) -> Result<(GroupId, MlsGroup), EndpointError> {
    let leaf = identity::leaf(tx, suite)?;
    let id = GroupId::random(tx.entropy());
    let group = suite::create_cell(suite, tx.now())
        .with_group_id(openmls::group::GroupId::from_slice(id.as_bytes()))
        // The id is new and random: no need to look for a group of that name.
        .replace_old_group()
        .build(&tx.provider(), &leaf, leaf.credential_with_key())
        .map_err(EndpointError::mls("make a cell"))?;
    Ok((id, group))
}

/// Brings seats in and takes others out in one commit, which nobody else can forestall: so it is
/// merged at once. Without removals it has no path, because inner nodes of a cell in which one
/// leaf commits stay blank. `key`: what the agent says first in the new epoch.
///
/// # Errors
/// The store's, or MLS's.
pub(super) fn commit(
    tx: &mut Tx<'_>,
    suite: Suite,
    group: &mut MlsGroup,
    joiners: Vec<Joiner>,
    leavers: &[SeatId],
    key: impl FnOnce(u64) -> CellKey,
) -> Result<NewEpoch, EndpointError> {
    let leaf = identity::leaf(tx, suite)?;
    let provider = tx.provider();
    let is_first = group.epoch().as_u64() == 0;
    let leaving: Vec<LeafNodeIndex> = group
        .members()
        .filter(|member| {
            let credential = BasicCredential::try_from(member.credential.clone());
            let seat = credential.ok().and_then(|credential| SeatId::try_from(credential.identity()).ok());
            member.index != agent_leaf() && seat.is_some_and(|seat| leavers.contains(&seat))
        })
        .map(|member| member.index)
        .collect();
    let admitted = joiners.iter().map(|joiner| AdmittedSeat {
        seat_id: joiner.seat.to_wire(),
        key_package_ref: joiner.reference.to_wire(),
    });
    let admitted: Vec<_> = admitted.collect();
    let rekeys_only = joiners.is_empty() && leaving.is_empty();
    let bundle = group
        .commit_builder()
        .consume_proposal_store(false)
        .propose_adds(joiners.into_iter().map(|joiner| joiner.key_package))
        .propose_removals(leaving)
        .force_self_update(rekeys_only)
        .load_psks(provider.storage())
        .map_err(EndpointError::mls("prepare a cell's commit"))?
        .build(provider.rand(), provider.crypto(), &leaf, |_| true)
        .map_err(EndpointError::mls("make a cell's commit"))?
        .stage_commit(&provider)
        .map_err(EndpointError::mls("stage a cell's commit"))?;
    group.merge_pending_commit(&provider).map_err(EndpointError::mls("merge a cell's commit"))?;
    let (commit, welcome, _) = bundle.into_messages();
    let bytes =
        |message: MlsMessageOut| message.to_bytes().map_err(EndpointError::mls("serialise a cell's message"));
    let tree = if admitted.is_empty() {
        Vec::new()
    } else {
        let tree = group.export_ratchet_tree().tls_serialize_detached();
        tree.map_err(EndpointError::mls("serialise a tree"))?
    };
    let epoch = group.epoch().as_u64();
    let key = group
        .create_message(&provider, &leaf, &key(epoch).encode_to_vec())
        .map_err(EndpointError::mls("encrypt a cell's key"))?;
    Ok(NewEpoch {
        epoch,
        // Nobody but its maker was in a new group: nobody needs its first commit.
        commit: if is_first { Vec::new() } else { bytes(commit)? },
        welcome: welcome.map(bytes).transpose()?.unwrap_or_default(),
        admitted,
        tree,
        key: bytes(key)?,
    })
}

/// Why a message of a cell is not taken.
#[derive(Debug)]
pub(super) enum CellError {
    /// The store's or MLS's, or who the agent is is not known.
    Own(EndpointError),
    /// It is not the agent's, or not what the agent may say.
    Forbidden(&'static str),
}

impl From<StoreError> for CellError {
    fn from(error: StoreError) -> Self {
        Self::Own(error.into())
    }
}

impl From<EndpointError> for CellError {
    fn from(error: EndpointError) -> Self {
        Self::Own(error)
    }
}

/// Joins a cell: only when its first leaf is `agent`'s.
///
/// # Errors
/// [`CellError`]. `None`: the Welcome is for a KeyPackage that is not here any more.
pub(super) fn join(
    tx: &Tx<'_>,
    agent: &AgentName,
    welcome: &[u8],
    tree: &[u8],
) -> Result<Option<(GroupId, MlsGroup)>, CellError> {
    let body = MlsMessageIn::tls_deserialize_exact_bytes(welcome).map(MlsMessageIn::extract);
    let Ok(MlsMessageBodyIn::Welcome(welcome)) = body else {
        return Err(CellError::Forbidden("a Welcome does not parse"));
    };
    let tree = RatchetTreeIn::tls_deserialize_exact_bytes(tree)
        .map_err(|_| CellError::Forbidden("a tree does not parse"))?;
    let provider = tx.provider();
    let staged = match StagedWelcome::build_from_welcome(&provider, &suite::cell_join_config(), welcome) {
        Err(WelcomeError::NoMatchingKeyPackage) => return Ok(None),
        Err(_) => return Err(CellError::Forbidden("a Welcome does not open")),
        // Silent residents never renew their leaves: lifetimes are checked when a seat is added.
        Ok(builder) => builder.with_ratchet_tree(tree).skip_lifetime_validation().replace_old_group().build(),
    };
    let staged = staged.map_err(|_| CellError::Forbidden("a Welcome does not lead into a cell"))?;
    let id = GroupId::try_from(staged.group_context().group_id().as_slice())
        .map_err(|_| CellError::Forbidden("a cell's id has not 32 bytes"))?;
    let first = staged.members().find(|member| member.index == agent_leaf());
    let first = first.ok_or(CellError::Forbidden("a cell has no agent"))?;
    let verified = peer::verify_device(tx, &first.credential, &first.signature_key, |presented| {
        match presented.agent() {
            Some(claimed) if claimed == agent => peer::agent_key(tx, agent),
            _ => Err(Refusal::new(Reason::InvalidMessage, "a cell's first leaf is not the agent's").into()),
        }
    });
    match verified {
        Ok(_) => {}
        Err(error @ EndpointError::FalseCredential(CredentialError::UnknownAgent)) => {
            return Err(error.into());
        }
        Err(EndpointError::Refused(_) | EndpointError::FalseCredential(_)) => {
            return Err(CellError::Forbidden("a cell is not its agent's"));
        }
        Err(error) => return Err(error.into()),
    }
    let group = staged.into_group(&provider).map_err(EndpointError::mls("join a cell"))?;
    Ok(Some((id, group)))
}

/// Goes along with the agent's commit; whether this seat is still in the cell.
///
/// # Errors
/// [`CellError`].
pub(super) fn step(tx: &Tx<'_>, group: &mut MlsGroup, commit: &[u8]) -> Result<bool, CellError> {
    let (sender, content) = process(tx, group, commit)?;
    let ProcessedMessageContent::StagedCommitMessage(staged) = content else {
        return Err(CellError::Forbidden("a commit is none"));
    };
    let agent = group.member_at(agent_leaf()).ok_or(CellError::Forbidden("a cell has no agent"))?;
    let permitted = staged.queued_proposals().all(|queued| {
        *queued.sender() == sender
            && match queued.proposal() {
                Proposal::Add(_) => true,
                Proposal::Remove(remove) => remove.removed() != agent_leaf(),
                _ => false,
            }
    });
    let same_agent = staged.update_path_leaf_node().is_none_or(|leaf| {
        leaf.signature_key().as_slice() == agent.signature_key.as_slice()
            && *leaf.credential() == agent.credential
    });
    if !permitted || !same_agent {
        return Err(CellError::Forbidden("a commit does what cells do not allow"));
    }
    let removed = staged.self_removed();
    group
        .merge_staged_commit(&tx.provider(), *staged)
        .map_err(EndpointError::mls("merge a cell's commit"))?;
    Ok(!removed)
}

/// What the agent says first in an epoch.
///
/// # Errors
/// [`CellError`].
pub(super) fn read_key(tx: &Tx<'_>, group: &mut MlsGroup, message: &[u8]) -> Result<CellKey, CellError> {
    let (_, content) = process(tx, group, message)?;
    let ProcessedMessageContent::ApplicationMessage(content) = content else {
        return Err(CellError::Forbidden("a cell's key is none"));
    };
    CellKey::decode(Bytes::from(content.into_bytes()))
        .map_err(|_| CellError::Forbidden("a cell's key does not parse"))
}

/// Decrypts a message, if it is the agent's.
fn process(
    tx: &Tx<'_>,
    group: &mut MlsGroup,
    message: &[u8],
) -> Result<(Sender, ProcessedMessageContent), CellError> {
    let body = MlsMessageIn::tls_deserialize_exact_bytes(message).map(MlsMessageIn::extract);
    let Ok(MlsMessageBodyIn::PrivateMessage(message)) = body else {
        return Err(CellError::Forbidden("a message is no PrivateMessage"));
    };
    let processed = group
        .process_message(&tx.provider(), message)
        .map_err(|_| CellError::Forbidden("a message of a cell does not decrypt"))?;
    let sender = processed.sender().clone();
    if sender != Sender::Member(agent_leaf()) {
        return Err(CellError::Forbidden("a message of a cell is not its agent's"));
    }
    Ok((sender, processed.into_content()))
}

/// Forgets a cell: what comes in it is for others.
///
/// # Errors
/// The store's.
pub(super) fn forget(tx: &Tx<'_>, id: &GroupId) -> Result<(), EndpointError> {
    let storage = tx.provider();
    let id = openmls::group::GroupId::from_slice(id.as_bytes());
    if let Some(mut group) = MlsGroup::load(storage.storage(), &id).map_err(StoreError::from)? {
        group.delete(storage.storage()).map_err(StoreError::from)?;
    }
    Ok(())
}
