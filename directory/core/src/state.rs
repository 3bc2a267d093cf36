//! The federation as its log's statements make it: members, authorities,
//! evaluators, the directory's keys. Replayed in the order of the log.

use crate::Error;
use crate::governance::VerifiedStatement;
use crate::statement::{Authority, Decision, DirectoryKeys, EvaluatorEpoch, Member};
use chancery_types::NodeId;
use std::collections::{BTreeMap, HashMap};

/// What is in force.
#[derive(Clone, Debug, Default)]
pub struct FederationState {
    members: BTreeMap<NodeId, Member>,
    authorities: BTreeMap<NodeId, Authority>,
    evaluators: Option<EvaluatorEpoch>,
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
}

impl Subject {
    fn of(decision: &Decision) -> Self {
        match decision {
            Decision::Member(m) => Self::Member(m.administration.clone()),
            Decision::Authority(a) => Self::Authority(a.authority.clone()),
            Decision::EvaluatorEpoch(_) => Self::Evaluators,
            Decision::DirectoryKeys(_) => Self::Directory,
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
            Decision::EvaluatorEpoch(e) => self.evaluators.as_ref() == Some(e),
            Decision::DirectoryKeys(k) => self.directory.as_ref() == Some(k),
        }
    }

    /// Whether a statement may be logged next.
    ///
    /// # Errors
    /// It contradicts what is in force: an evaluator epoch is the first, the
    /// next after the current one in generation 1, or the current one's next
    /// generation under the same key.
    pub fn admit(&self, statement: &VerifiedStatement) -> Result<Admission, Error> {
        match self.nonces.get(&statement.statement().nonce) {
            Some((index, digest)) if digest == statement.digest() => return Ok(Admission::Logged(*index)),
            Some(_) => return Ok(Admission::NonceReused),
            None => {}
        }
        if let Decision::EvaluatorEpoch(next) = &statement.statement().decision {
            let follows = match &self.evaluators {
                None => next.key_epoch == 1 && next.generation == 1,
                Some(current) if next.key_epoch == current.key_epoch => {
                    Some(next.generation) == current.generation.checked_add(1)
                        && next.public_key == current.public_key
                }
                Some(current) => {
                    Some(next.key_epoch) == current.key_epoch.checked_add(1) && next.generation == 1
                }
            };
            if !follows {
                return Err(Error::Statement("the evaluators' epoch does not follow the current one"));
            }
        }
        Ok(Admission::New)
    }

    /// Takes a logged statement into account.
    pub fn apply(&mut self, statement: VerifiedStatement, index: u64) {
        let digest = *statement.digest();
        let statement = statement.into_statement();
        self.nonces.insert(statement.nonce, (index, digest));
        self.in_force.insert(Subject::of(&statement.decision), index);
        match statement.decision {
            Decision::Member(m) => drop(self.members.insert(m.administration.clone(), m)),
            Decision::Authority(a) => drop(self.authorities.insert(a.authority.clone(), a)),
            Decision::EvaluatorEpoch(e) => self.evaluators = Some(e),
            Decision::DirectoryKeys(k) => self.directory = Some(k),
        }
    }
}

#[cfg(test)]
mod tests;
