//! The program as operators run it.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]

mod apart;
mod chaos;
mod disk;
mod flush;
mod founding;
mod inside;
mod kills;
mod memory;
mod network;
mod resident;
mod restored;
