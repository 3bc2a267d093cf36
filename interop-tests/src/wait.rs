//! Waiting for a condition, with an end.

use std::time::Duration;
use tokio::time::Instant;

/// Longest wait.
const DEADLINE: Duration = Duration::from_secs(60);

/// Tries until it succeeds; gives what came of it.
pub async fn success<T, E: std::fmt::Display>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let mut done = None;
    let mut last = None;
    until(what, async || {
        match attempt().await {
            Ok(value) => done = Some(value),
            Err(error) => {
                let error = error.to_string();
                if last.as_ref() != Some(&error) {
                    eprintln!("waiting until {what}: {error}");
                    last = Some(error);
                }
            }
        }
        done.is_some()
    })
    .await;
    done.unwrap()
}

/// Asks until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
