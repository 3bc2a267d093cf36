//! The authority and its enrolment service over real TLS on loopback.

mod command;
mod enrolment;
mod revocation;
mod world;
