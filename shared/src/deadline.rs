//! A moment that is moved with every request and seldom reached. A timer of its own for each request
//! costs an allocation and two visits to the runtime's timer wheel; this one is kept, and touched
//! only when it fires too early or would fire too late.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// See the module.
#[derive(Debug)]
pub struct Deadline {
    sleep: Pin<Box<Sleep>>,
    due: Option<Instant>,
    /// The timer has the waker of the task that polls.
    listening: bool,
}

impl Deadline {
    /// Due at `due`.
    #[must_use]
    pub fn at(due: Instant) -> Self {
        Self { sleep: Box::pin(sleep_until(due)), due: Some(due), listening: false }
    }

    /// Moves it. Another task may poll from here on.
    pub fn set(&mut self, due: Instant) {
        self.due = Some(due);
        self.listening = false;
        if self.sleep.is_elapsed() || due < self.sleep.deadline() {
            self.sleep.as_mut().reset(due);
        }
    }

    /// Never due, until it is set again.
    pub fn clear(&mut self) {
        self.due = None;
    }

    /// Ready once when it is due; then cleared. One task polls between two calls of
    /// [`Deadline::set`].
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(due) = self.due else { return Poll::Pending };
            if self.listening && !self.sleep.is_elapsed() {
                return Poll::Pending;
            }
            self.listening = true;
            ready!(self.sleep.as_mut().poll(cx));
            if Instant::now() >= due {
                self.due = None;
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(due);
            self.listening = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_met_whichever_way_it_was_moved() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut deadline = Deadline::at(start + second * 10);
        let not_yet = poll_fn(|cx| Poll::Ready(deadline.poll(cx).is_pending())).await;
        assert!(not_yet);
        deadline.set(start + second * 3);
        deadline.set(start + second * 20);
        deadline.set(start + second * 5);
        poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 5);
        let said_once = poll_fn(|cx| Poll::Ready(deadline.poll(cx).is_pending())).await;
        assert!(said_once);
        deadline.set(start + second * 30);
        poll_fn(|cx| deadline.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
