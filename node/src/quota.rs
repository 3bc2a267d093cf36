//! How much each caller may ask for before others would suffer.

use chancery_types::{AccountId, NodeId, Reason, Refusal};
use governor::clock::DefaultClock;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// What a node allows. Each is a rate with a burst of ten seconds' worth.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaConfig {
    /// Accounts opened from one address, per second.
    pub accounts_per_address: NonZeroU32,
    /// KeyPackages taken by one account or peer, per second (counted by alias).
    pub key_packages: NonZeroU32,
    /// Identifiers evaluated for one account, per second.
    pub evaluations: NonZeroU32,
    /// Record operations passed on from one address, per second.
    pub operations_per_address: NonZeroU32,
}

impl Default for QuotaConfig {
    fn default() -> Self {
        Self {
            accounts_per_address: NonZeroU32::MIN.saturating_add(99),
            key_packages: NonZeroU32::MIN.saturating_add(1999),
            evaluations: NonZeroU32::MIN.saturating_add(1999),
            operations_per_address: NonZeroU32::MIN.saturating_add(99),
        }
    }
}

type Keyed<K> = RateLimiter<K, DefaultKeyedStateStore<K>, DefaultClock>;

/// Who has used how much.
pub(crate) struct Quotas {
    accounts: Keyed<IpAddr>,
    key_packages: Keyed<[u8; 16]>,
    peers: Keyed<NodeId>,
    evaluations: Keyed<[u8; 16]>,
    operations: Keyed<IpAddr>,
}

impl Quotas {
    pub(crate) fn new(config: &QuotaConfig) -> Self {
        Self {
            accounts: keyed(config.accounts_per_address),
            key_packages: keyed(config.key_packages),
            peers: keyed(config.key_packages),
            evaluations: keyed(config.evaluations),
            operations: keyed(config.operations_per_address),
        }
    }

    /// An address opens an account.
    pub(crate) fn open_account(&self, address: IpAddr) -> Result<(), Refusal> {
        take(&self.accounts, &address, 1)
    }

    /// An account takes KeyPackages of aliases.
    pub(crate) fn take_key_packages(&self, account: &AccountId, aliases: usize) -> Result<(), Refusal> {
        take(&self.key_packages, account.as_bytes(), aliases)
    }

    /// A peer takes KeyPackages of aliases.
    pub(crate) fn peer_takes_key_packages(&self, peer: &NodeId, aliases: usize) -> Result<(), Refusal> {
        take(&self.peers, peer, aliases)
    }

    /// An account has identifiers evaluated.
    pub(crate) fn evaluate(&self, account: &AccountId, identifiers: usize) -> Result<(), Refusal> {
        take(&self.evaluations, account.as_bytes(), identifiers)
    }

    /// An address has a record operation passed on.
    pub(crate) fn publish(&self, address: IpAddr) -> Result<(), Refusal> {
        take(&self.operations, &address, 1)
    }

    /// Forgets callers that have not used anything lately.
    pub(crate) fn sweep(&self) {
        self.accounts.retain_recent();
        self.key_packages.retain_recent();
        self.peers.retain_recent();
        self.evaluations.retain_recent();
        self.operations.retain_recent();
    }
}

fn keyed<K: Hash + Eq + Clone>(rate: NonZeroU32) -> Keyed<K> {
    let burst = rate.saturating_mul(NonZeroU32::MIN.saturating_add(9));
    RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst))
}

fn take<K: Hash + Eq + Clone>(limiter: &Keyed<K>, key: &K, count: usize) -> Result<(), Refusal> {
    let Some(count) = u32::try_from(count).ok().and_then(NonZeroU32::new) else {
        return Err(Refusal::field("the list is empty or too long"));
    };
    match limiter.check_key_n(key, count) {
        Ok(Ok(())) => Ok(()),
        _ => Err(Refusal::new(
            Reason::QuotaExceeded,
            "the caller's quota is used up for now; wait and try again",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_ends_and_others_are_not_hurt() {
        let quotas = Quotas::new(&QuotaConfig { key_packages: NonZeroU32::MIN, ..Default::default() });
        let (one, other) = (AccountId::from_bytes([1; 16]), AccountId::from_bytes([2; 16]));
        quotas.take_key_packages(&one, 10).unwrap();
        assert_eq!(quotas.take_key_packages(&one, 5).unwrap_err().reason, Reason::QuotaExceeded);
        quotas.take_key_packages(&other, 10).unwrap();
        assert_eq!(quotas.take_key_packages(&other, 0).unwrap_err().reason, Reason::InvalidField);
    }
}
