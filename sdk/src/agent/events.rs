//! What became of letters, as the API shows it.

use super::{Answers, Rooms};
use crate::event::Event;
use chancery_proto::agent::v1 as wire;
use chancery_types::Refusal;
use std::sync::Arc;

/// Events read from the store at once.
const READ: usize = 256;

/// Streams events behind a position until the caller or the agent goes.
pub(super) async fn stream(
    rooms: Arc<Rooms>,
    request: wire::EventsRequest,
    answers: Answers<wire::EventsResponse>,
) {
    rooms.stream(&answers, follow(&rooms, &request, &answers)).await;
}

async fn follow(
    rooms: &Rooms,
    request: &wire::EventsRequest,
    answers: &Answers<wire::EventsResponse>,
) -> Result<(), Refusal> {
    let mut after = request.after;
    let mut changes = rooms.endpoint.event_changes();
    loop {
        changes.mark_unchanged();
        let events = rooms.endpoint.events_after(after, READ).await?;
        let more = events.len() == READ;
        for event in events {
            after = event.position;
            if answers.send(Ok(response(event))).await.is_err() {
                return Ok(());
            }
        }
        if !more && (request.drain || changes.changed().await.is_err()) {
            return Ok(());
        }
    }
}

fn response(event: Event) -> wire::EventsResponse {
    wire::EventsResponse {
        position: event.position,
        message_id: event.message_id.to_text(),
        request_id: event.request_id.map(|id| uuid::Uuid::from_bytes(id).to_string()).unwrap_or_default(),
        kind: i32::from(event.kind.code()),
        occurred_at_ms: event.occurred_at.millis(),
        reason: event.reason.unwrap_or_default(),
    }
}
