//! Bytes of MIMI content: the encoder, and the decoder that takes nothing but
//! what the encoder would have written. Determinism is checked before, in
//! [`super::canonical`]; here are the shape and the limits.

use super::mimi::MAX_URI;
use super::{
    Cardinality, ContentError, Disposition, Expiration, Extensions, ExternalPart, MAX_BYTES, MAX_DEPTH,
    MAX_PARTS, MimiContent, MimiId, OverLimit, Part, Semantics, canonical,
};
use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use std::collections::BTreeMap;

const MAX_NAME: usize = 255;
const MAX_DESCRIPTION: usize = 1024;
const MAX_SECRET: usize = 64;
const MAX_EXTENSIONS: usize = 32;
/// Draft, appendix A: `any .size (0..4095)`.
const MAX_EXTENSION: usize = 4095;
/// Draft, section 6.3: 4 levels with the map of the extensions itself.
const MAX_EXTENSION_NESTING: usize = 3;
/// Arrays, maps and tags within each other in a message, whatever they mean.
const MAX_NESTING: usize = 16;

/// A `Vec` takes everything, so the encoder cannot fail on its own.
type Written = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

pub(super) fn decode(bytes: &[u8]) -> Result<MimiContent, ContentError> {
    if bytes.len() > MAX_BYTES {
        return Err(OverLimit("message").into());
    }
    canonical::check(bytes, MAX_NESTING)?;
    let mut d = Decoder::new(bytes);
    array(&mut d, 7)?;
    Ok(MimiContent {
        salt: fixed(&mut d)?,
        replaces: nullable(&mut d, fixed)?.map(MimiId::from_bytes),
        topic_id: bytes_up_to(&mut d, MAX_NAME, "topic")?,
        expires: nullable(&mut d, expiration)?,
        in_reply_to: nullable(&mut d, fixed)?.map(MimiId::from_bytes),
        extensions: extensions(&mut d)?,
        part: part(&mut d, 1, &mut 0)?,
    })
}

pub(super) fn encode(content: &MimiContent) -> Result<Vec<u8>, OverLimit> {
    check_part(&content.part, 1, &mut 0)?;
    at_most(content.topic_id.len(), MAX_NAME, "topic")?;
    let mut e = Encoder::new(Vec::new());
    let written: Written = write_content(&mut e, content);
    written.map_err(|_| OverLimit("message"))?;
    let bytes = e.into_writer();
    at_most(bytes.len(), MAX_BYTES, "message")?;
    Ok(bytes)
}

/// A text string alone, as a value of the extensions.
pub(super) fn encoded_text(text: &str, limit: usize) -> Result<Vec<u8>, OverLimit> {
    at_most(text.len(), limit, "URI")?;
    let mut e = Encoder::new(Vec::new());
    e.str(text).map_err(|_| OverLimit("URI"))?;
    Ok(e.into_writer())
}

/// What [`encoded_text`] made.
pub(super) fn decoded_text(value: &[u8]) -> Option<&str> {
    Decoder::new(value).str().ok()
}

fn array(d: &mut Decoder<'_>, length: u64) -> Result<(), ContentError> {
    match d.array() {
        Ok(Some(found)) if found == length => Ok(()),
        _ => Err(ContentError::Shape("an array is missing or of another length")),
    }
}

fn nullable<'b, T>(
    d: &mut Decoder<'b>,
    read: impl FnOnce(&mut Decoder<'b>) -> Result<T, ContentError>,
) -> Result<Option<T>, ContentError> {
    if matches!(d.datatype(), Ok(Type::Null)) {
        d.null().map_err(|_| ContentError::Shape("null"))?;
        return Ok(None);
    }
    read(d).map(Some)
}

fn fixed<const N: usize>(d: &mut Decoder<'_>) -> Result<[u8; N], ContentError> {
    let found = d.bytes().ok().and_then(|bytes| bytes.try_into().ok());
    found.ok_or(ContentError::Shape("salt or id of another type or length"))
}

fn bytes_up_to(d: &mut Decoder<'_>, limit: usize, what: &'static str) -> Result<Vec<u8>, ContentError> {
    let bytes = d.bytes().map_err(|_| ContentError::Shape("expected a byte string"))?;
    at_most(bytes.len(), limit, what)?;
    Ok(bytes.to_vec())
}

fn text_up_to(d: &mut Decoder<'_>, limit: usize, what: &'static str) -> Result<String, ContentError> {
    let text = d.str().map_err(|_| ContentError::Shape("expected a text string"))?;
    at_most(text.len(), limit, what)?;
    Ok(text.to_owned())
}

/// An unsigned integer that fits `T`.
fn uint<T: TryFrom<u64>>(d: &mut Decoder<'_>) -> Result<T, ContentError> {
    let value = d.u64().ok().and_then(|value| value.try_into().ok());
    value.ok_or(ContentError::Shape("expected an unsigned integer in its range"))
}

fn expiration(d: &mut Decoder<'_>) -> Result<Expiration, ContentError> {
    array(d, 2)?;
    let relative = d.bool().map_err(|_| ContentError::Shape("expected a boolean"))?;
    let seconds = uint(d)?;
    Ok(if relative { Expiration::AfterReading(seconds) } else { Expiration::At(seconds) })
}

fn extensions(d: &mut Decoder<'_>) -> Result<Extensions, ContentError> {
    const SHAPE: ContentError = ContentError::Shape("extensions");
    let count = d.map().ok().flatten().ok_or(SHAPE)?;
    at_most(usize::try_from(count).unwrap_or(usize::MAX), MAX_EXTENSIONS, "extensions")?;
    let mut found = BTreeMap::new();
    for _ in 0..count {
        let key_at = d.position();
        match d.datatype().map_err(|_| SHAPE)? {
            Type::String => {
                let name = d.str().map_err(|_| SHAPE)?;
                at_most(name.len(), MAX_NAME, "extension name")?;
                if name.is_empty() {
                    return Err(SHAPE);
                }
            }
            _ => d.int().map(drop).map_err(|_| SHAPE)?,
        }
        let value_at = d.position();
        d.skip().map_err(|_| SHAPE)?;
        let (key, value) = match (d.input().get(key_at..value_at), d.input().get(value_at..d.position())) {
            (Some(key), Some(value)) => (key, value),
            _ => return Err(SHAPE),
        };
        if key == Extensions::SENDER || key == Extensions::ROOM {
            at_most(decoded_text(value).ok_or(SHAPE)?.len(), MAX_URI, "URI")?;
        } else {
            at_most(value.len(), MAX_EXTENSION, "extension")?;
            canonical::check(value, MAX_EXTENSION_NESTING)?;
        }
        found.insert(key.to_vec(), value.to_vec());
    }
    Ok(Extensions(found))
}

fn part(d: &mut Decoder<'_>, depth: usize, count: &mut usize) -> Result<Part, ContentError> {
    count_part(depth, count)?;
    let length = d.array().ok().flatten().ok_or(ContentError::Shape("a part is not an array"))?;
    let disposition = Disposition(uint(d)?);
    let language = text_up_to(d, MAX_NAME, "language")?;
    let cardinality = match (uint::<u8>(d)?, length) {
        (0, 3) => Cardinality::Null,
        (1, 5) => Cardinality::Single {
            content_type: text_up_to(d, MAX_NAME, "content type")?,
            content: bytes_up_to(d, MAX_BYTES, "content")?,
        },
        (2, 15) => Cardinality::External(Box::new(external(d)?)),
        (3, 5) => {
            let semantics = match uint::<u8>(d)? {
                0 => Semantics::ChooseOne,
                1 => Semantics::SingleUnit,
                2 => Semantics::ProcessAll,
                _ => return Err(ContentError::Shape("unknown part semantics")),
            };
            let length = d.array().ok().flatten().ok_or(ContentError::Shape("parts are not an array"))?;
            if length < 2 {
                return Err(ContentError::Shape("a multipart of fewer than 2 parts"));
            }
            at_most(usize::try_from(length).unwrap_or(usize::MAX), MAX_PARTS, "parts")?;
            let parts = (0..length).map(|_| part(d, depth + 1, count)).collect::<Result<_, _>>()?;
            Cardinality::Multi { semantics, parts }
        }
        _ => return Err(ContentError::Shape("a part of unknown cardinality or length")),
    };
    Ok(Part { disposition, language, cardinality })
}

fn external(d: &mut Decoder<'_>) -> Result<ExternalPart, ContentError> {
    Ok(ExternalPart {
        content_type: text_up_to(d, MAX_NAME, "content type")?,
        url: text_up_to(d, MAX_URI, "URL")?,
        expires: uint(d)?,
        size: uint(d)?,
        enc_alg: uint(d)?,
        key: bytes_up_to(d, MAX_SECRET, "key")?,
        nonce: bytes_up_to(d, MAX_SECRET, "nonce")?,
        aad: bytes_up_to(d, MAX_DESCRIPTION, "associated data")?,
        hash_alg: uint(d)?,
        content_hash: bytes_up_to(d, MAX_SECRET, "hash")?,
        description: text_up_to(d, MAX_DESCRIPTION, "description")?,
        filename: text_up_to(d, MAX_NAME, "file name")?,
    })
}

fn at_most(length: usize, limit: usize, what: &'static str) -> Result<(), OverLimit> {
    if length > limit { Err(OverLimit(what)) } else { Ok(()) }
}

fn count_part(depth: usize, count: &mut usize) -> Result<(), OverLimit> {
    *count += 1;
    at_most(depth, MAX_DEPTH, "nesting of parts")?;
    at_most(*count, MAX_PARTS, "parts")
}

/// The decoder's limits, on the way out.
fn check_part(part: &Part, depth: usize, count: &mut usize) -> Result<(), OverLimit> {
    count_part(depth, count)?;
    at_most(part.language.len(), MAX_NAME, "language")?;
    match &part.cardinality {
        Cardinality::Null => Ok(()),
        Cardinality::Single { content_type, .. } => at_most(content_type.len(), MAX_NAME, "content type"),
        Cardinality::External(external) => {
            at_most(external.content_type.len(), MAX_NAME, "content type")?;
            at_most(external.url.len(), MAX_URI, "URL")?;
            at_most(external.key.len(), MAX_SECRET, "key")?;
            at_most(external.nonce.len(), MAX_SECRET, "nonce")?;
            at_most(external.aad.len(), MAX_DESCRIPTION, "associated data")?;
            at_most(external.content_hash.len(), MAX_SECRET, "hash")?;
            at_most(external.description.len(), MAX_DESCRIPTION, "description")?;
            at_most(external.filename.len(), MAX_NAME, "file name")
        }
        Cardinality::Multi { parts, .. } if parts.len() < 2 => Err(OverLimit("parts")),
        Cardinality::Multi { parts, .. } => parts.iter().try_for_each(|p| check_part(p, depth + 1, count)),
    }
}

fn write_content(e: &mut Encoder<Vec<u8>>, content: &MimiContent) -> Written {
    e.array(7)?.bytes(&content.salt)?;
    write_id(e, content.replaces)?;
    e.bytes(&content.topic_id)?;
    match content.expires {
        None => e.null()?,
        Some(Expiration::AfterReading(seconds)) => e.array(2)?.bool(true)?.u32(seconds)?,
        Some(Expiration::At(seconds)) => e.array(2)?.bool(false)?.u32(seconds)?,
    };
    write_id(e, content.in_reply_to)?;
    let extensions = &content.extensions.0;
    e.map(extensions.len() as u64)?;
    for (key, value) in extensions {
        e.writer_mut().extend_from_slice(key);
        e.writer_mut().extend_from_slice(value);
    }
    write_part(e, &content.part)
}

fn write_id(e: &mut Encoder<Vec<u8>>, id: Option<MimiId>) -> Written {
    match id {
        None => e.null()?.ok(),
        Some(id) => e.bytes(id.as_bytes())?.ok(),
    }
}

fn write_part(e: &mut Encoder<Vec<u8>>, part: &Part) -> Written {
    let (length, cardinality) = match &part.cardinality {
        Cardinality::Null => (3, 0),
        Cardinality::Single { .. } => (5, 1),
        Cardinality::External(_) => (15, 2),
        Cardinality::Multi { .. } => (5, 3),
    };
    e.array(length)?.u8(part.disposition.0)?.str(&part.language)?.u8(cardinality)?;
    match &part.cardinality {
        Cardinality::Null => Ok(()),
        Cardinality::Single { content_type, content } => e.str(content_type)?.bytes(content)?.ok(),
        Cardinality::External(external) => {
            e.str(&external.content_type)?.str(&external.url)?.u32(external.expires)?.u64(external.size)?;
            e.u16(external.enc_alg)?.bytes(&external.key)?.bytes(&external.nonce)?.bytes(&external.aad)?;
            e.u8(external.hash_alg)?.bytes(&external.content_hash)?;
            e.str(&external.description)?.str(&external.filename)?.ok()
        }
        Cardinality::Multi { semantics, parts } => {
            let semantics = match semantics {
                Semantics::ChooseOne => 0,
                Semantics::SingleUnit => 1,
                Semantics::ProcessAll => 2,
            };
            e.u8(semantics)?.array(parts.len() as u64)?;
            parts.iter().try_for_each(|part| write_part(e, part))
        }
    }
}
