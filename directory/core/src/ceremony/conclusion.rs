//! The end of a ceremony: those who hold its shares sign what it came to.
//! Whoever merely uses the key checks [`Conclusion::verify`]: governance chose
//! the parties, and enough of them signed one result. The directory, the
//! evaluators and auditors check the transcript as well.

use super::transcript::Outcome;
use super::{Ceremony, Plan};
use crate::governance::{self, GovernanceKeys, VerifiedStatement};
use crate::keys::{self, Purpose, SigningKey};
use crate::statement::{Decision, array};
use crate::{Error, EvaluatorEpoch, FederationState};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use prost::Message as _;

/// Longest result in bytes.
const MAX_RESULT: usize = 16 * 1024;

/// Signs a result as the party with this index.
pub fn sign(result: &[u8], index: u32, key: &SigningKey) -> wire::CeremonyConclusion {
    let signature = Bytes::copy_from_slice(&keys::sign(Purpose::CeremonyResult, result, key));
    wire::CeremonyConclusion { index, signature }
}

/// A concluded ceremony, signed by governance and by enough of its parties.
#[derive(Clone, Debug)]
pub struct Conclusion {
    plan: VerifiedStatement,
    epoch: EvaluatorEpoch,
}

impl Conclusion {
    /// Checks who planned and who concluded, not what was said.
    ///
    /// # Errors
    /// Governance did not plan it, the result is another ceremony's, a
    /// conclusion is not by a party that holds a share, or they are too few.
    pub fn verify(
        concluded: &wire::ConcludedCeremony,
        federation: &str,
        governors: &GovernanceKeys,
    ) -> Result<Self, Error> {
        let plan = concluded.plan.as_ref().ok_or(Error::Field("a ceremony comes without its plan"))?;
        let plan = governance::verify(plan, federation, governors)?;
        if concluded.result.len() > MAX_RESULT {
            return Err(Error::TooLarge("a ceremony's result has at most 16 KiB"));
        }
        let result = wire::CeremonyResult::decode(concluded.result.as_ref())
            .map_err(|_| Error::Field("a ceremony's result does not parse"))?;
        let id: [u8; 32] = array(&result.ceremony, "a ceremony's id has not 32 bytes")?;
        let epoch = result.epoch.ok_or(Error::Field("a ceremony's result names no epoch"))?;
        let mut epoch = EvaluatorEpoch::try_from(epoch)?;
        let decided = decided(&plan)?;
        if id != *plan.digest() || !belongs(&epoch, decided) {
            return Err(Error::Ceremony("the result is of another ceremony"));
        }
        let mut signed: Vec<u32> = Vec::with_capacity(concluded.conclusions.len());
        for conclusion in &concluded.conclusions {
            let holder = epoch.evaluator(conclusion.index);
            let holder = holder.ok_or(Error::Ceremony("a conclusion is by nobody who holds a share"))?;
            if signed.last().is_some_and(|last| *last >= conclusion.index) {
                return Err(Error::Ceremony("conclusions are not in the order of the parties"));
            }
            if !holder.key.verifies(Purpose::CeremonyResult, &concluded.result, &conclusion.signature) {
                return Err(Error::Ceremony("a conclusion's signature is wrong"));
            }
            signed.push(conclusion.index);
        }
        if signed.len() < epoch.threshold as usize {
            return Err(Error::Ceremony("fewer evaluators concluded than the threshold"));
        }
        epoch.evaluators.retain(|e| signed.contains(&e.index));
        Ok(Self { plan, epoch })
    }

    /// Checks as well that the ceremony follows what is in force, and that its
    /// result is what was said. Gives who was found out in it.
    ///
    /// # Errors
    /// As [`Ceremony::new`] and [`Outcome::of`]; or the result is another.
    pub fn judge(
        &self,
        concluded: &wire::ConcludedCeremony,
        federation: &FederationState,
    ) -> Result<Vec<super::Fault>, Error> {
        let ceremony = Ceremony::new(&self.plan, federation)?;
        let transcript = concluded.transcript.as_ref();
        let transcript = transcript.ok_or(Error::Field("a ceremony comes without its transcript"))?;
        let outcome = Outcome::of(&ceremony, transcript)?;
        if outcome.result() != concluded.result {
            return Err(Error::Ceremony("the result does not follow from the transcript"));
        }
        Ok(outcome.faults)
    }

    /// SHA-256 of the plan's statement.
    pub const fn id(&self) -> &[u8; 32] {
        self.plan.digest()
    }

    /// The epoch that is in force from the entry on: with those who concluded.
    pub const fn epoch(&self) -> &EvaluatorEpoch {
        &self.epoch
    }

    /// The same.
    pub fn into_epoch(self) -> EvaluatorEpoch {
        self.epoch
    }
}

fn decided(plan: &VerifiedStatement) -> Result<&Plan, Error> {
    match &plan.statement().decision {
        Decision::CeremonyPlan(plan) => Ok(plan),
        _ => Err(Error::Ceremony("the statement plans no ceremony")),
    }
}

/// Whether an epoch is one that governance planned: its numbers, and nobody in
/// it whom the plan does not name.
fn belongs(epoch: &EvaluatorEpoch, plan: &Plan) -> bool {
    let named = |share: &crate::EvaluatorShare| {
        plan.parties.iter().any(|party| {
            (party.index, &party.evaluator, &party.key, &party.endpoints, &party.tls_key_pin)
                == (share.index, &share.evaluator, &share.key, &share.endpoints, &share.tls_key_pin)
        })
    };
    (epoch.key_epoch, epoch.generation, epoch.threshold) == (plan.key_epoch, plan.generation, plan.threshold)
        && epoch.evaluators.iter().all(named)
}
