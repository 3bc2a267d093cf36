//! What the scenarios of `tests/it` stand on: the shipped program as a process,
//! a whole mesh inside one process, endpoints in it, and callers that keep to
//! no rules. The scenarios themselves are not here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "helpers of tests: a panic is a failed test"
)]

pub mod agent;
pub mod collector;
pub mod cut;
pub mod hostile;
pub mod letterbox;
pub mod mesh;
pub mod party;
pub mod program;
pub mod raw;
pub mod recorder;
pub mod rogue;
pub mod search;
pub mod wait;
