//! The shapes that Chancery writes and reads: a letter is Markdown text and
//! attachments as external parts. A letter of both is a multipart of
//! `processAll`: a reader shows the text even where it cannot open a file.
//! Whatever else a message holds is named, never guessed at.

use super::condition::Condition;
use super::receipt::{self, ReadReceipt};
use super::succession;
use super::{
    Cardinality, ComposeError, ContentError, Disposition, Extensions, ExternalPart, MAX_ATTACHMENTS,
    MAX_TEXT, MimiContent, MimiId, OverLimit, Part, Semantics, message_id,
};
use crate::attachment::ExternalFile;
use chancery_sdk_core::Succession;
use chancery_types::Entropy;
use pulldown_cmark::{Event, Options, Parser};
use std::fmt;

/// Media type of a letter's text (draft, section 7.1).
const MARKDOWN: &str = "text/markdown;variant=GFM-MIMI";

/// Stands for a part that names no media type (RFC 2046, section 4.5.1).
const UNNAMED: &str = "application/octet-stream";

/// RFC 5646, section 4.4.1: tags up to 35 characters are to be supported.
const MAX_LANGUAGE_TAG: usize = 35;

/// What a person reads.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Letter {
    /// CommonMark text; HTML in it is sent as text. Empty: attachments only.
    pub markdown: String,
    /// BCP 47 tag of the text. Empty: not stated.
    pub language: String,
    /// The message that this one answers.
    pub in_reply_to: Option<MimiId>,
    /// Files; at most 16 when we write.
    pub attachments: Vec<ExternalFile>,
}

/// A message ready to be encrypted.
pub struct Composed {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The id by which later messages name it.
    pub id: MimiId,
}

impl Letter {
    /// The letter as a message with a fresh salt. URIs as [`super`] says.
    pub fn compose(
        &self,
        sender_uri: &str,
        room_uri: &str,
        entropy: &dyn Entropy,
    ) -> Result<Composed, ComposeError> {
        compose(self.part()?, self.in_reply_to, sender_uri, room_uri, entropy)
    }

    /// One message with the same in several languages, the favourite first: a reader shows one
    /// of them.
    pub fn compose_choice(
        letters: &[Self],
        condition: Option<&Condition>,
        sender_uri: &str,
        room_uri: &str,
        entropy: &dyn Entropy,
    ) -> Result<Composed, ComposeError> {
        let choice = |letter: &Self| Ok(Part { language: letter.language.clone(), ..letter.part()? });
        let mut parts = letters.iter().map(choice).collect::<Result<Vec<_>, ComposeError>>()?;
        let part = match parts.len() {
            0 | 1 => parts.pop().ok_or(ComposeError::Empty)?,
            _ => Part {
                disposition: Disposition::RENDER,
                language: String::new(),
                cardinality: Cardinality::Multi { semantics: Semantics::ChooseOne, parts },
            },
        };
        let origin = Extensions::new(sender_uri, room_uri)?;
        let extensions = match condition {
            Some(condition) => origin.under(condition),
            None => origin,
        };
        compose_with(part, None, extensions, (sender_uri, room_uri), entropy)
    }

    fn part(&self) -> Result<Part, ComposeError> {
        if self.markdown.len() > MAX_TEXT {
            return Err(OverLimit("text").into());
        }
        if self.attachments.len() > MAX_ATTACHMENTS {
            return Err(OverLimit("attachments").into());
        }
        if !self.language.is_empty() && !is_language_tag(&self.language) {
            return Err(ComposeError::Language);
        }
        let mut parts = Vec::with_capacity(1 + self.attachments.len());
        if !self.markdown.is_empty() {
            parts.push(Part {
                disposition: Disposition::RENDER,
                language: self.language.clone(),
                cardinality: Cardinality::Single {
                    content_type: MARKDOWN.to_owned(),
                    content: without_html(&self.markdown).into_bytes(),
                },
            });
        }
        for file in &self.attachments {
            file.check()?;
            parts.push(Part {
                disposition: Disposition::ATTACHMENT,
                language: String::new(),
                cardinality: Cardinality::External(Box::new(ExternalPart::from(file))),
            });
        }
        match parts.len() {
            0 | 1 => parts.pop().ok_or(ComposeError::Empty),
            _ => Ok(Part {
                disposition: Disposition::RENDER,
                language: String::new(),
                cardinality: Cardinality::Multi { semantics: Semantics::ProcessAll, parts },
            }),
        }
    }
}

pub(super) fn compose(
    part: Part,
    in_reply_to: Option<MimiId>,
    sender_uri: &str,
    room_uri: &str,
    entropy: &dyn Entropy,
) -> Result<Composed, ComposeError> {
    let extensions = Extensions::new(sender_uri, room_uri)?;
    compose_with(part, in_reply_to, extensions, (sender_uri, room_uri), entropy)
}

fn compose_with(
    part: Part,
    in_reply_to: Option<MimiId>,
    extensions: Extensions,
    (sender_uri, room_uri): (&str, &str),
    entropy: &dyn Entropy,
) -> Result<Composed, ComposeError> {
    let content = MimiContent {
        salt: entropy.array(),
        replaces: None,
        topic_id: Vec::new(),
        expires: None,
        in_reply_to,
        extensions,
        part,
    };
    let bytes = content.encode()?;
    let id = message_id(sender_uri, room_uri, &bytes, &content.salt)?;
    Ok(Composed { bytes, id })
}

/// What a message is to this build.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// A letter.
    Letter {
        /// What this build understands of it.
        letter: Letter,
        /// Media types of its other parts, in order.
        unknown_parts: Vec<String>,
    },
    /// Messages were read.
    ReadReceipt(ReadReceipt),
    /// The group that it is in takes another one's place.
    Succession(Succession),
    /// Something else: edits, deletions, reactions, and parts of other kinds only.
    Unknown {
        /// Media types of its parts, in order.
        content_types: Vec<String>,
    },
}

/// A message that came in.
pub struct Opened {
    /// The id by which later messages name it.
    pub id: MimiId,
    /// What it is.
    pub body: Body,
}

impl Body {
    /// Reads a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        read_content(&MimiContent::decode(bytes)?)
    }

    /// Reads a message that may hold the same in several languages: the first of `languages` (BCP
    /// 47) that it has, or else the sender's favourite.
    pub fn decode_in(bytes: &[u8], languages: &[&str]) -> Result<Self, ContentError> {
        let mut content = MimiContent::decode(bytes)?;
        if let Cardinality::Multi { semantics: Semantics::ChooseOne, parts } = &mut content.part.cardinality {
            parts.sort_by_key(|part| preference(&part.language, languages));
        }
        read_content(&content)
    }

    /// Reads a message of a thread. `sender_uri` and `room_uri` are those that
    /// follow from the thread; the message must not claim others.
    pub fn open(bytes: &[u8], sender_uri: &str, room_uri: &str) -> Result<Opened, ContentError> {
        let content = MimiContent::decode(bytes)?;
        let agrees = |claimed: Option<&str>, known| claimed.is_none_or(|claimed| claimed == known);
        if !agrees(content.extensions.sender_uri(), sender_uri)
            || !agrees(content.extensions.room_uri(), room_uri)
        {
            return Err(ContentError::WrongOrigin);
        }
        let id = message_id(sender_uri, room_uri, bytes, &content.salt)?;
        Ok(Opened { id, body: read_content(&content)? })
    }
}

/// How much a reader of `languages` wants a part: an exact match before one of the primary subtag
/// alone (RFC 4647 §3.4, lookup).
fn preference(tag: &str, languages: &[&str]) -> usize {
    let primary = |tag: &str| tag.split('-').next().unwrap_or_default().to_ascii_lowercase();
    let exact = languages.iter().position(|wanted| wanted.eq_ignore_ascii_case(tag));
    let near = languages.iter().position(|wanted| primary(wanted) == primary(tag));
    match (exact, near) {
        (Some(exact), Some(near)) => (2 * exact).min(2 * near + 1),
        (None, Some(near)) => 2 * near + 1,
        _ => 2 * languages.len(),
    }
}

fn read_content(content: &MimiContent) -> Result<Body, ContentError> {
    let mut found = Found::default();
    if content.replaces.is_some() {
        // An edit is not a letter of its own.
        name_all(&content.part, &mut found.unknown);
    } else {
        if let Cardinality::Single { content_type, content } = &content.part.cardinality {
            match &*essence(content_type) {
                receipt::MEDIA_TYPE => return ReadReceipt::decode(content).map(Body::ReadReceipt),
                succession::MEDIA_TYPE => return succession::decode(content).map(Body::Succession),
                _ => {}
            }
        }
        found.read(&content.part)?;
    }
    Ok(if found.texts.is_empty() && found.attachments.is_empty() {
        Body::Unknown { content_types: found.unknown }
    } else {
        Body::Letter {
            letter: Letter {
                markdown: found.texts.join("\n\n"),
                language: found.language,
                in_reply_to: content.in_reply_to,
                attachments: found.attachments,
            },
            unknown_parts: found.unknown,
        }
    })
}

/// What was found on the way through the parts.
#[derive(Default)]
struct Found {
    texts: Vec<String>,
    /// Of the first text.
    language: String,
    attachments: Vec<ExternalFile>,
    unknown: Vec<String>,
}

impl Found {
    fn read(&mut self, part: &Part) -> Result<(), ContentError> {
        match &part.cardinality {
            Cardinality::Null => {}
            Cardinality::Single { content_type, content } => {
                match as_markdown(part.disposition, content_type, content)? {
                    Some(text) => {
                        if self.texts.is_empty() {
                            let first = part.language.split(',').next().unwrap_or_default().trim();
                            first.clone_into(&mut self.language);
                            self.language.truncate(if is_language_tag(first) { first.len() } else { 0 });
                        }
                        self.texts.push(text);
                    }
                    None => name_all(part, &mut self.unknown),
                }
            }
            Cardinality::External(external) => match ExternalFile::try_from(external.as_ref()) {
                Ok(file) if shows_or_attaches(part.disposition) => self.attachments.push(file),
                _ => name_all(part, &mut self.unknown),
            },
            Cardinality::Multi { semantics: Semantics::ProcessAll, parts } => {
                parts.iter().try_for_each(|part| self.read(part))?;
            }
            Cardinality::Multi { semantics: Semantics::SingleUnit, parts } => {
                let mut unit = Self::default();
                parts.iter().try_for_each(|part| unit.read(part))?;
                if unit.unknown.is_empty() {
                    self.append(unit);
                } else {
                    name_all(part, &mut self.unknown);
                }
            }
            Cardinality::Multi { semantics: Semantics::ChooseOne, parts } => {
                let mut choice = None;
                for part in parts {
                    let mut option = Self::default();
                    option.read(part)?;
                    // The first that is understood whole; else the sender's favourite.
                    if option.unknown.is_empty() {
                        choice = Some(option);
                        break;
                    }
                    choice.get_or_insert(option);
                }
                self.append(choice.unwrap_or_default());
            }
        }
        Ok(())
    }

    fn append(&mut self, mut other: Self) {
        if self.texts.is_empty() {
            self.language = other.language;
        }
        self.texts.append(&mut other.texts);
        self.attachments.append(&mut other.attachments);
        self.unknown.append(&mut other.unknown);
    }
}

/// The part as CommonMark, when it is text to be shown.
fn as_markdown(
    disposition: Disposition,
    content_type: &str,
    content: &[u8],
) -> Result<Option<String>, ContentError> {
    let essence = essence(content_type);
    if !shows_or_attaches(disposition)
        || disposition == Disposition::ATTACHMENT
        || !(essence == "text/markdown" || essence == "text/plain")
    {
        return Ok(None);
    }
    let text = std::str::from_utf8(content).map_err(|_| ContentError::Shape("text is not UTF-8"))?;
    Ok(Some(if essence == "text/plain" { plain_as_markdown(text) } else { text.to_owned() }))
}

/// The "No HTML" extension of GFM-MIMI (draft, section 7.1.1): what opens an
/// HTML tag is replaced before sending. That can make HTML of what was code
/// before, so it is done until nothing is left, in the end at the cost of
/// whatever else has an angle bracket.
fn without_html(markdown: &str) -> String {
    let mut text = markdown.to_owned();
    for _ in 0..4 {
        match html_as_text(&text) {
            None => return text,
            Some(changed) => text = changed,
        }
    }
    text.replace('<', "&lt;")
}

/// `None`: there is no HTML in it.
fn html_as_text(markdown: &str) -> Option<String> {
    let extensions = Options::ENABLE_TABLES | Options::ENABLE_TASKLISTS | Options::ENABLE_STRIKETHROUGH;
    let (mut text, mut copied) = (String::new(), 0);
    for (event, range) in Parser::new_ext(markdown, extensions).into_offset_iter() {
        if matches!(event, Event::Html(_) | Event::InlineHtml(_)) && markdown[range.clone()].contains('<') {
            text.push_str(&markdown[copied..range.start]);
            text.push_str(&markdown[range.clone()].replace('<', "&lt;"));
            copied = range.end;
        }
    }
    text.push_str(&markdown[copied..]);
    (copied > 0).then_some(text)
}

/// Plain text that CommonMark shows as it stands (CommonMark 0.31, sections
/// 2.4 and 6.7): punctuation escaped, line ends kept, indentation dropped.
fn plain_as_markdown(text: &str) -> String {
    let mut markdown = String::with_capacity(text.len());
    let mut lines = text.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        for character in line.chars() {
            if character.is_ascii_punctuation() {
                markdown.push('\\');
            }
            markdown.push(character);
        }
        match lines.peek() {
            Some(next) if !line.is_empty() && !next.is_empty() => markdown.push_str("\\\n"),
            Some(_) => markdown.push('\n'),
            None => {}
        }
    }
    markdown
}

const fn shows_or_attaches(disposition: Disposition) -> bool {
    matches!(
        disposition,
        Disposition::UNSPECIFIED | Disposition::RENDER | Disposition::INLINE | Disposition::ATTACHMENT
    )
}

/// Media type without parameters, in lower case.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn name_all(part: &Part, names: &mut Vec<String>) {
    match &part.cardinality {
        Cardinality::Null => {}
        Cardinality::Single { content_type, .. } => names.push(named(content_type)),
        Cardinality::External(external) => names.push(named(&external.content_type)),
        Cardinality::Multi { parts, .. } => parts.iter().for_each(|part| name_all(part, names)),
    }
}

fn named(content_type: &str) -> String {
    if content_type.is_empty() { UNNAMED.to_owned() } else { content_type.to_owned() }
}

/// Subtags of 1 to 8 letters and digits, the first of letters (RFC 5646, section 2.1).
fn is_language_tag(tag: &str) -> bool {
    let mut subtags = tag.split('-');
    tag.len() <= MAX_LANGUAGE_TAG
        && subtags.next().is_some_and(|first| {
            (1..=8).contains(&first.len()) && first.bytes().all(|b| b.is_ascii_alphabetic())
        })
        && subtags.all(|subtag| {
            (1..=8).contains(&subtag.len()) && subtag.bytes().all(|b| b.is_ascii_alphanumeric())
        })
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Letter")
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Letter { .. } => "Letter",
            Self::ReadReceipt(_) => "ReadReceipt",
            Self::Succession(_) => "Succession",
            Self::Unknown { .. } => "Unknown",
        })
    }
}
