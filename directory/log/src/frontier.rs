//! The tree's right edge: the hashes of the complete subtrees that a tree of
//! some size is made of. Enough to append and to compute the root without
//! reading the store.

use crate::LogError;
use std::collections::HashMap;
use tlog_tiles::{Hash, HashReader, stored_hash_index, stored_hashes_for_record_hash, sub_tree_index};

/// Hashes by stored hash index.
#[derive(Clone, Default)]
pub(crate) struct Hashes(pub(crate) HashMap<u64, Hash>);

impl HashReader for Hashes {
    fn read_hashes(&self, positions: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        positions.iter().map(|p| self.0.get(p).copied().ok_or(tlog_tiles::Error::IndexesNotInTree)).collect()
    }
}

/// The right edge of a tree.
#[derive(Clone, Default)]
pub(crate) struct Frontier {
    size: u64,
    edge: Hashes,
}

/// What appending changed.
pub(crate) struct Grown {
    /// The edge of the grown tree.
    pub(crate) frontier: Frontier,
    /// Stored hash index of the first new hash.
    pub(crate) first_hash: u64,
    /// New hashes, in the order of their stored hash indices.
    pub(crate) hashes: Vec<Hash>,
}

impl Frontier {
    /// Which stored hashes make up a tree of `size` leaves.
    pub(crate) fn positions(size: u64) -> Vec<u64> {
        sub_tree_index(0, size, Vec::new())
    }

    /// From the stored hashes at [`Frontier::positions`].
    pub(crate) fn new(size: u64, edge: Hashes) -> Self {
        Self { size, edge }
    }

    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Root of the tree.
    pub(crate) fn root(&self) -> Result<[u8; 32], LogError> {
        let root = tlog_tiles::tree_hash(self.size, &self.edge);
        root.map(|hash| hash.0).map_err(|_| LogError::Damaged("the tree's edge is not complete"))
    }

    /// Appends leaves by their hashes.
    pub(crate) fn grow(&self, leaves: impl IntoIterator<Item = [u8; 32]>) -> Result<Grown, LogError> {
        let first_hash = stored_hash_index(0, self.size);
        let (mut size, mut edge, mut hashes) = (self.size, self.edge.clone(), Vec::new());
        for leaf in leaves {
            let new = stored_hashes_for_record_hash(size, Hash(leaf), &edge)
                .map_err(|_| LogError::Damaged("the tree's edge is not complete"))?;
            edge.0.extend((stored_hash_index(0, size)..).zip(new.iter().copied()));
            hashes.extend(new);
            size += 1;
        }
        let kept = Self::positions(size);
        edge.0.retain(|position, _| kept.contains(position));
        Ok(Grown { frontier: Self { size, edge }, first_hash, hashes })
    }
}
