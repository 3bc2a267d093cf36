//! Directory and evaluator over real mutual TLS on loopback, asked by nodes,
//! by strangers and by auditors.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

mod access;
mod ceremonies;
mod channels;
mod garbage;
mod mesh;
mod mirrors;
mod records;
mod restart;
mod statements;
