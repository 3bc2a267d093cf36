//! The federation as its log's statements make it: members, authorities,
//! evaluators, the directory's keys. Replayed in the order of the log.

use crate::Error;
use crate::EvaluatorEpoch;
use crate::ceremony::conclusion::Conclusion;
use crate::governance::VerifiedStatement;
use crate::statement::{Authority, Decision, DirectoryKeys, Member};
use chancery_types::{NodeId, Timestamp};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What an administration may have evaluated until the log says otherwise.
const ENTITLEMENT: u64 = 10_000;
/// What all of them together may.
const CEILING: u64 = 10_000_000;

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct FederationState {
    members: BTreeMap<NodeId, Member>,
    /// All that was ever decided about each, with its time.
    authorities: BTreeMap<NodeId, Vec<(Timestamp, Authority)>>,
    evaluators: Option<EvaluatorEpoch>,
    /// Of the key epoch before, until it is ended.
    former: Option<EvaluatorEpoch>,
    entitlements: BTreeMap<Option<NodeId>, u64>,
    /// Which ceremony brought the evaluators into force.
    ceremony: Option<[u8; 32]>,
    directory: Option<DirectoryKeys>,
    /// Whose channels may carry emergencies.
    accredited: BTreeSet<NodeId>,
    in_force: BTreeMap<Subject, u64>,
    /// Where each nonce was logged, and with which statement.
    nonces: HashMap<[u8; 16], (u64, [u8; 32])>,
}

/// What a statement is about: a later one on the same subject replaces it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Member(NodeId),
    /// The how many-th decision about it: whether an authority was admitted is
    /// judged at the time of its word, so none replaces another.
    Authority(NodeId, usize),
    Evaluators,
    FormerEvaluators,
    Directory,
    Entitlement(Option<NodeId>),
    Accreditation(NodeId),
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

    /// An enrolment authority, as was in force at a time.
    pub fn authority(&self, authority: &NodeId, at: Timestamp) -> Option<&Authority> {
        let decided = self.authorities.get(authority)?;
        decided.iter().rev().find(|(since, _)| *since <= at).map(|(_, authority)| authority)
    }

    /// The evaluators' current epoch.
    pub const fn evaluators(&self) -> Option<&EvaluatorEpoch> {
        self.evaluators.as_ref()
    }

    /// The evaluators of the key epoch before, while people migrate.
    pub const fn former_evaluators(&self) -> Option<&EvaluatorEpoch> {
        self.former.as_ref()
    }

    /// The current key epoch and the one before, if that has not ended.
    pub fn key_epochs(&self) -> impl Iterator<Item = &EvaluatorEpoch> {
        self.evaluators.iter().chain(&self.former)
    }

    /// Identifiers that each evaluator may evaluate for an administration in a day.
    pub fn entitlement(&self, administration: &NodeId) -> u64 {
        self.entitlements.get(&Some(administration.clone())).copied().unwrap_or(ENTITLEMENT)
    }

    /// Identifiers that each evaluator may evaluate for all together in a day.
    pub fn ceiling(&self) -> u64 {
        self.entitlements.get(&None).copied().unwrap_or(CEILING)
    }

    /// Whether an administration's channels may carry emergencies.
    pub fn is_accredited(&self, administration: &NodeId) -> bool {
        self.accredited.contains(administration)
    }

    /// The directory's keys.
    pub const fn directory(&self) -> Option<&DirectoryKeys> {
        self.directory.as_ref()
    }

    /// Bits of a handle that a lookup names: all 32 until the log says less.
    pub fn lookup_prefix_bits(&self) -> u32 {
        self.directory.as_ref().map_or(crate::prefix::MAX_BITS, |d| d.lookup_prefix_bits)
    }

    /// Indices of the statements in force and of all about authorities, ascending.
    pub fn in_force(&self) -> Vec<u64> {
        let mut indices: Vec<_> = self.in_force.values().copied().collect();
        indices.sort_unstable();
        indices
    }

    /// Whether a decision is what is in force on its subject.
    pub fn holds(&self, decision: &Decision) -> bool {
        match decision {
            Decision::Member(m) => self.members.get(&m.administration) == Some(m),
            Decision::Authority(a) => self
                .authorities
                .get(&a.authority)
                .and_then(|all| all.last())
                .is_some_and(|(_, last)| last == a),
            Decision::KeyEpochEnd(epoch) => {
                self.evaluators.as_ref().is_some_and(|e| e.key_epoch > *epoch)
                    && !self.key_epochs().any(|e| e.key_epoch == *epoch)
            }
            Decision::CeremonyPlan(_) | Decision::Erasure(_) => false,
            Decision::DirectoryKeys(k) => self.directory.as_ref() == Some(k),
            Decision::Entitlement(e) => self.entitlements.get(&e.administration) == Some(&e.per_day),
            // None withdrawn is as one that never was.
            Decision::Accreditation(a) => self.is_accredited(&a.administration) == a.accredited,
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
        if matches!(statement.statement().decision, Decision::CeremonyPlan(_)) {
            return Err(Error::Statement("a ceremony's plan is logged with its conclusion"));
        }
        if let Decision::KeyEpochEnd(epoch) = &statement.statement().decision
            && self.former.as_ref().is_none_or(|former| former.key_epoch != *epoch)
        {
            return Err(Error::Statement("only the key epoch before the current one is ended"));
        }
        Ok(Admission::New)
    }

    fn subject(&self, decision: &Decision) -> Option<Subject> {
        match decision {
            Decision::Member(m) => Some(Subject::Member(m.administration.clone())),
            Decision::Authority(a) => {
                let earlier = self.authorities.get(&a.authority).map_or(0, Vec::len);
                Some(Subject::Authority(a.authority.clone(), earlier))
            }
            Decision::DirectoryKeys(_) => Some(Subject::Directory),
            Decision::Entitlement(e) => Some(Subject::Entitlement(e.administration.clone())),
            Decision::Accreditation(a) => Some(Subject::Accreditation(a.administration.clone())),
            Decision::CeremonyPlan(_) | Decision::Erasure(_) | Decision::KeyEpochEnd(_) => None,
        }
    }

    /// Takes a logged statement into account. What it erases is the map's.
    pub fn apply(&mut self, statement: VerifiedStatement, index: u64, sequenced_at: Timestamp) {
        let digest = *statement.digest();
        let statement = statement.into_statement();
        self.nonces.insert(statement.nonce, (index, digest));
        if let Some(subject) = self.subject(&statement.decision) {
            self.in_force.insert(subject, index);
        }
        match statement.decision {
            Decision::Member(m) => drop(self.members.insert(m.administration.clone(), m)),
            Decision::Authority(a) => {
                self.authorities.entry(a.authority.clone()).or_default().push((sequenced_at, a));
            }
            Decision::DirectoryKeys(k) => self.directory = Some(k),
            Decision::Entitlement(e) => drop(self.entitlements.insert(e.administration, e.per_day)),
            Decision::Accreditation(a) if a.accredited => drop(self.accredited.insert(a.administration)),
            Decision::Accreditation(a) => drop(self.accredited.remove(&a.administration)),
            Decision::KeyEpochEnd(_) => {
                self.former = None;
                self.in_force.remove(&Subject::FormerEvaluators);
            }
            Decision::CeremonyPlan(_) | Decision::Erasure(_) => {}
        }
    }

    /// Where the ceremony in force was logged, if it is this one.
    pub fn concluded(&self, ceremony: &[u8; 32]) -> Option<u64> {
        let index = self.in_force.get(&Subject::Evaluators).copied();
        index.filter(|_| self.ceremony.as_ref() == Some(ceremony))
    }

    /// Takes a logged ceremony into account.
    pub fn conclude(&mut self, conclusion: Conclusion, index: u64) {
        self.ceremony = Some(*conclusion.id());
        let epoch = conclusion.into_epoch();
        let before = self.in_force.insert(Subject::Evaluators, index);
        if let Some(former) = self.evaluators.take_if(|current| current.key_epoch < epoch.key_epoch) {
            self.in_force.extend(before.map(|before| (Subject::FormerEvaluators, before)));
            self.former = Some(former);
        }
        self.evaluators = Some(epoch);
    }
}

#[cfg(test)]
mod tests;
