//! Configuration files of the directory and of an evaluator.

use chancery_directory_core::GovernanceKeys;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a directory needs to serve.
#[derive(Clone, Debug)]
pub struct DirectoryConfig {
    /// The federation's name.
    pub federation: String,
    /// Who decides.
    pub governance: GovernanceKeys,
    /// Folder of its store and key files.
    pub folder: PathBuf,
}

/// What an evaluator needs to serve.
#[derive(Clone, Debug)]
pub struct EvaluatorConfig {
    /// Its share, as [`crate::evaluator::init`] left it.
    pub share: PathBuf,
}

/// File of `chancery directory serve`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryFile {
    /// Where to listen, for example `0.0.0.0:7410`.
    pub listen: SocketAddr,
    /// The federation's bundle: root certificate and governance keys.
    pub bundle: PathBuf,
    /// Folder of its certificate.
    pub identity: PathBuf,
    /// Enrolment service that renews it, host:port.
    pub pki: String,
    /// Folder of its store and key files.
    pub folder: PathBuf,
}

/// File of `chancery evaluator serve`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluatorFile {
    /// Where to listen, for example `0.0.0.0:7420`.
    pub listen: SocketAddr,
    /// The federation's bundle: root certificate.
    pub bundle: PathBuf,
    /// Folder of its certificate.
    pub identity: PathBuf,
    /// Enrolment service that renews it, host:port.
    pub pki: String,
    /// File of its share.
    pub share: PathBuf,
}
