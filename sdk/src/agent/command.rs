//! `chancery agent …`: an organisation's agent as a process of its own.

use super::{AgentError, serve};
use crate::endpoint::{Endpoint, EndpointConfig};
use chancery_kit::config::{self, ConfigError};
use chancery_kit::party::{self, PartyError};
use chancery_pki_core::Party;
use chancery_types::{Clock, Entropy, Refusal};
use clap::{Args, Subcommand};
use serde::Deserialize;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The agent of an organisation: seals and opens its letters.
///
/// It does the cryptography beside the organisation's own systems and offers
/// them plain gRPC on this host. `chancery enrol` gets its certificate.
#[derive(Debug, Args)]
pub struct AgentArgs {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Create the agent's store and keys, and print its MLS key.
    ///
    /// The administration's member statement lists the key under the agent's
    /// name. Needs the certificate, but no network. Run again, it prints the same.
    Init(ConfigArg),
    /// Run the agent.
    Serve(ConfigArg),
}

#[derive(Debug, Args)]
struct ConfigArg {
    /// Configuration file; CHANCERY_AGENT_… variables override it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// File of `chancery agent …`. The agent's name and administration are in its
/// certificate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentFile {
    /// Where to serve `chancery.agent.v1`: a loopback address, for example `127.0.0.1:7404`.
    pub listen: SocketAddr,
    /// The federation's bundle: root certificate, governance keys, the log's key.
    pub bundle: PathBuf,
    /// Folder of its certificate.
    pub identity: PathBuf,
    /// Enrolment service that renews it, host:port.
    pub pki: String,
    /// Its administration's node, host:port.
    pub node: String,
    /// Folder of its store and of attachments on their way; made when missing.
    pub folder: PathBuf,
    /// One-time KeyPackages of each suite to keep in stock at the node, at most 256. Unset: 16.
    #[serde(default = "stock")]
    pub stock: usize,
}

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The agent cannot start.
    #[error(transparent)]
    Party(#[from] PartyError),
    /// The certificate is not an agent's.
    #[error("the certificate is not that of an agent")]
    NotAnAgent,
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Its store, or its home node refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Standard output is closed.
    #[error("cannot print: {0}")]
    Print(std::io::Error),
}

/// Runs `chancery agent …`; the server until `shutdown`.
///
/// # Errors
/// See [`CommandError`].
pub async fn run(
    args: AgentArgs,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), CommandError> {
    match args.command {
        AgentCommand::Init(ConfigArg { config }) => {
            let file: AgentFile = config::load(&config, "CHANCERY_AGENT_")?;
            let endpoint = open(&file, clock, entropy, &shutdown).await?;
            let key = hex::encode(endpoint.identity().credential_key);
            writeln!(std::io::stdout().lock(), "{key}").map_err(CommandError::Print)
        }
        AgentCommand::Serve(ConfigArg { config }) => {
            let file: AgentFile = config::load(&config, "CHANCERY_AGENT_")?;
            // Before anybody can connect.
            if !file.listen.ip().is_loopback() {
                return Err(AgentError::NotLoopback(file.listen).into());
            }
            let endpoint = open(&file, clock, Arc::clone(&entropy), &shutdown).await?;
            let registered = shutdown.run_until_cancelled(endpoint.register_patiently(&*entropy)).await;
            let Some(registered) = registered else { return Ok(()) };
            registered?;
            let listener = party::listen(file.listen).await?;
            let (running, stop) = (endpoint.clone(), shutdown.clone());
            let running = tokio::spawn(async move { running.run(stop).await });
            let served = serve(endpoint, &file.folder, listener, entropy, shutdown.clone()).await;
            shutdown.cancel();
            let _ = running.await;
            Ok(served?)
        }
    }
}

async fn open(
    file: &AgentFile,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: &CancellationToken,
) -> Result<Endpoint, CommandError> {
    let federation = party::read_bundle(&file.bundle)?;
    let (pki, own_clock) = (file.pki.clone(), Arc::clone(&clock));
    let credentials = party::keep_identity(&file.identity, &federation, pki, own_clock, shutdown)?;
    let own = credentials.own().ok_or(CommandError::NotAnAgent)?;
    let Party::Agent { administration, .. } = own.party() else { return Err(CommandError::NotAnAgent) };
    party::make_folder(&file.folder)?;
    let config = EndpointConfig {
        store: file.folder.join("endpoint.db"),
        // An administration's node has its name.
        node: administration.clone(),
        node_endpoint: file.node.clone(),
        federation,
        credentials,
        stock: file.stock,
        clock,
        entropy,
    };
    Ok(Endpoint::open(config).await?)
}

const fn stock() -> usize {
    16
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::{SystemClock, SystemEntropy};
    use clap::{CommandFactory as _, Parser};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        agent: AgentArgs,
    }

    async fn serve_with(text: &str) -> Result<(), CommandError> {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        let words = ["agent".into(), "serve".into(), "--config".into(), file.into_os_string()];
        let args = Cli::parse_from(words).agent;
        run(args, Arc::new(SystemClock), Arc::new(SystemEntropy), CancellationToken::new()).await
    }

    #[tokio::test]
    async fn it_is_for_this_host_only() {
        Cli::command().debug_assert();
        let rest = "bundle = '/none/b'\nidentity = '/none/i'\npki = 'localhost:1'\nnode = 'localhost:2'\n\
                    folder = '/none/f'\n";
        let open = serve_with(&format!("listen = '0.0.0.0:0'\n{rest}")).await;
        assert!(matches!(open, Err(CommandError::Agent(AgentError::NotLoopback(_)))));
        let local = format!("listen = '127.0.0.1:0'\n{rest}");
        assert!(matches!(serve_with(&local).await, Err(CommandError::Party(PartyError::File { .. }))));
        let unknown = serve_with(&format!("{local}store = '/x'")).await;
        assert!(matches!(unknown, Err(CommandError::Config(_))));
    }
}
