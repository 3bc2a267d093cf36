//! That nothing is left out of a part of the map, checked as those who look up do.

use super::{Item, MAX_ITEMS, Sum, bit};
use crate::Error;
use crate::prefix::{MAX_BITS, Prefix};

/// The part of the map that a lookup names, with the way to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Sums beside the way from the root down to the part, the root's child first.
    pub siblings: Vec<Sum>,
    /// Every item of the part, in order. When the part is a bucket that is
    /// larger than the prefix, others' as well.
    pub items: Vec<Item>,
}

impl Place {
    /// Checks that these are all items that stand under `prefix` of `bits` bits
    /// in the map with this root.
    ///
    /// # Errors
    /// [`Error::Proof`]: an item is missing, foreign, out of order or twice; a
    /// bucket is larger or smaller than the map's rule makes it; or the sums do
    /// not lead to the root.
    pub fn verify(&self, prefix: Prefix, bits: u32, root: &Sum) -> Result<(), Error> {
        let head = u32::from_be_bytes(prefix.to_bytes());
        let depth = u32::try_from(self.siblings.len()).unwrap_or(u32::MAX);
        if depth > bits.min(MAX_BITS) {
            return Err(Error::Proof("a proof of the map goes deeper than the prefix"));
        }
        if depth < bits.min(MAX_BITS) && self.items.len() > MAX_ITEMS {
            return Err(Error::Proof("a bucket of the map is larger than it may be"));
        }
        if self.items.windows(2).any(|pair| matches!(pair, [a, b] if a.key() >= b.key())) {
            return Err(Error::Proof("items of the map are not in order, or one is there twice"));
        }
        let place = Prefix::from_bits(head, depth);
        if self.items.iter().any(|item| !item.is_under(place, depth)) {
            return Err(Error::Proof("an item of the map stands in another place"));
        }
        let mut sum = Sum::of(&self.items, depth);
        for (sibling, depth) in self.siblings.iter().zip(0..depth).rev() {
            sum = if bit(head, depth) { Sum::inner(sibling, &sum) } else { Sum::inner(&sum, sibling) };
            if sum.items <= MAX_ITEMS as u64 {
                return Err(Error::Proof("a bucket of the map is smaller than it may be"));
            }
        }
        if sum == *root { Ok(()) } else { Err(Error::Proof("the items do not lead to the map's root")) }
    }
}
