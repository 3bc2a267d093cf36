//! A device's side of broadcast channels: its seats are taken and given up, what comes for them is
//! read, contents are fetched.

use super::rounds::jittered;
use super::{Endpoint, Inner};
use crate::broadcast::counts;
use crate::broadcast::invitation::Invitation;
use crate::broadcast::reader::{self, Taken};
use crate::broadcast::received::{self, Missing, Received};
use crate::broadcast::seat::{self, Seat};
use crate::content::condition::Profile;
use crate::credential::AgentName;
use chancery_directory_core::AgentKey;
use chancery_directory_core::channel::Channel;
use chancery_directory_core::manifest::VerifiedManifest;
use chancery_proto::directory::v1 as directory;
use chancery_proto::node::v1 as wire;
use chancery_types::{ChannelId, Reason, Refusal, SeatId};
use prost::Message as _;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::watch;
use wire::read_seats_response::Item;

/// How often seats are looked at without a reason.
const TICK: Duration = Duration::from_hours(1);
/// Within which devices that start ask for their administration's channels.
const SOON: Duration = Duration::from_mins(5);
/// How long a broadcast that the directory's map shows may take to come.
const GRACE: Duration = Duration::from_hours(1);
/// Contents that are fetched one after the other before the queue is looked at again.
const CONTENTS: usize = 64;
/// Longest standstill of a content that is being fetched.
const STALL: Duration = Duration::from_secs(30);

impl Endpoint {
    /// Takes a seat in a channel, unless this device has one; a running endpoint then receives what
    /// is broadcast.
    ///
    /// # Errors
    /// CHANNEL_CLOSED; that an invitation is missing; or the store's.
    pub async fn subscribe(&self, channel: &Channel, invitation: Option<Invitation>) -> Result<(), Refusal> {
        let channel = channel.clone();
        self.0.call(move |tx| seat::subscribe(tx, &channel, invitation.as_ref())).await?;
        self.0.seats.notify_one();
        Ok(())
    }

    /// Leaves a channel. What was broadcast before stays here.
    ///
    /// # Errors
    /// The store's.
    pub async fn unsubscribe(&self, channel: ChannelId) -> Result<(), Refusal> {
        self.0.call(move |tx| seat::unsubscribe(tx, &channel)).await?;
        self.0.seats.notify_one();
        Ok(())
    }

    /// Channels that this device is subscribed to, and whether it is in a cell already.
    ///
    /// # Errors
    /// The store's.
    pub async fn subscriptions(&self) -> Result<Vec<(ChannelId, bool)>, Refusal> {
        self.0.call(|tx| seat::subscriptions(tx)).await
    }

    /// Broadcasts that came in behind a position, oldest first; at most `limit`.
    ///
    /// # Errors
    /// The store's.
    pub async fn broadcasts_after(&self, position: u64, limit: usize) -> Result<Vec<Received>, Refusal> {
        self.0.call(move |tx| received::after(tx, position, limit)).await
    }

    /// Keeps what the device knows of its owner, by which it judges for whom broadcasts are. It
    /// leaves the device never.
    ///
    /// # Errors
    /// The store's.
    pub async fn set_profile(&self, profile: Profile) -> Result<(), Refusal> {
        self.0.call(move |tx| received::set_profile(tx, &profile)).await
    }

    /// Joins the channels that the home's administration has for all its residents, but those that the owner
    /// has left. Running endpoints do so within minutes of their start, and every hour or so.
    ///
    /// # Errors
    /// Who cannot be reached, or what does not hold.
    pub async fn join_for_residents(&self) -> Result<(), Refusal> {
        join_for_residents(&self.0).await
    }

    /// The owner has read a broadcast, and lets the home node count that: it keeps sums alone.
    ///
    /// # Errors
    /// The store's.
    pub async fn count_as_read(&self, position: u64) -> Result<(), Refusal> {
        self.0.call(move |tx| counts::read(tx, position)).await
    }

    /// Tells the home node what is to be counted. Running endpoints do so every hour or so.
    ///
    /// # Errors
    /// The home's refusal, or that it cannot be reached.
    pub async fn report_broadcasts(&self) -> Result<(), Refusal> {
        report(&self.0).await
    }

    /// Changes whenever a broadcast came in, a subscription came into a cell, or a broadcast of this
    /// agent's went on.
    pub fn broadcast_changes(&self) -> watch::Receiver<u64> {
        self.0.broadcasts.subscribe()
    }

    /// Compares what came in with what the directory's map shows, and raises an alarm for what has
    /// been missing for an hour. Running endpoints do so every hour or so.
    ///
    /// # Errors
    /// The directory cannot be reached, or shows what does not verify.
    pub async fn check_broadcasts(&self) -> Result<(), Refusal> {
        self.0.check_broadcasts().await
    }
}

impl Inner {
    async fn check_broadcasts(&self) -> Result<(), Refusal> {
        for (channel, is_in) in self.call(|tx| seat::subscriptions(tx)).await? {
            if !is_in {
                continue;
            }
            let Some(head) = self.view.channel(&channel, 0).await? else { continue };
            let latest = head.sequence;
            self.call(move |tx| seat::compare(tx, &channel, latest, GRACE)).await?;
        }
        Ok(())
    }

    /// Name and key of the agent that speaks on a seat's channel; `None`: it is not listed.
    async fn speaker(&self, seat: &Seat) -> Result<Option<(AgentName, AgentKey)>, Refusal> {
        let state = self.view.state().await?;
        let listed = state.member(&seat.owner).and_then(|member| member.agents.get(&seat.agent)).cloned();
        let name = AgentName {
            federation: self.identity.federation.clone(),
            administration: seat.owner.clone(),
            name: seat.agent.clone(),
        };
        Ok(listed.map(|key| (name, key)))
    }

    /// Asks the directory who speaks on a seat's channel; whether that is another one than was known.
    async fn ask_who_speaks(&self, seat: &mut Seat) -> Result<bool, Refusal> {
        self.view.refresh().await?;
        let Some(head) = self.view.channel(&seat.channel, 0).await? else { return Ok(false) };
        let (id, agent) = (seat.id, head.channel.channel().agent.clone());
        let is_another = agent != seat.agent;
        if is_another {
            seat.agent = agent.clone();
            self.call(move |tx| seat::spoken_by(tx, &id, &agent)).await?;
        }
        Ok(is_another)
    }
}

/// Tells the home node of seats; takes others in the place of those that were lost.
pub(super) async fn keep_seats(inner: &Inner) -> Result<(), Refusal> {
    let changed = inner.seats.notified();
    for vacancy in inner.call(|tx| seat::vacancies(tx)).await? {
        let head = inner.view.channel(&vacancy.channel, 0).await?;
        let published = head.map(|head| head.channel.channel().clone());
        inner.call(move |tx| seat::fill(tx, &vacancy, published.as_ref())).await?;
    }
    for (seat, request) in inner.call(|tx| seat::to_tell(tx)).await? {
        match request {
            Some(request) => inner.client.take_seat(&request).await?,
            None => inner.client.leave_seat(seat).await?,
        }
        inner.call(move |tx| seat::told(tx, &seat)).await?;
        inner.reread.send_modify(|count| *count += 1);
    }
    let _ = tokio::time::timeout(TICK, changed).await;
    Ok(())
}

/// Reads what comes for the seats, until something about them changes.
pub(super) async fn read_seats(inner: &Inner) -> Result<(), Refusal> {
    let mut changes = inner.reread.subscribe();
    changes.mark_unchanged();
    let seats = inner.call(|tx| seat::read_for(tx)).await?;
    if seats.is_empty() {
        let _ = changes.changed().await;
        return Ok(());
    }
    let positions: Vec<_> = seats
        .iter()
        .map(|seat| wire::SeatPosition {
            seat_id: seat.id.to_wire(),
            change: seat.change,
            broadcast: seat.broadcast,
        })
        .collect();
    let mut seats: HashMap<SeatId, Seat> = seats.into_iter().map(|seat| (seat.id, seat)).collect();
    let mut stream = inner.client.read_seats(&positions).await?;
    loop {
        let next = tokio::select! {
            next = stream.message() => next,
            _ = changes.changed() => return Ok(()),
        };
        let next = next.map_err(|status| chancery_kit::status::from_status(&status))?;
        let Some(wire::ReadSeatsResponse { seat_id, item: Some(item) }) = next else {
            return Err(Refusal::new(Reason::PeerUnreachable, "the node ended the stream"));
        };
        let Some(seat) = SeatId::try_from(&seat_id).ok().and_then(|id| seats.get_mut(&id)) else { continue };
        let taken = take(inner, seat, item).await?;
        inner.broadcasts.send_modify(|count| *count += 1);
        match taken {
            Taken::Done => {}
            Taken::Broadcast => {
                inner.contents.notify_one();
                if seat.moves {
                    inner.seats.notify_one();
                }
            }
            Taken::Reread => return Ok(()),
            Taken::Seats => {
                inner.seats.notify_one();
                return Ok(());
            }
        }
    }
}

async fn take(inner: &Inner, seat: &mut Seat, item: Item) -> Result<Taken, Refusal> {
    let id = seat.id;
    match item {
        Item::Admission(admission) => admit(inner, seat, admission).await,
        Item::Step(step) => inner.call(move |tx| reader::step(tx, &id, &step)).await,
        Item::Broadcast(item) => {
            let mut verified = verify(inner, seat, &item).await?;
            if verified.is_none() && inner.ask_who_speaks(seat).await? {
                verified = verify(inner, seat, &item).await?;
            }
            match verified {
                Some(verified) => {
                    inner.call(move |tx| reader::broadcast(tx, &id, &verified, &item.wrap)).await
                }
                None => inner.call(|tx| reader::forged(tx)).await,
            }
        }
        Item::Ended(_) => inner.call(move |tx| reader::ended(tx, &id)).await,
    }
}

async fn admit(inner: &Inner, seat: &mut Seat, admission: wire::Admission) -> Result<Taken, Refusal> {
    let id = seat.id;
    if inner.speaker(seat).await?.is_none() {
        // It may have been listed since.
        inner.ask_who_speaks(seat).await?;
    }
    match inner.speaker(seat).await? {
        Some((agent, _)) => inner.call(move |tx| reader::admitted(tx, &id, &agent, &admission)).await,
        None => inner.call(move |tx| reader::ended(tx, &id)).await,
    }
}

/// A broadcast that the log holds and its channel's agent signed; `None`: it is forged.
async fn verify(
    inner: &Inner,
    seat: &Seat,
    item: &wire::BroadcastItem,
) -> Result<Option<VerifiedManifest>, Refusal> {
    let Some((_, key)) = inner.speaker(seat).await? else { return Ok(None) };
    let Ok(logged) = directory::LoggedManifest::decode(item.logged_manifest.clone()) else { return Ok(None) };
    let verified = match inner.view.verify_manifest(logged, &key) {
        Ok(verified) => verified,
        Err(refusal) => {
            tracing::warn!(reason = %refusal.reason, "endpoint.manifest.reject");
            return Ok(None);
        }
    };
    inner.view.see(verified.checkpoint.clone()).await?;
    Ok(Some(verified))
}

/// Fetches contents, oldest first. One that cannot be had now does not hold up the others.
pub(super) async fn fetch_contents(inner: &Inner) -> Result<(), Refusal> {
    let more = inner.contents.notified();
    let mut failure = None;
    for missing in inner.call(|tx| received::missing(tx, CONTENTS)).await? {
        let position = missing.position;
        match fetch(inner, &missing).await {
            Ok(bytes) => {
                inner.call(move |tx| received::fetched(tx, position, bytes)).await?;
                inner.broadcasts.send_modify(|count| *count += 1);
            }
            Err(refusal) if missing.has_expired(inner.clock.now()) => {
                inner.call(move |tx| received::failed(tx, position, refusal.reason.as_str())).await?;
            }
            Err(refusal) => failure = Some(refusal),
        }
    }
    if let Some(refusal) = failure {
        return Err(refusal);
    }
    let _ = tokio::time::timeout(TICK, more).await;
    Ok(())
}

async fn fetch(inner: &Inner, missing: &Missing) -> Result<Vec<u8>, Refusal> {
    let size = usize::try_from(missing.size).map_err(|_| Refusal::field("a content is too large"))?;
    let mut bytes = Vec::with_capacity(size);
    let mut client = inner.client.blobs().await?;
    let refused = |status: tonic::Status| chancery_kit::status::from_status(&status);
    while bytes.len() < size {
        let before = bytes.len();
        let request = wire::ReadBlobRequest {
            blob_id: missing.blob.to_wire(),
            origin: missing.owner.to_string(),
            offset: before as u64,
        };
        let mut pieces = client.read_blob(request).await.map_err(refused)?.into_inner();
        while let Ok(Ok(Some(piece))) = tokio::time::timeout(STALL, pieces.message()).await {
            bytes.extend_from_slice(&piece.data);
            if bytes.len() > size {
                return Err(Refusal::new(
                    Reason::PeerMisbehaved,
                    "a content is larger than its manifest says",
                ));
            }
        }
        if bytes.len() == before {
            return Err(Refusal::new(Reason::PeerUnreachable, "the node stands still"));
        }
    }
    Ok(bytes)
}

/// Looks at what the directory's map shows, now and then.
pub(super) async fn watch_channels(inner: &Inner) -> Result<(), Refusal> {
    let jitter = jittered(&*inner.resolver.entropy, TICK);
    tokio::time::sleep(TICK / 2 + jitter).await;
    inner.check_broadcasts().await
}

/// Tells the home node what is to be counted, at some time of the hour: not all devices at once.
pub(super) async fn keep_reporting(inner: &Inner) -> Result<(), Refusal> {
    tokio::time::sleep(jittered(&*inner.resolver.entropy, TICK)).await;
    report(inner).await
}

async fn report(inner: &Inner) -> Result<(), Refusal> {
    while let Some(reports) = inner.call(|tx| counts::next(tx)).await? {
        inner.client.count_broadcasts(&reports.request).await?;
        inner.call(move |tx| counts::counted(tx, &reports)).await?;
    }
    Ok(())
}

/// Joins channels for residents now and then; first some time after the start, because all devices of a
/// node start together when it was away.
pub(super) async fn keep_joining(inner: &Inner) -> Result<(), Refusal> {
    let _ = inner.greeted.subscribe().wait_for(|greeted| *greeted).await;
    tokio::time::sleep(jittered(&*inner.resolver.entropy, SOON)).await;
    join_for_residents(inner).await?;
    tokio::time::sleep(jittered(&*inner.resolver.entropy, TICK)).await;
    Ok(())
}

async fn join_for_residents(inner: &Inner) -> Result<(), Refusal> {
    let home = inner.call(|tx| crate::home::present(tx)).await?.node;
    for channel in inner.view.channels(Some(&home)).await? {
        if channel.for_residents && !channel.closed && channel.administration == home {
            let joined = inner.call(move |tx| seat::join(tx, &channel)).await?;
            if joined {
                inner.seats.notify_one();
            }
        }
    }
    Ok(())
}
