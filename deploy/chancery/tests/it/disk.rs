//! A node whose disk is full, as a process on a small file system: it refuses, loses
//! nothing that it acknowledged, and goes on when there is room again.

use crate::founding::{Hosts, NODE};
use crate::inside::{inside, system};
use crate::resident::{Resident, TO, device, object, send};
use chancery_types::{Clock as _, Reason, Refusal, SystemClock};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Most accounts that are opened until the node's files have to grow.
const TRIES: usize = 50;

/// Takes all room that is left beside a node's files; gives what does.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for piece in [64 * 1024, 4096, 1] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
    path
}

/// Opens accounts until the node says no.
async fn refusal(hosts: &Hosts, name: &str) -> Refusal {
    for number in 0..TRIES {
        let device = device(hosts, &format!("{name}-{number}")).await;
        if let Err(refusal) = device.register().await {
            return refusal;
        }
    }
    panic!("a full disk takes {TRIES} accounts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_loses_nothing() {
    if !inside("disk::a_full_disk_refuses_and_loses_nothing", &["--mount"]) {
        return;
    }
    let mut hosts = Hosts::new();
    let folder = hosts.path("regional", "node");
    std::fs::create_dir(&folder).unwrap();
    system(&format!("mount -t tmpfs -o size=12m,mode=700 node {}", folder.display()));
    let code = hosts.found();
    let resident = Resident::enrol(&hosts, &code).await;
    send(&hosts, "federal", "one");
    resident.letters(1).await;

    // Refused with a reason that says that it may pass; the other node's letter waits
    // there, and that of its own agent is not accepted.
    let filler = fill(&folder);
    let refusal = refusal(&hosts, "stranger").await;
    assert_eq!(refusal.reason, Reason::Overloaded, "{refusal}");
    send(&hosts, "federal", "two");
    let line = format!("chancery send --json --to {TO} --text three");
    let third = hosts.follow("regional", &line);
    let room = SystemClock.now();
    std::fs::remove_file(filler).unwrap();
    let accepted = object(&third)["accepted_at"].as_str().unwrap().to_owned();
    assert!(accepted >= room.to_string(), "accepted at {accepted}, and there was room from {room} on");
    resident.letters(3).await;
    device(&hosts, "newcomer").await.register().await.unwrap();

    // Killed while the disk is full.
    let filler = fill(&folder);
    send(&hosts, "federal", "four");
    hosts.server("regional", NODE).kill();
    std::fs::remove_file(filler).unwrap();
    hosts.serve("regional", NODE);
    let items = resident.letters(4).await;
    let mut texts: Vec<_> = items.iter().map(|item| resident.text(item)).collect();
    texts.sort_unstable();
    assert_eq!(texts, ["four", "one", "three", "two"]);

    resident.stop().await;
    hosts.terminate();
}
