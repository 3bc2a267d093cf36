//! How evaluators come to share a key that nobody ever holds, and how its
//! shares are dealt anew: joint-Feldman in four rounds, without I/O. Governance
//! signs a [`Plan`]; each evaluator joins, deals, judges and concludes
//! ([`party`]); whoever carries the messages needs no trust, because who is out
//! and which key results follows from the transcript alone ([`transcript`]).

pub mod conclusion;
mod message;
pub mod party;
mod share;
pub mod transcript;

use crate::evaluators::distinct;
use crate::governance::VerifiedStatement;
use crate::keys::EvaluatorKey;
use crate::oprf::Element;
use crate::statement::{Decision, array, endpoints};
use crate::threshold::{MAX_EVALUATORS, Weight};
use crate::{Error, EvaluatorEpoch, FederationState};
use chancery_proto::directory::v1 as wire;
use chancery_types::NodeId;
use std::fmt;

pub use message::Joins;

/// What governance decides before a ceremony.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Key epoch, from 1.
    pub key_epoch: u32,
    /// Generation of the shares, from 1: in the first the key is made, later
    /// ones deal it anew.
    pub generation: u32,
    /// How many must answer.
    pub threshold: u32,
    /// Who is to hold shares, by index.
    pub parties: Vec<Party>,
}

/// An evaluator that is to hold a share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Index of the share, from 1.
    pub index: u32,
    /// Its id.
    pub evaluator: NodeId,
    /// Signs what it says.
    pub key: EvaluatorKey,
    /// Where nodes reach it: `host:port`.
    pub endpoints: Vec<String>,
    /// SHA-256 of the SubjectPublicKeyInfo of its TLS key.
    pub tls_key_pin: [u8; 32],
}

impl TryFrom<wire::CeremonyPlan> for Plan {
    type Error = Error;

    fn try_from(plan: wire::CeremonyPlan) -> Result<Self, Error> {
        if !(1..=MAX_EVALUATORS).contains(&plan.parties.len()) {
            return Err(Error::Field("a ceremony has 1 to 16 parties"));
        }
        let parties = plan
            .parties
            .into_iter()
            .map(|party| {
                Ok(Party {
                    index: party.index,
                    evaluator: party.evaluator.parse()?,
                    key: EvaluatorKey::try_from(party.key.as_ref())?,
                    endpoints: endpoints(party.endpoints)?,
                    tls_key_pin: array(&party.tls_key_pin, "a key pin has not 32 bytes")?,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        distinct(parties.iter().map(|p| (p.index, &p.evaluator)))?;
        if plan.key_epoch == 0 || plan.generation == 0 {
            return Err(Error::Field("key epochs and generations count from 1"));
        }
        if plan.threshold == 0 || parties.len() < plan.threshold as usize {
            return Err(Error::Field("a threshold is 1 to the number of parties"));
        }
        Ok(Self {
            key_epoch: plan.key_epoch,
            generation: plan.generation,
            threshold: plan.threshold,
            parties,
        })
    }
}

impl From<&Plan> for wire::CeremonyPlan {
    fn from(plan: &Plan) -> Self {
        let party = |party: &Party| wire::CeremonyParty {
            index: party.index,
            evaluator: party.evaluator.to_string(),
            key: party.key.to_wire(),
            endpoints: party.endpoints.clone(),
            tls_key_pin: party.tls_key_pin.to_vec().into(),
        };
        Self {
            key_epoch: plan.key_epoch,
            generation: plan.generation,
            threshold: plan.threshold,
            parties: plan.parties.iter().map(party).collect(),
        }
    }
}

/// A plan that may be carried out now, and who deals in it.
#[derive(Clone, Debug)]
pub struct Ceremony {
    id: [u8; 32],
    plan: Plan,
    dealers: Vec<Dealer>,
    /// Whose shares are dealt anew; none when a key is made.
    before: Option<EvaluatorEpoch>,
}

/// Who deals a part of the key.
#[derive(Clone, Debug)]
pub(crate) struct Dealer {
    pub(crate) index: u32,
    pub(crate) evaluator: NodeId,
    pub(crate) key: EvaluatorKey,
    /// Public key of the share that is dealt anew.
    pub(crate) share: Option<Element>,
}

impl Ceremony {
    /// The ceremony that governance planned, upon what is in force.
    ///
    /// # Errors
    /// The statement plans none, or the plan does not follow the current epoch.
    pub fn new(statement: &VerifiedStatement, federation: &FederationState) -> Result<Self, Error> {
        let Decision::CeremonyPlan(decided) = &statement.statement().decision else {
            return Err(Error::Ceremony("the statement plans no ceremony"));
        };
        let (plan, current) = (decided.clone(), federation.evaluators());
        let (epoch, generation) = current.map_or((0, 0), |c| (c.key_epoch, c.generation));
        let renews = (plan.key_epoch, Some(plan.generation)) == (epoch, generation.checked_add(1));
        let makes = (Some(plan.key_epoch), plan.generation) == (epoch.checked_add(1), 1);
        let before = current.filter(|_| renews).cloned();
        let dealers = match &before {
            Some(before) => before
                .evaluators
                .iter()
                .map(|e| Dealer {
                    index: e.index,
                    evaluator: e.evaluator.clone(),
                    key: e.key,
                    share: Some(e.public_share),
                })
                .collect(),
            None if makes => plan
                .parties
                .iter()
                .map(|p| Dealer { index: p.index, evaluator: p.evaluator.clone(), key: p.key, share: None })
                .collect(),
            None => return Err(Error::Statement("the evaluators' epoch does not follow the current one")),
        };
        Ok(Self { id: *statement.digest(), plan, dealers, before })
    }

    /// SHA-256 of the plan's statement.
    pub const fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// What was decided.
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Index under which an evaluator is to hold a share.
    pub fn party(&self, evaluator: &NodeId) -> Option<u32> {
        self.plan.parties.iter().find(|p| p.evaluator == *evaluator).map(|p| p.index)
    }

    /// Index under which an evaluator deals.
    pub fn dealer(&self, evaluator: &NodeId) -> Option<u32> {
        self.dealers.iter().find(|d| d.evaluator == *evaluator).map(|d| d.index)
    }

    /// Where to reach everybody who has a part in it, each once, and with which TLS key.
    pub fn endpoints(&self) -> Vec<(NodeId, Vec<String>, [u8; 32])> {
        let holders = self.before.iter().flat_map(|b| &b.evaluators);
        let parties = self.plan.parties.iter();
        let mut all: Vec<_> =
            parties.map(|p| (p.evaluator.clone(), p.endpoints.clone(), p.tls_key_pin)).collect();
        for holder in holders {
            if self.party(&holder.evaluator).is_none() {
                all.push((holder.evaluator.clone(), holder.endpoints.clone(), holder.tls_key_pin));
            }
        }
        all
    }

    /// Whether shares in force are dealt anew, or a new key is made.
    pub const fn deals_anew(&self) -> bool {
        self.before.is_some()
    }

    pub(crate) fn dealers(&self) -> &[Dealer] {
        &self.dealers
    }

    /// Fewest dealers that make the key.
    fn dealers_needed(&self) -> u32 {
        self.before.as_ref().map_or(self.plan.threshold, |before| before.threshold)
    }

    /// What the dealing of each of these dealers counts.
    fn weights(&self, indices: &[u32]) -> Result<Vec<Weight>, Error> {
        if self.before.is_some() { Weight::lagrange(indices) } else { Ok(vec![Weight::ONE; indices.len()]) }
    }
}

/// What an evaluator did wrong, provable from the transcript.
#[derive(Clone, PartialEq, Eq)]
pub struct Fault {
    /// Who.
    pub evaluator: NodeId,
    /// What.
    pub kind: FaultKind,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Its dealing is malformed, or deals something else than its share.
    BadDealing,
    /// It signed two dealings.
    Equivocated,
    /// A share that it dealt does not fit its commitments.
    WrongShare,
    /// It complained about a share that is right.
    FalseComplaint,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadDealing => "dealt something malformed",
            Self::Equivocated => "signed two dealings",
            Self::WrongShare => "dealt a wrong share",
            Self::FalseComplaint => "complained about a right share",
        })
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.evaluator, self.kind)
    }
}

#[cfg(test)]
mod tests;
