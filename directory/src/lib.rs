//! The directory as a service: one sequencer that judges record operations and
//! governance statements and logs them, lookups with proofs, the evaluators of
//! handles and their ceremonies, and the key files that governance and authorities sign with. What
//! is right and wrong is decided in `chancery-directory-core`.

pub mod authority;
pub mod ceremony;
pub mod command;
pub mod config;
mod error;
pub mod evaluator;
pub mod governance;
pub mod keyfile;
mod mirror;
mod places;
mod rpc;
mod sequencer;
mod service;
mod store;
mod stored;
mod view;

pub use command::{DirectoryArgs, EvaluatorArgs, run_directory, run_evaluator};
pub use config::{DirectoryConfig, EvaluatorConfig, MirrorConfig};
pub use error::DirectoryError;
pub use service::{DirectoryKeyFiles, serve, serve_evaluator, serve_mirror};
