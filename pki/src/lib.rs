//! The federation's PKI: its authority, the enrolment service, their commands.
//! What certificates look like and what makes a chain hold is
//! `chancery_pki_core`; the parties' side of enrolment is `chancery_kit::tls::enrol`.

pub mod authority;
pub mod command;
mod sealed;
pub mod service;
mod store;

pub use authority::{Authority, AuthorityError, Revoke};
pub use command::{PkiArgs, run};
pub use service::serve;
