//! What people who come and go cost: one real cell of each size loses and gets residents one by one, and
//! what a nation costs in a day is reckoned from that, openly.

use super::audience::{Agent, Device, call, joining, open};
use super::broadcast::Cells;
use super::enrolment::LIST;
use super::{MachineTime, Outcome, cores, cpu_seconds, round};
use crate::Failure;
use crate::local::layout::ADMINISTRATIONS;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1::cell_item::Item;
use chancery_sdk::store::EndpointStore;
use clap::Args;
use serde::Serialize;
use std::path::Path;

/// Residents of the nation for which a day is reckoned.
const NATION: f64 = 10e6;
/// Part of them that goes in a day; as many come.
const CHURN: f64 = 0.001;

/// Residents who come and go.
#[derive(Args)]
pub(super) struct ChurnArgs {
    /// Sizes of cells.
    #[arg(long, default_values_t = [128, 256, 512, 1_000], value_delimiter = ',', value_name = "N",
          value_parser = clap::value_parser!(u32).range(8..=1_024))]
    cell_sizes: Vec<u32>,
    /// How many go from each cell, one after the other, and come.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    changes: u32,
}

#[derive(Serialize)]
pub(super) struct Conditions {
    changes: u32,
    nation: f64,
    churn_a_day: f64,
    cores_shared_by_all: usize,
    cpu_stolen_percent: f64,
}

#[derive(Serialize)]
pub(super) struct Figures {
    sizes: Vec<Size>,
}

/// What was measured of a cell, and reckoned from it.
#[derive(Serialize)]
struct Size {
    suite: &'static str,
    cell_size: u32,
    /// One resident goes out: at the agent, at another resident's device, and what each of them gets.
    removal_agent_cpu_ms: f64,
    removal_device_cpu_ms: f64,
    removal_bytes: f64,
    /// One comes in.
    addition_agent_cpu_ms: f64,
    addition_device_cpu_ms: f64,
    addition_bytes: f64,
    /// What the one who comes in gets: Welcome and tree.
    welcome_bytes: f64,
    /// Of a nation, with removals of a cell together once a day: chance that a cell has one,
    removals_a_cell_and_day: f64,
    /// bytes that each resident gets in a day,
    bytes_per_resident_and_day: f64,
    /// and CPU seconds of the agent in a day.
    agent_cpu_s_a_day: f64,
    /// Bytes of a cell's wrap for each of its residents, for a broadcast a day.
    wrap_bytes_per_resident: f64,
}

pub(super) async fn run(args: ChurnArgs, folder: &Path) -> Result<Outcome<Conditions, Figures>, Failure> {
    let machine = MachineTime::now();
    let mut sizes = Vec::new();
    for classical in [false, true] {
        for cell_size in &args.cell_sizes {
            let cells = Cells::crowd(*cell_size, classical);
            let folder = folder.join(format!("{cell_size}-{classical}"));
            std::fs::create_dir_all(&folder)?;
            sizes.push(measure(&folder, &cells, *cell_size, args.changes).await?);
        }
    }
    Ok(Outcome {
        bench: "churn",
        conditions: Conditions {
            changes: args.changes,
            nation: NATION,
            churn_a_day: CHURN,
            cores_shared_by_all: cores(),
            cpu_stolen_percent: machine.stolen_percent(),
        },
        figures: Figures { sizes },
    })
}

/// CPU seconds and bytes of one kind of change, summed.
#[derive(Default)]
struct Spent {
    agent: f64,
    device: f64,
    bytes: usize,
    welcome: usize,
}

impl Spent {
    async fn change(&mut self, agent: &Agent, device: &Device, before: f64) -> Result<(), Failure> {
        let items = agent.drain().await?;
        self.agent += cpu_seconds() - before;
        for (_, item) in items {
            let Some(Item::Change(change)) = item.item else { continue };
            self.bytes += change.commit.len() + change.key.len();
            self.welcome += change.welcome.len() + change.tree.len() + change.key.len();
            let before = cpu_seconds();
            device.step(&change).await?;
            self.device += cpu_seconds() - before;
        }
        Ok(())
    }
}

async fn measure(folder: &Path, cells: &Cells, size: u32, changes: u32) -> Result<Size, Failure> {
    let agent = Agent::open(&folder.join("agent.db"), cells).await?;
    let home = ADMINISTRATIONS[0];
    let (device, first) = Device::ask(&folder.join("device.db"), home, &agent).await?;
    let workshop = open(&folder.join("residents.db"))?;
    let mut seats = vec![first];
    seats.extend(make(&workshop, &agent, size as usize - 1).await?);
    let leavers: Vec<_> =
        seats.iter().skip(1).take(changes as usize).map(|seat| seat.seat_id.clone()).collect();
    for list in seats.chunks(LIST) {
        agent.admit(home, list.to_vec()).await?;
    }
    for (_, item) in agent.drain().await? {
        let Some(Item::Change(change)) = item.item else { continue };
        match change.admitted.iter().any(|seat| seat.seat_id == device.seat.as_bytes().as_slice()) {
            true => device.join(&agent.name, &change).await?,
            false => device.step(&change).await?,
        }
    }
    let (mut removal, mut addition) = (Spent::default(), Spent::default());
    for leaver in leavers {
        let before = cpu_seconds();
        agent.remove(home, leaver).await?;
        removal.change(&agent, &device, before).await?;
        let joiner = make(&workshop, &agent, 1).await?;
        let before = cpu_seconds();
        agent.admit(home, joiner).await?;
        addition.change(&agent, &device, before).await?;
    }
    let each = |sum: f64| sum / f64::from(changes);
    let a_day = f64::from(size) * CHURN;
    let touched = 1.0 - (-a_day).exp();
    let (out, into) = (each(removal.bytes as f64), each(addition.bytes as f64));
    let cpu = touched * each(removal.agent) + a_day * each(addition.agent);
    Ok(Size {
        suite: cells.suite(),
        cell_size: size,
        removal_agent_cpu_ms: round(each(removal.agent) * 1e3),
        removal_device_cpu_ms: round(each(removal.device) * 1e3),
        removal_bytes: round(out),
        addition_agent_cpu_ms: round(each(addition.agent) * 1e3),
        addition_device_cpu_ms: round(each(addition.device) * 1e3),
        addition_bytes: round(into),
        welcome_bytes: round(each(addition.welcome as f64)),
        removals_a_cell_and_day: (touched * 1e3).round() / 1e3,
        bytes_per_resident_and_day: round(touched * out + a_day * into),
        agent_cpu_s_a_day: round(NATION / f64::from(size) * cpu),
        wrap_bytes_per_resident: (56.0 / f64::from(size) * 1e3).round() / 1e3,
    })
}

async fn make(
    workshop: &EndpointStore,
    agent: &Agent,
    count: usize,
) -> Result<Vec<federation::JoiningSeat>, Failure> {
    let channel = agent.channel.clone();
    call(workshop, move |tx| (0..count).map(|_| joining(tx, &channel)).collect::<Result<Vec<_>, _>>()).await
}
