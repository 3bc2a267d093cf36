//! Moving an account to another node while letters flow: the new home is told all
//! it needs, the record names it, then the former home tells the hubs. Threads go on,
//! and no sender does anything. Each step may be repeated.

use super::{AtHome, Endpoint, Inner, run};
use crate::error::EndpointError;
use crate::home;
use crate::identity::{self, OwnKey};
use crate::inbox;
use crate::keepsake;
use crate::node_client::NodeClient;
use crate::own_record::RecordChange;
use crate::restored::STORE_COUNT;
use crate::store::Tx;
use chancery_sdk_core::receive;
use chancery_types::{NodeId, Reason, Refusal};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const MOVING: &str = "moving to";
/// From here on there is no other way than on.
const LEAVING: &str = "leaving for";
/// Times that routes are listed anew because one came in meanwhile.
const LISTINGS: usize = 16;
/// How often a former home is asked whether it has everything.
const ASK_AGAIN: Duration = Duration::from_millis(500);

impl Endpoint {
    /// Moves this account to another member's node, with all its devices; answers when
    /// this device is at home there. Needs [`Endpoint::run`] to be running, which also
    /// ends a move that was cut off. The former home is read for what still comes there.
    ///
    /// # Errors
    /// UNSUPPORTED for agents, on linked devices, back to a former home, and while the
    /// move before has not settled; otherwise who refused or cannot be reached: asked
    /// again, it goes on.
    pub async fn move_to(&self, node: NodeId) -> Result<(), Refusal> {
        let inner = &self.0;
        let mut homes = inner.homes.subscribe();
        if inner.client.node() == node {
            return Ok(());
        }
        if inner.identity.agent.is_some() {
            return Err(Refusal::new(Reason::Unsupported, "an agent stays with its administration"));
        }
        {
            let _one_at_a_time = inner.moving.lock().await;
            let name = node.clone();
            inner.call(move |tx| begin(tx, &name)).await?;
        }
        if let Err(refusal) = inner.depart(&node).await {
            if matches!(refusal.reason, Reason::AliasMoved | Reason::AlreadyTaken | Reason::NotAMember) {
                inner.call(abandon).await?;
            }
            return Err(refusal);
        }
        // The former home says it in the mailbox, behind all that it had.
        let arrived = homes.wait_for(|homes| homes.first().is_some_and(|home| home.client.node() == node));
        let closing = |_| Refusal::new(Reason::ShuttingDown, "the endpoint is closing; ask again");
        arrived.await.map(drop).map_err(closing)
    }

    /// The node that keeps this endpoint's mailbox.
    pub fn home(&self) -> NodeId {
        self.0.client.node()
    }
}

impl Inner {
    /// Ends a move that was cut off.
    pub(super) async fn resume_move(&self) -> Result<(), Refusal> {
        match self.call(|tx| named(tx, MOVING)).await? {
            Some(node) if node != self.client.node() => self.depart(&node).await,
            _ => Ok(()),
        }
    }

    async fn depart(&self, node: &NodeId) -> Result<(), Refusal> {
        let _one_at_a_time = self.moving.lock().await;
        let there = self.client.elsewhere(&self.endpoint_of(node).await?, node.clone())?;
        there.open_account(self.identity.alias).await?;
        for (device, auth_key) in self.call(|tx| identity::linked_devices(tx)).await? {
            there.add_device(device, auth_key).await?;
        }
        // Whoever resolves the record as it will be finds everything there.
        run::fill(self, &there).await?;
        self.carry_routes(&self.client, &there).await?;
        if self.record.is_published().await? {
            self.record.change(RecordChange::Move(node.clone())).await?;
        }
        let name = node.clone();
        self.call(move |tx| keepsake::put(tx, LEAVING, name.as_str().as_bytes())).await?;
        self.leave(&self.client, &there).await.map(drop)
    }

    /// Whether a move is under way.
    pub(super) async fn is_moving(&self) -> Result<bool, Refusal> {
        Ok(self.call(|tx| named(tx, MOVING)).await?.is_some())
    }

    /// Has a former home tell its hubs; gives how far that is, and the position of
    /// its mailbox's last item.
    async fn leave(&self, from: &NodeClient, to: &NodeClient) -> Result<(u32, u64), Refusal> {
        for _ in 0..LISTINGS {
            let routes = self.carry_routes(from, to).await?;
            match from.leave_alias(self.identity.alias, &to.node(), routes).await {
                Ok(left) => return Ok((left.pending_hubs, left.last_position)),
                Err(refusal) if refusal.reason == Reason::RoutesChanged => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Refusal::new(Reason::RoutesChanged, "new threads keep coming in; try again"))
    }

    /// Tells a node the hubs of this alias's groups; gives how many.
    async fn carry_routes(&self, from: &NodeClient, to: &NodeClient) -> Result<u64, Refusal> {
        let (mut after, mut count) = (prost::bytes::Bytes::new(), 0);
        loop {
            let routes = from.list_routes(self.identity.alias, after).await?;
            let Some(last) = routes.last().map(|route| route.group_id.clone()) else { return Ok(count) };
            count += routes.len() as u64;
            after = last;
            to.add_routes(self.identity.alias, routes).await?;
        }
    }

    /// Asks a former home until all that it had when its hubs knew is here, and then
    /// again whenever it brought a new thread: that one's hub does not know yet.
    pub(super) async fn follow_up(&self, from: &AtHome) -> Result<(), Refusal> {
        let id = from.id;
        if self.call(move |tx| home::give_up(tx, id)).await? {
            self.call(|tx| receive::unpark_all(tx)).await?;
            self.acknowledge();
        }
        // It can only tell of the home that came right after it, which tells of the next.
        let homes = self.homes.borrow().clone();
        let next = homes.iter().rev().find(|home| home.id > id);
        let next = next.ok_or_else(|| Refusal::new(Reason::Internal, "a former home has no next one"))?;
        let (pending, last) = self.leave(&from.client, &next.client).await?;
        if !next.is_present {
            next.joined.notify_one();
        }
        if pending == 0 && self.call(move |tx| home::through(tx, id)).await? >= last {
            let settle = move |tx: &mut Tx<'_>| {
                home::drained(tx, id)?;
                receive::unpark_all(tx)
            };
            self.call(settle).await?;
            self.inbox.send_modify(|count| *count += 1);
            self.outbox.notify_one();
            self.acknowledge();
            from.joined.notified().await;
            return Ok(());
        }
        // By then it has acknowledged more, or its link to a hub is up.
        let _ = tokio::time::timeout(ASK_AGAIN, from.joined.notified()).await;
        Ok(())
    }

    /// Where a member's node is reached.
    pub(super) async fn endpoint_of(&self, node: &NodeId) -> Result<String, Refusal> {
        let mut state = self.view.state().await?;
        if state.member(node).is_none() {
            state = self.view.refresh().await?;
        }
        let endpoint = state.member(node).and_then(|member| member.endpoints.first().cloned());
        endpoint.ok_or_else(|| Refusal::new(Reason::NotAMember, "the log admits no such member"))
    }

    /// Goes by the homes as the store has them.
    pub(super) async fn settle_in(&self) -> Result<(), Refusal> {
        let read = |tx: &mut Tx<'_>| Ok((home::all(tx)?, inbox::mark(tx, STORE_COUNT)?));
        let (rows, count) = self.call(read).await?;
        let mut homes = Vec::with_capacity(rows.len());
        for row in rows {
            let running = self.homes.borrow().iter().find(|home| home.id == row.id).cloned();
            let endpoint = match &*row.endpoint {
                "" => self.first_endpoint.clone(),
                endpoint => endpoint.to_owned(),
            };
            let is_present = row.left_at.is_none();
            let home = match running {
                Some(home) if is_present == home.is_present => home,
                _ if is_present => {
                    self.client.go_to(&endpoint, row.node)?;
                    // The new home knows nothing of what is undecided.
                    self.submitted.store(0, Ordering::Relaxed);
                    Arc::new(AtHome::new(row.id, self.client.clone(), true, count))
                }
                _ => {
                    let client = self.client.elsewhere(&endpoint, row.node)?;
                    Arc::new(AtHome::new(row.id, client, false, count))
                }
            };
            homes.push(home);
        }
        self.homes.send_replace(homes);
        self.key_packages.notify_one();
        self.outbox.notify_one();
        Ok(())
    }
}

/// A node that a keepsake names.
fn named(tx: &Tx<'_>, keepsake: &str) -> Result<Option<NodeId>, EndpointError> {
    let name = keepsake::get(tx, keepsake)?;
    Ok(name.and_then(|name| std::str::from_utf8(&name).ok()?.parse().ok()))
}

/// Notes where to go, unless there is another way to end first.
fn begin(tx: &mut Tx<'_>, node: &NodeId) -> Result<(), EndpointError> {
    identity::key(tx, OwnKey::Account)?;
    if named(tx, LEAVING)?.is_some_and(|leaving| leaving != *node) {
        return Err(EndpointError::NotPossible("the account is on its way to another node"));
    }
    if home::was(tx, node)? {
        return Err(EndpointError::NotPossible("the account was there before, and left"));
    }
    if home::all(tx)?.iter().any(|home| home.left_at.is_some() && !home.drained) {
        return Err(EndpointError::NotPossible("the move before has not settled yet"));
    }
    keepsake::put(tx, MOVING, node.as_str().as_bytes())
}

/// The other node does not take it: nothing has changed.
fn abandon(tx: &mut Tx<'_>) -> Result<(), EndpointError> {
    if named(tx, LEAVING)?.is_none() {
        tx.sql().execute("DELETE FROM keepsakes WHERE name = ?1", [MOVING])?;
    }
    Ok(())
}

/// A home says that the alias has another one. Whether that is so: the account's
/// first device asked for it, and the others go by what the home says.
pub(super) fn follow(
    tx: &mut Tx<'_>,
    (from, first_endpoint): (i64, &str),
    (node, endpoint): &(NodeId, String),
) -> Result<bool, EndpointError> {
    let present = home::present(tx)?;
    let is_asked = identity::key(tx, OwnKey::Account).is_err() || named(tx, LEAVING)?.as_ref() == Some(node);
    if present.id != from || present.node == *node || !is_asked {
        return Ok(false);
    }
    home::change(tx, first_endpoint, node, endpoint)?;
    tx.sql().execute("DELETE FROM keepsakes WHERE name IN (?1, ?2)", [MOVING, LEAVING])?;
    Ok(true)
}
