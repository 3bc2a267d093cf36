//! Who comes into cells, moves between them and goes; what waits for its time; what a restored agent does.

use super::*;

#[tokio::test]
async fn half_empty_cells_are_merged_and_nobody_misses_anything() {
    let mut scene = Scene::new(0).await;
    let mut residents = Vec::new();
    for seed in 10..16 {
        residents.push(scene.resident(seed).await);
        scene.settle().await;
    }
    assert_eq!(scene.agent.run(|tx| audience::count(tx, &CHANNEL)).await, (6, 2));
    for resident in &mut residents {
        resident.read(&scene, &[]).await;
    }
    // Three of four leave the first cell: the fourth finds room in the second.
    let leaving = residents[..3].iter().map(|resident| resident.seat).collect();
    scene.tell(Vec::new(), leaving).await;
    scene.agent.clock.advance(Duration::from_hours(25));
    scene.settle().await;
    let (other, last) = (residents.remove(4), &mut residents[3]);
    assert_eq!(last.read(&scene, &[]).await, [Taken::Seats]);
    assert!(last.device.run(|tx| seat::read_for(tx)).await[0].moves);
    last.fill(&scene.channel).await;
    last.fill(&scene.channel).await;
    let told = last.device.run(|tx| seat::to_tell(tx)).await;
    let [(next, Some(request))] = &told[..] else { panic!("one more, and none is given up") };
    // What comes meanwhile comes by the seat that it has.
    let (_, blob) = scene.say("one").await;
    let (old, read) = (last.seat, last.read);
    let joining = federation::JoiningSeat {
        seat_id: request.seat_id.clone(),
        key_package: request.key_package.clone(),
        ..Default::default()
    };
    scene.tell(vec![joining], Vec::new()).await;
    scene.settle().await;
    (last.seat, last.cell, last.read) = (*next, None, scene.items.len() - 1);
    assert_eq!(last.read(&scene, &[]).await, [Taken::Done], "the other seat has not read the first one");
    (last.seat, last.cell, last.read) = (old, Some(0), read);
    assert_eq!(last.read(&scene, &[]).await, [Taken::Broadcast]);
    last.open(blob).await;
    let given_up = last.device.run(|tx| seat::to_tell(tx)).await;
    assert!(matches!(&given_up[..], [(seat, None)] if *seat == old), "all of before is here");
    last.device.run(move |tx| seat::told(tx, &old)).await;
    scene.tell(Vec::new(), vec![old]).await;
    scene.settle().await;
    assert_eq!(scene.agent.run(|tx| audience::count(tx, &CHANNEL)).await, (3, 1));

    let (_, blob) = scene.say("two").await;
    (last.seat, last.cell, last.read) = (*next, other.cell, scene.items.len() - 1);
    assert_eq!(last.read(&scene, &[]).await, [Taken::Broadcast]);
    last.open(blob).await;
    assert_eq!(last.texts().await, ["one", "two"]);
    assert!(last.device.alarms().await.is_empty() && other.device.alarms().await.is_empty());
    assert!(wrap_of(&wraps(&scene, 2), 0).is_none(), "nothing is wrapped for the cell that is no more");
}

/// Who comes into a cell verifies the agent's credential, which is of when the cell was made.
#[tokio::test]
async fn cells_that_have_become_old_are_merged_into_new_ones() {
    let mut scene = Scene::new(0).await;
    let mut anna = scene.resident(10).await;
    scene.settle().await;
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Done]);
    let age = "UPDATE cells SET made_at_ms = made_at_ms - 240 * 24 * 60 * 60 * 1000";
    scene.agent.run(move |tx| Ok(tx.sql().execute(age, [])?)).await;
    scene.settle().await;
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Seats]);
    anna.fill(&scene.channel).await;
    let (next, request) = anna.device.run(|tx| seat::to_tell(tx)).await.remove(0);
    let request = request.unwrap();
    let joining = federation::JoiningSeat {
        seat_id: request.seat_id,
        key_package: request.key_package,
        ..Default::default()
    };
    scene.tell(vec![joining], Vec::new()).await;
    scene.settle().await;
    assert_eq!(scene.agent.run(|tx| audience::count(tx, &CHANNEL)).await, (2, 2), "she has two seats");
    (anna.seat, anna.cell) = (next, None);
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Seats], "the former one is given up");
    let (_, blob) = scene.say("from the new one").await;
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Broadcast]);
    anna.open(blob).await;
    assert_eq!(anna.texts().await, ["from the new one"]);
    assert!(anna.device.alarms().await.is_empty());
}

#[tokio::test]
async fn an_old_credential_is_signed_anew() {
    let (agent, _) = Device::agent(1).await;
    let leaf = async || {
        let leaf = agent.run(|tx| crate::identity::leaf(tx, Suite::Hybrid)).await;
        leaf.credential_with_key()
    };
    let first = leaf().await;
    agent.clock.advance(Duration::from_hours(179 * 24));
    assert!(leaf().await == first);
    agent.clock.advance(Duration::from_hours(2 * 24));
    let second = leaf().await;
    assert!(second.credential != first.credential && second.signature_key == first.signature_key);
    assert!(leaf().await == second);
}

#[tokio::test]
async fn what_waits_begins_at_its_time() {
    let scene = Scene::new(0).await;
    let order = move |name: u8, begins: Timestamp| Order {
        request_id: [name; 16],
        digest: [name; 32],
        channel: CHANNEL,
        content: vec![name],
        emergency: false,
        about: None,
        expires: begins.after(Duration::from_hours(24)),
        begins: Some(begins),
    };
    let now = scene.agent.run(|tx| Ok(tx.now())).await;
    let hours = |hours| now.after(Duration::from_hours(hours));
    for (name, begins) in [(1, hours(3)), (2, hours(1)), (3, hours(2)), (4, hours(2))] {
        let order = order(name, begins);
        let begun = scene.agent.run(move |tx| sender::begin(tx, &order)).await;
        assert_eq!((begun.state, begun.sequence), (State::Scheduled, 0));
    }
    let state = async |name: u8| scene.agent.run(move |tx| sender::find(tx, &[name; 16], &[name; 32])).await;
    assert!(scene.agent.run(|tx| schedule::cancel(tx, &[4; 16])).await);
    assert_eq!(state(4).await, None);
    assert_eq!(scene.agent.run(|tx| schedule::begin_due(tx)).await, Some(hours(1)));
    assert!(scene.agent.run(|tx| sender::due(tx)).await.is_none());
    scene.agent.clock.advance(Duration::from_mins(121));
    assert_eq!(scene.agent.run(|tx| schedule::begin_due(tx)).await, Some(hours(3)));
    assert_eq!(state(2).await.map(|begun| begun.sequence), Some(1), "in the order of their times");
    assert_eq!(state(3).await.map(|begun| begun.sequence), Some(2));
    assert_eq!(state(1).await.map(|begun| begun.state), Some(State::Scheduled));
    assert!(!scene.agent.run(|tx| schedule::cancel(tx, &[2; 16])).await, "it has begun");

    // What is asked of a store that was restored since nobody knows.
    scene.agent.run(|tx| sender::resume(tx, &CHANNEL, (7, [1; 32]))).await;
    scene.agent.clock.advance(Duration::from_hours(2));
    assert_eq!(scene.agent.run(|tx| schedule::begin_due(tx)).await, None);
    let restored = scene.agent.attempt(|tx| sender::find(tx, &[1; 16], &[1; 32])).await.unwrap_err();
    assert!(matches!(restored, EndpointError::Refused(refusal) if refusal.reason == Reason::StoreRestored));
}

#[tokio::test]
async fn seats_that_are_false_stay_empty() {
    let mut scene = Scene::new(0).await;
    let bert = Device::person(11).await.0;
    let key_package = async |seat: [u8; 16]| {
        let make = move |tx: &mut Tx<'_>| {
            cell::seat_key_package(tx, Suite::Classical, SeatId::from_bytes(seat)).map(Into::into)
        };
        bert.run(make).await
    };
    let genuine: prost::bytes::Bytes = key_package([1; 16]).await;
    let last_resort = bert.run(|tx| crate::mls::key_package::make(tx, &[], true)).await.last_resort;
    let seats = [
        (vec![2; 16], genuine.clone(), "it names another seat"),
        (vec![3; 16], b"no KeyPackage".to_vec().into(), "it is none"),
        (vec![4; 16], last_resort[1].clone().into(), "it is of last resort"),
        (vec![1; 16], genuine, "it is one"),
    ];
    let joining = seats.map(|(seat, key_package, _)| federation::JoiningSeat {
        seat_id: seat.into(),
        key_package,
        ..Default::default()
    });
    scene.tell(joining.to_vec(), Vec::new()).await;
    scene.settle().await;
    assert_eq!(scene.agent.run(|tx| audience::count(tx, &CHANNEL)).await, (1, 1));
    let Some(Item::Change(change)) = scene.items.first() else { panic!("no change") };
    assert_eq!(change.admitted.len(), 1);
    assert_eq!(change.admitted[0].seat_id, vec![1; 16]);
}

#[tokio::test]
async fn a_channel_by_invitation_takes_whoever_shows_one_for_the_seat() {
    let mut scene = Scene::new(0).await;
    scene.channel = Channel { version: 2, join_rule: JoinRule::Invitation, ..scene.channel };
    let published = scene.channel.clone();
    let invitation = scene
        .agent
        .run(move |tx| {
            let key = crate::identity::key(tx, crate::identity::OwnKey::Credential)?;
            audience::publish(tx, &published.sign(&key), &CHANNEL)?;
            crate::broadcast::invitation::make(tx, &CHANNEL)
        })
        .await;
    let (anna, _) = Device::person(10).await;
    let (channel, held) = (scene.channel.clone(), invitation.clone());
    assert!(anna.attempt(move |tx| seat::subscribe(tx, &channel, None)).await.is_err());
    let channel = scene.channel.clone();
    anna.run(move |tx| seat::subscribe(tx, &channel, Some(&held))).await;
    let (_, request) = anna.run(|tx| seat::to_tell(tx)).await.remove(0);
    let request = request.unwrap();
    let joining = |seat: &[u8], invitation: prost::bytes::Bytes| federation::JoiningSeat {
        seat_id: seat.to_vec().into(),
        key_package: request.key_package.clone(),
        invitation,
    };
    // Her home node takes what she showed for a seat of its own; then says nothing at all; then hers.
    let seats = vec![joining(&[1; 16], request.invitation.clone()), joining(&[2; 16], Default::default())];
    scene.tell(seats, Vec::new()).await;
    scene.settle().await;
    assert_eq!(scene.agent.run(|tx| audience::count(tx, &CHANNEL)).await, (0, 0));
    scene.tell(vec![joining(&request.seat_id, request.invitation.clone())], Vec::new()).await;
    scene.settle().await;
    assert_eq!(scene.agent.run(|tx| audience::count(tx, &CHANNEL)).await, (1, 1));
}

/// After an agent's store was restored its cells are given up, and the channel goes on behind what the
/// directory's map shows.
#[tokio::test]
async fn a_restored_agent_takes_no_key_twice() {
    let mut scene = Scene::new(0).await;
    let mut anna = scene.resident(10).await;
    scene.settle().await;
    let before = scene.agent.copy();
    let (latest, _) = scene.say("one").await;
    anna.read(&scene, &[]).await;
    scene.agent.restore(&before).await;
    let (nodes, hash): ([NodeId; 1], _) = (["south".parse().unwrap()], latest.hash());
    scene
        .agent
        .run(move |tx| {
            audience::close_all(tx, &nodes)?;
            sender::resume(tx, &CHANNEL, (1, hash))
        })
        .await;
    scene.settle().await;
    assert!(matches!(scene.items.last(), Some(Item::Closed(_))));
    assert_eq!(scene.agent.run(|tx| audience::count(tx, &CHANNEL)).await, (0, 0));
    // Her home says that the seat is no more, and she takes another one.
    let seat = anna.seat;
    assert_eq!(anna.device.run(move |tx| reader::ended(tx, &seat)).await, Taken::Seats);
    let channel = scene.channel.clone();
    anna.fill(&channel).await;
    let mut told = anna.device.run(|tx| seat::to_tell(tx)).await;
    told.sort_by_key(|(_, request)| request.is_some());
    let [(_, None), (again, Some(request))] = &told[..] else { panic!("one given up, one wanted") };
    let joining = federation::JoiningSeat {
        seat_id: request.seat_id.clone(),
        key_package: request.key_package.clone(),
        ..Default::default()
    };
    scene.tell(vec![joining], Vec::new()).await;
    (anna.seat, anna.read) = (*again, scene.items.len());
    scene.settle().await;
    let (signed, _) = scene.say("two").await;
    assert_eq!((signed.manifest().sequence, signed.manifest().previous_hash), (2, hash));
    assert_eq!(anna.read(&scene, &[]).await, [Taken::Done, Taken::Broadcast]);
}
