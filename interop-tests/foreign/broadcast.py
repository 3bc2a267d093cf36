"""Computes docs/vectors/broadcast.json from the words of docs/protocol.md alone, without
Chancery's code. Without arguments it checks the file; with `--write` it writes it.
"""

import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

VECTORS = Path(__file__).resolve().parents[2] / "docs" / "vectors" / "broadcast.json"
CHANNEL_ID = bytes(range(16))
EPOCH = 5
NONE = bytes(32)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def u64(number):
    return struct.pack(">Q", number)


def varint(number):
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def field(number, value):
    """A protobuf field, left out where it is the default (proto3)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value) if value else b""
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value if value else b""


def expand(key, info):
    """HKDF-Expand with SHA-256 to 32 bytes (RFC 5869 §2.3)."""
    return hmac.digest(key, info + b"\x01", "sha256")


def sign(key, context, message):
    return key.sign(context + b"\x00" + message)


def channel():
    text = field(1, "News") + field(2, "What is new")
    texts = field(1, "en") + field(2, text)
    return b"".join([
        field(1, "mesh.example"),
        field(2, CHANNEL_ID),
        field(3, 1),
        field(4, "federal"),
        field(5, "post"),
        field(6, texts),
        field(7, 1),
        field(8, 1),
        field(9, "mailto:news@federal.example"),
        field(10, 0x4F),
        field(11, 256),
        field(13, 3),
        field(14, bytes([4]) * 16),
    ])


def manifest(sequence, previous, blob, key_commitment):
    return b"".join([
        field(1, CHANNEL_ID),
        field(2, sequence),
        # 32 zeroes are no default: the field is there.
        field(3, previous),
        field(4, sha256(blob)),
        field(5, len(blob)),
        field(6, key_commitment),
        field(7, 1),
        field(8, 1),
        field(9, 1_790_000_000_000 + sequence),
        field(10, 1_790_600_000_000),
        field(11, 1) if sequence == 3 else b"",
    ])


def seal(content, content_key, sequence):
    plain = struct.pack(">I", len(content)) + content
    plain += bytes(-len(plain) % 1024)
    return AESGCM(content_key).encrypt(bytes(12), plain, CHANNEL_ID + u64(sequence))


def compute():
    seed = sha256(b"agent")
    agent = Ed25519PrivateKey.from_private_bytes(seed)
    published = channel()
    key = k0 = sha256(b"K0")
    previous, broadcasts = NONE, []
    for sequence, content in enumerate([b"first", b"second" * 300, b"in place of the first"], 1):
        content_key = sha256(b"content key", u64(sequence))
        commitment = sha256(b"chancery content key", content_key)
        signed = manifest(sequence, previous, seal(content, content_key, sequence), commitment)
        digest = sha256(b"chancery manifest", signed)
        wrap_key = expand(key, b"chancery broadcast wrap" + digest)
        data = CHANNEL_ID + u64(sequence) + u64(EPOCH)
        broadcasts.append({
            "content": content,
            "content_key": content_key,
            "key_commitment": commitment,
            "manifest": signed,
            "signature": sign(agent, b"chancery manifest v1", signed),
            "hash": digest,
            "chain_key": key,
            "wrap": u64(EPOCH) + AESGCM(wrap_key).encrypt(bytes(12), content_key, data),
            "head_commitment": sha256(b"chancery channel head", sha256(published), u64(sequence), digest),
        })
        key, previous = expand(key, b"chancery broadcast next"), digest
    return {
        "agent": {"seed": seed, "key": agent.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)},
        "channel": {
            "bytes": published,
            "signature": sign(agent, b"chancery channel v1", published),
            "place": sha256(b"chancery channel", CHANNEL_ID)[:4],
        },
        "epoch": EPOCH,
        "k0": k0,
        "broadcasts": broadcasts,
    }


def main():
    text = json.dumps(compute(), indent=2, default=bytes.hex) + "\n"
    if sys.argv[1:] == ["--write"]:
        VECTORS.write_text(text)
    elif VECTORS.read_text() != text:
        sys.exit(f"{VECTORS} is not what docs/protocol.md says")
    print(f"{text.count(chr(34) + ': ' + chr(34))} values agree")


main()
