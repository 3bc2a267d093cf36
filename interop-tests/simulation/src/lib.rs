//! Whole meshes in one thread: the cores of 2 to 7 nodes and of the devices that live
//! there, on a network and clocks that a seed draws, with whatever can go wrong between
//! them. A run is a [`Plan`]; what must not happen is a [`Violation`]; a run that fails is
//! made shorter by itself and printed as a test.
//!
//! What is simulated is the shell: processes, disks, connections, MLS. What decides is
//! the product's own: `chancery_node_core` and `chancery_sdk_core`.

#![allow(
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "numbers of nodes and devices are those of the run; a panic is a failed test"
)]

mod books;
mod device;
mod mls;
mod node;
mod plan;
mod rows;
mod tables;
mod world;

pub use books::Violation;
pub use plan::{Op, Person, Plan};
pub use tables::Disk;
pub use world::{Outcome, World};

/// Runs a plan from its beginning to rest.
pub fn run(plan: &Plan) -> Outcome {
    World::new(plan).run()
}
