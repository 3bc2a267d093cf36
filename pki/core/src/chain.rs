//! The one check of certificates in the mesh: path (RFC 5280), revocation,
//! SPIFFE profile, trust domain. Its proof is a [`VerifiedPeer`], which
//! nothing else can make. Handshake signatures are the TLS stack's matter;
//! whether the peer is the wanted one is the caller's.

use crate::spiffe::{Federation, Party, SpiffeId};
use chancery_types::{Reason, Refusal, Timestamp};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::time::Duration;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Most certificates in a chain.
pub const MAX_CHAIN: usize = 4;
/// Largest certificate, bytes.
pub const MAX_CERTIFICATE: usize = 16 * 1024;
/// Most revocation lists.
pub const MAX_CRLS: usize = 8;
/// Largest sum of revocation lists, bytes.
pub const MAX_CRL_BYTES: usize = 1024 * 1024;

/// What signatures in chains and lists are made with.
const ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] =
    &[webpki::aws_lc_rs::ECDSA_P256_SHA256, webpki::aws_lc_rs::ED25519];

/// Why a chain does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No certificate was shown.
    #[error("no certificate was shown")]
    Empty,
    /// More than [`MAX_CHAIN`] certificates, or a larger one than [`MAX_CERTIFICATE`].
    #[error("the certificate chain is too long")]
    TooLong,
    /// A certificate does not parse.
    #[error("a certificate does not parse")]
    Malformed,
    /// A certificate of the chain has expired.
    #[error("a certificate has expired")]
    Expired,
    /// A certificate of the chain is not valid yet.
    #[error("a certificate is not valid yet")]
    NotYetValid,
    /// A certificate of the chain is revoked.
    #[error("a certificate is revoked")]
    Revoked,
    /// The chain does not lead to the federation's root.
    #[error("the chain does not lead to the federation's root")]
    UnknownIssuer,
    /// A signature of the chain is wrong or of a kind that is not used here.
    #[error("a signature of the chain is wrong")]
    BadSignature,
    /// A CA in the chain may not do what it did, or is not of this federation.
    #[error("a CA in the chain is not one of this federation")]
    BadAuthority,
    /// A revocation list is past its nextUpdate.
    #[error("a revocation list is out of date")]
    StaleCrl,
    /// No list, or none with a right signature, covers a certificate of the chain.
    #[error("no revocation list covers a certificate")]
    UnknownRevocation,
    /// A revocation list does not parse, or they are too many or too large.
    #[error("a revocation list does not parse")]
    MalformedCrl,
    /// The certificate breaks a rule of the X.509-SVID profile: a CA, wrong usages, no critical name.
    #[error("the certificate is not of the federation's profile")]
    BadProfile,
    /// Not exactly one URI name, or it is no SPIFFE id of a party.
    #[error("the certificate does not carry exactly one SPIFFE id of a party")]
    BadSpiffeId,
    /// The SPIFFE id is of another trust domain.
    #[error("the certificate is of another federation")]
    WrongFederation,
    /// The certificate is somebody else's than expected.
    #[error("the certificate is another party's than the expected one")]
    WrongParty,
}

impl From<ChainError> for Refusal {
    fn from(error: ChainError) -> Self {
        let reason = match error {
            ChainError::WrongParty => Reason::WrongIdentity,
            ChainError::Empty => Reason::NotAuthenticated,
            _ => Reason::WrongCertificate,
        };
        Self::new(reason, error.to_string())
    }
}

/// The federation and its root.
#[derive(Clone)]
pub struct TrustAnchors {
    federation: Federation,
    root: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
}

impl TrustAnchors {
    /// From the root's certificate (DER).
    ///
    /// # Errors
    /// [`ChainError::Malformed`].
    pub fn new(federation: Federation, root_der: &[u8]) -> Result<Self, ChainError> {
        let root = CertificateDer::from(root_der.to_vec());
        let anchor = webpki::anchor_from_trusted_cert(&root).map_err(|_| ChainError::Malformed)?.to_owned();
        Ok(Self { federation, root, anchor })
    }

    /// Whose root.
    pub fn federation(&self) -> &Federation {
        &self.federation
    }

    /// The root's certificate.
    pub fn root_der(&self) -> &CertificateDer<'static> {
        &self.root
    }
}

impl fmt::Debug for TrustAnchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustAnchors").field("federation", &self.federation).finish_non_exhaustive()
    }
}

/// Parsed revocation lists; who signed them is checked with each chain.
#[derive(Debug, Default)]
pub struct Crls(Vec<CertRevocationList<'static>>);

impl Crls {
    /// Parses lists (DER).
    ///
    /// # Errors
    /// [`ChainError::MalformedCrl`], also when they are more or larger than permitted.
    pub fn parse<T: AsRef<[u8]>>(lists: &[T]) -> Result<Self, ChainError> {
        let bytes: usize = lists.iter().map(|list| list.as_ref().len()).sum();
        if lists.len() > MAX_CRLS || bytes > MAX_CRL_BYTES {
            return Err(ChainError::MalformedCrl);
        }
        let parse = |list: &T| OwnedCertRevocationList::from_der(list.as_ref()).map(Into::into);
        lists.iter().map(parse).collect::<Result<_, _>>().map(Self).map_err(|_| ChainError::MalformedCrl)
    }

    /// Whether there is none, so that revocation is not checked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What the peer is to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// It was called.
    Server,
    /// It called.
    Client,
}

/// A peer whose chain holds. Only [`verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    id: SpiffeId,
    party: Party,
    key_pin: [u8; 32],
    serial: Vec<u8>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl VerifiedPeer {
    /// The SPIFFE id.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whom the id names.
    pub fn party(&self) -> &Party {
        &self.party
    }

    /// SHA-256 of the certificate's `SubjectPublicKeyInfo` (DER), as member entries pin it.
    pub fn key_pin(&self) -> &[u8; 32] {
        &self.key_pin
    }

    /// The certificate's serial number, big-endian.
    pub fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// When the certificate's life began.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// When the certificate expires.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// This peer, if it is `expected`.
    ///
    /// # Errors
    /// [`ChainError::WrongParty`].
    pub fn expect(self, expected: &Party) -> Result<Self, ChainError> {
        if self.party == *expected { Ok(self) } else { Err(ChainError::WrongParty) }
    }
}

/// Verifies a chain, leaf first. With `crls`, every certificate below the
/// root must be covered by a list in force; without any, revocation is not
/// checked, which only a party that has none yet (enrolment) may do.
///
/// # Errors
/// What does not hold.
pub fn verify(
    chain: &[CertificateDer<'_>],
    anchors: &TrustAnchors,
    crls: &Crls,
    now: Timestamp,
    usage: Usage,
) -> Result<VerifiedPeer, ChainError> {
    let (leaf, others) = chain.split_first().ok_or(ChainError::Empty)?;
    if chain.len() > MAX_CHAIN || chain.iter().any(|certificate| certificate.len() > MAX_CERTIFICATE) {
        return Err(ChainError::TooLong);
    }
    let seconds = u64::try_from(now.seconds()).map_err(|_| ChainError::NotYetValid)?;
    let lists: Vec<&CertRevocationList<'_>> = crls.0.iter().collect();
    let revocation = match RevocationOptionsBuilder::new(&lists) {
        Ok(options) => Some(
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build(),
        ),
        Err(_none) => None,
    };
    let usage = match usage {
        Usage::Server => KeyUsage::server_auth(),
        Usage::Client => KeyUsage::client_auth(),
    };
    let end_entity = EndEntityCert::try_from(leaf).map_err(path_error)?;
    let path = end_entity
        .verify_for_usage(
            ALGORITHMS,
            std::slice::from_ref(&anchors.anchor),
            others,
            UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
            usage,
            revocation,
            None,
        )
        .map_err(path_error)?;

    // X509-SVID, section 3: a signing certificate's id is its trust domain's.
    let authority = SpiffeId::of_authority(&anchors.federation).to_string();
    for certificate in path.intermediate_certificates() {
        let mut names = certificate.valid_uri_names();
        if names.next() != Some(authority.as_str()) || names.next().is_some() {
            return Err(ChainError::BadAuthority);
        }
    }
    leaf_of_profile(leaf, &anchors.federation)
}

/// SHA-256 of a certificate's `SubjectPublicKeyInfo`, unverified: to find the key that goes with it.
///
/// # Errors
/// [`ChainError::Malformed`].
pub fn key_pin(certificate: &[u8]) -> Result<[u8; 32], ChainError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| ChainError::Malformed)?;
    Ok(Sha256::digest(parsed.public_key().raw).into())
}

/// X509-SVID, section 4 and 5.2: what a leaf must and must not say.
fn leaf_of_profile(leaf: &[u8], federation: &Federation) -> Result<VerifiedPeer, ChainError> {
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| ChainError::Malformed)?;
    if !rest.is_empty() {
        return Err(ChainError::Malformed);
    }
    let names = certificate.subject_alternative_name().map_err(|_| ChainError::Malformed)?;
    let names = names.ok_or(ChainError::BadSpiffeId)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(ChainError::BadSpiffeId);
    };
    let id: SpiffeId = uri.parse().map_err(|_| ChainError::BadSpiffeId)?;
    if id.federation() != federation {
        return Err(ChainError::WrongFederation);
    }
    let party = id.party().map_err(|_| ChainError::BadSpiffeId)?;

    let basic = certificate.basic_constraints().map_err(|_| ChainError::Malformed)?;
    let key_usage = certificate.key_usage().map_err(|_| ChainError::Malformed)?;
    let key_usage = key_usage.ok_or(ChainError::BadProfile)?;
    let extended = certificate.extended_key_usage().map_err(|_| ChainError::Malformed)?;
    let no_subject = certificate.subject().iter_rdn().next().is_none();
    let holds = !basic.is_some_and(|basic| basic.value.ca)
        && key_usage.critical
        && key_usage.value.digital_signature()
        && !key_usage.value.key_cert_sign()
        && !key_usage.value.crl_sign()
        && extended.is_none_or(|usage| usage.value.server_auth && usage.value.client_auth)
        && (names.critical || !no_subject);
    if !holds {
        return Err(ChainError::BadProfile);
    }
    Ok(VerifiedPeer {
        id,
        party,
        key_pin: Sha256::digest(certificate.public_key().raw).into(),
        serial: certificate.raw_serial().to_vec(),
        not_before: timestamp(certificate.validity().not_before),
        not_after: timestamp(certificate.validity().not_after),
    })
}

fn timestamp(time: x509_parser::time::ASN1Time) -> Timestamp {
    Timestamp::from_millis(time.timestamp().saturating_mul(1000))
}

fn path_error(error: webpki::Error) -> ChainError {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => ChainError::Expired,
        Error::CertNotValidYet { .. } => ChainError::NotYetValid,
        Error::CertRevoked => ChainError::Revoked,
        Error::UnknownIssuer => ChainError::UnknownIssuer,
        Error::CrlExpired { .. } => ChainError::StaleCrl,
        Error::UnknownRevocationStatus
        | Error::InvalidCrlSignatureForPublicKey
        | Error::UnsupportedCrlSignatureAlgorithmContext(_)
        | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => ChainError::UnknownRevocation,
        Error::InvalidSignatureForPublicKey
        | Error::SignatureAlgorithmMismatch
        | Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => ChainError::BadSignature,
        Error::CaUsedAsEndEntity | Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            ChainError::BadProfile
        }
        Error::EndEntityUsedAsCa
        | Error::PathLenConstraintViolated
        | Error::NameConstraintViolation
        | Error::IssuerNotCrlSigner => ChainError::BadAuthority,
        _ => ChainError::Malformed,
    }
}

#[cfg(test)]
mod tests;
