//! Broadcast channels and manifests, as they are handed in.

use crate::Target;
use crate::input::message;
use crate::world::{FEDERATION, NOW, founded, key, name};
use chancery_directory_core::channel::{
    Channel, JoinRule, MAX_CELL, MAX_CHANNEL, SignedChannel, Suite, Text,
};
use chancery_directory_core::keys::{self, Purpose};
use chancery_directory_core::manifest::{About, MAX_BLOB, MAX_LIFE, MAX_MANIFEST, Manifest, SignedManifest};
use chancery_directory_core::statement::{Decision, Member};
use chancery_directory_core::{AgentKey, SigningKey};
use chancery_proto::directory::v1 as wire;
use chancery_types::{Alias, BlobId, ChannelId};
use prost::Message as _;
use std::collections::BTreeMap;
use std::time::Duration;

/// A signed channel; with an odd first byte the rest is a channel that its agent signs.
pub(crate) const CHANNEL: Target = Target { name: "channel", run: channel, seeds: channel_seeds };
/// The same for a manifest.
pub(crate) const MANIFEST: Target = Target { name: "manifest", run: manifest, seeds: manifest_seeds };

/// Of the agent that speaks on the channel.
pub(crate) fn agent() -> SigningKey {
    key(62)
}

/// Admits the channel's owner, with its agent or without.
pub(crate) fn owner(listed: bool) -> Decision {
    Decision::Member(Member {
        administration: name("federal"),
        display_names: BTreeMap::from([("en".to_owned(), "Federal".to_owned())]),
        endpoints: vec!["node.example:7403".to_owned()],
        node_key_pin: [1; 32],
        agents: listed.then(|| (name("post"), (&agent()).into())).into_iter().collect(),
    })
}

/// A channel.
pub(crate) fn sample(version: u64) -> Channel {
    let text = Text { name: "News".to_owned(), description: "What is new".to_owned() };
    Channel {
        federation: FEDERATION.to_owned(),
        id: ChannelId::from_bytes([3; 16]),
        version,
        administration: name("federal"),
        agent: name("post"),
        texts: BTreeMap::from([("en".to_owned(), text)]),
        join_rule: JoinRule::Open,
        category: 1,
        contact: "https://federal.example/news".to_owned(),
        suite: Suite::Hybrid,
        cell_size: 256,
        emergency: false,
        history: 3,
        agent_alias: Alias::from_bytes([4; 16]),
        closed: false,
        for_residents: false,
    }
}

/// A broadcast of it.
pub(crate) fn broadcast(sequence: u64, previous_hash: [u8; 32]) -> Manifest {
    Manifest {
        channel: ChannelId::from_bytes([3; 16]),
        sequence,
        previous_hash,
        blob: BlobId::from_bytes([7; 32]),
        blob_size: 1_000,
        key_commitment: [8; 32],
        category: 1,
        emergency: false,
        created_at: founded(),
        expires_at: NOW.after(Duration::from_hours(24)),
        about: (sequence > 1).then_some(About::Corrects(1)),
    }
}

fn channel(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let own = mode & 1 == 1;
    let signed = if own {
        let signature = keys::sign(Purpose::Channel, bytes, &agent()).to_vec().into();
        wire::SignedChannel { channel: bytes.to_vec().into(), signature }
    } else {
        let Some(signed) = message(bytes) else { return };
        signed
    };
    let Ok(read) = SignedChannel::try_from(signed) else { return };
    let channel = read.channel();
    assert!(read.wire().channel.len() <= MAX_CHANNEL && channel.version > 0);
    assert!((2..=MAX_CELL).contains(&channel.cell_size) && (1..=32).contains(&channel.texts.len()));
    let again = SignedChannel::try_from(channel.sign(&agent())).expect("a channel is not read again");
    assert!(again.channel() == channel, "a channel changes by encoding");
    let key = AgentKey::from(&agent());
    assert!(again.is_signed_by(&key) && (!own || read.is_signed_by(&key)));
}

fn manifest(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let own = mode & 1 == 1;
    let signed = if own {
        let signature = keys::sign(Purpose::Manifest, bytes, &agent()).to_vec().into();
        wire::SignedManifest { manifest: bytes.to_vec().into(), signature }
    } else {
        let Some(signed) = message(bytes) else { return };
        signed
    };
    let Ok(read) = SignedManifest::try_from(signed) else { return };
    let manifest = read.manifest();
    assert!(read.wire().manifest.len() <= MAX_MANIFEST && manifest.blob_size <= MAX_BLOB);
    assert!(manifest.expires_at.since(manifest.created_at) <= MAX_LIFE);
    let again = SignedManifest::try_from(manifest.sign(&agent())).expect("a manifest is not read again");
    assert!(again.manifest() == manifest, "a manifest changes by encoding");
    let key = AgentKey::from(&agent());
    assert!(again.is_signed_by(&key) && (!own || read.is_signed_by(&key)));
}

fn channel_seeds() -> Vec<Vec<u8>> {
    let all = [sample(1), Channel { closed: true, suite: Suite::Classical, ..sample(2) }];
    let both = |channel: &Channel| {
        let signed = channel.sign(&agent());
        [[&[0], signed.encode_to_vec().as_slice()].concat(), [&[1], &*signed.channel].concat()]
    };
    all.iter().flat_map(both).collect()
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let all = [broadcast(1, [0; 32]), Manifest { emergency: true, ..broadcast(2, [5; 32]) }];
    let both = |manifest: &Manifest| {
        let signed = manifest.sign(&agent());
        [[&[0], signed.encode_to_vec().as_slice()].concat(), [&[1], &*signed.manifest].concat()]
    };
    all.iter().flat_map(both).collect()
}
