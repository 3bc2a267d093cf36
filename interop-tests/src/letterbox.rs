//! What lies on the devices of a local federation that is not running: each
//! device's store is opened as its owner would open it, without a network.

use crate::wait::success;
use chancery_kit::tls::Credentials;
use chancery_pki_core::{Crls, FederationBundle};
use chancery_sdk::content::{Body, Letter, room_uri, sender_uri};
use chancery_sdk::endpoint::{Endpoint, EndpointConfig};
use chancery_sdk::inbox::InboxItem;
use chancery_types::{Alias, SystemClock, SystemEntropy};
use std::path::Path;
use std::sync::Arc;

/// The letters on each resident's device, in the order of the residents.
pub async fn letters(folder: &Path) -> Vec<Vec<Letter>> {
    let mut all = Vec::new();
    for number in 0.. {
        let Some(endpoint) = open(folder, number).await else { break };
        all.push(read(&endpoint).await);
    }
    all
}

/// The alias of each resident's device, in the order of the residents.
pub async fn aliases(folder: &Path) -> Vec<Alias> {
    let mut all = Vec::new();
    for number in 0.. {
        let Some(endpoint) = open(folder, number).await else { break };
        all.push(endpoint.identity().alias);
    }
    all
}

/// The device of a resident; `None`: there is no such resident.
async fn open(folder: &Path, number: usize) -> Option<Endpoint> {
    let store = folder.join(format!("residents/{number:06}/endpoint.db"));
    if !store.is_file() {
        return None;
    }
    let bundle = std::fs::read_to_string(folder.join("federation.toml")).unwrap();
    let bundle = FederationBundle::from_toml(&bundle).unwrap();
    let node = if number.is_multiple_of(2) { "federal" } else { "regional" };
    let clock = Arc::new(SystemClock);
    let anchors = bundle.anchors().clone();
    let config = EndpointConfig {
        store,
        node: node.parse().unwrap(),
        node_endpoint: "127.0.0.1:1".to_owned(),
        federation: bundle,
        credentials: Credentials::anonymous(anchors, Crls::default(), Arc::clone(&clock) as _),
        stock: 0,
        clock,
        entropy: Arc::new(SystemEntropy),
    };
    // Who had it open a moment ago may not have let go yet.
    Some(success("the store is free", async || Endpoint::open(config.clone()).await).await)
}

/// Everything in an endpoint's inbox, opened.
pub async fn read(endpoint: &Endpoint) -> Vec<Letter> {
    let items = endpoint.inbox_after(0, 1000).await.unwrap();
    items.iter().map(|item| open_letter(endpoint, item)).collect()
}

/// The letter that an item of an endpoint's inbox holds.
pub fn open_letter(endpoint: &Endpoint, item: &InboxItem) -> Letter {
    let identity = endpoint.identity();
    let sender = sender_uri(&identity.federation, &item.sender);
    let room = room_uri(&identity.federation, &item.thread);
    match Body::open(&item.body, &sender, &room).unwrap().body {
        Body::Letter { letter, .. } => letter,
        _ => panic!("no letter"),
    }
}
