//! What broadcasts bring a node: lists of seats from residents' homes, and what agents have for cells.

use crate::Target;
use crate::input::message;
use crate::mls::{private_message, welcome};
use crate::world::NOW;
use bytes::Bytes;
use chancery_node_core::cell::{
    Announcement, CellChange, Closed, MAX_JOINING, MAX_LEAVING, MAX_SEATS, ROW, SeatList, WRAP, Wraps,
    check_seats, wrap_of,
};
use chancery_node_core::framing::ContentType;
use chancery_proto::federation::v1 as federation;
use chancery_proto::node::v1 as wire;
use chancery_types::{GroupId, NodeId};
use federation::parcel::Parcel;
use prost::Message as _;
use std::collections::BTreeSet;
use wire::cell_item::Item;

/// A list of seats.
pub(crate) const SEATS: Target = Target { name: "seat_list", run: seats, seeds: seats_seeds };
/// Something for cells.
pub(crate) const ITEM: Target = Target { name: "cell_item", run: item, seeds: item_seeds };

fn seats(bytes: &[u8]) {
    enter_seats(Bytes::copy_from_slice(bytes));
}

/// Takes a list of seats through its door.
pub(crate) fn enter_seats(bytes: Bytes) {
    let Ok(list) = SeatList::decode(bytes.clone()) else { return };
    assert!(list.joining.len() <= MAX_JOINING && list.leaving.len() <= MAX_LEAVING);
    let again = SeatList::decode(list.encode().into()).expect("a list that was written is not read");
    assert!(again.encode() == list.encode(), "a list changes by encoding");
    // As a parcel of the node that it names, and of another.
    let parcel = parcel(bytes);
    assert!(check_seats(&parcel, &list.node).is_ok());
    let other: NodeId = if list.node.as_str() == "a" { "b" } else { "a" }.parse().unwrap();
    assert!(check_seats(&parcel, &other).is_err(), "a node speaks for another's residents");
}

fn seats_seeds() -> Vec<Vec<u8>> {
    lists().iter().map(federation::SeatList::encode_to_vec).collect()
}

fn lists() -> [federation::SeatList; 2] {
    let seat = federation::JoiningSeat {
        seat_id: vec![1; 16].into(),
        key_package: vec![2; 40].into(),
        invitation: vec![3; 48].into(),
    };
    let list = federation::SeatList {
        federation: "fed.example".to_owned(),
        channel_id: vec![4; 16].into(),
        node: "north".to_owned(),
        joining: vec![seat.clone(), federation::JoiningSeat { seat_id: vec![5; 16].into(), ..seat }],
        leaving: vec![vec![6; 16].into(), vec![7; 16].into()],
        counts: vec![federation::BroadcastCount { sequence: 3, delivered: 40, read: 21 }],
    };
    let leaving = federation::SeatList { joining: Vec::new(), ..list.clone() };
    [list, leaving]
}

fn parcel(list: Bytes) -> federation::Seats {
    federation::Seats {
        agent_alias: vec![1; 16].into(),
        list,
        signature: vec![2; 70].into(),
        key: vec![3; 91].into(),
    }
}

fn item(bytes: &[u8]) {
    if let Some(wire::CellItem { item: Some(item) }) = message(bytes) {
        enter(item);
    }
}

/// Takes something for cells through its door.
pub(crate) fn enter(item: Item) {
    match item {
        Item::Change(said) => {
            let Ok(change) = CellChange::from_wire(said.clone(), NOW) else { return };
            assert!(change.admitted.len() == said.admitted.len() && change.admitted.len() <= MAX_SEATS);
            let seats: BTreeSet<_> =
                change.admitted.iter().map(|(seat, _)| seat).chain(&change.removed).collect();
            assert!(seats.len() == change.admitted.len() + change.removed.len(), "a seat stands twice");
            for (_, part) in &change.admitted {
                assert!(part.len() <= said.welcome.len() + 4, "a part is larger than the whole");
            }
        }
        Item::Wraps(said) => {
            let Ok(wraps) = Wraps::try_from(said) else { return };
            let cells = u32::try_from(wraps.wraps.len() / WRAP).unwrap();
            assert!((1..=ROW).contains(&cells));
            for cell in 0..=cells {
                let wrap = wrap_of(&wraps.wraps, wraps.row * ROW + cell);
                assert!(wrap.is_none_or(|wrap| wrap.len() == WRAP && cell < cells));
            }
        }
        Item::Announcement(said) => {
            let Ok(new) = Announcement::from_wire(said.clone(), NOW) else { return };
            assert!(new.sequence > 0 && new.logged_manifest == said.logged_manifest);
        }
        Item::Closed(said) => {
            let Ok(closed) = Closed::try_from(said.clone()) else { return };
            assert!(closed.closing.as_slice() == said.closing_id.as_ref());
        }
    }
}

fn item_seeds() -> Vec<Vec<u8>> {
    items().map(|item| wire::CellItem { item: Some(item) }.encode_to_vec()).to_vec()
}

/// A parcel of each kind that broadcasts have.
pub(crate) fn parcels() -> impl Iterator<Item = Parcel> {
    let seats = lists().map(|list| parcel(list.encode_to_vec().into()));
    let item = |item| match item {
        Item::Change(change) => Parcel::CellChange(change),
        Item::Announcement(announcement) => Parcel::Announcement(announcement),
        Item::Wraps(wraps) => Parcel::Wraps(wraps),
        Item::Closed(closed) => Parcel::CellsClosed(closed),
    };
    seats.map(Parcel::Seats).into_iter().chain(items().map(item))
}

fn items() -> [Item; 5] {
    let group = GroupId::from_bytes([7; 32]);
    let admitted = |byte: u8| federation::AdmittedSeat {
        seat_id: vec![byte + 10; 16].into(),
        key_package_ref: vec![byte; 32].into(),
    };
    let change = federation::CellChange {
        channel_id: vec![1; 16].into(),
        cell: 3,
        sequence: 5,
        group_id: group.to_wire(),
        epoch: 4,
        first_broadcast: 2,
        commit: private_message(&group, 3, ContentType::Commit, b"commit"),
        key: private_message(&group, 4, ContentType::Application, b"key"),
        welcome: welcome(&[0, 1], 5),
        admitted: vec![admitted(0), admitted(1)],
        tree: vec![9; 20].into(),
        removed: vec![vec![30; 16].into()],
        expires_at_ms: NOW.millis() + 1,
    };
    [
        Item::Change(change.clone()),
        Item::Change(federation::CellChange { commit: Bytes::new(), removed: Vec::new(), ..change }),
        Item::Announcement(federation::Announcement {
            channel_id: vec![1; 16].into(),
            sequence: 5,
            logged_manifest: vec![2; 30].into(),
            expires_at_ms: NOW.millis() + 1,
        }),
        Item::Wraps(federation::Wraps {
            channel_id: vec![1; 16].into(),
            sequence: 5,
            row: 1,
            wraps: [[0; 56], [1; 56]].concat().into(),
        }),
        Item::Closed(federation::CellsClosed {
            channel_id: vec![1; 16].into(),
            closing_id: vec![2; 16].into(),
        }),
    ]
}
