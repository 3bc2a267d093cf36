//! What a node decides, without I/O: which parcels are well formed, how a hub
//! orders a group, how a Welcome is cut, when a link may send. A shell
//! (`chancery-node`) keeps the state and performs what is decided here.

pub mod backoff;
mod codec;
pub mod framing;
pub mod hub;
pub mod key_package;
pub mod link;
pub mod parcel;
pub mod welcome;
