//! Letters that came in, as the API shows them.

use super::send::{message, thread_text};
use super::{Answers, Rooms};
use crate::attachment::{ExternalFile, Resume, download, open};
use crate::content::{Body, Letter, room_uri, sender_uri};
use crate::inbox::InboxItem;
use chancery_proto::agent::v1 as wire;
use chancery_types::{Reason, Refusal};
use std::sync::Arc;

/// Letters read from the store at once.
const READ: usize = 64;
/// Bytes of one answer.
const PIECE: usize = 64 * 1024;

/// Streams letters behind a position until the caller or the agent goes.
pub(super) async fn stream(
    rooms: Arc<Rooms>,
    request: wire::InboxRequest,
    answers: Answers<wire::InboxResponse>,
) {
    rooms.stream(&answers, follow(&rooms, &request, &answers)).await;
}

async fn follow(
    rooms: &Rooms,
    request: &wire::InboxRequest,
    answers: &Answers<wire::InboxResponse>,
) -> Result<(), Refusal> {
    let mut after = match request.after {
        0 => rooms.endpoint.inbox_position().await?,
        after => after,
    };
    let mut changes = rooms.endpoint.inbox_changes();
    loop {
        changes.mark_unchanged();
        let letters = rooms.endpoint.inbox_after(after, READ).await?;
        let more = letters.len() == READ;
        for letter in letters {
            after = letter.position;
            if let Some(response) = response(rooms, &letter).await?
                && answers.send(Ok(response)).await.is_err()
            {
                return Ok(());
            }
        }
        if !more && (request.drain || changes.changed().await.is_err()) {
            return Ok(());
        }
    }
}

/// A letter for the caller; `None` for what is none, such as a read receipt.
async fn response(rooms: &Rooms, item: &InboxItem) -> Result<Option<wire::InboxResponse>, Refusal> {
    let (letter, unknown_parts) = match read(rooms, item) {
        Some(Body::Letter { letter, unknown_parts }) => (letter, unknown_parts),
        Some(Body::ReadReceipt(_) | Body::Succession(_)) => return Ok(None),
        Some(Body::Unknown { content_types }) => (Letter::default(), content_types),
        None => (Letter::default(), vec!["application/octet-stream".to_owned()]),
    };
    let thread = rooms.endpoint.thread(item.thread).await?;
    let request_id = thread.and_then(|thread| thread.request_id);
    let in_reply_to = match letter.in_reply_to {
        Some(answered) => rooms.endpoint.message_of(item.thread, answered).await?,
        None => None,
    };
    let attachment = |(index, file): (usize, &ExternalFile)| wire::InboxAttachment {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        file_name: file.file_name.clone(),
        media_type: file.media_type.clone(),
        size: file.plaintext_size(),
    };
    Ok(Some(wire::InboxResponse {
        position: item.position,
        message_id: item.message_id.to_text(),
        thread_id: thread_text(&item.thread),
        request_id: request_id.map(|id| uuid::Uuid::from_bytes(id).to_string()).unwrap_or_default(),
        markdown: letter.markdown,
        in_reply_to: in_reply_to.map(|id| id.to_text()).unwrap_or_default(),
        attachments: letter.attachments.iter().enumerate().map(attachment).collect(),
        received_at_ms: item.received_at.millis(),
        unknown_parts,
    }))
}

fn read(rooms: &Rooms, item: &InboxItem) -> Option<Body> {
    let federation = &rooms.endpoint.identity().federation;
    let sender = sender_uri(federation, &item.sender);
    Body::open(&item.body, &sender, &room_uri(federation, &item.thread)).ok().map(|opened| opened.body)
}

/// Fetches an attachment, checks the whole, and gives its bytes in pieces.
pub(super) async fn attachment(
    rooms: &Rooms,
    request: &wire::GetAttachmentRequest,
) -> Result<Vec<wire::GetAttachmentResponse>, Refusal> {
    let unknown = || Refusal::new(Reason::AttachmentUnknown, "no such letter or attachment");
    let item = rooms.endpoint.letter(message(&request.message_id)?).await?.ok_or_else(unknown)?;
    let Some(Body::Letter { letter, .. }) = read(rooms, &item) else { return Err(unknown()) };
    let index = usize::try_from(request.index).map_err(|_| unknown())?;
    let file = letter.attachments.get(index).ok_or_else(unknown)?;
    let plaintext = fetch(rooms, file).await?;
    let offset = usize::try_from(request.offset).unwrap_or(usize::MAX);
    let rest = plaintext.get(offset..);
    let rest = rest.ok_or_else(|| Refusal::new(Reason::WrongOffset, "offset is behind the end"))?;
    let plaintext = bytes::Bytes::copy_from_slice(rest);
    let pieces = (0..plaintext.len()).step_by(PIECE);
    let piece = |at: usize| plaintext.slice(at..plaintext.len().min(at + PIECE));
    Ok(pieces.map(|at| wire::GetAttachmentResponse { data: piece(at) }).collect())
}

async fn fetch(rooms: &Rooms, file: &ExternalFile) -> Result<Vec<u8>, Refusal> {
    let blobs = rooms.endpoint.node().blobs().await?;
    let resume = Resume::new(&*rooms.entropy);
    download(&blobs, &rooms.spool, file, &resume, &|_, _| {}).await?;
    let (spool, file) = (Arc::clone(&rooms.spool), file.clone());
    let opened = tokio::task::spawn_blocking(move || open(&file, spool.read(&file.blob.id)?));
    let opened = opened.await.map_err(|error| super::uploads::disk(&std::io::Error::other(error)))?;
    Ok(opened?)
}
