//! What a node does, without I/O: which parcels are well formed, how a hub orders
//! a group, what each of its transactions reads, decides and writes, when a link
//! may send. A shell (`chancery-node`) keeps the tables and carries the frames.

pub mod backoff;
pub mod batch;
pub mod cell;
mod codec;
mod deliver;
pub mod expire;
pub mod framing;
pub mod hub;
pub mod key_package;
pub mod link;
pub mod mailbox;
pub mod moves;
pub mod outbox;
pub mod parcel;
mod report;
pub mod submit;
pub mod tables;
pub mod welcome;
