//! Threads whose group cannot go on get another one, without anybody's doing.

use super::{AtHome, Inner};
use crate::credential::CredentialError;
use crate::error::EndpointError;
use crate::home;
use crate::node_client::Connection;
use crate::peer::Peer;
use crate::restored::{self, Greeted};
use crate::store::Tx;
use crate::succession;
use chancery_sdk_core::{Stand, succession as core};
use chancery_types::{GroupId, Reason, Refusal};
use prost::bytes::Bytes;
use std::sync::atomic::Ordering;

impl Inner {
    /// Proves the device's key to a home, and compares what it says with what is here, once
    /// on each connection: before anything is submitted there, and before its mailbox is read.
    /// Gives the connection, and the position up to which that mailbox was taken.
    pub(super) async fn greet(&self, at: &AtHome) -> Result<(Connection, u64), Refusal> {
        let id = at.id;
        let mut greeted = at.greeted.lock().await;
        if let Some((connection, _)) =
            greeted.filter(|(connection, _)| at.client.bound() == Some(*connection))
        {
            return Ok((connection, self.call(move |tx| home::through(tx, id)).await?));
        }
        let (connection, said) = at.client.greet(self.identity.alias).await?;
        let incarnation = said.incarnation;
        let count = greeted.is_none().then_some(at.count);
        let compare =
            move |tx: &mut Tx<'_>| Ok((restored::greet(tx, id, &said, count)?, home::through(tx, id)?));
        let (Greeted { home, store }, through) = self.call(compare).await?;
        *greeted = Some((connection, incarnation));
        if home || store {
            at.acknowledged.store(0, Ordering::Relaxed);
            self.submitted.store(0, Ordering::Relaxed);
            self.key_packages.notify_one();
            self.outbox.notify_one();
            self.acknowledge();
        }
        if at.is_present {
            self.greeted.send_replace(true);
        }
        at.acknowledge.notify_one();
        Ok((connection, through))
    }

    /// Opens the groups that are to take others' places, then waits until there are more.
    pub(super) async fn succeed(&self) -> Result<(), Refusal> {
        loop {
            let due = self.call(succession::due).await?;
            if due.is_empty() {
                break;
            }
            let peers: Vec<Peer> = due.iter().map(|(_, peer)| peer.clone()).collect();
            let mut failed = None;
            for ((group, peer), taken) in due.into_iter().zip(self.take_key_packages(&peers).await?) {
                let opened = match taken {
                    Ok((theirs, ours)) => self.open_successor(group, peer, theirs, ours).await,
                    Err(refusal) => Err(refusal),
                };
                match opened {
                    Err(refusal) if refusal.reason == Reason::AliasUnknown => {
                        self.call(move |tx| core::end(tx, &group, Stand::Closed)).await?;
                    }
                    Err(refusal) => failed = Some(refusal),
                    Ok(()) => {}
                }
            }
            self.outbox.notify_one();
            if let Some(refusal) = failed {
                return Err(refusal);
            }
        }
        self.succession.notified().await;
        Ok(())
    }

    async fn open_successor(
        &self,
        group: GroupId,
        peer: Peer,
        theirs: Vec<Bytes>,
        ours: Vec<Bytes>,
    ) -> Result<(), Refusal> {
        for refreshed in [false, true] {
            let (peer, theirs, ours) = (peer.clone(), theirs.clone(), ours.clone());
            let open = move |tx: &mut Tx<'_>| match tx
                .part(|tx| succession::open(tx, &group, &peer, &theirs, &ours))
            {
                Err(EndpointError::FalseCredential(CredentialError::UnknownAgent)) if !refreshed => Ok(false),
                opened => opened.map(|()| true),
            };
            if self.call(open).await? {
                break;
            }
            // An agent that this endpoint has not seen in the log.
            self.view.refresh().await?;
        }
        Ok(())
    }
}
