//! Founds the federation that chaos is made of: in this process, as `chancery up` does it,
//! then stops it and writes down how each party runs as a process of its own.

use super::device::{DeviceFile, ResidentFile};
use super::link::Link;
use super::party::{Parties, Party};
use crate::Failure;
use crate::local::authority::Registry;
use crate::local::federation::LocalFederation;
use crate::local::layout::{ADMINISTRATIONS, AUTHORITY, EVALUATORS, Layout, free_ports};
use crate::local::{bar, residents, start_administration};
use crate::mailing::synthetic;
use chancery::dice::Dice;
use chancery_types::{Clock, Entropy, Identifier, Scheme};
use serde::Serialize;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Processes that the residents' devices are dealt to.
const DEVICES: usize = 3;
/// Ports of a run: the parties', then the links'.
const PORTS_NEEDED: u16 = 16;
/// The links: whose node is behind it, and who goes over it.
const LINKS: [(&str, &str); 4] = [
    ("node-federal", "peers"),
    ("node-regional", "peers"),
    ("node-federal", "endpoints"),
    ("node-regional", "endpoints"),
];

/// A federation, founded and not yet running.
pub(super) struct Founded {
    pub(super) layout: Layout,
    pub(super) parties: Parties,
    /// By name.
    pub(super) links: Vec<(String, Link)>,
    /// Of residents, by number.
    pub(super) residents: Vec<Identifier>,
    /// Of the administrations' agents, by number.
    pub(super) agents: Vec<Identifier>,
}

/// Founds a federation in a folder.
///
/// # Errors
/// What [`Failure`] lists.
pub(super) async fn found(
    folder: &Path,
    residents: usize,
    seed: u64,
    quiet: bool,
    (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>),
) -> Result<Founded, Failure> {
    let first = free_ports(PORTS_NEEDED, &*entropy)?;
    let mut layout = Layout::open(folder, first)?;
    let mut links = Vec::new();
    for (port, (node, who)) in (first + PORTS_NEEDED - LINKS.len() as u16..).zip(LINKS) {
        let link = Link::open(port, layout.address(node), Dice::new(seed, 1 << 32 | u64::from(port - first)));
        let link = link.await?;
        if who == "peers" {
            layout = layout.behind(node, link.address);
        }
        links.push((format!("{who} of {node}"), link));
    }
    let shutdown = CancellationToken::new();
    let start = LocalFederation::start(layout, Arc::clone(&clock), Arc::clone(&entropy), shutdown.clone());
    let mut federation = start.await?;
    let mut endpoints = Vec::new();
    for administration in ADMINISTRATIONS {
        let started = start_administration(&mut federation, administration, &clock, &entropy, &shutdown);
        endpoints.push(started.await?);
    }
    let starting =
        Registry::start(&mut federation, Arc::clone(&clock), Arc::clone(&entropy), shutdown.clone());
    let registry = starting.await?;

    let mut agents = Vec::new();
    for (index, (endpoint, administration)) in (0..).zip(endpoints.iter().zip(ADMINISTRATIONS)) {
        let identifier = synthetic::identifier(Scheme::BeCbe, 1, index)?;
        let done = federation.layout.path(&format!("agent-{administration}/enrolled"));
        residents::enrol(&registry, endpoint, &identifier, done).await?;
        agents.push(identifier);
    }
    let bar = bar(residents, "residents enrolled", quiet);
    let credentials = federation.device_credentials().await?;
    let mut people = Vec::new();
    for number in 0..residents {
        let identifier = synthetic::identifier(Scheme::BeNn, 1, number as u64)?;
        let parts = (Arc::clone(&credentials), Arc::clone(&clock), Arc::clone(&entropy));
        let endpoint = residents::device(&federation, number, parts).await?;
        let done = residents::folder(&federation.layout, number).join("enrolled");
        residents::enrol(&registry, &endpoint, &identifier, done).await?;
        people.push(identifier);
        bar.inc(1);
    }
    bar.finish_and_clear();
    drop(endpoints);
    shutdown.cancel();
    federation.ended().await?;
    let layout = federation.layout;
    let parties = Parties(parties(&layout, &links, residents)?);
    Ok(Founded { layout, parties, links, residents: people, agents })
}

/// What several kinds of parties are told.
#[derive(Default, Serialize)]
struct PartyFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    listen: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pki: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    folder: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seal_key: Option<PathBuf>,
}

/// Writes down how each party runs.
fn parties(layout: &Layout, links: &[(String, Link)], residents: usize) -> Result<Vec<Party>, Failure> {
    for folder in ["config", "logs"] {
        std::fs::create_dir_all(layout.path(folder))?;
    }
    let node = |administration: &str| {
        let name = format!("endpoints of node-{administration}");
        let link = links.iter().find(|(link, _)| *link == name);
        link.map_or_else(|| layout.address(&format!("node-{administration}")), |(_, link)| link.address)
    };
    let file = |party: &str| PartyFile {
        listen: layout.address(party).to_string(),
        bundle: Some(layout.path("federation.toml")),
        identity: Some(layout.path(&format!("{party}/identity"))),
        pki: Some(layout.address("pki").to_string()),
        folder: Some(layout.path(party)),
        ..PartyFile::default()
    };
    let directory = Some(layout.address("directory").to_string());

    let mut all = Vec::new();
    let pki = PartyFile {
        listen: layout.address("pki").to_string(),
        names: vec!["localhost", "127.0.0.1"],
        ..PartyFile::default()
    };
    let folder = layout.path("pki").into_os_string();
    all.push(server(layout, ("pki", "pki", 3), &["pki".into(), "--dir".into(), folder], &pki)?);
    let served = file("directory");
    all.push(server(layout, ("directory", "directory", 8), &["directory".into()], &served)?);
    for id in EVALUATORS {
        let seal_key = Some(layout.path(&format!("{id}.seal.key")));
        let evaluator =
            PartyFile { id: Some(id.to_owned()), directory: directory.clone(), seal_key, ..file(id) };
        all.push(server(layout, (id, "evaluator", 3), &["evaluator".into()], &evaluator)?);
    }
    let first = ADMINISTRATIONS[0];
    let authority = PartyFile {
        id: Some(AUTHORITY.to_owned()),
        node: Some(node(first).to_string()),
        ..file("authority")
    };
    all.push(server(layout, ("authority", "authority", 3), &["authority".into()], &authority)?);
    for administration in ADMINISTRATIONS {
        let name = format!("node-{administration}");
        let served = PartyFile { directory: directory.clone(), ..file(&name) };
        all.push(server(layout, (&name, "node", 20), &["node".into()], &served)?);
        let name = format!("agent-{administration}");
        let agent = PartyFile { node: Some(node(administration).to_string()), ..file(&name) };
        all.push(server(layout, (&name, "agent", 12), &["agent".into()], &agent)?);
    }
    for device in 0..DEVICES.min(residents) {
        let resident = |number: usize| ResidentFile {
            number,
            home: residents::home(number).to_owned(),
            node: node(residents::home(number)).to_string(),
            folder: residents::folder(layout, number),
        };
        let file = DeviceFile {
            bundle: layout.path("federation.toml"),
            crls: layout.path("node-federal/identity/crls.pem"),
            pki: layout.address("pki").to_string(),
            residents: (device..residents).step_by(DEVICES).map(resident).collect(),
        };
        let name = format!("device-{device}");
        let arguments = ["chaos".into(), "device".into(), "--config".into()];
        all.push(party(layout, (&name, "device", 7), &arguments, &file)?);
    }
    Ok(all)
}

type Kind<'a> = (&'a str, &'static str, u64);

/// A party that serves by its own command.
fn server(layout: &Layout, kind: Kind<'_>, command: &[OsString], file: &PartyFile) -> Result<Party, Failure> {
    let arguments = [command, &["serve".into(), "--config".into()]].concat();
    party(layout, kind, &arguments, file)
}

fn party(
    layout: &Layout,
    (name, kind, weight): Kind<'_>,
    command: &[OsString],
    file: &impl Serialize,
) -> Result<Party, Failure> {
    let config = layout.path(&format!("config/{name}.toml"));
    std::fs::write(&config, toml::to_string(file).map_err(io::Error::other)?)?;
    let arguments = [command, &[config.into_os_string()]].concat();
    Ok(Party::new((name.to_owned(), kind, weight), arguments, layout.path(&format!("logs/{name}.log"))))
}
