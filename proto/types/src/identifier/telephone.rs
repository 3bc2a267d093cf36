//! International telephone numbers (ITU-T E.164). Knows no national dialling
//! plans: a number without its country code is refused, not completed.

use super::IdentifierError;
use zeroize::Zeroizing;

/// Country codes whose subscribers keep their leading zero when called from
/// abroad: Italy and the Vatican, San Marino.
const KEEP_ZERO: [&str; 2] = ["39", "378"];

/// The digits after `+` or `00`, of a text from which separators are gone.
/// Parentheses are ignored and so is a trunk zero in them, as in
/// `+49 (0)30 …`. Digits alone are taken as normalised already.
pub(super) fn normalise(text: &str) -> Result<Zeroizing<String>, IdentifierError> {
    let brackets = ['(', ')'];
    let mut digits = Zeroizing::new(String::with_capacity(text.len()));
    match text.split_once("(0)") {
        Some((before, after)) if drops_trunk_zero(before) => digits.extend([before, after]),
        _ => digits.push_str(text),
    }
    digits.retain(|c| !brackets.contains(&c));
    let prefix = if digits.starts_with('+') {
        1
    } else if digits.starts_with("00") {
        2
    } else if text.contains(brackets) || digits.starts_with('0') {
        // A national number: read as digits alone it would be somebody else's.
        return Err(IdentifierError::NoCountryCode);
    } else {
        0
    };
    digits.drain(..prefix);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(IdentifierError::NotDigits);
    }
    if !(7..=15).contains(&digits.len()) {
        return Err(IdentifierError::WrongLength { expected: "7 to 15", found: digits.len() });
    }
    if digits.starts_with('0') {
        return Err(IdentifierError::WrongFirstDigit);
    }
    Ok(digits)
}

/// Whether what stands before a `(0)` is a country code whose zero is
/// for calls from within the country only.
fn drops_trunk_zero(before: &str) -> bool {
    let country = before.trim_start_matches(['(', '+', '0']).trim_end_matches(')');
    !country.is_empty() && !KEEP_ZERO.contains(&country)
}
