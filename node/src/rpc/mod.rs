//! The node's services: decode, permit, call, encode.

mod account;
mod blob;
pub(crate) mod broadcast;
mod federation;
mod key_package;
mod mailbox;
mod relay;
mod session;

use crate::blobs::Blobs;
use crate::door;
use crate::link::Arrivals;
use crate::mesh::Mesh;
use crate::places::Places;
use crate::quota::Quotas;
use crate::store::NodeStore;
use chancery_kit::overload::Door;
use chancery_kit::serve::{MAX_MESSAGE, ServeError, add_health};
use chancery_kit::tls::Credentials;
use chancery_proto::federation::v1::federation_service_server::FederationServiceServer;
use chancery_proto::node::v1::account_service_server::AccountServiceServer;
use chancery_proto::node::v1::blob_service_server::BlobServiceServer;
use chancery_proto::node::v1::broadcast_service_server::BroadcastServiceServer;
use chancery_proto::node::v1::key_package_service_server::KeyPackageServiceServer;
use chancery_proto::node::v1::mailbox_service_server::MailboxServiceServer;
use chancery_proto::node::v1::relay_service_server::RelayServiceServer;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

/// What the services work with.
pub(crate) struct Rooms {
    pub(crate) store: NodeStore,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) blobs: Blobs,
    pub(crate) quotas: Quotas,
    pub(crate) places: Places,
    pub(crate) lanes: mailbox::Lanes,
    pub(crate) arrivals: Arrivals,
    pub(crate) sessions: session::Sessions,
    pub(crate) subscriptions: mailbox::Subscriptions,
    pub(crate) seat_streams: broadcast::SeatStreams,
    /// Seats are to be handed over.
    pub(crate) seats: Notify,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) shutdown: CancellationToken,
}

pub(crate) use mailbox::{Lanes, Subscriptions};
pub(crate) use session::{Session, Sessions};

/// All services of a node, behind its door.
pub(crate) async fn routes(rooms: Arc<Rooms>, places: door::Places) -> Result<RoutesBuilder, ServeError> {
    let mut routes = RoutesBuilder::default();
    macro_rules! add {
        ($server:ident, $service:expr) => {
            routes.add_service($server::new($service).max_decoding_message_size(MAX_MESSAGE))
        };
    }
    add!(AccountServiceServer, account::Accounts(Arc::clone(&rooms)));
    add!(BlobServiceServer, blob::BlobDoor(Arc::clone(&rooms)));
    add!(BroadcastServiceServer, broadcast::Broadcasts(Arc::clone(&rooms)));
    add!(KeyPackageServiceServer, key_package::KeyPackages(Arc::clone(&rooms)));
    add!(MailboxServiceServer, mailbox::Mailboxes(Arc::clone(&rooms)));
    add!(RelayServiceServer, relay::Relay(Arc::clone(&rooms)));
    add!(FederationServiceServer, federation::Federation(rooms));
    add_health(&mut routes, &["chancery.node.v1.MailboxService", "chancery.federation.v1.FederationService"])
        .await;
    Ok(routes.routes().into_axum_router().layer(Door::new(places)).into())
}
