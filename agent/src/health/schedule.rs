//! When each local server is checked: one task for all of an agent's.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// Checks that run at once.
const MAX_AT_ONCE: usize = 32;
/// How often it is looked whether there are other local servers now.
const LOOK: Duration = Duration::from_secs(1);
/// A server's first check comes within this time: not all at once, and soon.
const FIRST: Duration = Duration::from_secs(1);
/// How much of its interval a server may be checked too early, as a divisor: those that began
/// together drift apart.
const JITTER: u32 = 10;

/// When a local server is due.
#[derive(Debug, Default)]
pub(crate) struct Due(Mutex<Option<When>>);

#[derive(Clone, Copy, Debug)]
enum When {
    At(Instant),
    /// It is being checked.
    Running,
}

/// What is checked.
pub(crate) trait Checked: Send + Sync + 'static {
    /// Between two checks; `None`: it is not checked.
    fn interval(&self) -> Option<Duration>;
    fn due(&self) -> &Due;
    /// One check; what it finds is its own business.
    fn check(&self) -> impl Future<Output = ()> + Send;
}

impl Due {
    /// When it is due, if it is not under way. One that is new is due soon.
    fn at(&self, now: Instant, interval: Duration, random: u64) -> Option<Instant> {
        match self.0.lock().get_or_insert_with(|| When::At(now + part(interval.min(FIRST), random)))
        {
            When::At(at) => Some(*at),
            When::Running => None,
        }
    }

    fn begin(&self) {
        *self.0.lock() = Some(When::Running);
    }

    fn end(&self, began: Instant, interval: Duration, random: u64) {
        let next = began + interval - part(interval / JITTER, random);
        *self.0.lock() = Some(When::At(next.max(Instant::now())));
    }
}

/// Somewhere between nothing and all of it.
fn part(whole: Duration, random: u64) -> Duration {
    let share = u32::try_from(random % 1024).unwrap_or_default();
    whole * share / 1024
}

/// Checks what `all` says that there is, for ever. `told` is called now and then, and after each
/// check.
pub(crate) async fn run<C: Checked>(
    all: impl Fn() -> Vec<Arc<C>>,
    random: impl Fn() -> u64,
    told: impl Fn(),
) -> std::convert::Infallible {
    let mut running = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        let mut next = now + LOOK;
        let mut due = Vec::new();
        for checked in all() {
            let Some(interval) = checked.interval() else { continue };
            match checked.due().at(now, interval, random()) {
                Some(at) if at > now => next = next.min(at),
                Some(at) => due.push((at, interval, checked)),
                // Under way.
                None => {}
            }
        }
        // Where there is no room for all, those that wait longest are first; the others have their
        // turn when a check is over.
        due.sort_by_key(|(at, ..)| *at);
        due.truncate(MAX_AT_ONCE - running.len());
        for (_, interval, checked) in due {
            checked.due().begin();
            let random = random();
            running.push(async move {
                checked.check().await;
                checked.due().end(now, interval, random);
            });
        }
        told();
        tokio::select! {
            Some(()) = running.next() => {}
            () = sleep_until(next) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{sleep, timeout};

    use super::*;

    #[derive(Default)]
    struct Server {
        due: Due,
        interval: Option<Duration>,
        takes: Duration,
        began: Mutex<Vec<Duration>>,
        shared: Arc<Shared>,
    }

    #[derive(Default)]
    struct Shared {
        running: AtomicUsize,
        most: AtomicUsize,
        start: Mutex<Option<Instant>>,
    }

    impl Checked for Server {
        fn interval(&self) -> Option<Duration> {
            self.interval
        }

        fn due(&self) -> &Due {
            &self.due
        }

        async fn check(&self) {
            let start = *self.shared.start.lock().get_or_insert_with(Instant::now);
            self.began.lock().push(start.elapsed());
            let running = self.shared.running.fetch_add(1, Ordering::Relaxed) + 1;
            self.shared.most.fetch_max(running, Ordering::Relaxed);
            sleep(self.takes).await;
            self.shared.running.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn servers(count: usize, interval: u64, takes: Duration) -> (Arc<Shared>, Vec<Arc<Server>>) {
        let shared = Arc::new(Shared::default());
        let one = |_| {
            let interval = Some(Duration::from_secs(interval));
            let shared = Arc::clone(&shared);
            Arc::new(Server { interval, takes, shared, ..Server::default() })
        };
        let all = (0..count).map(one).collect();
        (shared, all)
    }

    /// Runs for `seconds` of paused time.
    async fn for_seconds(seconds: u64, shared: &Shared, all: &Mutex<Vec<Arc<Server>>>) {
        *shared.start.lock() = Some(Instant::now());
        let seed = std::cell::Cell::new(7_u64);
        let random = || {
            seed.set(seed.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            seed.get() >> 33
        };
        let running = run(|| all.lock().clone(), random, || {});
        let _ = timeout(Duration::from_secs(seconds), running).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_servers_are_spread_and_each_keeps_its_interval() {
        let (shared, all) = servers(100, 10, Duration::from_millis(1));
        for_seconds(60, &shared, &Mutex::new(all.clone())).await;
        for server in &all {
            let began = server.began.lock().clone();
            assert!((6..=7).contains(&began.len()), "{began:?}");
            assert!(began[0] <= FIRST);
            for pair in began.windows(2) {
                let apart = pair[1] - pair[0];
                let bounds = Duration::from_millis(8_990)..=Duration::from_millis(10_010);
                assert!(bounds.contains(&apart), "{apart:?}");
            }
        }
        assert!(shared.most.load(Ordering::Relaxed) < 20, "{:?}", shared.most);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_checks_are_bounded_and_nobody_is_left_out() {
        let (shared, all) = servers(100, 1, Duration::from_secs(5));
        for_seconds(30, &shared, &Mutex::new(all.clone())).await;
        assert_eq!(shared.most.load(Ordering::Relaxed), MAX_AT_ONCE);
        let checks: Vec<usize> = all.iter().map(|server| server.began.lock().len()).collect();
        assert!(checks.iter().all(|checks| (1..=6).contains(checks)), "{checks:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn servers_come_and_go_while_it_runs() {
        let (shared, mut all) = servers(3, 2, Duration::ZERO);
        let late = all.pop().unwrap();
        let unchecked = Arc::new(Server::default());
        all.push(Arc::clone(&unchecked));
        let there = Mutex::new(all.clone());
        for_seconds(10, &shared, &there).await;
        let before = all[0].began.lock().len();
        *there.lock() = vec![Arc::clone(&late), Arc::clone(&all[1])];
        for_seconds(10, &shared, &there).await;
        assert_eq!(all[0].began.lock().len(), before, "it is gone");
        assert!(late.began.lock().len() >= 4 && all[1].began.lock().len() > before);
        assert!(unchecked.began.lock().is_empty());
    }
}
