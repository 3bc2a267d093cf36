//! What needs the root's key, and so the operator's passphrase: creating the
//! federation's CAs, renewing or replacing the issuing CA.

use super::error::file_error;
use super::{Authority, AuthorityError, CRL_LIFE, DATABASE, issue_list, unsigned};
use crate::sealed;
use crate::store::{self, AuthorityRow, MIGRATIONS};
use chancery_kit::store::Store;
use chancery_kit::tls::files;
use chancery_pki_core::profile::Ca;
use chancery_pki_core::{Federation, Serial, Validity};
use chancery_types::{Clock, Entropy, Timestamp};
use secrecy::SecretString;
use sqlx::sqlite::SqliteConnection;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 86_400);
const ISSUING_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// The root's list is issued anew with each root operation, which comes
/// before the issuing CA ends; so it outlives the issuing CA.
const ROOT_CRL_LIFE: Duration = Duration::from_secs(400 * 86_400);
const ROOT_KEY: &str = "root.key.sealed";
/// Largest key file, bytes.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// What a root operation makes of the issuing CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuing {
    /// A new certificate for the same key: everything issued stays valid.
    Renew,
    /// A new key; every earlier issuing certificate is revoked, and with it
    /// every leaf. For a key that is lost or known to others.
    Replace,
}

impl Authority {
    /// Creates root, issuing CA and their revocation lists in `folder`. May be
    /// called again after a crash until it has succeeded once.
    ///
    /// # Errors
    /// There is an authority already, or something cannot be written.
    pub async fn init(
        folder: &Path,
        federation: &Federation,
        passphrase: &SecretString,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, AuthorityError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| file_error("the authority's folder", error))?;
        let store = Store::open(&folder.join(DATABASE), &MIGRATIONS).await?;
        if store::authority(store.readers()).await?.is_some() {
            return Err(AuthorityError::AlreadyInitialised);
        }
        let now = clock.now();
        let (root_serial, serial) = (Serial::random(&*entropy), Serial::random(&*entropy));
        let root = Ca::new_root(federation, &root_serial, Validity::starting(now, ROOT_LIFE))?;
        let issuing = root.issue_ca(None, &serial, Validity::starting(now, ISSUING_LIFE))?;
        let row = AuthorityRow {
            federation: federation.to_string(),
            root_der: root.certificate().to_vec(),
            issuing_der: issuing.certificate().to_vec(),
            root_crl: root.issue_crl(1, Validity::starting(now, ROOT_CRL_LIFE), &[])?,
            root_crl_number: 1,
            issuing_crl: issuing.issue_crl(1, Validity::starting(now, CRL_LIFE), &[])?,
            issuing_crl_number: 1,
            issuing_crl_at_ms: now.millis(),
        };
        // Keys first: once the row is there, the authority is.
        let sealed = sealed::seal(&root.key_pem(), passphrase, &*entropy)?;
        write(folder, ROOT_KEY, sealed.as_bytes())?;
        write(folder, &issuing_file(&issuing.key_pem())?, issuing.key_pem().as_bytes())?;
        let row = Arc::new(row);
        store
            .write("pki.authority.init", move |connection| {
                let row = Arc::clone(&row);
                Box::pin(async move {
                    store::put_issuing_ca(connection, &serial, now).await?;
                    store::put_authority(connection, &row).await
                })
            })
            .await?;
        drop(store);
        Self::open(folder, clock, entropy).await
    }

    /// Renews or replaces the issuing CA and issues both revocation lists
    /// anew. A running enrolment service goes over to it by itself.
    ///
    /// # Errors
    /// The passphrase is wrong, or something cannot be written.
    pub async fn renew_issuing(
        &self,
        passphrase: &SecretString,
        issuing: Issuing,
    ) -> Result<(), AuthorityError> {
        let row = self.row().await?;
        let sealed = read(&self.folder, ROOT_KEY)?;
        let sealed = std::str::from_utf8(&sealed).map_err(|_| AuthorityError::Content(ROOT_KEY))?;
        let root = Ca::load(self.anchors.federation(), &row.root_der, &sealed::open(sealed, passphrase)?)?;
        let replace = issuing == Issuing::Replace;
        let same_key = (!replace).then_some(self.issuing().await?.key_pem());
        let (now, serial) = (self.clock.now(), Serial::random(&*self.entropy));
        let life = Validity::starting(now, ISSUING_LIFE);
        let issuing = root.issue_ca(same_key.as_ref().map(|key| key.as_str()), &serial, life)?;
        write(&self.folder, &issuing_file(&issuing.key_pem())?, issuing.key_pem().as_bytes())?;
        let cas = Arc::new((root, issuing));
        self.store
            .write("pki.issuing.renew", move |connection| {
                let cas = Arc::clone(&cas);
                Box::pin(async move {
                    if replace {
                        store::revoke_issuing_cas(connection, now).await?;
                    }
                    store::put_issuing_ca(connection, &serial, now).await?;
                    renew_row(connection, &cas.0, &cas.1, now).await
                })
            })
            .await?;
        Ok(())
    }
}

async fn renew_row(
    connection: &mut SqliteConnection,
    root: &Ca,
    issuing: &Ca,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let mut row = store::authority(&mut *connection).await?.ok_or(sqlx::Error::RowNotFound)?;
    let revoked = store::revoked_issuing_cas(connection).await?;
    row.root_crl_number += 1;
    let number = row.root_crl_number.unsigned_abs();
    row.root_crl =
        root.issue_crl(number, Validity::starting(now, ROOT_CRL_LIFE), &revoked).map_err(unsigned)?;
    row.issuing_der = issuing.certificate().to_vec();
    store::put_authority(connection, &row).await?;
    issue_list(connection, issuing, now).await.map(drop)
}

/// Loads the issuing CA whose certificate is `certificate`.
pub(super) fn load_issuing(
    folder: &Path,
    federation: &Federation,
    certificate: &[u8],
) -> Result<Ca, AuthorityError> {
    let pin = chancery_pki_core::chain::key_pin(certificate)
        .map_err(|_| AuthorityError::Content("authority.issuing_der"))?;
    let key = read(folder, &file_of(&pin))?;
    let key = std::str::from_utf8(&key).map_err(|_| AuthorityError::Content("the issuing CA's key"))?;
    Ok(Ca::load(federation, certificate, key)?)
}

fn issuing_file(key_pem: &str) -> Result<String, AuthorityError> {
    Ok(file_of(&chancery_pki_core::profile::key_pin(key_pem)?))
}

fn file_of(pin: &[u8; 32]) -> String {
    format!("issuing-{}.pem", hex::encode(pin.get(..8).unwrap_or_default()))
}

fn write(folder: &Path, file: &str, content: &[u8]) -> Result<(), AuthorityError> {
    files::replace(&folder.join(file), content).map_err(|error| file_error(file, error))
}

fn read(folder: &Path, file: &str) -> Result<Zeroizing<Vec<u8>>, AuthorityError> {
    let mut content = Zeroizing::new(Vec::with_capacity(4096));
    std::fs::File::open(folder.join(file))
        .and_then(|opened| opened.take(MAX_KEY_FILE).read_to_end(&mut content))
        .map_err(|error| file_error(file, error))?;
    Ok(content)
}
