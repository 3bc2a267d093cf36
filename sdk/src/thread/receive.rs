//! What a delivery holds: it is decrypted, checked against its envelope and the
//! thread's rules, and what follows is written down.

use super::{Thread, commit, join};
use crate::alarm::{self, Alarm};
use crate::credential::CredentialError;
use crate::error::EndpointError;
use crate::inbox;
use crate::store::Tx;
use chancery_proto::content::v1::AuthenticatedData;
use chancery_proto::federation::v1::delivery;
use chancery_sdk_core::receive::Envelope;
use chancery_sdk_core::{Content, Opened, Queues as _};
use chancery_types::{GroupId, MessageId, Reason, Refusal};
use openmls::framing::{MlsMessageBodyIn, MlsMessageIn, ProcessedMessageContent, Sender};
use openmls::prelude::tls_codec::DeserializeBytes as _;
use prost::Message as _;

/// Largest MLSMessage with a commit, in bytes.
const COMMIT_LIMIT: usize = 1024 * 1024;
/// Largest MLSMessage with application data, in bytes.
const APPLICATION_LIMIT: usize = 256 * 1024;

/// Joins the thread that a Welcome leads to.
pub(crate) fn welcome(
    tx: &mut Tx<'_>,
    envelope: &Envelope<'_>,
    last_try: bool,
) -> Result<Opened<()>, EndpointError> {
    let delivery::Body::Welcome(welcome) = envelope.body else { return Ok(Opened::Bad) };
    let joined = tx.part(|tx| join::join(tx, envelope.group, &envelope.link(), welcome));
    Ok(match judge(joined, last_try)? {
        Some(Some(_)) => Opened::Good(()),
        Some(None) => Opened::NotForUs,
        None => Opened::Bad,
    })
}

/// Decrypts a message of a thread.
pub(crate) fn open(
    tx: &mut Tx<'_>,
    thread: &mut Thread,
    envelope: &Envelope<'_>,
    last_try: bool,
) -> Result<Opened<Content>, EndpointError> {
    let opened = tx.part(|tx| process(tx, envelope, thread));
    Ok(judge(opened, last_try)?.map_or(Opened::Bad, Opened::Good))
}

/// What broke a rule is nothing; an agent that is not known may be by the next try.
fn judge<T>(opened: Result<T, EndpointError>, last_try: bool) -> Result<Option<T>, EndpointError> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(error @ EndpointError::Store(_)) => Err(error),
        Err(error @ EndpointError::FalseCredential(CredentialError::UnknownAgent)) if !last_try => Err(error),
        Err(error) => {
            tracing::warn!(%error, "endpoint.delivery.reject");
            Ok(None)
        }
    }
}

fn process(tx: &mut Tx<'_>, envelope: &Envelope<'_>, thread: &mut Thread) -> Result<Content, EndpointError> {
    let (message, commits) = match envelope.body {
        delivery::Body::Application(message) => (message, false),
        delivery::Body::Commit(message) => (message, true),
        delivery::Body::Welcome(_) | delivery::Body::Expired(_) => {
            return Err(invalid("neither a Welcome nor what has expired is a message of a thread"));
        }
    };
    if message.len() > if commits { COMMIT_LIMIT } else { APPLICATION_LIMIT } {
        return Err(invalid("a message is larger than its limit"));
    }
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
            commit::merge(tx, thread, group, &sender, *staged)?;
            Ok(Content::Commit)
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
            let arrived = inbox::Arrived {
                place: envelope.place,
                message_id: envelope.message_id,
                letter: check_data(tx, envelope, thread, &data)?,
                sequence: envelope.delivery.sequence,
                sender: member.alias,
                sender_device: member.device,
                digest: envelope.link().digest.unwrap_or_default(),
                body: content.into_bytes(),
            };
            inbox::arrive(tx, thread, arrived)
        }
        _ => Err(invalid("a message holds something else than its envelope says")),
    }
}

/// The sender's own words about the envelope, which no node can change; gives the
/// letter's id.
fn check_data(
    tx: &Tx<'_>,
    envelope: &Envelope<'_>,
    thread: &mut Thread,
    data: &AuthenticatedData,
) -> Result<MessageId, EndpointError> {
    if data.message_id != envelope.delivery.message_id
        || data.expires_at_ms != envelope.delivery.expires_at_ms
        || data.head_sequence >= envelope.delivery.sequence
        || data.head_chain.is_empty() != (data.head_sequence == 0)
    {
        return Err(invalid("a message does not agree with its envelope"));
    }
    let ours = tx.chain(&envelope.group, data.head_sequence)?;
    if ours.is_some_and(|ours| ours.as_bytes() != &*data.head_chain) {
        // The hub told its sender another story; the message itself is genuine.
        alarm::raise(tx, Alarm::Forked, Some(&envelope.group))?;
    }
    let root = match &*data.thread_id {
        [] => thread.id,
        id => GroupId::try_from(id).map_err(|_| invalid("a message names no thread"))?,
    };
    if root != thread.root && !super::set_root(tx, thread, &root)? {
        return Err(invalid("a message is of another thread than its group"));
    }
    match &*data.letter_id {
        [] => Ok(envelope.message_id),
        id => MessageId::try_from(id).map_err(|_| invalid("a message names no letter")),
    }
}

fn invalid(what: &'static str) -> EndpointError {
    Refusal::new(Reason::InvalidMessage, what).into()
}
