//! Records of a CSV file (RFC 4180), read one at a time and one field at a
//! time, so that no input makes us hold more than one record of limited size.
//! What the fields mean is `recipients`' business.

use csv_core::ReadFieldResult;
use std::io::{self, BufRead, BufReader, Read};

/// Largest file in bytes.
pub const MAX_FILE: u64 = 256 * 1024 * 1024;

/// Largest field in bytes, quotes taken off.
pub const MAX_FIELD: usize = 4 * 1024;

/// Most columns.
pub const MAX_COLUMNS: usize = 64;

/// A record's fields, or why it cannot be used. The next one can.
pub(super) struct Record {
    /// Where it begins; the first line is 1.
    pub(super) line: u64,
    /// Its fields.
    pub(super) fields: Result<Vec<String>, BadField>,
}

/// What is wrong with the form of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadField {
    /// A field is longer than [`MAX_FIELD`].
    #[error("field {0} is longer than {MAX_FIELD} bytes; is a quote not closed?")]
    TooLong(usize),
    /// A field is not UTF-8.
    #[error("field {0} is not UTF-8")]
    NotUtf8(usize),
    /// More than [`MAX_COLUMNS`] fields.
    #[error("has more than {MAX_COLUMNS} fields")]
    TooMany,
}

/// Nothing more can be read from the file.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The file is longer than [`MAX_FILE`].
    #[error("the file is longer than {} MiB", MAX_FILE >> 20)]
    TooLarge,
    /// The file cannot be read.
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// The records of a file.
pub(super) struct Records<R> {
    input: BufReader<R>,
    parser: csv_core::Reader,
    line: u64,
    last: u8,
    taken: u64,
}

impl<R: Read> Records<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input: BufReader::new(input), parser: csv_core::Reader::new(), line: 1, last: 0, taken: 0 }
    }

    /// Where reading stands.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The next record that is not an empty line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Record>, Unreadable> {
        // Empty lines, and what is left of a CR LF: so that `line` is where the record begins.
        while let Some(b'\r' | b'\n') = self.input.fill_buf()?.first() {
            self.parse(|_, input| ((), usize::from(!input.is_empty())))?;
        }
        let line = self.line;
        let (mut fields, mut bad) = (Vec::new(), None);
        for index in 1.. {
            let mut field = [0; MAX_FIELD + 1];
            let mut length = 0;
            let last = loop {
                let (result, written) = self.parse(|parser, input| {
                    let (result, read, written) = parser.read_field(input, &mut field[length..]);
                    ((result, written), read)
                })?;
                length += written;
                match result {
                    ReadFieldResult::InputEmpty => {}
                    ReadFieldResult::OutputFull => {
                        bad = bad.or(Some(BadField::TooLong(index)));
                        length = 0;
                    }
                    ReadFieldResult::Field { record_end } => break record_end,
                    ReadFieldResult::End => return Ok(None),
                }
            };
            if index > MAX_COLUMNS {
                bad = bad.or(Some(BadField::TooMany));
            }
            match std::str::from_utf8(&field[..length]) {
                _ if bad.is_some() => fields = Vec::new(),
                Ok(field) => fields.push(field.to_owned()),
                Err(_) => bad = Some(BadField::NotUtf8(index)),
            }
            if last {
                break;
            }
        }
        Ok(Some(Record { line, fields: bad.map_or(Ok(fields), Err) }))
    }

    /// Lets `step` take some bytes of the input, and counts them.
    fn parse<T>(
        &mut self,
        step: impl FnOnce(&mut csv_core::Reader, &[u8]) -> (T, usize),
    ) -> Result<T, Unreadable> {
        let input = self.input.fill_buf()?;
        let (result, read) = step(&mut self.parser, input);
        for byte in &input[..read] {
            // A line ends with CR LF, LF or CR, as a record does.
            self.line += u64::from(*byte == b'\r' || *byte == b'\n' && self.last != b'\r');
            self.last = *byte;
        }
        self.input.consume(read);
        self.taken += read as u64;
        if self.taken > MAX_FILE { Err(Unreadable::TooLarge) } else { Ok(result) }
    }
}
