//! What became of letters, as the API shows it.

use super::Rooms;
use crate::event::Event;
use chancery_kit::serve::refused;
use chancery_proto::agent::v1 as wire;
use chancery_types::{Reason, Refusal};
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// Events read from the store at once.
const READ: usize = 256;

type Answers = mpsc::Sender<Result<wire::EventsResponse, Status>>;

/// Streams events behind a position until the caller or the agent goes.
pub(super) async fn stream(rooms: Arc<Rooms>, request: wire::EventsRequest, answers: Answers) {
    let end = tokio::select! {
        result = follow(&rooms, &request, &answers) => result,
        () = rooms.shutdown.cancelled() => {
            Err(Refusal::new(Reason::ShuttingDown, "the agent is restarting; call again"))
        }
        () = answers.closed() => Ok(()),
    };
    if let Err(refusal) = end {
        let _ = answers.send(Err(refused(&refusal))).await;
    }
}

async fn follow(rooms: &Rooms, request: &wire::EventsRequest, answers: &Answers) -> Result<(), Refusal> {
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
