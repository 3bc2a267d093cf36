//! `chancery.node.v1.RelayService`: passes on, unchanged, what endpoints ask of
//! the directory and the evaluators.

use super::{Rooms, session};
use chancery_directory_log::directory_call;
use chancery_kit::serve::unary;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::relay_service_server::RelayService;
use chancery_types::{NodeId, Refusal};
use std::sync::Arc;
use tonic::{Request, Response, Status};

pub(super) struct Relay(pub(super) Arc<Rooms>);

fn inner<T>(request: Option<T>) -> Result<T, Refusal> {
    request.ok_or_else(|| Refusal::field("request is not set"))
}

#[tonic::async_trait]
impl RelayService for Relay {
    async fn evaluate(
        &self,
        request: Request<wire::EvaluateRequest>,
    ) -> Result<Response<wire::EvaluateResponse>, Status> {
        unary(async {
            let session = session::device(&request)?;
            let message = request.into_inner();
            let evaluator: NodeId = message.evaluator.parse()?;
            let request = inner(message.request)?;
            self.0.quotas.evaluate(&session.account, request.blinded_elements.len())?;
            let mut client = self.0.mesh.evaluator(&evaluator).await?;
            let response = directory_call(client.evaluate(request)).await?;
            Ok(wire::EvaluateResponse { response: Some(response) })
        })
        .await
    }

    async fn lookup(
        &self,
        request: Request<wire::LookupRequest>,
    ) -> Result<Response<wire::LookupResponse>, Status> {
        unary(async {
            session::device(&request)?;
            let wire::LookupRequest { request, after } = request.into_inner();
            let response = self.0.places.find(&self.0.mesh, inner(request)?, after).await?;
            Ok(wire::LookupResponse { response: Some(response) })
        })
        .await
    }

    async fn publish(
        &self,
        request: Request<wire::PublishRequest>,
    ) -> Result<Response<wire::PublishResponse>, Status> {
        unary(async {
            self.0.quotas.publish(session::connection(&request)?.remote.ip())?;
            let request = inner(request.into_inner().request)?;
            let response = directory_call(self.0.mesh.log().directory().publish(request)).await?;
            Ok(wire::PublishResponse { response: Some(response) })
        })
        .await
    }

    async fn list_statements(
        &self,
        request: Request<wire::ListStatementsRequest>,
    ) -> Result<Response<wire::ListStatementsResponse>, Status> {
        unary(async {
            session::device(&request)?;
            let request = inner(request.into_inner().request)?;
            let response = directory_call(self.0.mesh.log().directory().list_statements(request)).await?;
            Ok(wire::ListStatementsResponse { response: Some(response) })
        })
        .await
    }

    async fn prove_consistency(
        &self,
        request: Request<wire::ProveConsistencyRequest>,
    ) -> Result<Response<wire::ProveConsistencyResponse>, Status> {
        unary(async {
            session::device(&request)?;
            let request = inner(request.into_inner().request)?;
            let response = directory_call(self.0.mesh.log().directory().prove_consistency(request)).await?;
            Ok(wire::ProveConsistencyResponse { response: Some(response) })
        })
        .await
    }

    async fn list_channels(
        &self,
        request: Request<wire::ListChannelsRequest>,
    ) -> Result<Response<wire::ListChannelsResponse>, Status> {
        unary(async {
            session::device(&request)?;
            let request = inner(request.into_inner().request)?;
            let response = directory_call(self.0.mesh.log().directory().list_channels(request)).await?;
            Ok(wire::ListChannelsResponse { response: Some(response) })
        })
        .await
    }

    async fn submit_channel(
        &self,
        request: Request<wire::SubmitChannelRequest>,
    ) -> Result<Response<wire::SubmitChannelResponse>, Status> {
        unary(async {
            session::device(&request)?;
            let request = inner(request.into_inner().request)?;
            let response = directory_call(self.0.mesh.log().directory().submit_channel(request)).await?;
            Ok(wire::SubmitChannelResponse { response: Some(response) })
        })
        .await
    }

    async fn submit_manifest(
        &self,
        request: Request<wire::SubmitManifestRequest>,
    ) -> Result<Response<wire::SubmitManifestResponse>, Status> {
        unary(async {
            session::device(&request)?;
            let request = inner(request.into_inner().request)?;
            let response = directory_call(self.0.mesh.log().directory().submit_manifest(request)).await?;
            Ok(wire::SubmitManifestResponse { response: Some(response) })
        })
        .await
    }
}
