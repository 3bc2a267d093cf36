//! When callers that were refused should come again.

use chancery_types::Entropy;
use std::time::Duration;
use tokio::time::Instant;

/// Soonest return: sooner ones would cost more than they bring.
const SOONEST: Duration = Duration::from_millis(100);
/// Latest return, so that all who were refused are back soon after the flood.
const LATEST: Duration = Duration::from_secs(4);

/// Returns that were promised: one after the other, at the pace at which work gets
/// done, so that those who come again do not make the next flood.
#[derive(Debug, Default)]
pub struct Comebacks {
    /// When the last of them is due.
    last: Option<Instant>,
}

impl Comebacks {
    /// How long the next caller should wait when work like its own takes `pace`:
    /// jittered over half of the wait, between 50 ms and 4 s.
    pub fn next(&mut self, pace: Duration, entropy: &dyn Entropy) -> Duration {
        let now = Instant::now();
        let due = self.last.map_or(now, |last| last.max(now)) + pace;
        let due = due.min(now + LATEST);
        self.last = Some(due);
        let wait = due.duration_since(now).max(SOONEST);
        let part = f64::from(u32::from_le_bytes(entropy.array::<4>())) / f64::from(u32::MAX);
        wait.mul_f64(0.5 + part / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::SystemEntropy;

    #[tokio::test(start_paused = true)]
    async fn returns_come_at_the_pace_of_the_work() {
        let (mut comebacks, pace) = (Comebacks::default(), Duration::from_millis(10));
        let waits: Vec<Duration> = (0..1000).map(|_| comebacks.next(pace, &SystemEntropy)).collect();
        for (index, wait) in waits.iter().enumerate() {
            let due = (pace * u32::try_from(index + 1).unwrap()).clamp(SOONEST, LATEST);
            assert!(*wait >= due / 2 && *wait <= due, "{index}: {wait:?}");
        }
        // Promises that have passed are forgotten.
        tokio::time::advance(LATEST).await;
        assert!(comebacks.next(pace, &SystemEntropy) <= SOONEST);
    }
}
