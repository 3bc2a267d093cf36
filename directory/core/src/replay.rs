//! Replaying a log: what governs and the map follow from its entries alone. A mirror
//! and an auditor believe a directory's roots because they come to the same.

use crate::ceremony::conclusion::Conclusion;
use crate::channel::SignedChannel;
use crate::channels::{Channels, Head, Judgement, Place};
use crate::entry::{Event, Leaf, RecordChange};
use crate::manifest::SignedManifest;
use crate::map::{Item, Map, Sum};
use crate::state::Admission;
use crate::statement::{Decision, ErasedRecord};
use crate::totals::EvaluationTotals;
use crate::{Error, FederationState, GovernanceKeys, governance};
use chancery_types::{ChannelId, Timestamp};
use std::sync::Arc;

/// A log as far as it was replayed.
#[derive(Clone, Debug)]
pub struct Replay {
    federation: String,
    governance: GovernanceKeys,
    state: FederationState,
    channels: Channels,
    map: Map,
    next: u64,
    last: Timestamp,
}

/// What stands when a log was replayed so far.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// What governs.
    pub state: FederationState,
    /// What stands for channels.
    pub channels: Channels,
    /// What stands for all handles and channels.
    pub map: Map,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The map changed.
    Record(RecordChange),
    /// The map changed: what stands for a channel.
    Channel(ChannelChange),
    /// What governs changed.
    Governs,
    /// Records were erased.
    Erases(Vec<ErasedRecord>),
    /// The map's root was logged, and is right.
    Root(Sum),
    /// Nothing that is kept here.
    Nothing,
}

/// What stands for a channel, after an entry about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelChange {
    /// The channel.
    pub id: ChannelId,
    /// Its item in the map …
    pub item: Item,
    /// … and the entry whose place that takes.
    pub before: Option<u64>,
    /// Entry that holds its latest version.
    pub channel_index: u64,
    /// Sequence and hash of the broadcast that was logged, if one was.
    pub manifest: Option<(u64, [u8; 32])>,
}

impl ChannelChange {
    /// Puts a head into the map.
    ///
    /// # Errors
    /// The entry that it follows does not stand.
    pub fn apply(
        map: &mut Map,
        head: &Head,
        before: Option<u64>,
        manifest: Option<(u64, [u8; 32])>,
    ) -> Result<Self, Error> {
        let item = head.item();
        map.put_channel(item, before)?;
        let (id, channel_index) = (head.channel.channel().id, head.channel_index);
        Ok(Self { id, item, before, channel_index, manifest })
    }
}

impl Replay {
    /// A log of which nothing was replayed.
    pub fn new(federation: &str, governance: GovernanceKeys) -> Self {
        let start = Timestamp::from_millis(i64::MIN);
        Self::resumed(federation, governance, Standing::default(), 0, start)
    }

    /// As kept after `next` entries, the last of which was sequenced at `last`.
    pub fn resumed(
        federation: &str,
        governance: GovernanceKeys,
        standing: Standing,
        next: u64,
        last: Timestamp,
    ) -> Self {
        let Standing { state, channels, map } = standing;
        Self { federation: federation.to_owned(), governance, state, channels, map, next, last }
    }

    /// What governs.
    pub const fn state(&self) -> &FederationState {
        &self.state
    }

    /// What stands for channels.
    pub const fn channels(&self) -> &Channels {
        &self.channels
    }

    /// What stands for all handles and channels.
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
            Event::Channel(signed) => {
                let signed = SignedChannel::try_from(signed)?;
                if self.channels.judge(&signed, &self.federation, &self.state)? != Judgement::New {
                    return Err(Error::Proof("a version of a channel is logged twice"));
                }
                let mut channels = self.channels.clone();
                let (head, before) = channels.apply(signed, index, at);
                self.put(channels, &head, before, None)?
            }
            Event::Manifest(signed) => {
                let signed = SignedManifest::try_from(signed)?;
                if self.channels.judge_manifest(&signed, &self.state, at)? != Place::Next {
                    return Err(Error::Proof("a sequence of a channel is logged twice"));
                }
                let mut channels = self.channels.clone();
                let (head, before) = channels.apply_manifest(&signed, index, at)?;
                self.put(channels, &head, before, Some((signed.manifest().sequence, signed.hash())))?
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

    fn put(
        &mut self,
        channels: Channels,
        head: &Arc<Head>,
        before: Option<u64>,
        manifest: Option<(u64, [u8; 32])>,
    ) -> Result<Effect, Error> {
        let mut map = self.map.clone();
        let change = ChannelChange::apply(&mut map, head, before, manifest)?;
        (self.map, self.channels) = (map, channels);
        Ok(Effect::Channel(change))
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
    use crate::manifest::{Manifest, NONE};
    use crate::testing::{FEDERATION, NOW, World, channel, manifest};
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
    fn a_log_says_what_stands_for_channels() {
        let (mut world, mut replay) = world();
        world.list_agent(true);
        assert_eq!(take(&mut replay, NOW, world.log[3].clone()), Ok(Effect::Governs));
        let published = channel(&world).sign(&world.agent);
        let put = take(&mut replay, NOW, Event::Channel(published.clone())).unwrap();
        let Effect::Channel(change) = put else { panic!("a channel does something else") };
        assert_eq!((change.before, change.channel_index, change.manifest), (None, 4, None));
        assert!(take(&mut replay, NOW, Event::Channel(published)).is_err(), "a version logged twice");
        let first = SignedManifest::try_from(manifest(1, NONE).sign(&world.agent)).unwrap();
        let put = take(&mut replay, NOW, Event::Manifest(first.wire().clone())).unwrap();
        let Effect::Channel(change) = put else { panic!("a manifest does something else") };
        assert_eq!((change.before, change.channel_index), (Some(4), 4));
        assert_eq!(change.manifest, Some((1, first.hash())));
        assert_eq!(replay.map().under(change.item.prefix()), [change.item], "one item for a channel");
        let other = Manifest { blob_size: 2, ..manifest(1, NONE) }.sign(&world.agent);
        let next = manifest(2, first.hash()).sign(&world.agent);
        let root = replay.map().clone().root();
        for (what, wrong) in [
            ("a second manifest of a sequence", Event::Manifest(other)),
            ("the same manifest again", Event::Manifest(first.wire().clone())),
            ("a stranger's", Event::Manifest(manifest(2, first.hash()).sign(&world.account))),
            ("one that follows on nothing", Event::Manifest(manifest(3, first.hash()).sign(&world.agent))),
        ] {
            assert!(take(&mut replay, NOW, wrong).is_err(), "{what}");
            assert_eq!((replay.next(), replay.map().clone().root()), (6, root), "{what}");
        }
        // An agent that is listed no more broadcasts nothing more.
        let mut unlisted = replay.clone();
        world.list_agent(false);
        take(&mut unlisted, NOW, world.log[4].clone()).unwrap();
        assert!(take(&mut unlisted, NOW, Event::Manifest(next.clone())).is_err());
        take(&mut replay, NOW, Event::Manifest(next)).unwrap();
        let id = channel(&world).id;
        assert_eq!(replay.channels().head(&id).unwrap().latest.unwrap().sequence, 2);
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
