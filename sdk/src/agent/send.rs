//! From a caller's request to an order that the endpoint sends.

use super::Rooms;
use crate::content::{Letter, MAX_ATTACHMENTS, MAX_TEXT, MimiId};
use crate::endpoint::{SendOrder, Sent, To};
use crate::request::{self, Order};
use chancery_proto::agent::v1 as wire;
use chancery_types::{GroupId, Identifier, MessageId, Reason, Refusal, Timestamp};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::time::Duration;

/// Life of a letter whose sender states none.
const LIFE: Duration = Duration::from_hours(30 * 24);
/// Longest life of a letter.
const LONGEST: Duration = Duration::from_hours(90 * 24);

/// Who is meant.
pub(super) fn identifier(identifier: Option<wire::Identifier>) -> Result<Identifier, Refusal> {
    let wire::Identifier { scheme, value } =
        identifier.ok_or_else(|| Refusal::field("recipient is not set"))?;
    Ok(Identifier::parse(&scheme, &value)?)
}

/// A request that was made before, or one to queue.
pub(super) enum Prepared {
    /// Its letter.
    Known(MessageId),
    /// Its order.
    New(SendOrder),
}

/// Checks a request, brings its attachments to the node, and makes an order;
/// a request that was made before is only recognised, however old it is.
pub(super) async fn prepare(rooms: &Rooms, mut request: wire::SendRequest) -> Result<Prepared, Refusal> {
    let request_id: uuid::Uuid =
        request.request_id.parse().map_err(|_| Refusal::field("request_id is no UUID"))?;
    request.request_id = request_id.to_string();
    let digest = Sha256::digest(request.encode_to_vec()).into();
    let request_id = request_id.into_bytes();
    if let Some(message) = rooms.endpoint.requested(request_id, digest).await? {
        return Ok(Prepared::Known(message));
    }
    let to = match request.to {
        Some(wire::send_request::To::Recipient(recipient)) => To::Identifier(identifier(Some(recipient))?),
        Some(wire::send_request::To::ThreadId(thread)) => To::Thread(thread_id(&thread)?),
        None => return Err(Refusal::field("to is not set")),
    };
    let letter = request.letter.ok_or_else(|| Refusal::field("letter is not set"))?;
    if letter.markdown.len() > MAX_TEXT {
        return Err(Refusal::new(Reason::TooLarge, "markdown has more than 64 KiB"));
    }
    if letter.attachments.len() > MAX_ATTACHMENTS {
        return Err(Refusal::new(Reason::TooLarge, "more than 16 attachments"));
    }
    let expires = expiry(rooms.endpoint.now(), request.expires_at_ms)?;
    let in_reply_to = match letter.in_reply_to.as_str() {
        "" => None,
        answered => Some(answered_letter(rooms, answered).await?),
    };
    let found = letter
        .attachments
        .into_iter()
        .map(|attachment| rooms.files.find(attachment))
        .collect::<Result<Vec<_>, _>>()?;
    let mut attachments = Vec::with_capacity(found.len());
    for found in &found {
        attachments.push(rooms.files.bring(found).await?);
    }
    let letter = Letter { markdown: letter.markdown, language: letter.language, in_reply_to, attachments };
    let order = Order { request_id, digest, compose: request::letter(letter), expires, wants_events: true };
    Ok(Prepared::New(SendOrder { to, order }))
}

pub(super) fn expiry(now: Timestamp, expires_at_ms: i64) -> Result<Timestamp, Refusal> {
    if expires_at_ms == 0 {
        return Ok(now.after(LIFE));
    }
    let expires = Timestamp::from_millis(expires_at_ms);
    if expires <= now || expires > now.after(LONGEST) {
        return Err(Refusal::field("expires_at_ms has passed or is more than 90 days ahead"));
    }
    Ok(expires)
}

async fn answered_letter(rooms: &Rooms, message_id: &str) -> Result<MimiId, Refusal> {
    let id = message(message_id)?;
    let letter = rooms.endpoint.letter(id).await?;
    letter
        .and_then(|letter| letter.content_id)
        .ok_or_else(|| Refusal::field("in_reply_to names no letter of the inbox"))
}

/// A message id as the API writes it.
pub(super) fn message(text: &str) -> Result<MessageId, Refusal> {
    MessageId::from_text(text).ok_or_else(|| Refusal::field("a message_id is a UUID"))
}

/// A thread id as the API writes it: 64 hexadecimal digits.
pub(super) fn thread_id(text: &str) -> Result<GroupId, Refusal> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| Refusal::field("thread_id is none of ours"))?;
    Ok(GroupId::from_bytes(bytes))
}

/// See [`thread_id`].
pub(super) fn thread_text(thread: &GroupId) -> String {
    hex::encode(thread.as_bytes())
}

/// The answer to a caller.
pub(super) fn response(sent: &Sent) -> wire::SendResponse {
    wire::SendResponse {
        message_id: sent.message_id.to_text(),
        thread_id: thread_text(&sent.thread),
        accepted_at_ms: sent.accepted_at.millis(),
    }
}
