//! What does not come to a seat, or comes late: by a home node that keeps it back, or an agent that leaves
//! a cell out.

use super::*;

const HOUR: Duration = Duration::from_hours(1);

async fn look(resident: &Resident, latest: u64) -> Vec<Alarm> {
    resident.device.run(move |tx| seat::compare(tx, &CHANNEL, latest, HOUR)).await;
    resident.device.alarms().await
}

#[tokio::test]
async fn a_straggler_opens_and_a_withheld_one_is_noticed() {
    let mut scene = Scene::new(0).await;
    let mut anna = scene.resident(10).await;
    scene.settle().await;
    let mut blobs = Vec::new();
    for text in ["one", "two", "three"] {
        blobs.push(scene.say(text).await.1);
    }
    assert_eq!(anna.read(&scene, &[2]).await, [Taken::Done, Taken::Broadcast, Taken::Broadcast]);
    assert_eq!(anna.device.alarms().await, [Alarm::BroadcastWithheld], "home nodes keep the order");
    let (late, wrap, seat) = (manifest(&scene, 2), wraps(&scene, 2), anna.seat);
    assert_eq!(
        anna.device.run(move |tx| reader::take(tx, &seat, &late, &wrap[..56])).await,
        Taken::Broadcast
    );
    // Again it is nothing.
    let (late, wrap) = (manifest(&scene, 2), wraps(&scene, 2));
    assert_eq!(anna.device.run(move |tx| reader::take(tx, &seat, &late, &wrap[..56])).await, Taken::Done);

    // The map shows a fourth one, which does not come.
    assert_eq!(look(&anna, 4).await.len(), 1);
    anna.device.clock.advance(HOUR / 2);
    assert_eq!(look(&anna, 4).await.len(), 1, "it may be on its way");
    anna.device.clock.advance(HOUR);
    assert_eq!(look(&anna, 4).await.len(), 2);
    assert_eq!(look(&anna, 4).await, [Alarm::BroadcastWithheld; 2], "once");
}

#[tokio::test]
async fn a_wrap_that_is_kept_back_is_noticed_until_it_has_expired() {
    let mut scene = Scene::new(1).await;
    scene.say("of before").await;
    let mut anna = scene.resident(10).await;
    scene.settle().await;
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Reread]);
    let take = async |sequence, scene: &Scene| {
        let (signed, seat) = (manifest(scene, sequence), anna.seat);
        anna.device.run(move |tx| reader::take(tx, &seat, &signed, &[])).await
    };
    assert_eq!(take(1, &scene).await, Taken::Broadcast, "what the agent grants needs no wrap");
    for text in ["one", "two"] {
        scene.say(text).await;
    }
    assert!(anna.device.alarms().await.is_empty());
    assert_eq!(take(2, &scene).await, Taken::Done);
    assert_eq!(anna.device.alarms().await, [Alarm::BroadcastWithheld]);
    anna.device.clock.advance(Duration::from_hours(25));
    assert_eq!(take(3, &scene).await, Taken::Done);
    assert_eq!(anna.device.alarms().await, [Alarm::BroadcastWithheld]);
}

/// Whatever sequence a forgery names, the genuine ones are waited for.
#[tokio::test]
async fn a_forgery_hides_nothing() {
    let mut scene = Scene::new(0).await;
    let mut anna = scene.resident(10).await;
    scene.settle().await;
    anna.read(&scene, &[]).await;
    for _ in 0..3 {
        anna.device.run(|tx| reader::forged(tx)).await;
    }
    assert_eq!(anna.device.alarms().await, [Alarm::ForgedBroadcast], "once in an hour");
    anna.device.run(|tx| reader::forged(tx)).await;
    scene.say("one").await;
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Broadcast]);
}

/// An agent that tells a cell that it begins far ahead would leave it out of all that comes before.
#[tokio::test]
async fn a_cell_begins_where_the_channel_stands() {
    let mut scene = Scene::new(0).await;
    let mut anna = scene.resident(10).await;
    scene.settle().await;
    anna.read(&scene, &[]).await;
    let wrapped = async |scene: &Scene, sequence: u64| {
        let set = "UPDATE own_channels SET wrapped = ?1";
        scene.agent.run(move |tx| Ok(tx.sql().execute(set, [sequence])?)).await;
    };
    wrapped(&scene, 5).await;
    let mut bert = scene.resident(11).await;
    scene.settle().await;
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Done]);
    assert_eq!(bert.read(&scene, &[]).await, [Taken::Done]);
    // The map shows none, and that for long.
    assert!(look(&bert, 0).await.is_empty());
    assert!(look(&bert, 5).await.is_empty(), "the map was behind");
    assert!(look(&bert, 0).await.is_empty());
    bert.device.clock.advance(HOUR);
    assert!(look(&bert, 6).await.is_empty(), "and behind again");
    assert!(look(&bert, 4).await.is_empty());
    bert.device.clock.advance(HOUR);
    assert_eq!(look(&bert, 4).await, [Alarm::BroadcastWithheld]);
    assert_eq!(look(&bert, 4).await.len(), 1);
    for (first_broadcast, is_one) in [(0, false), (1, true), (1 << 63, false), (u64::MAX, false)] {
        let key = CellKey { first_broadcast, key: vec![1; 32].into(), ..CellKey::default() };
        assert_eq!(reader::first_chain(1, &key).is_some(), is_one, "{first_broadcast}");
    }
    // So far ahead nobody is.
    wrapped(&scene, 1_000_000).await;
    let mut carl = scene.resident(12).await;
    scene.settle().await;
    assert_eq!(carl.read(&scene, &[]).await, [Taken::Done]);
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Seats]);
    assert_eq!(anna.device.alarms().await, [Alarm::ForbiddenInCell]);
}
