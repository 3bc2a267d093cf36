//! Verifying proofs of an RFC 6962 tree, as a client does. Making them is the
//! log's room. Stricter than RFC 9162's algorithms: nothing follows from a
//! tree of size 0, and every hash has 32 bytes.

use crate::Error;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

/// A node of the tree.
pub type Hash = [u8; 32];

/// Longest path in hashes.
pub const MAX_PATH: usize = 63;

/// Root of the empty tree: SHA-256 of nothing.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// Hash of a leaf (RFC 6962, section 2.1).
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    let mut hash = Sha256::new();
    hash.update([0]);
    hash.update(leaf);
    hash.finalize().into()
}

/// Hash of an inner node (RFC 6962, section 2.1).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut hash = Sha256::new();
    hash.update([1]);
    hash.update(left);
    hash.update(right);
    hash.finalize().into()
}

/// A path as received.
///
/// # Errors
/// More than [`MAX_PATH`] hashes, or one has not 32 bytes.
pub fn path(hashes: &[Bytes]) -> Result<Vec<Hash>, Error> {
    if hashes.len() > MAX_PATH {
        return Err(Error::Proof("a proof has more than 63 hashes"));
    }
    hashes.iter().map(|h| hash(h)).collect()
}

/// A hash as received.
///
/// # Errors
/// Not 32 bytes.
pub fn hash(bytes: &[u8]) -> Result<Hash, Error> {
    bytes.try_into().map_err(|_| Error::Proof("a hash has not 32 bytes"))
}

/// Checks that `leaf` stands at `index` in the tree of `size` leaves with
/// `root` (RFC 9162, section 2.1.3.2).
///
/// # Errors
/// [`Error::Proof`].
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> Result<(), Error> {
    const WRONG: Error = Error::Proof("the proof of inclusion does not lead to the root");
    if index >= size {
        return Err(WRONG);
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in path {
        if last == 0 {
            return Err(WRONG);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            climb_to_right_child(&mut node, &mut last);
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last == 0 && hash == *root { Ok(()) } else { Err(WRONG) }
}

/// Checks that the tree of `old_size` leaves is a prefix of that of `new_size`
/// (RFC 9162, section 2.1.4.2).
///
/// # Errors
/// [`Error::Proof`].
pub fn verify_consistency(
    old_size: u64,
    old_root: &Hash,
    new_size: u64,
    new_root: &Hash,
    path: &[Hash],
) -> Result<(), Error> {
    const WRONG: Error = Error::Proof("the proof of consistency does not hold");
    if old_size == 0 || old_size > new_size {
        return Err(WRONG);
    }
    if old_size == new_size {
        return if path.is_empty() && old_root == new_root { Ok(()) } else { Err(WRONG) };
    }
    let (mut node, mut last) = (old_size - 1, new_size - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    // A complete old tree is itself the first node: the path leaves it out.
    let (first, rest) =
        if old_size.is_power_of_two() { (old_root, path) } else { path.split_first().ok_or(WRONG)? };
    if rest.is_empty() {
        return Err(WRONG);
    }
    let (mut old, mut new) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return Err(WRONG);
        }
        if node & 1 == 1 || node == last {
            old = node_hash(sibling, &old);
            new = node_hash(sibling, &new);
            climb_to_right_child(&mut node, &mut last);
        } else {
            new = node_hash(&new, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last == 0 && old == *old_root && new == *new_root { Ok(()) } else { Err(WRONG) }
}

/// Skips the levels at which the node is promoted without a sibling.
fn climb_to_right_child(node: &mut u64, last: &mut u64) {
    while *node & 1 == 0 && *node != 0 {
        *node >>= 1;
        *last >>= 1;
    }
}

#[cfg(test)]
mod tests;
