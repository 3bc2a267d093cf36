//! A small federation for the tests of this crate.

use crate::attestation::Attestation;
use crate::governance::{self, GovernanceKeys};
use crate::handle::{self, RecordKey, Serving};
use crate::keys::{self, AccountKey, GovernanceKey, SigningKey};
use crate::oprf::SecretKey;
use crate::record::RecordDraft;
use crate::statement::{Authority, Decision, DirectoryKeys, EvaluatorEpoch, EvaluatorShare, Statement};
use crate::{Address, FederationState};
use chancery_proto::directory::v1 as wire;
use chancery_types::entropy::SeededEntropy;
use chancery_types::{Alias, Entropy, Handle, Timestamp};
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

/// One evaluator, threshold 1, epoch 1, generation 1.
pub(crate) fn evaluators(entropy: &SeededEntropy) -> (Serving, EvaluatorEpoch) {
    let share = SecretKey::random(entropy);
    let public_key = share.public_key().unwrap();
    let evaluator = EvaluatorShare {
        index: 1,
        evaluator: "e1".parse().unwrap(),
        public_share: public_key,
        endpoints: vec!["localhost:1".to_owned()],
    };
    let epoch =
        EvaluatorEpoch { key_epoch: 1, generation: 1, threshold: 1, public_key, evaluators: vec![evaluator] };
    (Serving { key_epoch: 1, generation: 1, index: 1, share }, epoch)
}

/// A federation with one authority for `be-nn` and one owner of a handle.
pub(crate) struct World {
    pub(crate) entropy: SeededEntropy,
    pub(crate) governor: SigningKey,
    pub(crate) governance: GovernanceKeys,
    pub(crate) authority: SigningKey,
    pub(crate) account: SigningKey,
    pub(crate) handle: Handle,
    pub(crate) record_key: RecordKey,
    pub(crate) address: Address,
    /// What was logged, in order.
    pub(crate) statements: Vec<wire::SignedStatement>,
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
            Decision::EvaluatorEpoch(evaluators(entropy).1),
            Decision::DirectoryKeys(DirectoryKeys { hpke_public_key: [9; 32], lookup_prefix_bits: 8 }),
        ];
        let mut world = Self {
            entropy: entropy.clone(),
            governor,
            governance,
            authority,
            account: keys::generate(entropy),
            handle,
            record_key,
            address,
            statements: vec![],
            state: FederationState::default(),
        };
        decisions.into_iter().for_each(|d| world.decide(d));
        world
    }

    /// Signs, verifies and applies a decision at the next index.
    pub(crate) fn decide(&mut self, decision: Decision) {
        let signed = self.sign(decision);
        let verified = governance::verify(&signed, FEDERATION, &self.governance).unwrap();
        self.state.apply(verified, self.statements.len() as u64);
        self.statements.push(signed);
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
            sealed_part: self.address.seal(&self.record_key, &self.handle, version, &self.entropy).unwrap(),
            changed_at: NOW,
        }
    }

    pub(crate) fn first_record(&self, version: u64) -> wire::SignedRecord {
        self.draft(version, None).sign(&self.account)
    }
}
