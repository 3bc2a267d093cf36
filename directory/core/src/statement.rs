//! What governance decides, as domain types. Who may decide is
//! [`crate::governance`]'s, what follows from it [`crate::state`]'s.

use crate::Error;
use crate::attestation::SchemeName;
use crate::ceremony::Plan;
use crate::keys::{AgentKey, AuthorityKey};
use crate::prefix::MAX_BITS;
use bytes::Bytes;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Entropy, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// Most agents of one administration.
const MAX_AGENTS: usize = 256;
/// Most endpoints of one party.
const MAX_ENDPOINTS: usize = 8;
/// Largest entitlement, identifiers a day.
const MAX_PER_DAY: u64 = 1_000_000_000_000;
/// Most records of one erasure.
const MAX_ERASED: usize = 256;
/// Most schemes of one authority.
const MAX_SCHEMES: usize = 32;

/// A decision for one federation, made once.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The federation's name (its SPIFFE trust domain).
    pub federation: String,
    /// Makes the statement idempotent.
    pub nonce: [u8; 16],
    /// What is decided.
    pub decision: Decision,
}

/// What is decided.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Admits an administration or replaces what was logged about it.
    Member(Member),
    /// Admits an enrolment authority or replaces what was logged about it.
    Authority(Authority),
    /// Has evaluators make the handles' key, or deal its shares anew.
    CeremonyPlan(Plan),
    /// Names the directory's own keys.
    DirectoryKeys(DirectoryKeys),
    /// Says how much may be evaluated.
    Entitlement(Entitlement),
    /// Erases records.
    Erasure(Vec<ErasedRecord>),
    /// Ends the key epoch before the current one: its number.
    KeyEpochEnd(u32),
    /// Says whether an administration's channels may carry emergencies.
    Accreditation(Accreditation),
}

/// An administration and what its node and agents are bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Id of the administration and of its node.
    pub administration: NodeId,
    /// Names for people, by BCP 47 language tag.
    pub display_names: BTreeMap<String, String>,
    /// Where peers reach the node: `host:port`.
    pub endpoints: Vec<String>,
    /// SHA-256 of the node certificate's SubjectPublicKeyInfo.
    pub node_key_pin: [u8; 32],
    /// The administration's agents by name.
    pub agents: BTreeMap<NodeId, AgentKey>,
}

/// Who may attest which schemes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Id of the authority.
    pub authority: NodeId,
    /// Signs its attestations.
    pub key: AuthorityKey,
    /// Schemes it may attest; none: it is withdrawn.
    pub schemes: BTreeSet<SchemeName>,
}

/// Keys of the directory itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryKeys {
    /// HPKE public key that record operations are sealed to.
    pub hpke_public_key: [u8; 32],
    /// Bits of a handle that a lookup names, 0 to 32.
    pub lookup_prefix_bits: u32,
}

/// How many identifiers each evaluator may evaluate in a day (UTC).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// For which administration; for all of them together if for none.
    pub administration: Option<NodeId>,
    /// Identifiers.
    pub per_day: u64,
}

/// Whether an administration's channels may carry emergencies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accreditation {
    /// Which administration.
    pub administration: NodeId,
    /// Whether they may.
    pub accredited: bool,
}

/// A record that is erased, with all its versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErasedRecord {
    /// First 4 bytes of the handle.
    pub handle_prefix: [u8; 4],
    /// Entry of the version that stands.
    pub index: u64,
}

impl Statement {
    /// A new statement with a random nonce.
    pub fn new(federation: &str, decision: Decision, entropy: &dyn Entropy) -> Self {
        Self { federation: federation.to_owned(), nonce: entropy.array(), decision }
    }
}

impl TryFrom<wire::Statement> for Statement {
    type Error = Error;

    fn try_from(statement: wire::Statement) -> Result<Self, Error> {
        use wire::statement::Decision as Wire;
        let decision = match statement.decision {
            Some(Wire::Member(m)) => Decision::Member(m.try_into()?),
            Some(Wire::Authority(a)) => Decision::Authority(a.try_into()?),
            Some(Wire::CeremonyPlan(p)) => Decision::CeremonyPlan(p.try_into()?),
            Some(Wire::DirectoryKeys(k)) => Decision::DirectoryKeys(k.try_into()?),
            Some(Wire::EvaluationEntitlement(e)) => Decision::Entitlement(e.try_into()?),
            Some(Wire::RecordErasure(e)) => Decision::Erasure(erasure(&e)?),
            Some(Wire::KeyEpochEnd(e)) => Decision::KeyEpochEnd(e.key_epoch),
            Some(Wire::EmergencyAccreditation(a)) => Decision::Accreditation(Accreditation {
                administration: a.administration.parse()?,
                accredited: a.accredited,
            }),
            None => return Err(Error::Unsupported("the statement's kind is unknown to this build")),
        };
        if !(1..=255).contains(&statement.federation.len()) {
            return Err(Error::Field("a federation's name has 1 to 255 characters"));
        }
        Ok(Self {
            federation: statement.federation,
            nonce: array(&statement.nonce, "a nonce has not 16 bytes")?,
            decision,
        })
    }
}

impl From<&Statement> for wire::Statement {
    fn from(statement: &Statement) -> Self {
        use wire::statement::Decision as Wire;
        Self {
            federation: statement.federation.clone(),
            nonce: Bytes::copy_from_slice(&statement.nonce),
            decision: Some(match &statement.decision {
                Decision::Member(m) => Wire::Member(m.into()),
                Decision::Authority(a) => Wire::Authority(a.into()),
                Decision::CeremonyPlan(p) => Wire::CeremonyPlan(p.into()),
                Decision::DirectoryKeys(k) => Wire::DirectoryKeys(k.into()),
                Decision::Entitlement(e) => Wire::EvaluationEntitlement(e.into()),
                Decision::Erasure(records) => Wire::RecordErasure(wire::RecordErasure {
                    records: records.iter().map(Into::into).collect(),
                }),
                Decision::KeyEpochEnd(epoch) => Wire::KeyEpochEnd(wire::KeyEpochEnd { key_epoch: *epoch }),
                Decision::Accreditation(a) => Wire::EmergencyAccreditation(wire::EmergencyAccreditation {
                    administration: a.administration.to_string(),
                    accredited: a.accredited,
                }),
            }),
        }
    }
}

impl TryFrom<wire::Member> for Member {
    type Error = Error;

    fn try_from(member: wire::Member) -> Result<Self, Error> {
        if member.agents.len() > MAX_AGENTS {
            return Err(Error::TooLarge("a member lists more than 256 agents"));
        }
        let count = member.agents.len();
        let agents = member
            .agents
            .into_iter()
            .map(|agent| Ok((agent.name.parse()?, AgentKey::try_from(agent.mls_key.as_ref())?)))
            .collect::<Result<BTreeMap<NodeId, AgentKey>, Error>>()?;
        if agents.len() != count {
            return Err(Error::Field("a member lists two agents of one name"));
        }
        let named = |(tag, name): (&String, &String)| {
            (1..=35).contains(&tag.len()) && (1..=200).contains(&name.chars().count())
        };
        if !(1..=32).contains(&member.display_names.len()) || !member.display_names.iter().all(named) {
            return Err(Error::Field("a member has 1 to 32 names of at most 200 characters by language tag"));
        }
        Ok(Self {
            administration: member.administration.parse()?,
            display_names: member.display_names.into_iter().collect(),
            endpoints: endpoints(member.endpoints)?,
            node_key_pin: array(&member.node_key_pin, "a key pin has not 32 bytes")?,
            agents,
        })
    }
}

impl From<&Member> for wire::Member {
    fn from(member: &Member) -> Self {
        Self {
            administration: member.administration.to_string(),
            display_names: member.display_names.clone().into_iter().collect(),
            endpoints: member.endpoints.clone(),
            node_key_pin: Bytes::copy_from_slice(&member.node_key_pin),
            agents: member
                .agents
                .iter()
                .map(|(name, key)| wire::Agent { name: name.to_string(), mls_key: key.to_wire() })
                .collect(),
        }
    }
}

impl TryFrom<wire::Authority> for Authority {
    type Error = Error;

    fn try_from(authority: wire::Authority) -> Result<Self, Error> {
        if authority.schemes.len() > MAX_SCHEMES {
            return Err(Error::TooLarge("an authority lists more than 32 schemes"));
        }
        Ok(Self {
            authority: authority.authority.parse()?,
            key: AuthorityKey::try_from(authority.key.as_ref())?,
            schemes: authority.schemes.iter().map(|s| s.parse()).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Authority> for wire::Authority {
    fn from(authority: &Authority) -> Self {
        Self {
            authority: authority.authority.to_string(),
            key: authority.key.to_wire(),
            schemes: authority.schemes.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<wire::DirectoryKeys> for DirectoryKeys {
    type Error = Error;

    fn try_from(keys: wire::DirectoryKeys) -> Result<Self, Error> {
        if keys.lookup_prefix_bits > MAX_BITS {
            return Err(Error::Field("a lookup names at most 32 bits"));
        }
        Ok(Self {
            hpke_public_key: array(&keys.hpke_public_key, "an HPKE public key has not 32 bytes")?,
            lookup_prefix_bits: keys.lookup_prefix_bits,
        })
    }
}

impl From<&DirectoryKeys> for wire::DirectoryKeys {
    fn from(keys: &DirectoryKeys) -> Self {
        Self {
            hpke_public_key: Bytes::copy_from_slice(&keys.hpke_public_key),
            lookup_prefix_bits: keys.lookup_prefix_bits,
        }
    }
}

impl TryFrom<wire::EvaluationEntitlement> for Entitlement {
    type Error = Error;

    fn try_from(entitlement: wire::EvaluationEntitlement) -> Result<Self, Error> {
        if entitlement.per_day > MAX_PER_DAY {
            return Err(Error::Field("an entitlement is at most 10^12 identifiers a day"));
        }
        let administration = match entitlement.administration.as_str() {
            "" => None,
            name => Some(name.parse()?),
        };
        Ok(Self { administration, per_day: entitlement.per_day })
    }
}

impl From<&Entitlement> for wire::EvaluationEntitlement {
    fn from(entitlement: &Entitlement) -> Self {
        let administration = entitlement.administration.as_ref().map(ToString::to_string);
        Self { administration: administration.unwrap_or_default(), per_day: entitlement.per_day }
    }
}

/// What an erasure names.
///
/// # Errors
/// Nothing, too much, or something malformed.
pub fn erasure(erasure: &wire::RecordErasure) -> Result<Vec<ErasedRecord>, Error> {
    if !(1..=MAX_ERASED).contains(&erasure.records.len()) {
        return Err(Error::Field("an erasure names 1 to 256 records"));
    }
    erasure.records.iter().map(TryInto::try_into).collect()
}

impl TryFrom<&wire::ErasedRecord> for ErasedRecord {
    type Error = Error;

    fn try_from(record: &wire::ErasedRecord) -> Result<Self, Error> {
        let handle_prefix = array(&record.handle_prefix, "a handle's prefix has not 4 bytes")?;
        Ok(Self { handle_prefix, index: record.index })
    }
}

impl From<&ErasedRecord> for wire::ErasedRecord {
    fn from(record: &ErasedRecord) -> Self {
        Self { handle_prefix: Bytes::copy_from_slice(&record.handle_prefix), index: record.index }
    }
}

/// `bytes` as an array of the right length.
pub(crate) fn array<const N: usize>(bytes: &[u8], wrong: &'static str) -> Result<[u8; N], Error> {
    bytes.try_into().map_err(|_| Error::Field(wrong))
}

/// Where a party is reached.
pub(crate) fn endpoints(endpoints: Vec<String>) -> Result<Vec<String>, Error> {
    if !(1..=MAX_ENDPOINTS).contains(&endpoints.len()) {
        return Err(Error::Field("a party has 1 to 8 endpoints"));
    }
    let good = |endpoint: &String| {
        endpoint.len() <= 300
            && endpoint.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b))
                    && port.parse::<u16>().is_ok_and(|p| p != 0)
            })
    };
    if !endpoints.iter().all(good) {
        return Err(Error::Field("an endpoint is host:port"));
    }
    Ok(endpoints)
}
