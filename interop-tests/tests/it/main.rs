//! The mesh as strangers meet it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod arrows;
mod audiences;
mod broadcasts;
mod canaries;
mod channels;
mod crash_points;
mod devices;
mod dishonest;
mod enrolment;
mod foreign;
mod garbage;
mod hostile;
mod moves;
mod mutations;
mod overload;
mod records;
mod refused;
mod secrets;
mod sessions;
mod threats;
mod up;
