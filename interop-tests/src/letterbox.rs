//! What lies on the devices of a local federation that is not running: each
//! device's store is opened as its owner would open it, without a network.

use chancery_kit::tls::Credentials;
use chancery_pki_core::{Crls, FederationBundle};
use chancery_sdk::content::{Body, Letter, room_uri, sender_uri};
use chancery_sdk::endpoint::{Endpoint, EndpointConfig};
use chancery_types::{SystemClock, SystemEntropy};
use std::path::Path;
use std::sync::Arc;

/// The letters on each resident's device, in the order of the residents.
pub async fn letters(folder: &Path) -> Vec<Vec<Letter>> {
    let bundle = std::fs::read_to_string(folder.join("federation.toml")).unwrap();
    let bundle = FederationBundle::from_toml(&bundle).unwrap();
    let mut all = Vec::new();
    for number in 0.. {
        let store = folder.join(format!("residents/{number:06}/endpoint.db"));
        if !store.is_file() {
            break;
        }
        let node = if number % 2 == 0 { "federal" } else { "regional" };
        let clock = Arc::new(SystemClock);
        let config = EndpointConfig {
            store,
            node: node.parse().unwrap(),
            node_endpoint: "127.0.0.1:1".to_owned(),
            federation: bundle.clone(),
            credentials: Credentials::anonymous(
                bundle.anchors().clone(),
                Crls::default(),
                Arc::clone(&clock) as _,
            ),
            stock: 0,
            clock,
            entropy: Arc::new(SystemEntropy),
        };
        all.push(read(&Endpoint::open(config).await.unwrap()).await);
    }
    all
}

/// Everything in an endpoint's inbox, opened.
pub async fn read(endpoint: &Endpoint) -> Vec<Letter> {
    let identity = endpoint.identity();
    let items = endpoint.inbox_after(0, 1000).await.unwrap();
    items
        .iter()
        .map(|item| {
            let sender = sender_uri(&identity.federation, &item.sender);
            let room = room_uri(&identity.federation, &item.thread);
            match Body::open(&item.body, &sender, &room).unwrap().body {
                Body::Letter { letter, .. } => letter,
                _ => panic!("no letter"),
            }
        })
        .collect()
}
