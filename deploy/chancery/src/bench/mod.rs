//! `chancery bench`: figures with their conditions, and the ceiling that the
//! machine itself sets, measured in the same run.

mod audience;
mod broadcast;
mod ceiling;
mod churn;
mod crowd;
mod device;
mod directory;
mod enrolment;
mod handles;
mod letters;
mod nation;
mod node;
mod overload;
mod records;
mod relay;
mod resolve;
mod restart;

use crate::Failure;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// Measure speed on this machine, all parties in one process.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Print one JSON object.
    // Not the ids of `chancery up`, whose values would come here.
    #[arg(id = "bench-json", long = "json", global = true)]
    json: bool,
    /// Folder on the disk to be measured, empty or missing; removed afterwards. Default: one in the
    /// system's temporary folder.
    #[arg(id = "bench-dir", long = "dir", global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Broadcasts: residents brought into cells, one text for a nation over two nodes of their own processes.
    Broadcast(broadcast::BroadcastArgs),
    /// Residents who come and go: what a cell of each size costs, and a nation in a day.
    Churn(churn::ChurnArgs),
    /// Handles and records: evaluated, put, found with their proofs, by a directory of its own process.
    Directory(directory::DirectoryArgs),
    /// Letters from agent to devices: resolved, encrypted, relayed, verified, acknowledged.
    Letters(letters::LettersArgs),
    /// Ten times the submissions that a node of its own process can take, and what is left of it.
    Overload(overload::OverloadArgs),
    /// Envelopes of 1 KiB from one node to another, durable at both ends.
    Relay(relay::RelayArgs),
    /// A node of its own process with much in its queues, killed and started again.
    Restart(restart::RestartArgs),
}

#[cfg(test)]
impl BenchArgs {
    /// Folder, and whether JSON is wanted.
    pub(crate) fn output(&self) -> (Option<PathBuf>, bool) {
        (self.dir.clone(), self.json)
    }
}

/// One run: what was measured, under which conditions, and what came out.
#[derive(Serialize)]
struct Outcome<C, F> {
    bench: &'static str,
    conditions: C,
    figures: F,
}

/// Runs `chancery bench`.
///
/// # Errors
/// What [`Failure`] lists.
pub(crate) async fn run(args: BenchArgs, shutdown: CancellationToken) -> Result<(), Failure> {
    let folder = match args.dir {
        Some(folder) => Folder::named(folder)?,
        None => Folder::temporary()?,
    };
    let text = match args.bench {
        Bench::Broadcast(broadcast) => {
            present(&Box::pin(broadcast::run(broadcast, &folder.0, args.json, shutdown)).await?, args.json)?
        }
        Bench::Churn(churn) => present(&churn::run(churn, &folder.0).await?, args.json)?,
        Bench::Directory(directory) => {
            present(&directory::run(directory, &folder.0, args.json).await?, args.json)?
        }
        Bench::Letters(letters) => present(&letters::run(letters, &folder.0, shutdown).await?, args.json)?,
        Bench::Overload(overload) => {
            present(&overload::run(overload, &folder.0, shutdown).await?, args.json)?
        }
        Bench::Restart(restart) => present(&restart::run(restart, &folder.0, shutdown).await?, args.json)?,
        Bench::Relay(relay) => present(&relay::run(relay, &folder.0, shutdown).await?, args.json)?,
    };
    crate::local::print(&text)
}

fn present<C: Serialize, F: Serialize>(outcome: &Outcome<C, F>, json: bool) -> Result<String, Failure> {
    if json {
        return Ok(format!("{}\n", serde_json::to_string(outcome)?));
    }
    use std::fmt::Write as _;
    let mut text = format!("{}\n", outcome.bench);
    for (title, part) in [
        ("conditions", serde_json::to_value(&outcome.conditions)?),
        ("figures", serde_json::to_value(&outcome.figures)?),
    ] {
        let _ = writeln!(text, "  {title}");
        for (name, value) in part.as_object().into_iter().flatten() {
            let _ = writeln!(text, "    {name:<30} {value}");
        }
    }
    Ok(text)
}

/// The folder of a run, removed afterwards.
struct Folder(PathBuf);

impl Folder {
    fn named(path: PathBuf) -> Result<Self, Failure> {
        if path.exists() && path.read_dir()?.next().is_some() {
            return Err(Failure::Letter("--dir must be empty or missing".to_owned()));
        }
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn temporary() -> Result<Self, Failure> {
        Self::named(std::env::temp_dir().join(format!("chancery-bench-{}", std::process::id())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// CPU seconds (user and system) that this process has used.
fn cpu_seconds() -> f64 {
    cpu_seconds_of(std::process::id())
}

/// MiB of memory that `/proc/PID/status` states in a field; 0 when the process is gone.
fn memory_mib(process: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let stated = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = stated.and_then(|stated| stated.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// CPU seconds that a process has used, from `/proc/PID/stat` in ticks of 10 ms.
fn cpu_seconds_of(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// The machine's CPU time as `/proc/stat` counts it: what its host gave to
/// others, which makes every figure worse, and everything.
#[derive(Clone, Copy)]
struct MachineTime {
    stolen: u64,
    total: u64,
}

impl MachineTime {
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> =
            first.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        Self { stolen: ticks.get(7).copied().unwrap_or(0), total: ticks.iter().sum() }
    }

    /// Percent of the time since then that was stolen.
    fn stolen_percent(self) -> f64 {
        let now = Self::now();
        let total = now.total.saturating_sub(self.total).max(1);
        round(now.stolen.saturating_sub(self.stolen) as f64 * 100.0 / total as f64)
    }
}

/// Cores of the machine.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Rounded to one decimal: more would pretend.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
