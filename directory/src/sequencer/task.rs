//! The task that owns the log and the map.

use super::batch::{Batch, Known};
use super::{Job, Parts, Work};
use crate::store::read;
use crate::stored;
use crate::view::{RootedMap, Showing};
use chancery_directory_core::FederationState;
use chancery_directory_core::channels::Channels;
use chancery_directory_core::client::Publication;
use chancery_directory_core::governance;
use chancery_directory_core::map::{Kind, Map};
use chancery_directory_core::rules::Held;
use chancery_directory_core::totals::EvaluationTotals;
use chancery_directory_log::LogError;
use chancery_types::{Handle, Refusal, Timestamp};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Jobs of one batch at most.
const BATCH: usize = 512;
/// Pause after a root that could not be logged.
const ROOT_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Task {
    pub(super) parts: Parts,
    pub(super) state: FederationState,
    pub(super) channels: Channels,
    /// With all that is logged; shown as of the latest root.
    pub(super) map: Map,
    showing: Showing,
    /// When that root was logged.
    rooted_at: Instant,
    /// Time of the last entry: the log's times never go back.
    last: Timestamp,
    /// Whether a commit may have failed or not: then nothing is judged before all is
    /// read again.
    unsure: bool,
}

impl Task {
    /// Reads what is stored; logs a root of the map unless the stored one is its.
    pub(super) async fn start(parts: Parts, showing: Showing) -> Result<Self, LogError> {
        let mut task = Self {
            parts,
            state: FederationState::default(),
            channels: Channels::default(),
            map: Map::default(),
            showing,
            rooted_at: Instant::now(),
            last: Timestamp::from_millis(i64::MIN),
            unsure: false,
        };
        task.read().await?;
        match read::root(task.parts.store.readers()).await? {
            Some((index, sequenced_at, sum)) if sum == task.map.root() => {
                let (map, channels) = (task.map.clone(), task.channels.clone());
                let rooted = RootedMap { map, channels, index, sequenced_at };
                task.showing.map.send_replace(Arc::new(rooted));
            }
            _ => drop(task.sequence(vec![Work::Root]).await?),
        }
        Ok(task)
    }

    /// State, channels and map as stored.
    async fn read(&mut self) -> Result<(), LogError> {
        let parts = &self.parts;
        let rows = (parts.store.readers(), &parts.database);
        let next = parts.appender.next_index();
        let stored = stored::replay(rows, &parts.federation, &parts.governance, next).await?;
        (self.state, self.map, self.last) = (stored.state().clone(), stored.map().clone(), stored.last());
        self.channels = stored.channels().clone();
        self.showing.state.send_replace(Arc::new(self.state.clone()));
        Ok(())
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        loop {
            let root_due = self.rooted_at + self.parts.root_interval;
            let is_stale = self.map_is_ahead();
            tokio::select! {
                received = queue.recv_many(&mut jobs, BATCH) => if received == 0 { return },
                () = sleep_until(root_due), if is_stale => {}
            }
            let (mut work, answers): (Vec<_>, Vec<_>) =
                jobs.drain(..).map(|job| (job.work, job.answer)).unzip();
            if answers.is_empty() {
                work.push(Work::Root);
            }
            match self.sequence(work).await {
                Ok(results) => {
                    for (answer, result) in answers.into_iter().zip(results) {
                        let _ = answer.send(result);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "directory.sequence.fail");
                    if answers.is_empty() {
                        tokio::time::sleep(ROOT_AGAIN).await;
                    }
                    let refusal = Refusal::from(error);
                    for answer in answers {
                        let _ = answer.send(Err(refusal.clone()));
                    }
                }
            }
        }
    }

    /// Whether something is logged that no root covers.
    fn map_is_ahead(&self) -> bool {
        !self.map.is_same(&self.showing.map.borrow().map)
    }

    /// Judges, logs, commits. An error: nothing was answered, and what was
    /// logged is found again when it is handed in again.
    async fn sequence(&mut self, work: Vec<Work>) -> Result<Vec<Result<Publication, Refusal>>, LogError> {
        if self.unsure {
            self.parts.appender.reload().await?;
            self.read().await?;
            self.unsure = false;
        }
        let mut batch = self.begin(&work).await?;
        let results = work.into_iter().map(|work| batch.take(work, self)).collect();
        let root_is_due = self.rooted_at.elapsed() >= self.parts.root_interval;
        batch.finish(root_is_due, &self.showing.map.borrow().map)?;
        if batch.leaves.is_empty() {
            return Ok(results);
        }
        let entries = self.parts.appender.prepare(std::mem::take(&mut batch.leaves))?;
        let (writing, rows) = (entries.clone(), Arc::new(std::mem::take(&mut batch.rows)));
        let written = self.parts.store.write("directory.sequence", move |connection| {
            let (entries, rows) = (writing.clone(), Arc::clone(&rows));
            Box::pin(async move {
                entries.write(connection).await?;
                rows.write(connection).await
            })
        });
        if let Err(error) = written.await {
            self.unsure = true;
            return Err(error.into());
        }
        self.last = batch.now;
        if let Some(state) = batch.state {
            self.state = state;
            // Shown before the head: a reader of the head finds its statements in force.
            self.showing.state.send_replace(Arc::new(self.state.clone()));
        }
        self.map = batch.map;
        self.channels = batch.channels;
        if let Some(index) = batch.root {
            let (map, channels) = (self.map.clone(), self.channels.clone());
            let rooted = RootedMap { map, channels, index, sequenced_at: batch.now };
            self.showing.map.send_replace(Arc::new(rooted));
            self.rooted_at = Instant::now();
        }
        self.parts.appender.committed(&entries);
        Ok(results)
    }

    /// Reads what the work will be judged against.
    async fn begin(&self, work: &[Work]) -> Result<Batch, LogError> {
        let (mut entries, mut days, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for work in work {
            match work {
                Work::Record(record) => {
                    let [a, b, c, d, ..] = *record.handle().as_bytes();
                    entries.extend(self.records_under([a, b, c, d]));
                }
                Work::Statement(statement) => {
                    let erased = governance::erased(statement);
                    entries.extend(erased.iter().flat_map(|record| self.records_under(record.handle_prefix)));
                }
                Work::Totals(totals) => days.extend(EvaluationTotals::claim(totals).ok()),
                Work::Manifest(manifest) => {
                    sequences.push((manifest.manifest().channel, manifest.manifest().sequence));
                }
                Work::Ceremony(_) | Work::Channel(_) | Work::Root => {}
            }
        }
        let pool = self.parts.store.readers();
        entries.sort_unstable();
        entries.dedup();
        let indices: Vec<_> = entries.iter().map(|(index, _)| *index).collect();
        let mut logged = read::logged(pool, &indices).await?;
        let mut held: HashMap<Handle, Held> = HashMap::with_capacity(logged.len());
        for (index, pending) in entries {
            let found = logged.remove(&index).ok_or(LogError::Damaged("a record that stands has no body"))?;
            let held = held.entry(*found.record.handle()).or_default();
            *(if pending { &mut held.pending } else { &mut held.standing }) = Some(found);
        }
        let now = self.parts.clock.now().max(self.last);
        let totals = read::totals(pool, &days).await?;
        let manifests = read::manifests(pool, &sequences).await?;
        Ok(Batch::new(self, now, Known { held, totals, manifests }))
    }

    /// Entries of what stands for handles that begin like this, and whether it is pending.
    fn records_under(&self, prefix: [u8; 4]) -> impl Iterator<Item = (u64, bool)> {
        let under = self.map.under(prefix).iter().filter(|item| item.kind() != Kind::Channel);
        under.map(|item| (item.index(), item.kind() == Kind::Pending))
    }
}
