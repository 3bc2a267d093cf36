//! One-time codes: 100 random bits that reach a person on a way of their own. What is
//! kept is a digest of code and identifier together, from which neither comes back.

use chancery_directory_core::AccountKey;
use chancery_types::{Entropy, Identifier, Reason, Refusal, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};
use sha2::{Digest as _, Sha256};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Crockford's base 32.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters of a code: 5 bits each.
const LENGTH: usize = 20;
/// Characters between dashes.
const GROUP: usize = 5;
/// How long a code is good: as long as a letter needs, and its reader.
const LIFE: Duration = Duration::from_hours(30 * 24);

/// The codes that an authority gave out.
pub struct Codes(Arc<Mutex<Connection>>);

impl Codes {
    /// Opens the file at `path`, made when there is none; processes may share it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        let create = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        create.map_err(|error| {
            tracing::error!(%error, "authority.codes.fail");
            Refusal::new(Reason::Internal, "the authority's codes cannot be opened")
        })?;
        // SQLite gives its journals the mode of the main file.
        let open = || {
            let connection = Connection::open(path)?;
            connection.busy_timeout(Duration::from_secs(5))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.execute_batch(
                "CREATE TABLE IF NOT EXISTS code (
                     digest BLOB PRIMARY KEY,      -- of code and identifier
                     account_key BLOB,             -- who showed it first; NULL: nobody yet
                     expires_at_ms INTEGER NOT NULL
                 ) STRICT, WITHOUT ROWID",
            )?;
            Ok(connection)
        };
        Ok(Self(Arc::new(Mutex::new(open().map_err(failed)?))))
    }

    /// A new code for whoever holds the identifier, as it is to be printed. Those that
    /// have expired are forgotten.
    ///
    /// # Errors
    /// The file's.
    pub async fn issue(
        &self,
        identifier: Identifier,
        entropy: &dyn Entropy,
        now: Timestamp,
    ) -> Result<String, Refusal> {
        let drawn: [u8; LENGTH] = entropy.array();
        let code: String = drawn.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
        let digest = digest(&identifier, &code);
        self.call(move |connection| {
            connection.execute("DELETE FROM code WHERE expires_at_ms <= ?1", [now.millis()])?;
            connection.execute(
                "INSERT INTO code (digest, expires_at_ms) VALUES (?1, ?2)",
                params![digest, now.after(LIFE).millis()],
            )
        })
        .await?;
        Ok(dashed(&code))
    }

    /// Takes a code for an account key: the first one that shows it.
    ///
    /// # Errors
    /// ENROLMENT_REFUSED: no such code for this identifier, expired, or another
    /// account's; or the file's.
    pub async fn redeem(
        &self,
        identifier: Identifier,
        code: String,
        account: AccountKey,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let digest = digest(&identifier, &plain(&code));
        let key = account.to_wire().to_vec();
        let owner = self
            .call(move |connection| {
                connection.execute(
                    "UPDATE code SET account_key = ?2 \
                     WHERE digest = ?1 AND account_key IS NULL AND expires_at_ms > ?3",
                    params![digest, key, now.millis()],
                )?;
                let owner = connection
                    .query_row(
                        "SELECT account_key FROM code WHERE digest = ?1 AND expires_at_ms > ?2",
                        params![digest, now.millis()],
                        |row| row.get::<_, Option<Vec<u8>>>(0),
                    )
                    .optional()?;
                Ok(owner.flatten().is_some_and(|owner| owner == key))
            })
            .await?;
        if owner {
            return Ok(());
        }
        let message = "the authority knows no such code for this identifier, or it was used";
        Err(Refusal::new(Reason::EnrolmentRefused, message))
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Refusal> {
        let connection = Arc::clone(&self.0);
        let work = move || work(&connection.lock().unwrap_or_else(PoisonError::into_inner));
        crate::resolve::blocking(work).await?.map_err(failed)
    }
}

fn failed(error: rusqlite::Error) -> Refusal {
    tracing::error!(%error, "authority.codes.fail");
    Refusal::new(Reason::Internal, "the authority's codes cannot be read")
}

fn digest(identifier: &Identifier, code: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in ["chancery enrolment code v1", identifier.scheme().as_str(), identifier.value()] {
        hash.update(part);
        hash.update([0]);
    }
    hash.chain_update(code).finalize().into()
}

/// As people type it: letters that look like digits are those.
fn plain(code: &str) -> String {
    let sign = |sign: char| match sign.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        sign => sign,
    };
    code.chars().filter(|sign| *sign != '-' && !sign.is_whitespace()).take(LENGTH + 1).map(sign).collect()
}

fn dashed(code: &str) -> String {
    let groups: Vec<&str> =
        (0..code.len()).step_by(GROUP).filter_map(|at| code.get(at..at + GROUP)).collect();
    groups.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_directory_core::keys;
    use chancery_types::entropy::SeededEntropy;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn person(value: &str) -> Identifier {
        Identifier::parse("be-nn", value).unwrap()
    }

    fn account(seed: u64) -> AccountKey {
        (&keys::generate(&SeededEntropy::new(seed))).into()
    }

    #[tokio::test]
    async fn a_code_is_good_for_one_identifier_and_the_first_account() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codes.db");
        let codes = Codes::open(&path).unwrap();
        let anna = person("85.07.30-033 28");
        let code = codes.issue(anna.clone(), &SeededEntropy::new(1), NOW).await.unwrap();
        assert_eq!((code.len(), code.matches('-').count()), (23, 3));
        let take = async |who: &Identifier, code: &str, key, at| {
            codes.redeem(who.clone(), code.to_owned(), key, at).await.map_err(|refusal| refusal.reason)
        };
        let refused = Err(Reason::EnrolmentRefused);
        assert_eq!(take(&person("85.07.30-001 60"), &code, account(1), NOW).await, refused);
        assert_eq!(take(&anna, "00000-00000-00000-00000", account(1), NOW).await, refused);
        assert_eq!(take(&anna, &code, account(1), NOW.after(LIFE)).await, refused, "expired");
        // As somebody types it.
        let typed = code.to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
        assert_eq!(take(&anna, &typed, account(1), NOW).await, Ok(()));
        assert_eq!(take(&anna, &code, account(2), NOW).await, refused, "spent");
        // Another process has the same file.
        let again = Codes::open(&path).unwrap();
        assert!(again.redeem(anna.clone(), code.clone(), account(1), NOW).await.is_ok(), "repeated");
        drop((codes, again));
        let bytes: Vec<u8> = std::fs::read_dir(folder.path())
            .unwrap()
            .flat_map(|file| std::fs::read(file.unwrap().path()).unwrap())
            .collect();
        for secret in [anna.value(), &plain(&code)] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
    }
}
