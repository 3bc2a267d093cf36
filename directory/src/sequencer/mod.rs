//! The directory's one writer. Whatever queued while the last batch flushed is
//! judged in order, logged in one transaction, and answered after its commit.
//! Roots of the map are logged along, at most one in an interval.

mod batch;
mod task;

use crate::view::Showing;
use chancery_directory_core::channel::SignedChannel;
use chancery_directory_core::client::Publication;
use chancery_directory_core::governance::GovernanceKeys;
use chancery_directory_core::manifest::SignedManifest;
use chancery_directory_core::record::SignedRecord;
use chancery_directory_log::{Appender, LogError};
use chancery_kit::store::{DatabasePlace, Store};
use chancery_proto::directory::v1 as wire;
use chancery_types::{Clock, Entropy, Reason, Refusal};
use sqlx::Any;
use std::sync::Arc;
use std::time::Duration;
use task::Task;
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait; more callers wait for a place.
const QUEUE: usize = 4_096;
/// What is to be logged.
enum Work {
    Record(Box<SignedRecord>),
    Statement(wire::SignedStatement),
    Ceremony(Box<wire::ConcludedCeremony>),
    Totals(wire::SignedEvaluationTotals),
    Channel(Box<SignedChannel>),
    Manifest(Box<SignedManifest>),
    /// A root of the map, though it did not change.
    Root,
}

struct Job {
    work: Work,
    /// After commit.
    answer: oneshot::Sender<Result<Publication, Refusal>>,
}

/// The way to the sequencer. Cheap to clone; the sequencer ends with the last one.
#[derive(Clone)]
pub(crate) struct Sequencer {
    jobs: mpsc::Sender<Job>,
}

/// What a sequencer works with.
pub(crate) struct Parts {
    pub(crate) federation: String,
    pub(crate) governance: GovernanceKeys,
    pub(crate) store: Store<Any>,
    pub(crate) database: DatabasePlace,
    pub(crate) appender: Appender,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    /// Least time between two roots of a map that changes.
    pub(crate) root_interval: Duration,
}

impl Sequencer {
    /// Reads what is stored and starts; shows it from then on.
    pub(crate) async fn start(parts: Parts, showing: Showing) -> Result<Self, LogError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        tokio::spawn(Task::start(parts, showing).await?.run(queue));
        Ok(Self { jobs })
    }

    /// Logs a root of the map, though it did not change.
    pub(crate) async fn root(&self) -> Result<(), Refusal> {
        self.submit(Work::Root).await.map(drop)
    }

    /// Logs a record.
    pub(crate) async fn publish(&self, record: SignedRecord) -> Result<Publication, Refusal> {
        self.submit(Work::Record(Box::new(record))).await
    }

    /// Logs a statement; gives the index of its entry.
    pub(crate) async fn decide(&self, statement: wire::SignedStatement) -> Result<u64, Refusal> {
        Ok(self.submit(Work::Statement(statement)).await?.index)
    }

    /// Logs what a ceremony of the evaluators came to; gives the index of its entry.
    pub(crate) async fn conclude(&self, concluded: wire::ConcludedCeremony) -> Result<u64, Refusal> {
        Ok(self.submit(Work::Ceremony(Box::new(concluded))).await?.index)
    }

    /// Logs what an evaluator answered in a day; gives the index of its entry.
    pub(crate) async fn total(&self, totals: wire::SignedEvaluationTotals) -> Result<u64, Refusal> {
        Ok(self.submit(Work::Totals(totals)).await?.index)
    }

    /// Logs a channel; gives the index of its entry.
    pub(crate) async fn put_channel(&self, channel: SignedChannel) -> Result<u64, Refusal> {
        Ok(self.submit(Work::Channel(Box::new(channel))).await?.index)
    }

    /// Logs a manifest; gives the index of its entry.
    pub(crate) async fn broadcast(&self, manifest: SignedManifest) -> Result<u64, Refusal> {
        Ok(self.submit(Work::Manifest(Box::new(manifest))).await?.index)
    }

    async fn submit(&self, work: Work) -> Result<Publication, Refusal> {
        let gone = || Refusal::new(Reason::ShuttingDown, "the directory is stopping; try again");
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { work, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}
