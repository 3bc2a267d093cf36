//! Seats on their way to the agents of their channels, and what became of broadcasts at all of them
//! together: lists of one channel each, signed by this node, so that nobody between can fill a channel with
//! listeners of its own.

use crate::rpc::Rooms;
use crate::rpc::broadcast::outgoing;
use crate::store::seat::{self, Channel};
use crate::store::{Tx, count};
use chancery_kit::tls::Credentials;
use chancery_node_core::cell::{SEATS_CONTEXT, SEATS_LIFE, SeatList};
use chancery_node_core::outbox;
use chancery_proto::federation::v1 as wire;
use chancery_types::{Entropy, Refusal};
use std::sync::Arc;

/// Hands over what waits, a list for each channel; whether there was any.
pub(super) async fn hand_over(rooms: &Rooms) -> Result<bool, Refusal> {
    let channels = seat::to_hand_over(&rooms.store).await.map_err(chancery_kit::store::StoreError::from)?;
    let any = !channels.is_empty();
    for channel in channels {
        let input = Arc::new((channel, Arc::clone(&rooms.credentials), rooms.store.clone()));
        rooms
            .store
            .change("node.seat.hand_over", move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move { list(tx, &input.0, &input.1, input.2.entropy()).await })
            })
            .await?;
    }
    Ok(any)
}

async fn list(
    tx: &mut Tx<'_>,
    channel: &Channel,
    credentials: &Credentials,
    entropy: &dyn Entropy,
) -> Result<(), sqlx::Error> {
    let (joining, leaving) = seat::hand_over(tx, channel).await?;
    let counts = count::tell(tx, channel, entropy).await?;
    if joining.is_empty() && leaving.is_empty() && counts.is_empty() {
        return Ok(());
    }
    let federation = credentials.anchors().federation().as_str().to_owned();
    let list = SeatList { federation, channel: channel.id, node: tx.here.clone(), joining, leaving, counts };
    let list = list.encode();
    let signed = credentials.sign(&[SEATS_CONTEXT, &list].concat());
    let (key, signature) = signed.map_err(|error| sqlx::Error::Io(std::io::Error::other(error)))?;
    let seats = wire::Seats {
        agent_alias: channel.agent.to_wire(),
        list: list.into(),
        signature: signature.into(),
        key: key.into(),
    };
    if channel.owner == tx.here {
        let here = tx.here.clone();
        // Whoever named an alias that is no agent's has a seat that nobody fills.
        return seat::receive(tx, &here, &seats).await.map(drop);
    }
    let until = tx.now.after(SEATS_LIFE);
    let parcel = outgoing(tx, &channel.owner, wire::parcel::Parcel::Seats(seats), until);
    outbox::push(tx, &[parcel]).await
}
