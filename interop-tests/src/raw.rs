//! gRPC without a contract: every method that the descriptors name, called with
//! whatever bytes.

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use std::time::Duration;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Longest that one call may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// A method of the contract.
#[derive(Clone, Debug)]
pub struct Method {
    /// `chancery.agent.v1.AgentService`.
    pub service: String,
    /// `/chancery.agent.v1.AgentService/Send`.
    pub path: String,
}

/// All methods of all services.
pub fn methods() -> Vec<Method> {
    let set = prost_types::FileDescriptorSet::decode(chancery_proto::DESCRIPTORS).unwrap();
    let mut methods = Vec::new();
    for file in &set.file {
        for service in file.service.iter().filter(|_| file.package().starts_with("chancery.")) {
            let service_name = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                let path = format!("/{service_name}/{}", method.name());
                methods.push(Method { service: service_name.clone(), path });
            }
        }
    }
    methods
}

/// Calls a method with these messages, and takes whatever comes back: how many
/// messages, and how it ended. The end of a stream that stays open is Ok.
pub async fn call(channel: &Channel, method: &Method, messages: Vec<Bytes>) -> (usize, Code) {
    let mut client = tonic::client::Grpc::new(channel.clone());
    let answers = async {
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = Request::new(tokio_stream::iter(messages));
        let path = method.path.parse().unwrap();
        let answer = client.streaming(request, path, Raw).await?;
        Ok::<_, Status>(answer.into_inner())
    };
    let mut stream = match tokio::time::timeout(DEADLINE, answers).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(status)) => return (0, status.code()),
        Err(_) => panic!("{} hangs", method.path),
    };
    let mut count = 0;
    loop {
        match tokio::time::timeout(Duration::from_millis(100), stream.message()).await {
            Ok(Ok(Some(_))) => count += 1,
            Ok(Ok(None)) | Err(_) => return (count, Code::Ok),
            Ok(Err(status)) => return (count, status.code()),
        }
    }
}

struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
