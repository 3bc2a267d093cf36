//! A small federation, the same each time: what governs it, who may sign in it, its log. Slow
//! to make, so made once.

use crate::input::Memo;
use bytes::Bytes;
use chancery_directory_core::attestation::Attestation;
use chancery_directory_core::ceremony::conclusion::Conclusion;
use chancery_directory_core::ceremony::party::{self, Secret};
use chancery_directory_core::ceremony::transcript::Outcome;
use chancery_directory_core::ceremony::{Ceremony, Party, Plan};
use chancery_directory_core::entry::{Entry, Event, Leaf};
use chancery_directory_core::governance;
use chancery_directory_core::handle::{self, Serving};
use chancery_directory_core::keys;
use chancery_directory_core::merkle::{self, Hash};
use chancery_directory_core::note::{self, CheckpointSigner, VerifiedCheckpoint};
use chancery_directory_core::record::RecordDraft;
use chancery_directory_core::statement::{Authority, Decision, DirectoryKeys, Statement};
use chancery_directory_core::{
    AccountKey, Address, FederationState, GovernanceKey, GovernanceKeys, RecordKey, SigningKey, Trust,
};
use chancery_proto::directory::v1 as wire;
use chancery_types::entropy::SeededEntropy;
use chancery_types::{Alias, Entropy, Handle, NodeId, Timestamp};
use prost::Message as _;
use std::sync::LazyLock;
use std::time::Duration;

/// Its name.
pub(crate) const FEDERATION: &str = "mesh.example";
/// When everything takes place.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
/// Bits of a handle that a lookup names.
pub(crate) const BITS: u32 = 4;

/// The federation.
pub(crate) static WORLD: LazyLock<World> = LazyLock::new(World::new);

/// Who governs, attests, evaluates and owns records.
pub(crate) struct World {
    pub(crate) governor: SigningKey,
    pub(crate) governance: GovernanceKeys,
    pub(crate) evaluators: [SigningKey; 3],
    /// How they made their key: HPKE draws from the system, so it is kept.
    pub(crate) concluded: wire::ConcludedCeremony,
    pub(crate) servings: Vec<Serving>,
    pub(crate) signer: CheckpointSigner,
    pub(crate) trust: Trust,
    pub(crate) state: FederationState,
    /// What was logged.
    pub(crate) events: Vec<Event>,
}

/// What an evaluator of the world is called.
pub(crate) const EVALUATORS: [&str; 3] = ["e1", "e2", "e3"];
/// What an authority of the world is called; the last is withdrawn.
pub(crate) const AUTHORITIES: [&str; 3] = ["one", "two", "three"];

/// The key that comes from a number.
pub(crate) fn key(number: u64) -> SigningKey {
    static KEYS: Memo<u64, SigningKey> = Memo::new();
    KEYS.of(number, || keys::generate(&SeededEntropy::new(number)))
}

/// A name.
pub(crate) fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

impl World {
    fn new() -> Self {
        let governor = key(1);
        let governance = GovernanceKeys::new(vec![GovernanceKey::from(&governor)], 1).unwrap();
        let signer = CheckpointSigner::new(&note::origin(FEDERATION), key(2)).unwrap();
        let trust = Trust::new(FEDERATION, governance.clone(), &signer.vkey()).unwrap();
        let evaluators = evaluators();
        let mut world = Self {
            governor,
            governance,
            evaluators,
            concluded: wire::ConcludedCeremony::decode(include_bytes!("../fixtures/ceremony").as_slice())
                .unwrap(),
            servings: Vec::new(),
            signer,
            trust,
            state: FederationState::default(),
            events: Vec::new(),
        };
        for (index, name) in AUTHORITIES.iter().enumerate() {
            world.decide(30 + index as u64, admitted(name, &authority(index), "be-nn"));
        }
        let withdrawn =
            Authority { authority: name(AUTHORITIES[2]), key: (&authority(2)).into(), schemes: [].into() };
        world.decide(40, Decision::Authority(withdrawn));
        let keys = DirectoryKeys { hpke_public_key: [9; 32], lookup_prefix_bits: BITS };
        world.decide(41, Decision::DirectoryKeys(keys));
        world.conclude();
        world
    }

    fn decide(&mut self, nonce: u64, decision: Decision) {
        let signed = sign(&self.governor, nonce, decision);
        let verified = governance::verify(&signed, FEDERATION, &self.governance).unwrap();
        self.state.apply(verified, self.events.len() as u64, founded());
        self.events.push(Event::Statement(signed));
    }

    fn conclude(&mut self) {
        let ceremony = self.ceremony();
        let transcript = self.concluded.transcript.as_ref().unwrap();
        let outcome = Outcome::of(&ceremony, transcript).unwrap();
        let serving = |(index, secret): (u32, &Secret)| {
            let share = party::share_of(&ceremony, index, secret, &outcome).unwrap();
            Serving { key_epoch: 1, generation: 1, index, share }
        };
        self.servings = (1..).zip(&secrets()).map(serving).collect();
        let verified = Conclusion::verify(&self.concluded, FEDERATION, &self.governance).unwrap();
        verified.judge(&self.concluded, &self.state).unwrap();
        self.state.conclude(verified, self.events.len() as u64);
        self.events.push(Event::Ceremony(Box::new(self.concluded.clone())));
    }

    /// The ceremony that made the evaluators' key, before anybody concluded it.
    pub(crate) fn ceremony(&self) -> Ceremony {
        ceremony(&plan(&self.governor, &self.evaluators), &self.governance)
    }

    /// Signs a checkpoint over these leaves.
    pub(crate) fn checkpoint(&self, leaves: &[Leaf]) -> VerifiedCheckpoint {
        let hashes: Vec<_> = leaves.iter().map(Leaf::hash).collect();
        self.signer.sign(hashes.len() as u64, &root(&hashes)).unwrap()
    }

    /// What was logged, as leaves.
    pub(crate) fn leaves(&self) -> Vec<Leaf> {
        self.events.iter().cloned().map(|event| leaf(founded(), event)).collect()
    }
}

/// The key of an authority of the world.
pub(crate) fn authority(index: usize) -> SigningKey {
    key(3 + index as u64)
}

/// An authority's word for an owner's handle.
pub(crate) fn attestation(
    authority_index: usize,
    owner: &Owner,
    issued_at: Timestamp,
) -> wire::SignedAttestation {
    static WORDS: Memo<(usize, Handle, AccountKey, Timestamp), wire::SignedAttestation> = Memo::new();
    let word = Attestation {
        authority: name(AUTHORITIES[authority_index]),
        scheme: "be-nn".parse().unwrap(),
        handle: owner.handle,
        account_key: AccountKey::from(&owner.account),
        key_epoch: 1,
        issued_at,
        expires_at: issued_at.after(Duration::from_hours(30 * 24)),
    };
    WORDS.of((authority_index, word.handle, word.account_key, issued_at), || {
        word.sign(&authority(authority_index))
    })
}

/// Whose handle it is.
pub(crate) struct Owner {
    pub(crate) handle: Handle,
    pub(crate) record_key: RecordKey,
    pub(crate) account: SigningKey,
}

impl Owner {
    /// The owner that comes from a number, whose handle begins with these bytes.
    pub(crate) fn new(number: u64, head: [u8; 4]) -> Self {
        let entropy = SeededEntropy::new(1000 + number);
        let entropy: &dyn Entropy = &entropy;
        let mut output: [u8; 64] = entropy.array();
        output[..4].copy_from_slice(&head);
        let (handle, record_key) = handle::split(&output).unwrap();
        Self { handle, record_key, account: keys::generate(entropy) }
    }

    /// Where letters go.
    pub(crate) fn address(&self) -> Address {
        Address {
            node: name("federal"),
            alias: Alias::from_bytes([7; 16]),
            credential_key: (&self.account).into(),
        }
    }

    /// A first record.
    pub(crate) fn record(&self) -> wire::SignedRecord {
        let entropy = SeededEntropy::new(2);
        let issued_at = NOW.before(Duration::from_mins(1));
        RecordDraft {
            handle: self.handle,
            version: 1,
            previous_index: None,
            attestation: attestation(0, self, issued_at),
            second_attestation: None,
            sealed_part: self.address().seal(&self.record_key, &self.handle, 1, &entropy).unwrap(),
            two_authorities: false,
            changed_at: NOW,
        }
        .sign(&self.account)
    }
}

/// When the federation was founded.
pub(crate) fn founded() -> Timestamp {
    NOW.before(Duration::from_hours(1))
}

/// A leaf of the log.
pub(crate) fn leaf(sequenced_at: Timestamp, event: Event) -> Leaf {
    Leaf::new(&Entry { sequenced_at, event }).unwrap()
}

/// A statement of the federation under a governor's key; the nonce comes from a number.
pub(crate) fn sign(governor: &SigningKey, nonce: u64, decision: Decision) -> wire::SignedStatement {
    static SIGNED: Memo<(Bytes, [u8; 32]), wire::SignedStatement> = Memo::new();
    let statement = Statement::new(FEDERATION, decision, &SeededEntropy::new(nonce));
    let said = wire::Statement::from(&statement).encode_to_vec().into();
    SIGNED.of((said, governor.verifying_key().to_bytes()), || governance::sign(&statement, &[governor]))
}

/// That an authority is admitted for a scheme.
pub(crate) fn admitted(authority: &str, key: &SigningKey, scheme: &str) -> Decision {
    let schemes = [scheme.parse().unwrap()].into();
    Decision::Authority(Authority { authority: name(authority), key: key.into(), schemes })
}

/// The evaluators' keys.
pub(crate) fn evaluators() -> [SigningKey; 3] {
    [6, 7, 8].map(key)
}

/// What each evaluator keeps to itself during the ceremony.
pub(crate) fn secrets() -> Vec<Secret> {
    let entropy = SeededEntropy::new(50);
    EVALUATORS.iter().map(|_| Secret::random(&entropy)).collect()
}

/// The ceremony that a statement plans for a federation that has no evaluators yet.
pub(crate) fn ceremony(plan: &wire::SignedStatement, governance: &GovernanceKeys) -> Ceremony {
    let verified = governance::verify(plan, FEDERATION, governance).unwrap();
    Ceremony::new(&verified, &FederationState::default()).unwrap()
}

/// The statement that plans the evaluators' ceremony.
pub(crate) fn plan(governor: &SigningKey, evaluators: &[SigningKey]) -> wire::SignedStatement {
    let party = |(index, (id, key)): (u32, (&&str, &SigningKey))| Party {
        index,
        evaluator: name(id),
        key: key.into(),
        endpoints: vec!["localhost:1".to_owned()],
        tls_key_pin: [9; 32],
    };
    let parties = (1..).zip(EVALUATORS.iter().zip(evaluators)).map(party).collect();
    let plan = Plan { key_epoch: 1, generation: 1, threshold: 2, parties };
    sign(governor, 20, Decision::CeremonyPlan(plan))
}

/// Root of the tree of these leaves (RFC 6962, section 2.1), by its definition.
pub(crate) fn root(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => merkle::empty_root(),
        [one] => *one,
        _ => {
            let (left, right) = hashes.split_at(hashes.len().next_power_of_two() / 2);
            merkle::node_hash(&root(left), &root(right))
        }
    }
}

/// Proof of inclusion (RFC 6962, section 2.1.1), by its definition.
pub(crate) fn inclusion(hashes: &[Hash], index: usize) -> Vec<Hash> {
    if hashes.len() < 2 {
        return Vec::new();
    }
    let middle = hashes.len().next_power_of_two() / 2;
    let (left, right) = hashes.split_at(middle);
    let (mut path, sibling) = if index < middle {
        (inclusion(left, index), root(right))
    } else {
        (inclusion(right, index - middle), root(left))
    };
    path.push(sibling);
    path
}

/// Proof of consistency (RFC 6962, section 2.1.2), by its definition: `whole` is
/// whether the old tree is a subtree that the verifier knows.
pub(crate) fn consistency(hashes: &[Hash], old: usize, whole: bool) -> Vec<Hash> {
    if old == hashes.len() {
        return if whole { Vec::new() } else { vec![root(hashes)] };
    }
    let middle = hashes.len().next_power_of_two() / 2;
    let (left, right) = hashes.split_at(middle);
    let (mut path, sibling) = if old <= middle {
        (consistency(left, old, whole), root(right))
    } else {
        (consistency(right, old - middle, false), root(left))
    };
    path.push(sibling);
    path
}
