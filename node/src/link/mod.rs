//! Peer links: one stream for each peer and direction.

mod incoming;
mod outgoing;

pub(crate) use incoming::{Arrivals, incoming};
pub(crate) use outgoing::keep_links;
