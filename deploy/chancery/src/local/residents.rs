//! The residents of a local federation: a device each, enrolled, reading,
//! checking what comes, and now and then answering.

use super::authority::Registry;
use super::federation::{LocalFederation, name};
use super::layout::{ADMINISTRATIONS, Layout};
use crate::Failure;
use chancery::mailing::recipients::Recipient;
use chancery_kit::tls::Credentials;
use chancery_sdk::attachment::{ExternalFile, Resume, Spool, download, open};
use chancery_sdk::content::{Body, Letter, room_uri, sender_uri};
use chancery_sdk::endpoint::{Endpoint, EndpointConfig, SendOrder, To};
use chancery_sdk::inbox::InboxItem;
use chancery_sdk::request::{self, Order};
use chancery_types::{Clock, Entropy, Handle, Identifier, Refusal};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// KeyPackages that a device keeps in stock, of each suite.
pub(crate) const STOCK: usize = 4;
/// Bytes of attachments that one device keeps on their way.
pub(crate) const SPOOL: u64 = 256 * 1024 * 1024;
/// Letters read at once.
const READ: usize = 64;
/// Every so manieth resident answers.
pub(crate) const ANSWERS: usize = 10;
/// What they answer begins so; searched for on the others' disks.
pub(crate) const ANSWER: &str = "Thank you, I have read your letter";
/// How long an answer may travel.
const ANSWER_LIFE: Duration = Duration::from_hours(30 * 24);

/// What a letter must be to count as intact.
pub(crate) struct Expected {
    /// The rendered text.
    pub(crate) markdown: String,
    /// The attachments, in order.
    pub(crate) attachments: Arc<Vec<Vec<u8>>>,
}

/// What devices have in common: credentials, time, randomness.
pub(crate) type Parts = (Arc<Credentials>, Arc<dyn Clock>, Arc<dyn Entropy>);

/// A resident's device.
pub(crate) struct Resident {
    number: usize,
    endpoint: Endpoint,
    handle: Handle,
    spool: Arc<Spool>,
    entropy: Arc<dyn Entropy>,
    expected: Expected,
    tally: Arc<Tally>,
}

/// What the devices found, all together.
#[derive(Default)]
pub(crate) struct Tally {
    /// Letters that are what was sent.
    pub(crate) intact: AtomicU64,
    /// Letters that came again.
    pub(crate) duplicates: AtomicU64,
    /// Letters that are something else than was sent.
    pub(crate) altered: AtomicU64,
}

impl Resident {
    /// Opens the device of resident `number` (from 0), which lives on one of
    /// the nodes in turn; the first time it opens an account and publishes its record.
    ///
    /// # Errors
    /// Node, evaluator or directory refuse.
    pub(crate) async fn enrol(
        (federation, registry): (&LocalFederation, &Registry),
        number: usize,
        recipient: &Recipient,
        expected: Expected,
        tally: Arc<Tally>,
        parts: Parts,
    ) -> Result<Self, Failure> {
        let entropy = Arc::clone(&parts.2);
        let folder = folder(&federation.layout, number);
        let endpoint = device(federation, number, parts).await?;
        let handle = endpoint.handle(&recipient.identifier).await?;
        enrol(registry, &endpoint, &recipient.identifier, folder.join("enrolled")).await?;
        let spool = Arc::new(Spool::open(folder.join("spool"), SPOOL)?);
        Ok(Self { number, endpoint, handle, spool, entropy, expected, tally })
    }

    /// The resident's handle; for searching the others' disks.
    pub(crate) const fn handle(&self) -> Handle {
        self.handle
    }

    /// The resident's device.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// Receives, reads and answers until `shutdown`.
    ///
    /// # Errors
    /// The device's store failed.
    pub(crate) async fn live(self, shutdown: CancellationToken) -> Result<(), Failure> {
        let running = self.endpoint.run(shutdown.clone());
        tokio::select! {
            () = running => Ok(()),
            result = self.read_letters(&shutdown) => result,
        }
    }

    async fn read_letters(&self, shutdown: &CancellationToken) -> Result<(), Failure> {
        let mut changes = self.endpoint.inbox_changes();
        let (mut after, mut seen) = (0, BTreeSet::new());
        loop {
            changes.mark_unchanged();
            let letters = self.endpoint.inbox_after(after, READ).await?;
            let more = letters.len() == READ;
            for item in letters {
                after = item.position;
                self.receive(&item, &mut seen).await?;
            }
            if !more {
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return Ok(()) },
                    () = shutdown.cancelled() => return std::future::pending().await,
                }
            }
        }
    }

    async fn receive(&self, item: &InboxItem, seen: &mut BTreeSet<[u8; 16]>) -> Result<(), Failure> {
        let identity = self.endpoint.identity();
        let sender = sender_uri(&identity.federation, &item.sender);
        let room = room_uri(&identity.federation, &item.thread);
        let Ok(opened) = Body::open(&item.body, &sender, &room) else {
            self.tally.altered.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let Body::Letter { letter, .. } = opened.body else { return Ok(()) };
        let again = !seen.insert(*item.message_id.as_bytes());
        if letter.markdown == self.expected.markdown {
            let first = self.count(&letter, again || !seen.insert([0; 16])).await;
            if first && item.read_at.is_none() && self.number.is_multiple_of(ANSWERS) {
                let text = format!("{ANSWER}, and will pay in time.");
                answer(&self.endpoint, item, text, ANSWER_LIFE).await?;
            }
        }
        self.endpoint.mark_read(vec![item.message_id], true).await?;
        Ok(())
    }

    /// Counts the resident's own letter of this mailing; whether it is intact
    /// and came for the first time.
    async fn count(&self, letter: &Letter, again: bool) -> bool {
        let counter = if again {
            &self.tally.duplicates
        } else if self.attachments_match(&letter.attachments).await {
            &self.tally.intact
        } else {
            &self.tally.altered
        };
        counter.fetch_add(1, Ordering::Relaxed);
        !again
    }

    async fn attachments_match(&self, files: &[ExternalFile]) -> bool {
        let expected = &self.expected.attachments;
        if files.len() != expected.len() {
            return false;
        }
        for (file, original) in files.iter().zip(expected.iter()) {
            match self.fetch(file).await {
                Ok(bytes) if bytes == *original => {}
                Ok(_) => return false,
                Err(refusal) => {
                    tracing::warn!(reason = refusal.reason.as_str(), "an attachment was not fetched");
                    return false;
                }
            }
        }
        true
    }

    async fn fetch(&self, file: &ExternalFile) -> Result<Vec<u8>, Refusal> {
        let blobs = self.endpoint.node().blobs().await?;
        download(&blobs, &self.spool, file, &Resume::new(&*self.entropy), &|_, _| {}).await?;
        Ok(open(file, self.spool.read(&file.blob.id)?)?)
    }
}

/// Answers a letter once: the request id is that of the letter.
pub(crate) async fn answer(
    endpoint: &Endpoint,
    item: &InboxItem,
    markdown: String,
    life: Duration,
) -> Result<(), Refusal> {
    let letter = Letter { markdown, in_reply_to: item.content_id, ..Letter::default() };
    let order = Order {
        request_id: *item.message_id.as_bytes(),
        digest: [0; 32],
        compose: request::letter(letter),
        expires: endpoint.now().after(life),
        wants_events: true,
    };
    let queued = endpoint.queue_many(vec![SendOrder { to: To::Thread(item.thread), order }]).await;
    queued.into_iter().try_for_each(|result| result.map(drop))
}

/// Where resident `number` (from 0) keeps its things.
pub(crate) fn folder(layout: &Layout, number: usize) -> PathBuf {
    layout.path(&format!("residents/{number:06}"))
}

/// The administration on whose node resident `number` lives.
pub(crate) const fn home(number: usize) -> &'static str {
    ADMINISTRATIONS[number % ADMINISTRATIONS.len()]
}

/// Opens the device of resident `number` and its account.
///
/// # Errors
/// The node refuses.
pub(crate) async fn device(
    federation: &LocalFederation,
    number: usize,
    (credentials, clock, entropy): Parts,
) -> Result<Endpoint, Failure> {
    let folder = folder(&federation.layout, number);
    std::fs::create_dir_all(&folder)?;
    let config = EndpointConfig {
        store: folder.join("endpoint.db"),
        node: name(home(number))?,
        node_endpoint: federation.layout.address(&format!("node-{}", home(number))).to_string(),
        federation: federation.bundle.clone(),
        credentials,
        stock: STOCK,
        clock,
        entropy,
    };
    let endpoint = Endpoint::open(config).await?;
    endpoint.register().await?;
    Ok(endpoint)
}

/// Enrols unless that was done before.
///
/// # Errors
/// The authority or the directory refuses.
pub(crate) async fn enrol(
    registry: &Registry,
    endpoint: &Endpoint,
    identifier: &Identifier,
    done: PathBuf,
) -> Result<(), Failure> {
    if done.exists() {
        return Ok(());
    }
    let code = registry.invite(identifier).await?;
    endpoint.enrol(&registry.address, identifier, &code).await?;
    chancery_kit::tls::files::replace(&done, b"")?;
    Ok(())
}
