//! The program `chancery`: one binary made of the crates' commands.

mod authority;
mod bench;
mod broadcasts;
mod chaos;
mod enrol;
mod failure;
mod letters;
mod local;
mod memory;

pub(crate) use failure::Failure;

use chancery::mailing::{self, RecipientsCommand};
use chancery_directory::{DirectoryArgs, EvaluatorArgs, run_directory, run_evaluator};
use chancery_kit::telemetry::{self, TelemetryConfig};
use chancery_node::NodeArgs;
use chancery_pki::PkiArgs;
use chancery_sdk::agent::AgentArgs;
use chancery_types::{Clock, Entropy, SystemClock, SystemEntropy};
use clap::{CommandFactory as _, Parser, Subcommand};
use std::process::ExitCode;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Federation mesh for official messages, encrypted from end to end.
///
/// Without a command it is `chancery up`: a whole federation on this machine.
#[derive(Parser)]
#[command(version, propagate_version = true, args_conflicts_with_subcommands = true)]
struct Cli {
    /// What to log to standard error, for example `info,chancery_node=debug`.
    #[arg(long, global = true, env = "CHANCERY_LOG", value_name = "DIRECTIVES")]
    log: Option<String>,
    #[command(flatten)]
    up: local::UpArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a federation on this machine, send a letter to each resident, and broadcast to all.
    Up(local::UpArgs),
    /// Send a letter through an agent.
    Send(letters::SendArgs),
    /// Show the letters that came in at an agent.
    Inbox(letters::InboxArgs),
    /// Show what became of the letters that an agent sent.
    Events(letters::EventsArgs),
    /// Publish broadcast channels, list them, invite.
    Channel(broadcasts::ChannelArgs),
    Broadcast(broadcasts::BroadcastArgs),
    /// The federation's certificate authority.
    Pki(PkiArgs),
    Enrol(enrol::EnrolArgs),
    /// The directory: serve it, decide and log what governs the federation.
    Directory(DirectoryArgs),
    /// An evaluator of handles.
    Evaluator(EvaluatorArgs),
    Node(NodeArgs),
    Agent(AgentArgs),
    Authority(authority::AuthorityArgs),
    /// Lists of recipients.
    #[command(subcommand)]
    Recipients(RecipientsCommand),
    /// Measure speed on this machine.
    Bench(bench::BenchArgs),
    Chaos(chaos::ChaosArgs),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = memory::keep() {
        return failed(&Failure::Memory(error));
    }
    let config = TelemetryConfig { log: cli.log.clone(), ..TelemetryConfig::default() };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let (telemetry, result) = runtime.block_on(async {
        match telemetry::init("chancery", &config) {
            Ok(telemetry) => (Some(telemetry), run(cli.command.unwrap_or(Command::Up(cli.up))).await),
            Err(error) => (None, Err(error.into())),
        }
    });
    if let Some(telemetry) = telemetry {
        telemetry.shutdown();
    }
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &Failure) -> ExitCode {
    eprintln!("chancery: {error}");
    ExitCode::FAILURE
}

async fn run(command: Command) -> Result<(), Failure> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(shutdown.clone()));
    match command {
        Command::Up(args) => local::run(args, shutdown).await,
        Command::Send(args) => letters::send(args).await,
        Command::Inbox(args) => letters::inbox(args).await,
        Command::Events(args) => letters::events(args).await,
        Command::Channel(args) => broadcasts::channel(args).await,
        Command::Broadcast(args) => broadcasts::broadcast(args).await,
        Command::Pki(args) => Ok(chancery_pki::run(args, clock, entropy, shutdown).await?),
        Command::Enrol(args) => enrol::run(args, clock).await,
        Command::Directory(args) => Ok(run_directory(args, clock, entropy, shutdown).await?),
        Command::Evaluator(args) => Ok(run_evaluator(args, clock, entropy, shutdown).await?),
        Command::Node(args) => Ok(chancery_node::run(args, clock, entropy, shutdown).await?),
        Command::Agent(args) => Ok(chancery_sdk::agent::run(args, clock, entropy, shutdown).await?),
        Command::Authority(args) => authority::run(args, clock, entropy, shutdown).await,
        Command::Recipients(RecipientsCommand::Make(args)) => Ok(mailing::synthetic::run(&args)?),
        Command::Bench(args) => bench::run(args, shutdown).await,
        Command::Chaos(args) => chaos::run(args, clock, entropy, shutdown).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "chancery", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// SIGINT or SIGTERM: drain and go.
async fn stop_on_signal(shutdown: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminated) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
    shutdown.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_takes_no_value_of_up() {
        Cli::command().debug_assert();
        let parsed = |words: &[&str]| match Cli::parse_from(words).command {
            Some(Command::Bench(args)) => args.output(),
            _ => panic!("another command"),
        };
        assert_eq!(parsed(&["chancery", "bench", "directory"]), (None, false));
        let named = parsed(&["chancery", "bench", "directory", "--dir", "x", "--json"]);
        assert_eq!(named, (Some("x".into()), true));
    }
}
