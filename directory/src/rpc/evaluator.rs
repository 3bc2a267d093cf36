//! `chancery.directory.v1.EvaluatorService`.

use super::{MAX_REQUEST, node};
use crate::evaluator::Evaluator;
use chancery_kit::serve::unary;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::evaluator_service_server::{EvaluatorService, EvaluatorServiceServer};
use chancery_types::{Entropy, Reason, Refusal};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Name of the service, for health.
pub(crate) const NAME: &str = "chancery.directory.v1.EvaluatorService";

struct Service {
    evaluator: Evaluator,
    entropy: Arc<dyn Entropy>,
}

/// The service over one share.
pub(crate) fn service(
    evaluator: Evaluator,
    entropy: Arc<dyn Entropy>,
) -> EvaluatorServiceServer<impl EvaluatorService> {
    EvaluatorServiceServer::new(Service { evaluator, entropy }).max_decoding_message_size(MAX_REQUEST)
}

#[tonic::async_trait]
impl EvaluatorService for Service {
    async fn evaluate(
        &self,
        request: Request<wire::EvaluateRequest>,
    ) -> Result<Response<wire::EvaluateResponse>, Status> {
        unary(async {
            node(&request)?;
            let (evaluator, entropy) = (self.evaluator.clone(), Arc::clone(&self.entropy));
            // A full batch takes some 100 ms: not on a thread that serves others.
            let working = tokio::task::spawn_blocking(move || evaluator.answer(request.get_ref(), &*entropy));
            let answer =
                working.await.map_err(|_| Refusal::new(Reason::Internal, "the evaluation broke off"))?;
            Ok(answer?)
        })
        .await
    }
}
