//! `chancery pki …`: the authority at the operator's hands.

use crate::authority::root::Issuing;
use crate::authority::{Authority, AuthorityError, Revoke};
use crate::service;
use chancery_kit::config::{self, ConfigError};
use chancery_kit::party::{self, PartyError};
use chancery_kit::serve::ServeError;
use chancery_pki_core::{
    BundleError, Federation, FederationBundle, LeafNames, Party, ProfileError, Serial, armour,
};
use chancery_types::{Clock, Entropy};
use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde::Deserialize;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use zeroize::{Zeroize as _, Zeroizing};

const HOUR: u64 = 3600;
/// Lives that an issued certificate may have, hours.
const LEAF_HOURS: RangeInclusive<u64> = 1..=720;
/// Shortest passphrase, characters.
const MIN_PASSPHRASE: usize = 8;

/// The federation's certificate authority.
///
/// A root, kept offline under a passphrase, signs an issuing CA, which signs
/// short-lived certificates. A party gets its first against a one-time join
/// token, renews it by itself, and never lets its key out.
#[derive(Debug, Args)]
pub struct PkiArgs {
    /// Folder of the authority.
    #[arg(long, default_value = "pki-data", value_name = "DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create root and issuing CA for a new federation.
    ///
    /// Afterwards move root.key.sealed to a medium kept offline; only `init`
    /// and `issuing` need it.
    Init {
        /// Name of the federation: its SPIFFE trust domain, such as chancery.example.
        #[arg(long)]
        federation: Federation,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Print a one-time join token for a party.
    ///
    /// Hand it over with the federation bundle; the party enrols with it. Example:
    /// chancery pki token --party node/federal --name federal.example --name 192.0.2.7
    Token {
        /// Whom it is for: node/ID, agent/ADMINISTRATION/NAME, evaluator/ID, directory.
        #[arg(long, value_parser = party_name)]
        party: Party,
        /// DNS name or IP address for the certificate; may be repeated.
        #[arg(long = "name", value_name = "NAME")]
        names: Vec<String>,
        /// Hours until it expires.
        #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=720))]
        hours: u64,
        /// Print one JSON object: token, party, hours.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a certificate, or all certificates and join tokens of a party.
    ///
    /// Parties fetch the new revocation list within minutes; to cut a member
    /// off at once, suspend it by governance.
    #[command(group(clap::ArgGroup::new("what").required(true).args(["serial", "party"])))]
    Revoke {
        /// Serial number, 32 hexadecimal digits.
        #[arg(long, value_parser = serial)]
        serial: Option<Serial>,
        /// The party: node/ID, agent/ADMINISTRATION/NAME, evaluator/ID, directory.
        #[arg(long, value_parser = party_name)]
        party: Option<Party>,
    },
    /// Print the revocation lists in force, PEM.
    Crl,
    /// Renew the issuing CA's certificate with the root's key (once a year),
    /// or replace a compromised issuing CA.
    Issuing {
        /// Make a new key and revoke the old one: every party must then enrol again.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        passphrase: Passphrase,
    },
    /// Print the federation bundle that every party is given at installation.
    Bundle {
        /// Ed25519 governance key, 64 hexadecimal digits; repeat for each.
        #[arg(long = "governance-key", required = true, value_name = "HEX", value_parser = key)]
        governance_keys: Vec<[u8; 32]>,
        /// How many of them must sign a governance statement.
        #[arg(long, default_value_t = 1)]
        threshold: usize,
        /// Verifier key of the directory's log (C2SP signed note), once it stands.
        #[arg(long, value_name = "VKEY")]
        directory_vkey: Option<String>,
    },
    /// Run the enrolment service.
    Serve {
        /// Configuration file; CHANCERY_PKI_… variables override it.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// File of `chancery pki serve`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PkiFile {
    /// Where to listen, for example `0.0.0.0:7400`.
    listen: SocketAddr,
    /// DNS names and IP addresses for its own certificate.
    names: Vec<String>,
    /// Life of the certificates it issues, hours, 1 to 720. Unset: 168.
    #[serde(default = "leaf_hours")]
    leaf_hours: u64,
}

#[derive(Debug, Args)]
struct Passphrase {
    /// File whose first line is the root key's passphrase (mode 0600), or `-` for standard input.
    #[arg(long, value_name = "FILE")]
    passphrase_file: PathBuf,
}

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The authority said no.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A name is neither DNS name nor address.
    #[error(transparent)]
    Names(#[from] ProfileError),
    /// The bundle cannot be made.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Configuration of the enrolment service.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The life of issued certificates is out of bounds.
    #[error("leaf_hours is from {} to {}", LEAF_HOURS.start(), LEAF_HOURS.end())]
    LeafHours,
    /// The enrolment service cannot start.
    #[error(transparent)]
    Party(#[from] PartyError),
    /// The enrolment service.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A file or output.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
    /// The passphrase file can be read by others.
    #[error("the passphrase file must be readable by its owner alone (mode 0600)")]
    Exposed,
    /// The passphrase is too short.
    #[error("a passphrase has at least {MIN_PASSPHRASE} characters")]
    Passphrase,
}

/// Runs a command; `serve` until `shutdown`.
///
/// # Errors
/// See [`CommandError`].
pub async fn run(
    args: PkiArgs,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), CommandError> {
    let dir = args.dir;
    if let Command::Init { federation, passphrase } = &args.command {
        let authority = Authority::init(&dir, federation, &passphrase.read()?, clock, entropy).await?;
        return print(&armour::write_chain(std::slice::from_ref(authority.anchors().root_der())));
    }
    let authority = Authority::open(&dir, clock, entropy).await?;
    match args.command {
        Command::Init { .. } => Ok(()),
        Command::Token { party, names, hours, json } => {
            let names = LeafNames::parse(&names)?;
            let ttl = Duration::from_secs(hours * HOUR);
            let token = authority.issue_token(&party, &names, ttl).await?;
            if json {
                let object =
                    serde_json::json!({ "token": *token, "party": party.to_string(), "hours": hours });
                print(&format!("{object}\n"))
            } else {
                print(&format!("{}\n", *token))
            }
        }
        Command::Revoke { serial, party } => {
            let mut count = 0;
            for what in serial.map(Revoke::Serial).into_iter().chain(party.map(Revoke::Party)) {
                count += authority.revoke(what).await?;
            }
            print(&format!("revoked: {count}\n"))
        }
        Command::Crl => print(&armour::write_crls(&authority.crls().await?)),
        Command::Issuing { replace, passphrase } => {
            let issuing = if replace { Issuing::Replace } else { Issuing::Renew };
            Ok(authority.renew_issuing(&passphrase.read()?, issuing).await?)
        }
        Command::Bundle { governance_keys, threshold, directory_vkey } => {
            let mut bundle = FederationBundle::new(authority.anchors().clone(), governance_keys, threshold)?;
            if let Some(vkey) = directory_vkey {
                bundle = bundle.with_directory(vkey)?;
            }
            print(&bundle.to_toml()?)
        }
        Command::Serve { config } => {
            let file: PkiFile = config::load(&config, "CHANCERY_PKI_")?;
            if !LEAF_HOURS.contains(&file.leaf_hours) {
                return Err(CommandError::LeafHours);
            }
            let authority = Arc::new(authority.with_leaf_life(Duration::from_secs(file.leaf_hours * HOUR)));
            let credentials = authority.own_credentials(&LeafNames::parse(&file.names)?).await?;
            let listener = party::listen(file.listen).await?;
            Ok(service::serve(authority, listener, credentials, shutdown).await?)
        }
    }
}

impl Passphrase {
    fn read(&self) -> Result<SecretString, CommandError> {
        let io = |error| CommandError::Io("cannot read the passphrase", error);
        let mut text = Zeroizing::new(String::with_capacity(4096));
        if self.passphrase_file == Path::new("-") {
            std::io::stdin().take(4096).read_to_string(&mut text).map_err(io)?;
        } else {
            let file = std::fs::File::open(&self.passphrase_file).map_err(io)?;
            if file.metadata().map_err(io)?.permissions().mode() & 0o077 != 0 {
                return Err(CommandError::Exposed);
            }
            file.take(4096).read_to_string(&mut text).map_err(io)?;
        }
        let mut line = text.lines().next().unwrap_or_default().to_owned();
        if line.chars().count() < MIN_PASSPHRASE {
            line.zeroize();
            return Err(CommandError::Passphrase);
        }
        Ok(line.into())
    }
}

const fn leaf_hours() -> u64 {
    168
}

fn party_name(text: &str) -> Result<Party, String> {
    let path = format!("/{}", text.strip_prefix('/').unwrap_or(text));
    path.parse().map_err(|error: chancery_pki_core::SpiffeError| error.to_string())
}

fn serial(text: &str) -> Result<Serial, String> {
    let bytes = hex::decode(text).map_err(|error| error.to_string())?;
    Serial::try_from(bytes.as_slice()).map_err(|error| error.to_string())
}

fn key(text: &str) -> Result<[u8; 32], String> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key).map(|()| key).map_err(|error| error.to_string())
}

fn print(text: &str) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| CommandError::Io("cannot print", error))
}
