//! What handles cost: an evaluator's answers with their proofs, and the
//! endpoint's share of the work, each on one core and from bytes to bytes.

use super::round;
use crate::Failure;
use bytes::Bytes;
use chancery_directory_core::handle::{self, Blinded, Serving};
use chancery_directory_core::oprf::SecretKey;
use chancery_directory_core::threshold::Polynomial;
use chancery_directory_core::{EvaluatorEpoch, EvaluatorShare, keys};
use chancery_proto::directory::v1 as wire;
use chancery_types::{Entropy, Identifier, SystemEntropy};
use prost::Message as _;
use serde::Serialize;
use std::time::{Duration, Instant};

/// How many must answer, of how many.
pub(super) const THRESHOLD: u32 = 2;
pub(super) const EVALUATORS: u32 = 3;

#[derive(Serialize)]
pub(super) struct Figures {
    /// Decoded, multiplied, proven, encoded.
    evaluate_ids_per_s_per_core: f64,
    /// One identifier at the endpoint: blinded, both proofs checked, joined, finished.
    combine_us: f64,
}

/// For that long each, on one core.
pub(super) fn measure(batch: u16, time: Duration) -> Result<Figures, Failure> {
    let entropy = SystemEntropy;
    let (servings, epoch) = evaluators(&entropy)?;
    let identifiers = (0..batch)
        .map(|number| Identifier::parse("e164", &format!("+32470{number:06}")))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| Failure::Letter("a telephone number of the bench is none".to_owned()))?;
    let request = Bytes::from(Blinded::new(&identifiers, &entropy)?.request(&epoch).encode_to_vec());

    let first = servings.first().ok_or(Failure::Panicked)?;
    let (answered, spent) = repeat(time, || answer(&request, first, &entropy).map(drop))?;
    let evaluate_ids_per_s_per_core = (answered * identifiers.len()) as f64 / spent.as_secs_f64();

    // What evaluators take is not the endpoint's.
    let mut waited = Duration::ZERO;
    let (combined, spent) = repeat(time, || {
        let blinded = Blinded::new(&identifiers, &entropy)?;
        let request = Bytes::from(blinded.request(&epoch).encode_to_vec());
        let asked = Instant::now();
        let answers = servings.iter().take(THRESHOLD as usize);
        let answers =
            answers.map(|serving| answer(&request, serving, &entropy)).collect::<Result<Vec<_>, _>>()?;
        waited += asked.elapsed();
        let answers = answers
            .into_iter()
            .map(wire::EvaluateResponse::decode)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Failure::Panicked)?;
        blinded.finish(&answers, &epoch)?;
        Ok(())
    })?;
    let own = spent.saturating_sub(waited).as_secs_f64();
    let combine_us = own * 1e6 / (combined * identifiers.len()) as f64;
    Ok(Figures {
        evaluate_ids_per_s_per_core: round(evaluate_ids_per_s_per_core),
        combine_us: round(combine_us),
    })
}

fn answer(request: &Bytes, serving: &Serving, entropy: &dyn Entropy) -> Result<Bytes, Failure> {
    let request = wire::EvaluateRequest::decode(request.clone()).map_err(|_| Failure::Panicked)?;
    let answer = handle::answer(&handle::check(request, serving)?, serving, entropy)?;
    Ok(answer.encode_to_vec().into())
}

/// Evaluators that share a key which the bench alone knows.
fn evaluators(entropy: &dyn Entropy) -> Result<(Vec<Serving>, EvaluatorEpoch), Failure> {
    let secret = SecretKey::random(entropy);
    let polynomial = Polynomial::sharing(&secret, THRESHOLD, entropy);
    let commitments = polynomial.commitments()?;
    let (mut servings, mut evaluators) = (Vec::new(), Vec::new());
    for index in 1..=EVALUATORS {
        let share = SecretKey::from_bytes(&polynomial.share(index))?;
        servings.push(Serving { key_epoch: 1, generation: 1, index, share });
        evaluators.push(EvaluatorShare {
            index,
            evaluator: format!("evaluator-{index}").parse().map_err(|_| Failure::Name)?,
            public_share: commitments.public_share(index)?,
            endpoints: Vec::new(),
            key: (&keys::generate(entropy)).into(),
            tls_key_pin: [0; 32],
        });
    }
    let (key_epoch, generation, public_key) = (1, 1, *commitments.constant()?);
    let epoch = EvaluatorEpoch { key_epoch, generation, threshold: THRESHOLD, public_key, evaluators };
    Ok((servings, epoch))
}

/// Does it again and again for that long; gives how often, and the time.
fn repeat(
    time: Duration,
    mut work: impl FnMut() -> Result<(), Failure>,
) -> Result<(usize, Duration), Failure> {
    let (begun, mut times) = (Instant::now(), 0);
    while begun.elapsed() < time {
        work()?;
        times += 1;
    }
    Ok((times, begun.elapsed()))
}
