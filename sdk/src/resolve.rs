//! From identifiers to verified addresses: blinded evaluation, lookup by
//! prefix, and the record checked up to the log. Handles are kept (only new
//! evaluations count against a quota), records for an hour.

use crate::directory_view::DirectoryView;
use crate::error::EndpointError;
use crate::keepsake;
use crate::node_client::NodeClient;
use crate::peer::{self, Peer};
use crate::store::{EndpointStore, Tx};
use chancery_directory_core::attestation::SchemeName;
use chancery_directory_core::lookup::ALARMING_AGE;
use chancery_directory_core::{
    Blinded, Error, EvaluatorEpoch, EvaluatorShare, FederationState, RecordKey, VerifiedLookup,
    VerifiedRecord,
};
use chancery_types::{Alias, Entropy, Handle, Identifier, Reason, Refusal};
use rusqlite::{OptionalExtension as _, params};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// Identifiers in one evaluation.
const EVALUATIONS: usize = 1000;
/// Prefixes in one lookup.
const PREFIXES: usize = 256;
/// How long a record is believed without looking again …
const RECORD_AGE: Duration = Duration::from_hours(1);
/// … and how long an absence.
const ABSENCE_AGE: Duration = Duration::from_secs(60);
const SECRET: &str = "handle cache secret";

/// Somebody who can be written to.
#[derive(Clone)]
pub struct Found {
    /// Where.
    pub peer: Peer,
    /// Enrolled under the former key epoch, and not migrated yet.
    pub stale: bool,
}

/// Whether somebody can be written to.
pub(crate) type Resolved = Result<Found, Refusal>;

/// Which key epoch's handles.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Epoch {
    Current,
    /// The one before, while people migrate.
    Former,
}

impl Epoch {
    fn of(self, state: &FederationState) -> Option<&EvaluatorEpoch> {
        match self {
            Self::Current => state.evaluators(),
            Self::Former => state.former_evaluators(),
        }
    }
}

/// Resolves through the home node.
pub(crate) struct Resolver {
    pub(crate) client: NodeClient,
    pub(crate) store: EndpointStore,
    pub(crate) view: Arc<DirectoryView>,
    pub(crate) entropy: Arc<dyn Entropy>,
}

/// A handle with the key to its record's sealed part.
pub(crate) type Keyed = (Handle, RecordKey);

impl Resolver {
    /// Addresses of identifiers, in order; RECIPIENT_ABSENT for those that
    /// nobody enrolled.
    ///
    /// # Errors
    /// What concerns all of them: directory, evaluators or node.
    pub(crate) async fn resolve(&self, identifiers: &[Identifier]) -> Result<Vec<Resolved>, Refusal> {
        self.resolve_as(identifiers, false).await
    }

    /// Who is absent may not have migrated yet.
    async fn resolve_as(&self, identifiers: &[Identifier], anew: bool) -> Result<Vec<Resolved>, Refusal> {
        let mut resolved = self.resolve_in(Epoch::Current, identifiers, anew).await?;
        if Epoch::Former.of(&*self.view.state().await?).is_none() {
            return Ok(resolved);
        }
        let is_absent =
            |at: &usize| matches!(&resolved[*at], Err(refusal) if refusal.reason == Reason::RecipientAbsent);
        let absent: Vec<usize> = (0..resolved.len()).filter(is_absent).collect();
        let asked: Vec<_> = absent.iter().map(|at| identifiers[*at].clone()).collect();
        let found = match self.resolve_in(Epoch::Former, &asked, anew).await {
            Ok(found) => found,
            // Whether they are there is not known.
            Err(refusal) => vec![Err(refusal); asked.len()],
        };
        for (at, found) in absent.into_iter().zip(found) {
            resolved[at] = found.map(|found| Found { stale: true, ..found });
        }
        Ok(resolved)
    }

    async fn resolve_in(
        &self,
        epoch: Epoch,
        identifiers: &[Identifier],
        anew: bool,
    ) -> Result<Vec<Resolved>, Refusal> {
        let (_, keyed) = self.keyed(identifiers, epoch).await?;
        let schemes = identifiers
            .iter()
            .map(|identifier| identifier.scheme().as_str().parse::<SchemeName>())
            .collect::<Result<Vec<_>, _>>()?;
        let wanted: Vec<_> = keyed.into_iter().zip(schemes).collect();
        let known = match anew {
            true => vec![None; wanted.len()],
            false => self.recent(wanted.iter().map(|((handle, _), _)| *handle).collect()).await?,
        };
        let missing: Vec<_> = wanted
            .iter()
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(wanted, _)| wanted)
            .collect();
        let mut looked_up = self.look_up(&missing, anew).await?.into_iter();
        known
            .into_iter()
            .map(|known| match known {
                Some(resolved) => Ok(resolved),
                None => looked_up
                    .next()
                    .ok_or_else(|| Refusal::new(Reason::Internal, "a lookup has too few results")),
            })
            .collect()
    }

    /// As [`Resolver::resolve`], whatever was believed of them.
    pub(crate) async fn resolve_anew(&self, identifiers: &[Identifier]) -> Result<Vec<Resolved>, Refusal> {
        self.resolve_as(identifiers, true).await
    }

    /// Handles of identifiers in a key epoch with their record keys, in order, and the
    /// epoch's number.
    ///
    /// # Errors
    /// What concerns all of them: evaluators, directory or node.
    pub(crate) async fn keyed(
        &self,
        identifiers: &[Identifier],
        epoch: Epoch,
    ) -> Result<(u32, Vec<Keyed>), Refusal> {
        let state = self.view.state().await?;
        match self.handles(&state, identifiers, epoch).await {
            // A new key epoch, generation or evaluator: once more, by the log as it stands now.
            Err(refusal)
                if matches!(refusal.reason, Reason::WrongKeyEpoch | Reason::DirectoryUnreachable) =>
            {
                let state = self.view.refresh().await?;
                self.handles(&state, identifiers, epoch).await
            }
            keyed => keyed,
        }
    }

    /// As kept, or evaluated.
    async fn handles(
        &self,
        state: &FederationState,
        identifiers: &[Identifier],
        epoch: Epoch,
    ) -> Result<(u32, Vec<Keyed>), Refusal> {
        let none = || Refusal::new(Reason::DirectoryUnreachable, "the log names no evaluators yet");
        let epoch = epoch.of(state).ok_or_else(none)?;
        let inputs = self.cache_inputs(epoch, identifiers).await?;
        let asked = inputs.clone();
        let mut keyed: Vec<Option<Keyed>> =
            self.call(move |tx| asked.iter().map(|input| cached(tx, input)).collect()).await?;
        let missing: Vec<usize> = (0..keyed.len()).filter(|at| keyed[*at].is_none()).collect();
        for chunk in missing.chunks(EVALUATIONS) {
            let batch: Vec<Identifier> = chunk.iter().map(|at| identifiers[*at].clone()).collect();
            let evaluated = self.evaluate(epoch, batch).await?;
            let kept: Vec<_> =
                chunk.iter().zip(&evaluated).map(|(at, keyed)| (inputs[*at], keyed.clone())).collect();
            self.call(move |tx| kept.iter().try_for_each(|(input, keyed)| keep(tx, input, keyed))).await?;
            for (at, evaluated) in chunk.iter().zip(evaluated) {
                keyed[*at] = Some(evaluated);
            }
        }
        let missing = || Refusal::new(Reason::Internal, "a handle is missing");
        let keyed = keyed.into_iter().map(|keyed| keyed.ok_or_else(missing));
        Ok((epoch.key_epoch, keyed.collect::<Result<_, _>>()?))
    }

    /// Names of cache rows: nobody without the store can test a guess against them.
    async fn cache_inputs(
        &self,
        epoch: &EvaluatorEpoch,
        identifiers: &[Identifier],
    ) -> Result<Vec<[u8; 32]>, Refusal> {
        let secret = self.call(cache_secret).await?;
        Ok(identifiers
            .iter()
            .map(|identifier| {
                Sha256::new()
                    .chain_update(&secret)
                    .chain_update(epoch.key_epoch.to_be_bytes())
                    .chain_update(identifier.oprf_input().as_slice())
                    .finalize()
                    .into()
            })
            .collect())
    }

    /// Asks as many evaluators as the epoch needs, and others in the place of
    /// those that do not answer or answer wrongly.
    async fn evaluate(
        &self,
        epoch: &EvaluatorEpoch,
        identifiers: Vec<Identifier>,
    ) -> Result<Vec<Keyed>, Refusal> {
        let entropy = Arc::clone(&self.entropy);
        let blinded = Arc::new(blocking(move || Blinded::new(&identifiers, &*entropy)).await??);
        let request = blinded.request(epoch);
        let mut others = in_any_order(&epoch.evaluators, &*self.entropy).into_iter();
        let (mut answers, mut last) = (Vec::new(), None);
        loop {
            let missing = (epoch.threshold as usize).saturating_sub(answers.len());
            let asked: Vec<_> = others.by_ref().take(missing).collect();
            if asked.len() < missing {
                return Err(last.unwrap_or_else(|| {
                    Refusal::new(Reason::DirectoryUnreachable, "too few evaluators are in force")
                }));
            }
            let calls = asked.iter().map(|share| self.client.evaluate(&share.evaluator, &request));
            for (share, answer) in asked.iter().zip(futures::future::join_all(calls).await) {
                match answer {
                    // Whoever answers for another would have it named in its place.
                    Ok(answer) if answer.index == share.index => answers.push(answer),
                    Ok(_) => last = Some(misanswered()),
                    Err(refusal) => last = Some(refusal),
                }
            }
            if answers.len() < epoch.threshold as usize {
                continue;
            }
            let (blinded, given, epoch) = (Arc::clone(&blinded), answers.clone(), epoch.clone());
            match blocking(move || blinded.finish(&given, &epoch)).await? {
                Err(Error::WrongEvaluation { index, why }) => {
                    tracing::warn!(index, why, "endpoint.evaluate.wrong");
                    answers.retain(|answer| answer.index != index);
                    last = Some(Error::WrongEvaluation { index, why }.into());
                }
                finished => return Ok(finished?),
            }
        }
    }

    async fn recent(&self, handles: Vec<Handle>) -> Result<Vec<Option<Resolved>>, Refusal> {
        self.call(move |tx| handles.iter().map(|handle| recent(tx, handle)).collect()).await
    }

    async fn look_up(&self, wanted: &[&(Keyed, SchemeName)], anew: bool) -> Result<Vec<Resolved>, Refusal> {
        let mut state = self.view.state().await?;
        let mut found = Vec::with_capacity(wanted.len());
        let mut chunks: Vec<_> = wanted.chunks(PREFIXES).rev().collect();
        while let Some(chunk) = chunks.pop() {
            let handles: Vec<Handle> = chunk.iter().map(|((handle, _), _)| *handle).collect();
            let mut verified = match self.view.look_up(&handles, 0).await {
                // The places are large: fewer at once.
                Err(refusal) if refusal.reason == Reason::TooLarge && chunk.len() > 1 => {
                    let (first, second) = chunk.split_at(chunk.len() / 2);
                    chunks.extend([second, first]);
                    continue;
                }
                verified => verified?,
            };
            if anew || handles.iter().any(|handle| !verified.holds(handle)) {
                // The node may have kept them from before somebody enrolled or moved.
                let newest = verified.roots().iter().map(|root| root.index).max().unwrap_or(0);
                verified = self.view.look_up(&handles, newest).await?;
            }
            let is_stale = verified.age(self.call(|tx| Ok(tx.now())).await?) > ALARMING_AGE;
            let schemes = chunk.iter().map(|((handle, _), scheme)| (*handle, scheme.clone())).collect();
            let (mut records, verified) = find_all(verified, &state, schemes).await?;
            if records.iter().any(Result::is_err) {
                // The authority may have been admitted since.
                state = self.view.refresh().await?;
                let schemes = chunk.iter().map(|((handle, _), scheme)| (*handle, scheme.clone())).collect();
                (records, _) = find_all(verified, &state, schemes).await?;
            }
            for (((handle, key), _), record) in chunk.iter().zip(records) {
                let resolved = match record {
                    Err(error) => Err(error.into()),
                    Ok(None) if is_stale => Err(stale()),
                    Ok(None) => Err(absent()),
                    Ok(Some(record)) => record.open(key).map_err(Refusal::from).map(|address| {
                        let credential_key = *address.credential_key.as_bytes();
                        Found {
                            peer: Peer { alias: address.alias, node: address.node, credential_key },
                            stale: false,
                        }
                    }),
                };
                found.push((*handle, resolved));
            }
        }
        let kept = found.clone();
        self.call(move |tx| kept.iter().try_for_each(|(handle, resolved)| keep_record(tx, handle, resolved)))
            .await?;
        Ok(found.into_iter().map(|(_, resolved)| resolved).collect())
    }

    async fn call<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Tx<'_>) -> Result<T, EndpointError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.store.call(operation).await.map_err(Refusal::from)
    }
}

type Records = Vec<Result<Option<VerifiedRecord>, Error>>;

/// Takes records out, where that holds up nobody.
async fn find_all(
    verified: VerifiedLookup,
    state: &Arc<FederationState>,
    wanted: Vec<(Handle, SchemeName)>,
) -> Result<(Records, VerifiedLookup), Refusal> {
    let state = Arc::clone(state);
    blocking(move || (verified.find_all(&wanted, &state), verified)).await
}

/// So that all evaluators get their part of the work.
fn in_any_order<'a>(shares: &'a [EvaluatorShare], entropy: &dyn Entropy) -> Vec<&'a EvaluatorShare> {
    let mut drawn: Vec<_> = shares.iter().map(|share| (entropy.array::<8>(), share)).collect();
    drawn.sort_by_key(|(draw, _)| *draw);
    drawn.into_iter().map(|(_, share)| share).collect()
}

fn misanswered() -> Refusal {
    Refusal::new(Reason::WrongEvaluation, "an evaluator answered for another")
}

/// Curve arithmetic for a whole batch would hold up the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Refusal::new(Reason::Internal, "a computation was interrupted"))
}

fn absent() -> Refusal {
    Refusal::new(Reason::RecipientAbsent, "nobody enrolled this identifier")
}

/// An old map does not say who has enrolled since.
fn stale() -> Refusal {
    let message = "nobody had enrolled this identifier when the directory was last heard of";
    Refusal::new(Reason::DirectoryStale, message)
}

fn cache_secret(tx: &mut Tx<'_>) -> Result<Vec<u8>, EndpointError> {
    if let Some(secret) = keepsake::get(tx, SECRET)? {
        return Ok(secret);
    }
    let secret: [u8; 32] = tx.entropy().array();
    keepsake::put(tx, SECRET, &secret)?;
    Ok(secret.to_vec())
}

fn cached(tx: &Tx<'_>, input: &[u8; 32]) -> Result<Option<Keyed>, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached("SELECT handle, record_key FROM handles WHERE input = ?1")?
        .query_row([input], |row| Ok((Handle::from_bytes(row.get(0)?), RecordKey::from_bytes(row.get(1)?))))
        .optional()?)
}

/// The handle and its record key, as once evaluated.
pub(crate) fn keyed_of(tx: &Tx<'_>, handle: &Handle) -> Result<Keyed, EndpointError> {
    let key = tx
        .sql()
        .query_row("SELECT record_key FROM handles WHERE handle = ?1", [handle.as_bytes()], |row| row.get(0))
        .optional()?;
    let key = key.ok_or(EndpointError::NotPossible("the key of the own record is not there"))?;
    Ok((*handle, RecordKey::from_bytes(key)))
}

fn keep(tx: &Tx<'_>, input: &[u8; 32], (handle, key): &Keyed) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached("INSERT OR REPLACE INTO handles (input, handle, record_key) VALUES (?1, ?2, ?3)")?
        .execute(params![input, handle.as_bytes(), key.as_bytes()])?;
    Ok(())
}

fn recent(tx: &Tx<'_>, handle: &Handle) -> Result<Option<Resolved>, EndpointError> {
    let row: Option<(Option<[u8; 16]>, i64)> = tx
        .sql()
        .prepare_cached("SELECT alias, checked_at_ms FROM records WHERE handle = ?1")?
        .query_row([handle.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((alias, checked_at)) = row else { return Ok(None) };
    let age = tx.now().since(chancery_types::Timestamp::from_millis(checked_at));
    match alias.map(Alias::from_bytes) {
        Some(alias) if age < RECORD_AGE => {
            Ok(peer::find(tx, alias)?.map(|peer| Ok(Found { peer, stale: false })))
        }
        None if age < ABSENCE_AGE => Ok(Some(Err(absent()))),
        _ => Ok(None),
    }
}

fn keep_record(tx: &Tx<'_>, handle: &Handle, resolved: &Resolved) -> Result<(), EndpointError> {
    let alias = match resolved {
        Ok(found) => {
            peer::put(tx, &found.peer)?;
            Some(*found.peer.alias.as_bytes())
        }
        Err(refusal) if refusal.reason == Reason::RecipientAbsent => None,
        // A record that is not to be believed is looked at again each time.
        Err(_) => return Ok(()),
    };
    tx.sql()
        .prepare_cached("INSERT OR REPLACE INTO records (handle, alias, checked_at_ms) VALUES (?1, ?2, ?3)")?
        .execute(params![handle.as_bytes(), alias, tx.now().millis()])?;
    Ok(())
}
