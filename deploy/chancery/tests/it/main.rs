//! The program as operators run it.

mod apart;
mod founding;
