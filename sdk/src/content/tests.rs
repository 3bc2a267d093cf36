//! The published vectors, round trips, and what must be refused.

use super::*;
use crate::attachment::{BlobUrl, ExternalFile, FileKey};
use chancery_types::entropy::SeededEntropy;
use chancery_types::{BlobId, MessageId, Timestamp};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message as _;

const SENDER: &str = "mimi://federation.example/u/0123";
const ROOM: &str = "mimi://federation.example/r/4567";

#[derive(serde::Deserialize)]
struct Vectors {
    examples: Vec<Example>,
}

#[derive(serde::Deserialize)]
struct Example {
    name: String,
    cbor_hex: String,
    sender_uri: String,
    room_uri: String,
    salt: String,
    message_id: String,
}

impl Example {
    fn all() -> Vec<Self> {
        serde_json::from_str::<Vectors>(include_str!("vectors/mimi-content.json")).unwrap().examples
    }

    fn bytes(&self) -> Vec<u8> {
        hex::decode(&self.cbor_hex).unwrap()
    }

    fn named(name: &str) -> Vec<u8> {
        Self::all().iter().find(|example| example.name == name).unwrap().bytes()
    }
}

#[test]
fn published_examples_decode_encode_and_get_their_ids() {
    let examples = Example::all();
    assert_eq!(examples.len(), 14);
    for example in examples {
        let (name, bytes) = (&example.name, example.bytes());
        let content = MimiContent::decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(content.encode().unwrap(), bytes, "{name}");
        assert_eq!(hex::encode(content.salt), example.salt, "{name}");
        assert_eq!(content.extensions.sender_uri(), Some(example.sender_uri.as_str()), "{name}");
        assert_eq!(content.extensions.room_uri(), Some(example.room_uri.as_str()), "{name}");
        let id = message_id(&example.sender_uri, &example.room_uri, &bytes, &content.salt).unwrap();
        assert_eq!(hex::encode(id.as_bytes()), example.message_id, "{name}");
        assert_eq!(Body::open(&bytes, &example.sender_uri, &example.room_uri).unwrap().id, id, "{name}");
        assert_eq!(Body::open(&bytes, SENDER, &example.room_uri).err(), Some(ContentError::WrongOrigin));
        assert_eq!(Body::open(&bytes, &example.sender_uri, ROOM).err(), Some(ContentError::WrongOrigin));
    }
}

#[test]
fn fields_land_where_they_belong() {
    let reply = MimiContent::decode(&Example::named("reply")).unwrap();
    let original = hex::decode("017ce54837404c3696e0c747b985cb172716d0ed0a3d249ca63ace7d82a096f4").unwrap();
    assert_eq!(reply.in_reply_to.unwrap().as_bytes()[..], original);
    assert_eq!(reply.replaces, None);
    let expiring = MimiContent::decode(&Example::named("expiring")).unwrap();
    assert_eq!(expiring.expires, Some(Expiration::At(1_644_390_004)));
    let Cardinality::External(video) =
        MimiContent::decode(&Example::named("attachment")).unwrap().part.cardinality
    else {
        panic!("not external")
    };
    assert_eq!((video.size, video.enc_alg, video.hash_alg), (708_234_961, 1, 1));
    assert_eq!((video.filename.as_str(), video.key.len(), video.nonce.len()), ("bigfile.mp4", 16, 12));
}

#[test]
fn published_examples_read_as_what_they_are() {
    let read = |name| match Body::decode(&Example::named(name)).unwrap() {
        Body::Letter { letter, unknown_parts } => (Some(letter), unknown_parts),
        Body::Unknown { content_types } => (None, content_types),
        Body::ReadReceipt(_) | Body::Succession(_) => panic!("a letter"),
    };
    let (original, unknown) = read("original");
    assert_eq!(original.unwrap().markdown, "Hi everyone, we just shipped release 2.0. __Good  work__!");
    assert!(unknown.is_empty());
    assert!(read("reply").0.unwrap().in_reply_to.is_some());
    for (name, types) in [
        ("reaction", &["text/plain;charset=utf-8"][..]),
        ("multipart-2", &["text/plain;charset=utf-8"; 3]),
        ("edit", &["text/markdown;variant=GFM-MIMI"]),
        ("delete", &[]),
        ("mention-html", &["text/html;charset=utf-8"]),
        ("attachment", &["video/mp4"]),
        ("conferencing", &["application/octet-stream"]),
        // Both alternatives are a single unit of which HTML is not understood; the sender's favourite is named.
        ("multipart-3", &["text/html;charset=utf-8", "image/gif"]),
    ] {
        let (letter, unknown) = read(name);
        assert_eq!(letter, None, "{name}");
        assert_eq!(unknown, types, "{name}");
    }
}

fn file(id: u8) -> ExternalFile {
    ExternalFile {
        blob: BlobUrl { origin: "regional".parse().unwrap(), id: BlobId::from_bytes([id; 32]) },
        size: 4096,
        key: FileKey::from_bytes([id; 16]),
        nonce: [id; 12],
        expires_at: None,
        media_type: "image/png".to_owned(),
        file_name: "qr.png".to_owned(),
        description: "a code to scan".to_owned(),
    }
}

#[test]
fn letters_survive_the_way() {
    let answered = Some(MimiId::from_bytes([1; 32]));
    let text = || "# Besluit\n\nBeste …".to_owned();
    for letter in [
        Letter { markdown: text(), ..Letter::default() },
        Letter { markdown: text(), language: "nl-BE".to_owned(), in_reply_to: answered, attachments: vec![] },
        Letter { markdown: text(), attachments: vec![file(1), file(2)], ..Letter::default() },
        Letter { attachments: vec![file(1)], ..Letter::default() },
        Letter { markdown: "x".repeat(MAX_TEXT), attachments: vec![file(3); 16], ..Letter::default() },
    ] {
        let composed = letter.compose(SENDER, ROOM, &SeededEntropy::new(1)).unwrap();
        let opened = Body::open(&composed.bytes, SENDER, ROOM).unwrap();
        assert_eq!(opened.id, composed.id);
        assert!(opened.body == Body::Letter { letter, unknown_parts: vec![] });
    }
}

#[test]
fn the_same_letter_twice_is_two_messages() {
    let (letter, entropy) = (Letter { markdown: "x".to_owned(), ..Letter::default() }, SeededEntropy::new(1));
    let [one, two] = [0; 2].map(|_| letter.compose(SENDER, ROOM, &entropy).unwrap());
    assert_ne!(one.id, two.id);
    assert_ne!(one.bytes, two.bytes);
}

#[test]
fn letters_that_cannot_be_written_are_refused() {
    let refused = |letter: Letter| letter.compose(SENDER, ROOM, &SeededEntropy::new(1)).err().unwrap();
    let text = || Letter { markdown: "x".to_owned(), ..Letter::default() };
    assert_eq!(refused(Letter::default()), ComposeError::Empty);
    assert_eq!(
        refused(Letter { markdown: "x".repeat(MAX_TEXT + 1), ..text() }),
        ComposeError::OverLimit(OverLimit("text"))
    );
    assert_eq!(
        refused(Letter { attachments: vec![file(1); 17], ..text() }),
        ComposeError::OverLimit(OverLimit("attachments"))
    );
    for language in ["nl_BE", "-nl", "nl-", "n1", "nl-toolonghere", &"a-".repeat(18), "ä"] {
        assert_eq!(refused(Letter { language: language.to_owned(), ..text() }), ComposeError::Language);
    }
    let path = ExternalFile { file_name: "../x".to_owned(), ..file(1) };
    assert!(matches!(refused(Letter { attachments: vec![path], ..text() }), ComposeError::File(_)));
    let long = text().compose(&"x".repeat(2049), ROOM, &SeededEntropy::new(1));
    assert_eq!(long.err(), Some(ComposeError::OverLimit(OverLimit("URI"))));
}

fn message(part: Part) -> MimiContent {
    MimiContent {
        salt: [7; 16],
        replaces: None,
        topic_id: vec![],
        expires: None,
        in_reply_to: None,
        extensions: Extensions::new(SENDER, ROOM).unwrap(),
        part,
    }
}

fn single(disposition: Disposition, content_type: &str, content: &[u8]) -> Part {
    Part {
        disposition,
        language: "de-AT, de".to_owned(),
        cardinality: Cardinality::Single { content_type: content_type.to_owned(), content: content.to_vec() },
    }
}

fn multi(semantics: Semantics, parts: Vec<Part>) -> Part {
    Part {
        disposition: Disposition::RENDER,
        language: String::new(),
        cardinality: Cardinality::Multi { semantics, parts },
    }
}

fn read(part: Part) -> Result<(String, Vec<String>), ContentError> {
    Body::decode(&message(part).encode().unwrap()).map(|body| match body {
        Body::Letter { letter, unknown_parts } => (letter.markdown, unknown_parts),
        Body::Unknown { content_types } => (String::new(), content_types),
        Body::ReadReceipt(_) | Body::Succession(_) => panic!("a letter"),
    })
}

#[test]
fn unknown_parts_are_named_beside_the_text() {
    let text = || single(Disposition::RENDER, "text/markdown; variant=GFM-MIMI", b"hello");
    let form = || single(Disposition::RENDER, "application/vnd.chancery.form+protobuf", &[1, 2]);
    let named = || vec!["application/vnd.chancery.form+protobuf".to_owned()];

    assert_eq!(read(multi(Semantics::ProcessAll, vec![text(), form()])), Ok(("hello".to_owned(), named())));
    assert_eq!(read(multi(Semantics::ChooseOne, vec![form(), text()])), Ok(("hello".to_owned(), vec![])));
    assert_eq!(read(multi(Semantics::ChooseOne, vec![form(), form()])), Ok((String::new(), named())));
    let unit = read(multi(Semantics::SingleUnit, vec![text(), form()])).unwrap();
    assert_eq!(unit, (String::new(), vec!["text/markdown; variant=GFM-MIMI".to_owned(), named().remove(0)]));
    let both = read(multi(Semantics::SingleUnit, vec![text(), text()])).unwrap();
    assert_eq!(both, ("hello\n\nhello".to_owned(), vec![]));

    // Kept, too: the message itself still has them.
    let content = message(multi(Semantics::ProcessAll, vec![text(), form()]));
    assert!(MimiContent::decode(&content.encode().unwrap()).unwrap() == content);
}

#[test]
fn html_is_sent_as_text() {
    let sent = |markdown: &str| {
        let letter = Letter { markdown: markdown.to_owned(), ..Letter::default() };
        let bytes = letter.compose(SENDER, ROOM, &SeededEntropy::new(1)).unwrap().bytes;
        match MimiContent::decode(&bytes).unwrap().part.cardinality {
            Cardinality::Single { content, .. } => String::from_utf8(content).unwrap(),
            _ => panic!("not single"),
        }
    };
    assert_eq!(sent("a <b>c</b> <!-- d --> e"), "a &lt;b>c&lt;/b> &lt;!-- d --> e");
    assert_eq!(sent("x\n\n<div>\n<p>y\n</div>\n\nz"), "x\n\n&lt;div>\n&lt;p>y\n&lt;/div>\n\nz");
    assert_eq!(sent("> <script>\n> alert(1)</script>\n"), "> &lt;script>\n> alert(1)&lt;/script>\n");
    let kept =
        "1 < 2, `<b>`, <https://example.org>\n\n    <pre>\n\n```\n<i>\n```\n\n| a |\n|---|\n| ~~b~~ |\n";
    assert_eq!(sent(kept), kept);
    // Once the block is text, its backtick ends the code span that held `<i>`.
    assert_eq!(sent("<!-- ` -->\n`<i>`"), "&lt;!-- ` -->\n`&lt;i>`");
}

#[test]
fn plain_text_is_shown_as_it_stands() {
    let plain = |text: &str| {
        read(single(Disposition::RENDER, "text/plain;charset=utf-8", text.as_bytes())).unwrap().0
    };
    assert_eq!(plain("1. *no list*\n    <b>\n\nEnde"), "1\\. \\*no list\\*\\\n\\<b\\>\n\nEnde");
    let not_utf_8 = read(single(Disposition::RENDER, "text/plain", &[0xff]));
    assert_eq!(not_utf_8, Err(ContentError::Shape("text is not UTF-8")));
}

#[test]
fn the_first_language_of_the_first_text_counts() {
    let language = |language: &str| {
        let part = Part { language: language.to_owned(), ..single(Disposition::RENDER, "text/plain", b"x") };
        match Body::decode(&message(part).encode().unwrap()) {
            Ok(Body::Letter { letter, .. }) => letter.language,
            _ => panic!("not a letter"),
        }
    };
    assert_eq!(language("de-AT, de"), "de-AT");
    assert_eq!(language(""), "");
    assert_eq!(language("<script>"), "");
}

#[test]
fn read_receipts_survive_the_way() {
    let receipt = |count: u8| ReadReceipt {
        message_ids: (0..count).map(|n| MessageId::from_bytes([n; 16])).collect(),
        read_at: Timestamp::from_millis(1_700_000_000_123),
    };
    let composed = receipt(3).compose(SENDER, ROOM, &SeededEntropy::new(1)).unwrap();
    assert!(Body::decode(&composed.bytes).unwrap() == Body::ReadReceipt(receipt(3)));
    let mut full = receipt(255);
    full.message_ids.push(MessageId::from_bytes([255; 16]));
    let composed = full.compose(SENDER, ROOM, &SeededEntropy::new(1)).unwrap();
    assert!(Body::decode(&composed.bytes).unwrap() == Body::ReadReceipt(full.clone()));
    full.message_ids.push(MessageId::from_bytes([0; 16]));
    assert!(matches!(full.compose(SENDER, ROOM, &SeededEntropy::new(1)), Err(ComposeError::OverLimit(_))));
    let empty = receipt(0).compose(SENDER, ROOM, &SeededEntropy::new(1));
    assert_eq!(empty.err(), Some(ComposeError::NoMessages));
}

#[test]
fn false_read_receipts_are_refused() {
    let receipt = |ids: Vec<Vec<u8>>| chancery_proto::content::v1::ReadReceipt {
        message_ids: ids.into_iter().map(Into::into).collect(),
        read_at_ms: 1,
    };
    let refused = |content: &[u8]| {
        let media_type = "application/vnd.chancery.read-receipt+protobuf";
        Body::decode(&message(single(Disposition::UNSPECIFIED, media_type, content)).encode().unwrap())
            == Err(ContentError::ReadReceipt)
    };
    assert!(refused(&receipt(vec![]).encode_to_vec()));
    assert!(refused(&receipt(vec![vec![0; 15]]).encode_to_vec()));
    assert!(refused(&receipt(vec![vec![0; 16]; 257]).encode_to_vec()));
    assert!(refused(&[0xff]));
    assert!(refused(&[0; 9000]));
    assert!(!refused(&receipt(vec![vec![0; 16]; 256]).encode_to_vec()));
}

#[test]
fn limits_hold_on_both_sides() {
    let text = || single(Disposition::RENDER, "a/b", b"x");
    let nested =
        |depth: usize| (1..depth).fold(text(), |inner, _| multi(Semantics::ProcessAll, vec![inner, text()]));
    assert!(message(nested(MAX_DEPTH)).encode().is_ok());
    assert_eq!(message(nested(MAX_DEPTH + 1)).encode(), Err(OverLimit("nesting of parts")));
    assert!(message(multi(Semantics::ProcessAll, vec![text(); MAX_PARTS - 1])).encode().is_ok());
    assert_eq!(
        message(multi(Semantics::ProcessAll, vec![text(); MAX_PARTS])).encode(),
        Err(OverLimit("parts"))
    );
    assert_eq!(message(multi(Semantics::ProcessAll, vec![text()])).encode(), Err(OverLimit("parts")));
    let large = message(single(Disposition::RENDER, "a/b", &[0; MAX_BYTES]));
    assert_eq!(large.encode(), Err(OverLimit("message")));
    assert_eq!(MimiContent::decode(&vec![0; MAX_BYTES + 1]), Err(OverLimit("message").into()));
    let long_type = message(single(Disposition::RENDER, &"x".repeat(256), b""));
    assert_eq!(long_type.encode(), Err(OverLimit("content type")));

    // The decoder meets what the encoder would not write, made by widening one field of a good message.
    let good = hex::encode(message(single(Disposition::RENDER, "a/b", b"x")).encode().unwrap());
    let with = |from: &str, to: String| {
        assert_eq!(good.matches(from).count(), 1, "{from}");
        MimiContent::decode(&hex::decode(good.replace(from, &to)).unwrap())
    };
    let long = |head: &str, length: usize| head.to_owned() + &"61".repeat(length);
    assert!(with("63612f62", long("78ff", 255)).is_ok());
    assert_eq!(with("63612f62", long("790100", 256)), Err(OverLimit("content type").into()));
    assert_eq!(with("6964652d41542c206465", long("790100", 256)), Err(OverLimit("language").into()));
    assert_eq!(with("f640f6f6", format!("f6{}f6f6", long("590100", 256))), Err(OverLimit("topic").into()));
    let extended = |extensions: Extensions| {
        let content = MimiContent { extensions, ..message(text()) };
        MimiContent::decode(&content.encode().unwrap()).err()
    };
    let numbered = |count: u64| {
        Extensions((1..=count).map(|n| (minicbor::to_vec(n + 2).unwrap(), vec![0xf6])).collect())
    };
    assert_eq!(extended(numbered(32)), None);
    assert_eq!(extended(numbered(33)), Some(OverLimit("extensions").into()));
    let one = |key: &str, value: usize| {
        let value = minicbor::to_vec("x".repeat(value)).unwrap();
        Extensions([(minicbor::to_vec(key).unwrap(), value)].into())
    };
    assert_eq!(extended(one(&"k".repeat(255), 4092)), None);
    assert_eq!(extended(one(&"k".repeat(256), 0)), Some(OverLimit("extension name").into()));
    assert_eq!(extended(one("k", 4093)), Some(OverLimit("extension").into()));
    assert_eq!(extended(one("", 0)), Some(ContentError::Shape("extensions")));
    let nested = |value: &[u8]| Extensions([(vec![3], value.to_vec())].into());
    assert_eq!(extended(nested(&[0x81, 0xa1, 0, 0xc1, 0])), None);
    assert_eq!(extended(nested(&[0x81, 0x81, 0xc1, 0x80])), Some(ContentError::Shape("nested too deeply")));
    let mut sender = Extensions::new(SENDER, ROOM).unwrap();
    sender.0.insert(Extensions::SENDER.to_vec(), minicbor::to_vec("x".repeat(2049)).unwrap());
    assert_eq!(extended(sender.clone()), Some(OverLimit("URI").into()));
    sender.0.insert(Extensions::SENDER.to_vec(), vec![0xf6]);
    assert_eq!(extended(sender), Some(ContentError::Shape("extensions")));
}

#[test]
fn other_shapes_are_refused() {
    let good = hex::encode(message(single(Disposition::RENDER, "a/b", b"x")).encode().unwrap());
    for (from, to) in [
        ("8750", "8650"), // array of another length (and bytes behind)
        ("8501", "8401"), // part of another length
        ("85016964652d41542c20646501", "85016964652d41542c20646503"), // cardinality and content disagree
        ("f640f6f6", "f440f6f6"), // false for an id
        ("f640f6f6", "f660f6f6"), // text for a topic
        ("f640f6f6", "f640820000f6"), // number for a boolean
        ("027820", "f47820"), // a boolean as name of an extension
        ("63612f62", "43612f62"), // bytes for a type
        ("4178", "6178"), // text for content
        ("8501", "85190100"), // a disposition over 255
    ] {
        assert!(good.contains(from), "{from}");
        let error = MimiContent::decode(&hex::decode(good.replacen(from, to, 1)).unwrap()).unwrap_err();
        assert!(matches!(error, ContentError::Shape(_) | ContentError::Malformed), "{from} {to}: {error}");
    }
}

#[test]
fn nothing_of_it_is_shown() {
    let content = message(single(Disposition::RENDER, "text/plain", b"secret"));
    assert_eq!(format!("{content:?} {:?}", content.part), "MimiContent Part");
    let body = Body::decode(&content.encode().unwrap()).unwrap();
    assert_eq!(format!("{body:?}"), "Letter");
}

#[test]
fn uris_follow_the_rule() {
    assert_eq!(
        sender_uri("federation.example", &chancery_types::Alias::from_bytes([0xab; 16])),
        format!("mimi://federation.example/u/{}", "ab".repeat(16))
    );
    assert_eq!(
        room_uri("federation.example", &chancery_types::GroupId::from_bytes([1; 32])),
        format!("mimi://federation.example/r/{}", "01".repeat(32))
    );
}

fn any_part() -> impl Strategy<Value = Part> {
    let leaf = prop_oneof![
        Just(Cardinality::Null),
        (".{0,40}", vec(any::<u8>(), 0..300))
            .prop_map(|(content_type, content)| Cardinality::Single { content_type, content }),
        (
            (".{0,40}", ".{0,40}", any::<(u32, u64, u16, u8)>(), ".{0,40}", ".{0,40}"),
            (
                vec(any::<u8>(), 0..64),
                vec(any::<u8>(), 0..64),
                vec(any::<u8>(), 0..80),
                vec(any::<u8>(), 0..64)
            ),
        )
            .prop_map(
                |((content_type, url, numbers, description, filename), (key, nonce, aad, content_hash))| {
                    let (expires, size, enc_alg, hash_alg) = numbers;
                    Cardinality::External(Box::new(ExternalPart {
                        content_type,
                        url,
                        expires,
                        size,
                        enc_alg,
                        key,
                        nonce,
                        aad,
                        hash_alg,
                        content_hash,
                        description,
                        filename,
                    }))
                }
            ),
    ];
    let leaf = (any::<u8>(), "[a-z]{0,3}", leaf).prop_map(|(disposition, language, cardinality)| Part {
        disposition: Disposition(disposition),
        language,
        cardinality,
    });
    leaf.prop_recursive(3, 24, 4, |inner| {
        let semantics =
            prop_oneof![Just(Semantics::ChooseOne), Just(Semantics::SingleUnit), Just(Semantics::ProcessAll)];
        (any::<u8>(), semantics, vec(inner, 2..4)).prop_map(|(disposition, semantics, parts)| Part {
            disposition: Disposition(disposition),
            language: String::new(),
            cardinality: Cardinality::Multi { semantics, parts },
        })
    })
}

/// Encoded values for extensions that nobody knows.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let encoded = |value: &dyn Fn(&mut minicbor::Encoder<Vec<u8>>)| {
        let mut e = minicbor::Encoder::new(Vec::new());
        value(&mut e);
        e.into_writer()
    };
    prop_oneof![
        any::<u64>().prop_map(move |n| encoded(&|e| drop(e.u64(n)))),
        any::<i64>().prop_map(move |n| encoded(&|e| drop(e.i64(n)))),
        any::<bool>().prop_map(move |b| encoded(&|e| drop(e.bool(b)))),
        ".{0,20}".prop_map(move |s| encoded(&|e| drop(e.str(&s)))),
        vec(any::<u8>(), 0..50).prop_map(move |b| encoded(&|e| drop(
            e.array(2).and_then(|e| e.null()).and_then(|e| e.bytes(&b))
        ))),
        Just(vec![0xf9, 0x3c, 0x00]),
    ]
}

fn any_extensions() -> impl Strategy<Value = Extensions> {
    let key = prop_oneof![
        (3_u64..1 << 53).prop_map(|n| minicbor::to_vec(n).unwrap()),
        (1 - (1_i64 << 53)..0).prop_map(|n| minicbor::to_vec(n).unwrap()),
        "[a-z]{1,30}".prop_map(|s| minicbor::to_vec(s).unwrap()),
    ];
    (btree_map(key, any_value(), 0..8), any::<bool>()).prop_map(|(mut other, named)| {
        if named {
            other.extend(Extensions::new(SENDER, ROOM).unwrap().0);
        }
        Extensions(other)
    })
}

fn any_content() -> impl Strategy<Value = MimiContent> {
    let id = || proptest::option::of(any::<[u8; 32]>().prop_map(MimiId::from_bytes));
    let expires = proptest::option::of(any::<(bool, u32)>().prop_map(|(relative, seconds)| {
        if relative { Expiration::AfterReading(seconds) } else { Expiration::At(seconds) }
    }));
    (any::<[u8; 16]>(), id(), vec(any::<u8>(), 0..40), expires, id(), any_extensions(), any_part()).prop_map(
        |(salt, replaces, topic_id, expires, in_reply_to, extensions, part)| MimiContent {
            salt,
            replaces,
            topic_id,
            expires,
            in_reply_to,
            extensions,
            part,
        },
    )
}

/// Where the heads of an item's items are, how long they are and what number they hold.
fn heads(bytes: &[u8]) -> Vec<(usize, usize, u64)> {
    let (mut heads, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let number =
            |width| bytes[at + 1..at + 1 + width].iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        let (width, value) = match bytes[at] & 0x1f {
            short @ 0..=23 => (0, u64::from(short)),
            power => (1 << (power - 24), number(1 << (power - 24))),
        };
        heads.push((at, 1 + width, value));
        at += 1 + width + if matches!(bytes[at] >> 5, 2 | 3) { value as usize } else { 0 };
    }
    heads
}

/// The same item with one of its heads longer than need be. `None`: that one cannot be.
fn lengthened(bytes: &[u8], at: usize) -> Option<Vec<u8>> {
    let heads = heads(bytes);
    let (at, length, value) = heads[at % heads.len()];
    if bytes[at] >> 5 == 7 || length == 9 {
        return None;
    }
    let longer = [&[bytes[at] & 0xe0 | 27], &value.to_be_bytes()[..]].concat();
    Some([&bytes[..at], &longer, &bytes[at + length..]].concat())
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_the_same(content in any_content()) {
        let bytes = content.encode().unwrap();
        let decoded = MimiContent::decode(&bytes).unwrap();
        prop_assert!(decoded == content);
        prop_assert_eq!(decoded.encode().unwrap(), bytes);
    }

    #[test]
    fn the_same_content_otherwise_encoded_is_refused(content in any_content(), at: usize) {
        let bytes = content.encode().unwrap();
        if let Some(longer) = lengthened(&bytes, at) {
            prop_assert!(minicbor::Decoder::new(&longer).skip().is_ok(), "still valid CBOR");
            prop_assert_eq!(MimiContent::decode(&longer), Err(ContentError::NotDeterministic));
        }
    }

    #[test]
    fn disordered_extensions_are_refused(mut content in any_content()) {
        content.extensions.0.extend(Extensions::new(SENDER, ROOM).unwrap().0);
        let extensions = &content.extensions.0;
        let joined = |reverse: bool| {
            let mut pairs: Vec<_> = extensions.iter().map(|(k, v)| [k.as_slice(), v].concat()).collect();
            if reverse {
                pairs.reverse();
            }
            pairs.concat()
        };
        let (bytes, right) = (content.encode().unwrap(), joined(false));
        let at = bytes.windows(right.len()).position(|window| window == right).unwrap();
        let disordered = [&bytes[..at], &joined(true), &bytes[at + right.len()..]].concat();
        prop_assert_eq!(MimiContent::decode(&disordered), Err(ContentError::NotDeterministic));
    }

    #[test]
    fn no_html_is_left(markdown in "[<>a-z/!\\-`\" \n*&]{0,60}") {
        prop_assume!(!markdown.is_empty());
        let letter = Letter { markdown, ..Letter::default() };
        let composed = letter.compose(SENDER, ROOM, &SeededEntropy::new(1)).unwrap();
        let Body::Letter { letter, .. } = Body::decode(&composed.bytes).unwrap() else { panic!("not a letter") };
        let again = letter.compose(SENDER, ROOM, &SeededEntropy::new(1)).unwrap();
        prop_assert_eq!(again.bytes, composed.bytes);
    }

    #[test]
    fn the_decoder_never_panics(bytes in vec(any::<u8>(), 0..600)) {
        let _ = Body::decode(&bytes);
    }

    #[test]
    fn changed_messages_never_panic_and_never_have_two_encodings(
        content in any_content(),
        changes in vec(any::<(usize, u8)>(), 1..4),
        cut in proptest::option::of(any::<usize>()),
    ) {
        let mut bytes = content.encode().unwrap();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut % bytes.len());
        }
        let _ = Body::decode(&bytes);
        if let Ok(decoded) = MimiContent::decode(&bytes) {
            prop_assert_eq!(decoded.encode().unwrap(), bytes);
        }
    }
}
