//! A holder of a share of the handles' key: its file, and its answers.

use crate::DirectoryError;
use crate::keyfile::{read_private, write_private};
use chancery_directory_core::Error;
use chancery_directory_core::handle::{self, Serving};
use chancery_directory_core::oprf::SecretKey;
use chancery_directory_core::statement::EvaluatorShare;
use chancery_proto::directory::v1 as wire;
use chancery_types::{Entropy, NodeId};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use zeroize::{Zeroize as _, Zeroizing};

/// What the file of a share holds (TOML, mode 0600).
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareFile {
    /// Key epoch, from 1.
    key_epoch: u32,
    /// Generation of the shares, from 1.
    generation: u32,
    /// Index of the share, from 1.
    index: u32,
    /// The share: 32 bytes in hexadecimal.
    share: String,
}

impl Drop for ShareFile {
    fn drop(&mut self) {
        self.share.zeroize();
    }
}

/// Makes the share of a single evaluator's first epoch, unless the file is
/// there, and gives its public half.
///
/// # Errors
/// The file cannot be written, or holds something else.
pub fn init(path: &Path, entropy: &dyn Entropy) -> Result<Evaluator, DirectoryError> {
    if read_private(path)?.is_none() {
        let share = SecretKey::random(entropy);
        let file = ShareFile { key_epoch: 1, generation: 1, index: 1, share: hex::encode(*share.to_bytes()) };
        let expected = "a share";
        let text = toml::to_string(&file)
            .map_err(|_| DirectoryError::Content { path: path.to_owned(), expected })?;
        write_private(path, &[Zeroizing::new(text).as_bytes()])?;
    }
    Evaluator::load(path)
}

/// Answers evaluations with one share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Evaluator(Arc<Serving>);

impl Evaluator {
    /// With the share in the file at `path`.
    ///
    /// # Errors
    /// There is none, others can read it, or it holds something else.
    pub fn load(path: &Path) -> Result<Self, DirectoryError> {
        let wrong = || DirectoryError::Content { path: path.to_owned(), expected: "an evaluator's share" };
        let text = read_private(path)?.ok_or_else(wrong)?;
        let text = std::str::from_utf8(&text).map_err(|_| wrong())?;
        let file: ShareFile = toml::from_str(text).map_err(|_| wrong())?;
        let mut share = Zeroizing::new([0; 32]);
        hex::decode_to_slice(&file.share, &mut *share).map_err(|_| wrong())?;
        if file.key_epoch == 0 || file.generation == 0 || file.index == 0 {
            return Err(wrong());
        }
        Ok(Self(Arc::new(Serving {
            key_epoch: file.key_epoch,
            generation: file.generation,
            index: file.index,
            share: SecretKey::from_bytes(&share)?,
        })))
    }

    /// Key epoch and generation of the share.
    pub fn epoch(&self) -> (u32, u32) {
        (self.0.key_epoch, self.0.generation)
    }

    /// What the log says about it.
    ///
    /// # Errors
    /// Never: the share is not zero.
    pub fn public(&self, evaluator: NodeId, endpoints: Vec<String>) -> Result<EvaluatorShare, Error> {
        let public_share = self.0.share.public_key()?;
        Ok(EvaluatorShare { index: self.0.index, evaluator, public_share, endpoints })
    }

    /// Answers a request.
    ///
    /// # Errors
    /// As [`handle::answer`].
    pub fn answer(
        &self,
        request: &wire::EvaluateRequest,
        entropy: &dyn Entropy,
    ) -> Result<wire::EvaluateResponse, Error> {
        handle::answer(request, &self.0, entropy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn a_share_outlives_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("share.toml");
        let entropy = SeededEntropy::new(1);
        let public = |evaluator: Evaluator| evaluator.public("e1".parse().unwrap(), vec![]).unwrap();
        let first = public(init(&path, &entropy).unwrap());
        assert_eq!(public(init(&path, &entropy).unwrap()), first);
        assert_eq!(public(Evaluator::load(&path).unwrap()), first);
        assert!(Evaluator::load(&folder.path().join("none")).is_err());
        write_private(&path, &[b"share = 'x'"]).unwrap();
        assert!(init(&path, &entropy).is_err());
    }
}
