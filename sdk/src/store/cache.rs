//! What an operation works with: the connection inside its transaction, the
//! MLS provider on that same connection, clock, randomness, and the groups that
//! earlier operations loaded. A loaded group is used again only while the store
//! holds exactly its state: an operation takes it out, gives it back when it is
//! done, and whatever an undone operation touched is dropped.

use super::StoreError;
use crate::error::EndpointError;
use crate::mls::provider::{EntropyRand, Provider};
use crate::outbox::Decided;
use chancery_types::{Clock, Entropy, GroupId, Timestamp};
use ed25519_dalek::SigningKey;
use openmls::group::MlsGroup;
use openmls_rust_crypto::RustCrypto;
use rusqlite::Connection;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use subtle::ConstantTimeEq as _;

/// How many loaded groups are kept (some 50 KB each in the hybrid suite).
const KEPT: usize = 512;

/// What all operations of one store share.
pub(crate) struct Services {
    clock: Arc<dyn Clock>,
    rand: EntropyRand,
    crypto: RustCrypto,
    /// The signing key used last: expanding a seed takes a scalar multiplication.
    key: RefCell<Option<SigningKey>>,
}

impl Services {
    pub(super) fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self { clock, rand: EntropyRand(entropy), crypto: RustCrypto::default(), key: RefCell::default() }
    }
}

/// Loaded groups.
#[derive(Default)]
pub(super) struct Groups(HashMap<GroupId, MlsGroup>);

impl Groups {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// One operation's view of the store.
pub struct Tx<'a> {
    connection: &'a Connection,
    services: &'a Services,
    groups: &'a mut Groups,
    touched: Vec<GroupId>,
    decided: RefCell<Vec<Decided>>,
    succession_due: Cell<bool>,
}

impl<'a> Tx<'a> {
    pub(super) fn new(connection: &'a Connection, services: &'a Services, groups: &'a mut Groups) -> Self {
        Self {
            connection,
            services,
            groups,
            touched: Vec::new(),
            decided: RefCell::default(),
            succession_due: Cell::new(false),
        }
    }

    /// The connection, inside the transaction.
    pub fn sql(&self) -> &'a Connection {
        self.connection
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.services.clock.now()
    }

    /// The clock.
    pub fn clock(&self) -> &'a dyn Clock {
        &*self.services.clock
    }

    /// Where random bytes come from.
    pub fn entropy(&self) -> &'a dyn Entropy {
        &*self.services.rand.0
    }

    /// The signing key of a seed.
    pub(crate) fn signing_key(&self, seed: &[u8; 32]) -> SigningKey {
        let mut last = self.services.key.borrow_mut();
        match &*last {
            Some(key) if bool::from(key.as_bytes().ct_eq(seed)) => key.clone(),
            _ => last.insert(SigningKey::from_bytes(seed)).clone(),
        }
    }

    /// The MLS provider on this transaction's connection.
    pub(crate) fn provider(&self) -> Provider<'a> {
        Provider::new(self.connection, &self.services.crypto, &self.services.rand)
    }

    /// Notes a decision, for whoever waits for it once it is committed.
    pub(crate) fn decided(&self, decided: Decided) {
        self.decided.borrow_mut().push(decided);
    }

    /// Notes that another group may have to take a group's place once it is committed.
    pub(crate) fn succession_is_due(&self) {
        self.succession_due.set(true);
    }

    /// Whether one may have to.
    pub(crate) fn take_succession_due(&self) -> bool {
        self.succession_due.take()
    }

    /// The decisions so far.
    pub(crate) fn take_decided(&self) -> Vec<Decided> {
        self.decided.take()
    }

    /// Takes a group out: loaded before, or from its tables.
    pub(crate) fn take_group(&mut self, id: &GroupId) -> Result<MlsGroup, EndpointError> {
        self.touched.push(*id);
        if let Some(group) = self.groups.0.remove(id) {
            return Ok(group);
        }
        let storage = self.provider();
        MlsGroup::load(storage.storage_provider(), &openmls::group::GroupId::from_slice(id.as_bytes()))
            .map_err(StoreError::from)?
            .ok_or(EndpointError::ThreadUnknown)
    }

    /// Gives a group back whose state is in the store.
    pub(crate) fn keep_group(&mut self, id: GroupId, group: MlsGroup) {
        self.touched.push(id);
        if self.groups.0.len() >= KEPT
            && let Some(any) = self.groups.0.keys().next().copied()
        {
            self.groups.0.remove(&any);
        }
        self.groups.0.insert(id, group);
    }

    /// Runs a part of the operation that may fail alone: its error undoes what
    /// it wrote and nothing else.
    pub(crate) fn part<T, E: From<StoreError>>(
        &mut self,
        part: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut inner = Tx::new(self.connection, self.services, self.groups);
        inner.savepoint()?;
        let result = part(&mut inner);
        if result.is_ok() {
            inner.release()?;
        } else {
            inner.undo()?;
        }
        let (touched, decided) = (std::mem::take(&mut inner.touched), inner.take_decided());
        let due = inner.take_succession_due();
        self.touched.extend(touched);
        if result.is_ok() {
            self.succession_due.set(self.succession_due.get() || due);
            self.decided.borrow_mut().extend(decided);
        }
        result
    }

    pub(super) fn savepoint(&self) -> Result<(), StoreError> {
        self.connection.prepare_cached("SAVEPOINT operation")?.execute([])?;
        Ok(())
    }

    pub(super) fn release(&self) -> Result<(), StoreError> {
        self.connection.prepare_cached("RELEASE operation")?.execute([])?;
        Ok(())
    }

    pub(super) fn undo(&mut self) -> Result<(), StoreError> {
        self.drop_touched();
        self.connection.prepare_cached("ROLLBACK TO operation")?.execute([])?;
        self.release()
    }

    /// Undoes the whole transaction and begins another.
    pub(super) fn restart(&mut self) -> Result<(), StoreError> {
        self.drop_touched();
        self.connection.prepare_cached("ROLLBACK")?.execute([])?;
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(())
    }

    fn drop_touched(&mut self) {
        for id in self.touched.drain(..) {
            self.groups.0.remove(&id);
        }
    }
}
