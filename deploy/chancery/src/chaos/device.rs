//! A process with the devices of some residents: they receive, answer who asks for it,
//! and say what their stores hold when a line on standard input asks.

use super::account::{self, Account, End, Heard, PLEASE, Received, Sent, Store, digest};
use super::broadcasts::channel;
use crate::Failure;
use crate::local::federation::name;
use crate::local::layout::ADMINISTRATIONS;
use crate::local::residents::{SPOOL, STOCK, answer};
use chancery_kit::tls::{Credentials, enrol};
use chancery_kit::{config, party};
use chancery_pki_core::{Crls, armour};
use chancery_sdk::attachment::{ExternalFile, Resume, Spool, download, open};
use chancery_sdk::content::{Body, Letter, room_uri, sender_uri};
use chancery_sdk::endpoint::{Endpoint, EndpointConfig};
use chancery_sdk::event::EventKind;
use chancery_sdk::inbox::InboxItem;
use chancery_types::{ChannelId, Clock, Entropy, MessageId, Reason, Refusal};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// Letters or events read from the store at once.
const READ: usize = 256;
/// How long an answer may travel.
const ANSWER_LIFE: Duration = Duration::from_hours(24);
/// Longest that the fetching of one attachment may take.
const FETCH: Duration = Duration::from_secs(20);
/// Pause before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How much later than others half of the residents join channels.
const LATE: Duration = Duration::from_secs(25);
/// The question on standard input.
pub(super) const ACCOUNT: &str = "account";

/// Run the devices of some residents. Started by `chancery chaos`.
#[derive(Args)]
pub(super) struct DeviceArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// File of a device process.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeviceFile {
    /// The federation's bundle.
    pub(super) bundle: PathBuf,
    /// Revocation lists to begin with, PEM.
    pub(super) crls: PathBuf,
    /// Where newer ones are, host:port.
    pub(super) pki: String,
    /// The residents.
    pub(super) residents: Vec<ResidentFile>,
}

/// One resident's device.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResidentFile {
    /// Number, from 0.
    pub(super) number: usize,
    /// Administration on whose node the resident lives.
    pub(super) home: String,
    /// Where that node is reached, host:port.
    pub(super) node: String,
    /// Folder of the device's store and spool.
    pub(super) folder: PathBuf,
}

/// Runs the devices until `shutdown`, or until standard input ends.
///
/// # Errors
/// A store cannot be opened.
pub(super) async fn run(
    args: DeviceArgs,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let file: DeviceFile = config::load(&args.config, "CHANCERY_DEVICE_")?;
    let federation = party::read_bundle(&file.bundle)?;
    let crls = std::fs::read(&file.crls)?;
    let crls = armour::read_crls(&crls).map_err(std::io::Error::other)?;
    let credentials =
        Credentials::anonymous(federation.anchors().clone(), Crls::parse(&crls)?, Arc::clone(&clock));
    tokio::spawn(enrol::keep_renewed(file.pki, Arc::clone(&credentials), shutdown.clone()));
    let mut devices = Vec::new();
    let mut running = tokio::task::JoinSet::new();
    for resident in file.residents {
        let config = EndpointConfig {
            store: resident.folder.join("endpoint.db"),
            node: name(&resident.home)?,
            node_endpoint: resident.node,
            federation: federation.clone(),
            credentials: Arc::clone(&credentials),
            stock: STOCK,
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
        };
        let endpoint = Endpoint::open(config).await?;
        let spool = Arc::new(Spool::open(resident.folder.join("spool"), SPOOL)?);
        let number = resident.number;
        let (entropy, fetched) = (Arc::clone(&entropy), Mutex::default());
        let device = Arc::new(Device { number, endpoint, spool, entropy, fetched });
        running.spawn(Arc::clone(&device).live(shutdown.clone()));
        devices.push(device);
    }
    let mut questions = questions();
    while let Some(Some(question)) = shutdown.run_until_cancelled(questions.recv()).await {
        if question == ACCOUNT {
            say(&account(&devices).await?)?;
        }
    }
    shutdown.cancel();
    while running.join_next().await.is_some() {}
    Ok(())
}

/// Lines of standard input; ends with it.
fn questions() -> mpsc::UnboundedReceiver<String> {
    let (lines, questions) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
    });
    questions
}

fn say(account: &Account) -> Result<(), Failure> {
    let line = serde_json::to_string(account)?;
    let mut out = std::io::stdout().lock();
    Ok(writeln!(out, "{line}").and_then(|()| out.flush())?)
}

async fn account(devices: &[Arc<Device>]) -> Result<Account, Failure> {
    let mut residents = Vec::with_capacity(devices.len());
    for device in devices {
        residents.push(device.account().await?);
    }
    Ok(Account { residents })
}

struct Device {
    number: usize,
    endpoint: Endpoint,
    spool: Arc<Spool>,
    entropy: Arc<dyn Entropy>,
    /// Digests of a letter's attachments, once all were fetched.
    fetched: Mutex<BTreeMap<MessageId, Vec<String>>>,
}

impl Device {
    async fn live(self: Arc<Self>, shutdown: CancellationToken) {
        let reading = async {
            loop {
                if let Err(refusal) = self.read().await {
                    tracing::warn!(reason = refusal.reason.as_str(), "a letter was not read");
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        let joining = async {
            if self.number % 2 == 1 {
                tokio::time::sleep(LATE).await;
            }
            while let Err(refusal) = self.join().await {
                tracing::debug!(reason = refusal.reason.as_str(), "not in all channels yet");
                tokio::time::sleep(AGAIN).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.endpoint.run(shutdown.clone()) => {}
            () = reading => {}
            () = joining => {}
        }
    }

    /// Takes a seat in the channel of each agent.
    async fn join(&self) -> Result<(), Refusal> {
        for from in 0..ADMINISTRATIONS.len() {
            let id = ChannelId::from_bytes(channel(from).into_bytes());
            let unknown = || Refusal::new(Reason::ChannelUnknown, "not published yet");
            let head = self.endpoint.channel(&id, 0).await?.ok_or_else(unknown)?;
            self.endpoint.subscribe(head.channel.channel(), None).await?;
        }
        Ok(())
    }

    /// Broadcasts that came in.
    async fn heard(&self) -> Result<Vec<Heard>, Refusal> {
        let (mut heard, mut after) = (Vec::new(), 0);
        loop {
            let received = self.endpoint.broadcasts_after(after, READ).await?;
            let Some(last) = received.last() else { return Ok(heard) };
            after = last.position;
            for broadcast in received {
                let said = &broadcast.manifest;
                let from = |from: &usize| channel(*from).as_bytes() == said.channel.as_bytes();
                let text = match Body::decode_in(&broadcast.content, &["en"]) {
                    Ok(Body::Letter { letter, .. }) => letter.markdown,
                    _ => String::new(),
                };
                heard.push(Heard {
                    from: (0..ADMINISTRATIONS.len()).find(from).unwrap_or(usize::MAX),
                    sequence: said.sequence,
                    digest: digest(text.as_bytes()),
                });
            }
        }
    }

    /// Reads what comes, from the oldest letter on: one that was answered is known.
    async fn read(&self) -> Result<(), Refusal> {
        let (mut changes, mut after) = (self.endpoint.inbox_changes(), 0);
        loop {
            changes.mark_unchanged();
            let letters = self.endpoint.inbox_after(after, READ).await?;
            let more = letters.len() == READ;
            for item in letters {
                after = item.position;
                if item.read_at.is_none() {
                    self.receive(&item).await?;
                }
            }
            if !more && changes.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn receive(&self, item: &InboxItem) -> Result<(), Refusal> {
        let Some(letter) = self.letter(item) else { return Ok(()) };
        if letter.markdown.ends_with(PLEASE) {
            let text = account::answer(&item.message_id.to_text());
            answer(&self.endpoint, item, text, ANSWER_LIFE).await?;
        }
        self.endpoint.mark_read(vec![item.message_id], true).await?;
        // What cannot be fetched now is fetched when the account is asked for.
        self.files(item.message_id, &letter.attachments).await;
        Ok(())
    }

    fn letter(&self, item: &InboxItem) -> Option<Letter> {
        let federation = &self.endpoint.identity().federation;
        let (sender, room) = (sender_uri(federation, &item.sender), room_uri(federation, &item.thread));
        match Body::open(&item.body, &sender, &room).ok()?.body {
            Body::Letter { letter, .. } => Some(letter),
            _ => None,
        }
    }

    /// Digests of a letter's attachments; `None`: not all can be fetched now.
    async fn files(&self, message: MessageId, files: &[ExternalFile]) -> Option<Vec<String>> {
        if let Some(known) = self.fetched.lock().await.get(&message) {
            return Some(known.clone());
        }
        let mut digests = Vec::with_capacity(files.len());
        for file in files {
            let bytes = tokio::time::timeout(FETCH, self.fetch(file)).await.ok()?.ok()?;
            digests.push(digest(&bytes));
        }
        self.fetched.lock().await.insert(message, digests.clone());
        Some(digests)
    }

    async fn fetch(&self, file: &ExternalFile) -> Result<Vec<u8>, Refusal> {
        let blobs = self.endpoint.node().blobs().await?;
        download(&blobs, &self.spool, file, &Resume::new(&*self.entropy), &|_, _| {}).await?;
        Ok(open(file, self.spool.read(&file.blob.id)?)?)
    }

    async fn account(&self) -> Result<Store, Refusal> {
        let mut store = Store { number: self.number, ..Store::default() };
        let mut after = 0;
        loop {
            let items = self.endpoint.inbox_after(after, READ).await?;
            let Some(last) = items.last() else { break };
            after = last.position;
            for item in items {
                store.letters.push(self.received(&item).await);
            }
        }
        store.sent = self.sent().await?;
        store.broadcasts = self.heard().await?;
        let alarms = self.endpoint.alarms_after(0, READ).await?;
        store.alarms = alarms.into_iter().map(|raised| raised.alarm.as_str().to_owned()).collect();
        Ok(store)
    }

    async fn received(&self, item: &InboxItem) -> Received {
        let letter = self.letter(item).unwrap_or_default();
        Received {
            message: item.message_id.to_text(),
            thread: hex::encode(item.thread.as_bytes()),
            answers: None,
            digest: digest(letter.markdown.as_bytes()),
            files: self.files(item.message_id, &letter.attachments).await,
        }
    }

    async fn sent(&self) -> Result<Vec<Sent>, Refusal> {
        let mut sent: BTreeMap<MessageId, Sent> = BTreeMap::new();
        let mut after = 0;
        loop {
            let events = self.endpoint.events_after(after, READ).await?;
            let Some(last) = events.last() else { break };
            after = last.position;
            for event in events {
                let Some(request) = event.request_id else { continue };
                let of = sent.entry(event.message_id).or_default();
                of.request = uuid::Uuid::from_bytes(request).to_string();
                of.message = event.message_id.to_text();
                match event.kind {
                    EventKind::Accepted => of.accepted_at = Some(event.occurred_at.millis()),
                    EventKind::Delivered => of.ends.push(End::Delivered),
                    EventKind::Failed => of.ends.push(End::Failed),
                    EventKind::Expired => of.ends.push(End::Expired),
                    EventKind::Relayed | EventKind::Read | EventKind::Answered => {}
                }
            }
        }
        Ok(sent.into_values().collect())
    }
}
