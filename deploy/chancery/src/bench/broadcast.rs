//! What a broadcast channel costs its agent, the nodes and the residents' devices. Residents are in real
//! cells, each with a KeyPackage of its own, at two nodes that run as they are shipped; beside them stand
//! cells that have nothing but their chains of keys, which is all that a broadcast looks at.

use super::audience::{Agent, CHAINS, Device};
use super::enrolment::{Cache, LIST, Seated, Spent};
use super::nation::Nation;
use super::{MachineTime, Outcome, cores, cpu_seconds, memory_mib, round};
use crate::Failure;
use crate::local::federation::FEDERATION;
use chancery_directory_core::channel::{Channel, JoinRule, Suite, Text};
use chancery_proto::directory::v1 as directory;
use chancery_sdk::credential::AgentName;
use chancery_types::{Alias, ChannelId, SystemEntropy};
use clap::Args;
use prost::Message as _;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// Bytes of what is broadcast.
pub(super) const CONTENT: usize = 4_096;
/// Broadcasts that are measured of each size of a nation.
const BROADCASTS: usize = 5;
/// Broadcasts that an offline device catches up with.
const MISSED: usize = 1_000;

/// Cells, and broadcasts to them over two nodes.
#[derive(Args)]
pub(super) struct BroadcastArgs {
    #[command(flatten)]
    cells: Cells,
    /// Nations of so many million residents, of which all but those in real cells are chains of keys with
    /// nobody behind them.
    #[arg(long, default_values_t = [1, 10, 80], value_delimiter = ',', value_name = "MILLIONS",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    millions: Vec<u32>,
    /// Folder for KeyPackages and the agent's store with everybody in it, for the next run; what was done
    /// before a kill is not done again. Default: made anew and removed.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

/// Who is in the cells.
#[derive(Args)]
pub(super) struct Cells {
    /// Residents in real cells.
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub(super) residents: usize,
    /// Of the residents, so many with a device that joins and reads.
    #[arg(long, default_value_t = 60, value_name = "N")]
    pub(super) devices: usize,
    /// Most residents in a cell.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1024))]
    cell_size: u32,
    /// Use the classical cipher suite.
    #[arg(long)]
    classical: bool,
}

impl Cells {
    /// One cell full of residents.
    pub(super) const fn crowd(cell_size: u32, classical: bool) -> Self {
        Self { residents: cell_size as usize, devices: 0, cell_size, classical }
    }

    /// MLS cipher suite.
    pub(super) const fn suite(&self) -> &'static str {
        if self.classical { "0x0001" } else { "0x004F" }
    }

    /// Seats that the n-th list brings.
    pub(super) fn list(&self, number: usize) -> usize {
        self.residents.saturating_sub(number * LIST).min(LIST)
    }

    /// A channel of an agent's.
    pub(super) fn channel(&self, agent: &AgentName, agent_alias: Alias) -> Channel {
        let text = Text { name: "Bench".to_owned(), description: String::new() };
        Channel {
            federation: FEDERATION.to_owned(),
            id: ChannelId::random(&SystemEntropy),
            version: 1,
            administration: agent.administration.clone(),
            agent: agent.name.clone(),
            texts: BTreeMap::from([("en".to_owned(), text)]),
            join_rule: JoinRule::Open,
            category: 0,
            contact: "https://bench.example".to_owned(),
            suite: if self.classical { Suite::Classical } else { Suite::Hybrid },
            cell_size: self.cell_size,
            emergency: false,
            history: 0,
            agent_alias,
            closed: false,
            for_residents: false,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Conditions {
    residents: u64,
    cells: u64,
    devices: usize,
    cell_size: u32,
    suite: &'static str,
    content_bytes: usize,
    nodes: usize,
    store: &'static str,
    cores_shared_by_all: usize,
    cpu_stolen_percent: f64,
}

#[derive(Serialize)]
pub(super) struct Figures {
    /// A KeyPackage at a device.
    key_package_cpu_ms: Option<f64>,
    /// Residents that came into cells in this run, by the agent's CPU time.
    joins_per_s: Option<f64>,
    /// What their homes get for each: commit, Welcome, tree, key.
    wire_bytes_per_join: Option<f64>,
    /// A device that comes into a cell.
    join_device_cpu_ms: Option<f64>,
    /// Of this process, in which a directory runs as well.
    agent_rss_mib: f64,
    agent_store_mib: f64,
    /// A broadcast to the residents in real cells.
    #[serde(flatten)]
    real: Send,
    /// One that opens a broadcast, from what its home has to its content, the log's proof verified.
    device_cpu_ms: f64,
    /// What it gets beside the blob.
    device_bytes: usize,
    /// In so many cells are the devices.
    cells_of_devices: usize,
    /// A device that was offline for 1,000 broadcasts, whose contents are here already.
    catch_up_s: f64,
    /// Broadcasts to nations.
    nations: Vec<Send>,
}

/// A broadcast: from the caller's word until all of it is durable at both nodes, logged before; median.
#[derive(Serialize)]
struct Send {
    millions: f64,
    cells_wrapped: u64,
    send_s: f64,
    /// Of this process: the agent, the directory that logs, and whoever measures.
    agent_cpu_s: f64,
    /// Of both nodes.
    node_cpu_s: f64,
    wire_bytes_per_cell: f64,
    /// By how much the nodes' databases grew.
    node_bytes_per_cell: f64,
}

pub(super) async fn run(
    args: BroadcastArgs,
    folder: &Path,
    quiet: bool,
    shutdown: CancellationToken,
) -> Result<Outcome<Conditions, Figures>, Failure> {
    let (machine, cells) = (MachineTime::now(), &args.cells);
    let cache = Cache::open(&args.cache.unwrap_or_else(|| folder.join("cache")))?;
    let agent = Agent::open(&cache.agent(), cells).await?;
    let mut spent = Spent::default();
    cache.prepare(cells, &agent, &mut spent, quiet).await?;
    cache.enrol(cells, &agent, &mut spent, quiet).await?;
    let (residents, real_cells) = agent.count().await?;
    agent.close().await;
    let catch_up_s = catch_up(&folder.join("offline"), cells).await?;

    let seated = cache.seated(&folder.join("devices"))?;
    let store = folder.join("agent.db");
    std::fs::copy(cache.agent(), &store)?;
    let agent_store_mib = round(std::fs::metadata(&store)?.len() as f64 / 1_048_576.0);
    let agent = Agent::open(&store, cells).await?;
    let mut nation = Nation::found(&folder.join("federation"), agent, store, &shutdown).await?;
    let millions = residents as f64 / 1e6;
    let (real, sequences) = send(&mut nation, millions, real_cells).await?;
    let (device_cpu_ms, device_bytes) = read(&mut nation, &seated, &sequences).await?;
    let (mut nations, mut chains, mut rows) = (Vec::new(), 0, 0);
    for millions in &args.millions {
        let wanted = u64::from(*millions) * 1_000_000 / u64::from(cells.cell_size);
        let more = u32::try_from(wanted.saturating_sub(real_cells + chains)).unwrap_or(u32::MAX);
        let new = rows..rows + more.div_ceil(CHAINS);
        nation.at_rest(cells, async |agent| agent.add_chains(new.clone(), more).await).await?;
        (chains, rows) = (chains + u64::from(more), new.end);
        nations.push(send(&mut nation, f64::from(*millions), real_cells + chains).await?.0);
    }
    nation.end(&shutdown).await?;

    let each = |spent: f64, of: usize| (of > 0).then(|| fine(spent * 1e3 / of as f64));
    let cells_of_devices: std::collections::BTreeSet<_> =
        seated.iter().map(|device| (device.home, device.cell)).collect();
    Ok(Outcome {
        bench: "broadcast",
        conditions: Conditions {
            residents,
            cells: real_cells,
            devices: seated.len(),
            cell_size: cells.cell_size,
            suite: cells.suite(),
            content_bytes: CONTENT,
            nodes: 2,
            store: "SQLite, WAL, synchronous=FULL",
            cores_shared_by_all: cores(),
            cpu_stolen_percent: machine.stolen_percent(),
        },
        figures: Figures {
            key_package_cpu_ms: each(spent.making, spent.made),
            joins_per_s: (spent.admitted > 0).then(|| round(spent.admitted as f64 / spent.admitting)),
            wire_bytes_per_join: (spent.admitted > 0)
                .then(|| round(spent.wire as f64 / spent.admitted as f64)),
            join_device_cpu_ms: each(spent.joining, spent.joined),
            agent_rss_mib: round(memory_mib(std::process::id(), "VmHWM")),
            agent_store_mib,
            real,
            device_cpu_ms,
            device_bytes,
            cells_of_devices: cells_of_devices.len(),
            catch_up_s,
            nations,
        },
    })
}

/// Some broadcasts; what one took, and their sequences.
async fn send(nation: &mut Nation, millions: f64, cells: u64) -> Result<(Send, Vec<u64>), Failure> {
    let (mut seconds, mut agent, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    // The first one makes the link between the nodes.
    let mut sequences = vec![nation.broadcast().await?.sequence];
    let (before, mut wire) = (nation.stored().await?, 0);
    for _ in 0..BROADCASTS {
        let sent = nation.broadcast().await?;
        seconds.push(sent.seconds);
        agent.push(sent.agent_cpu);
        nodes.push(sent.node_cpu);
        wire += nation.wire(sent.sequence).await?;
        sequences.push(sent.sequence);
    }
    let stored = (nation.stored().await? - before) as f64;
    let all = (cells.max(1) * BROADCASTS as u64) as f64;
    let send = Send {
        millions: fine(millions),
        cells_wrapped: cells,
        send_s: fine(median(&mut seconds)),
        agent_cpu_s: fine(median(&mut agent)),
        node_cpu_s: fine(median(&mut nodes)),
        wire_bytes_per_cell: round(wire as f64 / all),
        node_bytes_per_cell: round(stored / all),
    };
    Ok((send, sequences))
}

/// All devices read broadcasts; milliseconds of CPU and bytes that one took.
async fn read(nation: &mut Nation, seated: &[Seated], sequences: &[u64]) -> Result<(f64, usize), Failure> {
    let (trust, key) = (nation.federation.trust.clone(), nation.agent_key);
    let (mut spent, mut bytes) = (0.0, 0);
    for at in seated {
        let device = Device::open(&at.store).await?;
        for sequence in sequences {
            let (logged, wrap) = nation.brought((at.home, at.cell), *sequence).await?;
            let manifest =
                directory::LoggedManifest::decode(logged.clone()).ok().and_then(|logged| logged.manifest);
            let manifest =
                chancery_directory_core::manifest::SignedManifest::try_from(manifest.unwrap_or_default())?;
            let blob = nation.blob(manifest.manifest().blob.as_bytes())?;
            let before = cpu_seconds();
            bytes = device.read(logged, wrap, &blob, Some((&trust, &key))).await?;
            spent += cpu_seconds() - before;
        }
        device.close().await;
    }
    Ok((fine(spent * 1e3 / (seated.len() * sequences.len()).max(1) as f64), bytes))
}

/// Seconds in which a device that was away opens all that was broadcast meanwhile.
async fn catch_up(folder: &Path, cells: &Cells) -> Result<f64, Failure> {
    std::fs::create_dir_all(folder)?;
    let agent = Agent::open(&folder.join("agent.db"), cells).await?;
    let (device, joining) =
        Device::ask(&folder.join("device.db"), crate::local::layout::ADMINISTRATIONS[0], &agent).await?;
    agent.admit(crate::local::layout::ADMINISTRATIONS[0], vec![joining]).await?;
    for (_, item) in agent.drain().await? {
        if let Some(chancery_proto::node::v1::cell_item::Item::Change(change)) = item.item {
            device.join(&agent.name, &change).await?;
        }
    }
    let mut missed = Vec::with_capacity(MISSED);
    for _ in 0..MISSED {
        let (logged, blob) = agent.broadcast().await?;
        for (_, item) in agent.drain().await? {
            if let Some(chancery_proto::node::v1::cell_item::Item::Wraps(wraps)) = item.item {
                missed.push((bytes::Bytes::from(logged.encode_to_vec()), wraps.wraps, blob.clone()));
            }
        }
    }
    let begun = Instant::now();
    for (logged, wrap, blob) in &missed {
        device.read(logged.clone(), wrap.clone(), blob, None).await?;
    }
    Ok(fine(begun.elapsed().as_secs_f64()))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Rounded to three decimals.
fn fine(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
