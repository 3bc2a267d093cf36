//! Records: as handed in, sealed to the directory, and the part of them that only
//! senders open.

use crate::Target;
use crate::input::message;
use crate::world::{NOW, Owner, WORLD, attestation};
use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use chancery_directory_core::Address;
use chancery_directory_core::client::read_publication;
use chancery_directory_core::operation::{MAX_SEALED_OPERATION, OperationKey};
use chancery_directory_core::record::{MAX_RECORD, RecordDraft, SignedRecord};
use chancery_directory_core::sealed::MAX_SEALED;
use chancery_proto::directory::v1 as wire;
use chancery_types::entropy::SeededEntropy;
use prost::Message as _;
use std::sync::LazyLock;
use std::time::Duration;

/// A record.
pub(crate) const RECORD: Target = Target { name: "record", run: record, seeds: record_seeds };
/// A sealed part; with an odd first byte the rest is what the owner seals.
pub(crate) const SEALED_PART: Target =
    Target { name: "sealed_part", run: sealed_part, seeds: sealed_part_seeds };
/// A sealed record operation, or the opened answer to one.
pub(crate) const OPERATION: Target =
    Target { name: "record_operation", run: operation, seeds: operation_seeds };

static OWNER: LazyLock<Owner> = LazyLock::new(|| Owner::new(1, [1, 2, 3, 4]));

fn record(bytes: &[u8]) {
    let Some(signed) = message::<wire::SignedRecord>(bytes) else { return };
    let Ok(record) = SignedRecord::try_from(signed.clone()) else { return };
    assert!(*record.wire() == signed && signed.record.len() <= MAX_RECORD && record.version() > 0);
    assert!(
        record.sealed_part().len() <= MAX_SEALED && record.is_closed() == record.sealed_part().is_empty()
    );
    let words = [Some(record.attestation()), record.second_attestation()];
    for word in words.into_iter().flatten() {
        let claim = word.claim();
        assert!((&claim.handle, &claim.account_key) == (record.handle(), record.account_key()));
        let _ = word.verify(&WORLD.state, NOW).and_then(|word| word.current(NOW));
    }
}

/// Records of one owner: a first one, one with two words, a closed one.
pub(crate) fn records(owner: &Owner) -> [wire::SignedRecord; 3] {
    let entropy = SeededEntropy::new(3);
    let word = |authority| attestation(authority, owner, NOW.before(Duration::from_mins(1)));
    let draft = RecordDraft {
        handle: owner.handle,
        version: 2,
        previous_index: Some(7),
        attestation: word(0),
        second_attestation: Some(word(1)),
        sealed_part: owner.address().seal(&owner.record_key, &owner.handle, 2, &entropy).unwrap(),
        two_authorities: true,
        changed_at: NOW,
    };
    let closed = RecordDraft { sealed_part: Default::default(), second_attestation: None, ..draft.clone() };
    [owner.record(), draft.sign(&owner.account), closed.sign(&owner.account)]
}

fn record_seeds() -> Vec<Vec<u8>> {
    records(&OWNER).iter().map(wire::SignedRecord::encode_to_vec).collect()
}

fn sealed_part(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let (owner, version) = (&*OWNER, 1_u64);
    let open = |sealed: &[u8], version| Address::open(sealed, &owner.record_key, &owner.handle, version);
    if mode & 1 == 0 {
        let opened = open(bytes, version);
        assert!(opened.is_err() || bytes == owner_part(), "the owner never sealed this");
        return;
    }
    let aad = [owner.handle.as_bytes().as_slice(), &version.to_be_bytes()].concat();
    let cipher = Aes256Gcm::new(owner.record_key.as_bytes().into());
    let ciphertext = cipher.encrypt(&[0; 12].into(), Payload { msg: bytes, aad: &aad }).unwrap();
    let sealed = [[0; 12].as_slice(), &ciphertext].concat();
    assert!(open(&sealed, version + 1).is_err(), "a part opens for another version");
    let Ok(address) = open(&sealed, version) else { return };
    assert!(sealed.len() <= MAX_SEALED && bytes.len().is_multiple_of(128));
    let again = address.seal(&owner.record_key, &owner.handle, version, &SeededEntropy::new(4)).unwrap();
    assert!(open(&again, version) == Ok(address), "an address changes by sealing");
}

fn owner_part() -> &'static [u8] {
    static PART: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let record = SignedRecord::try_from(OWNER.record()).unwrap();
        record.sealed_part().to_vec()
    });
    &PART
}

fn sealed_part_seeds() -> Vec<Vec<u8>> {
    let address = OWNER.address();
    let mut part = wire::SealedPart {
        node: address.node.to_string(),
        alias: address.alias.to_wire(),
        credential_key: address.credential_key.to_wire(),
        padding: Default::default(),
    };
    part.padding = vec![0; 128 - 2 - part.encoded_len()].into();
    vec![[&[0], owner_part()].concat(), [&[1], part.encode_to_vec().as_slice()].concat()]
}

fn operation(bytes: &[u8]) {
    static KEY: LazyLock<OperationKey> = LazyLock::new(|| OperationKey::from_seed(&[3; 32]).unwrap());
    if let Some(result) = message::<wire::RecordOperationResult>(bytes)
        && let Err(refusal) = read_publication(result)
    {
        assert!(refusal.message.chars().count() <= 500, "a refusal of any length");
    }
    let Some(request) = message::<wire::PublishRequest>(bytes) else { return };
    let Ok(opened) = KEY.open(&request) else { return };
    assert!(request.ciphertext.len() <= MAX_SEALED_OPERATION);
    let genuine = opened.record.is_ok_and(|record| *record.wire() == OWNER.record());
    assert!(genuine, "a sealed operation changed on its way");
}

fn operation_seeds() -> Vec<Vec<u8>> {
    use wire::record_operation_result::Result as Outcome;
    let logged = Outcome::Logged(wire::LoggedOperation { index: 7, pending: true });
    let refusal = wire::RecordRefusal { reason: "RECORD_CHANGE_LIMIT".to_owned(), message: "no".to_owned() };
    let result = |outcome| wire::RecordOperationResult { result: Some(outcome), padding: vec![0; 9].into() };
    vec![
        // HPKE draws from the system, so it is kept.
        include_bytes!("../fixtures/record_operation").to_vec(),
        result(logged).encode_to_vec(),
        result(Outcome::Refusal(refusal)).encode_to_vec(),
    ]
}
