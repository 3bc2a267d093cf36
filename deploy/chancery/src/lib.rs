//! The part of the program `chancery` that stands by itself: mailings, and chance that can be had again. Its commands are
//! the program's own.

pub mod dice;
pub mod mailing;
