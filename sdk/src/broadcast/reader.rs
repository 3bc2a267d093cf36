//! What the home node brings a seat: the cell that it comes into, the cell's epochs, broadcasts.
//! Each is taken in one transaction: MLS, the chain of keys, and what was read.

use super::cell::{self, CellError};
use super::chain::{Chain, Wrap};
use super::seat::{self, Seat, find, lose};
use super::{BroadcastError, ContentKey, received};
use crate::alarm::{self, Alarm};
use crate::credential::AgentName;
use crate::error::EndpointError;
use crate::store::Tx;
use chancery_directory_core::manifest::{Manifest, SignedManifest, VerifiedManifest};
use chancery_proto::content::v1::CellKey;
use chancery_proto::node::v1 as wire;
use chancery_types::{SeatId, Timestamp};
use rusqlite::{OptionalExtension as _, params};
use std::time::Duration;
use zeroize::Zeroizing;

/// Most broadcasts that one seat passes over at once.
const MAX_SKIP: u64 = 10_000;
/// Longest that a key for a broadcast that has not come is kept.
const SKIPPED_FOR: Duration = Duration::from_hours(400 * 24);
/// A home node forgets wraps by its own clock.
const SKEW: Duration = Duration::from_mins(5);
/// One that is forged comes again with each reading.
const FORGED_AGAIN: Duration = Duration::from_hours(1);

/// What taking something for a seat came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was taken, or is nothing.
    Done,
    /// There is a content to be fetched.
    Broadcast,
    /// The home node is to be read anew, from where the seat stands now.
    Reread,
    /// Seats are to be taken or given up, and the home node is to be read anew.
    Seats,
}

/// The cell that a seat is in: whether it is the agent's.
///
/// # Errors
/// The store's or MLS's; [`crate::credential::CredentialError::UnknownAgent`].
pub fn admitted(
    tx: &mut Tx<'_>,
    seat: &SeatId,
    agent: &AgentName,
    admission: &wire::Admission,
) -> Result<Taken, EndpointError> {
    let Some(seat) = find(tx, seat)?.filter(|seat| seat.group.is_none()) else { return Ok(Taken::Done) };
    let joined = tx.part(|tx| {
        let Some((id, mut group)) = cell::join(tx, agent, &admission.welcome, &admission.tree)? else {
            return Ok(None);
        };
        let key = cell::read_key(tx, &mut group, &admission.key)?;
        Ok::<_, CellError>(Some((id, group.epoch().as_u64(), key)))
    });
    let Some((group, epoch, key)) = judge(tx, joined)?.flatten() else {
        lose(tx, &seat)?;
        return Ok(Taken::Seats);
    };
    let Some(chain) = first_chain(epoch, &key) else {
        alarm::raise(tx, Alarm::ForbiddenInCell, None)?;
        lose(tx, &seat)?;
        return Ok(Taken::Seats);
    };
    let mut broadcast = chain.next() - 1;
    for earlier in &key.earlier {
        let (hash, content_key) =
            (<[u8; 32]>::try_from(&*earlier.manifest_hash), <[u8; 32]>::try_from(&*earlier.content_key));
        let (Ok(hash), Ok(content_key)) = (hash, content_key) else { continue };
        if earlier.sequence == 0 || earlier.sequence >= chain.next() {
            continue;
        }
        broadcast = broadcast.min(earlier.sequence - 1);
        tx.sql().execute(
            "INSERT OR REPLACE INTO earlier_keys (channel, sequence, manifest_hash, content_key) \
             VALUES (?1, ?2, ?3, ?4)",
            params![seat.channel.as_bytes(), earlier.sequence, hash, content_key],
        )?;
    }
    tx.sql().execute(
        "UPDATE seats SET state = 2, group_id = ?2, change = ?3, broadcast = ?4, first = ?5 WHERE seat = ?1",
        params![seat.id.as_bytes(), group.as_bytes(), admission.sequence, broadcast, chain.next()],
    )?;
    set_chain(tx, &seat.id, &chain)?;
    if seat::moved(tx, &seat.channel)? {
        return Ok(Taken::Seats);
    }
    Ok(if key.earlier.is_empty() { Taken::Done } else { Taken::Reread })
}

/// The cell goes to its next epoch.
///
/// # Errors
/// The store's, or MLS's.
pub fn step(tx: &mut Tx<'_>, seat: &SeatId, step: &wire::CellStep) -> Result<Taken, EndpointError> {
    let Some(seat) = find(tx, seat)? else { return Ok(Taken::Done) };
    let Some(id) = seat.group.filter(|_| step.sequence > seat.change) else { return Ok(Taken::Done) };
    let stepped = tx.part(|tx| {
        let mut group = tx.take_group(&id)?;
        if !cell::step(tx, &mut group, &step.commit)? {
            return Ok(None);
        }
        let key = cell::read_key(tx, &mut group, &step.key)?;
        Ok::<_, CellError>(Some((group.epoch().as_u64(), key)))
    });
    let Some((epoch, key)) = judge(tx, stepped)?.flatten() else {
        lose(tx, &seat)?;
        return Ok(Taken::Seats);
    };
    let before = chain(tx, &seat.id)?;
    let follows = |next: &Chain, old: &Chain| (0..=MAX_SKIP).contains(&next.next().wrapping_sub(old.next()));
    let next = first_chain(epoch, &key).filter(|next| before.as_ref().is_none_or(|old| follows(next, old)));
    let Some(next) = next else {
        alarm::raise(tx, Alarm::ForbiddenInCell, None)?;
        lose(tx, &seat)?;
        return Ok(Taken::Seats);
    };
    if let Some(mut old) = before {
        // Broadcasts of the old epoch that have not come may yet.
        skip_to(tx, &seat, &mut old, next.next(), tx.now().after(SKIPPED_FOR))?;
    }
    tx.sql().execute(
        "UPDATE seats SET change = ?2 WHERE seat = ?1",
        params![seat.id.as_bytes(), step.sequence],
    )?;
    set_chain(tx, &seat.id, &next)?;
    if key.merges {
        seat::moves(tx, &seat)?;
        return Ok(Taken::Seats);
    }
    Ok(Taken::Done)
}

/// The chain of an epoch, by what its agent says first; `None`: it says nothing of the kind, or names
/// a sequence that none can have.
pub(super) fn first_chain(epoch: u64, key: &CellKey) -> Option<Chain> {
    let bytes = <[u8; 32]>::try_from(&*key.key).ok()?;
    let is_one = (1..=i64::MAX.unsigned_abs()).contains(&key.first_broadcast);
    is_one.then(|| Chain::new(epoch, key.first_broadcast, bytes))
}

/// A broadcast whose manifest is in the log. The seat goes on behind it whether or not it opens; its
/// chain of keys only when it does.
///
/// # Errors
/// The store's.
pub fn broadcast(
    tx: &mut Tx<'_>,
    seat: &SeatId,
    verified: &VerifiedManifest,
    wrap: &[u8],
) -> Result<Taken, EndpointError> {
    take(tx, seat, &verified.signed, wrap)
}

/// The same, of a manifest that is known to be in the log.
///
/// # Errors
/// The store's.
pub fn take(
    tx: &mut Tx<'_>,
    seat: &SeatId,
    signed: &SignedManifest,
    wrap: &[u8],
) -> Result<Taken, EndpointError> {
    let Some(seat) = find(tx, seat)? else { return Ok(Taken::Done) };
    let said = signed.manifest();
    if said.channel != seat.channel {
        return Ok(Taken::Done);
    }
    // One that was passed over may still come.
    if said.sequence <= seat.broadcast && skipped(tx, &seat, said.sequence)?.is_none() {
        return Ok(Taken::Done);
    }
    let previous = said.sequence.checked_sub(1).filter(|previous| *previous > 0);
    let previous =
        previous.map(|previous| received::hash(tx, &said.channel, previous)).transpose()?.flatten();
    if previous.is_some_and(|previous| previous != said.previous_hash) {
        alarm::raise(tx, Alarm::ForgedBroadcast, None)?;
    }
    tx.sql().execute(
        "UPDATE seats SET broadcast = max(broadcast, ?2) WHERE seat = ?1",
        params![seat.id.as_bytes(), said.sequence],
    )?;
    if is_withheld(tx, &seat, said, wrap) {
        alarm::raise(tx, Alarm::BroadcastWithheld, None)?;
    }
    let opened = match earlier_key(tx, signed)? {
        Some(key) => Ok(Some(key)),
        None => unwrap(tx, &seat, signed, wrap)?,
    };
    if seat.moves {
        seat::moved(tx, &seat.channel)?;
    }
    match opened {
        Ok(Some(key)) => {
            received::put(tx, &seat.owner, signed, &key)?;
            Ok(Taken::Broadcast)
        }
        Ok(None) => Ok(Taken::Done),
        Err(error) => {
            tracing::warn!(%error, "endpoint.broadcast.reject");
            alarm::raise(tx, Alarm::FalseBroadcast, None)?;
            Ok(Taken::Done)
        }
    }
}

/// Whether something is kept back from a seat that is in its cell for it: a broadcast before this one, or
/// the wrap of this one. Home nodes keep the places of what has expired, and agents leave out no cell.
fn is_withheld(tx: &Tx<'_>, seat: &Seat, said: &Manifest, wrap: &[u8]) -> bool {
    let Some(first) = seat.first else { return false };
    let is_over = said.expires_at <= tx.now().after(SKEW);
    (seat.broadcast + 1).max(first) < said.sequence || (said.sequence >= first && wrap.is_empty() && !is_over)
}

/// A broadcast that its channel's agent did not sign, or the log does not hold. The seat stays where it is:
/// whatever sequence the forgery names, the genuine ones are waited for.
///
/// # Errors
/// The store's.
pub fn forged(tx: &Tx<'_>) -> Result<Taken, EndpointError> {
    alarm::raise_after(tx, Alarm::ForgedBroadcast, FORGED_AGAIN)?;
    Ok(Taken::Done)
}

/// The content key that the agent granted to a late joiner.
fn earlier_key(tx: &Tx<'_>, signed: &SignedManifest) -> Result<Option<ContentKey>, EndpointError> {
    let said = signed.manifest();
    let row: Option<([u8; 32], [u8; 32])> = tx
        .sql()
        .prepare_cached(
            "DELETE FROM earlier_keys WHERE channel = ?1 AND sequence = ?2 RETURNING manifest_hash, content_key",
        )?
        .query_row(params![said.channel.as_bytes(), said.sequence], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((hash, key)) = row else { return Ok(None) };
    let key = ContentKey::from_bytes(*Zeroizing::new(key));
    Ok(Some(key).filter(|key| hash == signed.hash() && key.commitment() == said.key_commitment))
}

/// Opens the wrap of a broadcast. `None`: there is none for this seat.
fn unwrap(
    tx: &Tx<'_>,
    seat: &Seat,
    signed: &SignedManifest,
    wrap: &[u8],
) -> Result<Result<Option<ContentKey>, BroadcastError>, EndpointError> {
    let said = signed.manifest();
    let Some(mut now) = chain(tx, &seat.id)? else { return Ok(Ok(None)) };
    let Ok(wrap) = Wrap::try_from(wrap) else {
        return Ok(if wrap.is_empty() { Ok(None) } else { Err(BroadcastError::WrapDoesNotOpen) });
    };
    if said.sequence < now.next() {
        let Some(mut skipped) = skipped(tx, seat, said.sequence)? else { return Ok(Ok(None)) };
        let opened = skipped.take(signed).and_then(|key| key.open(&wrap));
        if opened.is_ok() {
            forget_skipped(tx, seat, said.sequence)?;
        }
        return Ok(opened.map(Some));
    }
    if said.sequence - now.next() > MAX_SKIP {
        return Ok(Err(BroadcastError::WrongPlace));
    }
    skip_to(tx, seat, &mut now, said.sequence, received::kept_until(said))?;
    let mut after = now.clone();
    let opened = after.take(signed).and_then(|key| key.open(&wrap));
    // A device advances only when the key is the one that the manifest commits to.
    set_chain(tx, &seat.id, if opened.is_ok() { &after } else { &now })?;
    Ok(opened.map(Some))
}

/// Takes keys off the chain up to a broadcast, and keeps them for those that have not come.
fn skip_to(
    tx: &Tx<'_>,
    seat: &Seat,
    chain: &mut Chain,
    sequence: u64,
    until: Timestamp,
) -> Result<(), EndpointError> {
    let mut put = tx.sql().prepare_cached(
        "INSERT OR REPLACE INTO skipped_keys (seat, sequence, epoch, key, kept_until_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    while chain.next() < sequence {
        let passed = chain.skip().map_err(|_| EndpointError::Mls("pass over a broadcast"))?;
        put.execute(params![
            seat.id.as_bytes(),
            passed.next(),
            passed.epoch(),
            passed.key(),
            until.millis()
        ])?;
    }
    Ok(())
}

fn skipped(tx: &Tx<'_>, seat: &Seat, sequence: u64) -> Result<Option<Chain>, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached("SELECT epoch, key FROM skipped_keys WHERE seat = ?1 AND sequence = ?2")?
        .query_row(params![seat.id.as_bytes(), sequence], |row| {
            Ok(Chain::new(row.get(0)?, sequence, *Zeroizing::new(row.get::<_, [u8; 32]>(1)?)))
        })
        .optional()?)
}

fn forget_skipped(tx: &Tx<'_>, seat: &Seat, sequence: u64) -> Result<(), EndpointError> {
    tx.sql().execute(
        "DELETE FROM skipped_keys WHERE seat = ?1 AND (sequence = ?2 OR kept_until_ms <= ?3)",
        params![seat.id.as_bytes(), sequence, tx.now().millis()],
    )?;
    Ok(())
}

/// The home node knows the seat no more, or it is out of its cell: another one is to be taken.
///
/// # Errors
/// The store's.
pub fn ended(tx: &Tx<'_>, seat: &SeatId) -> Result<Taken, EndpointError> {
    let Some(seat) = find(tx, seat)? else { return Ok(Taken::Done) };
    lose(tx, &seat)?;
    Ok(Taken::Seats)
}

/// What is forbidden in a cell raises an alarm and is nothing.
fn judge<T>(tx: &Tx<'_>, result: Result<T, CellError>) -> Result<Option<T>, EndpointError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(CellError::Own(error)) => Err(error),
        Err(CellError::Forbidden(what)) => {
            tracing::warn!(what, "endpoint.cell.reject");
            alarm::raise(tx, Alarm::ForbiddenInCell, None)?;
            Ok(None)
        }
    }
}

fn chain(tx: &Tx<'_>, seat: &SeatId) -> Result<Option<Chain>, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached("SELECT epoch, next, key FROM seats WHERE seat = ?1 AND key IS NOT NULL")?
        .query_row([seat.as_bytes()], |row| {
            Ok(Chain::new(row.get(0)?, row.get(1)?, *Zeroizing::new(row.get::<_, [u8; 32]>(2)?)))
        })
        .optional()?)
}

fn set_chain(tx: &Tx<'_>, seat: &SeatId, chain: &Chain) -> Result<(), EndpointError> {
    tx.sql()
        .prepare_cached("UPDATE seats SET epoch = ?2, next = ?3, key = ?4 WHERE seat = ?1")?
        .execute(params![seat.as_bytes(), chain.epoch(), chain.next(), chain.key()])?;
    Ok(())
}
