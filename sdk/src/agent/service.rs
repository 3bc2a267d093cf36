//! `chancery.agent.v1.AgentService`.

use super::bulk::{BATCH, bulk};
use super::send::{Prepared, identifier, prepare, response};
use super::uploads::UploadId;
use super::{Rooms, broadcasts, events, inbox};
use chancery_kit::serve::{refused, unary};
use chancery_kit::status::from_status;
use chancery_proto::agent::v1 as wire;
use chancery_proto::agent::v1::agent_service_server::AgentService;
use chancery_types::{Reason, Refusal};
use futures::StreamExt as _;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

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
                Some(Ok(found)) if found.stale => wire::Reachability::Stale,
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

    async fn put_channel(
        &self,
        request: Request<wire::PutChannelRequest>,
    ) -> Answer<wire::PutChannelResponse> {
        unary(broadcasts::put_channel(&self.0, request.into_inner())).await
    }

    async fn list_channels(
        &self,
        _: Request<wire::ListChannelsRequest>,
    ) -> Answer<wire::ListChannelsResponse> {
        unary(broadcasts::list_channels(&self.0)).await
    }

    async fn invite(&self, request: Request<wire::InviteRequest>) -> Answer<wire::InviteResponse> {
        unary(broadcasts::invite(&self.0, request.get_ref())).await
    }

    async fn broadcast_counts(
        &self,
        request: Request<wire::BroadcastCountsRequest>,
    ) -> Answer<wire::BroadcastCountsResponse> {
        unary(broadcasts::counts(&self.0, request.get_ref())).await
    }

    async fn cancel_broadcast(
        &self,
        request: Request<wire::CancelBroadcastRequest>,
    ) -> Answer<wire::CancelBroadcastResponse> {
        unary(broadcasts::cancel(&self.0, request.get_ref())).await
    }

    type BroadcastStream = Answers<wire::BroadcastResponse>;

    async fn broadcast(&self, request: Request<wire::BroadcastRequest>) -> Answer<Self::BroadcastStream> {
        let (answers, stream) = mpsc::channel(8);
        tokio::spawn(broadcasts::broadcast(Arc::clone(&self.0), request.into_inner(), answers));
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
            upload.append(bytes).await?;
            data = next().await?.map(|piece| piece.data);
        }
        let digest = upload.finish().await?;
        Ok(wire::PutAttachmentResponse { sha256: bytes::Bytes::copy_from_slice(&digest) })
    }
}

fn upload_id(text: &str) -> Result<UploadId, Refusal> {
    text.parse().map_err(|_| Refusal::field("attachment_id is no UUID"))
}
