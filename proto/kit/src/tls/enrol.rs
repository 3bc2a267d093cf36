//! How a party gets its certificate and keeps it: enrolment against a join
//! token, renewal at half life, revocation lists. The key is made here and
//! never leaves; the authority's side is `chancery-pki`.

use super::files::{CHAIN, CRLS, CSR, IdentityFolder, KEY};
use super::{Credentials, Identity, TlsError, connect};
use crate::status::from_status;
use chancery_pki_core::{
    ChainError, CheckedCsr, Crls, Party, ProfileError, TrustAnchors, Usage, VerifiedPeer, armour, profile,
    verify,
};
use chancery_proto::pki::v1::enrolment_service_client::EnrolmentServiceClient;
use chancery_proto::pki::v1::{EnrolRequest, FetchRevocationsRequest, RenewRequest};
use chancery_types::{Clock, Reason, Refusal};
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// How often [`keep_renewed`] asks for revocation lists and looks at the
/// certificate's age.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// Deadline of a call to the enrolment service.
const DEADLINE: Duration = Duration::from_secs(30);
/// Revocation lists of 1 MiB and their framing.
const MAX_ANSWER: usize = 2 * 1024 * 1024;

/// Why a certificate or list was not got.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The connection or a file of the identity folder.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The enrolment service refused.
    #[error("the enrolment service refused: {0}")]
    Refused(Refusal),
    /// The key cannot be made or read.
    #[error(transparent)]
    Key(#[from] ProfileError),
    /// What the enrolment service sent does not hold.
    #[error("the enrolment service's answer: {0}")]
    Answer(ChainError),
    /// The certificate it sent is for another key than ours.
    #[error("the enrolment service's answer is for another key")]
    AnswerKey,
}

impl From<EnrolError> for Refusal {
    fn from(error: EnrolError) -> Self {
        match error {
            EnrolError::Tls(error) => error.into(),
            EnrolError::Refused(refusal) => refusal,
            EnrolError::Key(error) => error.into(),
            EnrolError::Answer(_) | EnrolError::AnswerKey => {
                Self::new(Reason::PeerMisbehaved, error.to_string())
            }
        }
    }
}

/// Enrols with a join token and fills `folder`. May be called again after a
/// crash or failure: key and request stay the same, so that the token counts;
/// once there is a chain that holds, no token is needed any more.
///
/// # Errors
/// See [`EnrolError`].
pub async fn enrol(
    endpoint: &str,
    anchors: &TrustAnchors,
    join_token: &str,
    folder: &IdentityFolder,
    clock: Arc<dyn Clock>,
) -> Result<VerifiedPeer, EnrolError> {
    folder.create()?;
    let csr = own_csr(folder)?;
    let credentials = Credentials::anonymous(anchors.clone(), Crls::default(), Arc::clone(&clock));
    let mut client = client(endpoint, credentials).await?;
    let lists = Lists::fetch(&mut client).await?;
    let own = match held(folder, anchors, &lists.crls, &*clock)? {
        Some(own) => own,
        None => {
            let csr_der = csr.clone().into();
            let request = EnrolRequest { csr_der, join_token: join_token.to_owned() };
            let answer = client.enrol(timed(request)).await.map_err(refused)?;
            keep_chain(folder, anchors, &*clock, &csr, answer.into_inner().chain_der)?
        }
    };
    lists.keep(folder, anchors, &*clock, &own_chain(folder)?)?;
    Ok(own)
}

/// Gets the next certificate for the same key, under the same names, and loads it.
///
/// # Errors
/// See [`EnrolError`]; what was loaded before stays.
pub async fn renew(endpoint: &str, credentials: &Arc<Credentials>) -> Result<VerifiedPeer, EnrolError> {
    let folder = credentials.folder().ok_or(TlsError::NoIdentity)?;
    let csr = own_csr(folder)?;
    let mut client = client(endpoint, Arc::clone(credentials)).await?;
    let request = RenewRequest { csr_der: csr.clone().into() };
    let answer = client.renew(timed(request)).await.map_err(refused)?.into_inner();
    let own = keep_chain(folder, credentials.anchors(), &**credentials.clock(), &csr, answer.chain_der)?;
    credentials.reload()?;
    Ok(own)
}

/// Gets the revocation lists in force and loads them if they are new.
///
/// # Errors
/// See [`EnrolError`]; what was loaded before stays.
pub async fn fetch_revocations(endpoint: &str, credentials: &Arc<Credentials>) -> Result<(), EnrolError> {
    let (anchors, clock) = (credentials.anchors(), &**credentials.clock());
    let mut client = match client(endpoint, Arc::clone(credentials)).await {
        // Lists that ran out, or do not cover a new issuing CA, must not keep us from newer
        // ones; those are signed whoever hands them over.
        Err(EnrolError::Tls(TlsError::Chain(ChainError::StaleCrl | ChainError::UnknownRevocation))) => {
            let clock = Arc::clone(credentials.clock());
            client(endpoint, Credentials::anonymous(anchors.clone(), Crls::default(), clock)).await?
        }
        client => client?,
    };
    let lists = Lists::fetch(&mut client).await?;
    match credentials.folder() {
        Some(folder) => {
            if lists.keep(folder, anchors, clock, &own_chain(folder)?)? {
                credentials.reload()?;
            }
        }
        None => {
            // Without a chain of our own the enrolment service's is the one they must judge.
            let clock = Arc::clone(credentials.clock());
            let judged = Credentials::anonymous(anchors.clone(), lists.crls, clock);
            connect(endpoint, Party::Pki, Arc::clone(&judged)).await?;
            credentials.adopt(&judged);
        }
    }
    Ok(())
}

/// What [`keep_renewed`] does each time: revocation lists, and the next
/// certificate, if there is one, once half of its life is over.
///
/// # Errors
/// See [`EnrolError`].
pub async fn refresh(endpoint: &str, credentials: &Arc<Credentials>) -> Result<(), EnrolError> {
    fetch_revocations(endpoint, credentials).await?;
    if let Some(own) = credentials.own()
        && half_life_over(&own, &**credentials.clock())
    {
        renew(endpoint, credentials).await?;
        tracing::info!("the certificate was renewed");
    }
    Ok(())
}

/// Refreshes every 5 minutes until `shutdown`; a failure is logged and tried
/// again next time.
pub async fn keep_renewed(endpoint: String, credentials: Arc<Credentials>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(REFRESH);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let refreshed = shutdown.run_until_cancelled(refresh(&endpoint, &credentials)).await;
        if let Some(Err(error)) = refreshed {
            tracing::warn!(%error, "certificate and revocation lists were not refreshed");
        }
    }
}

/// Whether half of a certificate's life is over: time to renew it.
pub fn half_life_over(own: &VerifiedPeer, clock: &dyn Clock) -> bool {
    clock.now() >= own.not_before().after(own.not_after().since(own.not_before()) / 2)
}

async fn client(
    endpoint: &str,
    credentials: Arc<Credentials>,
) -> Result<EnrolmentServiceClient<Channel>, EnrolError> {
    let (channel, _) = connect(endpoint, Party::Pki, credentials).await?;
    Ok(EnrolmentServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn refused(status: tonic::Status) -> EnrolError {
    EnrolError::Refused(from_status(&status))
}

/// The request for our key; both are made when missing. The key is on disk
/// before a request for it exists, the request before it is sent.
fn own_csr(folder: &IdentityFolder) -> Result<Vec<u8>, EnrolError> {
    let key = match folder.read_private(KEY)? {
        Some(key) => key,
        None => {
            let key = profile::new_key()?;
            folder.replace(KEY, key.as_bytes())?;
            zeroize::Zeroizing::new(key.as_bytes().to_vec())
        }
    };
    if let Some(csr) = folder.read(CSR)? {
        return Ok(csr.to_vec());
    }
    let csr = profile::csr_for(std::str::from_utf8(&key).map_err(|_| TlsError::Content(KEY))?)?;
    folder.replace(CSR, &csr)?;
    Ok(csr)
}

fn own_chain(folder: &IdentityFolder) -> Result<Vec<CertificateDer<'static>>, EnrolError> {
    let chain = folder.read(CHAIN)?.ok_or(TlsError::NoIdentity)?;
    Ok(armour::read_chain(&chain).map_err(|_| TlsError::Content(CHAIN))?)
}

fn keep_chain(
    folder: &IdentityFolder,
    anchors: &TrustAnchors,
    clock: &dyn Clock,
    csr: &[u8],
    chain: Vec<prost::bytes::Bytes>,
) -> Result<VerifiedPeer, EnrolError> {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(der.as_ref())).collect();
    let own = verify(&chain, anchors, &Crls::default(), clock.now(), Usage::Server);
    let own = own.map_err(EnrolError::Answer)?;
    if own.key_pin() != CheckedCsr::check(csr)?.key_pin() {
        return Err(EnrolError::AnswerKey);
    }
    folder.replace(CHAIN, armour::write_chain(&chain).as_bytes())?;
    Ok(own)
}

/// What the folder's chain says, if it is there, for our key, and holds.
fn held(
    folder: &IdentityFolder,
    anchors: &TrustAnchors,
    crls: &Crls,
    clock: &dyn Clock,
) -> Result<Option<VerifiedPeer>, EnrolError> {
    match Identity::load(folder, anchors, clock) {
        Ok(None) | Err(TlsError::Chain(_) | TlsError::Content(CHAIN) | TlsError::KeyMismatch) => Ok(None),
        Ok(Some(_)) => Ok(verify(&own_chain(folder)?, anchors, crls, clock.now(), Usage::Server).ok()),
        Err(error) => Err(error.into()),
    }
}

/// Revocation lists as they came.
struct Lists {
    crls: Crls,
    text: String,
}

impl Lists {
    async fn fetch(client: &mut EnrolmentServiceClient<Channel>) -> Result<Self, EnrolError> {
        let answer = client.fetch_revocations(timed(FetchRevocationsRequest {})).await.map_err(refused)?;
        let lists = answer.into_inner().crls_der;
        let crls = Crls::parse(&lists).map_err(EnrolError::Answer)?;
        if crls.is_empty() {
            return Err(EnrolError::Answer(ChainError::UnknownRevocation));
        }
        Ok(Self { crls, text: armour::write_crls(&lists) })
    }

    /// Keeps the lists if they are new and judge our own chain: rubbish would
    /// shut out every peer. Says whether they were new.
    fn keep(
        &self,
        folder: &IdentityFolder,
        anchors: &TrustAnchors,
        clock: &dyn Clock,
        chain: &[CertificateDer<'_>],
    ) -> Result<bool, EnrolError> {
        match verify(chain, anchors, &self.crls, clock.now(), Usage::Server) {
            // That we are revoked ourselves is no reason to let in others who are.
            Ok(_) | Err(ChainError::Revoked) => {}
            Err(error) => return Err(EnrolError::Answer(error)),
        }
        if folder.read(CRLS)?.is_some_and(|old| old.as_slice() == self.text.as_bytes()) {
            return Ok(false);
        }
        folder.replace(CRLS, self.text.as_bytes())?;
        Ok(true)
    }
}
