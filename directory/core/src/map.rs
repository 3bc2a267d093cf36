//! The map: which record stands for each handle and which broadcast is each channel's
//! latest, derived from the log and nothing else. A binary Merkle trie over the first 32 bits of
//! handles, whose leaves are buckets of commitments. Its shape and root follow
//! from the set of items alone, so that whoever holds the items of a place can
//! compute its hash ([`proof`]). docs/decisions/0010.

pub mod proof;
mod trie;

use crate::Error;
use crate::entry::RecordChange;
use crate::merkle::Hash;
use crate::prefix::{MAX_BITS, Prefix};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::Timestamp;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use trie::{Node, settle};

/// Most items of a bucket that can be split: one with more is an inner node.
pub const MAX_ITEMS: usize = 128;
/// Length of an item in bytes.
pub const ITEM_LENGTH: usize = 53;
/// Items whose handles agree in 32 bits stay together, however many.
const MAX_DEPTH: u32 = MAX_BITS;

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The record of a handle.
    Record = 0,
    /// A re-enrolment that is not in force.
    Pending = 1,
    /// A broadcast channel.
    Channel = 2,
}

/// What stands for one handle, its record or a re-enrolment that is pending, or for a channel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Item {
    /// First 32 bits of the handle, or of the channel's place.
    prefix: u32,
    /// Its entry.
    index: u64,
    /// When the entry was sequenced.
    sequenced_at: Timestamp,
    kind: Kind,
    /// The entry's commitment to the record, or to what stands for the channel.
    commitment: [u8; 32],
}

impl Item {
    /// The item that a logged change puts.
    pub const fn new(change: &RecordChange, index: u64, sequenced_at: Timestamp) -> Self {
        let prefix = u32::from_be_bytes(change.handle_prefix);
        let kind = if change.pending { Kind::Pending } else { Kind::Record };
        Self { prefix, index, sequenced_at, kind, commitment: change.commitment }
    }

    /// The item of a channel, at its place.
    pub const fn of_channel(
        place: [u8; 4],
        index: u64,
        sequenced_at: Timestamp,
        commitment: [u8; 32],
    ) -> Self {
        Self { prefix: u32::from_be_bytes(place), index, sequenced_at, kind: Kind::Channel, commitment }
    }

    /// Its entry.
    pub const fn index(&self) -> u64 {
        self.index
    }

    /// When the entry was sequenced.
    pub const fn sequenced_at(&self) -> Timestamp {
        self.sequenced_at
    }

    /// What it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The entry's commitment to the record, or to what stands for the channel.
    pub const fn commitment(&self) -> &[u8; 32] {
        &self.commitment
    }

    /// Its 32-bit prefix, as a lookup names it.
    pub const fn prefix(&self) -> [u8; 4] {
        self.prefix.to_be_bytes()
    }

    /// As the map's hash covers it: see `MapSum` in the contract.
    pub fn to_bytes(&self) -> [u8; ITEM_LENGTH] {
        let mut bytes = [0; ITEM_LENGTH];
        let (head, rest) = bytes.split_at_mut(4);
        head.copy_from_slice(&self.prefix.to_be_bytes());
        let (head, rest) = rest.split_at_mut(8);
        head.copy_from_slice(&self.index.to_be_bytes());
        let (head, rest) = rest.split_at_mut(8);
        head.copy_from_slice(&self.sequenced_at.millis().to_be_bytes());
        let (head, rest) = rest.split_at_mut(1);
        head.fill(self.kind as u8);
        rest.copy_from_slice(&self.commitment);
        bytes
    }

    /// From those bytes; `None` if it is of a kind that there is not.
    pub fn from_bytes(bytes: &[u8; ITEM_LENGTH]) -> Option<Self> {
        let (prefix, rest) = bytes.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let (index, rest) = rest.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let (millis, rest) = rest.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let (kind, rest) = rest.split_first_chunk().unwrap_or((&[0], &[]));
        let (commitment, _) = rest.split_first_chunk().unwrap_or((&[0; 32], &[]));
        Some(Self {
            prefix: u32::from_be_bytes(*prefix),
            index: u64::from_be_bytes(*index),
            sequenced_at: Timestamp::from_millis(i64::from_be_bytes(*millis)),
            kind: match kind {
                [0] => Kind::Record,
                [1] => Kind::Pending,
                [2] => Kind::Channel,
                _ => return None,
            },
            commitment: *commitment,
        })
    }

    /// Whether it stands under `prefix` of `bits` bits.
    pub fn is_under(&self, prefix: Prefix, bits: u32) -> bool {
        Prefix::from_bits(self.prefix, bits) == prefix
    }
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Item({})", self.index)
    }
}

/// Hash of a part of the map, and how many items are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// How many.
    pub items: u64,
    /// As the contract's `MapSum` says.
    pub hash: Hash,
}

impl Sum {
    fn bucket(items: &[Item]) -> Self {
        let mut hash = Sha256::new();
        hash.update([2]);
        for item in items {
            hash.update(item.to_bytes());
        }
        Self { items: items.len() as u64, hash: hash.finalize().into() }
    }

    fn inner(left: &Self, right: &Self) -> Self {
        let mut hash = Sha256::new();
        hash.update([3]);
        for side in [left, right] {
            hash.update(side.items.to_be_bytes());
            hash.update(side.hash);
        }
        Self { items: left.items.saturating_add(right.items), hash: hash.finalize().into() }
    }

    /// The sum of all items of a place at `depth`, in order.
    fn of(items: &[Item], depth: u32) -> Self {
        if is_bucket(items.len(), depth) {
            return Self::bucket(items);
        }
        let (left, right) = items.split_at(items.partition_point(|item| !bit(item.prefix, depth)));
        Self::inner(&Self::of(left, depth + 1), &Self::of(right, depth + 1))
    }
}

impl From<&Sum> for wire::MapSum {
    fn from(sum: &Sum) -> Self {
        Self { items: sum.items, hash: Bytes::copy_from_slice(&sum.hash) }
    }
}

impl TryFrom<wire::MapSum> for Sum {
    type Error = Error;

    fn try_from(sum: wire::MapSum) -> Result<Self, Error> {
        Ok(Self { items: sum.items, hash: crate::merkle::hash(&sum.hash)? })
    }
}

/// Whether this many items at this depth are one bucket.
const fn is_bucket(items: usize, depth: u32) -> bool {
    items <= MAX_ITEMS || depth == MAX_DEPTH
}

/// The bit that decides between left and right at `depth`, the first bit at 0.
const fn bit(prefix: u32, depth: u32) -> bool {
    prefix << depth >> 31 == 1
}

/// The map. A copy costs nothing: copies share what they have in common.
#[derive(Clone, Debug, Default)]
pub struct Map {
    root: Arc<Node>,
}

impl Map {
    /// The map of these items, in any order.
    ///
    /// # Errors
    /// An item is there twice.
    pub fn from_items(mut items: Vec<Item>) -> Result<Self, Error> {
        items.sort_unstable_by_key(Item::key);
        if items.windows(2).any(|pair| matches!(pair, [a, b] if a.key() == b.key())) {
            return Err(Error::Proof("an entry of the log stands twice in the map"));
        }
        Ok(Self { root: Arc::new(Node::of(items, 0)) })
    }

    /// Takes a logged change: puts its item, and takes out the handle's previous
    /// one and the pending one that the change ends.
    ///
    /// # Errors
    /// What it takes out does not stand, or the entry was taken before: the
    /// log breaks its own rules.
    pub fn apply(&mut self, change: &RecordChange, index: u64, sequenced_at: Timestamp) -> Result<(), Error> {
        let standing = |map: &Self, of: u64, kind: Kind| {
            let found = map.under(change.handle_prefix).iter().any(|i| i.index == of && i.kind == kind);
            if found { Ok(()) } else { Err(Error::Proof("a change names an entry that does not stand")) }
        };
        if let Some(previous) = change.previous_index {
            standing(self, previous, Kind::Record)?;
            if !change.pending {
                self.remove(change.handle_prefix, previous);
            }
        }
        if let Some(ended) = change.ends_index {
            standing(self, ended, Kind::Pending)?;
            self.remove(change.handle_prefix, ended);
        }
        if Arc::make_mut(&mut self.root).insert(Item::new(change, index, sequenced_at), 0) {
            Ok(())
        } else {
            Err(Error::Proof("an entry of the log was taken twice"))
        }
    }

    /// Puts a channel's item in the place of the one before.
    ///
    /// # Errors
    /// The one before does not stand, or the entry was taken before.
    pub fn put_channel(&mut self, item: Item, before: Option<u64>) -> Result<(), Error> {
        const NOT_STANDING: Error = Error::Proof("a channel's entry does not follow what stands");
        if let Some(before) = before {
            let stands =
                self.under(item.prefix()).iter().any(|i| i.index == before && i.kind == Kind::Channel);
            if !stands || !self.take_out(item.prefix(), before) {
                return Err(NOT_STANDING);
            }
        }
        if Arc::make_mut(&mut self.root).insert(item, 0) { Ok(()) } else { Err(NOT_STANDING) }
    }

    /// Takes out the record, or the re-enrolment, that stands by an entry; whether it stood.
    pub fn remove(&mut self, prefix: [u8; 4], index: u64) -> bool {
        let stands = self.under(prefix).iter().any(|i| i.index == index && i.kind != Kind::Channel);
        stands && self.take_out(prefix, index)
    }

    fn take_out(&mut self, prefix: [u8; 4], index: u64) -> bool {
        Arc::make_mut(&mut self.root).remove(u32::from_be_bytes(prefix), index, 0)
    }

    /// All that stands for handles with these first 32 bits.
    pub fn under(&self, prefix: [u8; 4]) -> &[Item] {
        let head = u32::from_be_bytes(prefix);
        let (mut node, mut depth) = (&self.root, 0);
        loop {
            match &**node {
                Node::Inner { sides: [left, right], .. } => {
                    node = if bit(head, depth) { right } else { left };
                    depth += 1;
                }
                Node::Bucket { items, .. } => {
                    let start = items.partition_point(|item| item.prefix < head);
                    let end = items.partition_point(|item| item.prefix <= head);
                    return items.get(start..end).unwrap_or_default();
                }
            }
        }
    }

    /// Whether it is the very map that `other` is a copy of. Two maps made apart
    /// are not, even if they hold the same.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    /// How many items stand.
    pub fn len(&self) -> usize {
        self.root.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Root of all items. Costs what changed since it was last asked for.
    pub fn root(&mut self) -> Sum {
        settle(&mut self.root)
    }

    /// The part whose handles begin with `prefix`: the smallest that holds them all.
    pub fn part(&self, prefix: Prefix, bits: u32) -> Part<'_> {
        let (head, mut siblings, mut node, mut depth) =
            (u32::from_be_bytes(prefix.to_bytes()), Vec::new(), &*self.root, 0);
        while let Node::Inner { sides: [left, right], .. } = node
            && depth < bits.min(MAX_DEPTH)
        {
            let (next, other) = if bit(head, depth) { (right, left) } else { (left, right) };
            siblings.push(other.sum());
            (node, depth) = (next, depth + 1);
        }
        Part { siblings, node }
    }
}

/// A part of the map. What changed since [`Map::root`] was asked for is computed anew.
#[derive(Debug)]
pub struct Part<'a> {
    siblings: Vec<Sum>,
    node: &'a Node,
}

impl Part<'_> {
    /// How many items are in it.
    pub fn len(&self) -> usize {
        self.node.len()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its own sum: names what is in it.
    pub fn sum(&self) -> Sum {
        self.node.sum()
    }

    /// Sums beside the way from the root down to it.
    pub fn siblings(&self) -> &[Sum] {
        &self.siblings
    }

    /// Every item, in order.
    pub fn items(&self) -> Vec<Item> {
        let mut items = Vec::with_capacity(self.len());
        self.node.collect(&mut items);
        items
    }

    /// As a client verifies it.
    pub fn into_place(self) -> proof::Place {
        proof::Place { items: self.items(), siblings: self.siblings }
    }
}

impl Item {
    /// What orders items and tells them apart.
    const fn key(&self) -> (u32, u64) {
        (self.prefix, self.index)
    }
}

#[cfg(test)]
mod tests;
