//! Ten times what a node can take: the sustainable rate is measured in a closed loop,
//! then ten times as much is offered on a fixed schedule, whatever the node answers.

use super::crowd::{Answer, Crowd, ENVELOPE};
use super::node::Apart;
use super::{MachineTime, Outcome, cores, round};
use crate::Failure;
use crate::local::layout::ADMINISTRATIONS;
use crate::local::report::quantile;
use clap::Args;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Submissions of a call.
const BATCH: usize = 16;
/// How many times the sustainable rate is offered.
const TIMES: f64 = 10.0;
/// Devices of the closed loop: each has one call under way.
const CLOSED: usize = 48;
/// How long the closed loop runs, and how long the normal load is watched before the flood.
const MEASURED: Duration = Duration::from_secs(10);
/// How long it is watched at most until it is as before.
const WATCHED: u32 = 60;
/// Calls of the normal load in a second, of one message each.
const NORMAL: u32 = 100;
/// Calls that a device has under way at most: as many as a node lets a connection have.
const UNDER_WAY: usize = 128;
/// How often the flood's schedule is looked at.
const TICK: Duration = Duration::from_millis(5);
/// How often the node's memory is looked at.
const SAMPLE: Duration = Duration::from_millis(100);

/// Submissions of 1 KiB, ten times as many as the node can take.
#[derive(Args)]
pub(super) struct OverloadArgs {
    /// How long the flood lasts.
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Devices that submit, each on a connection of its own.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u16).range(48..=900))]
    devices: u16,
}

#[derive(Serialize)]
pub(super) struct Conditions {
    seconds: u32,
    devices: u16,
    envelope_bytes: usize,
    submissions_of_a_call: usize,
    normal_calls_per_s: u32,
    store: &'static str,
    cores_shared_by_all: usize,
    cpu_stolen_percent: f64,
}

#[derive(Serialize)]
pub(super) struct Figures {
    /// Submissions that the closed loop had accepted.
    sustainable_per_s: f64,
    /// Submissions that were due, by the clock: ten times the sustainable ones.
    due_per_s: f64,
    /// Those that were made: the others found as many calls of their device under way as the node lets
    /// a connection have.
    offered_per_s: f64,
    accepted_per_s: f64,
    accepted: usize,
    refused: usize,
    /// Calls that ended neither accepted nor refused with OVERLOADED and RetryInfo.
    otherwise: usize,
    /// Calls whose callers hung up, unanswered, when the flood ended.
    unanswered: usize,
    /// Accepted and not delivered.
    lost: usize,
    /// Delivered more than once.
    doubled: usize,
    rss_before_mib: f64,
    rss_peak_mib: f64,
    /// Of the normal load before the flood, from Submit to its answer.
    normal_p99_ms: f64,
    /// Of the worst second of it.
    worst_p99_ms: f64,
    /// Of each second after the flood, up to the first that was no worse.
    p99_after_ms: Vec<f64>,
    /// From the flood's end to the first second whose p99 was no higher than that of the worst
    /// second before the flood.
    back_to_normal_s: f64,
}

pub(super) async fn run(
    args: OverloadArgs,
    folder: &Path,
    shutdown: CancellationToken,
) -> Result<Outcome<Conditions, Figures>, Failure> {
    let apart = Apart::start(folder, ADMINISTRATIONS[0], None, &shutdown).await?;
    let crowd = Arc::new(Crowd::open(&apart, args.devices.into()).await?);
    let machine = MachineTime::now();
    let sustainable = sustain(&crowd).await;
    crowd.settle().await;

    let (mut before, mut worst) = (Vec::new(), 0.0_f64);
    for _ in 0..MEASURED.as_secs() {
        let mut second = normal(&crowd).await;
        worst = worst.max(quantile(&mut second, 0.99));
        before.append(&mut second);
    }
    let rss_before_mib = apart.rss_mib();
    let (flood, rss_peak_mib) = {
        let ended = AtomicBool::new(false);
        let time = Duration::from_secs(args.seconds.into());
        let flooding = async {
            let flood = flood(&crowd, sustainable * TIMES, time).await;
            ended.store(true, Ordering::Relaxed);
            flood
        };
        tokio::join!(flooding, peak(&apart, &ended))
    };
    let (back_to_normal_s, p99_after_ms) = back_to_normal(&crowd, worst, flood.ended).await;
    let accepted = flood.accepted * BATCH;
    let (lost, doubled) = crowd.settle().await;
    let cpu_stolen_percent = machine.stolen_percent();
    shutdown.cancel();
    drop(apart);
    Ok(Outcome {
        bench: "overload",
        conditions: Conditions {
            seconds: args.seconds,
            devices: args.devices,
            envelope_bytes: ENVELOPE,
            submissions_of_a_call: BATCH,
            normal_calls_per_s: NORMAL,
            store: "SQLite, WAL, synchronous=FULL",
            cores_shared_by_all: cores(),
            cpu_stolen_percent,
        },
        figures: Figures {
            sustainable_per_s: round(sustainable),
            due_per_s: round(flood.due as f64 * BATCH as f64 / flood.seconds),
            offered_per_s: round(flood.made as f64 * BATCH as f64 / flood.seconds),
            accepted_per_s: round(accepted as f64 / flood.seconds),
            accepted,
            refused: flood.refused * BATCH,
            otherwise: flood.otherwise,
            unanswered: flood.unanswered,
            lost,
            doubled,
            rss_before_mib: round(rss_before_mib),
            rss_peak_mib: round(rss_peak_mib),
            normal_p99_ms: round(quantile(&mut before, 0.99)),
            worst_p99_ms: round(worst),
            p99_after_ms,
            back_to_normal_s: round(back_to_normal_s),
        },
    })
}

/// Submissions accepted in a second when each device waits for its answer.
async fn sustain(crowd: &Arc<Crowd>) -> f64 {
    let (begun, before) = (Instant::now(), crowd.accepted());
    let mut devices = JoinSet::new();
    for sender in 0..CLOSED {
        let crowd = Arc::clone(crowd);
        devices.spawn(async move {
            while begun.elapsed() < MEASURED {
                crowd.insist(sender, BATCH).await;
            }
        });
    }
    devices.join_all().await;
    (crowd.accepted() - before) as f64 / begun.elapsed().as_secs_f64()
}

/// What became of a flood, in calls.
struct Flood {
    due: usize,
    made: usize,
    accepted: usize,
    refused: usize,
    otherwise: usize,
    /// Their callers hung up when the flood ended.
    unanswered: usize,
    /// From the first call to the last one that was made.
    seconds: f64,
    ended: Instant,
}

/// Makes calls when their time has come, whatever became of those before. When this process
/// is late it makes up for it, so that none is left out but those of devices that have as many
/// under way as they may: a caller's own queue is no load on the node.
async fn flood(crowd: &Arc<Crowd>, submissions_per_s: f64, time: Duration) -> Flood {
    let calls_per_s = submissions_per_s / BATCH as f64;
    let mut calls = JoinSet::new();
    let mut under_way = vec![0; crowd.senders()];
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let begun = Instant::now();
    let mut flood = Flood {
        due: 0,
        made: 0,
        accepted: 0,
        refused: 0,
        otherwise: 0,
        unanswered: 0,
        seconds: 0.0,
        ended: begun,
    };
    let all = (calls_per_s * time.as_secs_f64()) as usize;
    while flood.due < all {
        ticks.tick().await;
        let due = ((begun.elapsed().as_secs_f64() * calls_per_s) as usize).min(all);
        for number in flood.due..due {
            let sender = number % under_way.len().max(1);
            let Some(own) = under_way.get_mut(sender).filter(|own| **own < UNDER_WAY) else { continue };
            *own += 1;
            flood.made += 1;
            let crowd = Arc::clone(crowd);
            calls.spawn(async move { (sender, crowd.call(sender, BATCH).await) });
        }
        flood.due = flood.due.max(due);
        while let Some(answered) = calls.try_join_next() {
            let Ok((sender, answer)) = answered else { continue };
            if let Some(own) = under_way.get_mut(sender) {
                *own -= 1;
            }
            match answer {
                Answer::Accepted => flood.accepted += 1,
                Answer::Refused(_) => flood.refused += 1,
                Answer::Other => flood.otherwise += 1,
            }
        }
    }
    flood.seconds = begun.elapsed().as_secs_f64();
    flood.unanswered = calls.len();
    calls.shutdown().await;
    flood.ended = Instant::now();
    flood
}

/// The most memory that the node held until the flood ended.
async fn peak(apart: &Apart, ended: &AtomicBool) -> f64 {
    let (mut peak, mut samples) = (0.0_f64, interval(SAMPLE));
    while !ended.load(Ordering::Relaxed) {
        samples.tick().await;
        peak = peak.max(apart.rss_mib());
    }
    peak
}

/// A second of normal load: milliseconds from when each call was due until it was accepted.
async fn normal(crowd: &Arc<Crowd>) -> Vec<f64> {
    let mut calls = JoinSet::new();
    let mut ticks = interval(Duration::from_secs(1) / NORMAL);
    for sender in 0..NORMAL as usize {
        let due = ticks.tick().await.into_std();
        let crowd = Arc::clone(crowd);
        calls.spawn(async move {
            crowd.insist(sender, 1).await;
            due.elapsed().as_secs_f64() * 1000.0
        });
    }
    calls.join_all().await
}

/// When the first second began that was no worse, and the p99 of each up to it.
async fn back_to_normal(crowd: &Arc<Crowd>, worst: f64, ended: Instant) -> (f64, Vec<f64>) {
    let mut seconds = Vec::new();
    for _ in 0..WATCHED {
        let began = ended.elapsed();
        let p99 = quantile(&mut normal(crowd).await, 0.99);
        seconds.push(round(p99));
        if p99 <= worst {
            return (began.as_secs_f64(), seconds);
        }
    }
    (ended.elapsed().as_secs_f64(), seconds)
}
