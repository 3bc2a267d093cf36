//! chancery-directory-core
