//! `chancery.node.v1.BroadcastService`: seats of this node's devices, and what agents have for
//! the cells of their channels.

use super::account::internal;
use super::session::{self, Session};
use super::{Rooms, mailbox};
use crate::mesh::not_a_member;
use crate::store::seat::{self, Channel, MAX_OF_DEVICE, Position};
use crate::store::{Tx, account, cell, count};
use chancery_kit::serve::{refused, unary};
use chancery_node_core::cell::{Announcement, CellChange, CellItem, Closed, Joining, Wraps};
use chancery_node_core::outbox::{self, Kind, Outgoing};
use chancery_node_core::parcel::{MAX_LIFE, limit};
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::broadcast_service_server::BroadcastService;
use chancery_types::{Alias, ChannelId, DeviceId, MessageId, NodeId, Reason, Refusal, SeatId, Timestamp};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Most things for cells in one call.
const MAX_ITEMS: usize = 64;
/// Most reports in one call.
const MAX_REPORTS: usize = 256;
/// Items that wait for a slow device.
const READY: usize = 8;
/// A broadcast wakes all who read its channel: they look at the store one after the other, at
/// this pace on average.
const WAKE_PACE: Duration = Duration::from_micros(100);
/// Longest that one of them waits.
const LAST_WAKE: Duration = Duration::from_secs(10);

/// Devices that read what comes for their seats: at most one stream for each.
pub(crate) type SeatStreams = Mutex<HashMap<DeviceId, CancellationToken>>;

pub(super) struct Broadcasts(pub(super) Arc<Rooms>);

#[tonic::async_trait]
impl BroadcastService for Broadcasts {
    async fn take_seat(
        &self,
        request: Request<wire::TakeSeatRequest>,
    ) -> Result<Response<wire::TakeSeatResponse>, Status> {
        unary(async {
            let session = session::device(&request)?;
            let message = request.into_inner();
            let channel = Channel {
                owner: message.owner.parse()?,
                id: ChannelId::try_from(&message.channel_id)?,
                agent: Alias::try_from(&message.agent_alias)?,
            };
            let joining = Joining::new(&message.seat_id, message.key_package, message.invitation)?;
            let (device, input) = (session.device, Arc::new((channel, joining)));
            self.0
                .store
                .change("node.seat.take", move |tx| {
                    let input = Arc::clone(&input);
                    Box::pin(async move { seat::take(tx, device, &input.0, &input.1).await })
                })
                .await??;
            self.0.seats.notify_one();
            Ok(wire::TakeSeatResponse {})
        })
        .await
    }

    async fn leave_seat(
        &self,
        request: Request<wire::LeaveSeatRequest>,
    ) -> Result<Response<wire::LeaveSeatResponse>, Status> {
        unary(async {
            let device = session::device(&request)?.device;
            let seat = SeatId::try_from(&request.into_inner().seat_id)?;
            self.0.store.change("node.seat.leave", move |tx| Box::pin(seat::leave(tx, device, seat))).await?;
            self.0.seats.notify_one();
            Ok(wire::LeaveSeatResponse {})
        })
        .await
    }

    type ReadSeatsStream = ReceiverStream<Result<wire::ReadSeatsResponse, Status>>;

    async fn read_seats(
        &self,
        request: Request<wire::ReadSeatsRequest>,
    ) -> Result<Response<Self::ReadSeatsStream>, Status> {
        let open = || {
            let session = session::device(&request)?;
            let seats = &request.get_ref().seats;
            limit("seats", seats.len(), MAX_OF_DEVICE)?;
            let position = |at: &wire::SeatPosition| {
                let seat = SeatId::try_from(&at.seat_id)?;
                Ok::<_, Refusal>(Position { seat, change: at.change, broadcast: at.broadcast })
            };
            Ok::<_, Refusal>((session, seats.iter().map(position).collect::<Result<Vec<_>, _>>()?))
        };
        let (session, positions) = open().map_err(|refusal| refused(&refusal))?;
        let (items, stream) = mpsc::channel(READY);
        tokio::spawn(Reading { rooms: Arc::clone(&self.0), session, positions }.run(items));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn count_broadcasts(
        &self,
        request: Request<wire::CountBroadcastsRequest>,
    ) -> Result<Response<wire::CountBroadcastsResponse>, Status> {
        unary(async {
            let device = session::device(&request)?.device;
            let message = request.into_inner();
            limit("reports", message.reports.len(), MAX_REPORTS)?;
            let input = Arc::new((SeatId::try_from(&message.seat_id)?, message.first, message.reports));
            self.0
                .store
                .change("node.broadcast.count", move |tx| {
                    let input = Arc::clone(&input);
                    Box::pin(async move { count::report(tx, device, input.0, input.1, &input.2).await })
                })
                .await??;
            Ok(wire::CountBroadcastsResponse {})
        })
        .await
    }

    async fn submit_cells(
        &self,
        request: Request<wire::SubmitCellsRequest>,
    ) -> Result<Response<wire::SubmitCellsResponse>, Status> {
        unary(async {
            let session = session::device(&request)?;
            if !session.is_agent {
                return Err(Refusal::new(Reason::WrongIdentity, "only agents speak on channels"));
            }
            let message = request.into_inner();
            limit("items", message.items.len(), MAX_ITEMS)?;
            let node: NodeId = message.node.parse()?;
            let is_here = node == *self.0.mesh.here();
            let state = self.0.mesh.state();
            if !is_here && state.member(&node).is_none() {
                return Err(not_a_member(&state));
            }
            let now = self.0.store.now();
            let items = message.items.iter().cloned().map(|item| read(item, now));
            let items = items.collect::<Result<Vec<_>, Refusal>>()?;
            let parcels = message.items.into_iter().filter_map(parcel);
            let parcels: Vec<_> = parcels.zip(items.iter().map(|item| keep_until(item, now))).collect();
            let count = (session.device, message.store_count);
            let input = Arc::new((node, items, parcels));
            self.0
                .store
                .change("node.cell.submit", move |tx| {
                    let input = Arc::clone(&input);
                    Box::pin(async move {
                        let (node, items, parcels) = &*input;
                        account::raise_counts(tx, &[count]).await?;
                        if is_here {
                            return cell::take(tx, node, items).await;
                        }
                        let out =
                            parcels.iter().map(|(parcel, until)| outgoing(tx, node, parcel.clone(), *until));
                        let out: Vec<_> = out.collect();
                        outbox::push(tx, &out).await
                    })
                })
                .await?;
            if is_here {
                // The agent is to hear that its own node has it, too.
                self.0.seats.notify_one();
            }
            Ok(wire::SubmitCellsResponse {})
        })
        .await
    }
}

fn read(item: wire::CellItem, now: Timestamp) -> Result<CellItem, Refusal> {
    match item.item {
        Some(wire::cell_item::Item::Change(change)) => {
            Ok(CellItem::Change(Box::new(CellChange::from_wire(change, now)?)))
        }
        Some(wire::cell_item::Item::Announcement(announcement)) => {
            Ok(CellItem::Announcement(Announcement::from_wire(announcement, now)?))
        }
        Some(wire::cell_item::Item::Wraps(wraps)) => Ok(CellItem::Wraps(wraps.try_into()?)),
        Some(wire::cell_item::Item::Closed(closed)) => Ok(CellItem::Closed(closed.try_into()?)),
        None => Err(Refusal::field("an item is not set")),
    }
}

/// What a peer brought for cells of its channels; `None`: the parcel is another one.
pub(crate) fn read_parcel(parcel: &federation::Parcel, now: Timestamp) -> Option<Result<CellItem, Refusal>> {
    use federation::parcel::Parcel;
    match parcel.parcel.clone()? {
        Parcel::CellChange(change) => {
            Some(CellChange::from_wire(change, now).map(|change| CellItem::Change(Box::new(change))))
        }
        Parcel::Announcement(new) => Some(Announcement::from_wire(new, now).map(CellItem::Announcement)),
        Parcel::Wraps(wraps) => Some(Wraps::try_from(wraps).map(CellItem::Wraps)),
        Parcel::CellsClosed(closed) => Some(Closed::try_from(closed).map(CellItem::Closed)),
        _ => None,
    }
}

fn parcel(item: wire::CellItem) -> Option<federation::parcel::Parcel> {
    use federation::parcel::Parcel;
    Some(match item.item? {
        wire::cell_item::Item::Change(change) => Parcel::CellChange(change),
        wire::cell_item::Item::Announcement(announcement) => Parcel::Announcement(announcement),
        wire::cell_item::Item::Wraps(wraps) => Parcel::Wraps(wraps),
        wire::cell_item::Item::Closed(closed) => Parcel::CellsClosed(closed),
    })
}

/// How long a peer that is restored may need it again.
fn keep_until(item: &CellItem, now: Timestamp) -> Timestamp {
    match item {
        CellItem::Change(change) => change.expires_at,
        // It has a place in the channel even when it has expired on the way.
        CellItem::Announcement(announcement) => announcement.expires_at.max(now.after(MAX_LIFE)),
        CellItem::Wraps(_) | CellItem::Closed(_) => now.after(MAX_LIFE),
    }
}

/// A part of a broadcast on its way to a peer.
pub(crate) fn outgoing(
    tx: &Tx<'_>,
    peer: &NodeId,
    parcel: federation::parcel::Parcel,
    expires_at: Timestamp,
) -> Outgoing {
    Outgoing {
        peer: peer.clone(),
        kind: Kind::Broadcast,
        parcel,
        message_id: MessageId::from_bytes([0; 16]),
        part: 0,
        recipients: Vec::new(),
        sender: Alias::from_bytes([0; 16]),
        sender_node: tx.here.clone(),
        wants_events: false,
        expires_at,
    }
}

struct Reading {
    rooms: Arc<Rooms>,
    session: Arc<Session>,
    positions: Vec<Position>,
}

type Items = mpsc::Sender<Result<wire::ReadSeatsResponse, Status>>;

impl Reading {
    async fn run(mut self, items: Items) {
        let own = CancellationToken::new();
        self.replace(&own);
        let (shutdown, removed) = (self.rooms.shutdown.clone(), self.session.ended.clone());
        let end = tokio::select! {
            result = self.stream(&items) => result,
            () = own.cancelled() => {
                Err(Refusal::new(Reason::SubscriptionReplaced, "a newer stream of this device took over"))
            }
            end = mailbox::ended(&removed, &shutdown) => Err(end),
            () = items.closed() => Ok(()),
        };
        own.cancel();
        if let Err(refusal) = end {
            let _ = items.send(Err(refused(&refusal))).await;
        }
    }

    /// Ends an older stream of the same device and takes its place.
    fn replace(&self, own: &CancellationToken) {
        let mut open = self.rooms.seat_streams.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, stream| !stream.is_cancelled());
        if let Some(older) = open.insert(self.session.device, own.clone()) {
            older.cancel();
        }
    }

    async fn stream(&mut self, items: &Items) -> Result<(), Refusal> {
        // Listens before it looks, so that nothing falls between.
        let arrived = self.listen().await?;
        let mut open = std::mem::take(&mut self.positions);
        loop {
            let mut more = false;
            for mut at in std::mem::take(&mut open) {
                let found = cell::read(&self.rooms.store, self.session.device, &mut at).await;
                let found = found.map_err(internal)?;
                more |= !found.is_empty();
                let mut ended = false;
                for item in found {
                    ended |= matches!(item, wire::read_seats_response::Item::Ended(_));
                    let item = wire::ReadSeatsResponse { seat_id: at.seat.to_wire(), item: Some(item) };
                    if items.send(Ok(item)).await.is_err() {
                        return Ok(());
                    }
                }
                if !ended {
                    open.push(at);
                }
            }
            if !more {
                arrived.notified().await;
                tokio::time::sleep(self.pause()).await;
            }
        }
    }

    async fn listen(&self) -> Result<Arc<Notify>, Refusal> {
        let seats = seat::of_device(&self.rooms.store, self.session.device).await.map_err(internal)?;
        let asked = |seat: &SeatId| self.positions.iter().any(|at| at.seat == *seat);
        let channels = seats.into_iter().filter(|(seat, ..)| asked(seat)).map(|(_, owner, id)| (owner, id));
        Ok(self.rooms.store.wake().channels(channels))
    }

    /// A random part of the time in which all who are woken together look.
    fn pause(&self) -> Duration {
        let open = self.rooms.seat_streams.lock().unwrap_or_else(PoisonError::into_inner).len();
        let all = WAKE_PACE.saturating_mul(u32::try_from(open).unwrap_or(u32::MAX)).min(LAST_WAKE);
        let part = u32::from_le_bytes(self.rooms.store.entropy().array::<4>());
        all.mul_f64(f64::from(part) / f64::from(u32::MAX))
    }
}
