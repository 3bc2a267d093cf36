//! Overload: what cannot be done soon is refused at once, with the time at which it
//! may come again, and no caller takes what others need.
//!
//! [`Shares`] says who may hold how much of something bounded, [`Comebacks`] when
//! those that were refused should come again, a [`Gate`] joins both to places for
//! calls, and a [`Door`] asks for a place before anything of a call is read.

mod comeback;
mod door;
mod gate;
mod share;

pub use comeback::Comebacks;
pub use door::{Door, Doorkeeper};
pub use gate::{Gate, Pass};
pub use share::Shares;
