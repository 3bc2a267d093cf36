//! Letters end to end: first contacts, then letters in threads that exist.

use super::{MachineTime, Outcome, cores, cpu_seconds, round};
use crate::Failure;
use crate::local::layout::Layout;
use crate::local::{Mailing, Running, UpArgs, mailing_run};
use chancery_proto::agent::v1 as agent;
use chancery_types::{Clock as _, Entropy, SystemClock, SystemEntropy};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Letters from agent to devices.
#[derive(Args)]
pub(super) struct LettersArgs {
    /// Residents; each gets a first letter and then `--rounds` more.
    #[arg(long, default_value_t = 400, value_name = "N")]
    residents: u64,
    /// Letters to each resident after the first.
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: u32,
}

#[derive(Serialize)]
pub(super) struct Conditions {
    residents: u64,
    rounds: u32,
    nodes: u32,
    suite: &'static str,
    cores_shared_by_all: usize,
    cpu_stolen_percent: f64,
    read_receipts: bool,
    attachments: u32,
}

#[derive(Serialize)]
pub(super) struct Figures {
    first_contact_letters_per_s: f64,
    thread_letters_per_s: f64,
    cpu_ms_per_first_letter: f64,
    cpu_ms_per_letter: f64,
    first_contact_p50_ms: f64,
    first_contact_p99_ms: f64,
    thread_p50_ms: f64,
    thread_p99_ms: f64,
    undelivered: u64,
}

pub(super) async fn run(
    args: LettersArgs,
    folder: &Path,
    shutdown: CancellationToken,
) -> Result<Outcome<Conditions, Figures>, Failure> {
    let up = UpArgs {
        dir: folder.to_owned(),
        port: 0,
        recipients: None,
        letter: None,
        residents: Some(args.residents),
        once: true,
        json: true,
    };
    let mailing = Mailing::read(&up)?.without_attachments();
    let mut running = Running::start(Layout::open(folder, 0)?, &mailing, &shutdown, true).await?;
    let endpoint = format!("http://{}", running.federation.layout.address("agent-federal"));

    let (before, machine) = (cpu_seconds(), MachineTime::now());
    let first = send(&mut running, &endpoint, mailing.letters.clone(), true).await?;
    let first_cpu = cpu_seconds() - before;

    let mut again = Vec::new();
    for _ in 0..args.rounds {
        again.extend(mailing.letters.iter().cloned().map(renamed));
    }
    let count = again.len();
    let before = cpu_seconds();
    let thread = send(&mut running, &endpoint, again, false).await?;
    let thread_cpu = cpu_seconds() - before;
    let cpu_stolen_percent = machine.stolen_percent();
    shutdown.cancel();
    running.federation.ended().await?;

    let (first, thread) = (first.figures, thread.figures);
    Ok(Outcome {
        bench: "letters",
        conditions: Conditions {
            residents: args.residents,
            rounds: args.rounds,
            nodes: 2,
            suite: "MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519",
            cores_shared_by_all: cores(),
            cpu_stolen_percent,
            read_receipts: true,
            attachments: 0,
        },
        figures: Figures {
            first_contact_letters_per_s: round(first.letters_per_s),
            thread_letters_per_s: round(thread.letters_per_s),
            cpu_ms_per_first_letter: round(first_cpu * 1000.0 / mailing.letters.len() as f64),
            cpu_ms_per_letter: round(thread_cpu * 1000.0 / count.max(1) as f64),
            first_contact_p50_ms: first.p50_ms,
            first_contact_p99_ms: first.p99_ms,
            thread_p50_ms: thread.p50_ms,
            thread_p99_ms: thread.p99_ms,
            undelivered: first.failed + thread.failed,
        },
    })
}

async fn send(
    running: &mut Running,
    endpoint: &str,
    letters: Vec<agent::SendRequest>,
    answered: bool,
) -> Result<crate::local::report::Report, Failure> {
    let answers = if answered { running.answers_due } else { 0 };
    let bar = ProgressBar::hidden();
    let run = mailing_run::run(endpoint, letters, answers, &bar, || SystemClock.now().millis());
    tokio::select! {
        report = run => report,
        ended = running.federation.ended() => { ended?; Err(Failure::Stopped) }
    }
}

/// The same letter under a new request id.
fn renamed(mut letter: agent::SendRequest) -> agent::SendRequest {
    let entropy: &dyn Entropy = &SystemEntropy;
    letter.request_id = uuid::Builder::from_random_bytes(entropy.array()).into_uuid().to_string();
    letter
}
