//! The federation as its log's statements make it: members, authorities,
//! evaluators, the directory's keys. Replayed in the order of the log.

use crate::Error;
use crate::EvaluatorEpoch;
use crate::ceremony::conclusion::Conclusion;
use crate::governance::VerifiedStatement;
use crate::statement::{Authority, Decision, DirectoryKeys, Member};
use chancery_types::NodeId;
use std::collections::{BTreeMap, HashMap};

/// What an administration may have evaluated until the log says otherwise.
const ENTITLEMENT: u64 = 10_000;
/// What all of them together may.
const CEILING: u64 = 10_000_000;

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct FederationState {
    members: BTreeMap<NodeId, Member>,
    authorities: BTreeMap<NodeId, Authority>,
    evaluators: Option<EvaluatorEpoch>,
    entitlements: BTreeMap<Option<NodeId>, u64>,
    /// Which ceremony brought the evaluators into force.
    ceremony: Option<[u8; 32]>,
    directory: Option<DirectoryKeys>,
    in_force: BTreeMap<Subject, u64>,
    /// Where each nonce was logged, and with which statement.
    nonces: HashMap<[u8; 16], (u64, [u8; 32])>,
}

/// What a statement is about: a later one on the same subject replaces it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Member(NodeId),
    Authority(NodeId),
    Evaluators,
    Directory,
    Entitlement(Option<NodeId>),
}

impl Subject {
    fn of(decision: &Decision) -> Option<Self> {
        match decision {
            Decision::Member(m) => Some(Self::Member(m.administration.clone())),
            Decision::Authority(a) => Some(Self::Authority(a.authority.clone())),
            Decision::DirectoryKeys(_) => Some(Self::Directory),
            Decision::Entitlement(e) => Some(Self::Entitlement(e.administration.clone())),
            Decision::CeremonyPlan(_) => None,
        }
    }
}

/// What becomes of a statement that is handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// To be logged.
    New,
    /// The very statement was logged before, at this index.
    Logged(u64),
    /// Its nonce was used before by another statement.
    NonceReused,
}

impl FederationState {
    /// An administration.
    pub fn member(&self, administration: &NodeId) -> Option<&Member> {
        self.members.get(administration)
    }

    /// All administrations.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// An enrolment authority.
    pub fn authority(&self, authority: &NodeId) -> Option<&Authority> {
        self.authorities.get(authority)
    }

    /// The evaluators' current epoch.
    pub const fn evaluators(&self) -> Option<&EvaluatorEpoch> {
        self.evaluators.as_ref()
    }

    /// Identifiers that each evaluator may evaluate for an administration in a day.
    pub fn entitlement(&self, administration: &NodeId) -> u64 {
        self.entitlements.get(&Some(administration.clone())).copied().unwrap_or(ENTITLEMENT)
    }

    /// Identifiers that each evaluator may evaluate for all together in a day.
    pub fn ceiling(&self) -> u64 {
        self.entitlements.get(&None).copied().unwrap_or(CEILING)
    }

    /// The directory's keys.
    pub const fn directory(&self) -> Option<&DirectoryKeys> {
        self.directory.as_ref()
    }

    /// Bits of a handle that a lookup names: all 32 until the log says less.
    pub fn lookup_prefix_bits(&self) -> u32 {
        self.directory.as_ref().map_or(crate::prefix::MAX_BITS, |d| d.lookup_prefix_bits)
    }

    /// Indices of the statements in force, ascending.
    pub fn in_force(&self) -> Vec<u64> {
        let mut indices: Vec<_> = self.in_force.values().copied().collect();
        indices.sort_unstable();
        indices
    }

    /// Whether a decision is what is in force on its subject.
    pub fn holds(&self, decision: &Decision) -> bool {
        match decision {
            Decision::Member(m) => self.members.get(&m.administration) == Some(m),
            Decision::Authority(a) => self.authorities.get(&a.authority) == Some(a),
            Decision::CeremonyPlan(_) => false,
            Decision::DirectoryKeys(k) => self.directory.as_ref() == Some(k),
            Decision::Entitlement(e) => self.entitlements.get(&e.administration) == Some(&e.per_day),
        }
    }

    /// Whether a statement may be logged next.
    ///
    /// # Errors
    /// It is not logged by itself: a ceremony's plan.
    pub fn admit(&self, statement: &VerifiedStatement) -> Result<Admission, Error> {
        match self.nonces.get(&statement.statement().nonce) {
            Some((index, digest)) if digest == statement.digest() => return Ok(Admission::Logged(*index)),
            Some(_) => return Ok(Admission::NonceReused),
            None => {}
        }
        if Subject::of(&statement.statement().decision).is_none() {
            return Err(Error::Statement("a ceremony's plan is logged with its conclusion"));
        }
        Ok(Admission::New)
    }

    /// Takes a logged statement into account.
    pub fn apply(&mut self, statement: VerifiedStatement, index: u64) {
        let digest = *statement.digest();
        let statement = statement.into_statement();
        self.nonces.insert(statement.nonce, (index, digest));
        if let Some(subject) = Subject::of(&statement.decision) {
            self.in_force.insert(subject, index);
        }
        match statement.decision {
            Decision::Member(m) => drop(self.members.insert(m.administration.clone(), m)),
            Decision::Authority(a) => drop(self.authorities.insert(a.authority.clone(), a)),
            Decision::DirectoryKeys(k) => self.directory = Some(k),
            Decision::Entitlement(e) => drop(self.entitlements.insert(e.administration, e.per_day)),
            Decision::CeremonyPlan(_) => {}
        }
    }

    /// Where the ceremony in force was logged, if it is this one.
    pub fn concluded(&self, ceremony: &[u8; 32]) -> Option<u64> {
        let index = self.in_force.get(&Subject::Evaluators).copied();
        index.filter(|_| self.ceremony.as_ref() == Some(ceremony))
    }

    /// Takes a logged ceremony into account.
    pub fn conclude(&mut self, conclusion: Conclusion, index: u64) {
        self.in_force.insert(Subject::Evaluators, index);
        self.ceremony = Some(*conclusion.id());
        self.evaluators = Some(conclusion.into_epoch());
    }
}

#[cfg(test)]
mod tests;
