//! `chancery node …`: an administration's node as a process of its own.

use crate::config::NodeFile;
use crate::store::restored::restored;
use crate::{NodeError, NodeParts, serve};
use chancery_directory_core::client::Trust;
use chancery_kit::config::{self, ConfigError};
use chancery_kit::party::{self, PartyError};
use chancery_kit::store::StoreError;
use chancery_types::{Clock, Entropy};
use clap::{Args, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The federation node of an administration.
///
/// It keeps the mailboxes of the administration's residents and agents and
/// carries sealed letters to and from other nodes. `chancery enrol` gets its
/// certificate.
#[derive(Debug, Args)]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Print the pin of the node's key, for its administration's member statement.
    ///
    /// The key was made at enrolment and stays when the certificate is renewed.
    Pin {
        /// Folder of its certificate.
        #[arg(long, value_name = "DIR")]
        identity: PathBuf,
    },
    /// Prepare a node whose folder was restored from a copy.
    ///
    /// Run it before the node starts again. Peers then send again what the node has
    /// not reported on, and devices read what comes. What its own devices and
    /// agents submitted after the copy is made once more when they start again;
    /// threads that its own agents opened may have moved on: open new ones.
    Restored {
        /// Configuration file; CHANCERY_NODE_… variables override it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Run the node.
    Serve {
        /// Configuration file; CHANCERY_NODE_… variables override it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node cannot start.
    #[error(transparent)]
    Party(#[from] PartyError),
    /// The bundle names no key of the directory's log, or a false one.
    #[error(transparent)]
    Trust(#[from] chancery_directory_core::Error),
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Standard output is closed.
    #[error("cannot print: {0}")]
    Print(std::io::Error),
}

/// Runs `chancery node …`; the server until `shutdown`.
///
/// # Errors
/// See [`CommandError`].
pub async fn run(
    args: NodeArgs,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), CommandError> {
    match args.command {
        NodeCommand::Pin { identity } => {
            let pin = hex::encode(party::key_pin(&identity)?);
            writeln!(std::io::stdout().lock(), "{pin}").map_err(CommandError::Print)
        }
        NodeCommand::Restored { config } => {
            let file: NodeFile = config::load(&config, "CHANCERY_NODE_")?;
            Ok(restored(&file.folder.join("node.db")).await?)
        }
        NodeCommand::Serve { config } => {
            let file: NodeFile = config::load(&config, "CHANCERY_NODE_")?;
            let bundle = party::read_bundle(&file.bundle)?;
            party::make_folder(&file.folder)?;
            let parts = NodeParts {
                credentials: party::keep_identity(
                    &file.identity,
                    &bundle,
                    file.pki,
                    Arc::clone(&clock),
                    &shutdown,
                )?,
                trust: Trust::from_bundle(&bundle)?,
                data: file.folder,
                directory: file.directory,
                mirror: file.mirror,
                quotas: file.quotas,
                entrance: party::listen(file.listen).await?.into(),
                clock,
                entropy,
            };
            Ok(serve(parts, shutdown).await?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_kit::tls::files::CSR;
    use chancery_pki_core::profile;
    use chancery_types::{SystemClock, SystemEntropy};
    use clap::{CommandFactory as _, Parser};
    use std::path::Path;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        node: NodeArgs,
    }

    async fn node(words: &[&str], path: &Path) -> Result<(), CommandError> {
        let path = path.to_string_lossy();
        let words = ["node"].iter().chain(words).copied().chain([&*path]);
        let stop = CancellationToken::new();
        run(Cli::parse_from(words).node, Arc::new(SystemClock), Arc::new(SystemEntropy), stop).await
    }

    #[tokio::test]
    async fn a_pin_needs_a_request_that_holds() {
        Cli::command().debug_assert();
        let home = tempfile::tempdir().unwrap();
        let pin = ["pin", "--identity"];
        assert!(matches!(
            node(&pin, home.path()).await,
            Err(CommandError::Party(PartyError::NotEnrolled(_)))
        ));
        let (_, csr) = profile::new_key_and_csr().unwrap();
        std::fs::write(home.path().join(CSR), &csr).unwrap();
        node(&pin, home.path()).await.unwrap();
        std::fs::write(home.path().join(CSR), &csr[..csr.len() - 1]).unwrap();
        assert!(matches!(node(&pin, home.path()).await, Err(CommandError::Party(PartyError::Request(_)))));
    }

    #[tokio::test]
    async fn a_false_configuration_does_not_start() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("node.toml");
        let serve = ["serve", "--config"];
        assert!(matches!(node(&serve, &file).await, Err(CommandError::Config(ConfigError::Missing(_)))));
        let good = "listen = '127.0.0.1:0'\nbundle = '/none/b'\nidentity = '/none/i'\npki = 'localhost:1'\n\
                    directory = 'localhost:2'\nfolder = '/none/f'\n";
        let with = |more: &str| std::fs::write(&file, format!("{good}{more}")).unwrap();
        with("");
        assert!(matches!(node(&serve, &file).await, Err(CommandError::Party(PartyError::File { .. }))));
        for more in ["data = '/x'", "[quotas]\nkey_packages = 0", "[quotas]\nletters = 1"] {
            with(more);
            assert!(matches!(node(&serve, &file).await, Err(CommandError::Config(_))), "{more}");
        }
    }
}
