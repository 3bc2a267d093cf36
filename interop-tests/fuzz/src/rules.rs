//! The directory's rules for the records of one handle, under an owner, somebody who enrols the
//! same identifier, and authorities of whom one was withdrawn. Whatever is accepted, the map
//! must take; and nobody loses a handle but by the ways that the rules leave.

use crate::Target;
use crate::input::Steps;
use crate::world::{NOW, Owner, WORLD, attestation};
use chancery_directory_core::map::{Item, Map};
use chancery_directory_core::record::{RecordDraft, SignedRecord};
use chancery_directory_core::rules::{
    AcceptedRecord, CHANGES_PER_DAY, Held, Judgement, Logged, RE_ENROLMENT_WAIT, judge,
};
use chancery_directory_core::totals::day_of;
use chancery_types::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

/// Records handed in for one handle, one after the other.
pub(crate) const RULES: Target = Target { name: "record_rules", run, seeds };

/// Two who have one identifier: the handle is the same, the account is not.
static OWNERS: LazyLock<[Owner; 2]> = LazyLock::new(|| {
    let other = Owner { account: crate::world::key(77), ..Owner::new(1, [1, 2, 3, 4]) };
    [Owner::new(1, [1, 2, 3, 4]), other]
});

/// A handle's records, and all that was logged about it.
struct Log {
    held: Held,
    map: Map,
    next: u64,
    days: BTreeMap<u32, u32>,
    handed_in: Vec<SignedRecord>,
}

fn run(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let mut log = Log {
        held: Held::default(),
        map: Map::default(),
        next: 10,
        days: BTreeMap::new(),
        handed_in: Vec::new(),
    };
    let (mut now, mut taken) = (NOW, 0);
    while steps.more(taken, 48) {
        taken += 1;
        now = now.after(match steps.below(8) {
            0 => RE_ENROLMENT_WAIT,
            1 => Duration::from_hours(24),
            2 => RE_ENROLMENT_WAIT - Duration::from_millis(1),
            _ => Duration::from_mins(1),
        });
        let again = steps.below(4) == 0 && !log.handed_in.is_empty();
        let record =
            if again { steps.of(&log.handed_in).clone() } else { record(&mut steps, &log.held, now) };
        log.handed_in.push(record.clone());
        match judge(record.clone(), &log.held, &WORLD.state, now) {
            Err(_) => {}
            Ok(Judgement::Repeated(index)) => {
                let stands = [&log.held.standing, &log.held.pending];
                let found = stands.into_iter().flatten().find(|logged| logged.index == index);
                let found = found.expect("an entry is repeated that does not stand");
                assert!(found.record.wire() == record.wire(), "another record is said to be logged");
            }
            Ok(Judgement::Accepted(accepted)) => log.accept(*accepted, now),
        }
    }
}

impl Log {
    fn accept(&mut self, accepted: AcceptedRecord, now: Timestamp) {
        let (record, index) = (accepted.record().clone(), self.next);
        self.next += 1;
        let change = accepted.change(&[1; 32]);
        assert!(self.map.apply(&change, index, now).is_ok(), "the map does not take what the rules accept");
        let entries = self.days.entry(day_of(now)).or_default();
        *entries += 1;
        assert!(*entries <= CHANGES_PER_DAY && accepted.changes() == *entries, "changes are miscounted");
        self.right(&record, change.pending, now);
        self.held = accepted.logged_at(index, now, std::mem::take(&mut self.held));
        let held = [&self.held.standing, &self.held.pending];
        let held: BTreeSet<_> = held.into_iter().flatten().map(|logged| logged.index).collect();
        let map: BTreeSet<_> = self.map.under([1, 2, 3, 4]).iter().map(Item::index).collect();
        assert!(held == map, "the map holds something else than the directory");
    }

    /// Whether this account may put this record.
    fn right(&self, record: &SignedRecord, pending: bool, now: Timestamp) {
        let Some(standing) = &self.held.standing else {
            assert!(record.version() == 1 && !pending && record.previous_index().is_none());
            return;
        };
        assert!(record.version() == standing.record.version() + 1, "a version is left out");
        assert!(record.previous_index() == Some(standing.index));
        let owns = record.account_key() == standing.record.account_key();
        let closed = standing.record.is_closed();
        let waited = self.held.pending.as_ref().is_some_and(|waiting| {
            waiting.record.wire() == record.wire() && now.since(waiting.sequenced_at) >= RE_ENROLMENT_WAIT
        });
        assert!(!(owns && closed), "a closed record is changed by its key");
        assert!(!(owns && pending), "an owner's change waits");
        assert!(owns || closed || pending || waited, "a handle is taken from its owner");
        let backed = |logged: &Logged| logged.record.second_attestation().is_some();
        if !owns && !closed {
            let asks = standing.record.two_authorities();
            assert!(!asks || record.second_attestation().is_some(), "one authority is enough after all");
        }
        if owns {
            assert!(!self.held.pending.as_ref().is_some_and(backed), "an owner outvotes two authorities");
        }
    }
}

fn record(steps: &mut Steps<'_>, held: &Held, now: Timestamp) -> SignedRecord {
    let (version, previous) =
        held.standing.as_ref().map_or((1, None), |s| (s.record.version() + 1, Some(s.index)));
    let owner = steps.of(&*OWNERS);
    let signer = if steps.below(16) == 0 { steps.of(&*OWNERS) } else { owner };
    let version = if steps.below(16) == 0 { u64::from(steps.below(4)) + 1 } else { version };
    let previous_index = if steps.below(16) == 0 { Some(steps.number()) } else { previous };
    // By the minute of its day, so that the word of one record may serve the next.
    let issued_at = match steps.below(8) {
        0 => NOW.before(Duration::from_hours(24 * 40)),
        1 => now.after(Duration::from_mins(6)),
        2 | 3 => NOW.before(Duration::from_mins(1)),
        _ => now,
    };
    let first = *steps.of(&[0, 0, 0, 1, 1, 2]);
    let second = [None, None, Some((first + 1) % 3)][steps.below(3) as usize];
    let mut word = |authority| attestation(authority, owner, issued_at);
    let closes = steps.below(8) == 0;
    let draft = RecordDraft {
        handle: owner.handle,
        version,
        previous_index,
        attestation: word(first),
        second_attestation: second.map(&mut word),
        sealed_part: if closes { Default::default() } else { vec![5; 40].into() },
        two_authorities: steps.flip(),
        changed_at: now,
    };
    let mut signed = draft.clone().sign(&owner.account);
    if !std::ptr::eq(owner, signer) {
        signed.signature = draft.sign(&signer.account).signature;
    }
    SignedRecord::try_from(signed).unwrap()
}

fn seeds() -> Vec<Vec<u8>> {
    vec![vec![7; 200], (0..=255).collect(), (0..=255).map(|n: u8| n.wrapping_mul(37)).collect()]
}
