//! Where a local federation keeps its things and on which ports it listens.
//! Ports are written down on the first run: the log names them.

use chancery_types::{Entropy, SystemEntropy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// The two administrations.
pub(crate) const ADMINISTRATIONS: [&str; 2] = ["federal", "regional"];
/// Name of each administration's agent.
pub(crate) const AGENT: &str = "letters";
/// Id of the enrolment authority, in the log and as an agent.
pub(crate) const AUTHORITY: &str = "residents";
/// Its key, in the folder that `chancery authority` would keep it in.
pub(crate) const AUTHORITY_KEY: &str = "authority/authority.key";
/// The evaluators.
pub(crate) const EVALUATORS: [&str; 3] = ["evaluator-1", "evaluator-2", "evaluator-3"];
/// Parties that listen, in the order of their ports.
const LISTENERS: [&str; 10] = [
    "pki",
    "directory",
    EVALUATORS[0],
    "node-federal",
    "agent-federal",
    "node-regional",
    "agent-regional",
    EVALUATORS[1],
    EVALUATORS[2],
    "authority",
];

/// Where free ports are looked for: below those that the system gives to callers, so that nobody else takes
/// one while its party is down.
const PORTS: (u32, u32) = (10_000, 30_000);

/// Folders and ports of one local federation.
#[derive(Clone)]
pub(crate) struct Layout {
    root: PathBuf,
    ports: Ports,
    /// Where others reach a party, when that is not where it listens.
    fronts: BTreeMap<&'static str, SocketAddr>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Ports {
    /// By the order of `LISTENERS`.
    ports: [u16; LISTENERS.len()],
}

impl Layout {
    /// Opens a folder, or begins one. `first_port` counts only then: the
    /// listeners take it and those behind it; 0 takes any that are free.
    ///
    /// # Errors
    /// The folder cannot be written, or its `ports.toml` does not parse.
    pub(crate) fn open(root: &Path, first_port: u16) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        let root = root.canonicalize()?;
        let file = root.join("ports.toml");
        let ports = match std::fs::read_to_string(&file) {
            Ok(text) => toml::from_str(&text).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let ports = Ports { ports: choose(first_port)? };
                let text = toml::to_string(&ports).map_err(io::Error::other)?;
                chancery_kit::tls::files::replace(&file, text.as_bytes())?;
                ports
            }
            Err(error) => return Err(error),
        };
        Ok(Self { root, ports, fronts: BTreeMap::new() })
    }

    /// A file or folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where a party listens.
    pub(crate) fn address(&self, party: &str) -> SocketAddr {
        let index = LISTENERS.iter().position(|name| *name == party);
        let port = index.and_then(|index| self.ports.ports.get(index)).copied().unwrap_or(0);
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// The same layout with something in front of a party: others get that address.
    pub(crate) fn behind(mut self, party: &'static str, front: SocketAddr) -> Self {
        self.fronts.insert(party, front);
        self
    }

    /// Where others reach a party.
    pub(crate) fn reached(&self, party: &str) -> SocketAddr {
        self.fronts.get(party).copied().unwrap_or_else(|| self.address(party))
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
}

fn choose(first: u16) -> io::Result<[u16; LISTENERS.len()]> {
    let first = match first {
        0 => free_ports(LISTENERS.len() as u16, &SystemEntropy)?,
        first => first,
    };
    let mut ports = [0; LISTENERS.len()];
    for (port, offset) in ports.iter_mut().zip(0..) {
        *port = first.checked_add(offset).ok_or_else(|| io::Error::other("--port is too high"))?;
    }
    Ok(ports)
}

/// The first of some ports that follow each other and are free.
pub(crate) fn free_ports(needed: u16, entropy: &dyn Entropy) -> io::Result<u16> {
    let (from, to) = PORTS;
    for _ in 0..100 {
        let offset = u32::from_le_bytes(entropy.array()) % (to - from);
        let first = u16::try_from(from + offset).unwrap_or(u16::MAX);
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (first..first.saturating_add(needed)).all(free) {
            return Ok(first);
        }
    }
    Err(io::Error::other("there are no free ports between 10000 and 30000"))
}
