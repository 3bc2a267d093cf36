//! A batch of a peer's parcels, in one transaction.

use crate::parcel::{Delivery, Moved, Outcome, Report, Submission};
use crate::tables::{Tables, Tx};
use crate::{deliver, moves, report, submit};
use chancery_proto::federation::v1 as wire;
use chancery_types::{Alias, NodeId, Reason, Refusal, Timestamp};

/// Parcels of one kind that follow each other: order holds, and each run takes
/// a handful of statements.
enum Run {
    Submissions(Vec<Submission>),
    Deliveries(Vec<(usize, Delivery)>),
    Outcomes(Vec<Outcome>),
    Reports(Vec<Report>),
    Moved(Moved),
    MoveNoted(Alias),
}

/// Takes the parcels of a batch, but for those of broadcasts, whose rows are the shell's
/// ([`crate::cell`]). The result names, by index, those that will never be taken, with the reason.
///
/// # Errors
/// The tables'.
pub async fn receive<T: Tables>(
    tx: &mut Tx<T>,
    peer: &NodeId,
    parcels: &[wire::Parcel],
) -> Result<Vec<(usize, Reason)>, T::Error> {
    let (runs, mut refused) = runs(parcels, tx.now);
    for run in runs {
        match run {
            Run::Submissions(submissions) => submit::answer(tx, peer, &submissions).await?,
            Run::Deliveries(deliveries) => {
                let (indices, deliveries): (Vec<_>, Vec<_>) = deliveries.into_iter().unzip();
                let verdicts = deliver::receive(tx, peer, deliveries).await?;
                refused.extend(indices.into_iter().zip(verdicts).filter_map(|(i, v)| Some((i, v?))));
            }
            Run::Outcomes(outcomes) => submit::decided(tx, peer, outcomes).await?,
            Run::Reports(reports) => report::receive(tx, peer, &reports).await?,
            Run::Moved(moved) => moves::follow(tx, peer, &moved).await?,
            Run::MoveNoted(alias) => tx.tables.forget_news(peer, alias).await?,
        }
    }
    refused.sort_by_key(|(index, _)| *index);
    Ok(refused)
}

fn runs(parcels: &[wire::Parcel], now: Timestamp) -> (Vec<Run>, Vec<(usize, Reason)>) {
    let (mut runs, mut refused): (Vec<Run>, Vec<_>) = (Vec::new(), Vec::new());
    for (index, parcel) in parcels.iter().enumerate() {
        let result = match parcel.parcel.clone() {
            Some(wire::parcel::Parcel::Submission(message)) => {
                Submission::from_wire(message, now).map(|submission| match runs.last_mut() {
                    Some(Run::Submissions(run)) => run.push(submission),
                    _ => runs.push(Run::Submissions(vec![submission])),
                })
            }
            Some(wire::parcel::Parcel::Delivery(message)) => {
                Delivery::from_wire(message, now).map(|delivery| match runs.last_mut() {
                    Some(Run::Deliveries(run)) => run.push((index, delivery)),
                    _ => runs.push(Run::Deliveries(vec![(index, delivery)])),
                })
            }
            Some(wire::parcel::Parcel::Outcome(message)) => {
                Outcome::try_from(message).map(|outcome| match runs.last_mut() {
                    Some(Run::Outcomes(run)) => run.push(outcome),
                    _ => runs.push(Run::Outcomes(vec![outcome])),
                })
            }
            Some(wire::parcel::Parcel::Report(message)) => {
                Report::try_from(message).map(|report| match runs.last_mut() {
                    Some(Run::Reports(run)) => run.push(report),
                    _ => runs.push(Run::Reports(vec![report])),
                })
            }
            Some(wire::parcel::Parcel::Moved(message)) => {
                Moved::try_from(message).map(|moved| runs.push(Run::Moved(moved)))
            }
            Some(wire::parcel::Parcel::MoveNoted(message)) => Alias::try_from(&message.alias)
                .map(|alias| runs.push(Run::MoveNoted(alias)))
                .map_err(Refusal::from),
            Some(
                wire::parcel::Parcel::Seats(_)
                | wire::parcel::Parcel::CellChange(_)
                | wire::parcel::Parcel::Announcement(_)
                | wire::parcel::Parcel::Wraps(_)
                | wire::parcel::Parcel::CellsClosed(_),
            ) => continue,
            None => {
                refused.push((index, Reason::InvalidField));
                continue;
            }
        };
        if let Err(refusal) = result {
            refused.push((index, refusal.reason));
        }
    }
    (runs, refused)
}
