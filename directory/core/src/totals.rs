//! What an evaluator answered in a day, signed: so that the log shows who had
//! how much evaluated.

use crate::keys::{self, Purpose, SigningKey};
use crate::{Error, FederationState};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::{NodeId, Timestamp};
use prost::Message as _;
use std::collections::BTreeMap;

/// Longest totals in bytes.
const MAX_TOTALS: usize = 32 * 1024;
/// Most administrations in them.
pub const MAX_ADMINISTRATIONS: usize = 1_024;
const DAY_MS: i64 = 86_400_000;

/// The day (UTC) of a moment, since the Unix epoch.
pub fn day_of(at: Timestamp) -> u32 {
    u32::try_from(at.millis().div_euclid(DAY_MS)).unwrap_or(0)
}

/// What one evaluator answered in one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvaluationTotals {
    /// Who answered.
    pub evaluator: NodeId,
    /// Days since the Unix epoch (UTC).
    pub day: u32,
    /// By administration.
    pub totals: BTreeMap<NodeId, Total>,
}

/// What was answered to one administration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Identifiers evaluated.
    pub evaluated: u64,
    /// Identifiers refused because the quota was used up.
    pub refused: u64,
}

impl EvaluationTotals {
    /// Signs as the evaluator.
    pub fn sign(&self, key: &SigningKey) -> wire::SignedEvaluationTotals {
        let total = |(administration, total): (&NodeId, &Total)| wire::EvaluationTotal {
            administration: administration.to_string(),
            evaluated: total.evaluated,
            refused: total.refused,
        };
        let totals = wire::EvaluationTotals {
            evaluator: self.evaluator.to_string(),
            day: self.day,
            totals: self.totals.iter().map(total).collect(),
        };
        let totals = Bytes::from(totals.encode_to_vec());
        let signature = Bytes::copy_from_slice(&keys::sign(Purpose::EvaluationTotals, &totals, key));
        wire::SignedEvaluationTotals { totals, signature }
    }

    /// Evaluator and day that they claim to be of, unchecked.
    ///
    /// # Errors
    /// Malformed.
    pub fn claim(signed: &wire::SignedEvaluationTotals) -> Result<(NodeId, u32), Error> {
        let totals = parse(signed)?;
        Ok((totals.evaluator.parse()?, totals.day))
    }

    /// Checks that an evaluator in force signed them, about a day that is over.
    ///
    /// # Errors
    /// Malformed, by nobody in force, wrongly signed, or too early.
    pub fn verify(
        signed: &wire::SignedEvaluationTotals,
        federation: &FederationState,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let totals = parse(signed)?;
        let evaluator: NodeId = totals.evaluator.parse()?;
        let mut shares = federation.key_epochs().flat_map(|epoch| &epoch.evaluators);
        let share = shares.find(|share| share.evaluator == evaluator);
        let share = share.ok_or(Error::Totals("totals are by an evaluator in force"))?;
        if !share.key.verifies(Purpose::EvaluationTotals, &signed.totals, &signed.signature) {
            return Err(Error::Totals("the totals' signature is wrong"));
        }
        if totals.day >= day_of(now) {
            return Err(Error::Totals("totals are of a day that is over"));
        }
        let mut by_administration = BTreeMap::new();
        for total in totals.totals {
            let administration: NodeId = total.administration.parse()?;
            if by_administration.last_key_value().is_some_and(|(last, _)| *last >= administration) {
                return Err(Error::Field("totals are in the order of the administrations"));
            }
            let total = Total { evaluated: total.evaluated, refused: total.refused };
            by_administration.insert(administration, total);
        }
        Ok(Self { evaluator, day: totals.day, totals: by_administration })
    }
}

fn parse(signed: &wire::SignedEvaluationTotals) -> Result<wire::EvaluationTotals, Error> {
    if signed.totals.len() > MAX_TOTALS {
        return Err(Error::TooLarge("totals have at most 32 KiB"));
    }
    let totals = wire::EvaluationTotals::decode(signed.totals.as_ref())
        .map_err(|_| Error::Field("totals do not parse"))?;
    if totals.totals.len() > MAX_ADMINISTRATIONS {
        return Err(Error::TooLarge("totals name at most 1,024 administrations"));
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NOW, World};
    use chancery_types::entropy::SeededEntropy;
    use std::time::Duration;

    #[test]
    fn totals_are_by_an_evaluator_in_force_about_a_day_that_is_over() {
        let world = World::new(&SeededEntropy::new(1));
        let total = Total { evaluated: 7, refused: 1 };
        let totals = EvaluationTotals {
            evaluator: "e2".parse().unwrap(),
            day: day_of(NOW),
            totals: BTreeMap::from([("a".parse().unwrap(), total), ("b".parse().unwrap(), total)]),
        };
        let key = &world.evaluators.keys[&totals.evaluator];
        let signed = totals.sign(key);
        let tomorrow = NOW.after(Duration::from_secs(86_400));
        assert_eq!(EvaluationTotals::verify(&signed, &world.state, tomorrow).unwrap(), totals);
        let refused = |signed: &wire::SignedEvaluationTotals, at| {
            EvaluationTotals::verify(signed, &world.state, at).unwrap_err()
        };
        assert!(matches!(refused(&signed, NOW), Error::Totals(_)));
        let stranger = EvaluationTotals { evaluator: "e9".parse().unwrap(), ..totals.clone() };
        assert!(matches!(refused(&stranger.sign(key), tomorrow), Error::Totals(_)));
        let other = EvaluationTotals { evaluator: "e1".parse().unwrap(), ..totals };
        assert!(matches!(refused(&other.sign(key), tomorrow), Error::Totals(_)));
        let large = wire::SignedEvaluationTotals { totals: vec![0; MAX_TOTALS + 1].into(), ..signed };
        assert!(matches!(refused(&large, tomorrow), Error::TooLarge(_)));
    }
}
