//! The evaluators' ceremony: transcripts in which everybody may say anything, under their own
//! signatures, and concluded ceremonies as the directory gets them.

use crate::Target;
use crate::input::{Memo, message};
use crate::world::{EVALUATORS, FEDERATION, WORLD, secrets};
use bytes::Bytes;
use chancery_directory_core::ceremony::conclusion::Conclusion;
use chancery_directory_core::ceremony::transcript::Outcome;
use chancery_directory_core::ceremony::{Ceremony, Joins, party};
use chancery_directory_core::keys::{self, Purpose};
use chancery_directory_core::{EvaluatorEpoch, FederationState};
use chancery_proto::directory::v1 as wire;
use prost::Message as _;
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// A transcript; each message is signed by whom it names.
pub(crate) const TRANSCRIPT: Target = Target { name: "transcript", run: transcript, seeds: transcript_seeds };
/// A concluded ceremony.
pub(crate) const CONCLUSION: Target = Target { name: "conclusion", run: conclusion, seeds: conclusion_seeds };

static CEREMONY: LazyLock<Ceremony> = LazyLock::new(|| WORLD.ceremony());

fn genuine() -> &'static wire::CeremonyTranscript {
    WORLD.concluded.transcript.as_ref().unwrap()
}

fn transcript(bytes: &[u8]) {
    let Some(mut transcript) = message::<wire::CeremonyTranscript>(bytes) else { return };
    let said = [&mut transcript.joins, &mut transcript.dealings, &mut transcript.verdicts];
    for signed in said.into_iter().flatten() {
        sign(signed);
    }
    for join in &transcript.joins {
        let _ = Joins::check(&CEREMONY, join);
    }
    let Ok(outcome) = Outcome::of(&CEREMONY, &transcript) else { return };
    let plan = CEREMONY.plan();
    let held: BTreeSet<_> = outcome.epoch.evaluators.iter().map(|share| &share.evaluator).collect();
    let out: BTreeSet<_> = outcome.faults.iter().map(|fault| &fault.evaluator).collect();
    assert!(held.len() >= plan.threshold as usize && held.is_disjoint(&out), "who is out holds a share");
    assert!(held.iter().chain(&out).all(|id| EVALUATORS.contains(&id.as_str())), "a stranger is in it");
    let epoch = wire::EvaluatorEpoch::from(&outcome.epoch);
    assert!(EvaluatorEpoch::try_from(epoch) == Ok(outcome.epoch.clone()), "an epoch is not read again");
    let again = Outcome::of(&CEREMONY, &transcript);
    assert!(again.is_ok_and(|again| again.result() == outcome.result()), "a transcript has two outcomes");
    // Who joined with the keys of its own secret and can open its shares holds what it is said to hold.
    for (index, secret) in (1..).zip(&secrets()) {
        if let Ok(share) = party::share_of(&CEREMONY, index, secret, &outcome) {
            let public = share.public_key().unwrap();
            assert!(outcome.epoch.evaluator(index).is_some_and(|held| held.public_share == public));
        }
    }
}

/// Signs as whom the message names; the first evaluator signs what names nobody.
fn sign(signed: &mut wire::SignedCeremonyMessage) {
    static SIGNATURES: Memo<Bytes, Bytes> = Memo::new();
    signed.signature = SIGNATURES.of(signed.message.clone(), || {
        let index = wire::CeremonyMessage::decode(signed.message.clone()).map_or(0, |message| message.index);
        let at = usize::try_from(index).unwrap_or(0).saturating_sub(1);
        let key = WORLD.evaluators.get(at).unwrap_or(&WORLD.evaluators[0]);
        Bytes::copy_from_slice(&keys::sign(Purpose::CeremonyMessage, &signed.message, key))
    });
}

fn transcript_seeds() -> Vec<Vec<u8>> {
    let mut bare = genuine().clone();
    for signed in [&mut bare.joins, &mut bare.dealings, &mut bare.verdicts].into_iter().flatten() {
        signed.signature = Bytes::new();
    }
    let two = wire::CeremonyTranscript { verdicts: bare.verdicts[..2].to_vec(), ..bare.clone() };
    let complaining = complaint(&bare);
    [bare, two, complaining].map(|transcript| transcript.encode_to_vec()).to_vec()
}

/// The last verdict complains about the first dealer, with a seed that opens nothing.
fn complaint(bare: &wire::CeremonyTranscript) -> wire::CeremonyTranscript {
    use wire::ceremony_message::Content;
    let mut transcript = bare.clone();
    let last = transcript.verdicts.last_mut().unwrap();
    let mut message = wire::CeremonyMessage::decode(last.message.clone()).unwrap();
    if let Some(Content::Verdict(verdict)) = &mut message.content {
        let seed = Bytes::from_static(&[1; 32]);
        verdict.complaints.push(wire::CeremonyComplaint { dealer: 1, seed });
    }
    last.message = message.encode_to_vec().into();
    transcript
}

fn conclusion(bytes: &[u8]) {
    let Some(concluded) = message::<wire::ConcludedCeremony>(bytes) else { return };
    let Ok(conclusion) = Conclusion::verify(&concluded, FEDERATION, &WORLD.governance) else { return };
    assert!(concluded.result == WORLD.concluded.result, "nobody concluded this");
    assert!(conclusion.id() == CEREMONY.id());
    let epoch = conclusion.epoch();
    let signed: Vec<_> = concluded.conclusions.iter().map(|conclusion| conclusion.index).collect();
    assert!(epoch.evaluators.iter().map(|share| share.index).eq(signed), "another holds a share");
    assert!(epoch.evaluators.len() >= epoch.threshold as usize);
    if conclusion.judge(&concluded, &FederationState::default()).is_ok() {
        let said = concluded.transcript.as_ref().unwrap();
        let words = |transcript: &wire::CeremonyTranscript| {
            let all = [&transcript.joins, &transcript.dealings, &transcript.verdicts];
            all.map(|said| said.iter().map(|signed| signed.message.clone()).collect::<Vec<_>>())
        };
        assert!(words(said) == words(genuine()), "a result follows from another transcript");
    }
}

fn conclusion_seeds() -> Vec<Vec<u8>> {
    let whole = WORLD.concluded.clone();
    let two = wire::ConcludedCeremony { conclusions: whole.conclusions[1..].to_vec(), ..whole.clone() };
    [whole, two].map(|concluded| concluded.encode_to_vec()).to_vec()
}
