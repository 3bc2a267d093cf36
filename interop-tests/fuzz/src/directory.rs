//! What governs, as it is handed in: statements, signed statements, evaluators' totals.

use crate::Target;
use crate::input::message;
use crate::world::{FEDERATION, NOW, WORLD, admitted, founded, key, name, sign};
use chancery_directory_core::governance::{self, MAX_SIGNATURES, MAX_STATEMENT};
use chancery_directory_core::keys::{self, Purpose};
use chancery_directory_core::statement::{
    Accreditation, Decision, DirectoryKeys, Entitlement, ErasedRecord, Member, Statement,
};
use chancery_directory_core::totals::{EvaluationTotals, MAX_ADMINISTRATIONS, Total, day_of};
use chancery_proto::directory::v1 as wire;
use chancery_types::entropy::SeededEntropy;
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

/// A statement, without its signatures.
pub(crate) const STATEMENT: Target = Target { name: "statement", run: statement, seeds: statement_seeds };
/// A signed statement; with an odd first byte the rest is a statement that governance signs.
pub(crate) const SIGNED_STATEMENT: Target =
    Target { name: "signed_statement", run: signed_statement, seeds: signed_statement_seeds };
/// The same for an evaluator's totals.
pub(crate) const TOTALS: Target = Target { name: "evaluation_totals", run: totals, seeds: totals_seeds };

fn statement(bytes: &[u8]) {
    let Some(statement) = message::<wire::Statement>(bytes) else { return };
    let Ok(statement) = Statement::try_from(statement) else { return };
    let encoded = wire::Statement::from(&statement);
    let again = Statement::try_from(encoded.clone()).expect("a statement is not read again");
    assert!(wire::Statement::from(&again) == encoded, "a statement changes by encoding");
    match &statement.decision {
        Decision::Member(member) => {
            assert!(member.agents.len() <= 256 && (1..=8).contains(&member.endpoints.len()));
        }
        Decision::CeremonyPlan(plan) => {
            assert!(plan.parties.len() <= 16 && plan.threshold as usize <= plan.parties.len());
            assert!(plan.parties.windows(2).all(|pair| pair[0].index < pair[1].index));
        }
        Decision::Erasure(records) => assert!((1..=256).contains(&records.len())),
        Decision::DirectoryKeys(keys) => assert!(keys.lookup_prefix_bits <= 32),
        Decision::Authority(_)
        | Decision::Entitlement(_)
        | Decision::KeyEpochEnd(_)
        | Decision::Accreditation(_) => {}
    }
}

fn signed_statement(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let world = &*WORLD;
    let own = mode & 1 == 1;
    let signed = if own {
        let signature = governance::signature(bytes, &world.governor);
        wire::SignedStatement { statement: bytes.to_vec().into(), signatures: vec![signature] }
    } else {
        let Some(signed) = message(bytes) else { return };
        signed
    };
    let erased = governance::erased(&signed);
    let Ok(verified) = governance::verify(&signed, FEDERATION, &world.governance) else { return };
    assert!(signed.statement.len() <= MAX_STATEMENT && signed.signatures.len() <= MAX_SIGNATURES);
    assert!(verified.statement().federation == FEDERATION);
    let erases = match &verified.statement().decision {
        Decision::Erasure(records) => records.clone(),
        _ => Vec::new(),
    };
    assert!(erased == erases, "an erasure is read in two ways");
    if !own {
        let known = STATEMENTS.iter().any(|known| known.statement == signed.statement);
        assert!(known, "governance never signed this");
    }
    let mut state = world.state.clone();
    if state.admit(&verified).is_ok() {
        let decision = verified.statement().decision.clone();
        state.apply(verified, 1000, NOW);
        let lasts = !matches!(decision, Decision::Erasure(_) | Decision::CeremonyPlan(_));
        assert!(!lasts || state.holds(&decision), "what was decided is not in force");
        assert!(state.in_force().is_sorted());
    }
}

fn totals(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let world = &*WORLD;
    let own = mode & 1 == 1;
    let signed = if own {
        let signature = keys::sign(Purpose::EvaluationTotals, bytes, &world.evaluators[0]);
        wire::SignedEvaluationTotals { totals: bytes.to_vec().into(), signature: signature.to_vec().into() }
    } else {
        let Some(signed) = message(bytes) else { return };
        signed
    };
    let claim = EvaluationTotals::claim(&signed);
    let Ok(totals) = EvaluationTotals::verify(&signed, &world.state, NOW) else { return };
    assert!(claim == Ok((totals.evaluator.clone(), totals.day)), "totals are claimed by another");
    assert!(totals.totals.len() <= MAX_ADMINISTRATIONS && totals.day < day_of(NOW));
    if own {
        assert!(totals.evaluator.as_str() == "e1", "one evaluator signs for another");
    } else {
        assert!(totals == sample_totals(), "no evaluator signed this");
    }
}

/// One of each decision.
pub(crate) fn decisions() -> Vec<Decision> {
    let member = Member {
        administration: name("federal"),
        display_names: BTreeMap::from([("en".to_owned(), "Federal".to_owned())]),
        endpoints: vec!["node.example:7403".to_owned(), "[::1]:7403".to_owned()],
        node_key_pin: [1; 32],
        agents: BTreeMap::from([(name("letters"), (&key(60)).into())]),
    };
    vec![
        Decision::Member(member),
        admitted("four", &key(61), "e164"),
        Decision::DirectoryKeys(DirectoryKeys { hpke_public_key: [2; 32], lookup_prefix_bits: 8 }),
        Decision::Entitlement(Entitlement { administration: Some(name("federal")), per_day: 10 }),
        Decision::Erasure(vec![ErasedRecord { handle_prefix: [1, 2, 3, 4], index: 5 }]),
        Decision::KeyEpochEnd(1),
        Decision::Accreditation(Accreditation { administration: name("federal"), accredited: true }),
    ]
}

static STATEMENTS: LazyLock<Vec<wire::SignedStatement>> = LazyLock::new(|| {
    let governor = &WORLD.governor;
    let signed = (70..).zip(decisions()).map(|(nonce, decision)| sign(governor, nonce, decision));
    signed.chain(WORLD.concluded.plan.clone()).collect()
});

fn statement_seeds() -> Vec<Vec<u8>> {
    STATEMENTS.iter().map(|signed| signed.statement.to_vec()).collect()
}

fn signed_statement_seeds() -> Vec<Vec<u8>> {
    let raw = |signed: &wire::SignedStatement| [&[0], signed.encode_to_vec().as_slice()].concat();
    let own = |signed: &wire::SignedStatement| [&[1], &*signed.statement].concat();
    let foreign = Statement::new("other.example", decisions().remove(0), &SeededEntropy::new(90));
    let foreign = governance::sign(&foreign, &[&WORLD.governor]);
    STATEMENTS.iter().flat_map(|signed| [raw(signed), own(signed)]).chain([own(&foreign)]).collect()
}

fn sample_totals() -> EvaluationTotals {
    let total = Total { evaluated: 7, refused: 1 };
    EvaluationTotals {
        evaluator: name("e1"),
        day: day_of(founded().before(Duration::from_hours(48))),
        totals: BTreeMap::from([(name("federal"), total), (name("regional"), total)]),
    }
}

fn totals_seeds() -> Vec<Vec<u8>> {
    let signed = sample_totals().sign(&WORLD.evaluators[0]);
    vec![[&[0], signed.encode_to_vec().as_slice()].concat(), [&[1], &*signed.totals].concat()]
}
