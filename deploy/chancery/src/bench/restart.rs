//! A node with much in its queues, killed and started again: half of it waits for a
//! peer that is down, half for devices that are away. All of it was submitted.

use super::crowd::ENVELOPE;
use super::device::Device;
use super::node::Apart;
use super::{MachineTime, Outcome, cores, memory_mib, round};
use crate::Failure;
use crate::local::federation::name;
use crate::local::layout::ADMINISTRATIONS;
use chancery_types::{Alias, GroupId, SystemEntropy};
use clap::Args;
use futures::StreamExt as _;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// Submissions of one call.
const BATCH: usize = 128;
/// Calls on the way at once.
const CALLS: usize = 4;
/// Groups with aliases of the peer, and as many with devices that are away.
const GROUPS: usize = 64;
/// How often it is killed.
const TIMES: usize = 5;

/// A node with many messages in its queues, killed and started again.
#[derive(Args)]
pub(super) struct RestartArgs {
    /// Messages of 1 KiB that wait.
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    queued: usize,
}

#[derive(Serialize)]
pub(super) struct Conditions {
    queued_for_a_peer: usize,
    queued_for_devices: usize,
    envelope_bytes: usize,
    store: &'static str,
    cores_shared_by_all: usize,
    cpu_stolen_percent: f64,
}

#[derive(Serialize)]
pub(super) struct Figures {
    submitted_per_s: f64,
    database_mib: f64,
    /// When it was killed first.
    wal_mib: f64,
    /// From SIGKILL until a device that knew the node has authenticated; each time.
    serving_s: Vec<f64>,
    /// From there until a submission was accepted; each time.
    submitted_s: Vec<f64>,
    rss_mib: f64,
}

pub(super) async fn run(
    args: RestartArgs,
    folder: &Path,
    shutdown: CancellationToken,
) -> Result<Outcome<Conditions, Figures>, Failure> {
    let [home, absent] = ADMINISTRATIONS;
    let mut apart = Apart::start(folder, home, Some(absent), &shutdown).await?;
    let mut sender = apart.device().await?;
    let mut groups = Vec::with_capacity(2 * GROUPS);
    for _ in 0..GROUPS {
        let away = apart.device().await?;
        for (alias, node) in [(away.alias, away.node), (Alias::random(&SystemEntropy), name(absent)?)] {
            let group = GroupId::random(&SystemEntropy);
            sender.submit(vec![sender.opening(group, alias, &node)]).await?;
            groups.push(group);
        }
    }
    let machine = MachineTime::now();
    let begun = Instant::now();
    fill(&sender, &groups, args.queued).await?;
    let submitted_per_s = args.queued as f64 / begun.elapsed().as_secs_f64();

    let size = |file: &str| std::fs::metadata(apart.file(file)).map_or(0.0, |found| found.len() as f64);
    let (database, wal) = (size("node.db"), size("node.db-wal"));
    let (mut serving_s, mut submitted_s) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        serving_s.push(hundredths(apart.restart(&mut sender).await?));
        let begun = Instant::now();
        fill(&sender, &groups, 1).await?;
        submitted_s.push(hundredths(begun.elapsed().as_secs_f64()));
    }
    let rss_mib = memory_mib(apart.process(), "VmHWM");
    let cpu_stolen_percent = machine.stolen_percent();
    shutdown.cancel();
    drop(apart);
    Ok(Outcome {
        bench: "restart",
        conditions: Conditions {
            queued_for_a_peer: args.queued / 2,
            queued_for_devices: args.queued.div_ceil(2),
            envelope_bytes: ENVELOPE,
            store: "SQLite, WAL, synchronous=FULL",
            cores_shared_by_all: cores(),
            cpu_stolen_percent,
        },
        figures: Figures {
            submitted_per_s: round(submitted_per_s),
            database_mib: round(database / 1_048_576.0),
            wal_mib: round(wal / 1_048_576.0),
            serving_s,
            submitted_s,
            rss_mib: round(rss_mib),
        },
    })
}

/// Submits messages, to each group in turn.
async fn fill(sender: &Device, groups: &[GroupId], messages: usize) -> Result<(), Failure> {
    let calls = (0..messages).step_by(BATCH).map(async |first| {
        let groups = groups.iter().cycle().skip(first % groups.len().max(1));
        let messages = groups.take(BATCH.min(messages - first)).map(|group| sender.message(*group, ENVELOPE));
        sender.submit(messages.collect()).await
    });
    let mut answers = futures::stream::iter(calls).buffer_unordered(CALLS);
    while let Some(answer) = answers.next().await {
        answer?;
    }
    Ok(())
}

fn hundredths(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}
