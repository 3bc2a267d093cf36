//! Changes an input as a stranger might, the same each time: for tests that have no fuzzer.

use chancery_types::Entropy;

/// Longest input made here, in bytes.
const MAX: usize = 8 * 1024;
/// What often matters.
const MAGIC: [u8; 12] = [0, 1, 0x0a, 0x12, 0x20, 0x2d, 0x3c, 0x7f, 0x80, 0xc0, 0xfe, 0xff];

/// `input` with some bytes changed, left out, doubled or taken from `other`.
pub fn mutated(input: &[u8], other: &[u8], entropy: &dyn Entropy) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let [count, ..] = entropy.array::<1>();
    for _ in 0..=count % 4 {
        let [what, a, b, c, d, value] = entropy.array::<6>();
        let at = usize::from(u16::from_be_bytes([a, b])) % (bytes.len() + 1);
        let length = usize::from(c) % 32 + 1;
        match what % 8 {
            0 if at < bytes.len() => bytes[at] = value,
            1 if at < bytes.len() => bytes[at] ^= 1 << (value % 8),
            2 if at < bytes.len() => bytes[at] = MAGIC[usize::from(value) % MAGIC.len()],
            3 => drop(bytes.drain(at..(at + length).min(bytes.len()))),
            4 => {
                let again = bytes[at..(at + length).min(bytes.len())].to_vec();
                drop(bytes.splice(at..at, again));
            }
            5 => {
                let from = usize::from(u16::from_be_bytes([c, d])) % (other.len() + 1);
                let piece = other[from..(from + usize::from(value)).min(other.len())].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            6 => bytes.truncate(at),
            _ => bytes.insert(at, MAGIC[usize::from(value) % MAGIC.len()]),
        }
        bytes.truncate(MAX);
    }
    bytes
}
