//! What agents broadcast while things go wrong: each on a channel of its own, which every resident
//! joins, half of them late. The channel lets them read what came before, so all must have all.

use super::account::digest;
use crate::Failure;
use crate::local::mailing_run;
use chancery::dice::Dice;
use chancery_proto::agent::v1 as agent;
use chancery_proto::agent::v1::agent_service_client::AgentServiceClient;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

/// Mean of the pauses between broadcasts of one agent.
const PAUSE: Duration = Duration::from_secs(15);
/// How many of the latest broadcasts who joins may read: all that come before the last has joined.
const HISTORY: u32 = 100;
/// Longest wait for an answer before it is asked for again.
const ANSWER: Duration = Duration::from_secs(40);
/// Pause before a request is made again: from, to.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// A broadcast as its sender's books have it.
#[derive(Clone, Debug)]
pub(super) struct Broadcast {
    /// Number of its administration.
    pub(super) from: usize,
    /// SHA-256 of its text, which no other has.
    pub(super) digest: String,
    /// Its place in the channel; `None`: it is not known to be with the agent's node yet.
    pub(super) sequence: Option<u64>,
}

/// All broadcasts.
#[derive(Clone, Default)]
pub(super) struct Bulletins(Arc<Mutex<Vec<Broadcast>>>);

impl Bulletins {
    /// As they stand.
    pub(super) fn all(&self) -> MutexGuard<'_, Vec<Broadcast>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many were handed over.
    pub(super) fn handed_over(&self) -> u64 {
        self.all().iter().filter(|broadcast| broadcast.sequence.is_some()).count() as u64
    }
}

/// The channel of an administration's agent.
pub(super) const fn channel(from: usize) -> uuid::Uuid {
    uuid::Uuid::from_u128(0xcaca_0000_0000_4000_8000_0000_0000_0001 + from as u128)
}

/// One agent that broadcasts.
pub(super) struct Speaker {
    from: usize,
    client: AgentServiceClient<Channel>,
    bulletins: Bulletins,
}

impl Speaker {
    /// # Errors
    /// The agent's address is none.
    pub(super) fn new(from: usize, agent: &str, bulletins: Bulletins) -> Result<Self, Failure> {
        Ok(Self { from, client: mailing_run::client(agent)?, bulletins })
    }

    /// Publishes the channel and broadcasts until `stop`, and asks again after pauses that the second
    /// dice draw. Ends when each request has an answer, or at `end`.
    pub(super) async fn speak(
        mut self,
        (mut dice, mut again): (Dice, Dice),
        stop: CancellationToken,
        end: CancellationToken,
    ) {
        let speaking = async {
            while self.publish().await.is_err() {
                tokio::time::sleep(again.between(AGAIN.0, AGAIN.1)).await;
            }
            loop {
                if stop.run_until_cancelled(tokio::time::sleep(dice.pause(PAUSE))).await.is_none() {
                    return;
                }
                let (number, request) = self.write(&mut dice);
                loop {
                    if let Ok(Ok(sequence)) = tokio::time::timeout(ANSWER, self.ask(request.clone())).await {
                        if let Some(broadcast) = self.bulletins.all().get_mut(number) {
                            broadcast.sequence = Some(sequence);
                        }
                        break;
                    }
                    tokio::time::sleep(again.between(AGAIN.0, AGAIN.1)).await;
                }
            }
        };
        let _ = end.run_until_cancelled(speaking).await;
    }

    async fn publish(&mut self) -> Result<(), Status> {
        let text = agent::ChannelText { name: "Bulletins".to_owned(), description: String::new() };
        let request = agent::PutChannelRequest {
            channel_id: channel(self.from).to_string(),
            texts: BTreeMap::from([("en".to_owned(), text)]),
            contact: "https://chaos.example".to_owned(),
            history: HISTORY,
            cell_size: 4,
            ..agent::PutChannelRequest::default()
        };
        let put = tokio::time::timeout(ANSWER, self.client.put_channel(request)).await;
        put.map_err(|_| Status::deadline_exceeded("no answer"))?.map(drop)
    }

    /// Writes a broadcast down.
    fn write(&self, dice: &mut Dice) -> (usize, agent::BroadcastRequest) {
        let mut bulletins = self.bulletins.all();
        let number = bulletins.len();
        let words = 5 + dice.below(400) as usize;
        let markdown = format!("Bulletin {number}.\n\n{}", hex::encode(dice.bytes(words)));
        bulletins.push(Broadcast { from: self.from, digest: digest(markdown.as_bytes()), sequence: None });
        let body = agent::Letter { markdown, language: "en".to_owned(), ..agent::Letter::default() };
        let request = agent::BroadcastRequest {
            request_id: dice.uuid().to_string(),
            channel_id: channel(self.from).to_string(),
            bodies: vec![body],
            ..agent::BroadcastRequest::default()
        };
        (number, request)
    }

    /// Makes the request; gives the broadcast's sequence once all of it is with the agent's node.
    async fn ask(&mut self, request: agent::BroadcastRequest) -> Result<u64, Status> {
        let mut answers = self.client.broadcast(request).await?.into_inner();
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            if answer.stage() == agent::BroadcastStage::HandedOver {
                return Ok(answer.sequence);
            }
        }
        Err(Status::unavailable("the stream ended early"))
    }
}
