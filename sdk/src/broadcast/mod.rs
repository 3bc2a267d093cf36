//! Broadcasts as their two ends make and open them: the content under its own key as one
//! [`blob`], that key wrapped once for each cell by the [`chain`] of the cell's epoch. An agent keeps
//! its `audience` and what it sends ([`sender`]), a device its [`seat`]s, what comes to them
//! ([`reader`]) and what it [`received`]. docs/decisions/0019.

pub mod audience;
pub mod blob;
mod cell;
pub mod chain;
pub mod counts;
pub mod handover;
pub mod invitation;
pub mod keys;
pub mod reader;
pub mod received;
pub mod schedule;
pub mod seat;
pub mod sender;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

use chancery_directory_core::manifest::key_commitment;
use chancery_types::{ChannelId, Entropy};
use std::fmt;
use subtle::ConstantTimeEq as _;
use zeroize::ZeroizeOnDrop;

/// `mimi://<federation>/c/<channel id>`: the room of what is broadcast on a channel, as
/// [`crate::content`] names rooms.
pub fn channel_uri(federation: &str, channel: &ChannelId) -> String {
    format!("mimi://{federation}/c/{}", hex::encode(channel.as_bytes()))
}

/// Why a broadcast cannot be made or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BroadcastError {
    /// It has more bytes than a blob may.
    #[error("a broadcast has at most 64 MiB")]
    TooLarge,
    /// The chain stands elsewhere: it wraps and opens each sequence once.
    #[error("the chain of keys stands at another broadcast")]
    WrongPlace,
    /// The wrap is of another epoch, or not made with this chain for this manifest.
    #[error("the content key does not open")]
    WrapDoesNotOpen,
    /// The wrap holds another key than the manifest commits to: its maker tells two things.
    #[error("the content key is not the one that the manifest commits to")]
    WrongKey,
    /// The bytes are not those that the manifest names.
    #[error("the content is not the one that the manifest names")]
    WrongBlob,
    /// The content does not open, or is not padded as it must be.
    #[error("the content does not open")]
    DoesNotOpen,
    /// A cryptographic library failed where it cannot.
    #[error("a key cannot be derived")]
    Internal,
}

/// Opens the content of one broadcast.
#[derive(Clone, ZeroizeOnDrop)]
pub struct ContentKey([u8; 32]);

impl ContentKey {
    /// A new one.
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self(entropy.array())
    }

    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What a manifest says of it.
    pub fn commitment(&self) -> [u8; 32] {
        key_commitment(&self.0)
    }
}

impl PartialEq for ContentKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for ContentKey {}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey")
    }
}
