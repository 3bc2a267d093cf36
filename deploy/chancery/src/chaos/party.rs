//! The parties of a federation as processes of this program: started, killed, stopped
//! for a while, started again, and missed when they end by themselves.

use crate::Failure;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

/// How often is looked for a party that ended by itself.
const LOOK: Duration = Duration::from_millis(500);
/// How long parties may take to end when they are told to.
const DRAIN: Duration = Duration::from_secs(20);
/// What parties log.
const LOG: &str = "info,h2=warn,hyper=warn,tower=warn,sqlx=warn,rustls=warn";

/// A party of the federation.
pub(super) struct Party {
    /// Its name, which is its log's as well.
    pub(super) name: String,
    /// Its kind, by which figures are counted.
    pub(super) kind: &'static str,
    /// How often kills mean it, compared with others.
    pub(super) weight: u64,
    arguments: Vec<OsString>,
    log: PathBuf,
    process: Mutex<Option<Process>>,
    starts: AtomicU64,
    ended: AtomicU64,
}

struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::UnboundedReceiver<String>,
}

/// Which signal.
#[derive(Clone, Copy)]
enum Signal {
    Stop,
    Continue,
    Terminate,
}

impl Party {
    /// A party that runs this program with `arguments`, and logs to `log`.
    pub(super) fn new(
        (name, kind, weight): (String, &'static str, u64),
        arguments: Vec<OsString>,
        log: PathBuf,
    ) -> Self {
        let (process, starts, ended) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
        Self { name, kind, weight, arguments, log, process, starts, ended }
    }

    /// Starts it.
    ///
    /// # Errors
    /// The system says no.
    pub(super) async fn start(&self) -> Result<(), Failure> {
        let process = self.spawn()?;
        *self.process.lock().await = Some(process);
        Ok(())
    }

    fn spawn(&self) -> Result<Process, Failure> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(std::env::current_exe()?);
        // What the operator's own parties are told is not for these.
        let told = std::env::vars_os().map(|(name, _)| name);
        told.filter(|name| name.to_string_lossy().starts_with("CHANCERY_")).for_each(|name| {
            command.env_remove(name);
        });
        let mut child = command
            .args(&self.arguments)
            .env("CHANCERY_LOG", LOG)
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let (lines, waiting) = mpsc::unbounded_channel();
        if let Some(output) = child.stdout.take() {
            let output = BufReader::new(output);
            std::thread::spawn(move || {
                let _ = output.lines().map_while(Result::ok).try_for_each(|line| lines.send(line));
            });
        }
        self.starts.fetch_add(1, Ordering::Relaxed);
        Ok(Process { input: child.stdin.take(), child, lines: waiting })
    }

    /// SIGKILL, and the next start after a pause, or when all is healed. Nobody else
    /// has a hand on it meanwhile.
    ///
    /// # Errors
    /// The system says no.
    pub(super) async fn kill(&self, pause: Duration, healed: &CancellationToken) -> Result<(), Failure> {
        let mut process = self.process.lock().await;
        if let Some(mut process) = process.take() {
            process.kill()?;
        }
        healed.run_until_cancelled(tokio::time::sleep(pause)).await;
        *process = Some(self.spawn()?);
        Ok(())
    }

    /// SIGSTOP for a while, or until all is healed.
    ///
    /// # Errors
    /// The system says no.
    pub(super) async fn halt(&self, pause: Duration, healed: &CancellationToken) -> Result<(), Failure> {
        let stopped = self.signal(Signal::Stop, None).await?;
        healed.run_until_cancelled(tokio::time::sleep(pause)).await;
        // One that was killed and started again meanwhile was never stopped.
        self.signal(Signal::Continue, Some(stopped)).await.map(drop)
    }

    /// Signals it, if it runs and `start` is none or its last one; gives that.
    async fn signal(&self, signal: Signal, start: Option<u64>) -> Result<u64, Failure> {
        let process = self.process.lock().await;
        let last = self.starts.load(Ordering::Relaxed);
        if let Some(process) = process.as_ref().filter(|_| start.is_none_or(|start| start == last)) {
            process.signal(signal)?;
        }
        Ok(last)
    }

    /// Says a line to it and waits for one; `None`: it does not run, or did not answer in time.
    pub(super) async fn ask(&self, line: &str, patience: Duration) -> Option<String> {
        let mut process = self.process.lock().await;
        let Process { input, lines, .. } = process.as_mut()?;
        // What it said before answers something else.
        while lines.try_recv().is_ok() {}
        let input = input.as_mut()?;
        writeln!(input, "{line}").and_then(|()| input.flush()).ok()?;
        tokio::time::timeout(patience, lines.recv()).await.ok().flatten()
    }

    /// Starts it again when it ended by itself.
    async fn look(&self) -> Result<(), Failure> {
        let Ok(mut process) = self.process.try_lock() else { return Ok(()) };
        let Some(running) = process.as_mut() else { return Ok(()) };
        if running.child.try_wait()?.is_some() {
            self.ended.fetch_add(1, Ordering::Relaxed);
            *process = Some(self.spawn()?);
        }
        Ok(())
    }
}

impl Process {
    fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    fn signal(&self, signal: Signal) -> std::io::Result<()> {
        let signal = match signal {
            Signal::Stop => "STOP",
            Signal::Continue => "CONT",
            Signal::Terminate => "TERM",
        };
        // The shell's own `kill`: a program of that name is not everywhere. Not yet waited
        // for, a process keeps its number.
        let script = format!("kill -{signal} {}", self.child.id());
        Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails for one that has ended.
        let _ = self.kill();
    }
}

/// All parties.
pub(super) struct Parties(pub(super) Vec<Party>);

impl Parties {
    /// Starts all.
    ///
    /// # Errors
    /// The system says no.
    pub(super) async fn start(&self) -> Result<(), Failure> {
        for party in &self.0 {
            party.start().await?;
        }
        Ok(())
    }

    /// Starts again whoever ended by itself, until `stop`.
    ///
    /// # Errors
    /// The system says no.
    pub(super) async fn tend(&self, stop: &CancellationToken) -> Result<(), Failure> {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            for party in &self.0 {
                party.look().await?;
            }
        }
        Ok(())
    }

    /// Who ended by itself, and how often.
    pub(super) fn ended(&self) -> BTreeMap<String, u64> {
        let ended = self.0.iter().map(|party| (party.name.clone(), party.ended.load(Ordering::Relaxed)));
        ended.filter(|(_, count)| *count > 0).collect()
    }

    /// SIGTERM for all, and waits for their end; gives who did not end well in time.
    ///
    /// # Errors
    /// The system says no.
    pub(super) async fn terminate(&self) -> Result<Vec<String>, Failure> {
        for party in &self.0 {
            party.signal(Signal::Terminate, None).await?;
        }
        let end = Instant::now() + DRAIN;
        let mut late = Vec::new();
        for party in &self.0 {
            let Some(mut process) = party.process.lock().await.take() else { continue };
            let ended = loop {
                match process.child.try_wait()? {
                    Some(status) => break status.success(),
                    None if Instant::now() > end => break false,
                    None => tokio::time::sleep(LOOK / 10).await,
                }
            };
            if !ended {
                late.push(party.name.clone());
            }
        }
        Ok(late)
    }
}
