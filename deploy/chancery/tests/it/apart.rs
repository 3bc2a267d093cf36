//! Two administrations as `deploy/README.md` founds them, every party its own
//! process: letters, a node that is killed under them, and what comes of them.

use crate::founding::{Hosts, Process, blocks};
use chancery_kit::party::read_bundle;
use chancery_kit::tls::Credentials;
use chancery_pki_core::{Crls, armour};
use chancery_sdk::content::{Body, Letter, room_uri, sender_uri};
use chancery_sdk::endpoint::{AuthorityAddress, Endpoint, EndpointConfig, SendOrder, To};
use chancery_sdk::inbox::InboxItem;
use chancery_sdk::request::{self, Order};
use chancery_types::{Clock, Entropy, Identifier, Scheme, SystemClock, SystemEntropy};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const NODE: &str = "chancery node serve --config config/node.toml";
const TO: &str = "be-nn:89471280394";
/// Longest wait for letters.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn administrations_apart_lose_and_repeat_nothing() {
    let mut hosts = Hosts::new();
    let readme = blocks();
    let (letter, before) = readme.split_last().unwrap();
    let (invitation, founding) = before.split_last().unwrap();
    for block in founding {
        hosts.run(block);
    }
    let code = hosts.run(invitation);
    let resident = Resident::enrol(&hosts, code.trim()).await;

    // The README's own letter, then three while the recipient's node is dead.
    assert!(hosts.run(letter).starts_with("accepted "));
    resident.letters(1).await;
    hosts.server("regional", NODE).kill();
    for text in ["two", "three", "four"] {
        send(&hosts, "federal", text);
    }
    hosts.serve("regional", NODE);
    resident.letters(4).await;
    // Killed while one is on its way, and what comes behind it shows that none came twice.
    send(&hosts, "federal", "five");
    hosts.server("regional", NODE).kill();
    hosts.serve("regional", NODE);
    send(&hosts, "federal", "six");
    let items = resident.letters(6).await;
    let texts: Vec<_> = items.iter().map(|item| resident.text(item)).collect();
    assert_eq!(texts, ["Dear resident, your file is ready.", "two", "three", "four", "five", "six"]);

    // Each was delivered, in one event.
    let follower = hosts.follow("federal", "chancery events --follow --json");
    let mut delivered = Vec::new();
    while delivered.len() < texts.len() {
        let event = object(&follower);
        if event["kind"] == "delivered" {
            delivered.push(event["message_id"].as_str().unwrap().to_owned());
        }
    }
    follower.kill();
    delivered.sort_unstable();
    delivered.dedup();
    assert_eq!(delivered.len(), texts.len());

    // The answer goes the other way, and the other administration writes as well.
    resident.answer(&items[0], "Thank you.").await;
    let follower = hosts.follow("federal", "chancery inbox --follow --json");
    let answer = object(&follower);
    follower.kill();
    assert_eq!(answer["markdown"], "Thank you.");
    assert_eq!(hosts.shell("federal", "chancery inbox --json").lines().count(), 1);
    send(&hosts, "regional", "from nearby");
    let items = resident.letters(7).await;
    assert_eq!(resident.text(&items[6]), "from nearby");

    resident.stop().await;
    hosts.terminate();
}

fn send(hosts: &Hosts, host: &str, text: &str) {
    let sent = hosts.shell(host, &format!("chancery send --to {TO} --text '{text}'"));
    assert!(sent.starts_with("accepted "), "{sent}");
}

fn object(process: &Process) -> serde_json::Value {
    serde_json::from_str(&process.line()).unwrap()
}

/// A resident of the regional administration, with a device in this process.
struct Resident {
    endpoint: Endpoint,
    running: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Resident {
    async fn enrol(hosts: &Hosts, code: &str) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let federation = read_bundle(&hosts.path("regional", "federation.toml")).unwrap();
        let crls = std::fs::read(hosts.path("regional", "node-identity/crls.pem")).unwrap();
        let crls = Crls::parse(&armour::read_crls(&crls).unwrap()).unwrap();
        let credentials = Credentials::anonymous(federation.anchors().clone(), crls, Arc::clone(&clock));
        let config = EndpointConfig {
            store: hosts.path("registry", "device.db"),
            node: "regional".parse().unwrap(),
            node_endpoint: hosts.address("node.regional.example:7403").to_string(),
            federation,
            credentials,
            stock: 4,
            clock: Arc::clone(&clock),
            entropy,
        };
        let endpoint = Endpoint::open(config).await.unwrap();
        endpoint.register().await.unwrap();
        let (_, value) = TO.split_once(':').unwrap();
        let identifier = Identifier::new(Scheme::BeNn, value).unwrap();
        let authority = AuthorityAddress {
            authority: "registry".to_owned(),
            administration: "federal".to_owned(),
            endpoint: hosts.address("registry.chancery.example:7405").to_string(),
        };
        endpoint.enrol(&authority, &identifier, code).await.unwrap();
        let stop = CancellationToken::new();
        let (device, stopped) = (endpoint.clone(), stop.clone());
        let running = tokio::spawn(async move { device.run(stopped).await });
        Self { endpoint, running, stop }
    }

    /// All letters, once there are `count`; there must be no more.
    async fn letters(&self, count: usize) -> Vec<InboxItem> {
        let mut changes = self.endpoint.inbox_changes();
        let wait = async {
            loop {
                changes.mark_unchanged();
                let letters = self.endpoint.inbox_after(0, 100).await.unwrap();
                if letters.len() >= count {
                    break letters;
                }
                changes.changed().await.unwrap();
            }
        };
        let letters = tokio::time::timeout(PATIENCE, wait).await.expect("letters arrive");
        assert_eq!(letters.len(), count);
        letters
    }

    fn text(&self, item: &InboxItem) -> String {
        let federation = &self.endpoint.identity().federation;
        let sender = sender_uri(federation, &item.sender);
        let opened = Body::open(&item.body, &sender, &room_uri(federation, &item.thread)).unwrap();
        let Body::Letter { letter, .. } = opened.body else { panic!("no letter") };
        letter.markdown
    }

    async fn answer(&self, item: &InboxItem, text: &str) {
        let letter = Letter { markdown: text.to_owned(), in_reply_to: item.content_id, ..Letter::default() };
        let order = Order {
            request_id: *item.message_id.as_bytes(),
            digest: [0; 32],
            compose: request::letter(letter),
            expires: self.endpoint.now().after(Duration::from_hours(1)),
            wants_events: true,
        };
        self.endpoint.send(SendOrder { to: To::Thread(item.thread), order }).await.unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}
