//! A directory that lies about records is caught by those who ask it.

use super::*;
use crate::keys;
use crate::manifest::{NONE, SignedManifest};
use crate::map::Map;
use crate::record::RecordDraft;
use crate::testing::{Log, NOW, World, channel, manifest};
use bytes::Bytes;
use chancery_proto::directory::v1::map_item::Content;
use chancery_types::entropy::SeededEntropy;

const BITS: u32 = 8;
const SALT: [u8; SALT_LENGTH] = [6; SALT_LENGTH];

/// What governs a world in a log, then records and the root of their map.
struct Setting {
    world: World,
    log: Log,
    map: Map,
    bodies: BTreeMap<u64, wire::SignedRecord>,
}

impl Setting {
    fn empty() -> Self {
        let world = World::new(&SeededEntropy::new(11));
        Self { log: Log::new(&world), world, map: Map::default(), bodies: BTreeMap::new() }
    }

    /// With the owner's first record.
    fn new() -> Self {
        let mut setting = Self::empty();
        setting.put(setting.world.first_record(1), false);
        setting
    }

    fn put(&mut self, record: wire::SignedRecord, pending: bool) -> u64 {
        let signed = SignedRecord::try_from(record.clone()).unwrap();
        let change = RecordChange::new(signed.handle(), signed.previous_index(), &SALT, &record);
        let change = RecordChange { pending, ..change };
        let index = self.log.append(NOW, Event::RecordChange(change));
        self.map.apply(&change, index, NOW).unwrap();
        self.bodies.insert(index, record);
        index
    }

    fn prefix(&self) -> Prefix {
        Prefix::of(&self.world.handle, BITS)
    }

    fn answer(&self) -> wire::LookupResponse {
        let mut log = self.log.clone();
        let mut map = self.map.clone();
        let root = log.append(NOW, Event::MapRoot(map.root()));
        let place = map.part(self.prefix(), BITS).into_place();
        let item = |item: &Item| wire::MapItem {
            index: item.index(),
            sequenced_at_ms: item.sequenced_at().millis(),
            pending: item.kind() == Kind::Pending,
            content: Some(if item.is_under(self.prefix(), BITS) {
                let record = Some(self.bodies[&item.index()].clone());
                Content::Body(wire::RecordBody { record, salt: SALT.to_vec().into() })
            } else {
                let handle_prefix = Bytes::copy_from_slice(&item.prefix());
                let commitment = Bytes::copy_from_slice(item.commitment());
                Content::Bare(wire::BareItem { handle_prefix, commitment, channel: false })
            }),
        };
        wire::LookupResponse {
            places: vec![wire::Place {
                root: 0,
                siblings: place.siblings.iter().map(Into::into).collect(),
                items: encoded(place.items.iter().map(item).collect()),
            }],
            roots: vec![wire::LoggedRoot {
                entry: Some(log.entry(root)),
                checkpoint: log.checkpoint().note().clone(),
            }],
        }
    }

    fn verify(&self, answer: wire::LookupResponse) -> Result<VerifiedLookup, Error> {
        self.log.trust(&self.world).verify_lookup(answer, &[self.prefix()], BITS, NOW)
    }

    fn find(&self, answer: wire::LookupResponse) -> Result<Option<VerifiedRecord>, Error> {
        let verified = self.verify(answer)?;
        let (handle, scheme): (_, SchemeName) = (self.world.handle, "be-nn".parse().unwrap());
        let found = verified.find(&handle, &scheme, &self.world.state);
        // Signatures that are checked together come to the same.
        let index = |found: &Result<Option<VerifiedRecord>, Error>| {
            found.as_ref().map(|found| found.as_ref().map(|found| found.index)).map_err(|e| *e)
        };
        let together = vec![(handle, scheme); 3];
        for all in verified.find_all(&together, &self.world.state) {
            assert_eq!(index(&all), index(&found));
        }
        found
    }

    fn lie(&self, change: impl Fn(&mut wire::LookupResponse)) -> Error {
        let mut answer = self.answer();
        change(&mut answer);
        self.find(answer).unwrap_err()
    }

    fn draft(&self, change: impl Fn(&mut RecordDraft)) -> wire::SignedRecord {
        let mut draft = self.world.draft(1, None);
        change(&mut draft);
        draft.sign(&self.world.account)
    }
}

fn encoded(items: Vec<wire::MapItem>) -> Bytes {
    wire::MapItems { items }.encode_to_vec().into()
}

fn items(answer: &wire::LookupResponse) -> Vec<wire::MapItem> {
    wire::MapItems::decode(answer.places[0].items.clone()).unwrap().items
}

/// Changes the items of the one place.
fn edit(answer: &mut wire::LookupResponse, change: impl FnOnce(&mut Vec<wire::MapItem>)) {
    let mut items = items(answer);
    change(&mut items);
    answer.places[0].items = encoded(items);
}

/// Changes the first record.
fn body(answer: &mut wire::LookupResponse, change: impl FnOnce(&mut wire::RecordBody)) {
    edit(answer, |items| match &mut items[0].content {
        Some(Content::Body(body)) => change(body),
        _ => panic!("no body"),
    });
}

fn is_proof(error: Error) -> bool {
    matches!(error, Error::Proof(_))
}

#[test]
fn an_honest_answer_opens() {
    let setting = Setting::new();
    let found = setting.find(setting.answer()).unwrap().unwrap();
    assert_eq!(found.open(&setting.world.record_key).unwrap(), setting.world.address);
    assert_eq!((found.record.version(), found.index, found.record.previous_index()), (1, 3, None));
    assert_eq!(found.open(&RecordKey::from_bytes([0; 32])), Err(Error::CannotOpen));
}

#[test]
fn absence_is_proven_and_said_of_what_was_asked_alone() {
    let setting = Setting::empty();
    assert!(setting.find(setting.answer()).unwrap().is_none());
    let verified = setting.verify(setting.answer()).unwrap();
    let mut elsewhere = *setting.world.handle.as_bytes();
    elsewhere[0] ^= 1;
    let asked =
        verified.find(&Handle::from_bytes(elsewhere), &"be-nn".parse().unwrap(), &setting.world.state);
    assert!(matches!(asked, Err(Error::Field(_))));

    // Claimed for a handle that is there.
    let present = Setting::new();
    assert!(is_proof(present.lie(|a| edit(a, Vec::clear))));
    assert!(is_proof(present.lie(|a| a.places[0] = setting.answer().places[0].clone())));
    let bare = |a: &mut wire::LookupResponse| {
        let change = RecordChange::new(&present.world.handle, None, &SALT, &present.world.first_record(1));
        let bare = Content::Bare(wire::BareItem {
            handle_prefix: change.handle_prefix.to_vec().into(),
            commitment: change.commitment.to_vec().into(),
            channel: false,
        });
        edit(a, |items| items[0].content = Some(bare));
    };
    assert!(is_proof(present.lie(bare)), "withheld");
}

#[test]
fn tampering_is_caught() {
    let setting = Setting::new();
    assert!(is_proof(setting.lie(|a| body(a, |b| b.salt = Bytes::from_static(&[7; 32])))));
    assert!(is_proof(setting.lie(|a| edit(a, |items| items[0].sequenced_at_ms += 1))));
    assert!(is_proof(setting.lie(|a| edit(a, |items| items[0].index += 1))));
    assert!(is_proof(setting.lie(|a| edit(a, |items| items[0].pending = true))));
    assert!(is_proof(setting.lie(|a| edit(a, |items| items[0].content = None))));
    assert!(is_proof(setting.lie(|a| body(a, |b| b.record = None))));
    assert!(is_proof(setting.lie(|a| a.places[0].root = 1)));
    assert!(is_proof(setting.lie(|a| a.places.clear())));
    assert!(is_proof(setting.lie(|a| a.places[0].items = Bytes::from_static(&[0xff; 9]))));
    assert!(is_proof(setting.lie(|a| a.places[0].items = vec![0; MAX_PLACE_BYTES + 1].into())));
    let item = items(&setting.answer())[0].clone();
    assert!(is_proof(setting.lie(|a| edit(a, |items| items.push(item.clone())))));
    assert!(is_proof(setting.lie(|a| a.places[0].items = encoded(vec![item.clone(); MAX_PLACE + 1]))));
    let sum = wire::MapSum { items: 0, hash: vec![0; 32].into() };
    assert!(is_proof(setting.lie(|a| a.places[0].siblings.push(sum.clone()))));
    // Another record of the same owner, never logged.
    let unlogged = setting.draft(|d| d.changed_at = Timestamp::from_millis(1));
    assert!(is_proof(setting.lie(|a| body(a, |b| b.record = Some(unlogged.clone())))));
    // The signature belongs to the commitment, too.
    let other = Bytes::from_static(&[1; 64]);
    assert!(is_proof(setting.lie(|a| body(a, |b| b.record.as_mut().unwrap().signature = other.clone()))));
}

#[test]
fn items_are_counted_before_they_take_memory() {
    let setting = Setting::new();
    // What follows the items is no message: nobody gets there.
    let many = Bytes::from([[0x0a, 0].repeat(MAX_PLACE + 1), vec![0xff]].concat());
    let error = setting.lie(|answer| answer.places[0].items = many.clone());
    assert_eq!(error, Error::Proof("a place of the map is larger than it may be"));
}

#[test]
fn a_root_is_in_the_log_and_not_too_old() {
    let setting = Setting::new();
    fn entry(answer: &mut wire::LookupResponse) -> &mut wire::LoggedEntry {
        answer.roots[0].entry.as_mut().unwrap()
    }
    assert!(is_proof(setting.lie(|a| entry(a).inclusion = None)));
    assert!(is_proof(setting.lie(|a| entry(a).inclusion.as_mut().unwrap().index = 2)));
    assert!(is_proof(setting.lie(|a| a.roots[0].checkpoint = setting.log.checkpoint().note().clone())));
    assert!(is_proof(setting.lie(|a| *entry(a) = setting.log.entry(3))), "a record for a root");
    assert!(is_proof(setting.lie(|a| a.roots = vec![a.roots[0].clone(); MAX_PREFIXES + 1])));
    // The root from before the record: absence, but not with that record shown.
    let old = Setting::empty().answer();
    assert!(is_proof(setting.lie(|a| a.roots = old.roots.clone())));
    let trust = setting.log.trust(&setting.world);
    let at = |now| trust.verify_lookup(setting.answer(), &[setting.prefix()], BITS, now);
    assert_eq!(at(NOW.after(MAX_AGE)).unwrap().age(NOW.after(MAX_AGE)), MAX_AGE);
    assert_eq!(at(NOW.before(CLOCK_SKEW)).map(drop), Ok(()));
    let early = NOW.before(CLOCK_SKEW + Duration::from_millis(1));
    assert!(is_proof(at(early).map(drop).unwrap_err()), "from the future");
    let late = NOW.after(MAX_AGE + Duration::from_millis(1));
    assert_eq!(at(late).map(drop), Err(Error::Stale));
}

#[test]
fn a_logged_record_is_still_judged() {
    let judged = |record: wire::SignedRecord, world: &dyn Fn(&mut World)| {
        let mut setting = Setting::empty();
        world(&mut setting.world);
        setting.put(record, false);
        setting.find(setting.answer()).map(|found| found.is_some())
    };
    let setting = Setting::new();
    assert_eq!(judged(setting.draft(|_| {}), &|_| {}), Ok(true));
    // The directory logs a record whose signature is wrong: in the map, not believed.
    let mut forged = setting.draft(|_| {});
    forged.signature = Bytes::from_static(&[1; 64]);
    assert_eq!(judged(forged, &|_| {}), Err(Error::Record("the record's signature is wrong")));
    // Its own key under nobody's word.
    let own = setting.draft(|d| d.attestation = setting.world.attestation().sign(&setting.world.account));
    assert_eq!(judged(own, &|_| {}), Err(Error::Record("the attestation's signature is wrong")));
    // An attestation that had expired when the record was logged.
    let attested = |change: &dyn Fn(&mut crate::attestation::Attestation)| {
        let mut attestation = setting.world.attestation();
        change(&mut attestation);
        setting.draft(|d| d.attestation = attestation.sign(&setting.world.authority))
    };
    assert_eq!(judged(attested(&|a| a.expires_at = NOW), &|_| {}), Err(Error::AttestationExpired));
    // Of another scheme than the one addressed.
    let other = attested(&|a| a.scheme = "e164".parse().unwrap());
    assert_eq!(judged(other, &|_| {}), Err(Error::AuthorityNotAdmitted));
    // Withdrawn: before it gave its word, and after.
    let withdrawn = |at: Timestamp| {
        judged(setting.draft(|_| {}), &|world: &mut World| {
            let key = world.authority.clone();
            world.withdraw_authority("enrol", &key, at);
        })
    };
    assert_eq!(withdrawn(NOW.after(Duration::from_secs(1))), Ok(true));
    assert_eq!(withdrawn(NOW), Err(Error::AuthorityNotAdmitted), "when it was logged");
    assert_eq!(withdrawn(NOW.before(Duration::from_secs(61))), Err(Error::AuthorityNotAdmitted));
}

#[test]
fn a_closed_record_is_not_an_absent_one() {
    let mut setting = Setting::new();
    let mut closing = setting.world.draft(2, Some(3));
    closing.sealed_part = Bytes::new();
    setting.put(closing.sign(&setting.world.account), false);
    let found = setting.find(setting.answer()).unwrap().unwrap();
    assert!(found.record.is_closed());
    assert_eq!(found.open(&setting.world.record_key), Err(Error::Closed));
}

#[test]
fn senders_keep_to_the_record_while_its_owner_sees_what_is_pending() {
    let mut setting = Setting::new();
    let thief = keys::generate(&setting.world.entropy);
    let mut attestation = setting.world.attestation();
    attestation.account_key = (&thief).into();
    let mut draft = setting.world.draft(2, Some(3));
    draft.attestation = attestation.sign(&setting.world.authority);
    let index = setting.put(draft.sign(&thief), true);
    let found = setting.find(setting.answer()).unwrap().unwrap();
    assert_eq!((found.index, found.record.account_key()), (3, &(&setting.world.account).into()));
    let lookup = setting.verify(setting.answer()).unwrap();
    let pending = lookup.pending(&setting.world.handle, &setting.world.state).unwrap().unwrap();
    assert_eq!((pending.index, pending.record.account_key()), (index, &(&thief).into()));
    let own = lookup.own(&setting.world.handle, &setting.world.state).unwrap().unwrap();
    assert_eq!(own.index, 3);
    // Shown to senders as if it were in force, or hidden from its owner.
    assert!(is_proof(setting.lie(|a| edit(a, |items| items[1].pending = false))));
    assert!(is_proof(setting.lie(|a| edit(a, |items| drop(items.pop())))));
    // Two records of one handle, both in the map, are nobody's.
    let mut twice = Setting::new();
    twice.put(twice.draft(|d| d.changed_at = Timestamp::from_millis(1)), false);
    assert!(is_proof(twice.find(twice.answer()).unwrap_err()));
}

#[test]
fn others_under_a_short_place_come_without_their_records() {
    let mut setting = Setting::new();
    let first = setting.world.handle.as_bytes()[0];
    for other in 1..=60_u8 {
        let change = RecordChange {
            handle_prefix: [first.wrapping_add(other), 0, 0, 0],
            previous_index: None,
            commitment: [9; 32],
            pending: false,
            ends_index: None,
        };
        let index = setting.log.append(NOW, Event::RecordChange(change));
        setting.map.apply(&change, index, NOW).unwrap();
        setting.bodies.insert(index, setting.world.first_record(1));
    }
    let answer = setting.answer();
    let bare = |item: &wire::MapItem| matches!(item.content, Some(Content::Bare(_)));
    assert_eq!(items(&answer).iter().filter(|item| bare(item)).count(), 60);
    assert!(setting.find(answer).unwrap().is_some());
}

#[test]
fn what_stands_for_a_channel_is_proven() {
    let mut setting = Setting::new();
    setting.world.list_agent(true);
    let mut channels = crate::channels::Channels::default();
    let id = channel(&setting.world).id;
    let signed = SignedChannel::try_from(channel(&setting.world).sign(&setting.world.agent)).unwrap();
    let index = setting.log.append(NOW, Event::Channel(signed.wire().clone()));
    let (head, _) = channels.apply(signed, index, NOW);
    setting.map.put_channel(head.item(), None).unwrap();
    let first = SignedManifest::try_from(manifest(1, NONE).sign(&setting.world.agent)).unwrap();
    let index = setting.log.append(NOW, Event::Manifest(first.wire().clone()));
    let (head, before) = channels.apply_manifest(&first, index, NOW).unwrap();
    setting.map.put_channel(head.item(), before).unwrap();

    let prefix = Prefix::of_channel(&id, BITS);
    let root = setting.log.append(NOW, Event::MapRoot(setting.map.root()));
    let place = setting.map.part(prefix, BITS).into_place();
    let answer = |change: &dyn Fn(&mut wire::MapItem)| {
        let item = |item: &Item| {
            let mut listed = wire::MapItem {
                index: item.index(),
                sequenced_at_ms: item.sequenced_at().millis(),
                pending: false,
                content: Some(Content::Channel(head.to_wire())),
            };
            if item.kind() == Kind::Channel {
                change(&mut listed);
            } else {
                let handle_prefix = Bytes::copy_from_slice(&item.prefix());
                let commitment = Bytes::copy_from_slice(item.commitment());
                let bare = wire::BareItem { handle_prefix, commitment, channel: false };
                listed.content = Some(Content::Bare(bare));
            }
            listed
        };
        let answer = wire::LookupResponse {
            places: vec![wire::Place {
                root: 0,
                siblings: place.siblings.iter().map(Into::into).collect(),
                items: encoded(place.items.iter().map(item).collect()),
            }],
            roots: vec![wire::LoggedRoot {
                entry: Some(setting.log.entry(root)),
                checkpoint: setting.log.checkpoint().note().clone(),
            }],
        };
        setting.log.trust(&setting.world).verify_lookup(answer, &[prefix], BITS, NOW)
    };
    let lookup = answer(&|_| {}).unwrap();
    let found = lookup.channel(&id).unwrap().unwrap();
    assert_eq!((found.sequence, found.manifest_hash, found.index), (1, first.hash(), index));
    assert_eq!(found.channel.channel(), &channel(&setting.world));
    // An older head, another manifest, another kind, nothing at all.
    let head_of = |change: &dyn Fn(&mut wire::ChannelHead)| {
        let mut other = head.to_wire();
        change(&mut other);
        Content::Channel(other)
    };
    let lies: [&dyn Fn(&mut wire::MapItem); 6] = [
        &|item| item.content = Some(head_of(&|head| head.sequence = 0)),
        &|item| item.content = Some(head_of(&|head| head.manifest_hash = vec![1; 32].into())),
        &|item| item.content = Some(head_of(&|head| head.channel = None)),
        &|item| item.pending = true,
        &|item| item.index -= 1,
        &|item| {
            let commitment = crate::channels::commitment(&head.to_wire()).to_vec().into();
            let handle_prefix = crate::channel::place(&id).to_vec().into();
            item.content = Some(Content::Bare(wire::BareItem { handle_prefix, commitment, channel: true }));
        },
    ];
    for (nth, lie) in lies.into_iter().enumerate() {
        assert!(matches!(answer(lie), Err(Error::Proof(_))), "the {nth}-th");
    }
    assert!(lookup.channel(&ChannelId::from_bytes([9; 16])).is_err(), "it was not asked for");
}
