//! Chance that can be had again: numbers, choices and pauses from a seed.

use chancery_types::Entropy;
use chancery_types::entropy::SeededEntropy;
use std::time::Duration;

/// Chance, the same for the same seed and row.
pub struct Dice(Box<dyn Entropy>);

impl Dice {
    /// The row's own chance.
    pub fn new(seed: u64, row: u64) -> Self {
        // An odd factor: rows of one seed never share a generator.
        Self(Box::new(SeededEntropy::new(seed.rotate_left(32) ^ row.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    }

    /// A number below `end`, as good as evenly.
    pub fn below(&mut self, end: u64) -> u64 {
        u64::from_le_bytes(self.0.array()) % end
    }

    /// One of a list that is not empty.
    pub fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len() as u64) as usize]
    }

    /// Whether something happens that does so `percent` times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A duration from the shorter up to the longer.
    pub fn between(&mut self, shorter: Duration, longer: Duration) -> Duration {
        let span = u64::try_from(longer.saturating_sub(shorter).as_millis()).unwrap_or(u64::MAX);
        shorter + Duration::from_millis(self.below(span.saturating_add(1)))
    }

    /// A pause before what comes that often on average and at any moment.
    pub fn pause(&mut self, mean: Duration) -> Duration {
        // Never 0, of which there is no logarithm.
        let share = (self.below(1 << 53) + 1) as f64 / (1_u64 << 53) as f64;
        mean.mul_f64(-share.ln())
    }

    /// An id.
    pub fn uuid(&mut self) -> uuid::Uuid {
        uuid::Builder::from_random_bytes(self.0.array()).into_uuid()
    }

    /// Bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.fill(&mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_row_give_the_same() {
        let draw = |seed, row| {
            let mut dice = Dice::new(seed, row);
            (dice.below(1 << 40), dice.uuid(), dice.bytes(9), dice.pause(Duration::from_secs(1)))
        };
        assert_eq!(draw(7, 1), draw(7, 1));
        assert!(draw(7, 1) != draw(7, 2) && draw(7, 1) != draw(8, 1));
    }

    #[test]
    fn pauses_have_their_mean_and_spans_their_ends() {
        let mut dice = Dice::new(1, 1);
        let total: Duration = (0..1000).map(|_| dice.pause(Duration::from_secs(1))).sum();
        assert!((900..1100).contains(&total.as_secs()), "{total:?}");
        let (one, two) = (Duration::from_millis(1), Duration::from_millis(2));
        assert!((0..100).all(|_| (one..=two).contains(&dice.between(one, two))));
        assert_eq!(dice.between(two, two), two);
    }
}
