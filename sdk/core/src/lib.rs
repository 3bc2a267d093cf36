//! What an endpoint does with its queues, without I/O: which letter may be encrypted
//! when, what the hub's decisions mean, in which order deliveries are taken, what may
//! be acknowledged. A shell (`chancery-sdk`) keeps the rows and does the MLS.

pub mod acknowledge;
mod alarm;
pub mod chain;
pub mod outbox;
mod queues;
pub mod receive;
pub mod succession;

pub use alarm::Alarm;
pub use queues::{Conclusion, Content, Item, Made, Opened, Place, Progress, Queues};
pub use succession::{Stand, Succession};
