//! Reading inputs: messages of the contract, and small numbers for state machines; and what one input
//! makes for the next.

use arbitrary::Unstructured;
use bytes::Bytes;
use prost::Message;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{LazyLock, Mutex};

/// A message of the contract, if the bytes are one. Encoded and decoded again it is the same.
pub(crate) fn message<M: Message + Default + PartialEq>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(Bytes::copy_from_slice(bytes)).ok()?;
    let again = M::decode(message.encode_to_vec().as_slice());
    assert!(again.is_ok_and(|again| again == message), "a message changes by encoding");
    Some(message)
}

/// Steps of a state machine, read from an input until it ends.
pub(crate) struct Steps<'a>(Unstructured<'a>);

impl<'a> Steps<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether something is left, at most `most` times.
    pub(crate) fn more(&self, taken: usize, most: usize) -> bool {
        !self.0.is_empty() && taken < most
    }

    /// A number below `bound`, which is not 0. Beyond the end: 0.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0.int_in_range(0..=bound - 1).unwrap_or(0)
    }

    /// One of them.
    pub(crate) fn of<'t, T>(&mut self, all: &'t [T]) -> &'t T {
        &all[self.below(u32::try_from(all.len()).unwrap()) as usize]
    }

    /// Heads or tails.
    pub(crate) fn flip(&mut self) -> bool {
        self.below(2) == 1
    }

    /// Any number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    /// Up to `most` bytes.
    pub(crate) fn bytes(&mut self, most: u32) -> &'a [u8] {
        let length = self.below(most + 1) as usize;
        let length = length.min(self.0.len());
        self.0.bytes(length).unwrap_or_default()
    }

    /// All that is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }
}

/// What a target itself makes of the same things again and again, and what takes time to make: its keys
/// and signatures, the proofs that it compares with. What the product says is never kept.
pub(crate) struct Memo<K, V>(LazyLock<Mutex<HashMap<K, V>>>);

impl<K: Eq + Hash, V: Clone> Memo<K, V> {
    /// Most of them; then it begins anew.
    const MOST: usize = 1 << 15;

    pub(crate) const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// Of this key; `make` makes the same of it each time.
    pub(crate) fn of(&self, key: K, make: impl FnOnce() -> V) -> V {
        if let Some(made) = self.0.lock().unwrap().get(&key) {
            return made.clone();
        }
        let made = make();
        let mut all = self.0.lock().unwrap();
        if all.len() == Self::MOST {
            all.clear();
        }
        all.insert(key, made.clone());
        made
    }
}
