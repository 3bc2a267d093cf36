//! A small federation for the tests of this crate.

use crate::attestation::Attestation;
use crate::ceremony::conclusion::{self, Conclusion};
use crate::ceremony::party::{self, Secret};
use crate::ceremony::transcript::{Dealings, Outcome};
use crate::ceremony::{Ceremony, Joins, Party, Plan};
use crate::channel::{Channel, JoinRule, Suite, Text};
use crate::entry::{Entry, Event, Leaf};
use crate::governance::{self, GovernanceKeys};
use crate::handle::{self, RecordKey, Serving};
use crate::keys::{self, AccountKey, GovernanceKey, SigningKey};
use crate::manifest::Manifest;
use crate::merkle::{self, Hash};
use crate::note::{self, CheckpointSigner, VerifiedCheckpoint};
use crate::oprf::SecretKey;
use crate::record::RecordDraft;
use crate::statement::{Accreditation, Authority, Decision, DirectoryKeys, Member, Statement};
use crate::{Address, Error, FederationState, Trust};
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::entropy::SeededEntropy;
use chancery_types::{Alias, BlobId, ChannelId, Entropy, Handle, NodeId, Timestamp};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const FEDERATION: &str = "mesh.example";
/// When the tests take place.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

pub(crate) fn signing_keys(entropy: &SeededEntropy, count: usize) -> Vec<SigningKey> {
    (0..count).map(|_| keys::generate(entropy)).collect()
}

/// One governance key that decides alone.
pub(crate) fn governance(entropy: &SeededEntropy) -> (SigningKey, GovernanceKeys) {
    let key = keys::generate(entropy);
    let keys = GovernanceKeys::new(vec![GovernanceKey::from(&key)], 1).unwrap();
    (key, keys)
}

/// Evaluators that hold a ceremony among themselves, in memory.
pub(crate) struct Rehearsal {
    pub(crate) ceremony: Ceremony,
    pub(crate) plan: wire::SignedStatement,
    pub(crate) transcript: wire::CeremonyTranscript,
    pub(crate) keys: BTreeMap<NodeId, SigningKey>,
    secrets: BTreeMap<NodeId, Secret>,
}

impl Rehearsal {
    /// Plans with these parties by index; `keys` has those of the dealers as well.
    pub(crate) fn new(
        world: &World,
        (key_epoch, generation, threshold): (u32, u32, u32),
        parties: &[(u32, &str)],
        keys: &BTreeMap<NodeId, SigningKey>,
    ) -> Self {
        let mut keys = keys.clone();
        let parties = parties
            .iter()
            .map(|(index, name)| {
                let evaluator: NodeId = name.parse().unwrap();
                let key = keys.entry(evaluator.clone()).or_insert_with(|| keys::generate(&world.entropy));
                Party {
                    index: *index,
                    key: (&*key).into(),
                    evaluator,
                    endpoints: vec!["localhost:1".to_owned()],
                    tls_key_pin: [9; 32],
                }
            })
            .collect();
        let plan = world.sign(Decision::CeremonyPlan(Plan { key_epoch, generation, threshold, parties }));
        let verified = governance::verify(&plan, FEDERATION, &world.governance).unwrap();
        let ceremony = Ceremony::new(&verified, &world.state).unwrap();
        let secrets = keys.keys().map(|id| (id.clone(), Secret::random(&world.entropy))).collect();
        let transcript =
            wire::CeremonyTranscript { ceremony: ceremony.id().to_vec().into(), ..Default::default() };
        Self { ceremony, plan, transcript, keys, secrets }
    }

    pub(crate) fn join(&mut self, names: &[&str]) {
        for name in names {
            let id: NodeId = name.parse().unwrap();
            let party = self.ceremony.party(&id).unwrap();
            let join = party::join(&self.ceremony, party, &self.secrets[&id], &self.keys[&id]).unwrap();
            self.transcript.joins.push(join);
        }
    }

    pub(crate) fn joins(&self) -> Joins {
        Joins::verify(&self.ceremony, &self.transcript.joins).unwrap()
    }

    /// Deals what each holds, or a fresh part.
    pub(crate) fn deal(
        &mut self,
        names: &[&str],
        held: &BTreeMap<NodeId, SecretKey>,
        entropy: &SeededEntropy,
    ) {
        for name in names {
            let id: NodeId = name.parse().unwrap();
            let dealer = self.ceremony.dealer(&id).unwrap();
            let (joins, key) = (self.joins(), &self.keys[&id]);
            let dealing = party::deal(&self.ceremony, dealer, held.get(&id), &joins, key, entropy).unwrap();
            self.transcript.dealings.push(dealing);
        }
    }

    pub(crate) fn dealings(&self) -> Dealings {
        Dealings::verify(&self.ceremony, &self.joins(), &self.transcript.dealings).unwrap()
    }

    pub(crate) fn judge(&mut self, names: &[&str]) {
        for name in names {
            let id: NodeId = name.parse().unwrap();
            let party = self.ceremony.party(&id).unwrap();
            let (joins, dealings) = (self.joins(), self.dealings());
            let (secret, key) = (&self.secrets[&id], &self.keys[&id]);
            let verdict = party::judge(&self.ceremony, party, secret, &joins, &dealings, key).unwrap();
            self.transcript.verdicts.push(verdict);
        }
    }

    pub(crate) fn outcome(&self) -> Result<Outcome, Error> {
        Outcome::of(&self.ceremony, &self.transcript)
    }

    pub(crate) fn share(&self, name: &str) -> Result<SecretKey, Error> {
        let id: NodeId = name.parse().unwrap();
        let party = self.ceremony.party(&id).unwrap();
        party::share_of(&self.ceremony, party, &self.secrets[&id], &self.outcome()?)
    }

    pub(crate) fn conclude(&self, names: &[&str]) -> wire::ConcludedCeremony {
        let result = self.outcome().unwrap().result();
        let conclusion = |name: &&str| {
            let id: NodeId = name.parse().unwrap();
            conclusion::sign(&result, self.ceremony.party(&id).unwrap(), &self.keys[&id])
        };
        wire::ConcludedCeremony {
            plan: Some(self.plan.clone()),
            transcript: Some(self.transcript.clone()),
            conclusions: names.iter().map(conclusion).collect(),
            result,
        }
    }
}

/// What the evaluators of a world hold.
#[derive(Default)]
pub(crate) struct Evaluators {
    pub(crate) keys: BTreeMap<NodeId, SigningKey>,
    pub(crate) servings: Vec<Serving>,
}

/// A log in memory.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) signer: Arc<CheckpointSigner>,
}

impl Log {
    pub(crate) fn new(world: &World) -> Self {
        let signer =
            CheckpointSigner::new(&note::origin(FEDERATION), keys::generate(&world.entropy)).unwrap();
        let mut log = Self { leaves: Vec::new(), signer: Arc::new(signer) };
        for event in world.log.iter().cloned() {
            log.append(NOW.before(Duration::from_secs(3_600)), event);
        }
        log
    }

    /// Gives the index.
    pub(crate) fn append(&mut self, sequenced_at: Timestamp, event: Event) -> u64 {
        self.leaves.push(Leaf::new(&Entry { sequenced_at, event }).unwrap());
        self.leaves.len() as u64 - 1
    }

    pub(crate) fn trust(&self, world: &World) -> Trust {
        Trust::new(FEDERATION, world.governance.clone(), &self.signer.vkey()).unwrap()
    }

    pub(crate) fn checkpoint(&self) -> VerifiedCheckpoint {
        let hashes: Vec<_> = self.leaves.iter().map(Leaf::hash).collect();
        self.signer.sign(hashes.len() as u64, &root(&hashes)).unwrap()
    }

    pub(crate) fn entry(&self, index: u64) -> wire::LoggedEntry {
        let at = usize::try_from(index).unwrap();
        let hashes: Vec<_> = self.leaves.iter().map(Leaf::hash).collect();
        let path = path(&hashes, at).iter().map(|h| Bytes::copy_from_slice(h)).collect();
        let inclusion = Some(wire::InclusionProof { index, path });
        wire::LoggedEntry { entry: self.leaves[at].bytes().clone(), inclusion }
    }
}

fn root(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => merkle::empty_root(),
        [one] => *one,
        _ => {
            let (left, right) = hashes.split_at(hashes.len().next_power_of_two() / 2);
            merkle::node_hash(&root(left), &root(right))
        }
    }
}

fn path(hashes: &[Hash], index: usize) -> Vec<Hash> {
    if hashes.len() == 1 {
        return vec![];
    }
    let middle = hashes.len().next_power_of_two() / 2;
    let (left, right) = hashes.split_at(middle);
    let (mut rest, sibling) = if index < middle {
        (path(left, index), root(right))
    } else {
        (path(right, index - middle), root(left))
    };
    rest.push(sibling);
    rest
}

/// Two of three evaluators in epoch 1, generation 1.
pub(crate) fn evaluators(world: &World) -> (Evaluators, wire::ConcludedCeremony) {
    let names = ["e1", "e2", "e3"];
    let mut rehearsal =
        Rehearsal::new(world, (1, 1, 2), &[(1, "e1"), (2, "e2"), (3, "e3")], &BTreeMap::new());
    rehearsal.join(&names);
    rehearsal.deal(&names, &BTreeMap::new(), &world.entropy);
    rehearsal.judge(&names);
    let serving = |(index, name): (u32, &&str)| Serving {
        key_epoch: 1,
        generation: 1,
        index,
        share: rehearsal.share(name).unwrap(),
    };
    let servings = (1..).zip(&names).map(serving).collect();
    let concluded = rehearsal.conclude(&names);
    (Evaluators { keys: rehearsal.keys, servings }, concluded)
}

/// A federation with one authority for `be-nn` and one owner of a handle.
pub(crate) struct World {
    pub(crate) entropy: SeededEntropy,
    pub(crate) governor: SigningKey,
    pub(crate) governance: GovernanceKeys,
    pub(crate) authority: SigningKey,
    pub(crate) account: SigningKey,
    /// Of the member that [`World::list_agent`] admits.
    pub(crate) agent: SigningKey,
    pub(crate) handle: Handle,
    pub(crate) record_key: RecordKey,
    pub(crate) address: Address,
    pub(crate) evaluators: Evaluators,
    /// What was logged, in order.
    pub(crate) log: Vec<Event>,
    pub(crate) state: FederationState,
}

impl World {
    pub(crate) fn new(entropy: &SeededEntropy) -> Self {
        let (governor, governance) = governance(entropy);
        let authority = keys::generate(entropy);
        let (handle, record_key) = handle::split(&(entropy as &dyn Entropy).array()).unwrap();
        let address = Address {
            node: "federal".parse().unwrap(),
            alias: Alias::random(entropy),
            credential_key: (&keys::generate(entropy)).into(),
        };
        let decisions = [
            Decision::Authority(Authority {
                authority: "enrol".parse().unwrap(),
                key: (&authority).into(),
                schemes: ["be-nn".parse().unwrap()].into(),
            }),
            Decision::DirectoryKeys(DirectoryKeys { hpke_public_key: [9; 32], lookup_prefix_bits: 8 }),
        ];
        let mut world = Self {
            entropy: entropy.clone(),
            governor,
            governance,
            authority,
            account: keys::generate(entropy),
            agent: keys::generate(entropy),
            handle,
            record_key,
            address,
            evaluators: Evaluators::default(),
            log: vec![],
            state: FederationState::default(),
        };
        decisions.into_iter().for_each(|d| world.decide(d));
        let (evaluators, concluded) = evaluators(&world);
        world.evaluators = evaluators;
        world.conclude(concluded);
        world
    }

    /// Signs, verifies and applies a decision at the next index.
    pub(crate) fn decide(&mut self, decision: Decision) {
        let signed = self.sign(decision);
        let verified = governance::verify(&signed, FEDERATION, &self.governance).unwrap();
        self.state.apply(verified, self.log.len() as u64, NOW.before(Duration::from_secs(3_600)));
        self.log.push(Event::Statement(signed));
    }

    /// Verifies and applies a ceremony at the next index.
    pub(crate) fn conclude(&mut self, concluded: wire::ConcludedCeremony) {
        let verified = Conclusion::verify(&concluded, FEDERATION, &self.governance).unwrap();
        verified.judge(&concluded, &self.state).unwrap();
        self.state.conclude(verified, self.log.len() as u64);
        self.log.push(Event::Ceremony(Box::new(concluded)));
    }

    pub(crate) fn sign(&self, decision: Decision) -> wire::SignedStatement {
        governance::sign(&Statement::new(FEDERATION, decision, &self.entropy), &[&self.governor])
    }

    pub(crate) fn attestation(&self) -> Attestation {
        Attestation {
            authority: "enrol".parse().unwrap(),
            scheme: "be-nn".parse().unwrap(),
            handle: self.handle,
            account_key: AccountKey::from(&self.account),
            key_epoch: 1,
            issued_at: NOW.before(Duration::from_secs(60)),
            expires_at: NOW.after(Duration::from_secs(3_600)),
        }
    }

    pub(crate) fn draft(&self, version: u64, previous_index: Option<u64>) -> RecordDraft {
        RecordDraft {
            handle: self.handle,
            version,
            previous_index,
            attestation: self.attestation().sign(&self.authority),
            second_attestation: None,
            sealed_part: self.address.seal(&self.record_key, &self.handle, version, &self.entropy).unwrap(),
            two_authorities: false,
            changed_at: NOW,
        }
    }

    /// Admits another authority for `be-nn`; gives its key.
    pub(crate) fn admit_authority(&mut self, name: &str) -> SigningKey {
        let key = keys::generate(&self.entropy);
        self.decide(Decision::Authority(Authority {
            authority: name.parse().unwrap(),
            key: (&key).into(),
            schemes: ["be-nn".parse().unwrap()].into(),
        }));
        key
    }

    /// Admits the administration `federal` with its agent `post`, or with none.
    pub(crate) fn list_agent(&mut self, listed: bool) {
        let agents = listed.then(|| ("post".parse().unwrap(), (&self.agent).into()));
        self.decide(Decision::Member(Member {
            administration: "federal".parse().unwrap(),
            display_names: BTreeMap::from([("en".to_owned(), "Federal".to_owned())]),
            endpoints: vec!["localhost:1".to_owned()],
            node_key_pin: [9; 32],
            agents: agents.into_iter().collect(),
        }));
    }

    /// Says whether `federal` may carry emergencies.
    pub(crate) fn accredit(&mut self, accredited: bool) {
        let administration = "federal".parse().unwrap();
        self.decide(Decision::Accreditation(Accreditation { administration, accredited }));
    }

    /// Takes an authority's admission back.
    pub(crate) fn withdraw_authority(&mut self, name: &str, key: &SigningKey, at: Timestamp) {
        let authority = Authority { authority: name.parse().unwrap(), key: key.into(), schemes: [].into() };
        let signed = self.sign(Decision::Authority(authority));
        let verified = governance::verify(&signed, FEDERATION, &self.governance).unwrap();
        self.state.apply(verified, self.log.len() as u64, at);
        self.log.push(Event::Statement(signed));
    }

    pub(crate) fn first_record(&self, version: u64) -> wire::SignedRecord {
        self.draft(version, None).sign(&self.account)
    }
}

/// Version 1 of a channel of `federal`'s.
pub(crate) fn channel(world: &World) -> Channel {
    Channel {
        federation: FEDERATION.to_owned(),
        id: ChannelId::from_bytes([3; 16]),
        version: 1,
        administration: "federal".parse().unwrap(),
        agent: "post".parse().unwrap(),
        texts: BTreeMap::from([(
            "en".to_owned(),
            Text { name: "News".to_owned(), description: "What is new".to_owned() },
        )]),
        join_rule: JoinRule::Open,
        category: 1,
        contact: "mailto:news@federal.example".to_owned(),
        suite: Suite::Hybrid,
        cell_size: 256,
        emergency: false,
        history: 0,
        agent_alias: world.address.alias,
        closed: false,
        for_residents: false,
    }
}

/// A manifest of that channel's.
pub(crate) fn manifest(sequence: u64, previous_hash: [u8; 32]) -> Manifest {
    Manifest {
        channel: ChannelId::from_bytes([3; 16]),
        sequence,
        previous_hash,
        blob: BlobId::from_bytes([7; 32]),
        blob_size: 1_000,
        key_commitment: [8; 32],
        category: 1,
        emergency: false,
        created_at: NOW,
        expires_at: NOW.after(Duration::from_hours(24)),
        about: None,
    }
}
