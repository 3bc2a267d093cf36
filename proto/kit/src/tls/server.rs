//! Accepting connections: handshakes run beside each other, under a timeout
//! and a cap; what fails is counted and logged by kind and never ends the stream.

use super::credentials::Credentials;
use super::provider::{ALPN, VERSIONS, provider};
use super::verifier::PeerVerifier;
use super::{EXPORTER_LABEL, TlsError};
use crate::serve::REFUSALS;
use chancery_pki_core::{ChainError, VerifiedPeer};
use chancery_types::Refusal;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;
use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Pause after the system failed to accept (no file descriptors left), so
/// that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a listener bears.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Whether a caller must show a certificate. One that is shown must hold in any case.
    pub require_certificate: bool,
    /// Longest handshake.
    pub handshake: Duration,
    /// Most handshakes at once; further callers wait in the system's queue.
    pub handshakes: usize,
    /// Most open connections; further callers are closed at once.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            require_certificate: false,
            handshake: Duration::from_secs(10),
            handshakes: 256,
            connections: 16_384,
        }
    }
}

/// How a listener's handshakes ended.
#[derive(Debug, Default)]
pub struct Counters {
    established: AtomicU64,
    certificate: AtomicU64,
    timeout: AtomicU64,
    protocol: AtomicU64,
    over_limit: AtomicU64,
}

impl Counters {
    /// The counts so far.
    pub fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            established: read(&self.established),
            certificate: read(&self.certificate),
            timeout: read(&self.timeout),
            protocol: read(&self.protocol),
            over_limit: read(&self.over_limit),
        }
    }
}

/// A reading of [`Counters`], since the listener started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Handshakes that made a connection.
    pub established: u64,
    /// Refused: the caller's certificate does not hold, or is missing and required.
    pub certificate: u64,
    /// Given up: the caller took too long.
    pub timeout: u64,
    /// Broken off: the caller spoke something else, or hung up.
    pub protocol: u64,
    /// Closed at once: too many connections.
    pub over_limit: u64,
}

/// A value that the connection already has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection is bound already")]
pub struct AlreadyBound;

/// One slot per connection that is set once: whom the connection was bound to.
#[derive(Default)]
pub struct Session(OnceLock<Arc<dyn Any + Send + Sync>>);

impl Session {
    /// Binds the connection.
    ///
    /// # Errors
    /// [`AlreadyBound`]; nothing changes then.
    pub fn bind<T: Any + Send + Sync>(&self, value: Arc<T>) -> Result<(), AlreadyBound> {
        self.0.set(value).map_err(|_| AlreadyBound)
    }

    /// What it was bound to; `None` when it was not, or to something of another type.
    pub fn bound<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.0.get().and_then(|value| Arc::clone(value).downcast().ok())
    }
}

/// A connection as its requests see it: in their extensions.
#[derive(Clone)]
pub struct ConnectionInfo {
    /// The caller, if it showed a certificate.
    pub peer: Option<VerifiedPeer>,
    /// TLS exporter of the connection, see [`EXPORTER_LABEL`].
    pub exporter: [u8; 32],
    /// Where the caller is.
    pub remote: SocketAddr,
    /// The connection's slot.
    pub session: Arc<Session>,
}

impl fmt::Debug for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionInfo").finish_non_exhaustive()
    }
}

/// An accepted connection.
pub struct TlsConn {
    stream: TlsStream<TcpStream>,
    info: ConnectionInfo,
    _open: OwnedSemaphorePermit,
}

impl Connected for TlsConn {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsConn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Connections with their handshakes done. Dropping it closes the listener.
pub struct Incoming {
    ready: mpsc::Receiver<TlsConn>,
    counters: Arc<Counters>,
}

impl Incoming {
    /// How handshakes ended so far.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl futures::Stream for Incoming {
    type Item = io::Result<TlsConn>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

/// Accepts callers for `serve_with_incoming`.
///
/// # Errors
/// [`TlsError::NoIdentity`] when the credentials have no certificate.
pub fn incoming(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    limits: Limits,
) -> Result<Incoming, TlsError> {
    if credentials.own().is_none() {
        return Err(TlsError::NoIdentity);
    }
    let (sender, ready) = mpsc::channel(16);
    let counters = Arc::new(Counters::default());
    let acceptor = Acceptor { credentials, limits, counters: Arc::clone(&counters) };
    tokio::spawn(acceptor.run(listener, sender));
    Ok(Incoming { ready, counters })
}

#[derive(Clone)]
struct Acceptor {
    credentials: Arc<Credentials>,
    limits: Limits,
    counters: Arc<Counters>,
}

enum Failure {
    Certificate(ChainError),
    Timeout,
    Protocol,
}

impl Acceptor {
    async fn run(self, listener: TcpListener, ready: mpsc::Sender<TlsConn>) {
        let open = Arc::new(Semaphore::new(self.limits.connections));
        let mut handshakes = JoinSet::new();
        loop {
            while handshakes.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = ready.closed() => return,
                _ = handshakes.join_next(), if handshakes.len() >= self.limits.handshakes => continue,
                accepted = listener.accept(), if handshakes.len() < self.limits.handshakes => accepted,
            };
            let (tcp, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(kind = ?error.kind(), "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&open).try_acquire_owned() else {
                self.counters.over_limit.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let (acceptor, ready) = (self.clone(), ready.clone());
            handshakes.spawn(async move {
                if let Some(connection) = acceptor.accept(tcp, remote, permit).await {
                    // Gone when the server stopped meanwhile.
                    let _ = ready.send(connection).await;
                }
            });
        }
    }

    async fn accept(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
        open: OwnedSemaphorePermit,
    ) -> Option<TlsConn> {
        let counters = &self.counters;
        let done = tokio::time::timeout(self.limits.handshake, self.handshake(tcp, remote)).await;
        let (counter, kind) = match done.unwrap_or(Err(Failure::Timeout)) {
            Ok((stream, info)) => {
                counters.established.fetch_add(1, Ordering::Relaxed);
                return Some(TlsConn { stream, info, _open: open });
            }
            Err(Failure::Certificate(error)) => {
                REFUSALS.add(Refusal::from(error).reason);
                tracing::info!(%error, "handshake refused");
                (&counters.certificate, "certificate")
            }
            Err(Failure::Timeout) => (&counters.timeout, "timeout"),
            Err(Failure::Protocol) => (&counters.protocol, "protocol"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(kind, "handshake failed");
        None
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
    ) -> Result<(TlsStream<TcpStream>, ConnectionInfo), Failure> {
        tcp.set_nodelay(true).map_err(|_| Failure::Protocol)?;
        let state = self.credentials.state();
        let required = self.limits.require_certificate;
        let verifier = PeerVerifier::of_callers(&self.credentials, Arc::clone(&state), required);
        let config = state.identity.as_ref().and_then(|identity| {
            let mut config = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(VERSIONS)
                .ok()?
                .with_client_cert_verifier(Arc::clone(&verifier) as _)
                .with_cert_resolver(Arc::clone(&identity.key) as _);
            config.alpn_protocols = vec![ALPN.to_vec()];
            // A resumed session would not show its certificate again.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Some(config)
        });
        let config = config.ok_or(Failure::Protocol)?;
        let stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await.map_err(|error| {
            match (verifier.outcome(), missing_certificate(&error)) {
                (Some(Err(error)), _) => Failure::Certificate(error),
                (None, true) => Failure::Certificate(ChainError::Empty),
                _ => Failure::Protocol,
            }
        })?;
        let exporter = stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None);
        let info = ConnectionInfo {
            peer: verifier.outcome().and_then(Result::ok),
            exporter: exporter.map_err(|_| Failure::Protocol)?,
            remote,
            session: Arc::default(),
        };
        Ok((stream, info))
    }
}

fn missing_certificate(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::NoCertificatesPresented))
}
