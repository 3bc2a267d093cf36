//! What records cost: a directory in a process of its own, as it is shipped, asked
//! over mutual TLS by this one, which shares the machine with it.

use super::{cpu_seconds_of, memory_mib, resolve, round};
use crate::Failure;
use crate::local::federation::{FEDERATION, LocalFederation, name};
use crate::local::layout::{ADMINISTRATIONS, AUTHORITY, AUTHORITY_KEY, Layout};
use chancery_directory::DirectoryKeyFiles;
use chancery_directory::authority;
use chancery_directory_core::client::read_publication;
use chancery_directory_core::enrolment::AuthoritySigner;
use chancery_directory_core::operation::{self, ResultKey};
use chancery_directory_core::record::RecordDraft;
use chancery_directory_core::statement::{Decision, DirectoryKeys};
use chancery_directory_core::{Address, Prefix, RecordKey, Trust, handle, keys};
use chancery_kit::tls::{Credentials, connect};
use chancery_pki_core::Party;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_types::{Alias, Clock, Entropy, Handle, Scheme, SystemClock, SystemEntropy};
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use prost::Message as _;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Whose port the mirror takes.
const MIRROR: &str = "agent-federal";
/// Records that are signed and sealed at once, then put.
const ROUND: usize = 10_000;
/// Operations under way at once, as many endpoints have them.
const UNDER_WAY: usize = 512;
/// Lookups under way at once.
const LOOKUPS: usize = 16;
/// Places that fit into the directory's memory.
const CACHED: usize = 256;
/// How long a directory may take to answer after its start.
const START: Duration = Duration::from_mins(2);
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

#[derive(Serialize)]
pub(super) struct Figures {
    /// The last 10,000, with all others present: opened, judged, logged, committed.
    publish_per_s: f64,
    /// The second 10,000.
    publish_per_s_at_10000: f64,
    /// CPU of the directory alone.
    publish_cpu_us: f64,
    /// Places in memory, by CPU seconds of the directory alone.
    lookup_cached_per_s_per_core: f64,
    /// All of them, the client's verification of nothing but their form included.
    lookup_cached_per_s: f64,
    /// Each place for the first time since a start.
    lookup_disk_per_s: f64,
    proof_bytes_p50: usize,
    proof_bytes_p99: usize,
    /// From SIGKILL to the first answer.
    restart_s: f64,
    /// The most that the directory held.
    rss_mib: f64,
    database_mib: f64,
    #[serde(flatten)]
    resolve: resolve::Figures,
}

/// Whether progress is shown.
pub(super) struct Shown(pub(super) bool);

/// Bits of a handle that a lookup names, so that on average no more than so many
/// records stand under a prefix.
pub(super) fn prefix_bits(records: u32, under_a_prefix: u32) -> u32 {
    records.div_ceil(under_a_prefix).next_power_of_two().ilog2()
}

pub(super) async fn measure(
    folder: &Path,
    (records, bits): (u32, u32),
    time: Duration,
    shown: Shown,
) -> Result<Figures, Failure> {
    let founded = found(folder, bits).await?;
    let mut directory = Process::start(&founded, Role::Directory).await?;
    let bar = if shown.0 { ProgressBar::new(records.into()) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("records {bar:40} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    let (mut put, mut second, mut last, mut cpu) = (0, 0.0, 0.0, 0.0);
    let mut known = Vec::with_capacity(records as usize);
    while put < records as usize {
        let count = ROUND.min(records as usize - put);
        let (operations, more) = prepare(&founded, count).await?;
        known.extend(more);
        let (begun, before) = (Instant::now(), directory.cpu());
        publish(&directory.client, operations, &bar).await?;
        last = count as f64 / begun.elapsed().as_secs_f64();
        cpu = (directory.cpu() - before) * 1e6 / count as f64;
        if put == ROUND {
            second = last;
        }
        put += count;
    }
    bar.finish_and_clear();
    let restarted = Instant::now();
    directory.kill()?;
    let rss_publishing = directory.rss_mib;
    directory = Process::start(&founded, Role::Directory).await?;
    let restart_s = restarted.elapsed().as_secs_f64();

    let every: Vec<_> =
        (0..1_u32 << bits).map(|place| Prefix::from_bits(place << (32 - bits), bits)).collect();
    let (disk, mut sizes) =
        look_up(&directory.client, every.iter().copied().cycle().take(every.len())).await?;
    sizes.sort_unstable();
    let of = |part: usize| sizes.get(sizes.len() * part / 100).copied().unwrap_or(0);
    // The places asked for last are in memory.
    let warm: Vec<_> = every.iter().rev().take(CACHED).copied().collect();
    look_up(&directory.client, warm.iter().copied()).await?;
    let (mut answered, begun, before) = (0, Instant::now(), directory.cpu());
    while begun.elapsed() < time {
        look_up(&directory.client, warm.iter().copied().cycle().take(4 * CACHED)).await?;
        answered += 4 * CACHED;
    }
    let (cached, spent) = (answered as f64 / begun.elapsed().as_secs_f64(), directory.cpu() - before);
    directory.kill()?;
    let resolve = resolve::measure(&founded, known, bits, time).await?;
    let database = std::fs::metadata(folder.join("directory/directory.sqlite"))?.len();
    Ok(Figures {
        publish_per_s: round(last),
        publish_per_s_at_10000: round(second),
        publish_cpu_us: round(cpu),
        lookup_cached_per_s_per_core: round(answered as f64 / spent),
        lookup_cached_per_s: round(cached),
        lookup_disk_per_s: round(every.len() as f64 / disk.as_secs_f64()),
        proof_bytes_p50: of(50),
        proof_bytes_p99: of(99),
        restart_s: (restart_s * 100.0).round() / 100.0,
        rss_mib: round(rss_publishing.max(directory.rss_mib)),
        database_mib: round(database as f64 / 1_048_576.0),
        resolve,
    })
}

/// A federation in a folder, with a member that may ask its directory.
pub(super) struct Founded {
    layout: Layout,
    pub(super) trust: Trust,
    credentials: Arc<Credentials>,
    hpke: [u8; 32],
}

async fn found(folder: &Path, lookup_prefix_bits: u32) -> Result<Founded, Failure> {
    let (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>) =
        (Arc::new(SystemClock), Arc::new(SystemEntropy));
    let layout = Layout::open(folder, 0)?;
    let shutdown = CancellationToken::new();
    let mut federation =
        LocalFederation::start(layout.clone(), clock, Arc::clone(&entropy), shutdown.clone()).await?;
    let hpke = *DirectoryKeyFiles::open(&layout.path("directory"), FEDERATION, &*entropy)?.hpke_public_key();
    federation
        .decide(Decision::DirectoryKeys(DirectoryKeys { hpke_public_key: hpke, lookup_prefix_bits }))
        .await?;
    let key = (&keys::generate(&*entropy)).into();
    let administration = ADMINISTRATIONS[0];
    federation.start_node(administration, key).await?;
    let credentials = federation.node_credentials(administration)?;
    shutdown.cancel();
    federation.ended().await?;
    let trust = federation.trust;
    let toml = BTreeMap::from([
        ("listen", layout.address("directory").to_string()),
        ("bundle", layout.path("federation.toml").display().to_string()),
        ("identity", layout.path("directory/identity").display().to_string()),
        ("pki", layout.address("pki").to_string()),
        ("folder", layout.path("directory").display().to_string()),
    ]);
    let write = |file: &str, toml: &BTreeMap<&str, String>| {
        let text = toml::to_string(toml).map_err(std::io::Error::other)?;
        std::fs::write(layout.path(file), text)
    };
    write("directory.toml", &toml)?;
    // On a port that nobody listens on here, under the directory's own certificate.
    let mut mirror = toml.clone();
    mirror.insert("listen", layout.address(MIRROR).to_string());
    mirror.insert("directory", layout.address("directory").to_string());
    mirror.insert("folder", layout.path("mirror").display().to_string());
    write("mirror.toml", &mirror)?;
    Ok(Founded { layout, trust, credentials, hpke })
}

/// Which server a process is.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Directory,
    Mirror,
}

/// A directory or mirror as a process.
pub(super) struct Process {
    child: Child,
    pub(super) client: DirectoryServiceClient<Channel>,
    pub(super) rss_mib: f64,
}

impl Process {
    /// Starts it and waits until it answers.
    pub(super) async fn start(founded: &Founded, role: Role) -> Result<Self, Failure> {
        let (command, file, party) = match role {
            Role::Directory => ("serve", "directory.toml", "directory"),
            Role::Mirror => ("mirror", "mirror.toml", MIRROR),
        };
        let child = Command::new(std::env::current_exe()?)
            .args(["directory", command, "--config"])
            .arg(founded.layout.path(file))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let endpoint = founded.layout.address(party).to_string();
        let since = Instant::now();
        let channel = loop {
            match connect(&endpoint, Party::Directory, Arc::clone(&founded.credentials)).await {
                Ok((channel, _)) => break channel,
                Err(error) if since.elapsed() > START => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let client = DirectoryServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let asked = client.clone().fetch_checkpoint(wire::FetchCheckpointRequest {}).await;
        asked.map_err(Failure::call)?;
        Ok(Self { child, client, rss_mib: 0.0 })
    }

    fn cpu(&self) -> f64 {
        cpu_seconds_of(self.child.id())
    }

    /// As SIGKILL does it; notes how much it held.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        self.rss_mib = memory_mib(self.child.id(), "VmHWM");
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A handle with the key of its record.
pub(super) type Known = (Handle, RecordKey);

type Operation = (wire::PublishRequest, ResultKey);

/// First records of people who do not exist, attested, signed and sealed, on all cores.
async fn prepare(founded: &Founded, count: usize) -> Result<(Vec<Operation>, Vec<Known>), Failure> {
    let cores = super::cores();
    let parts = (0..cores).map(|part| {
        let file = founded.layout.path(AUTHORITY_KEY);
        let authority = name(AUTHORITY).map(|id| authority::open(id, &file, &SystemEntropy));
        let (hpke, count) = (founded.hpke, count / cores + usize::from(part < count % cores));
        tokio::task::spawn_blocking(move || {
            let authority = authority??;
            (0..count).map(|_| operation(&authority, &hpke)).collect::<Result<Vec<_>, Failure>>()
        })
    });
    let (mut operations, mut known) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for part in futures::future::join_all(parts).await {
        for (operation, of) in part.map_err(|_| Failure::Panicked)?? {
            operations.push(operation);
            known.push(of);
        }
    }
    Ok((operations, known))
}

fn operation(authority: &AuthoritySigner, hpke: &[u8; 32]) -> Result<(Operation, Known), Failure> {
    let entropy: &dyn Entropy = &SystemEntropy;
    let (handle, record_key) = handle::split(&entropy.array())?;
    let account = keys::generate(entropy);
    let address = Address {
        node: name(ADMINISTRATIONS[0])?,
        alias: Alias::random(entropy),
        credential_key: (&keys::generate(entropy)).into(),
    };
    let record = RecordDraft {
        handle,
        version: 1,
        previous_index: None,
        attestation: authority.attest(Scheme::BeNn, handle, (&account).into(), 1, SystemClock.now()),
        second_attestation: None,
        sealed_part: address.seal(&record_key, &handle, 1, entropy)?,
        two_authorities: false,
        changed_at: SystemClock.now(),
    };
    Ok((operation::seal(record.sign(&account), hpke)?, (handle, record_key)))
}

async fn publish(
    client: &DirectoryServiceClient<Channel>,
    operations: Vec<Operation>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut answers = futures::stream::iter(operations)
        .map(|(request, key)| {
            let mut client = client.clone();
            async move {
                let answer = client.publish(request).await.map_err(Failure::call)?.into_inner();
                read_publication(key.open(&answer)?).map_err(Failure::from)
            }
        })
        .buffer_unordered(UNDER_WAY);
    while let Some(answer) = answers.next().await {
        answer?;
        bar.inc(1);
    }
    Ok(())
}

/// One prefix a call; gives the time of all, and the bytes of each answer.
async fn look_up(
    client: &DirectoryServiceClient<Channel>,
    prefixes: impl Iterator<Item = Prefix>,
) -> Result<(Duration, Vec<usize>), Failure> {
    let begun = Instant::now();
    let mut answers = futures::stream::iter(prefixes)
        .map(|prefix| {
            let mut client = client.clone();
            async move {
                let prefixes = vec![prefix.to_bytes().to_vec().into()];
                client.lookup(wire::LookupRequest { prefixes }).await.map_err(Failure::call)
            }
        })
        .buffer_unordered(LOOKUPS);
    let mut sizes = Vec::new();
    while let Some(answer) = answers.next().await {
        sizes.push(answer?.into_inner().encoded_len());
    }
    Ok((begun.elapsed(), sizes))
}
