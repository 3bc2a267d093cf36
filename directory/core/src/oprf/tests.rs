//! The published vectors, and what must be refused.

use super::*;
use chancery_types::entropy::SeededEntropy;
use std::sync::Mutex;

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Suite {
    key_info: String,
    seed: String,
    pk_sm: String,
    sk_sm: String,
    vectors: Vec<Vector>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Vector {
    batch: usize,
    blind: String,
    blinded_element: String,
    evaluation_element: String,
    input: String,
    output: String,
    proof: ProofVector,
}

#[derive(serde::Deserialize)]
struct ProofVector {
    proof: String,
    r: String,
}

/// Gives the scalars of a vector, each as 64 wide bytes.
struct Scripted(Mutex<Vec<u8>>);

impl Scripted {
    fn new(scalars: &[Vec<u8>]) -> Self {
        Self(Mutex::new(scalars.iter().flat_map(|s| [s.as_slice(), &[0; 32]].concat()).collect()))
    }
}

impl Entropy for Scripted {
    fn fill(&self, bytes: &mut [u8]) {
        let mut script = self.0.lock().unwrap();
        let rest = script.split_off(bytes.len());
        bytes.copy_from_slice(&script);
        *script = rest;
    }
}

fn hexes(text: &str) -> Vec<Vec<u8>> {
    text.split(',').map(|t| hex::decode(t).unwrap()).collect()
}

fn elements(text: &str) -> Vec<Element> {
    hexes(text).iter().map(|b| Element::try_from(b.as_slice()).unwrap()).collect()
}

#[test]
fn rfc_9497_vectors() {
    let suites: Vec<Suite> = serde_json::from_str(include_str!("vectors.json")).unwrap();
    let mut seen = 0;
    for suite in suites {
        let seed = hex::decode(&suite.seed).unwrap().try_into().unwrap();
        let key = SecretKey::derive(&seed, &hex::decode(&suite.key_info).unwrap()).unwrap();
        assert_eq!(hex::encode(*key.to_bytes()), suite.sk_sm);
        let public = key.public_key().unwrap();
        assert_eq!(hex::encode(public.as_bytes()), suite.pk_sm);
        for vector in suite.vectors {
            let inputs = hexes(&vector.input);
            let entropy = Scripted::new(&hexes(&vector.blind));
            let (blinds, blinded): (Vec<_>, Vec<_>) =
                inputs.iter().map(|i| blind(i, &entropy).unwrap()).unzip();
            assert_eq!(blinded, elements(&vector.blinded_element));

            let entropy = Scripted::new(&hexes(&vector.proof.r));
            let (evaluated, proof) = key.evaluate(&blinded, &entropy).unwrap();
            assert_eq!(evaluated, elements(&vector.evaluation_element));
            assert_eq!(hex::encode(proof.to_bytes()), vector.proof.proof);
            assert!(proof.verifies(&public, &blinded, &evaluated));

            let outputs: Vec<_> = (0..vector.batch)
                .map(|i| hex::encode(*finalize(&inputs[i], &blinds[i], &evaluated[i]).unwrap()))
                .collect();
            assert_eq!(outputs.join(","), vector.output);
            seen += vector.batch;
        }
    }
    assert_eq!(seen, 4);
}

#[test]
fn a_proof_holds_for_its_batch_and_key_alone() {
    let entropy = SeededEntropy::new(3);
    let (key, other) = (SecretKey::random(&entropy), SecretKey::random(&entropy));
    let public = key.public_key().unwrap();
    let blinded: Vec<_> = (0..5_u8).map(|i| blind(&[i], &entropy).unwrap().1).collect();
    let (evaluated, proof) = key.evaluate(&blinded, &entropy).unwrap();
    assert!(proof.verifies(&public, &blinded, &evaluated));
    assert!(!proof.verifies(&other.public_key().unwrap(), &blinded, &evaluated));
    assert!(!proof.verifies(&public, &blinded[..4], &evaluated[..4]));
    assert!(!proof.verifies(&public, &blinded, &evaluated[..4]));
    let mut swapped = evaluated.clone();
    swapped.swap(0, 1);
    assert!(!proof.verifies(&public, &blinded, &swapped));
    let (_, foreign) = other.evaluate(&blinded, &entropy).unwrap();
    assert!(!foreign.verifies(&public, &blinded, &evaluated));
    for bit in 0..512 {
        let mut bytes = proof.to_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let accepted =
            Proof::try_from(bytes.as_slice()).is_ok_and(|p| p.verifies(&public, &blinded, &evaluated));
        assert!(!accepted, "bit {bit}");
    }
}

#[test]
fn identity_and_non_canonical_encodings_are_refused() {
    assert_eq!(Element::try_from([0; 32].as_slice()), Err(Error::Element));
    // RFC 9496, appendix A.2: the field's prime, a negative field element.
    let mut prime = [0xff; 32];
    (prime[0], prime[31]) = (0xed, 0x7f);
    assert_eq!(Element::try_from(prime.as_slice()), Err(Error::Element));
    let mut negative = [0; 32];
    negative[0] = 1;
    assert_eq!(Element::try_from(negative.as_slice()), Err(Error::Element));
    assert_eq!(Element::try_from([1; 31].as_slice()), Err(Error::Element));
    assert!(Proof::try_from([0xff; 64].as_slice()).is_err());
    assert!(SecretKey::from_bytes(&[0; 32]).is_err());
    assert!(SecretKey::from_bytes(&[0xff; 32]).is_err());
}

#[test]
fn batches_are_limited() {
    let entropy = SeededEntropy::new(4);
    let key = SecretKey::random(&entropy);
    assert!(key.evaluate(&[], &entropy).is_err());
    let one = blind(b"x", &entropy).unwrap().1;
    assert!(matches!(key.evaluate(&vec![one; MAX_BATCH + 1], &entropy), Err(Error::TooLarge(_))));
    assert!(blind(&vec![0; 65_536], &entropy).is_err());
}

#[test]
fn secrets_do_not_show() {
    let entropy = SeededEntropy::new(5);
    let key = SecretKey::random(&entropy);
    let (blind, element) = blind(b"x", &entropy).unwrap();
    assert_eq!(format!("{key:?} {blind:?} {element:?}"), "SecretKey Blind Element");
}
