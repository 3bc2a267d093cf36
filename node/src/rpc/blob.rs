//! `chancery.node.v1.BlobService`.

use super::{Rooms, session};
use crate::blobs::Piece;
use chancery_kit::serve::{refused, unary};
use chancery_node_core::parcel::limit;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::blob_service_server::BlobService;
use chancery_types::{BlobId, NodeId, Refusal, Timestamp};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

pub(super) struct BlobDoor(pub(super) Arc<Rooms>);

#[tonic::async_trait]
impl BlobService for BlobDoor {
    async fn stat_blob(
        &self,
        request: Request<wire::StatBlobRequest>,
    ) -> Result<Response<wire::StatBlobResponse>, Status> {
        unary(async {
            session::device(&request)?;
            let blob = BlobId::try_from(&request.into_inner().blob_id)?;
            let (stored, complete) = self.0.blobs.stat(blob).await?;
            Ok(wire::StatBlobResponse { stored, complete })
        })
        .await
    }

    async fn write_blob(
        &self,
        request: Request<Streaming<wire::WriteBlobRequest>>,
    ) -> Result<Response<wire::WriteBlobResponse>, Status> {
        // No deadline over the whole: 100 MiB may come over a slow line. Each
        // piece has one.
        self.write(request).await.map(Response::new).map_err(|refusal| refused(&refusal))
    }

    type ReadBlobStream = BoxStream<'static, Result<wire::ReadBlobResponse, Status>>;

    async fn read_blob(
        &self,
        request: Request<wire::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadBlobStream>, Status> {
        let open = async {
            session::device(&request)?;
            let message = request.into_inner();
            let blob = BlobId::try_from(&message.blob_id)?;
            let origin: NodeId = message.origin.parse()?;
            self.0.blobs.pull(&self.0.mesh, &origin, blob).await?;
            self.0.blobs.read(blob, message.offset).await
        };
        let pieces = open.await.map_err(|refusal| refused(&refusal))?;
        let response = |piece: Result<Piece, Refusal>| match piece {
            Ok(piece) => Ok(wire::ReadBlobResponse { size: piece.size, data: piece.data }),
            Err(refusal) => Err(refused(&refusal)),
        };
        Ok(Response::new(pieces.map(response).boxed()))
    }
}

impl BlobDoor {
    async fn write(
        &self,
        request: Request<Streaming<wire::WriteBlobRequest>>,
    ) -> Result<wire::WriteBlobResponse, Refusal> {
        session::device(&request)?;
        let mut pieces = request.into_inner();
        let first = next(&mut pieces).await?.ok_or_else(|| Refusal::field("the stream is empty"))?;
        let blob = BlobId::try_from(&first.blob_id)?;
        let expires_at = Timestamp::from_millis(first.expires_at_ms);
        let mut writer = self.0.blobs.write(blob, first.size, first.offset, expires_at).await?;
        let mut data = Some(first.data);
        while let Some(bytes) = data {
            limit("data", bytes.len(), crate::blobs::PIECE)?;
            writer.append(bytes).await?;
            data = tokio::select! {
                piece = next(&mut pieces) => piece?.map(|piece| piece.data),
                () = writer.replaced() => return Err(replaced()),
            };
        }
        writer.finish().await?;
        Ok(wire::WriteBlobResponse {})
    }
}

fn replaced() -> Refusal {
    let help = "a newer call goes on with this blob; call StatBlob and go on from there";
    Refusal::new(chancery_types::Reason::WrongOffset, help)
}

async fn next(
    pieces: &mut Streaming<wire::WriteBlobRequest>,
) -> Result<Option<wire::WriteBlobRequest>, Refusal> {
    match tokio::time::timeout(crate::blobs::PATIENCE, pieces.message()).await {
        Ok(Ok(piece)) => Ok(piece),
        // What has come so far is kept: the caller goes on from there.
        Ok(Err(status)) => Err(chancery_kit::status::from_status(&status)),
        Err(_) => {
            Err(Refusal::new(chancery_types::Reason::DeadlineExceeded, "no piece came for half a minute"))
        }
    }
}
