//! What it would cost to reach a nation in other ways than with cells: a key for each device, as Matrix
//! does with Megolm, and MLS groups of 2,000 members. Prints one JSON object.
//!
//! ```sh
//! cargo run --release --manifest-path interop-tests/comparison/Cargo.toml
//! ```

mod helpers;

use openmls::prelude::tls_codec::Serialize as _;
use openmls::prelude::*;
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use serde_json::json;
use vodozemac::megolm::{GroupSession, InboundGroupSession};
use vodozemac::olm::{Account, OlmMessage};

/// The classical suite.
const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
/// Devices that get a Megolm session.
const DEVICES: usize = 10_000;
/// Members of one MLS group.
const MEMBERS: usize = 2_000;
/// Adds of one commit.
const AT_ONCE: usize = 250;
/// Messages, and removals, that are measured.
const MESSAGES: usize = 1_000;
const REMOVALS: usize = 10;
/// Bytes of what is broadcast.
const CONTENT: usize = 4_096;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let (megolm, large_group, helpers) = (megolm()?, large_group()?, helpers::measure()?);
    let measured = json!({
        "bench": "comparison",
        "megolm": megolm,
        "large_group": large_group,
        "helpers": helpers,
    });
    println!("{measured}");
    Ok(())
}

/// Somebody who may be in a group.
struct Member {
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    own: CredentialWithKey,
}

impl Member {
    fn new(number: usize) -> Result<Self, Failure> {
        let signer = SignatureKeyPair::new(SUITE.signature_algorithm())?;
        let credential = BasicCredential::new(number.to_be_bytes().to_vec()).into();
        let signature_key = signer.to_public_vec().into();
        Ok(Self {
            provider: OpenMlsRustCrypto::default(),
            signer,
            own: CredentialWithKey { credential, signature_key },
        })
    }
}

/// CPU seconds that this process has used, in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// One new group session reaches devices that the sender has no Olm session with: each gets the session
/// key in an Olm message of its own, as `m.room_key` of the Matrix specification.
fn megolm() -> Result<serde_json::Value, Failure> {
    let sender = Account::new();
    let group = GroupSession::new(Default::default());
    let event = json!({
        "type": "m.room_key",
        "content": {
            "algorithm": "m.megolm.v1.aes-sha2",
            "room_id": "!broadcast:administration.example",
            "session_id": group.session_id(),
            "session_key": group.session_key().to_base64(),
        },
        "sender": "@letters:administration.example",
        "recipient": "@resident:region.example",
        "keys": { "ed25519": sender.ed25519_key().to_base64() },
        "recipient_keys": { "ed25519": sender.ed25519_key().to_base64() },
    })
    .to_string();
    let mut devices: Vec<Account> = (0..DEVICES).map(|_| Account::new()).collect();
    let (mut sending, mut receiving, mut bytes) = (0.0, 0.0, 0);
    for chunk in devices.chunks_mut(500) {
        let keys: Vec<_> = chunk
            .iter_mut()
            .map(|device| {
                device.generate_one_time_keys(1);
                let key = device.one_time_keys().into_values().next();
                device.mark_keys_as_published();
                key.map(|key| (device.curve25519_key(), key)).ok_or("a device has no key")
            })
            .collect::<Result<_, _>>()?;
        let before = cpu_seconds();
        let mut messages = Vec::with_capacity(chunk.len());
        for (identity, one_time) in keys {
            let mut session = sender.create_outbound_session(Default::default(), identity, one_time)?;
            messages.push(session.encrypt(event.as_bytes())?);
        }
        sending += cpu_seconds() - before;
        let before = cpu_seconds();
        for (device, message) in chunk.iter_mut().zip(messages) {
            let OlmMessage::PreKey(message) = message else { return Err("no pre-key message".into()) };
            bytes += message.to_base64().len();
            let received =
                device.create_inbound_session(Default::default(), sender.curve25519_key(), &message)?;
            if received.plaintext != event.as_bytes() {
                return Err("a device reads something else".into());
            }
            InboundGroupSession::new(&group.session_key(), Default::default());
        }
        receiving += cpu_seconds() - before;
    }
    let (each, devices) = (bytes as f64 / DEVICES as f64, DEVICES as f64);
    Ok(json!({
        "devices": DEVICES,
        "sender_cpu_us_per_device": sending * 1e6 / devices,
        "device_cpu_us": receiving * 1e6 / devices,
        "bytes_per_device": each,
        "sender_cpu_s_for_10_million": sending / devices * 1e7,
        "gib_for_10_million": each * 1e7 / f64::from(1 << 30),
    }))
}

/// A group in which one member writes, and others come and go.
fn large_group() -> Result<serde_json::Value, Failure> {
    let Member { provider, signer, own } = Member::new(0)?;
    let config = MlsGroupCreateConfig::builder()
        .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .ciphersuite(SUITE)
        .build();
    let mut group = MlsGroup::new(&provider, &signer, &config, own)?;
    for first in (1..MEMBERS).step_by(AT_ONCE) {
        let mut packages = Vec::new();
        for number in first..MEMBERS.min(first + AT_ONCE) {
            let member = Member::new(number)?;
            let made = KeyPackage::builder().build(SUITE, &provider, &member.signer, member.own)?;
            packages.push(made.key_package().clone());
        }
        group.add_members_without_update(&provider, &signer, &packages)?;
        group.merge_pending_commit(&provider)?;
    }
    let tree = group.export_ratchet_tree().tls_serialize_detached()?.len();
    let (before, mut message_bytes) = (cpu_seconds(), 0);
    for _ in 0..MESSAGES {
        message_bytes = group.create_message(&provider, &signer, &[7; CONTENT])?.to_bytes()?.len();
    }
    let messages = cpu_seconds() - before;
    let (before, mut commit_bytes) = (cpu_seconds(), 0);
    for number in 0..REMOVALS {
        let leaf = LeafNodeIndex::new(u32::try_from(MEMBERS / 2 + number)?);
        let (commit, ..) = group.remove_members(&provider, &signer, &[leaf])?;
        commit_bytes = commit.to_bytes()?.len();
        group.merge_pending_commit(&provider)?;
    }
    let removals = cpu_seconds() - before;
    let groups = 1e7 / MEMBERS as f64;
    let (message, removal) = (messages / MESSAGES as f64, removals / REMOVALS as f64);
    Ok(json!({
        "members": MEMBERS,
        "groups_for_10_million": groups,
        "tree_bytes": tree,
        "message_bytes": message_bytes,
        "message_cpu_ms": message * 1e3,
        "removal_bytes": commit_bytes,
        "removal_cpu_ms": removal * 1e3,
        "message_cpu_s_for_10_million": message * groups,
        "message_mib_for_10_million": message_bytes as f64 * groups / f64::from(1 << 20),
        "removal_bytes_per_resident_and_day":
            (1.0 - (-0.001 * MEMBERS as f64).exp()) * commit_bytes as f64,
    }))
}
