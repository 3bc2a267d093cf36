//! A batch as it grows: what is stored, and on top what it adds itself.

use super::Work;
use super::task::Task;
use crate::store::write::{NewBody, NewRows};
use chancery_directory_core::ceremony::conclusion::Conclusion;
use chancery_directory_core::channel::SignedChannel;
use chancery_directory_core::channels::{self, Channels, Head};
use chancery_directory_core::client::Publication;
use chancery_directory_core::entry::{Entry, Event, Leaf};
use chancery_directory_core::manifest::SignedManifest;
use chancery_directory_core::map::{Item, Map};
use chancery_directory_core::record::SignedRecord;
use chancery_directory_core::replay::ChannelChange;
use chancery_directory_core::rules::{Held, Judgement, Logged, judge};
use chancery_directory_core::state::Admission;
use chancery_directory_core::statement::{Decision, ErasedRecord};
use chancery_directory_core::totals::EvaluationTotals;
use chancery_directory_core::{Error, FederationState, governance};
use chancery_proto::directory::v1 as wire;
use chancery_types::{ChannelId, Handle, NodeId, Reason, Refusal, Timestamp};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;

pub(super) struct Batch {
    next: u64,
    pub(super) now: Timestamp,
    /// Set once the batch holds a statement.
    pub(super) state: Option<FederationState>,
    pub(super) channels: Channels,
    pub(super) map: Map,
    pub(super) leaves: Vec<Leaf>,
    pub(super) rows: NewRows,
    /// Entry of the root of the map that ends the batch.
    pub(super) root: Option<u64>,
    /// Whether a root is to end it, even if none is due.
    wants_root: bool,
    known: Known,
}

/// What is stored about that which a batch judges; with what the batch adds.
pub(super) struct Known {
    /// What stands for handles.
    pub(super) held: HashMap<Handle, Held>,
    /// Digest and entry of an evaluator's totals of a day.
    pub(super) totals: HashMap<(NodeId, u32), ([u8; 32], u64)>,
    /// Hash and entry of the manifest of a channel's sequence.
    pub(super) manifests: HashMap<(ChannelId, u64), ([u8; 32], u64)>,
}

impl Batch {
    pub(super) fn new(task: &Task, now: Timestamp, known: Known) -> Self {
        Self {
            next: task.parts.appender.next_index(),
            now,
            state: None,
            channels: task.channels.clone(),
            map: task.map.clone(),
            leaves: Vec::new(),
            rows: NewRows::default(),
            root: None,
            wants_root: false,
            known,
        }
    }

    pub(super) fn take(&mut self, work: Work, task: &Task) -> Result<Publication, Refusal> {
        let index = match work {
            Work::Record(record) => return self.record(*record, task),
            Work::Statement(statement) => self.statement(statement, task)?,
            Work::Ceremony(concluded) => self.ceremony(concluded, task)?,
            Work::Totals(totals) => self.totals(totals, task)?,
            Work::Channel(channel) => self.channel(*channel, task)?,
            Work::Manifest(manifest) => self.manifest(&manifest, task)?,
            Work::Root => {
                self.wants_root = true;
                self.next
            }
        };
        Ok(Publication { index, pending: false })
    }

    /// Ends the batch with a root of the map, if one is due and the map is not the
    /// one that the last root is of, or if somebody wants one.
    pub(super) fn finish(&mut self, root_is_due: bool, rooted: &Map) -> Result<(), Error> {
        if self.wants_root || (root_is_due && !self.map.is_same(rooted)) {
            let sum = self.map.root();
            let index = self.log(Event::MapRoot(sum))?;
            self.rows.root = Some(index);
            self.root = Some(index);
        }
        Ok(())
    }

    fn record(&mut self, record: SignedRecord, task: &Task) -> Result<Publication, Refusal> {
        let handle = *record.handle();
        let before = self.known.held.get(&handle).cloned().unwrap_or_default();
        let state = self.state.as_ref().unwrap_or(&task.state);
        let accepted = match judge(record, &before, state, self.now)? {
            Judgement::Accepted(accepted) => accepted,
            Judgement::Repeated(index) => {
                let pending = before.pending.is_some_and(|pending| pending.index == index);
                return Ok(Publication { index, pending });
            }
        };
        let salt = (*task.parts.entropy).array();
        let change = accepted.change(&salt);
        let index = self.next;
        self.map.apply(&change, index, self.now)?;
        self.log(Event::RecordChange(change))?;
        let item = Item::new(&change, index, self.now);
        self.rows.items.push(item);
        let replaced = change.previous_index.filter(|_| !change.pending);
        self.rows.gone.extend([replaced, change.ends_index].into_iter().flatten());
        let record = Some(accepted.record().wire().clone());
        let body = wire::RecordBody { record, salt: salt.to_vec().into() };
        self.rows.bodies.push(NewBody::new(item, change.previous_index, body, accepted.changes()));
        self.known.held.insert(handle, accepted.logged_at(index, self.now, before));
        Ok(Publication { index, pending: change.pending })
    }

    fn statement(&mut self, signed: wire::SignedStatement, task: &Task) -> Result<u64, Refusal> {
        let verified = governance::verify(&signed, &task.parts.federation, &task.parts.governance)?;
        match self.state.as_ref().unwrap_or(&task.state).admit(&verified)? {
            Admission::Logged(index) => return Ok(index),
            Admission::NonceReused => return Err(reused("the nonce was used by another statement")),
            Admission::New => {}
        }
        if let Decision::Erasure(records) = &verified.statement().decision {
            self.erase(records)?;
        }
        let index = self.log(Event::Statement(signed))?;
        self.rows.statements.push(index);
        self.state.get_or_insert_with(|| task.state.clone()).apply(verified, index, self.now);
        Ok(index)
    }

    /// All of them or none.
    fn erase(&mut self, records: &[ErasedRecord]) -> Result<(), Refusal> {
        let indices: Vec<_> = records.iter().map(|record| record.index).collect();
        let is_named = |logged: &Logged| indices.contains(&logged.index);
        let torn = |held: &Held| {
            let pending = held.pending.as_ref().map(is_named);
            pending.is_some_and(|pending| held.standing.as_ref().map(is_named) != Some(pending))
        };
        if self.known.held.values().any(torn) {
            let message = "a record and the re-enrolment that is pending over it are erased together";
            return Err(Error::Statement(message).into());
        }
        let mut map = self.map.clone();
        if !records.iter().all(|record| map.remove(record.handle_prefix, record.index)) {
            return Err(Error::Statement("an entry that is to be erased does not stand in the map").into());
        }
        self.map = map;
        self.known.held.retain(|_, held| !held.standing.as_ref().is_some_and(is_named));
        self.rows.gone.extend(&indices);
        self.rows.erased.extend(indices);
        // At once: a lookup must not miss a body that its root still names.
        self.wants_root = true;
        Ok(())
    }

    fn ceremony(&mut self, concluded: Box<wire::ConcludedCeremony>, task: &Task) -> Result<u64, Refusal> {
        let parts = &task.parts;
        let conclusion = Conclusion::verify(&concluded, &parts.federation, &parts.governance)?;
        let state = self.state.as_ref().unwrap_or(&task.state);
        if let Some(index) = state.concluded(conclusion.id()) {
            return Ok(index);
        }
        for fault in conclusion.judge(&concluded, state)? {
            tracing::warn!(evaluator = %fault.evaluator, fault = %fault.kind, "directory.ceremony.fault");
        }
        let index = self.log(Event::Ceremony(concluded))?;
        self.rows.statements.push(index);
        self.state.get_or_insert_with(|| task.state.clone()).conclude(conclusion, index);
        Ok(index)
    }

    fn totals(&mut self, signed: wire::SignedEvaluationTotals, task: &Task) -> Result<u64, Refusal> {
        let state = self.state.as_ref().unwrap_or(&task.state);
        let totals = EvaluationTotals::verify(&signed, state, self.now)?;
        let digest: [u8; 32] = Sha256::digest(&signed.totals).into();
        let day = (totals.evaluator, totals.day);
        match self.known.totals.get(&day) {
            Some((logged, index)) if *logged == digest => return Ok(*index),
            Some(_) => return Err(reused("other totals of the evaluator were logged for the day")),
            None => {}
        }
        let index = self.log(Event::EvaluationTotals(signed))?;
        self.rows.totals.push((day.clone(), digest, index));
        self.known.totals.insert(day, (digest, index));
        Ok(index)
    }

    fn channel(&mut self, signed: SignedChannel, task: &Task) -> Result<u64, Refusal> {
        let state = self.state.as_ref().unwrap_or(&task.state);
        match self.channels.judge(&signed, &task.parts.federation, state)? {
            channels::Judgement::New => {}
            channels::Judgement::Repeated(index) => return Ok(index),
        }
        let (event, index) = (Event::Channel(signed.wire().clone()), self.next);
        let mut channels = self.channels.clone();
        let (head, before) = channels.apply(signed, index, self.now);
        self.put(event, channels, &head, before, None)?;
        Ok(index)
    }

    fn manifest(&mut self, signed: &SignedManifest, task: &Task) -> Result<u64, Refusal> {
        let state = self.state.as_ref().unwrap_or(&task.state);
        let manifest = signed.manifest();
        let (place, hash) = ((manifest.channel, manifest.sequence), signed.hash());
        match self.channels.judge_manifest(signed, state, self.now)? {
            channels::Place::Next => {}
            channels::Place::Passed => match self.known.manifests.get(&place) {
                Some((logged, index)) if *logged == hash => return Ok(*index),
                _ => {
                    let message = "another broadcast of the sequence was logged";
                    return Err(Error::ChannelConflict(message).into());
                }
            },
        }
        let (event, index) = (Event::Manifest(signed.wire().clone()), self.next);
        let mut channels = self.channels.clone();
        let (head, before) = channels.apply_manifest(signed, index, self.now)?;
        self.put(event, channels, &head, before, Some((manifest.sequence, hash)))?;
        self.known.manifests.insert(place, (hash, index));
        Ok(index)
    }

    /// Logs what changes a channel: all of it or nothing.
    fn put(
        &mut self,
        event: Event,
        channels: Channels,
        head: &Head,
        before: Option<u64>,
        manifest: Option<(u64, [u8; 32])>,
    ) -> Result<(), Error> {
        let mut map = self.map.clone();
        let change = ChannelChange::apply(&mut map, head, before, manifest)?;
        self.log(event)?;
        (self.map, self.channels) = (map, channels);
        self.rows.channels.push(change);
        Ok(())
    }

    fn log(&mut self, event: Event) -> Result<u64, Error> {
        let index = self.next;
        self.leaves.push(Leaf::new(&Entry { sequenced_at: self.now, event })?);
        self.next += 1;
        Ok(index)
    }
}

fn reused(message: &'static str) -> Refusal {
    Refusal::new(Reason::RequestIdReused, message)
}
