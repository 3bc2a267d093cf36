//! `chancery bench directory`: handles, then the records behind them.

use super::records::{self, Shown};
use super::{MachineTime, Outcome, cores, handles};
use crate::Failure;
use clap::Args;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// How much to measure.
#[derive(Args)]
pub(crate) struct DirectoryArgs {
    /// Identifiers of a batch, 1 to 1,000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    batch: u16,
    /// Seconds for each figure that is not about records put.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    seconds: u8,
    /// Records that are put, at least 20,000; 0 leaves records out.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    records: u32,
    /// Records that stand under one prefix at most, on average.
    #[arg(long, default_value_t = 48, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    under_a_prefix: u32,
}

#[derive(Serialize)]
pub(super) struct Conditions {
    identifiers_in_a_batch: u16,
    threshold: u32,
    evaluators: u32,
    records: u32,
    prefix_bits: u32,
    database: &'static str,
    cores: usize,
    cpu_stolen_percent: f64,
}

#[derive(Serialize)]
pub(super) struct Figures {
    #[serde(flatten)]
    handles: handles::Figures,
    #[serde(flatten)]
    records: Option<records::Figures>,
}

/// Measures one after the other, so that each has the machine to itself.
pub(super) async fn run(
    args: DirectoryArgs,
    folder: &Path,
    json: bool,
) -> Result<Outcome<Conditions, Figures>, Failure> {
    let machine = MachineTime::now();
    let time = Duration::from_secs(args.seconds.into());
    let batch = args.batch;
    let handles = tokio::task::spawn_blocking(move || handles::measure(batch, time)).await;
    let handles = handles.map_err(|_| Failure::Panicked)??;
    let put = if args.records == 0 { 0 } else { args.records.max(20_000) };
    let prefix_bits = records::prefix_bits(put, args.under_a_prefix);
    let records = match put {
        0 => None,
        put => Some(records::measure(folder, (put, prefix_bits), time, Shown(!json)).await?),
    };
    Ok(Outcome {
        bench: "directory",
        conditions: Conditions {
            identifiers_in_a_batch: args.batch,
            threshold: handles::THRESHOLD,
            evaluators: handles::EVALUATORS,
            records: put,
            prefix_bits,
            database: "SQLite",
            cores: cores(),
            cpu_stolen_percent: machine.stolen_percent(),
        },
        figures: Figures { handles, records },
    })
}
