//! What follows from all that was said: who is out and why, whose dealings
//! count, the key that results, who holds a share of it. The same for
//! everybody who reads it, auditors included.

use super::message::{Content, digest_of, hear};
use super::{Ceremony, Dealer, Fault, FaultKind, Joins, share};
use crate::possession::Possession;
use crate::threshold::{Commitments, Weight, is_share};
use crate::{Error, EvaluatorEpoch, EvaluatorShare};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::NodeId;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Dealings as received: the good ones, and who dealt badly.
#[derive(Clone, Debug)]
pub struct Dealings {
    pub(super) good: Vec<Dealing>,
    digest: [u8; 32],
    faults: Vec<Fault>,
}

#[derive(Clone, Debug)]
pub(super) struct Dealing {
    pub(super) dealer: u32,
    pub(super) commitments: Commitments,
    /// In the order of the joins.
    pub(super) shares: Vec<Bytes>,
}

impl Dealings {
    /// Verifies the dealings of a ceremony. Who dealt badly is out, with its
    /// own signature as proof.
    ///
    /// # Errors
    /// Whoever carried the messages is wrong: one is not a dealer's or not
    /// signed by it, not in order, or there twice.
    pub fn verify(
        ceremony: &Ceremony,
        joins: &Joins,
        dealings: &[wire::SignedCeremonyMessage],
    ) -> Result<Self, Error> {
        let mut seen: Vec<(u32, [u8; 32])> = Vec::new();
        let mut good: BTreeMap<u32, Dealing> = BTreeMap::new();
        let mut faulty: BTreeMap<u32, FaultKind> = BTreeMap::new();
        for signed in dealings {
            let find = |index| ceremony.dealers().iter().find(|d| d.index == index);
            let heard = hear(ceremony, signed, |index| find(index).map(|dealer| dealer.key))?;
            let Content::Dealing(dealing) = heard.content else {
                return Err(Error::Ceremony("a message given for a dealing is none"));
            };
            if let Some((last, digest)) = seen.last() {
                if heard.index < *last || heard.digest == *digest {
                    return Err(Error::Ceremony("dealings are not in order, or one is there twice"));
                }
                if heard.index == *last {
                    faulty.insert(heard.index, FaultKind::Equivocated);
                }
            }
            seen.push((heard.index, heard.digest));
            let dealer = find(heard.index).ok_or(Error::Internal("a dealer was heard that is none"))?;
            match read(ceremony, joins, dealer, dealing) {
                Ok(dealing) => drop(good.insert(heard.index, dealing)),
                Err(_) => drop(faulty.entry(heard.index).or_insert(FaultKind::BadDealing)),
            }
        }
        good.retain(|index, _| !faulty.contains_key(index));
        let name = |(index, kind): (&u32, &FaultKind)| {
            let dealer = ceremony.dealers().iter().find(|d| d.index == *index)?;
            Some(Fault { evaluator: dealer.evaluator.clone(), kind: *kind })
        };
        Ok(Self {
            good: good.into_values().collect(),
            digest: digest_of(seen.iter().map(|(_, digest)| digest)),
            faults: faulty.iter().filter_map(name).collect(),
        })
    }

    pub(super) const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Checks one verdict by itself.
    ///
    /// # Errors
    /// It is not by a party that joined, malformed, or about other dealings.
    pub fn check_verdict(
        &self,
        ceremony: &Ceremony,
        joins: &Joins,
        signed: &wire::SignedCeremonyMessage,
    ) -> Result<(), Error> {
        read_verdict(ceremony, joins, self, signed).map(drop)
    }
}

/// Reads what a dealer signed; any error is the dealer's.
fn read(
    ceremony: &Ceremony,
    joins: &Joins,
    dealer: &Dealer,
    dealing: wire::CeremonyDealing,
) -> Result<Dealing, Error> {
    const WRONG: Error = Error::Ceremony("a dealing is malformed");
    if dealing.joins.as_ref() != joins.digest() || dealing.shares.len() != joins.parties().len() {
        return Err(WRONG);
    }
    let commitments = Commitments::from_wire(&dealing.commitments, ceremony.plan.threshold)?;
    let constant = commitments.constant()?;
    let possession = Possession::try_from(dealing.possession.as_ref())?;
    if !possession.verifies(constant, &possession_context(ceremony, dealer.index)) {
        return Err(Error::Ceremony("a dealer does not know what it deals"));
    }
    if dealer.share.is_some_and(|share| share != *constant) {
        return Err(Error::Ceremony("a dealer deals something else than its share"));
    }
    Ok(Dealing { dealer: dealer.index, commitments, shares: dealing.shares })
}

/// What a proof of possession is bound to.
pub(super) fn possession_context(ceremony: &Ceremony, dealer: u32) -> Vec<u8> {
    [b"chancery ceremony possession v1".as_slice(), &ceremony.id, &dealer.to_be_bytes()].concat()
}

/// What a ceremony comes to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The epoch, with everybody who may hold a share.
    pub epoch: EvaluatorEpoch,
    /// Who is out, and why.
    pub faults: Vec<Fault>,
    pub(super) dealings: Vec<(Weight, Dealing)>,
    pub(super) joins: Joins,
    ceremony: [u8; 32],
    transcript: [u8; 32],
}

impl Outcome {
    /// Judges a transcript.
    ///
    /// # Errors
    /// It is not one of this ceremony: a message is not its speaker's, a
    /// verdict is about other dealings, or too few dealers or holders are left.
    pub fn of(ceremony: &Ceremony, transcript: &wire::CeremonyTranscript) -> Result<Self, Error> {
        if transcript.ceremony.as_ref() != ceremony.id {
            return Err(Error::Ceremony("the transcript is of another ceremony"));
        }
        let joins = Joins::verify(ceremony, &transcript.joins)?;
        let dealings = Dealings::verify(ceremony, &joins, &transcript.dealings)?;
        let verdicts = verdicts(ceremony, &joins, &dealings, &transcript.verdicts)?;

        let mut faults = dealings.faults.clone();
        for verdict in &verdicts {
            faults.extend(complaints(ceremony, &joins, &dealings, verdict)?);
        }
        let out: BTreeSet<&NodeId> = faults.iter().map(|fault| &fault.evaluator).collect();
        let is_in = |dealing: &&Dealing| {
            ceremony.dealers().iter().any(|d| d.index == dealing.dealer && !out.contains(&d.evaluator))
        };
        let qualified: Vec<_> = dealings.good.iter().filter(is_in).cloned().collect();
        if qualified.len() < ceremony.dealers_needed() as usize {
            return Err(Error::Ceremony("fewer dealers are left than the key needs"));
        }
        let indices: Vec<_> = qualified.iter().map(|dealing| dealing.dealer).collect();
        let weights = ceremony.weights(&indices)?;
        let commitments =
            Commitments::sum(weights.iter().zip(qualified.iter().map(|dealing| &dealing.commitments)))?;
        let public_key = *commitments.constant()?;
        if ceremony.before.as_ref().is_some_and(|before| before.public_key != public_key) {
            return Err(Error::Ceremony("the shares dealt anew do not lead to the key"));
        }
        let mut evaluators = Vec::new();
        for party in &ceremony.plan.parties {
            if out.contains(&party.evaluator) || !verdicts.iter().any(|v| v.party == party.index) {
                continue;
            }
            evaluators.push(EvaluatorShare {
                index: party.index,
                evaluator: party.evaluator.clone(),
                key: party.key,
                public_share: commitments.public_share(party.index)?,
                endpoints: party.endpoints.clone(),
                tls_key_pin: party.tls_key_pin,
            });
        }
        let plan = &ceremony.plan;
        if evaluators.len() < plan.threshold as usize {
            return Err(Error::Ceremony("fewer parties are left than the threshold"));
        }
        Ok(Self {
            epoch: EvaluatorEpoch {
                key_epoch: plan.key_epoch,
                generation: plan.generation,
                threshold: plan.threshold,
                public_key,
                evaluators,
            },
            ceremony: ceremony.id,
            transcript: digest(ceremony, transcript),
            dealings: weights.into_iter().zip(qualified).collect(),
            faults,
            joins,
        })
    }

    /// Serialised CeremonyResult: what those who hold its shares sign.
    pub fn result(&self) -> Bytes {
        wire::CeremonyResult {
            ceremony: Bytes::copy_from_slice(&self.ceremony),
            transcript: Bytes::copy_from_slice(&self.transcript),
            epoch: Some((&self.epoch).into()),
        }
        .encode_to_vec()
        .into()
    }
}

/// SHA-256 over the ceremony's id and the SHA-256 of each message.
fn digest(ceremony: &Ceremony, transcript: &wire::CeremonyTranscript) -> [u8; 32] {
    let said = [&transcript.joins, &transcript.dealings, &transcript.verdicts];
    let messages: Vec<[u8; 32]> =
        said.into_iter().flatten().map(|signed| Sha256::digest(&signed.message).into()).collect();
    digest_of(std::iter::once(ceremony.id()).chain(&messages))
}

struct Verdict {
    party: u32,
    complaints: Vec<wire::CeremonyComplaint>,
}

fn verdicts(
    ceremony: &Ceremony,
    joins: &Joins,
    dealings: &Dealings,
    verdicts: &[wire::SignedCeremonyMessage],
) -> Result<Vec<Verdict>, Error> {
    let mut all: Vec<Verdict> = Vec::with_capacity(verdicts.len());
    for signed in verdicts {
        let verdict = read_verdict(ceremony, joins, dealings, signed)?;
        if all.last().is_some_and(|last| verdict.party <= last.party) {
            return Err(Error::Ceremony("verdicts are not in the order of the parties"));
        }
        all.push(verdict);
    }
    Ok(all)
}

fn read_verdict(
    ceremony: &Ceremony,
    joins: &Joins,
    dealings: &Dealings,
    signed: &wire::SignedCeremonyMessage,
) -> Result<Verdict, Error> {
    let party = |index| ceremony.plan.parties.iter().find(|p| p.index == index && joins.has(index));
    let heard = hear(ceremony, signed, |index| party(index).map(|party| party.key))?;
    let Content::Verdict(verdict) = heard.content else {
        return Err(Error::Ceremony("a message given for a verdict is none"));
    };
    if verdict.dealings.as_ref() != dealings.digest() {
        return Err(Error::Ceremony("a verdict is about other dealings"));
    }
    if verdict.complaints.len() > ceremony.dealers().len() {
        return Err(Error::Ceremony("a verdict has more complaints than there are dealers"));
    }
    Ok(Verdict { party: heard.index, complaints: verdict.complaints })
}

/// Who is at fault in each of a verdict's complaints.
fn complaints(
    ceremony: &Ceremony,
    joins: &Joins,
    dealings: &Dealings,
    verdict: &Verdict,
) -> Result<Vec<Fault>, Error> {
    let complainer = ceremony.plan.parties.iter().find(|p| p.index == verdict.party);
    let complainer = complainer.ok_or(Error::Internal("a verdict is by nobody"))?;
    let mut faults = Vec::new();
    for complaint in &verdict.complaints {
        let dealer = ceremony.dealers().iter().enumerate().find(|(_, d)| d.index == complaint.dealer);
        let dealing = dealings.good.iter().find(|d| d.dealer == complaint.dealer);
        // About a dealing that is out anyway there is nothing to judge.
        let (Some((position, dealer)), Some(dealing)) = (dealer, dealing) else { continue };
        faults.push(if is_right(ceremony, joins, dealing, position, verdict.party, &complaint.seed) {
            Fault { evaluator: dealer.evaluator.clone(), kind: FaultKind::WrongShare }
        } else {
            Fault { evaluator: complainer.evaluator.clone(), kind: FaultKind::FalseComplaint }
        });
    }
    Ok(faults)
}

/// Whether the share, opened with the seed that the complaint shows, is wrong.
fn is_right(
    ceremony: &Ceremony,
    joins: &Joins,
    dealing: &Dealing,
    dealer_position: usize,
    party: u32,
    seed: &[u8],
) -> bool {
    let Ok((private, public)) = seed.try_into().map_err(|_| Error::CannotOpen).and_then(share::key_pair)
    else {
        return false;
    };
    if joins.share_key(party, dealer_position) != Some(&public) {
        return false;
    }
    let position = joins.parties().iter().position(|p| p.index == party);
    let Some(sealed) = position.and_then(|position| dealing.shares.get(position)) else { return false };
    let opened = share::open(sealed, &private, ceremony, dealing.dealer, party);
    !opened.is_ok_and(|share| is_share(&share, party, &dealing.commitments))
}
