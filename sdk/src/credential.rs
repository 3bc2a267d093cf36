//! Device credentials: which device of which alias a leaf is, under the
//! signature of the account's credential key (persons) or of the agent's listed
//! key. Parsing gives a [`PresentedDevice`]; only its check gives a
//! [`VerifiedDevice`]. Who the right signer is decides the caller.

use chancery_pki_core::{Party, SpiffeId};
use chancery_proto::content::v1::{DeviceCredential, SignedDeviceCredential};
use chancery_types::{Alias, DeviceId, NodeId, Timestamp};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use prost::Message as _;
use std::time::Duration;

const CONTEXT: &[u8] = b"chancery device credential v1\0";
/// Longest validity.
const LONGEST: Duration = Duration::from_hours(400 * 24);
/// Validity of those made here.
const VALIDITY: Duration = Duration::from_hours(365 * 24);
/// One that is older is signed anew before it is used again.
pub(crate) const RENEWED_AFTER: Duration = Duration::from_hours(180 * 24);
/// How long before now validity begins, for clocks that differ.
const SKEW: Duration = Duration::from_hours(1);
/// Longest serialised SignedDeviceCredential.
const LIMIT: usize = 4096 + 80;

/// Why a credential does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// It does not parse or breaks a limit.
    #[error("the device credential is malformed")]
    Malformed,
    /// The signature is not by the key that speaks for the alias or agent.
    #[error("the device credential is signed by another key")]
    WrongSignature,
    /// The leaf has another signature key.
    #[error("the device credential names another leaf key")]
    WrongLeafKey,
    /// The credential is for another alias.
    #[error("the device credential names another alias")]
    WrongAlias,
    /// It is expired or not yet valid.
    #[error("the device credential is not valid now")]
    NotValidNow,
    /// The agent belongs to another administration than the record says.
    #[error("the device credential names an agent of another administration")]
    WrongAdministration,
    /// The agent is not listed, as far as this endpoint has seen the log.
    #[error("the agent is not listed in the log")]
    UnknownAgent,
    /// The person's record was never verified here.
    #[error("the sender's record is not known")]
    UnknownPerson,
}

/// `spiffe://<federation>/agent/<administration>/<name>`, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct AgentName {
    /// The federation's trust domain.
    pub federation: String,
    /// The administration, which is also its node.
    pub administration: NodeId,
    /// The agent within it.
    pub name: NodeId,
}

impl AgentName {
    /// From a SPIFFE id; `None` when it is not one of an agent.
    pub fn parse(spiffe_id: &str) -> Option<Self> {
        let id: SpiffeId = spiffe_id.parse().ok()?;
        match id.party() {
            Ok(Party::Agent { administration, name }) => {
                Some(Self { federation: id.federation().to_string(), administration, name })
            }
            _ => None,
        }
    }

    /// The SPIFFE id.
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://{}/agent/{}/{}", self.federation, self.administration, self.name)
    }
}

/// A credential as it came: nothing is checked but its form.
pub struct PresentedDevice {
    signed: SignedDeviceCredential,
    alias: Alias,
    device: DeviceId,
    leaf_key: [u8; 32],
    not_before: Timestamp,
    not_after: Timestamp,
    agent: Option<AgentName>,
}

impl PresentedDevice {
    /// Parses a serialised SignedDeviceCredential.
    ///
    /// # Errors
    /// [`CredentialError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CredentialError> {
        let malformed = |_| CredentialError::Malformed;
        if bytes.len() > LIMIT {
            return Err(CredentialError::Malformed);
        }
        let signed = SignedDeviceCredential::decode(bytes).map_err(|_| CredentialError::Malformed)?;
        let credential =
            DeviceCredential::decode(&*signed.credential).map_err(|_| CredentialError::Malformed)?;
        let agent = match &*credential.agent {
            "" => None,
            spiffe_id => Some(AgentName::parse(spiffe_id).ok_or(CredentialError::Malformed)?),
        };
        let parsed = Self {
            alias: Alias::try_from(&credential.alias).map_err(malformed)?,
            device: DeviceId::try_from(&credential.device_id).map_err(malformed)?,
            leaf_key: (&*credential.signature_key).try_into().map_err(|_| CredentialError::Malformed)?,
            not_before: Timestamp::from_millis(credential.not_before_ms),
            not_after: Timestamp::from_millis(credential.not_after_ms),
            agent,
            signed,
        };
        if parsed.not_after.since(parsed.not_before) > LONGEST {
            return Err(CredentialError::Malformed);
        }
        Ok(parsed)
    }

    /// From when it counts.
    pub(crate) const fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// The alias it claims.
    pub fn alias(&self) -> Alias {
        self.alias
    }

    /// The device it claims.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The agent it claims to be; `None`: a person's device.
    pub fn agent(&self) -> Option<&AgentName> {
        self.agent.as_ref()
    }

    /// Checks signature, leaf key and validity.
    ///
    /// # Errors
    /// What does not hold.
    pub fn verify(
        self,
        signer: &[u8; 32],
        leaf_key: &[u8],
        now: Timestamp,
    ) -> Result<VerifiedDevice, CredentialError> {
        let signature =
            Signature::from_slice(&self.signed.signature).map_err(|_| CredentialError::WrongSignature)?;
        VerifyingKey::from_bytes(signer)
            .and_then(|key| key.verify_strict(&[CONTEXT, &self.signed.credential].concat(), &signature))
            .map_err(|_| CredentialError::WrongSignature)?;
        if self.leaf_key != leaf_key {
            return Err(CredentialError::WrongLeafKey);
        }
        if now < self.not_before || now >= self.not_after {
            return Err(CredentialError::NotValidNow);
        }
        Ok(VerifiedDevice {
            alias: self.alias,
            device: self.device,
            leaf_key: self.leaf_key,
            agent: self.agent,
        })
    }
}

/// A device whose credential was checked; made by [`PresentedDevice::verify`] alone.
#[derive(Clone)]
pub struct VerifiedDevice {
    alias: Alias,
    device: DeviceId,
    leaf_key: [u8; 32],
    agent: Option<AgentName>,
}

impl VerifiedDevice {
    /// The alias it reads.
    pub fn alias(&self) -> Alias {
        self.alias
    }

    /// The device.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Its Ed25519 leaf key.
    pub fn leaf_key(&self) -> &[u8; 32] {
        &self.leaf_key
    }

    /// The agent it is; `None`: a person's device.
    pub fn agent(&self) -> Option<&AgentName> {
        self.agent.as_ref()
    }
}

/// Signs a credential for a device of `alias`; gives the serialised
/// SignedDeviceCredential.
pub fn sign(
    signer: &SigningKey,
    alias: Alias,
    device: DeviceId,
    leaf_key: &[u8; 32],
    agent: Option<&str>,
    now: Timestamp,
) -> Vec<u8> {
    let credential = DeviceCredential {
        alias: alias.to_wire(),
        device_id: device.to_wire(),
        signature_key: leaf_key.to_vec().into(),
        not_before_ms: now.before(SKEW).millis(),
        not_after_ms: now.after(VALIDITY).millis(),
        agent: agent.unwrap_or_default().to_owned(),
    }
    .encode_to_vec();
    let signature = signer.sign(&[CONTEXT, &credential].concat()).to_bytes().to_vec();
    SignedDeviceCredential { credential: credential.into(), signature: signature.into() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn made(agent: Option<&str>) -> (SigningKey, Vec<u8>) {
        let key = SigningKey::from_bytes(&[1; 32]);
        let bytes =
            sign(&key, Alias::from_bytes([2; 16]), DeviceId::from_bytes([3; 16]), &[4; 32], agent, NOW);
        (key, bytes)
    }

    #[test]
    fn holds_for_its_signer_leaf_and_time() {
        let (key, bytes) = made(Some("spiffe://fed.example/agent/north/desk"));
        let presented = || PresentedDevice::parse(&bytes).unwrap();
        let signer = key.verifying_key().to_bytes();
        let device = presented().verify(&signer, &[4; 32], NOW).unwrap();
        assert_eq!(device.agent().unwrap().administration.as_str(), "north");
        let fails =
            |signer: &[u8; 32], leaf: &[u8], now| presented().verify(signer, leaf, now).err().unwrap();
        let other = SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes();
        assert_eq!(fails(&other, &[4; 32], NOW), CredentialError::WrongSignature);
        assert_eq!(fails(&signer, &[5; 32], NOW), CredentialError::WrongLeafKey);
        assert_eq!(fails(&signer, &[4; 32], NOW.after(VALIDITY)), CredentialError::NotValidNow);
        assert_eq!(fails(&signer, &[4; 32], NOW.before(SKEW * 2)), CredentialError::NotValidNow);
    }

    #[test]
    fn random_changes_do_not_pass() {
        let (key, bytes) = made(None);
        let signer = key.verifying_key().to_bytes();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let holds =
                PresentedDevice::parse(&changed).and_then(|device| device.verify(&signer, &[4; 32], NOW));
            assert!(holds.is_err(), "byte {at}");
        }
    }

    #[test]
    fn agents_have_exactly_one_form() {
        for wrong in [
            "spiffe://fed/agent/north",
            "spiffe://fed/agent/north/desk/",
            "spiffe://fed/node/north",
            "spiffe:///agent/north/desk",
            "https://fed/agent/north/desk",
            "spiffe://fed/agent/North/desk",
            "spiffe://FED/agent/north/desk",
            "spiffe://fed user@/agent/north/desk",
        ] {
            assert!(AgentName::parse(wrong).is_none(), "{wrong}");
        }
        let right = "spiffe://fed.example/agent/north/desk";
        assert_eq!(AgentName::parse(right).unwrap().spiffe_id(), right);
    }
}
