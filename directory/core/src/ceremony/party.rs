//! One evaluator's part in a ceremony. Its [`Secret`] and its dealing are kept
//! by the caller from the first round to the last, so that an evaluator that
//! starts again says the same again; then they are erased.

use super::message::{Content, sign};
use super::transcript::{Dealings, Outcome, possession_context};
use super::{Ceremony, Joins, share};
use crate::Error;
use crate::keys::SigningKey;
use crate::oprf::SecretKey;
use crate::possession::Possession;
use crate::threshold::{Polynomial, is_share, join_shares};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::Entropy;
use std::fmt;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// What an evaluator keeps to itself during one ceremony.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new one.
    pub fn random(entropy: &dyn Entropy) -> Self {
        Self(entropy.array())
    }

    /// From where it was kept.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// To be kept, sealed.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Round 1: the keys for this party's shares.
///
/// # Errors
/// Never.
pub fn join(
    ceremony: &Ceremony,
    party: u32,
    secret: &Secret,
    key: &SigningKey,
) -> Result<wire::SignedCeremonyMessage, Error> {
    let public = |dealer: u32| {
        let (_, public) = share::key_pair(&*share::seed(&secret.0, ceremony, dealer)?)?;
        Ok(Bytes::copy_from_slice(&public))
    };
    let share_keys = ceremony.dealers().iter().map(|d| public(d.index)).collect::<Result<_, Error>>()?;
    Ok(sign(ceremony, party, Content::Join(wire::CeremonyJoin { share_keys }), key))
}

/// Round 2: deals `held`, the share in force, anew; or in generation 1, where
/// there is none, a random part of the key. Different each time: whoever deals
/// twice equivocates, so the first dealing is kept and shown again.
///
/// # Errors
/// Somebody's key is not usable, or `held` is not what the ceremony deals.
pub fn deal(
    ceremony: &Ceremony,
    dealer: u32,
    held: Option<&SecretKey>,
    joins: &Joins,
    key: &SigningKey,
    entropy: &dyn Entropy,
) -> Result<wire::SignedCeremonyMessage, Error> {
    const NOBODY: Error = Error::Ceremony("this evaluator does not deal in the ceremony");
    let position = ceremony.dealers().iter().position(|d| d.index == dealer).ok_or(NOBODY)?;
    let expected = ceremony.dealers().get(position).and_then(|d| d.share);
    if held.map(SecretKey::public_key).transpose()? != expected {
        return Err(Error::Ceremony("the share in force is not the one that the ceremony deals anew"));
    }
    let fresh;
    let constant = match held {
        Some(held) => held,
        None => {
            fresh = SecretKey::random(entropy);
            &fresh
        }
    };
    let polynomial = Polynomial::sharing(constant, ceremony.plan().threshold, entropy);
    let mut shares = Vec::with_capacity(joins.parties().len());
    for party in joins.parties() {
        let to = party.share_keys.get(position).ok_or(NOBODY)?;
        shares.push(share::seal(&polynomial.share(party.index), to, ceremony, dealer, party.index)?);
    }
    let possession = Possession::prove(constant, &possession_context(ceremony, dealer), entropy)?;
    let dealing = wire::CeremonyDealing {
        joins: Bytes::copy_from_slice(joins.digest()),
        commitments: polynomial.commitments()?.to_wire(),
        possession: Bytes::copy_from_slice(&possession.to_bytes()),
        shares,
    };
    Ok(sign(ceremony, dealer, Content::Dealing(dealing), key))
}

/// Round 3: complains about each share that does not open or fit.
///
/// # Errors
/// This party did not join, or Never.
pub fn judge(
    ceremony: &Ceremony,
    party: u32,
    secret: &Secret,
    joins: &Joins,
    dealings: &Dealings,
    key: &SigningKey,
) -> Result<wire::SignedCeremonyMessage, Error> {
    let position = position(joins, party)?;
    let mut complaints = Vec::new();
    for dealing in &dealings.good {
        let seed = share::seed(&secret.0, ceremony, dealing.dealer)?;
        let (private, _) = share::key_pair(&seed)?;
        let sealed = dealing.shares.get(position).ok_or(Error::Internal("a dealing lacks a share"))?;
        let opened = share::open(sealed, &private, ceremony, dealing.dealer, party);
        if !opened.is_ok_and(|share| is_share(&share, party, &dealing.commitments)) {
            let seed = Bytes::copy_from_slice(&*seed);
            complaints.push(wire::CeremonyComplaint { dealer: dealing.dealer, seed });
        }
    }
    let dealings = Bytes::copy_from_slice(dealings.digest());
    Ok(sign(ceremony, party, Content::Verdict(wire::CeremonyVerdict { dealings, complaints }), key))
}

/// Round 4: this party's share of the outcome. To be stored, flushed, before
/// the conclusion is signed.
///
/// # Errors
/// This party is out, or did not complain when it should have.
pub fn share_of(
    ceremony: &Ceremony,
    party: u32,
    secret: &Secret,
    outcome: &Outcome,
) -> Result<SecretKey, Error> {
    let held =
        outcome.epoch.evaluator(party).ok_or(Error::Ceremony("this evaluator is out of the ceremony"))?;
    let position = position(&outcome.joins, party)?;
    let mut parts = Vec::with_capacity(outcome.dealings.len());
    for (weight, dealing) in &outcome.dealings {
        let (private, _) = share::key_pair(&*share::seed(&secret.0, ceremony, dealing.dealer)?)?;
        let sealed = dealing.shares.get(position).ok_or(Error::Internal("a dealing lacks a share"))?;
        parts.push((*weight, share::open(sealed, &private, ceremony, dealing.dealer, party)?));
    }
    let share = join_shares(&parts)?;
    if share.public_key()? != held.public_share {
        return Err(Error::Ceremony("the share does not fit the transcript's commitments"));
    }
    Ok(share)
}

fn position(joins: &Joins, party: u32) -> Result<usize, Error> {
    let position = joins.parties().iter().position(|p| p.index == party);
    position.ok_or(Error::Ceremony("this evaluator did not join the ceremony"))
}
