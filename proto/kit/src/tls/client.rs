//! Channels to other parties: each connection uses the latest credentials
//! and accepts the expected party only, whatever name it answers under.

use super::credentials::Credentials;
use super::provider::{ALPN, VERSIONS, provider};
use super::verifier::PeerVerifier;
use super::{EXPORTER_LABEL, TlsError};
use arc_swap::ArcSwapOption;
use chancery_pki_core::Party;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// Longest that TCP and TLS may take together.
const CONNECT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// HTTP/2 flow control and frames for streams of many small envelopes.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const FRAME: u32 = 256 * 1024;

/// Gives the TLS exporter of a channel's latest connection: channels connect
/// again on their own, and each connection has another.
#[derive(Clone, Default)]
pub struct ExporterHandle(Arc<ArcSwapOption<[u8; 32]>>);

impl ExporterHandle {
    /// The exporter (see [`EXPORTER_LABEL`]); `None` before the first connection.
    pub fn latest(&self) -> Option<[u8; 32]> {
        self.0.load().as_deref().copied()
    }
}

/// Connects to `expected` at `endpoint` (`host:port`), with our certificate
/// when the credentials have one.
///
/// # Errors
/// Nothing answers, its chain does not hold, or it is another party.
pub async fn connect(
    endpoint: &str,
    expected: Party,
    credentials: Arc<Credentials>,
) -> Result<(Channel, ExporterHandle), TlsError> {
    let target = Target::new(endpoint, expected, credentials)?;
    let (transport, exporter) = (target.transport()?, target.exporter.clone());
    let channel =
        transport.connect_with_connector(target.connector()).await.map_err(|error| match cause(&error) {
            Some(TlsError::Chain(error)) => TlsError::Chain(*error),
            Some(TlsError::Unreachable(kind)) => TlsError::Unreachable(*kind),
            Some(TlsError::Handshake(error)) => TlsError::Handshake(error.kind().into()),
            _ => TlsError::Unreachable(std::io::ErrorKind::TimedOut),
        })?;
    Ok((channel, exporter))
}

/// As [`connect`], but connects with the first call.
///
/// # Errors
/// The endpoint is not `host:port`.
pub fn connect_lazy(
    endpoint: &str,
    expected: Party,
    credentials: Arc<Credentials>,
) -> Result<(Channel, ExporterHandle), TlsError> {
    let target = Target::new(endpoint, expected, credentials)?;
    let (transport, exporter) = (target.transport()?, target.exporter.clone());
    Ok((transport.connect_with_connector_lazy(target.connector()), exporter))
}

/// As [`connect_lazy`], and whoever answers must hold the key that the log pins
/// (SHA-256 of its SubjectPublicKeyInfo).
///
/// # Errors
/// The endpoint is not `host:port`.
pub fn connect_pinned(
    endpoint: &str,
    expected: Party,
    key_pin: [u8; 32],
    credentials: Arc<Credentials>,
) -> Result<Channel, TlsError> {
    let target = Target { key_pin: Some(key_pin), ..Target::new(endpoint, expected, credentials)? };
    Ok(target.transport()?.connect_with_connector_lazy(target.connector()))
}

/// The [`TlsError`] behind a transport error or status, if it is one.
pub fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        at = error.source();
    }
    None
}

#[derive(Clone)]
struct Target {
    endpoint: Arc<str>,
    name: ServerName<'static>,
    expected: Party,
    key_pin: Option<[u8; 32]>,
    credentials: Arc<Credentials>,
    exporter: ExporterHandle,
}

impl Target {
    fn new(endpoint: &str, expected: Party, credentials: Arc<Credentials>) -> Result<Self, TlsError> {
        let (host, port) = endpoint.rsplit_once(':').ok_or(TlsError::Endpoint)?;
        port.parse::<u16>().map_err(|_| TlsError::Endpoint)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Endpoint)?;
        Ok(Self {
            endpoint: endpoint.into(),
            name,
            expected,
            key_pin: None,
            credentials,
            exporter: ExporterHandle::default(),
        })
    }

    fn transport(&self) -> Result<Endpoint, TlsError> {
        let uri =
            |scheme: &str| format!("{scheme}://{}", self.endpoint).parse().map_err(|_| TlsError::Endpoint);
        // tonic must not look for a TLS of its own: TLS is in the connector.
        Ok(Endpoint::from(uri("http")?)
            .origin(uri("https")?)
            .connect_timeout(CONNECT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_ANSWER)
            .keep_alive_while_idle(true))
    }

    fn connector(
        self,
    ) -> impl tower::Service<
        http::Uri,
        Response = TokioIo<TlsStream<TcpStream>>,
        Error = TlsError,
        Future: Send,
    > + Send
    + 'static {
        tower::service_fn(move |_: http::Uri| {
            let target = self.clone();
            async move { target.open().await.map(TokioIo::new) }
        })
    }

    async fn open(&self) -> Result<TlsStream<TcpStream>, TlsError> {
        let unreachable = |error: std::io::Error| TlsError::Unreachable(error.kind());
        let tcp = TcpStream::connect(&*self.endpoint).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let state = self.credentials.state();
        let verifier = PeerVerifier::of_server(&self.credentials, Arc::clone(&state), self.expected.clone());
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _);
        let mut config = match &state.identity {
            Some(identity) => config.with_client_cert_resolver(Arc::clone(&identity.key) as _),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection checks the certificate anew.
        config.resumption = Resumption::disabled();
        let connecting = TlsConnector::from(Arc::new(config)).connect(self.name.clone(), tcp);
        let stream = connecting.await.map_err(|error| match verifier.outcome() {
            Some(Err(chain)) => TlsError::Chain(chain),
            _ => TlsError::Handshake(error),
        })?;
        if let (Some(pin), Some(Ok(peer))) = (&self.key_pin, verifier.outcome())
            && peer.key_pin() != pin
        {
            return Err(TlsError::WrongKey);
        }
        let exporter = stream.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, None)?;
        self.exporter.0.store(Some(Arc::new(exporter)));
        Ok(stream)
    }
}
