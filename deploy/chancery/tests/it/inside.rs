//! Tests in namespaces of their own: what they mount, connect or leave running ends with
//! them, and nothing of it is seen outside. Needs `unshare` (util-linux) and the right to
//! make user namespaces.

use std::process::Command;

/// Set for a test that runs inside.
const INSIDE: &str = "CHANCERY_TEST_INSIDE";

/// Whether this process is inside. If not, runs the test `name` again in new namespaces
/// (options of `unshare`), which must go well.
pub(crate) fn inside(name: &str, namespaces: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(namespaces)
        .arg(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, "yes")
        .status()
        .unwrap();
    assert!(status.success(), "inside: {status}");
    false
}

/// Runs a command that must go well.
pub(crate) fn system(line: &str) {
    let status = Command::new("sh").args(["-euc", line]).status().unwrap();
    assert!(status.success(), "{line}: {status}");
}
