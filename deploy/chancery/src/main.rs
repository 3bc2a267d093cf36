//! The program `chancery`: one binary made of the crates' commands.

mod mailing;

use clap::{Parser, Subcommand};
use mailing::RecipientsCommand;
use std::process::ExitCode;

/// Federation mesh for official messages.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists of recipients.
    #[command(subcommand)]
    Recipients(RecipientsCommand),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Recipients(RecipientsCommand::Make(args)) => mailing::synthetic::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chancery: {error}");
            ExitCode::FAILURE
        }
    }
}
