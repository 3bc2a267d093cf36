//! A letter in CommonMark with merge fields, `{{ field }}`. What is merged is
//! text and stays text: it can make no heading, link, image or HTML, whatever
//! it holds. `\{{` stays as it is and names no field.

use super::is_field_name;
use chancery_types::{Reason, Refusal};
use pulldown_cmark::{Event, LinkType, Options, Parser, Tag};
use std::collections::BTreeMap;
use std::ops::Range;

/// Largest letter in bytes, before and after merging.
pub const MAX_LETTER: usize = 64 * 1024;

/// A letter that can be merged with fields.
pub struct Template {
    parts: Vec<Part>,
}

enum Part {
    Text(String),
    Field { name: String, line: usize },
}

/// A letter is not one, or lacks a field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The letter is longer than [`MAX_LETTER`].
    #[error("the letter is longer than {} KiB", MAX_LETTER >> 10)]
    TooLong,
    /// `{{` without `}}`, or something else than a field's name between them.
    #[error("letter, line {line}: after `{{{{` a field's name (a-z, 0-9, _) and `}}}}` are expected")]
    NotAField {
        /// Line of the letter.
        line: usize,
    },
    /// A field where text cannot be kept text.
    #[error(
        "letter, line {line}: a field can stand in text only, not in code, HTML, a link's address or a list's number, \
         and not right after `<`"
    )]
    NotInText {
        /// Line of the letter.
        line: usize,
    },
    /// The list of recipients has no such column.
    #[error("letter, line {line}: there is no column `{name}`")]
    UnknownField {
        /// The field's name.
        name: String,
        /// Line of the letter.
        line: usize,
    },
}

impl From<TemplateError> for Refusal {
    fn from(error: TemplateError) -> Self {
        let reason = if error == TemplateError::TooLong { Reason::TooLarge } else { Reason::InvalidField };
        Self::new(reason, error.to_string())
    }
}

impl Template {
    /// From the letter's text.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_LETTER {
            return Err(TemplateError::TooLong);
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (mut parts, mut rest, mut plain) = (Vec::new(), text, String::new());
        while let Some(open) = rest.find("{{") {
            let (before, after) = (&rest[..open], &rest[open + 2..]);
            plain.push_str(before);
            if before.ends_with('\\') {
                plain.push_str("{{");
                rest = after;
                continue;
            }
            let line = 1 + text[..text.len() - after.len()].matches('\n').count();
            let (name, after) = after.split_once("}}").ok_or(TemplateError::NotAField { line })?;
            let name = name.trim();
            if !is_field_name(name) {
                return Err(TemplateError::NotAField { line });
            }
            parts.push(Part::Text(std::mem::take(&mut plain)));
            parts.push(Part::Field { name: name.to_owned(), line });
            rest = after;
        }
        parts.push(Part::Text(plain + rest));
        let template = Self { parts };
        template.check_places()?;
        Ok(template)
    }

    /// The letter with `fields` in their places.
    pub fn render(&self, fields: &BTreeMap<String, String>) -> Result<String, TemplateError> {
        let mut letter = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => letter.push_str(text),
                Part::Field { name, line } => {
                    let value = fields.get(name);
                    let unknown = || TemplateError::UnknownField { name: name.clone(), line: *line };
                    escape(value.ok_or_else(unknown)?, &mut letter);
                }
            }
            if letter.len() > MAX_LETTER {
                return Err(TemplateError::TooLong);
            }
        }
        Ok(letter)
    }

    /// Whether each field, replaced by a word or by a number, is part of the text that
    /// is read, where a backslash makes punctuation harmless (CommonMark §2.4).
    fn check_places(&self) -> Result<(), TemplateError> {
        // A number may begin a list.
        ['x', '1'].into_iter().try_for_each(|value| self.check_places_of(value))
    }

    fn check_places_of(&self, value: char) -> Result<(), TemplateError> {
        let (mut sample, mut places) = (String::new(), Vec::new());
        for part in &self.parts {
            match part {
                Part::Text(text) => sample.push_str(text),
                Part::Field { line, .. } => {
                    places.push((sample.len(), *line));
                    sample.push(value);
                }
            }
        }
        let texts = texts(&sample);
        let is_text =
            |at: &usize| texts.iter().any(|text| text.contains(at)) && !ends_in_a_tag(&sample[..*at]);
        match places.iter().find(|(at, _)| !is_text(at)) {
            Some((_, line)) => Err(TemplateError::NotInText { line: *line }),
            None => Ok(()),
        }
    }
}

/// Whether some word that follows makes HTML or an address of a `<`, though not every one does
/// (CommonMark §4.6, §6.5): `<div` is HTML and `<x` is not.
fn ends_in_a_tag(text: &str) -> bool {
    let before = text.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || c == '/');
    before.strip_suffix('<').is_some_and(|before| {
        let escapes = before.len() - before.trim_end_matches('\\').len();
        escapes.is_multiple_of(2)
    })
}

/// Where in a CommonMark text there is text proper.
fn texts(markdown: &str) -> Vec<Range<usize>> {
    let (mut texts, mut literal_until) = (Vec::new(), 0);
    for (event, range) in Parser::new_ext(markdown, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Start(
                Tag::CodeBlock(_) | Tag::Link { link_type: LinkType::Autolink | LinkType::Email, .. },
            ) => literal_until = range.end,
            Event::Text(_) if range.start >= literal_until => texts.push(range),
            _ => {}
        }
    }
    texts
}

/// Appends `value` as text: white space and control characters become single
/// spaces, so that no line begins in it; punctuation that could mean something
/// in CommonMark or in what is commonly added to it is escaped.
fn escape(value: &str, letter: &mut String) {
    let words = value.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let chars: Vec<char> = words.collect::<Vec<_>>().join(" ").chars().collect();
    let around = |at: usize, test: fn(&char) -> bool| {
        at > 0 && test(&chars[at - 1]) && chars.get(at + 1).is_some_and(test)
    };
    for (at, c) in chars.iter().enumerate() {
        let plain = match c {
            '-' => around(at, |c| c.is_alphanumeric()),
            '.' => around(at, char::is_ascii_digit),
            // A link's title that the letter left open ends with a quote before a space or bracket.
            '\'' | '"' => around(at, |c| c.is_alphanumeric()),
            ',' | ';' | '/' | '%' | '?' => true,
            c => !c.is_ascii_punctuation(),
        };
        match c {
            // Tables take a backslash before `|` for themselves, even one that is escaped.
            '\\' => letter.push_str("&#92;"),
            // Code and HTML that the letter left open end with these, escaped or not.
            '`' => letter.push_str("&#96;"),
            '<' => letter.push_str("&lt;"),
            '>' => letter.push_str("&gt;"),
            c if plain => letter.push(*c),
            c => letter.extend(['\\', *c]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use pulldown_cmark::TagEnd;

    fn fields(value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("a".to_owned(), value.to_owned()), ("due_date".to_owned(), "2027-01-31".to_owned())])
    }

    fn merge(letter: &str, value: &str) -> String {
        Template::parse(letter).unwrap().render(&fields(value)).unwrap()
    }

    fn parse_error(letter: &str) -> TemplateError {
        Template::parse(letter).map(|_| ()).unwrap_err()
    }

    #[test]
    fn fields_take_their_places() {
        assert_eq!(
            merge("# {{a}}\n\n*{{ a }}* until {{due_date}}.", "Ada"),
            "# Ada\n\n*Ada* until 2027-01-31."
        );
        assert_eq!(merge("no field", "Ada"), "no field");
        assert_eq!(merge("\u{feff}{{ a }}", "Ada"), "Ada");
        assert_eq!(merge("\\{{ a }} {{ a }} }}", "Ada"), "\\{{ a }} Ada }}");
    }

    #[test]
    fn errors_name_field_and_line() {
        let template = Template::parse("Dear {{ a }},\n\n{{ amount }}").unwrap();
        let error = template.render(&fields("Ada")).unwrap_err();
        assert_eq!(error, TemplateError::UnknownField { name: "amount".into(), line: 3 });
        assert_eq!(error.to_string(), "letter, line 3: there is no column `amount`");
        for broken in ["\n{{ a", "\n{{ A }}", "\n{{ a b }}", "\n{{}}", "\n{{{ a }}}"] {
            assert_eq!(parse_error(broken), TemplateError::NotAField { line: 2 }, "{broken}");
        }
    }

    #[test]
    fn fields_stand_in_text_only() {
        for elsewhere in [
            "\n`{{ a }}`",
            "\n    {{ a }}",
            "```\n{{ a }}\n```",
            "\n<b title=\"{{ a }}\">",
            "\nx <{{ a }}>",
            "<div>\n{{ a }}\n</div>",
            "\n[pay]({{ a }})",
            "\n[pay](https://example.org \"{{ a }}\")",
            "\n<https://example.org/{{ a }}>",
            "\n[pay]: {{ a }}",
            "\n{{ a }}. first",
            "\n> {{ a }}) first",
            "\n<{{ a }}",
            "\n</{{ a }}",
            "\n<d{{ a }}",
            "\n\\\\<{{ a }}",
            "\n<{{ a }}://example.org>",
        ] {
            assert_eq!(parse_error(elsewhere), TemplateError::NotInText { line: 2 }, "{elsewhere}");
        }
        assert_eq!(merge("[pay {{ a }}](https://example.org)", "now"), "[pay now](https://example.org)");
        assert_eq!(visible(&merge("\\<{{ a }}>", "div"), &[]), Some("<div>".to_owned()));
        assert_eq!(visible(&merge("1 < {{ a }}", "?"), &[]), Some("1 < ?".to_owned()));
    }

    #[test]
    fn what_the_letter_left_open_no_value_ends() {
        for (letter, value) in [
            ("a ` b {{ a }}", "c`"),
            ("a <!X {{ a }}", "c>"),
            ("a <b c={{ a }}", "d>"),
            ("[a](/b \"{{ a }} )", "c\""),
        ] {
            let text = merge(letter, value);
            let read = letter.replace("{{ a }}", value);
            assert_eq!(visible(&text, &[]), Some(read), "{text}");
        }
    }

    #[test]
    fn letters_have_a_limit() {
        assert_eq!(parse_error(&"x".repeat(MAX_LETTER + 1)), TemplateError::TooLong);
        let template = Template::parse(&("x".repeat(MAX_LETTER - 10) + "{{ a }}")).unwrap();
        assert!(template.render(&fields("12345678901")).is_err_and(|e| e == TemplateError::TooLong));
        assert_eq!(template.render(&fields("12")).unwrap().len(), MAX_LETTER - 8);
    }

    #[test]
    fn what_is_plain_stays_readable() {
        let value = "Ånund O'Neill, Rue de l'Été 3/b; 2027-01-31, 1234.50 EUR";
        assert_eq!(merge("{{ a }}", value), value);
        assert_eq!(
            merge("{{ a }}", " 1. <b>\n\n# www.example.org"),
            "1\\. &lt;b&gt; \\# www\\.example\\.org"
        );
    }

    #[test]
    fn a_backslash_does_not_open_a_table_cell() {
        let row = merge("|h|\n|---|\n|{{ a }}|\n", "a\\");
        assert!(row.ends_with("\n|a&#92;|\n"), "{row}");
    }

    /// All that a reader sees as text, if nothing but paragraphs is there besides `expected`.
    fn visible(markdown: &str, expected: &[TagEnd]) -> Option<String> {
        let options = Options::ENABLE_TABLES
            | Options::ENABLE_STRIKETHROUGH
            | Options::ENABLE_FOOTNOTES
            | Options::ENABLE_TASKLISTS
            | Options::ENABLE_MATH;
        let mut text = String::new();
        for event in Parser::new_ext(markdown, options) {
            match event {
                Event::Text(part) => text.push_str(&part),
                Event::Start(_) => {}
                Event::End(TagEnd::Paragraph) => {}
                Event::End(end) if expected.contains(&end) => {}
                _ => return None,
            }
        }
        Some(text)
    }

    proptest! {
        #[test]
        fn what_is_merged_is_text_and_nothing_else(
            value in prop_oneof![
                any::<String>(),
                "[-*_#+.>=~|`!&;:$\\\\<>()\\[\\]{}/ \n\t0-9a-z]{0,20}",
            ],
        ) {
            let expected = value.split(|c: char| c.is_whitespace() || c.is_control())
                .filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
            let own_line = merge("{{ a }}\n", &value);
            prop_assert_eq!(visible(&own_line, &[]), Some(expected.clone()), "{}", own_line);
            let between = merge("Dear {{ a }}, hello", &value);
            let read = visible(&between, &[]).unwrap_or_default();
            let read = read.strip_prefix("Dear ").and_then(|read| read.strip_suffix(", hello"));
            prop_assert_eq!(read, Some(expected.as_str()), "{}", between);
            if !expected.is_empty() {
                let heading = TagEnd::Heading(pulldown_cmark::HeadingLevel::H2);
                let read = visible(&merge("## {{ a }}", &value), &[heading]);
                prop_assert_eq!(read, Some(expected.clone()));
                let table = [TagEnd::Table, TagEnd::TableHead, TagEnd::TableRow, TagEnd::TableCell];
                let read = visible(&merge("|h|\n|---|\n|{{ a }}|\n", &value), &table);
                prop_assert_eq!(read, Some(format!("h{expected}")));
            }
        }
    }
}
