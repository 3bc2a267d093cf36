//! Sending: from identifiers to queued letters, many at once, so that first
//! contacts share lookups, KeyPackage calls, commits and submissions.

use super::{Endpoint, Inner};
use crate::error::EndpointError;
use crate::mls::Suite;
use crate::outbox;
use crate::peer::{self, Peer};
use crate::request::{self, Order};
use crate::store::Tx;
use crate::thread;
use crate::credential::CredentialError;
use crate::identity;
use chancery_types::{GroupId, Identifier, MessageId, NodeId, Reason, Refusal, Timestamp};
use futures::future::join_all;
use prost::bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;

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

/// An order on its way through [`Endpoint::queue_many`].
type Slot = Option<Result<MessageId, Refusal>>;

impl Endpoint {
    /// Sends a letter; answers when the hub has accepted it. Needs
    /// [`Endpoint::run`] to be running.
    ///
    /// # Errors
    /// Why it was not sent. A letter that was queued stays queued when the
    /// caller goes away: the same request id asks about it.
    pub async fn send(&self, order: SendOrder) -> Result<Sent, Refusal> {
        let queued = self.queue_many(vec![order]).await.pop();
        let message_id =
            queued.unwrap_or_else(|| Err(Refusal::new(Reason::Internal, "an order has no result")))?;
        self.accepted(message_id).await
    }

    /// Sends many letters; answers when the hub has decided about each, in
    /// order. For answers as they come: [`Endpoint::queue_many`], then
    /// [`Endpoint::accepted`] for each.
    pub async fn send_many(&self, orders: Vec<SendOrder>) -> Vec<Result<Sent, Refusal>> {
        let queued = self.queue_many(orders).await;
        join_all(queued.into_iter().map(async |message_id| self.accepted(message_id?).await)).await
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

    /// Queues many letters: resolves, opens threads, encrypts; one result for
    /// each order, in order. A refused one does not stop the others.
    pub async fn queue_many(&self, orders: Vec<SendOrder>) -> Vec<Result<MessageId, Refusal>> {
        let inner = &self.0;
        let mut slots: Vec<Slot> = (0..orders.len()).map(|_| None).collect();
        let mut by_identifier = Vec::new();
        let mut in_threads = Vec::new();
        for (at, SendOrder { to, order }) in orders.into_iter().enumerate() {
            match to {
                To::Thread(thread) => in_threads.push((at, thread, order)),
                To::Identifier(identifier) => by_identifier.push((at, identifier, order)),
            }
        }
        let queued = in_threads.into_iter().map(async |(at, thread, order)| {
            let queue = move |tx: &mut Tx<'_>| {
                let thread = thread::find(tx, &thread)?.ok_or(EndpointError::ThreadUnknown)?;
                request::queue(tx, &thread, order, false)
            };
            (at, inner.call(queue).await)
        });
        fill(&mut slots, join_all(queued).await);
        inner.queue_by_identifier(by_identifier, &mut slots).await;
        inner.outbox.notify_one();
        slots
            .into_iter()
            .map(|slot| slot.unwrap_or_else(|| Err(Refusal::new(Reason::Internal, "an order was left out"))))
            .collect()
    }
}

fn fill(slots: &mut [Slot], results: Vec<(usize, Result<MessageId, Refusal>)>) {
    for (at, result) in results {
        slots[at] = Some(result);
    }
}

/// An order whose recipient is resolved.
struct Addressed {
    at: usize,
    peer: Peer,
    order: Order,
}

impl Inner {
    async fn queue_by_identifier(&self, orders: Vec<(usize, Identifier, Order)>, slots: &mut [Slot]) {
        // Repetitions need no resolving.
        let asked: Vec<_> = orders.iter().map(|(_, _, order)| (order.request_id, order.digest)).collect();
        let known = self
            .call(move |tx| Ok(asked.iter().map(|(id, digest)| request::find(tx, id, digest)).collect::<Vec<_>>()))
            .await;
        let known = match known {
            Ok(known) => known,
            Err(refusal) => return refuse_all(slots, orders.iter().map(|(at, ..)| *at), &refusal),
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
            return;
        }
        let identifiers: Vec<_> = new.iter().map(|(_, identifier, _)| identifier.clone()).collect();
        let resolved = match self.resolver.resolve(&identifiers).await {
            Ok(resolved) => resolved,
            Err(refusal) => return refuse_all(slots, new.iter().map(|(at, ..)| *at), &refusal),
        };
        let mut addressed = Vec::new();
        for ((at, _, order), resolved) in new.into_iter().zip(resolved) {
            match resolved {
                Ok(peer) => addressed.push(Addressed { at, peer, order }),
                Err(refusal) => slots[at] = Some(Err(refusal)),
            }
        }
        self.queue_addressed(addressed, slots).await;
    }

    async fn queue_addressed(&self, orders: Vec<Addressed>, slots: &mut [Slot]) {
        // Where a thread is open, only the letter is to be made.
        let attempts = orders.into_iter().map(async |addressed| {
            let alias = addressed.peer.alias;
            let queue = move |tx: &mut Tx<'_>| match thread::find_by_peer(tx, alias)? {
                Some(thread) => request::queue(tx, &thread, addressed.order, true).map(Ok),
                None => Ok(Err(addressed)),
            };
            self.call(queue).await
        });
        // The store answers what it was asked even when it fails: an order is
        // lost to its caller only with the store.
        let mut first_contacts = Vec::new();
        let at: Vec<usize>;
        {
            let attempts: Vec<_> = attempts.collect();
            let results = join_all(attempts).await;
            at = Vec::with_capacity(results.len());
            for result in results {
                match result {
                    Ok(Ok(message_id)) => at_slot(slots, message_id),
                    Ok(Err(addressed)) => first_contacts.push(addressed),
                    Err(_) => {}
                }
            }
        }
        drop(at);
        for chunk in chunks(first_contacts) {
            self.first_contacts(chunk, slots).await;
        }
    }
}
