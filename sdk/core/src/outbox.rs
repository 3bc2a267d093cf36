//! What is to be sent. A letter's plaintext stays here until the hub has
//! accepted it, so that it can be encrypted anew, under the same message id,
//! when the epoch has moved. What was encrypted once is submitted again byte for
//! byte, so that the hub can tell a repetition.

use crate::chain::{self, Link, Source};
use crate::{Alarm, Conclusion, Item, Made, Queues, Stand, receive, succession};
use chancery_proto::federation::v1::{Accepted, Outcome, Submission, outcome, submission};
use chancery_types::{Alias, Chain, DeviceId, GroupId, MessageId, Reason, Timestamp};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use std::time::Duration;

/// How long after a message's expiry its outcome may still come: nodes answer for
/// it 72 hours long.
const OUTCOME_GRACE: Duration = Duration::from_hours(96);
/// Bytes of submissions in one call.
const CALL_BYTES: usize = 3 * 1024 * 1024 - 64 * 1024;

/// What to submit in one call.
pub struct Batch {
    /// In order.
    pub submissions: Vec<Due>,
    /// Whether there is more behind it.
    pub more: bool,
}

/// Something to submit.
pub struct Due {
    /// Growing: what is encrypted anew goes to the end.
    pub position: u64,
    /// What the home node gets.
    pub submission: Submission,
}

/// Encrypts what is queued in a thread, in order, as far as it may go now: to be
/// called whenever the thread's epoch, its pending commit, its state or what is
/// undecided in it has changed. Whether there was anything.
///
/// # Errors
/// The rows'.
pub fn prepare<Q: Queues>(tx: &mut Q, group: &GroupId) -> Result<bool, Q::Error> {
    if !tx.any_queued(group)? {
        return Ok(false);
    }
    if let Some(thread) = tx.thread(group)? {
        if thread.stand.is_over() {
            return succession::wait(tx, group);
        }
        // A letter made now might be ordered before one of an older epoch that
        // the hub may yet refuse.
        if thread.stand == Stand::Open
            && (thread.pending_commit.is_some() || tx.any_submitted_before(group, thread.epoch)?)
        {
            return Ok(false);
        }
    }
    let sender = tx.sender()?;
    for item in tx.queued(group)? {
        prepare_one(tx, sender, &item)?;
    }
    Ok(true)
}

fn prepare_one<Q: Queues>(tx: &mut Q, sender: (Alias, DeviceId), item: &Item) -> Result<(), Q::Error> {
    let Some(thread) = tx.thread(&item.group)?.filter(|thread| thread.stand == Stand::Open) else {
        return tx.conclude(item, Conclusion::Failed(Reason::ThreadUnknown.as_str()));
    };
    if thread.pending_commit.is_some() || thread.epoch < item.needs_epoch {
        return Ok(());
    }
    if item.expires <= tx.now() {
        return tx.conclude(item, Conclusion::Failed(Reason::Expired.as_str()));
    }
    match tx.make(&thread, item)? {
        Made::Body(body) => {
            if item.commits {
                tx.keep_pending(&item.group, Some(&item.message_id))?;
            }
            submit(tx, sender, item, thread.epoch, body)
        }
        Made::Needless => tx.conclude(item, Conclusion::Needless),
        Made::Impossible(reason) => tx.conclude(item, Conclusion::Failed(reason.as_str())),
    }
}

/// An item was encrypted in `epoch`: it is to be submitted.
///
/// # Errors
/// The rows'.
pub fn submit<Q: Queues>(
    tx: &mut Q,
    (sender, device): (Alias, DeviceId),
    item: &Item,
    epoch: u64,
    body: submission::Body,
) -> Result<(), Q::Error> {
    let digest = Sha256::digest(match &body {
        submission::Body::Application(message) => message,
        submission::Body::Commit(commit) => &commit.mls_commit,
    });
    let submission = Submission {
        message_id: item.message_id.to_wire(),
        group_id: item.group.to_wire(),
        sender: sender.to_wire(),
        sender_device: device.to_wire(),
        epoch,
        expires_at_ms: item.expires.millis(),
        urgency: 0,
        category: 0,
        wants_events: item.wants_events,
        body: Some(body),
        // The home node knows whether there are other devices.
        echo: false,
    };
    tx.submitted(item, &submission, &digest.into())
}

/// What is undecided behind a position, in order: at most `limit` and 3 MiB,
/// unless there is only one. Beginning at 0 submits everything undecided again,
/// which the home node knows by its message id.
///
/// # Errors
/// The rows'.
pub fn next<Q: Queues>(tx: &mut Q, after: u64, limit: usize) -> Result<Batch, Q::Error> {
    give_up(tx)?;
    if tx.submissions_wait()? {
        return Ok(Batch { submissions: Vec::new(), more: false });
    }
    let due = tx.due(after, limit + 1)?;
    let mut more = due.len() > limit;
    let mut bytes = 0;
    let mut submissions: Vec<Due> = Vec::with_capacity(due.len());
    for (position, submission) in due.into_iter().take(limit) {
        bytes += submission.encoded_len();
        if bytes > CALL_BYTES && !submissions.is_empty() {
            more = true;
            break;
        }
        submissions.push(Due { position, submission });
    }
    Ok(Batch { submissions, more })
}

/// Ends what has expired: at once while it is queued, and once no outcome can
/// come any more when it was submitted.
fn give_up<Q: Queues>(tx: &mut Q) -> Result<(), Q::Error> {
    for item in tx.overdue(tx.now().before(OUTCOME_GRACE))? {
        withdraw(tx, &item)?;
        let reason = if item.submitted { Reason::PeerUnreachable } else { Reason::Expired };
        tx.conclude(&item, Conclusion::Failed(reason.as_str()))?;
        prepare(tx, &item.group)?;
    }
    Ok(())
}

/// Takes the hub's decisions about submissions of this device. Whether they may
/// have set queued letters free, or let in what waited for them.
///
/// # Errors
/// The rows'.
pub fn decide<'a, Q: Queues>(
    tx: &mut Q,
    outcomes: impl IntoIterator<Item = &'a Outcome>,
) -> Result<bool, Q::Error> {
    let mut released = false;
    for outcome in outcomes {
        let Ok(id) = MessageId::try_from(&outcome.message_id) else { continue };
        if let Some(item) = tx.undecided_item(&id)?.filter(|item| item.submitted) {
            released |= decide_one(tx, &item, outcome)?;
        }
    }
    Ok(released)
}

fn decide_one<Q: Queues>(tx: &mut Q, item: &Item, outcome: &Outcome) -> Result<bool, Q::Error> {
    let released = match &outcome.decision {
        Some(outcome::Decision::Accepted(accepted)) => {
            accept(tx, item, accepted)?;
            item.commits
        }
        // It goes out again through the new home.
        Some(outcome::Decision::Refused(refused)) if refused.reason == Reason::AliasMoved.as_str() => {
            return Ok(false);
        }
        Some(outcome::Decision::Refused(refused)) => {
            refuse(tx, item, &refused.reason, refused.current_epoch)?;
            true
        }
        None => return Ok(false),
    };
    // Our message may have been the gap, or was the last that could be.
    if let Some(mut thread) = tx.thread(&item.group)? {
        chain::settle(tx, &mut thread)?;
        if tx.parks(&item.group)? {
            receive::unpark(tx, &item.group)?;
        }
    }
    Ok(prepare(tx, &item.group)? || released)
}

fn accept<Q: Queues>(tx: &mut Q, item: &Item, accepted: &Accepted) -> Result<(), Q::Error> {
    tx.conclude(item, Conclusion::Accepted(Timestamp::from_millis(accepted.accepted_at_ms)))?;
    let Some(mut thread) = tx.thread(&item.group)? else { return Ok(()) };
    let (Ok(chain), 1..=Chain::LAST) = (Chain::try_from(&accepted.chain), accepted.sequence) else {
        tx.raise(Alarm::Forked, Some(&item.group))?;
        if item.commits {
            // Where the group stands now, nobody can tell.
            withdraw(tx, item)?;
            succession::end(tx, &item.group, Stand::Broken)?;
        }
        return Ok(());
    };
    let link = Link { sequence: accepted.sequence, message_id: item.message_id, digest: item.digest, chain };
    chain::record(tx, &mut thread, &link, Source::Accepted)?;
    if item.commits && thread.pending_commit == Some(item.message_id) {
        tx.merge(&mut thread)?;
        receive::unpark(tx, &item.group)?;
    }
    Ok(())
}

fn refuse<Q: Queues>(
    tx: &mut Q,
    item: &Item,
    reason: &str,
    current_epoch: Option<u64>,
) -> Result<(), Q::Error> {
    let first_commit = item.commits && item.made_in == 0;
    match Reason::from_wire(reason) {
        Some(Reason::StaleEpoch) if !first_commit => {
            if tx.thread(&item.group)?.is_some_and(|thread| thread.stand.is_over()) {
                return requeue(tx, item, 0);
            }
            let needs = current_epoch.unwrap_or(item.made_in + 1);
            // A second answer to bytes that were made anew in the meantime says nothing.
            if needs > item.made_in && needs <= Chain::LAST {
                requeue(tx, item, needs)?;
            }
            Ok(())
        }
        // A hub that has not heard of this endpoint's move yet: made anew, the same
        // counts once it has.
        Some(Reason::NotInGroup | Reason::GroupUnknown) if !first_commit && tx.moved_lately()? => {
            tx.submit_later()?;
            requeue(tx, item, item.made_in)
        }
        _ if first_commit => {
            // Without its first commit the group does not exist.
            tx.keep_stand(&item.group, Stand::Closed)?;
            for item in tx.undecided(&item.group)? {
                tx.conclude(&item, Conclusion::Failed(reason))?;
            }
            Ok(())
        }
        // The hub is gone, or has lost the group.
        Some(reason @ (Reason::NotInGroup | Reason::GroupUnknown | Reason::PeerUnreachable))
            if succession::outlive(tx, item, reason)? =>
        {
            Ok(())
        }
        _ => {
            withdraw(tx, item)?;
            tx.conclude(item, Conclusion::Failed(reason))
        }
    }
}

/// Gives a commit of ours up, and lets in what waited for it.
fn withdraw<Q: Queues>(tx: &mut Q, item: &Item) -> Result<(), Q::Error> {
    if let Some(mut thread) = tx.thread(&item.group)?
        && thread.pending_commit == Some(item.message_id)
    {
        tx.abandon(&mut thread)?;
        receive::unpark(tx, &item.group)?;
    }
    Ok(())
}

/// Makes a message anew once the thread has reached an epoch.
pub(crate) fn requeue<Q: Queues>(tx: &mut Q, item: &Item, needs: u64) -> Result<(), Q::Error> {
    tx.requeue(item, needs.max(item.needs_epoch))?;
    withdraw(tx, item)
}
