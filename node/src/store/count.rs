//! How many devices have a broadcast, and how many owners read it: sums of this node's residents, told
//! to the channel's agent three times, with noise, and not at all when they are small. Before that it hears
//! that the node has the broadcast. docs/decisions/0021.

use super::seat::Channel;
use super::{Tx, sql};
use chancery_node_core::cell::{Count, MAX_COUNTS};
use chancery_proto::node::v1 as wire;
use chancery_types::{DeviceId, Entropy, Reason, Refusal, SeatId, Timestamp};
use sqlx::Row as _;
use std::time::Duration;

/// Ages of a broadcast at which its agent is told: the first time that it is here, and no more.
pub(crate) const AGES: [Duration; 4] =
    [Duration::ZERO, Duration::from_hours(1), Duration::from_hours(24), Duration::from_hours(7 * 24)];
/// Sums below this are told as 0, and so are those of fewer residents.
const SMALLEST: u64 = 20;
/// Differential privacy of one device's report in one sum that is told.
const EPSILON: f64 = 0.5;

/// Counts what a device says of broadcasts that came to its seat; `first` is the number of the first
/// report, from 0: what was counted before is not counted again.
pub(crate) async fn report(
    tx: &mut Tx<'_>,
    device: DeviceId,
    seat: SeatId,
    first: u64,
    reports: &[wire::BroadcastReport],
) -> Result<Result<(), Refusal>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT owner, channel_id, reports FROM seat WHERE seat_id = $1 AND device_id = $2 AND state = 2",
    )
    .bind(seat.as_bytes().as_slice())
    .bind(device.as_bytes().as_slice())
    .fetch_optional(&mut *tx.tables.connection)
    .await?;
    let Some(row) = row else {
        return Ok(Err(Refusal::new(Reason::ChannelUnknown, "the seat is in no cell")));
    };
    let (owner, channel): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
    let counted = sql::unsigned(row.try_get(2)?);
    if first > counted {
        return Ok(Err(Refusal::field("first is behind what was counted: reports are missing")));
    }
    for report in (first..).zip(reports).filter(|(number, _)| *number >= counted).map(|(_, report)| report) {
        let add = if report.read {
            "UPDATE broadcast SET read = read + 1 WHERE owner = $1 AND channel_id = $2 AND sequence = $3"
        } else {
            "UPDATE broadcast SET delivered = delivered + 1
             WHERE owner = $1 AND channel_id = $2 AND sequence = $3"
        };
        sqlx::query(add)
            .bind(&owner)
            .bind(&channel)
            .bind(sql::signed(report.sequence))
            .execute(&mut *tx.tables.connection)
            .await?;
    }
    sqlx::query("UPDATE seat SET reports = $2 WHERE seat_id = $1")
        .bind(seat.as_bytes().as_slice())
        .bind(sql::signed(counted.max(first.saturating_add(reports.len() as u64))))
        .execute(&mut *tx.tables.connection)
        .await?;
    Ok(Ok(()))
}

/// Latest times of coming of broadcasts that were told so and so often and are due again.
pub(crate) fn due_before(now: Timestamp) -> [i64; 4] {
    AGES.map(|age| now.before(age).millis())
}

/// What the agent of a channel is to be told now.
pub(crate) async fn tell(
    tx: &mut Tx<'_>,
    channel: &Channel,
    entropy: &dyn Entropy,
) -> Result<Vec<Count>, sqlx::Error> {
    let residents: i64 =
        sqlx::query_scalar("SELECT count(*) FROM seat WHERE owner = $1 AND channel_id = $2 AND state = 2")
            .bind(channel.owner.as_str())
            .bind(channel.id.as_bytes().as_slice())
            .fetch_one(&mut *tx.tables.connection)
            .await?;
    let [never, once, twice, thrice] = due_before(tx.now);
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "UPDATE broadcast SET told = told + 1 WHERE id IN (SELECT id FROM broadcast
           WHERE told < 4 AND came_at <= CASE told WHEN 0 THEN $3 WHEN 1 THEN $4 WHEN 2 THEN $5 ELSE $6 END
             AND owner = $1 AND channel_id = $2
             AND (is_over = 1 OR EXISTS (SELECT 1 FROM broadcast_wraps w WHERE w.broadcast_id = broadcast.id))
           LIMIT {MAX_COUNTS})
         RETURNING sequence, delivered, read, told"
    )))
    .bind(channel.owner.as_str())
    .bind(channel.id.as_bytes().as_slice())
    .bind(never)
    .bind(once)
    .bind(twice)
    .bind(thrice)
    .fetch_all(&mut *tx.tables.connection)
    .await?;
    let is_crowd = sql::unsigned(residents) >= SMALLEST;
    rows.iter()
        .map(|row| {
            let is_told = is_crowd && row.try_get::<i64, _>(3)? > 1;
            let sum = |sum: i64| if is_told { noisy(sql::unsigned(sum), entropy) } else { 0 };
            let (sequence, delivered, read) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Count { sequence: sql::unsigned(sequence), delivered: sum(delivered), read: sum(read) })
        })
        .collect()
}

/// The sum with two-sided geometric noise; 0 when that is small.
fn noisy(sum: u64, entropy: &dyn Entropy) -> u64 {
    let noisy = sum.saturating_add(geometric(entropy)).saturating_sub(geometric(entropy));
    if noisy < SMALLEST { 0 } else { noisy }
}

/// How many failures come before a success of probability 1 − e^−[`EPSILON`].
fn geometric(entropy: &dyn Entropy) -> u64 {
    let bits = u64::from_le_bytes(entropy.array()) >> 11;
    // In (0, 1]: the logarithm is finite, and at most 37 / EPSILON.
    let uniform = (bits + 1) as f64 / (1_u64 << 53) as f64;
    (-uniform.ln() / EPSILON) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_types::entropy::SeededEntropy;

    #[test]
    fn noise_is_centred_and_small_sums_are_nothing() {
        let entropy = SeededEntropy::new(1);
        let told: Vec<u64> = (0..10_000).map(|_| noisy(1_000, &entropy)).collect();
        let mean = told.iter().sum::<u64>() as f64 / told.len() as f64;
        assert!((mean - 1_000.0).abs() < 0.2, "{mean}");
        let spread = told.iter().map(|told| told.abs_diff(1_000)).sum::<u64>() as f64 / told.len() as f64;
        assert!((1.5..2.5).contains(&spread), "{spread}");
        assert!((0..1_000).all(|_| noisy(0, &entropy) == 0 || noisy(0, &entropy) < 2 * SMALLEST));
        assert!((0..100).all(|_| matches!(noisy(19, &entropy), 0 | 20..60)));
    }
}
