//! The derived vectors of 3-of-5, and what must be refused.

use super::*;
use crate::oprf::{self, Proof};
use chancery_types::entropy::SeededEntropy;
use proptest::prelude::*;

#[derive(serde::Deserialize)]
struct Vectors {
    threshold: u32,
    blinded_element: String,
    group_public: String,
    expected_evaluation_element: String,
    feldman_commitments: Vec<String>,
    shares: Vec<ShareVector>,
    subsets: Vec<Subset>,
    two_of_three_is_not_enough: TooFew,
}

#[derive(serde::Deserialize)]
struct ShareVector {
    index: u32,
    share: String,
    share_public: String,
    partial_evaluation: String,
    proof: String,
    refreshed_share: String,
    refreshed_share_public: String,
    refreshed_partial_evaluation: String,
}

#[derive(serde::Deserialize)]
struct Subset {
    indices: Vec<u32>,
    lagrange_at_zero: Vec<String>,
}

#[derive(serde::Deserialize)]
struct TooFew {
    indices: Vec<u32>,
    combined: String,
}

fn element(text: &str) -> Element {
    hex::decode(text).unwrap().as_slice().try_into().unwrap()
}

fn key(text: &str) -> SecretKey {
    SecretKey::from_bytes(&hex::decode(text).unwrap().try_into().unwrap()).unwrap()
}

/// Joins what the evaluators with these indices answered.
fn joined(indices: &[u32], partials: &[Element]) -> Element {
    let weights = Weight::lagrange(indices).unwrap();
    let parts: Vec<_> = indices
        .iter()
        .zip(weights)
        .map(|(index, weight)| (weight, std::slice::from_ref(&partials[*index as usize - 1])))
        .collect();
    combine(&parts).unwrap()[0]
}

#[test]
fn derived_vectors() {
    let vectors: Vectors = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let commitments: Vec<_> =
        vectors.feldman_commitments.iter().map(|c| hex::decode(c).unwrap().into()).collect();
    let commitments = Commitments::from_wire(&commitments, vectors.threshold).unwrap();
    assert_eq!(*commitments.constant().unwrap(), element(&vectors.group_public));
    let blinded = [element(&vectors.blinded_element)];
    let (mut partials, mut refreshed) = (Vec::new(), Vec::new());
    for share in &vectors.shares {
        let public = element(&share.share_public);
        assert_eq!(key(&share.share).public_key().unwrap(), public);
        assert_eq!(commitments.public_share(share.index).unwrap(), public);
        assert!(is_share(&key(&share.share).to_bytes(), share.index, &commitments));
        let (evaluated, _) = key(&share.share).evaluate(&blinded, &SeededEntropy::new(1)).unwrap();
        assert_eq!(evaluated, [element(&share.partial_evaluation)]);
        let proof = Proof::try_from(hex::decode(&share.proof).unwrap().as_slice()).unwrap();
        assert!(proof.verifies(&public, &blinded, &evaluated));
        assert!(!proof.verifies(&element(&share.refreshed_share_public), &blinded, &evaluated));

        assert!(!is_share(&key(&share.refreshed_share).to_bytes(), share.index, &commitments));
        let new = key(&share.refreshed_share);
        assert_eq!(new.public_key().unwrap(), element(&share.refreshed_share_public));
        let (evaluated_anew, _) = new.evaluate(&blinded, &SeededEntropy::new(2)).unwrap();
        assert_eq!(evaluated_anew, [element(&share.refreshed_partial_evaluation)]);
        partials.push(evaluated[0]);
        refreshed.push(evaluated_anew[0]);
    }
    let expected = element(&vectors.expected_evaluation_element);
    for subset in &vectors.subsets {
        let weights = Weight::lagrange(&subset.indices).unwrap();
        let weights: Vec<_> = weights.iter().map(|w| hex::encode(w.0.to_bytes())).collect();
        assert_eq!(weights, subset.lagrange_at_zero);
        assert_eq!(joined(&subset.indices, &partials), expected);
        assert_eq!(joined(&subset.indices, &refreshed), expected);
    }
    let few = &vectors.two_of_three_is_not_enough;
    assert_eq!(joined(&few.indices, &partials), element(&few.combined));
    assert_ne!(joined(&few.indices, &partials), expected);
    // Shares of two generations do not combine.
    let mixed: Vec<_> = refreshed[..1].iter().chain(&partials[1..]).copied().collect();
    assert_ne!(joined(&[1, 2, 3], &mixed), expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_threshold_of_shares_evaluates_as_the_key(seed: u64, threshold in 1_u32..6, more in 0_u32..4) {
        let entropy = SeededEntropy::new(seed);
        let secret = SecretKey::random(&entropy);
        let polynomial = Polynomial::sharing(&secret, threshold, &entropy);
        let commitments = polynomial.commitments().unwrap();
        prop_assert_eq!(*commitments.constant().unwrap(), secret.public_key().unwrap());
        let blinded = [oprf::blind(b"x", &entropy).unwrap().1, oprf::blind(b"y", &entropy).unwrap().1];
        let expected = secret.evaluate(&blinded, &entropy).unwrap().0;
        // Any indices will do, the last ones as well as the first.
        let indices: Vec<_> = (1 + more..=threshold + more).collect();
        let mut partials = Vec::new();
        for index in &indices {
            let share = SecretKey::from_bytes(&polynomial.share(*index)).unwrap();
            prop_assert!(is_share(&share.to_bytes(), *index, &commitments));
            prop_assert!(threshold == 1 || !is_share(&share.to_bytes(), index + 1, &commitments));
            partials.push(share.evaluate(&blinded, &entropy).unwrap().0);
        }
        let weights = Weight::lagrange(&indices).unwrap();
        let parts: Vec<_> = weights.iter().copied().zip(partials.iter().map(Vec::as_slice)).collect();
        prop_assert_eq!(combine(&parts).unwrap(), expected);
    }
}

#[test]
fn shares_of_several_dealers_add_up() {
    let entropy = SeededEntropy::new(7);
    let dealers: Vec<_> =
        (0..3).map(|_| Polynomial::sharing(&SecretKey::random(&entropy), 2, &entropy)).collect();
    let commitments: Vec<_> = dealers.iter().map(|d| d.commitments().unwrap()).collect();
    let whole = Commitments::sum(commitments.iter().map(|c| (&Weight::ONE, c))).unwrap();
    let parts: Vec<_> = dealers.iter().map(|d| (Weight::ONE, d.share(4))).collect();
    let share = join_shares(&parts).unwrap();
    assert_eq!(share.public_key().unwrap(), whole.public_share(4).unwrap());

    // Dealt anew with Lagrange weights, the key stays, the shares do not.
    let indices = [1, 4];
    let weights = Weight::lagrange(&indices).unwrap();
    let again: Vec<_> = indices
        .iter()
        .map(|index| {
            let parts: Vec<_> = dealers.iter().map(|d| (Weight::ONE, d.share(*index))).collect();
            Polynomial::sharing(&join_shares(&parts).unwrap(), 3, &entropy)
        })
        .collect();
    let commitments: Vec<_> = again.iter().map(|d| d.commitments().unwrap()).collect();
    let renewed = Commitments::sum(weights.iter().zip(&commitments)).unwrap();
    assert_eq!(renewed.constant().unwrap(), whole.constant().unwrap());
    assert_ne!(renewed.public_share(1).unwrap(), whole.public_share(1).unwrap());
    let parts: Vec<_> = weights.iter().zip(&again).map(|(w, d)| (*w, d.share(5))).collect();
    assert_eq!(join_shares(&parts).unwrap().public_key().unwrap(), renewed.public_share(5).unwrap());
}

#[test]
fn what_does_not_fit_is_refused() {
    let entropy = SeededEntropy::new(8);
    let polynomial = Polynomial::sharing(&SecretKey::random(&entropy), 2, &entropy);
    let commitments = polynomial.commitments().unwrap();
    let longer = Polynomial::sharing(&SecretKey::random(&entropy), 3, &entropy).commitments().unwrap();
    assert!(Commitments::from_wire(&commitments.to_wire(), 3).is_err());
    assert!(Commitments::from_wire(&[vec![0; 32].into()], 1).is_err());
    assert!(Commitments::sum([(&Weight::ONE, &commitments), (&Weight::ONE, &longer)]).is_err());
    assert!(Commitments::sum([]).is_err());
    for indices in [&[][..], &[0, 1], &[2, 2]] {
        assert!(Weight::lagrange(indices).is_err());
    }
    let element = *commitments.constant().unwrap();
    assert!(combine(&[(Weight::ONE, &[element][..]), (Weight::ONE, &[])]).is_err());
    assert!(join_shares(&[(Weight::ONE, Zeroizing::new([0xff; 32]))]).is_err());
    assert_eq!(format!("{polynomial:?}"), "Polynomial");
}
