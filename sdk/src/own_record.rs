//! This account's own record: put, changed, closed, and looked after. Operations go
//! HPKE-sealed to the directory through the home node; what is under way is kept until
//! the directory has answered, so that a repetition asks for the same. Done is what
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
use chancery_directory_core::{Address, CredentialKey, FederationState, Prefix, VerifiedRecord, operation};
use chancery_kit::tls::Credentials;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Entropy, Handle, Reason, Refusal};
use prost::Message as _;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordChange {
    /// Nothing: the next version says the same. Ends a re-enrolment that is pending.
    Renew,
    /// Whether a re-enrolment takes the word of two authorities.
    TwoAuthorities(bool),
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
    /// Somebody re-enrols the handle with another account key. Unless this account
    /// renews its record, that one counts from 7 days on.
    ReEnrolment,
}

/// What this device put last.
struct Standing {
    index: u64,
    record: SignedRecord,
}

/// What the directory shows.
struct Shown {
    own: Option<VerifiedRecord>,
    pending: Option<VerifiedRecord>,
    /// Entry of the root that shows it.
    root: u64,
    /// How old that is.
    age: Duration,
}

impl OwnRecord {
    /// Puts the record of a handle, its next version, or a re-enrolment.
    pub(crate) async fn publish(&self, keyed: Keyed, words: Words) -> Result<Publication, Refusal> {
        let after = self.call(standing).await?.map_or(0, |standing| standing.index);
        let shown = self.look(&keyed.0, after).await?;
        let make = move |tx: &mut Tx<'_>| {
            let next = shown.own.as_ref().map(|own| (own.version.saturating_add(1), own.index));
            let Words { attestation, second } = words;
            let draft = (attestation, second, false);
            under_way_or(tx, |tx| sign(tx, &keyed, next, draft, false))
        };
        let record = self.call(make).await?;
        self.hand_in(record).await
    }

    /// Changes the record that this device put last.
    pub(crate) async fn change(&self, change: RecordChange) -> Result<Publication, Refusal> {
        let make = move |tx: &mut Tx<'_>| {
            let none = EndpointError::NotPossible("this device has published no record");
            let standing = standing(tx)?.ok_or(none)?;
            let last = wire::Record::decode(standing.record.wire().record.clone());
            let last = last.map_err(EndpointError::mls("read the own record"))?;
            let two = match change {
                RecordChange::TwoAuthorities(two) => two,
                RecordChange::Renew | RecordChange::Close => last.two_authorities,
            };
            let keyed = resolve::keyed_of(tx, standing.record.handle())?;
            let next = Some((standing.record.version().saturating_add(1), standing.index));
            let words = (last.attestation.unwrap_or_default(), last.second_attestation, two);
            under_way_or(tx, |tx| sign(tx, &keyed, next, words, change == RecordChange::Close))
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
                self.wait_until_shown(&handle, publication.index).await?;
                self.call(move |tx| stand(tx, &record, publication.index)).await?;
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
        let mut others: Vec<_> = state.members().filter(|member| member.administration != *home).collect();
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
                return match shown.own {
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
        let shown = self.look(standing.record.handle(), standing.index).await?;
        // An old map hides what came since: a re-enrolment has only days to be ended.
        if shown.root <= standing.index || shown.age > ALARMING_AGE {
            let message = "the directory shows an old map; what came since cannot be checked";
            return Err(Refusal::new(Reason::DirectoryStale, message));
        }
        let (check, entry) = match (shown.own, shown.pending) {
            (own, _) if own.as_ref().map(|own| own.index) != Some(standing.index) => {
                (RecordCheck::Changed, own.map_or(0, |own| own.index))
            }
            (_, Some(pending)) => (RecordCheck::ReEnrolment, pending.index),
            _ => return Ok(RecordCheck::AsPublished),
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
        let state = self.view.state().await?;
        let bits = state.lookup_prefix_bits();
        let prefix = Prefix::of(handle, bits);
        let response = self.client.lookup(vec![prefix.to_bytes().to_vec().into()], after).await?;
        let lookup = self.view.verify_lookup(response, vec![prefix], bits).await?;
        let judged = |state| Ok::<_, Refusal>((lookup.own(handle, state)?, lookup.pending(handle, state)?));
        let (own, pending) = match judged(&state) {
            // The authority may have been admitted since.
            Err(_) => judged(&*self.view.refresh().await?)?,
            Ok(judged) => judged,
        };
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

/// The record under way, or a new one that is from now on.
fn under_way_or(
    tx: &mut Tx<'_>,
    make: impl FnOnce(&mut Tx<'_>) -> Result<wire::SignedRecord, EndpointError>,
) -> Result<wire::SignedRecord, EndpointError> {
    if let Some(kept) = keepsake::get(tx, UNDER_WAY)? {
        return wire::SignedRecord::decode(&*kept).map_err(EndpointError::mls("read a record operation"));
    }
    let record = make(tx)?;
    keepsake::put(tx, UNDER_WAY, &record.encode_to_vec())?;
    Ok(record)
}

fn sign(
    tx: &mut Tx<'_>,
    (handle, record_key): &Keyed,
    next: Option<(u64, u64)>,
    (attestation, second_attestation, two_authorities): (
        wire::SignedAttestation,
        Option<wire::SignedAttestation>,
        bool,
    ),
    close: bool,
) -> Result<wire::SignedRecord, EndpointError> {
    let identity = identity::identity(tx)?;
    let account = identity::key(tx, OwnKey::Account)?;
    let version = next.map_or(1, |(version, _)| version);
    let address = Address {
        node: identity.node,
        alias: identity.alias,
        credential_key: CredentialKey::try_from(identity.credential_key.as_slice()).map_err(Refusal::from)?,
    };
    let sealed_part = if close {
        bytes::Bytes::new()
    } else {
        address.seal(record_key, handle, version, tx.entropy()).map_err(Refusal::from)?
    };
    let draft = RecordDraft {
        handle: *handle,
        version,
        previous_index: next.map(|(_, index)| index),
        attestation,
        second_attestation,
        sealed_part,
        two_authorities,
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
    keepsake::put(tx, STANDING, &[index.to_be_bytes().as_slice(), &record.encode_to_vec()].concat())?;
    forget(tx)
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
    async fn a_repetition_asks_for_the_same() {
        let (device, _) = Device::person(1).await;
        let keyed = (Handle::from_bytes([1; 32]), RecordKey::from_bytes([2; 32]));
        let make = async |next| {
            let keyed = keyed.clone();
            let words = (wire::SignedAttestation::default(), None, false);
            device.run(move |tx| under_way_or(tx, |tx| sign(tx, &keyed, next, words, false))).await
        };
        let first = make(None).await;
        assert!(make(Some((8, 41))).await == first);
        device.run(forget).await;
        let record = wire::Record::decode(make(Some((8, 41))).await.record).unwrap();
        assert_eq!((record.version, record.previous_index, record.closed), (8, Some(41), false));
    }
}
