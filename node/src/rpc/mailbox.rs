//! `chancery.node.v1.MailboxService`.

use super::Rooms;
use super::account::internal;
use super::session::{self, Session};
use crate::lane::Lane;
use crate::store::{NodeStore, account, mailbox};
use chancery_kit::serve::{refused, unary};
use chancery_node_core::mailbox::{Acknowledgement, acknowledge};
use chancery_node_core::parcel::{MAX_RECEIPT, Submission, limit};
use chancery_node_core::submit;
use chancery_proto::content::v1 as content;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::mailbox_service_server::MailboxService;
use chancery_types::{Alias, DeviceId, MessageId, Reason, Refusal};
use prost::Message as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

const MAX_SUBMISSIONS: usize = 128;
const MAX_RECEIPTS: usize = 256;
/// Bytes that weigh as much as a submission does by itself.
const HEAVY: usize = 8 * 1024;
/// Items read from the store at once.
const READ: usize = 128;
/// Items that wait for a slow device.
const READY: usize = 8;

/// Open subscriptions: at most one for each device and alias.
pub(crate) type Subscriptions = Mutex<HashMap<(DeviceId, Alias), CancellationToken>>;

pub(super) struct Mailboxes(pub(super) Arc<Rooms>);

#[tonic::async_trait]
impl MailboxService for Mailboxes {
    async fn submit(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<Response<wire::SubmitResponse>, Status> {
        unary(self.submit_all(request)).await
    }

    type SubscribeStream = ReceiverStream<Result<wire::SubscribeResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let open = || {
            let session = session::device(&request)?;
            let alias = Alias::try_from(&request.get_ref().alias)?;
            session.own(&alias)?;
            Ok::<_, Refusal>((session, alias))
        };
        let (session, alias) = open().map_err(|refusal| refused(&refusal))?;
        let (items, stream) = mpsc::channel(READY);
        let subscription =
            Subscription { rooms: Arc::clone(&self.0), session, alias, after: request.get_ref().after };
        tokio::spawn(subscription.run(items));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn acknowledge(
        &self,
        request: Request<wire::AcknowledgeRequest>,
    ) -> Result<Response<wire::AcknowledgeResponse>, Status> {
        unary(async {
            let session = session::device(&request)?;
            let message = request.into_inner();
            let alias = Alias::try_from(&message.alias)?;
            session.own(&alias)?;
            let here = self.0.store.incarnation().to_wire();
            if !message.incarnation.is_empty() && message.incarnation != here {
                let message = "the node's store was restored; authenticate, and compare what it says";
                return Err(Refusal::new(Reason::NotAuthenticated, message));
            }
            let (device, through) = (session.device, message.through);
            let receipts = receipts(message.receipts)?;
            let acknowledgement = || Acknowledgement { alias, device, through, receipts: receipts.clone() };
            let lane = &self.0.lanes.acknowledge;
            while lane.call(device, 1, acknowledgement()).await? < through {}
            Ok(wire::AcknowledgeResponse {})
        })
        .await
    }
}

/// Receipts by message. What else they say is between the device and the sender.
fn receipts(receipts: Vec<bytes::Bytes>) -> Result<HashMap<MessageId, bytes::Bytes>, Refusal> {
    limit("receipts", receipts.len(), MAX_RECEIPTS)?;
    let mut by_message = HashMap::with_capacity(receipts.len());
    for bytes in receipts {
        limit("receipt", bytes.len(), MAX_RECEIPT)?;
        let malformed = |_| Refusal::field("a receipt does not parse");
        let signed = content::SignedDeliveryReceipt::decode(bytes.as_ref()).map_err(malformed)?;
        let receipt = content::DeliveryReceipt::decode(signed.receipt).map_err(malformed)?;
        by_message.insert(MessageId::try_from(&receipt.message_id)?, bytes);
    }
    Ok(by_message)
}

/// Submissions of a device, and how often it has used or made secret keys.
struct Call {
    device: DeviceId,
    store_count: u64,
    submissions: Vec<Submission>,
}

/// Calls of devices that are worked on together.
pub(crate) struct Lanes {
    submit: Lane<Call, Vec<submit::Submitted>>,
    acknowledge: Lane<Acknowledgement, u64>,
}

impl Lanes {
    pub(crate) fn start(store: &NodeStore) -> Self {
        Self {
            submit: Lane::start(store.clone(), "node.submission.submit", |tx, calls| {
                Box::pin(async move {
                    let counts: Vec<_> = calls.iter().map(|call| (call.device, call.store_count)).collect();
                    account::raise_counts(tx, &counts).await?;
                    let submissions: Vec<_> = calls.iter().map(|call| &*call.submissions).collect();
                    submit::submit_calls(tx, &submissions).await
                })
            }),
            acknowledge: Lane::start(store.clone(), "node.mailbox.acknowledge", |tx, calls| {
                Box::pin(async move { acknowledge(tx, &calls).await })
            }),
        }
    }
}

impl Mailboxes {
    async fn submit_all(
        &self,
        request: Request<wire::SubmitRequest>,
    ) -> Result<wire::SubmitResponse, Refusal> {
        let session = session::device(&request)?;
        let wire::SubmitRequest { submissions: messages, store_count } = request.into_inner();
        limit("submissions", messages.len(), MAX_SUBMISSIONS)?;
        if messages.is_empty() {
            return Err(Refusal::field("submissions is empty"));
        }
        let now = self.0.store.now();
        let bytes: usize = messages.iter().map(prost::Message::encoded_len).sum();
        let weight = (messages.len() + bytes / HEAVY) as u64;
        let submissions = messages
            .into_iter()
            .map(|message| permitted(&session, Submission::from_wire(message, now)?))
            .collect::<Result<Vec<_>, Refusal>>()?;
        let call = Call { device: session.device, store_count, submissions };
        let results = self.0.lanes.submit.call(session.device, weight, call).await?;
        let result = |result| wire::SubmitResult {
            result: Some(match result {
                submit::Submitted::Decided(outcome) => wire::submit_result::Result::Outcome(outcome),
                submit::Submitted::Queued => wire::submit_result::Result::Queued(true),
            }),
        };
        Ok(wire::SubmitResponse { results: results.into_iter().map(result).collect() })
    }
}

fn permitted(session: &Session, submission: Submission) -> Result<Submission, Refusal> {
    session.own(&submission.sender)?;
    if submission.sender_device == session.device {
        Ok(submission)
    } else {
        Err(Refusal::new(Reason::WrongIdentity, "sender_device is not the calling device"))
    }
}

/// Why a device's stream ends: it was removed, or the node stops.
pub(super) async fn ended(removed: &CancellationToken, shutdown: &CancellationToken) -> Refusal {
    tokio::select! {
        () = removed.cancelled() => {
            Refusal::new(Reason::NotAuthenticated, "the device was removed from its account")
        }
        () = shutdown.cancelled() => {
            Refusal::new(Reason::ShuttingDown, "the node is restarting; subscribe again")
        }
    }
}

struct Subscription {
    rooms: Arc<Rooms>,
    session: Arc<Session>,
    alias: Alias,
    after: u64,
}

impl Subscription {
    async fn run(mut self, items: mpsc::Sender<Result<wire::SubscribeResponse, Status>>) {
        let (replaced, shutdown) = (self.replace(), self.rooms.shutdown.clone());
        let removed = self.session.ended.clone();
        let end = tokio::select! {
            result = self.stream(&items) => result,
            () = replaced.cancelled() => {
                Err(Refusal::new(Reason::SubscriptionReplaced, "a newer subscription of this device took over"))
            }
            end = ended(&removed, &shutdown) => Err(end),
            () = items.closed() => Ok(()),
        };
        replaced.cancel();
        if let Err(refusal) = end {
            let _ = items.send(Err(refused(&refusal))).await;
        }
    }

    /// Ends an older subscription of the same device and takes its place.
    fn replace(&self) -> CancellationToken {
        let own = CancellationToken::new();
        let mut open = self.rooms.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, subscription| !subscription.is_cancelled());
        if let Some(older) = open.insert((self.session.device, self.alias), own.clone()) {
            older.cancel();
        }
        own
    }

    async fn stream(
        &mut self,
        items: &mpsc::Sender<Result<wire::SubscribeResponse, Status>>,
    ) -> Result<(), Refusal> {
        // Listens before it looks, so that nothing falls between.
        let arrived = self.rooms.store.wake().alias(self.alias);
        loop {
            let found =
                mailbox::read(&self.rooms.store, self.alias, self.session.device, self.after, READ).await;
            let (found, more) = found.map_err(internal)?;
            for item in found {
                self.after = item.position;
                if items.send(Ok(item)).await.is_err() {
                    return Ok(());
                }
            }
            if !more {
                arrived.notified().await;
            }
        }
    }
}
