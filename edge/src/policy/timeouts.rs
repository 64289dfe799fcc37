//! How long a request may take: no byte for `idle_timeout` while a body is under way, or
//! `total_timeout` in all. A clock is asked when it is due and told of every byte; it has no timer.

use std::time::Duration;

use tokio::time::Instant;
use uniroute_proto::v1;
use uniroute_shared::{code::Code, message::Fields};

/// An owner's limits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timeouts {
    idle: Option<Duration>,
    total: Option<Duration>,
}

impl Timeouts {
    pub(super) fn of(policy: &v1::HttpPolicy) -> Self {
        let limit = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
        Self { idle: limit(policy.idle_timeout_ms), total: limit(policy.total_timeout_ms) }
    }

    pub(super) fn clock(self, now: Instant) -> Option<Clock> {
        let limited = self.idle.is_some() || self.total.is_some();
        limited.then_some(Clock {
            idle: self.idle,
            over: self.total.map(|total| now + total),
            moved: now,
            body: false,
        })
    }
}

/// One request's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    idle: Option<Duration>,
    over: Option<Instant>,
    moved: Instant,
    /// A body is under way.
    body: bool,
}

impl Clock {
    /// A byte of a body passed, in either direction.
    pub(crate) fn moved(&mut self, now: Instant) {
        (self.moved, self.body) = (now, true);
    }

    /// A body is done, and what comes next is the local server's to begin: that is for the response
    /// timeout.
    pub(crate) fn rests(&mut self) {
        self.body = false;
    }

    /// The answer is one that lasts: an upgraded connection. It may only not fall silent.
    pub(crate) fn spare(&mut self) {
        self.over = None;
    }

    /// The same, if the answer is an event stream.
    pub(crate) fn spare_event_stream(&mut self, fields: &Fields) {
        if is_event_stream(fields) {
            self.spare();
        }
    }

    /// When to look at it next.
    pub(crate) fn due(&self) -> Option<Instant> {
        let idle = self.idle.filter(|_| self.body).map(|idle| self.moved + idle);
        [idle, self.over].into_iter().flatten().min()
    }

    /// Why the request is over, if it is.
    pub(crate) fn expired(&self, now: Instant) -> Option<&'static Code> {
        if self.over.is_some_and(|over| now >= over) {
            return Some(&Code::TOTAL_TIMEOUT);
        }
        self.due().filter(|due| now >= *due).map(|_| &Code::IDLE_TIMEOUT)
    }
}

/// Whether the answer is events that come when they come.
pub(super) fn is_event_stream(fields: &Fields) -> bool {
    let kind = fields.get("content-type").map(|value| &value[..]).unwrap_or_default();
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(idle_ms: u32, total_ms: u32, now: Instant) -> Option<Clock> {
        let policy = v1::HttpPolicy {
            idle_timeout_ms: idle_ms,
            total_timeout_ms: total_ms,
            ..Default::default()
        };
        Timeouts::of(&policy).clock(now)
    }

    #[test]
    fn silence_counts_while_a_body_is_under_way() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let mut clock = clock(100, 0, now).unwrap();
        assert_eq!((clock.due(), clock.expired(after(1_000))), (None, None));
        clock.moved(after(1_000));
        assert_eq!(clock.due(), Some(after(1_100)));
        assert_eq!(clock.expired(after(1_099)), None);
        assert_eq!(clock.expired(after(1_100)).unwrap().number, 5023);
        clock.rests();
        assert_eq!(clock.expired(after(9_000)), None);
    }

    #[test]
    fn all_of_it_counts_but_for_answers_that_last() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let mut timed = clock(0, 500, now).unwrap();
        timed.moved(after(499));
        assert_eq!(timed.due(), Some(after(500)));
        assert_eq!(timed.expired(after(500)).unwrap().number, 5022);
        let mut fields = Fields::default();
        fields.push("Content-Type", "text/html");
        timed.spare_event_stream(&fields);
        assert!(timed.due().is_some());
        fields.set("content-type", "Text/Event-Stream ; charset=utf-8");
        timed.spare_event_stream(&fields);
        assert_eq!((timed.due(), timed.expired(after(9_000))), (None, None));
        assert!(clock(0, 0, now).is_none());
    }
}
