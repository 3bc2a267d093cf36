//! An agent's side of broadcast channels: residents come into cells and go out, broadcasts are
//! logged, wrapped and handed over.

use super::{Endpoint, Inner};
use crate::alarm::{self, Alarm};
use crate::broadcast::audience;
use crate::broadcast::counts;
use crate::broadcast::handover;
use crate::broadcast::invitation::{self, Invitation};
use crate::broadcast::schedule;
use crate::broadcast::sender::{self, Begun, Due, Order};
use crate::inbox;
use crate::keepsake;
use crate::restored::{CLOSE_CELLS, STORE_COUNT};
use crate::store::Tx;
use chancery_directory_core::channel::Channel;
use chancery_directory_core::manifest::{Manifest, VerifiedManifest};
use chancery_pki_core::verify_signed;
use chancery_proto::directory::v1 as directory;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as wire;
use chancery_types::{BlobId, ChannelId, NodeId, Reason, Refusal, Timestamp};
use prost::Message as _;
use prost::bytes::Bytes;
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;

/// What a home node signs before a list of seats.
const SEATS_CONTEXT: &[u8] = b"chancery seats v1\0";
/// How often cells are looked at without a reason: seats that were given up go out in time.
const TICK: Duration = Duration::from_mins(10);
/// How long a seat waits for others, so that one commit is for many.
const TOGETHER: Duration = Duration::from_millis(500);
/// Bytes of a piece of a blob.
const PIECE: usize = 64 * 1024;
/// How long nodes keep a blob at most.
const BLOB_LIFE: Duration = Duration::from_hours(90 * 24);
/// Why the directory logs a manifest at no time.
const NEVER_LOGGED: [Reason; 4] =
    [Reason::InvalidField, Reason::ChannelClosed, Reason::NotAccredited, Reason::NotYourChannel];

impl Endpoint {
    /// Broadcasts on a channel of this agent's; at once when it is a repeated request. What becomes
    /// of it [`Endpoint::broadcast_state`] tells.
    ///
    /// # Errors
    /// NOT_YOUR_CHANNEL, REQUEST_ID_REUSED, INVALID_FIELD, or the store's.
    pub async fn broadcast(&self, order: Order) -> Result<Begun, Refusal> {
        let begun = self.0.call(move |tx| sender::begin(tx, &order)).await?;
        self.0.speaking.notify_one();
        Ok(begun)
    }

    /// Takes a broadcast back that waits until it is to begin; whether it did.
    ///
    /// # Errors
    /// The store's.
    pub async fn cancel_broadcast(&self, request_id: [u8; 16]) -> Result<bool, Refusal> {
        self.0.call(move |tx| schedule::cancel(tx, &request_id)).await
    }

    /// Broadcasts that wait in a channel, the next first: request id, and when it begins.
    ///
    /// # Errors
    /// The store's.
    pub async fn scheduled_broadcasts(
        &self,
        channel: ChannelId,
    ) -> Result<Vec<([u8; 16], Timestamp)>, Refusal> {
        self.0.call(move |tx| schedule::of_channel(tx, &channel)).await
    }

    /// What everybody could read of a broadcast, and of its channel.
    ///
    /// # Errors
    /// As [`Endpoint::broadcast`].
    pub async fn preview_broadcast(&self, order: Order) -> Result<(Channel, Manifest), Refusal> {
        self.0.call(move |tx| sender::preview(tx, &order)).await
    }

    /// The channels of this agent, as it published them last, with the sequence of the latest
    /// broadcast of each.
    ///
    /// # Errors
    /// The store's.
    pub async fn own_channels(&self) -> Result<Vec<(Channel, u64)>, Refusal> {
        let read = |tx: &mut Tx<'_>| {
            let mut channels = Vec::new();
            for id in audience::own_ids(tx)? {
                if let Some(channel) = audience::own(tx, &id)? {
                    channels.push((channel, sender::wrapped(tx, &id)?));
                }
            }
            Ok(channels)
        };
        self.0.call(read).await
    }

    /// What became of a broadcast; `None`: it was not asked for.
    ///
    /// # Errors
    /// REQUEST_ID_REUSED: something else was asked under this id. Or the store's.
    pub async fn broadcast_state(
        &self,
        request_id: [u8; 16],
        digest: [u8; 32],
    ) -> Result<Option<Begun>, Refusal> {
        self.0.call(move |tx| sender::find(tx, &request_id, &digest)).await
    }

    /// Whether all that this agent has for cells is with its node.
    ///
    /// # Errors
    /// The store's.
    pub async fn is_handed_over(&self) -> Result<bool, Refusal> {
        Ok(self.0.call(|tx| handover::waiting(tx)).await?.is_none())
    }

    /// How many residents a channel of this agent's has in cells, and in how many.
    ///
    /// # Errors
    /// The store's.
    pub async fn audience(&self, channel: ChannelId) -> Result<(u64, u64), Refusal> {
        self.0.call(move |tx| audience::count(tx, &channel)).await
    }

    /// What became of a broadcast of this agent's at each node that has told, in sums with noise: devices
    /// that have it, and owners who have read it.
    ///
    /// # Errors
    /// The store's.
    pub async fn broadcast_counts(
        &self,
        channel: ChannelId,
        sequence: u64,
    ) -> Result<Vec<(NodeId, u64, u64)>, Refusal> {
        self.0.call(move |tx| counts::of(tx, &channel, sequence)).await
    }

    /// Homes of residents that are in cells of a channel, and how many of them have told that they have a
    /// broadcast.
    ///
    /// # Errors
    /// The store's.
    pub async fn broadcast_homes(&self, channel: ChannelId, sequence: u64) -> Result<(u32, u32), Refusal> {
        self.0.call(move |tx| counts::homes(tx, &channel, sequence)).await
    }

    /// An invitation to a channel of this agent's that is not open to all.
    ///
    /// # Errors
    /// NOT_YOUR_CHANNEL, or the store's.
    pub async fn invite(&self, channel: ChannelId) -> Result<Invitation, Refusal> {
        self.0.call(move |tx| invitation::make(tx, &channel)).await
    }
}

impl Inner {
    /// The list in a parcel with seats, if the node that it names signed it.
    pub(super) async fn verified_seats(
        &self,
        seats: &federation::Seats,
    ) -> Result<Option<federation::SeatList>, Refusal> {
        let Ok(list) = federation::SeatList::decode(seats.list.clone()) else { return Ok(None) };
        let Ok(node) = list.node.parse::<NodeId>() else { return Ok(None) };
        let mut state = self.view.state().await?;
        if state.member(&node).is_none() {
            state = self.view.refresh().await?;
        }
        let Some(member) = state.member(&node) else { return Ok(None) };
        let signed = [SEATS_CONTEXT, &seats.list].concat();
        let holds = verify_signed(&member.node_key_pin, &seats.key, &signed, &seats.signature).is_ok();
        Ok(Some(list).filter(|list| holds && list.federation == self.identity.federation))
    }
}

/// Takes seats that came; `None`: they were not signed by the residents' home.
pub(super) fn take_seats(
    tx: &Tx<'_>,
    list: Option<&federation::SeatList>,
) -> Result<(), crate::error::EndpointError> {
    match list {
        Some(list) => audience::ask(tx, list),
        None => alarm::raise(tx, Alarm::FalseSeats, None),
    }
}

/// Brings residents into cells and takes those out who left.
pub(super) async fn keep_cells(inner: &Inner) -> Result<(), Refusal> {
    // Before that it is not known whether this store is a copy of another time.
    let _ = inner.greeted.subscribe().wait_for(|greeted| *greeted).await;
    let changed = inner.cells.notified();
    close_cells(inner).await?;
    while inner.call(audience::admit).await?
        || inner.call(audience::remove).await?
        || inner.call(audience::retire).await?
    {
        inner.handing_over.notify_one();
        inner.broadcasts.send_modify(|count| *count += 1);
    }
    if tokio::time::timeout(TICK, changed).await.is_ok() {
        tokio::time::sleep(TOGETHER).await;
    }
    Ok(())
}

/// After this store was restored from a copy: everybody takes another seat, and channels go on
/// behind what the directory's map shows.
async fn close_cells(inner: &Inner) -> Result<(), Refusal> {
    if inner.call(|tx| keepsake::get(tx, CLOSE_CELLS)).await?.is_none() {
        return Ok(());
    }
    let state = inner.view.refresh().await?;
    let nodes: Vec<NodeId> = state.members().map(|member| member.administration.clone()).collect();
    let mut heads = Vec::new();
    for channel in inner.call(|tx| audience::own_ids(tx)).await? {
        let head = inner.view.channel(&channel, 0).await?;
        let latest = head.map_or((0, [0; 32]), |head| (head.sequence, head.manifest_hash));
        heads.push((channel, latest));
    }
    let close = move |tx: &mut Tx<'_>| {
        audience::close_all(tx, &nodes)?;
        for (channel, latest) in &heads {
            sender::resume(tx, channel, *latest)?;
        }
        keepsake::forget(tx, CLOSE_CELLS)
    };
    inner.call(close).await?;
    inner.handing_over.notify_one();
    Ok(())
}

/// Brings broadcasts on their way, one after the other.
pub(super) async fn speak(inner: &Inner) -> Result<(), Refusal> {
    let _ = inner.greeted.subscribe().wait_for(|greeted| *greeted).await;
    let more = inner.speaking.notified();
    close_cells(inner).await?;
    let next = inner.call(|tx| schedule::begin_due(tx)).await?;
    while let Some(due) = inner.call(|tx| sender::due(tx)).await? {
        let (channel, sequence) = (due.manifest.channel, due.manifest.sequence);
        let logged = if due.is_logged { Ok(()) } else { log(inner, due).await };
        inner.broadcasts.send_modify(|count| *count += 1);
        match logged {
            Ok(()) => inner.call(move |tx| sender::wrap(tx, &channel, sequence)).await.map(drop)?,
            Err(refusal) => never_logged(inner, (channel, sequence), refusal).await?,
        }
        inner.handing_over.notify_one();
        inner.broadcasts.send_modify(|count| *count += 1);
    }
    let pause = next.map_or(TICK, |next| next.since(inner.clock.now()).min(TICK));
    let _ = tokio::time::timeout(pause, more).await;
    Ok(())
}

async fn log(inner: &Inner, due: Due) -> Result<(), Refusal> {
    let (channel, sequence) = (due.manifest.channel, due.manifest.sequence);
    // One that expired while nobody could be reached needs no blob; the log may have it.
    if let Some(blob) = due.blob.filter(|_| due.manifest.expires_at > inner.clock.now()) {
        let until = due.manifest.expires_at.min(inner.clock.now().after(BLOB_LIFE));
        upload(inner, due.manifest.blob, blob, until).await?;
        inner.call(move |tx| sender::uploaded(tx, &channel, sequence)).await?;
    }
    let (_, logged) = inner.log_manifest(&due.manifest).await?;
    inner.call(move |tx| sender::logged(tx, (&channel, sequence), &logged)).await
}

/// A broadcast that was refused for good gives its place to the next, unless the map shows that the log has it.
async fn never_logged(
    inner: &Inner,
    (channel, sequence): (ChannelId, u64),
    refusal: Refusal,
) -> Result<(), Refusal> {
    if !NEVER_LOGGED.contains(&refusal.reason) {
        return Err(refusal);
    }
    let head = inner.view.channel(&channel, 0).await?;
    if head.is_none_or(|head| head.sequence >= sequence) {
        return Err(refusal);
    }
    inner.call(move |tx| schedule::never_logged(tx, (&channel, sequence), refusal.reason)).await
}

/// Brings a blob to this agent's node, from where it left off.
async fn upload(inner: &Inner, id: BlobId, bytes: Bytes, until: Timestamp) -> Result<(), Refusal> {
    let refused = |status: tonic::Status| chancery_kit::status::from_status(&status);
    let mut client = inner.client.blobs().await?;
    let stat = client.stat_blob(wire::StatBlobRequest { blob_id: id.to_wire() }).await.map_err(refused)?;
    let stat = stat.into_inner();
    if stat.complete {
        return Ok(());
    }
    let size = bytes.len() as u64;
    let rest = bytes.slice(usize::try_from(stat.stored.min(size)).unwrap_or_default()..);
    let (pieces, stream) = tokio::sync::mpsc::channel(4);
    let sending = async move {
        let mut head = Some((id, size, stat.stored));
        let mut rest = rest;
        loop {
            let data = rest.split_to(rest.len().min(PIECE));
            let mut piece = wire::WriteBlobRequest { data, ..Default::default() };
            if let Some((id, size, offset)) = head.take() {
                (piece.blob_id, piece.size, piece.offset) = (id.to_wire(), size, offset);
                piece.expires_at_ms = until.millis();
            }
            if pieces.send(piece).await.is_err() || rest.is_empty() {
                return;
            }
        }
    };
    let (answer, ()) = tokio::join!(client.write_blob(ReceiverStream::new(stream)), sending);
    answer.map(drop).map_err(refused)
}

/// Hands over what waits for home nodes, in order.
pub(super) async fn hand_over(inner: &Inner) -> Result<(), Refusal> {
    let _ = inner.greeted.subscribe().wait_for(|greeted| *greeted).await;
    let more = inner.handing_over.notified();
    loop {
        let next = |tx: &mut Tx<'_>| Ok((handover::waiting(tx)?, inbox::mark(tx, STORE_COUNT)?));
        let (Some(waiting), store_count) = inner.call(next).await? else { break };
        let node = waiting.node.clone();
        let request = wire::SubmitCellsRequest { node: node.to_string(), items: waiting.items, store_count };
        match inner.client.submit_cells(&request).await {
            // Who is no member any more has no residents.
            Err(refusal) if refusal.reason == Reason::NotAMember => {
                tracing::warn!("endpoint.cells.drop");
            }
            answer => answer?,
        }
        inner.call(move |tx| handover::done(tx, &node, waiting.through)).await?;
        inner.broadcasts.send_modify(|count| *count += 1);
    }
    let _ = tokio::time::timeout(TICK, more).await;
    Ok(())
}

impl Inner {
    /// Has the directory log a manifest; gives the proof, verified and as it came.
    pub(super) async fn log_manifest(
        &self,
        manifest: &Manifest,
    ) -> Result<(VerifiedManifest, directory::LoggedManifest), Refusal> {
        let key = self.call(|tx| crate::identity::key(tx, crate::identity::OwnKey::Credential)).await?;
        let request = directory::SubmitManifestRequest { manifest: Some(manifest.sign(&key)) };
        let logged = self.client.submit_manifest(&request).await?.logged.unwrap_or_default();
        let agent = chancery_directory_core::AgentKey::from(&key);
        let verified = self.view.verify_manifest(logged.clone(), &agent);
        let verified = verified.ok().filter(|verified| verified.signed.manifest() == manifest);
        let misbehaved = || Refusal::new(Reason::DirectoryMisbehaved, "the proof is not of the manifest");
        let verified = verified.ok_or_else(misbehaved)?;
        self.view.see(verified.checkpoint.clone()).await?;
        Ok((verified, logged))
    }
}
