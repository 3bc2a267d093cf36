//! Asks all endpoints what their stores hold: devices over their standard input, agents
//! as any caller of `chancery.agent.v1` does.

use super::account::{Account, End, Received, Sent, Store, digest};
use super::device::ACCOUNT;
use super::found::Founded;
use super::load::agent_name;
use crate::Failure;
use crate::local::layout::ADMINISTRATIONS;
use crate::local::mailing_run;
use chancery_proto::agent::v1 as agent;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tonic::Status;
use tonic::transport::Channel;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all stores hold.
#[derive(Default)]
pub(super) struct Stores {
    /// By number of the administration.
    pub(super) agents: Vec<Store>,
    /// By number.
    pub(super) residents: BTreeMap<usize, Store>,
    /// Whether everybody answered.
    pub(super) complete: bool,
}

/// Reads stores, and remembers what it has read of agents'.
pub(super) struct Reader {
    agents: Vec<Agent>,
}

impl Reader {
    /// # Errors
    /// An agent's address is none.
    pub(super) fn new(founded: &Founded) -> Result<Self, Failure> {
        let agent = |number| {
            let endpoint = format!("http://{}", founded.layout.address(&agent_name(number)));
            Ok(Agent {
                client: mailing_run::client(&endpoint)?,
                letters: Vec::new(),
                sent: BTreeMap::new(),
                read: (0, 0),
            })
        };
        Ok(Self { agents: (0..ADMINISTRATIONS.len()).map(agent).collect::<Result<_, Failure>>()? })
    }

    /// What they hold now.
    pub(super) async fn read(&mut self, founded: &Founded) -> Stores {
        let mut stores = Stores { complete: true, ..Stores::default() };
        for (number, agent) in self.agents.iter_mut().enumerate() {
            let read = tokio::time::timeout(PATIENCE, agent.catch_up()).await;
            stores.complete &= matches!(read, Ok(Ok(())));
            stores.agents.push(agent.store(number));
        }
        for party in founded.parties.0.iter().filter(|party| party.kind == "device") {
            let answer = party.ask(ACCOUNT, PATIENCE).await;
            match answer.and_then(|line| serde_json::from_str::<Account>(&line).ok()) {
                Some(account) => {
                    stores.residents.extend(account.residents.into_iter().map(|store| (store.number, store)));
                }
                None => stores.complete = false,
            }
        }
        stores
    }
}

/// An agent's store, as far as it was read.
struct Agent {
    client: AgentServiceClient<Channel>,
    letters: Vec<Letter>,
    /// By message.
    sent: BTreeMap<String, Sent>,
    /// Positions of inbox and events.
    read: (u64, u64),
}

struct Letter {
    received: Received,
    attachments: usize,
}

impl Agent {
    fn store(&self, number: usize) -> Store {
        let letters = self.letters.iter().map(|letter| letter.received.clone()).collect();
        Store { number, letters, sent: self.sent.values().cloned().collect(), ..Store::default() }
    }

    async fn catch_up(&mut self) -> Result<(), Status> {
        let request = agent::InboxRequest { after: self.read.0, drain: true };
        let mut inbox = self.client.inbox(request).await?.into_inner();
        while let Some(letter) = inbox.next().await {
            let letter = letter?;
            self.read.0 = letter.position;
            let attachments = letter.attachments.len();
            let received = Received {
                message: letter.message_id,
                thread: letter.thread_id,
                answers: Some(letter.in_reply_to).filter(|answered| !answered.is_empty()),
                digest: digest(letter.markdown.as_bytes()),
                files: (attachments == 0).then(Vec::new),
            };
            self.letters.push(Letter { received, attachments });
        }
        let request = agent::EventsRequest { after: self.read.1, drain: true };
        let mut events = self.client.events(request).await?.into_inner();
        while let Some(event) = events.next().await {
            let event = event?;
            self.read.1 = event.position;
            self.note(&event);
        }
        for letter in self.letters.iter_mut().filter(|letter| letter.received.files.is_none()) {
            let mut digests = Vec::with_capacity(letter.attachments);
            for index in (0..).take(letter.attachments) {
                let message_id = letter.received.message.clone();
                digests.push(attachment(&mut self.client, message_id, index).await?);
            }
            letter.received.files = Some(digests);
        }
        Ok(())
    }

    fn note(&mut self, event: &agent::EventsResponse) {
        let sent = self.sent.entry(event.message_id.clone()).or_default();
        sent.message.clone_from(&event.message_id);
        sent.request.clone_from(&event.request_id);
        match event.kind() {
            agent::EventKind::Accepted => sent.accepted_at = Some(event.occurred_at_ms),
            agent::EventKind::Delivered => sent.ends.push(End::Delivered),
            agent::EventKind::Failed => sent.ends.push(End::Failed),
            agent::EventKind::Expired => sent.ends.push(End::Expired),
            agent::EventKind::Unspecified
            | agent::EventKind::Relayed
            | agent::EventKind::Read
            | agent::EventKind::Answered => {}
        }
    }
}

async fn attachment(
    client: &mut AgentServiceClient<Channel>,
    message_id: String,
    index: u32,
) -> Result<String, Status> {
    let request = agent::GetAttachmentRequest { message_id, index, offset: 0 };
    let mut pieces = client.get_attachment(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?.data);
    }
    Ok(digest(&bytes))
}
