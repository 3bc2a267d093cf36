//! The part of the program `chancery` that stands by itself: mailings. Its commands are
//! the program's own.

pub mod mailing;
