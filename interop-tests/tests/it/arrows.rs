//! What the workspace may be made of: arrows between its crates, licences and
//! bans of everybody else's, all as `cargo metadata` says.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// What each crate may use of the others, beside what stands under it. A shell
/// never uses another shell.
const ARROWS: [(&str, &[&str]); 17] = [
    ("chancery-proto", &[]),
    ("chancery-types", &["chancery-proto"]),
    ("chancery-pki-core", &["chancery-proto", "chancery-types"]),
    ("chancery-directory-core", &["chancery-proto", "chancery-types", "chancery-pki-core"]),
    (
        "chancery-node-core",
        &["chancery-proto", "chancery-types", "chancery-pki-core", "chancery-directory-core"],
    ),
    ("chancery-sdk-core", &["chancery-proto", "chancery-types"]),
    ("chancery-kit", &["chancery-proto", "chancery-types", "chancery-pki-core"]),
    ("chancery-directory-log", &INNER),
    ("chancery-pki", &SHELL),
    ("chancery-directory", &SHELL),
    ("chancery-node", &SHELL),
    ("chancery-sdk", &SHELL),
    ("chancery", &ALL),
    ("chancery-interop-tests", &ALL),
    ("chancery-simulation", &["chancery-proto", "chancery-types", "chancery-node-core", "chancery-sdk-core"]),
    ("chancery-fuzz", &EVERYTHING),
    ("chancery-test-postgres", &[]),
];
/// Any core, and kit.
const INNER: [&str; 7] = [
    "chancery-proto",
    "chancery-types",
    "chancery-pki-core",
    "chancery-directory-core",
    "chancery-node-core",
    "chancery-sdk-core",
    "chancery-kit",
];
/// The same and the log.
const SHELL: [&str; 8] =
    [INNER[0], INNER[1], INNER[2], INNER[3], INNER[4], INNER[5], INNER[6], "chancery-directory-log"];
/// The same and the shells.
const ALL: [&str; 12] = [
    INNER[0],
    INNER[1],
    INNER[2],
    INNER[3],
    INNER[4],
    INNER[5],
    INNER[6],
    "chancery-directory-log",
    "chancery-pki",
    "chancery-directory",
    "chancery-node",
    "chancery-sdk",
];
/// The same and what the program offers to others.
const EVERYTHING: [&str; 13] = [
    ALL[0], ALL[1], ALL[2], ALL[3], ALL[4], ALL[5], ALL[6], ALL[7], ALL[8], ALL[9], ALL[10], ALL[11],
    "chancery",
];

/// What tests of any crate may use: a real PostgreSQL, and the tables of the simulation.
const HELPERS: [&str; 2] = ["chancery-test-postgres", "chancery-simulation"];

/// Crates that decide and verify without I/O.
const CORES: [&str; 5] = [
    "chancery-types",
    "chancery-pki-core",
    "chancery-directory-core",
    "chancery-node-core",
    "chancery-sdk-core",
];
/// What does I/O.
const IO: [&str; 9] =
    ["tokio", "tokio-stream", "tokio-util", "tonic", "sqlx", "rusqlite", "hyper", "hyper-util", "rustls"];

/// Licences that need nothing of us but their text.
const LICENCES: [&str; 10] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];
/// Packages under another licence, and why that is good here.
const EXCEPTIONS: [(&str, &str, &str); 5] = [
    ("hpke-rs", "MPL-2.0", "copyleft by file; used as it was published"),
    ("hpke-rs-crypto", "MPL-2.0", "copyleft by file; used as it was published"),
    ("hpke-rs-rust-crypto", "MPL-2.0", "copyleft by file; used as it was published"),
    ("minicbor", "BlueOak-1.0.0", "permissive, and asks for less than MIT"),
    ("webpki-roots", "CDLA-Permissive-2.0", "data, not code: roots that sqlx brings"),
];

/// Packages that must not come in, and why.
const BANNED: [(&str, &str); 12] = [
    ("openssl", "one TLS: rustls over aws-lc-rs"),
    ("openssl-sys", "one TLS: rustls over aws-lc-rs"),
    ("native-tls", "one TLS: rustls over aws-lc-rs"),
    ("hyper-tls", "one TLS: rustls over aws-lc-rs"),
    ("ring", "one cryptographic provider under rustls: aws-lc-rs"),
    ("rustls-native-certs", "the federation's root is the only one; the system's do not count"),
    ("async-std", "one runtime: tokio"),
    ("chrono", "one calendar: jiff"),
    ("git2", "builds need no git"),
    ("lettre", "brings native-tls by default"),
    ("serde_yaml", "unmaintained"),
    ("atty", "unmaintained"),
];

struct Workspace {
    root: &'static Path,
    packages: Vec<Value>,
    members: BTreeSet<String>,
    /// Names and versions of the packages that this platform's build uses.
    used: BTreeSet<(String, String)>,
}

fn workspace() -> Workspace {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let host = cargo(root, &["-vV"]);
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    // Offline: whatever this build uses is here already.
    let metadata = ["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host];
    let metadata: Value = serde_json::from_str(&cargo(root, &metadata)).unwrap();
    // The features that count are those of the build: `metadata` names packages that it leaves out.
    let tree = ["tree", "--workspace", "--edges", "normal,build,dev", "--prefix", "none", "--format", "{p}"];
    let tree = cargo(root, &[tree.as_slice(), &["--offline", "--locked"]].concat());
    let used = tree.lines().filter(|line| !line.is_empty()).map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        (name.to_owned(), words.next().unwrap().trim_start_matches('v').to_owned())
    });
    let members = metadata["workspace_members"].as_array().unwrap();
    Workspace {
        root,
        packages: metadata["packages"].as_array().unwrap().clone(),
        members: members.iter().map(|member| member.as_str().unwrap().to_owned()).collect(),
        used: used.collect(),
    }
}

fn cargo(root: &Path, arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Workspace {
    fn own(&self) -> impl Iterator<Item = &Value> {
        self.packages.iter().filter(|package| self.members.contains(id(package)))
    }

    fn foreign(&self) -> impl Iterator<Item = &Value> {
        let is_used = |package: &Value| {
            let version = package["version"].as_str().unwrap();
            self.used.contains(&(name(package).to_owned(), version.to_owned()))
        };
        self.packages.iter().filter(move |package| is_used(package) && !self.members.contains(id(package)))
    }
}

fn id(package: &Value) -> &str {
    package["id"].as_str().unwrap()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap()
}

/// Names of direct dependencies, whatever they are for.
fn dependencies(package: &Value) -> impl Iterator<Item = &str> {
    package["dependencies"].as_array().unwrap().iter().map(name)
}

#[test]
fn arrows_point_inwards() {
    let workspace = workspace();
    let allowed = BTreeMap::from(ARROWS);
    for package in workspace.own() {
        let allowed = allowed.get(name(package)).unwrap_or_else(|| panic!("{} is new", name(package)));
        let own = |name: &&str| name.starts_with("chancery") && !HELPERS.contains(name);
        for dependency in dependencies(package).filter(own) {
            assert!(allowed.contains(&dependency), "{} uses {dependency}", name(package));
        }
        if CORES.contains(&name(package)) {
            let io = dependencies(package).find(|name| IO.contains(name));
            assert!(io.is_none(), "{} does I/O by {io:?}", name(package));
        }
    }
    assert_eq!(workspace.own().count(), ARROWS.len());
}

#[test]
fn crates_keep_to_the_workspace() {
    let workspace = workspace();
    for package in workspace.own() {
        let targets = package["targets"].as_array().unwrap();
        let tests: Vec<_> = targets
            .iter()
            .filter(|target| target["kind"].as_array().unwrap().contains(&"test".into()))
            .collect();
        assert!(tests.len() <= 1, "{} has {} integration-test binaries", name(package), tests.len());
        assert_eq!(package["edition"], "2024");
        assert_eq!(package["license"], "Apache-2.0");
        assert_eq!(package["publish"], Value::Array(Vec::new()));
        let manifest = std::fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let inherited = toml::Value::Table(toml::Table::from_iter([("workspace".to_owned(), true.into())]));
        assert_eq!(manifest["lints"], inherited, "{} has lints of its own", name(package));
        for key in ["version", "edition", "rust-version", "license"] {
            assert_eq!(manifest["package"][key], inherited, "{}: {key}", name(package));
        }
    }
    let manifest: toml::Table =
        std::fs::read_to_string(workspace.root.join("Cargo.toml")).unwrap().parse().unwrap();
    let lints = &manifest["workspace"]["lints"];
    assert_eq!(lints["rust"]["unsafe_code"].as_str(), Some("forbid"));
    for lint in ["unwrap_used", "expect_used", "panic", "todo", "unimplemented"] {
        assert_eq!(lints["clippy"][lint].as_str(), Some("deny"), "{lint}");
    }
}

/// Whether a licence expression (SPDX, with the older `/` for OR) can be met
/// by licences of the list alone.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace("  ", " ");
    let tokens: Vec<String> =
        expression.replace('(', " ( ").replace(')', " ) ").split_whitespace().map(str::to_owned).collect();
    let mut at = 0;
    let allowed = any(&tokens, &mut at);
    allowed && at == tokens.len()
}

fn any(tokens: &[String], at: &mut usize) -> bool {
    let mut allowed = all(tokens, at);
    while tokens.get(*at).is_some_and(|token| token == "OR") {
        *at += 1;
        allowed |= all(tokens, at);
    }
    allowed
}

fn all(tokens: &[String], at: &mut usize) -> bool {
    let mut allowed = one(tokens, at);
    while tokens.get(*at).is_some_and(|token| token == "AND") {
        *at += 1;
        allowed &= one(tokens, at);
    }
    allowed
}

fn one(tokens: &[String], at: &mut usize) -> bool {
    let Some(token) = tokens.get(*at) else { return false };
    *at += 1;
    if token == "(" {
        let allowed = any(tokens, at);
        *at += 1;
        return allowed;
    }
    let mut licence = token.clone();
    if tokens.get(*at).is_some_and(|token| token == "WITH") {
        licence = format!("{licence} WITH {}", tokens[*at + 1]);
        *at += 2;
    }
    LICENCES.contains(&licence.as_str())
}

#[test]
fn licences_are_allowed_or_named_with_a_reason() {
    for (expression, allowed) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND ISC", true),
        ("GPL-3.0 OR Apache-2.0 WITH LLVM-exception", true),
    ] {
        assert_eq!(is_allowed(expression), allowed, "{expression}");
    }
    let workspace = workspace();
    let mut unused: BTreeSet<&str> = EXCEPTIONS.iter().map(|(name, ..)| *name).collect();
    for package in workspace.foreign() {
        let licence = package["license"].as_str().unwrap_or("none");
        let exception =
            EXCEPTIONS.iter().any(|(excepted, of, _)| *excepted == name(package) && *of == licence);
        unused.remove(if exception { name(package) } else { "" });
        assert!(exception || is_allowed(licence), "{} is under {licence}", name(package));
    }
    assert!(unused.is_empty(), "exceptions for nobody: {unused:?}");
}

#[test]
fn banned_packages_stay_out() {
    let workspace = workspace();
    assert!(workspace.foreign().count() > 100);
    for package in workspace.foreign() {
        let banned = BANNED.iter().find(|(banned, _)| *banned == name(package));
        assert!(banned.is_none(), "{} came in: {}", name(package), banned.unwrap().1);
        let source = package["source"].as_str().unwrap_or("a path");
        assert!(source.starts_with("registry+"), "{} comes from {source}", name(package));
    }
}
