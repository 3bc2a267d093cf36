//! The openmls provider: RustCrypto for cryptography, the transaction's own
//! connection for storage, the endpoint's entropy for randomness that openmls
//! draws itself (RustCrypto seeds its own generator for HPKE).

use chancery_types::Entropy;
use openmls_rust_crypto::RustCrypto;
use openmls_sqlite_storage::{Codec, SqliteStorageProvider};
use openmls_traits::OpenMlsProvider;
use openmls_traits::random::OpenMlsRand;
use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

/// How MLS state is written (postcard cannot load all of it, and JSON is read
/// and written faster than CBOR here).
#[derive(Default)]
pub(crate) struct JsonCodec;

impl Codec for JsonCodec {
    type Error = serde_json::Error;

    fn to_vec<T: Serialize>(value: &T) -> Result<Vec<u8>, Self::Error> {
        serde_json::to_vec(value)
    }

    fn from_slice<T: DeserializeOwned>(slice: &[u8]) -> Result<T, Self::Error> {
        serde_json::from_slice(slice)
    }
}

/// Storage of MLS state on a borrowed connection.
pub(crate) type Storage<'a> = SqliteStorageProvider<JsonCodec, &'a Connection>;

/// The endpoint's entropy as openmls wants it.
pub(crate) struct EntropyRand(pub(crate) Arc<dyn Entropy>);

impl fmt::Debug for EntropyRand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EntropyRand")
    }
}

impl OpenMlsRand for EntropyRand {
    type Error = Infallible;

    fn random_array<const N: usize>(&self) -> Result<[u8; N], Infallible> {
        Ok(self.0.array())
    }

    fn random_vec(&self, len: usize) -> Result<Vec<u8>, Infallible> {
        let mut bytes = vec![0; len];
        self.0.fill(&mut bytes);
        Ok(bytes)
    }
}

/// The provider for one transaction.
pub(crate) struct Provider<'a> {
    storage: Storage<'a>,
    crypto: &'a RustCrypto,
    rand: &'a EntropyRand,
}

impl<'a> Provider<'a> {
    pub(crate) fn new(connection: &'a Connection, crypto: &'a RustCrypto, rand: &'a EntropyRand) -> Self {
        Self { storage: SqliteStorageProvider::new(connection), crypto, rand }
    }

    pub(crate) fn storage_provider(&self) -> &Storage<'a> {
        &self.storage
    }
}

impl<'a> OpenMlsProvider for Provider<'a> {
    type CryptoProvider = RustCrypto;
    type RandProvider = EntropyRand;
    type StorageProvider = Storage<'a>;

    fn storage(&self) -> &Self::StorageProvider {
        &self.storage
    }

    fn crypto(&self) -> &Self::CryptoProvider {
        self.crypto
    }

    fn rand(&self) -> &Self::RandProvider {
        self.rand
    }
}
