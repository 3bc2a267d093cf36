//! A device that speaks the client API with fabricated messages: the node
//! checks their frames and never their content, so that a relay can be
//! measured without MLS.

use crate::Failure;
use bytes::Bytes;
use chancery_directory_core::SigningKey;
use chancery_kit::tls::{Credentials, connect};
use chancery_pki_core::Party;
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_proto::node::v1::account_service_client::AccountServiceClient;
use chancery_proto::node::v1::mailbox_service_client::MailboxServiceClient;
use chancery_types::{
    Alias, Clock, DeviceId, Entropy, GroupId, MessageId, NodeId, SystemClock, SystemEntropy,
};
use ed25519_dalek::Signer as _;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

/// Largest answer, in bytes.
const MAX_MESSAGE: usize = 8 * 1024 * 1024;
/// How long an envelope lives.
const LIFE: Duration = Duration::from_hours(1);

/// An account on a node, with its connection.
pub(super) struct Device {
    pub(super) alias: Alias,
    pub(super) node: NodeId,
    id: DeviceId,
    key: SigningKey,
    channel: Channel,
}

impl Device {
    /// Opens an account with one device and one alias.
    pub(super) async fn open(
        endpoint: &str,
        home: NodeId,
        credentials: Arc<Credentials>,
    ) -> Result<Self, Failure> {
        let entropy: &dyn Entropy = &SystemEntropy;
        let key = SigningKey::from_bytes(&entropy.array());
        let (id, alias) = (DeviceId::random(entropy), Alias::random(entropy));
        let (channel, signature) = prove(endpoint, &home, credentials, (id, &key)).await?;
        let device = node::Device {
            device_id: id.to_wire(),
            auth_key: Bytes::copy_from_slice(key.verifying_key().as_bytes()),
        };
        let request = node::OpenAccountRequest { device: Some(device), alias: alias.to_wire(), signature };
        AccountServiceClient::new(channel.clone()).open_account(request).await.map_err(Failure::call)?;
        Ok(Self { alias, node: home, id, key, channel })
    }

    /// Connects anew and proves its key.
    pub(super) async fn come_back(
        &mut self,
        endpoint: &str,
        credentials: Arc<Credentials>,
    ) -> Result<(), Failure> {
        let (channel, signature) = prove(endpoint, &self.node, credentials, (self.id, &self.key)).await?;
        let request = node::AuthenticateRequest { device_id: self.id.to_wire(), signature };
        AccountServiceClient::new(channel.clone()).authenticate(request).await.map_err(Failure::call)?;
        self.channel = channel;
        Ok(())
    }

    /// Its mailbox.
    pub(super) fn mailbox(&self) -> MailboxServiceClient<Channel> {
        MailboxServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    /// Submits a batch; every submission must be accepted.
    pub(super) async fn submit(&self, submissions: Vec<wire::Submission>) -> Result<(), Failure> {
        let request = node::SubmitRequest { submissions, store_count: 0 };
        let response = self.mailbox().submit(request).await.map_err(Failure::call)?.into_inner();
        if response.results.iter().all(accepted) { Ok(()) } else { Err(Failure::NotAllArrived) }
    }

    /// A commit that opens a group with an alias of a node.
    pub(super) fn opening(&self, group: GroupId, alias: Alias, node: &NodeId) -> wire::Submission {
        let reference = [5; 32];
        // One EncryptedGroupSecrets: reference, empty KEM output and ciphertext.
        let part = [&[32][..], &reference, &[1, 0], &[1, 0]].concat();
        let length = u8::try_from(part.len()).unwrap_or(0);
        let welcome = [&[0, 1, 0, 3, 0, 1, length][..], &part, &[1, 0]].concat();
        let join = wire::Join {
            alias: alias.to_wire(),
            node: node.to_string(),
            key_package_refs: vec![Bytes::copy_from_slice(&reference)],
        };
        let commit = wire::Commit {
            mls_commit: private_message(&group, 0, 3, 16),
            welcome: welcome.into(),
            joins: vec![join],
            leaves: Vec::new(),
        };
        self.submission(group, 0, wire::submission::Body::Commit(commit))
    }

    /// An application message with that many bytes of ciphertext.
    pub(super) fn message(&self, group: GroupId, bytes: usize) -> wire::Submission {
        let message = private_message(&group, 1, 1, bytes);
        self.submission(group, 1, wire::submission::Body::Application(message))
    }

    fn submission(&self, group: GroupId, epoch: u64, body: wire::submission::Body) -> wire::Submission {
        let entropy: &dyn Entropy = &SystemEntropy;
        let id: MessageId = entropy.message_id(&SystemClock);
        wire::Submission {
            message_id: id.to_wire(),
            group_id: group.to_wire(),
            sender: self.alias.to_wire(),
            sender_device: self.id.to_wire(),
            epoch,
            expires_at_ms: SystemClock.now().after(LIFE).millis(),
            body: Some(body),
            ..Default::default()
        }
    }
}

/// Whether the hub accepted a submission.
pub(super) fn accepted(result: &node::SubmitResult) -> bool {
    let Some(node::submit_result::Result::Outcome(outcome)) = &result.result else { return false };
    matches!(outcome.decision, Some(wire::outcome::Decision::Accepted(_)))
}

/// A connection, and a device's proof that holds on it.
async fn prove(
    endpoint: &str,
    home: &NodeId,
    credentials: Arc<Credentials>,
    (id, key): (DeviceId, &SigningKey),
) -> Result<(Channel, Bytes), Failure> {
    let (channel, exporter) = connect(endpoint, Party::Node(home.clone()), credentials).await?;
    let exporter = exporter.latest().ok_or(Failure::Stopped)?;
    let context = b"chancery device auth v1\0".as_slice();
    let signed = [context, home.as_str().as_bytes(), b"\0", id.as_bytes(), &exporter].concat();
    Ok((channel, Bytes::copy_from_slice(&key.sign(&signed).to_bytes())))
}

/// The frame of a PrivateMessage (RFC 9420, section 6.3) around zeroes.
fn private_message(group: &GroupId, epoch: u64, content_type: u8, ciphertext: usize) -> Bytes {
    // Variable-size vector headers, RFC 9420 section 2.1.2; no bench goes beyond two bytes.
    let length = match u16::try_from(ciphertext).unwrap_or(0x3fff) {
        short @ 0..=0x3f => short.to_be_bytes()[1..].to_vec(),
        long => (long | 0x4000).to_be_bytes().to_vec(),
    };
    [
        &[0, 1, 0, 2, 32][..],
        group.as_bytes(),
        &epoch.to_be_bytes(),
        &[content_type, 0, 0],
        &length,
        &vec![0; ciphertext],
    ]
    .concat()
    .into()
}
