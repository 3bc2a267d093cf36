//! A hub that does not answer any more, and devices that say how far they are.

use super::*;
use chancery_node_core::expire::PATIENCE;
use chancery_types::Incarnation;

impl Side {
    async fn silent(&self, peer: &str) {
        let peer = name(peer);
        self.store
            .change("silent", move |tx| {
                let peer = peer.clone();
                Box::pin(async move { outbox::silent(tx, &peer).await })
            })
            .await
            .unwrap();
    }

    async fn greet(&self, peer: &str) {
        let peer = name(peer);
        self.store
            .change("greet", move |tx| {
                let peer = peer.clone();
                Box::pin(async move { outbox::greet(tx, &peer, Incarnation::from_bytes([1; 16])).await })
            })
            .await
            .unwrap();
    }

    async fn sweep(&self) {
        while self.store.change("expire", |tx| Box::pin(expire(tx))).await.unwrap() {}
    }

    /// Why the hub did not take what BERT sent.
    async fn refusals(&self) -> Vec<String> {
        let reason = |item: node::SubscribeResponse| match item.item {
            Some(node::subscribe_response::Item::Outcome(outcome)) => match outcome.decision {
                Some(wire::outcome::Decision::Refused(refused)) => Some(refused.reason),
                _ => None,
            },
            _ => None,
        };
        self.read(BERT, 20).await.into_iter().filter_map(reason).collect()
    }
}

#[tokio::test]
async fn what_was_submitted_to_a_hub_that_is_gone_comes_back_after_a_day() {
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    b.greet("a").await;
    let long = |message| Submission {
        expires_at: Timestamp::from_millis(1_000_000).after(PATIENCE * 20),
        ..letter(message, BERT, 20)
    };
    // The hub has one of them, and says nothing; the other one waits.
    b.submit("b", vec![long(3)]).await;
    b.hand_over(&a, false).await;
    b.submit("b", vec![long(4)]).await;
    b.silent("a").await;
    b.clock.advance(PATIENCE / 2);
    // It goes on being silent since then.
    b.silent("a").await;
    b.sweep().await;
    assert!(b.refusals().await.is_empty());
    // An answer in between: the day begins anew.
    b.greet("a").await;
    b.clock.advance(PATIENCE / 2);
    b.sweep().await;
    b.silent("a").await;
    b.clock.advance(PATIENCE / 2);
    b.sweep().await;
    assert!(b.refusals().await.is_empty());
    b.clock.advance(PATIENCE / 2);
    b.sweep().await;
    assert_eq!(b.refusals().await, ["PEER_UNREACHABLE"; 2]);
    assert_eq!(b.count("outbox WHERE kind = 0").await, 0);
    // What the hub says later comes too late, and is no harm.
    a.hand_over(&b, false).await;
    assert_eq!(b.refusals().await.len(), 2);
}

#[tokio::test]
async fn a_device_hears_how_far_it_has_come_itself() {
    let a = side("a", ANNA, &[10, 11]).await;
    a.store
        .change("cursors", |tx| {
            Box::pin(async move {
                let cursors = [((ANNA, device(10)), 5), ((ANNA, device(11)), 7), ((BERT, device(10)), 9)];
                crate::store::mailbox::raise_cursors(tx.tables.connection, &cursors).await
            })
        })
        .await
        .unwrap();
    for (by, through) in [(10, 5), (11, 7), (12, 0)] {
        let heard = crate::store::mailbox::acknowledged(&a.store, device(by), &[ANNA]).await.unwrap();
        assert_eq!(heard, [through]);
    }
}

#[tokio::test]
async fn the_count_of_a_devices_store_only_grows() {
    let a = side("a", ANNA, &[10]).await;
    for (told, kept) in [(7, 7), (3, 7), (0, 7), (9, 9)] {
        a.store
            .change("count", move |tx| {
                Box::pin(async move { account::raise_counts(tx, &[(device(10), told)]).await })
            })
            .await
            .unwrap();
        let row = account::device(&a.store, device(10)).await.unwrap().unwrap();
        assert_eq!(row.store_count, kept);
    }
}
