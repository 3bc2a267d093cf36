//! Hubs that lie, and hubs that never answer: nothing blocks, everything ends.

use super::tests::{admit, link_second};
use super::*;
use crate::alarm::Alarm;
use crate::event::EventKind;
use crate::harness::{Item, Pair, decided, pair};
use chancery_proto::federation::v1::{Accepted, Delivery, Refused, outcome};
use prost::bytes::Bytes;
use std::time::Duration;

#[tokio::test]
async fn wild_numbers_block_nothing() {
    let Pair { mut hub, agent, person, person_identity, thread, .. } = pair(Suite::Classical).await;
    agent.write(thread, "second").await;
    agent.flush(&mut hub).await;
    let Some(Item::Delivery(genuine)) = hub.mailboxes[&person_identity.alias].last().cloned() else {
        panic!("a delivery")
    };
    for (sequence, epoch) in [(0, 1), (u64::MAX, 1), (i64::MAX as u64, 1), (1 << 54, 1), (9, u64::MAX)] {
        let wild = Item::Delivery(Delivery { sequence, epoch, ..genuine.clone() });
        let processed = person.take(1, wild, person_identity.device).await;
        assert_eq!(processed, Some(Processed::Rejected(Alarm::InvalidMessage)));
    }
    person.fetch(&mut hub).await;
    assert_eq!(person.texts().await, ["first", "second"]);

    let sent = person.write(thread, "answer").await;
    let submission = person.due().await.remove(0);
    let refused = Refused { reason: "STALE_EPOCH".into(), current_epoch: Some(u64::MAX) };
    let stale = decided(&submission, outcome::Decision::Refused(refused));
    assert!(person.decide(stale).await.is_empty());
    assert_eq!(person.due().await.len(), 1, "no reason to give it up");
    let accepted =
        Accepted { sequence: u64::MAX, epoch: 1, chain: Bytes::from_static(&[7; 32]), accepted_at_ms: 1 };
    let heard = person.decide(decided(&submission, outcome::Decision::Accepted(accepted))).await;
    assert!(heard.len() == 1 && heard[0].message_id == sent && heard[0].result.is_ok());
    assert!(person.alarms().await.contains(&Alarm::Forked));
}

#[tokio::test]
async fn a_letter_does_not_overtake_one_that_must_be_made_anew() {
    let Pair { mut hub, agent, agent_identity, person, thread, .. } = pair(Suite::Classical).await;
    let second = link_second(&person).await;
    second.lists(&agent_identity).await;
    // The agent's letter is on its way when a commit is ordered before it.
    agent.write(thread, "one").await;
    let on_its_way = agent.due().await.remove(0);
    admit(&person, thread, second.key_package(Suite::Classical).await).await;
    person.flush(&mut hub).await;
    let refusal = hub.submit(&on_its_way);
    assert_eq!(agent.fetch(&mut hub).await, [Processed::Committed]);
    agent.write(thread, "two").await;
    agent.write(thread, "three").await;
    assert_eq!(agent.due().await.len(), 1, "what comes after it waits");
    agent.decide(refusal).await;
    agent.flush(&mut hub).await;
    person.fetch(&mut hub).await;
    assert_eq!(person.texts().await, ["first", "one", "two", "three"]);
}

#[tokio::test]
async fn what_is_never_answered_fails_in_the_end() {
    let Pair { agent, thread, .. } = pair(Suite::Classical).await;
    let before = agent.events().await.len();
    let sent = agent.write(thread, "into the void").await;
    assert_eq!(agent.due().await.len(), 1);
    agent.clock.advance(Duration::from_hours(24 + 95));
    assert_eq!(agent.due().await.len(), 1, "its outcome may still come");
    agent.clock.advance(Duration::from_hours(2));
    assert!(agent.due().await.is_empty());
    assert_eq!(agent.events().await[before..], [EventKind::Failed]);
    let decided = agent.run(move |tx| crate::outbox::decided(tx, &sent)).await.unwrap();
    assert_eq!(decided.result, Err("PEER_UNREACHABLE".to_owned()));
}

#[tokio::test]
async fn a_commit_is_merged_however_late_its_outcome_comes() {
    let Pair { mut hub, agent, agent_identity, person, thread, .. } = pair(Suite::Classical).await;
    let second = link_second(&person).await;
    second.lists(&agent_identity).await;
    admit(&person, thread, second.key_package(Suite::Classical).await).await;
    let outcome = hub.submit(&person.due().await[0]);
    person.clock.advance(Duration::from_hours(24 * 85));
    person.decide(outcome).await;
    agent.fetch(&mut hub).await;
    agent.write(thread, "for both").await;
    agent.flush(&mut hub).await;
    person.fetch(&mut hub).await;
    second.fetch(&mut hub).await;
    assert_eq!(person.texts().await.last().unwrap(), "for both");
    assert_eq!(second.texts().await, ["for both"]);
}
