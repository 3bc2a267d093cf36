//! Each way a chain can fail, on chains made for it.

use super::*;
use crate::profile::{Ca, CheckedCsr, LeafNames, Serial, Validity, new_key_and_csr};
use chancery_types::SystemEntropy;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
const DAY: Duration = Duration::from_secs(86_400);

fn serial() -> Serial {
    Serial::random(&SystemEntropy)
}

fn federation() -> Federation {
    "chancery.example".parse().unwrap()
}

fn node() -> Party {
    Party::Node("federal".parse().unwrap())
}

struct World {
    root: Ca,
    issuing: Ca,
    anchors: TrustAnchors,
}

impl World {
    fn new() -> Self {
        Self::of(&federation())
    }

    fn of(federation: &Federation) -> Self {
        let root = Ca::new_root(federation, &serial(), Validity::starting(NOW, DAY * 100)).unwrap();
        let issuing = root.issue_ca(None, &serial(), Validity::starting(NOW, DAY * 10)).unwrap();
        let anchors = TrustAnchors::new(federation.clone(), root.certificate()).unwrap();
        Self { root, issuing, anchors }
    }

    fn leaf(&self, serial: &Serial) -> Vec<CertificateDer<'static>> {
        let (_, csr) = new_key_and_csr().unwrap();
        let csr = CheckedCsr::check(&csr).unwrap();
        let names = LeafNames::parse(&["localhost", "127.0.0.1"]).unwrap();
        let life = Validity::starting(NOW, DAY);
        let leaf = self.issuing.issue_leaf(&csr, &node(), &names, serial, life).unwrap();
        vec![leaf, self.issuing.certificate().clone()]
    }

    fn crls(&self, by_root: &[Serial], by_issuing: &[Serial]) -> Crls {
        let list = |ca: &Ca, serials: &[Serial]| {
            let revoked: Vec<_> = serials.iter().map(|serial| (*serial, NOW)).collect();
            ca.issue_crl(1, Validity { not_before: NOW, not_after: NOW.after(DAY) }, &revoked).unwrap()
        };
        Crls::parse(&[list(&self.root, by_root), list(&self.issuing, by_issuing)]).unwrap()
    }

    /// A leaf of our issuing CA made by hand, to break its rules.
    fn odd(&self, change: impl FnOnce(&mut CertificateParams)) -> Result<VerifiedPeer, ChainError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = OffsetDateTime::from_unix_timestamp(NOW.seconds()).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(NOW.after(DAY).seconds()).unwrap();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![uri("spiffe://chancery.example/node/federal")];
        change(&mut params);
        let key = KeyPair::from_pem(&self.issuing.key_pem()).unwrap();
        let issuer = Issuer::from_ca_cert_der(self.issuing.certificate(), key).unwrap();
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        self.check(&[leaf.into(), self.issuing.certificate().clone()])
    }

    fn check(&self, chain: &[CertificateDer<'_>]) -> Result<VerifiedPeer, ChainError> {
        verify(chain, &self.anchors, &Crls::default(), NOW, Usage::Client)
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn a_good_chain_names_its_party() {
    let world = World::new();
    let serial = serial();
    let chain = world.leaf(&serial);
    for usage in [Usage::Server, Usage::Client] {
        for crls in [Crls::default(), world.crls(&[], &[])] {
            let peer = verify(&chain, &world.anchors, &crls, NOW, usage).unwrap();
            assert_eq!(peer.id().to_string(), "spiffe://chancery.example/node/federal");
            assert_eq!(peer.party(), &node());
            assert_eq!(peer.serial(), serial.as_bytes());
            assert_eq!(peer.not_after(), NOW.after(DAY));
            let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
            assert_eq!(peer.key_pin(), &<[u8; 32]>::from(Sha256::digest(leaf.public_key().raw)));
            assert_eq!(peer.clone().expect(&Party::Pki), Err(ChainError::WrongParty));
            assert!(peer.expect(&node()).is_ok());
        }
    }
    assert!(world.odd(|_| {}).is_ok(), "the base of the broken ones is good");
}

#[test]
fn time_is_checked() {
    let world = World::new();
    let chain = world.leaf(&serial());
    let at = |now| verify(&chain, &world.anchors, &Crls::default(), now, Usage::Server);
    assert_eq!(at(NOW.after(DAY * 2)), Err(ChainError::Expired));
    assert_eq!(at(NOW.before(DAY)), Err(ChainError::NotYetValid));
    assert_eq!(at(Timestamp::from_millis(-1)), Err(ChainError::NotYetValid));
}

#[test]
fn an_expired_issuing_ca_is_refused() {
    let mut world = World::new();
    world.issuing = world
        .root
        .issue_ca(None, &serial(), Validity { not_before: NOW.before(DAY), not_after: NOW.before(DAY / 2) })
        .unwrap();
    // The authority never issues past its CA's end: so this leaf is made by hand.
    assert_eq!(world.odd(|_| {}), Err(ChainError::Expired));
}

#[test]
fn revoked_certificates_are_refused() {
    let world = World::new();
    let serial = serial();
    let chain = world.leaf(&serial);
    let check = |crls: Crls| verify(&chain, &world.anchors, &crls, NOW, Usage::Server).map(|_| ());
    assert_eq!(check(world.crls(&[], &[serial])), Err(ChainError::Revoked));
    // Another's revocation is not ours, nor is the root's list the issuing CA's.
    assert_eq!(check(world.crls(&[serial], &[Serial::random(&SystemEntropy)])), Ok(()));
}

#[test]
fn a_revoked_issuing_ca_is_refused() {
    let mut world = World::new();
    let ca = serial();
    world.issuing = world.root.issue_ca(None, &ca, Validity::starting(NOW, DAY * 10)).unwrap();
    let chain = world.leaf(&serial());
    let result = verify(&chain, &world.anchors, &world.crls(&[ca], &[]), NOW, Usage::Server);
    assert_eq!(result, Err(ChainError::Revoked));
}

#[test]
fn lists_must_be_there_in_force_and_signed() {
    let world = World::new();
    let chain = world.leaf(&serial());
    let check = |lists: &[Vec<u8>], now| {
        verify(&chain, &world.anchors, &Crls::parse(lists).unwrap(), now, Usage::Server).map(|_| ())
    };
    let day = Validity { not_before: NOW, not_after: NOW.after(DAY) };
    let hour = Validity { not_before: NOW, not_after: NOW.after(DAY / 24) };
    let root = world.root.issue_crl(1, day, &[]).unwrap();
    let issuing = world.issuing.issue_crl(1, hour, &[]).unwrap();
    assert_eq!(check(&[root.clone(), issuing.clone()], NOW), Ok(()));
    assert_eq!(check(&[root.clone(), issuing.clone()], NOW.after(DAY / 2)), Err(ChainError::StaleCrl));
    assert_eq!(check(std::slice::from_ref(&root), NOW), Err(ChainError::UnknownRevocation));
    assert_eq!(check(std::slice::from_ref(&issuing), NOW), Err(ChainError::UnknownRevocation));
    let mut forged = issuing;
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(check(&[root, forged], NOW), Err(ChainError::UnknownRevocation));
    assert!(matches!(Crls::parse(&[b"no list"]), Err(ChainError::MalformedCrl)));
    assert!(matches!(Crls::parse(&[vec![0; MAX_CRL_BYTES + 1]]), Err(ChainError::MalformedCrl)));
}

#[test]
fn foreign_chains_are_refused() {
    let (world, other) = (World::new(), World::of(&"other.example".parse().unwrap()));
    let chain = world.leaf(&serial());
    let by_other = |now| verify(&chain, &other.anchors, &Crls::default(), now, Usage::Server);
    assert_eq!(by_other(NOW), Err(ChainError::UnknownIssuer));
    assert_eq!(world.check(&chain[..1]), Err(ChainError::UnknownIssuer), "the issuing CA is missing");
    // Our root, but told that it were another federation's.
    let anchors = TrustAnchors::new("other.example".parse().unwrap(), world.root.certificate()).unwrap();
    let result = verify(&chain, &anchors, &Crls::default(), NOW, Usage::Server);
    assert_eq!(result, Err(ChainError::BadAuthority));
    assert_eq!(
        world.odd(|p| p.subject_alt_names = vec![uri("spiffe://other.example/node/federal")]),
        Err(ChainError::WrongFederation)
    );
}

#[test]
fn leaves_must_be_of_the_profile() {
    let world = World::new();
    let good = "spiffe://chancery.example/node/federal";
    let names = |names: Vec<SanType>| world.odd(|p| p.subject_alt_names = names);
    for (wrong, error) in [
        (vec![], ChainError::BadSpiffeId),
        (vec![SanType::DnsName("federal.example".try_into().unwrap())], ChainError::BadSpiffeId),
        (vec![uri(good), uri("spiffe://chancery.example/node/regional")], ChainError::BadSpiffeId),
        (vec![uri(good), uri("https://federal.example/")], ChainError::BadSpiffeId),
        (vec![uri("spiffe://chancery.example")], ChainError::BadSpiffeId),
        (vec![uri("spiffe://chancery.example/unknown/x")], ChainError::BadSpiffeId),
        (vec![uri("spiffe://chancery.example/node/federal/")], ChainError::BadSpiffeId),
        (vec![uri("https://chancery.example/node/federal")], ChainError::BadSpiffeId),
    ] {
        assert_eq!(names(wrong.clone()), Err(error), "{wrong:?}");
    }
    type Change = fn(&mut CertificateParams);
    let changes: [Change; 5] = [
        |p| p.key_usages.clear(),
        |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement],
        |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert_eq!(world.odd(change), Err(ChainError::BadProfile), "{index}");
    }
}

#[test]
fn a_leaf_issues_nothing() {
    let world = World::new();
    let key = KeyPair::generate().unwrap();
    let (_, csr) = new_key_and_csr().unwrap();
    let own = crate::profile::csr_for(&key.serialize_pem()).unwrap();
    let life = Validity::starting(NOW, DAY);
    let leaf = |csr: &[u8], party: &Party, ca: &Ca| {
        ca.issue_leaf(&CheckedCsr::check(csr).unwrap(), party, &LeafNames::default(), &serial(), life)
            .unwrap()
    };
    let mallory = leaf(&own, &node(), &world.issuing);
    let as_ca = Ca::load(&federation(), &mallory, &key.serialize_pem()).unwrap();
    let forged = leaf(&csr, &Party::Directory, &as_ca);
    let result = world.check(&[forged, mallory, world.issuing.certificate().clone()]);
    assert_eq!(result, Err(ChainError::BadAuthority));
    // Nor does the issuing CA make further CAs: path length 0.
    let second = world.issuing.issue_ca(None, &serial(), life).unwrap();
    let deep = leaf(&csr, &Party::Directory, &second);
    let chain = [deep, second.certificate().clone(), world.issuing.certificate().clone()];
    assert_eq!(world.check(&chain), Err(ChainError::BadAuthority));
}

#[test]
fn rubbish_is_refused() {
    let world = World::new();
    let chain = world.leaf(&serial());
    assert_eq!(world.check(&[]), Err(ChainError::Empty));
    assert_eq!(world.check(&vec![chain[0].clone(); MAX_CHAIN + 1]), Err(ChainError::TooLong));
    assert_eq!(world.check(&[vec![0; MAX_CERTIFICATE + 1].into()]), Err(ChainError::TooLong));
    assert_eq!(world.check(&[vec![0; 100].into()]), Err(ChainError::Malformed));
    let mut changed = chain[0].to_vec();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(world.check(&[changed.into(), chain[1].clone()]), Err(ChainError::BadSignature));
    assert!(matches!(TrustAnchors::new(federation(), b"no certificate"), Err(ChainError::Malformed)));
}
