//! Messages that are padded before they are sealed, so that lengths tell nothing.

use bytes::Bytes;
use prost::Message;

/// The message serialised, with so many zeroes in the field that `set` fills
/// that its length is a multiple of `block` bytes.
pub(crate) fn padded<M: Message>(mut message: M, block: usize, set: impl Fn(&mut M, Bytes)) -> Vec<u8> {
    set(&mut message, Bytes::new());
    let bare = message.encoded_len();
    let gap = bare.next_multiple_of(block) - bare;
    // The field's own tag and length take 2 to 4 bytes. A gap that no number of
    // zeroes fills (1, 2 or 130 bytes, say) takes one block more, or two.
    let gaps = [gap, gap + block, gap + 2 * block].into_iter();
    for zeroes in gaps.flat_map(|gap| [0, 2, 3, 4].map(|own| gap.checked_sub(own))).flatten() {
        set(&mut message, vec![0; zeroes].into());
        if message.encoded_len().is_multiple_of(block) {
            break;
        }
    }
    message.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_proto::directory::v1::SealedPart;

    #[test]
    fn every_length_can_be_padded() {
        for (block, length) in [128, 2048].into_iter().flat_map(|b| (0..2 * b + 10).map(move |l| (b, l))) {
            let part = SealedPart { node: "n".repeat(length), ..Default::default() };
            let bytes = padded(part, block, |part, zeroes| part.padding = zeroes);
            assert!(bytes.len().is_multiple_of(block) && bytes.len() <= length + 3 * block, "{length}");
            assert_eq!(SealedPart::decode(bytes.as_slice()).unwrap().node.len(), length);
        }
    }
}
