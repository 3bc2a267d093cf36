//! A node whose disk does not flush, as a process whose fsync fails: it acknowledges
//! nothing that a power cut would take away.

use crate::founding::{Hosts, NODE};
use crate::inside::system;
use crate::resident::{Resident, TO, device, object, send};
use chancery_types::{Clock as _, Reason, SystemClock};

const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/flush.c");

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_flushed_is_not_acknowledged() {
    let mut hosts = Hosts::new();
    let (library, fails) = (hosts.path("bin", "flush.so"), hosts.path("regional", "flush-fails"));
    system(&format!("cc -shared -fPIC -o {} {LIBRARY}", library.display()));
    let preloaded =
        format!("env LD_PRELOAD={} FLUSH_FAILS_WHILE={} {NODE}", library.display(), fails.display());
    let code = hosts.found();
    hosts.server("regional", NODE).kill();
    hosts.serve("regional", &preloaded);
    let resident = Resident::enrol(&hosts, &code).await;
    send(&hosts, "federal", "one");
    send(&hosts, "regional", "two");
    resident.letters(2).await;

    // From now on nothing reaches the disk; the copy is what a power cut would leave.
    std::fs::write(&fails, "").unwrap();
    hosts.shell("regional", "cp -r node after-the-power-cut");
    let stranger = device(&hosts, "stranger").await;
    let refusal = stranger.register().await.unwrap_err();
    assert_eq!(refusal.reason, Reason::Internal, "{refusal}");
    send(&hosts, "federal", "three");
    let line = format!("chancery send --json --to {TO} --text four");
    let fourth = hosts.follow("regional", &line);
    hosts.server("regional", &preloaded).kill();
    hosts.shell("regional", "rm -r node && mv after-the-power-cut node");
    let healed = SystemClock.now();
    std::fs::remove_file(&fails).unwrap();
    hosts.serve("regional", &preloaded);

    let accepted = object(&fourth)["accepted_at"].as_str().unwrap().to_owned();
    assert!(
        accepted >= healed.to_string(),
        "accepted at {accepted}, and nothing was flushed before {healed}"
    );
    let items = resident.letters(4).await;
    let mut texts: Vec<_> = items.iter().map(|item| resident.text(item)).collect();
    texts.sort_unstable();
    assert_eq!(texts, ["four", "one", "three", "two"]);
    stranger.register().await.unwrap();

    resident.stop().await;
    hosts.terminate();
}
