//! What a home says when a device proves its key tells whether one of the two works on a
//! copy from earlier. A device's store that does must not encrypt in any group that it
//! has: its keys were used since, and it does not know for what.

use crate::alarm::{self, Alarm};
use crate::error::EndpointError;
use crate::inbox;
use crate::node_client::Greeting;
use crate::store::Tx;
use crate::thread::{self, admit};
use crate::{home, keepsake};
use chancery_sdk_core::{Conclusion, Queues as _, Stand};
use chancery_types::Incarnation;
use rusqlite::params;

/// How often secret keys were used or made here: with each message that is encrypted,
/// and each time that KeyPackages are made.
pub(crate) const STORE_COUNT: &str = "submitted";
/// The home is to get another stock of KeyPackages, and [`STORE_COUNT`] with it: this store or
/// the home's was restored.
const REPLACE: &str = "replace key packages";

/// The cells of this agent's channels are to be given up: this store was restored.
pub(crate) const CLOSE_CELLS: &str = "close cells";

/// What a greeting came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Greeted {
    /// The home was restored: it is read from the beginning, and has what it is told anew.
    pub(crate) home: bool,
    /// This store was restored.
    pub(crate) store: bool,
}

/// Compares a home's word with what is here. `count`: what [`STORE_COUNT`] was before this
/// start did anything at that home; `None`: it was compared since.
///
/// # Errors
/// The store's.
pub(crate) fn greet(
    tx: &mut Tx<'_>,
    id: i64,
    said: &Greeting,
    count: Option<u64>,
) -> Result<Greeted, EndpointError> {
    let (known, through): (Option<[u8; 16]>, u64) = tx
        .sql()
        .prepare_cached("SELECT incarnation, through FROM homes WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut greeted = Greeted::default();
    // What a new device has not read counts as acknowledged.
    let is_behind = known.is_some() && said.acknowledged > through;
    if is_behind || count.is_some_and(|count| said.store_count > count) {
        end_all(tx, said)?;
        greeted.store = true;
    }
    if said.acknowledged > through {
        home::set_through(tx, id, said.acknowledged)?;
    }
    if known.map(Incarnation::from_bytes) != Some(said.incarnation) {
        tx.sql().execute(
            "UPDATE homes SET incarnation = ?2, through = iif(incarnation IS NULL, through, ?3) WHERE id = ?1",
            params![id, said.incarnation.as_bytes(), said.acknowledged],
        )?;
        greeted.home = known.is_some();
    }
    if greeted.home && home::present(tx)?.id == id {
        keepsake::put(tx, REPLACE, &[])?;
    }
    Ok(greeted)
}

/// All groups are over; what is undecided goes out in their successors.
fn end_all(tx: &mut Tx<'_>, said: &Greeting) -> Result<(), EndpointError> {
    alarm::raise(tx, Alarm::Restored, None)?;
    inbox::raise_mark(tx, STORE_COUNT, said.store_count)?;
    inbox::count_up(tx, STORE_COUNT)?;
    keepsake::put(tx, REPLACE, &[])?;
    keepsake::put(tx, CLOSE_CELLS, &[])?;
    tx.sql()
        .execute("UPDATE outbox SET state = 0, submission = NULL, digest = NULL WHERE state IN (1, 2)", [])?;
    for mut thread in thread::all_open(tx)? {
        if thread.pending_commit.is_some() {
            admit::abandon(tx, &mut thread)?;
        }
        thread::set_stand(tx, &thread.id, Stand::Ended)?;
        // What was to open the group has done so, or never will.
        for item in tx.queued(&thread.id)?.iter().filter(|item| item.body.is_none()) {
            tx.conclude(item, Conclusion::Needless)?;
        }
    }
    Ok(())
}

/// Whether the home is to forget its stock of this device's KeyPackages.
pub(crate) fn replaces_stock(tx: &Tx<'_>) -> Result<bool, EndpointError> {
    Ok(keepsake::get(tx, REPLACE)?.is_some())
}

/// It has.
pub(crate) fn stock_replaced(tx: &Tx<'_>) -> Result<(), EndpointError> {
    keepsake::forget(tx, REPLACE)
}
