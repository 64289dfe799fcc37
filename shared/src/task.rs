//! A task that is a part of another.

use std::{
    panic::resume_unwind,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

/// A task that ends with its owner and gives its owner what it ends with, a panic, too. Beside a future
/// that is polled in place it has wakers of its own: what wakes the owner costs it nothing.
#[derive(Debug)]
pub struct Owned<T>(AbortOnDropHandle<T>);

impl<T: Send + 'static> Owned<T> {
    /// Starts the task, in the span that is entered here.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(AbortOnDropHandle::new(tokio::spawn(future.in_current_span())))
    }
}

impl<T> Future for Owned<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match ready!(Pin::new(&mut self.0).poll(cx)) {
            Ok(output) => Poll::Ready(output),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime goes, and whoever waits with it.
                Err(_) => Poll::Pending,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn it_gives_what_it_ends_with() {
        assert_eq!(Owned::spawn(async { 7 }).await, 7);
    }

    #[tokio::test]
    #[should_panic(expected = "from within")]
    async fn its_panic_is_its_owners() {
        Owned::spawn(async { panic!("from within") }).await
    }

    #[tokio::test]
    async fn it_ends_with_its_owner() {
        let (alive, gone) = oneshot::channel::<()>();
        let owned = Owned::spawn(async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        drop(owned);
        assert!(gone.await.is_err());
    }

    #[tokio::test]
    async fn what_wakes_the_owner_does_not_poll_it() {
        let polls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&polls);
        let mut owned = Owned::spawn(std::future::poll_fn(move |_| {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Poll::<()>::Pending
        }));
        for _ in 0..10 {
            tokio::select! {
                biased;
                () = &mut owned => {}
                () = tokio::task::yield_now() => {}
            }
        }
        assert_eq!(polls.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
