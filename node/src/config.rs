//! Configuration file of a node.

use crate::QuotaConfig;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// File of `chancery node serve`. The node's own name is in its certificate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeFile {
    /// Where to listen, for example `0.0.0.0:7403`.
    pub listen: SocketAddr,
    /// The federation's bundle: root certificate, governance keys, the log's key.
    pub bundle: PathBuf,
    /// Folder of its certificate.
    pub identity: PathBuf,
    /// Enrolment service that renews it, host:port.
    pub pki: String,
    /// Directory, host:port.
    pub directory: String,
    /// A mirror that is asked first for lookups, host:port.
    #[serde(default)]
    pub mirror: Option<String>,
    /// Folder of its database and blobs; made when missing.
    pub folder: PathBuf,
    /// What callers may ask for. Unset: the defaults.
    #[serde(default)]
    pub quotas: QuotaConfig,
}
