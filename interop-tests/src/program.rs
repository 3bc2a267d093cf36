//! The shipped program `chancery` as a process of its own: found beside the
//! test binary, run to its end or kept up, ended by whoever started it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Longest that a run, or the way to a line of its output, may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// Parties by their place in `ports.toml`.
const PARTIES: [&str; 9] = [
    "pki",
    "directory",
    "evaluator-1",
    "node-federal",
    "agent-federal",
    "node-regional",
    "agent-regional",
    "evaluator-2",
    "evaluator-3",
];

/// What a run left behind.
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The one JSON object that `--json` prints.
    pub fn figures(&self) -> serde_json::Map<String, serde_json::Value> {
        let figures = serde_json::from_str(&self.stdout);
        figures.unwrap_or_else(|error| panic!("{error} in {:?}; {}", self.stdout, self.stderr))
    }
}

/// A process that is killed when it is dropped.
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
    seen: String,
}

/// Where the program is: `CHANCERY_TEST_BINARY`, or beside this test's folder.
pub fn path() -> PathBuf {
    if let Some(path) = std::env::var_os("CHANCERY_TEST_BINARY") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("chancery");
    assert!(path.is_file(), "{} is missing: build it with `cargo build -p chancery`", path.display());
    path
}

/// Runs the program to its end.
pub fn run<A: AsRef<OsStr>>(arguments: &[A]) -> Finished {
    Program::start(arguments).finish()
}

impl Program {
    /// Starts the program.
    pub fn start<A: AsRef<OsStr>>(arguments: &[A]) -> Self {
        let mut child = Command::new(path())
            .args(arguments)
            .env_remove("CHANCERY_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines(child.stdout.take().unwrap());
        let errors = lines_of_errors(child.stderr.take().unwrap());
        Self { child, lines, errors, seen: String::new() }
    }

    /// Waits for a line of standard output that holds `text`.
    pub fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    if line.contains(text) {
                        return;
                    }
                }
                Err(_) => panic!("no {text:?} in {:?}; {}", self.seen, self.errors()),
            }
        }
    }

    /// Waits for its end, which must come.
    pub fn finish(mut self) -> Finished {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push_str(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("still running after {DEADLINE:?}: {:?}", self.seen)
                }
            }
        }
        let status = self.child.wait().unwrap();
        let stderr = self.errors();
        Finished { status, stdout: std::mem::take(&mut self.seen), stderr }
    }

    /// As Ctrl-C in its terminal would, and waits for the end.
    pub fn interrupt(self) -> Finished {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        self.finish()
    }

    /// SIGKILL: no destructor of the program runs.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it has not ended yet.
    pub fn is_up(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn errors(&self) -> String {
        self.errors.recv_timeout(Duration::from_secs(1)).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already in most cases.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = String::new();
        while from.read_line(&mut line).is_ok_and(|read| read > 0) {
            if sender.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Everything at once, when the process has ended.
fn lines_of_errors(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
    });
    receiver
}

/// Where a party of the federation in `folder` listens: `host:port`. Waits
/// until the program has written it down.
pub fn address(folder: &Path, party: &str) -> String {
    let end = Instant::now() + DEADLINE;
    let text = loop {
        match std::fs::read_to_string(folder.join("ports.toml")) {
            Ok(text) if !text.is_empty() => break text,
            _ => assert!(Instant::now() < end, "no ports.toml"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let ports: BTreeMap<String, Vec<u16>> = toml::from_str(&text).unwrap();
    let place = PARTIES.iter().position(|name| *name == party).unwrap();
    format!("127.0.0.1:{}", ports["ports"][place])
}
