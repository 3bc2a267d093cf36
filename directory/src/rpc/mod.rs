//! gRPC at the door: who may call, decode, call, encode.

pub(crate) mod directory;
pub(crate) mod evaluator;

use chancery_directory_core::FederationState;
use chancery_kit::tls::ConnectionInfo;
use chancery_pki_core::{Party, VerifiedPeer};
use chancery_types::{NodeId, Reason, Refusal};
use tonic::Request;

/// Largest request in bytes: 1,000 blinded elements, or a ceremony that fits into an entry.
pub(crate) const MAX_REQUEST: usize = 128 * 1024;

/// Refuses whoever is no node that the log admits under the key it shows.
pub(crate) fn admit(node: &NodeId, peer: &VerifiedPeer, state: &FederationState) -> Result<(), Refusal> {
    let member = state
        .member(node)
        .ok_or_else(|| Refusal::new(Reason::NotAMember, "the node is not a member of the federation"))?;
    if member.node_key_pin != *peer.key_pin() {
        return Err(Refusal::new(Reason::WrongNodeKey, "the log pins another key for the node"));
    }
    Ok(())
}

/// Whether a mirror of the directory's own calls.
pub(crate) fn is_directory<T>(request: &Request<T>) -> bool {
    let info = request.extensions().get::<ConnectionInfo>();
    info.and_then(|info| info.peer.as_ref()).is_some_and(|peer| *peer.party() == Party::Directory)
}

/// The node behind a call: evaluations, lookups and record operations come
/// through nodes alone.
pub(crate) fn node<T>(request: &Request<T>) -> Result<(NodeId, VerifiedPeer), Refusal> {
    let peer = request
        .extensions()
        .get::<ConnectionInfo>()
        .and_then(|info| info.peer.clone())
        .ok_or_else(|| Refusal::new(Reason::NotAuthenticated, "show a node's certificate"))?;
    match peer.party() {
        Party::Node(node) => Ok((node.clone(), peer)),
        _ => Err(Refusal::new(Reason::WrongIdentity, "this call is for nodes")),
    }
}
