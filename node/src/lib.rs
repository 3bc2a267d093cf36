//! The federation node.

mod store;
mod wake;
