//! The calling side of links: one task for each member, which hands over what
//! the outbox holds for it, in order, and comes back after every failure. One
//! dead, slow or hostile peer never slows another.

use super::incoming::greeted;
use crate::rpc::Rooms;
use crate::store::outbox as store;
use chancery_kit::status::from_status;
use chancery_kit::store::StoreError;
use chancery_node_core::backoff::Backoff;
use chancery_node_core::link::{MAX_BATCH, Sending, VERSIONS};
use chancery_node_core::outbox;
use chancery_proto::federation::v1 as wire;
use chancery_types::{Incarnation, NodeId, Reason, Refusal};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Delay after a failed link: at first, at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Longest silence of a peer that owes an acknowledgement.
const ACK: Duration = Duration::from_secs(30);
/// How often an idle link looks into the outbox unasked.
const LOOK: Duration = Duration::from_secs(5);

/// Keeps a link to every member until the node stops.
pub(crate) async fn keep_links(rooms: Arc<Rooms>) {
    let mut changes = rooms.mesh.log().changes();
    let mut links: HashMap<NodeId, JoinHandle<()>> = HashMap::new();
    loop {
        let state = rooms.mesh.state();
        let members: HashSet<NodeId> = state
            .members()
            .map(|member| member.administration.clone())
            .filter(|node| node != rooms.mesh.here())
            .collect();
        links.retain(|node, link| {
            let stays = members.contains(node);
            if !stays {
                link.abort();
            }
            stays
        });
        for node in members {
            links.entry(node.clone()).or_insert_with(|| tokio::spawn(keep_link(Arc::clone(&rooms), node)));
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { break },
            () = rooms.shutdown.cancelled() => break,
        }
    }
    links.values().for_each(JoinHandle::abort);
}

async fn keep_link(rooms: Arc<Rooms>, peer: NodeId) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let waiting = rooms.store.wake().peer(peer.clone());
    let mut silent = false;
    loop {
        let result = Link::open(&rooms, &peer).await;
        let result = match result {
            Ok(mut link) => {
                backoff.reset();
                silent = false;
                link.run(&rooms, &waiting).await
            }
            Err(refusal) => {
                // Opening a link notes that the peer answers again.
                silent = silent || silent_from_now(&rooms, &peer).await.is_ok();
                Err(refusal)
            }
        };
        let reason = result.err().map_or("the peer closed it", |refusal| refusal.reason.as_str());
        let delay = backoff.next(rooms.store.entropy());
        tracing::info!(%peer, reason, ?delay, "link down");
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = rooms.shutdown.cancelled() => return,
        }
    }
}

async fn silent_from_now(rooms: &Rooms, peer: &NodeId) -> Result<(), Refusal> {
    let peer = peer.clone();
    rooms
        .store
        .change("node.peer.silent", move |tx| {
            let peer = peer.clone();
            Box::pin(async move { outbox::silent(tx, &peer).await })
        })
        .await
}

struct Link {
    peer: NodeId,
    frames: mpsc::Sender<wire::LinkRequest>,
    answers: Streaming<wire::LinkResponse>,
    sending: Sending,
}

impl Link {
    async fn open(rooms: &Rooms, peer: &NodeId) -> Result<Self, Refusal> {
        let mut client = rooms.mesh.peer(peer).await?;
        let (frames, requests) = mpsc::channel(16);
        let hello = wire::Hello {
            version_min: VERSIONS.0,
            version_max: VERSIONS.1,
            incarnation: rooms.store.incarnation().to_wire(),
        };
        let hello = wire::LinkRequest { frame: Some(wire::link_request::Frame::Hello(hello)) };
        let _ = frames.send(hello).await;
        let mut answers = crate::mesh::peer_call(client.link(ReceiverStream::new(requests))).await?;
        let first = tokio::time::timeout(ACK, answers.message()).await;
        let first = first.map_err(|_| Refusal::new(Reason::PeerUnreachable, "no HelloAck came"))?;
        let first = first.map_err(|status| from_status(&status))?;
        let Some(wire::link_response::Frame::HelloAck(ack)) = first.and_then(|frame| frame.frame) else {
            return Err(misbehaved("the first answer of a link is HelloAck"));
        };
        if ack.version < VERSIONS.0 || ack.version > VERSIONS.1 {
            return Err(misbehaved("the peer chose a version that was not offered"));
        }
        greeted(rooms, peer, Incarnation::try_from(&ack.incarnation)?).await?;
        tracing::info!(%peer, "link up");
        let sending = Sending::new(ack.credit_bytes.max(1024 * 1024));
        Ok(Self { peer: peer.clone(), frames, answers, sending })
    }

    async fn run(&mut self, rooms: &Rooms, waiting: &Notify) -> Result<(), Refusal> {
        loop {
            while self.sending.may_send() && self.send_batch(rooms).await? {}
            tokio::select! {
                answer = self.answers.message() => match answer.map_err(|status| from_status(&status))? {
                    Some(answer) => self.acked(rooms, answer).await?,
                    None => return Ok(()),
                },
                () = waiting.notified(), if self.sending.may_send() => {}
                () = tokio::time::sleep(if self.sending.is_idle() { LOOK } else { ACK }) => {
                    if !self.sending.is_idle() {
                        return Err(Refusal::new(Reason::PeerUnreachable, "the peer acknowledges nothing"));
                    }
                }
                () = rooms.shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// Sends what waits, up to a batch; whether there was anything.
    async fn send_batch(&mut self, rooms: &Rooms) -> Result<bool, Refusal> {
        let found = store::next(&rooms.store, &self.peer, self.sending.sent(), MAX_BATCH).await;
        let batch = self.sending.batch(found.map_err(StoreError::from)?, rooms.store.now())?;
        let Some(batch) = batch else { return Ok(false) };
        let frame = wire::LinkRequest { frame: Some(wire::link_request::Frame::Batch(batch)) };
        let gone = || Refusal::new(Reason::PeerUnreachable, "the link broke");
        tokio::time::timeout(ACK, self.frames.send(frame)).await.map_err(|_| gone())?.map_err(|_| gone())?;
        Ok(true)
    }

    async fn acked(&mut self, rooms: &Rooms, answer: wire::LinkResponse) -> Result<(), Refusal> {
        let Some(wire::link_response::Frame::Ack(ack)) = answer.frame else {
            return Err(misbehaved("after HelloAck a link has acknowledgements only"));
        };
        let acked = Arc::new(self.sending.acked(ack)?);
        rooms
            .store
            .change("node.outbox.acked", move |tx| {
                let acked = Arc::clone(&acked);
                Box::pin(async move { outbox::acked(tx, &acked).await })
            })
            .await
    }
}

fn misbehaved(message: &'static str) -> Refusal {
    Refusal::new(Reason::PeerMisbehaved, message)
}
