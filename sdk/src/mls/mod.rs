//! MLS as this endpoint uses it: the provider on the endpoint's store, the two
//! cipher suites, the leaf keys and KeyPackages. Groups belong to
//! [`crate::thread`].

pub(crate) mod key_package;
pub(crate) mod provider;
pub(crate) mod suite;

pub use suite::Suite;
