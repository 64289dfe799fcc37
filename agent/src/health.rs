//! Whether local servers answer: checks, their history, and who hears of a change.
//!
//! Two things speak of a local server's health: what requests show, and checks, where they are
//! wanted. A check has the last word: a page that fails on purpose is no reason to be thought ill of,
//! and one that works is none to be thought well of when the check says otherwise.

mod check;
mod schedule;

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

pub(crate) use self::{
    check::check,
    schedule::{Checked, Due, run},
};
use crate::status::{HealthChange, UpstreamStatus, now_ms};

/// Time between two checks by default.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// How long a check may take by default.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// Changes that are remembered of a local server.
const HISTORY: usize = 32;
/// What is kept of a reason, in bytes.
const MAX_REASON: usize = 512;

/// How a local server's health is found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is done; `None`: only what requests show counts.
    pub probe: Option<HealthProbe>,
    /// Time between two checks.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Failures in a row that make a local server unhealthy. One is enough for a server that has
    /// never passed.
    pub fall: u32,
    /// Successes in a row that make it healthy again.
    pub rise: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self { probe: None, interval: HEALTH_INTERVAL, timeout: HEALTH_TIMEOUT, fall: 3, rise: 1 }
    }
}

impl HealthCheck {
    /// Sees whether connections are taken.
    #[must_use]
    pub fn tcp() -> Self {
        Self { probe: Some(HealthProbe::Tcp), ..Self::default() }
    }

    /// Asks for `path`; any status from 200 to 399 will do.
    #[must_use]
    pub fn http(path: impl Into<String>) -> Self {
        let probe = HealthProbe::Http { path: path.into(), status: None };
        Self { probe: Some(probe), ..Self::default() }
    }

    /// The same for a server of which only the place is known: a path of another one says nothing
    /// of it.
    pub(crate) fn of_connections(&self) -> Self {
        let probe = self.probe.as_ref().map(|_| HealthProbe::Tcp);
        Self { probe, ..self.clone() }
    }
}

/// One way to look at a local server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthProbe {
    /// It takes a connection.
    Tcp,
    /// It answers a GET for `path` with a status from 200 to 399, or with `status`.
    Http {
        /// Path and query.
        path: String,
        /// The only status that will do.
        status: Option<u16>,
    },
}

/// What is known of one local server.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Requests go elsewhere, if there is an elsewhere.
    out: AtomicBool,
    /// It answers, and one more answer tells nothing new.
    settled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What checks have found, as soon as they have.
    verdict: Option<Result<(), String>>,
    /// Of the last checks, in a row.
    passed: u32,
    failed: u32,
    /// What the last request showed.
    fault: Option<Fault>,
    /// A request was answered.
    answered: bool,
    /// What all of that comes to.
    now: Option<Result<(), String>>,
    since_ms: u64,
    history: VecDeque<HealthChange>,
    /// Changes that nobody was told of.
    untold: usize,
}

#[derive(Debug)]
struct Fault {
    reason: String,
    /// Requests go elsewhere until then.
    out_until: Option<Instant>,
}

impl Health {
    /// A request was answered. Whether that changes anything.
    pub(crate) fn answered(&self) -> bool {
        if self.settled.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock();
        (state.answered, state.fault) = (true, None);
        self.settle(state)
    }

    /// A request was not answered. `out_until`: the next ones should go elsewhere until then.
    pub(crate) fn failed(&self, reason: &str, out_until: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        state.fault = Some(Fault { reason: cut(reason), out_until });
        self.settle(state)
    }

    /// What a check has found.
    pub(crate) fn checked(&self, found: Result<(), String>, limits: &HealthCheck) -> bool {
        let mut state = self.state.lock();
        match found {
            Ok(()) => {
                (state.passed, state.failed) = (state.passed.saturating_add(1), 0);
                // Connections are taken again.
                state.fault = None;
                if state.passed >= limits.rise || state.verdict.is_none() {
                    state.verdict = Some(Ok(()));
                }
            }
            Err(reason) => {
                (state.failed, state.passed) = (state.failed.saturating_add(1), 0);
                if state.failed >= limits.fall || !matches!(state.verdict, Some(Ok(()))) {
                    state.verdict = Some(Err(cut(&reason)));
                }
            }
        }
        self.settle(state)
    }

    /// Whether nothing speaks against sending it requests.
    pub(crate) fn is_in(&self, now: Instant) -> bool {
        if !self.out.load(Ordering::Relaxed) {
            return true;
        }
        let state = self.state.lock();
        let is_out = state.is_out(now);
        self.out.store(is_out, Ordering::Relaxed);
        !is_out
    }

    /// Why it is unhealthy; `None`: nothing is known of it.
    pub(crate) fn now(&self) -> Option<Result<(), String>> {
        self.state.lock().now.clone()
    }

    pub(crate) fn status(&self, url: String) -> UpstreamStatus {
        let state = self.state.lock();
        UpstreamStatus {
            url,
            healthy: state.now.as_ref().map(Result::is_ok),
            reason: state.now.clone().and_then(Result::err).unwrap_or_default(),
            since_ms: state.since_ms,
            history: state.history.iter().cloned().collect(),
        }
    }

    /// Changes since the last call.
    pub(crate) fn untold(&self) -> Vec<HealthChange> {
        let mut state = self.state.lock();
        let untold = std::mem::take(&mut state.untold);
        let known = state.history.len().saturating_sub(untold);
        state.history.iter().skip(known).cloned().collect()
    }

    /// Whether it came to something else.
    fn settle(&self, mut state: parking_lot::MutexGuard<'_, State>) -> bool {
        self.out.store(state.is_out(Instant::now()), Ordering::Relaxed);
        self.settled.store(state.answered && state.fault.is_none(), Ordering::Relaxed);
        let now = state.outcome();
        if now == state.now {
            return false;
        }
        let before = state.now.as_ref().map(Result::is_ok);
        let healthy = now.as_ref().map(Result::is_ok);
        state.now = now;
        if let Some(healthy) = healthy.filter(|_| before != healthy) {
            state.since_ms = now_ms();
            // That a server answers, of which nothing else was ever known, is no change.
            let first = before.is_none() && healthy;
            let reason = state.now.clone().and_then(Result::err).unwrap_or_default();
            let at_ms = state.since_ms;
            if state.history.len() == HISTORY {
                state.history.pop_front();
            }
            state.history.push_back(HealthChange { at_ms, healthy, reason });
            state.untold = if first { 0 } else { (state.untold + 1).min(HISTORY) };
        }
        true
    }
}

impl State {
    fn is_out(&self, now: Instant) -> bool {
        let until = self.fault.as_ref().and_then(|fault| fault.out_until);
        matches!(self.verdict, Some(Err(_))) || until.is_some_and(|until| now < until)
    }

    fn outcome(&self) -> Option<Result<(), String>> {
        match (&self.verdict, &self.fault) {
            (Some(Err(reason)), _) => Some(Err(reason.clone())),
            (_, Some(fault)) => Some(Err(fault.reason.clone())),
            (Some(Ok(())), None) => Some(Ok(())),
            (None, None) => self.answered.then_some(Ok(())),
        }
    }
}

fn cut(reason: &str) -> String {
    reason[..reason.floor_char_boundary(MAX_REASON)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ill(reason: &str) -> Option<Result<(), String>> {
        Some(Err(reason.to_owned()))
    }

    #[test]
    fn without_checks_the_last_request_counts() {
        let health = Health::default();
        assert_eq!(health.now(), None);
        assert!(health.answered() && !health.answered());
        assert_eq!(health.now(), Some(Ok(())));
        assert!(health.failed("refused", None));
        assert!(!health.failed("refused", None));
        assert_eq!(health.now(), ill("refused"));
        assert!(health.failed("too slow", None), "another reason is news");
        assert!(health.answered());
        let status = health.status("url".to_owned());
        let healthy: Vec<_> = status.history.iter().map(|change| change.healthy).collect();
        assert_eq!(healthy, [true, false, true]);
        assert_eq!((status.healthy, status.reason.as_str()), (Some(true), ""));
    }

    #[test]
    fn checks_count_in_rows() {
        let health = Health::default();
        let check = HealthCheck { fall: 2, rise: 2, ..HealthCheck::tcp() };
        let failed = || Err("refused".to_owned());
        health.checked(Ok(()), &check);
        assert_eq!(health.now(), Some(Ok(())), "the first one tells");
        assert!(!health.checked(failed(), &check));
        assert!(!health.checked(Ok(()), &check), "one failure is none in a row of two");
        assert!(!health.checked(failed(), &check));
        assert!(health.checked(failed(), &check));
        assert_eq!(health.now(), ill("refused"));
        assert!(!health.checked(Ok(()), &check));
        assert!(!health.checked(failed(), &check));
        assert!(!health.checked(Ok(()), &check));
        assert!(health.checked(Ok(()), &check));
        assert_eq!(health.now(), Some(Ok(())));
    }

    #[test]
    fn a_server_that_never_passed_is_unhealthy_with_its_first_failure() {
        let health = Health::default();
        assert!(health.checked(Err("refused".to_owned()), &HealthCheck::tcp()));
        assert_eq!(health.now(), ill("refused"));
    }

    #[test]
    fn an_answer_does_not_outvote_a_check() {
        let health = Health::default();
        health.checked(Err("status 500".to_owned()), &HealthCheck::http("/"));
        health.answered();
        assert_eq!(health.now(), ill("status 500"));
        assert!(!health.is_in(Instant::now()));
        health.checked(Ok(()), &HealthCheck::http("/"));
        assert!(health.is_in(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_connection_keeps_requests_away_for_a_while() {
        let health = Health::default();
        let until = Instant::now() + Duration::from_secs(5);
        health.failed("refused", Some(until));
        assert!(!health.is_in(Instant::now()));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(health.is_in(Instant::now()));
        assert_eq!(health.now(), ill("refused"), "nothing else is known yet");
    }

    #[test]
    fn the_history_is_bounded_and_told_once() {
        let health = Health::default();
        health.answered();
        assert!(health.untold().is_empty(), "that it answers is what everybody expects");
        health.failed("refused", None);
        health.answered();
        let told: Vec<_> = health.untold().iter().map(|change| change.healthy).collect();
        assert_eq!(told, [false, true]);
        for _ in 0..HISTORY {
            health.failed("refused", None);
            health.answered();
        }
        assert_eq!(health.untold().len(), HISTORY);
        assert!(health.untold().is_empty());
        assert_eq!(health.status(String::new()).history.len(), HISTORY);
    }

    #[test]
    fn long_reasons_are_cut_between_letters() {
        let health = Health::default();
        health.failed(&"ä".repeat(MAX_REASON), None);
        assert_eq!(health.now(), ill(&"ä".repeat(MAX_REASON / 2)));
    }
}
