//! A member's node that keeps to no rules when others hand parcels to it: it never
//! acknowledges, acknowledges what was never sent, or sends noise.

use crate::mesh::{Place, id};
use chancery_kit::serve::{STREAMS, serve};
use chancery_kit::tls::{ConnectionInfo, Credentials, Limits, incoming};
use chancery_pki_core::Party;
use chancery_proto::federation::v1::federation_service_server::{FederationService, FederationServiceServer};
use chancery_proto::federation::v1::{self as wire, link_request, link_response};
use chancery_types::{Entropy, Incarnation};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status, Streaming};

/// What it does on one link.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// Says hello, and never acknowledges.
    Silent,
    /// Says hello twice.
    SecondHello,
    /// Acknowledges more than there was.
    TooMuch,
    /// Answers with frames that hold nothing.
    Empty,
    /// Acknowledges what came.
    Honest,
}

/// What it saw.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// A link was opened.
    Link,
    /// Parcels came.
    Parcels(usize),
}

/// The node; stops when it is dropped.
pub struct HostileNode {
    seen: mpsc::UnboundedReceiver<Seen>,
    _stop: DropGuard,
}

impl HostileNode {
    /// Serves links of the node of `victim`, each in the next manner; the last one goes on.
    /// To everybody else it is honest, and does not tell.
    pub fn start(place: Place, credentials: Arc<Credentials>, victim: &str, manners: &[Manner]) -> Self {
        let (seen, events) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let connections = incoming(place.into_listener(), credentials, Limits::default()).unwrap();
        let mut routes = RoutesBuilder::default();
        let manners = Mutex::new(manners.iter().copied().collect());
        let victim = Party::Node(id(victim));
        routes.add_service(FederationServiceServer::new(Links { victim, manners, seen }));
        let stopped = stop.clone();
        tokio::spawn(async move { serve(connections, routes, STREAMS, stopped).await });
        Self { seen: events, _stop: stop.drop_guard() }
    }

    /// The next thing that it sees.
    pub async fn sees(&mut self) -> Seen {
        self.seen.recv().await.unwrap()
    }

    /// What it saw that was not asked for yet.
    pub fn saw(&mut self) -> Option<Seen> {
        self.seen.try_recv().ok()
    }
}

/// Sends noise to whoever connects, once TLS is done; tells of each. Ends with the receiver.
pub fn noise(place: Place, credentials: Arc<Credentials>, entropy: Arc<dyn Entropy>) -> mpsc::Receiver<()> {
    let mut connections = incoming(place.into_listener(), credentials, Limits::default()).unwrap();
    let (heard, callers) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(connection) = connections.next().await {
            let Ok(mut connection) = connection else { continue };
            let bytes = entropy.array::<4096>();
            // Callers hang up when they have heard enough.
            let _ = connection.write_all(&bytes).await;
            let _ = connection.flush().await;
            if heard.send(()).await.is_err() {
                return;
            }
        }
    });
    callers
}

struct Links {
    victim: Party,
    manners: Mutex<VecDeque<Manner>>,
    seen: mpsc::UnboundedSender<Seen>,
}

type Answers = mpsc::Sender<Result<wire::LinkResponse, Status>>;

#[tonic::async_trait]
impl FederationService for Links {
    type LinkStream = ReceiverStream<Result<wire::LinkResponse, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let connection = request.extensions().get::<ConnectionInfo>().unwrap();
        let is_victim = connection.peer.as_ref().is_some_and(|peer| *peer.party() == self.victim);
        let (answers, stream) = mpsc::channel(16);
        let (manner, seen) = if is_victim {
            let mut manners = self.manners.lock().unwrap();
            let manner = if manners.len() > 1 { manners.pop_front() } else { manners.front().copied() };
            (manner.unwrap(), self.seen.clone())
        } else {
            (Manner::Honest, mpsc::unbounded_channel().0)
        };
        let _ = seen.send(Seen::Link);
        tokio::spawn(answer(manner, request.into_inner(), answers, seen));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch_key_packages(
        &self,
        _: Request<wire::FetchKeyPackagesRequest>,
    ) -> Result<Response<wire::FetchKeyPackagesResponse>, Status> {
        Err(Status::unimplemented("nobody lives here"))
    }

    type ReadBlobStream = ReceiverStream<Result<wire::ReadBlobResponse, Status>>;

    async fn read_blob(
        &self,
        _: Request<wire::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadBlobStream>, Status> {
        Err(Status::unimplemented("nothing is kept here"))
    }
}

async fn answer(
    manner: Manner,
    mut frames: Streaming<wire::LinkRequest>,
    answers: Answers,
    seen: mpsc::UnboundedSender<Seen>,
) {
    let hello = || {
        link_response::Frame::HelloAck(wire::HelloAck {
            version: 1,
            incarnation: Incarnation::from_bytes([9; 16]).to_wire(),
            credit_bytes: 16 * 1024 * 1024,
        })
    };
    let ack = |sequence| link_response::Frame::Ack(wire::Ack { sequence, refusals: Vec::new() });
    while let Ok(Some(frame)) = frames.message().await {
        let frame = match frame.frame {
            Some(link_request::Frame::Hello(_)) => Some(hello()),
            Some(link_request::Frame::Batch(batch)) => {
                let _ = seen.send(Seen::Parcels(batch.parcels.len()));
                let last = batch.first_sequence + batch.parcels.len() as u64 - 1;
                match manner {
                    Manner::Silent => continue,
                    Manner::SecondHello => Some(hello()),
                    Manner::TooMuch => Some(ack(last + 1)),
                    Manner::Empty => None,
                    Manner::Honest => Some(ack(last)),
                }
            }
            None => return,
        };
        if answers.send(Ok(wire::LinkResponse { frame })).await.is_err() {
            return;
        }
    }
}
