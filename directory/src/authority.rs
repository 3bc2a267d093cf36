//! An enrolment authority's signer: attests handles with a key from a file.
//! Checking the person is the caller's.

use crate::DirectoryError;
use crate::keyfile::{self, Role};
use chancery_directory_core::attestation::{Attestation, SchemeName};
use chancery_directory_core::{AccountKey, AuthorityKey, SigningKey};
use chancery_proto::directory::v1 as wire;
use chancery_types::{Clock, Entropy, Handle, NodeId, Scheme};
use std::path::Path;
use std::time::Duration;

/// How long a record may be put with an attestation.
pub const VALIDITY: Duration = Duration::from_secs(30 * 86_400);

/// Signs attestations.
pub struct AuthoritySigner {
    authority: NodeId,
    key: SigningKey,
}

impl AuthoritySigner {
    /// With the key in the file at `path`, made first when there is none.
    ///
    /// # Errors
    /// The key file, see [`keyfile::load_or_create`].
    pub fn open(authority: NodeId, path: &Path, entropy: &dyn Entropy) -> Result<Self, DirectoryError> {
        Ok(Self { authority, key: keyfile::signing_key(path, Role::Authority, entropy)? })
    }

    /// Its id in the log.
    pub const fn authority(&self) -> &NodeId {
        &self.authority
    }

    /// Its public key, as the log names it.
    pub fn key(&self) -> AuthorityKey {
        (&self.key).into()
    }

    /// Attests that whoever holds `account_key` showed an identifier of
    /// `scheme` whose handle, under `key_epoch`, is `handle`.
    pub fn attest(
        &self,
        scheme: Scheme,
        handle: Handle,
        account_key: AccountKey,
        key_epoch: u32,
        clock: &dyn Clock,
    ) -> wire::SignedAttestation {
        let now = clock.now();
        Attestation {
            authority: self.authority.clone(),
            scheme: SchemeName::from(scheme),
            handle,
            account_key,
            key_epoch,
            issued_at: now,
            expires_at: now.after(VALIDITY),
        }
        .sign(&self.key)
    }
}

impl std::fmt::Debug for AuthoritySigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuthoritySigner({})", self.authority)
    }
}
