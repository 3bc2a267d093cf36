//! Two recipients on one node: one delivery for both, a report for each.

use super::*;

const CARL: Alias = Alias::from_bytes([6; 16]);

/// Anna on `a` has a thread with Bert and Carl, both on `b`, and writes into it.
async fn three() -> (Side, Side) {
    let (a, b) = (side("a", ANNA, &[10]).await, side("b", BERT, &[20]).await);
    let new = NewDevice { device_id: device(30), auth_key: [30; 32] };
    let account = AccountId::from_bytes([8; 16]);
    b.store
        .change("open", move |tx| {
            Box::pin(async move { account::open(tx, account, None, new, CARL).await.map(|r| r.map(drop)) })
        })
        .await
        .unwrap()
        .unwrap();

    let part = |byte: u8| [&[32][..], &[byte; 32], &[1, 0], &[1, 0]].concat();
    let parts = [part(5), part(6)].concat();
    let welcome = [&[0, 1, 0, 3, 0, 1, 0x40, parts.len() as u8][..], &parts, &[1, 0]].concat();
    let join = |alias, byte| Join {
        alias,
        node: name("b"),
        key_packages: vec![KeyPackageRef::from_bytes([byte; 32])],
    };
    let commit = Commit {
        mls_commit: private(0, 3, 0),
        welcome: welcome.into(),
        joins: vec![join(BERT, 5), join(CARL, 6)],
        leaves: vec![],
    };
    let opening = submission(2, ANNA, 10, 0, Body::Commit(commit));
    let decisions = a.submit("a", vec![opening, letter(3, ANNA, 10)]).await;
    assert!(decisions.iter().all(|d| matches!(d, Some(wire::outcome::Decision::Accepted(_)))));
    (a, b)
}

#[tokio::test]
async fn each_is_reported_on_once() {
    let (a, b) = three().await;
    a.hand_over(&b, false).await;
    assert_eq!((b.read(BERT, 20).await.len(), b.read(CARL, 30).await.len()), (2, 2));
    b.acknowledge(BERT, 20).await;
    b.hand_over(&a, true).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "relayed", "delivered"]);
    b.acknowledge(CARL, 30).await;
    b.hand_over(&a, true).await;
    assert_eq!(a.events(ANNA, 10).await, ["relayed", "relayed", "delivered", "delivered"]);
    assert_eq!((a.count("outbox").await, b.count("outbox").await), (0, 0));
}
