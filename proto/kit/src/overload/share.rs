//! Who holds how much of something bounded.

use std::collections::HashMap;
use std::hash::Hash;

/// Of what the others leave, a caller may hold one part in so many.
const PART: u64 = 4;

/// Holdings by caller. The more callers hold much, the less each may hold, so that
/// a few are never in the way of one that holds nothing.
#[derive(Debug)]
pub struct Shares<K> {
    held: HashMap<K, u64>,
    total: u64,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self { held: HashMap::new(), total: 0 }
    }
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// Gives a caller so much more of `capacity`, or says no. Who holds nothing gets
    /// what it asks for while anything is free, even beyond the capacity once.
    pub fn take(&mut self, caller: &K, amount: u64, capacity: u64) -> bool {
        let held = self.held.get(caller).copied().unwrap_or(0);
        let others = self.total.saturating_sub(held);
        let fair = if held == 0 {
            self.total < capacity
        } else {
            held.saturating_add(amount) <= capacity.saturating_sub(others) / PART
        };
        if fair {
            self.total = self.total.saturating_add(amount);
            *self.held.entry(caller.clone()).or_default() += amount;
        }
        fair
    }

    /// A caller holds so much less.
    pub fn give(&mut self, caller: &K, amount: u64) {
        self.total = self.total.saturating_sub(amount);
        if let Some(held) = self.held.get_mut(caller) {
            *held = held.saturating_sub(amount);
            if *held == 0 {
                self.held.remove(caller);
            }
        }
    }

    /// What all hold together.
    pub const fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(shares: &mut Shares<u32>, caller: u32, capacity: u64) -> u64 {
        (0..).take_while(|_| shares.take(&caller, 1, capacity)).count() as u64
    }

    #[test]
    fn one_caller_gets_a_quarter_and_many_share() {
        let mut shares = Shares::default();
        assert_eq!(fill(&mut shares, 0, 128), 32);
        // What is left for each shrinks, and is never nothing before all is taken.
        let got: Vec<u64> = (1..100).map(|caller| fill(&mut shares, caller, 128)).collect();
        assert!(got.is_sorted_by(|more, less| more >= less));
        assert_eq!(got.first(), Some(&24));
        assert_eq!(shares.total(), 128);
        assert_eq!(got.iter().filter(|got| **got > 0).count(), 17);
    }

    #[test]
    fn who_holds_nothing_gets_in_while_anything_is_free() {
        let mut shares = Shares::default();
        for noisy in 0..10 {
            fill(&mut shares, noisy, 128);
        }
        assert!(shares.total() < 128);
        assert!(!shares.take(&0, 1, 128));
        assert!(shares.take(&99, 1, 128));
    }

    #[test]
    fn what_is_given_back_can_be_had_again() {
        let mut shares = Shares::default();
        assert!(shares.take(&1, 500, 400), "once beyond the capacity");
        assert!(!shares.take(&2, 1, 400));
        shares.give(&1, 500);
        assert_eq!((shares.total(), shares.held.len()), (0, 0));
        assert!(shares.take(&2, 1, 400));
    }
}
