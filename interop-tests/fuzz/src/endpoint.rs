//! Credentials of devices, as leaves of a group present them.

use crate::Target;
use crate::input::message;
use crate::world::{NOW, key};
use chancery_proto::content::v1 as wire;
use chancery_sdk::credential::{PresentedDevice, sign};
use chancery_types::{Alias, DeviceId};
use ed25519_dalek::Signer as _;
use prost::Message as _;
use std::sync::LazyLock;

/// A credential; with an odd first byte the rest is one that its account signs.
pub(crate) const CREDENTIAL: Target = Target { name: "device_credential", run: credential, seeds };

const LEAF: [u8; 32] = [4; 32];

fn credential(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let (signer, own) = (key(80), mode & 1 == 1);
    let presented = if own {
        let signed = [b"chancery device credential v1\0".as_slice(), bytes].concat();
        let signature = signer.sign(&signed).to_bytes().to_vec();
        let signed =
            wire::SignedDeviceCredential { credential: bytes.to_vec().into(), signature: signature.into() };
        signed.encode_to_vec()
    } else {
        let _ = message::<wire::SignedDeviceCredential>(bytes);
        bytes.to_vec()
    };
    let Ok(device) = PresentedDevice::parse(&presented) else { return };
    let (alias, id, agent) = (device.alias(), device.device(), device.agent().cloned());
    let Ok(verified) = device.verify(signer.verifying_key().as_bytes(), &LEAF, NOW) else { return };
    assert!((verified.alias(), verified.device(), verified.agent()) == (alias, id, agent.as_ref()));
    assert!(*verified.leaf_key() == LEAF);
    let stranger = key(81);
    let again = PresentedDevice::parse(&presented).unwrap();
    assert!(again.verify(stranger.verifying_key().as_bytes(), &LEAF, NOW).is_err(), "another key signed it");
    if !own {
        let genuine = SEEDS.iter().any(|seed| {
            let seed = PresentedDevice::parse(&seed[1..]).ok();
            seed.is_some_and(|seed| {
                (seed.alias(), seed.device(), seed.agent()) == (alias, id, agent.as_ref())
            })
        });
        assert!(genuine, "nobody signed this credential");
    }
}

static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds);

fn seeds() -> Vec<Vec<u8>> {
    let agents = [None, Some("spiffe://mesh.example/agent/federal/letters")];
    let (alias, device) = (Alias::from_bytes([2; 16]), DeviceId::from_bytes([3; 16]));
    agents
        .into_iter()
        .flat_map(|agent| {
            let signed = sign(&key(80), alias, device, &LEAF, agent, NOW);
            let content = wire::SignedDeviceCredential::decode(signed.as_slice()).unwrap().credential;
            [[&[0], signed.as_slice()].concat(), [&[1], &*content].concat()]
        })
        .collect()
}
