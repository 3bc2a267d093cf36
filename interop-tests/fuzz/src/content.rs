//! What a letter is made of, as the reader's endpoint finds it behind the encryption.

use crate::Target;
use crate::input::Steps;
use chancery_sdk::attachment::{self, ExternalFile, FileKey, MAX_BLOB};
use chancery_sdk::content::{
    Body, Cardinality, Disposition, Extensions, ExternalPart, Letter, MAX_ATTACHMENTS, MAX_BYTES, MAX_PARTS,
    MAX_TEXT, MimiContent, MimiId, Part, ReadReceipt, Semantics, Succession, compose_succession, room_uri,
    sender_uri,
};
use chancery_types::entropy::SeededEntropy;
use chancery_types::{Alias, BlobId, Chain, GroupId, MessageId, Timestamp};
use pulldown_cmark::{Event, Options, Parser};
use std::sync::LazyLock;

/// MIMI content.
pub(crate) const MIMI: Target = Target { name: "mimi_content", run: mimi, seeds: mimi_seeds };
/// The same, read as a letter of a thread.
pub(crate) const BODY: Target = Target { name: "letter_body", run: body, seeds: mimi_seeds };
/// A letter that somebody writes.
pub(crate) const LETTER: Target = Target { name: "letter", run: letter, seeds: letter_seeds };
/// A file's blob as a node hands it out, or what a peer says about a file.
pub(crate) const FILE: Target = Target { name: "external_file", run: file, seeds: file_seeds };

static SENDER: LazyLock<String> = LazyLock::new(|| sender_uri("mesh.example", &Alias::from_bytes([1; 16])));
static ROOM: LazyLock<String> = LazyLock::new(|| room_uri("mesh.example", &GroupId::from_bytes([2; 32])));

fn mimi(bytes: &[u8]) {
    let Ok(content) = MimiContent::decode(bytes) else { return };
    assert!(bytes.len() <= MAX_BYTES && parts(&content.part) <= MAX_PARTS);
    // One encoding of each content: who signs bytes signs what everybody reads.
    assert!(content.encode().is_ok_and(|again| again == bytes), "content has two encodings");
}

fn parts(part: &Part) -> usize {
    match &part.cardinality {
        Cardinality::Multi { parts: all, .. } => 1 + all.iter().map(parts).sum::<usize>(),
        _ => 1,
    }
}

fn body(bytes: &[u8]) {
    let decoded = Body::decode(bytes);
    let opened = Body::open(bytes, &SENDER, &ROOM);
    assert!(decoded.is_ok() || opened.is_err(), "a thread reads what is no content");
    let Ok(opened) = opened else { return };
    assert!(decoded.is_ok_and(|body| body == opened.body), "a letter is read in two ways");
    let content = MimiContent::decode(bytes).unwrap();
    let claims = |claim: Option<&str>, known: &str| claim.is_none_or(|claim| claim == known);
    assert!(claims(content.extensions.sender_uri(), &SENDER) && claims(content.extensions.room_uri(), &ROOM));
    match opened.body {
        Body::Letter { letter, unknown_parts } => {
            assert!(letter.attachments.len() + unknown_parts.len() <= MAX_PARTS);
            assert!(letter.language.is_ascii() && letter.language.len() <= 35);
            // Plain text doubles at most, and line ends between texts are two.
            assert!(letter.markdown.len() <= 3 * MAX_BYTES);
            assert!(letter.attachments.iter().all(|file| (16..=MAX_BLOB).contains(&file.size)));
        }
        Body::ReadReceipt(receipt) => {
            assert!((1..=256).contains(&receipt.message_ids.len()));
            let again = receipt.compose(&SENDER, &ROOM, &SeededEntropy::new(1)).unwrap();
            let again = Body::open(&again.bytes, &SENDER, &ROOM).unwrap().body;
            assert!(again == Body::ReadReceipt(receipt), "a receipt changes by encoding");
        }
        Body::Succession(said) => {
            let again = compose_succession(&said, &SENDER, &ROOM, &SeededEntropy::new(1)).unwrap();
            let again = Body::open(&again.bytes, &SENDER, &ROOM).unwrap().body;
            assert!(again == Body::Succession(said), "a succession changes by encoding");
        }
        Body::Unknown { content_types } => assert!(content_types.len() <= MAX_PARTS),
    }
}

fn mimi_seeds() -> Vec<Vec<u8>> {
    let entropy = SeededEntropy::new(2);
    let compose = |letter: &Letter| letter.compose(&SENDER, &ROOM, &entropy).unwrap().bytes;
    let text =
        Letter { markdown: "# Hello\n\nworld".to_owned(), language: "en".to_owned(), ..Letter::default() };
    let answer = Letter {
        in_reply_to: Some(MimiId::from_bytes([1; 32])),
        attachments: vec![sample_file(), sample_file()],
        ..text.clone()
    };
    let receipt = ReadReceipt {
        message_ids: vec![MessageId::from_bytes([9; 16])],
        read_at: Timestamp::from_millis(1_790_000_000_000),
    };
    let receipt = receipt.compose(&SENDER, &ROOM, &entropy).unwrap().bytes;
    let head = Some((7, Chain::from_bytes([4; 32])));
    let said = Succession { root: GroupId::from_bytes([2; 32]), group: GroupId::from_bytes([3; 32]), head };
    let succession = compose_succession(&said, &SENDER, &ROOM, &entropy).unwrap().bytes;
    let mut seeds = vec![compose(&text), compose(&answer), receipt, succession];
    seeds.extend(odd().map(|content| content.encode().unwrap()));
    seeds
}

/// What others may write and we do not: edits, choices, units, null parts, plain text.
fn odd() -> [MimiContent; 4] {
    let single = |content_type: &str, content: &[u8]| Part {
        disposition: Disposition::RENDER,
        language: "nl,fr".to_owned(),
        cardinality: Cardinality::Single { content_type: content_type.to_owned(), content: content.to_vec() },
    };
    let multi = |semantics, parts| Part {
        disposition: Disposition::RENDER,
        language: String::new(),
        cardinality: Cardinality::Multi { semantics, parts },
    };
    let null = Part {
        disposition: Disposition::UNSPECIFIED,
        language: String::new(),
        cardinality: Cardinality::Null,
    };
    let plain = || single("text/plain;charset=utf-8", b"a *b*\n\n  c <d>");
    let html = || single("text/html", b"<p>");
    let content = |part, replaces| MimiContent {
        salt: [3; 16],
        replaces,
        topic_id: vec![1, 2],
        expires: Some(chancery_sdk::content::Expiration::At(1_800_000_000)),
        in_reply_to: None,
        extensions: Extensions::default(),
        part,
    };
    [
        content(multi(Semantics::ChooseOne, vec![html(), plain()]), None),
        content(
            multi(
                Semantics::SingleUnit,
                vec![plain(), plain(), multi(Semantics::ProcessAll, vec![html(), plain()])],
            ),
            None,
        ),
        content(null, Some(MimiId::from_bytes([1; 32]))),
        content(plain(), None),
    ]
}

fn letter(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let files = (0..steps.below(3)).map(|_| written_file(&mut steps)).collect();
    let language = String::from_utf8_lossy(steps.bytes(12)).into_owned();
    let Ok(markdown) = std::str::from_utf8(steps.rest()) else { return };
    let letter = Letter { markdown: markdown.to_owned(), language, in_reply_to: None, attachments: files };
    let Ok(composed) = letter.compose(&SENDER, &ROOM, &SeededEntropy::new(4)) else { return };
    assert!(markdown.len() <= MAX_TEXT && letter.attachments.len() <= MAX_ATTACHMENTS);
    let opened = Body::open(&composed.bytes, &SENDER, &ROOM).expect("we do not read what we wrote");
    assert!(opened.id == composed.id, "a letter has two ids");
    let Body::Letter { letter: read, unknown_parts } = opened.body else { panic!("a letter is none") };
    assert!(unknown_parts.is_empty() && read.attachments == letter.attachments);
    assert!(read.markdown.is_empty() == markdown.is_empty());
    assert!(markdown.is_empty() || read.language == letter.language, "a letter changes its language");
    // A reader that knows the extensions, and one that does not.
    let extended = Options::ENABLE_TABLES | Options::ENABLE_TASKLISTS | Options::ENABLE_STRIKETHROUGH;
    let html = Parser::new_ext(&read.markdown, extended).into_offset_iter().any(|(event, range)| {
        matches!(event, Event::Html(_) | Event::InlineHtml(_)) && read.markdown[range].contains('<')
    });
    assert!(!html, "HTML reaches a reader");
}

fn written_file(steps: &mut Steps<'_>) -> ExternalFile {
    let text = |steps: &mut Steps<'_>| String::from_utf8_lossy(steps.bytes(20)).into_owned();
    let seconds = steps.below(u32::MAX);
    ExternalFile {
        size: 16 + u64::from(steps.below(1 << 20)),
        expires_at: (seconds > 0).then(|| Timestamp::from_millis(i64::from(seconds) * 1000)),
        media_type: text(steps),
        file_name: text(steps),
        description: text(steps),
        ..sample_file()
    }
}

fn letter_seeds() -> Vec<Vec<u8>> {
    let letters = [
        "Dear resident,\n\n* your file is ready\n\n| a | b |\n|---|---|\n| 1 | <b>2</b> |\n",
        "<div>\n*x*\n</div>\n\n`<code>` <http://a.example> <!-- c -->",
        "[link](<a b> \"t\")\n\n<script>\n\nalert(1)\n</script>\n~~~\n<x>\n~~~\n",
        "a <b c=\"d\n<e>\" f>\n> <p>\n- <i>x\n  y</i>",
    ];
    // No file and no language in front.
    letters.iter().map(|text| [&[0, 0], text.as_bytes()].concat()).collect()
}

/// A file whose blob is [`blob`].
static FILE_SENT: LazyLock<ExternalFile> = LazyLock::new(|| {
    let sealed = attachment::seal(b"the decision".to_vec(), &SeededEntropy::new(5)).unwrap();
    let expires_at = Timestamp::from_millis(1_800_000_000_000);
    sealed.seal().file("federal".parse().unwrap(), expires_at, "application/pdf", "decision.pdf")
});

fn sample_file() -> ExternalFile {
    FILE_SENT.clone()
}

fn blob() -> Vec<u8> {
    attachment::seal(b"the decision".to_vec(), &SeededEntropy::new(5)).unwrap().ciphertext().to_vec()
}

fn file(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    match steps.below(3) {
        // A node's blob for a file that is known.
        0 => {
            let blob = steps.rest();
            if let Ok(opened) = attachment::open(&FILE_SENT, blob.to_vec()) {
                assert!(opened == b"the decision", "a node changed a file");
            }
        }
        // A sender's blob, of the right size and hash: anything may be in it.
        1 => {
            let key = steps.flip();
            let blob = steps.rest();
            let mut file = sample_file();
            file.blob.id = BlobId::from_bytes(<sha2::Sha256 as sha2::Digest>::digest(blob).into());
            file.size = blob.len() as u64;
            if key {
                file.key = FileKey::from_bytes([0; 16]);
            }
            if let Ok(opened) = attachment::open(&file, blob.to_vec()) {
                assert!(opened.len() as u64 == file.plaintext_size());
            }
        }
        _ => external_part(&mut steps),
    }
}

fn external_part(steps: &mut Steps<'_>) {
    let mut part = ExternalPart::from(&*FILE_SENT);
    let text = |steps: &mut Steps<'_>| String::from_utf8_lossy(steps.bytes(100)).into_owned();
    while steps.more(0, 1) {
        match steps.below(9) {
            0 => part.url = text(steps),
            1 => part.size = steps.number(),
            2 => part.enc_alg = steps.below(4) as u16,
            3 => part.key = steps.bytes(40).to_vec(),
            4 => part.nonce = steps.bytes(40).to_vec(),
            5 => part.content_hash = steps.bytes(40).to_vec(),
            6 => part.expires = steps.below(u32::MAX),
            7 => part.filename = text(steps),
            _ => part.aad = steps.bytes(4).to_vec(),
        }
        let Ok(file) = ExternalFile::try_from(&part) else { continue };
        assert!((16..=MAX_BLOB).contains(&file.size) && file.plaintext_size() <= MAX_BLOB);
        assert!(ExternalPart::from(&file) == part, "a file changes by encoding");
        let _ = file.check();
    }
}

fn file_seeds() -> Vec<Vec<u8>> {
    vec![[&[0], blob().as_slice()].concat(), [&[1, 1], blob().as_slice()].concat(), (2..80).collect()]
}
