//! The log as others read it: entries, checkpoints, proofs, and a whole log replayed.

use crate::Target;
use crate::channel::{agent, broadcast, owner, sample};
use crate::input::{Memo, Steps, message};
use crate::world::{
    FEDERATION, NOW, WORLD, admitted, consistency, founded, inclusion, key, leaf, root, sign,
};
use bytes::Bytes;
use chancery_directory_core::SigningKey;
use chancery_directory_core::channel::Channel;
use chancery_directory_core::entry::{Event, Leaf, MAX_ENTRY, RecordChange};
use chancery_directory_core::manifest::NONE;
use chancery_directory_core::map::{Item, Kind, Map, Sum};
use chancery_directory_core::merkle::{Hash, MAX_PATH, leaf_hash, verify_consistency, verify_inclusion};
use chancery_directory_core::note::{LogVerifier, MAX_CHECKPOINT};
use chancery_directory_core::replay::{Effect, Replay};
use chancery_directory_core::statement::{Decision, ErasedRecord};
use chancery_proto::directory::v1 as wire;
use chancery_types::Timestamp;
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// A leaf.
pub(crate) const ENTRY: Target = Target { name: "log_entry", run: entry, seeds: entry_seeds };
/// A checkpoint; with an odd first byte the rest is a text that the log signs.
pub(crate) const CHECKPOINT: Target = Target { name: "checkpoint", run: checkpoint, seeds: checkpoint_seeds };
/// A tree, two places in it, and what is changed in a proof.
pub(crate) const PROOF: Target = Target { name: "merkle_proof", run: proof, seeds: proof_seeds };
/// A log, entry by entry, by a directory that keeps to no rules.
pub(crate) const REPLAY: Target = Target { name: "replay", run: replay, seeds: replay_seeds };
/// The list of statements that nodes and endpoints ask for.
pub(crate) const STATEMENTS: Target =
    Target { name: "statement_list", run: statements, seeds: statements_seeds };

fn entry(bytes: &[u8]) {
    let Ok(leaf) = Leaf::from_bytes(Bytes::copy_from_slice(bytes)) else { return };
    assert!(bytes.len() <= MAX_ENTRY && leaf.hash() == leaf_hash(bytes));
    let Ok(entry) = leaf.entry() else { return };
    // A leaf may be encoded in other ways; what it says may not.
    let Ok(again) = Leaf::new(&entry) else { panic!("an entry that was read cannot be written") };
    let said = again.entry().expect("an entry that was written is not read");
    assert!(said.sequenced_at == entry.sequenced_at && Leaf::new(&said) == Ok(again));
    if let (Event::RecordChange(one), Event::RecordChange(other)) = (entry.event, said.event) {
        assert!(one == other, "a change changes by encoding");
    }
}

fn entry_seeds() -> Vec<Vec<u8>> {
    let change = change([1, 2, 3, 4], Some(3));
    let events = [
        Event::RecordChange(change),
        Event::MapRoot(Map::default().root()),
        Event::Channel(sample(1).sign(&agent())),
        Event::Manifest(broadcast(1, [0; 32]).sign(&agent())),
    ];
    let own = WORLD.events.iter().take(1).cloned().chain(events);
    own.map(|event| leaf(NOW, event).bytes().to_vec()).collect()
}

fn change(handle_prefix: [u8; 4], previous_index: Option<u64>) -> RecordChange {
    RecordChange { handle_prefix, previous_index, commitment: [5; 32], pending: false, ends_index: None }
}

fn checkpoint(bytes: &[u8]) {
    static VERIFIER: LazyLock<LogVerifier> =
        LazyLock::new(|| LogVerifier::new(&WORLD.signer.vkey()).unwrap());
    let Some((mode, bytes)) = bytes.split_first() else { return };
    if let Ok(vkey) = std::str::from_utf8(bytes)
        && let Ok(verifier) = LogVerifier::new(vkey)
    {
        assert!(vkey.starts_with(verifier.origin()));
    }
    let own = mode & 1 == 1;
    let note = if own {
        // As the log's signer would sign any text.
        let Ok(mut note) = signed_note::Note::new(bytes, &[]) else { return };
        if note.add_sigs(&[&WORLD.signer]).is_err() {
            return;
        }
        note.to_bytes()
    } else {
        bytes.to_vec()
    };
    let Ok(verified) = VERIFIER.verify(&note) else { return };
    assert!(note.len() <= MAX_CHECKPOINT && verified.note().as_ref() == note);
    if !own {
        let (size, root) = sample_head();
        assert!((verified.size(), *verified.root()) == (size, root), "the log never signed this");
    }
    // A head is consistent with itself, and with the empty tree alone by nothing.
    assert!(verified.size() == 0 || verified.extends(&verified, &[]).is_ok());
    assert!(verified.includes(&[0; 32], verified.size(), &[]).is_err());
}

fn sample_head() -> (u64, Hash) {
    (5, [6; 32])
}

fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let (size, root) = sample_head();
    let signed = WORLD.signer.sign(size, &root).unwrap();
    let text = signed.note().split(|byte| *byte == b'\n').take(3).collect::<Vec<_>>().join(&b'\n');
    let extended = [text.as_slice(), b"\nextension\n"].concat();
    vec![
        [&[0], &**signed.note()].concat(),
        [&[1], text.as_slice(), b"\n"].concat(),
        [&[1], extended.as_slice()].concat(),
        [&[0], WORLD.signer.vkey().as_bytes()].concat(),
    ]
}

/// Leaves of the trees that are proven.
static LEAVES: LazyLock<Vec<Hash>> =
    LazyLock::new(|| (0..200_u32).map(|n| leaf_hash(&n.to_be_bytes())).collect());
/// Roots of the trees of so many of them.
static HEADS: LazyLock<Vec<Hash>> = LazyLock::new(|| (0..=200).map(|size| root(&LEAVES[..size])).collect());

/// The proof, in the tree of this size, of a leaf.
fn included(size: usize, index: usize) -> Arc<[Hash]> {
    static PROOFS: Memo<(usize, usize), Arc<[Hash]>> = Memo::new();
    PROOFS.of((size, index), || inclusion(&LEAVES[..size], index).into())
}

/// The proof, in the tree of this size, of an older tree.
fn consistent(size: usize, old: usize) -> Arc<[Hash]> {
    static PROOFS: Memo<(usize, usize), Arc<[Hash]>> = Memo::new();
    PROOFS.of((size, old), || consistency(&LEAVES[..size], old, true).into())
}

fn proof(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let size = steps.below(200) as usize + 1;
    let (index, old) = (steps.below(size as u32) as usize, steps.below(size as u32) as usize + 1);
    let leaves = &LEAVES[..size];
    let (head, old_head) = (HEADS[size], HEADS[old]);
    let (included, consistent) = (included(size, index), consistent(size, old));
    let (index, size, old) = (index as u64, size as u64, old as u64);
    assert!(verify_inclusion(&leaves[index as usize], index, size, &included, &head).is_ok());
    assert!(verify_consistency(old, &old_head, size, &head, &consistent).is_ok());

    // Of one tree, whose size a checkpoint signs with its root, nothing else is proven: not
    // by another path, nor of another leaf.
    let mut path = if steps.flip() { included.to_vec() } else { consistent.to_vec() };
    tamper(&mut steps, &mut path);
    assert!(path.len() <= MAX_PATH);
    let (at, before) = (near(&mut steps, index), near(&mut steps, old));
    let claimed = steps.of(leaves);
    if verify_inclusion(claimed, at, size, &path, &head).is_ok() {
        assert!(leaves.get(at as usize) == Some(claimed), "a leaf is proven where it is not");
        assert!(*self::included(leaves.len(), at as usize) == path, "a leaf has two proofs");
    }
    if verify_consistency(old, &old_head, size, &head, &path).is_ok() {
        assert!(path == *consistent, "a tree has two proofs");
    }
    // Sizes that no checkpoint signed: whatever comes of it, it ends.
    let wrong = near(&mut steps, size);
    let _ = verify_inclusion(claimed, at, wrong, &path, &head);
    let _ = verify_consistency(before, &old_head, wrong, &head, &path);
}

fn near(steps: &mut Steps<'_>, number: u64) -> u64 {
    match steps.below(4) {
        0 => number.wrapping_add(u64::from(steps.below(5))).wrapping_sub(2),
        1 => number ^ 1 << steps.below(64),
        _ => number,
    }
}

fn tamper(steps: &mut Steps<'_>, path: &mut Vec<Hash>) {
    for _ in 0..steps.below(4) {
        let at = steps.below(path.len() as u32 + 1) as usize;
        match steps.below(4) {
            0 if path.len() < MAX_PATH => path.insert(at, *steps.of(&LEAVES)),
            1 if at < path.len() => drop(path.remove(at)),
            2 if at < path.len() => path[at][steps.below(32) as usize] ^= 1 << steps.below(8),
            3 if at < path.len() => path.swap(0, at),
            _ => {}
        }
    }
}

fn proof_seeds() -> Vec<Vec<u8>> {
    vec![
        vec![199, 7, 100, 0],
        vec![8, 3, 4, 1, 2, 0, 1],
        vec![100, 100, 64, 1, 1, 2, 3, 4, 5, 6],
        vec![0; 40],
    ]
}

/// What stands: of which handle, and what it is, by its entry.
type Standing = BTreeMap<u64, ([u8; 4], Kind)>;

/// Logs to begin with: an empty one; one with what governs; one with a channel, a broadcast and records.
static BEGUN: LazyLock<[(Replay, Standing); 3]> = LazyLock::new(|| {
    let owner = Event::Statement(sign(&WORLD.governor, 80, owner(true)));
    let spoken = broadcast(1, NONE).sign(&agent());
    let mut events = vec![owner, Event::Channel(sample(1).sign(&agent())), Event::Manifest(spoken)];
    events.extend([0, 1, 2].map(|n| Event::RecordChange(change([n, 0, 0, 1], None))));
    [&[], WORLD.events.as_slice(), &events].map(begun)
});

fn begun(events: &[Event]) -> (Replay, Standing) {
    let mut replay = Replay::new(FEDERATION, WORLD.governance.clone());
    let mut standing = Standing::new();
    for (index, event) in (0..).zip(events) {
        let effect = replay.take(&leaf(founded(), event.clone())).unwrap();
        follow(&mut standing, effect, index, replay.map());
    }
    (replay, standing)
}

fn replay(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let (mut replay, mut standing) = steps.of(&*BEGUN).clone();
    let (mut last, mut taken) = (replay.last(), 0);
    while steps.more(taken, 6) {
        taken += 1;
        let at = match steps.below(8) {
            0 => Timestamp::from_millis(steps.number().cast_signed()),
            other => founded().after(std::time::Duration::from_millis(taken as u64 + u64::from(other))),
        };
        let event = event(&mut steps, &replay);
        let before = (replay.next(), replay.last(), replay.map().clone().root(), replay.state().in_force());
        let index = replay.next();
        match replay.take(&leaf(at, event)) {
            Err(_) => {
                let after =
                    (replay.next(), replay.last(), replay.map().clone().root(), replay.state().in_force());
                assert!(after == before, "a wrong entry changed something");
            }
            Ok(effect) => {
                assert!(at >= last && replay.next() == index + 1, "a log went back");
                last = at;
                follow(&mut standing, effect, index, replay.map());
            }
        }
        let items: Standing = items(replay.map()).collect();
        assert!(items == standing, "the map is not what the log makes");
    }
}

fn items(map: &Map) -> impl Iterator<Item = (u64, ([u8; 4], Kind))> + '_ {
    let nothing = chancery_directory_core::Prefix::from_bits(0, 0);
    let items = map.part(nothing, 0).items();
    items.into_iter().map(|item: Item| (item.index(), (item.prefix(), item.kind())))
}

fn follow(standing: &mut Standing, effect: Effect, index: u64, map: &Map) {
    match effect {
        Effect::Record(change) => {
            if let Some(previous) = change.previous_index {
                let stood = if change.pending {
                    standing.get(&previous).copied()
                } else {
                    standing.remove(&previous)
                };
                assert!(
                    stood == Some((change.handle_prefix, Kind::Record)),
                    "a change of what did not stand"
                );
            }
            if let Some(ended) = change.ends_index {
                assert!(standing.remove(&ended) == Some((change.handle_prefix, Kind::Pending)));
            }
            let kind = if change.pending { Kind::Pending } else { Kind::Record };
            standing.insert(index, (change.handle_prefix, kind));
        }
        Effect::Channel(change) => {
            let place = (change.item.prefix(), Kind::Channel);
            if let Some(before) = change.before {
                assert!(standing.remove(&before) == Some(place), "a channel follows on what did not stand");
            }
            assert!(!standing.values().any(|other| *other == place), "a channel stands twice");
            assert!(change.item.index() == index && change.channel_index <= index);
            standing.insert(index, place);
        }
        Effect::Erases(records) => {
            for record in records {
                let erased = standing.remove(&record.index);
                assert!(erased.is_some_and(|(prefix, _)| prefix == record.handle_prefix));
            }
        }
        Effect::Root(sum) => assert!(sum == map.clone().root()),
        Effect::Governs | Effect::Nothing => {}
    }
}

fn event(steps: &mut Steps<'_>, replay: &Replay) -> Event {
    let prefix = |steps: &mut Steps<'_>| [u8::try_from(steps.below(3)).unwrap(), 0, 0, 1];
    let index = |steps: &mut Steps<'_>| match steps.below(12) {
        0 => steps.number(),
        n => replay.next().saturating_sub(n.into()),
    };
    match steps.below(12) {
        0..4 => {
            let previous_index = steps.flip().then(|| index(steps));
            let ends_index = (steps.below(4) == 0).then(|| index(steps));
            let pending = steps.below(4) == 0;
            Event::RecordChange(RecordChange { pending, ends_index, ..change(prefix(steps), previous_index) })
        }
        4 => {
            let mut map = replay.map().clone();
            Event::MapRoot(if steps.flip() { map.root() } else { Sum { items: 1, hash: [1; 32] } })
        }
        5 => {
            let record = ErasedRecord { handle_prefix: prefix(steps), index: index(steps) };
            Event::Statement(signed(steps, Decision::Erasure(vec![record])))
        }
        6 => steps.of(&WORLD.events).clone(),
        7 => {
            let listed = steps.below(4) != 0;
            Event::Statement(signed(steps, owner(listed)))
        }
        8 | 9 => {
            let head = replay.channels().head(&sample(1).id);
            let version = head.map_or(0, |head| head.channel.channel().version) + 1;
            let version = if steps.below(4) == 0 { steps.number().max(1) >> 1 } else { version };
            let closed = steps.below(8) == 0;
            let (version, signer) = (version.max(1), signer(steps));
            Event::Channel(CHANNELS.of((version, closed, signer.verifying_key().to_bytes()), || {
                Channel { closed, ..sample(version) }.sign(&signer)
            }))
        }
        10 => {
            let latest = replay.channels().head(&sample(1).id).and_then(|head| head.latest);
            let (sequence, hash) = latest.map_or((0, NONE), |latest| (latest.sequence, latest.hash));
            let sequence = if steps.below(4) == 0 { steps.number() >> 1 } else { sequence + 1 };
            let signer = signer(steps);
            Event::Manifest(MANIFESTS.of((sequence, hash, signer.verifying_key().to_bytes()), || {
                broadcast(sequence, hash).sign(&signer)
            }))
        }
        _ => Event::Statement(signed(steps, admitted("five", &key(61), "e164"))),
    }
}

/// By version, whether it is closed, and who signs it.
static CHANNELS: Memo<(u64, bool, [u8; 32]), wire::SignedChannel> = Memo::new();
/// By sequence, the hash of the one before, and who signs it.
static MANIFESTS: Memo<(u64, [u8; 32], [u8; 32]), wire::SignedManifest> = Memo::new();

/// The channel's agent, mostly.
fn signer(steps: &mut Steps<'_>) -> SigningKey {
    if steps.below(4) == 0 { key(99) } else { agent() }
}

fn signed(steps: &mut Steps<'_>, decision: Decision) -> wire::SignedStatement {
    let governor = if steps.below(4) == 0 { &key(99) } else { &WORLD.governor };
    sign(governor, 80 + u64::from(steps.below(3)), decision)
}

fn replay_seeds() -> Vec<Vec<u8>> {
    vec![vec![1; 120], (0..=255).collect(), (0..=255).rev().collect(), vec![6, 1, 0, 6, 6, 2, 6, 6, 4]]
}

fn sample_list() -> wire::ListStatementsResponse {
    let leaves = WORLD.leaves();
    let hashes: Vec<_> = leaves.iter().map(Leaf::hash).collect();
    let statements = leaves.iter().enumerate().map(|(index, leaf)| {
        let path = inclusion(&hashes, index).iter().map(|hash| Bytes::copy_from_slice(hash)).collect();
        let inclusion = Some(wire::InclusionProof { index: index as u64, path });
        wire::LoggedEntry { entry: leaf.bytes().clone(), inclusion }
    });
    let checkpoint = WORLD.checkpoint(&leaves).note().clone();
    wire::ListStatementsResponse { checkpoint, statements: statements.collect() }
}

fn statements(bytes: &[u8]) {
    static GENUINE: LazyLock<wire::ListStatementsResponse> = LazyLock::new(sample_list);
    let Some(list) = message::<wire::ListStatementsResponse>(bytes) else { return };
    let claimed = list.statements.clone();
    let Ok((checkpoint, state)) = WORLD.trust.verify_statements(list) else { return };
    assert!(checkpoint.note() == &GENUINE.checkpoint, "the log never signed this");
    // Some may be left out; none may be changed, made up or moved.
    for entry in claimed {
        let index = entry.inclusion.as_ref().unwrap().index as usize;
        assert!(GENUINE.statements[index].entry == entry.entry, "another entry counts");
    }
    assert!(state.in_force().iter().all(|index| WORLD.state.in_force().contains(index) || *index < 7));
}

fn statements_seeds() -> Vec<Vec<u8>> {
    let whole = sample_list();
    let part = wire::ListStatementsResponse {
        statements: whole.statements.iter().take(2).cloned().collect(),
        ..whole.clone()
    };
    [whole, part].map(|list| list.encode_to_vec()).to_vec()
}
