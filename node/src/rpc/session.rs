//! Who calls: a device whose connection it has bound, or a member's node.

use super::Rooms;
use chancery_kit::tls::ConnectionInfo;
use chancery_types::{AccountId, Alias, DeviceId, NodeId, Reason, Refusal};
use ed25519_dalek::{Signature, VerifyingKey};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use tokio_util::sync::CancellationToken;
use tonic::Request;

/// What the device key signs before the node's id, the device id and the
/// connection's TLS exporter.
const AUTH_CONTEXT: &[u8] = b"chancery device auth v1\0";

/// A connection bound to a device.
pub(crate) struct Session {
    pub(crate) device: DeviceId,
    pub(crate) account: AccountId,
    /// The account is an agent's.
    pub(crate) is_agent: bool,
    /// The device was removed.
    pub(crate) ended: CancellationToken,
    aliases: RwLock<HashSet<Alias>>,
}

/// Bound connections, so that those of a removed device end at once.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<DeviceId, Vec<Weak<Session>>>>);

impl Sessions {
    fn add(&self, session: &Arc<Session>) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, sessions| {
            sessions.retain(|session| session.strong_count() > 0);
            !sessions.is_empty()
        });
        open.entry(session.device).or_default().push(Arc::downgrade(session));
    }

    /// Ends what a device has open.
    pub(crate) fn end(&self, device: &DeviceId) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(device);
        open.into_iter().flatten().filter_map(|session| session.upgrade()).for_each(|s| s.ended.cancel());
    }
}

impl Session {
    pub(crate) fn new(device: DeviceId, account: AccountId, is_agent: bool, aliases: &[Alias]) -> Self {
        let aliases = RwLock::new(aliases.iter().copied().collect());
        Self { device, account, is_agent, ended: CancellationToken::new(), aliases }
    }

    /// The account has one more alias.
    pub(crate) fn add_alias(&self, alias: Alias) {
        self.aliases.write().unwrap_or_else(PoisonError::into_inner).insert(alias);
    }

    /// Refuses an alias of another account.
    pub(crate) fn own(&self, alias: &Alias) -> Result<(), Refusal> {
        if self.aliases.read().unwrap_or_else(PoisonError::into_inner).contains(alias) {
            Ok(())
        } else {
            Err(Refusal::new(Reason::NotYourAlias, "the alias is not one of the caller's account"))
        }
    }
}

/// Binds a connection to a device; again for the same device: nothing happens.
pub(crate) fn bind(rooms: &Rooms, connection: &ConnectionInfo, session: Session) -> Result<(), Refusal> {
    let session = Arc::new(session);
    if connection.session.bind(Arc::clone(&session)).is_ok() {
        rooms.sessions.add(&session);
        return Ok(());
    }
    match connection.session.bound::<Session>() {
        Some(bound) if bound.device == session.device => Ok(()),
        _ => Err(Refusal::new(Reason::WrongIdentity, "the connection is bound to another device")),
    }
}

/// The connection of a request.
pub(crate) fn connection<T>(request: &Request<T>) -> Result<&ConnectionInfo, Refusal> {
    request
        .extensions()
        .get::<ConnectionInfo>()
        .ok_or_else(|| Refusal::new(Reason::NotAuthenticated, "this service needs TLS"))
}

/// The device that the connection is bound to.
pub(crate) fn device<T>(request: &Request<T>) -> Result<Arc<Session>, Refusal> {
    connection(request)?
        .session
        .bound::<Session>()
        .filter(|session| !session.ended.is_cancelled())
        .ok_or_else(|| Refusal::new(Reason::NotAuthenticated, "call Authenticate on this connection first"))
}

/// The member's node that calls.
pub(crate) async fn peer<T>(rooms: &Rooms, request: &Request<T>) -> Result<NodeId, Refusal> {
    let peer = connection(request)?.peer.as_ref();
    let peer =
        peer.ok_or_else(|| Refusal::new(Reason::NotAuthenticated, "this service needs a certificate"))?;
    rooms.mesh.admit(peer).await
}

/// SPIFFE id of the agent that calls; `None`: no certificate was shown.
pub(crate) fn agent(rooms: &Rooms, connection: &ConnectionInfo) -> Result<Option<String>, Refusal> {
    let Some(peer) = &connection.peer else { return Ok(None) };
    match peer.party() {
        chancery_pki_core::Party::Agent { administration, .. } if administration == rooms.mesh.here() => {
            Ok(Some(peer.id().to_string()))
        }
        _ => {
            Err(Refusal::new(Reason::WrongIdentity, "only agents of this administration have accounts here"))
        }
    }
}

/// Checks the proof of possession of a device key on this connection.
pub(crate) fn prove(
    rooms: &Rooms,
    connection: &ConnectionInfo,
    device: DeviceId,
    auth_key: &[u8; 32],
    signature: &[u8],
) -> Result<(), Refusal> {
    let wrong = || Refusal::new(Reason::WrongSignature, "the device key did not sign this connection");
    let key = VerifyingKey::from_bytes(auth_key).map_err(|_| wrong())?;
    let signature = Signature::from_slice(signature).map_err(|_| wrong())?;
    let here = rooms.mesh.here().as_str().as_bytes();
    let signed = [AUTH_CONTEXT, here, b"\0", device.as_bytes(), &connection.exporter].concat();
    key.verify_strict(&signed, &signature).map_err(|_| wrong())
}
