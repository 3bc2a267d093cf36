//! What a broadcast channel costs its agent and the residents' devices. Residents are in real cells,
//! each with a KeyPackage of its own; beside them stand cells that have nothing but their chains of keys,
//! which is all that a broadcast looks at. Every step is the product's own, durable in SQLite; nodes and
//! network are left out.

use super::audience::{Agent, Device, call, joining, open};
use super::{MachineTime, Outcome, cores, cpu_seconds, memory_mib, round};
use crate::Failure;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as node;
use chancery_sdk::broadcast::audience;
use clap::Args;
use node::cell_item::Item;
use prost::Message as _;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::Instant;

pub(super) const FEDERATION: &str = "bench.local";
/// Residents live on two nodes.
pub(super) const NODES: [&str; 2] = ["north", "south"];
/// Bytes of what is broadcast.
pub(super) const CONTENT: usize = 4_096;
/// Seats that one list brings.
const LIST: usize = 256;
/// Broadcasts that are measured.
const BROADCASTS: usize = 5;
/// Bytes of a wrap, and cells of a row of them.
const WRAP: usize = 56;
const ROW: u32 = 1_024;

/// Cells, and broadcasts to them: what agent and devices do.
#[derive(Args)]
pub(super) struct BroadcastArgs {
    /// Residents in real cells.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    residents: u32,
    /// Cells with chains of keys and nobody in them: 40,000 are some ten million residents.
    #[arg(long, default_value_t = 40_000, value_name = "N")]
    chains: u32,
    /// Of the residents, so many with a device that joins and reads.
    #[arg(long, default_value_t = 50, value_name = "N")]
    devices: u32,
    /// Most residents in a cell.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub(super) cell_size: u32,
    /// Use the classical cipher suite.
    #[arg(long)]
    pub(super) classical: bool,
}

#[derive(Serialize)]
pub(super) struct Conditions {
    residents: u32,
    cells: u64,
    chains: u32,
    devices: u32,
    cell_size: u32,
    suite: &'static str,
    content_bytes: usize,
    store: &'static str,
    cores_shared_by_all: usize,
    cpu_stolen_percent: f64,
}

#[derive(Serialize)]
pub(super) struct Figures {
    /// A KeyPackage at a device.
    key_package_cpu_ms: f64,
    /// Residents that came into cells, by the agent's CPU time.
    joins_per_s: f64,
    /// What their homes get for each: commit, Welcome, tree, key.
    wire_bytes_per_join: f64,
    agent_rss_mib: f64,
    agent_store_mib: f64,
    /// A broadcast to all cells and chains: begun, wrapped, flushed. Logging is not in it.
    send_s: f64,
    agent_cpu_s: f64,
    /// What a cell's home gets.
    wire_bytes_per_cell: f64,
    /// A device that comes into a cell.
    join_device_cpu_ms: f64,
    /// One that opens a broadcast, from its wrap to its content.
    device_cpu_ms: f64,
    /// What it gets beside the blob.
    device_bytes: usize,
}

/// Figures while they are gathered: CPU seconds and bytes.
#[derive(Default)]
struct Spent {
    making: f64,
    admitting: f64,
    wire: usize,
}

pub(super) async fn run(
    args: BroadcastArgs,
    folder: &Path,
    quiet: bool,
) -> Result<Outcome<Conditions, Figures>, Failure> {
    let machine = MachineTime::now();
    let agent = Agent::open(folder, &args).await?;
    let mut devices = Vec::new();
    for number in 0..args.devices.min(args.residents) {
        devices.push(Device::open(folder, number, &agent).await?);
    }
    let (spent, changes) = enrol(&args, folder, &agent, &devices, quiet).await?;
    let channel = agent.channel.id;
    let (residents, cells) = call(&agent.store, move |tx| audience::count(tx, &channel)).await?;
    if residents != u64::from(args.residents) {
        return Err(Failure::Letter(format!("{residents} residents are in cells")));
    }
    let before = cpu_seconds();
    for (device, change) in devices.iter().zip(&changes) {
        device.join(&agent.name, change).await?;
    }
    let join_cpu = cpu_seconds() - before;
    agent.add_chains(args.chains).await?;

    let (mut send, mut cpu) = (Vec::new(), Vec::new());
    let (mut wire, mut device_cpu, mut device_bytes) = (0, 0.0, 0);
    for _ in 0..BROADCASTS {
        let (begun, before) = (Instant::now(), cpu_seconds());
        let (logged, blob) = agent.broadcast().await?;
        send.push(begun.elapsed().as_secs_f64());
        cpu.push(cpu_seconds() - before);
        let mut rows = HashMap::new();
        for (home, item) in agent.drain().await? {
            wire += item.encoded_len();
            if let Some(Item::Wraps(wraps)) = item.item {
                rows.insert((home.to_string(), wraps.row), wraps.wraps);
            }
        }
        let before = cpu_seconds();
        for (device, change) in devices.iter().zip(&changes) {
            let row = rows.get(&(NODES[0].to_owned(), change.cell / ROW)).ok_or(Failure::Panicked)?;
            let start = (change.cell % ROW) as usize * WRAP;
            device_bytes = device.read(&logged, row.slice(start..start + WRAP), &blob).await?;
        }
        device_cpu += cpu_seconds() - before;
    }
    let (all, each) = (cells + u64::from(args.chains), devices.len().max(1) as f64);
    Ok(Outcome {
        bench: "broadcast",
        conditions: Conditions {
            residents: args.residents,
            cells,
            chains: args.chains,
            devices: args.devices,
            cell_size: args.cell_size,
            suite: if args.classical { "0x0001" } else { "0x004F" },
            content_bytes: CONTENT,
            store: "SQLite, WAL, synchronous=FULL",
            cores_shared_by_all: cores(),
            cpu_stolen_percent: machine.stolen_percent(),
        },
        figures: Figures {
            key_package_cpu_ms: fine(spent.making * 1e3 / f64::from(args.residents)),
            joins_per_s: round(f64::from(args.residents) / spent.admitting),
            wire_bytes_per_join: round(spent.wire as f64 / f64::from(args.residents)),
            agent_rss_mib: round(memory_mib(std::process::id(), "VmHWM")),
            agent_store_mib: round(std::fs::metadata(folder.join("agent.db"))?.len() as f64 / 1_048_576.0),
            send_s: fine(median(&mut send)),
            agent_cpu_s: fine(median(&mut cpu)),
            wire_bytes_per_cell: round(wire as f64 / BROADCASTS as f64 / all as f64),
            join_device_cpu_ms: fine(join_cpu * 1e3 / each),
            device_cpu_ms: fine(device_cpu * 1e3 / each / BROADCASTS as f64),
            device_bytes,
        },
    })
}

/// Brings all residents into cells; what it took, and the change that each device came in with.
async fn enrol(
    args: &BroadcastArgs,
    folder: &Path,
    agent: &Agent,
    devices: &[Device],
    quiet: bool,
) -> Result<(Spent, Vec<federation::CellChange>), Failure> {
    let bar = crate::local::bar(args.residents as usize, "residents in cells", quiet);
    let workshop = open(&folder.join("residents.db"))?;
    let (mut spent, mut admitted) = (Spent::default(), HashMap::new());
    // Devices come first, all from the first home.
    let mut waiting: VecDeque<_> = devices.iter().map(|device| device.joining.clone()).collect();
    let (mut left, mut lists) = (args.residents as usize - waiting.len(), 0);
    while left > 0 || !waiting.is_empty() {
        let home = if waiting.is_empty() { NODES[lists % NODES.len()] } else { NODES[0] };
        let more = left.min(LIST - waiting.len().min(LIST));
        let (channel, before) = (agent.channel.clone(), cpu_seconds());
        let made = call(&workshop, move |tx| {
            (0..more).map(|_| joining(tx, &channel)).collect::<Result<Vec<_>, _>>()
        });
        waiting.extend(made.await?);
        spent.making += cpu_seconds() - before;
        (left, lists) = (left - more, lists + 1);
        let list: Vec<_> = waiting.drain(..waiting.len().min(LIST)).collect();
        let (seats, before) = (list.len() as u64, cpu_seconds());
        agent.admit(home, list).await?;
        let items = agent.drain().await?;
        spent.admitting += cpu_seconds() - before;
        for (_, item) in items {
            spent.wire += item.encoded_len();
            let Some(Item::Change(change)) = item.item else { continue };
            for seat in &change.admitted {
                if devices.iter().any(|device| seat.seat_id == device.seat.as_bytes().as_slice()) {
                    admitted.insert(seat.seat_id.clone(), change.clone());
                }
            }
        }
        bar.inc(seats);
    }
    bar.finish_and_clear();
    let change =
        |device: &Device| admitted.remove(device.seat.as_bytes().as_slice()).ok_or(Failure::Panicked);
    Ok((spent, devices.iter().map(change).collect::<Result<_, _>>()?))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Rounded to three decimals.
fn fine(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
