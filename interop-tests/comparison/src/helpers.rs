//! Helper leaves in a cell: members that update themselves once, so that inner nodes are filled and a
//! removal's path has fewer recipients, until churn has blanked them again.

use crate::{Failure, Member, SUITE};
use openmls::prelude::tls_codec::Serialize as _;
use openmls::prelude::*;
use serde_json::json;

/// Members of the cell.
const CELL: u32 = 256;
/// Removals, one after the other.
const REMOVALS: u32 = 60;
/// So many of the first and of the last are averaged.
const SOME: usize = 10;

/// What removals cost with some numbers of helpers.
pub fn measure() -> Result<Vec<serde_json::Value>, Failure> {
    [0, 4, 16].into_iter().map(with).collect()
}

fn with(helpers: u32) -> Result<serde_json::Value, Failure> {
    let agent = Member::new(0)?;
    let config = MlsGroupCreateConfig::builder()
        .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .ciphersuite(SUITE)
        .build();
    let mut group = MlsGroup::new(&agent.provider, &agent.signer, &config, agent.own.clone())?;
    // Helpers lie evenly among the others.
    let step = CELL.checked_div(helpers).unwrap_or(CELL);
    let is_helper = |number: u32| helpers > 0 && number % step == step / 2;
    let (mut packages, mut waiting) = (Vec::new(), Vec::new());
    for number in 1..CELL {
        let member = Member::new(number as usize)?;
        let made =
            KeyPackage::builder().build(SUITE, &member.provider, &member.signer, member.own.clone())?;
        packages.push(made.key_package().clone());
        if is_helper(number) {
            waiting.push(member);
        }
    }
    let (_, welcome, _) = group.add_members_without_update(&agent.provider, &agent.signer, &packages)?;
    group.merge_pending_commit(&agent.provider)?;
    let welcome = MlsMessageIn::tls_deserialize_exact_bytes(&welcome.to_bytes()?)?;
    let MlsMessageBodyIn::Welcome(welcome) = welcome.extract() else { return Err("no Welcome".into()) };
    let join = MlsGroupJoinConfig::builder().wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY).build();
    let mut helping = Vec::new();
    for member in waiting {
        let tree = Some(group.export_ratchet_tree().into());
        let staged = StagedWelcome::new_from_welcome(&member.provider, &join, welcome.clone(), tree)?;
        helping.push((staged.into_group(&member.provider)?, member));
    }
    for number in 0..helping.len() {
        let (own, member) = &mut helping[number];
        let updated = own.self_update(&member.provider, &member.signer, LeafNodeParameters::default())?;
        own.merge_pending_commit(&member.provider)?;
        let commit = updated.into_commit().to_bytes()?;
        take(&mut group, &agent, &commit)?;
        for (other, (theirs, member)) in helping.iter_mut().enumerate() {
            if other != number {
                take(theirs, member, &commit)?;
            }
        }
    }
    let mut sizes = Vec::new();
    // Any order will do that jumps about: 101 has no factor in common with 256.
    let leaving = (1..CELL).map(|number| number * 101 % CELL).filter(|leaf| *leaf > 0 && !is_helper(*leaf));
    for leaf in leaving.take(REMOVALS as usize) {
        let (commit, ..) =
            group.remove_members(&agent.provider, &agent.signer, &[LeafNodeIndex::new(leaf)])?;
        sizes.push(commit.tls_serialize_detached()?.len());
        group.merge_pending_commit(&agent.provider)?;
    }
    let mean = |sizes: &[usize]| sizes.iter().sum::<usize>() as f64 / sizes.len().max(1) as f64;
    Ok(json!({
        "helpers": helpers,
        "members": CELL,
        "removal_bytes_first": mean(&sizes[..SOME]),
        "removal_bytes_last": mean(&sizes[sizes.len() - SOME..]),
        "removals": sizes.len(),
    }))
}

fn take(group: &mut MlsGroup, member: &Member, commit: &[u8]) -> Result<(), Failure> {
    let message = MlsMessageIn::tls_deserialize_exact_bytes(commit)?;
    let message = message.try_into_protocol_message().map_err(|_| "no message of a group")?;
    match group.process_message(&member.provider, message)?.into_content() {
        ProcessedMessageContent::StagedCommitMessage(staged) => {
            Ok(group.merge_staged_commit(&member.provider, *staged)?)
        }
        _ => Err("no commit".into()),
    }
}
