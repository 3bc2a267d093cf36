//! The codec of all services: prost's, behind a look at how much a message would become.
//! Two bytes on the wire can be a whole empty message in a list, which takes hundreds in
//! memory, before any limit on its items can be enforced.

use bytes::Buf as _;
use prost::Message;
use std::marker::PhantomData;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

/// Fields with a length that any message may have, nested ones included …
const FIELDS: usize = 4096;
/// … and one more for so many bytes.
const BYTES_A_FIELD: usize = 16;
/// Deepest nesting that is looked at; messages here nest less.
const DEPTH: usize = 8;

/// A codec of messages.
pub struct CountedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for CountedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for CountedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CountedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        CountedDecoder(PhantomData)
    }
}

/// Decodes messages of at most so many fields.
pub struct CountedDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for CountedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // One piece: tonic has gathered the message.
        let message = buf.chunk();
        let mut left = FIELDS + message.len() / BYTES_A_FIELD;
        if count(message, DEPTH, &mut left).is_none() && left == 0 {
            return Err(Status::resource_exhausted("the message has more fields than any may have"));
        }
        // As prost's own codec reports it.
        U::decode(buf).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Takes the fields with a length of what may be a message off what is `left`; `None`:
/// it is none, or nothing is left. What only looks like a message counts as one.
fn count(mut bytes: &[u8], depth: usize, left: &mut usize) -> Option<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        match key & 7 {
            0 => drop(varint(&mut bytes)?),
            1 => skip(&mut bytes, 8)?,
            2 => {
                *left = left.checked_sub(1)?;
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (inner, rest) = bytes.split_at_checked(length)?;
                if depth > 0 {
                    // Whether it is a message, only the schema knows.
                    let before = *left;
                    if count(inner, depth - 1, left).is_none() && *left > 0 {
                        *left = before;
                    }
                    if *left == 0 {
                        return None;
                    }
                }
                bytes = rest;
            }
            5 => skip(&mut bytes, 4)?,
            _ => return None,
        }
    }
    Some(())
}

fn skip(bytes: &mut &[u8], length: usize) -> Option<()> {
    *bytes = bytes.get(length..)?;
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for nth in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * nth);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::v1::{Batch, LinkRequest, Parcel, Submission, link_request, parcel, submission};

    fn fields_of(message: &[u8]) -> Option<usize> {
        let all = FIELDS + message.len() / BYTES_A_FIELD;
        let mut left = all;
        let counted = count(message, DEPTH, &mut left);
        (counted.is_some() || left > 0).then_some(all - left)
    }

    fn batch(parcels: Vec<Parcel>) -> Vec<u8> {
        let batch = Batch { first_sequence: 1, parcels };
        LinkRequest { frame: Some(link_request::Frame::Batch(batch)) }.encode_to_vec()
    }

    #[test]
    fn a_list_of_nothing_is_refused_and_a_full_batch_is_not() {
        assert_eq!(fields_of(&batch(vec![Parcel::default(); 2_000_000])), None);
        let submission = Submission {
            message_id: vec![0xff; 16].into(),
            group_id: vec![0xff; 32].into(),
            sender: vec![0xff; 16].into(),
            sender_device: vec![0xff; 16].into(),
            body: Some(submission::Body::Application(vec![0xff; 300].into())),
            ..Default::default()
        };
        let parcel = Parcel { parcel: Some(parcel::Parcel::Submission(submission)) };
        // The batch, 256 parcels, a submission and five fields in each.
        assert_eq!(fields_of(&batch(vec![parcel; 256])), Some(1 + 256 * 7));
    }

    #[test]
    fn what_is_no_message_is_one_field() {
        assert_eq!(fields_of(&[]), Some(0));
        assert_eq!(fields_of(&[0x0a, 2, 0xff, 0xff]), Some(1));
        // Deep nesting ends somewhere.
        let mut nested = Vec::new();
        for _ in 0..40 {
            let mut outer = vec![0x0a];
            prost::encoding::encode_varint(nested.len() as u64, &mut outer);
            outer.extend(nested);
            nested = outer;
        }
        assert_eq!(fields_of(&nested), Some(DEPTH + 1));
    }
}
