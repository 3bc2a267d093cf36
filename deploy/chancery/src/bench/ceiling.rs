//! What the machine bears when nothing is checked or decided: the same frames
//! over a bare stream, the same rows into a bare table.

use crate::Failure;
use bytes::Bytes;
use chancery_kit::serve::STREAMS;
use chancery_kit::store::{Store, values};
use chancery_kit::tls::{Credentials, Limits, connect, incoming};
use chancery_pki_core::Party;
use chancery_proto::federation::v1 as wire;
use chancery_proto::federation::v1::federation_service_client::FederationServiceClient;
use chancery_proto::federation::v1::federation_service_server::{FederationService, FederationServiceServer};
use chancery_types::NodeId;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use sqlx::{AssertSqlSafe, Sqlite};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status, Streaming};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/bench/migrations");
/// Frames on the way at once.
const WINDOW: usize = 16;
/// Rows of one statement.
const ROWS: usize = 64;

/// Acknowledges every batch at once.
struct Echo;

type Stream<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl FederationService for Echo {
    type LinkStream = Stream<wire::LinkResponse>;

    async fn link(
        &self,
        request: Request<Streaming<wire::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let acks = request.into_inner().map(|frame| {
            let Some(wire::link_request::Frame::Batch(batch)) = frame?.frame else {
                return Err(Status::invalid_argument("batches only"));
            };
            let sequence = batch.first_sequence + batch.parcels.len() as u64 - 1;
            let ack = wire::Ack { sequence, refusals: Vec::new() };
            Ok(wire::LinkResponse { frame: Some(wire::link_response::Frame::Ack(ack)) })
        });
        Ok(Response::new(acks.boxed()))
    }

    async fn fetch_key_packages(
        &self,
        _: Request<wire::FetchKeyPackagesRequest>,
    ) -> Result<Response<wire::FetchKeyPackagesResponse>, Status> {
        Err(Status::unimplemented("a ceiling has streams only"))
    }

    type ReadBlobStream = Stream<wire::ReadBlobResponse>;

    async fn read_blob(
        &self,
        _: Request<wire::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadBlobStream>, Status> {
        Err(Status::unimplemented("a ceiling has streams only"))
    }
}

/// Parcels per second over a bare stream with mutual TLS between a node and
/// itself, `per_frame` of them in each frame.
pub(super) async fn stream(
    credentials: Arc<Credentials>,
    here: NodeId,
    parcel: wire::Parcel,
    per_frame: usize,
    frames: usize,
) -> Result<f64, Failure> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let endpoint = listener.local_addr()?.to_string();
    let mut routes = RoutesBuilder::default();
    routes.add_service(FederationServiceServer::new(Echo).max_decoding_message_size(usize::MAX));
    let connections = incoming(listener, Arc::clone(&credentials), Limits::default())?;
    let stop = CancellationToken::new();
    let server = tokio::spawn(chancery_kit::serve::serve(connections, routes, STREAMS, stop.clone()));

    let (channel, _) = connect(&endpoint, Party::Node(here), credentials).await?;
    let mut client = FederationServiceClient::new(channel).max_encoding_message_size(usize::MAX);
    let (sender, requests) = tokio::sync::mpsc::channel(WINDOW);
    let mut acks = client.link(ReceiverStream::new(requests)).await.map_err(Failure::call)?.into_inner();
    let begun = Instant::now();
    tokio::spawn(async move {
        for frame in 0..frames {
            let first_sequence = (frame * per_frame) as u64 + 1;
            let batch = wire::Batch { first_sequence, parcels: vec![parcel.clone(); per_frame] };
            let frame = Some(wire::link_request::Frame::Batch(batch));
            if sender.send(wire::LinkRequest { frame }).await.is_err() {
                return;
            }
        }
    });
    let mut acked = 0;
    while let Some(answer) = acks.next().await {
        if let Some(wire::link_response::Frame::Ack(ack)) = answer.map_err(Failure::call)?.frame {
            acked = ack.sequence;
        }
    }
    let rate = acked as f64 / begun.elapsed().as_secs_f64();
    stop.cancel();
    drop(client);
    let _ = server.await;
    Ok(rate)
}

/// Rows per second that the group-commit writer flushes into a bare table,
/// `per_job` of them in each job.
pub(super) async fn insert(folder: &Path, item: Bytes, per_job: usize, jobs: usize) -> Result<f64, Failure> {
    let store: Store<Sqlite> = Store::open(&folder.join("ceiling.db"), &MIGRATIONS).await?;
    let text = format!("INSERT INTO mailbox (alias, item) VALUES {}", values(ROWS, 2));
    let begun = Instant::now();
    let writes = (0..jobs).map(|_| {
        let (text, item) = (text.clone(), item.clone());
        store.write("bench.insert", move |connection| {
            let (text, item) = (text.clone(), item.clone());
            Box::pin(async move {
                for _ in 0..per_job / ROWS {
                    let mut statement = sqlx::query(AssertSqlSafe(text.clone()));
                    for _ in 0..ROWS {
                        statement = statement.bind([7_u8; 16].as_slice()).bind(item.as_ref());
                    }
                    statement.execute(&mut *connection).await?;
                }
                Ok(())
            })
        })
    });
    futures::stream::iter(writes)
        .buffer_unordered(4)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<Vec<()>, _>>()?;
    Ok((jobs * (per_job / ROWS) * ROWS) as f64 / begun.elapsed().as_secs_f64())
}
