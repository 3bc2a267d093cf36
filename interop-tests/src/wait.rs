//! Waiting for a condition, with an end.

use std::time::Duration;
use tokio::time::Instant;

/// Longest wait.
const DEADLINE: Duration = Duration::from_secs(60);

/// Asks until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
