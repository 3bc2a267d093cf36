//! The called side of a link: takes batches, commits, then acknowledges.

use crate::rpc::Rooms;
use crate::rpc::broadcast::read_parcel;
use crate::store::{Tx, cell, seat};
use chancery_kit::serve::{REFUSALS, refused};
use chancery_node_core::link::{CREDIT, Receiving, negotiate};
use chancery_node_core::{batch, outbox};
use chancery_proto::federation::v1 as wire;
use chancery_types::{Incarnation, NodeId, Reason, Refusal};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Longest wait for the Hello of a new link.
const HELLO: Duration = Duration::from_secs(10);

/// Links that peers have opened: a newer one of the same peer ends the older.
pub(crate) type Arrivals = Mutex<HashMap<NodeId, CancellationToken>>;

type Answers = mpsc::Sender<Result<wire::LinkResponse, Status>>;

/// Serves a link that a peer has opened.
pub(crate) fn incoming(
    rooms: Arc<Rooms>,
    peer: NodeId,
    frames: Streaming<wire::LinkRequest>,
) -> ReceiverStream<Result<wire::LinkResponse, Status>> {
    let (answers, stream) = mpsc::channel(16);
    tokio::spawn(async move {
        let replaced = replace(&rooms, &peer);
        let end = tokio::select! {
            result = serve(&rooms, &peer, frames, &answers) => result,
            () = replaced.cancelled() => Err(Refusal::new(Reason::SubscriptionReplaced, "a newer link took over")),
            () = rooms.shutdown.cancelled() => {
                Err(Refusal::new(Reason::ShuttingDown, "the node is restarting; connect again"))
            }
        };
        replaced.cancel();
        if let Err(refusal) = end {
            tracing::info!(%peer, reason = refusal.reason.as_str(), "link ended");
            let _ = answers.send(Err(refused(&refusal))).await;
        }
    });
    ReceiverStream::new(stream)
}

fn replace(rooms: &Rooms, peer: &NodeId) -> CancellationToken {
    let own = CancellationToken::new();
    let mut open = rooms.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(older) = open.insert(peer.clone(), own.clone()) {
        older.cancel();
    }
    own
}

async fn serve(
    rooms: &Rooms,
    peer: &NodeId,
    mut frames: Streaming<wire::LinkRequest>,
    answers: &Answers,
) -> Result<(), Refusal> {
    greet(rooms, peer, &mut frames, answers).await?;
    let mut receiving = Receiving::default();
    while let Some(frame) = frames.message().await.map_err(|s| chancery_kit::status::from_status(&s))? {
        let Some(wire::link_request::Frame::Batch(batch)) = frame.frame else {
            return Err(Refusal::new(Reason::PeerMisbehaved, "a link has one Hello, then batches"));
        };
        let sequence = receiving.batch(&batch)?;
        let first = batch.first_sequence;
        // Agents are to hear that this node has their broadcasts.
        let is_wraps = |parcel: &wire::Parcel| matches!(parcel.parcel, Some(wire::parcel::Parcel::Wraps(_)));
        let has_wraps = batch.parcels.iter().any(is_wraps);
        let input = Arc::new((peer.clone(), batch.parcels));
        let refusals = rooms
            .store
            .change("node.link.receive", move |tx| {
                let input = Arc::clone(&input);
                Box::pin(async move {
                    let mut refusals = batch::receive(tx, &input.0, &input.1).await?;
                    refusals.extend(broadcasts(tx, &input.0, &input.1).await?);
                    refusals.sort_by_key(|(index, _)| *index);
                    Ok(refusals)
                })
            })
            .await?;
        let refusals = refusals.into_iter().map(|(index, reason)| {
            REFUSALS.add(reason);
            wire::ParcelRefusal { sequence: first + index as u64, reason: reason.as_str().to_owned() }
        });
        if has_wraps {
            rooms.seats.notify_one();
        }
        let ack = wire::Ack { sequence, refusals: refusals.collect() };
        let frame = Some(wire::link_response::Frame::Ack(ack));
        if answers.send(Ok(wire::LinkResponse { frame })).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Takes what a batch has of broadcasts. The result names, by index, what will never be taken.
async fn broadcasts(
    tx: &mut Tx<'_>,
    peer: &NodeId,
    parcels: &[wire::Parcel],
) -> Result<Vec<(usize, Reason)>, sqlx::Error> {
    let (mut items, mut refused) = (Vec::new(), Vec::new());
    for (index, parcel) in parcels.iter().enumerate() {
        if let Some(wire::parcel::Parcel::Seats(seats)) = &parcel.parcel {
            if let Err(refusal) = seat::receive(tx, peer, seats).await? {
                refused.push((index, refusal.reason));
            }
            continue;
        }
        match read_parcel(parcel, tx.now) {
            Some(Ok(item)) => items.push(item),
            Some(Err(refusal)) => refused.push((index, refusal.reason)),
            None => {}
        }
    }
    cell::take(tx, peer, &items).await?;
    Ok(refused)
}

async fn greet(
    rooms: &Rooms,
    peer: &NodeId,
    frames: &mut Streaming<wire::LinkRequest>,
    answers: &Answers,
) -> Result<(), Refusal> {
    let first = tokio::time::timeout(HELLO, frames.message()).await;
    let first = first.map_err(|_| Refusal::new(Reason::PeerMisbehaved, "no Hello came"))?;
    let first = first.map_err(|status| chancery_kit::status::from_status(&status))?;
    let Some(wire::link_request::Frame::Hello(hello)) = first.and_then(|frame| frame.frame) else {
        return Err(Refusal::new(Reason::PeerMisbehaved, "the first frame of a link is Hello"));
    };
    let version = negotiate(&hello)?;
    greeted(rooms, peer, Incarnation::try_from(&hello.incarnation)?).await?;
    let ack =
        wire::HelloAck { version, incarnation: rooms.store.incarnation().to_wire(), credit_bytes: CREDIT };
    let frame = Some(wire::link_response::Frame::HelloAck(ack));
    let _ = answers.send(Ok(wire::LinkResponse { frame })).await;
    Ok(())
}

/// Notes a peer's incarnation; what it had and did not report on goes out
/// again when the incarnation is another than before.
pub(super) async fn greeted(rooms: &Rooms, peer: &NodeId, incarnation: Incarnation) -> Result<(), Refusal> {
    let node = peer.clone();
    let replay = rooms
        .store
        .change("node.peer.greet", move |tx| {
            let node = node.clone();
            Box::pin(async move { outbox::greet(tx, &node, incarnation).await })
        })
        .await?;
    if replay {
        tracing::warn!(%peer, "the peer was restored: sending again what it has not reported on");
    }
    Ok(())
}
