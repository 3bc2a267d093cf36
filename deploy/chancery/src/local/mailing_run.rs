//! Sends a mailing through an agent, as any caller of `chancery.agent.v1`
//! would, and follows what becomes of it.

use super::report::{Figures, Report, quantile};
use crate::Failure;
use chancery_proto::agent::v1 as agent;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use indicatif::ProgressBar;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Longest standstill before a run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest message of an agent.
const MAX_MESSAGE: usize = 20 * 1024 * 1024;

/// A client of an agent on this host.
///
/// # Errors
/// Nothing listens there.
pub(crate) async fn connect(endpoint: &str) -> Result<AgentServiceClient<Channel>, Failure> {
    Ok(calling(transport(endpoint)?.connect().await?))
}

/// The same, which connects with the first call, and again with the next one after
/// the agent went away.
///
/// # Errors
/// `endpoint` is no address.
pub(crate) fn client(endpoint: &str) -> Result<AgentServiceClient<Channel>, Failure> {
    Ok(calling(transport(endpoint)?.connect_lazy()))
}

fn transport(endpoint: &str) -> Result<tonic::transport::Endpoint, Failure> {
    let endpoint = tonic::transport::Endpoint::from_shared(endpoint.to_owned())?;
    Ok(endpoint.connect_timeout(Duration::from_secs(5)))
}

fn calling(channel: Channel) -> AgentServiceClient<Channel> {
    AgentServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// What a mailing's letters have come to so far.
struct Letters {
    state: HashMap<String, Letter>,
    report: Report,
    latencies: Vec<f64>,
    /// Letters of which a terminal event is due.
    open: usize,
    reads_due: usize,
    answers_due: usize,
    last_delivered: Instant,
}

#[derive(Default)]
struct Letter {
    sent_ms: i64,
    relayed: bool,
    ended: bool,
    read: bool,
    answered: bool,
}

/// Sends `letters` and waits until each is delivered, read and, for
/// `answers_due` of them, answered. `bar` shows deliveries.
///
/// # Errors
/// The agent went away, or nothing moved for a minute.
pub(crate) async fn run(
    endpoint: &str,
    letters: Vec<agent::SendRequest>,
    answers_due: usize,
    bar: &ProgressBar,
    now_ms: impl Fn() -> i64 + Send + 'static,
) -> Result<Report, Failure> {
    let mut client = connect(endpoint).await?;
    let mut run = Letters {
        state: letters.iter().map(|l| (l.request_id.clone(), Letter::default())).collect(),
        report: Report::default(),
        latencies: Vec::new(),
        open: letters.len(),
        reads_due: letters.len(),
        answers_due,
        last_delivered: Instant::now(),
    };
    let begun = Instant::now();
    let request = agent::EventsRequest { after: 0, drain: false };
    let mut events = client.events(request).await.map_err(Failure::call)?.into_inner();
    let (requests, stream) = tokio::sync::mpsc::channel(64);
    let mut answers =
        client.send_bulk(ReceiverStream::new(stream)).await.map_err(Failure::call)?.into_inner();
    let (times, mut sent) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        for letter in letters {
            let _ = times.send((letter.request_id.clone(), now_ms()));
            if requests.send(agent::SendBulkRequest { send: Some(letter) }).await.is_err() {
                return;
            }
        }
    });
    let mut answers_open = true;
    while !run.done() || answers_open {
        tokio::select! {
            Some((id, ms)) = sent.recv() => if let Some(letter) = run.state.get_mut(&id) { letter.sent_ms = ms },
            answer = answers.next(), if answers_open => match answer {
                Some(answer) => run.answered(answer.map_err(Failure::call)?, bar),
                None => answers_open = false,
            },
            event = events.next() => match event {
                Some(event) => run.happened(&event.map_err(Failure::call)?, bar),
                None => return Err(Failure::Stopped),
            },
            () = tokio::time::sleep(PATIENCE) => return Err(Failure::Stalled(PATIENCE.as_secs())),
        }
    }
    Ok(run.finish(begun))
}

impl Letters {
    const fn done(&self) -> bool {
        self.open == 0 && self.reads_due == 0 && self.answers_due == 0
    }

    fn answered(&mut self, answer: agent::SendBulkResponse, bar: &ProgressBar) {
        match answer.result {
            Some(agent::send_bulk_response::Result::Accepted(_)) => self.report.figures.accepted += 1,
            Some(agent::send_bulk_response::Result::Failure(failure)) => {
                self.end(&answer.request_id, &failure.reason, bar);
            }
            None => {}
        }
    }

    fn happened(&mut self, event: &agent::EventsResponse, bar: &ProgressBar) {
        let Some(letter) = self.state.get_mut(&event.request_id) else { return };
        let figures = &mut self.report.figures;
        match event.kind() {
            agent::EventKind::Relayed if !letter.relayed => {
                letter.relayed = true;
                figures.relayed += 1;
            }
            agent::EventKind::Delivered if !letter.ended => {
                letter.ended = true;
                figures.delivered += 1;
                self.open -= 1;
                // A letter of an earlier run was delivered before it was asked for.
                if letter.sent_ms > 0 && event.occurred_at_ms >= letter.sent_ms {
                    self.last_delivered = Instant::now();
                    self.latencies.push((event.occurred_at_ms - letter.sent_ms) as f64);
                }
                bar.inc(1);
            }
            agent::EventKind::Read if !letter.read => {
                letter.read = true;
                figures.read += 1;
                self.reads_due = self.reads_due.saturating_sub(1);
            }
            agent::EventKind::Answered if !letter.answered => {
                letter.answered = true;
                figures.answered += 1;
                self.answers_due = self.answers_due.saturating_sub(1);
            }
            agent::EventKind::Failed => self.end(&event.request_id, &event.reason, bar),
            agent::EventKind::Expired => self.end(&event.request_id, "EXPIRED", bar),
            _ => {}
        }
    }

    fn end(&mut self, request_id: &str, reason: &str, bar: &ProgressBar) {
        let Some(letter) = self.state.get_mut(request_id) else { return };
        if letter.ended {
            return;
        }
        letter.ended = true;
        self.open -= 1;
        self.reads_due = self.reads_due.saturating_sub(1);
        self.report.figures.failed += 1;
        *self.report.failures.entry(reason.to_owned()).or_default() += 1;
        bar.inc(1);
    }

    fn finish(mut self, begun: Instant) -> Report {
        let seconds = self.last_delivered.duration_since(begun).as_secs_f64();
        let figures: &mut Figures = &mut self.report.figures;
        if !self.latencies.is_empty() && seconds > 0.0 {
            figures.letters_per_s = self.latencies.len() as f64 / seconds;
        }
        figures.p50_ms = quantile(&mut self.latencies, 0.5);
        figures.p99_ms = quantile(&mut self.latencies, 0.99);
        self.report
    }
}
