//! Germany: the tax identification number of a person
//! (Steuerliche Identifikationsnummer).

use super::{IdentifierError, digits};

/// Ten digits and a check digit. The first is not 0 (those are for tests).
/// Among the ten exactly one digit occurs more than once: two or three times,
/// never three times in a row.
pub(super) fn check(text: &str) -> Result<(), IdentifierError> {
    let digits = digits::<11>(text)?;
    let (check, ten) = (digits[10], &digits[..10]);
    if ten[0] == 0 {
        return Err(IdentifierError::TestNumber);
    }
    let mut counts = [0_u8; 10];
    ten.iter().for_each(|digit| counts[usize::from(*digit)] += 1);
    let mut repeated = counts.into_iter().filter(|count| *count > 1);
    let one_repeats = matches!((repeated.next(), repeated.next()), (Some(2 | 3), None));
    let three_in_a_row = ten.windows(3).any(|three| three[0] == three[1] && three[1] == three[2]);
    if !one_repeats || three_in_a_row {
        return Err(IdentifierError::WrongRepetition);
    }
    if check_digit(ten) == check { Ok(()) } else { Err(IdentifierError::WrongCheckDigits) }
}

/// ISO/IEC 7064, MOD 11,10.
fn check_digit(digits: &[u8]) -> u8 {
    let product = digits.iter().fold(10, |product, digit| match (product + digit) % 10 {
        0 => 9, // 2 · 10 mod 11
        sum => 2 * sum % 11,
    });
    (11 - product) % 10
}
