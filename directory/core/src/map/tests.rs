//! The map against a plain set, and proofs that lie.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn change(prefix: u32, previous_index: Option<u64>, seed: u64) -> RecordChange {
    let mut commitment = [0; 32];
    commitment[..8].copy_from_slice(&seed.to_be_bytes());
    let handle_prefix = prefix.to_be_bytes();
    RecordChange { handle_prefix, previous_index, commitment, pending: false, ends_index: None }
}

fn apply(map: &mut Map, change: &RecordChange, index: u64) -> Result<(), Error> {
    map.apply(change, index, at(index))
}

fn at(index: u64) -> Timestamp {
    Timestamp::from_millis(1_790_000_000_000 + index as i64)
}

/// A map of many handles, evenly spread but for some that share 32 bits.
fn large(count: u64) -> Map {
    let mut map = Map::default();
    for index in 0..count {
        let prefix = if index % 10 == 0 { 7 } else { (index as u32).wrapping_mul(2_654_435_761) };
        apply(&mut map, &change(prefix, None, index), index).unwrap();
    }
    map
}

fn prefix(head: u32, bits: u32) -> Prefix {
    Prefix::from_bits(head, bits)
}

#[derive(Clone, Debug)]
enum Op {
    Put(u32),
    Change(usize),
    Remove(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Few distinct heads, so that buckets split and merge again.
    let op = prop_oneof![
        4 => (0_u32..64, any::<u16>()).prop_map(|(head, low)| Op::Put(head << 26 | u32::from(low))),
        2 => any::<usize>().prop_map(Op::Change),
        3 => any::<usize>().prop_map(Op::Remove),
    ];
    proptest::collection::vec(op, 0..1_200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn shape_and_root_follow_from_the_items_alone(ops in ops(), head: u32, bits in 0_u32..=32) {
        let (mut map, mut plain) = (Map::default(), BTreeSet::new());
        for (index, op) in (0_u64..).zip(ops) {
            let pick = |nth: usize, plain: &BTreeSet<Item>| plain.iter().nth(nth % plain.len().max(1)).copied();
            match op {
                Op::Put(prefix) => {
                    let change = change(prefix, None, index);
                    apply(&mut map, &change, index).unwrap();
                    plain.insert(Item::new(&change, index, at(index)));
                }
                Op::Change(nth) => if let Some(item) = pick(nth, &plain) {
                    let change = change(item.prefix, Some(item.index), index);
                    apply(&mut map, &change, index).unwrap();
                    plain.remove(&item);
                    plain.insert(Item::new(&change, index, at(index)));
                },
                Op::Remove(nth) => if let Some(item) = pick(nth, &plain) {
                    prop_assert!(map.remove(item.prefix(), item.index));
                    prop_assert!(!map.remove(item.prefix(), item.index));
                    plain.remove(&item);
                },
            }
            // Settled now and then, as roots are logged.
            if index % 97 == 0 {
                map.root();
            }
        }
        let items: Vec<_> = plain.iter().copied().collect();
        prop_assert_eq!(map.len(), items.len());
        let before = map.part(prefix(head, bits), bits).into_place();
        let root = map.root();
        prop_assert_eq!(root, Sum::of(&items, 0));
        let part = map.part(prefix(head, bits), bits);
        let (own, place) = (part.sum(), part.into_place());
        prop_assert_eq!(&before, &place);
        prop_assert_eq!(own, Sum::of(&place.items, place.siblings.len() as u32));
        let mut shuffled = items.clone();
        shuffled.reverse();
        prop_assert_eq!(Map::from_items(shuffled).unwrap().root(), root);
        prop_assert!(items.iter().all(|item| Item::from_bytes(&item.to_bytes()) == Some(*item)));
        place.verify(prefix(head, bits), bits, &root).unwrap();
        let under = |item: &&Item| prefix(item.prefix, bits) == prefix(head, bits);
        prop_assert!(items.iter().filter(under).all(|item| place.items.contains(item)));
    }
}

#[test]
fn every_lie_about_a_place_is_caught() {
    let mut map = large(3_000);
    let root = map.root();
    let bits = 4;
    for head in [0, 7, 1 << 31, u32::MAX] {
        let prefix = prefix(head, bits);
        let honest = map.part(prefix, bits).into_place();
        honest.verify(prefix, bits, &root).unwrap();
        let lie = |change: &dyn Fn(&mut proof::Place)| {
            let mut place = honest.clone();
            change(&mut place);
            place.verify(prefix, bits, &root).unwrap_err();
        };
        // A record dropped, put, exchanged, shown twice.
        lie(&|p| p.items.truncate(p.items.len() - 1));
        lie(&|p| p.items.rotate_left(1));
        lie(&|p| p.items = p.items[1..].to_vec());
        lie(&|p| p.items.push(Item { index: u64::MAX, ..p.items[p.items.len() - 1] }));
        lie(&|p| p.items[0].commitment[31] ^= 1);
        lie(&|p| p.items[0].index ^= 1);
        lie(&|p| p.items[0].kind = Kind::Pending);
        lie(&|p| p.items[0].sequenced_at = Timestamp::from_millis(1));
        lie(&|p| p.items.insert(0, p.items[0]));
        lie(&|p| p.items.swap(0, 1));
        // Sums that hide items elsewhere, or another place.
        lie(&|p| p.siblings[0].items += 1);
        lie(&|p| p.siblings[0].hash[0] ^= 1);
        lie(&|p| p.siblings.swap(0, 1));
        lie(&|p| p.siblings.truncate(p.siblings.len() - 1));
        lie(&|p| p.siblings.push(p.siblings[0]));
        assert!(honest.verify(Prefix::from_bits(!head, bits), bits, &root).is_err());
        assert!(honest.verify(prefix, bits, &Sum { items: root.items - 1, ..root }).is_err());
    }
    // The root of a day before.
    let old = large(2_999).root();
    let prefix = prefix(0, bits);
    assert!(map.part(prefix, bits).into_place().verify(prefix, bits, &old).is_err());
}

#[test]
fn buckets_have_the_size_that_the_rule_gives_them() {
    // A directory that cuts a small map into slivers is caught by the counts.
    let mut map = large(100);
    let root = map.root();
    let whole = map.part(prefix(0, 8), 8).into_place();
    assert_eq!((whole.siblings.len(), whole.items.len()), (0, 100));
    let (left, right) = whole.items.split_at(whole.items.partition_point(|item| !bit(item.prefix, 0)));
    let sliver = proof::Place { siblings: vec![Sum::of(right, 1)], items: left.to_vec() };
    let split = Sum::inner(&Sum::of(left, 1), &Sum::of(right, 1));
    assert!(matches!(sliver.verify(prefix(0, 8), 8, &split), Err(Error::Proof(_))));
    assert!(sliver.verify(prefix(0, 8), 8, &root).is_err());
    // One that does not split is caught as well.
    let mut map = large(1_000);
    map.root();
    let mut all = Vec::new();
    map.root.collect(&mut all);
    let flat = proof::Place { siblings: Vec::new(), items: all.clone() };
    assert!(flat.verify(prefix(0, 8), 8, &Sum::bucket(&all)).is_err());
    // What shares 32 bits stays together.
    let mut map = large(3_000);
    let deepest = map.part(prefix(7, 32), 32).into_place();
    assert_eq!((deepest.siblings.len(), deepest.items.len()), (32, 300));
    deepest.verify(prefix(7, 32), 32, &map.root()).unwrap();
}

#[test]
fn a_log_that_breaks_its_rules_is_noticed() {
    let mut map = Map::default();
    assert!(map.is_empty());
    let mut take = |change: &RecordChange, index| apply(&mut map, change, index).map(|()| map.len());
    assert_eq!(take(&change(1, None, 0), 0), Ok(1));
    assert!(take(&change(1, Some(5), 0), 6).is_err(), "the previous entry does not stand");
    assert!(take(&change(2, Some(0), 0), 6).is_err(), "it is another handle's");
    assert!(take(&change(1, None, 0), 0).is_err(), "twice");
    assert_eq!(take(&change(1, Some(0), 0), 7), Ok(1));
    // A pending one stands beside the live one, and ends with a change.
    let pending = RecordChange { pending: true, ..change(1, Some(7), 1) };
    assert_eq!(take(&pending, 8), Ok(2));
    assert!(take(&change(1, Some(8), 0), 9).is_err(), "a pending one is not the record");
    let ends = |ends_index| RecordChange { ends_index, ..change(1, Some(7), 2) };
    assert!(take(&ends(Some(7)), 9).is_err(), "a record is not pending");
}

#[test]
fn a_channel_has_one_item_and_no_record_takes_its_place() {
    let item = |index, seed| Item::of_channel([0, 0, 0, 1], index, at(index), [seed; 32]);
    let mut map = Map::default();
    apply(&mut map, &change(1, None, 0), 0).unwrap();
    map.put_channel(item(1, 1), None).unwrap();
    map.put_channel(item(2, 2), Some(1)).unwrap();
    assert_eq!(map.under([0, 0, 0, 1]).iter().map(Item::index).collect::<Vec<_>>(), [0, 2]);
    assert!(map.clone().put_channel(item(3, 3), Some(1)).is_err(), "it stands no more");
    assert!(map.clone().put_channel(item(3, 3), Some(0)).is_err(), "it is a record");
    assert!(map.clone().put_channel(item(2, 3), None).is_err(), "the entry was taken");
    assert!(apply(&mut map, &change(1, Some(2), 0), 3).is_err(), "a record follows on a channel");
    assert!(!map.remove([0, 0, 0, 1], 2), "a channel is erased");
    let bytes = item(2, 2).to_bytes();
    assert_eq!(Item::from_bytes(&bytes), Some(item(2, 2)));
    let mut unknown = bytes;
    unknown[20] = 3;
    assert_eq!(Item::from_bytes(&unknown), None);
}

#[test]
fn a_change_ends_what_is_pending_and_an_erasure_takes_out() {
    let mut map = Map::default();
    apply(&mut map, &change(1, None, 0), 0).unwrap();
    let kept = map.clone();
    apply(&mut map, &RecordChange { pending: true, ..change(1, Some(0), 1) }, 1).unwrap();
    apply(&mut map, &RecordChange { ends_index: Some(1), ..change(1, Some(0), 2) }, 2).unwrap();
    assert_eq!(map.under([0, 0, 0, 1]).iter().map(Item::index).collect::<Vec<_>>(), [2]);
    assert!(map.remove([0, 0, 0, 1], 2) && map.is_empty());
    // The copy is as it was.
    assert_eq!(kept.under([0, 0, 0, 1]).iter().map(Item::index).collect::<Vec<_>>(), [0]);
    assert!(kept.under([0; 4]).is_empty());
}
