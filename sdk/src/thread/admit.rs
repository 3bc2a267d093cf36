//! Bringing another device of this account into a thread that exists.

use super::open::{add, check_own, commit_of, join};
use super::{Thread, insert_member, members};
use crate::credential::{CredentialError, PresentedDevice};
use crate::error::EndpointError;
use crate::identity;
use crate::outbox;
use crate::store::Tx;
use chancery_proto::federation::v1::AliasKeyPackages;
use chancery_proto::federation::v1::Commit;
use chancery_sdk_core::Stand;
use chancery_types::{GroupId, MessageId};
use openmls::credentials::BasicCredential;
use openmls_traits::OpenMlsProvider as _;
use prost::Message as _;
use prost::bytes::Bytes;

/// Queues a commit that brings devices of this account into `thread`; their
/// KeyPackages (MLSMessages of the thread's suite, one for each device) are
/// checked now and again when the commit is made. `None`: they are in it already.
///
/// # Errors
/// [`EndpointError::ThreadUnknown`], or what is wrong with a KeyPackage.
pub(crate) fn admit(
    tx: &mut Tx<'_>,
    id: &GroupId,
    key_packages: Vec<Bytes>,
) -> Result<Option<MessageId>, EndpointError> {
    let thread = super::find(tx, id)?
        .filter(|thread| thread.stand == Stand::Open)
        .ok_or(EndpointError::ThreadUnknown)?;
    let identity = identity::identity(tx)?;
    let present = members(tx, id)?;
    let mut checked = check_own(tx, &identity, &key_packages)?;
    checked.retain(|new| !present.iter().any(|member| member.device == new.device.device()));
    if checked.is_empty() {
        return Ok(None);
    }
    if checked.iter().any(|key_package| key_package.suite != thread.suite) {
        return Err(EndpointError::NoKeyPackage);
    }
    let plan = AliasKeyPackages { alias: identity.alias.to_wire(), key_packages, reason: String::new() };
    outbox::enqueue_commit(tx, id, &plan.encode_to_vec()).map(Some)
}

/// The plan of a commit that renews this device's leaf and brings nobody in.
pub(crate) const SELF_UPDATE: &[u8] = &[];

/// Makes the commit; `None`: the devices are in the thread already.
pub(crate) fn stage(tx: &mut Tx<'_>, thread: &Thread, plan: &[u8]) -> Result<Option<Commit>, EndpointError> {
    if plan == SELF_UPDATE {
        return self_update(tx, thread).map(Some);
    }
    let plan = AliasKeyPackages::decode(plan).map_err(EndpointError::mls("read a planned commit"))?;
    let identity = identity::identity(tx)?;
    let present = members(tx, &thread.id)?;
    let mut checked = check_own(tx, &identity, &plan.key_packages)?;
    checked.retain(|new| !present.iter().any(|member| member.device == new.device.device()));
    if checked.is_empty() {
        return Ok(None);
    }
    let mut group = tx.take_group(&thread.id)?;
    let bundle = add(tx, &mut group, thread.suite, &checked)?;
    tx.keep_group(thread.id, group);
    Ok(Some(commit_of(bundle, vec![join(identity.alias, &identity.node, &checked)])?))
}

fn self_update(tx: &mut Tx<'_>, thread: &Thread) -> Result<Commit, EndpointError> {
    let leaf = identity::leaf(tx, thread.suite)?;
    let mut group = tx.take_group(&thread.id)?;
    let provider = tx.provider();
    let bundle = group
        .commit_builder()
        .consume_proposal_store(false)
        .force_self_update(true)
        .load_psks(provider.storage())
        .map_err(EndpointError::mls("prepare a commit"))?
        .build(provider.rand(), provider.crypto(), &leaf, |_| true)
        .map_err(EndpointError::mls("make a commit"))?
        .stage_commit(&provider)
        .map_err(EndpointError::mls("stage a commit"))?;
    tx.keep_group(thread.id, group);
    commit_of(bundle, Vec::new())
}

/// The hub accepted the commit: the group moves on.
pub(crate) fn merge(tx: &mut Tx<'_>, thread: &mut Thread) -> Result<(), EndpointError> {
    let mut group = tx.take_group(&thread.id)?;
    group.merge_pending_commit(&tx.provider()).map_err(EndpointError::mls("merge a commit"))?;
    thread.epoch = group.epoch().as_u64();
    thread.pending_commit = None;
    super::set_epoch(tx, &thread.id, thread.epoch, None)?;
    // They were checked when the commit was made; by now they may have expired.
    let known = members(tx, &thread.id)?;
    for new in group.members().filter(|new| !known.iter().any(|old| old.leaf_key == *new.signature_key)) {
        let credential = BasicCredential::try_from(new.credential).map_err(|_| CredentialError::Malformed)?;
        let device = PresentedDevice::parse(credential.identity())?;
        insert_member(tx, &thread.id, device.alias(), device.device(), &new.signature_key)?;
    }
    tx.keep_group(thread.id, group);
    Ok(())
}

/// The commit lost: the group stays where it is.
pub(crate) fn abandon(tx: &mut Tx<'_>, thread: &mut Thread) -> Result<(), EndpointError> {
    let mut group = tx.take_group(&thread.id)?;
    group.clear_pending_commit(tx.provider().storage())?;
    thread.pending_commit = None;
    super::set_epoch(tx, &thread.id, thread.epoch, None)?;
    tx.keep_group(thread.id, group);
    Ok(())
}
