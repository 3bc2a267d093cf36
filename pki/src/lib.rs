//! chancery-pki
