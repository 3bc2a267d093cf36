//! A caller of an agent, as a business system would be.

use crate::wait::success;
use chancery_proto::agent::v1 as wire;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use chancery_types::Identifier;
use std::time::Duration;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for an agent to listen, or for an event.
const DEADLINE: Duration = Duration::from_secs(60);
/// Largest message of an agent.
const MAX_MESSAGE: usize = 20 * 1024 * 1024;

/// A client of the agent at `address` (`host:port`), once it listens.
pub async fn connect(address: &str) -> AgentServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let channel = success("the agent listens", async || endpoint.connect().await).await;
    AgentServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// A request to send `markdown` to whoever enrolled `to`.
pub fn request(request_id: &str, to: &Identifier, markdown: &str) -> wire::SendRequest {
    let recipient =
        wire::Identifier { scheme: to.scheme().as_str().to_owned(), value: to.value().to_owned() };
    wire::SendRequest {
        request_id: request_id.to_owned(),
        to: Some(wire::send_request::To::Recipient(recipient)),
        letter: Some(wire::Letter { markdown: markdown.to_owned(), ..wire::Letter::default() }),
        expires_at_ms: 0,
    }
}

/// The same text form of a request id for the same number.
pub fn request_id(number: u128) -> String {
    uuid::Uuid::from_u128(number).to_string()
}

/// Events after a position until `enough` says so of one of them; gives all.
pub async fn events_until(
    client: &mut AgentServiceClient<Channel>,
    after: u64,
    mut enough: impl FnMut(&wire::EventsResponse) -> bool,
) -> Vec<wire::EventsResponse> {
    let request = wire::EventsRequest { after, drain: false };
    let mut stream = client.events(request).await.unwrap().into_inner();
    let mut events = Vec::new();
    loop {
        let next = timeout(DEADLINE, stream.message()).await;
        let kinds = || events.iter().map(kind_name).collect::<Vec<_>>();
        let next = next.unwrap_or_else(|_| panic!("no more events after {:?}", kinds()));
        let event = next.unwrap().expect("the stream ended");
        let last = enough(&event);
        events.push(event);
        if last {
            return events;
        }
    }
}

/// Waits until one letter got to `kind`; gives the kinds of its events so far.
pub async fn reached(
    client: &mut AgentServiceClient<Channel>,
    request_id: &str,
    kind: wire::EventKind,
) -> Vec<wire::EventKind> {
    let of_it = |event: &wire::EventsResponse| event.request_id == request_id;
    let events = events_until(client, 0, |event| of_it(event) && event.kind() == kind).await;
    events.iter().filter(|event| of_it(event)).map(wire::EventsResponse::kind).collect()
}

/// All letters of the inbox.
pub async fn inbox(client: &mut AgentServiceClient<Channel>) -> Vec<wire::InboxResponse> {
    let request = wire::InboxRequest { after: 0, drain: true };
    let mut stream = client.inbox(request).await.unwrap().into_inner();
    let mut letters = Vec::new();
    while let Some(letter) = stream.message().await.unwrap() {
        letters.push(letter);
    }
    letters
}

fn kind_name(event: &wire::EventsResponse) -> &'static str {
    event.kind().as_str_name()
}
