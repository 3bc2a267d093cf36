//! The threat model names files and tests: they must be there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Folders of the crates as the threat model calls them.
const CRATES: [(&str, &str); 17] = [
    ("types", "proto/types"),
    ("kit", "proto/kit"),
    ("pki-core", "pki/core"),
    ("pki", "pki"),
    ("directory-core", "directory/core"),
    ("directory-log", "directory/log"),
    ("directory", "directory"),
    ("node-core", "node/core"),
    ("node", "node"),
    ("sdk-core", "sdk/core"),
    ("sdk", "sdk"),
    ("chancery", "deploy/chancery"),
    ("proto", "proto"),
    ("interop", "interop-tests"),
    ("simulation", "interop-tests/simulation"),
    ("fuzz", "interop-tests/fuzz"),
    ("proofs", "directory/core"),
];

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// All Rust files below a folder, but for those of crates inside it.
fn sources(folder: &Path, top: bool, found: &mut Vec<PathBuf>) {
    if !top && folder.join("Cargo.toml").exists() {
        return;
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, false, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Text of all sources of each crate.
pub(crate) fn texts() -> BTreeMap<&'static str, String> {
    let text = |folder: &str| {
        let mut files = Vec::new();
        sources(&root().join(folder), true, &mut files);
        files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
    };
    CRATES.iter().map(|(name, folder)| (*name, text(folder))).collect()
}

/// What stands in back quotes, with the word before it.
fn quoted(cell: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut parts = cell.split('`');
    std::iter::from_fn(move || {
        let before = parts.next()?.split_whitespace().last().unwrap_or_default();
        Some((before.trim_matches([',', ';', ':', '(']), parts.next()?))
    })
}

#[test]
fn what_the_threat_model_names_exists() {
    let page = std::fs::read_to_string(root().join("docs/threat-model.md")).unwrap();
    let (_, tables) = page.split_once("## Threats, controls, tests").unwrap();
    let texts = texts();
    let (mut rows, mut tests) = (0, 0);
    for line in tables.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.split(" | ").collect();
        let [threat, _, places, _, shown] = cells[..] else { continue };
        if shown.starts_with("test") || shown.starts_with("---") {
            continue;
        }
        rows += 1;
        for (_, place) in quoted(places) {
            assert!(root().join(place).exists(), "{threat}: {place} is not there");
        }
        let mut source: Option<&str> = None;
        for (before, test) in quoted(shown) {
            if let Some((name, _)) = CRATES.iter().find(|(name, _)| *name == before) {
                source = Some(name);
            }
            let text =
                source.map(|name| &texts[name]).unwrap_or_else(|| panic!("{threat}: whose is {test}?"));
            let function = test.rsplit("::").next().unwrap();
            let there =
                [format!("fn {function}("), format!("{function} =>")].iter().any(|it| text.contains(it));
            assert!(there, "{threat}: {source:?} has no test {test}");
            tests += 1;
        }
        assert!(source.is_some(), "{threat}: no test");
    }
    assert!(rows > 70 && tests > 100, "the tables are not read as they are: {rows} rows, {tests} tests");
}
