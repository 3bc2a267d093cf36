//! Hubs hear of aliases that have another home.

use crate::outbox::{Kind, Outgoing};
use crate::parcel::MAX_LIFE;
use crate::tables::Tx;
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, MessageId, NodeId};

/// What a hub is told of an alias that went to `to`.
pub fn news<T>(tx: &Tx<T>, hub: NodeId, alias: Alias, to: &NodeId) -> Outgoing {
    Outgoing {
        peer: hub,
        kind: Kind::Moved,
        parcel: wire::parcel::Parcel::Moved(wire::Moved { alias: alias.to_wire(), node: to.to_string() }),
        message_id: MessageId::from_bytes([0; 16]),
        part: 0,
        recipients: Vec::new(),
        sender: alias,
        sender_node: tx.here.clone(),
        wants_events: false,
        expires_at: tx.now.after(MAX_LIFE),
    }
}
