//! Callers of nodes that keep to no rules: a device that says what it likes,
//! and a peer that drives its link by hand.

use crate::mesh::{Mesh, id};
use crate::wait::{success, until};
use bytes::Bytes;
use chancery_kit::status::from_status;
use chancery_kit::tls::{Credentials, connect};
use chancery_pki_core::Party;
use chancery_proto::federation::v1 as federation;
use chancery_proto::federation::v1::federation_service_client::FederationServiceClient;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::account_service_client::AccountServiceClient;
use chancery_proto::node::v1::key_package_service_client::KeyPackageServiceClient;
use chancery_proto::node::v1::mailbox_service_client::MailboxServiceClient;
use chancery_types::{Alias, DeviceId, GroupId, Incarnation, MessageId, Reason, Refusal};
use ed25519_dalek::{Signer as _, SigningKey};
use rusqlite::OpenFlags;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a call was refused for, or what it gave.
///
/// # Errors
/// The refusal.
pub fn answer<T>(result: Result<Response<T>, Status>) -> Result<T, Refusal> {
    result.map(Response::into_inner).map_err(|status| from_status(&status))
}

/// A connection, and the proof that a device holds its key, good for it alone.
pub struct Proof {
    /// The connection.
    pub channel: Channel,
    /// The proof.
    pub request: wire::AuthenticateRequest,
}

/// A device on an authenticated connection, in nobody's hands.
pub struct Rogue {
    /// The connection, bound to the device.
    pub channel: Channel,
    /// Its alias.
    pub alias: Alias,
    /// Its device id.
    pub device: DeviceId,
}

impl Rogue {
    /// Opens an account of its own.
    pub async fn new(mesh: &Mesh, node: &str) -> Self {
        let key = SigningKey::from_bytes(&mesh.entropy.array());
        let (alias, device) = (Alias::random(&*mesh.entropy), DeviceId::random(&*mesh.entropy));
        let (channel, signature) = Self::connect(mesh, node, device, &key).await;
        let request = wire::OpenAccountRequest {
            device: Some(wire::Device {
                device_id: device.to_wire(),
                auth_key: Bytes::copy_from_slice(key.verifying_key().as_bytes()),
            }),
            alias: alias.to_wire(),
            signature,
        };
        AccountServiceClient::new(channel.clone()).open_account(request).await.unwrap();
        Self { channel, alias, device }
    }

    /// Takes over the keys of a device from its store, which nobody has open
    /// any more.
    pub async fn from_store(mesh: &Mesh, node: &str, store: &Path) -> Self {
        let (alias, proof) = Self::proof(mesh, node, store).await;
        let device = DeviceId::try_from(&proof.request.device_id).unwrap();
        AccountServiceClient::new(proof.channel.clone()).authenticate(proof.request).await.unwrap();
        Self { channel: proof.channel, alias, device }
    }

    /// As [`Rogue::from_store`], but only makes the proof, for a connection that
    /// is not bound yet.
    pub async fn proof(mesh: &Mesh, node: &str, store: &Path) -> (Alias, Proof) {
        let (alias, device, seed) = success("the store is free", async || keys(store)).await;
        let device = DeviceId::from_bytes(device);
        let (channel, signature) = Self::connect(mesh, node, device, &SigningKey::from_bytes(&seed)).await;
        let request = wire::AuthenticateRequest { device_id: device.to_wire(), signature };
        (Alias::from_bytes(alias), Proof { channel, request })
    }

    async fn connect(mesh: &Mesh, node: &str, device: DeviceId, key: &SigningKey) -> (Channel, Bytes) {
        let address = &mesh.nodes[node].address;
        let (channel, exporter) = connect(address, Party::Node(id(node)), mesh.anonymous()).await.unwrap();
        let exporter = exporter.latest().unwrap();
        let context = b"chancery device auth v1\0".as_slice();
        let signed = [context, node.as_bytes(), b"\0", device.as_bytes(), &exporter].concat();
        (channel, Bytes::copy_from_slice(&key.sign(&signed).to_bytes()))
    }

    /// Submits one message; gives the hub's outcome, or the refusal of the whole call.
    ///
    /// # Errors
    /// The refusal.
    pub async fn submit(
        &self,
        submission: federation::Submission,
    ) -> Result<wire::submit_result::Result, Refusal> {
        let request = wire::SubmitRequest { submissions: vec![submission], store_count: 0 };
        let answer = answer(MailboxServiceClient::new(self.channel.clone()).submit(request).await)?;
        Ok(answer.results.into_iter().next().unwrap().result.unwrap())
    }

    /// A submission to a group, with bytes that are no MLS message.
    pub fn submission(&self, mesh: &Mesh, group: GroupId, epoch: u64) -> federation::Submission {
        federation::Submission {
            message_id: mesh.entropy.message_id(&*mesh.clock).to_wire(),
            group_id: group.to_wire(),
            sender: self.alias.to_wire(),
            sender_device: self.device.to_wire(),
            epoch,
            expires_at_ms: mesh.clock.now().after(Duration::from_secs(3600)).millis(),
            body: Some(federation::submission::Body::Application(Bytes::from_static(b"no MLS message"))),
            ..federation::Submission::default()
        }
    }

    /// Takes KeyPackages of an alias.
    ///
    /// # Errors
    /// The refusal.
    pub async fn take_key_packages(
        &self,
        node: &str,
        alias: Alias,
        suite: u32,
    ) -> Result<Vec<Bytes>, Refusal> {
        let request = wire::TakeKeyPackagesRequest {
            addresses: vec![wire::MailboxAddress { node: node.to_owned(), alias: alias.to_wire() }],
            cipher_suites: vec![suite],
        };
        let mut client = KeyPackageServiceClient::new(self.channel.clone());
        let answer = answer(client.take_key_packages(request).await)?;
        Ok(answer.aliases.into_iter().next().unwrap().key_packages)
    }

    /// Publishes KeyPackages for an alias, whoever made them.
    ///
    /// # Errors
    /// The refusal.
    pub async fn publish_key_packages(&self, alias: Alias, one_time: Vec<Bytes>) -> Result<(), Refusal> {
        let request =
            wire::PublishKeyPackagesRequest { alias: alias.to_wire(), one_time, ..Default::default() };
        let mut client = KeyPackageServiceClient::new(self.channel.clone());
        answer(client.publish_key_packages(request).await).map(drop)
    }
}

type Keys = ([u8; 16], [u8; 16], [u8; 32]);

fn keys(store: &Path) -> rusqlite::Result<Keys> {
    let store = rusqlite::Connection::open_with_flags(store, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    store.query_row("SELECT alias, device, auth_seed FROM identity", [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })
}

/// A link to a node, opened by hand.
pub struct HandLink {
    frames: mpsc::Sender<federation::LinkRequest>,
    answers: Streaming<federation::LinkResponse>,
    sequence: u64,
}

impl HandLink {
    /// As [`HandLink::open`], of a member that the node has still to hear of: it
    /// asks the log about unknown callers once a second at most.
    pub async fn of_new_member(mesh: &Mesh, node: &str, credentials: &Arc<Credentials>) -> Self {
        let mut link = None;
        until("the member is known", async || {
            match Self::open(mesh, node, Arc::clone(credentials)).await {
                Ok(open) => link = Some(open),
                Err(refusal) => assert_eq!(refusal.reason, Reason::NotAMember),
            }
            link.is_some()
        })
        .await;
        link.unwrap()
    }

    /// Opens a link to a node with these credentials, and says Hello.
    ///
    /// # Errors
    /// The refusal.
    pub async fn open(mesh: &Mesh, node: &str, credentials: Arc<Credentials>) -> Result<Self, Refusal> {
        let channel = mesh.channel(node, credentials).await;
        let (frames, requests) = mpsc::channel(8);
        let hello = federation::Hello {
            version_min: 1,
            version_max: 1,
            incarnation: Incarnation::from_bytes([7; 16]).to_wire(),
        };
        frames.send(frame(federation::link_request::Frame::Hello(hello))).await.unwrap();
        let mut client = FederationServiceClient::new(channel);
        let answers = answer(client.link(ReceiverStream::new(requests)).await)?;
        let mut link = Self { frames, answers, sequence: 0 };
        match link.next().await? {
            federation::link_response::Frame::HelloAck(_) => Ok(link),
            federation::link_response::Frame::Ack(_) => panic!("an Ack before HelloAck"),
        }
    }

    /// Hands one parcel over; gives the reason why it is not accepted.
    ///
    /// # Errors
    /// The link's end.
    pub async fn hand_over(&mut self, parcel: federation::parcel::Parcel) -> Result<Option<String>, Refusal> {
        self.sequence += 1;
        let batch = federation::Batch {
            first_sequence: self.sequence,
            parcels: vec![federation::Parcel { parcel: Some(parcel) }],
        };
        self.frames.send(frame(federation::link_request::Frame::Batch(batch))).await.unwrap();
        match self.next().await? {
            federation::link_response::Frame::Ack(ack) => {
                assert_eq!(ack.sequence, self.sequence);
                Ok(ack.refusals.into_iter().next().map(|refusal| refusal.reason))
            }
            federation::link_response::Frame::HelloAck(_) => panic!("a second HelloAck"),
        }
    }

    async fn next(&mut self) -> Result<federation::link_response::Frame, Refusal> {
        let next = timeout(DEADLINE, self.answers.message()).await.expect("no answer on the link");
        Ok(next.map_err(|status| from_status(&status))?.expect("the link ended").frame.unwrap())
    }
}

fn frame(frame: federation::link_request::Frame) -> federation::LinkRequest {
    federation::LinkRequest { frame: Some(frame) }
}

/// A delivery of a group's message, as its hub would make it.
pub fn delivery(mesh: &Mesh, group: GroupId, recipient: Alias) -> federation::Delivery {
    federation::Delivery {
        message_id: MessageId::random(&*mesh.entropy).to_wire(),
        group_id: group.to_wire(),
        sequence: 9,
        chain: Bytes::from_static(&[1; 32]),
        epoch: 1,
        expires_at_ms: mesh.clock.now().after(Duration::from_secs(3600)).millis(),
        recipients: vec![recipient.to_wire()],
        body: Some(federation::delivery::Body::Application(Bytes::from_static(b"no MLS message"))),
        ..federation::Delivery::default()
    }
}
