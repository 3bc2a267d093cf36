//! Many devices that submit to one node, and devices that read and acknowledge what
//! comes of it. Every message that was accepted is accounted for.

use super::device::{Device, accepted};
use super::node::Apart;
use crate::Failure;
use bytes::Bytes;
use chancery_kit::status::from_status;
use chancery_proto::node::v1 as node;
use chancery_types::{GroupId, Reason, SystemEntropy};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tonic::{Code, Streaming};

/// Devices that read.
const READERS: usize = 4;
/// How often they acknowledge.
const ACKNOWLEDGE: Duration = Duration::from_millis(200);
/// Longest wait for the next message that is missing.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of ciphertext of a message.
pub(super) const ENVELOPE: usize = 1024;

/// What became of a call.
pub(super) enum Answer {
    Accepted,
    /// OVERLOADED, as it should be, and when to come again.
    Refused(Duration),
    /// Anything else.
    Other,
}

/// Devices of one node.
pub(super) struct Crowd {
    senders: Vec<(Device, GroupId)>,
    books: Arc<Books>,
}

#[derive(Default)]
struct Books {
    accepted: Mutex<HashSet<Bytes>>,
    /// How often each came.
    arrived: Mutex<HashMap<Bytes, u32>>,
}

fn open<T>(book: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Crowd {
    /// Opens accounts and groups; readers read until the crowd's node is gone.
    pub(super) async fn open(apart: &Apart, senders: usize) -> Result<Self, Failure> {
        let books = Arc::new(Books::default());
        let mut readers = Vec::new();
        for _ in 0..READERS {
            let reader = Arc::new(apart.device().await?);
            readers.push(reader.alias);
            let request = node::SubscribeRequest { alias: reader.alias.to_wire(), after: 0 };
            let items = reader.mailbox().subscribe(request).await.map_err(Failure::call)?.into_inner();
            tokio::spawn(read(reader, items, Arc::clone(&books)));
        }
        let mut crowd = Self { senders: Vec::with_capacity(senders), books };
        for (_, reader) in (0..senders).zip(readers.iter().cycle()) {
            let (device, group) = (apart.device().await?, GroupId::random(&SystemEntropy));
            device.submit(vec![device.opening(group, *reader, &apart.home)]).await?;
            crowd.senders.push((device, group));
        }
        Ok(crowd)
    }

    /// How many senders there are.
    pub(super) const fn senders(&self) -> usize {
        self.senders.len()
    }

    /// One call of a sender with so many messages.
    pub(super) async fn call(&self, sender: usize, messages: usize) -> Answer {
        let Some((device, group)) = self.senders.get(sender % self.senders.len().max(1)) else {
            return Answer::Other;
        };
        let submissions: Vec<_> = (0..messages).map(|_| device.message(*group, ENVELOPE)).collect();
        let ids: Vec<_> = submissions.iter().map(|submission| submission.message_id.clone()).collect();
        let request = node::SubmitRequest { submissions, store_count: 0 };
        match device.mailbox().submit(request).await {
            Ok(answer) => {
                let results = answer.into_inner().results;
                let taken = ids.into_iter().zip(&results).filter(|(_, result)| accepted(result));
                open(&self.books.accepted).extend(taken.map(|(id, _)| id));
                if results.iter().all(accepted) { Answer::Accepted } else { Answer::Other }
            }
            Err(status) => {
                let refusal = from_status(&status);
                match refusal.retry_after {
                    Some(wait)
                        if status.code() == Code::ResourceExhausted
                            && refusal.reason == Reason::Overloaded =>
                    {
                        Answer::Refused(wait)
                    }
                    _ => Answer::Other,
                }
            }
        }
    }

    /// The same, until it is accepted.
    pub(super) async fn insist(&self, sender: usize, messages: usize) {
        while let Answer::Refused(wait) = self.call(sender, messages).await {
            tokio::time::sleep(wait).await;
        }
    }

    /// Messages that were accepted.
    pub(super) fn accepted(&self) -> usize {
        open(&self.books.accepted).len()
    }

    /// Waits until all that was accepted has come, or nothing comes any more: how many
    /// messages are missing, and how many came more than once.
    pub(super) async fn settle(&self) -> (usize, usize) {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let arrived = open(&self.books.arrived).len();
            let lost = {
                let arrived = open(&self.books.arrived);
                open(&self.books.accepted).iter().filter(|id| !arrived.contains_key(*id)).count()
            };
            if arrived != last {
                (last, since) = (arrived, Instant::now());
            }
            if lost == 0 || since.elapsed() > PATIENCE {
                let doubled = open(&self.books.arrived).values().filter(|times| **times > 1).count();
                return (lost, doubled);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Reads, and acknowledges beside it.
async fn read(device: Arc<Device>, mut items: Streaming<node::SubscribeResponse>, books: Arc<Books>) {
    let (through, seen) = watch::channel(0);
    tokio::spawn(acknowledge(device, seen));
    while let Ok(Some(item)) = items.message().await {
        if let Some(node::subscribe_response::Item::Delivery(delivery)) = item.item {
            *open(&books.arrived).entry(delivery.message_id).or_default() += 1;
        }
        through.send_replace(item.position);
    }
}

async fn acknowledge(device: Arc<Device>, mut seen: watch::Receiver<u64>) {
    let mut ticks = tokio::time::interval(ACKNOWLEDGE);
    while seen.changed().await.is_ok() {
        ticks.tick().await;
        let through = *seen.borrow_and_update();
        let alias = device.alias.to_wire();
        let request = node::AcknowledgeRequest { alias, through, receipts: Vec::new(), ..Default::default() };
        if device.mailbox().acknowledge(request).await.is_err() {
            seen.mark_changed();
        }
    }
}
