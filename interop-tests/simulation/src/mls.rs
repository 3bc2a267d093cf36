//! MLS as far as queues can tell: epochs that only a commit moves, messages that open
//! in their epoch, once, for members alone, and Welcomes. Secrets are numbers that two
//! members share exactly when their groups have the same history. The bytes have the
//! clear parts of RFC 9420, which the hub checks and cuts.

use bytes::{BufMut as _, Bytes, BytesMut};
use chancery_proto::federation::v1 as wire;
use chancery_sdk_core::Succession;
use chancery_types::{Alias, Chain, DeviceId, GroupId, KeyPackageRef, MessageId};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// A device in a group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// Which.
    pub(crate) device: DeviceId,
    /// Whose.
    pub(crate) alias: Alias,
}

/// A device's state of a group.
#[derive(Clone)]
pub(crate) struct Session {
    /// The epoch.
    pub(crate) epoch: u64,
    secret: u64,
    /// All devices.
    pub(crate) members: Vec<Member>,
    /// How many messages this device has encrypted in this epoch.
    generation: u32,
    /// Messages of others that were opened in this epoch.
    opened: Vec<(DeviceId, u32)>,
    pending: Option<(u64, Vec<Member>)>,
}

/// Somebody to be added.
#[derive(Clone)]
pub(crate) struct Joiner {
    /// The device.
    pub(crate) member: Member,
    /// Its home.
    pub(crate) node: String,
    /// Names its KeyPackage.
    pub(crate) reference: KeyPackageRef,
}

/// What somebody says to the others.
#[derive(Clone)]
pub(crate) enum Said {
    /// A letter, by its number.
    Letter(u64),
    /// The group takes another one's place.
    Succession(Succession),
}

/// What a message held.
pub(crate) enum Plain {
    /// What somebody says.
    Said {
        /// Under which id.
        message_id: MessageId,
        /// In which thread.
        root: GroupId,
        /// What.
        said: Said,
    },
    /// A commit, which is merged.
    Commit,
}

const LETTER: u8 = 1;
const COMMIT: u8 = 3;
/// In the place of a letter's number.
const NO_LETTER: u64 = u64::MAX;

impl Session {
    /// A group of one.
    pub(crate) fn create(owner: Member, secret: u64) -> Self {
        let members = vec![owner];
        Self { epoch: 0, secret, members, generation: 0, opened: Vec::new(), pending: None }
    }

    /// Encrypts a letter; also gives what must never be used twice.
    pub(crate) fn encrypt(
        &mut self,
        group: &GroupId,
        own: DeviceId,
        message_id: &MessageId,
        (root, said): (&GroupId, &Said),
    ) -> (Bytes, u32) {
        self.generation += 1;
        let mut text = BytesMut::with_capacity(96);
        text.put_slice(own.as_bytes());
        text.put_u32(self.generation);
        text.put_u64(self.secret);
        text.put_slice(message_id.as_bytes());
        text.put_slice(root.as_bytes());
        match said {
            Said::Letter(number) => text.put_u64(*number),
            Said::Succession(Succession { group, head, .. }) => {
                text.put_u64(NO_LETTER);
                text.put_slice(group.as_bytes());
                if let Some((sequence, chain)) = head {
                    text.put_u64(*sequence);
                    text.put_slice(chain.as_bytes());
                }
            }
        }
        (private_message(group, self.epoch, LETTER, &text), self.generation)
    }

    /// Makes a commit that adds devices; it counts once it is merged.
    pub(crate) fn stage(&mut self, group: &GroupId, own: DeviceId, joiners: &[Joiner]) -> wire::Commit {
        let mut text = BytesMut::with_capacity(64);
        text.put_slice(own.as_bytes());
        text.put_u64(self.secret);
        for Joiner { member, .. } in joiners {
            text.put_slice(member.device.as_bytes());
            text.put_slice(member.alias.as_bytes());
        }
        let commit = private_message(group, self.epoch, COMMIT, &text);
        let added: Vec<Member> = joiners.iter().map(|joiner| joiner.member).collect();
        let secret = next_secret(self.secret, &commit);
        let info = self.group_info(group, secret, &added);
        self.pending = Some((secret, added));
        let mut joins: Vec<wire::Join> = Vec::new();
        for Joiner { member, node, reference } in joiners {
            let alias = member.alias.to_wire();
            match joins.iter_mut().find(|join| join.alias == alias) {
                Some(join) => join.key_package_refs.push(reference.to_wire()),
                None => joins.push(wire::Join {
                    alias,
                    node: node.clone(),
                    key_package_refs: vec![reference.to_wire()],
                }),
            }
        }
        let welcome = welcome(&joiners.iter().map(|joiner| joiner.reference).collect::<Vec<_>>(), &info);
        wire::Commit { mls_commit: commit, welcome, joins, leaves: Vec::new() }
    }

    /// Our commit counts.
    pub(crate) fn merge(&mut self) {
        if let Some((secret, added)) = self.pending.take() {
            self.advance(secret, added);
        }
    }

    /// Our commit does not count.
    pub(crate) fn clear(&mut self) {
        self.pending = None;
    }

    /// Opens a message of another member, or merges its commit; `None`: it does not open.
    pub(crate) fn open(&mut self, group: &GroupId, message: &Bytes) -> Option<Plain> {
        let (kind, text) = parse(group, self.epoch, message)?;
        let device = DeviceId::try_from(text.get(..16)?).ok()?;
        self.members.iter().find(|member| member.device == device)?;
        if kind == LETTER {
            let generation = u32::from_be_bytes(text.get(16..20)?.try_into().ok()?);
            let secret = u64::from_be_bytes(text.get(20..28)?.try_into().ok()?);
            if secret != self.secret || self.opened.contains(&(device, generation)) {
                return None;
            }
            self.opened.push((device, generation));
            let message_id = MessageId::try_from(text.get(28..44)?).ok()?;
            let root = GroupId::try_from(text.get(44..76)?).ok()?;
            let said = match u64::from_be_bytes(text.get(76..84)?.try_into().ok()?) {
                NO_LETTER => Said::Succession(succession(root, text.get(84..)?)?),
                number => Said::Letter(number),
            };
            return Some(Plain::Said { message_id, root, said });
        }
        if u64::from_be_bytes(text.get(16..24)?.try_into().ok()?) != self.secret {
            return None;
        }
        let added = text.get(24..)?.chunks(32).map(member).collect::<Option<Vec<_>>>()?;
        self.pending = None;
        self.advance(next_secret(self.secret, message), added);
        Some(Plain::Commit)
    }

    /// The group that a Welcome leads to, if it is for one of these KeyPackages.
    pub(crate) fn join(
        group: &GroupId,
        message: &Bytes,
        mine: impl Fn(&KeyPackageRef) -> bool,
    ) -> Option<Self> {
        let mut rest = Cursor(message.get(6..)?);
        let mut parts = Cursor(rest.vector()?);
        let mut found = false;
        while !parts.0.is_empty() {
            let reference = KeyPackageRef::try_from(parts.vector()?).ok()?;
            parts.vector()?;
            parts.vector()?;
            found |= mine(&reference);
        }
        let info = rest.vector()?;
        if !found || info.get(..32)? != group.as_bytes() {
            return None;
        }
        let epoch = u64::from_be_bytes(info.get(32..40)?.try_into().ok()?);
        let secret = u64::from_be_bytes(info.get(40..48)?.try_into().ok()?);
        let members = info.get(48..)?.chunks(32).map(member).collect::<Option<Vec<_>>>()?;
        Some(Self { epoch, secret, members, generation: 0, opened: Vec::new(), pending: None })
    }

    fn advance(&mut self, secret: u64, added: Vec<Member>) {
        self.epoch += 1;
        self.secret = secret;
        self.generation = 0;
        self.opened.clear();
        for member in added {
            if !self.members.contains(&member) {
                self.members.push(member);
            }
        }
    }

    fn group_info(&self, group: &GroupId, secret: u64, added: &[Member]) -> BytesMut {
        let mut info = BytesMut::new();
        info.put_slice(group.as_bytes());
        info.put_u64(self.epoch + 1);
        info.put_u64(secret);
        for member in self.members.iter().chain(added) {
            info.put_slice(member.device.as_bytes());
            info.put_slice(member.alias.as_bytes());
        }
        info
    }
}

fn succession(root: GroupId, text: &[u8]) -> Option<Succession> {
    let group = GroupId::try_from(text.get(..32)?).ok()?;
    let head = match text.get(32..)? {
        [] => None,
        head => {
            Some((u64::from_be_bytes(head.get(..8)?.try_into().ok()?), Chain::try_from(head.get(8..)?).ok()?))
        }
    };
    Some(Succession { root, group, head })
}

fn member(bytes: &[u8]) -> Option<Member> {
    let device = DeviceId::try_from(bytes.get(..16)?).ok()?;
    Some(Member { device, alias: Alias::try_from(bytes.get(16..32)?).ok()? })
}

fn next_secret(secret: u64, commit: &Bytes) -> u64 {
    let mut hasher = DefaultHasher::new();
    secret.hash(&mut hasher);
    commit.hash(&mut hasher);
    hasher.finish()
}

/// PrivateMessage (RFC 9420, section 6.3) with the text in the clear.
fn private_message(group: &GroupId, epoch: u64, kind: u8, text: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(56 + text.len());
    out.put_slice(&[0, 1, 0, 2]);
    put_vector(&mut out, group.as_bytes());
    out.put_u64(epoch);
    out.put_u8(kind);
    out.put_slice(&[0, 0]);
    put_vector(&mut out, text);
    out.freeze()
}

fn parse<'a>(group: &GroupId, epoch: u64, message: &'a Bytes) -> Option<(u8, &'a [u8])> {
    let mut rest = Cursor(message.get(4..)?);
    if rest.vector()? != group.as_bytes() || rest.take(8)? != epoch.to_be_bytes() {
        return None;
    }
    let kind = *rest.take(1)?.first()?;
    rest.take(2)?;
    Some((kind, rest.vector()?))
}

/// Welcome (RFC 9420, section 12.4.3.1).
fn welcome(references: &[KeyPackageRef], info: &[u8]) -> Bytes {
    let mut parts = BytesMut::new();
    for reference in references {
        put_vector(&mut parts, reference.as_bytes());
        parts.put_slice(&[0, 0]);
    }
    let mut out = BytesMut::from(&[0, 1, 0, 3, 0, 1][..]);
    put_vector(&mut out, &parts);
    put_vector(&mut out, info);
    out.freeze()
}

fn put_vector(out: &mut BytesMut, bytes: &[u8]) {
    match bytes.len() {
        short @ 0..=0x3f => out.put_uint(short as u64, 1),
        long => out.put_uint(long as u64 | 0x4000, 2),
    }
    out.put_slice(bytes);
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn vector(&mut self) -> Option<&'a [u8]> {
        let first = usize::from(*self.take(1)?.first()?);
        let length =
            if first < 0x40 { first } else { (first & 0x3f) << 8 | usize::from(*self.take(1)?.first()?) };
        self.take(length)
    }
}
