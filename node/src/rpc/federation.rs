//! `chancery.federation.v1.FederationService`: what other members' nodes call.

use super::{Rooms, key_package, session};
use crate::link;
use chancery_kit::serve::{refused, unary};
use chancery_node_core::parcel::limit;
use chancery_proto::federation::v1 as wire;
use chancery_proto::federation::v1::federation_service_server::FederationService;
use chancery_types::{Alias, BlobId, Refusal};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(super) struct Federation(pub(super) Arc<Rooms>);

#[tonic::async_trait]
impl FederationService for Federation {
    type LinkStream = ReceiverStream<Result<wire::LinkResponse, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let peer = session::peer(&self.0, &request).await.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new(link::incoming(Arc::clone(&self.0), peer, request.into_inner())))
    }

    async fn fetch_key_packages(
        &self,
        request: Request<wire::FetchKeyPackagesRequest>,
    ) -> Result<Response<wire::FetchKeyPackagesResponse>, Status> {
        unary(async {
            let peer = session::peer(&self.0, &request).await?;
            let message = request.into_inner();
            limit("aliases", message.aliases.len(), key_package::MAX_ADDRESSES)?;
            self.0.quotas.peer_takes_key_packages(&peer, message.aliases.len())?;
            let aliases = message.aliases.iter().map(Alias::try_from).collect::<Result<_, _>>()?;
            let suites = key_package::suites(&message.cipher_suites)?;
            let aliases = key_package::take_here(&self.0, aliases, suites).await?;
            Ok(wire::FetchKeyPackagesResponse { aliases })
        })
        .await
    }

    type ReadBlobStream = BoxStream<'static, Result<wire::ReadBlobResponse, Status>>;

    async fn read_blob(
        &self,
        request: Request<wire::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadBlobStream>, Status> {
        let open = async {
            session::peer(&self.0, &request).await?;
            let message = request.into_inner();
            self.0.blobs.read(BlobId::try_from(&message.blob_id)?, message.offset).await
        };
        let pieces = open.await.map_err(|refusal: Refusal| refused(&refusal))?;
        let response = |piece: Result<crate::blobs::Piece, Refusal>| match piece {
            Ok(piece) => Ok(wire::ReadBlobResponse { size: piece.size, data: piece.data }),
            Err(refusal) => Err(refused(&refusal)),
        };
        Ok(Response::new(pieces.map(response).boxed()))
    }
}
