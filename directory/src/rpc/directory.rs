//! `chancery.directory.v1.DirectoryService`.

use super::{MAX_REQUEST, admit, is_directory, node};
use crate::places::Places;
use crate::sequencer::Sequencer;
use crate::store::read;
use crate::view::View;
use bytes::Bytes;
use chancery_directory_core::client::Publication;
use chancery_directory_core::entry::{Entry, Event};
use chancery_directory_core::lookup::MAX_PREFIXES;
use chancery_directory_core::merkle::Hash;
use chancery_directory_core::operation::OperationKey;
use chancery_directory_core::record::SignedRecord;
use chancery_directory_core::{Error, Prefix, VerifiedCheckpoint, manifest};
use chancery_directory_log::LogReader;
use chancery_kit::serve::{REFUSALS, unary};
use chancery_kit::store::DatabasePlace;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_server::{DirectoryService, DirectoryServiceServer};
use chancery_types::{Entropy, NodeId, Reason, Refusal};
use sqlx::{Any, Pool};
use std::sync::Arc;
use tokio::sync::RwLock;
use tonic::{Request, Response, Status};

/// Name of the service, for health.
pub(crate) const NAME: &str = "chancery.directory.v1.DirectoryService";

/// Entries listed when the caller names no number.
const DEFAULT_ENTRIES: u32 = 256;
/// Channels listed when the caller names no number.
const DEFAULT_CHANNELS: u32 = 100;
/// Channels listed at most.
const MAX_CHANNELS: u32 = 256;
/// Entries listed at most.
const MAX_ENTRIES: u32 = 1_024;

/// What the service works with.
pub(crate) struct Service {
    view: View,
    log: LogReader,
    records: Pool<Any>,
    places: Places,
    /// A mirror has none.
    writer: Option<Writer>,
    /// The root that lookups named last: size of the log, its index, with proof.
    root: RwLock<Option<(u64, u64, wire::LoggedRoot)>>,
}

/// What writes to the log.
pub(crate) struct Writer {
    pub(crate) sequencer: Sequencer,
    pub(crate) key: OperationKey,
    pub(crate) entropy: Arc<dyn Entropy>,
}

impl Service {
    /// A directory's, or without a writer a mirror's.
    pub(crate) fn new(
        view: View,
        log: LogReader,
        (records, database): (Pool<Any>, &DatabasePlace),
        writer: Option<Writer>,
    ) -> Self {
        let places = Places::new(records.clone(), database);
        Self { view, log, records, places, writer, root: RwLock::default() }
    }

    /// As a tonic service with its limits.
    pub(crate) fn into_server(self) -> DirectoryServiceServer<Self> {
        DirectoryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<(), Refusal> {
        let (node, peer) = node(request)?;
        admit(&node, &peer, &self.view.state())
    }

    fn writer(&self) -> Result<&Writer, Refusal> {
        let mirror = || Refusal::new(Reason::Unsupported, "this is a mirror: hand it in at the directory");
        self.writer.as_ref().ok_or_else(mirror)
    }

    /// The latest checkpoint, or the first that covers an entry committed a moment ago.
    async fn covering(&self, index: Option<&u64>) -> Result<VerifiedCheckpoint, Refusal> {
        Ok(match index {
            Some(index) => self.log.covering(*index).await?,
            None => self.log.checkpoint(),
        })
    }

    async fn find(&self, request: wire::LookupRequest) -> Result<wire::LookupResponse, Refusal> {
        if !(1..=MAX_PREFIXES).contains(&request.prefixes.len()) {
            return Err(Refusal::field("a lookup has 1 to 256 prefixes"));
        }
        let bits = self.view.state().lookup_prefix_bits();
        let prefixes = request.prefixes.iter().map(|prefix| Prefix::from_wire(prefix, bits));
        let prefixes = prefixes.collect::<Result<Vec<_>, Error>>()?;
        let (root, places) = self.places.find(&self.view, &prefixes, bits).await?;
        Ok(wire::LookupResponse { places, roots: vec![self.root(root).await?] })
    }

    /// A root of the map with its proof. One is kept for as long as the log stands.
    async fn root(&self, index: u64) -> Result<wire::LoggedRoot, Refusal> {
        let checkpoint = self.log.covering(index).await?;
        if let Some(root) = self.root.read().await.as_ref().filter(|(size, ..)| *size == checkpoint.size())
            && root.1 == index
        {
            return Ok(root.2.clone());
        }
        let path = self.log.inclusion_proof(index, checkpoint.size()).await?;
        let entry = self.log.entries(index, 1).await?.pop();
        let entry = entry.ok_or_else(|| Refusal::new(Reason::Internal, "a root is not there"))?;
        let entry =
            wire::LoggedEntry { entry: entry.bytes().clone(), inclusion: Some(inclusion(index, path)) };
        let root = wire::LoggedRoot { entry: Some(entry), checkpoint: checkpoint.note().clone() };
        *self.root.write().await = Some((checkpoint.size(), index, root.clone()));
        Ok(root)
    }

    /// What becomes of an operation that opened; refusals are answers, too.
    async fn publish_opened(
        &self,
        record: Result<SignedRecord, Error>,
        sequencer: &Sequencer,
    ) -> wire::RecordOperationResult {
        use wire::record_operation_result::Result as Outcome;
        let outcome = async { sequencer.publish(record?).await };
        let result = match outcome.await {
            Ok(Publication { index, pending }) => Outcome::Logged(wire::LoggedOperation { index, pending }),
            Err(refusal) => {
                REFUSALS.add(refusal.reason);
                Outcome::Refusal(wire::RecordRefusal {
                    reason: refusal.reason.as_str().to_owned(),
                    message: refusal.message.into_owned(),
                })
            }
        };
        wire::RecordOperationResult { result: Some(result), padding: Bytes::new() }
    }

    async fn statements(&self, start: u64) -> Result<wire::ListStatementsResponse, Refusal> {
        let indices: Vec<_> =
            self.view.state().in_force().into_iter().filter(|index| *index >= start).collect();
        let (statements, checkpoint) = self.logged(&indices).await?;
        Ok(wire::ListStatementsResponse { statements, checkpoint: checkpoint.note().clone() })
    }

    async fn put_channel(
        &self,
        request: Request<wire::SubmitChannelRequest>,
    ) -> Result<wire::SubmitChannelResponse, Refusal> {
        self.admit(&request)?;
        let channel = request.into_inner().channel;
        let channel = channel.ok_or_else(|| Refusal::field("the channel is missing"))?;
        let index = self.writer()?.sequencer.put_channel(channel.try_into()?).await?;
        Ok(wire::SubmitChannelResponse { index })
    }

    async fn broadcast(
        &self,
        request: Request<wire::SubmitManifestRequest>,
    ) -> Result<wire::SubmitManifestResponse, Refusal> {
        self.admit(&request)?;
        let signed = request.into_inner().manifest;
        let signed = signed.ok_or_else(|| Refusal::field("the manifest is missing"))?;
        let index = self.writer()?.sequencer.broadcast(signed.clone().try_into()?).await?;
        let checkpoint = self.log.covering(index).await?;
        let path = self.log.inclusion_proof(index, checkpoint.size()).await?;
        let entry = self.log.entries(index, 1).await?.pop();
        let entry = entry.ok_or_else(|| Refusal::new(Reason::Internal, "a manifest is not there"))?;
        // As it was logged: the same again may be signed anew.
        let Entry { sequenced_at, event: Event::Manifest(logged) } = entry.entry()? else {
            return Err(Refusal::new(Reason::Internal, "an entry given for a manifest is none"));
        };
        let logged = manifest::logged(logged, sequenced_at, index, &path, &checkpoint);
        Ok(wire::SubmitManifestResponse { logged: Some(logged) })
    }

    async fn channels(
        &self,
        request: wire::ListChannelsRequest,
    ) -> Result<wire::ListChannelsResponse, Refusal> {
        let wanted: Option<NodeId> = match request.administration.as_str() {
            "" => None,
            name => Some(name.parse()?),
        };
        let limit = if request.limit == 0 { DEFAULT_CHANNELS } else { request.limit.min(MAX_CHANNELS) };
        let shown = self.view.map().await?;
        let heads = shown.channels.heads().filter(|head| {
            let owner = &head.channel.channel().administration;
            head.channel_index >= request.start && wanted.as_ref().is_none_or(|wanted| wanted == owner)
        });
        let mut indices: Vec<_> = heads.map(|head| head.channel_index).collect();
        indices.sort_unstable();
        indices.truncate(limit as usize);
        let (channels, checkpoint) = self.logged(&indices).await?;
        Ok(wire::ListChannelsResponse { channels, checkpoint: checkpoint.note().clone() })
    }

    /// Entries with the proofs that a checkpoint covers them.
    async fn logged(&self, indices: &[u64]) -> Result<(Vec<wire::LoggedEntry>, VerifiedCheckpoint), Refusal> {
        let checkpoint = self.covering(indices.last()).await?;
        let proofs = self.log.inclusion_proofs(indices, checkpoint.size()).await?;
        let mut logged = Vec::with_capacity(indices.len());
        for (index, path) in indices.iter().copied().zip(proofs) {
            let entry = self.log.entries(index, 1).await?.pop();
            let entry = entry.ok_or_else(|| Refusal::new(Reason::Internal, "an entry is not there"))?;
            let inclusion = Some(inclusion(index, path));
            logged.push(wire::LoggedEntry { entry: entry.bytes().clone(), inclusion });
        }
        Ok((logged, checkpoint))
    }

    async fn decided(
        &self,
        statement: Option<wire::SignedStatement>,
    ) -> Result<(u64, VerifiedCheckpoint), Refusal> {
        let statement = statement.ok_or_else(|| Refusal::field("the statement is missing"))?;
        let index = self.writer()?.sequencer.decide(statement).await?;
        Ok((index, self.log.covering(index).await?))
    }
}

#[tonic::async_trait]
impl DirectoryService for Service {
    async fn lookup(
        &self,
        request: Request<wire::LookupRequest>,
    ) -> Result<Response<wire::LookupResponse>, Status> {
        unary(async {
            self.admit(&request)?;
            self.find(request.into_inner()).await
        })
        .await
    }

    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<Response<wire::PublishResponse>, Status> {
        unary(async {
            self.admit(&request)?;
            let writer = self.writer()?;
            let opened = writer.key.open(request.get_ref())?;
            let result = self.publish_opened(opened.record, &writer.sequencer).await;
            Ok(opened.answer.seal(result, &*writer.entropy)?)
        })
        .await
    }

    async fn submit_statement(
        &self,
        request: Request<wire::SubmitStatementRequest>,
    ) -> Result<Response<wire::SubmitStatementResponse>, Status> {
        unary(async {
            let (index, checkpoint) = self.decided(request.into_inner().statement).await?;
            Ok(wire::SubmitStatementResponse { index, checkpoint: checkpoint.note().clone() })
        })
        .await
    }

    async fn submit_ceremony(
        &self,
        request: Request<wire::SubmitCeremonyRequest>,
    ) -> Result<Response<wire::SubmitCeremonyResponse>, Status> {
        unary(async {
            let concluded = request.into_inner().ceremony;
            let concluded = concluded.ok_or_else(|| Refusal::field("the ceremony is missing"))?;
            let index = self.writer()?.sequencer.conclude(concluded).await?;
            let checkpoint = self.log.covering(index).await?;
            Ok(wire::SubmitCeremonyResponse { index, checkpoint: checkpoint.note().clone() })
        })
        .await
    }

    async fn submit_evaluation_totals(
        &self,
        request: Request<wire::SubmitEvaluationTotalsRequest>,
    ) -> Result<Response<wire::SubmitEvaluationTotalsResponse>, Status> {
        unary(async {
            let totals = request.into_inner().totals;
            let totals = totals.ok_or_else(|| Refusal::field("the totals are missing"))?;
            Ok(wire::SubmitEvaluationTotalsResponse { index: self.writer()?.sequencer.total(totals).await? })
        })
        .await
    }

    async fn submit_channel(
        &self,
        request: Request<wire::SubmitChannelRequest>,
    ) -> Result<Response<wire::SubmitChannelResponse>, Status> {
        unary(self.put_channel(request)).await
    }

    async fn submit_manifest(
        &self,
        request: Request<wire::SubmitManifestRequest>,
    ) -> Result<Response<wire::SubmitManifestResponse>, Status> {
        unary(self.broadcast(request)).await
    }

    async fn list_channels(
        &self,
        request: Request<wire::ListChannelsRequest>,
    ) -> Result<Response<wire::ListChannelsResponse>, Status> {
        unary(self.channels(request.into_inner())).await
    }

    async fn fetch_checkpoint(
        &self,
        _: Request<wire::FetchCheckpointRequest>,
    ) -> Result<Response<wire::FetchCheckpointResponse>, Status> {
        let checkpoint = self.log.checkpoint().note().clone();
        Ok(Response::new(wire::FetchCheckpointResponse { checkpoint }))
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        unary(async {
            let request = request.into_inner();
            let limit = if request.limit == 0 { DEFAULT_ENTRIES } else { request.limit.min(MAX_ENTRIES) };
            let entries = self.log.entries(request.start, limit).await?;
            let entries = entries.iter().map(|leaf| leaf.bytes().clone()).collect();
            Ok(wire::ListEntriesResponse { entries })
        })
        .await
    }

    async fn list_records(
        &self,
        request: Request<wire::ListRecordsRequest>,
    ) -> Result<Response<wire::ListRecordsResponse>, Status> {
        unary(async {
            if !is_directory(&request) {
                self.admit(&request)?;
            }
            let wire::ListRecordsRequest { start, end } = request.into_inner();
            if start > end || end - start > u64::from(MAX_ENTRIES) {
                return Err(Refusal::field("records of at most 1,024 entries are listed at once"));
            }
            let found = read::bodies_between(&self.records, start, end).await?;
            let records = found.into_iter().map(|(index, body)| wire::RecordAt { index, body: Some(body) });
            Ok(wire::ListRecordsResponse { records: records.collect() })
        })
        .await
    }

    async fn prove_consistency(
        &self,
        request: Request<wire::ProveConsistencyRequest>,
    ) -> Result<Response<wire::ProveConsistencyResponse>, Status> {
        unary(async {
            let sizes = request.into_inner();
            let path = self.log.consistency_proof(sizes.old_size, sizes.new_size).await?;
            Ok(wire::ProveConsistencyResponse { path: wire_path(&path) })
        })
        .await
    }

    async fn list_statements(
        &self,
        request: Request<wire::ListStatementsRequest>,
    ) -> Result<Response<wire::ListStatementsResponse>, Status> {
        unary(self.statements(request.into_inner().start)).await
    }
}

fn inclusion(index: u64, path: Vec<Hash>) -> wire::InclusionProof {
    wire::InclusionProof { index, path: wire_path(&path) }
}

fn wire_path(path: &[Hash]) -> Vec<Bytes> {
    path.iter().map(|hash| Bytes::copy_from_slice(hash)).collect()
}
