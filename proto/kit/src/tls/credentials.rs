//! Who we are and whom we believe, replaceable while connections live: new
//! ones, accepted or made, use what was loaded last; old ones go on.

use super::TlsError;
use super::files::{CHAIN, CRLS, IdentityFolder, KEY};
use super::provider::provider;
use arc_swap::ArcSwap;
use chancery_pki_core::{Crls, TrustAnchors, Usage, VerifiedPeer, armour, verify};
use chancery_types::Clock;
use rustls::SignatureScheme;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often [`Credentials::watch`] looks at the files.
const WATCH: Duration = Duration::from_secs(2);

/// A certificate chain with its private key.
#[derive(Clone)]
pub struct Identity {
    own: VerifiedPeer,
    pub(super) key: Arc<SingleCertAndKey>,
    signer: Arc<dyn SigningKey>,
}

impl Identity {
    /// Reads `key.pem` and `chain.pem`; `None` when either is missing.
    ///
    /// # Errors
    /// The key can be read by others, does not belong to the chain, or the
    /// chain does not hold now.
    pub fn load(
        folder: &IdentityFolder,
        anchors: &TrustAnchors,
        clock: &dyn Clock,
    ) -> Result<Option<Self>, TlsError> {
        let (Some(key), Some(chain)) = (folder.read_private(KEY)?, folder.read(CHAIN)?) else {
            return Ok(None);
        };
        let chain = armour::read_chain(&chain).map_err(|_| TlsError::Content(CHAIN))?;
        let own = verify(&chain, anchors, &Crls::default(), clock.now(), Usage::Server)?;
        let key = armour::read_key(&key).map_err(|_| TlsError::Content(KEY))?;
        let certified =
            CertifiedKey::from_der(chain, key.into(), &provider()).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch,
                _ => TlsError::Content(KEY),
            })?;
        let signer = Arc::clone(&certified.key);
        Ok(Some(Self { own, key: Arc::new(certified.into()), signer }))
    }

    /// What our own certificate says.
    pub fn own(&self) -> &VerifiedPeer {
        &self.own
    }
}

/// What one moment's handshakes go by.
pub(super) struct State {
    pub(super) identity: Option<Identity>,
    pub(super) crls: Crls,
}

/// Identity, roots and revocation lists of a party, with live reload.
pub struct Credentials {
    folder: Option<IdentityFolder>,
    anchors: TrustAnchors,
    clock: Arc<dyn Clock>,
    state: ArcSwap<State>,
}

impl Credentials {
    /// Opens an identity folder as [`super::enrol`] leaves it.
    ///
    /// # Errors
    /// A file is missing or wrong, or our own chain does not hold now.
    pub fn open(
        folder: IdentityFolder,
        anchors: TrustAnchors,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, TlsError> {
        let state = ArcSwap::from_pointee(load(&folder, &anchors, &*clock)?);
        Ok(Arc::new(Self { folder: Some(folder), anchors, clock, state }))
    }

    /// For a caller without a certificate: devices, and whoever enrols. With
    /// no `crls` it does not check revocation.
    pub fn anonymous(anchors: TrustAnchors, crls: Crls, clock: Arc<dyn Clock>) -> Arc<Self> {
        let state = ArcSwap::from_pointee(State { identity: None, crls });
        Arc::new(Self { folder: None, anchors, clock, state })
    }

    /// The federation and its root.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// The folder they came from; `None` for a caller without a certificate.
    pub fn folder(&self) -> Option<&IdentityFolder> {
        self.folder.as_ref()
    }

    /// The clock that certificates are judged by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// What our certificate says now; `None` without one.
    pub fn own(&self) -> Option<VerifiedPeer> {
        self.state.load().identity.as_ref().map(|identity| identity.own.clone())
    }

    /// Signs with the key of our certificate (ECDSA P-256 with SHA-256, ASN.1): the key's
    /// `SubjectPublicKeyInfo` and the signature. `message` begins with what it is, so that no
    /// handshake of TLS is ever signed here.
    ///
    /// # Errors
    /// There is no certificate, or its key is of another kind.
    pub fn sign(&self, message: &[u8]) -> Result<(Vec<u8>, Vec<u8>), TlsError> {
        let state = self.state.load();
        let identity = state.identity.as_ref().ok_or(TlsError::NoIdentity)?;
        let signer = identity.signer.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let signature = signer.and_then(|signer| signer.sign(message).ok());
        let key = identity.signer.public_key();
        key.zip(signature)
            .map(|(key, signature)| (key.as_ref().to_vec(), signature))
            .ok_or(TlsError::Content(KEY))
    }

    /// Reads the folder again. When that fails, what was loaded before stays.
    /// Blocks on small files.
    ///
    /// # Errors
    /// As [`Credentials::open`].
    pub fn reload(&self) -> Result<(), TlsError> {
        if let Some(folder) = &self.folder {
            self.state.store(Arc::new(load(folder, &self.anchors, &*self.clock)?));
        }
        Ok(())
    }

    /// Takes the revocation lists of other credentials; for a caller without a
    /// certificate, like those.
    pub(super) fn adopt(&self, other: &Self) {
        self.state.store(other.state());
    }

    /// Reloads whenever a file was replaced, by us or by an operator, until `shutdown`.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let Some(folder) = self.folder.clone() else { return };
        let mut seen = folder.stamp();
        let mut ticks = tokio::time::interval(WATCH);
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            let stamp = folder.stamp();
            if stamp == seen {
                continue;
            }
            seen = stamp;
            match self.reload() {
                Ok(()) => tracing::info!("certificate and revocation lists were reloaded"),
                Err(error) => tracing::error!(%error, "certificate files changed but cannot be used"),
            }
        }
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("anchors", &self.anchors).finish_non_exhaustive()
    }
}

fn load(folder: &IdentityFolder, anchors: &TrustAnchors, clock: &dyn Clock) -> Result<State, TlsError> {
    let missing = |file| TlsError::File { file, error: std::io::ErrorKind::NotFound.into() };
    let identity = Identity::load(folder, anchors, clock)?;
    let identity = identity.ok_or_else(|| missing("key.pem or chain.pem"))?;
    let crls = folder.read(CRLS)?.ok_or_else(|| missing(CRLS))?;
    let crls = Crls::parse(&armour::read_crls(&crls).map_err(|_| TlsError::Content(CRLS))?)?;
    Ok(State { identity: Some(identity), crls })
}
