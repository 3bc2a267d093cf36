//! What a process holds in memory does not get on a disk, and the unit by which operators
//! run it says the same to the system.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

const UNIT: &str = include_str!("../../../systemd/chancery@.service");

#[test]
fn a_crash_leaves_no_core_dump() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Whoever waits for an agent's answer is well past its start.
    let agent = format!("http://{}", listener.local_addr().unwrap());
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_chancery")])
        .args(["inbox", "--agent", &agent])
        .current_dir(folder.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let connection = listener.accept().unwrap();
    let process = Path::new("/proc").join(child.id().to_string());
    let limits = std::fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{limits}");
    let quit = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status().unwrap();
    assert!(quit.success());
    let status = child.wait().unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(3), false));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    drop(connection);
}

#[test]
fn the_unit_keeps_memory_off_disks() {
    let has = |line: &str| UNIT.lines().any(|has| has == line);
    for line in ["LimitCORE=0", "MemorySwapMax=0", "PrivateTmp=yes", "NoNewPrivileges=yes", "UMask=0077"] {
        assert!(has(line), "{line}");
    }
    // The template's instances are the program's commands, with the configuration of the same name.
    assert!(has("ExecStart=/usr/local/bin/chancery %i serve --config config/%i.toml"));
    for party in ["pki", "directory", "evaluator", "node", "agent", "authority"] {
        let help = Command::new(env!("CARGO_BIN_EXE_chancery")).args([party, "serve", "--help"]).output();
        assert!(help.unwrap().status.success(), "{party}");
        let config = format!("{}/../config/{party}.toml", env!("CARGO_MANIFEST_DIR"));
        assert!(Path::new(&config).is_file(), "{config}");
    }
}
