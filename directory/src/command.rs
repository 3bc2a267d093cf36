//! `chancery directory …` and `chancery evaluator …`.

use crate::config::{DirectoryFile, EvaluatorFile, MirrorFile};
use crate::{
    DirectoryConfig, DirectoryError, DirectoryKeyFiles, EvaluatorConfig, MirrorConfig, ceremony, evaluator,
    governance, service,
};
use chancery_directory_core::ceremony::Party as CeremonyParty;
use chancery_directory_core::{GovernanceKey, GovernanceKeys, Trust};
use chancery_kit::store::DatabasePlace;
use chancery_kit::tls::Credentials;
use chancery_kit::{config, party};
use chancery_pki_core::Crls;
use chancery_types::{Clock, Entropy, NodeId};
use clap::{Args, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
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
    /// Run a mirror of the directory: it follows the log, keeps the records, and answers
    /// lookups in the directory's place.
    ///
    /// It shows nothing that does not follow from the log, and takes no writes.
    Mirror {
        /// Configuration file; CHANCERY_MIRROR_… variables override it.
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
    /// The file has one table: [member], [authority], [ceremony_plan],
    /// [directory_keys] or [evaluation_entitlement], with the fields of the contract and keys in hexadecimal.
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
    /// Create the evaluator's key (mode 0600), and print what a ceremony's plan
    /// says about it. Run again, it prints the same.
    Init {
        /// Folder of the evaluator's key and its sealed secrets.
        #[arg(long, value_name = "DIR")]
        folder: PathBuf,
        /// Folder of its certificate, as `chancery enrol` left it.
        #[arg(long, value_name = "DIR")]
        identity: PathBuf,
        /// Id of the evaluator, as in its SPIFFE id.
        #[arg(long)]
        id: NodeId,
        /// Index of its share, 1 to 255, different for each evaluator.
        #[arg(long)]
        index: u32,
        /// Where nodes reach it; may be repeated.
        #[arg(long = "endpoint", required = true, value_name = "HOST:PORT")]
        endpoints: Vec<String>,
    },
    /// Hold a ceremony: evaluators make the handles' key, or deal its shares anew.
    ///
    /// Carries messages between the evaluators of a plan that governance signed
    /// (`chancery directory statement make`, decision [ceremony_plan]) and has
    /// the directory log what it came to. Needs no trust; safe to repeat.
    Ceremony {
        /// The signed plan.
        #[arg(long, value_name = "FILE")]
        plan: PathBuf,
        /// The federation's bundle.
        #[arg(long, value_name = "FILE")]
        bundle: PathBuf,
        /// The directory's endpoint, host:port.
        #[arg(long, value_name = "HOST:PORT")]
        directory: String,
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
            let (vkey, hpke) = (keys.vkey(), hex::encode(keys.hpke_public_key()));
            print(&format!("directory_vkey = \"{vkey}\"\nhpke_public_key = \"{hpke}\"\n"))
        }
        DirectoryCommand::Serve { config } => {
            let file: DirectoryFile = config::load(&config, "CHANCERY_DIRECTORY_")?;
            let bundle = party::read_bundle(&file.bundle)?;
            let credentials = party::keep_identity(&file.identity, &bundle, file.pki, clock, &shutdown)?;
            let (federation, governance) =
                (bundle.federation().to_string(), GovernanceKeys::from_bundle(&bundle)?);
            let mut config = DirectoryConfig::embedded(federation, governance, file.folder);
            config.database = file.database.unwrap_or(config.database);
            let listener = party::listen(file.listen).await?;
            service::serve(config, listener, credentials, entropy, shutdown).await
        }
        DirectoryCommand::Mirror { config } => {
            let file: MirrorFile = config::load(&config, "CHANCERY_MIRROR_")?;
            let bundle = party::read_bundle(&file.bundle)?;
            let credentials = party::keep_identity(&file.identity, &bundle, file.pki, clock, &shutdown)?;
            let own = || DatabasePlace::File(file.folder.join("mirror.sqlite"));
            let config = MirrorConfig {
                trust: Trust::from_bundle(&bundle)?,
                directory: file.directory,
                database: file.database.clone().unwrap_or_else(own),
                folder: file.folder,
            };
            let listener = party::listen(file.listen).await?;
            service::serve_mirror(config, listener, credentials, entropy, shutdown).await
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
        EvaluatorCommand::Init { folder, identity, id, index, endpoints } => {
            party::make_folder(&folder)?;
            let (key, tls_key_pin) = (evaluator::key(&folder, &*entropy)?, party::key_pin(&identity)?);
            print(&governance::party_toml(&CeremonyParty {
                index,
                evaluator: id,
                key,
                endpoints,
                tls_key_pin,
            }))
        }
        EvaluatorCommand::Ceremony { plan, bundle, directory } => {
            let (plan, bundle) = (governance::read(&plan)?, party::read_bundle(&bundle)?);
            let trust = Trust::from_bundle(&bundle)?;
            // As for statements: everything that is said is signed.
            let credentials = Credentials::anonymous(bundle.anchors().clone(), Crls::default(), clock);
            report(&ceremony::hold(plan, &directory, credentials, &trust).await?)
        }
        EvaluatorCommand::Serve { config } => {
            let file: EvaluatorFile = config::load(&config, "CHANCERY_EVALUATOR_")?;
            let bundle = party::read_bundle(&file.bundle)?;
            let credentials = party::keep_identity(&file.identity, &bundle, file.pki, clock, &shutdown)?;
            let listener = party::listen(file.listen).await?;
            let config = EvaluatorConfig {
                id: file.id,
                trust: Trust::from_bundle(&bundle)?,
                directory: file.directory,
                folder: file.folder,
                seal_key: file.seal_key,
            };
            service::serve_evaluator(config, listener, credentials, entropy, shutdown).await
        }
    }
}

fn report(report: &ceremony::Report) -> Result<(), DirectoryError> {
    let epoch = &report.epoch;
    let names: Vec<_> = epoch.evaluators.iter().map(|share| share.evaluator.as_str()).collect();
    let mut text = format!(
        "logged at index {}: key epoch {}, generation {}, {} of {} evaluators answer ({})\n",
        report.index,
        epoch.key_epoch,
        epoch.generation,
        epoch.threshold,
        names.len(),
        names.join(", ")
    );
    for (evaluator, refusal) in &report.absent {
        text += &format!("{evaluator} took no part: {refusal}\n");
    }
    for fault in &report.faults {
        text += &format!("{} {}\n", fault.evaluator, fault.kind);
    }
    print(&text)
}

async fn statement(
    command: StatementCommand,
    clock: Arc<dyn Clock>,
    entropy: &dyn Entropy,
) -> Result<(), DirectoryError> {
    match command {
        StatementCommand::Key { key } => {
            let key = governance::key(&key, entropy)?;
            print(&format!("{}\n", hex::encode(GovernanceKey::from(&key).as_bytes())))?;
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
            let bundle = party::read_bundle(&bundle)?;
            let trust = Trust::from_bundle(&bundle)?;
            // No certificate, no revocation lists: the statement speaks for
            // itself, and so does the signed checkpoint that covers it.
            let credentials = Credentials::anonymous(bundle.anchors().clone(), Crls::default(), clock);
            let index = governance::submit(signed, &directory, credentials, &trust).await?;
            print(&format!("logged at index {}\n", index))?;
        }
    }
    Ok(())
}

fn print(text: &str) -> Result<(), DirectoryError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(DirectoryError::Print)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_pki_core::profile::new_key_and_csr;
    use chancery_types::{SystemClock, SystemEntropy};
    use clap::{CommandFactory as _, Parser};

    #[derive(Parser)]
    enum Cli {
        Directory(DirectoryArgs),
        Evaluator(EvaluatorArgs),
    }

    async fn run(line: &str) -> Result<(), DirectoryError> {
        let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let stop = CancellationToken::new();
        match Cli::parse_from(std::iter::once("chancery").chain(line.split(' '))) {
            Cli::Directory(args) => run_directory(args, clock, entropy, stop).await,
            Cli::Evaluator(args) => run_evaluator(args, clock, entropy, stop).await,
        }
    }

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[tokio::test]
    async fn keys_and_statements_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        run(&format!("directory init --federation mesh.example --folder {at}/directory")).await.unwrap();
        let init = format!(
            "evaluator init --folder {at}/e1 --identity {at}/e1-identity --id e1 --index 1 --endpoint localhost:1"
        );
        assert!(matches!(run(&init).await, Err(DirectoryError::Party(_))), "not enrolled");
        let (_, csr) = new_key_and_csr().unwrap();
        std::fs::create_dir(folder.path().join("e1-identity")).unwrap();
        std::fs::write(folder.path().join("e1-identity/csr.der"), csr).unwrap();
        run(&init).await.unwrap();
        for key in ["a", "b"] {
            run(&format!("directory statement key --key {at}/{key}.key")).await.unwrap();
        }
        let decision =
            format!("[directory_keys]\nhpke_public_key = '{}'\nlookup_prefix_bits = 8", "07".repeat(32));
        std::fs::write(folder.path().join("keys.toml"), decision).unwrap();
        let make = "directory statement make --federation mesh.example";
        run(&format!("{make} --decision {at}/keys.toml --key {at}/a.key --out {at}/keys.statement"))
            .await
            .unwrap();
        run(&format!("directory statement sign --statement {at}/keys.statement --key {at}/b.key"))
            .await
            .unwrap();
        assert_eq!(governance::read(&folder.path().join("keys.statement")).unwrap().signatures.len(), 2);
        // A key that is not there is not made by signing.
        let missing = format!("directory statement sign --statement {at}/keys.statement --key {at}/c.key");
        assert!(matches!(run(&missing).await, Err(DirectoryError::Content { .. })));
        let none = run(&format!("directory serve --config {at}/none.toml")).await;
        assert!(matches!(none, Err(DirectoryError::Config(_))));
    }
}
