//! Requests that count and those that do not; what CAs refuse to issue.

use super::*;
use chancery_types::SystemEntropy;

fn csr_of(alg: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    let key = KeyPair::generate_for(alg).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

#[test]
fn csrs_of_permitted_keys_pass() {
    for alg in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(alg).unwrap();
        let csr = csr_for(&key.serialize_pem()).unwrap();
        let pin: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
        assert_eq!(CheckedCsr::check(&csr).unwrap().key_pin(), &pin);
    }
}

#[test]
fn csrs_of_other_keys_are_refused() {
    for alg in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256] {
        assert!(matches!(CheckedCsr::check(&csr_of(alg)), Err(ProfileError::CsrKey)));
    }
}

#[test]
fn csrs_must_prove_possession() {
    let (_, good) = new_key_and_csr().unwrap();
    let (_, other) = new_key_and_csr().unwrap();
    let spki = |der: &[u8]| {
        let (_, csr) = X509CertificationRequest::from_der(der).unwrap();
        csr.certification_request_info.subject_pki.raw.to_vec()
    };
    // Somebody else's key under our own signature.
    let (ours, theirs) = (spki(&good), spki(&other));
    let at = good.windows(ours.len()).position(|w| w == ours).unwrap();
    let mut forged = good;
    forged[at..at + ours.len()].copy_from_slice(&theirs);
    assert!(matches!(CheckedCsr::check(&forged), Err(ProfileError::CsrSignature)));
}

#[test]
fn csrs_that_are_none_are_refused() {
    let (_, good) = new_key_and_csr().unwrap();
    for bad in [Vec::new(), vec![0; 64], good[..good.len() - 1].to_vec(), [good.as_slice(), b"x"].concat()] {
        assert!(matches!(CheckedCsr::check(&bad), Err(ProfileError::CsrMalformed)));
    }
    assert!(matches!(CheckedCsr::check(&vec![0x30; MAX_CSR + 1]), Err(ProfileError::CsrTooLarge)));
}

#[test]
fn names_are_dns_names_or_addresses() {
    let names = LeafNames::parse(&["node.example", "127.0.0.1", "::1"]).unwrap();
    assert_eq!(names.to_strings(), ["node.example", "127.0.0.1", "::1"]);
    for bad in ["", "*.example", "a b", "spiffe://x/y", "ä.example"] {
        assert!(LeafNames::parse(&[bad]).is_err(), "{bad}");
    }
    assert!(LeafNames::parse(&["a"; MAX_NAMES + 1]).is_err());
}

#[test]
fn a_leaf_never_outlives_its_ca() {
    let now = Timestamp::from_millis(1_700_000_000_000);
    let day = Validity::starting(now, Duration::from_secs(86_400));
    let root = Ca::new_root(&"f.example".parse().unwrap(), &Serial::random(&SystemEntropy), day).unwrap();
    let week = Validity::starting(now, Duration::from_secs(7 * 86_400));
    let issuing = root.issue_ca(None, &Serial::random(&SystemEntropy), week).unwrap();
    assert_eq!(issuing.not_after(), day.not_after);
    let again = Ca::load(&"f.example".parse().unwrap(), issuing.certificate(), &issuing.key_pem()).unwrap();
    assert_eq!(again.not_after(), day.not_after);
    let mixed = Ca::load(&"f.example".parse().unwrap(), issuing.certificate(), &root.key_pem());
    assert!(matches!(mixed, Err(ProfileError::KeyMismatch)));
}

#[test]
fn serials_are_positive() {
    for _ in 0..64 {
        assert!((0x40..0x80).contains(&Serial::random(&SystemEntropy).as_bytes()[0]));
    }
}
