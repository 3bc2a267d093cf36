//! `chancery authority`: an enrolment authority as a process of its own.

use crate::Failure;
use chancery_directory::authority;
use chancery_kit::{config, party};
use chancery_pki_core::Party;
use chancery_sdk::authority::{Authority, Codes, serve};
use chancery_sdk::endpoint::{Endpoint, EndpointConfig};
use chancery_types::{Clock, Entropy, Identifier, NodeId};
use clap::{Args, Subcommand};
use serde::Deserialize;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// An enrolment authority: attests whose an identifier is.
///
/// It is an agent of an administration, whose node it evaluates handles through;
/// `chancery enrol` gets its certificate. It keeps no list of whom it enrolled.
#[derive(Args)]
pub(crate) struct AuthorityArgs {
    #[command(subcommand)]
    command: AuthorityCommand,
}

#[derive(Subcommand)]
enum AuthorityCommand {
    /// Create the authority's key and print its public half.
    ///
    /// A governance statement `authority` admits it for schemes. Run again, it
    /// prints the same.
    Init(ConfigArg),
    /// Run the authority.
    Serve(ConfigArg),
    /// Print a one-time code for whoever holds an identifier, to be sent on a way
    /// that reaches nobody else. The authority may be running.
    Invite {
        #[command(flatten)]
        config: ConfigArg,
        /// Scheme of the identifier, for example be-nn.
        scheme: String,
        /// Its value.
        value: String,
    },
}

#[derive(Args)]
struct ConfigArg {
    /// Configuration file; CHANCERY_AUTHORITY_… variables override it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// File of `chancery authority …`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityFile {
    /// Id of the authority, which is its agent's name: 1 to 63 characters `[a-z0-9-]`.
    id: String,
    /// Where devices reach it, for example `0.0.0.0:7405`.
    listen: SocketAddr,
    /// The federation's bundle.
    bundle: PathBuf,
    /// Folder of its certificate.
    identity: PathBuf,
    /// Enrolment service that renews it, host:port.
    pki: String,
    /// Its administration's node, host:port.
    node: String,
    /// Folder of its key, codes and store; made when missing.
    folder: PathBuf,
}

/// Runs `chancery authority …`; the server until `shutdown`.
///
/// # Errors
/// A file cannot be read or written, or the node refuses.
pub(crate) async fn run(
    args: AuthorityArgs,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let read = |arg: ConfigArg| config::load::<AuthorityFile>(&arg.config, "CHANCERY_AUTHORITY_");
    match args.command {
        AuthorityCommand::Init(config) => {
            let file = read(config)?;
            party::make_folder(&file.folder)?;
            let signer = authority::open(id(&file)?, &file.folder.join("authority.key"), &*entropy)?;
            Ok(writeln!(std::io::stdout().lock(), "{}", hex::encode(signer.key().as_bytes()))?)
        }
        AuthorityCommand::Serve(config) => start(read(config)?, clock, entropy, shutdown).await,
        AuthorityCommand::Invite { config, scheme, value } => {
            let file = read(config)?;
            party::make_folder(&file.folder)?;
            let identifier = Identifier::parse(&scheme, &value).map_err(Failure::Identifier)?;
            let codes = Codes::open(&file.folder.join("codes.db"))?;
            let code = codes.issue(identifier, &*entropy, clock.now()).await?;
            Ok(writeln!(std::io::stdout().lock(), "{code}")?)
        }
    }
}

fn id(file: &AuthorityFile) -> Result<NodeId, Failure> {
    file.id.parse().map_err(|_| Failure::Name)
}

async fn start(
    file: AuthorityFile,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let federation = party::read_bundle(&file.bundle)?;
    let (pki, own_clock) = (file.pki.clone(), Arc::clone(&clock));
    let credentials = party::keep_identity(&file.identity, &federation, pki, own_clock, &shutdown)?;
    let own = credentials.own().ok_or(Failure::NoCertificate)?;
    let Party::Agent { administration, name } = own.party() else { return Err(Failure::NoCertificate) };
    if *name != id(&file)? {
        return Err(Failure::Name);
    }
    party::make_folder(&file.folder)?;
    let signer = authority::open(name.clone(), &file.folder.join("authority.key"), &*entropy)?;
    let codes = Arc::new(Codes::open(&file.folder.join("codes.db"))?);
    let config = EndpointConfig {
        store: file.folder.join("endpoint.db"),
        node: administration.clone(),
        node_endpoint: file.node.clone(),
        federation,
        credentials: Arc::clone(&credentials),
        stock: 0,
        clock,
        entropy: Arc::clone(&entropy),
    };
    let endpoint = Endpoint::open(config).await?;
    let registered = shutdown.run_until_cancelled(endpoint.register_patiently(&*entropy)).await;
    let Some(registered) = registered else { return Ok(()) };
    registered?;
    let listener = party::listen(file.listen).await?;
    let (running, stop) = (endpoint.clone(), shutdown.clone());
    let running = tokio::spawn(async move { running.run(stop).await });
    let served = serve(Authority { endpoint, signer, codes }, listener, credentials, shutdown.clone()).await;
    shutdown.cancel();
    let _ = running.await;
    Ok(served?)
}
