//! `chancery.directory.v1.DirectoryService`.

use super::{MAX_REQUEST, admit, node};
use crate::sequencer::Sequencer;
use crate::store::{self, StoredRecord};
use bytes::Bytes;
use chancery_directory_core::client::MAX_BUCKET;
use chancery_directory_core::merkle::Hash;
use chancery_directory_core::operation::{OperationKey, RecordOperation};
use chancery_directory_core::{Error, Prefix, VerifiedCheckpoint};
use chancery_directory_log::LogReader;
use chancery_kit::serve::{REFUSALS, unary};
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_server::{DirectoryService, DirectoryServiceServer};
use chancery_types::{Entropy, Reason, Refusal};
use prost::Message as _;
use sqlx::{Pool, Sqlite};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Name of the service, for health.
pub(crate) const NAME: &str = "chancery.directory.v1.DirectoryService";

/// Prefixes of one lookup at most.
const MAX_PREFIXES: usize = 256;
/// Bytes that one lookup answers at most, proofs included.
const MAX_FOUND: usize = 3 * 1024 * 1024;
/// Bytes of a record's salt, time, index and framing in an answer.
const RECORD_OVERHEAD: usize = 96;
/// Bytes of one hash of a proof in an answer.
const HASH_OVERHEAD: usize = 34;
/// Entries listed when the caller names no number.
const DEFAULT_ENTRIES: u32 = 256;
/// Entries listed at most.
const MAX_ENTRIES: u32 = 1_024;

/// What the service works with.
pub(crate) struct Service {
    pub(crate) sequencer: Sequencer,
    pub(crate) log: LogReader,
    pub(crate) records: Pool<Sqlite>,
    pub(crate) key: OperationKey,
    pub(crate) entropy: Arc<dyn Entropy>,
}

impl Service {
    /// As a tonic service with its limits.
    pub(crate) fn into_server(self) -> DirectoryServiceServer<Self> {
        DirectoryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<(), Refusal> {
        let (node, peer) = node(request)?;
        admit(&node, &peer, &self.sequencer.state())
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
        let bits = self.sequencer.state().lookup_prefix_bits();
        let prefixes = request.prefixes.iter().map(|prefix| Prefix::from_wire(prefix, bits));
        let prefixes = prefixes.collect::<Result<Vec<_>, Error>>()?;
        let depth = usize::try_from(u64::BITS - self.log.checkpoint().size().leading_zeros()).unwrap_or(64);
        let overhead = RECORD_OVERHEAD + (depth + 1) * HASH_OVERHEAD;
        let (mut buckets, mut bytes) = (Vec::with_capacity(prefixes.len()), 0);
        for prefix in prefixes {
            let (low, high) = prefix.range(bits);
            let bucket = store::records_between(&self.records, &low, &high, MAX_BUCKET + 1).await?;
            bytes += bucket.iter().map(|stored| stored.record.encoded_len() + overhead).sum::<usize>();
            if bucket.len() > MAX_BUCKET || bytes > MAX_FOUND {
                return Err(Refusal::new(
                    Reason::TooLarge,
                    "more than 4,096 records or 3 MiB stand there; name fewer or longer prefixes",
                ));
            }
            buckets.push(bucket);
        }
        // Entries may have been committed a moment ago: the checkpoint covers them all.
        let indices: Vec<_> = buckets.iter().flatten().map(|stored| stored.index).collect();
        let checkpoint = self.covering(indices.iter().max()).await?;
        let mut proofs = self.log.inclusion_proofs(&indices, checkpoint.size()).await?.into_iter();
        let mut prove = |stored| logged(stored, proofs.next().unwrap_or_default());
        let buckets = buckets
            .into_iter()
            .map(|bucket| wire::Bucket { records: bucket.into_iter().map(&mut prove).collect() })
            .collect();
        Ok(wire::LookupResponse { buckets, checkpoint: checkpoint.note().clone() })
    }

    /// What becomes of an operation that opened; refusals are answers, too.
    async fn publish_opened(&self, operation: Result<RecordOperation, Error>) -> wire::RecordOperationResult {
        let outcome = async {
            let index = self.sequencer.publish(operation?).await?;
            let checkpoint = self.log.covering(index).await?;
            let missing = || Refusal::new(Reason::Internal, "the record was logged and is not there");
            let stored = store::record_at(&self.records, index).await?.ok_or_else(missing)?;
            let path = self.log.inclusion_proof(index, checkpoint.size()).await?;
            Ok::<_, Refusal>((logged(stored, path), checkpoint))
        };
        use wire::record_operation_result::Result as Outcome;
        let (result, checkpoint) = match outcome.await {
            Ok((logged, checkpoint)) => (Outcome::Logged(logged), checkpoint.note().clone()),
            Err(refusal) => {
                REFUSALS.add(refusal.reason);
                let refusal = wire::RecordRefusal {
                    reason: refusal.reason.as_str().to_owned(),
                    message: refusal.message.into_owned(),
                };
                (Outcome::Refusal(refusal), Bytes::new())
            }
        };
        wire::RecordOperationResult { result: Some(result), checkpoint, padding: Bytes::new() }
    }

    async fn statements(&self, start: u64) -> Result<wire::ListStatementsResponse, Refusal> {
        let indices: Vec<_> =
            self.sequencer.state().in_force().into_iter().filter(|index| *index >= start).collect();
        let checkpoint = self.covering(indices.last()).await?;
        let proofs = self.log.inclusion_proofs(&indices, checkpoint.size()).await?;
        let mut statements = Vec::with_capacity(indices.len());
        for (index, path) in indices.into_iter().zip(proofs) {
            let entry = self.log.entries(index, 1).await?.pop();
            let entry = entry.ok_or_else(|| Refusal::new(Reason::Internal, "a statement is not there"))?;
            statements.push(wire::LoggedStatement {
                entry: entry.bytes().clone(),
                inclusion: Some(inclusion(index, path)),
            });
        }
        Ok(wire::ListStatementsResponse { statements, checkpoint: checkpoint.note().clone() })
    }

    async fn decided(
        &self,
        statement: Option<wire::SignedStatement>,
    ) -> Result<(u64, VerifiedCheckpoint), Refusal> {
        let statement = statement.ok_or_else(|| Refusal::field("the statement is missing"))?;
        let index = self.sequencer.decide(statement).await?;
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
            let opened = self.key.open(request.get_ref())?;
            let result = self.publish_opened(opened.operation).await;
            Ok(opened.answer.seal(result, &*self.entropy)?)
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
            let index = self.sequencer.conclude(concluded).await?;
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
            Ok(wire::SubmitEvaluationTotalsResponse { index: self.sequencer.total(totals).await? })
        })
        .await
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

fn logged(stored: StoredRecord, path: Vec<Hash>) -> wire::LoggedRecord {
    wire::LoggedRecord {
        inclusion: Some(inclusion(stored.index, path)),
        record: Some(stored.record),
        salt: stored.salt.into(),
        sequenced_at_ms: stored.sequenced_at_ms,
    }
}

fn inclusion(index: u64, path: Vec<Hash>) -> wire::InclusionProof {
    wire::InclusionProof { index, path: wire_path(&path) }
}

fn wire_path(path: &[Hash]) -> Vec<Bytes> {
    path.iter().map(|hash| Bytes::copy_from_slice(hash)).collect()
}
