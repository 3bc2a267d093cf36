//! m of n governance signatures: making them, checking them.

use crate::Error;
use crate::keys::{self, GovernanceKey, Purpose, SigningKey};
use crate::statement::{Decision, ErasedRecord, Statement};
use bytes::Bytes;
use chancery_pki_core::FederationBundle;
use chancery_proto::directory::v1 as wire;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;

/// Longest statement in bytes.
pub const MAX_STATEMENT: usize = 32 * 1024;
/// Most signatures on a statement.
pub const MAX_SIGNATURES: usize = 32;

/// The governance keys and how many of them decide.
#[derive(Clone, Debug)]
pub struct GovernanceKeys {
    keys: Vec<GovernanceKey>,
    threshold: usize,
}

impl GovernanceKeys {
    /// `threshold` of `keys` decide.
    ///
    /// # Errors
    /// No or more than 32 keys, a key twice, or a threshold outside 1 to their number.
    pub fn new(keys: Vec<GovernanceKey>, threshold: usize) -> Result<Self, Error> {
        if !(1..=MAX_SIGNATURES).contains(&keys.len())
            || keys.iter().collect::<HashSet<_>>().len() != keys.len()
        {
            return Err(Error::Field("governance has 1 to 32 distinct keys"));
        }
        if !(1..=keys.len()).contains(&threshold) {
            return Err(Error::Field("governance's threshold is 1 to the number of its keys"));
        }
        Ok(Self { keys, threshold })
    }

    /// Those that a federation's bundle names.
    ///
    /// # Errors
    /// As [`GovernanceKeys::new`], or a key is none.
    pub fn from_bundle(bundle: &FederationBundle) -> Result<Self, Error> {
        let keys = bundle.governance_keys().iter().map(|key| GovernanceKey::try_from(key.as_slice()));
        Self::new(keys.collect::<Result<_, _>>()?, bundle.governance_threshold())
    }

    /// The keys.
    pub fn keys(&self) -> &[GovernanceKey] {
        &self.keys
    }

    /// How many of them decide.
    pub const fn threshold(&self) -> usize {
        self.threshold
    }
}

/// Signs a statement with each of `keys`.
pub fn sign(statement: &Statement, keys: &[&SigningKey]) -> wire::SignedStatement {
    let statement = Bytes::from(wire::Statement::from(statement).encode_to_vec());
    let signatures = keys.iter().map(|key| signature(&statement, key)).collect();
    wire::SignedStatement { statement, signatures }
}

/// One more signature on the bytes of a statement, for keys held apart.
pub fn signature(statement: &[u8], key: &SigningKey) -> wire::GovernanceSignature {
    wire::GovernanceSignature {
        key: GovernanceKey::from(key).to_wire(),
        signature: Bytes::copy_from_slice(&keys::sign(Purpose::Governance, statement, key)),
    }
}

/// A statement that enough governance keys signed, for the right federation.
#[derive(Clone, Debug)]
pub struct VerifiedStatement {
    statement: Statement,
    digest: [u8; 32],
}

impl VerifiedStatement {
    /// What was decided.
    pub const fn statement(&self) -> &Statement {
        &self.statement
    }

    /// SHA-256 of the statement as signed.
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// What was decided.
    pub fn into_statement(self) -> Statement {
        self.statement
    }
}

/// What a statement, not verified yet, would erase.
pub fn erased(signed: &wire::SignedStatement) -> Vec<ErasedRecord> {
    let statement = wire::Statement::decode(signed.statement.clone()).ok();
    match statement.and_then(|statement| Statement::try_from(statement).ok()).map(|s| s.decision) {
        Some(Decision::Erasure(records)) => records,
        _ => Vec::new(),
    }
}

/// Checks the bytes received: limits, then signatures, then content.
/// Signatures by foreign keys do not count, and a key counts once.
///
/// # Errors
/// Too large, too few valid signatures, another federation's, or malformed.
pub fn verify(
    signed: &wire::SignedStatement,
    federation: &str,
    governance: &GovernanceKeys,
) -> Result<VerifiedStatement, Error> {
    if signed.statement.len() > MAX_STATEMENT || signed.signatures.len() > MAX_SIGNATURES {
        return Err(Error::TooLarge("a statement has at most 32 KiB and 32 signatures"));
    }
    // Also those that do not count: an entry has room for no more.
    if signed.signatures.iter().any(|s| s.key.len() != 32 || s.signature.len() != keys::SIGNATURE_LENGTH) {
        return Err(Error::Field("a governance key has 32 bytes and its signature 64"));
    }
    let valid = governance
        .keys
        .iter()
        .filter(|key| {
            signed.signatures.iter().any(|s| {
                s.key.as_ref() == key.as_bytes()
                    && key.verifies(Purpose::Governance, &signed.statement, &s.signature)
            })
        })
        .count();
    if valid < governance.threshold {
        return Err(Error::NotGoverned { valid, needed: governance.threshold });
    }
    let statement = wire::Statement::decode(signed.statement.as_ref())
        .map_err(|_| Error::Field("a statement does not parse"))?;
    let statement = Statement::try_from(statement)?;
    if statement.federation != federation {
        return Err(Error::Statement("the statement is another federation's"));
    }
    Ok(VerifiedStatement { statement, digest: Sha256::digest(&signed.statement).into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{Authority, Decision};
    use crate::testing::{self, FEDERATION};
    use chancery_types::entropy::SeededEntropy;

    fn sample(entropy: &SeededEntropy) -> Statement {
        let authority = Authority {
            authority: "enrol".parse().unwrap(),
            key: (&keys::generate(entropy)).into(),
            schemes: ["be-nn".parse().unwrap()].into(),
        };
        Statement::new(FEDERATION, Decision::Authority(authority), entropy)
    }

    #[test]
    fn m_of_n_distinct_keys_decide() {
        let entropy = SeededEntropy::new(1);
        let held = testing::signing_keys(&entropy, 3);
        let governance = GovernanceKeys::new(held.iter().map(GovernanceKey::from).collect(), 2).unwrap();
        let statement = sample(&entropy);
        let enough = sign(&statement, &[&held[0], &held[2]]);
        let verified = verify(&enough, FEDERATION, &governance).unwrap();
        assert_eq!(verified.statement().nonce, statement.nonce);

        let too_few = Error::NotGoverned { valid: 1, needed: 2 };
        let twice = sign(&statement, &[&held[0], &held[0]]);
        assert_eq!(verify(&twice, FEDERATION, &governance).unwrap_err(), too_few);
        let foreign = sign(&statement, &[&held[0], &keys::generate(&entropy)]);
        assert_eq!(verify(&foreign, FEDERATION, &governance).unwrap_err(), too_few);
        let mut forged = enough.clone();
        forged.signatures[1].signature = Bytes::from_static(&[7; 64]);
        assert_eq!(verify(&forged, FEDERATION, &governance).unwrap_err(), too_few);
        let mut changed = enough.clone();
        changed.statement = [changed.statement.as_ref(), &[0x50, 0x01]].concat().into();
        assert!(matches!(
            verify(&changed, FEDERATION, &governance),
            Err(Error::NotGoverned { valid: 0, .. })
        ));
        assert!(matches!(verify(&enough, "other.example", &governance), Err(Error::Statement(_))));
    }

    #[test]
    fn limits_come_first() {
        let governance = testing::governance(&SeededEntropy::new(2)).1;
        let statement = Bytes::from(vec![0; MAX_STATEMENT + 1]);
        let large = wire::SignedStatement { statement, signatures: vec![] };
        assert!(matches!(verify(&large, FEDERATION, &governance), Err(Error::TooLarge(_))));
    }

    #[test]
    fn keys_and_thresholds_are_checked() {
        let key = GovernanceKey::from(&keys::generate(&SeededEntropy::new(3)));
        assert!(GovernanceKeys::new(vec![], 1).is_err());
        assert!(GovernanceKeys::new(vec![key, key], 1).is_err());
        assert!(GovernanceKeys::new(vec![key], 2).is_err());
        assert!(GovernanceKeys::new(vec![key], 0).is_err());
    }
}
