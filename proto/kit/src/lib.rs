//! chancery-kit
