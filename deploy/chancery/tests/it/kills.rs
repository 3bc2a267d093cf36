//! Directory and evaluators as processes that are killed at any moment, while residents
//! enrol and the evaluators deal their shares anew: what was acknowledged stands, the
//! log never forks, and no handle comes out in two ways.

use crate::founding::Hosts;
use chancery_directory_core::{Trust, VerifiedCheckpoint};
use chancery_kit::party::read_bundle;
use chancery_kit::tls::{Credentials, connect};
use chancery_pki_core::{Crls, FederationBundle, Party, armour};
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_sdk::authority::Codes;
use chancery_sdk::endpoint::{AuthorityAddress, Endpoint, EndpointConfig};
use chancery_types::entropy::SeededEntropy;
use chancery_types::{Alias, Clock as _, Entropy, Identifier, SystemClock, SystemEntropy};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

const DIRECTORY: (&str, &str) = ("directory", "chancery directory serve --config config/directory.toml");
const EVALUATOR: &str = "chancery evaluator serve --config config/evaluator.toml";
/// How often something is killed.
const KILLS: u32 = 24;
/// Residents that enrol at once.
const AT_ONCE: u32 = 3;
/// Longest wait for one of them.
const PATIENCE: Duration = Duration::from_secs(120);

/// Pause between looks at something that may be dead.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the residents need of the hosts, for tasks beside them.
#[derive(Clone)]
struct Federation {
    bundle: FederationBundle,
    credentials: Arc<Credentials>,
    folder: PathBuf,
    codes: Arc<Codes>,
    node: String,
    directory: String,
    authority: AuthorityAddress,
}

impl Federation {
    fn of(hosts: &Hosts) -> Self {
        let bundle = read_bundle(&hosts.path("regional", "federation.toml")).unwrap();
        let crls = std::fs::read(hosts.path("regional", "node-identity/crls.pem")).unwrap();
        let crls = Crls::parse(&armour::read_crls(&crls).unwrap()).unwrap();
        let credentials = Credentials::anonymous(bundle.anchors().clone(), crls, Arc::new(SystemClock));
        Self {
            bundle,
            credentials,
            folder: hosts.path("registry", ""),
            codes: Arc::new(Codes::open(&hosts.path("registry", "authority/codes.db")).unwrap()),
            node: hosts.address("node.regional.example:7403").to_string(),
            directory: hosts.address("directory.chancery.example:7401").to_string(),
            authority: AuthorityAddress {
                authority: "registry".to_owned(),
                administration: "federal".to_owned(),
                endpoint: hosts.address("registry.chancery.example:7405").to_string(),
            },
        }
    }

    async fn device(&self, name: &str) -> Endpoint {
        let config = EndpointConfig {
            store: self.folder.join(format!("{name}.db")),
            node: "regional".parse().unwrap(),
            node_endpoint: self.node.clone(),
            federation: self.bundle.clone(),
            credentials: Arc::clone(&self.credentials),
            stock: 0,
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
        };
        Endpoint::open(config).await.unwrap()
    }

    /// Enrols a resident, however often something in the way dies.
    async fn enrol(&self, number: u64) -> (Identifier, Alias) {
        let identifier = person(number);
        let code = self.codes.issue(identifier.clone(), &SystemEntropy, SystemClock.now()).await.unwrap();
        let device = self.device(&format!("resident-{number}")).await;
        let end = Instant::now() + PATIENCE;
        loop {
            let tried = async {
                device.register().await?;
                device.enrol(&self.authority, &identifier, &code).await
            };
            match tried.await {
                Ok(_) => return (identifier, device.identity().alias),
                Err(refusal) => assert!(Instant::now() < end, "resident {number}: {refusal}"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Sees checkpoints until told to stop.
    async fn watch(&self, stop: Arc<AtomicBool>) -> Vec<VerifiedCheckpoint> {
        let trust = Trust::from_bundle(&self.bundle).unwrap();
        let mut seen: Vec<VerifiedCheckpoint> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK_AGAIN).await;
            let Ok(mut client) = self.client().await else { continue };
            let answer = client.fetch_checkpoint(wire::FetchCheckpointRequest {}).await;
            let Ok(answer) = answer else { continue };
            let checkpoint = trust.verify_checkpoint(&answer.into_inner().checkpoint).unwrap();
            if seen.last().is_none_or(|last| last.size() != checkpoint.size()) {
                seen.push(checkpoint);
            }
        }
        seen
    }

    /// Generation of the shares in force.
    async fn generation(&self) -> u32 {
        let trust = Trust::from_bundle(&self.bundle).unwrap();
        let request = wire::ListStatementsRequest::default();
        let statements = self.client().await.unwrap().list_statements(request).await.unwrap();
        let (_, state) = trust.verify_statements(statements.into_inner()).unwrap();
        state.evaluators().unwrap().generation
    }

    async fn client(
        &self,
    ) -> Result<DirectoryServiceClient<tonic::transport::Channel>, chancery_kit::tls::TlsError> {
        let (channel, _) = connect(&self.directory, Party::Directory, Arc::clone(&self.credentials)).await?;
        Ok(DirectoryServiceClient::new(channel))
    }
}

/// A valid Belgian number of nobody.
fn person(number: u64) -> Identifier {
    let digits = 850_730_000 + number;
    Identifier::parse("be-nn", &format!("{digits}{:02}", 97 - digits % 97)).unwrap()
}

/// Plans and carries out the next generation; whether it was put in force.
fn deal_anew(hosts: &Hosts, generation: u32) -> bool {
    let parties = ["one", "two", "three"];
    let parties =
        parties.map(|host| std::fs::read_to_string(hosts.path(host, &format!("{host}.toml"))).unwrap());
    let head = format!("[ceremony_plan]\nkey_epoch = 1\ngeneration = {generation}\nthreshold = 2\n");
    std::fs::write(hosts.path("federal", "anew.toml"), head + &parties.concat()).unwrap();
    hosts.shell(
        "federal",
        "chancery directory statement make --federation chancery.example --decision anew.toml \
         --key governance.key --out anew.statement",
    );
    hosts.shell(
        "regional",
        "scp federal:anew.statement .
         chancery directory statement sign --statement anew.statement --key governance.key",
    );
    hosts.tried(
        "regional",
        "chancery evaluator ceremony --plan anew.statement --bundle federation.toml \
         --directory directory.chancery.example:7401",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_they_lose_and_fork_nothing() {
    let mut hosts = Hosts::new();
    hosts.found();
    let federation = Federation::of(&hosts);
    let handle = federation.device("first").await;
    handle.register().await.unwrap();
    let handle = handle.handle(&person(900)).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let enrolled: Arc<Mutex<BTreeMap<u64, (Identifier, Alias)>>> = Arc::default();
    let enrolling: Vec<_> = (0..AT_ONCE)
        .map(|worker| {
            let (federation, stop, enrolled) = (federation.clone(), Arc::clone(&stop), Arc::clone(&enrolled));
            tokio::spawn(async move {
                let mut number = u64::from(worker) + 1;
                while !stop.load(Ordering::Relaxed) {
                    let one = federation.enrol(number).await;
                    enrolled.lock().unwrap().insert(number, one);
                    number += u64::from(AT_ONCE);
                }
            })
        })
        .collect();
    let watching = {
        let (federation, stop) = (federation.clone(), Arc::clone(&stop));
        tokio::spawn(async move { federation.watch(stop).await })
    };

    // Which one dies, and when, is drawn; the numbers are printed, so that it can be had again.
    let seed = u64::from_le_bytes((&SystemEntropy as &dyn Entropy).array());
    println!("seed {seed}");
    let drawn: &dyn Entropy = &SeededEntropy::new(seed);
    let mut kills = BTreeMap::<&str, u32>::new();
    for nth in 0..KILLS {
        let [which, pause] = drawn.array::<2>();
        // Not for anything to happen: the moment of the kill is drawn.
        tokio::time::sleep(Duration::from_millis(u64::from(pause) * 2)).await;
        let (host, line) = match which % 6 {
            0..3 => DIRECTORY,
            3 => ("one", EVALUATOR),
            4 => ("two", EVALUATOR),
            _ => ("three", EVALUATOR),
        };
        *kills.entry(host).or_default() += 1;
        let generation = federation.generation().await;
        let process = hosts.server(host, line);
        if nth % 4 == 3 {
            // In the middle of a ceremony, which may end or not.
            std::thread::scope(|scope| {
                let dealing = scope.spawn(|| deal_anew(&hosts, generation + 1));
                std::thread::sleep(Duration::from_millis(u64::from(pause)));
                process.kill();
                dealing.join().unwrap();
            });
        } else {
            process.kill();
        }
        hosts.serve(host, line);
    }
    let generation = federation.generation().await;
    println!("killed {kills:?}; shares of generation {generation}");
    assert!(deal_anew(&hosts, generation + 1), "whatever broke off, the next ceremony ends");
    stop.store(true, Ordering::Relaxed);
    for enrolling in enrolling {
        enrolling.await.unwrap();
    }
    let checkpoints = watching.await.unwrap();
    let enrolled = std::mem::take(&mut *enrolled.lock().unwrap());
    println!("{} residents enrolled, {} checkpoints seen", enrolled.len(), checkpoints.len());
    assert!(enrolled.len() >= 3 && checkpoints.len() >= 3);

    // What was acknowledged stands, under the handle that was always its.
    let last = federation.device("last").await;
    last.register().await.unwrap();
    assert_eq!(last.handle(&person(900)).await.unwrap(), handle);
    let identifiers: Vec<_> = enrolled.values().map(|(identifier, _)| identifier.clone()).collect();
    let found = last.resolve(&identifiers).await.unwrap();
    for ((number, (_, alias)), found) in enrolled.iter().zip(found) {
        assert_eq!(found.unwrap().peer.alias, *alias, "resident {number}");
    }

    // Each checkpoint that was shown is part of the log as it stands.
    let mut client = federation.client().await.unwrap();
    let trust = Trust::from_bundle(&federation.bundle).unwrap();
    let answer = client.fetch_checkpoint(wire::FetchCheckpointRequest {}).await.unwrap().into_inner();
    let newest = trust.verify_checkpoint(&answer.checkpoint).unwrap();
    for checkpoint in checkpoints.iter().filter(|checkpoint| checkpoint.size() < newest.size()) {
        let request = wire::ProveConsistencyRequest { old_size: checkpoint.size(), new_size: newest.size() };
        let path = client.prove_consistency(request).await.unwrap().into_inner().path;
        newest.extends(checkpoint, &path).unwrap();
    }
    let sizes: Vec<_> = checkpoints.iter().map(VerifiedCheckpoint::size).collect();
    assert!(sizes.is_sorted(), "the log never went back: {sizes:?}");
    hosts.terminate();
}
