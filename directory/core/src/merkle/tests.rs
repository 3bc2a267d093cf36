//! The reference tree and the published proof cases, negative ones included.

use super::*;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

#[derive(serde::Deserialize)]
struct ReferenceTree {
    leaf_inputs_hex: Vec<String>,
    leaf_hashes: Vec<String>,
    roots_by_size: Vec<String>,
    inclusion: Vec<ReferenceInclusion>,
    consistency: Vec<ReferenceConsistency>,
}

#[derive(serde::Deserialize)]
struct ReferenceInclusion {
    index: u64,
    size: u64,
    proof: Vec<String>,
}

#[derive(serde::Deserialize)]
struct ReferenceConsistency {
    size1: u64,
    size2: u64,
    proof: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Cases {
    inclusion: Vec<InclusionCase>,
    consistency: Vec<ConsistencyCase>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct InclusionCase {
    case: String,
    leaf_idx: u64,
    tree_size: u64,
    root: String,
    leaf_hash: String,
    proof: Option<Vec<String>>,
    want_err: bool,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConsistencyCase {
    case: String,
    size1: u64,
    size2: u64,
    root1: String,
    root2: String,
    proof: Option<Vec<String>>,
    want_err: bool,
}

fn from_hex(text: &str) -> Hash {
    hash(&hex::decode(text).unwrap()).unwrap()
}

fn from_base64(text: &str) -> Result<Hash, Error> {
    hash(&BASE64_STANDARD.decode(text).unwrap())
}

fn case_path(proof: Option<Vec<String>>) -> Result<Vec<Hash>, Error> {
    let bytes: Vec<_> =
        proof.unwrap_or_default().iter().map(|h| Bytes::from(BASE64_STANDARD.decode(h).unwrap())).collect();
    path(&bytes)
}

#[test]
fn reference_tree() {
    let tree: ReferenceTree = serde_json::from_str(include_str!("reference-tree.json")).unwrap();
    let roots: Vec<_> = tree.roots_by_size.iter().map(|r| from_hex(r)).collect();
    let leaves: Vec<_> = tree.leaf_hashes.iter().map(|h| from_hex(h)).collect();
    assert_eq!(roots[0], empty_root());
    for (input, leaf) in tree.leaf_inputs_hex.iter().zip(&leaves) {
        assert_eq!(leaf_hash(&hex::decode(input).unwrap()), *leaf);
    }
    assert!(tree.inclusion.len() >= 36 && tree.consistency.len() >= 36);
    for case in tree.inclusion {
        let path: Vec<_> = case.proof.iter().map(|h| from_hex(h)).collect();
        let leaf = leaves[usize::try_from(case.index).unwrap()];
        let root = roots[usize::try_from(case.size).unwrap()];
        verify_inclusion(&leaf, case.index, case.size, &path, &root).unwrap();
        for other in 0..8 {
            let accepted = verify_inclusion(&leaf, other, case.size, &path, &root).is_ok();
            assert_eq!(accepted, other == case.index, "index {other} for {} of {}", case.index, case.size);
        }
    }
    for case in tree.consistency {
        let path: Vec<_> = case.proof.iter().map(|h| from_hex(h)).collect();
        let root = |size: u64| roots[usize::try_from(size).unwrap()];
        let check = |old| verify_consistency(case.size1, &old, case.size2, &root(case.size2), &path);
        check(root(case.size1)).unwrap();
        check([7; 32]).unwrap_err();
    }
}

#[test]
fn published_cases() {
    let cases: Cases = serde_json::from_str(include_str!("merkle-proof-cases.json")).unwrap();
    assert_eq!((cases.inclusion.len(), cases.consistency.len()), (49, 49));
    for case in cases.inclusion {
        let verified = (|| {
            let (leaf, root) = (from_base64(&case.leaf_hash)?, from_base64(&case.root)?);
            verify_inclusion(&leaf, case.leaf_idx, case.tree_size, &case_path(case.proof)?, &root)
        })();
        assert_eq!(verified.is_err(), case.want_err, "inclusion {}", case.case);
    }
    for case in cases.consistency {
        let verified = (|| {
            let (old, new) = (from_base64(&case.root1)?, from_base64(&case.root2)?);
            verify_consistency(case.size1, &old, case.size2, &new, &case_path(case.proof)?)
        })();
        assert_eq!(verified.is_err(), case.want_err, "consistency {}", case.case);
    }
}

#[test]
fn long_paths_are_refused() {
    assert!(path(&vec![Bytes::from_static(&[0; 32]); MAX_PATH]).is_ok());
    assert!(path(&vec![Bytes::from_static(&[0; 32]); MAX_PATH + 1]).is_err());
    assert!(path(&[Bytes::from_static(&[0; 31])]).is_err());
}
