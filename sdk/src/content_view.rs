//! The little that the endpoint itself must see in a letter: its MIMI id, what
//! it answers, and whether it is a read receipt. All else is the reader's.

use crate::content::{Body, MimiId, ReadReceipt, room_uri, sender_uri};
use chancery_sdk_core::Succession;
use chancery_types::{Alias, GroupId};

/// What the endpoint saw. Nothing in it: the body is not MIMI content of this thread.
#[derive(Default)]
pub(crate) struct Seen {
    /// MIMI id of the letter.
    pub(crate) id: Option<MimiId>,
    /// MIMI id of the letter that it answers.
    pub(crate) in_reply_to: Option<MimiId>,
    /// It is a read receipt.
    pub(crate) read: Option<ReadReceipt>,
    /// Its group takes another one's place.
    pub(crate) succession: Option<Succession>,
}

pub(crate) fn look(federation: &str, sender: &Alias, group: &GroupId, body: &[u8]) -> Seen {
    let Ok(opened) = Body::open(body, &sender_uri(federation, sender), &room_uri(federation, group)) else {
        return Seen::default();
    };
    let mut seen = Seen { id: Some(opened.id), ..Seen::default() };
    match opened.body {
        Body::Letter { letter, .. } => seen.in_reply_to = letter.in_reply_to,
        Body::ReadReceipt(receipt) => seen.read = Some(receipt),
        Body::Succession(said) => seen.succession = Some(said),
        Body::Unknown { .. } => {}
    }
    seen
}
