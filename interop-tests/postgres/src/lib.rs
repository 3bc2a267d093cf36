//! A real PostgreSQL for one test: a cluster of its own in a folder of its own,
//! reached by a socket there, with fsync as it comes. Ends with the value.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "helpers of tests: a panic is a failed test"
)]

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a server may take to answer.
const START: Duration = Duration::from_secs(60);

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    owner: Option<(u32, u32)>,
    server: Child,
}

impl Postgres {
    /// Makes a cluster and starts it.
    ///
    /// # Panics
    /// PostgreSQL is not installed, or does not start.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("chancery-pg").tempdir_in("/tmp").unwrap();
        let owner = unprivileged();
        if let Some((user, group)) = owner {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let data = folder.path().join("data");
        let made = command("initdb", owner)
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--pgdata"])
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let server = Self::serve(folder.path(), owner);
        let postgres = Self { folder, owner, server };
        postgres.wait();
        postgres
    }

    /// URL of the database.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// URL of another database, made if need be.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn url_of(&self, database: &str) -> String {
        let found = self.sql(&format!("SELECT 1 FROM pg_database WHERE datname = '{database}'"));
        if found.trim().is_empty() {
            self.sql(&format!("CREATE DATABASE {database}"));
        }
        format!("postgres://postgres@localhost/{database}?host={}", self.folder.path().display())
    }

    /// Runs SQL; gives what it prints, a line for each row.
    ///
    /// # Panics
    /// It fails.
    pub fn sql(&self, text: &str) -> String {
        let done = self.psql(text);
        assert!(done.status.success(), "psql: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    /// Kills it as SIGKILL would, all its processes, and starts it again.
    ///
    /// # Panics
    /// It does not start.
    pub fn crash(&mut self) {
        let stopped = command("pg_ctl", self.owner)
            .args(["stop", "--mode=immediate", "--wait", "--pgdata"])
            .arg(self.folder.path().join("data"))
            .output()
            .expect("pg_ctl runs");
        assert!(stopped.status.success(), "pg_ctl: {}", String::from_utf8_lossy(&stopped.stderr));
        self.server.wait().unwrap();
        self.server = Self::serve(self.folder.path(), self.owner);
        self.wait();
    }

    fn serve(folder: &Path, owner: Option<(u32, u32)>) -> Child {
        command("postgres", owner)
            .arg("-D")
            .arg(folder.join("data"))
            .arg("-k")
            .arg(folder)
            .args(["-c", "listen_addresses=", "-c", "logging_collector=off"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .expect("postgres runs")
    }

    fn wait(&self) {
        let since = Instant::now();
        while !self.psql("SELECT 1").status.success() {
            assert!(since.elapsed() < START, "PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn psql(&self, text: &str) -> Output {
        command("psql", self.owner)
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--username=postgres", "--host"])
            .arg(self.folder.path())
            .args(["--command", text, "postgres"])
            .output()
            .expect("psql runs")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = command("pg_ctl", self.owner)
            .args(["stop", "--mode=immediate", "--wait", "--pgdata"])
            .arg(self.folder.path().join("data"))
            .output();
        let _ = self.server.wait();
    }
}

/// PostgreSQL does not run as root: then it runs as whoever Debian made for it.
fn unprivileged() -> Option<(u32, u32)> {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).expect("a user named postgres");
    let mut ids = line.split(':').skip(2).map(|id| id.parse().unwrap());
    ids.next().zip(ids.next())
}

fn command(program: &str, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(installed(program));
    command.current_dir("/tmp").env_remove("PGHOST").env_remove("PGPORT").env_remove("PGUSER");
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}

/// Debian keeps the server's programs out of the path.
fn installed(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = versions
        .map(|version| version.path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| program.into())
}
