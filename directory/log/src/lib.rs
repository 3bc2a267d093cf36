//! chancery-directory-log
