//! Writes `fixtures/` anew: values that no seed makes again, because the libraries that make
//! them draw from the system. The corpora of the targets that use them go with them.

use crate::pki::FEDERATION;
use crate::world::{self, NOW, Owner, ceremony, evaluators, key, plan, secrets};
use chancery_directory_core::ceremony::transcript::{Dealings, Outcome};
use chancery_directory_core::ceremony::{Joins, conclusion, party};
use chancery_directory_core::note::{CheckpointSigner, origin};
use chancery_directory_core::operation::{self, OperationKey};
use chancery_directory_core::{GovernanceKey, GovernanceKeys};
use chancery_pki_core::profile::{Ca, csr_for, new_key_and_csr};
use chancery_pki_core::{
    CheckedCsr, Federation, FederationBundle, LeafNames, Party, Serial, TrustAnchors, Validity,
};
use chancery_proto::directory::v1 as wire;
use chancery_types::entropy::SeededEntropy;
use openmls::prelude::{
    BasicCredential, Ciphersuite, CredentialWithKey, KeyPackage, MlsMessageOut, SignatureScheme,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use prost::Message as _;
use std::path::Path;
use std::time::Duration;

const YEARS: Duration = Duration::from_hours(10 * 365 * 24);

fn write(name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    std::fs::write(folder.join(name), bytes).unwrap();
}

#[test]
#[ignore = "writes the fixtures anew"]
fn ceremony_and_operation() {
    let (governor, keys, entropy) = (key(1), evaluators(), SeededEntropy::new(51));
    let plan = plan(&governor, &keys);
    let governance = GovernanceKeys::new(vec![GovernanceKey::from(&governor)], 1).unwrap();
    let (ceremony, secrets) = (ceremony(&plan, &governance), secrets());
    let said = |say: &dyn Fn(u32, usize) -> wire::SignedCeremonyMessage| {
        (1..).zip(0..keys.len()).map(|(index, at)| say(index, at)).collect::<Vec<_>>()
    };
    let joins = said(&|index, at| party::join(&ceremony, index, &secrets[at], &keys[at]).unwrap());
    let joined = Joins::verify(&ceremony, &joins).unwrap();
    let dealings =
        said(&|index, at| party::deal(&ceremony, index, None, &joined, &keys[at], &entropy).unwrap());
    let dealt = Dealings::verify(&ceremony, &joined, &dealings).unwrap();
    let verdicts =
        said(&|index, at| party::judge(&ceremony, index, &secrets[at], &joined, &dealt, &keys[at]).unwrap());
    let id = ceremony.id().to_vec().into();
    let transcript = wire::CeremonyTranscript { ceremony: id, joins, dealings, verdicts };
    let result = Outcome::of(&ceremony, &transcript).unwrap().result();
    let conclusions = (1..).zip(&keys).map(|(index, key)| conclusion::sign(&result, index, key)).collect();
    let concluded =
        wire::ConcludedCeremony { plan: Some(plan), transcript: Some(transcript), result, conclusions };
    write("ceremony", &concluded.encode_to_vec());

    let directory = OperationKey::from_seed(&[3; 32]).unwrap();
    let (request, _) = operation::seal(Owner::new(1, [1, 2, 3, 4]).record(), directory.public()).unwrap();
    write("record_operation", &request.encode_to_vec());
}

#[test]
#[ignore = "writes the fixtures anew"]
fn certificates() {
    let federation: Federation = FEDERATION.parse().unwrap();
    let entropy = SeededEntropy::new(52);
    let (serial, life) = (|| Serial::random(&entropy), Validity::starting(NOW, YEARS));
    let root = Ca::new_root(&federation, &serial(), life).unwrap();
    let issuing = root.issue_ca(None, &serial(), life).unwrap();
    let (_, request) = new_key_and_csr().unwrap();
    let names = LeafNames::parse(&["node.example", "127.0.0.1"]).unwrap();
    let csr = CheckedCsr::check(&request).unwrap();
    let leaf_serial = serial();
    let leaf =
        issuing.issue_leaf(&csr, &Party::Node(world::name("federal")), &names, &leaf_serial, life).unwrap();
    write("root_ca", root.certificate());
    write("issuing_ca", issuing.certificate());
    write("leaf", &leaf);
    let other = serial();
    write("root_list", &root.issue_crl(1, life, &[(other, NOW)]).unwrap());
    write("issuing_list", &issuing.issue_crl(1, life, &[(other, NOW)]).unwrap());
    write("revoking_list", &issuing.issue_crl(2, life, &[(leaf_serial, NOW)]).unwrap());
    write("request_p256", &request);
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    write("request_ed25519", &csr_for(&ed25519.serialize_pem()).unwrap());

    let anchors = TrustAnchors::new(federation, root.certificate()).unwrap();
    let governors = [1, 90].map(|number| key(number).verifying_key().to_bytes());
    let signer = CheckpointSigner::new(&origin(FEDERATION), key(2)).unwrap();
    let bundle = FederationBundle::new(anchors, governors.to_vec(), 2).unwrap();
    let bundle = bundle.with_directory(signer.vkey()).unwrap();
    write("bundle", bundle.to_toml().unwrap().as_bytes());
}

#[test]
#[ignore = "writes the fixtures anew"]
fn key_packages() {
    let provider = OpenMlsRustCrypto::default();
    for suite in [
        Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
        Ciphersuite::MLS_128_MLKEM768X25519_AES128GCM_SHA256_Ed25519,
    ] {
        let signer = SignatureKeyPair::new(SignatureScheme::ED25519).unwrap();
        let credential = BasicCredential::new(b"credential".to_vec()).into();
        let signature_key = signer.to_public_vec().into();
        let bundle = KeyPackage::builder()
            .build(suite, &provider, &signer, CredentialWithKey { credential, signature_key })
            .unwrap();
        let message = MlsMessageOut::from(bundle.into_key_package()).to_bytes().unwrap();
        write(&format!("key_package_{}", u16::from(suite)), &message);
    }
}
