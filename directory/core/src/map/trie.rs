//! The trie itself: how parts split, merge and sum up.

use super::{Item, Sum, bit, is_bucket};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(super) enum Node {
    /// Items in order. The sum is missing after a change.
    Bucket { items: Vec<Item>, sum: Option<Sum> },
    /// More than [`MAX_ITEMS`].
    Inner { sides: [Arc<Node>; 2], items: usize, sum: Option<Sum> },
}

impl Default for Node {
    fn default() -> Self {
        Self::Bucket { items: Vec::new(), sum: None }
    }
}

impl Node {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bucket { items, .. } => items.len(),
            Self::Inner { items, .. } => *items,
        }
    }

    pub(super) fn collect(&self, all: &mut Vec<Item>) {
        match self {
            Self::Bucket { items, .. } => all.extend_from_slice(items),
            Self::Inner { sides, .. } => sides.iter().for_each(|side| side.collect(all)),
        }
    }

    /// Whether it was not there.
    pub(super) fn insert(&mut self, item: Item, depth: u32) -> bool {
        match self {
            Self::Bucket { items, sum } => {
                let at = items.partition_point(|other| other.key() < item.key());
                if items.get(at).is_some_and(|other| other.key() == item.key()) {
                    return false;
                }
                items.insert(at, item);
                *sum = None;
                if !is_bucket(items.len(), depth) {
                    let items = std::mem::take(items);
                    *self = Self::of(items, depth);
                }
                true
            }
            Self::Inner { sides: [left, right], items, sum } => {
                let side = if bit(item.prefix, depth) { right } else { left };
                let inserted = Arc::make_mut(side).insert(item, depth + 1);
                if inserted {
                    *items += 1;
                    *sum = None;
                }
                inserted
            }
        }
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, prefix: u32, index: u64, depth: u32) -> bool {
        match self {
            Self::Bucket { items, sum } => {
                let Ok(at) = items.binary_search_by_key(&(prefix, index), Item::key) else { return false };
                items.remove(at);
                *sum = None;
                true
            }
            Self::Inner { sides: [left, right], items, sum } => {
                let side = if bit(prefix, depth) { right } else { left };
                if !Arc::make_mut(side).remove(prefix, index, depth + 1) {
                    return false;
                }
                *items -= 1;
                *sum = None;
                if is_bucket(*items, depth) {
                    let mut items = Vec::with_capacity(*items);
                    self.collect(&mut items);
                    *self = Self::Bucket { items, sum: None };
                }
                true
            }
        }
    }

    pub(super) fn of(items: Vec<Item>, depth: u32) -> Self {
        if is_bucket(items.len(), depth) {
            return Self::Bucket { items, sum: None };
        }
        let count = items.len();
        let mut left = items;
        let right = left.split_off(left.partition_point(|item| !bit(item.prefix, depth)));
        let sides = [left, right].map(|side| Arc::new(Self::of(side, depth + 1)));
        Self::Inner { sides, items: count, sum: None }
    }

    pub(super) fn sum(&self) -> Sum {
        match self {
            Self::Bucket { sum: Some(sum), .. } | Self::Inner { sum: Some(sum), .. } => *sum,
            Self::Bucket { items, .. } => Sum::bucket(items),
            Self::Inner { sides, .. } => {
                let [left, right] = sides;
                Sum::inner(&left.sum(), &right.sum())
            }
        }
    }
}

/// Computes what is missing; what is shared with a copy has nothing missing.
pub(super) fn settle(node: &mut Arc<Node>) -> Sum {
    if let Node::Bucket { sum: Some(sum), .. } | Node::Inner { sum: Some(sum), .. } = &**node {
        return *sum;
    }
    match Arc::make_mut(node) {
        Node::Bucket { items, sum } => *sum.insert(Sum::bucket(items)),
        Node::Inner { sides: [left, right], sum, .. } => {
            *sum.insert(Sum::inner(&settle(left), &settle(right)))
        }
    }
}
