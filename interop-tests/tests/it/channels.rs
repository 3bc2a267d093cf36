//! Channels through nodes: an agent publishes and broadcasts, everybody finds what it did.

use chancery_directory_core::channel::{Channel, JoinRule, Suite, Text};
use chancery_directory_core::manifest::{About, Manifest, NONE};
use chancery_interop_tests::mesh::{FEDERATION, Mesh, id};
use chancery_interop_tests::party::{Agent, Device, person_number, reason};
use chancery_types::{Alias, BlobId, ChannelId, Reason, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

fn channel(administration: &str, agent_alias: Alias) -> Channel {
    let text = |name: &str| Text { name: name.to_owned(), description: String::new() };
    Channel {
        federation: FEDERATION.to_owned(),
        id: ChannelId::from_bytes([7; 16]),
        version: 1,
        administration: id(administration),
        agent: id("letters"),
        texts: BTreeMap::from([("nl".to_owned(), text("Nieuws")), ("fr".to_owned(), text("Nouvelles"))]),
        join_rule: JoinRule::Open,
        category: 1,
        contact: "https://federal.example/news".to_owned(),
        suite: Suite::Hybrid,
        cell_size: 256,
        emergency: false,
        history: 0,
        agent_alias,
        closed: false,
        for_residents: false,
    }
}

fn manifest(now: Timestamp, sequence: u64, previous_hash: [u8; 32]) -> Manifest {
    Manifest {
        channel: ChannelId::from_bytes([7; 16]),
        sequence,
        previous_hash,
        blob: BlobId::from_bytes([8; 32]),
        blob_size: 1_040,
        key_commitment: [9; 32],
        category: 1,
        emergency: false,
        created_at: now,
        expires_at: now.after(Duration::from_hours(24)),
        about: (sequence > 1).then_some(About::Recalls(sequence - 1)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_publishes_everybody_finds_and_nobody_else_changes() {
    let mut mesh = Mesh::new().await;
    let federal = Agent::start(&mut mesh, "federal").await;
    let regional = Agent::start(&mut mesh, "regional").await;
    let device = Device::enrol(&mesh, "regional", &person_number(1), "device").await;
    assert!(device.endpoint.channels(None).await.unwrap().is_empty());

    let first = channel("federal", federal.endpoint.identity().alias);
    let published = federal.endpoint.publish_channel(&first).await.unwrap();
    assert_eq!(federal.endpoint.publish_channel(&first).await.unwrap(), published);
    let (second, theirs) =
        (Channel { version: 2, category: 2, ..first.clone() }, channel("regional", first.agent_alias));
    assert_eq!(reason(regional.endpoint.publish_channel(&second).await), Reason::NotYourChannel);
    assert_eq!(reason(regional.endpoint.publish_channel(&theirs).await), Reason::NotYourChannel);
    let changed = federal.endpoint.publish_channel(&second).await.unwrap();

    // Found through another node, by a device that knows nobody.
    let head = device.endpoint.channel(&first.id, changed).await.unwrap().unwrap();
    assert_eq!((head.channel.channel(), head.sequence), (&second, 0));
    assert_eq!(device.endpoint.channels(None).await.unwrap(), std::slice::from_ref(&second));
    assert_eq!(device.endpoint.channels(Some(&id("federal"))).await.unwrap(), [second]);
    assert!(device.endpoint.channels(Some(&id("regional"))).await.unwrap().is_empty());

    let now = federal.endpoint.now();
    let one = federal.endpoint.log_manifest(&manifest(now, 1, NONE)).await.unwrap();
    let again = federal.endpoint.log_manifest(&manifest(now, 1, NONE)).await.unwrap();
    assert_eq!(again.index, one.index);
    let other = Manifest { blob_size: 2_064, ..manifest(now, 1, NONE) };
    assert_eq!(reason(federal.endpoint.log_manifest(&other).await), Reason::ChannelConflict);
    let two = manifest(now, 2, one.signed.hash());
    assert_eq!(reason(regional.endpoint.log_manifest(&two).await), Reason::NotYourChannel);
    let two = federal.endpoint.log_manifest(&two).await.unwrap();
    let head = device.endpoint.channel(&first.id, two.index).await.unwrap().unwrap();
    assert_eq!((head.sequence, head.manifest_hash, head.index), (2, two.signed.hash(), two.index));
    assert!(device.endpoint.channel(&ChannelId::from_bytes([1; 16]), 0).await.unwrap().is_none());
}
