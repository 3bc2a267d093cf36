//! Another member's commit: what it may do in a thread, and merging it.

use super::{Thread, add_member, member_by_key, remove_member, set_epoch, set_stand};
use crate::credential::VerifiedDevice;
use crate::error::EndpointError;
use crate::identity;
use crate::peer;
use crate::store::Tx;
use chancery_sdk_core::Stand;
use chancery_types::{Alias, DeviceId, Reason, Refusal};
use openmls::framing::Sender;
use openmls::group::{MlsGroup, StagedCommit};
use openmls::messages::proposals::Proposal;
use openmls::prelude::LeafNode;

fn forbidden(what: &'static str) -> EndpointError {
    Refusal::new(Reason::InvalidMessage, what).into()
}

/// What a permitted commit does to the devices of a thread.
struct Changes {
    added: Vec<VerifiedDevice>,
    removed: Vec<DeviceId>,
}

/// Checks a staged commit by `sender` and merges it: devices of the two
/// accounts may be added, a side may remove its own, leaves may be renewed;
/// nothing else.
pub(crate) fn merge(
    tx: &mut Tx<'_>,
    thread: &mut Thread,
    mut group: MlsGroup,
    sender: &Sender,
    staged: StagedCommit,
) -> Result<(), EndpointError> {
    let changes = permit(tx, thread, &group, sender, &staged)?;
    let removed_me = staged.self_removed();
    group.merge_staged_commit(&tx.provider(), staged).map_err(EndpointError::mls("merge a commit"))?;
    thread.epoch = group.epoch().as_u64();
    // A commit of ours for the same epoch has lost; its outcome will say so.
    thread.pending_commit = None;
    set_epoch(tx, &thread.id, thread.epoch, None)?;
    for device in changes.removed {
        remove_member(tx, &thread.id, device)?;
    }
    for device in &changes.added {
        add_member(tx, &thread.id, device)?;
    }
    if removed_me {
        thread.stand = Stand::Closed;
        set_stand(tx, &thread.id, Stand::Closed)?;
    } else {
        tx.keep_group(thread.id, group);
    }
    Ok(())
}

fn permit(
    tx: &Tx<'_>,
    thread: &Thread,
    group: &MlsGroup,
    sender: &Sender,
    staged: &StagedCommit,
) -> Result<Changes, EndpointError> {
    let Sender::Member(index) = sender else {
        return Err(forbidden("a commit comes from outside of the thread"));
    };
    let key = group.member_at(*index).map(|member| member.signature_key);
    let committer = key
        .map(|key| member_by_key(tx, &thread.id, &key))
        .transpose()?
        .flatten()
        .ok_or_else(|| forbidden("a commit comes from no device of the thread"))?;
    let mut changes = Changes { added: Vec::new(), removed: Vec::new() };
    for queued in staged.queued_proposals() {
        match queued.proposal() {
            Proposal::Add(add) => {
                changes.added.push(verify_leaf(tx, thread, add.key_package().leaf_node())?);
            }
            Proposal::Remove(remove) => {
                let removed = group
                    .member_at(remove.removed())
                    .map(|member| member_by_key(tx, &thread.id, &member.signature_key))
                    .transpose()?
                    .flatten()
                    .filter(|removed| removed.alias == committer.alias)
                    .ok_or_else(|| forbidden("a commit removes a device of the other side"))?;
                changes.removed.push(removed.device);
            }
            _ => return Err(forbidden("a commit does what threads do not allow")),
        }
    }
    if let Some(leaf) = staged.update_path_leaf_node() {
        let renewed = verify_leaf(tx, thread, leaf)?;
        if renewed.alias() != committer.alias || renewed.device() != committer.device {
            return Err(forbidden("a commit makes its sender another device"));
        }
        changes.added.push(renewed);
    }
    Ok(changes)
}

fn verify_leaf(tx: &Tx<'_>, thread: &Thread, leaf: &LeafNode) -> Result<VerifiedDevice, EndpointError> {
    let identity = identity::identity(tx)?;
    let device = peer::verify_device(tx, leaf.credential(), leaf.signature_key().as_slice(), |presented| {
        peer::signer_of_member(tx, &identity, presented)
    })?;
    let sides: [Alias; 2] = [identity.alias, thread.peer];
    if !sides.contains(&device.alias()) {
        return Err(forbidden("a commit brings in a device of neither side"));
    }
    Ok(device)
}
