//! An alias goes from one home to another; its hub is a third node.

use super::*;
use chancery_types::Incarnation;

impl Side {
    async fn leave(&self, alias: Alias, to: &str, routes: u64) -> Result<(u32, u64), Reason> {
        let to = name(to);
        let left = self
            .store
            .change("leave", move |tx| {
                let to = to.clone();
                Box::pin(
                    async move { crate::store::moves::leave(tx, (alias, device(20)), &to, routes).await },
                )
            })
            .await
            .unwrap();
        left.map(|left| (left.pending_hubs, left.last_position)).map_err(|refusal| refusal.reason)
    }

    async fn add_route(&self, alias: Alias, hub: &str) {
        let hub = name(hub);
        self.store
            .change("routes", move |tx| {
                let hub = hub.clone();
                Box::pin(async move { crate::store::moves::add_routes(tx, alias, &[(GROUP, hub)]).await })
            })
            .await
            .unwrap()
            .unwrap();
    }

    async fn kinds(&self, alias: Alias, by: u8) -> Vec<&'static str> {
        let kind = |item: node::SubscribeResponse| match item.item.unwrap() {
            node::subscribe_response::Item::Delivery(delivery) => match delivery.body.unwrap() {
                wire::delivery::Body::Welcome(_) => "welcome",
                _ => "letter",
            },
            node::subscribe_response::Item::Outcome(_) => "outcome",
            node::subscribe_response::Item::Event(_) => "event",
            node::subscribe_response::Item::Moved(_) => "moved",
            node::subscribe_response::Item::Seats(_) => "seats",
        };
        self.read(alias, by).await.into_iter().map(kind).collect()
    }
}

#[tokio::test]
async fn hubs_hear_of_a_move_behind_all_that_was_submitted() {
    let (a, b) = thread().await;
    let c = side("c", BERT, &[20]).await;
    a.hand_over(&b, false).await;
    let here = name("b");
    let routes = crate::store::moves::routes(&b.store, &here, BERT, &[]).await.unwrap();
    assert_eq!(routes, [(GROUP, name("a"))]);
    assert_eq!(b.leave(BERT, "b", 1).await, Err(Reason::InvalidField));
    assert_eq!(b.leave(BERT, "c", 0).await, Err(Reason::RoutesChanged), "the new home lacks one");
    c.add_route(BERT, "a").await;

    // Bert's letter stands before the news, so the hub takes it.
    assert!(b.submit("b", vec![letter(4, BERT, 20)]).await[0].is_none());
    let (pending, last) = b.leave(BERT, "c", 1).await.unwrap();
    assert_eq!(pending, 1);
    assert_eq!(b.leave(BERT, "d", 1).await, Err(Reason::AliasMoved), "one new home");
    let decision = b.submit("b", vec![letter(5, BERT, 20)]).await.remove(0);
    assert!(matches!(decision, Some(wire::outcome::Decision::Refused(r)) if r.reason == "ALIAS_MOVED"));

    // What the hub sends before it knows still comes here …
    a.submit("a", vec![letter(6, ANNA, 10)]).await;
    a.hand_over(&b, false).await;
    assert_eq!(b.kinds(BERT, 20).await, ["welcome", "letter", "moved", "letter"]);
    assert!(b.read(BERT, 20).await.iter().any(|item| item.position == last));
    a.submit("a", vec![letter(8, ANNA, 10)]).await;
    assert!(b.hand_over(&a, false).await.is_empty());
    assert_eq!(b.leave(BERT, "c", 1).await.unwrap().0, 1, "the hub has the news, and a letter is on its way");
    a.hand_over(&b, false).await;
    assert_eq!(b.kinds(BERT, 20).await[4..], ["letter", "outcome"]);
    assert_eq!(b.leave(BERT, "c", 1).await.unwrap().0, 0, "nothing comes any more");

    // … and what comes after, at the new one.
    a.submit("a", vec![letter(7, ANNA, 10)]).await;
    assert!(a.hand_over(&c, false).await.is_empty());
    assert_eq!(c.kinds(BERT, 20).await, ["letter"]);
    // What was refused here counts there, byte for byte.
    c.submit("c", vec![letter(5, BERT, 20)]).await;
    assert!(c.hand_over(&a, false).await.is_empty());
    let letters = a.kinds(ANNA, 10).await.iter().filter(|kind| **kind == "letter").count();
    assert_eq!(letters, 2);
    // The former home does not speak for the alias any more.
    assert_eq!(a.count("member WHERE node = 'b'").await, 0);

    // A hub that was restored is told again.
    for incarnation in [[1; 16], [2; 16]] {
        let hub = name("a");
        b.store
            .change("greet", move |tx| {
                let hub = hub.clone();
                Box::pin(async move { outbox::greet(tx, &hub, Incarnation::from_bytes(incarnation)).await })
            })
            .await
            .unwrap();
    }
    assert_eq!(b.leave(BERT, "c", 1).await.unwrap().0, 1);
}

#[tokio::test]
async fn nobody_else_moves_an_alias() {
    let (a, b) = thread().await;
    let c = side("c", BERT, &[20]).await;
    c.leave(BERT, "d", 0).await.unwrap();
    let moved = wire::Moved { alias: BERT.to_wire(), node: "c".into() };
    let parcels = vec![wire::Parcel { parcel: Some(wire::parcel::Parcel::Moved(moved)) }];
    let input = Arc::new((c.store.here.clone(), parcels));
    let refused = a
        .store
        .change("receive", move |tx| {
            let input = Arc::clone(&input);
            Box::pin(async move { batch::receive(tx, &input.0, &input.1).await })
        })
        .await
        .unwrap();
    assert!(refused.is_empty());
    assert_eq!(a.count("member WHERE node = 'b'").await, 1);
    a.hand_over(&b, false).await;
    assert_eq!(b.kinds(BERT, 20).await, ["welcome", "letter"]);
}

#[tokio::test]
async fn members_of_the_former_homes_own_groups_move_at_once() {
    let (a, b) = thread().await;
    a.hand_over(&b, false).await;
    // Anna leaves the hub itself, which stays the hub.
    assert_eq!(a.leave(ANNA, "c", 1).await.unwrap().0, 0);
    assert_eq!(a.count("member WHERE node = 'c'").await, 1);
    let c = side("c", ANNA, &[10]).await;
    c.add_route(ANNA, "a").await;
    b.submit("b", vec![letter(4, BERT, 20)]).await;
    b.hand_over(&a, false).await;
    assert!(a.hand_over(&c, false).await.is_empty());
    assert_eq!(c.kinds(ANNA, 10).await, ["letter"]);
    // The hub is between recipient and sender, and passes the report on.
    c.acknowledge(ANNA, 10).await;
    c.hand_over(&a, false).await;
    a.hand_over(&b, false).await;
    assert_eq!(b.events(BERT, 20).await, ["delivered"]);
}
