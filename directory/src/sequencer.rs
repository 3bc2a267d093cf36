//! The directory's one writer. Whatever queued while the last batch flushed is
//! judged in order, logged in one transaction, and answered after its commit.

use crate::store::{self, NewRows};
use chancery_directory_core::ceremony::conclusion::Conclusion;
use chancery_directory_core::entry::{Entry, Event, Leaf};
use chancery_directory_core::governance::{self, GovernanceKeys};
use chancery_directory_core::operation::RecordOperation;
use chancery_directory_core::record::{Standing, judge};
use chancery_directory_core::state::Admission;
use chancery_directory_core::totals::EvaluationTotals;
use chancery_directory_core::{Error, FederationState};
use chancery_directory_log::{Appender, LogError};
use chancery_kit::store::Store;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Clock, Entropy, Handle, NodeId, Reason, Refusal, Timestamp};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use sqlx::Sqlite;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Jobs that may wait; more callers wait for a place.
const QUEUE: usize = 4_096;
/// Jobs of one batch at most.
const BATCH: usize = 512;

/// What is to be logged.
enum Work {
    Record(Box<RecordOperation>),
    Statement(wire::SignedStatement),
    Ceremony(Box<wire::ConcludedCeremony>),
    Totals(wire::SignedEvaluationTotals),
}

struct Job {
    work: Work,
    /// Index of the entry, after commit.
    answer: oneshot::Sender<Result<u64, Refusal>>,
}

/// The way to the sequencer. Cheap to clone; the sequencer ends with the last one.
#[derive(Clone)]
pub(crate) struct Sequencer {
    jobs: mpsc::Sender<Job>,
    state: watch::Receiver<Arc<FederationState>>,
}

/// What a sequencer works with.
pub(crate) struct Parts {
    pub(crate) federation: String,
    pub(crate) governance: GovernanceKeys,
    pub(crate) store: Store<Sqlite>,
    pub(crate) appender: Appender,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

impl Parts {
    /// The federation as the stored statements make it.
    async fn replay(&self) -> Result<FederationState, LogError> {
        let mut state = FederationState::default();
        for (index, leaf) in store::statements(self.store.readers()).await? {
            match leaf.entry()?.event {
                Event::Statement(signed) => {
                    state.apply(governance::verify(&signed, &self.federation, &self.governance)?, index);
                }
                Event::Ceremony(concluded) => {
                    let conclusion = Conclusion::verify(&concluded, &self.federation, &self.governance)?;
                    state.conclude(conclusion, index);
                }
                Event::RecordChange(_) | Event::EvaluationTotals(_) => {
                    return Err(LogError::Damaged("an entry kept as a statement is none"));
                }
            }
        }
        Ok(state)
    }
}

impl Sequencer {
    /// Replays the statements and starts.
    pub(crate) async fn start(parts: Parts) -> Result<Self, LogError> {
        let state = parts.replay().await?;
        let last = store::last_sequenced_at(parts.store.readers()).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (shown, receiver) = watch::channel(Arc::new(state.clone()));
        tokio::spawn(Task { parts, state, shown, last }.run(queue));
        Ok(Self { jobs, state: receiver })
    }

    /// What is in force.
    pub(crate) fn state(&self) -> Arc<FederationState> {
        self.state.borrow().clone()
    }

    /// Logs a record operation; gives the index of its entry.
    pub(crate) async fn publish(&self, operation: RecordOperation) -> Result<u64, Refusal> {
        self.submit(Work::Record(Box::new(operation))).await
    }

    /// Logs a statement; gives the index of its entry.
    pub(crate) async fn decide(&self, statement: wire::SignedStatement) -> Result<u64, Refusal> {
        self.submit(Work::Statement(statement)).await
    }

    /// Logs what a ceremony of the evaluators came to; gives the index of its entry.
    pub(crate) async fn conclude(&self, concluded: wire::ConcludedCeremony) -> Result<u64, Refusal> {
        self.submit(Work::Ceremony(Box::new(concluded))).await
    }

    /// Logs what an evaluator answered in a day; gives the index of its entry.
    pub(crate) async fn total(&self, totals: wire::SignedEvaluationTotals) -> Result<u64, Refusal> {
        self.submit(Work::Totals(totals)).await
    }

    async fn submit(&self, work: Work) -> Result<u64, Refusal> {
        let gone = || Refusal::new(Reason::ShuttingDown, "the directory is stopping; try again");
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { work, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

struct Task {
    parts: Parts,
    state: FederationState,
    shown: watch::Sender<Arc<FederationState>>,
    /// Time of the last entry: the log's times never go back.
    last: Timestamp,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut jobs, BATCH).await > 0 {
            let (work, answers): (Vec<_>, Vec<_>) = jobs.drain(..).map(|job| (job.work, job.answer)).unzip();
            match self.sequence(work).await {
                Ok(results) => {
                    for (answer, result) in answers.into_iter().zip(results) {
                        let _ = answer.send(result);
                    }
                }
                Err(error) => {
                    let refusal = Refusal::from(error);
                    for answer in answers {
                        let _ = answer.send(Err(refusal.clone()));
                    }
                }
            }
        }
    }

    /// Judges, logs, commits. An error: nothing was answered, and what was
    /// logged will be found again by request id.
    async fn sequence(&mut self, work: Vec<Work>) -> Result<Vec<Result<u64, Refusal>>, LogError> {
        let mut batch = self.begin(&work).await?;
        let results = work.into_iter().map(|work| batch.take(work, self)).collect();
        if batch.leaves.is_empty() {
            return Ok(results);
        }
        let entries = self.parts.appender.prepare(batch.leaves)?;
        let rows = Arc::new(batch.rows);
        let (writing, writing_rows) = (entries.clone(), rows);
        let written = self.parts.store.write("directory.sequence", move |connection| {
            let (entries, rows) = (writing.clone(), Arc::clone(&writing_rows));
            Box::pin(async move {
                entries.write(connection).await?;
                rows.write(connection).await
            })
        });
        if let Err(error) = written.await {
            self.recover().await?;
            return Err(error.into());
        }
        self.last = batch.now;
        if let Some(state) = batch.state {
            self.state = state;
            // Shown before the head: a reader of the head finds its statements in force.
            self.shown.send_replace(Arc::new(self.state.clone()));
        }
        self.parts.appender.committed(&entries);
        Ok(results)
    }

    /// Reads head and statements again after a commit that may have failed.
    async fn recover(&mut self) -> Result<(), LogError> {
        self.parts.appender.reload().await?;
        self.state = self.parts.replay().await?;
        self.shown.send_replace(Arc::new(self.state.clone()));
        Ok(())
    }

    async fn begin(&self, work: &[Work]) -> Result<Batch, LogError> {
        let (mut ids, mut handles, mut days) = (Vec::new(), Vec::new(), Vec::new());
        for work in work {
            match work {
                Work::Record(operation) => {
                    ids.push(operation.request_id);
                    handles.push(*operation.record.handle());
                }
                Work::Totals(totals) => days.extend(EvaluationTotals::claim(totals).ok()),
                Work::Statement(_) | Work::Ceremony(_) => {}
            }
        }
        let pool = self.parts.store.readers();
        let now = self.parts.clock.now().max(self.last);
        Ok(Batch {
            next: self.parts.appender.next_index(),
            now,
            state: None,
            leaves: Vec::new(),
            rows: NewRows { sequenced_at_ms: now.millis(), ..NewRows::default() },
            logged: store::operations(pool, &ids).await?,
            standing: store::standing(pool, &handles).await?,
            totals: store::totals(pool, &days).await?,
        })
    }
}

/// A batch as it grows: what is stored, and on top what it adds itself.
struct Batch {
    next: u64,
    now: Timestamp,
    /// Set once the batch holds a statement.
    state: Option<FederationState>,
    leaves: Vec<Leaf>,
    rows: NewRows,
    logged: HashMap<[u8; 16], ([u8; 32], u64)>,
    standing: HashMap<Handle, Standing>,
    totals: HashMap<(NodeId, u32), ([u8; 32], u64)>,
}

impl Batch {
    fn take(&mut self, work: Work, task: &Task) -> Result<u64, Refusal> {
        match work {
            Work::Record(operation) => self.record(*operation, task),
            Work::Statement(statement) => self.statement(statement, task),
            Work::Ceremony(concluded) => self.ceremony(concluded, task),
            Work::Totals(totals) => self.totals(totals, task),
        }
    }

    fn record(&mut self, operation: RecordOperation, task: &Task) -> Result<u64, Refusal> {
        match self.logged.get(&operation.request_id) {
            Some((digest, index)) if *digest == operation.digest => return Ok(*index),
            Some(_) => return Err(reused("the request id was used for another record")),
            None => {}
        }
        let handle = *operation.record.handle();
        let state = self.state.as_ref().unwrap_or(&task.state);
        let accepted = judge(operation.record, self.standing.get(&handle), state, self.now)?;
        let salt = (*task.parts.entropy).array();
        let index = self.log(Event::RecordChange(accepted.change(&salt)))?;
        self.rows.bodies.push((index, accepted.record().wire().encode_to_vec(), salt));
        self.rows.records.insert(handle, index);
        self.rows.operations.push((operation.request_id, operation.digest, index));
        self.logged.insert(operation.request_id, (operation.digest, index));
        self.standing.insert(handle, accepted.standing_at(index));
        Ok(index)
    }

    fn statement(&mut self, signed: wire::SignedStatement, task: &Task) -> Result<u64, Refusal> {
        let verified = governance::verify(&signed, &task.parts.federation, &task.parts.governance)?;
        match self.state.as_ref().unwrap_or(&task.state).admit(&verified)? {
            Admission::Logged(index) => return Ok(index),
            Admission::NonceReused => return Err(reused("the nonce was used by another statement")),
            Admission::New => {}
        }
        let index = self.log(Event::Statement(signed))?;
        self.rows.statements.push(index);
        self.state.get_or_insert_with(|| task.state.clone()).apply(verified, index);
        Ok(index)
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
        match self.totals.get(&day) {
            Some((logged, index)) if *logged == digest => return Ok(*index),
            Some(_) => return Err(reused("other totals of the evaluator were logged for the day")),
            None => {}
        }
        let index = self.log(Event::EvaluationTotals(signed))?;
        self.rows.totals.push((day.clone(), digest, index));
        self.totals.insert(day, (digest, index));
        Ok(index)
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
