//! What this endpoint believes of the directory: the latest checkpoint it
//! verified and the statements in force. Fetched through the home node, verified
//! against the federation's keys, kept in the store, and never taken back: each
//! checkpoint must contain the one before it.

use crate::alarm::{self, Alarm};
use crate::credential::AgentName;
use crate::error::EndpointError;
use crate::keepsake;
use crate::node_client::NodeClient;
use crate::store::EndpointStore;
use crate::{peer, resolve};
use chancery_directory_core::channel::Channel;
use chancery_directory_core::lookup::{ALARMING_AGE, VerifiedHead, VerifiedLookup};
use chancery_directory_core::manifest::VerifiedManifest;
use chancery_directory_core::{AgentKey, FederationState, Prefix, Trust, VerifiedCheckpoint};
use chancery_proto::directory::v1::{ListChannelsRequest, ListStatementsResponse, LoggedManifest};
use chancery_types::{ChannelId, Handle, NodeId, Reason, Refusal};
use prost::Message as _;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

const STATEMENTS: &str = "statements";
const CHECKPOINT: &str = "checkpoint";
/// Longest wait for a root of the map that covers an entry: they are logged on change, 5 s apart.
const ROOT_WAIT: Duration = Duration::from_secs(20);
/// How often it is looked for.
const ROOT_LOOK: Duration = Duration::from_millis(250);

/// The federation as the log has it.
pub(crate) struct DirectoryView {
    trust: Arc<Trust>,
    client: NodeClient,
    store: EndpointStore,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    checkpoint: Option<VerifiedCheckpoint>,
    state: Option<Arc<FederationState>>,
    fetched_at: Option<Instant>,
}

impl DirectoryView {
    pub(crate) fn new(trust: Trust, client: NodeClient, store: EndpointStore) -> Self {
        Self { trust: Arc::new(trust), client, store, known: Mutex::default() }
    }

    /// The statements in force: as known, or fetched.
    pub(crate) async fn state(&self) -> Result<Arc<FederationState>, Refusal> {
        let mut known = self.known.lock().await;
        match self.recall(&mut known).await? {
            Some(state) => Ok(state),
            None => self.fetch(&mut known).await,
        }
    }

    /// The statements as known.
    async fn recall(&self, known: &mut Known) -> Result<Option<Arc<FederationState>>, Refusal> {
        if known.state.is_none() {
            let kept = self.call(|tx| keepsake::get(tx, STATEMENTS)).await?;
            let kept = kept.and_then(|bytes| ListStatementsResponse::decode(&*bytes).ok());
            let verified = kept.and_then(|kept| self.trust.verify_statements(kept).ok());
            known.state = verified.map(|(_, state)| Arc::new(state));
        }
        Ok(known.state.clone())
    }

    /// Fetches the statements anew.
    pub(crate) async fn refresh(&self) -> Result<Arc<FederationState>, Refusal> {
        self.fetch(&mut *self.known.lock().await).await
    }

    /// Fetches the statements anew unless that was done not longer than `age` ago.
    pub(crate) async fn refresh_after(&self, age: Duration) -> Result<(), Refusal> {
        let mut known = self.known.lock().await;
        match known.fetched_at {
            Some(at) if at.elapsed() <= age => Ok(()),
            _ => self.fetch(&mut known).await.map(drop),
        }
    }

    async fn fetch(&self, known: &mut Known) -> Result<Arc<FederationState>, Refusal> {
        let response = self.client.list_statements().await?;
        let bytes = response.encode_to_vec();
        let (checkpoint, state) = self.trust.verify_statements(response)?;
        let size = checkpoint.size();
        self.follow(known, checkpoint).await?;
        if known.checkpoint.as_ref().is_some_and(|newest| newest.size() > size)
            && let Some(state) = self.recall(known).await?
        {
            // The node lags, or would have us forget what was decided since.
            return Ok(state);
        }
        let agents = agents(self.trust.federation(), &state);
        self.call(move |tx| {
            peer::replace_agents(tx, &agents)?;
            keepsake::put(tx, STATEMENTS, &bytes)
        })
        .await?;
        let state = Arc::new(state);
        known.state = Some(Arc::clone(&state));
        known.fetched_at = Some(Instant::now());
        Ok(state)
    }

    /// Takes a checkpoint that came with another answer.
    pub(crate) async fn see(&self, checkpoint: VerifiedCheckpoint) -> Result<(), Refusal> {
        self.follow(&mut *self.known.lock().await, checkpoint).await
    }

    /// What stands under the prefixes of handles, by roots behind entry `after`.
    ///
    /// # Errors
    /// TOO_LARGE: fewer at once. Otherwise who cannot be reached, or what does not hold.
    pub(crate) async fn look_up(&self, handles: &[Handle], after: u64) -> Result<VerifiedLookup, Refusal> {
        self.places_of(|bits| handles.iter().map(|handle| Prefix::of(handle, bits)).collect(), after).await
    }

    /// What stands for a channel, by a root behind entry `after`: waits for it, because roots are
    /// logged some seconds apart.
    ///
    /// # Errors
    /// DIRECTORY_STALE: no such root came. Otherwise who cannot be reached, or what does not hold.
    pub(crate) async fn channel(&self, id: &ChannelId, after: u64) -> Result<Option<VerifiedHead>, Refusal> {
        let begun = Instant::now();
        loop {
            let lookup = self.places_of(|bits| [Prefix::of_channel(id, bits)].into(), after).await?;
            if after == 0 || lookup.roots().iter().all(|root| root.index > after) {
                return Ok(lookup.channel(id)?.cloned());
            }
            if begun.elapsed() > ROOT_WAIT {
                return Err(Refusal::new(Reason::DirectoryStale, "no root of the map covers the entry yet"));
            }
            tokio::time::sleep(ROOT_LOOK).await;
        }
    }

    /// Verifies that the log holds a manifest, and that `agent` signed it.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn verify_manifest(
        &self,
        logged: LoggedManifest,
        agent: &AgentKey,
    ) -> Result<VerifiedManifest, Refusal> {
        Ok(self.trust.verify_manifest(logged, agent)?)
    }

    /// Channels as their owners published them, each in the log; all of them, or of one
    /// administration.
    ///
    /// # Errors
    /// Who cannot be reached, or what does not hold.
    pub(crate) async fn channels(&self, administration: Option<&NodeId>) -> Result<Vec<Channel>, Refusal> {
        let mut request = ListChannelsRequest {
            administration: administration.map(ToString::to_string).unwrap_or_default(),
            ..ListChannelsRequest::default()
        };
        let mut channels = Vec::new();
        loop {
            let response = self.client.list_channels(&request).await?;
            let (checkpoint, listed) = self.trust.verify_channels(response)?;
            self.see(checkpoint).await?;
            let Some((last, _)) = listed.last() else { return Ok(channels) };
            if *last < request.start {
                return Err(Refusal::new(
                    Reason::DirectoryMisbehaved,
                    "channels are listed that nobody asked for",
                ));
            }
            request.start = last + 1;
            let wanted =
                |channel: &Channel| administration.is_none_or(|wanted| *wanted == channel.administration);
            channels.extend(listed.into_iter().map(|(_, channel)| channel).filter(wanted));
        }
    }

    async fn places_of(
        &self,
        prefixes: impl Fn(u32) -> BTreeSet<Prefix>,
        after: u64,
    ) -> Result<VerifiedLookup, Refusal> {
        let bits = self.state().await?.lookup_prefix_bits();
        match self.places(prefixes(bits), after, bits).await {
            // The federation may have settled on prefixes of another length.
            Err(refusal) if matches!(refusal.reason, Reason::InvalidProof | Reason::InvalidField) => {
                match self.refresh().await?.lookup_prefix_bits() {
                    now if now == bits => Err(refusal),
                    now => self.places(prefixes(now), after, now).await,
                }
            }
            found => found,
        }
    }

    async fn places(
        &self,
        prefixes: BTreeSet<Prefix>,
        after: u64,
        bits: u32,
    ) -> Result<VerifiedLookup, Refusal> {
        let prefixes: Vec<Prefix> = prefixes.into_iter().collect();
        let named = prefixes.iter().map(|prefix| prefix.to_bytes().to_vec().into()).collect();
        let response = self.client.lookup(named, after).await?;
        let (trust, now) = (Arc::clone(&self.trust), self.call(|tx| Ok(tx.now())).await?);
        let verify = move || trust.verify_lookup(response, &prefixes, bits, now);
        let verified = resolve::blocking(verify).await??;
        for root in verified.roots() {
            match self.see(root.checkpoint.clone()).await {
                // Fail static: without the directory there is no proof, and what its
                // key signed counts until it is too old.
                Err(refusal) if refusal.reason == Reason::DirectoryUnreachable => {
                    tracing::warn!("endpoint.directory.unproven");
                }
                seen => seen?,
            }
        }
        if verified.age(now) > ALARMING_AGE {
            self.call(|tx| alarm::raise_after(tx, Alarm::DirectoryStale, ALARMING_AGE)).await?;
        }
        Ok(verified)
    }

    async fn follow(&self, known: &mut Known, new: VerifiedCheckpoint) -> Result<(), Refusal> {
        if known.checkpoint.is_none() {
            let kept = self.call(|tx| keepsake::get(tx, CHECKPOINT)).await?;
            known.checkpoint = kept.and_then(|note| self.trust.verify_checkpoint(&note).ok());
        }
        let Some(old) = &known.checkpoint else {
            return self.settle_on(known, new).await;
        };
        if new.size() == old.size() && new.root() == old.root() {
            return Ok(());
        }
        // A node may lag behind what another told: then the old one must contain the new.
        let grows = new.size() >= old.size();
        let (shorter, longer) = if grows { (old, &new) } else { (&new, old) };
        let path = match shorter.size() {
            0 => Vec::new(),
            size if size == longer.size() => Vec::new(),
            size => self.client.prove_consistency(size, longer.size()).await?,
        };
        if longer.extends(shorter, &path).is_err() {
            self.call(|tx| alarm::raise(tx, Alarm::DirectoryForked, None)).await?;
            return Err(Refusal::new(
                Reason::DirectoryMisbehaved,
                "the directory's log does not contain what it showed before",
            ));
        }
        if grows { self.settle_on(known, new).await } else { Ok(()) }
    }

    async fn settle_on(&self, known: &mut Known, checkpoint: VerifiedCheckpoint) -> Result<(), Refusal> {
        let note = checkpoint.note().clone();
        self.call(move |tx| keepsake::put(tx, CHECKPOINT, &note)).await?;
        known.checkpoint = Some(checkpoint);
        Ok(())
    }

    async fn call<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut crate::store::Tx<'_>) -> Result<T, EndpointError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.store.call(operation).await.map_err(Refusal::from)
    }
}

fn agents(federation: &str, state: &FederationState) -> Vec<(AgentName, [u8; 32])> {
    state
        .members()
        .flat_map(|member| member.agents.iter().map(move |(name, key)| (member, name, key)))
        .map(|(member, name, key)| {
            let name = AgentName {
                federation: federation.to_owned(),
                administration: member.administration.clone(),
                name: name.clone(),
            };
            (name, *key.as_bytes())
        })
        .collect()
}
