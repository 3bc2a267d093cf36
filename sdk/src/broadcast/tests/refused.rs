//! Broadcasts that were begun and that the directory does not log: nobody waits for them.

use super::*;
use chancery_directory_core::manifest::{About, NONE};

/// Begins a broadcast that expires after so many hours; gives its sequence.
async fn order(scene: &Scene, name: u8, hours: u64, about: Option<About>) -> u64 {
    let begun = scene.agent.run(move |tx| {
        let order = Order {
            request_id: [name; 16],
            digest: [name; 32],
            channel: CHANNEL,
            content: vec![name],
            emergency: false,
            about,
            expires: tx.now().after(Duration::from_hours(hours)),
            begins: None,
        };
        sender::begin(tx, &order)
    });
    begun.await.sequence
}

/// Sequence of a request's broadcast, or the reason for which it was refused.
async fn place(scene: &Scene, name: u8) -> Result<u64, Reason> {
    let found = scene.agent.attempt(move |tx| sender::find(tx, &[name; 16], &[name; 32])).await;
    match found {
        Ok(begun) => Ok(begun.unwrap().sequence),
        Err(EndpointError::Refused(refusal)) => Err(refusal.reason),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn one_that_is_never_logged_gives_its_place_to_the_next() {
    let scene = Scene::new(0).await;
    for (name, hours, about) in [
        (1, 48, None),
        (2, 1, None),
        (3, 48, Some(About::Corrects(1))),
        (4, 48, Some(About::Recalls(2))),
        (5, 2, None),
        (6, 48, None),
    ] {
        assert_eq!(order(&scene, name, hours, about).await, u64::from(name));
    }
    // The first is logged; of the second the node has the blob when the directory cannot be reached.
    let first = scene.agent.run(|tx| sender::due(tx)).await.unwrap().manifest;
    scene
        .agent
        .run(move |tx| {
            let key = crate::identity::key(tx, crate::identity::OwnKey::Credential)?;
            let proof = directory::LoggedManifest { manifest: Some(first.sign(&key)), ..Default::default() };
            sender::logged(tx, (&CHANNEL, 1), &proof)?;
            sender::wrap(tx, &CHANNEL, 1)?;
            sender::uploaded(tx, &CHANNEL, 2)
        })
        .await;
    let second = scene.agent.run(|tx| sender::due(tx)).await.unwrap().manifest;
    scene.agent.clock.advance(Duration::from_hours(3));
    scene.agent.run(|tx| schedule::never_logged(tx, (&CHANNEL, 2), Reason::InvalidField)).await;
    assert_eq!(place(&scene, 2).await, Err(Reason::Expired));
    assert_eq!(place(&scene, 3).await, Ok(2), "it corrects one that was logged");
    assert_eq!(place(&scene, 4).await, Err(Reason::InvalidField), "what it recalls is not there");
    assert_eq!(place(&scene, 5).await, Err(Reason::Expired));
    assert_eq!(place(&scene, 6).await, Ok(3));
    let due = scene.agent.run(|tx| sender::due(tx)).await.unwrap();
    assert_eq!((due.manifest.sequence, due.manifest.previous_hash), (2, second.previous_hash));
    assert_eq!(due.manifest.about, Some(About::Corrects(1)));
    // Sealed anew for its place, under another key.
    let keys = "SELECT content_key FROM own_broadcasts WHERE sequence = 2";
    let key = scene.agent.run(move |tx| Ok(tx.sql().query_row(keys, [], |row| row.get(0))?)).await;
    let content = blob::open(due.blob.unwrap().to_vec(), &ContentKey::from_bytes(key), &due.manifest);
    assert_eq!(content.unwrap(), [3]);
    // The same once more changes nothing: it was about another one.
    let before = scene.agent.run(|tx| sender::due(tx)).await.unwrap().manifest;
    scene.agent.run(|tx| schedule::never_logged(tx, (&CHANNEL, 1), Reason::InvalidField)).await;
    assert_eq!(place(&scene, 1).await, Ok(1), "what is logged stays");
    assert_eq!(scene.agent.run(|tx| sender::due(tx)).await.unwrap().manifest, before);
    assert_ne!(before.previous_hash, NONE);
}
