//! The evaluators in force: who holds which share of the handles' key. A
//! ceremony ([`crate::ceremony`]) makes them so.

use crate::Error;
use crate::keys::EvaluatorKey;
use crate::oprf::Element;
use crate::statement::{array, endpoints};
use crate::threshold::MAX_EVALUATORS;
use chancery_proto::directory::v1 as wire;
use chancery_types::NodeId;
use std::collections::BTreeSet;

/// Largest index of a share.
const MAX_INDEX: u32 = 255;

/// The evaluators of one key epoch and the key they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvaluatorEpoch {
    /// Number of the epoch, from 1.
    pub key_epoch: u32,
    /// Generation of the shares, from 1.
    pub generation: u32,
    /// How many evaluators must answer, from 1.
    pub threshold: u32,
    /// Public key of the whole.
    pub public_key: Element,
    /// The evaluators in the order of their index.
    pub evaluators: Vec<EvaluatorShare>,
}

impl EvaluatorEpoch {
    /// The evaluator with this index.
    pub fn evaluator(&self, index: u32) -> Option<&EvaluatorShare> {
        self.evaluators.iter().find(|e| e.index == index)
    }
}

/// One evaluator of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvaluatorShare {
    /// Index of the share, from 1.
    pub index: u32,
    /// Id of the evaluator.
    pub evaluator: NodeId,
    /// Public key of the share.
    pub public_share: Element,
    /// Where nodes reach it: `host:port`.
    pub endpoints: Vec<String>,
    /// Signs what it says in ceremonies.
    pub key: EvaluatorKey,
    /// SHA-256 of the SubjectPublicKeyInfo of its TLS key.
    pub tls_key_pin: [u8; 32],
}

/// Checks that indices ascend from 1 and that nobody holds two shares.
pub(crate) fn distinct<'a>(shares: impl Iterator<Item = (u32, &'a NodeId)>) -> Result<(), Error> {
    let (mut last, mut ids) = (0, BTreeSet::new());
    for (index, evaluator) in shares {
        if index <= last || index > MAX_INDEX {
            return Err(Error::Field("evaluators have distinct indices from 1 to 255, in order"));
        }
        if !ids.insert(evaluator) {
            return Err(Error::Field("an evaluator holds one share"));
        }
        last = index;
    }
    Ok(())
}

impl TryFrom<wire::EvaluatorEpoch> for EvaluatorEpoch {
    type Error = Error;

    fn try_from(epoch: wire::EvaluatorEpoch) -> Result<Self, Error> {
        if !(1..=MAX_EVALUATORS).contains(&epoch.evaluators.len()) {
            return Err(Error::Field("an epoch has 1 to 16 evaluators"));
        }
        let evaluators = epoch
            .evaluators
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<Vec<EvaluatorShare>, _>>()?;
        distinct(evaluators.iter().map(|e| (e.index, &e.evaluator)))?;
        if epoch.key_epoch == 0 || epoch.generation == 0 {
            return Err(Error::Field("key epochs and generations count from 1"));
        }
        if epoch.threshold == 0 || evaluators.len() < epoch.threshold as usize {
            return Err(Error::Field("a threshold is 1 to the number of evaluators"));
        }
        let public_key = Element::try_from(epoch.public_key.as_ref())?;
        // With a threshold of 1 the polynomial is constant: each share is the key.
        if epoch.threshold == 1 && evaluators.iter().any(|e| e.public_share != public_key) {
            return Err(Error::Field("with a threshold of 1 every public share is the public key"));
        }
        Ok(Self {
            key_epoch: epoch.key_epoch,
            generation: epoch.generation,
            threshold: epoch.threshold,
            public_key,
            evaluators,
        })
    }
}

impl From<&EvaluatorEpoch> for wire::EvaluatorEpoch {
    fn from(epoch: &EvaluatorEpoch) -> Self {
        Self {
            key_epoch: epoch.key_epoch,
            generation: epoch.generation,
            threshold: epoch.threshold,
            public_key: epoch.public_key.to_wire(),
            evaluators: epoch.evaluators.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::EvaluatorShare> for EvaluatorShare {
    type Error = Error;

    fn try_from(share: wire::EvaluatorShare) -> Result<Self, Error> {
        Ok(Self {
            index: share.index,
            evaluator: share.evaluator.parse()?,
            public_share: Element::try_from(share.public_share.as_ref())?,
            endpoints: endpoints(share.endpoints)?,
            key: EvaluatorKey::try_from(share.key.as_ref())?,
            tls_key_pin: array(&share.tls_key_pin, "a key pin has not 32 bytes")?,
        })
    }
}

impl From<&EvaluatorShare> for wire::EvaluatorShare {
    fn from(share: &EvaluatorShare) -> Self {
        Self {
            index: share.index,
            evaluator: share.evaluator.to_string(),
            public_share: share.public_share.to_wire(),
            endpoints: share.endpoints.clone(),
            key: share.key.to_wire(),
            tls_key_pin: share.tls_key_pin.to_vec().into(),
        }
    }
}
