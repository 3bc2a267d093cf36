//! How long to wait before the next try: full jitter, capped.

use chancery_types::Entropy;
use std::time::Duration;

/// Delays between tries at something that may come back.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    tries: u32,
}

impl Backoff {
    /// Up to `first` after the first failure, doubling up to `cap`.
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, tries: 0 }
    }

    /// It worked: the next failure counts as the first again.
    pub const fn reset(&mut self) {
        self.tries = 0;
    }

    /// It failed: how long to wait, uniformly between nothing and the bound.
    pub fn next(&mut self, entropy: &dyn Entropy) -> Duration {
        let bound = self.first.saturating_mul(1 << self.tries.min(20)).min(self.cap);
        self.tries = self.tries.saturating_add(1);
        let share = f64::from(u32::from_be_bytes(entropy.array())) / f64::from(u32::MAX);
        bound.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn grows_to_the_cap_and_starts_again() {
        let entropy = SeededEntropy::new(1);
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(first, cap);
        assert!(backoff.next(&entropy) <= first);
        let delays: Vec<_> = (0..1000).map(|_| backoff.next(&entropy)).collect();
        assert!(delays.iter().all(|d| *d <= cap));
        assert!(delays.iter().any(|d| *d > cap / 2) && delays.iter().any(|d| *d < cap / 2));
        backoff.reset();
        assert!(backoff.next(&entropy) <= first);
    }
}
