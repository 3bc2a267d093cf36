//! An enrolment authority: it checks a one-time code, has the handle evaluated through
//! its administration's node as an agent does, and attests it. It keeps no list of
//! whom it enrolled; the device keeps the receipt.

mod codes;

pub use codes::Codes;

use crate::endpoint::Endpoint;
use chancery_directory_core::AccountKey;
use chancery_directory_core::enrolment::{AuthoritySigner, Claim, Enrolled};
use chancery_kit::entrance::Entrance;
use chancery_kit::serve::{ServeError, add_health, add_reflection, unary};
use chancery_kit::tls::Credentials;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::enrolment_service_server::{
    EnrolmentService, EnrolmentServiceServer, SERVICE_NAME,
};
use chancery_types::{Identifier, Reason, Refusal};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};

/// Largest request in bytes: two messages of 1 KiB with their signatures.
const MAX_REQUEST: usize = 4 * 1024;

/// How long what the log says counts as known.
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// The same for a caller who may know more.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// An authority cannot start or serve.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Serving failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Its node or its store refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What an authority works with.
pub struct Authority {
    /// Evaluates handles; registered and run by the caller.
    pub endpoint: Endpoint,
    /// Its key.
    pub signer: AuthoritySigner,
    /// Who may enrol.
    pub codes: Arc<Codes>,
}

/// Serves devices until `shutdown`, then drains. `credentials`: of the agent whose
/// endpoint it is.
///
/// # Errors
/// The transport failed.
pub async fn serve(
    authority: Authority,
    entrance: impl Into<Entrance>,
    credentials: Arc<Credentials>,
    shutdown: CancellationToken,
) -> Result<(), AuthorityError> {
    let entrance = entrance.into();
    let service = EnrolmentServiceServer::new(Service(authority)).max_decoding_message_size(MAX_REQUEST);
    let mut routes = RoutesBuilder::default();
    routes.add_service(service);
    add_health(&mut routes, &[SERVICE_NAME]).await;
    add_reflection(&mut routes, &[SERVICE_NAME])?;
    tracing::info!(address = ?entrance.address(), "the enrolment authority listens");
    Ok(entrance.serve(credentials, routes, shutdown).await?)
}

struct Service(Authority);

#[tonic::async_trait]
impl EnrolmentService for Service {
    async fn enrol(
        &self,
        request: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::EnrolResponse>, Status> {
        unary(async {
            let Authority { signer, codes, endpoint } = &self.0;
            let claim = Claim::verify(&request.into_inner(), signer.authority())?;
            let (checked, code, key) = (claim.identifier.clone(), claim.code, claim.account_key);
            codes.redeem(checked, code, key, endpoint.now()).await?;
            let key = claim.account_key;
            let (attestation, receipt) = self.attest(&claim.identifier, key, claim.key_epoch).await?;
            Ok(wire::EnrolResponse { attestation: Some(attestation), receipt: Some(receipt) })
        })
        .await
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        unary(async {
            let request = request.into_inner();
            let enrolled = self.0.signer.enrolled(&request)?;
            let Enrolled { identifier, account_key, key_epoch } = enrolled;
            // The receipt's key epoch may have ended a moment ago.
            self.0.endpoint.refresh_directory_after(ASK_AGAIN).await?;
            // Whoever was replaced, or left, is not attested again; and where nobody can look any
            // more, proof is due.
            let holder = self.0.endpoint.holder(&identifier, key_epoch).await?;
            if holder.is_some_and(|(key, is_closed)| key != account_key || is_closed) {
                return Err(replaced());
            }
            let (attestation, receipt) = self.attest(&identifier, account_key, request.key_epoch).await?;
            Ok(wire::RenewResponse { attestation: Some(attestation), receipt: Some(receipt) })
        })
        .await
    }
}

impl Service {
    /// An attestation for a key epoch that has passed is worth nothing.
    async fn refresh(&self, known: u32) -> Result<(), Refusal> {
        let endpoint = &self.0.endpoint;
        let is_behind = endpoint.key_epoch().await?.is_none_or(|epoch| epoch < known);
        endpoint.refresh_directory_after(if is_behind { ASK_AGAIN } else { KNOWN_FOR }).await
    }

    /// For the handle in the current key epoch.
    async fn attest(
        &self,
        identifier: &Identifier,
        account_key: AccountKey,
        known: u32,
    ) -> Result<(wire::SignedAttestation, wire::SignedEnrolmentReceipt), Refusal> {
        let Authority { endpoint, signer, .. } = &self.0;
        self.refresh(known).await?;
        let (handle, key_epoch) = endpoint.handle_in_epoch(identifier).await?;
        let now = endpoint.now();
        let attestation = signer.attest(identifier.scheme(), handle, account_key, key_epoch, now);
        Ok((attestation, signer.receipt(identifier, &account_key, key_epoch, now)))
    }
}

fn replaced() -> Refusal {
    Refusal::new(Reason::EnrolmentRefused, "the identifier's record is another account's, or closed")
}
