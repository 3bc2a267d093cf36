//! How the hub of a group orders its messages: the first commit of an epoch
//! wins, anything of another epoch is refused, what is accepted gets a gapless
//! sequence and the next value of a hash chain.

use crate::framing::{self, ContentType};
use crate::parcel::{Body, Commit, MAX_ALIASES, MAX_FAN_OUT, Submission, limit};
use crate::welcome::Welcome;
use bytes::Bytes;
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, Chain, NodeId, Reason, Refusal, Timestamp};
use std::collections::BTreeMap;

/// A group as its hub knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Current epoch.
    pub epoch: u64,
    /// Sequence of the last message; 0 before the first.
    pub sequence: u64,
    /// Chain value at `sequence`.
    pub chain: Chain,
    /// Members and their homes.
    pub members: BTreeMap<Alias, NodeId>,
}

/// What follows from an accepted submission.
pub struct Ordered {
    /// For the sender.
    pub accepted: wire::Accepted,
    /// For the nodes of the recipients, this one among them.
    pub deliveries: Vec<(NodeId, wire::Delivery)>,
    /// Aliases that came in.
    pub joined: Vec<(Alias, NodeId)>,
    /// Aliases that went.
    pub left: Vec<Alias>,
}

/// Orders a submission that came from `from` at the hub `here`, and moves the
/// group on. A `group` of `None` is unknown here: a commit at epoch 0 by one
/// of the hub's own accounts opens it.
///
/// # Errors
/// Why it is refused; the group stands as it was. For STALE_EPOCH the current
/// epoch is the group's.
pub fn order(
    group: &mut Option<Group>,
    submission: &Submission,
    from: &NodeId,
    here: &NodeId,
    now: Timestamp,
) -> Result<Ordered, Refusal> {
    let state = match group {
        Some(group) => group.clone(),
        None => open(submission, from, here)?,
    };
    if state.members.get(&submission.sender) != Some(from) {
        return Err(Refusal::new(Reason::NotInGroup, "the alias is no member of the group"));
    }
    if submission.epoch != state.epoch {
        return Err(Refusal::new(Reason::StaleEpoch, "the group has moved to another epoch"));
    }
    let (after, ordered) = accept(state, submission, now)?;
    *group = Some(after);
    Ok(ordered)
}

fn open(submission: &Submission, from: &NodeId, here: &NodeId) -> Result<Group, Refusal> {
    if submission.epoch != 0 || from != here || !matches!(submission.body, Body::Commit(_)) {
        return Err(Refusal::new(Reason::GroupUnknown, "the group is unknown at this hub"));
    }
    Ok(Group {
        epoch: 0,
        sequence: 0,
        chain: Chain::START,
        members: BTreeMap::from([(submission.sender, from.clone())]),
    })
}

fn accept(mut group: Group, submission: &Submission, now: Timestamp) -> Result<(Group, Ordered), Refusal> {
    let content = match &submission.body {
        Body::Application(_) => ContentType::Application,
        Body::Commit(_) => ContentType::Commit,
    };
    framing::check(submission.message(), &submission.group_id, submission.epoch, content)?;

    let made_in = group.epoch;
    group.sequence += 1;
    group.chain = group.chain.next(group.sequence, &submission.message_id, &submission.message_digest());
    let mut fan_out = FanOut { submission, group: &group, made_in, parts: BTreeMap::new(), out: Vec::new() };
    fan_out.reach_members()?;

    let (mut joined, mut left) = (Vec::new(), Vec::new());
    if let Body::Commit(commit) = &submission.body {
        fan_out.reach_joiners(commit)?;
        joined = commit.joins.iter().map(|j| (j.alias, j.node.clone())).collect();
        left.clone_from(&commit.leaves);
    }
    let deliveries = fan_out.out;

    if let Body::Commit(_) = &submission.body {
        group.epoch += 1;
        for (alias, node) in &joined {
            // An alias lives on one node; a second home would split its devices.
            if group.members.insert(*alias, node.clone()).is_some_and(|home| home != *node) {
                return Err(Refusal::field("a joining alias is a member with another home"));
            }
        }
        group.members.retain(|alias, _| !left.contains(alias));
        if group.members.len() > MAX_ALIASES {
            return Err(Refusal::new(Reason::TooLarge, "a group has at most 1000 aliases"));
        }
    }
    let accepted = wire::Accepted {
        sequence: group.sequence,
        epoch: group.epoch,
        chain: group.chain.to_wire(),
        accepted_at_ms: now.millis(),
    };
    Ok((group, Ordered { accepted, deliveries, joined, left }))
}

struct FanOut<'a> {
    submission: &'a Submission,
    /// After the message, with the members before it.
    group: &'a Group,
    made_in: u64,
    parts: BTreeMap<NodeId, u32>,
    out: Vec<(NodeId, wire::Delivery)>,
}

impl FanOut<'_> {
    /// One copy for each member node: for everyone but the sender. The sender's other
    /// devices, when there are any, get one of their own.
    fn reach_members(&mut self) -> Result<(), Refusal> {
        let Self { submission, group, .. } = *self;
        let mut nodes: BTreeMap<&NodeId, Vec<Alias>> = BTreeMap::new();
        for (alias, node) in group.members.iter().filter(|(alias, _)| **alias != submission.sender) {
            nodes.entry(node).or_default().push(*alias);
        }
        let body = match &submission.body {
            Body::Application(bytes) => wire::delivery::Body::Application(bytes.clone()),
            Body::Commit(commit) => wire::delivery::Body::Commit(commit.mls_commit.clone()),
        };
        let size = submission.message().len();
        for (node, recipients) in nodes {
            limit("the message times its recipients on one node", size * recipients.len(), MAX_FAN_OUT)?;
            self.push(node, recipients.iter().map(Alias::to_wire).collect(), Bytes::new(), body.clone());
        }
        if let Some(home) = group.members.get(&submission.sender).filter(|_| submission.echo) {
            self.push(home, vec![submission.sender.to_wire()], submission.sender_device.to_wire(), body);
        }
        Ok(())
    }

    fn reach_joiners(&mut self, commit: &Commit) -> Result<(), Refusal> {
        if commit.joins.is_empty() {
            return Ok(());
        }
        let welcome = Welcome::parse(&commit.welcome)?;
        let mut bytes = 0;
        for join in &commit.joins {
            let cut = welcome.cut(&join.key_packages)?;
            bytes += cut.len();
            limit("the Welcome as its joiners get it", bytes, MAX_FAN_OUT)?;
            let body = wire::delivery::Body::Welcome(cut);
            self.push(&join.node, vec![join.alias.to_wire()], Bytes::new(), body);
        }
        Ok(())
    }

    fn push(
        &mut self,
        node: &NodeId,
        recipients: Vec<Bytes>,
        except_device: Bytes,
        body: wire::delivery::Body,
    ) {
        let part = self.parts.entry(node.clone()).or_default();
        let delivery = wire::Delivery {
            message_id: self.submission.message_id.to_wire(),
            group_id: self.submission.group_id.to_wire(),
            sequence: self.group.sequence,
            chain: self.group.chain.to_wire(),
            epoch: self.made_in,
            expires_at_ms: self.submission.expires_at.millis(),
            urgency: self.submission.urgency,
            category: self.submission.category,
            recipients,
            except_device,
            part: *part,
            body: Some(body),
        };
        *part += 1;
        self.out.push((node.clone(), delivery));
    }
}

#[cfg(test)]
mod tests;
