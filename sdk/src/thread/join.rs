//! Joining by a Welcome: only when every device in the group verifies and
//! belongs to this account or to one other alias.

use super::{Thread, add_member, admit, insert};
use crate::credential::VerifiedDevice;
use crate::error::EndpointError;
use crate::identity;
use crate::mls::suite::join_config;
use crate::mls::{Suite, key_package};
use crate::outbox;
use crate::peer;
use crate::store::Tx;
use chancery_sdk_core::chain::{self, Link};
use chancery_types::{Alias, Reason, Refusal};
use openmls::framing::{MlsMessageBodyIn, MlsMessageIn};
use openmls::group::{StagedWelcome, WelcomeError};
use openmls::prelude::tls_codec::DeserializeBytes as _;

/// Largest Welcome, in bytes.
const LIMIT: usize = 2 * 1024 * 1024;

/// Joins the group of a Welcome (an MLSMessage). `None`: none of its secrets
/// are for this device.
pub(crate) fn join(
    tx: &mut Tx<'_>,
    id: chancery_types::GroupId,
    link: &Link,
    welcome: &[u8],
) -> Result<Option<Thread>, EndpointError> {
    let false_thread = |what| Refusal::new(Reason::InvalidMessage, what);
    if welcome.len() > LIMIT {
        return Err(false_thread("a Welcome is larger than 2 MiB").into());
    }
    let body = MlsMessageIn::tls_deserialize_exact_bytes(welcome).map(MlsMessageIn::extract);
    let Ok(MlsMessageBodyIn::Welcome(welcome)) = body else {
        return Err(false_thread("a Welcome does not parse").into());
    };
    let suite = Suite::of(welcome.ciphersuite())
        .ok_or_else(|| false_thread("a Welcome has a cipher suite that was not offered"))?;
    let by_last_resort = key_package::is_last_resort(tx, &welcome)?;
    let provider = tx.provider();
    let staged = match StagedWelcome::build_from_welcome(&provider, &join_config(), welcome) {
        Err(WelcomeError::NoMatchingKeyPackage) => return Ok(None),
        builder => builder
            .map_err(EndpointError::mls("open a Welcome"))?
            // One expired leaf would keep everybody out; lifetimes are checked when a device is added.
            .skip_lifetime_validation()
            // The caller knows that there is no such thread here.
            .replace_old_group()
            .build()
            .map_err(EndpointError::mls("stage a Welcome"))?,
    };
    if staged.group_context().group_id().as_slice() != id.as_bytes() {
        return Err(false_thread("a Welcome is for another group than its envelope").into());
    }

    let identity = identity::identity(tx)?;
    let mut devices: Vec<VerifiedDevice> = Vec::new();
    for member in staged.members() {
        devices.push(peer::verify_device(tx, &member.credential, &member.signature_key, |presented| {
            peer::signer_of_member(tx, &identity, presented)
        })?);
    }
    let mut others = devices.iter().map(VerifiedDevice::alias).filter(|alias| *alias != identity.alias);
    let peer: Alias = others.next().ok_or_else(|| false_thread("a thread has no other side"))?;
    if others.any(|alias| alias != peer) {
        return Err(false_thread("a thread has more than two sides").into());
    }

    let group = staged.into_group(&provider).map_err(EndpointError::mls("join a group"))?;
    let mut thread = insert(tx, id, peer, suite, group.epoch().as_u64())?;
    tx.keep_group(id, group);
    for device in &devices {
        add_member(tx, &id, device)?;
    }
    chain::begin(tx, &mut thread, link)?;
    if by_last_resort {
        // Whoever has its private part could read everything from here on.
        outbox::enqueue_commit(tx, &id, admit::SELF_UPDATE)?;
    }
    Ok(Some(thread))
}
