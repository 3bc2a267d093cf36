//! A node in a process of its own, as it is shipped, in a federation whose other
//! parties run here.

use super::device::Device;
use super::memory_mib;
use crate::Failure;
use crate::local::federation::{LocalFederation, name};
use crate::local::layout::Layout;
use chancery_directory_core::{AgentKey, keys};
use chancery_kit::tls::Credentials;
use chancery_types::{Clock, Entropy, NodeId, SystemClock, SystemEntropy};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long it may take to answer after its start.
const START: Duration = Duration::from_mins(2);

/// A federation, and the node of one administration apart from it.
pub(super) struct Apart {
    pub(super) federation: LocalFederation,
    pub(super) home: NodeId,
    /// Those of devices.
    pub(super) credentials: Arc<Credentials>,
    node: NodeProcess,
}

/// A node's process; ends with its handle.
pub(super) struct NodeProcess {
    child: Child,
    config: PathBuf,
    /// Where it is reached.
    pub(super) endpoint: String,
}

impl NodeProcess {
    /// Starts the node of an administration that was admitted.
    pub(super) fn start(layout: &Layout, administration: &str) -> Result<Self, Failure> {
        let party = format!("node-{administration}");
        let toml = BTreeMap::from([
            ("listen", layout.address(&party).to_string()),
            ("bundle", layout.path("federation.toml").display().to_string()),
            ("identity", layout.path(&format!("{party}/identity")).display().to_string()),
            ("pki", layout.address("pki").to_string()),
            ("directory", layout.address("directory").to_string()),
            ("folder", layout.path(&party).display().to_string()),
        ]);
        let config = layout.path(&format!("{party}.toml"));
        std::fs::write(&config, toml::to_string(&toml).map_err(std::io::Error::other)?)?;
        Ok(Self { child: spawn(&config)?, config, endpoint: layout.address(&party).to_string() })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// As SIGKILL does it, and starts it again; when it did.
    fn restart(&mut self) -> Result<Instant, Failure> {
        self.child.kill()?;
        self.child.wait()?;
        let begun = Instant::now();
        self.child = spawn(&self.config)?;
        Ok(begun)
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Apart {
    /// Founds the federation in a folder, and starts the node of `administration`. `absent` is
    /// admitted as well, and never runs.
    pub(super) async fn start(
        folder: &Path,
        administration: &str,
        absent: Option<&str>,
        shutdown: &CancellationToken,
    ) -> Result<Self, Failure> {
        let (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>) =
            (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let layout = Layout::open(folder, 0)?;
        let mut federation =
            LocalFederation::start(layout.clone(), clock, Arc::clone(&entropy), shutdown.clone()).await?;
        for member in [Some(administration), absent].into_iter().flatten() {
            federation.admit_node(member, AgentKey::from(&keys::generate(&*entropy))).await?;
        }
        let apart = Self {
            credentials: federation.device_credentials().await?,
            federation,
            home: name(administration)?,
            node: NodeProcess::start(&layout, administration)?,
        };
        apart.device().await?;
        Ok(apart)
    }

    /// A new device with an account of its own, as soon as the node answers.
    pub(super) async fn device(&self) -> Result<Device, Failure> {
        let begun = Instant::now();
        loop {
            match Device::open(&self.node.endpoint, self.home.clone(), Arc::clone(&self.credentials)).await {
                Err(_) if begun.elapsed() < START => tokio::time::sleep(Duration::from_millis(10)).await,
                opened => return opened,
            }
        }
    }

    /// As SIGKILL does it, and starts it again; seconds until it knows the device again.
    pub(super) async fn restart(&mut self, device: &mut Device) -> Result<f64, Failure> {
        let begun = self.node.restart()?;
        loop {
            match device.come_back(&self.node.endpoint, Arc::clone(&self.credentials)).await {
                Err(_) if begun.elapsed() < START => tokio::time::sleep(Duration::from_millis(10)).await,
                known => return known.map(|()| begun.elapsed().as_secs_f64()),
            }
        }
    }

    /// A file of the node's folder.
    pub(super) fn file(&self, file: &str) -> PathBuf {
        self.federation.layout.path(&format!("node-{}", self.home)).join(file)
    }

    pub(super) fn process(&self) -> u32 {
        self.node.id()
    }

    /// MiB that it holds.
    pub(super) fn rss_mib(&self) -> f64 {
        memory_mib(self.process(), "VmRSS")
    }
}

fn spawn(config: &Path) -> Result<Child, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["node", "serve", "--config"]).arg(config);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}
