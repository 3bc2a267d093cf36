//! Configuration files of the directory and of an evaluator.

use chancery_directory_core::{GovernanceKeys, Trust};
use chancery_kit::store::DatabasePlace;
use chancery_types::NodeId;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Least time between two roots of a map that changes.
const ROOT_INTERVAL: Duration = Duration::from_secs(5);

/// What a directory needs to serve.
#[derive(Clone, Debug)]
pub struct DirectoryConfig {
    /// The federation's name.
    pub federation: String,
    /// Who decides.
    pub governance: GovernanceKeys,
    /// Folder of its key files.
    pub folder: PathBuf,
    /// Where it keeps log, map and records.
    pub database: DatabasePlace,
    /// Least time between two roots of a map that changes: 5 seconds, but for tests.
    pub root_interval: Duration,
}

impl DirectoryConfig {
    /// With an SQLite file in the folder.
    pub fn embedded(federation: String, governance: GovernanceKeys, folder: PathBuf) -> Self {
        let database = DatabasePlace::File(folder.join("directory.sqlite"));
        Self { federation, governance, folder, database, root_interval: ROOT_INTERVAL }
    }
}

/// What a mirror needs to serve.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// What it believes of the log.
    pub trust: Trust,
    /// The directory, host:port.
    pub directory: String,
    /// Folder of its key file.
    pub folder: PathBuf,
    /// Where it keeps its copy.
    pub database: DatabasePlace,
}

/// What an evaluator needs to serve.
#[derive(Clone, Debug)]
pub struct EvaluatorConfig {
    /// Its id, as in its certificate.
    pub id: NodeId,
    /// What it believes of the log.
    pub trust: Trust,
    /// The directory, host:port.
    pub directory: String,
    /// Folder of its key and its sealed secrets.
    pub folder: PathBuf,
    /// File of the key that seals them, elsewhere.
    pub seal_key: PathBuf,
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
    /// Folder of its key files, and of its store if that is SQLite.
    pub folder: PathBuf,
    /// Its store: `postgres://user@host/name`, or the path of an SQLite file. Without
    /// it, an SQLite file in the folder.
    #[serde(default)]
    pub database: Option<DatabasePlace>,
}

/// File of `chancery directory mirror`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorFile {
    /// Where to listen, for example `0.0.0.0:7411`.
    pub listen: SocketAddr,
    /// The federation's bundle: root certificate, governance keys, the log's key.
    pub bundle: PathBuf,
    /// Folder of its certificate: one for `directory`.
    pub identity: PathBuf,
    /// Enrolment service that renews it, host:port.
    pub pki: String,
    /// The directory, host:port.
    pub directory: String,
    /// Folder of its key file, and of its copy if that is SQLite.
    pub folder: PathBuf,
    /// Its copy: `postgres://user@host/name`, or the path of an SQLite file. Without it,
    /// an SQLite file in the folder.
    #[serde(default)]
    pub database: Option<DatabasePlace>,
}

/// File of `chancery evaluator serve`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluatorFile {
    /// Where to listen, for example `0.0.0.0:7420`.
    pub listen: SocketAddr,
    /// Its id, as in its certificate.
    pub id: NodeId,
    /// The federation's bundle: root certificate, governance keys, the log's key.
    pub bundle: PathBuf,
    /// Folder of its certificate.
    pub identity: PathBuf,
    /// Enrolment service that renews it, host:port.
    pub pki: String,
    /// The directory, host:port.
    pub directory: String,
    /// Folder of its key and its sealed secrets.
    pub folder: PathBuf,
    /// File of the key that seals them, elsewhere; made when there is none.
    pub seal_key: PathBuf,
}
