//! Invented recipients: valid identifiers that no living person holds, where
//! the scheme has such a range, and names and addresses of nowhere. The same
//! seed gives the same list on every machine; a longer list begins with the
//! shorter one.

use crate::dice::Dice;
use chancery_types::{Identifier, IdentifierError, Scheme};
use std::io::{self, Write};
use std::path::PathBuf;

/// Options of `chancery recipients make`.
#[derive(clap::Args)]
pub struct MakeArgs {
    /// How many recipients.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// Another seed gives another list.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to write. Default: standard output.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// A list cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SyntheticError {
    /// The range of invented numbers is used up.
    #[error("there are only {capacity} invented numbers of scheme {scheme}")]
    Exhausted {
        /// Which scheme.
        scheme: Scheme,
        /// How many it has.
        capacity: u64,
    },
    /// A number made here is not valid: a fault of this program.
    #[error("an invented number is not valid: {0}")]
    Identifier(#[from] IdentifierError),
    /// The list cannot be written.
    #[error("cannot write the list: {0}")]
    Write(#[from] csv::Error),
    /// The list cannot be written.
    #[error("cannot write the list: {0}")]
    Io(#[from] io::Error),
}

/// Runs `chancery recipients make`.
pub fn run(args: &MakeArgs) -> Result<(), SyntheticError> {
    match &args.output {
        Some(path) => write_csv(std::fs::File::create(path)?, args.count, args.seed),
        None => write_csv(io::stdout().lock(), args.count, args.seed),
    }
}

/// Writes a list of `count` recipients with Belgian, German and Norwegian
/// identifiers in turn.
pub fn write_csv(writer: impl Write, count: u64, seed: u64) -> Result<(), SyntheticError> {
    let mut csv = csv::Writer::from_writer(writer);
    csv.write_record([
        "request_id",
        "scheme",
        "identifier",
        "name",
        "street",
        "city",
        "language",
        "amount_due",
        "due_date",
        "reference",
    ])?;
    let schemes: [(Scheme, &str, &[&Words]); 3] = [
        (Scheme::BeNn, "EUR", &[&DUTCH, &FRENCH, &GERMAN]),
        (Scheme::DeStid, "EUR", &[&GERMAN, &GERMAN, &ENGLISH]),
        (Scheme::NoFnr, "NOK", &[&NORWEGIAN, &NORWEGIAN, &ENGLISH]),
    ];
    for (row, (scheme, currency, languages)) in (0..count).zip(schemes.into_iter().cycle()) {
        let identifier = identifier(scheme, seed, row / 3)?;
        let mut dice = Dice::new(seed, row);
        let words = dice.pick(languages);
        let request_id = dice.uuid();
        csv.write_record([
            request_id.hyphenated().to_string().as_str(),
            scheme.as_str(),
            identifier.value(),
            &format!("{} {}", dice.pick(words.given), dice.pick(words.family)),
            &format!("{} {}", dice.pick(words.street), 1 + dice.below(199)),
            dice.pick(words.city),
            words.language,
            &format!("{}.{:02} {currency}", 10 + dice.below(4_990), dice.below(100)),
            &format!("2027-{:02}-{:02}", 1 + dice.below(12), 1 + dice.below(28)),
            &format!("A-{:04}-{:06}", seed % 10_000, row + 1),
        ])?;
    }
    csv.flush()?;
    Ok(())
}

/// The invented number `index` of a scheme; two of one seed are never the same.
pub fn identifier(scheme: Scheme, seed: u64, index: u64) -> Result<Identifier, SyntheticError> {
    /// Prime and no factor of any capacity: steps of it meet every slot once.
    const STEP: u64 = 1_000_003;
    let capacity = capacity(scheme);
    if index >= capacity {
        return Err(SyntheticError::Exhausted { scheme, capacity });
    }
    let start = Dice::new(seed, u64::MAX).below(capacity);
    let slot = (start + index * STEP) % capacity;
    let value = match scheme {
        Scheme::BeNn => belgian_person(slot),
        Scheme::BeCbe => belgian_enterprise(slot),
        Scheme::DeStid => return german_person(slot),
        Scheme::NoFnr => norwegian_person(slot),
        Scheme::E164 => telephone(slot),
    };
    Ok(Identifier::new(scheme, &value)?)
}

/// How many numbers [`identifier`] has.
fn capacity(scheme: Scheme) -> u64 {
    match scheme {
        Scheme::BeNn => 30 * 12 * 28 * 998,
        Scheme::BeCbe => 2_000_000,
        Scheme::DeStid => 9 * 362_880,
        Scheme::NoFnr => 70 * 12 * 28 * 50,
        Scheme::E164 => 1_000 * FICTION.len() as u64,
    }
}

/// BIS numbers of people who will be born from 2070 to 2099.
fn belgian_person(slot: u64) -> String {
    let [counter, day, month, year] = mixed(slot, [998, 28, 12, 30]);
    let nine = format!("{:02}{:02}{:02}{:03}", 70 + year, 41 + month, 1 + day, 1 + counter);
    let n = nine.bytes().fold(2, |n, digit| n * 10 + u64::from(digit - b'0'));
    format!("{nine}{:02}", 97 - n % 97)
}

/// Numbers below 0200.000.000, where those in use begin.
fn belgian_enterprise(slot: u64) -> String {
    format!("{slot:08}{:02}", 97 - slot % 97)
}

/// No range but the leading 0 is kept for tests, and that one is refused by
/// [`Identifier`]. These have the digits 1 to 9 in some order and the first
/// of them twice; nothing says that nobody holds them.
fn german_person(slot: u64) -> Result<Identifier, SyntheticError> {
    let [again, mut order] = mixed(slot, [9, 362_880]);
    let mut left: Vec<u64> = (1..=9).collect();
    let mut digits: Vec<u64> = Vec::with_capacity(10);
    for count in (1..=9).rev() {
        digits.push(left.remove((order % count) as usize));
        order /= count;
    }
    digits.insert(1 + again as usize, digits[0]);
    let ten: String = digits.iter().map(u64::to_string).collect();
    let mut tried = Err(IdentifierError::WrongCheckDigits);
    for check in 0..10 {
        tried = tried.or_else(|_| Identifier::new(Scheme::DeStid, &format!("{ten}{check}")));
    }
    Ok(tried?)
}

/// Numbers of the national test population: month + 80. Of ten that follow
/// each other at least eight have check digits; the first of those is taken.
fn norwegian_person(slot: u64) -> String {
    let [tens, day, month, year] = mixed(slot, [50, 28, 12, 70]);
    let numbers = (0..10).map(|last| {
        let nine = format!("{:02}{:02}{:02}{tens:02}{last}", 1 + day, 81 + month, 30 + year);
        let ten = check_digit(nine, &[3, 7, 6, 1, 8, 9, 4, 5, 2])?;
        check_digit(ten, &[5, 4, 3, 2, 7, 6, 5, 4, 3, 2])
    });
    numbers.flatten().next().unwrap_or_default()
}

/// `digits` and the check digit that brings their weighted sum to a multiple
/// of 11; `None` if that would be 10.
fn check_digit(mut digits: String, weights: &[u32]) -> Option<String> {
    let sum: u32 = digits.bytes().zip(weights).map(|(digit, weight)| u32::from(digit - b'0') * weight).sum();
    digits.push(char::from_digit((11 - sum % 11) % 11, 10)?);
    Some(digits)
}

/// Beginnings, without three more digits, of numbers kept for fiction by
/// Germany's Bundesnetzagentur (five) and the United Kingdom's Ofcom.
const FICTION: [&str; 6] = ["493023125", "496990009", "494066969", "492214710", "498999998", "447700900"];

fn telephone(slot: u64) -> String {
    let [last, range] = mixed(slot, [1_000, FICTION.len() as u64]);
    format!("{}{last:03}", FICTION[range as usize])
}

/// The digits of `number` in a system whose places have these bases, lowest first.
fn mixed<const N: usize>(mut number: u64, bases: [u64; N]) -> [u64; N] {
    bases.map(|base| {
        let digit = number % base;
        number /= base;
        digit
    })
}

/// What names and addresses are made of. None of these places exists.
struct Words {
    language: &'static str,
    given: &'static [&'static str],
    family: &'static [&'static str],
    street: &'static [&'static str],
    city: &'static [&'static str],
}

static DUTCH: Words = Words {
    language: "nl",
    given: &["Inktje", "Papierus", "Zegelinde", "Briefke", "Perkamenta", "Lakmoes", "Postina", "Vloeibert"],
    family: &["Van Voorbeeld", "De Proef", "Verzonnen", "Nergenshuis", "Van Papier", "Fictiemans"],
    street: &["Enveloppestraat", "Zegellaan", "Ganzenveerdreef", "Postduifpad", "Inktpotplein"],
    city: &["Briefgem", "Papierbeke", "Nergensdorp", "Zegelzele"],
};

static FRENCH: Words = Words {
    language: "fr",
    given: &["Plumette", "Enclin", "Cachetine", "Parchemin", "Missiva", "Buvard", "Timbreline", "Scello"],
    family: &["Exemple", "Delafiction", "Fauxnom", "Inventé", "Nullepart", "Dessai"],
    street: &["Rue de l'Enveloppe", "Avenue du Cachet", "Place de l'Encrier", "Chemin du Pigeon"],
    city: &["Lettreville", "Plumeaux-sur-Encre", "Nullepart-le-Sceau", "Papiermont"],
};

static GERMAN: Words = Words {
    language: "de",
    given: &[
        "Federike",
        "Tintobert",
        "Siegelinde",
        "Papyrus",
        "Briefhild",
        "Löschpold",
        "Postlieb",
        "Umschlaga",
    ],
    family: &["Mustermensch", "Beispiel", "Erfunden", "Nirgendwo", "Probst-Probe", "Scheinbar"],
    street: &["Umschlaggasse", "Siegelweg", "Federkielallee", "Brieftaubenring", "Tintenfassplatz"],
    city: &["Musterbriefen", "Siegelhausen", "Nirgendsheim", "Tintenbrück"],
};

static NORWEGIAN: Words = Words {
    language: "nb",
    given: &["Fjærunn", "Blekkulf", "Seglaug", "Brevhild", "Papirus", "Postmund", "Konvolutta", "Lakkbjørn"],
    family: &["Eksempelsen", "Oppdiktet", "Ingensteds", "Prøvestad", "Fiktesen", "Mønsterdal"],
    street: &["Konvoluttveien", "Seglgata", "Fjærpennstien", "Brevdueveien", "Blekkhusplassen"],
    city: &["Brevdal", "Seglvik", "Ingenstedsfjord", "Blekknes"],
};

static ENGLISH: Words = Words {
    language: "en",
    given: &["Quilla", "Inkwell", "Vellum", "Sealia", "Parchmenta", "Blotter", "Missive", "Postwin"],
    family: &["Example", "Madeup", "Nowhere", "Sampleton", "Fictionby", "Testworth"],
    street: &["Envelope Lane", "Sealing Wax Row", "Quill Street", "Carrier Pigeon Road"],
    city: &["Letterby", "Inkford", "Nowhere-on-Sea", "Sealham"],
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_are_valid_and_never_the_same() {
        for scheme in Scheme::ALL {
            let count = capacity(*scheme).min(20_000);
            let all: HashSet<_> = (0..count).map(|index| identifier(*scheme, 7, index).unwrap()).collect();
            assert_eq!(all.len() as u64, count, "{scheme}");
            assert!(all.iter().all(|identifier| identifier.scheme() == *scheme));
            let last = capacity(*scheme) - 1;
            assert!(identifier(*scheme, 7, last).is_ok());
            assert!(matches!(identifier(*scheme, 7, last + 1), Err(SyntheticError::Exhausted { .. })));
            assert_ne!(identifier(*scheme, 7, 0).unwrap(), identifier(*scheme, 8, 0).unwrap());
        }
    }

    #[test]
    fn numbers_come_from_ranges_that_nobody_holds() {
        for index in 0..1_000 {
            let value = |scheme| identifier(scheme, 1, index).unwrap().value().to_owned();
            let belgian = value(Scheme::BeNn);
            assert!(belgian[..2] >= *"70" && ("41".."53").contains(&&belgian[2..4]), "{belgian}");
            let norwegian = value(Scheme::NoFnr);
            assert!(("81".."93").contains(&&norwegian[2..4]), "{norwegian}");
            let enterprise = value(Scheme::BeCbe);
            assert!(enterprise[..2] < *"02", "{enterprise}");
            let telephone = value(Scheme::E164);
            assert!(FICTION.iter().any(|range| telephone.starts_with(range)), "{telephone}");
        }
    }

    /// No more than the rule in force before 2032, which all libraries know.
    #[test]
    fn norwegian_numbers_hold_by_the_stricter_rule() {
        for index in 0..1_000 {
            let value = identifier(Scheme::NoFnr, 3, index).unwrap().value().to_owned();
            let sum: u32 = value
                .bytes()
                .zip([3, 7, 6, 1, 8, 9, 4, 5, 2, 1])
                .map(|(digit, weight)| u32::from(digit - b'0') * weight)
                .sum();
            assert_eq!(sum % 11, 0, "{value}");
        }
    }

    #[test]
    fn a_longer_list_begins_with_the_shorter_one() {
        let list = |count, seed| {
            let mut list = Vec::new();
            write_csv(&mut list, count, seed).unwrap();
            String::from_utf8(list).unwrap()
        };
        let (short, long) = (list(10, 5), list(400, 5));
        assert_eq!((short.lines().count(), long.lines().count()), (11, 401));
        assert!(long.starts_with(&short));
        assert_ne!(list(10, 6), short);
        let identifiers: HashSet<_> = long.lines().skip(1).map(|row| row.split(',').nth(2)).collect();
        assert_eq!(identifiers.len(), 400);
    }
}
