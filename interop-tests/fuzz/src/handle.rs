//! Evaluations: what an evaluator is asked, and what it answers.

use crate::Target;
use crate::input::message;
use crate::world::WORLD;
use chancery_directory_core::handle::{answer, check};
use chancery_directory_core::oprf::MAX_BATCH;
use chancery_directory_core::{Blinded, EvaluatorEpoch};
use chancery_proto::directory::v1 as wire;
use chancery_types::entropy::SeededEntropy;
use chancery_types::{Handle, Identifier};
use prost::Message as _;
use std::sync::LazyLock;

/// What an evaluator is asked.
pub(crate) const EVALUATION: Target = Target { name: "evaluation", run: evaluation, seeds: evaluation_seeds };
/// What two evaluators answer: one stands in front of the other, with its length.
pub(crate) const ANSWER: Target = Target { name: "evaluation_answer", run: answers, seeds: answer_seeds };

fn epoch() -> &'static EvaluatorEpoch {
    WORLD.state.evaluators().unwrap()
}

/// Two identifiers under way.
static BLINDED: LazyLock<Blinded> = LazyLock::new(|| {
    let people = ["85073003328", "89471280394"].map(|value| Identifier::parse("be-nn", value).unwrap());
    Blinded::new(&people, &SeededEntropy::new(12)).unwrap()
});

static HANDLES: LazyLock<Vec<Handle>> = LazyLock::new(|| {
    let answers = [0, 1].map(genuine);
    BLINDED.finish(&answers, epoch()).unwrap().into_iter().map(|(handle, _)| handle).collect()
});

fn genuine(evaluator: usize) -> wire::EvaluateResponse {
    let serving = &WORLD.servings[evaluator];
    let checked = check(BLINDED.request(epoch()), serving).unwrap();
    answer(&checked, serving, &SeededEntropy::new(13)).unwrap()
}

fn evaluation(bytes: &[u8]) {
    let Some(request) = message::<wire::EvaluateRequest>(bytes) else { return };
    let serving = &WORLD.servings[0];
    let count = request.blinded_elements.len();
    let Ok(checked) = check(request, serving) else { return };
    assert!(checked.len() == count && (1..=MAX_BATCH).contains(&count));
    let answered = answer(&checked, serving, &SeededEntropy::new(14)).unwrap();
    assert!(answered.index == 1 && answered.evaluated_elements.len() == count);
}

fn evaluation_seeds() -> Vec<Vec<u8>> {
    let request = BLINDED.request(epoch());
    let one =
        wire::EvaluateRequest { blinded_elements: request.blinded_elements[..1].to_vec(), ..request.clone() };
    [request, one].map(|request| request.encode_to_vec()).to_vec()
}

fn answers(bytes: &[u8]) {
    let Some((length, bytes)) = bytes.split_first_chunk() else { return };
    let Some((one, other)) = bytes.split_at_checked(u16::from_be_bytes(*length).into()) else { return };
    let (Some(one), Some(other)) = (message(one), message(other)) else { return };
    let answers = [one, other];
    let Ok(outputs) = BLINDED.finish(&answers, epoch()) else { return };
    let handles: Vec<_> = outputs.into_iter().map(|(handle, _)| handle).collect();
    assert!(handles == *HANDLES, "evaluators made another handle");
}

fn answer_seeds() -> Vec<Vec<u8>> {
    let pair = |one: usize, other: usize| {
        let [one, other] = [one, other].map(|at| genuine(at).encode_to_vec());
        let length = u16::try_from(one.len()).unwrap().to_be_bytes();
        [length.as_slice(), &one, &other].concat()
    };
    vec![pair(0, 1), pair(2, 0), pair(1, 1)]
}
