//! Looking for secrets in bytes, in every form in which they may have got there.
//! Which party may hold which secret is not said here.

use aho_corasick::AhoCorasick;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use bytes::Bytes;
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Chance would find what is shorter.
const SHORTEST: usize = 6;
/// How SQLite's files begin.
const SQLITE: &[u8] = b"SQLite format 3\0";

/// Kinds of secrets that were found.
pub type Found = BTreeSet<String>;

/// What is looked for.
pub struct Secret {
    kind: String,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    /// Bytes: raw, in hexadecimal, in base64 at any place of a longer text, as lists of
    /// numbers in text and CBOR, and as debuggers and UUIDs write them.
    pub fn bytes(kind: &str, bytes: &[u8]) -> Self {
        let list = |between| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(between);
        let escaped = format!("{:?}", Bytes::copy_from_slice(bytes));
        let mut forms = vec![bytes.to_vec(), hex::encode(bytes).into(), hex::encode_upper(bytes).into()];
        forms.extend([list(", ").into(), list(",").into()]);
        // RFC 8949, section 3: small numbers are one byte, others two.
        forms.push(
            bytes.iter().flat_map(|byte| [0x18, *byte].into_iter().skip((*byte < 24).into())).collect(),
        );
        forms.push(escaped.trim_matches(|c| c == 'b' || c == '"').as_bytes().to_vec());
        for alphabet in [&STANDARD, &URL_SAFE] {
            forms.extend((0..3).map(|place| base64(alphabet, place, bytes)));
        }
        if let Ok(bytes) = <[u8; 16]>::try_from(bytes) {
            forms.push(uuid::Uuid::from_bytes(bytes).to_string().into());
        }
        forms.sort();
        forms.dedup();
        Self { kind: kind.to_owned(), forms }
    }

    /// Text: as bytes, in UTF-16, and as JSON and URLs write it.
    pub fn text(kind: &str, text: &str) -> Self {
        let mut secret = Self::bytes(kind, text.as_bytes());
        secret.forms.push(text.encode_utf16().flat_map(u16::to_le_bytes).collect());
        secret.forms.push(text.encode_utf16().flat_map(u16::to_be_bytes).collect());
        secret.forms.push(serde_json::to_string(text).unwrap().trim_matches('"').into());
        let ascii = |c: char| match c {
            c if c.is_ascii() => c.to_string(),
            c => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        };
        secret.forms.push(text.chars().map(ascii).collect::<String>().into());
        let url = |byte: u8| match byte {
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        secret.forms.push(text.bytes().map(url).collect::<String>().into());
        secret.forms.sort();
        secret.forms.dedup();
        secret
    }

    /// Digits: as text, as people group them, and as whole numbers.
    pub fn digits(kind: &str, digits: &str, written: &[&str]) -> Self {
        let mut secret = Self::text(kind, digits);
        secret.forms.extend(written.iter().map(|written| written.as_bytes().to_vec()));
        let number: u64 = digits.parse().unwrap();
        // SQLite writes such numbers in six bytes.
        secret.forms.push(number.to_be_bytes()[2..].to_vec());
        secret.forms.push(number.to_le_bytes().to_vec());
        secret
    }

    /// SHA-256 of something.
    pub fn hash(kind: &str, of: &[u8]) -> Self {
        Self::bytes(kind, &Sha256::digest(of))
    }

    /// All the ways to write it.
    pub fn forms(&self) -> &[Vec<u8>] {
        &self.forms
    }
}

/// A copy of a database whose owner may have it locked, and is not about to move the
/// log's pages; in a folder of its own.
pub fn copy(path: &Path) -> (Connection, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    for end in ["", "-wal"] {
        let from = format!("{}{end}", path.display());
        if std::fs::exists(&from).unwrap() {
            std::fs::copy(from, folder.path().join(format!("copy{end}"))).unwrap();
        }
    }
    (Connection::open(folder.path().join("copy")).unwrap(), folder)
}

/// The characters of base64 that depend on `bytes` alone, where `place` bytes (modulo 3)
/// stand before them.
fn base64(alphabet: &Alphabet, place: usize, bytes: &[u8]) -> Vec<u8> {
    let before = vec![0; place];
    let text = GeneralPurpose::new(alphabet, NO_PAD).encode([&before, bytes].concat());
    let (first, end) = ((place * 8).div_ceil(6), (place + bytes.len()) * 8 / 6);
    text.as_bytes()[first..end].to_vec()
}

/// Looks for many secrets at once.
pub struct Searcher {
    automaton: AhoCorasick,
    kinds: Vec<String>,
}

impl Searcher {
    /// Looks for these.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let (mut patterns, mut kinds) = (Vec::new(), Vec::new());
        for secret in secrets {
            for form in &secret.forms {
                assert!(form.len() >= SHORTEST, "{}: chance would find {form:?}", secret.kind);
                patterns.push(form);
                kinds.push(secret.kind.clone());
            }
        }
        Self { automaton: AhoCorasick::new(patterns).unwrap(), kinds }
    }

    /// What there is in some bytes.
    pub fn search(&self, bytes: &[u8]) -> Found {
        let found = self.automaton.find_overlapping_iter(bytes);
        found.map(|found| self.kinds[found.pattern().as_usize()].clone()).collect()
    }

    /// What there is in a folder, and in which file: in the names of files, in every byte
    /// of them, and in every value of databases, which may lie apart on their pages.
    pub fn search_folder(&self, folder: &Path) -> BTreeMap<String, PathBuf> {
        let mut all = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let (name, path) = entry.map(|entry| (entry.file_name(), entry.path())).unwrap();
                let mut found = self.search(name.as_encoded_bytes());
                if path.is_dir() {
                    folders.push(path.clone());
                } else if let Ok(bytes) = std::fs::read(&path) {
                    // Otherwise gone by now: a journal, or a file that has got its own name.
                    found.extend(self.search(&bytes));
                    if bytes.starts_with(SQLITE) {
                        found.extend(self.search_database(&path));
                    }
                }
                all.extend(found.into_iter().map(|kind| (kind, path.clone())));
            }
        }
        all
    }

    fn search_database(&self, path: &Path) -> Found {
        let (database, _folder) = copy(path);
        let mut tables = database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
        let tables: Result<Vec<String>, _> = tables.query_map([], |row| row.get(0)).unwrap().collect();
        let mut found = Found::new();
        for table in tables.unwrap() {
            let mut statement = database.prepare(&format!("SELECT * FROM \"{table}\"")).unwrap();
            let columns = statement.column_count();
            let mut rows = statement.query([]).unwrap();
            while let Some(row) = rows.next().unwrap() {
                for column in 0..columns {
                    if let ValueRef::Text(value) | ValueRef::Blob(value) = row.get_ref(column).unwrap() {
                        found.extend(self.search(value));
                    }
                }
            }
        }
        found
    }
}
