//! A mirror: it follows a directory's log, replays it, keeps the records, and answers
//! lookups in the directory's place. It shows nothing that does not follow from the log.

use crate::DirectoryError;
use crate::store::write::{NewBody, NewRows};
use crate::store::{self, read};
use crate::stored;
use crate::view::{RootedMap, Showing};
use chancery_directory_core::attestation::CLOCK_SKEW;
use chancery_directory_core::entry::{Leaf, SALT_LENGTH, commitment};
use chancery_directory_core::map::Item;
use chancery_directory_core::merkle;
use chancery_directory_core::note::CheckpointSigner;
use chancery_directory_core::record::SignedRecord;
use chancery_directory_core::replay::{Effect, Replay};
use chancery_directory_core::{Error, Trust, VerifiedCheckpoint};
use chancery_directory_log::{Appender, LogReader, directory_call};
use chancery_kit::store::{DatabasePlace, Store};
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_types::{Clock, Reason, Refusal};
use sqlx::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Entries that are fetched and stored at once.
const STEP: u64 = 1_024;
/// How often the directory is asked for more.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Records that are asked for again in one round.
const MISSING: usize = 64;
/// Largest answer of the directory: a step's records, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// The copy, and whom it is a copy of.
pub(crate) struct Mirror {
    trust: Trust,
    directory: DirectoryServiceClient<Channel>,
    store: Store<Any>,
    appender: Appender,
    replay: Replay,
    showing: Showing,
    head: watch::Sender<VerifiedCheckpoint>,
    /// The newest root among the entries taken since something was shown.
    rooted: Option<RootedMap>,
    /// Items of the map whose records the directory did not give: by entry.
    missing: BTreeMap<u64, Item>,
    clock: Arc<dyn Clock>,
    database: DatabasePlace,
    /// Whether a commit may have failed or not: then all is read again first.
    unsure: bool,
}

impl Mirror {
    /// Opens the copy as far as it was made, and shows what it holds. Gives the log
    /// under the directory's own checkpoints.
    pub(crate) async fn open(
        trust: Trust,
        directory: Channel,
        database: &DatabasePlace,
        signer: CheckpointSigner,
        showing: Showing,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Store<Any>, LogReader), DirectoryError> {
        let store = Store::open_any(database, &store::migrations()).await?;
        let (appender, log) = Appender::open(store.clone(), signer).await?;
        let next = appender.next_index();
        let replay =
            stored::replay((store.readers(), database), trust.federation(), trust.governance(), next).await?;
        let kept = read::mirrored(store.readers()).await?;
        let kept = kept.map(|note| trust.verify_checkpoint(&note)).transpose()?;
        let directory = DirectoryServiceClient::new(directory).max_decoding_message_size(MAX_ANSWER);
        // Nothing is shown before the first checkpoint: its place holds the copy's own.
        let head = watch::Sender::new(kept.clone().unwrap_or_else(|| log.checkpoint()));
        let log = log.under(head.subscribe());
        let mut mirror = Self {
            trust,
            directory,
            store: store.clone(),
            appender,
            replay,
            showing,
            head,
            rooted: None,
            missing: by_entry(read::bare_items(store.readers()).await?),
            clock,
            database: database.clone(),
            unsure: false,
        };
        let root = read::root(store.readers()).await?;
        if let (Some(kept), Some((index, sequenced_at, sum))) = (kept, root) {
            let mut map = mirror.replay.map().clone();
            if map.root() == sum {
                let channels = mirror.replay.channels().clone();
                mirror.rooted = Some(RootedMap { map, channels, index, sequenced_at });
            }
            // What no kept checkpoint covers is shown with the next one.
            if index < kept.size() {
                mirror.show();
            }
        }
        Ok((mirror, store, log))
    }

    /// Follows until `shutdown`. A directory whose log does not hold is left where it
    /// last did: what is shown grows old, and those who ask see how old.
    pub(crate) async fn follow(mut self, shutdown: CancellationToken) {
        let following = async {
            loop {
                if let Err(error) = self.catch_up().await {
                    let misbehaved =
                        matches!(error.reason, Reason::InvalidProof | Reason::DirectoryMisbehaved);
                    if misbehaved {
                        tracing::error!(entry = self.replay.next(), error = %error.message, "mirror.directory.wrong");
                    } else {
                        tracing::warn!(reason = error.reason.as_str(), "mirror.follow.fail");
                    }
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        };
        let _ = shutdown.run_until_cancelled(following).await;
    }

    /// Takes all that the directory has logged by now.
    async fn catch_up(&mut self) -> Result<(), Refusal> {
        if self.unsure {
            self.appender.reload().await?;
            let (rows, next) = ((self.store.readers(), &self.database), self.appender.next_index());
            let (federation, governance) = (self.trust.federation(), self.trust.governance());
            self.replay = stored::replay(rows, federation, governance, next).await?;
            self.missing = by_entry(read::bare_items(self.store.readers()).await?);
            self.unsure = false;
        }
        let request = wire::FetchCheckpointRequest {};
        let answer = directory_call(self.directory.fetch_checkpoint(request)).await?;
        let checkpoint = self.trust.verify_checkpoint(&answer.checkpoint)?;
        let shown = self.head.borrow().clone();
        if checkpoint.size() < self.replay.next() {
            return Err(Error::Proof("the directory went back").into());
        }
        if checkpoint.size() == shown.size() && checkpoint.root() == shown.root() {
            return self.ask_for_missing().await;
        }
        while self.replay.next() < checkpoint.size() {
            self.step(&checkpoint).await?;
        }
        self.prove(&checkpoint, checkpoint.size(), self.appender.root()?).await?;
        let note = checkpoint.note().clone();
        let kept = self.store.write("mirror.head", move |connection| {
            let note = note.clone();
            Box::pin(async move { store::write::mirrored(connection, &note).await })
        });
        kept.await?;
        self.head.send_replace(checkpoint);
        self.show();
        self.ask_for_missing().await
    }

    /// Asks again for records that the directory did not give, a few at a time: those
    /// that were erased will not come, and their erasure is in the log.
    async fn ask_for_missing(&mut self) -> Result<(), Refusal> {
        let asked: Vec<Item> = self.missing.values().take(MISSING).copied().collect();
        for item in asked {
            let index = item.index();
            let request = wire::ListRecordsRequest { start: index, end: index + 1 };
            let records = directory_call(self.directory.list_records(request)).await?.records;
            let body = records.into_iter().find(|record| record.index == index).and_then(|found| found.body);
            let Some(body) = body else { continue };
            let record = checked(&body, item.commitment())?;
            let previous = SignedRecord::try_from(record.clone())?.previous_index();
            let body = NewBody::new(item, previous, body, 0);
            let rows = Arc::new(NewRows { bodies: vec![body], ..NewRows::default() });
            let written = self.store.write("mirror.missing", move |connection| {
                let rows = Arc::clone(&rows);
                Box::pin(async move { rows.write(connection).await })
            });
            if let Err(error) = written.await {
                self.unsure = true;
                return Err(error.into());
            }
            self.missing.remove(&index);
        }
        Ok(())
    }

    /// Shows what was replayed, state and map of the newest root.
    fn show(&mut self) {
        self.showing.state.send_replace(Arc::new(self.replay.state().clone()));
        if let Some(rooted) = self.rooted.take() {
            self.showing.map.send_replace(Arc::new(rooted));
        }
    }

    /// Fetches, verifies, replays and stores some entries.
    async fn step(&mut self, checkpoint: &VerifiedCheckpoint) -> Result<(), Refusal> {
        let start = self.replay.next();
        let limit = u32::try_from(STEP.min(checkpoint.size() - start)).unwrap_or(1);
        let entries =
            directory_call(self.directory.list_entries(wire::ListEntriesRequest { start, limit })).await?;
        let leaves = entries.entries.into_iter().map(Leaf::from_bytes).collect::<Result<Vec<_>, _>>()?;
        let missing =
            || Refusal::new(Reason::DirectoryMisbehaved, "the directory lists fewer entries than it has");
        if leaves.is_empty() || leaves.len() > limit as usize {
            return Err(missing());
        }
        let batch = self.appender.prepare(leaves.clone())?;
        let end = batch.checkpoint().size();
        self.prove(checkpoint, end, *batch.checkpoint().root()).await?;
        let records = wire::ListRecordsRequest { start, end };
        let records = directory_call(self.directory.list_records(records)).await?.records;
        let bodies = records.into_iter().filter_map(|record| Some((record.index, record.body?))).collect();

        let mut replay = self.replay.clone();
        let Taken { rows, rooted, bare } = take(&mut replay, &leaves, bodies)?;
        if replay.last() > self.clock.now().after(CLOCK_SKEW) {
            return Err(Error::Proof("the directory's clock is ahead of the mirror's").into());
        }
        let gone = rows.gone.clone();
        let (writing, rows) = (batch.clone(), Arc::new(rows));
        let written = self.store.write("mirror.step", move |connection| {
            let (batch, rows) = (writing.clone(), Arc::clone(&rows));
            Box::pin(async move {
                batch.write(connection).await?;
                rows.write(connection).await
            })
        });
        if let Err(error) = written.await {
            self.unsure = true;
            return Err(error.into());
        }
        self.appender.committed(&batch);
        self.replay = replay;
        self.missing.extend(by_entry(bare));
        for entry in gone {
            self.missing.remove(&entry);
        }
        self.rooted = rooted.or(self.rooted.take());
        Ok(())
    }

    /// Checks that the tree of `size` leaves with this root is part of the checkpoint's.
    async fn prove(
        &mut self,
        checkpoint: &VerifiedCheckpoint,
        size: u64,
        root: merkle::Hash,
    ) -> Result<(), Refusal> {
        if size == checkpoint.size() {
            return if root == *checkpoint.root() {
                Ok(())
            } else {
                Err(Error::Proof("the entries do not lead to the directory's checkpoint").into())
            };
        }
        let request = wire::ProveConsistencyRequest { old_size: size, new_size: checkpoint.size() };
        let path = directory_call(self.directory.prove_consistency(request)).await?.path;
        let path = merkle::path(&path)?;
        merkle::verify_consistency(size, &root, checkpoint.size(), checkpoint.root(), &path)?;
        Ok(())
    }
}

/// What some entries come to.
#[derive(Default)]
struct Taken {
    rows: NewRows,
    /// The newest root among them.
    rooted: Option<RootedMap>,
    /// Items whose records did not come along.
    bare: Vec<Item>,
}

/// Replays entries.
fn take(
    replay: &mut Replay,
    leaves: &[Leaf],
    mut bodies: HashMap<u64, wire::RecordBody>,
) -> Result<Taken, Refusal> {
    let mut taken = Taken::default();
    let rows = &mut taken.rows;
    for leaf in leaves {
        let index = replay.next();
        let effect = replay.take(leaf)?;
        let sequenced_at = replay.last();
        match effect {
            Effect::Record(change) => {
                let item = Item::new(&change, index, sequenced_at);
                rows.items.push(item);
                let replaced = change.previous_index.filter(|_| !change.pending);
                rows.gone.extend([replaced, change.ends_index].into_iter().flatten());
                // Erased by now, perhaps.
                let Some(body) = bodies.remove(&index) else {
                    taken.bare.push(item);
                    continue;
                };
                checked(&body, &change.commitment)?;
                rows.bodies.push(NewBody::new(item, change.previous_index, body, 0));
            }
            Effect::Channel(change) => rows.channels.push(change),
            Effect::Governs => rows.statements.push(index),
            Effect::Erases(records) => {
                rows.statements.push(index);
                rows.gone.extend(records.iter().map(|record| record.index));
                rows.erased.extend(records.iter().map(|record| record.index));
            }
            Effect::Root(_) => {
                rows.root = Some(index);
                let (map, channels) = (replay.map().clone(), replay.channels().clone());
                taken.rooted = Some(RootedMap { map, channels, index, sequenced_at });
            }
            Effect::Nothing => {}
        }
    }
    Ok(taken)
}

/// The record of a body, if it is the one that was committed to.
fn checked<'a>(body: &'a wire::RecordBody, committed: &[u8; 32]) -> Result<&'a wire::SignedRecord, Error> {
    const WRONG: Error = Error::Proof("a record is not the one that its entry commits to");
    let record = body.record.as_ref().ok_or(WRONG)?;
    let salt: [u8; SALT_LENGTH] = body.salt.as_ref().try_into().map_err(|_| WRONG)?;
    if commitment(&salt, record) == *committed { Ok(record) } else { Err(WRONG) }
}

fn by_entry(items: Vec<Item>) -> BTreeMap<u64, Item> {
    items.into_iter().map(|item| (item.index(), item)).collect()
}
