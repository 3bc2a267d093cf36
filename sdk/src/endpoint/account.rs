//! The account at the home node, and the devices that belong to it.

use super::{Endpoint, run};
use crate::identity::{self, OwnKey};
use crate::store::Tx;
use crate::{link, thread};
use backon::{ExponentialBuilder, Retryable as _};
use chancery_types::{Entropy, Refusal, Retry};
use std::time::Duration;

/// Pauses between attempts to register, at first and at most, before jitter.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

impl Endpoint {
    /// Opens the account at the home node (unless this device was linked) and
    /// publishes KeyPackages. Repeatable.
    ///
    /// # Errors
    /// The node's.
    pub async fn register(&self) -> Result<(), Refusal> {
        let is_first = self.0.call(|tx| Ok(identity::key(tx, OwnKey::Credential).is_ok())).await?;
        if is_first {
            self.0.client.open_account(self.0.identity.alias).await?;
        }
        let home = self.0.homes.borrow().first().cloned();
        if let Some(home) = home {
            self.0.greet(&home).await?;
        }
        run::refill(&self.0).await
    }

    /// Registers, however long the home node takes to come up.
    ///
    /// # Errors
    /// The node's refusal that no waiting mends.
    pub async fn register_patiently(&self, entropy: &dyn Entropy) -> Result<(), Refusal> {
        let pauses = ExponentialBuilder::new()
            .with_min_delay(PAUSES.0)
            .with_max_delay(PAUSES.1)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(u64::from_le_bytes(entropy.array()));
        (|| self.register())
            .retry(pauses)
            .when(|refusal: &Refusal| refusal.reason.retry() != Retry::Never)
            .adjust(|refusal, pause| {
                let named = refusal.retry_after.unwrap_or_default().min(PAUSES.1);
                pause.map(|pause| pause + named)
            })
            .notify(|refusal, _| {
                let reason = refusal.reason.as_str();
                tracing::warn!(reason, "the home node does not take the endpoint yet");
            })
            .await
    }

    /// The account key that an attestation must name: Ed25519, 32 bytes.
    ///
    /// # Errors
    /// UNSUPPORTED on a linked device.
    pub async fn account_key(&self) -> Result<[u8; 32], Refusal> {
        self.0.call(|tx| Ok(identity::key(tx, OwnKey::Account)?.verifying_key().to_bytes())).await
    }

    /// On a device that holds the credential key: signs for a new device, tells
    /// the node, and gives the grant to show. `trust`: what the new device needs
    /// to trust the federation, for [`Endpoint::accept_link`] to hand out.
    ///
    /// # Errors
    /// What is wrong with the request, or the node's.
    pub async fn approve_link(&self, request: Vec<u8>, trust: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        let approved = self.0.call(move |tx| link::approve(tx, &request, &trust)).await?;
        self.0.client.add_device(approved.device, approved.auth_key).await?;
        Ok(approved.grant)
    }

    /// Brings this account's other devices into all open threads in which they
    /// are missing; gives how many threads get them. They must have registered.
    ///
    /// # Errors
    /// The node's, or a false KeyPackage.
    pub async fn admit_devices(&self) -> Result<usize, Refusal> {
        let inner = &self.0;
        let own = (inner.client.node(), inner.identity.alias);
        let mut admitted = 0;
        for thread in inner.call(|tx| thread::all_open(tx)).await? {
            let suites = vec![u32::from(thread.suite.code())];
            let taken = inner.client.take_key_packages(std::slice::from_ref(&own), suites).await?;
            let key_packages = taken.into_iter().flat_map(|alias| alias.key_packages).collect();
            let admit = move |tx: &mut Tx<'_>| thread::admit::admit(tx, &thread.id, key_packages);
            admitted += usize::from(inner.call(admit).await?.is_some());
        }
        inner.outbox.notify_one();
        Ok(admitted)
    }
}
