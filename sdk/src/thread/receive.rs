//! What comes through the mailbox: each delivery is taken once, checked against
//! its envelope, the hub's chain and the thread's rules, and its effect is
//! committed with the mailbox position.

use super::chain::{self, Link, Source};
use super::{Thread, commit, join};
use crate::alarm::{self, Alarm};
use crate::credential::CredentialError;
use crate::error::EndpointError;
use crate::home;
use crate::inbox::{self, Place};
use crate::outbox;
use crate::store::Tx;
use chancery_proto::content::v1::AuthenticatedData;
use chancery_proto::federation::v1::{Delivery, delivery};
use chancery_types::{Chain, GroupId, MessageId, Reason, Refusal};
use openmls::framing::{MlsMessageBodyIn, MlsMessageIn, ProcessedMessageContent, Sender};
use openmls::prelude::tls_codec::DeserializeBytes as _;
use prost::Message as _;
use rusqlite::params;
use sha2::{Digest as _, Sha256};

/// Largest MLSMessage with a commit, in bytes.
const COMMIT_LIMIT: usize = 1024 * 1024;
/// Largest MLSMessage with application data, in bytes.
const APPLICATION_LIMIT: usize = 256 * 1024;

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processed {
    /// This device is in a new thread.
    Joined,
    /// A letter stands in the inbox.
    Letter {
        /// Its position.
        position: u64,
    },
    /// Something about earlier letters, which became events.
    Noted,
    /// The thread moved to another epoch.
    Committed,
    /// It waits for the outcome of our own commit, or for what comes before it.
    Parked,
    /// It was taken before.
    Duplicate,
    /// It is for another device of this account.
    NotForUs,
    /// It was refused, and an alarm was raised.
    Rejected(Alarm),
}

/// Takes a delivery that stood at `place`. Idempotent by group and sequence. A bad
/// delivery is no error: it is [`Processed::Rejected`], or it would block the mailbox.
///
/// # Errors
/// The store's; [`CredentialError::UnknownAgent`] unless `last_try`: refresh
/// the statements and call again; it leaves nothing behind.
pub fn receive(
    tx: &mut Tx<'_>,
    place: Place,
    delivery: &Delivery,
    last_try: bool,
) -> Result<Processed, EndpointError> {
    let Some(envelope) = Envelope::parse(place, delivery) else {
        alarm::raise(tx, Alarm::InvalidMessage, None)?;
        return Ok(Processed::Rejected(Alarm::InvalidMessage));
    };
    let processed = match tx.part(|tx| take(tx, &envelope)) {
        Ok(processed) => processed,
        Err(error @ EndpointError::Store(_)) => return Err(error),
        Err(error @ EndpointError::FalseCredential(CredentialError::UnknownAgent)) if !last_try => {
            return Err(error);
        }
        Err(error) => reject(tx, &envelope, &error)?,
    };
    if matches!(processed, Processed::Committed | Processed::Rejected(Alarm::ForbiddenCommit)) {
        // The epoch that queued letters waited for, or the end of the thread. No
        // commit of ours is pending any more.
        unpark(tx, &envelope.group)?;
        outbox::prepare(tx, &envelope.group)?;
    } else if processed != Processed::Parked && parks(tx, &envelope.group)? {
        // Perhaps what another home brought follows this.
        unpark(tx, &envelope.group)?;
    }
    Ok(processed)
}

/// Whether anything of a group waits.
pub(crate) fn parks(tx: &Tx<'_>, id: &GroupId) -> Result<bool, EndpointError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM parked WHERE group_id = ?1)";
    Ok(tx.sql().prepare_cached(sql)?.query_row([id.as_bytes()], |row| row.get(0))?)
}

/// Takes again all that waited for a former home.
pub(crate) fn unpark_all(tx: &mut Tx<'_>) -> Result<(), EndpointError> {
    let groups: Vec<[u8; 32]> = tx
        .sql()
        .prepare_cached("SELECT DISTINCT group_id FROM parked")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    groups.into_iter().try_for_each(|group| unpark(tx, &GroupId::from_bytes(group)))
}

/// Takes again what waited of a group.
pub(crate) fn unpark(tx: &mut Tx<'_>, id: &GroupId) -> Result<(), EndpointError> {
    let parked: Vec<(Place, Vec<u8>)> = tx
        .sql()
        .prepare_cached("DELETE FROM parked WHERE group_id = ?1 RETURNING home, position, delivery")?
        .query_map([id.as_bytes()], |row| {
            Ok((Place { home: row.get(0)?, position: row.get(1)? }, row.get(2)?))
        })?
        .collect::<Result<_, _>>()?;
    let mut deliveries: Vec<(Place, Delivery)> = parked
        .into_iter()
        .filter_map(|(place, bytes)| Some((place, Delivery::decode(&*bytes).ok()?)))
        .collect();
    deliveries.sort_by_key(|(_, delivery)| delivery.sequence);
    for (place, delivery) in deliveries {
        receive(tx, place, &delivery, true)?;
    }
    Ok(())
}

/// A delivery whose envelope parses.
struct Envelope<'a> {
    place: Place,
    delivery: &'a Delivery,
    group: GroupId,
    message_id: MessageId,
    chain: Chain,
    body: &'a delivery::Body,
}

impl<'a> Envelope<'a> {
    fn parse(place: Place, delivery: &'a Delivery) -> Option<Self> {
        Some(Self {
            place,
            delivery,
            group: GroupId::try_from(&delivery.group_id).ok()?,
            message_id: MessageId::try_from(&delivery.message_id).ok()?,
            chain: Chain::try_from(&delivery.chain).ok()?,
            body: delivery.body.as_ref().filter(|_| {
                (1..=Chain::LAST).contains(&delivery.sequence) && delivery.epoch <= Chain::LAST
            })?,
        })
    }

    fn link(&self) -> Link {
        let digest = match self.body {
            delivery::Body::Application(message) | delivery::Body::Commit(message) => {
                Some(Sha256::digest(message).into())
            }
            delivery::Body::Welcome(_) => None,
        };
        Link { sequence: self.delivery.sequence, message_id: self.message_id, digest, chain: self.chain }
    }
}

fn take(tx: &mut Tx<'_>, envelope: &Envelope<'_>) -> Result<Processed, EndpointError> {
    let thread = super::find(tx, &envelope.group)?;
    let (message, commits) = match (envelope.body, thread) {
        (delivery::Body::Welcome(welcome), None) => {
            return Ok(match join::join(tx, envelope.group, &envelope.link(), welcome)? {
                Some(_) => Processed::Joined,
                None => Processed::NotForUs,
            });
        }
        // Its Welcome may be with a former home.
        (_, None) if home::must_follow(tx, envelope.place.home)? => return park(tx, envelope),
        // Of a thread that this device is not in (yet), or not any more.
        (_, None) => return Ok(Processed::NotForUs),
        (_, Some(thread)) if !thread.open => return Ok(Processed::NotForUs),
        // For a further device of this account.
        (delivery::Body::Welcome(_), Some(_)) => return Ok(Processed::NotForUs),
        (delivery::Body::Application(message), Some(thread)) => ((message, thread), false),
        (delivery::Body::Commit(message), Some(thread)) => ((message, thread), true),
    };
    let (message, mut thread) = message;
    if message.len() > if commits { COMMIT_LIMIT } else { APPLICATION_LIMIT } {
        return Err(invalid("a message is larger than its limit"));
    }
    if envelope.delivery.epoch > thread.epoch && thread.pending_commit.is_some() {
        return park(tx, envelope);
    }
    if envelope.delivery.sequence > thread.head_sequence + 1 && home::must_follow(tx, envelope.place.home)? {
        return park(tx, envelope);
    }
    let link = envelope.link();
    if !chain::record(tx, &mut thread, &link, Source::Delivered)? {
        return Ok(Processed::Duplicate);
    }
    process(tx, envelope, thread, message, commits, &link)
}

fn process(
    tx: &mut Tx<'_>,
    envelope: &Envelope<'_>,
    mut thread: Thread,
    message: &[u8],
    commits: bool,
    link: &Link,
) -> Result<Processed, EndpointError> {
    let body = MlsMessageIn::tls_deserialize_exact_bytes(message).map(MlsMessageIn::extract);
    let Ok(MlsMessageBodyIn::PrivateMessage(message)) = body else {
        return Err(invalid("a message is no PrivateMessage"));
    };
    let mut group = tx.take_group(&envelope.group)?;
    let processed =
        group.process_message(&tx.provider(), message).map_err(EndpointError::mls("decrypt a message"))?;
    if processed.epoch().as_u64() != envelope.delivery.epoch {
        return Err(invalid("a message is of another epoch than its envelope"));
    }
    let sender = processed.sender().clone();
    let aad = AuthenticatedData::decode(processed.aad());
    match (processed.into_content(), commits) {
        (ProcessedMessageContent::StagedCommitMessage(staged), true) => {
            commit::merge(tx, &mut thread, group, &sender, *staged)?;
            Ok(Processed::Committed)
        }
        (ProcessedMessageContent::ApplicationMessage(content), false) => {
            let Sender::Member(index) = sender else {
                return Err(invalid("a message comes from outside of the thread"));
            };
            let key = group.member_at(index).map(|member| member.signature_key).unwrap_or_default();
            tx.keep_group(envelope.group, group);
            let member = super::member_by_key(tx, &thread.id, &key)?
                .ok_or_else(|| invalid("a message comes from no device of the thread"))?;
            let data = aad.map_err(|_| invalid("a message lacks its authenticated data"))?;
            check_data(tx, envelope, &data)?;
            let arrived = inbox::Arrived {
                place: envelope.place,
                message_id: envelope.message_id,
                sequence: link.sequence,
                sender: member.alias,
                sender_device: member.device,
                digest: link.digest.unwrap_or_default(),
                body: content.into_bytes(),
            };
            inbox::arrive(tx, &thread, arrived)
        }
        _ => Err(invalid("a message holds something else than its envelope says")),
    }
}

/// The sender's own words about the envelope, which no node can change.
fn check_data(tx: &Tx<'_>, envelope: &Envelope<'_>, data: &AuthenticatedData) -> Result<(), EndpointError> {
    if data.message_id != envelope.delivery.message_id
        || data.expires_at_ms != envelope.delivery.expires_at_ms
        || data.head_sequence >= envelope.delivery.sequence
        || data.head_chain.is_empty() != (data.head_sequence == 0)
    {
        return Err(invalid("a message does not agree with its envelope"));
    }
    let ours = chain::at(tx, &envelope.group, data.head_sequence)?;
    if ours.is_some_and(|ours| ours.as_bytes() != &*data.head_chain) {
        // The hub told its sender another story; the message itself is genuine.
        alarm::raise(tx, Alarm::Forked, Some(&envelope.group))?;
    }
    Ok(())
}

fn park(tx: &Tx<'_>, envelope: &Envelope<'_>) -> Result<Processed, EndpointError> {
    tx.sql().execute(
        "INSERT OR IGNORE INTO parked (group_id, sequence, home, position, delivery) \
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            envelope.group.as_bytes(),
            envelope.delivery.sequence,
            envelope.place.home,
            envelope.place.position,
            envelope.delivery.encode_to_vec()
        ],
    )?;
    Ok(Processed::Parked)
}

/// Notes a bad delivery. After a bad commit nothing more of the thread can be
/// believed or read.
fn reject(
    tx: &mut Tx<'_>,
    envelope: &Envelope<'_>,
    error: &EndpointError,
) -> Result<Processed, EndpointError> {
    tracing::warn!(%error, "endpoint.delivery.reject");
    let alarm = match envelope.body {
        delivery::Body::Welcome(_) => Alarm::FalseThread,
        delivery::Body::Commit(_) => Alarm::ForbiddenCommit,
        delivery::Body::Application(_) => Alarm::InvalidMessage,
    };
    let thread = super::find(tx, &envelope.group)?;
    if let Some(mut thread) = thread {
        chain::record(tx, &mut thread, &envelope.link(), Source::Delivered)?;
        if alarm == Alarm::ForbiddenCommit {
            super::close(tx, &thread.id)?;
        }
    }
    alarm::raise(tx, alarm, Some(&envelope.group))?;
    Ok(Processed::Rejected(alarm))
}

fn invalid(what: &'static str) -> EndpointError {
    Refusal::new(Reason::InvalidMessage, what).into()
}
