//! C2SP's published examples and the derived flow of one log.

use super::*;
use crate::keys;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chancery_types::entropy::SeededEntropy;
use std::collections::BTreeMap;

#[derive(serde::Deserialize)]
struct Flow {
    origin: String,
    log_private_seed: String,
    log_vkey: String,
    roots: BTreeMap<u64, String>,
    tlog_proof: String,
    checkpoints: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Example {
    name: String,
    vkey: Option<String>,
    note: Option<String>,
}

fn flow() -> (Flow, CheckpointSigner) {
    let flow: Flow = serde_json::from_str(include_str!("flow-derived.json")).unwrap();
    let seed = hex::decode(&flow.log_private_seed).unwrap().try_into().unwrap();
    let signer = CheckpointSigner::new(&flow.origin, SigningKey::from_bytes(&seed)).unwrap();
    (flow, signer)
}

#[test]
fn published_examples() {
    let examples: Vec<Example> = serde_json::from_str(include_str!("published-examples.json")).unwrap();
    let mut parsed = 0;
    for example in examples {
        let Some(note) = example.note else { continue };
        let note = Note::from_bytes(note.as_bytes()).unwrap();
        match example.vkey {
            Some(vkey) => {
                let verifier = LogVerifier::new(&vkey).unwrap();
                note.verify(&VerifierList::new(vec![Box::new(verifier.0.clone())])).unwrap();
                // A valid note, but no checkpoint.
                let refused = verifier.verify(&note.to_bytes());
                assert_eq!(refused, Err(Error::Proof("a signed note is no checkpoint")));
            }
            None => {
                let checkpoint = Checkpoint::from_bytes(note.text()).unwrap();
                assert_eq!(checkpoint.size(), 20_852_163, "{}", example.name);
            }
        }
        parsed += 1;
    }
    assert_eq!(parsed, 3);
}

#[test]
fn derived_checkpoints_are_reproduced_byte_for_byte() {
    let (flow, signer) = flow();
    assert_eq!(signer.vkey(), flow.log_vkey);
    let verifier = LogVerifier::new(&flow.log_vkey).unwrap();
    assert!(flow.checkpoints.len() >= 3);
    let mut older: Option<VerifiedCheckpoint> = None;
    for body in flow.checkpoints {
        let (head, note) = body.split_once("\n\n").unwrap();
        let checkpoint = verifier.verify(note.as_bytes()).unwrap();
        let root = hex::decode(&flow.roots[&checkpoint.size()]).unwrap();
        assert_eq!(checkpoint.root().as_slice(), root);
        assert_eq!(signer.sign(checkpoint.size(), checkpoint.root()).unwrap(), checkpoint);
        let path: Vec<_> =
            head.lines().skip(1).map(|l| Bytes::from(BASE64_STANDARD.decode(l).unwrap())).collect();
        if let Some(older) = &older {
            assert_eq!(head.lines().next(), Some(format!("old {}", older.size()).as_str()));
            checkpoint.extends(older, &path).unwrap();
            if older.size() < checkpoint.size() {
                older.extends(&checkpoint, &path).unwrap_err();
                checkpoint.extends(older, &path[1..]).unwrap_err();
            }
        }
        older = Some(checkpoint);
    }
}

#[test]
fn the_derived_proof_leads_to_its_cosigned_checkpoint() {
    let (flow, _) = flow();
    let (proof, note) = flow.tlog_proof.split_once("\n\n").unwrap();
    let mut lines = proof.lines();
    assert_eq!(lines.next(), Some("c2sp.org/tlog-proof@v1"));
    assert_eq!(lines.next(), Some("index 123"));
    let path: Vec<_> = lines.map(|l| Bytes::from(BASE64_STANDARD.decode(l).unwrap())).collect();
    let checkpoint = LogVerifier::new(&flow.log_vkey).unwrap().verify(note.as_bytes()).unwrap();
    checkpoint.includes(&merkle::leaf_hash(b"entry-123"), 123, &path).unwrap();
    checkpoint.includes(&merkle::leaf_hash(b"entry-124"), 123, &path).unwrap_err();
    checkpoint.includes(&merkle::leaf_hash(b"entry-123"), 124, &path).unwrap_err();
}

#[test]
fn false_checkpoints_are_refused() {
    let (flow, signer) = flow();
    let verifier = LogVerifier::new(&flow.log_vkey).unwrap();
    let good = signer.sign(7, &[9; 32]).unwrap();
    assert_eq!(verifier.verify(good.note()).unwrap(), good);
    for position in 0..good.note().len() {
        let mut bad = good.note().to_vec();
        bad[position] ^= 1;
        assert!(verifier.verify(&bad).is_err(), "byte {position}");
        assert!(verifier.verify(&good.note()[..position]).is_err(), "cut at {position}");
    }
    let other = CheckpointSigner::new(&flow.origin, keys::generate(&SeededEntropy::new(1))).unwrap();
    assert!(verifier.verify(other.sign(7, &[9; 32]).unwrap().note()).is_err());
    assert!(verifier.verify(&vec![b'a'; MAX_CHECKPOINT + 1]).is_err());
    assert!(CheckpointSigner::new("two words", keys::generate(&SeededEntropy::new(1))).is_err());
    assert!(LogVerifier::new("log.example+00000000+AQ==").is_err());
}
