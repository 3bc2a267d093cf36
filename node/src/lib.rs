//! The federation node: MLS delivery service, mailboxes and peer links of one
//! administration. It never sees plaintext.
//!
//! `store` holds everything durable; `rpc` is the door for endpoints and
//! peers; `link` hands parcels to peers; `mesh` knows the federation; `job`
//! does what nobody asks for. What is decided lives in `chancery_node_core`.

mod blobs;
pub mod command;
pub mod config;
mod door;
mod job;
mod lane;
mod link;
mod mesh;
mod places;
mod quota;
mod rpc;
mod store;
mod wake;

pub use command::{NodeArgs, run};
pub use quota::QuotaConfig;

use crate::blobs::Blobs;
use crate::mesh::Mesh;
use crate::places::Places;
use crate::quota::Quotas;
use crate::rpc::Rooms;
use crate::store::NodeStore;
use chancery_directory_core::client::Trust;
use chancery_kit::entrance::Entrance;
use chancery_kit::serve::ServeError;
use chancery_kit::store::StoreError;
use chancery_kit::tls::{Credentials, TlsError};
use chancery_pki_core::Party;
use chancery_types::{Clock, Entropy, NodeId, Refusal};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Calls of a connection that are under way at once; further ones wait at the caller, so that a
/// flood leaves little behind that is still to be answered. RFC 9113 §6.5.2 asks for 100 at least.
const STREAMS: u32 = 128;

/// What a node is made of.
pub struct NodeParts {
    /// Folder of its database and blobs.
    pub data: PathBuf,
    /// `host:port` of the directory.
    pub directory: String,
    /// `host:port` of a mirror that is asked first what the directory would be asked.
    pub mirror: Option<String>,
    /// What callers may ask for.
    pub quotas: QuotaConfig,
    /// Its certificate; names the node.
    pub credentials: Arc<Credentials>,
    /// What it believes of the log.
    pub trust: Trust,
    /// Where it listens.
    pub entrance: Entrance,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

/// A node cannot start or serve.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The certificate is not a node's.
    #[error("the certificate is not that of a node")]
    NotANode,
    /// The blob folder cannot be made.
    #[error("blob folder: {0}")]
    Folder(#[from] std::io::Error),
    /// The database does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Serving failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Something else refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Runs a node until `shutdown`, then drains it.
///
/// # Errors
/// It cannot start, or the transport failed.
pub async fn serve(parts: NodeParts, shutdown: CancellationToken) -> Result<(), NodeError> {
    let own = parts.credentials.own().ok_or(TlsError::NoIdentity)?;
    let Party::Node(here) = own.party().clone() else { return Err(NodeError::NotANode) };
    let rooms = Arc::new(rooms(&parts, here, shutdown.clone()).await?);
    job::recall(&rooms).await?;
    let jobs = [
        tokio::spawn(job::follow(Arc::clone(&rooms))),
        tokio::spawn(job::sweep(Arc::clone(&rooms))),
        tokio::spawn(job::hand_over_seats(Arc::clone(&rooms))),
        tokio::spawn(link::keep_links(Arc::clone(&rooms))),
    ];
    let routes = rpc::routes(rooms, door::Places::new(&parts.entropy)).await?;
    let entrance = parts.entrance.with_streams(STREAMS);
    let result = entrance.serve(parts.credentials, routes, shutdown.clone()).await;
    shutdown.cancel();
    for job in jobs {
        let _ = job.await;
    }
    Ok(result?)
}

async fn rooms(parts: &NodeParts, here: NodeId, shutdown: CancellationToken) -> Result<Rooms, NodeError> {
    let (clock, entropy) = (Arc::clone(&parts.clock), Arc::clone(&parts.entropy));
    let store = NodeStore::open(&parts.data.join("node.db"), here.clone(), clock, entropy).await?;
    let mesh = Mesh::new(
        here,
        (&parts.directory, parts.mirror.as_deref()),
        Arc::clone(&parts.credentials),
        parts.trust.clone(),
    )?;
    Ok(Rooms {
        blobs: Blobs::open(&parts.data.join("blobs"), store.clone())?,
        mesh: Arc::new(mesh),
        quotas: Quotas::new(&parts.quotas),
        places: Places::new(Arc::clone(&parts.clock)),
        arrivals: link::Arrivals::default(),
        sessions: rpc::Sessions::default(),
        subscriptions: rpc::Subscriptions::default(),
        seat_streams: rpc::broadcast::SeatStreams::default(),
        seats: tokio::sync::Notify::new(),
        credentials: Arc::clone(&parts.credentials),
        lanes: rpc::Lanes::start(&store),
        store,
        shutdown,
    })
}
