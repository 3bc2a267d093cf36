//! A list of recipients: one CSV record each, in UTF-8, with a header. A bad
//! record is reported with its line and reason; the others go on. No error
//! repeats what a record holds.

use super::is_field_name;
use super::records::Records;
use chancery_types::{Identifier, IdentifierError, MessageId, Reason, Refusal};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Read;

pub use super::records::{BadField, MAX_COLUMNS, MAX_FIELD, MAX_FILE, Unreadable};

/// Columns that every list has. The others are fields for the letter.
const REQUIRED: [&str; 4] = ["request_id", "scheme", "identifier", "language"];

/// Who gets a letter. `Debug` shows the line alone.
pub struct Recipient {
    /// Where the record begins; the header is line 1.
    pub line: u64,
    /// UUID in its usual text form: what makes sending the list again harmless.
    pub request_id: String,
    /// Whom to write to.
    pub identifier: Identifier,
    /// BCP 47 language tag of the recipient.
    pub language: String,
    /// All columns that are not required ones, by name.
    pub fields: BTreeMap<String, String>,
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient(line {})", self.line)
    }
}

/// A list, or one of its records, cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct RowError {
    /// Where the record begins.
    pub line: u64,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a list or a record.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Nothing more can be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The form of the record is wrong.
    #[error(transparent)]
    BadField(#[from] BadField),
    /// The file has no header.
    #[error("the file is empty; a header is expected")]
    NoHeader,
    /// A name in the header is not one.
    #[error("column {0} has no proper name (a-z, 0-9, _); is the header missing?")]
    ColumnName(usize),
    /// A name stands twice in the header.
    #[error("column {0} has the name of an earlier one")]
    ColumnTwice(usize),
    /// A required column is not in the header.
    #[error("the column `{0}` is missing")]
    ColumnMissing(&'static str),
    /// The record has not as many fields as the header.
    #[error("has {found} fields, the header has {expected}")]
    WrongFieldCount {
        /// Fields in the header.
        expected: usize,
        /// Fields in the record.
        found: usize,
    },
    /// `request_id` is not a UUID.
    #[error("request_id is not a UUID")]
    RequestId,
    /// `request_id` stands in an earlier record.
    #[error("request_id is the same as in line {0}")]
    RequestIdTwice(u64),
    /// `scheme` or `identifier` is wrong.
    #[error("identifier: {0}")]
    Identifier(#[from] IdentifierError),
    /// `language` is not a language tag.
    #[error("language is not a BCP 47 tag such as `nl-BE`")]
    Language,
}

impl From<RowError> for Refusal {
    fn from(error: RowError) -> Self {
        let reason = match &error.problem {
            Problem::Identifier(_) => Reason::InvalidIdentifier,
            Problem::Unreadable(Unreadable::TooLarge) => Reason::TooLarge,
            Problem::BadField(BadField::TooLong(_) | BadField::TooMany) => Reason::TooLarge,
            Problem::Unreadable(Unreadable::Io(_)) => Reason::Internal,
            _ => Reason::InvalidField,
        };
        Self::new(reason, error.to_string())
    }
}

/// A list being read: an iterator over its records.
pub struct Mailing<R> {
    records: Records<R>,
    columns: Vec<String>,
    /// The line in which a request id was met first.
    seen: HashMap<MessageId, u64>,
    ended: bool,
}

/// Reads the header of a list; the records follow as the iterator is asked for them.
pub fn read<R: Read>(input: R) -> Result<Mailing<R>, RowError> {
    let mut records = Records::new(input);
    let columns = header(&mut records).map_err(|problem| RowError { line: 1, problem })?;
    Ok(Mailing { records, columns, seen: HashMap::new(), ended: false })
}

fn header<R: Read>(records: &mut Records<R>) -> Result<Vec<String>, Problem> {
    let mut columns = records.next()?.ok_or(Problem::NoHeader)?.fields?;
    for index in 0..columns.len() {
        columns[index] = columns[index].trim().to_owned();
        if !is_field_name(&columns[index]) {
            return Err(Problem::ColumnName(index + 1));
        }
        if columns[..index].contains(&columns[index]) {
            return Err(Problem::ColumnTwice(index + 1));
        }
    }
    match REQUIRED.iter().find(|name| !columns.iter().any(|column| column == *name)) {
        Some(name) => Err(Problem::ColumnMissing(name)),
        None => Ok(columns),
    }
}

impl<R: Read> Iterator for Mailing<R> {
    type Item = Result<Recipient, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.records.next() {
            Ok(Some(record)) => {
                let line = record.line;
                let fields = record.fields.map_err(Problem::from);
                let recipient = fields.and_then(|fields| self.recipient(line, fields));
                Some(recipient.map_err(|problem| RowError { line, problem }))
            }
            Ok(None) => None,
            Err(unreadable) => {
                self.ended = true;
                Some(Err(RowError { line: self.records.line(), problem: unreadable.into() }))
            }
        }
    }
}

impl<R> Mailing<R> {
    fn recipient(&mut self, line: u64, values: Vec<String>) -> Result<Recipient, Problem> {
        if values.len() != self.columns.len() {
            return Err(Problem::WrongFieldCount { expected: self.columns.len(), found: values.len() });
        }
        let mut fields: BTreeMap<_, _> = self.columns.iter().cloned().zip(values).collect();
        let mut take = |name| fields.remove(name).ok_or(Problem::ColumnMissing(name));
        let [request_id, scheme, value, language] = REQUIRED;
        let (request_id, scheme) = (take(request_id)?, take(scheme)?);
        let (value, language) = (take(value)?, take(language)?);

        let id = MessageId::from_text(request_id.trim()).ok_or(Problem::RequestId)?;
        match self.seen.entry(id) {
            Entry::Occupied(first) => return Err(Problem::RequestIdTwice(*first.get())),
            Entry::Vacant(place) => place.insert(line),
        };
        let identifier = Identifier::parse(scheme.trim(), &value)?;
        if !is_language_tag(&language) {
            return Err(Problem::Language);
        }
        Ok(Recipient { line, request_id: id.to_text(), identifier, language, fields })
    }
}

/// Whether `tag` has the form of a language tag (RFC 5646 §2.1): subtags of 1
/// to 8 letters and digits, the first of letters alone, 35 characters at most.
fn is_language_tag(tag: &str) -> bool {
    let subtag = |subtag: &str| {
        (1..=8).contains(&subtag.len()) && subtag.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let primary = tag.split('-').next().unwrap_or_default();
    tag.len() <= 35
        && primary.len() >= 2
        && primary.bytes().all(|byte| byte.is_ascii_alphabetic())
        && tag.split('-').all(subtag)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "request_id,scheme,identifier,name,language";

    fn id(n: u32) -> String {
        format!("00000000-0000-4000-8000-{n:012}")
    }

    /// Each record's name, or what is said of it.
    fn read_all(input: &[u8]) -> Vec<Result<String, String>> {
        let rows = read(input).unwrap();
        rows.map(|row| row.map(|r| r.fields["name"].clone()).map_err(|e| e.to_string())).collect()
    }

    fn header_error(input: &str) -> String {
        read(input.as_bytes()).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn a_good_record_is_taken_apart() {
        let row = "{0B9C1F2A-0000-4000-8000-00000000000A},be-nn,85.07.30-033.28,\"Vos, \"\"V\"\"\",nl-BE";
        let input = format!("\u{feff}{HEADER}\r\n{row}\r\n");
        let recipient = read(input.as_bytes()).unwrap().next().unwrap().unwrap();
        assert_eq!(recipient.line, 2);
        assert_eq!(recipient.request_id, "0b9c1f2a-0000-4000-8000-00000000000a");
        assert_eq!(recipient.identifier, Identifier::parse("be-nn", "85073003328").unwrap());
        assert_eq!(recipient.language, "nl-BE");
        assert_eq!(recipient.fields, BTreeMap::from([("name".to_owned(), "Vos, \"V\"".to_owned())]));
        assert_eq!(format!("{recipient:?}"), "Recipient(line 2)");
    }

    #[test]
    fn bad_records_are_named_and_the_others_go_on() {
        let good = |n: u32| format!("{},be-nn,85073003328,n{n},nl", id(n));
        let long = "x".repeat(MAX_FIELD + 1);
        let longest = "x".repeat(MAX_FIELD);
        let rows = [
            HEADER.to_owned(),
            good(2),
            format!("{},be-nn,85073003329,n3,nl", id(3)),
            format!("{},be-niss,85073003328,n4,nl", id(4)),
            format!("{},be-nn,85073003328,n5", id(5)),
            format!("{},be-nn,85073003328,n6,nl,more", id(6)),
            "not-a-uuid,be-nn,85073003328,n7,nl".to_owned(),
            good(2),
            format!("{},be-nn,85073003328,{long},nl", id(9)),
            format!("{},be-nn,85073003328,{longest},nl", id(10)),
            format!("{},be-nn,85073003328,n11,x", id(11)),
            ",".repeat(MAX_COLUMNS),
            format!("{},be-nn,85073003328,\"over\r\ntwo lines\",nl", id(13)),
            "\r\n".to_owned(),
            good(17),
        ];
        let expected: [(u32, Result<&str, &str>); 14] = [
            (2, Ok("n2")),
            (3, Err("identifier: the check digits are wrong")),
            (4, Err("identifier: unknown scheme; known are be-nn, be-cbe, de-stid, no-fnr and e164")),
            (5, Err("has 4 fields, the header has 5")),
            (6, Err("has 6 fields, the header has 5")),
            (7, Err("request_id is not a UUID")),
            (8, Err("request_id is the same as in line 2")),
            (9, Err("field 4 is longer than 4096 bytes; is a quote not closed?")),
            (10, Ok(&longest)),
            (11, Err("language is not a BCP 47 tag such as `nl-BE`")),
            (12, Err("has more than 64 fields")),
            (13, Ok("over\r\ntwo lines")),
            (17, Ok("n17")),
            (18, Err("field 4 is not UTF-8")),
        ];
        for end in ["\n", "\r\n", "\r"] {
            // The text is the same whatever ends its lines, but for the one within quotes.
            let mut input = rows.join(end).replace("\r\n", end).into_bytes();
            input.extend_from_slice(format!("{end}{},be-nn,85073003328,", id(18)).as_bytes());
            input.extend_from_slice(b"\xff\xfe,nl");
            let said = expected.map(|(line, result)| match result {
                Ok(name) => Ok(name.replace("\r\n", end)),
                Err(problem) => Err(format!("line {line}: {problem}")),
            });
            assert_eq!(read_all(&input), said);
            assert!(read(input.as_slice()).unwrap().flatten().any(|r| r.line == 17));
        }
    }

    #[test]
    fn an_open_quote_costs_no_memory_and_is_said() {
        let open = format!("{HEADER}\n{},be-nn,\"{}", id(2), "x\n".repeat(1_000_000));
        let said = read_all(open.as_bytes());
        assert_eq!(
            said,
            [Err("line 2: field 3 is longer than 4096 bytes; is a quote not closed?".to_owned())]
        );
    }

    #[test]
    fn a_header_is_needed() {
        assert_eq!(header_error(""), "line 1: the file is empty; a header is expected");
        assert_eq!(
            header_error("request_id,scheme,identifier\n"),
            "line 1: the column `language` is missing"
        );
        let twice = header_error(&format!("{HEADER},name\n"));
        assert_eq!(twice, "line 1: column 6 has the name of an earlier one");
        let data = format!("{},be-nn,85073003328,Vos,nl\n", id(1));
        assert_eq!(
            header_error(&data),
            "line 1: column 1 has no proper name (a-z, 0-9, _); is the header missing?"
        );
    }

    #[test]
    fn a_file_beyond_the_limit_ends_with_an_error() {
        let head = format!("{HEADER}\n{},be-nn,85073003328,a,nl\n", id(2));
        let input = head.as_bytes().chain(std::io::repeat(b'\n').take(MAX_FILE));
        let said: Vec<_> = read(input).unwrap().map(|row| row.map_err(|e| Refusal::from(e).reason)).collect();
        assert!(matches!(said.as_slice(), [Ok(_), Err(Reason::TooLarge)]), "{said:?}");
    }

    #[test]
    fn refusals_name_line_and_reason_but_no_identifier() {
        let row = format!("{HEADER}\n{},be-nn,85073003329,a,nl\n", id(2));
        let refusal = Refusal::from(read(row.as_bytes()).unwrap().next().unwrap().unwrap_err());
        assert_eq!(refusal.reason, Reason::InvalidIdentifier);
        assert_eq!(refusal.message, "line 2: identifier: the check digits are wrong");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let input = [HEADER.as_bytes(), b"\n", &bytes].concat();
            for row in read(input.as_slice()).unwrap() {
                let _ = row;
            }
            let _ = read(bytes.as_slice()).map(Iterator::count);
        }
    }
}
