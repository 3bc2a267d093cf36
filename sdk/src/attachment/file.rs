//! What a letter says about a file: where its blob is, how to open it, what to
//! call it; and its form as an external part of MIMI content
//! (draft-ietf-mimi-content-08, section 4.5).

use super::{FileError, FileKey, MAX_BLOB, OVERHEAD};
use crate::content::ExternalPart;
use chancery_types::{BlobId, NodeId, Timestamp};
use std::fmt;
use std::str::FromStr;

const SCHEME: &str = "chancery-blob://";

/// IANA AEAD registry: AEAD_AES_128_GCM.
const AES_128_GCM: u16 = 1;

/// IANA named-information hash registry: sha-256.
const SHA_256: u8 = 1;

/// Where a blob is: `chancery-blob://<origin node>/<blob id in hexadecimal>`.
/// Not fetched from there: the reader's own node pulls it (`BlobService.ReadBlob`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlobUrl {
    /// The node it was put on.
    pub origin: NodeId,
    /// SHA-256 of its bytes.
    pub id: BlobId,
}

/// Not a `chancery-blob://` URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form chancery-blob://<node>/<64 lower-case hexadecimal digits>")]
pub struct NotABlobUrl;

impl fmt::Display for BlobUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.origin, hex::encode(self.id.as_bytes()))
    }
}

impl FromStr for BlobUrl {
    type Err = NotABlobUrl;

    fn from_str(url: &str) -> Result<Self, NotABlobUrl> {
        let (origin, digits) =
            url.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or(NotABlobUrl)?;
        let mut id = [0; BlobId::LENGTH];
        hex::decode_to_slice(digits, &mut id).map_err(|_| NotABlobUrl)?;
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(NotABlobUrl);
        }
        Ok(Self { origin: origin.parse().map_err(|_| NotABlobUrl)?, id: BlobId::from_bytes(id) })
    }
}

/// A file of a letter. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalFile {
    /// Where its blob is.
    pub blob: BlobUrl,
    /// Bytes of the blob, that is of the ciphertext: 16 to 100 MiB.
    pub size: u64,
    /// Opens the blob, and nothing else.
    pub key: FileKey,
    /// Goes with the key.
    pub nonce: [u8; 12],
    /// When nodes forget the blob, in whole seconds. `None`: not stated.
    pub expires_at: Option<Timestamp>,
    /// Media type of the file.
    pub media_type: String,
    /// Suggested name. From a peer it is anything: never use it as a path.
    pub file_name: String,
    /// For people. Empty: none.
    pub description: String,
}

impl ExternalFile {
    /// Bytes of the file itself.
    pub const fn plaintext_size(&self) -> u64 {
        self.size.saturating_sub(OVERHEAD)
    }

    /// Whether we may write it so: see [`FileError`].
    pub fn check(&self) -> Result<(), FileError> {
        let name = &self.file_name;
        if !(1..=255).contains(&name.len())
            || name.contains(|c: char| c.is_control() || c == '/' || c == '\\')
        {
            return Err(FileError::Name);
        }
        let media_type = &self.media_type;
        let shape = media_type.split_once('/').is_some_and(|(kind, sub)| !kind.is_empty() && !sub.is_empty());
        if !shape || media_type.len() > 127 || !media_type.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            return Err(FileError::MediaType);
        }
        if self.description.len() > 1024 { Err(FileError::Description) } else { Ok(()) }
    }
}

impl fmt::Debug for ExternalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExternalFile")
    }
}

impl From<&ExternalFile> for ExternalPart {
    fn from(file: &ExternalFile) -> Self {
        let seconds = file.expires_at.map_or(0, Timestamp::seconds);
        Self {
            content_type: file.media_type.clone(),
            url: file.blob.to_string(),
            expires: u32::try_from(seconds.max(0)).unwrap_or(u32::MAX),
            size: file.size,
            enc_alg: AES_128_GCM,
            key: file.key.as_bytes().to_vec(),
            nonce: file.nonce.to_vec(),
            aad: Vec::new(),
            hash_alg: SHA_256,
            content_hash: file.blob.id.as_bytes().to_vec(),
            description: file.description.clone(),
            filename: file.file_name.clone(),
        }
    }
}

/// An external part that is no file of Chancery's: another scheme, algorithm or size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an external part of another kind")]
pub struct NotOurFile;

impl TryFrom<&ExternalPart> for ExternalFile {
    type Error = NotOurFile;

    fn try_from(part: &ExternalPart) -> Result<Self, NotOurFile> {
        let blob: BlobUrl = part.url.parse().map_err(|_| NotOurFile)?;
        let algorithms = part.enc_alg == AES_128_GCM && part.aad.is_empty() && part.hash_alg == SHA_256;
        let size = (OVERHEAD..=MAX_BLOB).contains(&part.size);
        if !algorithms || !size || part.content_hash != blob.id.as_bytes() {
            return Err(NotOurFile);
        }
        Ok(Self {
            blob,
            size: part.size,
            key: part.key.as_slice().try_into().map(FileKey::from_bytes).map_err(|_| NotOurFile)?,
            nonce: part.nonce.as_slice().try_into().map_err(|_| NotOurFile)?,
            expires_at: match part.expires {
                0 => None,
                seconds => Some(Timestamp::from_millis(i64::from(seconds) * 1000)),
            },
            media_type: part.content_type.clone(),
            file_name: part.filename.clone(),
            description: part.description.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file() -> ExternalFile {
        ExternalFile {
            blob: BlobUrl { origin: "federal".parse().unwrap(), id: BlobId::from_bytes([0xab; 32]) },
            size: 1016,
            key: FileKey::from_bytes([1; 16]),
            nonce: [2; 12],
            expires_at: Some(Timestamp::from_millis(1_700_000_000_000)),
            media_type: "application/pdf".to_owned(),
            file_name: "decision.pdf".to_owned(),
            description: String::new(),
        }
    }

    #[test]
    fn url_has_one_form() {
        let url = file().blob.to_string();
        assert_eq!(url, format!("chancery-blob://federal/{}", "ab".repeat(32)));
        assert_eq!(url.parse(), Ok(file().blob));
        for bad in [
            url.to_uppercase(),
            url.replace("ab", "AB"),
            url.replace("federal", ""),
            url.replace("federal", "a.b"),
            url.replace("chancery-blob", "https"),
            format!("{url}0"),
            format!("{url}/"),
            url.replace('/', ""),
        ] {
            assert_eq!(bad.parse::<BlobUrl>(), Err(NotABlobUrl), "{bad}");
        }
    }

    #[test]
    fn external_part_and_back() {
        let part = ExternalPart::from(&file());
        assert_eq!(ExternalFile::try_from(&part), Ok(file()));
        assert_eq!(file().plaintext_size(), 1000);
        let changes: [fn(&mut ExternalPart); 9] = [
            |p| p.url = "https://example.com/x".to_owned(),
            |p| p.size = 15,
            |p| p.size = MAX_BLOB + 1,
            |p| p.enc_alg = 2,
            |p| p.hash_alg = 0,
            |p| p.aad = vec![0],
            |p| p.content_hash[0] ^= 1,
            |p| p.key.truncate(15),
            |p| p.nonce.push(0),
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut part = part.clone();
            change(&mut part);
            assert_eq!(ExternalFile::try_from(&part), Err(NotOurFile), "change {index}");
        }
    }

    #[test]
    fn names_and_types_are_checked() {
        let with = |name: &str, media_type: &str| {
            ExternalFile { file_name: name.to_owned(), media_type: media_type.to_owned(), ..file() }.check()
        };
        assert_eq!(with("Brief für alle.pdf", "text/plain;charset=utf-8"), Ok(()));
        for bad in ["", "a/b", "a\\b", "a\nb", "a\0", &"x".repeat(256)] {
            assert_eq!(with(bad, "a/b"), Err(FileError::Name));
        }
        for bad in ["", "pdf", "/pdf", "pdf/", "a/ü", "a/b\n", &format!("a/{}", "b".repeat(126))] {
            assert_eq!(with("x", bad), Err(FileError::MediaType));
        }
        let long = ExternalFile { description: "x".repeat(1025), ..file() };
        assert_eq!(long.check(), Err(FileError::Description));
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?} {:?}", file(), file().key), "ExternalFile FileKey");
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_formats_back(url in "(chancery-blob://)?[a-z-]{0,4}/?([0-9a-fA-F]{64}|.{0,70})") {
            if let Ok(parsed) = url.parse::<BlobUrl>() {
                prop_assert_eq!(parsed.to_string(), url);
            }
        }
    }
}
