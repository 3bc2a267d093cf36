//! Mailings: lists of recipients and letters with fields, as somebody's systems hand them over.

use crate::Target;
use crate::input::Steps;
use chancery::mailing::recipients;
use chancery::mailing::template::{MAX_LETTER, Template};
use chancery_types::{Identifier, MessageId};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::collections::{BTreeMap, BTreeSet};

/// A list of recipients (CSV).
pub(crate) const RECIPIENTS: Target = Target { name: "recipients", run: list, seeds: list_seeds };
/// A value, then a letter in which it is merged.
pub(crate) const TEMPLATE: Target = Target { name: "template", run: template, seeds: template_seeds };

const SAMPLE_LIST: &str = include_str!("../../../deploy/local/recipients.csv");
const SAMPLE_LETTER: &str = include_str!("../../../deploy/local/letter.md");

fn list(bytes: &[u8]) {
    let Ok(list) = recipients::read(bytes) else { return };
    let (mut last, mut seen, mut columns) = (0, BTreeSet::new(), None);
    for row in list {
        let line = match &row {
            Ok(recipient) => recipient.line,
            Err(error) => error.line,
        };
        assert!(line >= last.max(1), "lines go back");
        last = line;
        let Ok(recipient) = row else { continue };
        assert!(line > 1, "the header is a recipient");
        let id = MessageId::from_text(&recipient.request_id).expect("a request id is none");
        assert!(seen.insert(id), "two letters have one request id");
        let value = recipient.identifier.value();
        assert!(
            Identifier::new(recipient.identifier.scheme(), value).is_ok_and(|i| i == recipient.identifier)
        );
        assert!(recipient.fields.values().all(|field| field.len() <= 4096));
        let names: Vec<_> = recipient.fields.into_keys().collect();
        assert!(*columns.get_or_insert_with(|| names.clone()) == names, "a record has other columns");
    }
}

fn list_seeds() -> Vec<Vec<u8>> {
    let head = SAMPLE_LIST.lines().take(4).collect::<Vec<_>>();
    let quoted = "request_id,scheme,identifier,language,name\r\n00000000-0000-4000-8000-000000000001,be-nn,\
                  85.07.30-033.28,nl,\"Vos, \"\"V\"\"\r\nx\"\r\n";
    vec![
        head.join("\n").into_bytes(),
        quoted.as_bytes().to_vec(),
        format!("\u{feff}{}", head.join("\r\n")).into_bytes(),
    ]
}

fn template(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let value = String::from_utf8_lossy(steps.bytes(40)).into_owned();
    let Ok(letter) = std::str::from_utf8(steps.rest()) else { return };
    let Ok(template) = Template::parse(letter) else { return };
    assert!(letter.len() <= MAX_LETTER);
    let with = |value: &str| {
        let names = ["name", "a", "amount", "due_date", "case_number", "first_name"];
        let fields = names.map(|name| (name.to_owned(), value.to_owned()));
        template.render(&BTreeMap::from(fields))
    };
    let (Ok(merged), Ok(plain)) = (with(&value), with("x")) else { return };
    assert!(merged.len() <= MAX_LETTER);
    // Whatever is merged, the letter has the same build as with a word in its place; but that
    // emphasis may begin or end beside punctuation where it does not beside a word.
    if !value.trim_matches(|c: char| c.is_whitespace() || c.is_control()).is_empty() {
        assert!(build(&merged) == build(&plain), "what is merged is more than text");
    }
}

/// What a CommonMark text is made of, beside its words.
fn build(markdown: &str) -> Vec<String> {
    let mut build = Vec::new();
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match event {
            // The word alone stands in these.
            Event::Start(Tag::Link { link_type, .. }) => build.push(format!("link {link_type:?}")),
            Event::Start(Tag::Image { link_type, .. }) => build.push(format!("image {link_type:?}")),
            Event::Start(Tag::Emphasis | Tag::Strong) | Event::End(TagEnd::Emphasis | TagEnd::Strong) => {}
            Event::Start(tag) => build.push(format!("{:?}", std::mem::discriminant(&tag))),
            Event::End(tag) => build.push(format!("end {:?}", std::mem::discriminant(&tag))),
            Event::Html(_) | Event::InlineHtml(_) => build.push("html".to_owned()),
            Event::Code(_) => build.push("code".to_owned()),
            Event::HardBreak => build.push("break".to_owned()),
            Event::Rule => build.push("rule".to_owned()),
            _ => {}
        }
    }
    build
}

fn template_seeds() -> Vec<Vec<u8>> {
    let letters = [
        SAMPLE_LETTER,
        "Dear {{ name }},\n\n| a | {{a}} |\n|---|---|\n| {{ amount }} | 1 |\n\n\\{{ not a field",
        "# {{ name }}\n\n- {{ a }}\n- [{{ a }}](https://a.example)\n\n> {{ due_date }}",
        "`{{ name }}`",
    ];
    let values = ["", "*x*", "# <b>", "1. a|b"];
    letters
        .iter()
        .zip(values)
        .map(|(letter, value)| {
            [&[u8::try_from(value.len()).unwrap()], value.as_bytes(), letter.as_bytes()].concat()
        })
        .collect()
}
