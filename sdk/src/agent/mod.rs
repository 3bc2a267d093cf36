//! The agent: `chancery.agent.v1` over an [`Endpoint`], for an organisation's
//! own systems. Plain gRPC with reflection and health, on a loopback address:
//! whoever can reach it may send in the organisation's name, so the host is
//! the boundary.

mod broadcasts;
mod bulk;
pub mod command;
mod events;
mod files;
mod inbox;
mod send;
mod service;
mod uploads;

pub use command::{AgentArgs, run};

use crate::attachment::{AttachmentError, Spool};
use crate::endpoint::Endpoint;
use chancery_kit::serve::{STREAMS, ServeError, add_health, add_reflection, refused};
use chancery_proto::agent::v1::agent_service_server::{AgentServiceServer, SERVICE_NAME};
use chancery_types::{Entropy, Reason, Refusal};
use files::Files;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::RoutesBuilder;
use uploads::Uploads;

/// Largest request: 16 attachments of 1 MiB, the text, and room for framing.
const MAX_REQUEST: usize = 18 * 1024 * 1024;
/// Bytes of sealed attachments that an agent keeps on disk while they travel.
const SPOOL: u64 = 2 * 1024 * 1024 * 1024;

/// An agent cannot start or serve.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It was to listen where others could reach it.
    #[error("{0} is no loopback address: the agent's callers are not authenticated")]
    NotLoopback(SocketAddr),
    /// The listener.
    #[error("listener: {0}")]
    Listener(#[from] std::io::Error),
    /// The attachment folders.
    #[error(transparent)]
    Attachments(#[from] AttachmentError),
    /// Serving failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The home node refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What the service works with.
struct Rooms {
    endpoint: Endpoint,
    files: Files,
    uploads: Arc<Uploads>,
    spool: Arc<Spool>,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
}

/// What a streaming call answers with.
type Answers<T> = mpsc::Sender<Result<T, Status>>;

impl Rooms {
    /// Lets a stream run until it ends, its caller hangs up or the agent stops.
    async fn stream<T>(
        &self,
        answers: &Answers<T>,
        follow: impl Future<Output = Result<(), Refusal>> + Send,
    ) {
        let end = tokio::select! {
            result = follow => result,
            () = self.shutdown.cancelled() => {
                Err(Refusal::new(Reason::ShuttingDown, "the agent is restarting; call again"))
            }
            () = answers.closed() => Ok(()),
        };
        if let Err(refusal) = end {
            let _ = answers.send(Err(refused(&refusal))).await;
        }
    }
}

/// Serves an endpoint as an agent until `shutdown`. `folder` holds attachments
/// on their way. The endpoint is registered and run by the caller.
///
/// # Errors
/// The address is no loopback address, a folder cannot be made, or the
/// transport failed.
pub async fn serve(
    endpoint: Endpoint,
    folder: &Path,
    listener: TcpListener,
    entropy: Arc<dyn Entropy>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        return Err(AgentError::NotLoopback(address));
    }
    let spool = Arc::new(Spool::open(folder.join("spool"), SPOOL)?);
    let uploads = Arc::new(Uploads::open(&folder.join("uploads"), endpoint.now())?);
    let files = Files::new(endpoint.clone(), Arc::clone(&spool), Arc::clone(&uploads), Arc::clone(&entropy));
    let rooms = Rooms { endpoint, files, uploads, spool, entropy, shutdown: shutdown.clone() };
    let service =
        AgentServiceServer::new(service::Service(Arc::new(rooms))).max_decoding_message_size(MAX_REQUEST);
    let mut routes = RoutesBuilder::default();
    routes.add_service(service);
    add_health(&mut routes, &[SERVICE_NAME]).await;
    add_reflection(&mut routes, &[SERVICE_NAME])?;
    Ok(chancery_kit::serve::serve(TcpListenerStream::new(listener), routes, STREAMS, shutdown).await?)
}
