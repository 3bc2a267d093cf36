//! The map: changes against a plain list of items; parts of it, proven to those who look up, with
//! something changed; and whole answers to lookups.

use crate::Target;
use crate::input::{Steps, message};
use crate::record::records;
use crate::world::{BITS, NOW, Owner, WORLD, inclusion, leaf};
use bytes::Bytes;
use chancery_directory_core::Prefix;
use chancery_directory_core::attestation::SchemeName;
use chancery_directory_core::entry::{Event, Leaf, RecordChange};
use chancery_directory_core::lookup::{MAX_PLACE, VerifiedLookup};
use chancery_directory_core::map::proof::Place;
use chancery_directory_core::map::{Item, MAX_ITEMS, Map, Sum};
use chancery_proto::directory::v1 as wire;
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Changes of a map.
pub(crate) const MAP: Target = Target { name: "map", run: changes, seeds: changes_seeds };
/// A part of a map and what is changed in it.
pub(crate) const PLACE: Target = Target { name: "map_place", run: place, seeds: place_seeds };
/// The answer to a lookup.
pub(crate) const LOOKUP: Target = Target { name: "lookup", run: lookup, seeds: lookup_seeds };

/// What a plain list knows of a map.
type Model = BTreeMap<([u8; 4], u64), Item>;

/// Maps to begin with, beside an empty one: their buckets are all but full, so that some changes split
/// them, and some more merge them again.
static BEGUN: LazyLock<Vec<(Map, Model)>> = LazyLock::new(|| {
    let spreads: [&[u32]; 6] = [&[], &[0], &[1], &[2], &[3], &[0, 3]];
    spreads.map(begun).into()
});

/// A map of 120 items of each spread.
fn begun(spreads: &[u32]) -> (Map, Model) {
    let heads = spreads.iter().flat_map(|spread| (0..120).map(|n| head(*spread, n)));
    let items = (0..).zip(heads).map(|(index, head)| item(&put(head, index), index));
    let model: Model = items.map(|item| ((item.prefix(), item.index()), item)).collect();
    let mut map = Map::from_items(model.values().copied().collect()).unwrap();
    map.root();
    (map, model)
}

fn put(handle_prefix: [u8; 4], index: u64) -> RecordChange {
    let mut commitment = [6; 32];
    commitment[..8].copy_from_slice(&index.to_be_bytes());
    RecordChange { handle_prefix, previous_index: None, commitment, pending: false, ends_index: None }
}

/// The item of a change, which encoded and decoded again is the same.
fn item(change: &RecordChange, index: u64) -> Item {
    let item = Item::new(change, index, NOW);
    assert!(Item::from_bytes(&item.to_bytes()) == Some(item), "an item changes by encoding");
    item
}

/// The n-th handle's first bytes: far apart, or all but alike.
fn head(spread: u32, n: u32) -> [u8; 4] {
    let bits = match spread {
        0 => n.reverse_bits(),
        1 => n,
        2 => n << 24,
        _ => 0xabcd_0000 | n & 1,
    };
    bits.to_be_bytes()
}

fn changes(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let (mut map, mut model) = steps.of(&BEGUN).clone();
    let (mut index, mut taken) = (model.len() as u64, 0);
    while steps.more(taken, 6) {
        taken += 1;
        let spread = steps.below(4);
        match steps.below(4) {
            0..2 => {
                let first = steps.below(300);
                for n in first..first + steps.below(16) {
                    let change = put(head(spread, n), index);
                    assert!(map.apply(&change, index, NOW).is_ok());
                    model.insert((change.handle_prefix, index), item(&change, index));
                    index += 1;
                }
            }
            2 => {
                let some: Vec<_> = model.keys().copied().step_by(steps.below(5) as usize + 1).collect();
                for (prefix, index) in some.into_iter().take(steps.below(40) as usize) {
                    assert!(map.remove(prefix, index) && !map.remove(prefix, index));
                    model.remove(&(prefix, index));
                }
            }
            _ => {
                // What stands already is not put again; what does not stand is not replaced.
                let before = map.clone().root();
                let mut copy = map.clone();
                let change = RecordChange { previous_index: Some(index), ..put(head(spread, 1), index) };
                assert!(copy.apply(&change, index + 1, NOW).is_err());
                if let Some(((prefix, index), _)) = model.first_key_value() {
                    assert!(copy.apply(&put(*prefix, *index), *index, NOW).is_err());
                }
                assert!(map.root() == before, "a copy's change shows");
            }
        }
        let (prefix, bits) = (Prefix::from_bits(steps.number() as u32, 32), steps.below(33));
        part(&mut map, &model, Prefix::from_bits(u32::from_be_bytes(prefix.to_bytes()), bits), bits);
    }
    assert!(map.len() == model.len() && map.is_empty() == model.is_empty());
    let mut again = Map::from_items(model.into_values().rev().collect()).unwrap();
    assert!(again.root() == map.root(), "a map's root depends on how it came to be");
}

/// Whatever part is asked for holds all of the model's items under it, and is proven.
fn part(map: &mut Map, model: &Model, prefix: Prefix, bits: u32) {
    let root = map.root();
    let place = map.part(prefix, bits).into_place();
    assert!(place.verify(prefix, bits, &root) == Ok(()), "a genuine part does not verify");
    let found: Vec<_> = place.items.iter().filter(|item| item.is_under(prefix, bits)).collect();
    let (first, span) = (u32::from_be_bytes(prefix.to_bytes()), u32::MAX.checked_shr(bits).unwrap_or(0));
    let under = (first.to_be_bytes(), 0)..=((first | span).to_be_bytes(), u64::MAX);
    assert!(found.into_iter().eq(model.range(under).map(|(_, item)| item)), "a part leaves something out");
}

fn changes_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![0; 100],
        (0..=255).collect(),
        vec![200; 120],
        (0..200).map(|n: u8| n.wrapping_mul(91)).collect(),
    ]
}

/// A map of 700 handles, of which many are under one prefix.
static STANDING: LazyLock<(Map, Vec<Item>)> = LazyLock::new(|| {
    let items = (0..700).map(|n: u32| {
        let head = if n < 400 { head(0, n) } else { (0xabc0_0000 + n).to_be_bytes() };
        Item::new(&put(head, n.into()), n.into(), NOW)
    });
    let items: Vec<_> = items.collect();
    let mut map = Map::from_items(items.clone()).unwrap();
    map.root();
    (map, items)
});

fn place(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let (map, items) = &*STANDING;
    let root = map.clone().root();
    let bits = steps.below(33);
    let near = u32::from_be_bytes(steps.of(items).prefix());
    let prefix = Prefix::from_bits(if steps.flip() { near } else { steps.number() as u32 }, bits);
    let mut place = map.part(prefix, bits).into_place();
    tamper(&mut steps, &mut place);
    let root = if steps.below(8) == 0 { Sum { items: root.items ^ 1, ..root } } else { root };
    if place.verify(prefix, bits, &root).is_ok() {
        let mut expected: Vec<_> = items.iter().filter(|item| item.is_under(prefix, bits)).copied().collect();
        expected.sort_by_key(|item| (item.prefix(), item.index()));
        let found: Vec<_> = place.items.iter().filter(|item| item.is_under(prefix, bits)).copied().collect();
        assert!(found == expected, "something is left out, or made up");
        assert!(place.items.len() <= MAX_ITEMS.max(expected.len()));
    }
}

fn tamper(steps: &mut Steps<'_>, place: &mut Place) {
    let others = &STANDING.1;
    for _ in 0..steps.below(4) {
        let at = steps.below(place.items.len() as u32 + 1) as usize;
        let beside = steps.below(place.siblings.len() as u32 + 1) as usize;
        match steps.below(8) {
            0 if at < place.items.len() => drop(place.items.remove(at)),
            1 => place.items.insert(at, *steps.of(others)),
            2 if at < place.items.len() => {
                let mut bytes = place.items[at].to_bytes();
                bytes[steps.below(53) as usize] ^= 1 << steps.below(8);
                if let Some(item) = Item::from_bytes(&bytes) {
                    place.items[at] = item;
                }
            }
            3 => place.items.truncate(at),
            4 if beside < place.siblings.len() => drop(place.siblings.remove(beside)),
            5 => {
                let sum = Sum { items: u64::from(steps.below(300)), hash: [0; 32] };
                place.siblings.insert(beside, sum);
            }
            6 if beside < place.siblings.len() => {
                let sibling = &mut place.siblings[beside];
                sibling.items = sibling.items.wrapping_add(u64::from(steps.below(5))).wrapping_sub(2);
            }
            7 if beside < place.siblings.len() => place.siblings.swap(0, beside),
            _ => {}
        }
    }
}

fn place_seeds() -> Vec<Vec<u8>> {
    vec![vec![0; 20], vec![8, 200, 1, 1, 0, 3, 0], vec![32, 5, 5, 1, 2, 3, 4], (0..60).collect()]
}

/// Who stands in the world's map: two under one prefix, two elsewhere.
static OWNERS: LazyLock<Vec<Owner>> = LazyLock::new(|| {
    let heads = [[0x10, 0, 0, 1], [0x1f, 0, 0, 2], [0x80, 0, 0, 3], [0xf0, 0, 0, 4]];
    (0..).zip(heads).map(|(number, head)| Owner::new(number, head)).collect()
});

fn prefixes() -> [Prefix; 2] {
    [Prefix::of(&OWNERS[0].handle, BITS), Prefix::of(&OWNERS[2].handle, BITS)]
}

static ANSWER: LazyLock<wire::LookupResponse> = LazyLock::new(answer);

/// The records and the root of their map in a log behind what governs.
fn answer() -> wire::LookupResponse {
    let salt = [3; 32];
    let (mut leaves, mut map, mut bodies) = (WORLD.leaves(), Map::default(), BTreeMap::new());
    let standing = OWNERS.iter().map(Owner::record);
    // A re-enrolment that is pending: its account is another.
    let contested = Owner { account: crate::world::key(78), ..Owner::new(1, [0x1f, 0, 0, 2]) };
    let [_, pending, _] = records(&contested);
    for (record, is_pending) in standing.map(|record| (record, false)).chain([(pending, true)]) {
        let index = leaves.len() as u64;
        let read = chancery_directory_core::record::SignedRecord::try_from(record.clone()).unwrap();
        let mut change = RecordChange::new(read.handle(), None, &salt, &record);
        change.pending = is_pending;
        map.apply(&change, index, NOW).unwrap();
        leaves.push(leaf(NOW, Event::RecordChange(change)));
        bodies.insert(index, (record, is_pending));
    }
    let root = leaves.len();
    leaves.push(leaf(NOW, Event::MapRoot(map.root())));
    let hashes: Vec<_> = leaves.iter().map(Leaf::hash).collect();
    let path = inclusion(&hashes, root).iter().map(|hash| Bytes::copy_from_slice(hash)).collect();
    let entry = wire::LoggedEntry {
        entry: leaves[root].bytes().clone(),
        inclusion: Some(wire::InclusionProof { index: root as u64, path }),
    };
    let logged =
        wire::LoggedRoot { entry: Some(entry), checkpoint: WORLD.checkpoint(&leaves).note().clone() };
    let place = |prefix| {
        let part = map.part(prefix, BITS);
        let siblings = part.siblings().iter().map(Into::into).collect();
        let items = part.items().into_iter().map(|item| read_back(&item, prefix, &bodies)).collect();
        wire::Place { root: 0, siblings, items: wire::MapItems { items }.encode_to_vec().into() }
    };
    wire::LookupResponse { places: prefixes().map(place).to_vec(), roots: vec![logged] }
}

/// An item as the directory sends it: whole under the prefix, bare elsewhere.
fn read_back(
    item: &Item,
    prefix: Prefix,
    bodies: &BTreeMap<u64, (wire::SignedRecord, bool)>,
) -> wire::MapItem {
    use wire::map_item::Content;
    let (record, pending) = bodies[&item.index()].clone();
    let content = if item.is_under(prefix, BITS) {
        Content::Body(wire::RecordBody { record: Some(record), salt: vec![3; 32].into() })
    } else {
        Content::Bare(wire::BareItem {
            handle_prefix: item.prefix().to_vec().into(),
            commitment: item.commitment().to_vec().into(),
            channel: false,
        })
    };
    let sequenced_at_ms = item.sequenced_at().millis();
    wire::MapItem { index: item.index(), sequenced_at_ms, pending, content: Some(content) }
}

fn lookup(bytes: &[u8]) {
    let Some(response) = message::<wire::LookupResponse>(bytes) else { return };
    let Ok(found) = WORLD.trust.verify_lookup(response, &prefixes(), BITS, NOW) else { return };
    assert!(found.roots().iter().all(|root| root.checkpoint.note() == &ANSWER.roots[0].checkpoint));
    let scheme: SchemeName = "be-nn".parse().unwrap();
    let wanted: Vec<_> = OWNERS.iter().take(3).map(|owner| (owner.handle, scheme.clone())).collect();
    let together = found.find_all(&wanted, &WORLD.state);
    for ((owner, (handle, scheme)), result) in OWNERS.iter().zip(&wanted).zip(together) {
        let alone = found.find(handle, scheme, &WORLD.state).expect("a genuine record is not believed");
        let alone = alone.expect("a record that stands is left out");
        assert!(*alone.record.wire() == owner.record(), "another record is proven");
        let together = result.expect("a genuine record is not believed among others").unwrap();
        assert!(together.record.wire() == alone.record.wire());
        assert!(alone.open(&owner.record_key) == Ok(owner.address()));
    }
    assert!(found.find(&OWNERS[3].handle, &scheme, &WORLD.state).is_err(), "nobody asked for this handle");
    pending(&found);
}

fn pending(found: &VerifiedLookup) {
    let contested = found.pending(&OWNERS[1].handle, &WORLD.state);
    assert!(contested.is_ok_and(|record| record.is_some()), "a pending re-enrolment is left out");
    assert!(MAX_PLACE >= OWNERS.len());
}

fn lookup_seeds() -> Vec<Vec<u8>> {
    let whole = ANSWER.clone();
    let twice =
        wire::LookupResponse { roots: [whole.roots.clone(), whole.roots.clone()].concat(), ..whole.clone() };
    [whole, twice].map(|answer| answer.encode_to_vec()).to_vec()
}
