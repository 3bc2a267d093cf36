//! Opening a thread: a new group with all devices of both accounts, in one
//! commit of epoch 0, which is merged at once because nobody else is in the group.

use super::{Thread, add_member, insert};
use crate::error::EndpointError;
use crate::identity::{self, Identity};
use crate::mls::key_package::{CheckedKeyPackage, Owner, check};
use crate::mls::suite::{self, Suite};
use crate::outbox;
use crate::peer::{self, Peer};
use crate::store::Tx;
use chancery_proto::federation::v1::{Commit, Join};
use chancery_types::{Alias, GroupId, NodeId};
use openmls::group::{CommitMessageBundle, MlsGroup};
use openmls_traits::OpenMlsProvider as _;
use prost::bytes::Bytes;
use std::collections::BTreeSet;

/// Most devices of one account.
const DEVICES: usize = 16;

/// Opens a thread with `peer`: `key_packages` are those of all its devices,
/// `own_key_packages` those of this account's other devices (the calling
/// device's own among them is left out), all MLSMessages as a node handed them
/// out. The commit goes to the outbox.
///
/// # Errors
/// [`EndpointError::NoKeyPackage`] when there are none or their suites differ;
/// [`EndpointError::FalseKeyPackage`] or [`EndpointError::FalseCredential`]
/// when one does not lead back to the record.
pub fn open(
    tx: &mut Tx<'_>,
    peer: &Peer,
    key_packages: &[Bytes],
    own_key_packages: &[Bytes],
) -> Result<Thread, EndpointError> {
    let identity = identity::identity(tx)?;
    if peer.alias == identity.alias {
        return Err(EndpointError::Invalid("the recipient is this endpoint itself"));
    }
    let theirs = check_all(tx, Owner::Peer(peer), key_packages)?;
    let mut ours = check_all(tx, Owner::Own(&identity), own_key_packages)?;
    ours.retain(|key_package| key_package.device.device() != identity.device);
    let suite = theirs.first().ok_or(EndpointError::NoKeyPackage)?.suite;
    if theirs.iter().chain(&ours).any(|key_package| key_package.suite != suite) {
        return Err(EndpointError::NoKeyPackage);
    }

    let leaf = identity::leaf(tx, suite)?;
    let id = GroupId::random(tx.entropy());
    let provider = tx.provider();
    // The id is new and random: no need to look for a group of that name.
    let mut group = suite::create(suite, tx.now())
        .with_group_id(openmls::group::GroupId::from_slice(id.as_bytes()))
        .replace_old_group()
        .build(&provider, &leaf, leaf.credential_with_key())
        .map_err(EndpointError::mls("open a group"))?;
    let added: Vec<_> = theirs.iter().chain(&ours).cloned().collect();
    let bundle = add(tx, &mut group, suite, &added)?;
    group.merge_pending_commit(&provider).map_err(EndpointError::mls("merge the first commit"))?;

    let thread = insert(tx, id, peer.alias, suite, group.epoch().as_u64())?;
    tx.keep_group(id, group);
    let own = peer::verify_device(
        tx,
        &leaf.credential_with_key().credential,
        leaf.credential_with_key().signature_key.as_slice(),
        |presented| peer::signer_of_own(&identity, presented),
    )?;
    add_member(tx, &id, &own)?;
    for key_package in &added {
        add_member(tx, &id, &key_package.device)?;
    }
    let mut joins = vec![join(peer.alias, &peer.node, &theirs)];
    if !ours.is_empty() {
        joins.push(join(identity.alias, &identity.node, &ours));
    }
    let commit = commit_of(bundle, joins)?;
    outbox::submit_first_commit(tx, &identity, &id, commit)?;
    Ok(thread)
}

/// Checks the KeyPackages of one account's devices: none may come twice.
fn check_all(
    tx: &Tx<'_>,
    owner: Owner<'_>,
    key_packages: &[Bytes],
) -> Result<Vec<CheckedKeyPackage>, EndpointError> {
    if key_packages.len() > DEVICES {
        return Err(EndpointError::FalseKeyPackage("there are more devices than an account can have"));
    }
    let mut devices = BTreeSet::new();
    let mut checked = Vec::with_capacity(key_packages.len());
    for message in key_packages {
        let key_package = check(tx, owner, message)?;
        if !devices.insert(key_package.device.device()) {
            return Err(EndpointError::FalseKeyPackage("a device comes twice"));
        }
        checked.push(key_package);
    }
    Ok(checked)
}

/// Stages a commit that adds devices, without a path: inner nodes of such
/// small groups are worth nothing.
pub(super) fn add(
    tx: &Tx<'_>,
    group: &mut MlsGroup,
    suite: Suite,
    added: &[CheckedKeyPackage],
) -> Result<CommitMessageBundle, EndpointError> {
    let leaf = identity::leaf(tx, suite)?;
    let provider = tx.provider();
    group
        .commit_builder()
        // Others' proposals wait outside of the group, if anywhere.
        .consume_proposal_store(false)
        .propose_adds(added.iter().map(|key_package| key_package.key_package.clone()))
        .load_psks(provider.storage())
        .map_err(EndpointError::mls("prepare a commit"))?
        .build(provider.rand(), provider.crypto(), &leaf, |_| true)
        .map_err(EndpointError::mls("make a commit"))?
        .stage_commit(&provider)
        .map_err(EndpointError::mls("stage a commit"))
}

pub(super) fn join(alias: Alias, node: &NodeId, key_packages: &[CheckedKeyPackage]) -> Join {
    Join {
        alias: alias.to_wire(),
        node: node.as_str().to_owned(),
        key_package_refs: key_packages.iter().map(|key_package| key_package.reference.to_wire()).collect(),
    }
}

pub(super) fn commit_of(bundle: CommitMessageBundle, joins: Vec<Join>) -> Result<Commit, EndpointError> {
    let (commit, welcome, _) = bundle.into_messages();
    Ok(Commit {
        mls_commit: commit.to_bytes().map_err(EndpointError::mls("serialise a commit"))?.into(),
        welcome: welcome
            .map(|welcome| welcome.to_bytes())
            .transpose()
            .map_err(EndpointError::mls("serialise a Welcome"))?
            .unwrap_or_default()
            .into(),
        joins,
        leaves: Vec::new(),
    })
}

/// The commit of this account's further device: see [`super::admit`].
pub(super) fn check_own(
    tx: &Tx<'_>,
    identity: &Identity,
    key_packages: &[Bytes],
) -> Result<Vec<CheckedKeyPackage>, EndpointError> {
    check_all(tx, Owner::Own(identity), key_packages)
}
