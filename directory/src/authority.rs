//! The key of an enrolment authority. What it attests is the core's, whom it
//! believes its service's.

use crate::DirectoryError;
use crate::keyfile::{self, Role};
use chancery_directory_core::enrolment::AuthoritySigner;
use chancery_types::{Entropy, NodeId};
use std::path::Path;

/// Signs with the key in the file at `path`, made first when there is none.
///
/// # Errors
/// The key file, see [`keyfile::load_or_create`].
pub fn open(
    authority: NodeId,
    path: &Path,
    entropy: &dyn Entropy,
) -> Result<AuthoritySigner, DirectoryError> {
    Ok(AuthoritySigner::new(authority, keyfile::signing_key(path, Role::Authority, entropy)?))
}
