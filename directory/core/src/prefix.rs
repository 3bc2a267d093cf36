//! Prefixes of handles: what a lookup names instead of a handle.

use crate::{Error, channel};
use chancery_types::{ChannelId, Handle};

/// Most bits a lookup may name.
pub const MAX_BITS: u32 = 32;

/// The first 4 bytes of a handle with the bits beyond the published length cleared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(u32);

impl Prefix {
    /// The prefix of `bits` bits under which `handle` stands; more than 32 are
    /// read as 32.
    pub fn of(handle: &Handle, bits: u32) -> Self {
        let [a, b, c, d, ..] = *handle.as_bytes();
        Self(u32::from_be_bytes([a, b, c, d]) & mask(bits))
    }

    /// The prefix of `bits` bits under which a channel stands.
    pub fn of_channel(id: &ChannelId, bits: u32) -> Self {
        Self::from_bits(u32::from_be_bytes(channel::place(id)), bits)
    }

    /// The first `bits` bits of these 32; more are read as 32.
    pub const fn from_bits(head: u32, bits: u32) -> Self {
        Self(head & mask(bits))
    }

    /// From a request.
    ///
    /// # Errors
    /// Not 4 bytes, or a bit beyond the published length is set.
    pub fn from_wire(bytes: &[u8], bits: u32) -> Result<Self, Error> {
        let bytes = bytes.try_into().map_err(|_| Error::Field("a prefix has not 4 bytes"))?;
        let prefix = u32::from_be_bytes(bytes);
        if prefix & !mask(bits) != 0 {
            return Err(Error::Field("a prefix has bits beyond the published length"));
        }
        Ok(Self(prefix))
    }

    /// Its 4 bytes, for a request.
    pub fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    /// Whether `handle` stands under this prefix of `bits` bits.
    pub fn covers(self, handle: &Handle, bits: u32) -> bool {
        Self::of(handle, bits) == self
    }

    /// The smallest and the largest handle under this prefix of `bits` bits.
    pub fn range(self, bits: u32) -> (Handle, Handle) {
        let edge = |head: u32, fill: u8| {
            let mut bytes = [fill; Handle::LENGTH];
            bytes[..4].copy_from_slice(&head.to_be_bytes());
            Handle::from_bytes(bytes)
        };
        (edge(self.0, 0), edge(self.0 | !mask(bits), 0xff))
    }
}

impl std::fmt::Debug for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prefix")
    }
}

const fn mask(bits: u32) -> u32 {
    match bits {
        0 => 0,
        1..MAX_BITS => u32::MAX << (MAX_BITS - bits),
        _ => u32::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_handle_stands_under_its_prefix_alone(bytes: [u8; 32], other: [u8; 32], bits in 0_u32..=32) {
            let (handle, other) = (Handle::from_bytes(bytes), Handle::from_bytes(other));
            let prefix = Prefix::of(&handle, bits);
            prop_assert!(prefix.covers(&handle, bits));
            prop_assert_eq!(Prefix::from_wire(&prefix.to_bytes(), bits), Ok(prefix));
            let (low, high) = prefix.range(bits);
            prop_assert!(low <= handle && handle <= high);
            prop_assert_eq!(prefix.covers(&other, bits), low <= other && other <= high);
        }
    }

    #[test]
    fn bits_beyond_the_length_are_refused() {
        assert!(Prefix::from_wire(&[0xff, 0, 0, 0], 8).is_ok());
        assert!(Prefix::from_wire(&[0xff, 1, 0, 0], 8).is_err());
        assert!(Prefix::from_wire(&[0; 5], 8).is_err());
        assert!(Prefix::from_wire(&[0, 0, 0, 1], 0).is_err());
    }
}
