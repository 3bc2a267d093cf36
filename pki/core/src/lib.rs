//! chancery-pki-core
