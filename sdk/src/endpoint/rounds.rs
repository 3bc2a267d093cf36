//! Tasks that go on for ever: each round that fails is followed by a pause, which doubles
//! up to half a minute, is jittered over its whole length, and is not over before the time
//! that whoever refused named.

use chancery_types::{Entropy, Refusal, Retry};
use std::future::Future;
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// As [`keep`], up to the first round that succeeds.
pub(super) async fn until_done<F>(entropy: &dyn Entropy, task: &'static str, round: impl Fn() -> F)
where
    F: Future<Output = Result<(), Refusal>>,
{
    let done = tokio::sync::Notify::new();
    let rounds = keep(entropy, task, async || {
        round().await?;
        done.notify_one();
        std::future::pending().await
    });
    tokio::select! {
        () = rounds => {}
        () = done.notified() => {}
    }
}

/// Runs rounds of a task for ever.
pub(super) async fn keep<F>(entropy: &dyn Entropy, task: &'static str, round: impl Fn() -> F)
where
    F: Future<Output = Result<(), Refusal>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match round().await {
            Ok(()) => pause = FIRST_PAUSE,
            Err(refusal) => {
                tracing::debug!(task, reason = %refusal.reason, "endpoint.task.fail");
                if refusal.reason.retry() == Retry::Never {
                    tracing::warn!(task, reason = %refusal.reason, "endpoint.task.refused");
                    pause = LONGEST_PAUSE;
                }
                let named = refusal.retry_after.unwrap_or_default().min(LONGEST_PAUSE);
                tokio::time::sleep(named + jittered(entropy, pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// A random part of a pause.
pub(super) fn jittered(entropy: &dyn Entropy, pause: Duration) -> Duration {
    let part = u32::from_le_bytes(entropy.array::<4>());
    pause.mul_f64(f64::from(part) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::{FIRST_PAUSE, LONGEST_PAUSE, until_done};
    use chancery_types::entropy::SeededEntropy;
    use chancery_types::{Reason, Refusal};
    use std::cell::RefCell;
    use std::time::Duration;
    use tokio::time::Instant;

    /// The pauses before each round after the first; each answer but the last refuses.
    async fn pauses(refusals: Vec<Refusal>) -> Vec<Duration> {
        let begun = RefCell::new(Vec::new());
        let entropy = SeededEntropy::new(7);
        until_done(&entropy, "test", async || {
            begun.borrow_mut().push(Instant::now());
            refusals.get(begun.borrow().len() - 1).cloned().map_or(Ok(()), Err)
        })
        .await;
        begun.into_inner().windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_refuses_says_when_to_come_again() {
        let named = Duration::from_secs(7);
        let busy = Refusal::new(Reason::Overloaded, "busy").retry_after(named);
        let [first, second] = pauses(vec![busy.clone(), busy]).await[..] else { unreachable!() };
        assert!((named..=named + FIRST_PAUSE).contains(&first), "{first:?}");
        assert!((named..=named + FIRST_PAUSE * 2).contains(&second), "{second:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_are_bounded() {
        let unreachable = Refusal::new(Reason::PeerUnreachable, "nobody answers");
        let waited = pauses(vec![unreachable; 40]).await;
        for (round, waited) in waited.iter().enumerate() {
            let most = FIRST_PAUSE * 2_u32.pow(u32::try_from(round).unwrap().min(20));
            assert!(*waited <= most.min(LONGEST_PAUSE), "{round}: {waited:?}");
        }
        assert!(waited.iter().any(|waited| *waited > LONGEST_PAUSE / 4));
        let forever = Refusal::new(Reason::Overloaded, "busy").retry_after(Duration::from_hours(1));
        assert!(pauses(vec![forever]).await[0] <= LONGEST_PAUSE + FIRST_PAUSE, "however long it named");
    }
}
