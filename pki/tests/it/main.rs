//! The authority and its enrolment service over real TLS on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, outside test functions"
)]

mod command;
mod enrolment;
mod revocation;
mod world;
