//! Hubs hear of aliases that have another home, and say so in line behind all that they
//! sent to the former one.

use crate::outbox::{self, Kind, Outgoing};
use crate::parcel::{MAX_LIFE, Moved};
use crate::tables::{Tables, Tx};
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, MessageId, NodeId};

/// What a hub is told of an alias that went to `to`.
pub fn news<T>(tx: &Tx<T>, hub: NodeId, alias: Alias, to: &NodeId) -> Outgoing {
    let moved = wire::Moved { alias: alias.to_wire(), node: to.to_string() };
    about(tx, hub, Kind::Moved, alias, wire::parcel::Parcel::Moved(moved))
}

/// An alias that was at home with a peer has another home: what comes after goes there.
///
/// # Errors
/// The tables'.
pub(crate) async fn follow<T: Tables>(tx: &mut Tx<T>, peer: &NodeId, moved: &Moved) -> Result<(), T::Error> {
    tx.tables.relocate(moved.alias, peer, &moved.node).await?;
    let noted = wire::parcel::Parcel::MoveNoted(wire::MoveNoted { alias: moved.alias.to_wire() });
    let noted = about(tx, peer.clone(), Kind::MoveNoted, moved.alias, noted);
    outbox::push(tx, &[noted]).await
}

fn about<T>(tx: &Tx<T>, peer: NodeId, kind: Kind, alias: Alias, parcel: wire::parcel::Parcel) -> Outgoing {
    Outgoing {
        peer,
        kind,
        parcel,
        message_id: MessageId::from_bytes([0; 16]),
        part: 0,
        recipients: Vec::new(),
        sender: alias,
        sender_node: tx.here.clone(),
        wants_events: false,
        expires_at: tx.now.after(MAX_LIFE),
    }
}
