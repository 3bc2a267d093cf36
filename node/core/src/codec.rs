//! The little of the TLS presentation language (RFC 9420 §2.1) that a delivery
//! service reads: fixed fields and variable-size vectors, sharing the buffer.

use bytes::{BufMut as _, Bytes, BytesMut};
use chancery_types::Refusal;

pub(crate) struct Reader(pub(crate) Bytes);

impl Reader {
    pub(crate) fn take(&mut self, length: usize) -> Result<Bytes, Refusal> {
        if self.0.len() < length { Err(malformed()) } else { Ok(self.0.split_to(length)) }
    }

    pub(crate) fn number(&mut self, bytes: usize) -> Result<u64, Refusal> {
        Ok(self.take(bytes)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A vector without its length, which must be in its shortest form.
    pub(crate) fn vector(&mut self) -> Result<Bytes, Refusal> {
        let (bytes, least) = match self.0.first().ok_or_else(malformed)? >> 6 {
            0 => (1, 0),
            1 => (2, 0x40),
            2 => (4, 0x4000),
            _ => return Err(malformed()),
        };
        let length = self.number(bytes)? & ((1 << (bytes * 8 - 2)) - 1);
        match usize::try_from(length) {
            Ok(length) if length >= least => self.take(length),
            _ => Err(malformed()),
        }
    }
}

/// Header of a variable-size vector (RFC 9420 §2.1.2).
pub(crate) fn put_length(out: &mut BytesMut, length: usize) -> Result<(), Refusal> {
    match u32::try_from(length).map_err(|_| malformed())? {
        short @ 0..=0x3f => out.put_uint(short.into(), 1),
        middle @ 0x40..=0x3fff => out.put_uint((middle | 0x4000).into(), 2),
        long @ 0x4000..=0x3fff_ffff => out.put_uint((long | 0x8000_0000).into(), 4),
        _ => return Err(malformed()),
    }
    Ok(())
}

pub(crate) fn malformed() -> Refusal {
    Refusal::field("not the MLSMessage that the field's comment names")
}
