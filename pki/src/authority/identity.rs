//! The enrolment service's own TLS identity: the authority issues it to
//! itself, keeps its key, and renews it like any other.

use super::{Authority, AuthorityError, lines};
use crate::store;
use chancery_kit::tls::enrol::half_life_over;
use chancery_kit::tls::files::{CHAIN, CRLS, IdentityFolder, KEY};
use chancery_kit::tls::{Credentials, Identity, TlsError};
use chancery_pki_core::{ChainError, CheckedCsr, LeafNames, Party, armour, profile};
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use zeroize::Zeroizing;

impl Authority {
    /// Credentials of the enrolment service under `names`, issued now unless
    /// there are good ones. [`crate::serve`] keeps them renewed.
    ///
    /// # Errors
    /// Something cannot be issued or written.
    pub async fn own_credentials(&self, names: &LeafNames) -> Result<Arc<Credentials>, AuthorityError> {
        let folder = IdentityFolder::new(self.folder.join("identity"));
        folder.create()?;
        let current = match Identity::load(&folder, &self.anchors, &*self.clock) {
            Ok(identity) => identity,
            Err(error) if outlived(&error) => None,
            Err(error) => return Err(error.into()),
        };
        let good = match &current {
            Some(identity) => self.is_good(&folder, identity, &lines(names)).await?,
            None => false,
        };
        if !good {
            self.certify_own(&folder, lines(names)).await?;
        }
        self.write_own_lists(&folder).await?;
        Ok(Credentials::open(folder, self.anchors.clone(), Arc::clone(&self.clock))?)
    }

    /// Renews the credentials of [`Authority::own_credentials`] when half of
    /// their life is over or the issuing CA was replaced, and gives them the
    /// latest revocation lists.
    ///
    /// # Errors
    /// Something cannot be issued or written; what was loaded before stays.
    pub async fn refresh_own(&self, credentials: &Credentials) -> Result<(), AuthorityError> {
        let (Some(folder), Some(own)) = (credentials.folder(), credentials.own()) else {
            return Err(TlsError::NoIdentity.into());
        };
        let row = store::certificate(self.store.readers(), own.serial()).await?;
        let names = row.ok_or(AuthorityError::Unknown)?.names;
        let identity = Identity::load(folder, &self.anchors, &*self.clock)?.ok_or(TlsError::NoIdentity)?;
        if !self.is_good(folder, &identity, &names).await? {
            self.certify_own(folder, names).await?;
        }
        self.write_own_lists(folder).await?;
        Ok(credentials.reload()?)
    }

    async fn is_good(
        &self,
        folder: &IdentityFolder,
        identity: &Identity,
        names: &str,
    ) -> Result<bool, AuthorityError> {
        let row = store::certificate(self.store.readers(), identity.own().serial()).await?;
        let chain = folder.read(CHAIN)?.ok_or(TlsError::NoIdentity)?;
        let chain = armour::read_chain(&chain).map_err(|_| TlsError::Content(CHAIN))?;
        let issuing = self.issuing().await?;
        Ok(row.is_some_and(|row| row.names == names && row.revoked_at_ms.is_none())
            && chain.get(1) == Some(issuing.certificate())
            && !half_life_over(identity.own(), &*self.clock))
    }

    async fn certify_own(&self, folder: &IdentityFolder, names: String) -> Result<(), AuthorityError> {
        let key = match folder.read_private(KEY)? {
            Some(key) => key,
            None => {
                let key = profile::new_key()?;
                folder.replace(KEY, key.as_bytes())?;
                Zeroizing::new(key.as_bytes().to_vec())
            }
        };
        let key = std::str::from_utf8(&key).map_err(|_| TlsError::Content(KEY))?;
        let csr = CheckedCsr::check(&profile::csr_for(key)?)?;
        let order = Arc::new((self.order(csr).await?, names));
        let chain: Vec<CertificateDer<'static>> = self
            .store
            .write("pki.certificate.own", move |connection| {
                let order = Arc::clone(&order);
                Box::pin(async move { order.0.issue(connection, &Party::Pki, &order.1).await })
            })
            .await??;
        Ok(folder.replace(CHAIN, armour::write_chain(&chain).as_bytes())?)
    }

    async fn write_own_lists(&self, folder: &IdentityFolder) -> Result<(), AuthorityError> {
        let text = armour::write_crls(&self.crls().await?);
        if folder.read(CRLS)?.is_none_or(|old| old.as_slice() != text.as_bytes()) {
            folder.replace(CRLS, text.as_bytes())?;
        }
        Ok(())
    }
}

/// Whether a chain error means that the own certificate must be issued anew.
fn outlived(error: &TlsError) -> bool {
    matches!(error, TlsError::Chain(ChainError::Expired | ChainError::UnknownIssuer))
}
