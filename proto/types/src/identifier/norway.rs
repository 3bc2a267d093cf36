//! Norway: birth numbers (fødselsnummer) and what is made like them.

use super::{IdentifierError, digits, is_date, number};

/// Weights of the digits before the first check digit, and of that itself.
const FIRST: [u8; 10] = [3, 7, 6, 1, 8, 9, 4, 5, 2, 1];

/// Weights of the digits before the second check digit, and of that itself.
const SECOND: [u8; 11] = [5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1];

/// `DDMMYY`, three digits, two check digits. D-numbers have the day raised by
/// 40; help numbers the month by 40; the national test population the month
/// by 80. In numbers issued from 2032 the first check sum may leave a
/// remainder of 0 to 3 instead of 0 alone; old and new are accepted side by side.
pub(super) fn check(text: &str) -> Result<(), IdentifierError> {
    let digits = digits::<11>(text)?;
    let day = match number(&digits[..2]) {
        day @ 41.. => day - 40,
        day => day,
    };
    let month = match number(&digits[2..4]) {
        month @ 81.. => month - 80,
        month @ 41.. => month - 40,
        month => month,
    };
    // The number does not tell the century for sure, and need not: 1900 apart,
    // which 2000 stands in for, the same years of each are leap years.
    if !is_date(2000 + number(&digits[4..6]), month, day) {
        Err(IdentifierError::ImpossibleDate)
    } else if remainder(&*digits, &FIRST) > 3 || remainder(&*digits, &SECOND) != 0 {
        Err(IdentifierError::WrongCheckDigits)
    } else {
        Ok(())
    }
}

/// What the weighted sum of the digits leaves, modulo 11.
fn remainder(digits: &[u8], weights: &[u8]) -> u16 {
    digits.iter().zip(weights).map(|(digit, weight)| u16::from(*digit) * u16::from(*weight)).sum::<u16>() % 11
}
