//! Waits for conditions, each with a bound.

use std::time::Duration;

/// Longest wait for anything; far more than it takes on a busy machine.
pub(crate) const BOUND: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What `future` gives; a panic that names `what` if it takes too long.
#[track_caller]
pub(crate) fn within<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    async move {
        let waited = tokio::time::timeout(BOUND, future).await;
        waited.unwrap_or_else(|_| panic!("{place}: {what}: nothing within {BOUND:?}"))
    }
}

/// Waits until `look` sees something.
#[track_caller]
pub(crate) fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    within(what, async move {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(LOOK).await;
        }
    })
}
