//! chancery-interop-tests
