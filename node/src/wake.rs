//! Who is told that something is waiting: subscribers by alias, links by peer.
//! A wake-up says "look", never what; missing one costs nothing but time,
//! since whoever waits has looked after it began to listen.

use chancery_node_core::tables::After;
use chancery_types::{Alias, ChannelId, NodeId};
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Notify;

/// Everybody who listens.
#[derive(Default)]
pub(crate) struct Wake {
    aliases: Listeners<Alias>,
    peers: Listeners<NodeId>,
    channels: Listeners<(NodeId, ChannelId)>,
}

impl Wake {
    /// Listens for an alias.
    pub(crate) fn alias(&self, alias: Alias) -> Arc<Notify> {
        self.aliases.listen([alias])
    }

    /// Listens for a peer.
    pub(crate) fn peer(&self, peer: NodeId) -> Arc<Notify> {
        self.peers.listen([peer])
    }

    /// Listens for residents of channels: owners and ids.
    pub(crate) fn channels(&self, channels: impl IntoIterator<Item = (NodeId, ChannelId)>) -> Arc<Notify> {
        self.channels.listen(channels)
    }

    /// Wakes whoever listens.
    pub(crate) fn wake(&self, after: &After) {
        self.aliases.wake(&after.aliases);
        self.peers.wake(&after.peers);
        self.channels.wake(&after.channels);
    }
}

struct Listeners<K>(Mutex<HashMap<K, Vec<Weak<Notify>>>>);

impl<K> Default for Listeners<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq> Listeners<K> {
    fn listen(&self, keys: impl IntoIterator<Item = K>) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            let listeners = map.entry(key).or_default();
            // Looks for those that are gone each time that their number has doubled.
            if listeners.len() == listeners.capacity() {
                listeners.retain(|listener| listener.strong_count() > 0);
            }
            listeners.push(Arc::downgrade(&notify));
        }
        notify
    }

    fn wake(&self, keys: &HashSet<K>) {
        if keys.is_empty() {
            return;
        }
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            let Some(listeners) = map.get_mut(key) else { continue };
            listeners.retain(|listener| match listener.upgrade() {
                // Keeps one permit when nobody waits just now.
                Some(notify) => {
                    notify.notify_one();
                    true
                }
                None => false,
            });
            if listeners.is_empty() {
                map.remove(key);
            }
        }
    }
}
