//! Envelopes from one node to another: submitted at the hub, committed there,
//! handed over, committed in the recipient's mailbox.

use super::device::Device;
use super::{MachineTime, Outcome, ceiling, cores, cpu_seconds, round};
use crate::Failure;
use crate::local::federation::{LocalFederation, name};
use crate::local::layout::{ADMINISTRATIONS, Layout};
use crate::local::report::quantile;
use chancery_directory_core::{AgentKey, keys};
use chancery_kit::store::StoreError;
use chancery_proto::federation::v1 as wire;
use chancery_proto::node::v1 as node;
use chancery_types::{Clock, Entropy, GroupId, SystemClock, SystemEntropy};
use clap::Args;
use prost::Message as _;
use serde::Serialize;
use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

/// Submissions of one call.
const BATCH: usize = 128;
/// Calls on the way at once.
const CALLS: usize = 4;
/// Bytes of ciphertext of an envelope.
const ENVELOPE: usize = 1024;
/// Longest wait for the last envelope.
const PATIENCE: Duration = Duration::from_secs(60);
/// Envelopes for the latencies, one every 10 ms.
const PROBES: usize = 300;

/// Envelopes of 1 KiB from one node to another.
#[derive(Args)]
pub(super) struct RelayArgs {
    /// Envelopes.
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    envelopes: usize,
    /// Groups they are spread over.
    #[arg(long, default_value_t = 64, value_name = "N")]
    groups: usize,
}

#[derive(Serialize)]
pub(super) struct Conditions {
    envelopes: usize,
    envelope_bytes: usize,
    groups: usize,
    store: &'static str,
    durable: &'static str,
    cores_shared_by_all: usize,
    cpu_stolen_percent: f64,
    latency_probes_per_s: u32,
}

#[derive(Serialize)]
pub(super) struct Figures {
    relay_per_s: f64,
    cpu_us_per_envelope: f64,
    p50_ms: f64,
    p99_ms: f64,
    ceiling_stream_per_s: f64,
    ceiling_insert_per_s: f64,
}

pub(super) async fn run(
    args: RelayArgs,
    folder: &Path,
    shutdown: CancellationToken,
) -> Result<Outcome<Conditions, Figures>, Failure> {
    let mut pair = Pair::start(&args, folder, &shutdown).await?;
    let machine = MachineTime::now();
    let (seconds, cpu) = pair.flood(args.envelopes).await?;
    pair.settled(folder).await?;
    let mut latencies = pair.probe().await?;
    let cpu_stolen_percent = machine.stolen_percent();

    let parcel = pair.parcel();
    let row = parcel.encode_to_vec().into();
    let frames = (args.envelopes / 256).max(64);
    let credentials = pair.federation.node_credentials(ADMINISTRATIONS[0])?;
    let here = name(ADMINISTRATIONS[0])?;
    let ceiling_stream_per_s = ceiling::stream(credentials, here, parcel, 256, frames).await?;
    let ceiling_insert_per_s = ceiling::insert(folder, row, 256, frames).await?;
    shutdown.cancel();
    pair.federation.ended().await?;
    Ok(Outcome {
        bench: "relay",
        conditions: Conditions {
            envelopes: args.envelopes,
            envelope_bytes: ENVELOPE,
            groups: args.groups,
            store: "SQLite, WAL, synchronous=FULL",
            durable: "flushed at both ends",
            cores_shared_by_all: cores(),
            cpu_stolen_percent,
            latency_probes_per_s: 100,
        },
        figures: Figures {
            relay_per_s: round(args.envelopes as f64 / seconds),
            cpu_us_per_envelope: round(cpu * 1e6 / args.envelopes as f64),
            p50_ms: round(quantile(&mut latencies, 0.5)),
            p99_ms: round(quantile(&mut latencies, 0.99)),
            ceiling_stream_per_s: round(ceiling_stream_per_s),
            ceiling_insert_per_s: round(ceiling_insert_per_s),
        },
    })
}

/// Two nodes with a device each.
struct Pair {
    federation: LocalFederation,
    sender: Arc<Device>,
    groups: Vec<GroupId>,
    arrivals: tonic::Streaming<node::SubscribeResponse>,
    /// The receiver's; acknowledges what has come.
    receiver: Device,
}

impl Pair {
    async fn start(args: &RelayArgs, folder: &Path, shutdown: &CancellationToken) -> Result<Self, Failure> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let layout = Layout::open(folder, 0)?;
        let mut federation =
            LocalFederation::start(layout, clock, Arc::clone(&entropy), shutdown.clone()).await?;
        for administration in ADMINISTRATIONS {
            let key = AgentKey::from(&keys::generate(&*entropy));
            federation.start_node(administration, key).await?;
        }
        let credentials = federation.device_credentials().await?;
        let open = async |administration: &str| {
            let endpoint = federation.layout.address(&format!("node-{administration}")).to_string();
            Device::open(&endpoint, name(administration)?, Arc::clone(&credentials)).await
        };
        let [first, second] = ADMINISTRATIONS;
        let (sender, receiver) = (Arc::new(open(first).await?), open(second).await?);
        let groups: Vec<_> = (0..args.groups.max(1)).map(|_| GroupId::random(&*entropy)).collect();
        for chunk in groups.chunks(BATCH) {
            sender
                .submit(
                    chunk
                        .iter()
                        .map(|group| sender.opening(*group, receiver.alias, &receiver.node))
                        .collect(),
                )
                .await?;
        }
        let request = node::SubscribeRequest { alias: receiver.alias.to_wire(), after: 0 };
        let arrivals = receiver.mailbox().subscribe(request).await.map_err(Failure::call)?.into_inner();
        let mut pair = Self { federation, sender, groups, arrivals, receiver };
        for _ in 0..pair.groups.len() {
            pair.next().await?;
        }
        Ok(pair)
    }

    /// Sends as fast as the hub takes them; seconds until the last has been
    /// handed to the receiving device, and CPU seconds.
    async fn flood(&mut self, envelopes: usize) -> Result<(f64, f64), Failure> {
        let groups = self.groups.iter().cycle().take(envelopes);
        let messages: Vec<_> = groups.map(|group| self.sender.message(*group, ENVELOPE)).collect();
        let (cpu, begun) = (cpu_seconds(), Instant::now());
        let sender = Arc::clone(&self.sender);
        let sending = tokio::spawn(async move {
            let batches: Vec<_> = messages.chunks(BATCH).map(<[_]>::to_vec).collect();
            let calls = batches.into_iter().map(|batch| {
                let sender = Arc::clone(&sender);
                async move { sender.submit(batch).await }
            });
            let results: Vec<_> =
                futures::StreamExt::buffer_unordered(futures::stream::iter(calls), CALLS).collect().await;
            results.into_iter().collect::<Result<Vec<()>, Failure>>()
        });
        let mut last = 0;
        for _ in 0..envelopes {
            last = self.next().await?.position;
        }
        let figures = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        sending.await.map_err(|_| Failure::Panicked)??;
        self.acknowledge(last).await?;
        Ok(figures)
    }

    /// Waits until both nodes have nothing more to tell each other about the flood.
    async fn settled(&self, folder: &Path) -> Result<(), Failure> {
        let begun = Instant::now();
        for administration in ADMINISTRATIONS {
            let path = folder.join(format!("node-{administration}/node.db"));
            let options = SqliteConnectOptions::new().filename(path).read_only(true);
            let mut node = options.connect().await.map_err(StoreError::from)?;
            let waiting = "SELECT EXISTS (SELECT 1 FROM outbox)";
            while sqlx::query_scalar::<_, bool>(waiting)
                .fetch_one(&mut node)
                .await
                .map_err(StoreError::from)?
            {
                if begun.elapsed() > PATIENCE {
                    return Err(Failure::Stalled(PATIENCE.as_secs()));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Milliseconds from Submit to the receiving device, at 100 a second.
    async fn probe(&mut self) -> Result<Vec<f64>, Failure> {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let (mut sent, mut latencies) = (HashMap::new(), Vec::with_capacity(PROBES));
        let group = *self.groups.first().ok_or(Failure::Stopped)?;
        let mut calls = tokio::task::JoinSet::new();
        while latencies.len() < PROBES {
            tokio::select! {
                _ = ticks.tick(), if sent.len() < PROBES => {
                    let message = self.sender.message(group, ENVELOPE);
                    sent.insert(message.message_id.clone(), Instant::now());
                    let sender = Arc::clone(&self.sender);
                    calls.spawn(async move { sender.submit(vec![message]).await });
                }
                item = self.arrivals.next() => {
                    let item = item.ok_or(Failure::Stopped)?.map_err(Failure::call)?;
                    if let Some(node::subscribe_response::Item::Delivery(delivery)) = item.item
                        && let Some(at) = sent.get(&delivery.message_id)
                    {
                        latencies.push(at.elapsed().as_secs_f64() * 1000.0);
                    }
                }
                () = tokio::time::sleep(PATIENCE) => return Err(Failure::Stalled(PATIENCE.as_secs())),
            }
        }
        while let Some(call) = calls.join_next().await {
            call.map_err(|_| Failure::Panicked)??;
        }
        Ok(latencies)
    }

    async fn next(&mut self) -> Result<node::SubscribeResponse, Failure> {
        let item = tokio::time::timeout(PATIENCE, self.arrivals.next()).await;
        let item = item.map_err(|_| Failure::Stalled(PATIENCE.as_secs()))?;
        item.ok_or(Failure::Stopped)?.map_err(Failure::call)
    }

    async fn acknowledge(&self, through: u64) -> Result<(), Failure> {
        let request = node::AcknowledgeRequest {
            alias: self.receiver.alias.to_wire(),
            through,
            receipts: Vec::new(),
            ..Default::default()
        };
        self.receiver.mailbox().acknowledge(request).await.map(drop).map_err(Failure::call)
    }

    /// A parcel as it goes over the link.
    fn parcel(&self) -> wire::Parcel {
        let group = self.groups.first().copied().unwrap_or(GroupId::from_bytes([0; 32]));
        let message = self.sender.message(group, ENVELOPE);
        let body = match message.body {
            Some(wire::submission::Body::Application(bytes)) => wire::delivery::Body::Application(bytes),
            _ => wire::delivery::Body::Application(bytes::Bytes::new()),
        };
        let delivery = wire::Delivery {
            message_id: message.message_id,
            group_id: message.group_id,
            sequence: 1,
            chain: bytes::Bytes::from_static(&[0; 32]),
            epoch: 1,
            expires_at_ms: message.expires_at_ms,
            recipients: vec![self.receiver.alias.to_wire()],
            body: Some(body),
            ..Default::default()
        };
        wire::Parcel { parcel: Some(wire::parcel::Parcel::Delivery(delivery)) }
    }
}
