//! What each party could and could not see: its whole disk is searched, byte
//! by byte, for what the residents' letters and identifiers contain.

use super::layout::{EVALUATORS, Layout};
use aho_corasick::AhoCorasick;
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Kinds of things that are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Secret {
    /// A national identifier.
    Identifier,
    /// A handle, as raw bytes or hexadecimal.
    Handle,
    /// Something that stands in a letter, an answer or an attachment.
    Content,
}

impl Secret {
    /// All kinds.
    pub(crate) const ALL: [Self; 3] = [Self::Identifier, Self::Handle, Self::Content];

    /// For the table's head.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Identifier => "identifiers",
            Self::Handle => "handles",
            Self::Content => "content",
        }
    }
}

/// What was found on one party's disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Bytes searched.
    pub(crate) bytes: u64,
    /// Distinct secrets found, by kind.
    pub(crate) found: BTreeMap<Secret, usize>,
}

/// Searches for secrets.
pub(crate) struct Searcher {
    automaton: AhoCorasick,
    kinds: Vec<Secret>,
}

impl Searcher {
    /// Looks for these byte strings; those shorter than 8 bytes are left out,
    /// since chance would find them.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn new(secrets: Vec<(Secret, Vec<u8>)>) -> io::Result<Self> {
        let (kinds, patterns): (Vec<_>, Vec<_>) =
            secrets.into_iter().filter(|(_, bytes)| bytes.len() >= 8).unzip();
        let automaton = AhoCorasick::new(patterns).map_err(io::Error::other)?;
        Ok(Self { automaton, kinds })
    }

    /// Searches every file under a party's folders.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn search(&self, folders: &[PathBuf]) -> io::Result<Seen> {
        let mut hits = vec![false; self.kinds.len()];
        let mut bytes = 0;
        for folder in folders {
            self.walk(folder, &mut hits, &mut bytes)?;
        }
        let mut found = BTreeMap::new();
        for (kind, _) in self.kinds.iter().zip(&hits).filter(|(_, hit)| **hit) {
            *found.entry(*kind).or_default() += 1;
        }
        Ok(Seen { bytes, found })
    }

    fn walk(&self, path: &Path, hits: &mut [bool], bytes: &mut u64) -> io::Result<()> {
        if path.is_dir() {
            for entry in std::fs::read_dir(path)? {
                self.walk(&entry?.path(), hits, bytes)?;
            }
            return Ok(());
        }
        let mut content = Vec::new();
        match std::fs::File::open(path) {
            Ok(mut file) => file.read_to_end(&mut content)?,
            // Gone since the folder was listed: a write-ahead log that was folded in.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        *bytes += content.len() as u64;
        for found in self.automaton.find_overlapping_iter(&content) {
            if let Some(hit) = hits.get_mut(found.pattern().as_usize()) {
                *hit = true;
            }
        }
        Ok(())
    }
}

/// The parties of a local federation with their folders. Authorities and
/// endpoints know more on purpose; they stand last.
pub(crate) fn parties(layout: &Layout) -> Vec<(&'static str, Vec<PathBuf>)> {
    let of = |names: &[&str]| names.iter().map(|name| layout.path(name)).collect();
    vec![
        ("federal node", of(&["node-federal"])),
        ("regional node", of(&["node-regional"])),
        ("directory", of(&["directory"])),
        ("evaluators", of(&EVALUATORS)),
        ("enrolment authority", of(&["authority"])),
        ("federal agent", of(&["agent-federal"])),
        ("residents' devices", of(&["residents"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let sub = folder.path().join("a/b");
        std::fs::create_dir_all(&sub).unwrap();
        std::fs::write(sub.join("x"), b"..85073003328..secret letter").unwrap();
        let secrets = vec![
            (Secret::Identifier, b"85073003328".to_vec()),
            (Secret::Identifier, b"17073003384".to_vec()),
            (Secret::Content, b"secret letter".to_vec()),
            (Secret::Content, b"short".to_vec()),
        ];
        let seen = Searcher::new(secrets).unwrap().search(&[folder.path().to_owned()]).unwrap();
        assert_eq!(seen.bytes, 28);
        assert_eq!(seen.found, BTreeMap::from([(Secret::Identifier, 1), (Secret::Content, 1)]));
    }
}
