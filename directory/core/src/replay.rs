//! Replaying a log: what governs and the map follow from its entries alone. A mirror
//! and an auditor believe a directory's roots because they come to the same.

use crate::ceremony::conclusion::Conclusion;
use crate::entry::{Event, Leaf, RecordChange};
use crate::map::{Map, Sum};
use crate::state::Admission;
use crate::statement::{Decision, ErasedRecord};
use crate::totals::EvaluationTotals;
use crate::{Error, FederationState, GovernanceKeys, governance};
use chancery_types::Timestamp;

/// A log as far as it was replayed.
#[derive(Clone, Debug)]
pub struct Replay {
    federation: String,
    governance: GovernanceKeys,
    state: FederationState,
    map: Map,
    next: u64,
    last: Timestamp,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The map changed.
    Record(RecordChange),
    /// What governs changed.
    Governs,
    /// Records were erased.
    Erases(Vec<ErasedRecord>),
    /// The map's root was logged, and is right.
    Root(Sum),
    /// Nothing that is kept here.
    Nothing,
}

impl Replay {
    /// A log of which nothing was replayed.
    pub fn new(federation: &str, governance: GovernanceKeys) -> Self {
        let start = Timestamp::from_millis(i64::MIN);
        Self::resumed(federation, governance, FederationState::default(), Map::default(), 0, start)
    }

    /// As kept after `next` entries, the last of which was sequenced at `last`.
    pub fn resumed(
        federation: &str,
        governance: GovernanceKeys,
        state: FederationState,
        map: Map,
        next: u64,
        last: Timestamp,
    ) -> Self {
        Self { federation: federation.to_owned(), governance, state, map, next, last }
    }

    /// What governs.
    pub const fn state(&self) -> &FederationState {
        &self.state
    }

    /// What stands for all handles.
    pub const fn map(&self) -> &Map {
        &self.map
    }

    /// Index of the next entry.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// When the last entry was sequenced.
    pub const fn last(&self) -> Timestamp {
        self.last
    }

    /// Takes the next entry. Nothing changes if it is not right.
    ///
    /// # Errors
    /// What is wrong with it: the directory logged what its rules forbid, or a
    /// kind that this build does not know.
    pub fn take(&mut self, leaf: &Leaf) -> Result<Effect, Error> {
        let entry = leaf.entry()?;
        if entry.sequenced_at < self.last {
            return Err(Error::Proof("the log's times go back"));
        }
        let (index, at) = (self.next, entry.sequenced_at);
        let effect = match entry.event {
            Event::RecordChange(change) => {
                let mut map = self.map.clone();
                map.apply(&change, index, at)?;
                self.map = map;
                Effect::Record(change)
            }
            Event::Statement(signed) => {
                let verified = governance::verify(&signed, &self.federation, &self.governance)?;
                if self.state.admit(&verified)? != Admission::New {
                    return Err(Error::Proof("a statement is logged twice"));
                }
                let effect = match &verified.statement().decision {
                    Decision::Erasure(records) => {
                        self.erase(records)?;
                        Effect::Erases(records.clone())
                    }
                    _ => Effect::Governs,
                };
                self.state.apply(verified, index, at);
                effect
            }
            Event::Ceremony(concluded) => {
                let conclusion = Conclusion::verify(&concluded, &self.federation, &self.governance)?;
                conclusion.judge(&concluded, &self.state)?;
                self.state.conclude(conclusion, index);
                Effect::Governs
            }
            Event::EvaluationTotals(totals) => {
                EvaluationTotals::verify(&totals, &self.state, at)?;
                Effect::Nothing
            }
            Event::MapRoot(sum) => {
                if sum != self.map.root() {
                    return Err(Error::Proof("a logged root of the map is not what the log makes"));
                }
                Effect::Root(sum)
            }
        };
        (self.next, self.last) = (index + 1, at);
        Ok(effect)
    }

    fn erase(&mut self, records: &[ErasedRecord]) -> Result<(), Error> {
        let mut map = self.map.clone();
        if !records.iter().all(|record| map.remove(record.handle_prefix, record.index)) {
            return Err(Error::Proof("an erasure names an entry that does not stand in the map"));
        }
        self.map = map;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Entry;
    use crate::map::Item;
    use crate::testing::{FEDERATION, NOW, World};
    use chancery_types::entropy::SeededEntropy;
    use std::time::Duration;

    fn world() -> (World, Replay) {
        let world = World::new(&SeededEntropy::new(21));
        let mut replay = Replay::new(FEDERATION, world.governance.clone());
        for event in world.log.iter().cloned() {
            assert_eq!(take(&mut replay, NOW, event), Ok(Effect::Governs));
        }
        (world, replay)
    }

    fn take(replay: &mut Replay, sequenced_at: Timestamp, event: Event) -> Result<Effect, Error> {
        replay.take(&Leaf::new(&Entry { sequenced_at, event }).unwrap())
    }

    fn change(handle_prefix: [u8; 4], previous_index: Option<u64>) -> RecordChange {
        RecordChange { handle_prefix, previous_index, commitment: [4; 32], pending: false, ends_index: None }
    }

    #[test]
    fn a_log_says_what_governs_and_what_stands() {
        let (world, mut replay) = world();
        assert_eq!(replay.state().in_force(), world.state.in_force());
        let mut map = Map::default();
        for (index, previous) in [(3, None), (4, Some(3))] {
            let change = change([7; 4], previous);
            assert_eq!(take(&mut replay, NOW, Event::RecordChange(change)), Ok(Effect::Record(change)));
            map.apply(&change, index, NOW).unwrap();
        }
        let root = map.root();
        assert_eq!(take(&mut replay, NOW, Event::MapRoot(root)), Ok(Effect::Root(root)));
        let erased = vec![ErasedRecord { handle_prefix: [7; 4], index: 4 }];
        let statement = Event::Statement(world.sign(Decision::Erasure(erased.clone())));
        assert_eq!(take(&mut replay, NOW, statement), Ok(Effect::Erases(erased)));
        assert!(replay.map().is_empty());
        assert_eq!((replay.next(), replay.last()), (7, NOW));
    }

    #[test]
    fn what_the_rules_forbid_is_named_and_changes_nothing() {
        let (mut world, mut replay) = world();
        let stands = change([7; 4], None);
        take(&mut replay, NOW, Event::RecordChange(stands)).unwrap();
        let mut wrong = |what: &str, at: Timestamp, event: Event| {
            assert!(take(&mut replay, at, event).is_err(), "{what}");
            assert_eq!(replay.next(), 4, "{what}");
            let under: Vec<_> = replay.map().under([7; 4]).iter().map(Item::index).collect();
            assert_eq!(under, [3], "{what}");
        };
        wrong("time", NOW.before(Duration::from_millis(1)), Event::RecordChange(change([8; 4], None)));
        wrong("previous entry", NOW, Event::RecordChange(change([7; 4], Some(2))));
        wrong("root of another map", NOW, Event::MapRoot(Map::default().root()));
        let erased = Decision::Erasure(vec![ErasedRecord { handle_prefix: [7; 4], index: 9 }]);
        wrong("erased what does not stand", NOW, Event::Statement(world.sign(erased)));
        wrong("statement logged twice", NOW, world.log[0].clone());
        wrong("ceremony concluded twice", NOW, world.log[2].clone());
        let own = world
            .sign(Decision::Entitlement(crate::statement::Entitlement { administration: None, per_day: 1 }));
        let unsigned = chancery_proto::directory::v1::SignedStatement { signatures: Vec::new(), ..own };
        wrong("statement without governance", NOW, Event::Statement(unsigned));
        world.log.clear();
    }
}
