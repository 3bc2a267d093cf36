//! What broadcasts bring a node, as domain types: seats from the residents' homes, changes of
//! cells, announcements and wraps from the channel's agent. Wire messages become these at the
//! door, with every length and count checked. A cell has no hub: its agent alone speaks in it and
//! numbers what it says, so there is nothing to order here; rows and calls are the shell's.

use crate::framing::{self, ContentType};
use crate::parcel::{MAX_COMMIT, MAX_LIFE, MAX_SKEW, MAX_WELCOME, limit};
use crate::welcome::Welcome;
use bytes::Bytes;
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, ChannelId, GroupId, KeyPackageRef, NodeId, Refusal, SeatId, Timestamp};
use prost::Message as _;
use std::collections::HashSet;
use std::time::Duration;

/// Most seats that a change brings in, or takes out.
pub const MAX_SEATS: usize = 1024;
/// Most seats that a list brings.
pub const MAX_JOINING: usize = 256;
/// Most seats that a list gives up.
pub const MAX_LEAVING: usize = 4096;
/// Most counts of broadcasts that a list brings.
pub const MAX_COUNTS: usize = 64;
/// Largest list of seats, in bytes.
pub const MAX_LIST: usize = 1024 * 1024;
/// Largest KeyPackage of a seat, in bytes of MLSMessage.
pub const MAX_KEY_PACKAGE: usize = 16 * 1024;
/// Largest proof of an invitation, in bytes.
pub const MAX_INVITATION: usize = 256;
/// Bytes of a cell's wrap.
pub const WRAP: usize = 56;
/// Cells of a row of wraps.
pub const ROW: u32 = 1024;
/// Most cells of a channel at one node.
pub const MAX_CELLS: u32 = 1 << 24;
/// What a home node signs before a list of seats.
pub const SEATS_CONTEXT: &[u8] = b"chancery seats v1\0";
/// How long a parcel with seats is good: whose seat is in no cell by then asks again.
pub const SEATS_LIFE: Duration = Duration::from_hours(7 * 24);
/// Largest message with an epoch's key, in bytes of MLSMessage.
const MAX_KEY: usize = 16 * 1024;
/// Largest ratchet tree, in bytes.
const MAX_TREE: usize = 2 * 1024 * 1024;
/// Largest logged manifest, in bytes.
const MAX_MANIFEST: usize = 24 * 1024;
/// How far ahead a broadcast may expire.
const MAX_BROADCAST_LIFE: Duration = Duration::from_hours(400 * 24);

/// A seat that wants to be in a cell.
#[derive(Clone)]
pub struct Joining {
    /// Which.
    pub seat: SeatId,
    /// MLSMessage with its KeyPackage.
    pub key_package: Bytes,
    /// What shows that it is invited.
    pub invitation: Bytes,
}

impl Joining {
    /// Checks the parts.
    ///
    /// # Errors
    /// TOO_LARGE or INVALID_FIELD: the caller's fault.
    pub fn new(seat: &Bytes, key_package: Bytes, invitation: Bytes) -> Result<Self, Refusal> {
        limit("key_package", key_package.len(), MAX_KEY_PACKAGE)?;
        limit("invitation", invitation.len(), MAX_INVITATION)?;
        if key_package.is_empty() {
            return Err(Refusal::field("key_package is empty"));
        }
        Ok(Self { seat: seat.try_into()?, key_package, invitation })
    }
}

/// Seats of one home's residents in one channel.
#[derive(Clone)]
pub struct SeatList {
    /// The federation.
    pub federation: String,
    /// The channel.
    pub channel: ChannelId,
    /// The residents' home.
    pub node: NodeId,
    /// Who wants in.
    pub joining: Vec<Joining>,
    /// Who leaves.
    pub leaving: Vec<SeatId>,
    /// What became of broadcasts.
    pub counts: Vec<Count>,
}

/// What became of a broadcast at the residents of a node: sums with noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Sequence of the broadcast.
    pub sequence: u64,
    /// Devices that have it.
    pub delivered: u64,
    /// Devices whose owners have read it.
    pub read: u64,
}

impl SeatList {
    /// From its bytes.
    ///
    /// # Errors
    /// TOO_LARGE or INVALID_FIELD.
    pub fn decode(bytes: Bytes) -> Result<Self, Refusal> {
        limit("list", bytes.len(), MAX_LIST)?;
        let list = wire::SeatList::decode(bytes).map_err(|_| Refusal::field("list does not parse"))?;
        limit("joining", list.joining.len(), MAX_JOINING)?;
        limit("leaving", list.leaving.len(), MAX_LEAVING)?;
        limit("counts", list.counts.len(), MAX_COUNTS)?;
        let joining = list.joining.into_iter();
        Ok(Self {
            federation: list.federation,
            channel: (&list.channel_id).try_into()?,
            node: list.node.parse()?,
            joining: joining
                .map(|seat| Joining::new(&seat.seat_id, seat.key_package, seat.invitation))
                .collect::<Result<_, _>>()?,
            leaving: list.leaving.iter().map(SeatId::try_from).collect::<Result<_, _>>()?,
            counts: list
                .counts
                .iter()
                .map(|count| Count { sequence: count.sequence, delivered: count.delivered, read: count.read })
                .collect(),
        })
    }

    /// Its bytes, to be signed.
    pub fn encode(&self) -> Vec<u8> {
        let joining = self.joining.iter().map(|joining| wire::JoiningSeat {
            seat_id: joining.seat.to_wire(),
            key_package: joining.key_package.clone(),
            invitation: joining.invitation.clone(),
        });
        wire::SeatList {
            federation: self.federation.clone(),
            channel_id: self.channel.to_wire(),
            node: self.node.to_string(),
            joining: joining.collect(),
            leaving: self.leaving.iter().map(SeatId::to_wire).collect(),
            counts: self
                .counts
                .iter()
                .map(|count| wire::BroadcastCount {
                    sequence: count.sequence,
                    delivered: count.delivered,
                    read: count.read,
                })
                .collect(),
        }
        .encode_to_vec()
    }
}

/// Whose mailbox seats are for. What they say is between the home node and the agent, as far as
/// the parcel goes: the list is of that node, and not too large.
///
/// # Errors
/// TOO_LARGE or INVALID_FIELD: the sender's fault.
pub fn check_seats(seats: &wire::Seats, from: &NodeId) -> Result<Alias, Refusal> {
    limit("signature", seats.signature.len(), 72)?;
    limit("key", seats.key.len(), 256)?;
    if SeatList::decode(seats.list.clone())?.node != *from {
        return Err(Refusal::field("seats are of another node's residents"));
    }
    Ok((&seats.agent_alias).try_into()?)
}

/// What an agent has for the cells of a channel at one home node.
#[derive(Clone)]
pub enum CellItem {
    /// A cell's next epoch.
    Change(Box<CellChange>),
    /// A broadcast was logged.
    Announcement(Announcement),
    /// Its content key for some cells.
    Wraps(Wraps),
    /// All cells are given up.
    Closed(Closed),
}

impl CellItem {
    /// The channel.
    pub fn channel(&self) -> ChannelId {
        match self {
            Self::Change(change) => change.channel,
            Self::Announcement(announcement) => announcement.channel,
            Self::Wraps(wraps) => wraps.channel,
            Self::Closed(closed) => closed.channel,
        }
    }
}

/// A cell's next epoch.
#[derive(Clone)]
pub struct CellChange {
    /// The channel.
    pub channel: ChannelId,
    /// Number of the cell.
    pub cell: u32,
    /// Of its changes, from 1.
    pub sequence: u64,
    /// Sequence of the first broadcast with its keys.
    pub first_broadcast: u64,
    /// MLSMessage with the commit; empty: the group is new.
    pub commit: Bytes,
    /// MLSMessage with the first key.
    pub key: Bytes,
    /// Who comes in, with its part of the Welcome.
    pub admitted: Vec<(SeatId, Bytes)>,
    /// The ratchet tree for them.
    pub tree: Bytes,
    /// Who goes out.
    pub removed: Vec<SeatId>,
    /// When it may be forgotten.
    pub expires_at: Timestamp,
}

impl CellChange {
    /// From the wire.
    ///
    /// # Errors
    /// TOO_LARGE or INVALID_FIELD: the sender's fault.
    pub fn from_wire(message: wire::CellChange, now: Timestamp) -> Result<Self, Refusal> {
        limit("commit", message.commit.len(), MAX_COMMIT)?;
        limit("key", message.key.len(), MAX_KEY)?;
        limit("welcome", message.welcome.len(), MAX_WELCOME)?;
        limit("admitted", message.admitted.len(), MAX_SEATS)?;
        limit("removed", message.removed.len(), MAX_SEATS)?;
        limit("tree", message.tree.len(), MAX_TREE)?;
        let expires_at = Timestamp::from_millis(message.expires_at_ms);
        if expires_at > now.after(MAX_LIFE).after(MAX_SKEW) {
            return Err(Refusal::field("expires_at_ms is more than 90 days ahead"));
        }
        if message.cell >= MAX_CELLS {
            return Err(Refusal::field("cell is above 2^24"));
        }
        let group: GroupId = (&message.group_id).try_into()?;
        framing::check(&message.key, &group, message.epoch, ContentType::Application)?;
        if !message.commit.is_empty() {
            let before = message.epoch.checked_sub(1).ok_or_else(|| Refusal::field("epoch is 0"))?;
            framing::check(&message.commit, &group, before, ContentType::Commit)?;
        }
        let admitted = admitted(&message)?;
        let removed = message.removed.iter().map(SeatId::try_from).collect::<Result<Vec<_>, _>>()?;
        let seats: HashSet<_> = admitted.iter().map(|(seat, _)| seat).chain(&removed).collect();
        if seats.len() != admitted.len() + removed.len() {
            return Err(Refusal::field("a seat stands twice in admitted and removed"));
        }
        Ok(Self {
            channel: (&message.channel_id).try_into()?,
            cell: message.cell,
            sequence: sequence(message.sequence)?,
            first_broadcast: sequence(message.first_broadcast)?,
            commit: message.commit,
            key: message.key,
            admitted,
            tree: message.tree,
            removed,
            expires_at,
        })
    }
}

fn admitted(message: &wire::CellChange) -> Result<Vec<(SeatId, Bytes)>, Refusal> {
    let nobody = message.admitted.is_empty();
    if nobody != message.welcome.is_empty() || nobody != message.tree.is_empty() {
        return Err(Refusal::field("admitted, welcome and tree go together"));
    }
    if nobody {
        return Ok(Vec::new());
    }
    let welcome = Welcome::parse(&message.welcome)?;
    let part = |seat: &wire::AdmittedSeat| {
        let reference = KeyPackageRef::try_from(&seat.key_package_ref)?;
        Ok((SeatId::try_from(&seat.seat_id)?, welcome.cut(&[reference])?))
    };
    message.admitted.iter().map(part).collect()
}

fn sequence(sequence: u64) -> Result<u64, Refusal> {
    let fits = sequence != 0 && sequence <= i64::MAX.unsigned_abs();
    if fits { Ok(sequence) } else { Err(Refusal::field("changes and broadcasts count from 1")) }
}

/// A broadcast was logged.
#[derive(Clone)]
pub struct Announcement {
    /// The channel.
    pub channel: ChannelId,
    /// Its sequence.
    pub sequence: u64,
    /// `directory.v1.LoggedManifest`, serialised.
    pub logged_manifest: Bytes,
    /// When nobody reads it any more.
    pub expires_at: Timestamp,
}

impl Announcement {
    /// From the wire.
    ///
    /// # Errors
    /// TOO_LARGE or INVALID_FIELD: the sender's fault.
    pub fn from_wire(message: wire::Announcement, now: Timestamp) -> Result<Self, Refusal> {
        limit("logged_manifest", message.logged_manifest.len(), MAX_MANIFEST)?;
        let expires_at = Timestamp::from_millis(message.expires_at_ms);
        if expires_at > now.after(MAX_BROADCAST_LIFE).after(MAX_SKEW) {
            return Err(Refusal::field("expires_at_ms is more than 400 days ahead"));
        }
        Ok(Self {
            channel: (&message.channel_id).try_into()?,
            sequence: sequence(message.sequence)?,
            logged_manifest: message.logged_manifest,
            expires_at,
        })
    }
}

/// The content key of a broadcast for the cells of a row.
#[derive(Clone)]
pub struct Wraps {
    /// The channel.
    pub channel: ChannelId,
    /// Sequence of the broadcast.
    pub sequence: u64,
    /// The row: its first cell is `row` × 1,024.
    pub row: u32,
    /// [`WRAP`] bytes for each cell.
    pub wraps: Bytes,
}

impl TryFrom<wire::Wraps> for Wraps {
    type Error = Refusal;

    fn try_from(message: wire::Wraps) -> Result<Self, Refusal> {
        limit("wraps", message.wraps.len(), WRAP * ROW as usize)?;
        if message.wraps.is_empty() || !message.wraps.len().is_multiple_of(WRAP) {
            return Err(Refusal::field("wraps are 56 bytes each"));
        }
        if message.row >= MAX_CELLS / ROW {
            return Err(Refusal::field("row is above 2^14"));
        }
        Ok(Self {
            channel: (&message.channel_id).try_into()?,
            sequence: sequence(message.sequence)?,
            row: message.row,
            wraps: message.wraps,
        })
    }
}

/// All cells of a channel are given up.
#[derive(Clone, Copy)]
pub struct Closed {
    /// The channel.
    pub channel: ChannelId,
    /// Names the closing: it counts once.
    pub closing: [u8; 16],
}

impl TryFrom<wire::CellsClosed> for Closed {
    type Error = Refusal;

    fn try_from(message: wire::CellsClosed) -> Result<Self, Refusal> {
        let closing = message.closing_id.as_ref().try_into();
        let closing = closing.map_err(|_| Refusal::field("closing_id has not 16 bytes"))?;
        Ok(Self { channel: (&message.channel_id).try_into()?, closing })
    }
}

/// The wrap of a cell among those of its row; `None`: there is none for it.
pub fn wrap_of(wraps: &[u8], cell: u32) -> Option<&[u8]> {
    let start = (cell % ROW) as usize * WRAP;
    let wrap = wraps.get(start..start + WRAP)?;
    wrap.iter().any(|byte| *byte != 0).then_some(wrap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::Reason;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn wraps(bytes: usize) -> wire::Wraps {
        wire::Wraps {
            channel_id: vec![1; 16].into(),
            sequence: 3,
            row: 2,
            wraps: (0..bytes).map(|at| u8::try_from(at / WRAP % 251).unwrap()).collect(),
        }
    }

    #[test]
    fn a_row_has_up_to_1024_wraps() {
        for (bytes, reason) in [
            (0, Some(Reason::InvalidField)),
            (55, Some(Reason::InvalidField)),
            (56, None),
            (56 * 1024, None),
            (56 * 1025, Some(Reason::TooLarge)),
        ] {
            assert_eq!(Wraps::try_from(wraps(bytes)).err().map(|refusal| refusal.reason), reason, "{bytes}");
        }
        let row = wraps(56 * 3).wraps;
        assert_eq!(wrap_of(&row, 1024), None, "zeroes are no wrap");
        assert_eq!(wrap_of(&row, 1025), Some(&[1; 56][..]));
        assert_eq!(wrap_of(&row, 2), Some(&[2; 56][..]));
        assert_eq!(wrap_of(&row, 3), None);
    }

    /// A PrivateMessage of a group and epoch, as far as a node looks at it.
    fn private_message(epoch: u64, content: u8) -> Bytes {
        let group = [&[32][..], &[5; 32]].concat();
        [&[0, 1, 0, 2][..], &group, &epoch.to_be_bytes(), &[content], &[0, 0, 0]].concat().into()
    }

    fn change() -> wire::CellChange {
        wire::CellChange {
            channel_id: vec![1; 16].into(),
            cell: 4,
            sequence: 9,
            group_id: vec![5; 32].into(),
            epoch: 8,
            first_broadcast: 3,
            commit: private_message(7, 3),
            key: private_message(8, 1),
            removed: vec![vec![6; 16].into()],
            ..Default::default()
        }
    }

    #[test]
    fn a_change_is_of_one_epoch() {
        assert!(CellChange::from_wire(change(), NOW).is_ok());
        let wrong: [&dyn Fn(&mut wire::CellChange); 13] = [
            &|change| change.cell = MAX_CELLS,
            &|change| change.sequence = 0,
            &|change| change.first_broadcast = 0,
            &|change| change.channel_id = vec![1; 15].into(),
            &|change| change.group_id = vec![6; 32].into(),
            &|change| change.expires_at_ms = i64::MAX,
            &|change| change.epoch = 9,
            &|change| change.key = private_message(7, 1),
            &|change| change.key = private_message(8, 3),
            &|change| change.commit = private_message(8, 3),
            &|change| change.commit = private_message(7, 1),
            &|change| change.tree = vec![1].into(),
            &|change| change.removed.push(vec![6; 16].into()),
        ];
        for (nth, wrong) in wrong.into_iter().enumerate() {
            let mut change = change();
            wrong(&mut change);
            assert!(CellChange::from_wire(change, NOW).is_err(), "{nth}");
        }
    }

    proptest! {
        #[test]
        fn a_list_is_read_as_it_was_written(seats: Vec<([u8; 16], u8)>, leaving: Vec<[u8; 16]>) {
            let joining = seats.into_iter().take(MAX_JOINING).map(|(seat, length)| Joining {
                seat: SeatId::from_bytes(seat),
                key_package: vec![7; usize::from(length) + 1].into(),
                invitation: vec![8; usize::from(length)].into(),
            });
            let list = SeatList {
                federation: "fed.example".to_owned(),
                channel: ChannelId::from_bytes([3; 16]),
                node: "north".parse().unwrap(),
                joining: joining.collect(),
                leaving: leaving.into_iter().map(SeatId::from_bytes).collect(),
                counts: (0..3).map(|n| Count { sequence: n + 1, delivered: 40 * n, read: n }).collect(),
            };
            let bytes = list.encode();
            let again = SeatList::decode(bytes.clone().into()).unwrap();
            prop_assert_eq!(again.encode(), bytes);
            let seats = wire::Seats {
                agent_alias: vec![2; 16].into(),
                list: list.encode().into(),
                ..Default::default()
            };
            prop_assert!(check_seats(&seats, &"north".parse().unwrap()).is_ok());
            prop_assert!(check_seats(&seats, &"south".parse().unwrap()).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = SeatList::decode(bytes.clone().into());
            if let Ok(change) = wire::CellChange::decode(bytes.as_slice()) {
                let _ = CellChange::from_wire(change, NOW);
            }
        }
    }
}
