//! Configuration files of every party, and decisions of governance, all in TOML. A first byte says
//! whose file the rest is.

use crate::Target;
use chancery_directory::config::{DirectoryFile, EvaluatorFile, MirrorFile};
use chancery_directory::governance::parse_decision;
use chancery_directory_core::statement::{Decision, Statement};
use chancery_kit::config;
use chancery_node::config::NodeFile;
use chancery_proto::directory::v1 as wire;
use chancery_sdk::agent::command::AgentFile;
use chancery_types::entropy::SeededEntropy;
use std::path::Path;

/// A configuration file.
pub(crate) const FILES: Target = Target { name: "configuration", run: file, seeds: file_seeds };
/// A decision file.
pub(crate) const DECISION: Target = Target { name: "decision", run: decision, seeds: decision_seeds };

fn file(bytes: &[u8]) {
    let Some((whose, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    // No variable has this prefix.
    let prefix = "CHANCERY_FUZZ_";
    match whose % 5 {
        0 => drop(config::parse::<NodeFile>(text, prefix)),
        1 => drop(config::parse::<DirectoryFile>(text, prefix)),
        2 => drop(config::parse::<MirrorFile>(text, prefix)),
        3 => drop(config::parse::<EvaluatorFile>(text, prefix)),
        _ => drop(config::parse::<AgentFile>(text, prefix)),
    }
}

const COMMON: &str = "listen = '127.0.0.1:7403'\nbundle = 'federation.toml'\nidentity = 'identity'\n\
                      pki = 'pki.example:7400'\nfolder = 'data'\n";

fn file_seeds() -> Vec<Vec<u8>> {
    let file = |whose: u8, own: &str| [&[whose], COMMON.as_bytes(), own.as_bytes()].concat();
    vec![
        file(0, "directory = 'a:1'\nmirror = 'b:2'\n[quotas]\nkey_packages = 7\n"),
        file(1, "database = 'postgres://user@host/name'\n"),
        file(2, "directory = 'a:1'\ndatabase = '/var/lib/mirror.sqlite'\n"),
        file(3, "id = 'e1'\ndirectory = 'a:1'\nseal_key = '/run/seal.key'\n"),
        file(4, "node = 'a:1'\nstock = 16\n"),
    ]
}

fn decision(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(decision) = parse_decision(text, Path::new("decision.toml")) else { return };
    let statement = wire::Statement::from(&Statement::new("mesh.example", decision, &SeededEntropy::new(1)));
    let again = Statement::try_from(statement.clone()).expect("a decision makes no statement");
    assert!(wire::Statement::from(&again) == statement, "a decision changes by encoding");
    if let Decision::CeremonyPlan(plan) = again.decision {
        let printed: String = plan.parties.iter().map(chancery_directory::governance::party_toml).collect();
        let head = format!(
            "[ceremony_plan]\nkey_epoch = {}\ngeneration = {}\nthreshold = {}\n",
            plan.key_epoch, plan.generation, plan.threshold
        );
        let read = parse_decision(&(head + &printed), Path::new("decision.toml"));
        assert!(
            matches!(read, Ok(Decision::CeremonyPlan(read)) if read == plan),
            "a plan is printed wrongly"
        );
    }
}

fn decision_seeds() -> Vec<Vec<u8>> {
    let (pin, key) = ("ab".repeat(32), hex::encode(crate::world::key(60).verifying_key().as_bytes()));
    [
        format!(
            "[member]\nadministration = 'federal'\nendpoints = ['localhost:1']\nnode_key_pin = '{pin}'\n\
             [member.display_names]\nen = 'Federal administration'\n[member.agents]\nletters = '{key}'\n"
        ),
        format!("[authority]\nauthority = 'one'\nkey = '{key}'\nschemes = ['be-nn', 'e164']\n"),
        format!(
            "[ceremony_plan]\nkey_epoch = 1\ngeneration = 1\nthreshold = 1\n[[ceremony_plan.parties]]\n\
             index = 1\nevaluator = 'e1'\nkey = '{key}'\ntls_key_pin = '{pin}'\nendpoints = ['[::1]:2']\n"
        ),
        format!("[directory_keys]\nhpke_public_key = '{pin}'\nlookup_prefix_bits = 8\n"),
        "[evaluation_entitlement]\nadministration = 'federal'\nper_day = 10\n".to_owned(),
        "[[record_erasure.records]]\nhandle_prefix = '01020304'\nindex = 5\n".to_owned(),
        "[key_epoch_end]\nkey_epoch = 1\n".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
