//! The tasks of a running endpoint: the mailbox is read and acknowledged, the
//! outbox submitted, the stock of KeyPackages kept. Each tries again on its own
//! with jittered, capped pauses; what it does is committed before the node hears of it.

use super::rounds::{jittered, keep, until_done};
use super::{AtHome, Endpoint, Inner, RecordCheck, moving, seats, speaking};
use crate::credential::CredentialError;
use crate::error::EndpointError;
use crate::inbox::{self, Place};
use crate::mls::Suite;
use crate::mls::key_package::{self, Made};
use crate::node_client::NodeClient;
use crate::outbox;
use crate::restored::{self, STORE_COUNT};
use crate::store::Tx;
use crate::thread::{self, Processed};
use crate::{event, home};
use chancery_proto::federation::v1::{SeatList, Submission};
use chancery_proto::node::v1::{
    PublishKeyPackagesRequest, SubscribeResponse, submit_result, subscribe_response,
};
use chancery_sdk_core::acknowledge::acknowledgement;
use chancery_types::{NodeId, Reason, Refusal};
use futures::StreamExt as _;
use futures::future::join_all;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// Items of the mailbox in one transaction.
const ITEMS: usize = 128;
/// Connections on which a subscription is tried at once.
const CONNECTIONS: usize = 3;
/// Submissions in one call.
const SUBMISSIONS: usize = 128;
/// How long a delivery receipt may wait for more to come.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_millis(20);
/// How long what nobody waits for may wait for company: outcomes of one's own
/// messages to be noted, and the acknowledgement of all that needs no receipt.
const OTHERS_AFTER: Duration = Duration::from_secs(1);
/// How often the outbox is looked at without a reason: letters expire.
const OUTBOX_TICK: Duration = Duration::from_secs(30);
/// The same while hubs are hearing of a move.
const WAITING_TICK: Duration = Duration::from_secs(1);
/// How often the stock is looked at without a reason.
const STOCK_TICK: Duration = Duration::from_hours(6);
/// How often KeyPackages of last resort are replaced.
const LAST_RESORT_AGE: Duration = Duration::from_hours(7 * 24);
/// How often the statements in force are fetched anew, on average.
const DIRECTORY_TICK: Duration = Duration::from_secs(600);
/// How often this account's own record is looked at, on average.
const RECORD_TICK: Duration = Duration::from_hours(6);
const LAST_RESORT_MADE: &str = "last resort made at";

impl Endpoint {
    /// Receives and sends until `shutdown`. One call for each endpoint at a time.
    pub async fn run(&self, shutdown: CancellationToken) {
        let inner = &self.0;
        let entropy = &*inner.resolver.entropy;
        let tasks = async {
            tokio::join!(
                at_homes(inner),
                keep(entropy, "submit", || submit(inner)),
                keep(entropy, "succession", || inner.succeed()),
                keep(entropy, "key_packages", || stock(inner)),
                keep(entropy, "directory", || follow_directory(inner)),
                keep(entropy, "record", || watch_record(inner)),
                until_done(entropy, "move", || inner.resume_move()),
                broadcasts(inner),
            )
        };
        // The parts of a round are each one transaction: stopping between them loses nothing.
        let _ = shutdown.run_until_cancelled(Box::pin(tasks)).await;
    }
}

/// Both sides of broadcast channels: seats here, and cells of channels that this agent speaks on.
async fn broadcasts(inner: &Inner) {
    let entropy = &*inner.resolver.entropy;
    let listening = async {
        tokio::join!(
            keep(entropy, "seats", || seats::keep_seats(inner)),
            keep(entropy, "read_seats", || seats::read_seats(inner)),
            keep(entropy, "contents", || seats::fetch_contents(inner)),
            keep(entropy, "channels", || seats::watch_channels(inner)),
            keep(entropy, "counts", || seats::keep_reporting(inner)),
            async {
                if inner.identity.agent.is_none() {
                    keep(entropy, "residents", || seats::keep_joining(inner)).await;
                }
            },
        )
    };
    let speaking = async {
        if inner.identity.agent.is_some() {
            tokio::join!(
                keep(entropy, "cells", || speaking::keep_cells(inner)),
                keep(entropy, "speak", || speaking::speak(inner)),
                keep(entropy, "hand_over", || speaking::hand_over(inner)),
            );
        }
    };
    tokio::join!(listening, speaking);
}

/// Reads the mailboxes that the homes keep, whichever these are.
async fn at_homes(inner: &Inner) {
    let entropy = &*inner.resolver.entropy;
    let mut changes = inner.homes.subscribe();
    loop {
        let homes = changes.borrow_and_update().clone();
        let reading = homes.iter().map(async |home| {
            tokio::join!(
                keep(entropy, "subscribe", || subscribe(inner, home)),
                keep(entropy, "acknowledge", || acknowledge(inner, home)),
                async {
                    if !home.is_present {
                        keep(entropy, "leave", || inner.follow_up(home)).await;
                    }
                },
            );
        });
        tokio::select! {
            _ = join_all(reading) => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// One subscription, until it ends.
async fn subscribe(inner: &Inner, at: &AtHome) -> Result<(), Refusal> {
    // Senders that are agents are checked against the log.
    inner.view.state().await?;
    let mut chunks = open(inner, at).await?.ready_chunks(ITEMS);
    let mut progress = false;
    let mut items = Vec::new();
    loop {
        let next = if items.is_empty() {
            chunks.next().await
        } else {
            tokio::time::timeout(OTHERS_AFTER, chunks.next()).await.unwrap_or_else(|_| Some(Vec::new()))
        };
        let Some(chunk) = next else { break };
        let mut end = None;
        let waited = chunk.is_empty();
        for item in chunk {
            match item {
                Ok(item) => items.push(item),
                Err(status) => end = Some(chancery_kit::status::from_status(&status)),
            }
        }
        if !waited && end.is_none() && items.len() < ITEMS && inner.may_wait(&items) {
            continue;
        }
        progress |= !items.is_empty();
        take(inner, at, std::mem::take(&mut items)).await?;
        match end {
            Some(refusal) if !progress => return Err(refusal),
            Some(_) => return Ok(()),
            None => {}
        }
    }
    // The node hung up: at once again only if that leads anywhere.
    let ended = Refusal::new(Reason::PeerUnreachable, "the node ended the subscription");
    if progress { Ok(()) } else { Err(ended) }
}

/// Opens a subscription on a connection on which the home was greeted.
async fn open(inner: &Inner, at: &AtHome) -> Result<Streaming<SubscribeResponse>, Refusal> {
    for _ in 0..CONNECTIONS {
        let (greeted, after) = inner.greet(at).await?;
        let stream = at.client.subscribe(inner.identity.alias, after).await?;
        // The channel connects again on its own, and the home may have been restored meanwhile.
        if at.client.bound() == Some(greeted) {
            return Ok(stream);
        }
    }
    Err(Refusal::new(Reason::PeerUnreachable, "no connection to the node lasts"))
}

/// What taking some items came to.
#[derive(Default)]
struct Taken {
    done: usize,
    letters: bool,
    events: bool,
    joined: bool,
    /// A commit or an outcome set queued letters free.
    due: bool,
    /// A sender waits for a delivery receipt.
    receipt_due: bool,
    /// The next item is from an agent that this endpoint has not seen in the log.
    unknown_agent: bool,
    /// This endpoint has another home.
    moved: bool,
    /// Residents want seats in a channel of this agent's, or give them up.
    seats: bool,
}

async fn take(inner: &Inner, at: &AtHome, items: Vec<SubscribeResponse>) -> Result<(), Refusal> {
    let (mut next_home, mut lists) = (None, HashMap::new());
    for item in &items {
        match &item.item {
            Some(subscribe_response::Item::Moved(moved)) => {
                let node: NodeId = moved.node.parse()?;
                next_home = Some((node.clone(), inner.endpoint_of(&node).await?));
            }
            Some(subscribe_response::Item::Seats(seats)) => {
                if let Some(list) = inner.verified_seats(seats).await? {
                    lists.insert(item.position, list);
                }
            }
            _ => {}
        }
    }
    let (items, lists): (Arc<[SubscribeResponse]>, _) = (items.into(), Arc::new(lists));
    let mut done = 0;
    let mut refreshed = false;
    while done < items.len() {
        let (rest, next_home, id) = (Arc::clone(&items), next_home.clone(), at.id);
        let lists = Arc::clone(&lists);
        let first = inner.first_endpoint.clone();
        let acknowledged = at.acknowledged.load(Ordering::Relaxed);
        let take = move |tx: &mut Tx<'_>| {
            inbox::forget_receipts(tx, id, acknowledged)?;
            take_some(tx, (id, first, next_home.as_ref()), &rest[done..], (refreshed, &lists))
        };
        let taken = inner.call(take).await?;
        done += taken.done;
        if taken.letters {
            inner.inbox.send_modify(|count| *count += 1);
        }
        if taken.events {
            inner.events.send_modify(|count| *count += 1);
        }
        if taken.joined {
            inner.key_packages.notify_one();
            at.joined.notify_one();
        }
        if taken.moved {
            inner.settle_in().await?;
        }
        let acknowledge = if taken.receipt_due { &at.acknowledge } else { &at.acknowledge_later };
        acknowledge.notify_one();
        if taken.due {
            inner.outbox.notify_one();
        }
        if taken.seats {
            inner.cells.notify_one();
            // Lists of seats say what became of broadcasts, too.
            inner.broadcasts.send_modify(|count| *count += 1);
        }
        if taken.unknown_agent {
            inner.view.refresh().await?;
        }
        refreshed = taken.unknown_agent;
    }
    Ok(())
}

fn take_some(
    tx: &mut Tx<'_>,
    (home, first_endpoint, next_home): (i64, String, Option<&(NodeId, String)>),
    items: &[SubscribeResponse],
    (mut last_try, lists): (bool, &HashMap<u64, SeatList>),
) -> Result<Taken, EndpointError> {
    let mut taken = Taken::default();
    for item in items {
        match &item.item {
            Some(subscribe_response::Item::Delivery(delivery)) => {
                match thread::receive(tx, Place { home, position: item.position }, delivery, last_try) {
                    Ok(processed) => {
                        taken.letters |= matches!(processed, Processed::Letter { .. });
                        taken.joined |= processed == Processed::Joined;
                        // An answer or a read receipt is an event, too.
                        taken.events |= matches!(processed, Processed::Letter { .. } | Processed::Noted);
                        taken.receipt_due |= matches!(processed, Processed::Letter { .. });
                        taken.due |= processed == Processed::Committed;
                    }
                    Err(EndpointError::FalseCredential(CredentialError::UnknownAgent)) => {
                        taken.unknown_agent = true;
                        return Ok(taken);
                    }
                    Err(error) => return Err(error),
                }
            }
            Some(subscribe_response::Item::Outcome(outcome)) => {
                let released = outbox::decide(tx, [outcome])?;
                taken.due |= released;
                taken.letters |= released;
                taken.receipt_due |= released;
            }
            Some(subscribe_response::Item::Event(told)) => {
                event::observe(tx, told)?;
                taken.events = true;
            }
            Some(subscribe_response::Item::Moved(_)) => {
                if let Some(next) = next_home {
                    taken.moved |= moving::follow(tx, (home, &first_endpoint), next)?;
                }
            }
            Some(subscribe_response::Item::Seats(_)) => {
                speaking::take_seats(tx, lists.get(&item.position))?;
                taken.seats = true;
            }
            None => {}
        }
        home::set_through(tx, home, item.position)?;
        taken.done += 1;
        last_try = false;
    }
    Ok(taken)
}

/// Submits what is due, then waits for more.
async fn submit(inner: &Inner) -> Result<(), Refusal> {
    let mut more = true;
    while more {
        // Before the batch is read: what waits for a move does not go ahead of it.
        let node = inner.client.staying();
        let after = inner.submitted.load(Ordering::Relaxed);
        let next =
            move |tx: &mut Tx<'_>| Ok((outbox::next(tx, after, SUBMISSIONS)?, inbox::mark(tx, STORE_COUNT)?));
        let (batch, store_count) = inner.call(next).await?;
        let Some(last) = batch.submissions.last().map(|due| due.position) else { break };
        if !*inner.greeted.borrow() {
            let _ = inner.greeted.subscribe().wait_for(|greeted| *greeted).await;
            continue;
        }
        let submissions = batch.submissions.into_iter().map(|due| due.submission).collect();
        more = submit_all(inner, &node, (submissions, store_count)).await? || batch.more;
        // Unless everything is due again, at another home.
        let _ = inner.submitted.compare_exchange(after, last, Ordering::Relaxed, Ordering::Relaxed);
    }
    let tick = if inner.call(|tx| home::submissions_wait(tx)).await? { WAITING_TICK } else { OUTBOX_TICK };
    let _ = tokio::time::timeout(tick, inner.outbox.notified()).await;
    Ok(())
}

/// One call; whether it set anything free.
async fn submit_all(
    inner: &Inner,
    node: &NodeClient,
    (submissions, store_count): (Vec<Submission>, u64),
) -> Result<bool, Refusal> {
    let ids: Vec<_> = submissions.iter().map(|submission| submission.message_id.clone()).collect();
    let results = node.submit(submissions, store_count).await?;
    let mut outcomes = Vec::with_capacity(results.len());
    for (id, result) in ids.iter().zip(results) {
        match result.result {
            Some(submit_result::Result::Outcome(outcome)) if outcome.message_id == id => {
                outcomes.push(outcome);
            }
            // The outcome will come through the mailbox.
            Some(submit_result::Result::Queued(_)) => {}
            _ => return Err(Refusal::new(Reason::PeerMisbehaved, "a result is not for its submission")),
        }
    }
    if outcomes.is_empty() {
        return Ok(false);
    }
    let released = inner.call(move |tx| outbox::decide(tx, &outcomes)).await?;
    if released {
        inner.inbox.send_modify(|count| *count += 1);
        inner.acknowledge();
    }
    Ok(released)
}

/// Acknowledges what was committed, a little later so that it is more at once; to the
/// incarnation that was greeted, because another one may want receipts again.
async fn acknowledge(inner: &Inner, at: &AtHome) -> Result<(), Refusal> {
    let mut more = true;
    while more {
        let greeted = at.greeted.lock().await;
        let Some((_, incarnation)) = *greeted else { break };
        let (id, acknowledged) = (at.id, at.acknowledged.load(Ordering::Relaxed));
        drop(greeted);
        let ready = inner.call(move |tx| acknowledgement(tx, id, acknowledged)).await?;
        let Some(ready) = ready else { break };
        more = ready.more;
        at.client.acknowledge(inner.identity.alias, incarnation, ready.through, ready.receipts).await?;
        let greeted = at.greeted.lock().await;
        if greeted.is_some_and(|(_, latest)| latest == incarnation) {
            at.acknowledged.store(ready.through, Ordering::Relaxed);
        }
    }
    let receipts = at.acknowledge.notified();
    let others = async {
        at.acknowledge_later.notified().await;
        tokio::time::sleep(OTHERS_AFTER).await;
    };
    tokio::select! {
        () = receipts => tokio::time::sleep(ACKNOWLEDGE_AFTER).await,
        () = others => {}
    }
    Ok(())
}

async fn stock(inner: &Inner) -> Result<(), Refusal> {
    let _ = inner.greeted.subscribe().wait_for(|greeted| *greeted).await;
    refill(inner).await?;
    let _ = tokio::time::timeout(STOCK_TICK, inner.key_packages.notified()).await;
    Ok(())
}

/// Looks at the log now and then: agents, authorities and evaluators come and go.
async fn follow_directory(inner: &Inner) -> Result<(), Refusal> {
    inner.view.refresh_after(DIRECTORY_TICK / 2).await?;
    let jitter = jittered(&*inner.resolver.entropy, DIRECTORY_TICK);
    tokio::time::sleep(DIRECTORY_TICK / 2 + jitter).await;
    Ok(())
}

/// Looks after this account's own record.
async fn watch_record(inner: &Inner) -> Result<(), Refusal> {
    // Who was replaced does not take the next key epoch's handle. All devices of a
    // nation at once would be too many for an authority.
    if matches!(inner.record.check().await?, RecordCheck::AsPublished | RecordCheck::Unpublished) {
        inner.migrate().await?;
    }
    let jitter = jittered(&*inner.resolver.entropy, RECORD_TICK);
    tokio::time::sleep(RECORD_TICK / 2 + jitter).await;
    Ok(())
}

/// Fills the home's stock of this device's KeyPackages up when half of it is gone.
pub(super) async fn refill(inner: &Inner) -> Result<(), Refusal> {
    fill(inner, &inner.client).await
}

/// The same at any node where the account is open.
pub(super) async fn fill(inner: &Inner, node: &NodeClient) -> Result<(), Refusal> {
    let now = inner.clock.now();
    let read = |tx: &mut Tx<'_>| Ok((inbox::mark(tx, LAST_RESORT_MADE)?, restored::replaces_stock(tx)?));
    let (made_at, replaces) = inner.call(read).await?;
    let made_at = chancery_types::Timestamp::from_millis(i64::try_from(made_at).unwrap_or(i64::MAX));
    let mut last_resort = replaces || now.since(made_at) >= LAST_RESORT_AGE;
    let alias = inner.identity.alias;
    let publish = async |made: Made, replace: bool| {
        let request = PublishKeyPackagesRequest {
            alias: alias.to_wire(),
            one_time: made.one_time.into_iter().map(Into::into).collect(),
            last_resort: made.last_resort.into_iter().map(Into::into).collect(),
            store_count: made.store_count,
            replace,
        };
        node.publish_key_packages(request).await
    };
    // Learns what is there before it makes anything.
    let stock = publish(Made::default(), replaces).await?;
    let of = |suite: Suite| stock.iter().find(|stock| stock.cipher_suite == u32::from(suite.code()));
    last_resort |= Suite::ALL.iter().any(|suite| !of(*suite).is_some_and(|stock| stock.last_resort));
    for (nth, suite) in Suite::ALL.into_iter().enumerate() {
        let there = of(suite).map_or(0, |stock| stock.one_time as usize);
        let missing = if there * 2 <= inner.stock { inner.stock - there } else { 0 };
        let last_resort = last_resort && nth == 0;
        if missing == 0 && !last_resort {
            continue;
        }
        let made = inner.call(move |tx| key_package::make(tx, &[(suite, missing)], last_resort)).await?;
        publish(made, false).await?;
    }
    if last_resort {
        let made_at = u64::try_from(now.millis()).unwrap_or(0);
        let note = move |tx: &mut Tx<'_>| {
            if replaces {
                restored::stock_replaced(tx)?;
            }
            inbox::raise_mark(tx, LAST_RESORT_MADE, made_at)
        };
        inner.call(note).await?;
    }
    Ok(())
}
