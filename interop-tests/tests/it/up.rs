//! `chancery up`, the main job, as its user runs it.

use chancery_interop_tests::{agent, letterbox, program};
use chancery_proto::agent::v1::EventKind;
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const FIELDS: [&str; 11] = [
    "accepted",
    "relayed",
    "delivered",
    "read",
    "answered",
    "failed",
    "duplicates",
    "letters_per_s",
    "p50_ms",
    "p99_ms",
    "broadcasts",
];

/// The arguments of a run on `folder`, with `more`.
fn up<'a>(folder: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let folder = folder.to_str().unwrap();
    [&["up", "--once", "--port", "0", "--dir", folder], more].concat()
}

fn count(figures: &serde_json::Map<String, Value>, field: &str) -> u64 {
    figures[field].as_u64().unwrap_or_else(|| panic!("{field} is no count: {}", figures[field]))
}

/// Runs with `--json` and checks the figures of a run in which all went well;
/// gives letters per second and the two latencies.
fn all_arrive(folder: &Path, residents: u64) -> [f64; 3] {
    let number = residents.to_string();
    let finished = program::run(&up(folder, &["--json", "--residents", &number]));
    assert!(finished.status.success(), "{}", finished.stderr);
    let figures = finished.figures();
    let fields: BTreeSet<&str> = figures.keys().map(String::as_str).collect();
    assert_eq!(fields, BTreeSet::from(FIELDS));
    for field in ["accepted", "relayed", "delivered", "read"] {
        assert_eq!(count(&figures, field), residents, "{field}");
    }
    assert_eq!(count(&figures, "answered"), residents.div_ceil(10));
    assert_eq!((count(&figures, "failed"), count(&figures, "duplicates")), (0, 0));
    // One by each agency, read by everybody; the cells of both homes.
    let broadcasts = figures["broadcasts"].as_object().unwrap();
    let found = ["sent", "cells", "read"].map(|field| count(broadcasts, field));
    assert_eq!(found, [2, 2, 2 * residents]);
    ["letters_per_s", "p50_ms", "p99_ms"].map(|f| figures[f].as_f64().unwrap())
}

/// Each device holds one letter: its own, with both attachments.
async fn one_letter_each(folder: &Path, residents: usize) {
    let devices = letterbox::letters(folder).await;
    assert_eq!(devices.len(), residents);
    let mut texts = BTreeSet::new();
    for letters in &devices {
        assert_eq!(letters.len(), 1);
        let files: Vec<&str> = letters[0].attachments.iter().map(|file| file.file_name.as_str()).collect();
        assert_eq!(files, ["notice.pdf", "pay.png"]);
        assert!(letters[0].markdown.starts_with("# Your assessment"));
        texts.insert(letters[0].markdown.clone());
    }
    assert_eq!(texts.len(), residents, "two residents have the same letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_letter_arrives_and_the_same_requests_again_send_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("federation");
    let [rate, p50, p99] = all_arrive(&folder, 12);
    assert!(rate > 0.0 && 0.0 < p50 && p50 <= p99, "{rate} {p50} {p99}");
    one_letter_each(&folder, 12).await;
    keys_are_private(&folder);
    // All of it was sent before: there is nothing to measure.
    assert_eq!(all_arrive(&folder, 12), [0.0; 3]);
    one_letter_each(&folder, 12).await;
    keys_are_private(&folder);
}

/// No file of a federation but ciphertext may be read by others than its owner.
fn keys_are_private(folder: &Path) {
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder), 0o700);
    let (mut private, mut folders) = (0, vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !(folder.ends_with("blobs") || folder.ends_with("spool")) {
                assert_eq!(mode(&path) & 0o077, 0, "{} is open to others", path.display());
                private += 1;
            }
        }
    }
    assert!(private > 30, "only {private} files were looked at");
}

#[test]
fn wrong_rows_are_refused_with_line_and_reason_while_the_others_go() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("recipients.csv");
    let row = |number: u32, scheme: &str, identifier: &str, rest: &str| {
        format!("00000000-0000-4000-8000-{number:012},{scheme},{identifier},A. Name {number},en{rest}\n")
    };
    let rows = [
        "request_id,scheme,identifier,name,language,amount_due\n".to_owned(),
        row(1, "be-nn", "85.07.30-033 28", ",1 EUR"),
        row(2, "be-nn", "85073003329", ",1 EUR"),
        row(3, "be-nn", "17073003384", ""),
        row(4, "xx-id", "17073003384", ",1 EUR"),
        row(5, "be-nn", "17073003384", ",1 EUR"),
    ];
    std::fs::write(&list, rows.concat()).unwrap();
    let letter = folder.path().join("letter.md");
    std::fs::write(&letter, "# Dear {{ name }}\n\nYou owe us {{ amount_due }}.\n").unwrap();
    let more = ["--recipients", list.to_str().unwrap(), "--letter", letter.to_str().unwrap()];
    let dir = folder.path().join("federation");

    let finished = program::run(&up(&dir, &more));
    assert!(!finished.status.success(), "rows were refused and nobody heard of it");
    for (line, reason) in [(3, "check digits"), (4, "has 5 fields"), (5, "scheme")] {
        let said = finished.stdout.lines().find(|said| said.contains(&format!("line {line}:")));
        let said = said.unwrap_or_else(|| panic!("nothing of line {line}: {}", finished.stdout));
        assert!(said.contains(reason), "{said}");
    }
    let refused = finished.stdout.lines().filter(|line| line.contains("row refused")).count();
    assert_eq!(refused, 3, "{}", finished.stdout);

    let figures = program::run(&up(&dir, &[more.as_slice(), &["--json"]].concat())).figures();
    assert_eq!((count(&figures, "delivered"), count(&figures, "failed")), (2, 3));
    assert_eq!(count(&figures, "duplicates"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_twice_in_the_middle_and_all_arrive_once() {
    const RESIDENTS: usize = 80;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("federation");
    let number = RESIDENTS.to_string();
    let mut seen = 0;
    // The first time as soon as something is accepted, then as soon as something more is delivered.
    for kind in [EventKind::Accepted, EventKind::Delivered] {
        let program = program::Program::start(&up(&folder, &["--json", "--residents", &number]));
        let address = program::address(&folder, "agent-federal");
        let mut client = agent::connect(&address).await;
        let events = agent::events_until(&mut client, seen, |event| event.kind() == kind).await;
        program.kill();
        seen = events.last().unwrap().position;
        let there: usize = letterbox::letters(&folder).await.iter().map(Vec::len).sum();
        assert!(there < RESIDENTS, "all had arrived before the program was killed");
    }
    let _ = all_arrive(&folder, RESIDENTS as u64);
    one_letter_each(&folder, RESIDENTS).await;
}
