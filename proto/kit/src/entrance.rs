//! Where a party is called: its listener, TLS on every connection, and the services
//! behind it. What the services do is their room's.

use crate::serve::{STREAMS, ServeError, serve};
use crate::tls::{Credentials, Limits, incoming};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};

type Front = Box<dyn FnOnce(Routes) -> Routes + Send + Sync>;

/// A listener, and what stands between TLS and the services: in the program nothing,
/// which is what a listener alone becomes.
pub struct Entrance {
    listener: TcpListener,
    front: Option<Front>,
    streams: u32,
}

impl From<TcpListener> for Entrance {
    fn from(listener: TcpListener) -> Self {
        Self { listener, front: None, streams: STREAMS }
    }
}

impl Entrance {
    /// Puts something of a test's in front of the services, which sees every call as it
    /// comes out of TLS. `clippy.toml` refuses it elsewhere.
    pub fn with_front(
        listener: TcpListener,
        front: impl FnOnce(Routes) -> Routes + Send + Sync + 'static,
    ) -> Self {
        Self { listener, front: Some(Box::new(front)), streams: STREAMS }
    }

    /// A connection may have so many calls under way.
    #[must_use]
    pub fn with_streams(self, streams: u32) -> Self {
        Self { streams, ..self }
    }

    /// Where callers find it; `None`: the system does not say.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `shutdown`, then drains: no new call, open ones end within 10 s.
    ///
    /// # Errors
    /// There is no certificate to serve with, or the transport failed.
    pub async fn serve(
        self,
        credentials: Arc<Credentials>,
        routes: RoutesBuilder,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let connections = incoming(self.listener, credentials, Limits::default())?;
        let routes = match self.front {
            Some(front) => front(routes.routes()).into(),
            None => routes,
        };
        serve(connections, routes, self.streams, shutdown).await
    }
}
