//! Certificates, requests, revocation lists, PEM and the federation's bundle. The PKI's keys come
//! from the TLS library's own generator, so what they signed is kept in `fixtures/`.

use crate::Target;
use crate::world::NOW;
use chancery_pki_core::chain::{self, MAX_CERTIFICATE, MAX_CHAIN, MAX_CRL_BYTES, MAX_CRLS};
use chancery_pki_core::profile::MAX_CSR;
use chancery_pki_core::{CheckedCsr, Crls, FederationBundle, TrustAnchors, Usage, VerifiedPeer, armour};
use rustls_pki_types::CertificateDer;
use std::sync::LazyLock;

/// A chain: each certificate behind its length, and a last byte that says how it is checked.
pub(crate) const CHAIN: Target = Target { name: "certificate_chain", run: check_chain, seeds: chain_seeds };
/// A certificate request.
pub(crate) const REQUEST: Target = Target { name: "certificate_request", run: request, seeds: request_seeds };
/// Revocation lists, each behind its length.
pub(crate) const REVOCATION: Target = Target { name: "revocation_lists", run: lists, seeds: lists_seeds };
/// A text that should be PEM.
pub(crate) const ARMOUR: Target = Target { name: "pem", run: read_armour, seeds: armour_seeds };
/// A federation's bundle.
pub(crate) const BUNDLE: Target = Target { name: "bundle", run: bundle, seeds: bundle_seeds };

pub(crate) const FEDERATION: &str = "mesh.example";
const LEAF: &[u8] = include_bytes!("../fixtures/leaf");
const ISSUING: &[u8] = include_bytes!("../fixtures/issuing_ca");
const ROOT: &[u8] = include_bytes!("../fixtures/root_ca");
/// Of the root, then of the issuing CA.
const LISTS: [&[u8]; 2] =
    [include_bytes!("../fixtures/root_list"), include_bytes!("../fixtures/issuing_list")];
const BUNDLE_FILE: &[u8] = include_bytes!("../fixtures/bundle");

static ANCHORS: LazyLock<TrustAnchors> =
    LazyLock::new(|| TrustAnchors::new(FEDERATION.parse().unwrap(), ROOT).unwrap());

/// What the one leaf says that the issuing CA signed.
static PEER: LazyLock<VerifiedPeer> = LazyLock::new(|| {
    let chain = [LEAF, ISSUING].map(|der| CertificateDer::from(der.to_vec()));
    chain::verify(&chain, &ANCHORS, &CRLS, NOW, Usage::Server).unwrap()
});

static CRLS: LazyLock<Crls> = LazyLock::new(|| Crls::parse(&LISTS).unwrap());

/// Pieces behind their lengths (u16), as long as they last.
fn pieces(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

fn joined(pieces: &[&[u8]]) -> Vec<u8> {
    let piece = |piece: &&[u8]| [&u16::try_from(piece.len()).unwrap().to_be_bytes(), *piece].concat();
    pieces.iter().flat_map(piece).collect()
}

fn check_chain(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_last() else { return };
    let chain: Vec<_> = pieces(bytes).into_iter().map(CertificateDer::from).collect();
    for certificate in &chain {
        let _ = chain::key_pin(certificate);
    }
    let usage = if how & 1 == 1 { Usage::Server } else { Usage::Client };
    let crls = if how & 2 == 2 { &Crls::default() } else { &*CRLS };
    let verified = chain::verify(&chain, &ANCHORS, crls, NOW, usage);
    let Ok(peer) = verified else { return };
    assert!(chain.len() <= MAX_CHAIN && chain.iter().all(|certificate| certificate.len() <= MAX_CERTIFICATE));
    assert!(peer == *PEER, "nobody signed this certificate");
    assert!(chain::key_pin(&chain[0]) == Ok(*peer.key_pin()), "a key has two pins");
}

fn chain_seeds() -> Vec<Vec<u8>> {
    let seed = |chain: &[&[u8]], how: u8| [joined(chain), vec![how]].concat();
    vec![
        seed(&[LEAF, ISSUING], 1),
        seed(&[LEAF, ISSUING], 2),
        seed(&[LEAF, ISSUING, ROOT], 0),
        seed(&[ROOT], 2),
    ]
}

fn request(bytes: &[u8]) {
    static GENUINE: LazyLock<Vec<CheckedCsr>> =
        LazyLock::new(|| request_seeds().iter().map(|seed| CheckedCsr::check(seed).unwrap()).collect());
    let Ok(csr) = CheckedCsr::check(bytes) else { return };
    assert!(bytes.len() <= MAX_CSR);
    assert!(
        GENUINE.iter().any(|genuine| genuine.key_pin() == csr.key_pin()),
        "nobody has shown to possess this key"
    );
}

fn request_seeds() -> Vec<Vec<u8>> {
    [include_bytes!("../fixtures/request_p256").as_slice(), include_bytes!("../fixtures/request_ed25519")]
        .map(<[u8]>::to_vec)
        .to_vec()
}

fn lists(bytes: &[u8]) {
    let pieces = pieces(bytes);
    let Ok(crls) = Crls::parse(&pieces) else { return };
    assert!(pieces.len() <= MAX_CRLS && pieces.iter().map(|list| list.len()).sum::<usize>() <= MAX_CRL_BYTES);
    assert!(crls.is_empty() == pieces.is_empty());
    if crls.is_empty() {
        return;
    }
    let chain = [LEAF, ISSUING].map(|der| CertificateDer::from(der.to_vec()));
    if chain::verify(&chain, &ANCHORS, &crls, NOW, Usage::Client).is_ok() {
        // Both CAs' lists, as they signed them, are among these.
        let signed = |list: &[u8]| list.get(..list.len() - 80).map(<[u8]>::to_vec);
        let has = |genuine: &[u8]| pieces.iter().any(|list| list.starts_with(&signed(genuine).unwrap()));
        assert!(LISTS.into_iter().all(has), "a list counts that no CA signed");
    }
}

fn lists_seeds() -> Vec<Vec<u8>> {
    vec![joined(&LISTS), joined(&LISTS[..1]), joined(&[include_bytes!("../fixtures/revoking_list")])]
}

fn read_armour(bytes: &[u8]) {
    if let Ok(chain) = armour::read_chain(bytes) {
        assert!(!chain.is_empty());
        assert!(armour::read_chain(armour::write_chain(&chain).as_bytes()) == Ok(chain));
        assert!(armour::read_crls(bytes).is_err() && armour::read_key(bytes).is_err(), "two kinds of PEM");
    }
    if let Ok(lists) = armour::read_crls(bytes) {
        assert!(armour::read_crls(armour::write_crls(&lists).as_bytes()) == Ok(lists));
    }
    let _ = armour::read_key(bytes);
}

fn armour_seeds() -> Vec<Vec<u8>> {
    let chain = [LEAF, ISSUING].map(|der| CertificateDer::from(der.to_vec()));
    let key = "-----BEGIN PRIVATE KEY-----\nAAEC\n-----END PRIVATE KEY-----\n";
    vec![
        armour::write_chain(&chain).into_bytes(),
        armour::write_chain(&[CertificateDer::from(vec![1, 2, 3])]).into_bytes(),
        armour::write_crls(&LISTS).into_bytes(),
        key.as_bytes().to_vec(),
    ]
}

fn bundle(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(bundle) = FederationBundle::from_toml(text) else { return };
    let keys = bundle.governance_keys();
    assert!((1..=keys.len()).contains(&bundle.governance_threshold()) && keys.len() <= 32);
    let again = FederationBundle::from_toml(&bundle.to_toml().unwrap()).expect("a bundle is not read again");
    assert!(again.governance_keys() == keys && again.directory_vkey() == bundle.directory_vkey());
    assert!(again.federation() == bundle.federation());
    assert!(again.anchors().root_der() == bundle.anchors().root_der());
    // What a party starts with.
    let _ = chancery_directory_core::Trust::from_bundle(&bundle);
}

fn bundle_seeds() -> Vec<Vec<u8>> {
    vec![BUNDLE_FILE.to_vec()]
}
