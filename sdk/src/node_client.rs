//! The connection to a home node: calls with deadlines, and proof of the
//! device key on each new connection. Channels connect again on their own, so
//! the node's NOT_AUTHENTICATED is the sign to prove it again; what the node says
//! then is kept for whoever asks. When the account moves, all clones of the client
//! go to the new home.

use chancery_directory_core::statement::Member;
use chancery_kit::status::{call_within, from_status};
use chancery_kit::tls::{Credentials, ExporterHandle, TlsError, connect_lazy, connect_pinned};
use chancery_pki_core::Party;
use chancery_proto::directory::v1 as directory;
use chancery_proto::federation::v1::{AliasKeyPackages, Submission};
use chancery_proto::node::v1::account_service_client::AccountServiceClient;
use chancery_proto::node::v1::blob_service_client::BlobServiceClient;
use chancery_proto::node::v1::broadcast_service_client::BroadcastServiceClient;
use chancery_proto::node::v1::key_package_service_client::KeyPackageServiceClient;
use chancery_proto::node::v1::mailbox_service_client::MailboxServiceClient;
use chancery_proto::node::v1::relay_service_client::RelayServiceClient;
use chancery_proto::node::v1::{self as wire, SubmitResult, SubscribeResponse};
use chancery_types::{Alias, DeviceId, Incarnation, NodeId, Reason, Refusal, SeatId};
use ed25519_dalek::{Signer as _, SigningKey};
use prost::bytes::Bytes;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// Longest that one call may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longest that another node than the home may take.
const OTHER_RELAY: Duration = Duration::from_secs(10);
/// Largest answer: 128 aliases' KeyPackages, or a lookup's places.
const ANSWER_LIMIT: usize = 32 * 1024 * 1024;
/// How often a signature over a connection's exporter is tried, when the
/// connection changes underneath.
const PROOFS: usize = 3;

/// Whom this device is to its node.
pub(crate) struct DeviceProof {
    pub(crate) device: DeviceId,
    pub(crate) key: SigningKey,
}

/// What a node says to a device that proved its key.
#[derive(Clone, Copy)]
pub(crate) struct Greeting {
    /// Names the node's store.
    pub(crate) incarnation: Incarnation,
    /// How often the device had used or made secret keys, when it last said so.
    pub(crate) store_count: u64,
    /// Position of the mailbox up to which it had acknowledged.
    pub(crate) acknowledged: u64,
}

/// One connection to a node, by its TLS exporter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection([u8; 32]);

/// What a node said when a connection was bound to this device.
type Said = (Connection, Arc<wire::AuthenticateResponse>);

/// A home node. Clones go to the same one.
#[derive(Clone)]
pub struct NodeClient {
    at: Arc<RwLock<At>>,
    proof: Arc<DeviceProof>,
    credentials: Arc<Credentials>,
    proving: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct At {
    channel: Channel,
    exporter: ExporterHandle,
    node: NodeId,
    /// What it said on the connection that was bound last.
    said: Arc<Mutex<Option<Said>>>,
}

impl At {
    fn new(endpoint: &str, node: NodeId, credentials: &Arc<Credentials>) -> Result<Self, TlsError> {
        let (channel, exporter) = connect_lazy(endpoint, Party::Node(node.clone()), Arc::clone(credentials))?;
        Ok(Self { channel, exporter, node, said: Arc::default() })
    }

    /// What the node said on the latest connection; `None`: it is not bound.
    fn said(&self) -> Option<Said> {
        let latest = self.exporter.latest().map(Connection);
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone().filter(|(connection, _)| Some(*connection) == latest)
    }

    /// "chancery device auth v1" ‖ 0x00 ‖ node id ‖ 0x00 ‖ device id ‖ TLS exporter.
    fn signature(&self, proof: &DeviceProof, exporter: [u8; 32]) -> Bytes {
        let message = [
            b"chancery device auth v1\0".as_slice(),
            self.node.as_str().as_bytes(),
            b"\0",
            proof.device.as_bytes(),
            &exporter,
        ]
        .concat();
        proof.key.sign(&message).to_bytes().to_vec().into()
    }
}

impl NodeClient {
    /// A client of `node` at `endpoint` (`host:port`); connects with the first call.
    pub(crate) fn new(
        endpoint: &str,
        node: NodeId,
        credentials: Arc<Credentials>,
        proof: DeviceProof,
    ) -> Result<Self, TlsError> {
        let at = Arc::new(RwLock::new(At::new(endpoint, node, &credentials)?));
        Ok(Self { at, proof: Arc::new(proof), credentials, proving: Arc::default() })
    }

    /// A client of another node for the same device.
    pub(crate) fn elsewhere(&self, endpoint: &str, node: NodeId) -> Result<Self, TlsError> {
        let at = Arc::new(RwLock::new(At::new(endpoint, node, &self.credentials)?));
        let (proof, credentials) = (Arc::clone(&self.proof), Arc::clone(&self.credentials));
        Ok(Self { at, proof, credentials, proving: Arc::default() })
    }

    /// A client that stays with this node when its clones go.
    pub(crate) fn staying(&self) -> Self {
        Self { at: Arc::new(RwLock::new(self.at())), ..self.clone() }
    }

    /// This client and its clones are another node's from now on.
    pub(crate) fn go_to(&self, endpoint: &str, node: NodeId) -> Result<(), TlsError> {
        let at = At::new(endpoint, node, &self.credentials)?;
        *self.at.write().unwrap_or_else(PoisonError::into_inner) = at;
        Ok(())
    }

    fn at(&self) -> At {
        self.at.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Blobs of the home node, on an authenticated connection.
    ///
    /// # Errors
    /// The node cannot be reached or does not know the device.
    pub async fn blobs(&self) -> Result<BlobServiceClient<Channel>, Refusal> {
        self.bind(self.bound()).await?;
        Ok(BlobServiceClient::new(self.at().channel))
    }

    /// Makes a call that carries a signature over the connection's exporter. Before
    /// the first connection there is none: the first try then only connects.
    async fn prove<T, F>(
        &self,
        at: &At,
        call: impl Fn(Channel, Bytes) -> F,
    ) -> Result<(Connection, T), Refusal>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut tries = 0;
        loop {
            let exporter = at.exporter.latest();
            tries += 1;
            let signed = exporter.unwrap_or_default();
            match call(at.channel.clone(), at.signature(&self.proof, signed)).await {
                Ok(answer) => return Ok((Connection(signed), answer.into_inner())),
                Err(status) => {
                    let refusal = from_status(&status);
                    let moved = at.exporter.latest() != exporter;
                    if !(refusal.reason == Reason::WrongSignature && moved && tries < PROOFS) {
                        return Err(refusal);
                    }
                }
            }
        }
    }

    /// Opens the account with this device and alias; repeatable.
    pub(crate) async fn open_account(&self, alias: Alias) -> Result<(), Refusal> {
        let device = wire::Device {
            device_id: self.proof.device.to_wire(),
            auth_key: self.proof.key.verifying_key().to_bytes().to_vec().into(),
        };
        self.prove(&self.at(), |channel, signature| {
            let request =
                wire::OpenAccountRequest { device: Some(device.clone()), alias: alias.to_wire(), signature };
            let mut client = AccountServiceClient::new(channel);
            async move { client.open_account(timed(request)).await }
        })
        .await
        .map(drop)
    }

    /// Binds the connection to this device unless it is; what the node said of it and an alias.
    pub(crate) async fn greet(&self, alias: Alias) -> Result<(Connection, Greeting), Refusal> {
        let (connection, answer) = self.bind(None).await?;
        let alias = alias.to_wire();
        let marks = answer.aliases.iter().zip(&answer.acknowledged);
        let acknowledged = marks.filter(|(known, _)| **known == alias).map(|(_, mark)| *mark).max();
        let greeting = Greeting {
            incarnation: Incarnation::try_from(&answer.incarnation)?,
            store_count: answer.store_count,
            acknowledged: acknowledged.unwrap_or(0),
        };
        Ok((connection, greeting))
    }

    /// The latest connection, if it is bound to this device.
    pub(crate) fn bound(&self) -> Option<Connection> {
        self.at().said().map(|(connection, _)| connection)
    }

    /// Binds the connection to this device, unless that was done; on `before` it is done
    /// again, because the node may have ended it.
    async fn bind(&self, before: Option<Connection>) -> Result<Said, Refusal> {
        let _one_at_a_time = self.proving.lock().await;
        let at = self.at();
        if let Some(said) = at.said().filter(|(connection, _)| Some(*connection) != before) {
            return Ok(said);
        }
        let proving = self.prove(&at, |channel, signature| {
            let request = wire::AuthenticateRequest { device_id: self.proof.device.to_wire(), signature };
            let mut client = AccountServiceClient::new(channel);
            async move { client.authenticate(timed(request)).await }
        });
        let (connection, answer) = proving.await?;
        let said = (connection, Arc::new(answer));
        *at.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(said.clone());
        Ok(said)
    }

    /// Makes a call; binds the connection first when the node asks for it.
    async fn call<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, Refusal>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let before = self.bound();
        match call(self.at().channel).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => {
                let refusal = from_status(&status);
                if refusal.reason != Reason::NotAuthenticated {
                    return Err(refusal);
                }
            }
        }
        self.bind(before).await?;
        call(self.at().channel).await.map(Response::into_inner).map_err(|status| from_status(&status))
    }

    pub(crate) async fn add_device(&self, device: DeviceId, auth_key: [u8; 32]) -> Result<(), Refusal> {
        let device = wire::Device { device_id: device.to_wire(), auth_key: auth_key.to_vec().into() };
        self.call(|channel| {
            let request = timed(wire::AddDeviceRequest { device: Some(device.clone()) });
            async move { AccountServiceClient::new(channel).add_device(request).await }
        })
        .await
        .map(drop)
    }

    /// Hubs of an alias's groups behind `after`, up to 1,000.
    pub(crate) async fn list_routes(&self, alias: Alias, after: Bytes) -> Result<Vec<wire::Route>, Refusal> {
        self.call(|channel| {
            let request = timed(wire::ListRoutesRequest { alias: alias.to_wire(), after: after.clone() });
            async move { AccountServiceClient::new(channel).list_routes(request).await }
        })
        .await
        .map(|answer| answer.routes)
    }

    pub(crate) async fn add_routes(&self, alias: Alias, routes: Vec<wire::Route>) -> Result<(), Refusal> {
        self.call(|channel| {
            let request = timed(wire::AddRoutesRequest { alias: alias.to_wire(), routes: routes.clone() });
            async move { AccountServiceClient::new(channel).add_routes(request).await }
        })
        .await
        .map(drop)
    }

    pub(crate) async fn leave_alias(
        &self,
        alias: Alias,
        node: &NodeId,
        routes: u64,
    ) -> Result<wire::LeaveAliasResponse, Refusal> {
        self.call(|channel| {
            let request =
                timed(wire::LeaveAliasRequest { alias: alias.to_wire(), node: node.to_string(), routes });
            async move { AccountServiceClient::new(channel).leave_alias(request).await }
        })
        .await
    }

    pub(crate) async fn publish_key_packages(
        &self,
        request: wire::PublishKeyPackagesRequest,
    ) -> Result<Vec<wire::KeyPackageStock>, Refusal> {
        self.call(|channel| {
            let request = timed(request.clone());
            async move { KeyPackageServiceClient::new(channel).publish_key_packages(request).await }
        })
        .await
        .map(|answer| answer.stock)
    }

    pub(crate) async fn take_key_packages(
        &self,
        addresses: &[(NodeId, Alias)],
        cipher_suites: Vec<u32>,
    ) -> Result<Vec<AliasKeyPackages>, Refusal> {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|(node, alias)| wire::MailboxAddress {
                node: node.as_str().to_owned(),
                alias: alias.to_wire(),
            })
            .collect();
        let wanted = addresses.clone();
        let answer = self
            .call(|channel| {
                let request = timed(wire::TakeKeyPackagesRequest {
                    addresses: addresses.clone(),
                    cipher_suites: cipher_suites.clone(),
                });
                let mut client =
                    KeyPackageServiceClient::new(channel).max_decoding_message_size(ANSWER_LIMIT);
                async move { client.take_key_packages(request).await }
            })
            .await?
            .aliases;
        let in_order = answer.len() == wanted.len()
            && answer.iter().zip(&wanted).all(|(given, wanted)| given.alias == wanted.alias);
        if in_order { Ok(answer) } else { Err(misbehaved("the node answered for other aliases")) }
    }

    pub(crate) async fn submit(
        &self,
        submissions: Vec<Submission>,
        store_count: u64,
    ) -> Result<Vec<SubmitResult>, Refusal> {
        let count = submissions.len();
        let results = self
            .call(|channel| {
                let request = timed(wire::SubmitRequest { submissions: submissions.clone(), store_count });
                async move { MailboxServiceClient::new(channel).submit(request).await }
            })
            .await?
            .results;
        if results.len() == count { Ok(results) } else { Err(misbehaved("the node left out a result")) }
    }

    pub(crate) async fn subscribe(
        &self,
        alias: Alias,
        after: u64,
    ) -> Result<Streaming<SubscribeResponse>, Refusal> {
        // No deadline: it stays open.
        self.call(|channel| async move {
            MailboxServiceClient::new(channel)
                .max_decoding_message_size(ANSWER_LIMIT)
                .subscribe(wire::SubscribeRequest { alias: alias.to_wire(), after })
                .await
        })
        .await
    }

    pub(crate) async fn acknowledge(
        &self,
        alias: Alias,
        incarnation: Incarnation,
        through: u64,
        receipts: Vec<Bytes>,
    ) -> Result<(), Refusal> {
        self.call(|channel| {
            let request = timed(wire::AcknowledgeRequest {
                alias: alias.to_wire(),
                through,
                receipts: receipts.clone(),
                incarnation: incarnation.to_wire(),
            });
            async move { MailboxServiceClient::new(channel).acknowledge(request).await }
        })
        .await
        .map(drop)
    }

    pub(crate) async fn take_seat(&self, request: &wire::TakeSeatRequest) -> Result<(), Refusal> {
        self.call(|channel| {
            let request = timed(request.clone());
            async move { BroadcastServiceClient::new(channel).take_seat(request).await }
        })
        .await
        .map(drop)
    }

    pub(crate) async fn leave_seat(&self, seat: SeatId) -> Result<(), Refusal> {
        self.call(|channel| {
            let request = timed(wire::LeaveSeatRequest { seat_id: seat.to_wire() });
            async move { BroadcastServiceClient::new(channel).leave_seat(request).await }
        })
        .await
        .map(drop)
    }

    pub(crate) async fn count_broadcasts(
        &self,
        request: &wire::CountBroadcastsRequest,
    ) -> Result<(), Refusal> {
        self.call(|channel| {
            let request = timed(request.clone());
            async move { BroadcastServiceClient::new(channel).count_broadcasts(request).await }
        })
        .await
        .map(drop)
    }

    pub(crate) async fn read_seats(
        &self,
        seats: &[wire::SeatPosition],
    ) -> Result<Streaming<wire::ReadSeatsResponse>, Refusal> {
        // No deadline: it stays open.
        self.call(|channel| async move {
            BroadcastServiceClient::new(channel)
                .max_decoding_message_size(ANSWER_LIMIT)
                .read_seats(wire::ReadSeatsRequest { seats: seats.to_vec() })
                .await
        })
        .await
    }

    pub(crate) async fn submit_cells(&self, request: &wire::SubmitCellsRequest) -> Result<(), Refusal> {
        self.call(|channel| {
            let request = timed(request.clone());
            async move { BroadcastServiceClient::new(channel).submit_cells(request).await }
        })
        .await
        .map(drop)
    }

    pub(crate) async fn evaluate(
        &self,
        evaluator: &NodeId,
        request: &directory::EvaluateRequest,
    ) -> Result<directory::EvaluateResponse, Refusal> {
        self.call(|channel| {
            let request = timed(wire::EvaluateRequest {
                evaluator: evaluator.as_str().to_owned(),
                request: Some(request.clone()),
            });
            async move { relay(channel).evaluate(request).await }
        })
        .await?
        .response
        .ok_or_else(|| misbehaved("the node relayed an empty answer"))
    }

    /// Places by roots that come after entry `after`.
    pub(crate) async fn lookup(
        &self,
        prefixes: Vec<Bytes>,
        after: u64,
    ) -> Result<directory::LookupResponse, Refusal> {
        self.call(|channel| {
            let request = directory::LookupRequest { prefixes: prefixes.clone() };
            let request = timed(wire::LookupRequest { request: Some(request), after });
            async move { relay(channel).lookup(request).await }
        })
        .await?
        .response
        .ok_or_else(|| misbehaved("the node relayed an empty answer"))
    }

    pub(crate) async fn publish(
        &self,
        request: &directory::PublishRequest,
    ) -> Result<directory::PublishResponse, Refusal> {
        self.call(|channel| {
            let request = timed(wire::PublishRequest { request: Some(request.clone()) });
            async move { relay(channel).publish(request).await }
        })
        .await?
        .response
        .ok_or_else(|| misbehaved("the node relayed an empty answer"))
    }

    /// The home node's name.
    pub(crate) fn node(&self) -> NodeId {
        self.at.read().unwrap_or_else(PoisonError::into_inner).node.clone()
    }

    /// Has another member's node pass a record operation on, on a connection of its own.
    pub(crate) async fn publish_through(
        member: &Member,
        credentials: Arc<Credentials>,
        request: &directory::PublishRequest,
    ) -> Result<directory::PublishResponse, Refusal> {
        let unreachable = || Refusal::new(Reason::PeerUnreachable, "the member names no endpoint");
        let endpoint = member.endpoints.first().ok_or_else(unreachable)?;
        let party = Party::Node(member.administration.clone());
        let channel = connect_pinned(endpoint, party, member.node_key_pin, credentials)?;
        let request = timed(wire::PublishRequest { request: Some(request.clone()) });
        let message = "another member's node does not answer";
        let mut client = relay(channel);
        let answer = call_within(OTHER_RELAY, client.publish(request), Reason::PeerUnreachable, message);
        answer.await?.response.ok_or_else(|| misbehaved("the node relayed an empty answer"))
    }

    pub(crate) async fn list_statements(&self) -> Result<directory::ListStatementsResponse, Refusal> {
        self.call(|channel| {
            let request = directory::ListStatementsRequest { start: 0 };
            let request = timed(wire::ListStatementsRequest { request: Some(request) });
            async move { relay(channel).list_statements(request).await }
        })
        .await?
        .response
        .ok_or_else(|| misbehaved("the node relayed an empty answer"))
    }

    pub(crate) async fn list_channels(
        &self,
        request: &directory::ListChannelsRequest,
    ) -> Result<directory::ListChannelsResponse, Refusal> {
        self.call(|channel| {
            let request = timed(wire::ListChannelsRequest { request: Some(request.clone()) });
            async move { relay(channel).list_channels(request).await }
        })
        .await?
        .response
        .ok_or_else(|| misbehaved("the node relayed an empty answer"))
    }

    pub(crate) async fn submit_channel(
        &self,
        request: &directory::SubmitChannelRequest,
    ) -> Result<directory::SubmitChannelResponse, Refusal> {
        self.call(|channel| {
            let request = timed(wire::SubmitChannelRequest { request: Some(request.clone()) });
            async move { relay(channel).submit_channel(request).await }
        })
        .await?
        .response
        .ok_or_else(|| misbehaved("the node relayed an empty answer"))
    }

    pub(crate) async fn submit_manifest(
        &self,
        request: &directory::SubmitManifestRequest,
    ) -> Result<directory::SubmitManifestResponse, Refusal> {
        self.call(|channel| {
            let request = timed(wire::SubmitManifestRequest { request: Some(request.clone()) });
            async move { relay(channel).submit_manifest(request).await }
        })
        .await?
        .response
        .ok_or_else(|| misbehaved("the node relayed an empty answer"))
    }

    pub(crate) async fn prove_consistency(
        &self,
        old_size: u64,
        new_size: u64,
    ) -> Result<Vec<Bytes>, Refusal> {
        let answer = self
            .call(|channel| {
                let request = directory::ProveConsistencyRequest { old_size, new_size };
                let request = timed(wire::ProveConsistencyRequest { request: Some(request) });
                async move { relay(channel).prove_consistency(request).await }
            })
            .await?
            .response;
        Ok(answer.ok_or_else(|| misbehaved("the node relayed an empty answer"))?.path)
    }
}

fn relay(channel: Channel) -> RelayServiceClient<Channel> {
    RelayServiceClient::new(channel).max_decoding_message_size(ANSWER_LIMIT)
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn misbehaved(message: &'static str) -> Refusal {
    Refusal::new(Reason::PeerMisbehaved, message)
}
