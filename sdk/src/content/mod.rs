//! What a letter is made of: MIMI content (draft-ietf-mimi-content-08), a
//! deterministic CBOR container, and on top of it the few shapes that Chancery
//! writes and reads ([`Letter`], [`ReadReceipt`]). Nothing here encrypts, sends
//! or stores; files are in [`crate::attachment`].
//!
//! # URIs of sender and room
//!
//! The draft derives a message's id from the URIs of its sender and its room.
//! Both ends must come to the same, from the thread alone and also after one of
//! them moved to another node; so the authority is the federation, and
//! ids are in lower-case hexadecimal:
//!
//! ```text
//! mimi://<federation>/u/<alias>       sender: 32 digits
//! mimi://<federation>/r/<group id>    room: 64 digits
//! ```
//!
//! [`sender_uri`] and [`room_uri`] make them. Every message that we write
//! carries both as extensions 1 and 2; a message that claims other ones than
//! its thread's is refused ([`ContentError::WrongOrigin`]).

mod canonical;
mod codec;
pub mod condition;
mod error;
mod letter;
mod mimi;
mod receipt;
mod succession;
#[cfg(test)]
mod tests;

pub use chancery_sdk_core::Succession;
pub use error::{ComposeError, ContentError, OverLimit};
pub use letter::{Body, Composed, Letter, Opened};
pub use mimi::{
    Cardinality, Disposition, Expiration, Extensions, ExternalPart, MimiContent, MimiId, Part, Semantics,
    message_id,
};
pub use receipt::ReadReceipt;
pub use succession::compose_succession;

use chancery_types::{Alias, GroupId};

/// Largest message in bytes: a letter of 64 KiB with all its attachments, thrice.
pub const MAX_BYTES: usize = 192 * 1024;

/// Most parts of a message, nested ones and the multiparts themselves included.
pub const MAX_PARTS: usize = 64;

/// Deepest nesting; the outermost part is at depth 1.
pub const MAX_DEPTH: usize = 4;

/// Largest text of a letter that we write, in bytes of UTF-8.
pub const MAX_TEXT: usize = 64 * 1024;

/// Most attachments of a letter that we write.
pub const MAX_ATTACHMENTS: usize = 16;

/// `mimi://<federation>/u/<alias>`; see the module's head.
pub fn sender_uri(federation: &str, alias: &Alias) -> String {
    format!("mimi://{federation}/u/{}", hex::encode(alias.as_bytes()))
}

/// `mimi://<federation>/r/<group id>`; see the module's head.
pub fn room_uri(federation: &str, group: &GroupId) -> String {
    format!("mimi://{federation}/r/{}", hex::encode(group.as_bytes()))
}
