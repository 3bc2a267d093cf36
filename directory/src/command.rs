//! `chancery directory …` and `chancery evaluator …`.

use crate::config::{DirectoryFile, EvaluatorFile, governance_of, read_bundle};
use crate::{
    DirectoryConfig, DirectoryError, DirectoryKeyFiles, EvaluatorConfig, evaluator, governance, service,
};
use chancery_directory_core::{GovernanceKey, Trust};
use chancery_kit::tls::files::IdentityFolder;
use chancery_kit::tls::{Credentials, connect};
use chancery_kit::{config, status, telemetry};
use chancery_pki_core::{Crls, FederationBundle, Party};
use chancery_proto::directory::v1::SubmitStatementRequest;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_types::{Clock, Entropy, NodeId};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The federation's directory: records behind handles, and the log of all that governs.
#[derive(Debug, Args)]
pub struct DirectoryArgs {
    #[command(subcommand)]
    command: DirectoryCommand,
}

#[derive(Debug, Subcommand)]
enum DirectoryCommand {
    /// Create the directory's keys and print their public halves.
    ///
    /// The verifier key goes into the federation's bundle, the HPKE key into a
    /// governance statement `directory_keys`. Run again, it prints the same.
    Init {
        /// Name of the federation: its SPIFFE trust domain, such as chancery.example.
        #[arg(long)]
        federation: String,
        /// Folder of the directory's store and keys.
        #[arg(long, value_name = "DIR")]
        folder: PathBuf,
    },
    /// Run the directory.
    Serve {
        /// Configuration file; CHANCERY_DIRECTORY_… variables override it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Make, sign and hand in governance statements.
    #[command(subcommand)]
    Statement(StatementCommand),
}

#[derive(Debug, Subcommand)]
enum StatementCommand {
    /// Create a governance key (mode 0600) and print its public half.
    Key {
        /// File of the key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Make a statement from a decision in TOML, and sign it.
    ///
    /// The file has one table: [member], [authority], [evaluator_epoch] or
    /// [directory_keys], with the fields of the contract and keys in hexadecimal.
    Make {
        /// Name of the federation.
        #[arg(long)]
        federation: String,
        /// The decision.
        #[arg(long, value_name = "FILE")]
        decision: PathBuf,
        /// Governance key to sign with; may be repeated.
        #[arg(long = "key", required = true, value_name = "FILE")]
        keys: Vec<PathBuf>,
        /// Where to write the signed statement.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Add a signature to a statement that others signed.
    Sign {
        /// The signed statement; it is replaced.
        #[arg(long, value_name = "FILE")]
        statement: PathBuf,
        /// Governance key to sign with.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Hand a statement in, and check that it is in the log. Safe to repeat.
    Submit {
        /// The signed statement.
        #[arg(long, value_name = "FILE")]
        statement: PathBuf,
        /// The federation's bundle.
        #[arg(long, value_name = "FILE")]
        bundle: PathBuf,
        /// The directory's endpoint, host:port.
        #[arg(long, value_name = "HOST:PORT")]
        directory: String,
    },
}

/// An evaluator: holder of a share of the key that makes handles.
#[derive(Debug, Args)]
pub struct EvaluatorArgs {
    #[command(subcommand)]
    command: EvaluatorCommand,
}

#[derive(Debug, Subcommand)]
enum EvaluatorCommand {
    /// Create the share of a single evaluator (mode 0600), and print the
    /// decision `evaluator_epoch` that governance signs. Run again, it prints the same.
    Init {
        /// File of the share.
        #[arg(long, value_name = "FILE")]
        share: PathBuf,
        /// Id of the evaluator, as in its SPIFFE id.
        #[arg(long)]
        id: NodeId,
        /// Where nodes reach it; may be repeated.
        #[arg(long = "endpoint", required = true, value_name = "HOST:PORT")]
        endpoints: Vec<String>,
    },
    /// Run the evaluator.
    Serve {
        /// Configuration file; CHANCERY_EVALUATOR_… variables override it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Runs `chancery directory …`; servers until `shutdown`.
///
/// # Errors
/// What went wrong, for people.
pub async fn run_directory(
    args: DirectoryArgs,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), DirectoryError> {
    match args.command {
        DirectoryCommand::Init { federation, folder } => {
            let keys = DirectoryKeyFiles::open(&folder, &federation, &*entropy)?;
            println!("directory_vkey = \"{}\"", keys.vkey());
            println!("hpke_public_key = \"{}\"", hex::encode(keys.hpke_public_key()));
            Ok(())
        }
        DirectoryCommand::Serve { config } => {
            let file: DirectoryFile = config::load(&config, "CHANCERY_DIRECTORY_")?;
            let bundle = read_bundle(&file.bundle)?;
            let credentials = credentials(&file.identity, &bundle, clock, &shutdown)?;
            let config = DirectoryConfig {
                federation: bundle.federation().to_string(),
                governance: governance_of(&bundle)?,
                folder: file.folder,
            };
            let telemetry = telemetry::init("chancery-directory", &file.telemetry)?;
            let listener = listen(file.listen).await?;
            let served = service::serve(config, listener, credentials, entropy, shutdown).await;
            telemetry.shutdown();
            served
        }
        DirectoryCommand::Statement(command) => statement(command, clock, &*entropy).await,
    }
}

/// Runs `chancery evaluator …`; servers until `shutdown`.
///
/// # Errors
/// What went wrong, for people.
pub async fn run_evaluator(
    args: EvaluatorArgs,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), DirectoryError> {
    match args.command {
        EvaluatorCommand::Init { share, id, endpoints } => {
            let evaluator = evaluator::init(&share, &*entropy)?;
            let (key_epoch, generation) = evaluator.epoch();
            let public = evaluator.public(id, endpoints)?;
            let epoch = governance::single_evaluator(public, key_epoch, generation);
            print!("{}", governance::epoch_toml(&epoch));
            Ok(())
        }
        EvaluatorCommand::Serve { config } => {
            let file: EvaluatorFile = config::load(&config, "CHANCERY_EVALUATOR_")?;
            let credentials = credentials(&file.identity, &read_bundle(&file.bundle)?, clock, &shutdown)?;
            let telemetry = telemetry::init("chancery-evaluator", &file.telemetry)?;
            let listener = listen(file.listen).await?;
            let config = EvaluatorConfig { share: file.share };
            let served = service::serve_evaluator(config, listener, credentials, entropy, shutdown).await;
            telemetry.shutdown();
            served
        }
    }
}

async fn statement(
    command: StatementCommand,
    clock: Arc<dyn Clock>,
    entropy: &dyn Entropy,
) -> Result<(), DirectoryError> {
    match command {
        StatementCommand::Key { key } => {
            let key = governance::key(&key, entropy)?;
            println!("{}", hex::encode(GovernanceKey::from(&key).as_bytes()));
        }
        StatementCommand::Make { federation, decision, keys, out } => {
            let decision = governance::read_decision(&decision)?;
            let keys = keys.iter().map(|path| governance::held(path)).collect::<Result<Vec<_>, _>>()?;
            let keys: Vec<_> = keys.iter().collect();
            governance::write(&out, &governance::decide(&federation, decision, &keys, entropy))?;
        }
        StatementCommand::Sign { statement, key } => {
            let mut signed = governance::read(&statement)?;
            governance::countersign(&mut signed, &governance::held(&key)?);
            governance::write(&statement, &signed)?;
        }
        StatementCommand::Submit { statement, bundle, directory } => {
            let signed = governance::read(&statement)?;
            let bundle = read_bundle(&bundle)?;
            let trust = trust(&bundle)?;
            // No certificate, no revocation lists: the statement speaks for
            // itself, and so does the signed checkpoint that covers it.
            let credentials = Credentials::anonymous(bundle.anchors().clone(), Crls::default(), clock);
            let (channel, _) = connect(&directory, Party::Directory, credentials).await?;
            let request = SubmitStatementRequest { statement: Some(signed) };
            let answer = DirectoryServiceClient::new(channel).submit_statement(request).await;
            let answer = answer.map_err(|status| status::from_status(&status))?.into_inner();
            if trust.verify_checkpoint(&answer.checkpoint)?.size() <= answer.index {
                return Err(chancery_directory_core::Error::Proof(
                    "the checkpoint does not cover the statement",
                )
                .into());
            }
            println!("logged at index {}", answer.index);
        }
    }
    Ok(())
}

fn trust(bundle: &FederationBundle) -> Result<Trust, DirectoryError> {
    let vkey = bundle.directory_vkey().ok_or(chancery_directory_core::Error::Field(
        "the bundle does not name the directory's verifier key",
    ))?;
    Ok(Trust::new(bundle.federation().as_str(), governance_of(bundle)?, vkey)?)
}

fn credentials(
    identity: &Path,
    bundle: &FederationBundle,
    clock: Arc<dyn Clock>,
    shutdown: &CancellationToken,
) -> Result<Arc<Credentials>, DirectoryError> {
    let credentials = Credentials::open(IdentityFolder::new(identity), bundle.anchors().clone(), clock)?;
    tokio::spawn(Arc::clone(&credentials).watch(shutdown.clone()));
    Ok(credentials)
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, DirectoryError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| DirectoryError::Listen { address, error })
}
