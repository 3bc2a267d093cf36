//! A resident of the regional administration, whose device lives in the test's own
//! process, and letters to it as an organisation's systems send them.

use crate::founding::{Hosts, Process};
use chancery_kit::party::read_bundle;
use chancery_kit::tls::Credentials;
use chancery_pki_core::{Crls, armour};
use chancery_sdk::content::{Body, Letter, room_uri, sender_uri};
use chancery_sdk::endpoint::{AuthorityAddress, Endpoint, EndpointConfig, SendOrder, To};
use chancery_sdk::inbox::InboxItem;
use chancery_sdk::request::{self, Order};
use chancery_types::{Entropy, Identifier, Scheme, SystemClock, SystemEntropy};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The resident's identifier.
pub(crate) const TO: &str = "be-nn:89471280394";
/// Longest wait for letters.
const PATIENCE: Duration = Duration::from_secs(120);

/// Sends a letter from an administration; its hub has accepted it then.
pub(crate) fn send(hosts: &Hosts, host: &str, text: &str) {
    let sent = hosts.shell(host, &format!("chancery send --to {TO} --text '{text}'"));
    assert!(sent.starts_with("accepted "), "{sent}");
}

/// The next line of a process, which is a JSON object.
pub(crate) fn object(process: &Process) -> serde_json::Value {
    serde_json::from_str(&process.line()).unwrap()
}

/// A device of nobody yet, at the regional node.
pub(crate) async fn device(hosts: &Hosts, name: &str) -> Endpoint {
    let federation = read_bundle(&hosts.path("regional", "federation.toml")).unwrap();
    let crls = std::fs::read(hosts.path("regional", "node-identity/crls.pem")).unwrap();
    let crls = Crls::parse(&armour::read_crls(&crls).unwrap()).unwrap();
    let config = EndpointConfig {
        store: hosts.path("registry", &format!("{name}.db")),
        node: "regional".parse().unwrap(),
        node_endpoint: hosts.address("node.regional.example:7403").to_string(),
        credentials: Credentials::anonymous(federation.anchors().clone(), crls, Arc::new(SystemClock)),
        federation,
        stock: 4,
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
    };
    Endpoint::open(config).await.unwrap()
}

/// A resident of the regional administration, with a device in this process.
pub(crate) struct Resident {
    pub(crate) endpoint: Endpoint,
    running: JoinHandle<()>,
    stop: CancellationToken,
}

impl Resident {
    /// Enrols with the code that founding the federation gave.
    pub(crate) async fn enrol(hosts: &Hosts, code: &str) -> Self {
        let endpoint = device(hosts, "device").await;
        endpoint.register().await.unwrap();
        let (_, value) = TO.split_once(':').unwrap();
        let identifier = Identifier::new(Scheme::BeNn, value).unwrap();
        let authority = AuthorityAddress {
            authority: "registry".to_owned(),
            administration: "federal".to_owned(),
            endpoint: hosts.address("registry.chancery.example:7405").to_string(),
        };
        endpoint.enrol(&authority, &identifier, code).await.unwrap();
        let (running, stop) = run(&endpoint);
        Self { endpoint, running, stop }
    }

    /// Receives nothing until [`Resident::resume`].
    pub(crate) async fn pause(&mut self) {
        self.stop.cancel();
        (&mut self.running).await.unwrap();
    }

    /// Receives again.
    pub(crate) fn resume(&mut self) {
        (self.running, self.stop) = run(&self.endpoint);
    }

    /// All letters, once there are `count`; there must be no more.
    pub(crate) async fn letters(&self, count: usize) -> Vec<InboxItem> {
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

    /// What a letter says.
    pub(crate) fn text(&self, item: &InboxItem) -> String {
        let federation = &self.endpoint.identity().federation;
        let sender = sender_uri(federation, &item.sender);
        let opened = Body::open(&item.body, &sender, &room_uri(federation, &item.thread)).unwrap();
        let Body::Letter { letter, .. } = opened.body else { panic!("no letter") };
        letter.markdown
    }

    /// Answers a letter.
    pub(crate) async fn answer(&self, item: &InboxItem, text: &str) {
        let letter = Letter { markdown: text.to_owned(), in_reply_to: item.content_id, ..Letter::default() };
        let order = Order {
            request_id: (&SystemEntropy as &dyn Entropy).array(),
            digest: [0; 32],
            compose: request::letter(letter),
            expires: self.endpoint.now().after(Duration::from_hours(1)),
            wants_events: true,
        };
        self.endpoint.send(SendOrder { to: To::Thread(item.thread), order }).await.unwrap();
    }

    /// Stops the device.
    pub(crate) async fn stop(mut self) {
        self.pause().await;
    }
}

fn run(endpoint: &Endpoint) -> (JoinHandle<()>, CancellationToken) {
    let (device, stop) = (endpoint.clone(), CancellationToken::new());
    let stopped = stop.clone();
    (tokio::spawn(async move { device.run(stopped).await }), stop)
}
