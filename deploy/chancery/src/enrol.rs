//! `chancery enrol`: how every party gets its first certificate.

use crate::Failure;
use chancery_kit::party;
use chancery_kit::tls::enrol;
use chancery_kit::tls::files::IdentityFolder;
use chancery_types::Clock;
use clap::Args;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Longest file of a join token, bytes.
const MAX_TOKEN_FILE: usize = 4 * 1024;

/// Get a certificate against a join token.
///
/// The key is made here and never leaves. Run it again after a failure: key and
/// request stay the same. Afterwards the party renews its certificate by itself.
#[derive(Args)]
pub(crate) struct EnrolArgs {
    /// The enrolment service.
    #[arg(long, value_name = "HOST:PORT")]
    pki: String,
    /// The federation's bundle.
    #[arg(long, value_name = "FILE")]
    bundle: PathBuf,
    /// File whose first line is the join token.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// Folder for key, certificate and revocation lists; made when missing.
    #[arg(long, value_name = "DIR")]
    identity: PathBuf,
}

/// Runs `chancery enrol`; prints the party's SPIFFE id.
///
/// # Errors
/// A file cannot be read or written, or the enrolment service refuses.
pub(crate) async fn run(args: EnrolArgs, clock: Arc<dyn Clock>) -> Result<(), Failure> {
    let bundle = party::read_bundle(&args.bundle)?;
    let token = party::read_text(&args.token_file, MAX_TOKEN_FILE)?;
    let token = token.lines().next().unwrap_or_default().trim();
    let folder = IdentityFolder::new(args.identity);
    let own = enrol::enrol(&args.pki, bundle.anchors(), token, &folder, clock).await?;
    Ok(writeln!(std::io::stdout().lock(), "{}", own.id())?)
}
