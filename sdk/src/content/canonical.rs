//! Whether bytes are one CBOR item in the deterministic encoding of RFC 8949,
//! section 4.2.1, and within the data model of the draft's section 6.2. Reads
//! in place and allocates nothing; knows nothing of messages.

use super::ContentError;

/// Largest integer that may be a key: what a double holds exactly.
const MAX_KEY: u64 = (1 << 53) - 1;

/// Passes when `bytes` are exactly one deterministically encoded item: shortest
/// heads, definite lengths, map keys ascending bytewise and unique, shortest
/// floats, no big number that fits an integer, valid UTF-8, at most `nesting`
/// arrays, maps and tags within each other, nothing behind it.
pub(super) fn check(bytes: &[u8], nesting: usize) -> Result<(), ContentError> {
    let mut scanner = Scanner { bytes, at: 0 };
    scanner.item(nesting)?;
    if scanner.at == bytes.len() { Ok(()) } else { Err(ContentError::Malformed) }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn item(&mut self, nesting: usize) -> Result<(), ContentError> {
        let [initial] = self.fixed()?;
        let (major, info) = (initial >> 5, initial & 0x1f);
        if major == 7 {
            return self.simple_or_float(info);
        }
        let argument = self.argument(info)?;
        let inner = || nesting.checked_sub(1).ok_or(ContentError::Shape("nested too deeply"));
        match major {
            2 => self.take(argument).map(drop),
            3 => match std::str::from_utf8(self.take(argument)?) {
                Ok(_) => Ok(()),
                Err(_) => Err(ContentError::Malformed),
            },
            // Each round consumes at least one byte or ends the loop, whatever length was claimed.
            4 => {
                let inner = inner()?;
                (0..argument).try_for_each(|_| self.item(inner))
            }
            5 => self.map(argument, inner()?),
            6 => {
                let content = self.at;
                self.item(inner()?)?;
                if matches!(argument, 2 | 3) { self.big_number(content) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn map(&mut self, pairs: u64, nesting: usize) -> Result<(), ContentError> {
        let mut previous: &[u8] = &[];
        for _ in 0..pairs {
            let start = self.at;
            self.item(nesting)?;
            let key = self.bytes.get(start..self.at).ok_or(ContentError::Malformed)?;
            if key <= previous {
                return Err(ContentError::NotDeterministic);
            }
            previous = key;
            let mut head = Scanner { bytes: key, at: 0 };
            let [initial] = head.fixed()?;
            let allowed = match initial >> 5 {
                0 => head.argument(initial & 0x1f)? <= MAX_KEY,
                1 => head.argument(initial & 0x1f)? < MAX_KEY,
                major => matches!(major, 2 | 3),
            };
            if !allowed {
                return Err(ContentError::Shape("a map key of another type or range"));
            }
            self.item(nesting)?;
        }
        Ok(())
    }

    /// Tags 2 and 3: bytes without leading zero, and more than an integer holds.
    fn big_number(&self, content: usize) -> Result<(), ContentError> {
        let mut bytes = Scanner { bytes: self.bytes, at: content };
        let [initial] = bytes.fixed()?;
        if initial >> 5 != 2 {
            return Err(ContentError::Shape("a big number that is not a byte string"));
        }
        let length = bytes.argument(initial & 0x1f)?;
        let [first] = bytes.fixed().unwrap_or_default();
        if length > 8 && first != 0 { Ok(()) } else { Err(ContentError::NotDeterministic) }
    }

    /// The number in an item's head, shortest form only.
    fn argument(&mut self, info: u8) -> Result<u64, ContentError> {
        let (argument, least) = match info {
            0..=23 => return Ok(u64::from(info)),
            24 => (u64::from(u8::from_be_bytes(self.fixed()?)), 24),
            25 => (u64::from(u16::from_be_bytes(self.fixed()?)), 1 << 8),
            26 => (u64::from(u32::from_be_bytes(self.fixed()?)), 1 << 16),
            27 => (u64::from_be_bytes(self.fixed()?), 1 << 32),
            31 => return Err(ContentError::NotDeterministic),
            _ => return Err(ContentError::Malformed),
        };
        if argument < least { Err(ContentError::NotDeterministic) } else { Ok(argument) }
    }

    fn simple_or_float(&mut self, info: u8) -> Result<(), ContentError> {
        let shortest = match info {
            0..=23 => true,
            24 => {
                let [value] = self.fixed()?;
                if value < 32 {
                    return Err(ContentError::Malformed);
                }
                true
            }
            25 => {
                let bits = u16::from_be_bytes(self.fixed()?);
                bits & 0x7c00 != 0x7c00 || bits & 0x03ff == 0 || bits == 0x7e00
            }
            26 => !fits_half(f32::from_be_bytes(self.fixed()?)),
            27 => {
                let value = f64::from_be_bytes(self.fixed()?);
                #[expect(clippy::cast_possible_truncation, reason = "whether it truncates is the question")]
                let narrowed = value as f32;
                !value.is_nan() && f64::from(narrowed) != value
            }
            _ => return Err(ContentError::Malformed),
        };
        if shortest { Ok(()) } else { Err(ContentError::NotDeterministic) }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], ContentError> {
        let rest = self.bytes.get(self.at..).ok_or(ContentError::Malformed)?;
        let found = rest.first_chunk().ok_or(ContentError::Malformed)?;
        self.at += N;
        Ok(*found)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], ContentError> {
        let rest = self.bytes.get(self.at..).ok_or(ContentError::Malformed)?;
        let length = usize::try_from(length).map_err(|_| ContentError::Malformed)?;
        let found = rest.get(..length).ok_or(ContentError::Malformed)?;
        self.at += length;
        Ok(found)
    }
}

/// Whether a half-precision float holds `value` exactly (or it is no number).
fn fits_half(value: f32) -> bool {
    if !value.is_finite() || value == 0.0 {
        return true;
    }
    let bits = value.to_bits();
    let exponent = ((bits >> 23) & 0xff).cast_signed() - 127;
    // Lowest set bit of the 24-bit significand: its weight must be one that a
    // half has, which are 10 bits below the first, and 2^-24 at the least.
    let lowest = ((bits & 0x007f_ffff) | 0x0080_0000).trailing_zeros().cast_signed();
    (-24..=15).contains(&exponent) && lowest >= 13 && exponent - 23 + lowest >= -24
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str) -> Result<(), ContentError> {
        check(&hex::decode(text).unwrap(), 16)
    }

    /// RFC 8949, appendix A: those of its examples that are deterministic.
    #[test]
    fn deterministic_examples_pass() {
        for text in [
            "00",
            "17",
            "1818",
            "190100",
            "1a00010000",
            "1b0000000100000000",
            "20",
            "3903e7",
            "f90000",
            "f98000",
            "f93c00",
            "fb3ff199999999999a",
            "f97bff",
            "fa47c35000",
            "fa7f7fffff",
            "fb7e37e43c8800759c",
            "f90001",
            "f90400",
            "f97c00",
            "f97e00",
            "f4",
            "f6",
            "f0",
            "f8ff",
            "c11a514b67b0",
            "c249010000000000000000",
            "a14100f6",
            "a11b001ffffffffffffff6",
            "a13b001ffffffffffffef6",
            "40",
            "6449455446",
            "62c3bc",
            "80",
            "83010203",
            "a0",
            "a201020304",
            "a26161016162820203",
            "a301613120613261616133",
        ] {
            assert_eq!(verdict(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn other_encodings_of_the_same_are_refused() {
        for text in [
            "1817",
            "190018",
            "1a00000100",
            "1b0000000000010000", // longer heads
            "5801ff",
            "780161",
            "980100",
            "b8010100", // the same for lengths
            "5f4101ff",
            "7f6161ff",
            "9f01ff",
            "bf0101ff", // indefinite lengths
            "a203040102",
            "a201020103",
            "a261610120f6", // keys in disorder or twice
            "fa3f800000",
            "fb3ff0000000000000",
            "fa7f800000",
            "fb7ff0000000000000", // longer floats
            "f97e01",
            "fa7fc00000",
            "fb7ff8000000000000",
            "fa33800000",
            "fa38800000", // NaNs, subnormal halves
        ] {
            assert_eq!(verdict(text), Err(ContentError::NotDeterministic), "{text}");
        }
        for text in ["c24101", "c240", "c34900ffffffffffffffff"] {
            assert_eq!(verdict(text), Err(ContentError::NotDeterministic), "{text}"); // big numbers that are none
        }
        // 2^-25 and 2^-24 + 2^-25: below what a half can hold.
        assert_eq!(verdict("fa33000000"), Ok(()));
        assert_eq!(verdict("fa33c00000"), Ok(()));
    }

    /// Draft, section 6.2.
    #[test]
    fn other_keys_are_refused() {
        for text in
            ["a1f6f6", "a180f6", "a1c100f6", "a1f93c00f6", "a11b0020000000000000f6", "a13b001ffffffffffffff6"]
        {
            let verdict = verdict(text);
            assert_eq!(verdict, Err(ContentError::Shape("a map key of another type or range")), "{text}");
        }
        assert!(matches!(verdict("c200"), Err(ContentError::Shape(_))));
    }

    #[test]
    fn what_is_not_one_item_is_refused() {
        for text in [
            "",
            "18",
            "1c",
            "ff",
            "f818",
            "f81f",
            "41",
            "61",
            "61ff",
            "81",
            "a101",
            "c1",
            "0000",
            "9bffffffffffffffff",
        ] {
            assert_eq!(verdict(text), Err(ContentError::Malformed), "{text}");
        }
        assert_eq!(verdict(&"81".repeat(200)), Err(ContentError::Shape("nested too deeply")));
    }
}
