//! A collector of traces as operators run one (OTLP over gRPC), that keeps what it gets.

use crate::mesh::Place;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message as _;
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

/// The collector; stops when it is dropped.
pub struct Collector {
    /// What to configure as `otlp_endpoint`.
    pub endpoint: String,
    traces: Traces,
    _stop: DropGuard,
}

impl Collector {
    /// Starts it on a free port.
    pub async fn start() -> Self {
        let (place, traces, stop) = (Place::free().await, Traces::default(), CancellationToken::new());
        let endpoint = format!("http://{}", place.address);
        let serving = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(traces.clone()))
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(place.into_listener()),
                stop.clone().cancelled_owned(),
            );
        tokio::spawn(serving);
        Self { endpoint, traces, _stop: stop.drop_guard() }
    }

    /// Everything that came, with all names, attributes and events.
    pub fn traces(&self) -> Vec<u8> {
        self.traces.0.lock().unwrap().clone()
    }
}

#[derive(Clone, Default)]
struct Traces(Arc<Mutex<Vec<u8>>>);

#[tonic::async_trait]
impl TraceService for Traces {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().extend(request.into_inner().encode_to_vec());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
