//! A node that is restored from an older copy of its folder: what it had taken and not
//! reported on comes again, and devices read what comes although they saw more of the
//! former store than the copy has.

use crate::founding::{AGENT, Hosts, NODE};
use crate::resident::{Resident, TO, object, send};

/// Sends a letter and waits for an event of it.
fn send_until(hosts: &Hosts, text: &str, kind: &str) {
    let sent = hosts.shell("federal", &format!("chancery send --json --to {TO} --text {text}"));
    let sent: serde_json::Value = serde_json::from_str(&sent).unwrap();
    let follower = hosts.follow("federal", "chancery events --follow --json");
    loop {
        let event = object(&follower);
        if event["message_id"] == sent["message_id"] && event["kind"] == kind {
            break follower.kill();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_node_gets_again_what_it_has_not_reported_on() {
    let mut hosts = Hosts::new();
    let code = hosts.found();
    let mut resident = Resident::enrol(&hosts, &code).await;
    send_until(&hosts, "one", "delivered");
    hosts.server("regional", NODE).kill();
    hosts.shell("regional", "cp -r node copy");
    hosts.serve("regional", NODE);

    // The device sees more than the copy has; the node takes one more, which waits there.
    for text in ["two", "three"] {
        send_until(&hosts, text, "delivered");
    }
    resident.pause().await;
    send_until(&hosts, "four", "relayed");
    hosts.server("regional", NODE).kill();
    hosts.shell("regional", "rm -r node; mv copy node; chancery node restored --config config/node.toml");
    hosts.serve("regional", NODE);
    resident.resume();
    resident.letters(4).await;
    send(&hosts, "federal", "five");
    let items = resident.letters(5).await;
    let texts: Vec<_> = items.iter().map(|item| resident.text(item)).collect();
    assert_eq!(texts, ["one", "two", "three", "four", "five"]);

    resident.stop().await;
    hosts.terminate();
}

/// Letters of the resident that the agent has.
fn answers(hosts: &Hosts, count: usize) {
    let follower = hosts.follow("federal", "chancery inbox --follow --json");
    (0..count).for_each(|_| drop(object(&follower)));
    follower.kill();
}

/// The node has forgotten what it ordered since, the agent which keys it has used since.
#[tokio::test(flavor = "multi_thread")]
async fn a_thread_outlives_a_restored_hub_and_a_restored_agent() {
    let mut hosts = Hosts::new();
    let code = hosts.found();
    let resident = Resident::enrol(&hosts, &code).await;
    send_until(&hosts, "one", "delivered");
    hosts.server("federal", AGENT).kill();
    hosts.server("federal", NODE).kill();
    hosts.shell("federal", "cp -r node node-copy; cp -r agent agent-copy");
    hosts.serve("federal", NODE);
    hosts.serve("federal", AGENT);
    for text in ["two", "three"] {
        send_until(&hosts, text, "delivered");
    }
    let first = resident.letters(3).await.remove(0);
    resident.answer(&first, "before").await;
    answers(&hosts, 1);

    hosts.server("federal", NODE).kill();
    hosts.shell("federal", "rm -r node; mv node-copy node; chancery node restored --config config/node.toml");
    hosts.serve("federal", NODE);
    // Whoever has something to say opens the group that takes the other one's place.
    resident.answer(&first, "the hub was restored").await;
    answers(&hosts, 2);
    send_until(&hosts, "four", "delivered");

    hosts.server("federal", AGENT).kill();
    hosts.shell("federal", "rm -r agent; mv agent-copy agent");
    hosts.serve("federal", AGENT);
    send_until(&hosts, "five", "delivered");
    resident.answer(&first, "the agent was restored").await;
    // What came since the copy is not in it.
    answers(&hosts, 1);

    let items = resident.letters(5).await;
    let texts: Vec<_> = items.iter().map(|item| resident.text(item)).collect();
    assert_eq!(texts, ["one", "two", "three", "four", "five"]);
    assert!(items.iter().all(|item| item.thread == first.thread), "to people it is one thread");
    assert!(resident.endpoint.alarms_after(0, 100).await.unwrap().is_empty());
    resident.stop().await;
    hosts.terminate();
}
