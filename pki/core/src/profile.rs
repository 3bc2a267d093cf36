//! What the federation's CAs issue: root, issuing CA, leaves, CRLs; and the
//! requests they are issued for. Who may have what is the authority's matter,
//! keeping keys the shells'.
//!
//! Certificates follow RFC 5280 and the
//! [X.509-SVID profile](https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md). They carry
//! no name constraints: the one form that would matter is the URI, which
//! neither rcgen writes nor webpki reads (it refuses every chain that has it).
//! [`crate::chain`] holds each certificate to the trust domain instead.
//!
//! Keys come from the TLS library's own generator, as do those of handshakes.

use crate::spiffe::{Federation, Party, SpiffeId};
use chancery_types::{Entropy, Reason, Refusal, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    RevokedCertParams, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, ServerName};
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509CertificationRequest};
use zeroize::Zeroizing;

/// Largest certificate request, bytes.
pub const MAX_CSR: usize = 8 * 1024;
/// Most DNS names and addresses in a leaf.
pub const MAX_NAMES: usize = 16;
/// How far back a certificate's life begins, so that clocks may differ.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// DER up to the key itself: `SubjectPublicKeyInfo` of an uncompressed P-256
/// point (RFC 5480, section 2) and of Ed25519 (RFC 8410, section 4), each with its whole length.
const KEY_FORMS: [(&[u8], usize); 2] = [
    (b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04", 91),
    (b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", 44),
];

/// Something cannot be issued or read.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The request is longer than [`MAX_CSR`].
    #[error("a certificate request has at most {MAX_CSR} bytes")]
    CsrTooLarge,
    /// The request does not parse, or bytes follow it.
    #[error("the certificate request does not parse")]
    CsrMalformed,
    /// The request's key is neither P-256 nor Ed25519.
    #[error("a certificate request needs a P-256 or Ed25519 key")]
    CsrKey,
    /// The request is not signed by its own key.
    #[error("the certificate request does not prove possession of its key")]
    CsrSignature,
    /// More than [`MAX_NAMES`], or one that is neither DNS name nor address.
    #[error("names are at most {MAX_NAMES} DNS names without wildcards or IP addresses")]
    Names,
    /// A time is out of range.
    #[error("a time is out of range")]
    Time,
    /// A CA's key is not the one in its certificate.
    #[error("the key does not belong to the CA's certificate")]
    KeyMismatch,
    /// A stored certificate or key does not parse, or signing failed.
    #[error("issuing: {0}")]
    Library(#[from] rcgen::Error),
}

impl From<ProfileError> for Refusal {
    fn from(error: ProfileError) -> Self {
        let reason = match &error {
            ProfileError::CsrTooLarge => Reason::TooLarge,
            ProfileError::CsrMalformed | ProfileError::CsrKey | ProfileError::CsrSignature => {
                Reason::InvalidCsr
            }
            ProfileError::Names => Reason::InvalidField,
            ProfileError::Time | ProfileError::KeyMismatch | ProfileError::Library(_) => {
                return Self::new(Reason::Internal, "the authority could not issue");
            }
        };
        Self::new(reason, error.to_string())
    }
}

/// When a certificate or list counts, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: Timestamp,
    /// Last moment.
    pub not_after: Timestamp,
}

impl Validity {
    /// From five minutes before `now` (clocks differ) until `life` after it.
    pub fn starting(now: Timestamp, life: Duration) -> Self {
        Self { not_before: now.before(SKEW), not_after: now.after(life) }
    }
}

/// A certificate's serial number: 16 bytes, positive (RFC 5280, section 4.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Serial([u8; 16]);

impl Serial {
    /// A new one with 126 random bits.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes: [u8; 16] = entropy.array();
        // Positive, and 16 bytes long in DER as here.
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Self(bytes)
    }

    /// The bytes, as in the certificate.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl TryFrom<&[u8]> for Serial {
    type Error = chancery_types::WrongLength;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        let wrong = || chancery_types::WrongLength { what: "serial", expected: 16, found: bytes.len() };
        bytes.try_into().map(Self).map_err(|_| wrong())
    }
}

/// DNS names and IP addresses of a leaf, for clients that look for those
/// (RFC 9525); the mesh itself goes by the SPIFFE id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeafNames(Vec<ServerName<'static>>);

impl LeafNames {
    /// Reads each as an IP address or DNS name.
    ///
    /// # Errors
    /// [`ProfileError::Names`].
    pub fn parse<T: AsRef<str>>(names: &[T]) -> Result<Self, ProfileError> {
        if names.len() > MAX_NAMES {
            return Err(ProfileError::Names);
        }
        let name = |text: &T| ServerName::try_from(text.as_ref().to_owned()).map_err(|_| ProfileError::Names);
        names.iter().map(name).collect::<Result<_, _>>().map(Self)
    }

    /// As [`LeafNames::parse`] reads them.
    pub fn to_strings(&self) -> Vec<String> {
        self.0.iter().map(|name| name.to_str().into_owned()).collect()
    }
}

/// A certificate request whose key is of a permitted kind and whose sender
/// has proved to possess it.
#[derive(Debug)]
pub struct CheckedCsr {
    key: SubjectPublicKeyInfo,
    pin: [u8; 32],
}

impl CheckedCsr {
    /// Checks a PKCS#10 request (RFC 2986). Names and extensions it asks for are ignored.
    ///
    /// # Errors
    /// One of the `Csr…` errors.
    pub fn check(der: &[u8]) -> Result<Self, ProfileError> {
        if der.len() > MAX_CSR {
            return Err(ProfileError::CsrTooLarge);
        }
        let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| ProfileError::CsrMalformed)?;
        if !rest.is_empty() {
            return Err(ProfileError::CsrMalformed);
        }
        let key = csr.certification_request_info.subject_pki.raw;
        if !KEY_FORMS.iter().any(|(start, length)| key.len() == *length && key.starts_with(start)) {
            return Err(ProfileError::CsrKey);
        }
        csr.verify_signature().map_err(|_| ProfileError::CsrSignature)?;
        Ok(Self {
            key: SubjectPublicKeyInfo::from_der(key).map_err(|_| ProfileError::CsrKey)?,
            pin: Sha256::digest(key).into(),
        })
    }

    /// SHA-256 of the key's `SubjectPublicKeyInfo`, as member entries pin it.
    pub fn key_pin(&self) -> &[u8; 32] {
        &self.pin
    }
}

/// A new P-256 private key (PKCS#8, PEM).
///
/// # Errors
/// The generator failed.
pub fn new_key() -> Result<Zeroizing<String>, ProfileError> {
    let key = Zeroizing::new(KeyPair::generate()?);
    Ok(Zeroizing::new(key.serialize_pem()))
}

/// SHA-256 of the `SubjectPublicKeyInfo` that goes with a private key.
///
/// # Errors
/// The key does not parse.
pub fn key_pin(key_pem: &str) -> Result<[u8; 32], ProfileError> {
    let key = Zeroizing::new(KeyPair::from_pem(key_pem)?);
    Ok(Sha256::digest(key.subject_public_key_info()).into())
}

/// A request (PKCS#10, DER) for the key; it asks for no names. Two requests
/// for one key differ: ECDSA signs with a random number.
///
/// # Errors
/// The key does not parse.
pub fn csr_for(key_pem: &str) -> Result<Vec<u8>, ProfileError> {
    let key = Zeroizing::new(KeyPair::from_pem(key_pem)?);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&*key)?.der().to_vec())
}

/// A new key and a request for it.
///
/// # Errors
/// The generator failed.
pub fn new_key_and_csr() -> Result<(Zeroizing<String>, Vec<u8>), ProfileError> {
    let key = new_key()?;
    let csr = csr_for(&key)?;
    Ok((key, csr))
}

/// A CA of the federation with its key.
pub struct Ca {
    federation: Federation,
    certificate: CertificateDer<'static>,
    not_after: Timestamp,
    key: Zeroizing<KeyPair>,
}

impl Ca {
    /// A new root: P-256, self-signed, path length 1.
    ///
    /// # Errors
    /// A time is out of range, or the generator failed.
    pub fn new_root(
        federation: &Federation,
        serial: &Serial,
        validity: Validity,
    ) -> Result<Self, ProfileError> {
        let key = Zeroizing::new(KeyPair::generate()?);
        let params = ca_params(federation, "root CA", 1, &key, serial, validity)?;
        let certificate = params.self_signed(&*key)?.into();
        Ok(Self { federation: federation.clone(), certificate, not_after: validity.not_after, key })
    }

    /// Issues an issuing CA with path length 0, under `key_pem` or a new key.
    /// The same key has the same subject, so that what it issued stays valid.
    ///
    /// # Errors
    /// A time is out of range, or the key does not parse.
    pub fn issue_ca(
        &self,
        key_pem: Option<&str>,
        serial: &Serial,
        validity: Validity,
    ) -> Result<Self, ProfileError> {
        let key = Zeroizing::new(key_pem.map_or_else(KeyPair::generate, KeyPair::from_pem)?);
        let validity = self.within(validity);
        let params = ca_params(&self.federation, "issuing CA", 0, &key, serial, validity)?;
        let certificate = params.signed_by(&*key, &self.issuer()?)?.into();
        Ok(Self { federation: self.federation.clone(), certificate, not_after: validity.not_after, key })
    }

    /// A CA from its stored certificate (DER) and key (PKCS#8, PEM).
    ///
    /// # Errors
    /// One of them does not parse, or they do not belong together.
    pub fn load(federation: &Federation, certificate: &[u8], key_pem: &str) -> Result<Self, ProfileError> {
        let key = Zeroizing::new(KeyPair::from_pem(key_pem)?);
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|_| ProfileError::Library(rcgen::Error::CouldNotParseCertificate))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(ProfileError::KeyMismatch);
        }
        let not_after = Timestamp::from_millis(parsed.validity().not_after.timestamp().saturating_mul(1000));
        let certificate = CertificateDer::from(certificate.to_vec());
        Ok(Self { federation: federation.clone(), certificate, not_after, key })
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The private key, PKCS#8, PEM.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// Issues a leaf: empty subject, one URI name, client and server. It never outlives the CA.
    ///
    /// # Errors
    /// A time is out of range, or signing failed.
    pub fn issue_leaf(
        &self,
        csr: &CheckedCsr,
        party: &Party,
        names: &LeafNames,
        serial: &Serial,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, ProfileError> {
        let mut params = params(serial, self.within(validity))?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names.push(uri(&SpiffeId::of(&self.federation, party))?);
        for name in &names.0 {
            params.subject_alt_names.push(match name {
                ServerName::DnsName(name) => SanType::DnsName(name.as_ref().try_into()?),
                ServerName::IpAddress(address) => SanType::IpAddress((*address).into()),
                _ => return Err(ProfileError::Names),
            });
        }
        Ok(params.signed_by(&csr.key, &self.issuer()?)?.into())
    }

    /// Issues the CA's revocation list (DER): `validity.not_before` is
    /// thisUpdate, `validity.not_after` nextUpdate.
    ///
    /// # Errors
    /// A time is out of range, or signing failed.
    pub fn issue_crl(
        &self,
        number: u64,
        validity: Validity,
        revoked: &[(Serial, Timestamp)],
    ) -> Result<Vec<u8>, ProfileError> {
        let entry = |(serial, at): &(Serial, Timestamp)| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial.as_bytes()),
                revocation_time: date(*at)?,
                reason_code: None,
                invalidity_date: None,
            })
        };
        let params = CertificateRevocationListParams {
            this_update: date(validity.not_before)?,
            next_update: date(validity.not_after)?,
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect::<Result<_, ProfileError>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer()?)?.der().to_vec())
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, ProfileError> {
        Ok(Issuer::from_ca_cert_der(&self.certificate, &*self.key)?)
    }

    fn within(&self, validity: Validity) -> Validity {
        Validity { not_after: validity.not_after.min(self.not_after), ..validity }
    }
}

fn ca_params(
    federation: &Federation,
    what: &str,
    path_length: u8,
    key: &KeyPair,
    serial: &Serial,
    validity: Validity,
) -> Result<CertificateParams, ProfileError> {
    let mut params = params(serial, validity)?;
    // CRLs are found by the issuer's name: no two keys may share one.
    let [a, b, c, d, ..] = <[u8; 32]>::from(Sha256::digest(key.subject_public_key_info()));
    let name = format!("Chancery {what} {a:02x}{b:02x}{c:02x}{d:02x}");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names.push(uri(&SpiffeId::of_authority(federation))?);
    Ok(params)
}

fn params(serial: &Serial, validity: Validity) -> Result<CertificateParams, ProfileError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date(validity.not_before)?;
    params.not_after = date(validity.not_after)?;
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn uri(id: &SpiffeId) -> Result<SanType, ProfileError> {
    Ok(SanType::URI(id.to_string().try_into()?))
}

fn date(at: Timestamp) -> Result<OffsetDateTime, ProfileError> {
    OffsetDateTime::from_unix_timestamp(at.seconds()).map_err(|_| ProfileError::Time)
}

#[cfg(test)]
mod tests;
