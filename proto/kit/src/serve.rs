//! Serving gRPC: limits, deadlines, health, reflection, graceful drain.

use crate::status::to_status;
use crate::tls::TlsError;
use chancery_types::{Reason, Refusal};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

/// Longest that open calls may go on once the server drains; streams are
/// told by their services to end at once.
const DRAIN: Duration = Duration::from_secs(10);
/// Deadline of a unary call whose caller set none; a shorter one of the
/// caller's counts.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// What a caller may have sent that nobody has read: after a flood each connection's is still to
/// be worked off. Twice what one stream may have, so that none blocks the others.
const CONNECTION_WINDOW: u32 = 2 * STREAM_WINDOW;
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Calls of a connection that are under way at once, unless a server says otherwise; further ones
/// wait at the caller.
pub const STREAMS: u32 = 1024;
/// Largest message a server takes, in bytes.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// A server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport failed.
    #[error("serving: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The reflection service cannot be built.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// There is no certificate to serve with.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Adds `grpc.health.v1` for the named services, all serving.
pub async fn add_health(routes: &mut RoutesBuilder, services: &[&str]) {
    let (reporter, service) = tonic_health::server::health_reporter();
    for name in services {
        reporter.set_service_status(*name, tonic_health::ServingStatus::Serving).await;
    }
    routes.add_service(service);
}

/// Adds `grpc.reflection.v1`, and `v1alpha`, which is all that some languages'
/// clients speak. They list the named services and health, and know the whole contract.
///
/// # Errors
/// The descriptors do not parse.
pub fn add_reflection(routes: &mut RoutesBuilder, services: &[&str]) -> Result<(), ServeError> {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(chancery_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        services.iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    routes.add_service(builder().build_v1()?);
    routes.add_service(builder().build_v1alpha()?);
    Ok(())
}

/// Serves until `shutdown`, then drains: no new call, open ones end within 10 s. A connection may
/// have `streams` calls under way.
///
/// # Errors
/// The transport failed.
pub async fn serve<I, IO>(
    incoming: I,
    routes: RoutesBuilder,
    streams: u32,
    shutdown: CancellationToken,
) -> Result<(), ServeError>
where
    I: futures::Stream<Item = std::io::Result<IO>> + Send + 'static,
    IO: tokio::io::AsyncRead
        + tokio::io::AsyncWrite
        + tonic::transport::server::Connected
        + Unpin
        + Send
        + 'static,
{
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(256 * 1024)
        .max_concurrent_streams(streams)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .http2_max_header_list_size(16 * 1024)
        .add_routes(routes.routes())
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    tokio::pin!(server);
    tokio::select! {
        result = &mut server => return Ok(result?),
        () = shutdown.cancelled() => {}
    }
    match tokio::time::timeout(DRAIN, server).await {
        Ok(result) => Ok(result?),
        Err(_) => {
            tracing::info!("calls still open after the drain were cut");
            Ok(())
        }
    }
}

/// Runs a unary call under its deadline and turns its refusal into a status.
///
/// # Errors
/// The call's refusal, or DEADLINE_EXCEEDED.
pub async fn unary<T>(
    call: impl Future<Output = Result<T, Refusal>>,
) -> Result<tonic::Response<T>, tonic::Status> {
    match tokio::time::timeout(CALL_DEADLINE, call).await {
        Ok(Ok(message)) => Ok(tonic::Response::new(message)),
        Ok(Err(refusal)) => Err(refused(&refusal)),
        Err(_) => {
            let refusal = Refusal::new(Reason::DeadlineExceeded, "the call took longer than a minute");
            Err(refused(&refusal))
        }
    }
}

/// The status of a refusal, counted and logged by reason.
pub fn refused(refusal: &Refusal) -> tonic::Status {
    REFUSALS.add(refusal.reason);
    tracing::debug!(reason = refusal.reason.as_str(), "refused");
    to_status(refusal)
}

/// How often this process refused, by reason.
pub static REFUSALS: Refusals = Refusals::new();

/// Counters by reason.
pub struct Refusals([std::sync::atomic::AtomicU64; Reason::ALL.len()]);

impl Refusals {
    const fn new() -> Self {
        Self([const { std::sync::atomic::AtomicU64::new(0) }; Reason::ALL.len()])
    }

    /// Counts one.
    pub fn add(&self, reason: Reason) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// How often so far.
    pub fn count(&self, reason: Reason) -> u64 {
        self.0.get(reason as usize).map_or(0, |c| c.load(std::sync::atomic::Ordering::Relaxed))
    }
}
