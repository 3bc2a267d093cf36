//! The contract of the mesh: messages, and with the feature `grpc` the clients
//! and servers, generated from `proto/chancery/**`. Generated structs stop at
//! the door of each service: the domain types live in the cores.
//!
//! Generated messages have no `Debug`: most carry aliases, handles or content,
//! which must not reach a log.

#[cfg(feature = "grpc")]
pub mod codec;

macro_rules! packages {
    ($($package:ident),*) => {$(
        #[doc = concat!("`chancery.", stringify!($package), ".v1`")]
        pub mod $package {
            /// Version 1.
            #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/chancery.", stringify!($package), ".v1.rs"));
            }
        }
    )*};
}

packages!(federation, node, directory, pki, agent, content);

/// Serialised `FileDescriptorSet` of all packages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
