//! Parcels as domain types: wire messages become these at the door, with every
//! length, count and time checked, and nothing behind the door sees the others.

use bytes::Bytes;
use chancery_proto::federation::v1 as wire;
use chancery_types::{
    Alias, Chain, DeviceId, GroupId, KeyPackageRef, MessageId, NodeId, Reason, Refusal, Timestamp,
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::time::Duration;

/// Largest application message, in bytes of MLSMessage.
pub const MAX_APPLICATION: usize = 256 * 1024;
/// Largest commit, in bytes of MLSMessage.
pub const MAX_COMMIT: usize = 1024 * 1024;
/// Largest Welcome, in bytes of MLSMessage.
pub const MAX_WELCOME: usize = 2 * 1024 * 1024;
/// Most aliases that one commit adds or removes, and most recipients of a delivery.
pub const MAX_ALIASES: usize = 1000;
/// Largest fan-out to one node, in bytes: the body times its recipients.
pub const MAX_FAN_OUT: usize = 32 * 1024 * 1024;
/// Most devices of an alias.
pub const MAX_DEVICES: usize = 16;
/// How far ahead a message may expire.
pub const MAX_LIFE: Duration = Duration::from_hours(90 * 24);
/// How far clocks of endpoints and nodes may differ.
pub const MAX_SKEW: Duration = Duration::from_mins(5);
/// Largest serialised receipt, in bytes.
pub const MAX_RECEIPT: usize = 512;

/// A well-formed submission.
#[derive(Clone)]
pub struct Submission {
    /// Its id.
    pub message_id: MessageId,
    /// Its group.
    pub group_id: GroupId,
    /// Who submits.
    pub sender: Alias,
    /// Which device submits.
    pub sender_device: DeviceId,
    /// Epoch it was made in.
    pub epoch: u64,
    /// When to give up.
    pub expires_at: Timestamp,
    /// `Urgency` as on the wire.
    pub urgency: i32,
    /// Coarse category, 0 to 7.
    pub category: u32,
    /// Whether the sender wants events.
    pub wants_events: bool,
    /// Whether the sender's other devices need a copy.
    pub echo: bool,
    /// What is submitted.
    pub body: Body,
}

/// What is submitted.
#[derive(Clone)]
pub enum Body {
    /// MLSMessage with application data.
    Application(Bytes),
    /// A commit.
    Commit(Commit),
}

/// A commit and what goes with it.
#[derive(Clone)]
pub struct Commit {
    /// MLSMessage.
    pub mls_commit: Bytes,
    /// MLSMessage; empty when nobody joins.
    pub welcome: Bytes,
    /// Aliases with joining devices.
    pub joins: Vec<Join>,
    /// Aliases that leave.
    pub leaves: Vec<Alias>,
}

/// An alias with joining devices.
#[derive(Clone)]
pub struct Join {
    /// The alias.
    pub alias: Alias,
    /// Its home.
    pub node: NodeId,
    /// KeyPackageRefs of its joining devices.
    pub key_packages: Vec<KeyPackageRef>,
}

impl Submission {
    /// From the wire. That it has expired is for the hub to say, and only when it
    /// has not decided before.
    ///
    /// # Errors
    /// INVALID_FIELD or TOO_LARGE: the caller's fault.
    pub fn from_wire(message: wire::Submission, now: Timestamp) -> Result<Self, Refusal> {
        let expires_at = Timestamp::from_millis(message.expires_at_ms);
        if expires_at > now.after(MAX_LIFE).after(MAX_SKEW) {
            return Err(Refusal::field("expires_at_ms is more than 90 days ahead"));
        }
        if message.category > 7 {
            return Err(Refusal::field("category is above 7"));
        }
        let body = match message.body {
            Some(wire::submission::Body::Application(bytes)) => {
                limit("application", bytes.len(), MAX_APPLICATION)?;
                if bytes.is_empty() {
                    return Err(Refusal::field("application is empty"));
                }
                Body::Application(bytes)
            }
            Some(wire::submission::Body::Commit(commit)) => Body::Commit(commit.try_into()?),
            None => return Err(Refusal::field("body is not set")),
        };
        Ok(Self {
            message_id: (&message.message_id).try_into()?,
            group_id: (&message.group_id).try_into()?,
            sender: (&message.sender).try_into()?,
            sender_device: (&message.sender_device).try_into()?,
            epoch: message.epoch,
            expires_at,
            urgency: message.urgency,
            category: message.category,
            wants_events: message.wants_events,
            echo: message.echo,
            body,
        })
    }

    /// To the wire.
    pub fn to_wire(&self) -> wire::Submission {
        wire::Submission {
            message_id: self.message_id.to_wire(),
            group_id: self.group_id.to_wire(),
            sender: self.sender.to_wire(),
            sender_device: self.sender_device.to_wire(),
            epoch: self.epoch,
            expires_at_ms: self.expires_at.millis(),
            urgency: self.urgency,
            category: self.category,
            wants_events: self.wants_events,
            echo: self.echo,
            body: Some(match &self.body {
                Body::Application(bytes) => wire::submission::Body::Application(bytes.clone()),
                Body::Commit(commit) => wire::submission::Body::Commit(commit.into()),
            }),
        }
    }

    /// SHA-256 over everything the endpoint chose: the same id with another
    /// digest is another request.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.group_id.as_bytes());
        hash.update(self.sender_device.as_bytes());
        hash.update(self.epoch.to_be_bytes());
        hash.update(self.expires_at.millis().to_be_bytes());
        hash.update(self.urgency.to_be_bytes());
        hash.update(self.category.to_be_bytes());
        hash.update([u8::from(self.wants_events)]);
        match &self.body {
            Body::Application(bytes) => {
                hash.update([0]);
                hash.update(bytes);
            }
            Body::Commit(commit) => {
                hash.update([1]);
                hash.update(wire::Commit::from(commit).encode_to_vec());
            }
        }
        hash.finalize().into()
    }

    /// SHA-256 of [`Submission::message`].
    pub fn message_digest(&self) -> [u8; 32] {
        Sha256::digest(self.message()).into()
    }

    /// The MLSMessage that goes into the group's chain.
    pub fn message(&self) -> &Bytes {
        match &self.body {
            Body::Application(bytes) => bytes,
            Body::Commit(commit) => &commit.mls_commit,
        }
    }
}

impl TryFrom<wire::Commit> for Commit {
    type Error = Refusal;

    fn try_from(message: wire::Commit) -> Result<Self, Refusal> {
        limit("mls_commit", message.mls_commit.len(), MAX_COMMIT)?;
        limit("welcome", message.welcome.len(), MAX_WELCOME)?;
        limit("joins", message.joins.len(), MAX_ALIASES)?;
        limit("leaves", message.leaves.len(), MAX_ALIASES)?;
        if message.mls_commit.is_empty() {
            return Err(Refusal::field("mls_commit is empty"));
        }
        if message.welcome.is_empty() != message.joins.is_empty() {
            return Err(Refusal::field("welcome and joins go together"));
        }
        let joins = message.joins.into_iter().map(Join::try_from).collect::<Result<Vec<_>, _>>()?;
        let leaves = message.leaves.iter().map(Alias::try_from).collect::<Result<Vec<_>, _>>()?;
        let distinct: HashSet<_> = joins.iter().map(|j| &j.alias).chain(&leaves).collect();
        if distinct.len() != joins.len() + leaves.len() {
            return Err(Refusal::field("an alias stands twice in joins and leaves"));
        }
        Ok(Self { mls_commit: message.mls_commit, welcome: message.welcome, joins, leaves })
    }
}

impl From<&Commit> for wire::Commit {
    fn from(commit: &Commit) -> Self {
        Self {
            mls_commit: commit.mls_commit.clone(),
            welcome: commit.welcome.clone(),
            joins: commit
                .joins
                .iter()
                .map(|join| wire::Join {
                    alias: join.alias.to_wire(),
                    node: join.node.to_string(),
                    key_package_refs: join.key_packages.iter().map(KeyPackageRef::to_wire).collect(),
                })
                .collect(),
            leaves: commit.leaves.iter().map(Alias::to_wire).collect(),
        }
    }
}

impl TryFrom<wire::Join> for Join {
    type Error = Refusal;

    fn try_from(message: wire::Join) -> Result<Self, Refusal> {
        limit("key_package_refs", message.key_package_refs.len(), MAX_DEVICES)?;
        if message.key_package_refs.is_empty() {
            return Err(Refusal::field("key_package_refs is empty"));
        }
        let key_packages: Vec<_> =
            message.key_package_refs.iter().map(KeyPackageRef::try_from).collect::<Result<_, _>>()?;
        if key_packages.iter().collect::<HashSet<_>>().len() != key_packages.len() {
            return Err(Refusal::field("a KeyPackageRef stands twice"));
        }
        Ok(Self { alias: (&message.alias).try_into()?, node: message.node.parse::<NodeId>()?, key_packages })
    }
}

/// A well-formed delivery.
#[derive(Clone)]
pub struct Delivery {
    /// Id of the submission.
    pub message_id: MessageId,
    /// The group.
    pub group_id: GroupId,
    /// Which of the submission's deliveries to this node.
    pub part: u32,
    /// When to give up.
    pub expires_at: Timestamp,
    /// Recipients here.
    pub recipients: Vec<Alias>,
    /// Whether it is a Welcome: makes the recipients members.
    pub welcome: bool,
    /// Device to leave out: this copy is for the sender's other ones.
    pub except_device: Option<DeviceId>,
    /// The message as received, handed on to devices as it stands.
    pub message: wire::Delivery,
}

impl Delivery {
    /// From the wire.
    ///
    /// # Errors
    /// INVALID_FIELD or TOO_LARGE: the hub's fault.
    pub fn from_wire(message: wire::Delivery, now: Timestamp) -> Result<Self, Refusal> {
        if message.expires_at_ms > now.after(MAX_LIFE).after(MAX_SKEW).after(MAX_SKEW).millis() {
            return Err(Refusal::field("expires_at_ms is more than 90 days ahead"));
        }
        limit("recipients", message.recipients.len(), MAX_ALIASES)?;
        let (size, most, welcome) = match &message.body {
            Some(wire::delivery::Body::Application(bytes)) => (bytes.len(), MAX_APPLICATION, false),
            Some(wire::delivery::Body::Commit(bytes)) => (bytes.len(), MAX_COMMIT, false),
            Some(wire::delivery::Body::Welcome(bytes)) => (bytes.len(), MAX_WELCOME, true),
            Some(wire::delivery::Body::Expired(digest)) if digest.len() == 32 => (32, 32, false),
            Some(wire::delivery::Body::Expired(_)) => {
                return Err(Refusal::field("expired is not 32 bytes"));
            }
            None => return Err(Refusal::field("body is not set")),
        };
        limit("body", size, most)?;
        limit("body times recipients", size * message.recipients.len(), MAX_FAN_OUT)?;
        Chain::try_from(&message.chain)?;
        counted("sequence", message.sequence)?;
        counted("epoch", message.epoch)?;
        let recipients = message.recipients.iter().map(Alias::try_from).collect::<Result<Vec<_>, _>>()?;
        if recipients.is_empty() || recipients.iter().collect::<HashSet<_>>().len() != recipients.len() {
            return Err(Refusal::field("recipients are none or stand twice"));
        }
        let except_device = optional(&message.except_device)?;
        if except_device.is_some() && recipients.len() > 1 {
            return Err(Refusal::field("except_device goes with the sender's alias alone"));
        }
        Ok(Self {
            message_id: (&message.message_id).try_into()?,
            group_id: (&message.group_id).try_into()?,
            part: message.part,
            expires_at: Timestamp::from_millis(message.expires_at_ms),
            recipients,
            welcome,
            except_device,
            message,
        })
    }
}

/// Refuses a sequence or epoch that nobody reaches by counting.
fn counted(field: &'static str, value: u64) -> Result<(), Refusal> {
    if value > Chain::LAST {
        return Err(Refusal::field(format!("{field} is above 2^53")));
    }
    Ok(())
}

/// A well-formed outcome.
#[derive(Clone)]
pub struct Outcome {
    /// The submission.
    pub message_id: MessageId,
    /// Its sender.
    pub sender: Alias,
    /// Its sender's device.
    pub sender_device: DeviceId,
    /// The message as received.
    pub message: wire::Outcome,
}

impl TryFrom<wire::Outcome> for Outcome {
    type Error = Refusal;

    fn try_from(message: wire::Outcome) -> Result<Self, Refusal> {
        GroupId::try_from(&message.group_id)?;
        match &message.decision {
            Some(wire::outcome::Decision::Accepted(accepted)) => {
                Chain::try_from(&accepted.chain)?;
                counted("sequence", accepted.sequence)?;
                counted("epoch", accepted.epoch)?;
            }
            Some(wire::outcome::Decision::Refused(refused)) => {
                limit("reason", refused.reason.len(), 63)?;
                counted("current_epoch", refused.current_epoch.unwrap_or(0))?;
            }
            None => return Err(Refusal::field("decision is not set")),
        }
        Ok(Self {
            message_id: (&message.message_id).try_into()?,
            sender: (&message.sender).try_into()?,
            sender_device: (&message.sender_device).try_into()?,
            message,
        })
    }
}

/// A well-formed report.
#[derive(Clone)]
pub struct Report {
    /// The message.
    pub message_id: MessageId,
    /// The recipient.
    pub recipient: Alias,
    /// Which of the submission's deliveries to the recipient's node.
    pub part: u32,
    /// The message as received.
    pub message: wire::Report,
}

impl TryFrom<wire::Report> for Report {
    type Error = Refusal;

    fn try_from(message: wire::Report) -> Result<Self, Refusal> {
        match &message.outcome {
            Some(wire::report::Outcome::Delivered(delivered)) => {
                limit("receipt", delivered.receipt.len(), MAX_RECEIPT)?;
            }
            Some(wire::report::Outcome::Refused(reason)) => limit("refused", reason.len(), 63)?,
            Some(wire::report::Outcome::Expired(_)) => {}
            None => return Err(Refusal::field("outcome is not set")),
        }
        Ok(Self {
            message_id: (&message.message_id).try_into()?,
            recipient: (&message.recipient).try_into()?,
            part: message.part,
            message,
        })
    }
}

/// A well-formed move.
#[derive(Clone)]
pub struct Moved {
    /// Who.
    pub alias: Alias,
    /// The new home.
    pub node: NodeId,
}

impl TryFrom<wire::Moved> for Moved {
    type Error = Refusal;

    fn try_from(message: wire::Moved) -> Result<Self, Refusal> {
        Ok(Self { alias: (&message.alias).try_into()?, node: message.node.parse()? })
    }
}

/// Refuses a size above its limit.
///
/// # Errors
/// TOO_LARGE, naming the field and the limit.
pub fn limit(what: &'static str, size: usize, most: usize) -> Result<(), Refusal> {
    if size > most {
        return Err(Refusal::new(
            Reason::TooLarge,
            format!("{what} has {size} bytes or items, limit {most}"),
        ));
    }
    Ok(())
}

fn optional(bytes: &Bytes) -> Result<Option<DeviceId>, Refusal> {
    if bytes.is_empty() { Ok(None) } else { Ok(Some(bytes.try_into()?)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn submission() -> wire::Submission {
        wire::Submission {
            message_id: Bytes::from_static(&[1; 16]),
            group_id: Bytes::from_static(&[2; 32]),
            sender: Bytes::from_static(&[3; 16]),
            sender_device: Bytes::from_static(&[4; 16]),
            epoch: 5,
            expires_at_ms: NOW.millis() + 1,
            body: Some(wire::submission::Body::Application(Bytes::from_static(b"x"))),
            ..Default::default()
        }
    }

    fn reason(message: wire::Submission) -> Option<Reason> {
        Submission::from_wire(message, NOW).err().map(|r| r.reason)
    }

    #[test]
    fn each_field_has_its_limit() {
        assert_eq!(reason(submission()), None);
        let short = wire::Submission { sender: Bytes::from_static(&[3; 15]), ..submission() };
        assert_eq!(reason(short), Some(Reason::InvalidField));
        let forever = wire::Submission { expires_at_ms: i64::MAX, ..submission() };
        assert_eq!(reason(forever), Some(Reason::InvalidField));
        let big = Bytes::from(vec![0; MAX_APPLICATION + 1]);
        let big = wire::Submission { body: Some(wire::submission::Body::Application(big)), ..submission() };
        assert_eq!(reason(big), Some(Reason::TooLarge));
        assert_eq!(reason(wire::Submission { body: None, ..submission() }), Some(Reason::InvalidField));
    }

    #[test]
    fn what_a_delivery_becomes_has_a_limit() {
        let delivery = |recipients: usize| wire::Delivery {
            message_id: Bytes::from_static(&[1; 16]),
            group_id: Bytes::from_static(&[2; 32]),
            sequence: 1,
            chain: Bytes::from_static(&[5; 32]),
            epoch: 1,
            expires_at_ms: NOW.millis() + 1,
            recipients: (0..recipients as u128).map(|n| Bytes::from(n.to_be_bytes().to_vec())).collect(),
            body: Some(wire::delivery::Body::Application(Bytes::from(vec![0; MAX_APPLICATION]))),
            ..Default::default()
        };
        let most = MAX_FAN_OUT / MAX_APPLICATION;
        assert!(Delivery::from_wire(delivery(most), NOW).is_ok());
        let refused = Delivery::from_wire(delivery(most + 1), NOW).map(drop).unwrap_err();
        assert_eq!(refused.reason, Reason::TooLarge);
    }

    #[test]
    fn an_alias_joins_once() {
        let join = wire::Join {
            alias: Bytes::from_static(&[3; 16]),
            node: "a".into(),
            key_package_refs: vec![Bytes::from_static(&[9; 32])],
        };
        let commit = wire::Commit {
            mls_commit: Bytes::from_static(b"c"),
            welcome: Bytes::from_static(b"w"),
            joins: vec![join.clone(), join],
            leaves: vec![],
        };
        assert!(Commit::try_from(commit).is_err());
    }

    #[test]
    fn a_key_package_is_named_once() {
        let reference = Bytes::from_static(&[9; 32]);
        let join = |refs| wire::Join {
            alias: Bytes::from_static(&[3; 16]),
            node: "a".into(),
            key_package_refs: refs,
        };
        assert!(Join::try_from(join(vec![reference.clone()])).is_ok());
        assert!(Join::try_from(join(vec![reference.clone(), reference])).is_err());
    }

    #[test]
    fn the_digest_covers_the_message() {
        let one = Submission::from_wire(submission(), NOW).unwrap();
        let mut other = one.clone();
        other.body = Body::Application(Bytes::from_static(b"y"));
        assert_ne!(one.digest(), other.digest());
        assert_eq!(one.digest(), one.clone().digest());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_door_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(message) = wire::Submission::decode(bytes.as_slice()) {
                let _ = Submission::from_wire(message, NOW);
            }
            if let Ok(message) = wire::Delivery::decode(bytes.as_slice()) {
                let _ = Delivery::from_wire(message, NOW);
            }
            if let Ok(message) = wire::Outcome::decode(bytes.as_slice()) {
                let _ = Outcome::try_from(message);
            }
            if let Ok(message) = wire::Report::decode(bytes.as_slice()) {
                let _ = Report::try_from(message);
            }
            if let Ok(message) = wire::Moved::decode(bytes.as_slice()) {
                let _ = Moved::try_from(message);
            }
        }
    }
}
