//! chancery-sdk
