//! The bridge from rustls to `chancery_pki_core::verify`. One per handshake:
//! it keeps what the check said.

use super::credentials::{Credentials, State};
use super::provider::provider;
use chancery_pki_core::{ChainError, Party, TrustAnchors, Usage, VerifiedPeer, verify};
use chancery_types::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Verifies the peer of one connection.
pub(super) struct PeerVerifier {
    state: Arc<State>,
    anchors: TrustAnchors,
    now: Timestamp,
    /// Whom we called; `None` for a caller, who may be anyone of the federation.
    expected: Option<Party>,
    /// Whether a caller must show a certificate.
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
    outcome: OnceLock<Result<VerifiedPeer, ChainError>>,
}

impl PeerVerifier {
    pub(super) fn of_callers(credentials: &Credentials, state: Arc<State>, mandatory: bool) -> Arc<Self> {
        Self::new(credentials, state, None, mandatory)
    }

    pub(super) fn of_server(credentials: &Credentials, state: Arc<State>, expected: Party) -> Arc<Self> {
        Self::new(credentials, state, Some(expected), true)
    }

    fn new(
        credentials: &Credentials,
        state: Arc<State>,
        expected: Option<Party>,
        mandatory: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            anchors: credentials.anchors().clone(),
            now: credentials.clock().now(),
            expected,
            mandatory,
            algorithms: provider().signature_verification_algorithms,
            outcome: OnceLock::new(),
        })
    }

    /// What the check said; `None` when no certificate came.
    pub(super) fn outcome(&self) -> Option<Result<VerifiedPeer, ChainError>> {
        self.outcome.get().cloned()
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        usage: Usage,
    ) -> Result<(), Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf).chain(others).cloned().collect();
        let outcome = verify(&chain, &self.anchors, &self.state.crls, self.now, usage).and_then(|peer| {
            match &self.expected {
                Some(expected) => peer.expect(expected),
                None => Ok(peer),
            }
        });
        let told = outcome.as_ref().map(drop).map_err(|error| alert(*error).into());
        let _ = self.outcome.set(outcome);
        told
    }

    fn signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }
}

/// The peer hears by its alert what is wrong with its certificate.
fn alert(error: ChainError) -> CertificateError {
    match error {
        ChainError::Expired => CertificateError::Expired,
        ChainError::NotYetValid => CertificateError::NotValidYet,
        ChainError::Revoked => CertificateError::Revoked,
        ChainError::UnknownIssuer | ChainError::BadAuthority | ChainError::WrongFederation => {
            CertificateError::UnknownIssuer
        }
        ChainError::StaleCrl | ChainError::UnknownRevocation | ChainError::MalformedCrl => {
            CertificateError::UnknownRevocationStatus
        }
        ChainError::Malformed | ChainError::Empty | ChainError::TooLong => CertificateError::BadEncoding,
        ChainError::WrongParty => CertificateError::ApplicationVerificationFailure,
        ChainError::BadSignature | ChainError::BadProfile | ChainError::BadSpiffeId => {
            CertificateError::Other(OtherError(Arc::new(error)))
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // The SPIFFE id counts, not the host name.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, Usage::Server).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, Usage::Client).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier").finish_non_exhaustive()
    }
}
