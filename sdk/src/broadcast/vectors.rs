//! The vectors of docs/vectors/broadcast.json, which `interop-tests/foreign/broadcast.py`
//! computes from the words of docs/protocol.md alone.

use super::chain::Chain;
use super::{ContentKey, blob};
use chancery_directory_core::channel::{self, SignedChannel};
use chancery_directory_core::channels;
use chancery_directory_core::manifest::SignedManifest;
use chancery_directory_core::{AgentKey, SigningKey};
use chancery_proto::directory::v1 as wire;
use serde_json::Value;

struct Vectors(Value);

impl Vectors {
    fn bytes(&self, path: &str) -> Vec<u8> {
        hex::decode(self.0.pointer(path).and_then(Value::as_str).unwrap()).unwrap()
    }

    fn array<const N: usize>(&self, path: &str) -> [u8; N] {
        self.bytes(path).try_into().unwrap()
    }
}

#[test]
fn the_published_vectors_hold() {
    let vectors =
        Vectors(serde_json::from_str(include_str!("../../../docs/vectors/broadcast.json")).unwrap());
    let agent = SigningKey::from_bytes(&vectors.array("/agent/seed"));
    let channel = wire::SignedChannel {
        channel: vectors.bytes("/channel/bytes").into(),
        signature: vectors.bytes("/channel/signature").into(),
    };
    let channel = SignedChannel::try_from(channel).unwrap();
    let said = channel.channel();
    assert!(channel.is_signed_by(&AgentKey::from(&agent)));
    assert_eq!(said.sign(&agent).signature, channel.wire().signature, "we encode it alike");
    assert_eq!(channel::place(&said.id), vectors.array("/channel/place"));

    let epoch = vectors.0.pointer("/epoch").and_then(Value::as_u64).unwrap();
    let mut chain = Chain::new(epoch, 1, vectors.array("/k0"));
    let broadcasts = vectors.0.pointer("/broadcasts").and_then(Value::as_array).unwrap();
    assert_eq!(broadcasts.len(), 3);
    let mut previous = [0; 32];
    for (nth, _) in broadcasts.iter().enumerate() {
        let path = |name: &str| format!("/broadcasts/{nth}/{name}");
        let content_key = ContentKey::from_bytes(vectors.array(&path("content_key")));
        let manifest = wire::SignedManifest {
            manifest: vectors.bytes(&path("manifest")).into(),
            signature: vectors.bytes(&path("signature")).into(),
        };
        let manifest = SignedManifest::try_from(manifest).unwrap();
        let said = manifest.manifest();
        assert!(manifest.is_signed_by(&AgentKey::from(&agent)));
        assert_eq!(said.sign(&agent).signature, manifest.wire().signature, "we encode it alike");
        assert_eq!(said.previous_hash, previous);
        previous = manifest.hash();
        assert_eq!(previous, vectors.array(&path("hash")));
        assert_eq!(content_key.commitment(), vectors.array(&path("key_commitment")));

        let content = vectors.bytes(&path("content"));
        let sealed = blob::seal(&content, &content_key, &said.channel, said.sequence).unwrap();
        assert_eq!(sealed.id, said.blob);
        assert_eq!(blob::open(sealed.bytes, &content_key, said), Ok(content));

        assert_eq!(*chain.key(), vectors.array(&path("chain_key")));
        let wrap = chain.take(&manifest).unwrap().wrap(&content_key).unwrap();
        assert_eq!(wrap, vectors.array(&path("wrap")));
        let head = wire::ChannelHead {
            channel: Some(channel.wire().clone()),
            sequence: said.sequence,
            manifest_hash: previous.to_vec().into(),
        };
        assert_eq!(channels::commitment(&head), vectors.array(&path("head_commitment")));
    }
}
