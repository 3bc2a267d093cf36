//! chancery-node-core
