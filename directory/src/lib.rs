//! chancery-directory
