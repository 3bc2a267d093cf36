//! Randomness as an argument. Nothing but [`SystemEntropy`] asks the machine.

use crate::{Clock, MessageId};
use rand::{RngCore as _, SeedableRng as _};
use std::sync::{Arc, Mutex, PoisonError};

/// Where random bytes come from.
pub trait Entropy: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

impl dyn Entropy + '_ {
    /// `N` random bytes.
    pub fn array<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A new message id: UUID version 7 (RFC 9562 §5.7), so that ids made one
    /// after the other lie side by side in an index.
    pub fn message_id(&self, clock: &dyn Clock) -> MessageId {
        let millis = u64::try_from(clock.now().millis()).unwrap_or(0);
        let id = uuid::Builder::from_unix_timestamp_millis(millis, &self.array::<10>()).into_uuid();
        MessageId::from_bytes(id.into_bytes())
    }

    /// An `rand_core` 0.6 generator on top, as the curve crates want it.
    pub fn rng(&self) -> EntropyRng<'_> {
        EntropyRng(self)
    }
}

/// Adapter to `rand_core` 0.6; see [`Entropy`].
pub struct EntropyRng<'a>(&'a dyn Entropy);

impl rand_core::CryptoRng for EntropyRng<'_> {}

impl rand_core::RngCore for EntropyRng<'_> {
    fn next_u32(&mut self) -> u32 {
        u32::from_le_bytes(self.0.array())
    }

    fn next_u64(&mut self) -> u64 {
        u64::from_le_bytes(self.0.array())
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.0.fill(bytes);
        Ok(())
    }
}

/// The machine's generator (a ChaCha generator seeded by the kernel).
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(clippy::disallowed_methods, reason = "the one place that asks for randomness")]
    fn fill(&self, bytes: &mut [u8]) {
        rand::rng().fill_bytes(bytes);
    }
}

/// A generator that gives the same bytes for the same seed; for tests and
/// simulations.
#[derive(Clone, Debug)]
pub struct SeededEntropy(Arc<Mutex<rand::rngs::StdRng>>);

impl SeededEntropy {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(rand::rngs::StdRng::seed_from_u64(seed))))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SystemClock, clock::ManualClock};

    #[test]
    fn message_ids_sort_by_time() {
        let clock = ManualClock::new(crate::Timestamp::from_millis(1_700_000_000_000));
        let entropy: &dyn Entropy = &SeededEntropy::new(1);
        let first = entropy.message_id(&clock);
        clock.advance(std::time::Duration::from_millis(1));
        assert!(first.as_bytes() < entropy.message_id(&clock).as_bytes());
        assert_eq!(uuid::Uuid::from_bytes(*first.as_bytes()).get_version_num(), 7);
        assert_ne!(first, entropy.message_id(&SystemClock));
    }
}
