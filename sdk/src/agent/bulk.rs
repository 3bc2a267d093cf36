//! SendBulk: letters as they come, in three stages that work side by side. One
//! resolves recipients, the next opens threads and encrypts, and each letter then
//! waits for its hub by itself. Letters to one recipient keep their order.

use super::Rooms;
use super::send::{Prepared, prepare, response};
use crate::endpoint::Addressed;
use chancery_kit::status::{from_status, to_status};
use chancery_proto::agent::v1 as wire;
use chancery_types::{MessageId, Refusal};
use futures::future::join_all;
use futures::{Stream, StreamExt as _};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

/// Letters that are resolved and queued together.
pub(super) const BATCH: usize = 64;
/// Letters that wait for their hub.
const ON_THE_WAY: usize = 1024;

type Answers = mpsc::Sender<Result<wire::SendBulkResponse, Status>>;

/// Letters whose recipients are resolved, with their request ids.
#[derive(Default)]
struct Resolved {
    /// Queued long ago, or refused.
    done: Vec<(String, Result<MessageId, Refusal>)>,
    names: Vec<String>,
    addressed: Addressed,
    /// Why the caller's stream ended, when it did not end well.
    broken: Option<Status>,
}

/// Sends letters as they come: those that have come together go together.
pub(super) async fn bulk<S>(rooms: Arc<Rooms>, requests: S, answers: Answers)
where
    S: Stream<Item = Result<wire::SendBulkRequest, Status>> + Send + 'static,
{
    let (resolved, mut waiting) = mpsc::channel(1);
    tokio::spawn(resolve(Arc::clone(&rooms), requests, resolved));
    let on_the_way = Arc::new(Semaphore::new(ON_THE_WAY));
    while let Some(Resolved { mut done, names, addressed, broken }) = waiting.recv().await {
        done.extend(names.into_iter().zip(rooms.endpoint.queue(addressed).await));
        for (name, queued) in done {
            let Ok(place) = Arc::clone(&on_the_way).acquire_owned().await else { return };
            let (rooms, answers) = (Arc::clone(&rooms), answers.clone());
            tokio::spawn(async move {
                let _ = answers.send(Ok(answer(&rooms, name, queued).await)).await;
                drop(place);
            });
        }
        if let Some(status) = broken {
            let _ = answers.send(Err(status)).await;
        }
    }
}

async fn resolve<S>(rooms: Arc<Rooms>, requests: S, resolved: mpsc::Sender<Resolved>)
where
    S: Stream<Item = Result<wire::SendBulkRequest, Status>> + Send,
{
    let mut batches = std::pin::pin!(requests.ready_chunks(BATCH));
    while let Some(batch) = batches.next().await {
        let mut next = Resolved::default();
        let mut sends = Vec::with_capacity(batch.len());
        for request in batch {
            match request {
                Ok(request) => sends.push(request.send.unwrap_or_default()),
                // The caller went away, or sent rubbish: what it sent before goes on its way.
                Err(status) => {
                    next.broken = Some(status);
                    break;
                }
            }
        }
        let prepared = join_all(sends.into_iter().map(async |send| {
            let name = send.request_id.clone();
            (name, Box::pin(prepare(&rooms, send)).await)
        }));
        let mut orders = Vec::new();
        for (name, prepared) in prepared.await {
            match prepared {
                Ok(Prepared::New(order)) => {
                    next.names.push(name);
                    orders.push(order);
                }
                Ok(Prepared::Known(message)) => next.done.push((name, Ok(message))),
                Err(refusal) => next.done.push((name, Err(refusal))),
            }
        }
        next.addressed = rooms.endpoint.address(orders).await;
        let broken = next.broken.is_some();
        if resolved.send(next).await.is_err() || broken {
            return;
        }
    }
}

async fn answer(rooms: &Rooms, name: String, queued: Result<MessageId, Refusal>) -> wire::SendBulkResponse {
    let sent = async { rooms.endpoint.accepted(queued?).await };
    match sent.await {
        Ok(sent) => wire::SendBulkResponse {
            request_id: name,
            result: Some(wire::send_bulk_response::Result::Accepted(response(&sent))),
        },
        Err(refusal) => failure(name, &refusal),
    }
}

fn failure(request_id: String, refusal: &Refusal) -> wire::SendBulkResponse {
    chancery_kit::serve::REFUSALS.add(refusal.reason);
    let status = to_status(refusal);
    let retry_after = from_status(&status).retry_after;
    let failure = wire::Failure {
        code: code_name(status.code()).to_owned(),
        reason: refusal.reason.as_str().to_owned(),
        message: refusal.message.to_string(),
        retry_after_ms: retry_after.map(|delay| u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)),
    };
    wire::SendBulkResponse { request_id, result: Some(wire::send_bulk_response::Result::Failure(failure)) }
}

/// Name of a gRPC code, as in the gRPC specification.
const fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "CANCELLED",
        tonic::Code::Unknown => "UNKNOWN",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        tonic::Code::NotFound => "NOT_FOUND",
        tonic::Code::AlreadyExists => "ALREADY_EXISTS",
        tonic::Code::PermissionDenied => "PERMISSION_DENIED",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::FailedPrecondition => "FAILED_PRECONDITION",
        tonic::Code::Aborted => "ABORTED",
        tonic::Code::OutOfRange => "OUT_OF_RANGE",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        tonic::Code::Internal => "INTERNAL",
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::DataLoss => "DATA_LOSS",
        tonic::Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
