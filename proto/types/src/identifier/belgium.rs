//! Belgium: national register and BIS numbers of people, enterprise numbers
//! of the Crossroads Bank for Enterprises.

use super::{IdentifierError, digits, is_date, number};

/// National register number or BIS number: `YYMMDD`, a counter of three
/// digits, two check digits. A BIS number has the month raised by 20 (sex
/// unknown) or 40. Month and day are 00 where the birth date is not known;
/// the month stays 00 also when a date's counter has run out.
pub(super) fn check_person(text: &str) -> Result<(), IdentifierError> {
    let digits = digits::<11>(text)?;
    let century = century(&digits).ok_or(IdentifierError::WrongCheckDigits)?;
    let year = century + number(&digits[..2]);
    let (month, day) = (number(&digits[2..4]), number(&digits[4..6]));
    let possible = match month {
        0..20 => Some(month),
        20..40 => Some(month - 20),
        40..60 => Some(month - 40),
        _ => None,
    }
    .is_some_and(|month| {
        if month == 0 || day == 0 { month <= 12 && day <= 31 } else { is_date(year, month, day) }
    });
    if possible { Ok(()) } else { Err(IdentifierError::ImpossibleDate) }
}

/// First year of the century of birth, as the check digits tell it: they are
/// 97 − n mod 97, n being the first nine digits, with a 2 before them for
/// births from 2000 on. The two never agree. `None`: neither fits.
pub(super) fn century(digits: &[u8; 11]) -> Option<u64> {
    let (n, check) = (number(&digits[..9]), number(&digits[9..]));
    [(1900, n), (2000, 2_000_000_000 + n)]
        .into_iter()
        .find_map(|(century, n)| (97 - n % 97 == check).then_some(century))
}

/// Enterprise number: 0 or 1, seven digits, two check digits.
pub(super) fn check_enterprise(text: &str) -> Result<(), IdentifierError> {
    let digits = digits::<10>(text)?;
    if digits[0] > 1 {
        Err(IdentifierError::WrongFirstDigit)
    } else if 97 - number(&digits[..8]) % 97 != number(&digits[8..]) {
        Err(IdentifierError::WrongCheckDigits)
    } else {
        Ok(())
    }
}
