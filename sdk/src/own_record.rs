//! This account's own record: put, changed, closed, and looked after. Operations go
//! HPKE-sealed to the directory through another member's node; what is under way is
//! kept until the map shows it, so that a repetition asks for the same. Done is what
//! the map shows to everyone.

use crate::alarm::{self, Alarm};
use crate::directory_view::DirectoryView;
use crate::error::EndpointError;
use crate::identity::{self, OwnKey};
use crate::keepsake;
use crate::node_client::NodeClient;
use crate::resolve::{self, Keyed};
use crate::store::{EndpointStore, Tx};
use chancery_directory_core::client::{Publication, read_publication};
use chancery_directory_core::lookup::ALARMING_AGE;
use chancery_directory_core::record::{RecordDraft, SignedRecord};
use chancery_directory_core::{
    AccountKey, Address, CredentialKey, Error, FederationState, VerifiedRecord, operation,
};
use chancery_kit::tls::Credentials;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Entropy, Handle, NodeId, Reason, Refusal};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const UNDER_WAY: &str = "record operation";
const STANDING: &str = "own record";
const ALARMED: &str = "own record alarmed";
/// Nodes that are asked to pass a record on before the home node is.
const OTHER_RELAYS: usize = 2;
/// How long the map may take to show what was logged …
const SHOWN_WITHIN: Duration = Duration::from_secs(60);
/// … and how often it is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Publishes through the home node.
pub(crate) struct OwnRecord {
    pub(crate) client: NodeClient,
    pub(crate) store: EndpointStore,
    pub(crate) view: Arc<DirectoryView>,
    /// For connections to other nodes than the home.
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

/// Who vouches for this account's key.
#[derive(Clone)]
pub struct Words {
    /// An authority admitted for the identifier's scheme.
    pub attestation: wire::SignedAttestation,
    /// Another one, for a re-enrolment that the old account cannot veto.
    pub second: Option<wire::SignedAttestation>,
}

/// What an owner changes of its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordChange {
    /// Nothing: the next version says the same. Ends a re-enrolment that is pending.
    Renew,
    /// Whether a re-enrolment takes the word of two authorities.
    TwoAuthorities(bool),
    /// Letters go to another home.
    Move(NodeId),
    /// The record is closed for good: senders see that the owner left.
    Close,
}

/// What the directory shows of this account's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordCheck {
    /// This device never published one.
    Unpublished,
    /// What this device put last.
    AsPublished,
    /// Another one, or none: somebody changed it.
    Changed,
    /// Its key epoch has ended: enrol again.
    Lapsed,
    /// Somebody re-enrols the handle with another account key. Unless this account
    /// renews its record, that one counts from 7 days on.
    ReEnrolment,
}

/// What this device put last.
struct Standing {
    index: u64,
    record: SignedRecord,
}

/// An operation under way.
struct UnderWay {
    /// Digest of what was asked for.
    asked: [u8; 32],
    record: wire::SignedRecord,
}

/// What the directory shows; an error where it is not to be believed.
struct Shown {
    own: Result<Option<VerifiedRecord>, Error>,
    pending: Result<Option<VerifiedRecord>, Error>,
    /// Entry of the root that shows it.
    root: u64,
    /// How old that is.
    age: Duration,
}

/// What the next version says.
struct Next {
    words: Words,
    two_authorities: bool,
    close: bool,
    /// Where letters go.
    node: NodeId,
    /// Version and entry that it follows.
    after: Option<(u64, u64)>,
}

impl OwnRecord {
    /// Puts the record of a handle, its next version, or a re-enrolment.
    pub(crate) async fn publish(&self, keyed: Keyed, words: Words) -> Result<Publication, Refusal> {
        // Words are given anew each time; how many there are decides what they can do.
        let how = [keyed.0.as_bytes().as_slice(), &[u8::from(words.second.is_some())]].concat();
        let asked = asked_for(b"publish", &how);
        if let Some(done) = self.resume(asked).await? {
            return Ok(done);
        }
        let after = self.call(standing).await?.map_or(0, |standing| standing.index);
        let own = self.look(&keyed.0, after).await?.own?;
        let read = |tx: &mut Tx<'_>| Ok((identity::identity(tx)?.node, standing(tx)?));
        let (node, before) = self.call(read).await?;
        // What the owner asked for goes along to another handle.
        let two_authorities = before.is_some_and(|before| before.record.two_authorities());
        let after = own.map(|own| (own.record.version(), own.index));
        let next = Next { words, two_authorities, close: false, node, after };
        self.put(asked, keyed, next).await
    }

    /// Whether this device has put a record.
    pub(crate) async fn is_published(&self) -> Result<bool, Refusal> {
        Ok(self.call(standing).await?.is_some())
    }

    /// Key epoch of the record that this device put last, and whether it closed it.
    pub(crate) async fn last(&self) -> Result<Option<(u32, bool)>, Refusal> {
        let last = self.call(standing).await?.map(|standing| standing.record);
        Ok(last.map(|last| (last.attestation().claim().key_epoch, last.is_closed())))
    }

    /// Changes the record as the map shows it.
    pub(crate) async fn change(&self, change: RecordChange) -> Result<Publication, Refusal> {
        let asked = match &change {
            RecordChange::Renew => asked_for(b"renew", &[]),
            RecordChange::TwoAuthorities(two) => asked_for(b"two authorities", &[u8::from(*two)]),
            RecordChange::Move(node) => asked_for(b"move", node.as_str().as_bytes()),
            RecordChange::Close => asked_for(b"close", &[]),
        };
        if let Some(done) = self.resume(asked).await? {
            return Ok(done);
        }
        let read = |tx: &mut Tx<'_>| {
            let none = EndpointError::NotPossible("this device has published no record");
            let standing = standing(tx)?.ok_or(none)?;
            let keyed = resolve::keyed_of(tx, standing.record.handle())?;
            let account = AccountKey::from(&identity::key(tx, OwnKey::Account)?);
            Ok((standing.index, keyed, account))
        };
        let (index, keyed, account) = self.call(read).await?;
        let own = self.look(&keyed.0, index).await?.own?;
        let own = own.filter(|own| *own.record.account_key() == account).ok_or_else(|| {
            Refusal::new(
                Reason::RecordVersionConflict,
                "the handle has no record of this account; enrol again",
            )
        })?;
        let last = wire::Record::decode(own.record.wire().record.clone())
            .map_err(|_| Error::Field("a record does not parse"))?;
        let address = own.open(&keyed.1);
        if let (RecordChange::Move(node), Ok(address)) = (&change, &address)
            && address.node == *node
        {
            return Ok(Publication { index: own.index, pending: false });
        }
        let next = Next {
            words: Words {
                attestation: last.attestation.unwrap_or_default(),
                second: last.second_attestation,
            },
            two_authorities: match change {
                RecordChange::TwoAuthorities(two) => two,
                _ => last.two_authorities,
            },
            close: change == RecordChange::Close,
            node: match change {
                RecordChange::Move(node) => node,
                RecordChange::Close => self.client.node(),
                _ => address?.node,
            },
            after: Some((own.record.version(), own.index)),
        };
        self.put(asked, keyed, next).await
    }

    /// Ends the operation that is under way, if there is one. `Some`: it was asked for
    /// the same.
    async fn resume(&self, asked: [u8; 32]) -> Result<Option<Publication>, Refusal> {
        let Some(kept) = self.call(under_way).await? else { return Ok(None) };
        let same = kept.asked == asked;
        match self.hand_in(kept.record).await {
            Ok(publication) if same => Ok(Some(publication)),
            Ok(_) => self.call(forget).await.map(|()| None),
            Err(refusal) if same || self.call(under_way).await?.is_some() => Err(refusal),
            // It was refused: that was for another caller to hear.
            Err(_) => Ok(None),
        }
    }

    async fn put(&self, asked: [u8; 32], keyed: Keyed, next: Next) -> Result<Publication, Refusal> {
        let make = move |tx: &mut Tx<'_>| {
            let record = sign(tx, &keyed, next)?;
            keepsake::put(tx, UNDER_WAY, &[asked.as_slice(), &record.encode_to_vec()].concat())?;
            Ok(record)
        };
        let record = self.call(make).await?;
        self.hand_in(record).await
    }

    async fn hand_in(&self, record: wire::SignedRecord) -> Result<Publication, Refusal> {
        let state = self.view.state().await?;
        let directory = match state.directory() {
            Some(directory) => directory.clone(),
            None => self.view.refresh().await?.directory().cloned().ok_or_else(|| {
                Refusal::new(Reason::DirectoryUnreachable, "the log does not name the directory's keys yet")
            })?,
        };
        let (sealed, answer) = operation::seal(record.clone(), &directory.hpke_public_key)?;
        let response = self.relay(&state, sealed).await?;
        match read_publication(answer.open(&response)?) {
            // Handed in again it will count.
            Ok(publication) if publication.pending => Ok(publication),
            Ok(publication) => {
                let handle = *SignedRecord::try_from(record.clone())?.handle();
                self.call(move |tx| stand(tx, &record, publication.index)).await?;
                self.wait_until_shown(&handle, publication.index).await?;
                self.call(forget).await?;
                Ok(publication)
            }
            Err(refusal) => {
                // Decided: the next attempt is another operation.
                self.call(forget).await?;
                Err(refusal)
            }
        }
    }

    /// Through another member's node, drawn at random; through the home node if that
    /// does not answer: by the time of the entry, a home could tell whose record it is.
    async fn relay(
        &self,
        state: &FederationState,
        sealed: wire::PublishRequest,
    ) -> Result<wire::PublishResponse, Refusal> {
        let home = self.client.node();
        let mut others: Vec<_> = state.members().filter(|member| member.administration != home).collect();
        others.sort_by_cached_key(|_| self.entropy.array::<8>());
        for member in others.into_iter().take(OTHER_RELAYS) {
            let through = NodeClient::publish_through(member, Arc::clone(&self.credentials), &sealed);
            match through.await {
                Ok(response) => return Ok(response),
                Err(refusal) => tracing::debug!(reason = %refusal.reason, "endpoint.relay.fail"),
            }
        }
        self.client.publish(&sealed).await
    }

    async fn wait_until_shown(&self, handle: &Handle, index: u64) -> Result<(), Refusal> {
        let since = Instant::now();
        loop {
            let shown = self.look(handle, index).await?;
            if shown.root > index {
                // A later one was put since, perhaps by a repetition of this very call.
                return match shown.own? {
                    Some(own) if own.index >= index => Ok(()),
                    _ => Err(Refusal::new(
                        Reason::DirectoryMisbehaved,
                        "the directory says that it logged the record, and its map does not hold it",
                    )),
                };
            }
            if since.elapsed() > SHOWN_WITHIN {
                let message = "the record is logged; the directory's map does not show it yet";
                return Err(Refusal::new(Reason::DirectoryUnreachable, message));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Compares what the directory shows with what this device put last; raises an
    /// alarm for what it did not do itself, once for each such entry.
    pub(crate) async fn check(&self) -> Result<RecordCheck, Refusal> {
        let Some(standing) = self.call(standing).await? else { return Ok(RecordCheck::Unpublished) };
        let (state, epoch) = (self.view.state().await?, standing.record.attestation().claim().key_epoch);
        if state.evaluators().is_some_and(|current| epoch < current.key_epoch)
            && !state.key_epochs().any(|known| known.key_epoch == epoch)
        {
            return Ok(RecordCheck::Lapsed);
        }
        let shown = self.look(standing.record.handle(), standing.index).await?;
        // An old map hides what came since: a re-enrolment has only days to be ended.
        if shown.root <= standing.index || shown.age > ALARMING_AGE {
            let message = "the directory shows an old map; what came since cannot be checked";
            return Err(Refusal::new(Reason::DirectoryStale, message));
        }
        // Logged, and cut off before the answer came.
        let adopted = match (&shown.own, self.call(under_way).await?) {
            (Ok(Some(own)), Some(kept)) if *own.record.wire() == kept.record => Some(own.index),
            _ => None,
        };
        let expected = adopted.unwrap_or(standing.index);
        let (check, entry) = match (shown.own, shown.pending) {
            (Ok(Some(own)), Ok(None)) if own.index == expected => return Ok(RecordCheck::AsPublished),
            (Ok(Some(own)), pending) if own.index == expected => {
                let pending = pending.ok().flatten();
                (RecordCheck::ReEnrolment, pending.map_or(0, |pending| pending.index))
            }
            // None, another one, or one that nobody ought to believe.
            (own, _) => (RecordCheck::Changed, own.ok().flatten().map_or(0, |own| own.index)),
        };
        let kind = if check == RecordCheck::Changed { Alarm::RecordChanged } else { Alarm::ReEnrolment };
        self.call(move |tx| {
            let alarmed = format!("{} {entry}", kind.as_str()).into_bytes();
            if keepsake::get(tx, ALARMED)?.as_ref() == Some(&alarmed) {
                return Ok(());
            }
            keepsake::put(tx, ALARMED, &alarmed)?;
            alarm::raise(tx, kind, None)
        })
        .await?;
        Ok(check)
    }

    /// What stands for the handle, by a root that covers entry `after`, if there is one.
    async fn look(&self, handle: &Handle, after: u64) -> Result<Shown, Refusal> {
        let lookup = self.view.look_up(&[*handle], after).await?;
        let judge = |state: &FederationState| (lookup.own(handle, state), lookup.pending(handle, state));
        let mut judged = judge(&*self.view.state().await?);
        if judged.0.is_err() || judged.1.is_err() {
            // The authority may have been admitted since.
            judged = judge(&*self.view.refresh().await?);
        }
        let (own, pending) = judged;
        let root = lookup.roots().iter().map(|root| root.index).min().unwrap_or(0);
        let now = self.call(|tx| Ok(tx.now())).await?;
        Ok(Shown { own, pending, root, age: lookup.age(now) })
    }

    async fn call<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Tx<'_>) -> Result<T, EndpointError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.store.call(operation).await.map_err(Refusal::from)
    }
}

/// Names what was asked for.
fn asked_for(what: &[u8], how: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(what).chain_update(b"\0").chain_update(how).finalize().into()
}

fn under_way(tx: &mut Tx<'_>) -> Result<Option<UnderWay>, EndpointError> {
    let Some(kept) = keepsake::get(tx, UNDER_WAY)? else { return Ok(None) };
    let Some((asked, record)) = kept.split_first_chunk() else { return Ok(None) };
    let record = wire::SignedRecord::decode(record).map_err(EndpointError::mls("read a record operation"))?;
    Ok(Some(UnderWay { asked: *asked, record }))
}

fn sign(
    tx: &mut Tx<'_>,
    (handle, record_key): &Keyed,
    next: Next,
) -> Result<wire::SignedRecord, EndpointError> {
    let identity = identity::identity(tx)?;
    let account = identity::key(tx, OwnKey::Account)?;
    let version = next.after.map_or(1, |(version, _)| version.saturating_add(1));
    let address = Address {
        node: next.node,
        alias: identity.alias,
        credential_key: CredentialKey::try_from(identity.credential_key.as_slice()).map_err(Refusal::from)?,
    };
    let sealed_part = if next.close {
        bytes::Bytes::new()
    } else {
        address.seal(record_key, handle, version, tx.entropy()).map_err(Refusal::from)?
    };
    let draft = RecordDraft {
        handle: *handle,
        version,
        previous_index: next.after.map(|(_, index)| index),
        attestation: next.words.attestation,
        second_attestation: next.words.second,
        sealed_part,
        two_authorities: next.two_authorities,
        changed_at: tx.now(),
    };
    Ok(draft.sign(&account))
}

/// The record that this device put last: u64 index, then the record.
fn standing(tx: &mut Tx<'_>) -> Result<Option<Standing>, EndpointError> {
    let Some(kept) = keepsake::get(tx, STANDING)? else { return Ok(None) };
    let Some((index, record)) = kept.split_first_chunk::<8>() else { return Ok(None) };
    let record = wire::SignedRecord::decode(record).map_err(EndpointError::mls("read the own record"))?;
    let record = SignedRecord::try_from(record).map_err(Refusal::from)?;
    Ok(Some(Standing { index: u64::from_be_bytes(*index), record }))
}

fn stand(tx: &mut Tx<'_>, record: &wire::SignedRecord, index: u64) -> Result<(), EndpointError> {
    keepsake::put(tx, STANDING, &[index.to_be_bytes().as_slice(), &record.encode_to_vec()].concat())
}

fn forget(tx: &mut Tx<'_>) -> Result<(), EndpointError> {
    tx.sql().execute("DELETE FROM keepsakes WHERE name = ?1", [UNDER_WAY])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Device;
    use chancery_directory_core::RecordKey;

    #[tokio::test]
    async fn the_next_version_says_what_was_asked_for() {
        let (device, identity) = Device::person(1).await;
        let keyed = (Handle::from_bytes([1; 32]), RecordKey::from_bytes([2; 32]));
        let make = async |after, close| {
            let keyed = keyed.clone();
            let words = Words { attestation: wire::SignedAttestation::default(), second: None };
            let node: NodeId = "elsewhere".parse().unwrap();
            let next = Next { words, two_authorities: true, close, node, after };
            let signed = device.run(move |tx| sign(tx, &keyed, next)).await;
            wire::Record::decode(signed.record).unwrap()
        };
        let first = make(None, false).await;
        assert_eq!((first.version, first.previous_index, first.two_authorities), (1, None, true));
        let opened = Address::open(&first.sealed_part, &keyed.1, &keyed.0, 1).unwrap();
        assert_eq!((opened.node.as_str(), opened.alias), ("elsewhere", identity.alias));
        let closed = make(Some((8, 41)), true).await;
        assert_eq!((closed.version, closed.previous_index, closed.closed), (9, Some(41), true));
    }

    #[tokio::test]
    async fn what_is_under_way_is_kept_with_what_it_was_asked_for() {
        let (device, _) = Device::person(1).await;
        let record = wire::SignedRecord { record: vec![1; 9].into(), signature: vec![2; 64].into() };
        let asked = asked_for(b"move", b"there");
        assert!(asked != asked_for(b"move", b"here") && asked != asked_for(b"close", b""));
        let kept = [asked.as_slice(), &record.encode_to_vec()].concat();
        device.run(move |tx| keepsake::put(tx, UNDER_WAY, &kept)).await;
        let found = device.run(under_way).await.unwrap();
        assert!(found.asked == asked && found.record == record);
        device.run(forget).await;
        assert!(device.run(under_way).await.is_none());
    }
}
