//! `chancery.agent.v1.AgentService`.

use super::send::{Prepared, identifier, prepare, response};
use super::uploads::UploadId;
use super::{Rooms, events, inbox};
use chancery_kit::serve::{refused, unary};
use chancery_kit::status::{from_status, to_status};
use chancery_proto::agent::v1 as wire;
use chancery_proto::agent::v1::agent_service_server::AgentService;
use chancery_types::{Reason, Refusal};
use futures::StreamExt as _;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Letters of a SendBulk call that are resolved and queued together.
const BATCH: usize = 64;
/// Letters of a SendBulk call that wait for their hub.
const ON_THE_WAY: usize = 1024;
/// Most bytes of a message of PutAttachment.
const PIECE: usize = 64 * 1024;

pub(super) struct Service(pub(super) Arc<Rooms>);

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl AgentService for Service {
    async fn resolve(&self, request: Request<wire::ResolveRequest>) -> Answer<wire::ResolveResponse> {
        unary(async {
            let wanted = identifier(request.into_inner().recipient)?;
            let found = self.0.endpoint.resolve(&[wanted]).await?.pop();
            let reachability = match found {
                Some(Ok(_)) => wire::Reachability::Reachable,
                Some(Err(refusal)) if refusal.reason == Reason::RecipientAbsent => wire::Reachability::Absent,
                Some(Err(refusal)) => return Err(refusal),
                None => return Err(Refusal::new(Reason::Internal, "a lookup has no result")),
            };
            Ok(wire::ResolveResponse { reachability: reachability.into() })
        })
        .await
    }

    async fn send(&self, request: Request<wire::SendRequest>) -> Answer<wire::SendResponse> {
        unary(async {
            let sent = match Box::pin(prepare(&self.0, request.into_inner())).await? {
                Prepared::Known(message) => self.0.endpoint.accepted(message).await?,
                Prepared::New(order) => self.0.endpoint.send(order).await?,
            };
            Ok(response(&sent))
        })
        .await
    }

    type SendBulkStream = Answers<wire::SendBulkResponse>;

    async fn send_bulk(
        &self,
        request: Request<Streaming<wire::SendBulkRequest>>,
    ) -> Answer<Self::SendBulkStream> {
        let (answers, stream) = mpsc::channel(BATCH);
        tokio::spawn(bulk(Arc::clone(&self.0), request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn put_attachment(
        &self,
        request: Request<Streaming<wire::PutAttachmentRequest>>,
    ) -> Answer<wire::PutAttachmentResponse> {
        self.put(request.into_inner()).await.map(Response::new).map_err(|refusal| refused(&refusal))
    }

    async fn stat_attachment(
        &self,
        request: Request<wire::StatAttachmentRequest>,
    ) -> Answer<wire::StatAttachmentResponse> {
        unary(async {
            let (stored, complete) = self.0.uploads.stat(upload_id(&request.get_ref().attachment_id)?)?;
            Ok(wire::StatAttachmentResponse { stored, complete })
        })
        .await
    }

    type InboxStream = Answers<wire::InboxResponse>;

    async fn inbox(&self, request: Request<wire::InboxRequest>) -> Answer<Self::InboxStream> {
        let (answers, stream) = mpsc::channel(64);
        tokio::spawn(inbox::stream(Arc::clone(&self.0), request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn acknowledge_inbox(
        &self,
        request: Request<wire::AcknowledgeInboxRequest>,
    ) -> Answer<wire::AcknowledgeInboxResponse> {
        unary(async {
            self.0.endpoint.acknowledge_inbox(request.get_ref().through).await?;
            Ok(wire::AcknowledgeInboxResponse {})
        })
        .await
    }

    type GetAttachmentStream =
        futures::stream::BoxStream<'static, Result<wire::GetAttachmentResponse, Status>>;

    async fn get_attachment(
        &self,
        request: Request<wire::GetAttachmentRequest>,
    ) -> Answer<Self::GetAttachmentStream> {
        let pieces = inbox::attachment(&self.0, request.get_ref()).await;
        let pieces = pieces.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new(futures::stream::iter(pieces).map(Ok).boxed()))
    }

    type EventsStream = Answers<wire::EventsResponse>;

    async fn events(&self, request: Request<wire::EventsRequest>) -> Answer<Self::EventsStream> {
        let (answers, stream) = mpsc::channel(256);
        tokio::spawn(events::stream(Arc::clone(&self.0), request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Service {
    async fn put(
        &self,
        mut pieces: Streaming<wire::PutAttachmentRequest>,
    ) -> Result<wire::PutAttachmentResponse, Refusal> {
        let mut next = async || pieces.message().await.map_err(|status| from_status(&status));
        let first = next().await?.ok_or_else(|| Refusal::field("the stream is empty"))?;
        let id = upload_id(&first.attachment_id)?;
        let mut upload = self.0.uploads.write(id, first.size, first.offset, self.0.endpoint.now()).await?;
        let mut data = Some(first.data);
        while let Some(bytes) = data {
            if bytes.len() > PIECE {
                return Err(Refusal::new(Reason::TooLarge, "data has more than 64 KiB"));
            }
            upload.append(&bytes).await?;
            data = next().await?.map(|piece| piece.data);
        }
        let digest = upload.finish().await?;
        Ok(wire::PutAttachmentResponse { sha256: bytes::Bytes::copy_from_slice(&digest) })
    }
}

fn upload_id(text: &str) -> Result<UploadId, Refusal> {
    text.parse().map_err(|_| Refusal::field("attachment_id is no UUID"))
}

/// Sends letters as they come: those that have come together go together.
async fn bulk(
    rooms: Arc<Rooms>,
    requests: Streaming<wire::SendBulkRequest>,
    answers: mpsc::Sender<Result<wire::SendBulkResponse, Status>>,
) {
    let on_the_way = Arc::new(Semaphore::new(ON_THE_WAY));
    let mut batches = requests.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        let (mut queued, mut names, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        let mut end = None;
        for request in batch {
            let send = match request {
                Ok(request) => request.send.unwrap_or_default(),
                // The caller went away, or sent rubbish: what it sent before goes on its way.
                Err(status) => {
                    end = Some(status);
                    break;
                }
            };
            let name = send.request_id.clone();
            match Box::pin(prepare(&rooms, send)).await {
                Ok(Prepared::New(order)) => {
                    names.push(name);
                    orders.push(order);
                }
                Ok(Prepared::Known(message)) => queued.push((name, Ok(message))),
                Err(refusal) => queued.push((name, Err(refusal))),
            }
        }
        queued.extend(names.into_iter().zip(rooms.endpoint.queue_many(orders).await));
        for (name, queued) in queued {
            let Ok(place) = Arc::clone(&on_the_way).acquire_owned().await else { return };
            let (rooms, answers) = (Arc::clone(&rooms), answers.clone());
            tokio::spawn(async move {
                let sent = async { rooms.endpoint.accepted(queued?).await };
                let answer = match sent.await {
                    Ok(sent) => wire::SendBulkResponse {
                        request_id: name,
                        result: Some(wire::send_bulk_response::Result::Accepted(response(&sent))),
                    },
                    Err(refusal) => failure(name, &refusal),
                };
                let _ = answers.send(Ok(answer)).await;
                drop(place);
            });
        }
        if let Some(status) = end {
            let _ = answers.send(Err(status)).await;
            return;
        }
    }
}

fn failure(request_id: String, refusal: &Refusal) -> wire::SendBulkResponse {
    chancery_kit::serve::REFUSALS.add(refusal.reason);
    let failure = wire::Failure {
        code: code_name(to_status(refusal).code()).to_owned(),
        reason: refusal.reason.as_str().to_owned(),
        message: refusal.message.to_string(),
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
