//! What every server of the mesh shares: how a party starts, serving with
//! graceful drain, TLS with live reload, error details, configuration,
//! telemetry, overload, SQL pools with migrations and the group-commit writer.
//! Nothing about messages.

pub mod config;
pub mod entrance;
pub mod overload;
pub mod party;
pub mod serve;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod tls;
