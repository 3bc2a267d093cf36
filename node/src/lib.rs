//! chancery-node
