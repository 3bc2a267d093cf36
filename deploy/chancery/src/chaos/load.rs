//! Who writes to whom: conversations of agents with residents and with each other, as
//! careful callers of `chancery.agent.v1` hold them. A request is written down before it
//! is made, and made again under the same id until it has an answer.

use super::account::{PLEASE, digest};
use crate::Failure;
use crate::local::layout::ADMINISTRATIONS;
use crate::local::mailing_run;
use chancery::dice::Dice;
use chancery_kit::status::from_status;
use chancery_proto::agent::v1 as agent;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use chancery_types::{Identifier, Reason, Retry};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Longest wait for an answer before it is asked for again.
const ANSWER: Duration = Duration::from_secs(20);
/// Pause before a request is made again: from, to.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Most letters of one round of a conversation.
const ROUND: u64 = 4;
/// Of a hundred letters, so many have an attachment, and so many ask for an answer.
const ATTACHED: u64 = 10;
const ASKING: u64 = 25;
/// Largest attachment, bytes.
const ATTACHMENT: u64 = 300 * 1024;

/// Who gets a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Recipient {
    /// A resident, by number.
    Resident(usize),
    /// The agent of an administration, by number.
    Agent(usize),
}

/// A letter as its sender's books have it.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    /// Number of its administration.
    pub(super) from: usize,
    pub(super) to: Recipient,
    /// Round of the conversation: each begins when all letters of the one before have an answer.
    pub(super) round: u64,
    /// SHA-256 of its text, which no other letter has.
    pub(super) digest: String,
    /// SHA-256 of each attachment.
    pub(super) files: Vec<String>,
    /// Whether it asks for an answer.
    pub(super) asks: bool,
    pub(super) fate: Fate,
}

/// What its sender was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing yet.
    Open,
    /// The hub accepted it.
    Accepted {
        /// Its message.
        message: String,
        /// Its thread.
        thread: String,
        /// When.
        at: i64,
    },
    /// It was refused for good.
    Refused(String),
}

/// The senders' books: letters by number, from 0.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Vec<Letter>>>);

impl Ledger {
    /// All letters as they stand.
    pub(super) fn letters(&self) -> MutexGuard<'_, Vec<Letter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a letter down; gives its number.
    fn add(&self, letter: impl FnOnce(usize) -> Letter) -> usize {
        let mut letters = self.letters();
        let number = letters.len();
        letters.push(letter(number));
        number
    }

    fn tell(&self, number: usize, fate: Fate) {
        if let Some(letter) = self.letters().get_mut(number) {
            letter.fate = fate;
        }
    }

    /// How many letters were refused, by reason.
    pub(super) fn refused(&self) -> BTreeMap<String, u64> {
        let mut reasons = BTreeMap::new();
        for letter in self.letters().iter() {
            if let Fate::Refused(reason) = &letter.fate {
                *reasons.entry(reason.clone()).or_default() += 1;
            }
        }
        reasons
    }

    /// How many letters were accepted.
    pub(super) fn accepted(&self) -> u64 {
        let letters = self.letters();
        letters.iter().filter(|letter| matches!(letter.fate, Fate::Accepted { .. })).count() as u64
    }
}

/// One agent's letters to one recipient.
pub(super) struct Conversation {
    from: usize,
    to: Recipient,
    identifier: Identifier,
    client: AgentServiceClient<Channel>,
    ledger: Ledger,
    /// Mean of the pauses between rounds.
    pause: Duration,
    thread: Option<String>,
}

/// A request that has no answer yet.
struct Asked {
    number: usize,
    request: agent::SendRequest,
}

impl Conversation {
    /// A conversation that begins with the first letter.
    ///
    /// # Errors
    /// The agent's address is none.
    pub(super) fn new(
        (from, agent): (usize, &str),
        (to, identifier): (Recipient, Identifier),
        ledger: Ledger,
        pause: Duration,
    ) -> Result<Self, Failure> {
        let client = mailing_run::client(agent)?;
        Ok(Self { from, to, identifier, client, ledger, pause, thread: None })
    }

    /// Writes what the first dice draw until `stop`, and asks again after pauses that the
    /// second ones draw. Ends when each request has an answer, or at `end`.
    pub(super) async fn hold(
        mut self,
        (mut dice, mut again): (Dice, Dice),
        stop: CancellationToken,
        end: CancellationToken,
    ) {
        let mut round = 0;
        loop {
            let pause = dice.pause(self.pause);
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            let count = 1 + dice.below(ROUND) * dice.below(2);
            let mut open: Vec<Asked> = (0..count).map(|_| self.write(round, &mut dice)).collect();
            round += 1;
            while !open.is_empty() {
                let asked = end.clone().run_until_cancelled_owned(Box::pin(self.ask(open))).await;
                let Some(unanswered) = asked else { return };
                open = unanswered;
                if !open.is_empty() {
                    tokio::time::sleep(again.between(AGAIN.0, AGAIN.1)).await;
                }
            }
        }
    }

    /// Writes a letter down.
    fn write(&self, round: u64, dice: &mut Dice) -> Asked {
        let asks = matches!(self.to, Recipient::Resident(_)) && dice.chance(ASKING);
        let attachments: Vec<Vec<u8>> = if dice.chance(ATTACHED) {
            let length = 1 + dice.below(ATTACHMENT) as usize;
            vec![dice.bytes(length)]
        } else {
            Vec::new()
        };
        let words = 5 + dice.below(200) as usize;
        let body = hex::encode(dice.bytes(words));
        let close = if asks { PLEASE } else { "No answer is needed." };
        let (request_id, by_thread) = (dice.uuid().to_string(), dice.chance(50));
        let (from, to) = (self.from, self.to);
        let mut markdown = String::new();
        let number = self.ledger.add(|number| {
            markdown = format!("Letter {number}.\n\n{body}\n\n{close}");
            let digests = attachments.iter().map(|file| digest(file)).collect();
            let digest = digest(markdown.as_bytes());
            Letter { from, to, round, digest, files: digests, asks, fate: Fate::Open }
        });
        let to = match self.thread.clone().filter(|_| by_thread) {
            Some(thread) => agent::send_request::To::ThreadId(thread),
            None => agent::send_request::To::Recipient(agent::Identifier {
                scheme: self.identifier.scheme().as_str().to_owned(),
                value: self.identifier.value().to_owned(),
            }),
        };
        let attachment = |bytes: Vec<u8>| agent::Attachment {
            file_name: "attachment.bin".to_owned(),
            media_type: "application/octet-stream".to_owned(),
            source: Some(agent::attachment::Source::Data(bytes.into())),
        };
        let letter = agent::Letter {
            markdown,
            language: "en".to_owned(),
            attachments: attachments.into_iter().map(attachment).collect(),
            in_reply_to: String::new(),
        };
        Asked {
            number,
            request: agent::SendRequest { request_id, to: Some(to), letter: Some(letter), expires_at_ms: 0 },
        }
    }

    /// Makes requests, one by `Send` and several by `SendBulk`; gives back those
    /// that got no answer.
    async fn ask(&mut self, mut open: Vec<Asked>) -> Vec<Asked> {
        if let [asked] = open.as_slice() {
            let call = self.client.send(asked.request.clone());
            match tokio::time::timeout(ANSWER, call).await {
                Ok(Ok(sent)) => self.accepted(asked.number, sent.into_inner()),
                // Without details it is not the agent's word, but its connection's.
                Ok(Err(status)) if !status.details().is_empty() => {
                    let reason = from_status(&status).reason;
                    self.refused(asked.number, reason.as_str());
                }
                _ => {}
            }
        } else {
            let requests: Vec<_> = open
                .iter()
                .map(|asked| agent::SendBulkRequest { send: Some(asked.request.clone()) })
                .collect();
            let reading = async {
                let call = self.client.send_bulk(tokio_stream::iter(requests)).await;
                let Ok(answers) = call else { return Vec::new() };
                answers.into_inner().take_while(Result::is_ok).filter_map(Result::ok).collect().await
            };
            let answers: Vec<agent::SendBulkResponse> =
                tokio::time::timeout(ANSWER, reading).await.unwrap_or_default();
            for answer in answers {
                let of = open.iter().find(|asked| asked.request.request_id == answer.request_id);
                let Some(number) = of.map(|asked| asked.number) else { continue };
                match answer.result {
                    Some(agent::send_bulk_response::Result::Accepted(sent)) => self.accepted(number, sent),
                    Some(agent::send_bulk_response::Result::Failure(failure)) => {
                        self.refused(number, &failure.reason);
                    }
                    None => {}
                }
            }
        }
        let letters = self.ledger.letters();
        open.retain(|asked| letters.get(asked.number).is_some_and(|letter| letter.fate == Fate::Open));
        open
    }

    fn accepted(&mut self, number: usize, sent: agent::SendResponse) {
        self.thread = Some(sent.thread_id.clone());
        let agent::SendResponse { message_id: message, thread_id: thread, accepted_at_ms: at } = sent;
        self.ledger.tell(number, Fate::Accepted { message, thread, at });
    }

    /// Only what no repetition mends is an answer.
    fn refused(&self, number: usize, reason: &str) {
        if Reason::from_wire(reason).is_some_and(|reason| reason.retry() == Retry::Never) {
            tracing::warn!(number, reason, "a letter was refused");
            self.ledger.tell(number, Fate::Refused(reason.to_owned()));
        }
    }
}

/// Where an administration's agent is called.
pub(super) fn agent_name(number: usize) -> String {
    format!("agent-{}", ADMINISTRATIONS[number % ADMINISTRATIONS.len()])
}
