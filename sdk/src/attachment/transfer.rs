//! Moves ciphertext between the spool and this endpoint's node
//! (chancery.node.v1 `BlobService`). After a cut a transfer goes on where the
//! receiver's bytes end, as long as it gets anywhere; every other failure, and
//! whether to call again, is the caller's. No keys, no plaintext.

use super::{AttachmentError, ExternalFile, PartFile, Spool, TransferError};
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use chancery_kit::status::from_status;
use chancery_proto::node::v1 as wire;
use chancery_proto::node::v1::blob_service_client::BlobServiceClient;
use chancery_types::{BlobId, Entropy, Reason, Refusal, Timestamp};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Bytes of one message, as the contract allows.
const PIECE: usize = 64 * 1024;

/// Pieces read ahead of the network.
const AHEAD: usize = 8;

/// Told how far a transfer is: bytes done, bytes in all. Must not block.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// How a transfer goes on after cuts.
#[derive(Clone, Copy, Debug)]
pub struct Resume {
    /// Attempts in a row that may bring nothing before the transfer fails.
    pub fruitless: usize,
    /// First pause after a cut; doubled for each that brought nothing, jittered.
    pub first_pause: Duration,
    /// Longest pause before jitter.
    pub longest_pause: Duration,
    /// A connection that moves nothing for so long counts as cut.
    pub stall: Duration,
    jitter: u64,
}

impl Resume {
    /// 5 attempts, 200 ms to 5 s apart, 30 s of standstill.
    pub fn new(entropy: &dyn Entropy) -> Self {
        Self {
            fruitless: 5,
            first_pause: Duration::from_millis(200),
            longest_pause: Duration::from_secs(5),
            stall: Duration::from_secs(30),
            jitter: u64::from_le_bytes(entropy.array()),
        }
    }

    fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::new()
            .with_min_delay(self.first_pause)
            .with_max_delay(self.longest_pause)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(self.jitter)
            .build()
    }

    /// `call`, unless it stands still.
    async fn within<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, TransferError> {
        match tokio::time::timeout(self.stall, call).await {
            Ok(result) => result.map_err(|status| sorted(&status)),
            Err(_) => Err(stalled()),
        }
    }
}

fn stalled() -> TransferError {
    TransferError::Cut(Refusal::new(Reason::DeadlineExceeded, "the node stands still"))
}

/// Brings a blob of the spool to the node, which keeps it until `expires_at`.
/// Returns when the node has checked and flushed it; at once when it had it.
pub async fn upload(
    client: &BlobServiceClient<Channel>,
    spool: &Spool,
    id: &BlobId,
    expires_at: Timestamp,
    resume: &Resume,
    progress: Progress<'_>,
) -> Result<(), TransferError> {
    let mut patience = Patience::new(resume);
    let mut reached = 0;
    loop {
        let mut stored = reached;
        let error = match upload_rest(client, spool, id, expires_at, resume, progress, &mut stored).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        patience.after(error, stored > reached).await?;
        reached = reached.max(stored);
    }
}

/// Brings a letter's blob into the spool; at once when it is there. Its hash
/// is checked before it counts.
pub async fn download(
    client: &BlobServiceClient<Channel>,
    spool: &Arc<Spool>,
    file: &ExternalFile,
    resume: &Resume,
    progress: Progress<'_>,
) -> Result<(), TransferError> {
    let mut patience = Patience::new(resume);
    let mut inherited = None;
    loop {
        let (spool, id, size) = (Arc::clone(spool), file.blob.id, file.size);
        let Some(part) = on_disk(move || spool.part(&id, size)).await? else {
            progress(file.size, file.size);
            return Ok(());
        };
        let begin = part.length();
        let from_before = inherited.get_or_insert(begin > 0);
        let mut length = begin;
        match download_rest(client, part, file, resume, progress, &mut length).await {
            Ok(()) => return Ok(()),
            // Bytes from before a crash may be our own disk's fault: once more, all anew.
            Err(TransferError::Local(AttachmentError::WrongHash)) if *from_before => *from_before = false,
            Err(TransferError::Local(AttachmentError::WrongHash)) => {
                return Err(TransferError::Misbehaved("the blob does not hash to its id"));
            }
            Err(error) => patience.after(error, length > begin).await?,
        }
    }
}

/// What is left of the will to go on.
struct Patience<'a> {
    resume: &'a Resume,
    pauses: ExponentialBackoff,
    fruitless: usize,
}

impl<'a> Patience<'a> {
    fn new(resume: &'a Resume) -> Self {
        Self { resume, pauses: resume.pauses(), fruitless: 0 }
    }

    /// Waits before the next attempt, or gives `error` back when there is to be none.
    async fn after(&mut self, error: TransferError, advanced: bool) -> Result<(), TransferError> {
        let (resumable, named) = match &error {
            TransferError::Cut(_) => (true, None),
            // The node is being restarted or has too much to do, or what it has is not what it had.
            TransferError::Refused(refusal) => {
                let passes = [Reason::ShuttingDown, Reason::Overloaded, Reason::WrongOffset];
                (passes.contains(&refusal.reason), refusal.retry_after)
            }
            TransferError::Misbehaved(_) | TransferError::Local(_) => (false, None),
        };
        if advanced {
            *self = Self::new(self.resume);
        } else {
            self.fruitless += 1;
        }
        if !resumable || self.fruitless >= self.resume.fruitless {
            return Err(error);
        }
        let longest = self.resume.longest_pause;
        let named = named.unwrap_or_default().min(longest);
        tokio::time::sleep(named + self.pauses.next().unwrap_or(longest)).await;
        Ok(())
    }
}

/// One attempt. `stored` becomes what the node has at its beginning.
async fn upload_rest(
    client: &BlobServiceClient<Channel>,
    spool: &Spool,
    id: &BlobId,
    expires_at: Timestamp,
    resume: &Resume,
    progress: Progress<'_>,
    stored: &mut u64,
) -> Result<(), TransferError> {
    let (file, size) = spool.reader(id)?;
    let mut client = client.clone();
    let stat = client.stat_blob(wire::StatBlobRequest { blob_id: id.to_wire() });
    let stat = resume.within(stat).await?.into_inner();
    if stat.complete {
        progress(size, size);
        return Ok(());
    }
    if stat.stored > size {
        return Err(TransferError::Misbehaved("it has more of the blob than there is"));
    }
    *stored = stat.stored;

    let (pieces, outgoing) = tokio::sync::mpsc::channel(AHEAD);
    let call = client.write_blob(ReceiverStream::new(outgoing));
    let feed = async {
        let mut file = tokio::fs::File::from_std(file);
        let mut offset = stat.stored;
        file.seek(std::io::SeekFrom::Start(offset)).await.map_err(AttachmentError::Io)?;
        let mut message = wire::WriteBlobRequest {
            blob_id: id.to_wire(),
            size,
            offset,
            expires_at_ms: expires_at.millis(),
            data: Bytes::new(),
        };
        loop {
            let length = usize::try_from(size - offset).unwrap_or(PIECE).min(PIECE);
            let mut data = vec![0; length];
            file.read_exact(&mut data).await.map_err(AttachmentError::Io)?;
            message.data = data.into();
            match tokio::time::timeout(resume.stall, pieces.send(message)).await {
                Ok(Ok(())) => {}
                // The call has ended and its answer says why.
                Ok(Err(_)) => break,
                Err(_) => return Err(stalled()),
            }
            offset += length as u64;
            progress(offset, size);
            if offset == size {
                break;
            }
            message = wire::WriteBlobRequest::default();
        }
        drop(pieces);
        Ok::<(), TransferError>(())
    };
    tokio::pin!(call, feed);
    tokio::select! {
        answer = &mut call => answer.map_err(|status| sorted(&status)).map(drop),
        fed = &mut feed => {
            fed?;
            resume.within(call).await.map(drop)
        }
    }
}

/// One attempt. `length` follows what is in the spool.
async fn download_rest(
    client: &BlobServiceClient<Channel>,
    mut part: PartFile,
    file: &ExternalFile,
    resume: &Resume,
    progress: Progress<'_>,
    length: &mut u64,
) -> Result<(), TransferError> {
    if part.length() < file.size {
        let request = wire::ReadBlobRequest {
            blob_id: file.blob.id.to_wire(),
            origin: file.blob.origin.as_str().to_owned(),
            offset: part.length(),
        };
        let mut client = client.clone();
        let mut stream = resume.within(client.read_blob(request)).await?.into_inner();
        while part.length() < file.size {
            let Some(piece) = resume.within(stream.message()).await? else {
                return Err(TransferError::Cut(Refusal::new(
                    Reason::PeerUnreachable,
                    "the stream ended early",
                )));
            };
            if piece.size != file.size {
                return Err(TransferError::Misbehaved("the blob has another size than its letter states"));
            }
            if piece.data.len() > PIECE || piece.data.len() as u64 > file.size - part.length() {
                return Err(TransferError::Misbehaved("a piece is too large"));
            }
            part = on_disk(move || part.append(&piece.data).map(|()| part)).await?;
            *length = part.length();
            progress(*length, file.size);
        }
    }
    on_disk(move || part.finish()).await
}

/// Runs `work` where it may block. It owns what it works on, so that a
/// transfer that is dropped meanwhile leaves no write behind its back.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AttachmentError> + Send + 'static,
) -> Result<T, TransferError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(AttachmentError::Io(std::io::ErrorKind::Interrupted.into()).into()),
    }
}

/// Tells what a node said, which carries error details, from what became of
/// the connection, which does not.
fn sorted(status: &Status) -> TransferError {
    let of_the_connection = matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::DeadlineExceeded
    );
    let refusal = from_status(status);
    if of_the_connection && status.details().is_empty() {
        TransferError::Cut(Refusal::new(Reason::PeerUnreachable, refusal.message))
    } else {
        TransferError::Refused(refusal)
    }
}

#[cfg(test)]
mod tests;
