//! The directory's rules for the records of one handle, under an owner, somebody who enrols the
//! same identifier, and authorities of whom one was withdrawn. Whatever is accepted, the map
//! must take; and nobody loses a handle but by the ways that the rules leave.

use crate::Target;
use crate::input::{Memo, Steps};
use crate::world::{NOW, Owner, WORLD, attestation};
use chancery_directory_core::map::{Item, Map};
use chancery_directory_core::record::{RecordDraft, SignedRecord};
use chancery_directory_core::rules::{
    AcceptedRecord, CHANGES_PER_DAY, Held, Judgement, Logged, RE_ENROLMENT_WAIT, judge,
};
use chancery_directory_core::totals::day_of;
use chancery_proto::directory::v1 as wire;
use chancery_types::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

/// Records handed in for one handle, one after the other.
pub(crate) const RULES: Target = Target { name: "record_rules", run, seeds };

/// The first entry that names the handle.
const FIRST: u64 = 10;

/// Two who have one identifier: the handle is the same, the account is not.
static OWNERS: LazyLock<[Owner; 2]> = LazyLock::new(|| {
    let other = Owner { account: crate::world::key(77), ..Owner::new(1, [1, 2, 3, 4]) };
    [Owner::new(1, [1, 2, 3, 4]), other]
});

/// A handle's records, and all that was logged about it.
#[derive(Clone, Default)]
struct Log {
    held: Held,
    map: Map,
    /// How many entries were logged before, in which the handle is named.
    logged: u64,
    days: BTreeMap<u32, u32>,
    handed_in: Vec<SignedRecord>,
}

/// Logs to begin with: an empty one; the owner's first record; all but one of a day's changes; a
/// re-enrolment that is pending, with one authority's word and with two; a closed record.
static BEGUN: LazyLock<[Log; 6]> = LazyLock::new(|| {
    let owned = Draft {
        owner: 0,
        signer: 0,
        version: 1,
        previous_index: None,
        issued_at: NOW,
        first: 0,
        second: None,
        closes: false,
        two_authorities: false,
        changed_at: NOW,
    };
    let next = |version: u64| {
        let changed_at = NOW.after(Duration::from_mins(version));
        let previous_index = Some(FIRST + version - 2);
        Draft { version, previous_index, issued_at: changed_at, changed_at, ..owned }
    };
    let other = Draft { owner: 1, signer: 1, ..next(2) };
    let changed: Vec<_> = [owned].into_iter().chain((2..u64::from(CHANGES_PER_DAY)).map(next)).collect();
    let logs: [&[Draft]; 6] = [
        &[],
        &[owned],
        &changed,
        &[owned, other],
        &[owned, Draft { second: Some(1), ..other }],
        &[owned, Draft { closes: true, ..next(2) }],
    ];
    logs.map(|drafts| {
        let mut log = Log::default();
        drafts.iter().for_each(|draft| log.hand_in(draft.record(), draft.changed_at));
        assert!(log.logged == drafts.len() as u64, "a log does not begin");
        log
    })
});

fn run(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let mut log = steps.of(&*BEGUN).clone();
    let (mut now, mut taken) = (log.handed_in.last().map_or(NOW, SignedRecord::changed_at), 0);
    while steps.more(taken, 4) {
        taken += 1;
        now = now.after(match steps.below(8) {
            0 => RE_ENROLMENT_WAIT,
            1 => Duration::from_hours(24),
            2 => RE_ENROLMENT_WAIT - Duration::from_millis(1),
            _ => Duration::from_mins(1),
        });
        let again = steps.below(4) == 0 && !log.handed_in.is_empty();
        let record = if again {
            steps.of(&log.handed_in).clone()
        } else {
            Draft::read(&mut steps, &log.held, now).record()
        };
        log.hand_in(record, now);
    }
}

impl Log {
    fn hand_in(&mut self, record: SignedRecord, now: Timestamp) {
        self.handed_in.push(record.clone());
        match judge(record.clone(), &self.held, &WORLD.state, now) {
            Err(_) => {}
            Ok(Judgement::Repeated(index)) => {
                let stands = [&self.held.standing, &self.held.pending];
                let found = stands.into_iter().flatten().find(|logged| logged.index == index);
                let found = found.expect("an entry is repeated that does not stand");
                assert!(found.record.wire() == record.wire(), "another record is said to be logged");
            }
            Ok(Judgement::Accepted(accepted)) => self.accept(*accepted, now),
        }
    }

    fn accept(&mut self, accepted: AcceptedRecord, now: Timestamp) {
        let (record, index) = (accepted.record().clone(), FIRST + self.logged);
        self.logged += 1;
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

/// What a record is made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Draft {
    /// Whose it is, and who signs it.
    owner: usize,
    signer: usize,
    version: u64,
    previous_index: Option<u64>,
    /// Of the authorities' words; and whose they are.
    issued_at: Timestamp,
    first: usize,
    second: Option<usize>,
    closes: bool,
    two_authorities: bool,
    changed_at: Timestamp,
}

impl Draft {
    fn read(steps: &mut Steps<'_>, held: &Held, now: Timestamp) -> Self {
        let (version, previous) =
            held.standing.as_ref().map_or((1, None), |s| (s.record.version() + 1, Some(s.index)));
        let owner = steps.below(2) as usize;
        let signer = if steps.below(16) == 0 { steps.below(2) as usize } else { owner };
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
        let (closes, two_authorities) = (steps.below(8) == 0, steps.flip());
        Self {
            owner,
            signer,
            version,
            previous_index,
            issued_at,
            first,
            second,
            closes,
            two_authorities,
            changed_at: now,
        }
    }

    fn record(self) -> SignedRecord {
        static RECORDS: Memo<Draft, wire::SignedRecord> = Memo::new();
        SignedRecord::try_from(RECORDS.of(self, || self.sign())).unwrap()
    }

    fn sign(self) -> wire::SignedRecord {
        let [owner, signer] = [self.owner, self.signer].map(|at| &OWNERS[at]);
        let mut word = |authority| attestation(authority, owner, self.issued_at);
        let draft = RecordDraft {
            handle: owner.handle,
            version: self.version,
            previous_index: self.previous_index,
            attestation: word(self.first),
            second_attestation: self.second.map(&mut word),
            sealed_part: if self.closes { Default::default() } else { vec![5; 40].into() },
            two_authorities: self.two_authorities,
            changed_at: self.changed_at,
        };
        let mut signed = draft.clone().sign(&owner.account);
        if self.owner != self.signer {
            signed.signature = draft.sign(&signer.account).signature;
        }
        signed
    }
}

fn seeds() -> Vec<Vec<u8>> {
    vec![vec![7; 200], (0..=255).collect(), (0..=255).map(|n: u8| n.wrapping_mul(37)).collect()]
}
