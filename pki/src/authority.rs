//! The authority: who may have which certificate, what was issued, what is
//! revoked. Root operations are in [`root`], its own TLS identity in
//! [`identity`]; gRPC is [`crate::service`]'s matter.
//!
//! Its folder:
//!
//! | file | holds |
//! | --- | --- |
//! | `authority.db` | certificates, join tokens, revocation lists |
//! | `root.key.sealed` | root key under the operator's passphrase; belongs offline |
//! | `issuing-<key>.pem` | issuing CA's key, named for the public key |
//! | `identity/` | the enrolment service's own TLS identity |

mod error;
pub mod identity;
pub mod root;

pub use error::AuthorityError;

use crate::store::{self, AuthorityRow, CertificateRow, MIGRATIONS, NewCertificate};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chancery_kit::store::Store;
use chancery_pki_core::profile::Ca;
use chancery_pki_core::{
    CheckedCsr, Federation, LeafNames, Party, ProfileError, Serial, TrustAnchors, Validity, VerifiedPeer,
};
use chancery_types::{Clock, Entropy, Timestamp};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use sqlx::Sqlite;
use sqlx::sqlite::SqliteConnection;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

const DAY: Duration = Duration::from_secs(86_400);
/// Life of a leaf unless the operator says otherwise.
pub const LEAF_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// Life of the issuing CA's revocation list: longer than resolving goes on
/// without a directory (7 days), so that lists never end sooner.
const CRL_LIFE: Duration = Duration::from_secs(10 * 86_400);
/// Age at which the issuing CA's list is issued anew.
const CRL_RENEWED: Duration = Duration::from_secs(3600);
/// Certificates that one party gets in a day.
const DAILY: i64 = 20;
/// Longest join token, characters.
const MAX_TOKEN: usize = 256;
const DATABASE: &str = "authority.db";

/// What to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoke {
    /// One certificate.
    Serial(Serial),
    /// All certificates of a party, and its join tokens.
    Party(Party),
}

/// A federation's certificate authority.
pub struct Authority {
    folder: PathBuf,
    store: Store<Sqlite>,
    anchors: TrustAnchors,
    issuing: Mutex<Arc<Ca>>,
    leaf_life: Duration,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
}

impl Authority {
    /// Opens the authority in `folder`.
    ///
    /// # Errors
    /// There is none, or a file or row cannot be read.
    pub async fn open(
        folder: &Path,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, AuthorityError> {
        if !folder.join(DATABASE).is_file() {
            return Err(AuthorityError::NotInitialised);
        }
        let store = Store::open(&folder.join(DATABASE), &MIGRATIONS).await?;
        let row = store::authority(store.readers()).await?.ok_or(AuthorityError::NotInitialised)?;
        let federation: Federation =
            row.federation.parse().map_err(|_| AuthorityError::Content("authority.federation"))?;
        let issuing = root::load_issuing(folder, &federation, &row.issuing_der)?;
        let anchors = TrustAnchors::new(federation, &row.root_der)
            .map_err(|_| AuthorityError::Content("authority.root_der"))?;
        Ok(Self {
            folder: folder.to_owned(),
            store,
            anchors,
            issuing: Mutex::new(Arc::new(issuing)),
            leaf_life: LEAF_LIFE,
            clock,
            entropy,
        })
    }

    /// The same, issuing leaves for `life`.
    #[must_use]
    pub fn with_leaf_life(mut self, life: Duration) -> Self {
        self.leaf_life = life;
        self
    }

    /// The federation and its root.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// A new join token for `party` with `names`, good once within `ttl`: 43
    /// characters base64url. Only its hash is kept.
    ///
    /// # Errors
    /// The store failed.
    pub async fn issue_token(
        &self,
        party: &Party,
        names: &LeafNames,
        ttl: Duration,
    ) -> Result<Zeroizing<String>, AuthorityError> {
        let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(self.entropy.array());
        let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()));
        let row = Arc::new((digest(token.as_bytes()), party.clone(), lines(names)));
        let expires_at = self.clock.now().after(ttl);
        self.store
            .write("pki.token.issue", move |connection| {
                let row = Arc::clone(&row);
                Box::pin(
                    async move { store::put_token(connection, &row.0, &row.1, &row.2, expires_at).await },
                )
            })
            .await?;
        Ok(token)
    }

    /// Spends a join token and issues the certificate it is for: leaf, then
    /// issuing CA. The same token with the same request gets the same answer again.
    ///
    /// # Errors
    /// The request or token does not count, or too many were issued.
    pub async fn enrol(
        &self,
        join_token: &str,
        csr_der: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let csr = CheckedCsr::check(csr_der)?;
        if join_token.len() > MAX_TOKEN {
            return Err(AuthorityError::TokenInvalid);
        }
        let (token, csr_digest) = (digest(join_token.as_bytes()), digest(csr_der));
        let order = Arc::new(self.order(csr).await?);
        self.store
            .write("pki.token.spend", move |connection| {
                let order = Arc::clone(&order);
                Box::pin(async move { spend(connection, &order, &token, &csr_digest).await })
            })
            .await?
    }

    /// Issues the next certificate of a verified caller, under the same names.
    ///
    /// # Errors
    /// The request does not count, the caller's certificate is revoked or not
    /// ours, a node comes with another key, or too many were issued.
    pub async fn renew(
        &self,
        peer: &VerifiedPeer,
        csr_der: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let csr = CheckedCsr::check(csr_der)?;
        if matches!(peer.party(), Party::Node(_)) && csr.key_pin() != peer.key_pin() {
            return Err(AuthorityError::WrongNodeKey);
        }
        let (order, peer) = (Arc::new(self.order(csr).await?), Arc::new(peer.clone()));
        self.store
            .write("pki.certificate.renew", move |connection| {
                let (order, peer) = (Arc::clone(&order), Arc::clone(&peer));
                Box::pin(async move {
                    let row = store::certificate(&mut *connection, peer.serial()).await?;
                    let Some(row) = row.filter(|row| row.party == peer.party().to_string()) else {
                        return Ok(Err(AuthorityError::Unknown));
                    };
                    if row.revoked_at_ms.is_some() {
                        return Ok(Err(AuthorityError::Revoked));
                    }
                    order.issue(connection, peer.party(), &row.names).await
                })
            })
            .await?
    }

    /// Revokes and issues a new list; says how many certificates it hit.
    ///
    /// # Errors
    /// The store failed, or the list cannot be issued.
    pub async fn revoke(&self, what: Revoke) -> Result<u64, AuthorityError> {
        let (issuing, now, what) = (self.issuing().await?, self.clock.now(), Arc::new(what));
        let revoked = self
            .store
            .write("pki.certificate.revoke", move |connection| {
                let (issuing, what) = (Arc::clone(&issuing), Arc::clone(&what));
                Box::pin(async move {
                    let count = match &*what {
                        Revoke::Serial(serial) => store::revoke_serial(connection, serial, now).await?,
                        Revoke::Party(party) => store::revoke_party(connection, party, now).await?,
                    };
                    issue_list(connection, &issuing, now).await?;
                    Ok(count)
                })
            })
            .await?;
        Ok(revoked)
    }

    /// The revocation lists in force (DER): the root's, the issuing CA's.
    ///
    /// # Errors
    /// The store failed, or the list cannot be issued.
    pub async fn crls(&self) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let row = self.row().await?;
        let now = self.clock.now();
        if now.since(Timestamp::from_millis(row.issuing_crl_at_ms)) < CRL_RENEWED {
            return Ok(vec![row.root_crl, row.issuing_crl]);
        }
        let issuing = self.issuing().await?;
        let row = self
            .store
            .write("pki.crl.issue", move |connection| {
                let issuing = Arc::clone(&issuing);
                Box::pin(async move { issue_list(connection, &issuing, now).await })
            })
            .await?;
        Ok(vec![row.root_crl, row.issuing_crl])
    }

    async fn row(&self) -> Result<AuthorityRow, AuthorityError> {
        store::authority(self.store.readers()).await?.ok_or(AuthorityError::NotInitialised)
    }

    /// The issuing CA in use: a root operation may have replaced it meanwhile.
    async fn issuing(&self) -> Result<Arc<Ca>, AuthorityError> {
        let row = self.row().await?;
        let mut loaded = self.issuing.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.certificate().as_ref() != row.issuing_der.as_slice() {
            let issuing = root::load_issuing(&self.folder, self.anchors.federation(), &row.issuing_der)?;
            *loaded = Arc::new(issuing);
        }
        Ok(Arc::clone(&loaded))
    }

    async fn order(&self, csr: CheckedCsr) -> Result<Order, AuthorityError> {
        Ok(Order {
            issuing: self.issuing().await?,
            csr,
            serial: Serial::random(&*self.entropy),
            now: self.clock.now(),
            life: self.leaf_life,
        })
    }
}

/// A certificate to be issued, but for whom.
struct Order {
    issuing: Arc<Ca>,
    csr: CheckedCsr,
    serial: Serial,
    now: Timestamp,
    life: Duration,
}

type Issued = Result<Vec<CertificateDer<'static>>, AuthorityError>;

impl Order {
    async fn issue(
        &self,
        connection: &mut SqliteConnection,
        party: &Party,
        names: &str,
    ) -> Result<Issued, sqlx::Error> {
        if store::issued_since(connection, party, self.now.before(DAY)).await? >= DAILY {
            return Ok(Err(AuthorityError::TooMany));
        }
        let life = Validity::starting(self.now, self.life);
        let leaf = LeafNames::parse(&names.lines().collect::<Vec<_>>())
            .and_then(|names| self.issuing.issue_leaf(&self.csr, party, &names, &self.serial, life));
        let leaf = match leaf {
            Ok(leaf) => leaf,
            Err(error) => return Ok(Err(error.into())),
        };
        let issuing = self.issuing.certificate();
        let new = NewCertificate {
            serial: &self.serial,
            party,
            names,
            key_pin: self.csr.key_pin(),
            leaf_der: &leaf,
            issuing_der: issuing,
            issued_at: self.now,
            not_after: life.not_after.min(self.issuing.not_after()),
        };
        store::put_certificate(connection, &new).await?;
        Ok(Ok(vec![leaf, issuing.clone()]))
    }
}

async fn spend(
    connection: &mut SqliteConnection,
    order: &Order,
    token: &[u8; 32],
    csr_digest: &[u8; 32],
) -> Result<Issued, sqlx::Error> {
    let Some(row) = store::token(connection, token).await? else {
        return Ok(Err(AuthorityError::TokenInvalid));
    };
    if let (Some(spent_by), Some(serial)) = (row.csr_digest, row.serial) {
        if !bool::from(spent_by.ct_eq(csr_digest)) {
            return Ok(Err(AuthorityError::TokenSpent));
        }
        let row = store::certificate(connection, &serial).await?;
        return Ok(row.ok_or(AuthorityError::Content("join_token.serial")).map(CertificateRow::chain));
    }
    if order.now.millis() > row.expires_at_ms {
        return Ok(Err(AuthorityError::TokenInvalid));
    }
    let Ok(party) = row.party.parse::<Party>() else {
        return Ok(Err(AuthorityError::Content("join_token.party")));
    };
    let issued = order.issue(connection, &party, &row.names).await?;
    if issued.is_ok() {
        store::spend_token(connection, token, csr_digest, &order.serial).await?;
    }
    Ok(issued)
}

/// Issues the issuing CA's list under the next number and keeps it. A failure
/// to sign is the job's: nothing of its transaction stays.
async fn issue_list(
    connection: &mut SqliteConnection,
    issuing: &Ca,
    now: Timestamp,
) -> Result<AuthorityRow, sqlx::Error> {
    let mut row = store::authority(&mut *connection).await?.ok_or(sqlx::Error::RowNotFound)?;
    let revoked = store::revoked_leaves(connection, now).await?;
    row.issuing_crl_number += 1;
    row.issuing_crl_at_ms = now.millis();
    let number = row.issuing_crl_number.unsigned_abs();
    row.issuing_crl =
        issuing.issue_crl(number, Validity::starting(now, CRL_LIFE), &revoked).map_err(unsigned)?;
    store::put_authority(connection, &row).await?;
    Ok(row)
}

fn unsigned(error: ProfileError) -> sqlx::Error {
    sqlx::Error::Encode(Box::new(error))
}

impl CertificateRow {
    fn chain(self) -> Vec<CertificateDer<'static>> {
        vec![self.leaf_der.into(), self.issuing_der.into()]
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn lines(names: &LeafNames) -> String {
    names.to_strings().join("\n")
}
