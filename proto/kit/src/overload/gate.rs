//! Places for calls of one kind.

use super::{Comebacks, Shares};
use chancery_types::{Entropy, Reason, Refusal};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How slowly the mean follows: each call moves it by one part in so many.
const INERTIA: u32 = 32;

/// Places for calls of one kind; who finds none is refused at once.
pub struct Gate<K> {
    places: u64,
    entropy: Arc<dyn Entropy>,
    state: Mutex<State<K>>,
}

struct State<K> {
    shares: Shares<K>,
    comebacks: Comebacks,
    /// How long a call holds its place, on average.
    held_for: Duration,
}

impl<K: Hash + Eq + Clone> Gate<K> {
    /// A gate with so many places.
    pub fn new(places: u64, entropy: Arc<dyn Entropy>) -> Arc<Self> {
        let state =
            State { shares: Shares::default(), comebacks: Comebacks::default(), held_for: Duration::ZERO };
        Arc::new(Self { places, entropy, state: Mutex::new(state) })
    }

    /// A place for a call, held until the pass is dropped.
    ///
    /// # Errors
    /// OVERLOADED, with the time at which to come again: the caller holds its
    /// share, or there is no place at all.
    pub fn enter(self: &Arc<Self>, caller: K) -> Result<Pass<K>, Refusal> {
        let mut state = self.state();
        if state.shares.take(&caller, 1, self.places) {
            return Ok(Pass { gate: Arc::clone(self), caller, since: Instant::now() });
        }
        let pace = state.held_for.div_f64(self.places.max(1) as f64);
        let wait = state.comebacks.next(pace, &*self.entropy);
        Err(Refusal::new(Reason::Overloaded, "too many calls are under way").retry_after(wait))
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that a call holds.
pub struct Pass<K: Hash + Eq + Clone> {
    gate: Arc<Gate<K>>,
    caller: K,
    since: Instant,
}

impl<K: Hash + Eq + Clone> Drop for Pass<K> {
    fn drop(&mut self) {
        let held = self.since.elapsed();
        let mut state = self.gate.state();
        state.shares.give(&self.caller, 1);
        state.held_for = (state.held_for * (INERTIA - 1) + held) / INERTIA;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::SystemEntropy;

    #[test]
    fn a_noisy_caller_leaves_places_and_gets_its_own_back() {
        let gate = Gate::new(8, Arc::new(SystemEntropy));
        let noisy: Vec<_> = std::iter::from_fn(|| gate.enter(1).ok()).collect();
        assert_eq!(noisy.len(), 2);
        let refusal = gate.enter(1).map(drop).unwrap_err();
        assert_eq!(refusal.reason, Reason::Overloaded);
        assert!(refusal.retry_after.is_some());
        let quiet = gate.enter(2).unwrap();
        drop(noisy);
        drop(gate.enter(1).unwrap());
        drop(quiet);
        assert_eq!(gate.state().shares.total(), 0);
    }
}
