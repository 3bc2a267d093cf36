//! `chancery.directory.v1.EvaluatorService` and `CeremonyService`.

use super::{MAX_REQUEST, admit, node};
use crate::evaluator::Evaluator;
use chancery_kit::serve::unary;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::ceremony_service_server::{CeremonyService, CeremonyServiceServer};
use chancery_proto::directory::v1::evaluator_service_server::{EvaluatorService, EvaluatorServiceServer};
use chancery_types::Refusal;
use tonic::{Request, Response, Status};

/// Names of the services, for health.
pub(crate) const NAMES: [&str; 2] =
    ["chancery.directory.v1.EvaluatorService", "chancery.directory.v1.CeremonyService"];
/// Largest message of a ceremony in bytes: a transcript of 16 evaluators.
const MAX_CEREMONY: usize = 256 * 1024;

struct Service(Evaluator);

/// Answers evaluations.
pub(crate) fn evaluations(evaluator: Evaluator) -> EvaluatorServiceServer<impl EvaluatorService> {
    EvaluatorServiceServer::new(Service(evaluator)).max_decoding_message_size(MAX_REQUEST)
}

/// Takes part in ceremonies.
pub(crate) fn ceremonies(evaluator: Evaluator) -> CeremonyServiceServer<impl CeremonyService> {
    CeremonyServiceServer::new(Service(evaluator)).max_decoding_message_size(MAX_CEREMONY)
}

#[tonic::async_trait]
impl EvaluatorService for Service {
    async fn evaluate(
        &self,
        request: Request<wire::EvaluateRequest>,
    ) -> Result<Response<wire::EvaluateResponse>, Status> {
        unary(async {
            let (node, peer) = node(&request)?;
            admit(&node, &peer, &*self.0.state(&node).await)?;
            self.0.answer(&node, request.into_inner()).await
        })
        .await
    }
}

#[tonic::async_trait]
impl CeremonyService for Service {
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        unary(async {
            let plan = request.into_inner().plan;
            self.0.join(plan.ok_or_else(|| Refusal::field("the plan is missing"))?).await
        })
        .await
    }

    async fn deal(
        &self,
        request: Request<wire::DealRequest>,
    ) -> Result<Response<wire::DealResponse>, Status> {
        unary(async {
            let request = request.into_inner();
            let dealing = Some(self.0.deal(&request.ceremony, &request.joins).await?);
            Ok(wire::DealResponse { dealing })
        })
        .await
    }

    async fn judge(
        &self,
        request: Request<wire::JudgeRequest>,
    ) -> Result<Response<wire::JudgeResponse>, Status> {
        unary(async {
            let request = request.into_inner();
            let verdict = Some(self.0.judge(&request.ceremony, &request.joins, &request.dealings).await?);
            Ok(wire::JudgeResponse { verdict })
        })
        .await
    }

    async fn conclude(
        &self,
        request: Request<wire::ConcludeRequest>,
    ) -> Result<Response<wire::ConcludeResponse>, Status> {
        unary(async {
            let transcript = request.into_inner().transcript;
            self.0.conclude(&transcript.ok_or_else(|| Refusal::field("the transcript is missing"))?).await
        })
        .await
    }
}
