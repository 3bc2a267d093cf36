//! What every party is given at installation: the federation's name, root,
//! governance keys and, once the directory stands, its log's key. One TOML
//! file; it holds nothing secret, but whoever changes it changes whom the
//! party believes.

use crate::armour;
use crate::chain::{ChainError, TrustAnchors};
use crate::spiffe::Federation;
use chancery_types::Refusal;
use serde::{Deserialize, Serialize};

/// Largest bundle, bytes.
pub const MAX_BUNDLE: usize = 64 * 1024;
/// Most governance keys.
pub const MAX_GOVERNANCE_KEYS: usize = 32;
/// Largest signed-note key, bytes.
const MAX_VKEY: usize = 512;

/// Why a text is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// More than [`MAX_BUNDLE`] bytes.
    #[error("a federation bundle has at most {MAX_BUNDLE} bytes")]
    TooLarge,
    /// It is not TOML with the fields of a bundle.
    #[error("the federation bundle does not parse: {0}")]
    Form(#[from] toml::de::Error),
    /// It cannot be written as TOML.
    #[error("the federation bundle cannot be written: {0}")]
    Write(#[from] toml::ser::Error),
    /// A field is not what its description says.
    #[error("the federation bundle's {0} is not valid")]
    Field(&'static str),
    /// The root is no certificate.
    #[error("the federation bundle's root: {0}")]
    Root(#[from] ChainError),
}

impl From<BundleError> for Refusal {
    fn from(error: BundleError) -> Self {
        Self::field(error.to_string())
    }
}

/// Whom a party believes.
#[derive(Clone, Debug)]
pub struct FederationBundle {
    anchors: TrustAnchors,
    governance_keys: Vec<[u8; 32]>,
    governance_threshold: usize,
    directory_vkey: Option<String>,
}

/// As in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    federation: String,
    governance_threshold: usize,
    governance_keys: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory_vkey: Option<String>,
    root_pem: String,
}

impl FederationBundle {
    /// A bundle; `governance_threshold` of the Ed25519 `governance_keys` decide.
    ///
    /// # Errors
    /// No key, too many or one twice, or a threshold that they cannot reach.
    pub fn new(
        anchors: TrustAnchors,
        governance_keys: Vec<[u8; 32]>,
        governance_threshold: usize,
    ) -> Result<Self, BundleError> {
        let mut distinct = governance_keys.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() != governance_keys.len() || !(1..=MAX_GOVERNANCE_KEYS).contains(&distinct.len()) {
            return Err(BundleError::Field("governance_keys"));
        }
        if !(1..=governance_keys.len()).contains(&governance_threshold) {
            return Err(BundleError::Field("governance_threshold"));
        }
        Ok(Self { anchors, governance_keys, governance_threshold, directory_vkey: None })
    }

    /// The same with the key of the directory's log, in the form of a
    /// signed note's verifier key (C2SP signed-note): `name+hash+key`.
    ///
    /// # Errors
    /// It has not that form.
    pub fn with_directory(mut self, vkey: String) -> Result<Self, BundleError> {
        let plain = vkey.len() <= MAX_VKEY && vkey.bytes().all(|b| b.is_ascii_graphic());
        // The key is base64 and may hold a '+' of its own.
        let mut parts = vkey.splitn(3, '+');
        let name = parts.next().is_some_and(|name| !name.is_empty());
        let hash = parts.next().is_some_and(|hash| hash.len() == 8 && hex::decode(hash).is_ok());
        let key = parts.next().is_some_and(|key| !key.is_empty());
        if !(plain && name && hash && key) {
            return Err(BundleError::Field("directory_vkey"));
        }
        self.directory_vkey = Some(vkey);
        Ok(self)
    }

    /// The federation's name and root.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// The federation's name.
    pub fn federation(&self) -> &Federation {
        self.anchors.federation()
    }

    /// Ed25519 keys whose signatures govern.
    pub fn governance_keys(&self) -> &[[u8; 32]] {
        &self.governance_keys
    }

    /// How many of them must sign.
    pub fn governance_threshold(&self) -> usize {
        self.governance_threshold
    }

    /// The directory's signed-note verifier key. `None` until the directory stands.
    pub fn directory_vkey(&self) -> Option<&str> {
        self.directory_vkey.as_deref()
    }

    /// Reads a bundle.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self, BundleError> {
        if text.len() > MAX_BUNDLE {
            return Err(BundleError::TooLarge);
        }
        let file: File = toml::from_str(text)?;
        let federation = file.federation.parse().map_err(|_| BundleError::Field("federation"))?;
        let root = armour::read_chain(file.root_pem.as_bytes());
        let Ok([root]) = root.as_deref() else {
            return Err(BundleError::Field("root_pem"));
        };
        let key = |text: &String| {
            let mut key = [0; 32];
            hex::decode_to_slice(text, &mut key).map(|()| key)
        };
        let keys = file.governance_keys.iter().map(key).collect::<Result<_, _>>();
        let keys = keys.map_err(|_| BundleError::Field("governance_keys"))?;
        let anchors = TrustAnchors::new(federation, root)?;
        let bundle = Self::new(anchors, keys, file.governance_threshold)?;
        match file.directory_vkey {
            Some(vkey) => bundle.with_directory(vkey),
            None => Ok(bundle),
        }
    }

    /// Writes the bundle.
    ///
    /// # Errors
    /// Never for a bundle that was read or made here; TOML's encoder may say no.
    pub fn to_toml(&self) -> Result<String, BundleError> {
        Ok(toml::to_string(&File {
            federation: self.federation().to_string(),
            governance_threshold: self.governance_threshold,
            governance_keys: self.governance_keys.iter().map(hex::encode).collect(),
            directory_vkey: self.directory_vkey.clone(),
            root_pem: armour::write_chain(std::slice::from_ref(self.anchors.root_der())),
        })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Ca, Serial, Validity};
    use chancery_types::{SystemEntropy, Timestamp};
    use std::time::Duration;

    fn bundle() -> FederationBundle {
        let federation: Federation = "f.example".parse().unwrap();
        let life = Validity::starting(Timestamp::from_millis(1_700_000_000_000), Duration::from_secs(60));
        let root = Ca::new_root(&federation, &Serial::random(&SystemEntropy), life).unwrap();
        let anchors = TrustAnchors::new(federation, root.certificate()).unwrap();
        FederationBundle::new(anchors, vec![[1; 32], [2; 32], [3; 32]], 2).unwrap()
    }

    #[test]
    fn survives_its_file() {
        let vkey = "log.example/log+0a1b2c3d+AXyz+/8=";
        for bundle in [bundle(), bundle().with_directory(vkey.to_owned()).unwrap()] {
            let again = FederationBundle::from_toml(&bundle.to_toml().unwrap()).unwrap();
            assert_eq!(again.federation(), bundle.federation());
            assert_eq!(again.anchors().root_der(), bundle.anchors().root_der());
            assert_eq!(again.governance_keys(), bundle.governance_keys());
            assert_eq!(again.governance_threshold(), 2);
            assert_eq!(again.directory_vkey(), bundle.directory_vkey());
        }
    }

    #[test]
    fn wrong_files_are_refused() {
        let good = bundle().to_toml().unwrap();
        for (from, to) in [
            ("f.example", "F.example"),
            ("governance_threshold = 2", "governance_threshold = 0"),
            ("governance_threshold = 2", "governance_threshold = 4"),
            ("\"01010101", "\"0101010101"),
            ("0303030303030303030303030303030303030303030303030303030303030303", &"01".repeat(32)),
            ("BEGIN CERTIFICATE", "BEGIN CERTIFICATES"),
            ("federation =", "confederation ="),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            assert!(FederationBundle::from_toml(&bad).is_err(), "{from} -> {to}");
        }
        let large = format!("{good}#{}", " ".repeat(MAX_BUNDLE));
        assert!(matches!(FederationBundle::from_toml(&large), Err(BundleError::TooLarge)));
        for vkey in ["", "a+b", "name+0a1b2c3d+", "name+0a1b2c+AX", "na me+0a1b2c3d+AX"] {
            assert!(bundle().with_directory(vkey.to_owned()).is_err(), "{vkey}");
        }
    }
}
