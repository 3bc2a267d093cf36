//! The enrolment service: `chancery.pki.v1.EnrolmentService` over the
//! authority, with its own identity kept renewed.

use crate::authority::Authority;
use chancery_kit::entrance::Entrance;
use chancery_kit::serve::{ServeError, add_health, unary};
use chancery_kit::tls::{ConnectionInfo, Credentials};
use chancery_proto::pki::v1::enrolment_service_server::{
    EnrolmentService, EnrolmentServiceServer, SERVICE_NAME,
};
use chancery_proto::pki::v1::{
    EnrolRequest, EnrolResponse, FetchRevocationsRequest, FetchRevocationsResponse, RenewRequest,
    RenewResponse,
};
use chancery_types::{Reason, Refusal};
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};

/// How often the own identity is looked after.
const REFRESH: Duration = Duration::from_secs(60);
/// Largest request: a certificate request and a token, with room for their framing.
const MAX_REQUEST: usize = 16 * 1024;

/// Serves enrolment at `entrance` until `shutdown`. `credentials` are those
/// of [`Authority::own_credentials`].
///
/// # Errors
/// There is no certificate to serve with, or the transport failed.
pub async fn serve(
    authority: Arc<Authority>,
    entrance: impl Into<Entrance>,
    credentials: Arc<Credentials>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let entrance = entrance.into();
    let mut routes = RoutesBuilder::default();
    add_health(&mut routes, &[SERVICE_NAME]).await;
    let service = Enrolment { authority: Arc::clone(&authority) };
    routes.add_service(EnrolmentServiceServer::new(service).max_decoding_message_size(MAX_REQUEST));
    let keeper = tokio::spawn(keep(authority, Arc::clone(&credentials), shutdown.clone()));
    let served = entrance.serve(credentials, routes, shutdown).await;
    keeper.abort();
    served
}

async fn keep(authority: Arc<Authority>, credentials: Arc<Credentials>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(REFRESH);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Err(error) = authority.refresh_own(&credentials).await {
            tracing::error!(%error, "the enrolment service's own certificate was not refreshed");
        }
    }
}

struct Enrolment {
    authority: Arc<Authority>,
}

#[tonic::async_trait]
impl EnrolmentService for Enrolment {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let EnrolRequest { csr_der, join_token } = request.into_inner();
        unary(async {
            let chain = self.authority.enrol(&join_token, &csr_der).await?;
            Ok(EnrolResponse { chain_der: wire(&chain) })
        })
        .await
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let peer = request.extensions().get::<ConnectionInfo>().and_then(|info| info.peer.clone());
        let RenewRequest { csr_der } = request.into_inner();
        unary(async {
            let peer = peer.ok_or_else(|| {
                Refusal::new(Reason::NotAuthenticated, "renewal needs the certificate to be renewed")
            })?;
            let chain = self.authority.renew(&peer, &csr_der).await?;
            Ok(RenewResponse { chain_der: wire(&chain) })
        })
        .await
    }

    async fn fetch_revocations(
        &self,
        _request: Request<FetchRevocationsRequest>,
    ) -> Result<Response<FetchRevocationsResponse>, Status> {
        unary(async {
            let lists = self.authority.crls().await?;
            Ok(FetchRevocationsResponse { crls_der: lists.into_iter().map(Into::into).collect() })
        })
        .await
    }
}

fn wire<B: From<Vec<u8>>>(chain: &[CertificateDer<'_>]) -> Vec<B> {
    chain.iter().map(|certificate| certificate.to_vec().into()).collect()
}
