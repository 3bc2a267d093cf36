use crate::alarm::Alarm;
use crate::credential::CredentialError;
use crate::error::EndpointError;
use crate::event::EventKind;
use crate::harness::{Device, Hub, Item, Pair, at, letter, pair, peer_of};
use crate::mls::Suite;
use crate::peer::Peer;
use crate::thread::{self, Processed};
use crate::{identity, inbox, link, request};
use chancery_proto::federation::v1::delivery;
use chancery_sdk_core::Stand;
use chancery_sdk_core::acknowledge::acknowledgement;
use chancery_types::{Alias, GroupId};
use prost::bytes::Bytes;
use std::time::Duration;

fn delivery_of(item: &Item) -> chancery_proto::federation::v1::Delivery {
    match item {
        Item::Delivery(delivery) => delivery.clone(),
        Item::Event(_) => panic!("no delivery"),
    }
}

#[tokio::test]
async fn a_letter_and_its_answer_in_both_suites() {
    for suite in Suite::ALL {
        let Pair { mut hub, agent, person, thread, person_identity, .. } = pair(suite).await;
        assert_eq!(person.texts().await, ["first"]);
        assert_eq!(agent.events().await, [EventKind::Accepted, EventKind::Delivered]);
        let received = person.inbox().await.remove(0);
        let message_id = received.message_id;
        let read = person.run(move |tx| inbox::mark_read(tx, &[message_id])).await;
        assert_eq!(read, [(thread, vec![message_id])]);
        person.answer(thread, "the answer", received.content_id).await;
        person.flush(&mut hub).await;
        agent.fetch(&mut hub).await;
        assert_eq!(agent.texts().await.len(), 1);
        let answer = agent.inbox().await.remove(0);
        assert_eq!(crate::harness::text_of(&answer, &person_identity), "the answer");
        assert_eq!(agent.events().await, [EventKind::Accepted, EventKind::Delivered, EventKind::Answered]);
        let known = agent.run(move |tx| thread::find(tx, &thread)).await.unwrap();
        assert_eq!(known.suite, suite);
        assert!(agent.alarms().await.is_empty() && person.alarms().await.is_empty());
    }
}

#[tokio::test]
async fn a_read_receipt_becomes_an_event_and_no_letter() {
    let Pair { mut hub, agent, person, thread, .. } = pair(Suite::Classical).await;
    let read = person.inbox().await[0].message_id;
    person
        .run(move |tx| {
            let now = tx.now();
            let thread = thread::find(tx, &thread)?.unwrap();
            let receipt = crate::content::ReadReceipt { message_ids: vec![read], read_at: now };
            let compose: request::Compose = Box::new(move |origin| {
                Ok(receipt.compose(&origin.sender_uri(), &origin.room_uri(), origin.entropy).unwrap().bytes)
            });
            request::send(tx, &thread, compose, now.after(Duration::from_hours(1)), false)
        })
        .await;
    person.flush(&mut hub).await;
    assert_eq!(agent.fetch(&mut hub).await, [Processed::Noted]);
    assert!(agent.inbox().await.is_empty());
    assert!(agent.events().await.contains(&EventKind::Read));
}

/// Links a second device of the person; gives it with its alias's identity.
pub(super) async fn link_second(person: &Device) -> Device {
    let second = Device::new(900);
    let request = second.run(link::request).await;
    let again = second.run(link::request).await;
    assert_eq!(request, again);
    let approved = person.run(move |tx| link::approve(tx, &request, b"trust")).await;
    let grant = approved.grant;
    assert_eq!(second.run(move |tx| link::accept(tx, &grant)).await, b"trust");
    second
}

pub(super) async fn admit(from: &Device, thread: GroupId, key_package: Bytes) {
    from.run(move |tx| thread::admit::admit(tx, &thread, vec![key_package])).await;
}

#[tokio::test]
async fn a_linked_device_reads_new_threads_and_is_admitted_to_old_ones() {
    let Pair { mut hub, agent, agent_identity, person, person_identity, thread } = pair(Suite::Hybrid).await;
    let second = link_second(&person).await;
    second.lists(&agent_identity).await;
    admit(&person, thread, second.key_package(Suite::Hybrid).await).await;
    person.flush(&mut hub).await;
    assert_eq!(agent.fetch(&mut hub).await, [Processed::Committed]);
    agent.write(thread, "to both").await;
    agent.flush(&mut hub).await;
    // The first device sees the Welcome of the second; the second what was before it.
    person.fetch(&mut hub).await;
    let seen = second.fetch(&mut hub).await;
    assert_eq!(seen.last(), Some(&Processed::Letter { position: 1 }));
    assert_eq!(second.texts().await, ["to both"]);
    assert_eq!(person.texts().await, ["first", "to both"]);

    let theirs = vec![person.key_package(Suite::Hybrid).await, second.key_package(Suite::Hybrid).await];
    let new = agent.open_thread(peer_of(&person_identity), theirs, Vec::new()).await.unwrap();
    agent.write(new, "a new thread").await;
    agent.flush(&mut hub).await;
    person.fetch(&mut hub).await;
    second.fetch(&mut hub).await;
    assert_eq!(second.texts().await, ["to both", "a new thread"]);

    // What one device writes, the other has too, but not as something received.
    second.write(new, "from the second").await;
    second.flush(&mut hub).await;
    person.fetch(&mut hub).await;
    agent.fetch(&mut hub).await;
    assert_eq!(agent.texts().await, ["from the second"]);
    assert_eq!(person.texts().await.len(), 3);
    for device in [&agent, &person, &second] {
        assert!(device.alarms().await.is_empty());
    }
}

#[tokio::test]
async fn a_stale_letter_is_encrypted_anew_under_its_id() {
    let Pair { mut hub, agent, agent_identity, person, thread, .. } = pair(Suite::Classical).await;
    let second = link_second(&person).await;
    second.lists(&agent_identity).await;
    // Encrypted before the commit, submitted after it.
    let sent = agent.write(thread, "late").await;
    admit(&person, thread, second.key_package(Suite::Classical).await).await;
    person.flush(&mut hub).await;
    assert!(agent.flush(&mut hub).await.is_empty());
    assert_eq!(agent.fetch(&mut hub).await, [Processed::Committed]);
    let decided = agent.flush(&mut hub).await;
    assert_eq!(decided.len(), 1);
    assert_eq!(decided[0].message_id, sent);
    assert!(decided[0].result.is_ok());
    person.fetch(&mut hub).await;
    second.fetch(&mut hub).await;
    assert_eq!(person.texts().await, ["first", "late"]);
    assert_eq!(second.texts().await, ["late"]);
    assert!(agent.alarms().await.is_empty() && second.alarms().await.is_empty());
}

#[tokio::test]
async fn a_lost_commit_is_given_up_and_what_waits_is_read_later() {
    let Pair { mut hub, agent, agent_identity, person, thread, .. } = pair(Suite::Classical).await;
    let second = link_second(&person).await;
    second.lists(&agent_identity).await;
    admit(&person, thread, second.key_package(Suite::Classical).await).await;
    person.flush(&mut hub).await;
    second.fetch(&mut hub).await;
    agent.fetch(&mut hub).await;
    person.fetch(&mut hub).await;

    // Both devices bring in a third; the first one's commit wins.
    let third = Device::new(950);
    let request = third.run(link::request).await;
    let approved = person.run(move |tx| link::approve(tx, &request, b"")).await;
    third.run(move |tx| link::accept(tx, &approved.grant)).await;
    third.lists(&agent_identity).await;
    admit(&second, thread, third.key_package(Suite::Classical).await).await;
    admit(&person, thread, third.key_package(Suite::Classical).await).await;
    let waiting = second.write(thread, "after my commit").await;
    let outcomes: Vec<_> = {
        let submissions = person.due().await;
        submissions.iter().map(|submission| hub.submit(submission)).collect()
    };
    assert_eq!(outcomes.len(), 1);
    // The agent moves on and writes in the new epoch before the winner knows it won.
    agent.fetch(&mut hub).await;
    agent.write(thread, "in the new epoch").await;
    agent.flush(&mut hub).await;
    assert_eq!(person.fetch(&mut hub).await.last(), Some(&Processed::Parked));
    assert_eq!(person.texts().await, ["first"]);
    for outcome in outcomes {
        person.decide(outcome).await;
    }
    assert_eq!(person.texts().await, ["first", "in the new epoch"]);
    person.acknowledge(&mut hub).await;

    second.flush(&mut hub).await;
    second.fetch(&mut hub).await;
    let decided = second.flush(&mut hub).await;
    assert!(decided.iter().any(|decided| decided.message_id == waiting && decided.result.is_ok()));
    for device in [&agent, &person, &third] {
        device.fetch(&mut hub).await;
    }
    assert_eq!(agent.texts().await, ["after my commit"]);
    // The account's own devices do not list what another of them sent.
    assert_eq!(person.texts().await, ["first", "in the new epoch"]);
    assert_eq!(third.texts().await, ["in the new epoch"]);
    for device in [&agent, &person, &second, &third] {
        assert!(device.alarms().await.is_empty());
    }
}

#[tokio::test]
async fn a_delivery_counts_once() {
    let Pair { mut hub, agent, person, person_identity, thread, .. } = pair(Suite::Classical).await;
    agent.write(thread, "second").await;
    agent.flush(&mut hub).await;
    person.fetch(&mut hub).await;
    let mailbox = hub.mailboxes[&person_identity.alias].clone();
    for (position, item) in (50_u64..).zip(mailbox) {
        let again = person.take(position, item, person_identity.device).await;
        assert!(matches!(again, None | Some(Processed::Duplicate | Processed::NotForUs)));
    }
    assert_eq!(person.texts().await, ["first", "second"]);
    assert!(person.alarms().await.is_empty());
}

#[tokio::test]
async fn withheld_reordered_and_forked_messages_are_seen() {
    let Pair { mut hub, agent, person, person_identity, thread, .. } = pair(Suite::Classical).await;
    hub.withhold = true;
    agent.write(thread, "withheld").await;
    agent.flush(&mut hub).await;
    hub.withhold = false;
    agent.write(thread, "after it").await;
    agent.flush(&mut hub).await;
    person.fetch(&mut hub).await;
    assert_eq!(person.alarms().await, [Alarm::Withheld]);
    assert_eq!(person.texts().await, ["first", "after it"]);

    agent.write(thread, "one").await;
    agent.write(thread, "two").await;
    agent.flush(&mut hub).await;
    let mailbox = hub.mailboxes.get_mut(&person_identity.alias).unwrap();
    let last = mailbox.len() - 1;
    mailbox.swap(last, last - 1);
    person.fetch(&mut hub).await;
    assert_eq!(person.alarms().await, [Alarm::Withheld, Alarm::Withheld, Alarm::Reordered]);
    assert_eq!(person.texts().await, ["first", "after it", "two", "one"]);

    agent.write(thread, "three").await;
    agent.flush(&mut hub).await;
    let mut delivery = delivery_of(hub.mailboxes[&person_identity.alias].last().unwrap());
    delivery.chain = vec![7; 32].into();
    let item = Item::Delivery(delivery);
    let taken = person.take(90, item, person_identity.device).await;
    assert!(matches!(taken, Some(Processed::Letter { .. })));
    assert_eq!(person.alarms().await.last(), Some(&Alarm::Forked));
}

#[tokio::test]
async fn an_envelope_that_disagrees_is_refused() {
    let Pair { mut hub, agent, person, person_identity, thread, .. } = pair(Suite::Classical).await;
    agent.write(thread, "genuine").await;
    agent.flush(&mut hub).await;
    let mut delivery = delivery_of(hub.mailboxes[&person_identity.alias].last().unwrap());
    delivery.expires_at_ms += 1;
    let taken = person.take(40, Item::Delivery(delivery.clone()), person_identity.device).await;
    assert_eq!(taken, Some(Processed::Rejected(Alarm::InvalidMessage)));
    assert_eq!(person.texts().await, ["first"]);
    // Random bytes, everywhere.
    for body in
        [delivery::Body::Application(vec![0x5a; 200].into()), delivery::Body::Welcome(vec![0x5a; 200].into())]
    {
        delivery.sequence += 1;
        delivery.body = Some(body);
        let taken = person.take(41, Item::Delivery(delivery.clone()), person_identity.device).await;
        assert!(matches!(taken, Some(Processed::Rejected(_) | Processed::NotForUs)));
    }
    delivery.group_id = vec![1; 31].into();
    let taken = person.take(42, Item::Delivery(delivery), person_identity.device).await;
    assert_eq!(taken, Some(Processed::Rejected(Alarm::InvalidMessage)));
}

#[tokio::test]
async fn false_key_packages_are_refused() {
    let (agent, agent_identity) = Device::agent(1).await;
    let (person, person_identity) = Device::person(2).await;
    let (stranger, stranger_identity) = Device::person(3).await;
    let genuine = person.key_package(Suite::Hybrid).await;
    let fails = async |peer: Peer, key_packages: Vec<Bytes>| {
        let error = agent.open_thread(peer, key_packages, Vec::new()).await.err().unwrap();
        assert_eq!(chancery_types::Refusal::from(error).reason, chancery_types::Reason::FalseKeyPackage);
    };
    let record = peer_of(&person_identity);
    // Another's KeyPackage: wrong alias.
    fails(record.clone(), vec![stranger.key_package(Suite::Hybrid).await]).await;
    // The alias is right, but another credential key signed.
    let alias = person_identity.alias;
    let forger = stranger_identity.credential_key;
    fails(Peer { alias, credential_key: forger, ..record.clone() }, vec![genuine.clone()]).await;
    // A credential stolen for a leaf with another key.
    let stolen = person.run(|tx| Ok(identity::leaf(tx, Suite::Hybrid)?.credential_with_key())).await;
    let credential = openmls::credentials::BasicCredential::try_from(stolen.credential).unwrap();
    let credential = credential.identity().to_vec();
    stranger.run(move |tx| identity::set_credential(tx, Suite::Hybrid, &credential)).await;
    fails(record.clone(), vec![stranger.key_package(Suite::Hybrid).await]).await;
    // Changed bytes, no bytes, too many bytes, the same device twice.
    let mut changed = genuine.to_vec();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    fails(record.clone(), vec![changed.into()]).await;
    fails(record.clone(), vec![Bytes::new()]).await;
    fails(record.clone(), vec![vec![0; 17 * 1024].into()]).await;
    fails(record.clone(), vec![genuine.clone(), genuine.clone()]).await;
    // An agent that is not listed, and one of another administration.
    let (impostor, _) = Device::agent(4).await;
    let theirs = impostor.key_package(Suite::Hybrid).await;
    let impostor_alias = impostor.run(|tx| identity::identity(tx)).await.alias;
    let as_record = |node: &str| Peer {
        alias: impostor_alias,
        node: node.parse().unwrap(),
        credential_key: agent_identity.credential_key,
    };
    fails(as_record("south"), vec![theirs.clone()]).await;
    fails(as_record("north"), vec![theirs]).await;
    // Nothing at all, and mixed suites, are another matter.
    let error = agent.open_thread(record.clone(), Vec::new(), Vec::new()).await.err().unwrap();
    assert!(matches!(error, EndpointError::NoKeyPackage));
    assert!(agent.open_thread(record, vec![genuine], Vec::new()).await.is_ok());
}

#[tokio::test]
async fn an_unlisted_agent_opens_no_thread() {
    let (agent, agent_identity) = Device::agent(1).await;
    let (person, person_identity) = Device::person(2).await;
    let mut hub = Hub::default();
    let theirs = vec![person.key_package(Suite::Classical).await];
    agent.open_thread(peer_of(&person_identity), theirs, Vec::new()).await.unwrap();
    agent.flush(&mut hub).await;
    let welcome = delivery_of(&hub.mailboxes[&person_identity.alias][0]);
    // Not yet known: nothing is spent, and the caller is asked to look at the log.
    let again = welcome.clone();
    let first = person.attempt(move |tx| thread::receive(tx, at(1), &again, false)).await;
    assert!(matches!(first, Err(EndpointError::FalseCredential(CredentialError::UnknownAgent))));
    let again = welcome.clone();
    let last = person.run(move |tx| thread::receive(tx, at(1), &again, true)).await;
    assert_eq!(last, Processed::Rejected(Alarm::FalseThread));
    person.lists(&agent_identity).await;
    assert_eq!(person.run(move |tx| thread::receive(tx, at(1), &welcome, true)).await, Processed::Joined);
}

#[tokio::test]
async fn forbidden_commits_close_the_thread() {
    // A member brings in a device of a third alias.
    let Pair { mut hub, agent, person, thread, .. } = pair(Suite::Classical).await;
    let (third, third_identity) = Device::person(7).await;
    let key_package = third.key_package(Suite::Classical).await;
    let record = peer_of(&third_identity);
    person
        .run({
            let record = record.clone();
            move |tx| crate::peer::put(tx, &record)
        })
        .await;
    let commit = agent
        .run(move |tx| {
            use crate::mls::key_package::{Owner, check};
            let checked = check(tx, Owner::Peer(&record), &key_package)?;
            let mut group = tx.take_group(&thread)?;
            let bundle = thread::open::add(tx, &mut group, Suite::Classical, &[checked])?;
            Ok(thread::open::commit_of(bundle, Vec::new())?.mls_commit)
        })
        .await;
    let epoch = person.run(move |tx| thread::find(tx, &thread)).await.unwrap().epoch;
    let person_identity = person.run(|tx| identity::identity(tx)).await;
    let mut forged = delivery_of(&hub.mailboxes[&person_identity.alias][1]);
    forged.sequence += 1;
    forged.epoch = epoch;
    forged.body = Some(delivery::Body::Commit(commit));
    let taken = person.take(70, Item::Delivery(forged), person_identity.device).await;
    assert_eq!(taken, Some(Processed::Rejected(Alarm::ForbiddenCommit)));
    assert_eq!(person.run(move |tx| thread::find(tx, &thread)).await.unwrap().stand, Stand::Broken);
    // Nothing more goes out or comes in.
    agent.write(thread, "unread").await;
    agent.flush(&mut hub).await;
    person.fetch(&mut hub).await;
    assert_eq!(person.texts().await, ["first"]);
    person.write(thread, "waits for another group").await;
    assert!(person.due().await.is_empty());

    // Bytes from outside of the group.
    let Pair { hub, person, person_identity, thread, .. } = pair(Suite::Classical).await;
    let mut forged = delivery_of(&hub.mailboxes[&person_identity.alias][1]);
    forged.sequence += 1;
    forged.body = Some(delivery::Body::Commit(vec![0, 1, 0, 2, 9, 9].into()));
    let taken = person.take(70, Item::Delivery(forged), person_identity.device).await;
    assert_eq!(taken, Some(Processed::Rejected(Alarm::ForbiddenCommit)));
    assert_eq!(person.run(move |tx| thread::find(tx, &thread)).await.unwrap().stand, Stand::Broken);
}

#[tokio::test]
async fn forged_receipts_do_not_count() {
    use chancery_proto::content::v1::SignedDeliveryReceipt;
    use prost::Message as _;
    let Pair { mut hub, agent, person, agent_identity, person_identity, thread, .. } =
        pair(Suite::Classical).await;
    let sent = agent.write(thread, "second").await;
    agent.flush(&mut hub).await;
    let mailbox = hub.mailboxes[&person_identity.alias].clone();
    let position = u64::try_from(mailbox.len()).unwrap();
    person.take(position, mailbox.last().unwrap().clone(), person_identity.device).await;
    let receipt = person.run(|tx| acknowledgement(tx, 1, 0)).await.unwrap().receipts.remove(0);
    let mut wrong = SignedDeliveryReceipt::decode(receipt.clone()).unwrap();
    wrong.signature = vec![1; 64].into();
    let first = agent.inbox().await.len();
    for forged in [Bytes::new(), wrong.encode_to_vec().into(), vec![0x5a; 600].into()] {
        hub.report(&sent, person_identity.alias, forged);
        agent.fetch(&mut hub).await;
    }
    assert_eq!(agent.alarms().await, [Alarm::ForgedReceipt; 3]);
    let delivered =
        |events: Vec<EventKind>| events.into_iter().filter(|kind| *kind == EventKind::Delivered).count();
    assert_eq!(delivered(agent.events().await), 1);
    // Of another recipient: not about us. Genuine: counts, once.
    hub.report(&sent, agent_identity.alias, receipt.clone());
    hub.report(&sent, person_identity.alias, receipt.clone());
    hub.report(&sent, person_identity.alias, receipt);
    agent.fetch(&mut hub).await;
    assert_eq!(delivered(agent.events().await), 2);
    assert_eq!(agent.inbox().await.len(), first);
}

#[tokio::test]
async fn a_request_sends_once() {
    let Pair { mut hub, agent, thread, .. } = pair(Suite::Classical).await;
    let order = |digest: u8| request::Order {
        request_id: [1; 16],
        digest: [digest; 32],
        compose: letter("once", None),
        expires: chancery_types::Clock::now(&chancery_types::SystemClock).after(Duration::from_hours(1)),
        wants_events: true,
    };
    let queue = async |order: request::Order| {
        agent
            .attempt(move |tx| {
                let thread = thread::find(tx, &thread)?.unwrap();
                request::queue(tx, &thread, order, true)
            })
            .await
    };
    let first = queue(order(1)).await.unwrap();
    assert_eq!(queue(order(1)).await.unwrap(), first);
    assert!(matches!(queue(order(2)).await, Err(EndpointError::RequestIdReused)));
    assert_eq!(agent.flush(&mut hub).await.len(), 1);
    assert_eq!(queue(order(1)).await.unwrap(), first);
    assert!(agent.flush(&mut hub).await.is_empty());
    let known = agent.run(move |tx| thread::find(tx, &thread)).await.unwrap();
    assert_eq!(known.request_id, Some([1; 16]));
}

#[tokio::test]
async fn a_crash_anywhere_loses_nothing_and_sends_nothing_twice() {
    let (mut agent, agent_identity) = Device::agent(1).await;
    let (mut person, person_identity) = Device::person(2).await;
    person.lists(&agent_identity).await;
    let mut hub = Hub::default();
    let theirs = vec![person.key_package(Suite::Hybrid).await];
    agent.reopen();
    person.reopen();
    let thread = agent.open_thread(peer_of(&person_identity), theirs, Vec::new()).await.unwrap();
    agent.reopen();
    agent.write(thread, "one").await;
    agent.reopen();
    // Submitted, but the answer is lost; then again.
    for submission in agent.due().await {
        hub.submit(&submission);
    }
    agent.reopen();
    assert_eq!(agent.flush(&mut hub).await.len(), 2);
    agent.reopen();
    assert!(agent.flush(&mut hub).await.is_empty());
    assert_eq!(hub.accepted, 2);

    // Received, but the acknowledgement is lost.
    let mailbox = hub.mailboxes[&person_identity.alias].clone();
    for (position, item) in (1_u64..).zip(mailbox.clone()) {
        person.reopen();
        person.take(position, item, person_identity.device).await;
    }
    person.reopen();
    for (position, item) in (1_u64..).zip(mailbox) {
        person.take(position, item, person_identity.device).await;
        person.reopen();
    }
    person.acknowledge(&mut hub).await;
    person.reopen();
    let again = person.run(|tx| acknowledgement(tx, 1, 0)).await.unwrap();
    assert_eq!((again.through, again.receipts.len()), (2, 0));
    assert!(person.run(move |tx| acknowledgement(tx, 1, again.through)).await.is_none());
    assert_eq!(person.texts().await, ["one"]);

    for round in 0..3 {
        person.write(thread, &format!("answer {round}")).await;
        person.reopen();
        person.flush(&mut hub).await;
        person.reopen();
        agent.fetch(&mut hub).await;
        agent.reopen();
        agent.write(thread, "more").await;
        agent.reopen();
        agent.flush(&mut hub).await;
        person.fetch(&mut hub).await;
    }
    assert_eq!(agent.texts().await, ["answer 0", "answer 1", "answer 2"]);
    assert_eq!(person.texts().await, ["one", "more", "more", "more"]);
    assert!(agent.alarms().await.is_empty() && person.alarms().await.is_empty());
}

#[tokio::test]
async fn a_refused_first_commit_fails_its_letters() {
    let (agent, _) = Device::agent(1).await;
    let (person, person_identity) = Device::person(2).await;
    let theirs = vec![person.key_package(Suite::Classical).await];
    let thread = agent.open_thread(peer_of(&person_identity), theirs, Vec::new()).await.unwrap();
    let sent = agent.write(thread, "never").await;
    let commit = agent.due().await.remove(0);
    let outcome = chancery_proto::federation::v1::Outcome {
        message_id: commit.message_id,
        group_id: commit.group_id,
        sender: commit.sender,
        sender_device: commit.sender_device,
        decision: Some(chancery_proto::federation::v1::outcome::Decision::Refused(
            chancery_proto::federation::v1::Refused { reason: "ALIAS_UNKNOWN".into(), current_epoch: None },
        )),
    };
    let decided = agent.decide(outcome).await;
    let letter = decided.iter().find(|decided| decided.message_id == sent).unwrap();
    assert_eq!(letter.result, Err("ALIAS_UNKNOWN".into()));
    assert_eq!(agent.events().await, [EventKind::Failed]);
    let alias: Alias = person_identity.alias;
    assert!(agent.run(move |tx| thread::find_by_peer(tx, alias)).await.is_none());
}
