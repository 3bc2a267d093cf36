//! Who knows what: a mailing with everything logged, then logs and disks
//! searched for what they must not hold.

use chancery_interop_tests::search::{Found, Searcher, Secret};
use chancery_interop_tests::{letterbox, program};
use std::path::Path;

/// Residents of the mailing.
const RESIDENTS: usize = 12;

/// Kinds of secrets, by name.
fn kinds<const N: usize>(kinds: [&str; N]) -> Found {
    Found::from(kinds.map(str::to_owned))
}

/// Handles that an agent has evaluated, with the keys of their records.
fn handles(folder: &Path) -> Vec<([u8; 32], [u8; 32])> {
    let store = rusqlite::Connection::open(folder.join("agent-federal/endpoint.db")).unwrap();
    let mut rows = store.prepare("SELECT handle, record_key FROM handles").unwrap();
    rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_logs_nor_the_disks_of_those_between_hold_what_they_must_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("federation");
    let dir = folder.to_str().unwrap();
    let residents = RESIDENTS.to_string();
    let arguments = ["up", "--once", "--json", "--residents", &residents, "--port", "0", "--dir", dir];
    let finished = program::run(&[arguments.as_slice(), &["--log", "trace"]].concat());
    assert!(finished.status.success(), "{}", finished.stderr);

    let mut secrets = Vec::new();
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy/local/recipients.csv");
    for row in std::fs::read_to_string(list).unwrap().lines().skip(1).take(RESIDENTS) {
        let fields: Vec<&str> = row.split(',').collect();
        secrets.push(Secret::digits("identifier", fields[2], &[]));
        secrets.push(Secret::text("name", fields[3]));
    }
    for letters in letterbox::letters(&folder).await {
        let text = &letters[0].markdown;
        secrets.push(Secret::text("text", &text.chars().skip(80).take(60).collect::<String>()));
    }
    secrets.push(Secret::text("text", "Thank you, I have read your letter"));
    secrets.push(Secret::text("text", "we have worked out your assessment"));
    let handles = handles(&folder);
    assert_eq!(handles.len(), RESIDENTS);
    secrets.extend(handles.iter().map(|(handle, _)| Secret::bytes("handle", handle)));
    secrets.extend(handles.iter().map(|(_, key)| Secret::bytes("record key", key)));
    let disks = Searcher::new(&secrets);
    let aliases = letterbox::aliases(&folder).await;
    assert_eq!(aliases.len(), RESIDENTS);
    secrets.extend(aliases.iter().map(|alias| Secret::bytes("alias", alias.as_bytes())));
    let logs = Searcher::new(&secrets);

    assert!(finished.stderr.lines().count() > 1000, "hardly anything was logged");
    for line in finished.stderr.lines() {
        let found = logs.search(line.as_bytes());
        assert!(found.is_empty(), "{found:?} in the log: {line}");
    }
    assert!(logs.search(finished.stdout.as_bytes()).is_empty());
    let of = |searcher: &Searcher, party: &str| -> Found {
        searcher.search_folder(&folder.join(party)).into_keys().collect()
    };
    for party in ["node-federal", "node-regional", "evaluator-1", "evaluator-2", "evaluator-3", "pki"] {
        assert_eq!(of(&disks, party), Found::new(), "{party}");
    }
    // Public by design, and that the search finds what there is.
    assert_eq!(of(&logs, "directory"), kinds(["handle"]));
    // It evaluates what it attests, and keeps neither list nor identifiers.
    assert_eq!(of(&logs, "authority"), kinds(["handle", "record key"]));
    assert_eq!(of(&disks, "agent-federal"), kinds(["handle", "record key", "text"]));
    assert_eq!(of(&logs, "node-federal"), kinds(["alias"]));
    let devices = of(&disks, "residents");
    assert!(devices.is_superset(&kinds(["name", "text"])), "{devices:?}");
}
