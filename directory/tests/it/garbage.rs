//! Random bytes to every call: each is answered or refused, and the servers live on.

use crate::mesh::{Backend, Setting};
use bytes::{Buf as _, BufMut as _, Bytes};
use chancery_kit::tls::connect;
use chancery_pki_core::Party;
use chancery_types::Entropy;
use chancery_types::entropy::SeededEntropy;
use std::sync::Arc;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;

/// Sends bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

async fn send(channel: &Channel, path: &'static str, bytes: Vec<u8>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    grpc.unary(tonic::Request::new(Bytes::from(bytes)), path, Raw).await.map(drop)
}

const DIRECTORY: [&str; 13] = [
    "/chancery.directory.v1.DirectoryService/Lookup",
    "/chancery.directory.v1.DirectoryService/Publish",
    "/chancery.directory.v1.DirectoryService/SubmitStatement",
    "/chancery.directory.v1.DirectoryService/FetchCheckpoint",
    "/chancery.directory.v1.DirectoryService/ListEntries",
    "/chancery.directory.v1.DirectoryService/ListRecords",
    "/chancery.directory.v1.DirectoryService/ProveConsistency",
    "/chancery.directory.v1.DirectoryService/ListStatements",
    "/chancery.directory.v1.DirectoryService/SubmitCeremony",
    "/chancery.directory.v1.DirectoryService/SubmitEvaluationTotals",
    "/chancery.directory.v1.DirectoryService/SubmitChannel",
    "/chancery.directory.v1.DirectoryService/SubmitManifest",
    "/chancery.directory.v1.DirectoryService/ListChannels",
];
const EVALUATOR: [&str; 5] = [
    "/chancery.directory.v1.EvaluatorService/Evaluate",
    "/chancery.directory.v1.CeremonyService/Join",
    "/chancery.directory.v1.CeremonyService/Deal",
    "/chancery.directory.v1.CeremonyService/Judge",
    "/chancery.directory.v1.CeremonyService/Conclude",
];

#[tokio::test]
async fn random_bytes_are_refused_and_nothing_breaks() {
    let setting = Setting::new(Backend::Sqlite).await;
    let credentials = || Arc::clone(&setting.federal.credentials);
    let (directory, _) = connect(&setting.directory.endpoint, Party::Directory, credentials()).await.unwrap();
    let party = Party::Evaluator("e1".parse().unwrap());
    let (evaluator, _) = connect(&setting.evaluator.endpoint, party, credentials()).await.unwrap();
    let before = setting.lookup(&[setting.owner().handle]).await.roots;

    let entropy: &dyn Entropy = &SeededEntropy::new(77);
    let mut refused = 0;
    for (channel, paths) in [(&directory, DIRECTORY.as_slice()), (&evaluator, EVALUATOR.as_slice())] {
        for path in paths {
            for _ in 0..60 {
                let [length, field, wire_type] = entropy.array::<3>();
                let mut bytes = vec![0; usize::from(length)];
                entropy.fill(&mut bytes);
                // Half of them begin like a field of the message.
                if let [tag, first, ..] = bytes.as_mut_slice()
                    && wire_type & 1 == 0
                {
                    *tag = (field % 4 + 1) << 3 | [0, 2][usize::from(wire_type >> 1 & 1)];
                    *first %= length.max(1);
                }
                if let Err(status) = send(channel, path, bytes).await {
                    refused += 1;
                    // tonic answers INTERNAL to what does not decode; ours never panics (UNKNOWN, CANCELLED).
                    let code = status.code();
                    let orderly = !matches!(
                        code,
                        tonic::Code::Unknown | tonic::Code::Cancelled | tonic::Code::Unavailable
                    );
                    assert!(orderly, "{path}: {status}");
                }
            }
            let status = send(channel, path, vec![0; 300_000]).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::OutOfRange, "{path}");
        }
    }
    assert!(refused > 200, "{refused}");
    assert!(setting.lookup(&[setting.owner().handle]).await.roots == before);
}
