//! What parties receive, as it comes out of TLS and before anything is decoded: calls
//! by whoever is called, answers by whoever called. It stands in front of the services
//! of a [`crate::mesh::Mesh`] that was asked for it; the program has nothing there.

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use chancery_kit::entrance::Entrance;
use chancery_kit::tls::ConnectionInfo;
use chancery_pki_core::Party;
use http_body_util::BodyExt as _;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tonic::codegen::http::HeaderMap;
use tonic::service::Routes;

/// Length of what stands before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Who shows no certificate: a person's device, an auditor.
pub const NOBODY: &str = "no certificate";

/// Everything that was received so far.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<Vec<Heard>>>);

/// One direction of one call.
#[derive(Clone)]
struct Heard {
    receiver: String,
    /// A call; otherwise an answer.
    call: bool,
    method: String,
    /// Headers and trailers, by their values.
    metadata: Arc<Mutex<Vec<u8>>>,
    body: Arc<Mutex<Vec<u8>>>,
}

impl Heard {
    fn headers(&self, headers: &HeaderMap) {
        let mut metadata = self.metadata.lock().unwrap();
        for (name, value) in headers {
            metadata.extend_from_slice(name.as_str().as_bytes());
            metadata.extend_from_slice(b": ");
            metadata.extend_from_slice(value.as_bytes());
            metadata.push(b'\n');
        }
    }

    /// The same body, heard as it passes.
    fn hear(self, body: Body) -> Body {
        Body::new(body.map_frame(move |frame| {
            if let Some(data) = frame.data_ref() {
                self.body.lock().unwrap().extend_from_slice(data);
            }
            if let Some(trailers) = frame.trailers_ref() {
                self.headers(trailers);
            }
            frame
        }))
    }
}

/// What one party received in one direction of one call: metadata or a message.
pub struct Received {
    /// Who received it, by its name in the mesh.
    pub receiver: String,
    /// Whether it was called so; otherwise it was answered so.
    pub call: bool,
    /// `/chancery.node.v1.MailboxService/Submit`.
    pub method: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Recorder {
    /// An entrance of the party of that name.
    #[expect(clippy::disallowed_methods, reason = "a test that sees every call")]
    pub fn entrance(&self, party: &str, listener: TcpListener) -> Entrance {
        let (recorder, called) = (self.clone(), party.to_owned());
        Entrance::with_front(listener, move |routes: Routes| {
            let hear = from_fn(move |request: Request, next: Next| {
                let (recorder, called) = (recorder.clone(), called.clone());
                async move { recorder.pass(called, request, next).await }
            });
            Routes::from(routes.into_axum_router().layer(hear))
        })
    }

    async fn pass(self, called: String, request: Request, next: Next) -> Response {
        let method = request.uri().path().to_owned();
        let calls = self.hears(called, true, &method);
        let answers = self.hears(caller(&request), false, &method);
        calls.headers(request.headers());
        let response = next.run(request.map(|body| calls.hear(body))).await;
        answers.headers(response.headers());
        response.map(|body| answers.hear(body))
    }

    fn hears(&self, receiver: String, call: bool, method: &str) -> Heard {
        let (method, metadata, body) = (method.to_owned(), Arc::default(), Arc::default());
        let heard = Heard { receiver, call, method, metadata, body };
        self.0.lock().unwrap().push(heard.clone());
        heard
    }

    /// Adds a message that a party is said to have received.
    pub fn add(&self, receiver: &str, call: bool, message: &[u8]) {
        let heard = self.hears(receiver.to_owned(), call, "added");
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        heard.body.lock().unwrap().extend([&[0], &length[..], message].concat());
    }

    /// All metadata, and all messages that have come whole.
    pub fn received(&self) -> Vec<Received> {
        let mut all = Vec::new();
        for heard in self.0.lock().unwrap().iter() {
            let mut add = |bytes: &[u8]| {
                let (receiver, method) = (heard.receiver.clone(), heard.method.clone());
                all.push(Received { receiver, call: heard.call, method, bytes: bytes.to_vec() });
            };
            add(&heard.metadata.lock().unwrap());
            messages(&heard.body.lock().unwrap()).into_iter().for_each(&mut add);
        }
        all
    }
}

/// The messages of a call (gRPC over HTTP/2, "Length-Prefixed-Message").
fn messages(mut body: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((prefix, rest)) = body.split_first_chunk::<PREFIX>() {
        let [compressed, length @ ..] = *prefix;
        assert_eq!(compressed, 0, "nothing is compressed, or the search would be blind");
        let Some((message, rest)) = rest.split_at_checked(u32::from_be_bytes(length) as usize) else { break };
        messages.push(message);
        body = rest;
    }
    messages
}

/// The calling party by its name in the mesh.
fn caller(request: &Request) -> String {
    let connection = request.extensions().get::<ConnectionInfo>().unwrap();
    match connection.peer.as_ref().map(chancery_pki_core::VerifiedPeer::party) {
        None => NOBODY.to_owned(),
        Some(Party::Node(administration)) => format!("node-{administration}"),
        Some(Party::Agent { name, .. }) if name.as_str() == "residents" => "registry".to_owned(),
        Some(Party::Agent { administration, .. }) => format!("agent-{administration}"),
        Some(Party::Evaluator(id)) => id.to_string(),
        Some(Party::Directory) => "directory".to_owned(),
        Some(Party::Pki) => "pki".to_owned(),
    }
}
