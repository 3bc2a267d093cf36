//! What those who govern do by hand: decisions written as TOML, made into
//! statements, signed with keys from files, perhaps one key holder after the other.

use crate::DirectoryError;
use crate::keyfile::{self, Role};
use bytes::Bytes;
use chancery_directory_core::ceremony::{Party as CeremonyParty, Plan};
use chancery_directory_core::governance::{MAX_SIGNATURES, MAX_STATEMENT};
use chancery_directory_core::statement::{
    Accreditation, Authority, Decision, DirectoryKeys, Entitlement, Member, Statement, erasure,
};
use chancery_directory_core::{Error, SigningKey, Trust, governance};
use chancery_kit::status::from_status;
use chancery_kit::tls::{Credentials, connect};
use chancery_pki_core::Party;
use chancery_proto::directory::v1 as wire;
use chancery_proto::directory::v1::directory_service_client::DirectoryServiceClient;
use chancery_types::Entropy;
use prost::Message as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Longest file of a signed statement: the statement and its signatures.
const MAX_FILE: u64 = (MAX_STATEMENT + MAX_SIGNATURES * 128) as u64;

/// The governance key in the file at `path`, made first when there is none.
///
/// # Errors
/// The key file, see [`keyfile::load_or_create`].
pub fn key(path: &Path, entropy: &dyn Entropy) -> Result<SigningKey, DirectoryError> {
    keyfile::signing_key(path, Role::Governance, entropy)
}

/// The governance key in the file at `path`, which must be there.
///
/// # Errors
/// There is none, or as [`keyfile::load`].
pub fn held(path: &Path) -> Result<SigningKey, DirectoryError> {
    let missing = || DirectoryError::Content { path: path.to_owned(), expected: "a governance key" };
    let seed = keyfile::load(path, Role::Governance)?.ok_or_else(missing)?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Makes and signs a statement.
pub fn decide(
    federation: &str,
    decision: Decision,
    keys: &[&SigningKey],
    entropy: &dyn Entropy,
) -> wire::SignedStatement {
    governance::sign(&Statement::new(federation, decision, entropy), keys)
}

/// Adds a signature to a statement, unless the key has signed it already.
pub fn countersign(statement: &mut wire::SignedStatement, key: &SigningKey) {
    let signature = governance::signature(&statement.statement, key);
    statement.signatures.retain(|s| s.key != signature.key);
    statement.signatures.push(signature);
}

/// Hands a statement in and checks that the log covers it; gives the index of
/// its entry. Safe to repeat.
///
/// # Errors
/// The directory cannot be reached or says no, or its checkpoint does not hold.
pub async fn submit(
    statement: wire::SignedStatement,
    directory: &str,
    credentials: Arc<Credentials>,
    trust: &Trust,
) -> Result<u64, DirectoryError> {
    let (channel, _) = connect(directory, Party::Directory, credentials).await?;
    let request = wire::SubmitStatementRequest { statement: Some(statement) };
    let answer = DirectoryServiceClient::new(channel).submit_statement(request).await;
    let answer = answer.map_err(|status| from_status(&status))?.into_inner();
    if trust.verify_checkpoint(&answer.checkpoint)?.size() <= answer.index {
        return Err(Error::Proof("the checkpoint does not cover the statement").into());
    }
    Ok(answer.index)
}

/// Reads a signed statement from a file (protobuf).
///
/// # Errors
/// The file cannot be read, is too long, or holds something else.
pub fn read(path: &Path) -> Result<wire::SignedStatement, DirectoryError> {
    let wrong = || DirectoryError::Content { path: path.to_owned(), expected: "a signed statement" };
    if std::fs::metadata(path).map_err(DirectoryError::file(path))?.len() > MAX_FILE {
        return Err(wrong());
    }
    let bytes = std::fs::read(path).map_err(DirectoryError::file(path))?;
    wire::SignedStatement::decode(Bytes::from(bytes)).map_err(|_| wrong())
}

/// Writes a signed statement to a file (protobuf).
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, statement: &wire::SignedStatement) -> Result<(), DirectoryError> {
    chancery_kit::tls::files::replace(path, &statement.encode_to_vec()).map_err(DirectoryError::file(path))
}

/// Reads a decision from a TOML file with one table: `member`, `authority`,
/// `ceremony_plan`, `directory_keys`, `evaluation_entitlement`, `record_erasure`,
/// `key_epoch_end` or `emergency_accreditation`; keys in hexadecimal.
///
/// # Errors
/// The file cannot be read or does not say a decision.
pub fn read_decision(path: &Path) -> Result<Decision, DirectoryError> {
    parse_decision(&std::fs::read_to_string(path).map_err(DirectoryError::file(path))?, path)
}

/// The decision that the text of the file at `path` says.
///
/// # Errors
/// It does not say one.
pub fn parse_decision(text: &str, path: &Path) -> Result<Decision, DirectoryError> {
    let file: DecisionFile = toml::from_str(text)
        .map_err(|error| DirectoryError::Decision { path: path.to_owned(), error: Box::new(error) })?;
    Ok(file.try_into()?)
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum DecisionFile {
    Member(MemberFile),
    Authority(AuthorityFile),
    CeremonyPlan(PlanFile),
    DirectoryKeys(KeysFile),
    EvaluationEntitlement(EntitlementFile),
    RecordErasure(ErasureFile),
    KeyEpochEnd(EpochEndFile),
    EmergencyAccreditation(AccreditationFile),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberFile {
    administration: String,
    display_names: std::collections::BTreeMap<String, String>,
    endpoints: Vec<String>,
    node_key_pin: Hex,
    #[serde(default)]
    agents: BTreeMap<String, Hex>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityFile {
    authority: String,
    key: Hex,
    schemes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    key_epoch: u32,
    generation: u32,
    threshold: u32,
    parties: Vec<PartyFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartyFile {
    index: u32,
    evaluator: String,
    key: Hex,
    endpoints: Vec<String>,
    tls_key_pin: Hex,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    hpke_public_key: Hex,
    lookup_prefix_bits: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntitlementFile {
    #[serde(default)]
    administration: String,
    per_day: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErasureFile {
    records: Vec<ErasedFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErasedFile {
    handle_prefix: Hex,
    index: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EpochEndFile {
    key_epoch: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccreditationFile {
    administration: String,
    accredited: bool,
}

/// Bytes written in hexadecimal.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Hex(Bytes);

impl TryFrom<String> for Hex {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, hex::FromHexError> {
        hex::decode(text).map(|bytes| Self(bytes.into()))
    }
}

/// Through the messages of the contract, whose checks are the domain's.
impl TryFrom<DecisionFile> for Decision {
    type Error = chancery_directory_core::Error;

    fn try_from(file: DecisionFile) -> Result<Self, Self::Error> {
        Ok(match file {
            DecisionFile::Member(m) => Self::Member(Member::try_from(wire::Member {
                administration: m.administration,
                display_names: m.display_names,
                endpoints: m.endpoints,
                node_key_pin: m.node_key_pin.0,
                agents: m
                    .agents
                    .into_iter()
                    .map(|(name, key)| wire::Agent { name, mls_key: key.0 })
                    .collect(),
            })?),
            DecisionFile::Authority(a) => Self::Authority(Authority::try_from(wire::Authority {
                authority: a.authority,
                key: a.key.0,
                schemes: a.schemes,
            })?),
            DecisionFile::CeremonyPlan(p) => Self::CeremonyPlan(Plan::try_from(wire::CeremonyPlan {
                key_epoch: p.key_epoch,
                generation: p.generation,
                threshold: p.threshold,
                parties: p
                    .parties
                    .into_iter()
                    .map(|party| wire::CeremonyParty {
                        index: party.index,
                        evaluator: party.evaluator,
                        key: party.key.0,
                        endpoints: party.endpoints,
                        tls_key_pin: party.tls_key_pin.0,
                    })
                    .collect(),
            })?),
            DecisionFile::EvaluationEntitlement(e) => {
                Self::Entitlement(Entitlement::try_from(wire::EvaluationEntitlement {
                    administration: e.administration,
                    per_day: e.per_day,
                })?)
            }
            DecisionFile::RecordErasure(e) => {
                let records = e.records.into_iter().map(|record| wire::ErasedRecord {
                    handle_prefix: record.handle_prefix.0,
                    index: record.index,
                });
                Self::Erasure(erasure(&wire::RecordErasure { records: records.collect() })?)
            }
            DecisionFile::KeyEpochEnd(e) => Self::KeyEpochEnd(e.key_epoch),
            DecisionFile::EmergencyAccreditation(a) => Self::Accreditation(Accreditation {
                administration: a.administration.parse()?,
                accredited: a.accredited,
            }),
            DecisionFile::DirectoryKeys(k) => {
                Self::DirectoryKeys(DirectoryKeys::try_from(wire::DirectoryKeys {
                    hpke_public_key: k.hpke_public_key.0,
                    lookup_prefix_bits: k.lookup_prefix_bits,
                })?)
            }
        })
    }
}

/// A party of a ceremony's plan, for a decision file.
pub fn party_toml(party: &CeremonyParty) -> String {
    let CeremonyParty { index, evaluator, endpoints, .. } = party;
    let (key, pin) = (hex::encode(party.key.as_bytes()), hex::encode(party.tls_key_pin));
    // Names and endpoints hold neither quotes nor backslashes.
    format!(
        "\n[[ceremony_plan.parties]]\nindex = {index}\nevaluator = \"{evaluator}\"\nkey = \"{key}\"\n\
         tls_key_pin = \"{pin}\"\nendpoints = {endpoints:?}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_directory_core::{GovernanceKey, GovernanceKeys};
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn a_decision_goes_from_file_to_file_to_enough_signatures() {
        let folder = tempfile::tempdir().unwrap();
        let entropy = SeededEntropy::new(1);
        let keys: Vec<_> =
            (0..2).map(|i| key(&folder.path().join(format!("{i}.key")), &entropy).unwrap()).collect();
        let all = GovernanceKeys::new(keys.iter().map(GovernanceKey::from).collect(), 2).unwrap();
        let decision = folder.path().join("member.toml");
        let pin = "ab".repeat(32);
        let text = format!(
            "[member]\nadministration = 'federal'\nendpoints = ['localhost:1']\nnode_key_pin = '{pin}'\n\
             [member.display_names]\nen = 'Federal administration'\n"
        );
        std::fs::write(&decision, text).unwrap();
        let decision = read_decision(&decision).unwrap();
        let path = folder.path().join("member.statement");
        write(&path, &decide("mesh.example", decision, &[&keys[0]], &entropy)).unwrap();
        let mut signed = read(&path).unwrap();
        assert!(governance::verify(&signed, "mesh.example", &all).is_err());
        countersign(&mut signed, &keys[1]);
        countersign(&mut signed, &keys[1]);
        assert_eq!(signed.signatures.len(), 2);
        let verified = governance::verify(&signed, "mesh.example", &all).unwrap();
        let Decision::Member(member) = &verified.statement().decision else { panic!("another decision") };
        assert_eq!(member.node_key_pin, [0xab; 32]);
    }

    #[test]
    fn a_plan_takes_what_evaluators_print() {
        let folder = tempfile::tempdir().unwrap();
        let entropy = SeededEntropy::new(2);
        let mut text = "[ceremony_plan]\nkey_epoch = 1\ngeneration = 1\nthreshold = 2\n".to_owned();
        for (index, name) in [(1, "one"), (2, "two"), (3, "three")] {
            let key = crate::evaluator::key(&folder.path().join(name), &entropy).unwrap();
            let endpoints = vec![format!("{name}.example:7402")];
            let evaluator = name.parse().unwrap();
            text += &party_toml(&CeremonyParty { index, evaluator, key, endpoints, tls_key_pin: [0xcd; 32] });
        }
        let path = folder.path().join("plan.toml");
        std::fs::write(&path, text).unwrap();
        let Decision::CeremonyPlan(plan) = read_decision(&path).unwrap() else { panic!("another decision") };
        assert_eq!((plan.threshold, plan.parties.len()), (2, 3));
        assert_eq!(plan.parties[2].endpoints, ["three.example:7402"]);
        assert_eq!(plan.parties[2].tls_key_pin, [0xcd; 32]);
    }

    #[test]
    fn wrong_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        for text in
            ["", "[member]\nname = 'x'", "[directory_keys]\nhpke_public_key = 'zz'\nlookup_prefix_bits = 8"]
        {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(read_decision(&path), Err(DirectoryError::Decision { .. })), "{text}");
        }
        std::fs::write(&path, "[directory_keys]\nhpke_public_key = '00'\nlookup_prefix_bits = 8").unwrap();
        assert!(matches!(read_decision(&path), Err(DirectoryError::Core(_))));
        std::fs::write(&path, [0xff; 9]).unwrap();
        assert!(matches!(read(&path), Err(DirectoryError::Content { .. })));
    }
}
