//! A line that ends after so many TLS records, for good: each record is a point at which
//! whoever stands at its end may die.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bytes of a record's head (RFC 8446, section 5.1).
const HEAD: usize = 5;

/// The line.
pub struct Cut {
    /// Where it begins.
    pub address: String,
    ended: CancellationToken,
    _stop: DropGuard,
}

struct Line {
    left: AtomicUsize,
    ended: CancellationToken,
}

impl Cut {
    /// A line to `address` that carries `records`, both ways and over all connections.
    pub async fn after(records: usize, address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ended, stop) = (CancellationToken::new(), CancellationToken::new());
        let cut = Self {
            address: listener.local_addr().unwrap().to_string(),
            ended: ended.clone(),
            _stop: stop.clone().drop_guard(),
        };
        let line = Arc::new(Line { left: AtomicUsize::new(records), ended });
        let to = address.to_owned();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(&to).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(carry(near_in, far_out, Arc::clone(&line)));
                tokio::spawn(carry(far_in, near_out, Arc::clone(&line)));
            }
        }));
        cut
    }

    /// Answers once it has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

/// Carries records until one end hangs up, or the line ends: then what comes is swallowed.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: Arc<Line>) {
    let mut record = vec![0; HEAD];
    while from.read_exact(&mut record[..HEAD]).await.is_ok() {
        let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(HEAD + length, 0);
        if from.read_exact(&mut record[HEAD..]).await.is_err() {
            return;
        }
        let left = line.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_err() {
            line.ended.cancel();
            return std::future::pending().await;
        }
        if to.write_all(&record).await.is_err() {
            return;
        }
    }
}
