//! What an endpoint says that its store holds: ids, digests and times, and nothing
//! of what letters say.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What a device process answers with.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Account {
    /// One for each of its residents.
    pub(super) residents: Vec<Store>,
}

/// What one endpoint's store holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Store {
    /// Resident's number, from 0.
    pub(super) number: usize,
    /// Letters that came in, in the order in which they did.
    pub(super) letters: Vec<Received>,
    /// Letters that were sent from there.
    pub(super) sent: Vec<Sent>,
    /// Broadcasts that came in.
    pub(super) broadcasts: Vec<Heard>,
    /// Alarms that it raised.
    pub(super) alarms: Vec<String>,
}

/// A letter in an inbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Received {
    /// Its message.
    pub(super) message: String,
    /// Its thread.
    pub(super) thread: String,
    /// The message that it answers.
    pub(super) answers: Option<String>,
    /// SHA-256 of its text.
    pub(super) digest: String,
    /// SHA-256 of each attachment; `None`: not all could be fetched yet.
    pub(super) files: Option<Vec<String>>,
}

/// A broadcast that came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Heard {
    /// Number of the administration whose channel it came on.
    pub(super) from: usize,
    /// Its place there.
    pub(super) sequence: u64,
    /// SHA-256 of its text.
    pub(super) digest: String,
}

/// What became of a letter that was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sent {
    /// The request: a UUID.
    pub(super) request: String,
    /// Its message.
    pub(super) message: String,
    /// When the hub accepted it.
    pub(super) accepted_at: Option<i64>,
    /// Its terminal events.
    pub(super) ends: Vec<End>,
}

/// A terminal event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    /// A device took it.
    Delivered,
    /// It will not be delivered.
    Failed,
    /// It expired first.
    Expired,
}

/// SHA-256, in hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A letter that asks for an answer ends so.
pub(super) const PLEASE: &str = "Please answer.";

/// The answer to a letter.
pub(super) fn answer(message: &str) -> String {
    format!("This answers {message}.")
}
