//! Two administrations as `deploy/README.md` founds them, every party its own
//! process: letters, a node that is killed under them, and what comes of them.

use crate::founding::{Hosts, NODE, blocks};
use crate::resident::{Resident, object, send};

#[tokio::test(flavor = "multi_thread")]
async fn administrations_apart_lose_and_repeat_nothing() {
    let mut hosts = Hosts::new();
    let code = hosts.found();
    let resident = Resident::enrol(&hosts, &code).await;

    // The README's own letter, then three while the recipient's node is dead.
    let readme = blocks();
    assert!(hosts.run(readme.last().unwrap()).starts_with("accepted "));
    resident.letters(1).await;
    hosts.server("regional", NODE).kill();
    for text in ["two", "three", "four"] {
        send(&hosts, "federal", text);
    }
    hosts.serve("regional", NODE);
    resident.letters(4).await;
    // Killed while one is on its way, and what comes behind it shows that none came twice.
    send(&hosts, "federal", "five");
    hosts.server("regional", NODE).kill();
    hosts.serve("regional", NODE);
    send(&hosts, "federal", "six");
    let items = resident.letters(6).await;
    let texts: Vec<_> = items.iter().map(|item| resident.text(item)).collect();
    assert_eq!(texts, ["Dear resident, your file is ready.", "two", "three", "four", "five", "six"]);

    // Each was delivered, in one event.
    let follower = hosts.follow("federal", "chancery events --follow --json");
    let mut delivered = Vec::new();
    while delivered.len() < texts.len() {
        let event = object(&follower);
        if event["kind"] == "delivered" {
            delivered.push(event["message_id"].as_str().unwrap().to_owned());
        }
    }
    follower.kill();
    delivered.sort_unstable();
    delivered.dedup();
    assert_eq!(delivered.len(), texts.len());

    // The answer goes the other way, and the other administration writes as well.
    resident.answer(&items[0], "Thank you.").await;
    let follower = hosts.follow("federal", "chancery inbox --follow --json");
    let answer = object(&follower);
    follower.kill();
    assert_eq!(answer["markdown"], "Thank you.");
    assert_eq!(hosts.shell("federal", "chancery inbox --json").lines().count(), 1);
    send(&hosts, "regional", "from nearby");
    let items = resident.letters(7).await;
    assert_eq!(resident.text(&items[6]), "from nearby");

    resident.stop().await;
    hosts.terminate();
}
