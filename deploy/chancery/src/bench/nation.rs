//! An agent that broadcasts in a federation: a directory here, two nodes as they are shipped, each in a
//! process of its own.

use super::audience::Agent;
use super::broadcast::{CONTENT, Cells};
use super::node::NodeProcess;
use super::{cpu_seconds, cpu_seconds_of};
use crate::Failure;
use crate::local::federation::{LocalFederation, name};
use crate::local::layout::{ADMINISTRATIONS, Layout};
use bytes::Bytes;
use chancery_directory_core::channel::Channel;
use chancery_directory_core::{AgentKey, keys};
use chancery_kit::store::StoreError;
use chancery_sdk::broadcast::sender::Order;
use chancery_sdk::endpoint::{Endpoint, EndpointConfig};
use chancery_types::{Clock as _, Entropy, SystemClock, SystemEntropy};
use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Longest that a broadcast may take to be everywhere.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often the nodes' stores are looked at.
const LOOK: Duration = Duration::from_millis(2);

pub(super) struct Nation {
    pub(super) federation: LocalFederation,
    nodes: Vec<NodeProcess>,
    stores: Vec<SqliteConnection>,
    config: EndpointConfig,
    /// The key by which the log lists the agent.
    pub(super) agent_key: AgentKey,
    channel: Channel,
    /// Rows of wraps that each node is to get of a broadcast.
    rows: [usize; 2],
    speaking: Option<(Endpoint, CancellationToken, tokio::task::JoinHandle<()>)>,
}

/// A broadcast that was sent.
pub(super) struct Sent {
    pub(super) sequence: u64,
    pub(super) seconds: f64,
    /// Of this process: the agent, the directory that logs, and whoever measures.
    pub(super) agent_cpu: f64,
    /// Of both nodes.
    pub(super) node_cpu: f64,
}

impl Nation {
    /// Founds a federation around an agent's store.
    pub(super) async fn found(
        folder: &Path,
        agent: Agent,
        store: PathBuf,
        shutdown: &CancellationToken,
    ) -> Result<Self, Failure> {
        let (clock, entropy): (Arc<dyn chancery_types::Clock>, Arc<dyn Entropy>) =
            (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let layout = Layout::open(folder, 0)?;
        let started =
            LocalFederation::start(layout, Arc::clone(&clock), Arc::clone(&entropy), shutdown.clone());
        let mut federation = started.await?;
        let agent_key = AgentKey::try_from(agent.key.as_slice())?;
        let [home, other] = ADMINISTRATIONS;
        federation.admit_node(home, agent_key).await?;
        federation.admit_node(other, AgentKey::from(&keys::generate(&*entropy))).await?;
        let mut nodes = Vec::new();
        for administration in ADMINISTRATIONS {
            nodes.push(NodeProcess::start(&federation.layout, administration)?);
        }
        let config = EndpointConfig {
            store,
            node: name(home)?,
            node_endpoint: federation.layout.address(&format!("node-{home}")).to_string(),
            federation: federation.bundle.clone(),
            credentials: federation.agent_credentials(home).await?,
            stock: 4,
            clock,
            entropy,
        };
        let (channel, rows) = (agent.channel.clone(), agent.rows().await?);
        agent.close().await;
        let mut nation =
            Self { federation, nodes, stores: Vec::new(), config, agent_key, channel, rows, speaking: None };
        nation.speak().await?;
        for administration in ADMINISTRATIONS {
            let options =
                SqliteConnectOptions::new().filename(nation.database(administration)).read_only(true);
            nation.stores.push(options.connect().await.map_err(StoreError::from)?);
        }
        Ok(nation)
    }

    fn database(&self, administration: &str) -> PathBuf {
        self.federation.layout.path(&format!("node-{administration}/node.db"))
    }

    /// Opens the agent's endpoint and publishes its channel, as soon as the nodes answer.
    async fn speak(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        let endpoint = Endpoint::open(self.config.clone()).await?;
        loop {
            match endpoint.register().await {
                Err(_) if begun.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(50)).await,
                registered => break registered?,
            }
        }
        endpoint.publish_channel(&self.channel).await?;
        let stop = CancellationToken::new();
        let (running, stopped) = (endpoint.clone(), stop.clone());
        let task = tokio::spawn(async move { running.run(stopped).await });
        self.speaking = Some((endpoint, stop, task));
        Ok(())
    }

    /// Stops the agent, works on its store, and starts it again.
    pub(super) async fn at_rest(
        &mut self,
        cells: &Cells,
        work: impl AsyncFnOnce(&Agent) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if let Some((endpoint, stop, task)) = self.speaking.take() {
            stop.cancel();
            let _ = task.await;
            drop(endpoint);
        }
        let begun = Instant::now();
        let agent = loop {
            // Its last clone lets go of the file a moment later.
            match Agent::open(&self.config.store, cells).await {
                Err(_) if begun.elapsed() < PATIENCE => tokio::time::sleep(LOOK).await,
                opened => break opened?,
            }
        };
        work(&agent).await?;
        self.rows = agent.rows().await?;
        agent.close().await;
        self.speak().await
    }

    /// Broadcasts, and waits until all of it is durable at both nodes.
    pub(super) async fn broadcast(&mut self) -> Result<Sent, Failure> {
        let endpoint =
            self.speaking.as_ref().map(|(endpoint, ..)| endpoint.clone()).ok_or(Failure::Stopped)?;
        let mut content = vec![0; CONTENT];
        let entropy: &dyn Entropy = &SystemEntropy;
        entropy.fill(&mut content);
        let order = Order {
            request_id: entropy.array(),
            digest: [0; 32],
            channel: self.channel.id,
            content,
            emergency: false,
            about: None,
            expires: SystemClock.now().after(Duration::from_hours(24)),
            begins: None,
        };
        let (agent, nodes) = (cpu_seconds(), self.node_cpu());
        let begun = Instant::now();
        let sequence = endpoint.broadcast(order).await?.sequence;
        for (store, rows) in self.stores.iter_mut().zip(self.rows) {
            while wrapped(store, sequence).await? < rows as i64 {
                if begun.elapsed() > PATIENCE {
                    return Err(Failure::Stalled(PATIENCE.as_secs()));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(Sent {
            sequence,
            seconds: begun.elapsed().as_secs_f64(),
            agent_cpu: cpu_seconds() - agent,
            node_cpu: self.node_cpu() - nodes,
        })
    }

    fn node_cpu(&self) -> f64 {
        self.nodes.iter().map(|node| cpu_seconds_of(node.id())).sum()
    }

    /// Bytes of both nodes' databases.
    pub(super) async fn stored(&mut self) -> Result<i64, Failure> {
        let mut bytes = 0;
        for store in &mut self.stores {
            let size = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";
            bytes += sqlx::query_scalar::<_, i64>(size).fetch_one(store).await.map_err(StoreError::from)?;
        }
        Ok(bytes)
    }

    /// Bytes of all wraps of a broadcast, as parcels carry them.
    pub(super) async fn wire(&mut self, sequence: u64) -> Result<usize, Failure> {
        let mut bytes = 0;
        for store in &mut self.stores {
            let manifest: Vec<u8> = manifest(store, sequence).await?;
            bytes += manifest.len() + PARCEL;
            let rows = "SELECT length(wraps) FROM broadcast_wraps w JOIN broadcast b ON b.id = w.broadcast_id \
                        WHERE b.sequence = $1";
            let rows: Vec<i64> = sqlx::query_scalar(rows)
                .bind(i64::try_from(sequence).unwrap_or(i64::MAX))
                .fetch_all(&mut *store)
                .await
                .map_err(StoreError::from)?;
            bytes += rows.iter().map(|row| usize::try_from(*row).unwrap_or(0) + PARCEL).sum::<usize>();
        }
        Ok(bytes)
    }

    /// What the home of a cell's residents has for it of a broadcast: manifest with proof, wrap, blob.
    pub(super) async fn brought(
        &mut self,
        (home, cell): (usize, u32),
        sequence: u64,
    ) -> Result<(Bytes, Bytes), Failure> {
        let store = self.stores.get_mut(home).ok_or(Failure::Panicked)?;
        let manifest = manifest(store, sequence).await?;
        let row = "SELECT substr(wraps, $3, 56) FROM broadcast_wraps w JOIN broadcast b ON b.id = w.broadcast_id \
                   WHERE b.sequence = $1 AND w.row = $2";
        let wrap: Vec<u8> = sqlx::query_scalar(row)
            .bind(i64::try_from(sequence).unwrap_or(i64::MAX))
            .bind(i64::from(cell / 1_024))
            .bind(i64::from(cell % 1_024 * 56 + 1))
            .fetch_one(store)
            .await
            .map_err(StoreError::from)?;
        Ok((manifest.into(), wrap.into()))
    }

    /// A blob at the agent's node.
    pub(super) fn blob(&self, id: &[u8]) -> Result<Bytes, Failure> {
        let folder = self.federation.layout.path(&format!("node-{}/blobs", ADMINISTRATIONS[0]));
        Ok(std::fs::read(folder.join(hex::encode(id)))?.into())
    }

    /// Stops all parties.
    pub(super) async fn end(mut self, shutdown: &CancellationToken) -> Result<(), Failure> {
        if let Some((_, stop, task)) = self.speaking.take() {
            stop.cancel();
            let _ = task.await;
        }
        shutdown.cancel();
        self.nodes.clear();
        self.federation.ended().await
    }
}

/// Bytes of a parcel beside wraps or manifest: channel, sequence, row, tags and lengths.
const PARCEL: usize = 40;

async fn wrapped(store: &mut SqliteConnection, sequence: u64) -> Result<i64, Failure> {
    let count = "SELECT count(*) FROM broadcast_wraps w JOIN broadcast b ON b.id = w.broadcast_id \
                 WHERE b.sequence = $1";
    let count = sqlx::query_scalar(count).bind(i64::try_from(sequence).unwrap_or(i64::MAX));
    Ok(count.fetch_one(store).await.map_err(StoreError::from)?)
}

async fn manifest(store: &mut SqliteConnection, sequence: u64) -> Result<Vec<u8>, Failure> {
    let manifest = sqlx::query_scalar("SELECT logged_manifest FROM broadcast WHERE sequence = $1");
    let manifest = manifest.bind(i64::try_from(sequence).unwrap_or(i64::MAX));
    Ok(manifest.fetch_one(store).await.map_err(StoreError::from)?)
}
