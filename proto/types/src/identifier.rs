//! Identifiers of people and organisations: scheme and value, normalised and
//! checked by form, date and check digits. What becomes of one on its way to
//! a handle is `chancery-directory-core`'s. Nothing here says that a number
//! was ever issued, only that it could have been.

mod belgium;
mod germany;
mod norway;
mod telephone;

#[cfg(test)]
mod tests;

use crate::{Reason, Refusal};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use zeroize::Zeroizing;

/// Version of the rules by which values are normalised; part of what is
/// hashed into a handle, so it changes only with a key epoch.
pub const NORMALISER: u8 = 1;

/// Longest value that is looked at, in bytes, before normalisation.
pub const MAX_INPUT: usize = 64;

/// Which register a value belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `be-nn`: Belgian national register number or BIS number, 11 digits.
    BeNn,
    /// `be-cbe`: Belgian enterprise number, 10 digits.
    BeCbe,
    /// `de-stid`: German tax identification number of a person, 11 digits.
    DeStid,
    /// `no-fnr`: Norwegian birth number, D-number or help number, 11 digits.
    NoFnr,
    /// `e164`: international telephone number (ITU-T E.164), 7 to 15 digits.
    E164,
}

impl Scheme {
    /// All schemes.
    pub const ALL: &[Self] = &[Self::BeNn, Self::BeCbe, Self::DeStid, Self::NoFnr, Self::E164];

    /// As on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BeNn => "be-nn",
            Self::BeCbe => "be-cbe",
            Self::DeStid => "de-stid",
            Self::NoFnr => "no-fnr",
            Self::E164 => "e164",
        }
    }
}

impl FromStr for Scheme {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, IdentifierError> {
        let scheme = Self::ALL.iter().find(|scheme| scheme.as_str() == text);
        scheme.copied().ok_or(IdentifierError::UnknownScheme)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An identifier whose form and check digits hold. `Debug` shows the scheme
/// alone; the value is erased from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Identifier {
    scheme: Scheme,
    value: Zeroizing<String>,
}

impl Identifier {
    /// From what a person or a list gives: scheme by name, value with or
    /// without white space, dots, dashes and slashes.
    pub fn parse(scheme: &str, value: &str) -> Result<Self, IdentifierError> {
        Self::new(scheme.parse()?, value)
    }

    /// As [`Identifier::parse`], the scheme being known.
    pub fn new(scheme: Scheme, value: &str) -> Result<Self, IdentifierError> {
        if value.len() > MAX_INPUT {
            return Err(IdentifierError::TooLong);
        }
        let mut text = Zeroizing::new(String::with_capacity(value.len()));
        text.extend(value.chars().filter(|c| !c.is_whitespace() && !matches!(c, '.' | '-' | '/')));
        match scheme {
            Scheme::BeNn => belgium::check_person(&text)?,
            Scheme::BeCbe => {
                if text.get(..2).is_some_and(|country| country.eq_ignore_ascii_case("be")) {
                    text.drain(..2);
                }
                belgium::check_enterprise(&text)?;
            }
            Scheme::DeStid => germany::check(&text)?,
            Scheme::NoFnr => norway::check(&text)?,
            Scheme::E164 => text = telephone::normalise(&text)?,
        }
        Ok(Self { scheme, value: text })
    }

    /// Which register it belongs to.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The normalised value: decimal digits and nothing else. Parsing it again
    /// gives the same value.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What the evaluators are asked about, once blinded:
    /// `u8 normaliser ‖ 0x00 ‖ scheme ‖ 0x00 ‖ value`.
    pub fn oprf_input(&self) -> Zeroizing<Vec<u8>> {
        let parts: [&[u8]; 4] =
            [&[NORMALISER, 0], self.scheme.as_str().as_bytes(), &[0], self.value.as_bytes()];
        // The capacity is exact, so that no copy is left behind by growing.
        let mut input = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
        parts.iter().for_each(|part| input.extend_from_slice(part));
        input
    }
}

impl Hash for Identifier {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.scheme.hash(state);
        self.value.as_str().hash(state);
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identifier({})", self.scheme)
    }
}

/// Why a text is no identifier. Never repeats the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentifierError {
    /// No such scheme.
    #[error("unknown scheme; known are be-nn, be-cbe, de-stid, no-fnr and e164")]
    UnknownScheme,
    /// Longer than [`MAX_INPUT`], separators included.
    #[error("longer than {MAX_INPUT} bytes")]
    TooLong,
    /// Something is left that is neither digit nor separator.
    #[error("has characters other than digits and separators")]
    NotDigits,
    /// Too few or too many digits.
    #[error("has {found} digits, expected {expected}")]
    WrongLength {
        /// How many digits the scheme has.
        expected: &'static str,
        /// How many came.
        found: usize,
    },
    /// The first digit is one that the scheme never begins with.
    #[error("the first digit cannot be right")]
    WrongFirstDigit,
    /// The number is of a range kept for tests (`de-stid` beginning with 0).
    #[error("the number is of the range reserved for tests")]
    TestNumber,
    /// The digits that stand for a birth date name no day.
    #[error("the birth date in it is impossible")]
    ImpossibleDate,
    /// Digits repeat in a way the scheme rules out (`de-stid`).
    #[error("its digits repeat in a way that the scheme rules out")]
    WrongRepetition,
    /// The check digits do not follow from the others.
    #[error("the check digits are wrong")]
    WrongCheckDigits,
    /// A telephone number written the national way.
    #[error("begins neither with + nor with 00 and a country code")]
    NoCountryCode,
}

impl From<IdentifierError> for Refusal {
    fn from(error: IdentifierError) -> Self {
        Self::new(Reason::InvalidIdentifier, format!("identifier: {error}"))
    }
}

/// The `N` decimal digits of `text`, by value.
fn digits<const N: usize>(text: &str) -> Result<Zeroizing<[u8; N]>, IdentifierError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(IdentifierError::NotDigits);
    }
    if text.len() != N {
        let expected = if N == 10 { "10" } else { "11" };
        return Err(IdentifierError::WrongLength { expected, found: text.len() });
    }
    let mut digits = Zeroizing::new([0; N]);
    digits.iter_mut().zip(text.bytes()).for_each(|(digit, byte)| *digit = byte - b'0');
    Ok(digits)
}

/// The number that decimal digits stand for.
fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |number, digit| number * 10 + u64::from(*digit))
}

/// Whether the calendar has this day.
fn is_date(year: u64, month: u64, day: u64) -> bool {
    match (i16::try_from(year), i8::try_from(month), i8::try_from(day)) {
        (Ok(year), Ok(month), Ok(day)) => jiff::civil::Date::new(year, month, day).is_ok(),
        _ => false,
    }
}
