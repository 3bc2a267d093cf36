//! Who gets into the node: each kind of call has places of its own, so that taking in
//! never stands in the way of handing out, nor waiting for others in the way of either.

use crate::rpc::Session;
use chancery_kit::overload::{Doorkeeper, Gate, Pass};
use chancery_kit::tls::ConnectionInfo;
use chancery_types::{DeviceId, Entropy, Refusal};
use http::Extensions;
use std::net::IpAddr;
use std::sync::Arc;

/// Calls that put something into the store: each may hold a message of 4 MiB.
const TAKING_IN: u64 = 128;
/// Calls by which callers introduce themselves, read, and say what they have.
const HANDING_OUT: u64 = 1024;
/// Calls that wait for the directory, an evaluator or a peer.
const ASKING: u64 = 1024;
/// Blobs that are being written, or sought.
const BLOBS: u64 = 256;

/// Whose call it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// Of the device that the connection is bound to.
    Device(DeviceId),
    /// Of another node, by its SPIFFE id.
    Peer(String),
    /// Of nobody yet.
    Address(IpAddr),
}

/// The places.
pub(crate) struct Places {
    taking_in: Arc<Gate<Caller>>,
    handing_out: Arc<Gate<Caller>>,
    asking: Arc<Gate<Caller>>,
    blobs: Arc<Gate<Caller>>,
}

impl Places {
    pub(crate) fn new(entropy: &Arc<dyn Entropy>) -> Self {
        let gate = |places| Gate::new(places, Arc::clone(entropy));
        Self {
            taking_in: gate(TAKING_IN),
            handing_out: gate(HANDING_OUT),
            asking: gate(ASKING),
            blobs: gate(BLOBS),
        }
    }

    fn gate(&self, method: &str) -> &Arc<Gate<Caller>> {
        match method {
            "/chancery.node.v1.AccountService/Authenticate"
            | "/chancery.node.v1.MailboxService/Acknowledge"
            | "/chancery.node.v1.MailboxService/Subscribe"
            | "/chancery.node.v1.BroadcastService/ReadSeats"
            | "/chancery.federation.v1.FederationService/Link" => &self.handing_out,
            "/chancery.node.v1.KeyPackageService/TakeKeyPackages" => &self.asking,
            "/chancery.node.v1.BlobService/ReadBlob"
            | "/chancery.node.v1.BlobService/WriteBlob"
            | "/chancery.federation.v1.FederationService/ReadBlob" => &self.blobs,
            other if other.starts_with("/chancery.node.v1.RelayService/") => &self.asking,
            other if other.starts_with("/grpc.health.v1.Health/") => &self.handing_out,
            _ => &self.taking_in,
        }
    }
}

impl Doorkeeper for Places {
    /// `None`: there is no TLS, and no service answers.
    type Pass = Option<Pass<Caller>>;

    fn admit(&self, method: &str, extensions: &Extensions) -> Result<Self::Pass, Refusal> {
        let Some(connection) = extensions.get::<ConnectionInfo>() else { return Ok(None) };
        self.gate(method).enter(caller(connection)).map(Some)
    }
}

fn caller(connection: &ConnectionInfo) -> Caller {
    if let Some(session) = connection.session.bound::<Session>() {
        return Caller::Device(session.device);
    }
    match &connection.peer {
        Some(peer) => Caller::Peer(peer.id().to_string()),
        None => Caller::Address(connection.remote.ip()),
    }
}
