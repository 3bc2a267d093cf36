//! The nodes that keep this endpoint's mailbox: its home, and those that it left.
//! What a former home still has comes before what the present one has: a message
//! that does not follow what was seen waits until the former home has nothing more.

use crate::error::EndpointError;
use crate::inbox;
use crate::store::{StoreError, Tx};
use chancery_types::{NodeId, Timestamp};
use rusqlite::{Row, params};
use std::time::Duration;

/// How long a former home is read: what was sent from there has ended by then.
const READ_FOR: Duration = Duration::from_hours(91 * 24);
/// How long messages wait for a former home that cannot be reached.
const WAIT_FOR: Duration = Duration::from_hours(24);
/// How long submissions wait for hubs to hear of a move.
const SUBMIT_AFTER: Duration = Duration::from_secs(60);
/// Pause after a hub had not heard of one.
const SUBMIT_AGAIN: Duration = Duration::from_secs(2);
const SUBMIT_FROM: &str = "submit from";

/// A node that keeps, or kept, this endpoint's mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    /// Growing.
    pub(crate) id: i64,
    pub(crate) node: NodeId,
    /// `host:port`; empty: as configured.
    pub(crate) endpoint: String,
    /// When it was left; `None`: it is the home.
    pub(crate) left_at: Option<Timestamp>,
    /// A former one: whether all that it had when its hubs knew is here.
    pub(crate) drained: bool,
}

/// The first home of an identity.
pub(crate) fn begin(tx: &Tx<'_>, node: &NodeId) -> Result<(), EndpointError> {
    let insert = "INSERT INTO homes (node, endpoint, through, drained) VALUES (?1, '', 0, 0)";
    tx.sql().execute(insert, [node.as_str()])?;
    Ok(())
}

/// All that are read, the present one first.
pub(crate) fn all(tx: &Tx<'_>) -> Result<Vec<Home>, EndpointError> {
    let read = |row: &Row<'_>| {
        let left_at: Option<i64> = row.get(3)?;
        let node: String = row.get(1)?;
        Ok((node, row.get(0)?, row.get(2)?, left_at.map(Timestamp::from_millis), row.get(4)?))
    };
    let mut statement = tx.sql().prepare_cached(
        "SELECT id, node, endpoint, left_at_ms, drained FROM homes \
         WHERE left_at_ms IS NULL OR left_at_ms > ?1 ORDER BY id DESC",
    )?;
    let rows = statement.query_map([tx.now().before(READ_FOR).millis()], read)?;
    rows.map(|row| {
        let (node, id, endpoint, left_at, drained) = row?;
        let node = node.parse().map_err(|_| StoreError::Row { table: "homes", column: "node" })?;
        Ok(Home { id, node, endpoint, left_at, drained })
    })
    .collect()
}

/// The home.
pub(crate) fn present(tx: &Tx<'_>) -> Result<Home, EndpointError> {
    let home = all(tx)?.into_iter().find(|home| home.left_at.is_none());
    home.ok_or(EndpointError::NotPossible("the endpoint has no alias yet"))
}

/// Whether a node was ever the home.
pub(crate) fn was(tx: &Tx<'_>, node: &NodeId) -> Result<bool, EndpointError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM homes WHERE node = ?1)";
    Ok(tx.sql().query_row(sql, [node.as_str()], |row| row.get(0))?)
}

/// Another node is the home from now on; the first one was reached at `first`.
pub(crate) fn change(tx: &Tx<'_>, first: &str, node: &NodeId, endpoint: &str) -> Result<(), EndpointError> {
    let now = tx.now().millis();
    tx.sql().execute("UPDATE homes SET left_at_ms = ?1 WHERE left_at_ms IS NULL", [now])?;
    // The configuration may name another one from now on.
    tx.sql().execute("UPDATE homes SET endpoint = ?1 WHERE endpoint = ''", [first])?;
    tx.sql().execute(
        "INSERT INTO homes (node, endpoint, through, drained) VALUES (?1, ?2, 0, 0)",
        params![node.as_str(), endpoint],
    )?;
    tx.sql().execute("UPDATE identity SET node = ?1", [node.as_str()])?;
    Ok(())
}

/// All that a former home had when its hubs knew of the move is here.
pub(crate) fn drained(tx: &Tx<'_>, id: i64) -> Result<(), EndpointError> {
    tx.sql().execute("UPDATE homes SET drained = 1 WHERE id = ?1", [id])?;
    Ok(())
}

/// Gives up waiting for a former home that was not reached in time; whether it did.
pub(crate) fn give_up(tx: &Tx<'_>, id: i64) -> Result<bool, EndpointError> {
    let late = tx.now().before(WAIT_FOR).millis();
    let sql = "UPDATE homes SET drained = 1 WHERE id = ?1 AND drained = 0 AND left_at_ms <= ?2";
    Ok(tx.sql().execute(sql, params![id, late])? > 0)
}

/// Whether what a home brings has to follow what was seen: a former one may have
/// what comes before it.
pub(crate) fn must_follow(tx: &Tx<'_>, id: i64) -> Result<bool, EndpointError> {
    Ok(tx
        .sql()
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM homes WHERE id < ?1 AND drained = 0 AND left_at_ms > ?2)",
        )?
        .query_row(params![id, tx.now().before(WAIT_FOR).millis()], |row| row.get(0))?)
}

/// Whether this endpoint moved, and hubs may not have heard of it.
pub(crate) fn moved_lately(tx: &Tx<'_>) -> Result<bool, EndpointError> {
    let since = tx.now().before(WAIT_FOR).millis();
    Ok(tx
        .sql()
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM homes WHERE left_at_ms > ?1)")?
        .query_row([since], |row| row.get(0))?)
}

/// A hub had not heard of a move: submissions wait a moment.
pub(crate) fn submit_later(tx: &Tx<'_>) -> Result<(), EndpointError> {
    let at = tx.now().after(SUBMIT_AGAIN).millis();
    inbox::raise_mark(tx, SUBMIT_FROM, u64::try_from(at).unwrap_or_default())
}

/// Whether submissions wait for hubs to hear of a move.
pub(crate) fn submissions_wait(tx: &Tx<'_>) -> Result<bool, EndpointError> {
    if i64::try_from(inbox::mark(tx, SUBMIT_FROM)?).is_ok_and(|from| tx.now().millis() < from) {
        return Ok(true);
    }
    Ok(tx
        .sql()
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM homes WHERE drained = 0 AND left_at_ms > ?1)")?
        .query_row([tx.now().before(SUBMIT_AFTER).millis()], |row| row.get(0))?)
}

/// Position of a home's mailbox up to which everything was taken.
pub(crate) fn through(tx: &Tx<'_>, id: i64) -> Result<u64, EndpointError> {
    let sql = "SELECT through FROM homes WHERE id = ?1";
    Ok(tx.sql().prepare_cached(sql)?.query_row([id], |row| row.get(0))?)
}

/// Everything up to a position of a home's mailbox was taken, in this transaction or before.
pub(crate) fn set_through(tx: &Tx<'_>, id: i64, position: u64) -> Result<(), EndpointError> {
    let sql = "UPDATE homes SET through = max(through, ?2) WHERE id = ?1";
    tx.sql().prepare_cached(sql)?.execute(params![id, position])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Device, Item, Pair, at, decided, pair};
    use crate::inbox::Place;
    use crate::mls::Suite;
    use crate::thread::{self, Processed};
    use chancery_proto::federation::v1::{Refused, outcome};

    #[tokio::test]
    async fn what_a_home_brings_follows_until_the_former_one_is_drained() {
        let (device, _) = Device::person(1).await;
        let first = device.run(|tx| present(tx)).await;
        device.run(move |tx| set_through(tx, first.id, 7)).await;
        assert!(!device.run(move |tx| must_follow(tx, first.id)).await);
        device.run(|tx| change(tx, "south:1", &"elsewhere".parse().unwrap(), "elsewhere:1")).await;
        let homes = device.run(|tx| all(tx)).await;
        assert_eq!(homes.iter().map(|home| home.node.as_str()).collect::<Vec<_>>(), ["elsewhere", "south"]);
        let (second, first) = (homes[0].clone(), homes[1].clone());
        assert!(second.left_at.is_none() && first.left_at.is_some());
        let state = async || {
            let (old, new) = (first.id, second.id);
            device
                .run(move |tx| {
                    Ok((
                        must_follow(tx, new)?,
                        must_follow(tx, old)?,
                        submissions_wait(tx)?,
                        through(tx, new)?,
                    ))
                })
                .await
        };
        assert_eq!(state().await, (true, false, true, 0));
        let id = first.id;
        device.run(move |tx| drained(tx, id)).await;
        assert_eq!(state().await, (false, false, false, 0));
        assert_eq!(device.run(move |tx| through(tx, id)).await, 7);
    }

    #[tokio::test]
    async fn a_hub_that_has_not_heard_of_a_move_is_asked_again() {
        let Pair { mut hub, agent, person, thread, .. } = pair(Suite::Classical).await;
        let refused = |submission: &_, reason: &str| {
            let refused = Refused { reason: reason.to_owned(), current_epoch: None };
            decided(submission, outcome::Decision::Refused(refused))
        };
        person.run(|tx| change(tx, "south:1", &"elsewhere".parse().unwrap(), "elsewhere:1")).await;
        person.run(|tx| drained(tx, 1)).await;
        person.write(thread, "from the new home").await;
        let first = person.due().await.remove(0);
        assert!(person.decide(refused(&first, "NOT_IN_GROUP")).await.is_empty(), "nobody hears of it");
        assert!(person.due().await.is_empty(), "it waits a moment");
        person.clock.advance(SUBMIT_AGAIN);
        let second = person.due().await.remove(0);
        // Other bytes under the same id, as a hub takes them after a refusal.
        assert!(first.message_id == second.message_id && first.body != second.body);
        let outcome = hub.submit(&second);
        assert!(person.decide(outcome).await.remove(0).result.is_ok());
        agent.fetch(&mut hub).await;
        assert_eq!(agent.texts().await, ["from the new home"]);
        // Long after the move it is what it says: another group takes the place of this one.
        person.clock.advance(WAIT_FOR);
        person.write(thread, "much later").await;
        let late = person.due().await.remove(0);
        assert!(person.decide(refused(&late, "NOT_IN_GROUP")).await.is_empty());
        assert_eq!(person.succeed(&[&agent], &[]).await, 1);
    }

    #[tokio::test]
    async fn what_does_not_follow_waits_for_the_former_home() {
        let Pair { mut hub, agent, person, person_identity, thread, .. } = pair(Suite::Classical).await;
        let alias = person_identity.alias;
        let read = hub.mailboxes[&alias].len();
        for text in ["one", "two", "three"] {
            agent.write(thread, text).await;
            agent.flush(&mut hub).await;
        }
        let items: Vec<_> = hub.mailboxes[&alias][read..].to_vec();
        person.run(|tx| change(tx, "south:1", &"elsewhere".parse().unwrap(), "elsewhere:1")).await;
        let take = async |place: Place, item: &Item| {
            let Item::Delivery(delivery) = item.clone() else { panic!("no delivery") };
            person.run(move |tx| thread::receive(tx, place, &delivery, true)).await
        };
        assert_eq!(take(Place { home: 2, position: 1 }, &items[2]).await, Processed::Parked);
        let held = person.run(|tx| chancery_sdk_core::acknowledge::acknowledgement(tx, 2, 0)).await;
        assert!(held.is_none(), "what waits is not acknowledged");
        for (position, item) in (900..).zip(&items[..2]) {
            assert!(matches!(take(at(position), item).await, Processed::Letter { .. }));
        }
        let texts = person.texts().await;
        assert_eq!(texts[texts.len() - 3..], ["one", "two", "three"]);
        assert!(person.alarms().await.is_empty());
    }
}
