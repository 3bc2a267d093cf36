//! Who knows what, searched for in everything that there is: every byte that parties keep
//! and receive, every log line and span. What is allowed has to be there; so has a canary
//! that was put into each place on purpose, or the search would be blind.

mod story;

use chancery_interop_tests::collector::Collector;
use chancery_interop_tests::mesh::Mesh;
use chancery_interop_tests::recorder::Recorder;
use chancery_interop_tests::search::{Found, Searcher, Secret};
use chancery_kit::telemetry::{TelemetryConfig, init_to};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What a node knows of people.
const ALIASES: &[&str] = &["alias of number", "alias of phone", "alias of an agent"];
/// What everybody may look up, under a prefix.
const HANDLES: &[&str] = &["number as a handle", "phone as a handle", "absent person as a handle"];

/// Which party keeps which secrets in its folder: all of these and no others. `beside` are
/// the keys that lie in no folder, and `identities` all certificates with their keys.
const KEPT: &[(&str, &[&str])] = &[
    ("beside", &[]),
    ("identities", &[]),
    ("pki", &[]),
    ("e1", &[]),
    ("e2", &[]),
    ("e3", &[]),
    // A channel names its agent's alias.
    ("directory", &["number as a handle", "phone as a handle", "alias of an agent"]),
    (
        "registry",
        &[
            "number as a handle",
            "phone as a handle",
            "key of the record of number",
            "key of the record of phone",
            "secret keys of registry",
        ],
    ),
    ("node-federal", ALIASES),
    ("node-regional", ALIASES),
    ("node-local", &["alias of number", "alias of an agent"]),
    (
        "agent-federal",
        &[
            "number as a handle",
            "key of the record of number",
            "alias of number",
            "absent person as a handle",
            "key of the record of absent person",
            "alias of an agent",
            "letter",
            "file",
            "file name",
            "file key",
            "invitation",
            "secret keys of agent-federal",
        ],
    ),
    (
        "agent-regional",
        &[
            "phone as a handle",
            "key of the record of phone",
            "alias of phone",
            "alias of an agent",
            "letter",
            "secret keys of agent-regional",
        ],
    ),
    (
        "anna",
        &[
            "number itself",
            "number as a handle",
            "key of the record of number",
            "alias of number",
            "alias of an agent",
            "letter",
            "file name",
            "file key",
            "broadcast",
            "invitation",
            "secret keys of anna",
        ],
    ),
    ("anna-second", &["alias of number", "alias of an agent", "letter", "secret keys of anna-second"]),
    (
        "anna-phone",
        &[
            "phone itself",
            "phone as a handle",
            "key of the record of phone",
            "alias of phone",
            "alias of an agent",
            "letter",
            "secret keys of anna-phone",
        ],
    ),
    (
        "anna-phone-again",
        &["phone itself", "phone as a handle", "key of the record of phone", "alias of phone"],
    ),
];

/// The same of what a party is told when it is called.
const CALLED: &[(&str, &[&str])] = &[
    ("pki", &[]),
    ("directory", &["alias of an agent"]),
    ("e1", &[]),
    ("e2", &[]),
    ("e3", &[]),
    ("registry", &["number itself", "phone itself", "code"]),
    ("node-federal", ALIASES),
    ("node-regional", ALIASES),
    ("node-local", &["alias of number", "alias of an agent"]),
];

/// And of the answers to its own calls, other than lookups: those are of a prefix and hold
/// the public part of whatever stands under it, for nodes and endpoints alike.
const ANSWERED: &[(&str, &[&str])] = &[
    ("e1", &[]),
    ("e2", &[]),
    ("e3", &[]),
    ("registry", &[]),
    ("node-federal", &["alias of number"]),
    ("node-regional", &["alias of phone"]),
    ("node-local", &[]),
    ("agent-federal", &["alias of number", "alias of an agent"]),
    ("agent-regional", &["alias of phone", "alias of an agent"]),
    // All devices together, and whoever carries the messages of governance.
    (
        "no certificate",
        &[
            "number itself",
            "number as a handle",
            "phone itself",
            "phone as a handle",
            "alias of number",
            "alias of phone",
            "alias of an agent",
        ],
    ),
];

/// Put into each place on purpose …
const CANARY: &str = "serin jaune échappé de sa cage";
const PLANTED: &str = "canary";
/// What a channel publishes.
const AGENT_ALIAS: &str = "alias of an agent";
/// … and into a database, so long that no page holds the whole of it.
const LONG: &str = "canary over several pages";

/// Where logs go.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<u8>>>);

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What was found in which place, and where exactly.
#[derive(Default)]
struct Findings(BTreeMap<String, BTreeMap<String, String>>);

impl Findings {
    fn add(&mut self, place: &str, found: impl IntoIterator<Item = String>, exactly: &str) {
        let place = self.0.entry(place.to_owned()).or_default();
        place.extend(found.into_iter().map(|kind| (kind, exactly.to_owned())));
    }

    /// Each folder of a mesh is a place; so are the files beside them.
    fn add_disks(&mut self, searcher: &Searcher, mesh: &Path) {
        for folder in folders(mesh) {
            let place = format!("disk of {}", folder.file_name().unwrap().to_str().unwrap());
            for (kind, file) in searcher.search_folder(&folder) {
                self.add(&place, [kind], &file.display().to_string());
            }
            self.add(&place, [], "");
        }
        for entry in std::fs::read_dir(mesh).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let found = searcher.search(&std::fs::read(&path).unwrap());
                self.add("disk of beside", found, &path.display().to_string());
            }
        }
    }

    fn add_calls(&mut self, searcher: &Searcher, recorder: &Recorder) {
        for received in recorder.received() {
            let place = match received.call {
                true => "calls of",
                false if received.method.ends_with("/Lookup") => "lookups of",
                false => "answers to",
            };
            let place = format!("{place} {}", received.receiver);
            // A channel names its agent's mailbox to everybody, and devices ask for the list now and then.
            let is_public = |kind: &String| kind == AGENT_ALIAS && received.method.ends_with("/ListChannels");
            let found = searcher.search(&received.bytes).into_iter().filter(|kind| !is_public(kind));
            self.add(&place, found, &received.method);
        }
    }

    fn add_logs(&mut self, searcher: &Searcher, logs: &Logs) {
        for line in logs.0.lock().unwrap().split(|byte| *byte == b'\n') {
            self.add("logs", searcher.search(line), &String::from_utf8_lossy(line));
        }
    }

    /// Takes a place out: it holds what was put there and what is allowed, no less and no more.
    fn take(&mut self, place: &str, allowed: &[&str]) {
        let mut found = self.0.remove(place).unwrap_or_default();
        assert!(found.remove(PLANTED).is_some(), "the search is blind for {place}");
        let kinds: BTreeSet<_> = found.keys().map(String::as_str).collect();
        assert_eq!(kinds, allowed.iter().copied().collect(), "{place}: {found:#?}");
    }
}

fn folders(mesh: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(mesh).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_dir()).collect()
}

/// Puts a canary into each place, each time in another form.
fn plant(mesh: &Mesh, recorder: &Recorder, canary: &Secret, long: &[u8]) {
    let mut forms = canary.forms().iter().cycle();
    let mut next = || [b"a few bytes before ", forms.next().unwrap().as_slice(), b"\n"].concat();
    for folder in folders(&mesh.path("")) {
        std::fs::write(folder.join("planted"), next()).unwrap();
    }
    std::fs::write(mesh.path("planted"), next()).unwrap();
    for (party, _) in CALLED {
        recorder.add(party, true, &next());
    }
    for (party, _) in ANSWERED {
        recorder.add(party, false, &next());
    }
    tracing::info!("a line of the log: {CANARY}");
    drop(tracing::info_span!(target: "chancery_planted", "planted", note = CANARY).entered());
    let database = rusqlite::Connection::open(mesh.path("node-federal/node.db")).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    database.execute_batch("CREATE TABLE planted (value BLOB)").unwrap();
    database.execute("INSERT INTO planted VALUES (?1)", [long]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_holds_or_receives_what_is_not_theirs() {
    let (logs, recorder, collector) = (Logs::default(), Recorder::default(), Collector::start().await);
    let config = TelemetryConfig {
        log: Some("trace".to_owned()),
        otlp_endpoint: Some(collector.endpoint.clone()),
        ..TelemetryConfig::default()
    };
    let writer = logs.clone();
    let telemetry = init_to("canaries", &config, move || writer.clone()).unwrap();
    let mut mesh = Mesh::recorded(recorder.clone()).await;
    let mut secrets = story::tell(&mut mesh).await;
    let (canary, long) = (Secret::text(PLANTED, CANARY), mesh.entropy.array::<8192>());
    plant(&mesh, &recorder, &canary, &long);
    secrets.extend([canary, Secret::bytes(LONG, &long)]);
    let searcher = Searcher::new(&secrets);
    telemetry.shutdown();

    let mut findings = Findings::default();
    findings.add_disks(&searcher, &mesh.path(""));
    findings.add_calls(&searcher, &recorder);
    findings.add_logs(&searcher, &logs);
    findings.add("spans", searcher.search(&collector.traces()), "");
    let federal = findings.0.get_mut("disk of node-federal").unwrap();
    assert!(federal.remove(LONG).is_some(), "the search is blind for what pages divide");

    findings.take("logs", &[]);
    findings.take("spans", &[]);
    for (places, what) in [(KEPT, "disk of"), (CALLED, "calls of"), (ANSWERED, "answers to")] {
        for (party, allowed) in places {
            findings.take(&format!("{what} {party}"), allowed);
        }
    }
    // What is left are lookups, by prefix: who else stands there is chance.
    for (place, found) in findings.0 {
        assert!(place.starts_with("lookups of"), "nobody said what {place} may hold: {found:#?}");
        assert!(found.keys().all(|kind| HANDLES.contains(&kind.as_str())), "{place}: {found:#?}");
    }
}

/// What other encoders make of a secret is found, wherever it stands in their input.
#[test]
fn the_search_sees_through_encodings() {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use base64::prelude::Engine as _;
    use sha2::Digest as _;
    let key: Vec<u8> = (0..32).map(|byte: u8| byte.wrapping_mul(73)).collect();
    let secrets = [
        Secret::text("text", CANARY),
        Secret::bytes("key", &key),
        Secret::digits("number", "85073000155", &["85.07.30-001.55"]),
        Secret::hash("hash", b"85073000155"),
    ];
    let searcher = Searcher::new(&secrets);
    let all = Found::from(["text", "key", "number", "hash"].map(str::to_owned));
    let hash = sha2::Sha256::digest(b"85073000155");
    for before in 0..5 {
        let mut plain = vec![b'<'; before];
        for secret in [CANARY.as_bytes(), &key, b"85073000155", &hash] {
            plain.extend_from_slice(secret);
            plain.extend_from_slice(b"> <");
        }
        assert_eq!(searcher.search(&plain), all);
        assert_eq!(searcher.search(STANDARD.encode(&plain).as_bytes()), all);
        assert_eq!(searcher.search(URL_SAFE_NO_PAD.encode(&plain).as_bytes()), all);
        assert_eq!(searcher.search(hex::encode(&plain).as_bytes()), all);
        assert_eq!(searcher.search(format!("{plain:?}").as_bytes()), all);
        assert_eq!(searcher.search(&serde_json::to_vec(&plain).unwrap()), all);
        assert_eq!(searcher.search(format!("{:?}", bytes::Bytes::from(plain)).as_bytes()), all);
    }
    let json = serde_json::json!({ "name": CANARY }).to_string();
    assert_eq!(searcher.search(json.as_bytes()), Found::from(["text".to_owned()]));
    assert_eq!(searcher.search(b"85.07.30-001.55 or so"), Found::from(["number".to_owned()]));
    assert_eq!(searcher.search(b"85073000156 and yellow canaries"), Found::new());
}
