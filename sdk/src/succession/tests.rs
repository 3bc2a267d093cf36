//! Groups that cannot go on, each mended by the endpoints alone, and with how many messages.

use crate::alarm::Alarm;
use crate::event::EventKind;
use crate::harness::{Device, Hub, Item, Pair, decided, pair, peer_of};
use crate::identity::{self, Identity};
use crate::mls::{Suite, key_package};
use crate::node_client::Greeting;
use crate::restored::{self, Greeted, STORE_COUNT};
use crate::thread::{self, Processed};
use crate::{home, inbox, link, outbox};
use chancery_proto::federation::v1::{Delivery, Refused, Submission, delivery, outcome};
use chancery_proto::node::v1::{Event as WireEvent, event as wire_event};
use chancery_sdk_core::Stand;
use chancery_types::{GroupId, Incarnation, MessageId};
use std::time::Duration;

impl Device {
    async fn stand(&self, group: GroupId) -> Stand {
        self.run(move |tx| thread::find(tx, &group)).await.unwrap().stand
    }

    /// The group in which a thread goes on.
    async fn group(&self, thread: GroupId) -> GroupId {
        self.run(move |tx| thread::current(tx, &thread)).await.unwrap().id
    }

    /// Nobody answers for what was submitted.
    async fn refused(&self, submission: &Submission, reason: &str) {
        let refused = Refused { reason: reason.to_owned(), current_epoch: None };
        self.decide(decided(submission, outcome::Decision::Refused(refused))).await;
    }

    /// What the home knows of this store.
    async fn greeting(&self) -> Greeting {
        let read = |tx: &mut crate::store::Tx<'_>| Ok((inbox::mark(tx, STORE_COUNT)?, home::through(tx, 1)?));
        let (store_count, acknowledged) = self.run(read).await;
        Greeting { incarnation: Incarnation::from_bytes([1; 16]), store_count, acknowledged }
    }

    async fn greet(&self, said: Greeting) -> Greeted {
        self.run(move |tx| {
            let count = inbox::mark(tx, STORE_COUNT)?;
            restored::greet(tx, 1, &said, Some(count))
        })
        .await
    }
}

/// Both sides fetch and flush until nothing moves.
async fn settle(hub: &mut Hub, devices: &[&Device]) {
    loop {
        let before = hub.accepted;
        for device in devices {
            device.fetch(hub).await;
            device.flush(hub).await;
        }
        if hub.accepted == before {
            return;
        }
    }
}

/// A commit that nobody can read wins the next epoch.
async fn garbage(hub: &mut Hub, from: &Identity, thread: GroupId) {
    let last = |item: &Item| match item {
        Item::Delivery(delivery) if delivery.group_id == thread.as_bytes().as_slice() => {
            Some(delivery.clone())
        }
        _ => None,
    };
    let model = hub.mailboxes[&from.alias].iter().rev().find_map(last).unwrap();
    let commit = Delivery {
        sequence: model.sequence + 1,
        message_id: vec![77; 16].into(),
        except_device: Vec::new().into(),
        body: Some(delivery::Body::Commit(vec![0, 1, 0, 2, 9].into())),
        ..model
    };
    hub.mailboxes.values_mut().for_each(|mailbox| mailbox.push(Item::Delivery(commit.clone())));
}

/// A second device of a person's, and a commit that takes it into a thread.
async fn admitted(person: &Device, agent: &Identity, thread: GroupId) -> Device {
    let second = Device::new(900);
    let request = second.run(link::request).await;
    let approved = person.run(move |tx| link::approve(tx, &request, b"")).await;
    second.run(move |tx| link::accept(tx, &approved.grant)).await;
    second.lists(agent).await;
    let key_package = second.key_package(Suite::Classical).await;
    person.run(move |tx| thread::admit::admit(tx, &thread, vec![key_package])).await;
    second
}

#[tokio::test]
async fn garbage_that_won_an_epoch_costs_two_messages_of_each_side() {
    let Pair { mut hub, agent, person, person_identity, thread, .. } = pair(Suite::Classical).await;
    agent.run(move |tx| thread::set_request(tx, &thread, &[5; 16])).await;
    garbage(&mut hub, &person_identity, thread).await;
    for device in [&agent, &person] {
        assert_eq!(device.fetch(&mut hub).await.last(), Some(&Processed::Rejected(Alarm::ForbiddenCommit)));
        assert_eq!(device.stand(thread).await, Stand::Broken);
    }
    let sent = agent.write(thread, "from the agent").await;
    person.write(thread, "from the person").await;
    let before = hub.accepted;
    // Both see it, and neither knows that the other does.
    assert_eq!((agent.succeed(&[&person], &[]).await, person.succeed(&[&agent], &[]).await), (1, 1));
    settle(&mut hub, &[&agent, &person]).await;
    assert_eq!(person.texts().await, ["first", "from the agent"]);
    assert_eq!(agent.texts().await, ["from the person"]);
    // Each a commit and the word that it takes the other's place; and a letter of each.
    assert_eq!(hub.accepted - before, 2 * 2 + 2);
    let goes_on_in = agent.group(thread).await;
    assert!(goes_on_in != thread && goes_on_in == person.group(thread).await, "they agree on one");
    // The thread is the same for whoever uses it.
    let current = agent.run(move |tx| thread::current(tx, &thread)).await.unwrap();
    assert_eq!(current.request_id, Some([5; 16]));
    assert!(person.inbox().await.iter().chain(&agent.inbox().await).all(|item| item.thread == thread));
    assert_eq!(agent.run(move |tx| outbox::decided(tx, &sent)).await.unwrap().thread, thread);
    assert_eq!(agent.events().await[2..], [EventKind::Accepted, EventKind::Delivered]);
    agent.write(thread, "once more").await;
    settle(&mut hub, &[&agent, &person]).await;
    assert_eq!(person.texts().await.last().unwrap(), "once more");
    assert_eq!((agent.succeed(&[], &[]).await, person.succeed(&[], &[]).await), (0, 0));
}

#[tokio::test]
async fn a_hub_that_is_gone_is_outlived_and_what_it_had_counts_once() {
    let Pair { mut hub, agent, person, agent_identity, thread, .. } = pair(Suite::Classical).await;
    let sent = person.write(thread, "it had this").await;
    person.write(thread, "and not this").await;
    let due = person.due().await;
    // The hub ordered one of them, and was never heard of again.
    hub.submit(&due[0]);
    for submission in &due {
        assert_eq!(person.succeed(&[&agent], &[]).await, 0, "not while something is undecided");
        person.refused(submission, "PEER_UNREACHABLE").await;
    }
    assert_eq!(person.stand(thread).await, Stand::Ended);
    assert_eq!(person.succeed(&[&agent], &[]).await, 1);
    let again = person.due().await;
    assert!(again.iter().all(|again| due.iter().all(|before| before.message_id != again.message_id)));
    settle(&mut hub, &[&person, &agent]).await;
    assert_eq!(agent.texts().await, ["it had this", "and not this"]);
    // Under the id that the writer knows it by, and with one end.
    assert_eq!(agent.inbox().await[0].message_id, sent);
    let events = person.events().await;
    assert_eq!(events.iter().filter(|event| **event == EventKind::Delivered).count(), 2);
    assert_eq!(events.iter().filter(|event| **event == EventKind::Failed).count(), 0);
    // What is read and answered in the new group refers to what was written in the old one.
    let (first, content) = (agent.inbox().await[0].message_id, agent.inbox().await[0].content_id);
    agent.run(move |tx| inbox::mark_read(tx, &[first])).await;
    agent.answer(thread, "the answer", content).await;
    settle(&mut hub, &[&agent, &person]).await;
    assert_eq!(person.events().await.last(), Some(&EventKind::Answered));
    let identity = person.run(|tx| identity::identity(tx)).await;
    assert!(person.inbox().await.iter().all(|item| item.sender == agent_identity.alias));
    assert!(identity.alias != agent_identity.alias && person.alarms().await.is_empty());
}

#[tokio::test]
async fn a_hub_that_fell_silent_over_a_commit_may_have_merged_it() {
    let Pair { mut hub, agent, agent_identity, person, thread, .. } = pair(Suite::Classical).await;
    let second = admitted(&person, &agent_identity, thread).await;
    let commit = person.due().await.remove(0);
    // It did, and said so to everybody but the one who committed.
    hub.submit(&commit);
    person.refused(&commit, "PEER_UNREACHABLE").await;
    assert_eq!(person.stand(thread).await, Stand::Broken, "whose epoch it is, nobody can tell");
    agent.fetch(&mut hub).await;
    agent.write(thread, "in the epoch that it made").await;
    person.write(thread, "from the person").await;
    assert_eq!(person.succeed(&[&agent], &[&second]).await, 1);
    settle(&mut hub, &[&agent, &person, &second]).await;
    assert_eq!(agent.texts().await, ["from the person"]);
    assert!(person.alarms().await.is_empty());
}

#[tokio::test]
async fn a_hub_that_lost_its_groups_is_outlived() {
    for reason in ["GROUP_UNKNOWN", "NOT_IN_GROUP"] {
        let Pair { mut hub, agent, person, thread, .. } = pair(Suite::Classical).await;
        agent.write(thread, "second").await;
        let due = agent.due().await;
        agent.refused(&due[0], reason).await;
        assert_eq!(agent.succeed(&[&person], &[]).await, 1);
        settle(&mut hub, &[&agent, &person]).await;
        assert_eq!(person.texts().await, ["first", "second"]);
    }
}

#[tokio::test]
async fn a_group_that_fails_as_soon_as_it_took_a_place_is_not_succeeded() {
    let Pair { mut hub, agent, person, person_identity, thread, .. } = pair(Suite::Classical).await;
    garbage(&mut hub, &person_identity, thread).await;
    person.fetch(&mut hub).await;
    assert_eq!(person.succeed(&[&agent], &[]).await, 1);
    settle(&mut hub, &[&person, &agent]).await;
    let second = person.group(thread).await;
    garbage(&mut hub, &person_identity, second).await;
    person.fetch(&mut hub).await;
    assert_eq!(person.stand(second).await, Stand::Closed);
    assert_eq!(person.succeed(&[&agent], &[]).await, 0, "whoever does that could do it for ever");
    // Later on it is.
    let Pair { mut hub, agent, person, person_identity, thread, .. } = pair(Suite::Classical).await;
    garbage(&mut hub, &person_identity, thread).await;
    person.fetch(&mut hub).await;
    assert_eq!(person.succeed(&[&agent], &[]).await, 1);
    settle(&mut hub, &[&person, &agent]).await;
    person.clock.advance(Duration::from_hours(2));
    let second = person.group(thread).await;
    garbage(&mut hub, &person_identity, second).await;
    person.fetch(&mut hub).await;
    assert_eq!(person.succeed(&[&agent], &[]).await, 1);
}

#[tokio::test]
async fn a_member_that_lost_its_state_is_written_to_in_another_group() {
    let Pair { mut hub, agent, agent_identity, mut person, person_identity, .. } =
        pair(Suite::Classical).await;
    // A copy from before a second thread.
    let copy = person.copy();
    let theirs = vec![person.key_package(Suite::Classical).await];
    let thread = agent.open_thread(peer_of(&person_identity), theirs, Vec::new()).await.unwrap();
    agent.write(thread, "before").await;
    settle(&mut hub, &[&agent, &person]).await;
    let said = person.greeting().await;
    person.restore(&copy).await;
    assert_eq!(person.greet(said).await, Greeted { home: false, store: true });
    person.lists(&agent_identity).await;
    let lost = agent.write(thread, "lost").await;
    agent.flush(&mut hub).await;
    assert_eq!(person.fetch(&mut hub).await, [Processed::NotForUs]);
    // So its home says that no device could read it.
    let told = WireEvent {
        message_id: lost.to_wire(),
        recipient: person_identity.alias.to_wire(),
        occurred_at_ms: 1,
        kind: Some(wire_event::Kind::Refused("INVALID_MESSAGE".to_owned())),
    };
    hub.mailboxes.get_mut(&agent_identity.alias).unwrap().push(Item::Event(told));
    agent.fetch(&mut hub).await;
    assert_eq!(agent.stand(thread).await, Stand::Ended);
    assert_eq!(agent.succeed(&[&person], &[]).await, 0, "nothing is to be sent");
    agent.write(thread, "in another group").await;
    assert_eq!(agent.succeed(&[&person], &[]).await, 1);
    settle(&mut hub, &[&agent, &person]).await;
    assert_eq!(person.texts().await, ["first", "in another group"]);
    assert_eq!(person.alarms().await, [Alarm::Restored]);
}

/// The endpoint's keys of a message are named by group, epoch, leaf and generation; the
/// other side refuses to open what has the same ones as something before.
#[tokio::test]
async fn a_restored_endpoint_uses_no_key_twice() {
    let Pair { mut hub, mut agent, person, thread, .. } = pair(Suite::Classical).await;
    agent.greet(agent.greeting().await).await;
    let copy = agent.copy();
    for text in ["one", "two"] {
        agent.write(thread, text).await;
    }
    settle(&mut hub, &[&agent, &person]).await;
    let said = agent.greeting().await;

    // Without the greeting it would: the very same keys for other words.
    agent.restore(&copy).await;
    agent.write(thread, "other words").await;
    let reused = agent.due().await.remove(0);
    hub.submit(&reused);
    assert_eq!(person.fetch(&mut hub).await, [Processed::Rejected(Alarm::InvalidMessage)]);

    // With it nothing that was encrypted since the copy leaves, and nothing is encrypted
    // in a group of before.
    agent.restore(&copy).await;
    agent.write(thread, "written before it is greeted").await;
    assert_eq!(agent.due().await.len(), 1);
    assert_eq!(agent.greet(said).await, Greeted { home: false, store: true });
    assert!(agent.due().await.is_empty());
    agent.write(thread, "written after").await;
    assert!(agent.due().await.is_empty());
    assert_eq!(agent.succeed(&[&person], &[]).await, 1);
    let group = thread.to_wire();
    assert!(agent.due().await.iter().all(|due| due.group_id != group));
    settle(&mut hub, &[&agent, &person]).await;
    let texts = person.texts().await;
    assert_eq!(texts[texts.len() - 2..], ["written before it is greeted", "written after"]);
    assert_eq!(agent.alarms().await, [Alarm::Restored]);
    // From here on the home knows it as it is.
    assert_eq!(agent.greet(agent.greeting().await).await, Greeted::default());
}

#[tokio::test]
async fn a_restored_endpoint_gives_up_its_commits_and_reads_on() {
    let Pair { mut hub, agent, agent_identity, mut person, thread, .. } = pair(Suite::Classical).await;
    person.greet(person.greeting().await).await;
    let second = admitted(&person, &agent_identity, thread).await;
    assert_eq!(person.due().await.len(), 1);
    let copy = person.copy();
    person.run(|tx| inbox::count_up(tx, STORE_COUNT)).await;
    let said = person.greeting().await;
    person.restore(&copy).await;
    assert!(person.greet(said).await.store);
    assert!(person.due().await.is_empty());
    agent.write(thread, "still readable").await;
    agent.flush(&mut hub).await;
    person.fetch(&mut hub).await;
    assert_eq!(person.texts().await, ["first", "still readable"]);
    // All devices are in the group that takes its place, whoever was in the first one.
    person.write(thread, "from all of us").await;
    assert_eq!(person.succeed(&[&agent], &[&second]).await, 1);
    settle(&mut hub, &[&person, &agent, &second]).await;
    assert_eq!(agent.texts().await, ["from all of us"]);
    second.write(thread, "from the second").await;
    settle(&mut hub, &[&second, &agent]).await;
    assert_eq!(agent.texts().await, ["from all of us", "from the second"]);
}

#[tokio::test]
async fn a_device_that_joins_a_successor_knows_whose_thread_it_is() {
    let Pair { mut hub, agent, agent_identity, person, thread, .. } = pair(Suite::Classical).await;
    agent.write(thread, "second").await;
    agent.refused(&agent.due().await[0], "GROUP_UNKNOWN").await;
    assert_eq!(agent.succeed(&[&person], &[]).await, 1);
    settle(&mut hub, &[&agent, &person]).await;
    let second = Device::new(900);
    let request = second.run(link::request).await;
    let approved = person.run(move |tx| link::approve(tx, &request, b"")).await;
    second.run(move |tx| link::accept(tx, &approved.grant)).await;
    second.lists(&agent_identity).await;
    let (group, key_package) = (person.group(thread).await, second.key_package(Suite::Classical).await);
    person.run(move |tx| thread::admit::admit(tx, &group, vec![key_package])).await;
    settle(&mut hub, &[&person, &agent, &second]).await;
    agent.write(thread, "to both").await;
    settle(&mut hub, &[&agent, &person, &second]).await;
    let read = second.inbox().await.remove(0);
    assert_eq!((second.texts().await, read.thread), (vec!["to both".to_owned()], thread));
    assert!(second.alarms().await.is_empty());
}

#[tokio::test]
async fn a_restored_home_gets_receipts_again() {
    let Pair { mut hub, agent, person, .. } = pair(Suite::Classical).await;
    let (mut said, letters) = (person.greeting().await, person.texts().await.len());
    assert_eq!(person.greet(said).await, Greeted::default());
    assert!(!person.run(|tx| restored::replaces_stock(tx)).await);
    // Its copy is of before the device acknowledged anything.
    (said.incarnation, said.acknowledged) = (Incarnation::from_bytes([2; 16]), 0);
    assert_eq!(person.greet(said).await, Greeted { home: true, store: false });
    assert!(person.run(|tx| restored::replaces_stock(tx)).await, "it may have handed some out since");
    hub.mailboxes.values_mut().for_each(|mailbox| mailbox.retain(|item| matches!(item, Item::Delivery(_))));
    let again = person.fetch(&mut hub).await;
    assert!(again.iter().filter(|taken| **taken == Processed::Duplicate).count() >= letters);
    let reports = hub.mailboxes.values().flatten().filter(|item| matches!(item, Item::Event(_))).count();
    assert_eq!(reports, letters);
    assert_eq!(person.texts().await.len(), letters);
    assert!(agent.alarms().await.is_empty() && person.alarms().await.is_empty());
}

#[tokio::test]
async fn who_joined_by_a_last_resort_renews_its_leaf() {
    for suite in Suite::ALL {
        let Pair { mut hub, agent, person, person_identity, .. } = pair(suite).await;
        let made = person.run(|tx| key_package::make(tx, &[], true)).await.last_resort;
        let nth = Suite::ALL.into_iter().position(|other| other == suite).unwrap();
        let last_resort: prost::bytes::Bytes = made[nth].clone().into();
        let mut threads = Vec::new();
        // It is handed out as often as it takes.
        for text in ["one", "two"] {
            let theirs = vec![last_resort.clone()];
            let thread = agent.open_thread(peer_of(&person_identity), theirs, Vec::new()).await.unwrap();
            agent.write(thread, text).await;
            threads.push(thread);
        }
        settle(&mut hub, &[&agent, &person]).await;
        for thread in threads {
            for device in [&agent, &person] {
                assert_eq!(device.run(move |tx| thread::find(tx, &thread)).await.unwrap().epoch, 2);
            }
            agent.write(thread, "after").await;
            person.write(thread, "also after").await;
        }
        settle(&mut hub, &[&agent, &person]).await;
        assert_eq!(person.texts().await, ["first", "one", "two", "after", "after"]);
        assert_eq!(agent.texts().await.len(), 2);
        assert!(agent.alarms().await.is_empty() && person.alarms().await.is_empty());
    }
}

#[tokio::test]
async fn a_false_succession_changes_nothing() {
    let Pair { mut hub, agent, person, person_identity, thread, .. } = pair(Suite::Classical).await;
    // A second thread with the same person that claims the place of a group it never had.
    let theirs = vec![person.key_package(Suite::Classical).await];
    let other = agent.open_thread(peer_of(&person_identity), theirs, Vec::new()).await.unwrap();
    let said =
        chancery_sdk_core::Succession { root: GroupId::from_bytes([9; 32]), group: thread, head: None };
    agent
        .run(move |tx| {
            let other = thread::find(tx, &other)?.unwrap();
            super::say(tx, &other, said)
        })
        .await;
    agent.flush(&mut hub).await;
    person.fetch(&mut hub).await;
    assert_eq!(person.stand(thread).await, Stand::Open);
    assert_eq!(person.group(thread).await, thread);
    let _: MessageId = agent.write(thread, "still here").await;
    settle(&mut hub, &[&agent, &person]).await;
    assert_eq!(person.texts().await, ["first", "still here"]);
}
