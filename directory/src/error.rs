//! Why a command or server of this crate stops.

use chancery_directory_core as core;
use chancery_directory_log::LogError;
use chancery_kit::config::ConfigError;
use chancery_kit::party::PartyError;
use chancery_kit::serve::ServeError;
use chancery_kit::store::StoreError;
use chancery_kit::tls::TlsError;
use chancery_types::{NameError, Refusal};
use std::path::PathBuf;

/// A command cannot go on, or a server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A key file can be read by others than its owner.
    #[error("{0} must be readable by its owner alone (mode 0600)")]
    Exposed(PathBuf),
    /// A file does not hold what it should.
    #[error("{path} does not hold {expected}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// A sealed secret does not open.
    #[error("a sealed secret does not open: another seal key, or it was changed")]
    Seal,
    /// Too many ceremonies were begun and never concluded.
    #[error("16 ceremonies are open: conclude one first")]
    Ceremonies,
    /// A decision file does not parse.
    #[error("{path}: {error}")]
    Decision {
        /// Which.
        path: PathBuf,
        /// What is wrong in it.
        error: Box<toml::de::Error>,
    },
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value is not right.
    #[error(transparent)]
    Core(#[from] core::Error),
    /// A name is not right.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Standard output is closed.
    #[error("cannot print: {0}")]
    Print(std::io::Error),
    /// A server cannot start.
    #[error(transparent)]
    Party(#[from] PartyError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Serving.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The directory said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl DirectoryError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { path, error }
    }
}
