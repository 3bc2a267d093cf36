//! SPIFFE ids: their form, and what their paths mean in this federation.
//! Which certificates may carry one is [`crate::chain`]'s matter.
//!
//! The form is that of the
//! [SPIFFE-ID specification](https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md), section 2.

use chancery_types::{NodeId, Refusal};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE id, bytes.
pub const MAX_ID: usize = 2048;
/// Longest trust domain, bytes.
pub const MAX_TRUST_DOMAIN: usize = 255;
const SCHEME: &str = "spiffe://";

/// Why a text is no SPIFFE id, or names no party.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// More than [`MAX_ID`] bytes, or a trust domain of more than [`MAX_TRUST_DOMAIN`].
    #[error("the SPIFFE id is too long")]
    TooLong,
    /// It does not begin with `spiffe://`.
    #[error("a SPIFFE id begins with spiffe://")]
    Scheme,
    /// The trust domain is empty or has other characters than `[a-z0-9.-_]`.
    #[error("a trust domain has characters a-z, 0-9, '.', '-', '_' only")]
    TrustDomain,
    /// A path segment is empty, `.` or `..`, or has other characters than `[A-Za-z0-9.-_]`.
    #[error("a path segment has characters A-Z, a-z, 0-9, '.', '-', '_' only and is neither '.' nor '..'")]
    Path,
    /// The path names none of the federation's kinds of parties.
    #[error("the path names no node, agent, evaluator, directory or PKI")]
    NoParty,
}

impl From<SpiffeError> for Refusal {
    fn from(error: SpiffeError) -> Self {
        Self::field(error.to_string())
    }
}

/// A federation, named by its SPIFFE trust domain: 1 to 255 characters `[a-z0-9.-_]`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Federation(Arc<str>);

impl Federation {
    /// The trust domain.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Federation {
    type Err = SpiffeError;

    fn from_str(name: &str) -> Result<Self, SpiffeError> {
        if name.len() > MAX_TRUST_DOMAIN {
            return Err(SpiffeError::TooLong);
        }
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
        if name.is_empty() || !name.bytes().all(allowed) {
            return Err(SpiffeError::TrustDomain);
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for Federation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Federation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A well-formed SPIFFE id. One without a path names a trust domain (and so
/// its CAs), never a party.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    federation: Federation,
    /// Empty, or `/segment` once or more.
    path: Arc<str>,
}

impl SpiffeId {
    /// The id of `party` in `federation`.
    pub fn of(federation: &Federation, party: &Party) -> Self {
        Self { federation: federation.clone(), path: party.to_string().into() }
    }

    /// The id of the trust domain itself, which its CAs carry.
    pub fn of_authority(federation: &Federation) -> Self {
        Self { federation: federation.clone(), path: "".into() }
    }

    /// The trust domain.
    pub fn federation(&self) -> &Federation {
        &self.federation
    }

    /// The path: empty, or with a leading slash.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whom it names.
    ///
    /// # Errors
    /// [`SpiffeError::NoParty`] when the path is none of [`Party`]'s.
    pub fn party(&self) -> Result<Party, SpiffeError> {
        self.path.parse()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAX_ID {
            return Err(SpiffeError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(allowed);
        // The first piece before a leading slash is empty and no segment.
        if !path.split('/').skip(1).all(segment) {
            return Err(SpiffeError::Path);
        }
        Ok(Self { federation: domain.parse()?, path: path.into() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.federation, self.path)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whom a certificate of the federation is for. Printed and parsed as the
/// path of the SPIFFE id, leading slash included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// `/node/<id>`: an administration's node.
    Node(NodeId),
    /// `/agent/<administration>/<name>`: an administration's agent.
    Agent {
        /// Whose agent.
        administration: NodeId,
        /// Its name within the administration.
        name: NodeId,
    },
    /// `/directory`: the directory.
    Directory,
    /// `/evaluator/<id>`: a holder of a share of the OPRF key.
    Evaluator(NodeId),
    /// `/pki`: the enrolment service.
    Pki,
}

impl FromStr for Party {
    type Err = SpiffeError;

    fn from_str(path: &str) -> Result<Self, SpiffeError> {
        let name = |text: &str| text.parse::<NodeId>().map_err(|_| SpiffeError::NoParty);
        let path = path.strip_prefix('/').ok_or(SpiffeError::NoParty)?;
        let mut segments = path.split('/');
        let party = match (segments.next(), segments.next(), segments.next()) {
            (Some("node"), Some(id), None) => Self::Node(name(id)?),
            (Some("agent"), Some(of), Some(agent)) => {
                Self::Agent { administration: name(of)?, name: name(agent)? }
            }
            (Some("directory"), None, None) => Self::Directory,
            (Some("evaluator"), Some(id), None) => Self::Evaluator(name(id)?),
            (Some("pki"), None, None) => Self::Pki,
            _ => return Err(SpiffeError::NoParty),
        };
        match segments.next() {
            None => Ok(party),
            Some(_) => Err(SpiffeError::NoParty),
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "/node/{id}"),
            Self::Agent { administration, name } => write!(f, "/agent/{administration}/{name}"),
            Self::Directory => f.write_str("/directory"),
            Self::Evaluator(id) => write!(f, "/evaluator/{id}"),
            Self::Pki => f.write_str("/pki"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Vector {
        id: String,
        valid: bool,
    }

    #[test]
    fn public_vectors() {
        let vectors: Vec<Vector> =
            serde_json::from_str(include_str!("vectors/spiffe-ids.json")).expect("vectors parse");
        assert!(vectors.len() >= 16);
        for Vector { id, valid } in vectors {
            let parsed = id.parse::<SpiffeId>();
            assert_eq!(parsed.is_ok(), valid, "{id}");
            if let Ok(parsed) = parsed {
                assert_eq!(parsed.to_string(), id);
            }
        }
    }

    #[test]
    fn parties_are_paths() {
        let federation: Federation = "chancery.example".parse().unwrap();
        let id = |text: &str| text.parse::<NodeId>().unwrap();
        for (party, path) in [
            (Party::Node(id("be-smis-1")), "/node/be-smis-1"),
            (Party::Agent { administration: id("tax"), name: id("letters") }, "/agent/tax/letters"),
            (Party::Directory, "/directory"),
            (Party::Evaluator(id("e1")), "/evaluator/e1"),
            (Party::Pki, "/pki"),
        ] {
            let spiffe = SpiffeId::of(&federation, &party);
            assert_eq!(spiffe.to_string(), format!("spiffe://chancery.example{path}"));
            assert_eq!(spiffe.to_string().parse::<SpiffeId>().unwrap(), spiffe);
            assert_eq!(spiffe.party(), Ok(party));
        }
    }

    #[test]
    fn other_paths_name_nobody() {
        for path in ["", "/node", "/node/a/b", "/agent/a", "/agent/a/b/c", "/pki/x", "/Node/a", "/node/A"] {
            let id: SpiffeId = format!("spiffe://chancery.example{path}").parse().unwrap();
            assert_eq!(id.party(), Err(SpiffeError::NoParty), "{path}");
        }
        let authority = SpiffeId::of_authority(&"chancery.example".parse().unwrap());
        assert_eq!(authority.to_string().parse::<SpiffeId>(), Ok(authority));
    }

    #[test]
    fn lengths_are_limited() {
        let longest = format!("spiffe://{}", "a".repeat(MAX_TRUST_DOMAIN));
        assert!(longest.parse::<SpiffeId>().is_ok());
        assert_eq!(format!("{longest}a").parse::<SpiffeId>(), Err(SpiffeError::TooLong));
        let full = format!("spiffe://a/{}", "b".repeat(MAX_ID - 11));
        assert!(full.parse::<SpiffeId>().is_ok());
        assert_eq!(format!("{full}b").parse::<SpiffeId>(), Err(SpiffeError::TooLong));
    }

    proptest! {
        #[test]
        fn never_panics_and_prints_what_it_read(text in "\\PC{0,64}|spiffe://[a-zA-Z0-9._/%:@?#-]{0,64}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
                prop_assert!(id.path().is_empty() || id.path().starts_with('/'));
                prop_assert!(!id.path().ends_with('/') && !id.path().contains("//"));
            }
        }

        #[test]
        fn every_well_formed_id_is_read(
            domain in "[a-z0-9._-]{1,40}",
            segments in proptest::collection::vec("[A-Za-z0-9_-][A-Za-z0-9._-]{0,12}", 0..6),
        ) {
            let path: String = segments.iter().map(|s| format!("/{s}")).collect();
            let id: SpiffeId = format!("spiffe://{domain}{path}").parse().unwrap();
            prop_assert_eq!(id.federation().as_str(), domain);
            prop_assert_eq!(id.path(), path);
        }

        #[test]
        fn every_party_survives(administration in "[a-z0-9]{1,63}", name in "[a-z]([a-z0-9-]{0,60}[a-z0-9])?") {
            let federation: Federation = "f.example".parse().unwrap();
            let party = Party::Agent {
                administration: administration.parse().unwrap(),
                name: name.parse().unwrap(),
            };
            let text = SpiffeId::of(&federation, &party).to_string();
            prop_assert_eq!(text.parse::<SpiffeId>().unwrap().party(), Ok(party));
        }
    }
}
