//! Who knows what: a mailing with everything logged, then logs and disks
//! searched for what they must not hold.

use aho_corasick::AhoCorasick;
use chancery_interop_tests::{letterbox, program};
use std::collections::BTreeSet;
use std::path::Path;

/// Residents of the mailing.
const RESIDENTS: usize = 12;

/// Something that was looked for, by kind.
type Found = BTreeSet<&'static str>;

struct Searcher {
    automaton: AhoCorasick,
    kinds: Vec<&'static str>,
}

impl Searcher {
    fn new(secrets: Vec<(&'static str, Vec<u8>)>) -> Self {
        assert!(secrets.iter().all(|(_, bytes)| bytes.len() >= 8), "chance would find what is shorter");
        let (kinds, patterns): (Vec<_>, Vec<_>) = secrets.into_iter().unzip();
        Self { automaton: AhoCorasick::new(patterns).unwrap(), kinds }
    }

    fn search(&self, bytes: &[u8]) -> Found {
        self.automaton
            .find_overlapping_iter(bytes)
            .map(|found| self.kinds[found.pattern().as_usize()])
            .collect()
    }

    fn search_folder(&self, folder: &Path) -> Found {
        let mut found = Found::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => found.extend(self.search(&std::fs::read(&path).unwrap())),
                }
            }
        }
        found
    }
}

/// The forms in which 16 or 32 bytes come into logs and files.
fn forms(kind: &'static str, bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    // As `Debug` of a byte slice and of a byte string shows them.
    let list = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let escaped = format!("{:?}", bytes::Bytes::copy_from_slice(bytes));
    let uuid = bytes.first_chunk::<16>().map(|bytes| uuid::Uuid::from_bytes(*bytes).to_string());
    let mut forms = vec![bytes.to_vec(), hex::encode(bytes).into(), hex::encode_upper(bytes).into()];
    forms.push(list.into());
    forms.push(escaped.trim_matches(|c| c == 'b' || c == '"').as_bytes().to_vec());
    forms.extend(uuid.map(String::into_bytes));
    forms.into_iter().map(|form| (kind, form)).collect()
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
        secrets.push(("identifier", fields[2].as_bytes().to_vec()));
        secrets.push(("name", fields[3].as_bytes().to_vec()));
    }
    for letters in letterbox::letters(&folder).await {
        let text = &letters[0].markdown;
        secrets.push(("text", text.chars().skip(80).take(60).collect::<String>().into_bytes()));
    }
    secrets.push(("text", b"Thank you, I have read your letter".to_vec()));
    secrets.push(("text", b"we have worked out your assessment".to_vec()));
    let handles = handles(&folder);
    assert_eq!(handles.len(), RESIDENTS);
    secrets.extend(handles.iter().flat_map(|(handle, _)| forms("handle", handle)));
    secrets.extend(handles.iter().flat_map(|(_, key)| forms("record key", key)));
    let disks = Searcher::new(secrets.clone());
    let aliases = letterbox::aliases(&folder).await;
    assert_eq!(aliases.len(), RESIDENTS);
    secrets.extend(aliases.iter().flat_map(|alias| forms("alias", alias.as_bytes())));
    let logs = Searcher::new(secrets);

    assert!(finished.stderr.lines().count() > 1000, "hardly anything was logged");
    for line in finished.stderr.lines() {
        let found = logs.search(line.as_bytes());
        assert!(found.is_empty(), "{found:?} in the log: {line}");
    }
    assert!(logs.search(finished.stdout.as_bytes()).is_empty());
    for party in ["node-federal", "node-regional", "evaluator-1", "evaluator-2", "evaluator-3", "pki"] {
        assert_eq!(disks.search_folder(&folder.join(party)), Found::new(), "{party}");
    }
    // Public by design, and that the search finds what there is.
    assert_eq!(logs.search_folder(&folder.join("directory")), Found::from(["handle"]));
    // It evaluates what it attests, and keeps neither list nor identifiers.
    let authority = logs.search_folder(&folder.join("authority"));
    assert_eq!(authority, Found::from(["handle", "record key"]));
    let agent = disks.search_folder(&folder.join("agent-federal"));
    assert_eq!(agent, Found::from(["handle", "record key", "text"]));
    assert_eq!(logs.search_folder(&folder.join("node-federal")), Found::from(["alias"]));
    let devices = disks.search_folder(&folder.join("residents"));
    assert!(devices.is_superset(&Found::from(["name", "text"])), "{devices:?}");
}
