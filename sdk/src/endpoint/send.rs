//! Sending: from identifiers to queued letters, many at once, so that first
//! contacts share lookups, KeyPackage calls, commits and submissions.

use super::{Endpoint, Inner};
use crate::credential::CredentialError;
use crate::error::EndpointError;
use crate::identity;
use crate::mls::Suite;
use crate::outbox;
use crate::peer::Peer;
use crate::request::{self, Order};
use crate::store::Tx;
use crate::thread;
use chancery_proto::federation::v1::AliasKeyPackages;
use chancery_types::{Alias, GroupId, Identifier, MessageId, NodeId, Reason, Refusal, Timestamp};
use futures::future::join_all;
use prost::bytes::Bytes;
use std::collections::HashMap;

/// Aliases in one call for KeyPackages.
const TAKEN_AT_ONCE: usize = 128;

/// Whom a letter is for.
#[derive(Clone)]
pub enum To {
    /// Whoever enrolled an identifier.
    Identifier(Identifier),
    /// The other side of a thread that exists.
    Thread(GroupId),
}

/// A letter to send.
pub struct SendOrder {
    /// Whom it is for.
    pub to: To,
    /// What is asked for; its request id sends once.
    pub order: Order,
}

/// The hub accepted a letter: it is committed and flushed there.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The letter.
    pub message_id: MessageId,
    /// Its thread.
    pub thread: GroupId,
    /// When the hub accepted it.
    pub accepted_at: Timestamp,
}

/// Orders whose recipients are resolved.
#[derive(Default)]
pub struct Addressed {
    /// One for each order; those that are decided already.
    slots: Vec<Slot>,
    in_threads: Vec<(usize, GroupId, Order)>,
    to_peers: Vec<ToPeer>,
}

type Slot = Option<Result<MessageId, Refusal>>;

struct ToPeer {
    at: usize,
    peer: Peer,
    identifier: Identifier,
    order: Order,
}

impl Endpoint {
    /// Sends a letter; answers when the hub has accepted it. Needs
    /// [`Endpoint::run`] to be running.
    ///
    /// # Errors
    /// Why it was not sent. A letter that was queued stays queued when the
    /// caller goes away: the same request id asks about it.
    pub async fn send(&self, order: SendOrder) -> Result<Sent, Refusal> {
        let queued = Box::pin(self.queue_many(vec![order])).await.pop();
        let message_id =
            queued.unwrap_or_else(|| Err(Refusal::new(Reason::Internal, "an order has no result")))?;
        self.accepted(message_id).await
    }

    /// Answers when the hub has decided about a letter sent from here.
    ///
    /// # Errors
    /// Why it was not accepted.
    pub async fn accepted(&self, message_id: MessageId) -> Result<Sent, Refusal> {
        let inner = &self.0;
        let decision = inner.wait_for(message_id);
        // Listens before it looks.
        let known = inner.call(move |tx| outbox::decided(tx, &message_id)).await?;
        let decided = match known {
            Some(known) => known,
            None => decision
                .await
                .map_err(|_| Refusal::new(Reason::ShuttingDown, "the endpoint is closing; ask again"))?,
        };
        match decided.result {
            Ok(accepted_at) => Ok(Sent { message_id, thread: decided.thread, accepted_at }),
            Err(reason) => Err(Refusal::new(
                Reason::from_wire(&reason).unwrap_or(Reason::PeerMisbehaved),
                "the letter was not accepted",
            )),
        }
    }

    /// Queues many letters, then [`Endpoint::accepted`] waits for each: one result
    /// for each order, in order. A refused one does not stop the others.
    pub async fn queue_many(&self, orders: Vec<SendOrder>) -> Vec<Result<MessageId, Refusal>> {
        self.queue(self.address(orders).await).await
    }

    /// The first half of [`Endpoint::queue_many`], which mostly waits for others:
    /// resolves the recipients.
    pub async fn address(&self, orders: Vec<SendOrder>) -> Addressed {
        let mut slots: Vec<Slot> = (0..orders.len()).map(|_| None).collect();
        let (mut in_threads, mut by_identifier) = (Vec::new(), Vec::new());
        for (at, SendOrder { to, order }) in orders.into_iter().enumerate() {
            match to {
                To::Thread(thread) => in_threads.push((at, thread, order)),
                To::Identifier(identifier) => by_identifier.push((at, identifier, order)),
            }
        }
        let to_peers = self.0.resolve_orders(by_identifier, &mut slots).await;
        Addressed { slots, in_threads, to_peers }
    }

    /// The second half: opens threads, encrypts and queues.
    pub async fn queue(&self, addressed: Addressed) -> Vec<Result<MessageId, Refusal>> {
        let inner = &self.0;
        let Addressed { mut slots, in_threads, to_peers } = addressed;
        let queued = in_threads.into_iter().map(async |(at, thread, order)| {
            let queue = move |tx: &mut Tx<'_>| {
                let thread = thread::current(tx, &thread)?.ok_or(EndpointError::ThreadUnknown)?;
                request::queue(tx, &thread, order, false)
            };
            (at, inner.call(queue).await)
        });
        fill(&mut slots, join_all(queued).await);
        inner.queue_addressed(to_peers, &mut slots).await;
        inner.outbox.notify_one();
        slots
            .into_iter()
            .map(|slot| slot.unwrap_or_else(|| Err(Refusal::new(Reason::Internal, "an order was left out"))))
            .collect()
    }
}

fn fill(slots: &mut [Slot], results: Results) {
    for (at, result) in results {
        slots[at] = Some(result);
    }
}

/// Results by place of the order.
type Results = Vec<(usize, Result<MessageId, Refusal>)>;
/// KeyPackages of a peer's devices, and of this account's other ones.
type Taken = (Vec<Bytes>, Vec<Bytes>);

/// Somebody with whom there is no thread, and what is to be sent there.
struct Stranger {
    peer: Peer,
    identifier: Identifier,
    orders: Vec<(usize, Order)>,
}

impl Inner {
    async fn resolve_orders(
        &self,
        orders: Vec<(usize, Identifier, Order)>,
        slots: &mut [Slot],
    ) -> Vec<ToPeer> {
        // Repetitions need no resolving.
        let asked: Vec<_> = orders.iter().map(|(_, _, order)| (order.request_id, order.digest)).collect();
        let known = self
            .call(move |tx| {
                Ok(asked.iter().map(|(id, digest)| request::find(tx, id, digest)).collect::<Vec<_>>())
            })
            .await;
        let known = match known {
            Ok(known) => known,
            Err(refusal) => {
                refuse_all(slots, orders.iter().map(|(at, ..)| *at), &refusal);
                return Vec::new();
            }
        };
        let mut new = Vec::new();
        for (order, known) in orders.into_iter().zip(known) {
            match known {
                Ok(None) => new.push(order),
                Ok(Some(message_id)) => slots[order.0] = Some(Ok(message_id)),
                Err(error) => slots[order.0] = Some(Err(error.into())),
            }
        }
        if new.is_empty() {
            return Vec::new();
        }
        let identifiers: Vec<_> = new.iter().map(|(_, identifier, _)| identifier.clone()).collect();
        let resolved = match self.resolver.resolve(&identifiers).await {
            Ok(resolved) => resolved,
            Err(refusal) => {
                refuse_all(slots, new.iter().map(|(at, ..)| *at), &refusal);
                return Vec::new();
            }
        };
        let mut addressed = Vec::new();
        for ((at, identifier, order), resolved) in new.into_iter().zip(resolved) {
            match resolved {
                Ok(found) => addressed.push(ToPeer { at, peer: found.peer, identifier, order }),
                Err(refusal) => slots[at] = Some(Err(refusal)),
            }
        }
        addressed
    }

    async fn queue_addressed(&self, orders: Vec<ToPeer>, slots: &mut [Slot]) {
        // Where a thread is open, only the letter is to be made.
        let attempts = orders.into_iter().map(async |ToPeer { at, peer, identifier, order }| {
            let alias = peer.alias;
            let queue = move |tx: &mut Tx<'_>| match thread::find_by_peer(tx, alias)? {
                Some(thread) => request::queue(tx, &thread, order, true).map(Ok),
                None => Ok(Err(order)),
            };
            (at, peer, identifier, self.call(queue).await)
        });
        let mut strangers: HashMap<Alias, Stranger> = HashMap::new();
        for (at, peer, identifier, attempt) in join_all(attempts).await {
            match attempt {
                Ok(Ok(message_id)) => slots[at] = Some(Ok(message_id)),
                Ok(Err(order)) => {
                    let stranger = strangers.entry(peer.alias);
                    let stranger = stranger.or_insert(Stranger { peer, identifier, orders: Vec::new() });
                    stranger.orders.push((at, order));
                }
                Err(refusal) => slots[at] = Some(Err(refusal)),
            }
        }
        let mut strangers = strangers.into_values().peekable();
        while strangers.peek().is_some() {
            let moved = self.first_contacts(strangers.by_ref().take(TAKEN_AT_ONCE).collect(), slots).await;
            if !moved.is_empty() {
                let found = self.resolve_again(moved, slots).await;
                for stranger in self.first_contacts(found, slots).await {
                    let moved = Refusal::new(Reason::AliasMoved, "the recipient is moving; try again");
                    fill(slots, refuse(&stranger.orders, &moved));
                }
            }
        }
    }

    /// Those who have another home than was known, as their records are now.
    async fn resolve_again(&self, moved: Vec<Stranger>, slots: &mut [Slot]) -> Vec<Stranger> {
        let identifiers: Vec<_> = moved.iter().map(|stranger| stranger.identifier.clone()).collect();
        let resolved = match self.resolver.resolve_anew(&identifiers).await {
            Ok(resolved) => resolved,
            Err(refusal) => vec![Err(refusal); moved.len()],
        };
        let mut found = Vec::with_capacity(moved.len());
        for (stranger, resolved) in moved.into_iter().zip(resolved) {
            match resolved {
                Ok(again) => found.push(Stranger { peer: again.peer, ..stranger }),
                Err(refusal) => fill(slots, refuse(&stranger.orders, &refusal)),
            }
        }
        found
    }

    /// Opens threads with up to 128 recipients and queues their letters; gives back
    /// those who have another home now.
    async fn first_contacts(&self, strangers: Vec<Stranger>, slots: &mut [Slot]) -> Vec<Stranger> {
        let peers: Vec<Peer> = strangers.iter().map(|stranger| stranger.peer.clone()).collect();
        let taken = match self.take_key_packages(&peers).await {
            Ok(taken) => taken,
            Err(refusal) => {
                let orders = strangers.iter().flat_map(|stranger| &stranger.orders);
                refuse_all(slots, orders.map(|(at, _)| *at), &refusal);
                return Vec::new();
            }
        };
        let (moved, there): (Vec<_>, Vec<_>) = strangers.into_iter().zip(taken).partition(|(_, taken)| {
            taken.as_ref().is_err_and(|refusal| refusal.reason == Reason::AliasMoved)
        });
        let opened = there.into_iter().map(async |(stranger, taken)| match taken {
            Ok((theirs, ours)) => self.open(stranger, theirs, ours).await,
            Err(refusal) => refuse(&stranger.orders, &refusal),
        });
        for results in join_all(opened).await {
            fill(slots, results);
        }
        moved.into_iter().map(|(stranger, _)| stranger).collect()
    }

    async fn open(&self, stranger: Stranger, theirs: Vec<Bytes>, ours: Vec<Bytes>) -> Results {
        let at: Vec<usize> = stranger.orders.iter().map(|(at, _)| *at).collect();
        let failed = |refusal: Refusal| at.iter().map(|at| (*at, Err(refusal.clone()))).collect();
        let (again_theirs, again_ours) = (theirs.clone(), ours.clone());
        let stranger = match self.call(move |tx| open_and_queue(tx, stranger, &theirs, &ours)).await {
            Ok(Ok(results)) => return results,
            Ok(Err(stranger)) => stranger,
            Err(refusal) => return failed(refusal),
        };
        // An agent that this endpoint has not seen in the log: look once more.
        if let Err(refusal) = self.view.refresh().await {
            return failed(refusal);
        }
        let open = move |tx: &mut Tx<'_>| open_and_queue(tx, stranger, &again_theirs, &again_ours);
        match self.call(open).await {
            Ok(Ok(results)) => results,
            Ok(Err(_)) => failed(EndpointError::from(CredentialError::UnknownAgent).into()),
            Err(refusal) => failed(refusal),
        }
    }

    /// KeyPackages of each peer, and as many sets of this account's other devices.
    pub(super) async fn take_key_packages(
        &self,
        peers: &[Peer],
    ) -> Result<Vec<Result<Taken, Refusal>>, Refusal> {
        let addresses: Vec<_> = peers.iter().map(|peer| (peer.node.clone(), peer.alias)).collect();
        let has_others = self.call(|tx| identity::has_other_devices(tx)).await?;
        let mut taken = self.take_pairs(&addresses, has_others, Self::suites()).await?;
        // An old device on one side: what all of them have is the classical suite.
        let differ = |taken: &Result<Taken, Refusal>| {
            let suites = taken.iter().flat_map(|(theirs, ours)| theirs.iter().chain(ours)).map(suite_of);
            suites.collect::<std::collections::HashSet<_>>().len() > 1
        };
        let mixed: Vec<usize> = (0..taken.len()).filter(|at| differ(&taken[*at])).collect();
        if !mixed.is_empty() {
            let addresses: Vec<_> = mixed.iter().map(|at| addresses[*at].clone()).collect();
            let classical = vec![u32::from(Suite::Classical.code())];
            let again = self.take_pairs(&addresses, has_others, classical).await?;
            for (at, again) in mixed.into_iter().zip(again) {
                taken[at] = again;
            }
        }
        Ok(taken)
    }

    async fn take_pairs(
        &self,
        addresses: &[(NodeId, Alias)],
        has_others: bool,
        suites: Vec<u32>,
    ) -> Result<Vec<Result<Taken, Refusal>>, Refusal> {
        let theirs = self.client.take_key_packages(addresses, suites.clone()).await?;
        let ours = if has_others {
            let own = vec![(self.client.node(), self.identity.alias); addresses.len()];
            self.client.take_key_packages(&own, suites).await?
        } else {
            vec![AliasKeyPackages::default(); addresses.len()]
        };
        Ok(theirs.into_iter().zip(ours).map(|(theirs, ours)| Ok((given(theirs)?, given(ours)?))).collect())
    }
}

/// Code point of the suite of an MLSMessage that holds a KeyPackage (RFC 9420,
/// sections 6 and 10); checked properly later.
fn suite_of(message: &Bytes) -> Option<[u8; 2]> {
    message.get(6..8)?.try_into().ok()
}

fn given(taken: AliasKeyPackages) -> Result<Vec<Bytes>, Refusal> {
    match &*taken.reason {
        "" => Ok(taken.key_packages),
        reason => Err(Refusal::new(
            Reason::from_wire(reason).unwrap_or(Reason::PeerMisbehaved),
            "there are no KeyPackages of the recipient",
        )),
    }
}

/// Opens a thread unless there is one by now, and queues the letters. Gives
/// everything back when an agent's key is not known.
fn open_and_queue(
    tx: &mut Tx<'_>,
    stranger: Stranger,
    theirs: &[Bytes],
    ours: &[Bytes],
) -> Result<Result<Results, Stranger>, EndpointError> {
    let thread = match thread::find_by_peer(tx, stranger.peer.alias)? {
        Some(thread) => Ok(thread),
        None => tx.part(|tx| thread::open(tx, &stranger.peer, theirs, ours)),
    };
    let thread = match thread {
        Ok(thread) => thread,
        Err(EndpointError::FalseCredential(CredentialError::UnknownAgent)) => return Ok(Err(stranger)),
        Err(error) => return Err(error),
    };
    let queue = |(at, order)| {
        let queued = tx.part(|tx| request::queue(tx, &thread, order, true));
        (at, queued.map_err(Refusal::from))
    };
    Ok(Ok(stranger.orders.into_iter().map(queue).collect()))
}

fn refuse(orders: &[(usize, Order)], refusal: &Refusal) -> Results {
    orders.iter().map(|(at, _)| (*at, Err(refusal.clone()))).collect()
}

fn refuse_all(slots: &mut [Slot], which: impl Iterator<Item = usize>, refusal: &Refusal) {
    for at in which {
        slots[at] = Some(Err(refusal.clone()));
    }
}
