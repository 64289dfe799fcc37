//! Local servers that do the same, and which of them a request goes to.
//!
//! Of two that are chosen at random the one with fewer requests under way gets it: that is nearly as
//! even as looking at all of them, and no two agents run after the same one. What took no connection
//! got nothing of the request, so another one is asked at once, whatever the method; if there is
//! none, the request may wait for one ([`Turn::failed`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout_at},
};
use uniroute_proto::v1::UpstreamErrorKind;

use super::{Place, Scheme, Target, Upstream, UpstreamError};
use crate::{
    health::{self, Due, Health, HealthCheck},
    status::{HealthChange, UpstreamStatus},
};

/// Requests that wait for the local servers of one pool.
pub(crate) const MAX_HELD: usize = 1_000;
/// First and longest time between two tries of requests that wait.
const KNOCK_FIRST: Duration = Duration::from_millis(50);
const KNOCK_MOST: Duration = Duration::from_millis(500);
/// A server that refused a connection and is not checked gets requests again after this long.
const OUT: Duration = Duration::from_secs(5);
/// How much an answer moves the mean of answer times, as a divisor.
const WEIGHT: u64 = 8;

/// One local server of a pool.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) upstream: Upstream,
    health: Health,
    check: HealthCheck,
    due: Due,
    /// Requests and connections under way, where they are shared out.
    open: AtomicUsize,
    /// Of the pool: somebody takes connections again.
    back: Arc<Notify>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pool {
    /// At least one.
    members: Box<[Arc<Member>]>,
    /// How long a request waits for one that takes connections.
    hold: Duration,
    held: AtomicUsize,
    /// Requests that might not wait.
    turned_away: AtomicU64,
    back: Arc<Notify>,
    /// One of the requests that wait tries for all.
    knocking: Arc<Semaphore>,
    random: AtomicU64,
    /// Mean time to the head of an answer, moving, in microseconds.
    answer_us: AtomicU64,
}

/// What a pool is told beside its servers.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolSettings {
    pub(crate) check: HealthCheck,
    pub(crate) hold: Duration,
}

impl Pool {
    /// `first` comes first in whatever is said of them.
    pub(crate) fn new(
        first: Upstream,
        further: impl IntoIterator<Item = Upstream>,
        PoolSettings { check, hold }: PoolSettings,
        random: u64,
    ) -> Self {
        let back = Arc::new(Notify::new());
        let member = |upstream: Upstream| {
            // Whether somebody takes datagrams does not show, and a folder is no server.
            let checked = upstream.target().scheme != Scheme::Udp
                && !matches!(upstream.target().place, Place::Files(_));
            let probe = check.probe.clone().filter(|_| checked);
            Arc::new(Member {
                upstream,
                health: Health::default(),
                check: HealthCheck { probe, ..check.clone() },
                due: Due::default(),
                open: AtomicUsize::new(0),
                back: Arc::clone(&back),
            })
        };
        Self {
            members: std::iter::once(first).chain(further).map(member).collect(),
            hold,
            held: AtomicUsize::new(0),
            turned_away: AtomicU64::new(0),
            back: Arc::clone(&back),
            knocking: Arc::new(Semaphore::new(1)),
            random: AtomicU64::new(random),
            answer_us: AtomicU64::new(0),
        }
    }

    pub(crate) fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// The first one, for what does not share out.
    pub(crate) fn first(&self) -> &Upstream {
        &self.members[0].upstream
    }

    /// Where it is, for people.
    pub(crate) fn target(&self) -> &Target {
        self.first().target()
    }

    /// One request's way to a local server.
    pub(crate) fn turn(self: Arc<Self>) -> Turn {
        let mut turn = Turn { member: 0, retry: None, pool: self };
        if turn.pool.shares_out() {
            turn.member = turn.pool.pick(&[]).unwrap_or_default();
            turn.pool.members[turn.member].open.fetch_add(1, Ordering::Relaxed);
        }
        turn
    }

    /// There is a choice: of one server nobody asks how much it has to do.
    fn shares_out(&self) -> bool {
        self.members.len() > 1
    }

    /// Not one of `tried`. Those of which nothing good is known come last: what is known may be wrong.
    fn pick(&self, tried: &[usize]) -> Option<usize> {
        let now = Instant::now();
        let untried = |member: usize| !tried.contains(&member);
        let healthy = |member: usize| untried(member) && self.members[member].health.is_in(now);
        let open = |member: usize| self.members[member].open.load(Ordering::Relaxed);
        let (count, random) = (self.members.len(), self.random());
        let picked = of_two(count, healthy, open, random);
        picked.or_else(|| of_two(count, untried, open, random))
    }

    /// Good enough to share out by (SplitMix64).
    fn random(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.random.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn sweep(&self) {
        self.members.iter().for_each(|member| member.upstream.sweep());
    }

    /// What an answer or an error has shown of a member; for those who had no turn.
    pub(crate) fn report(&self, member: usize, error: Option<&UpstreamError>) -> bool {
        let Some(member) = self.members.get(member) else { return false };
        match error {
            None => member.health.answered(),
            Some(error) => member.failed(error),
        }
    }

    /// Why no member is healthy. `None`: nothing is known of any.
    pub(crate) fn health(&self) -> Option<Result<(), String>> {
        let mut reasons = Vec::new();
        let mut known = None;
        for member in &self.members {
            match member.health.now() {
                Some(Ok(())) => known = Some(Ok(())),
                Some(Err(reason)) => reasons.push(reason),
                None => {}
            }
        }
        match reasons.len() == self.members.len() {
            true => Some(Err(reasons.join("; "))),
            false => known,
        }
    }

    pub(crate) fn status(&self) -> Vec<UpstreamStatus> {
        let one = |member: &Arc<Member>| member.health.status(member.upstream.target().to_string());
        self.members.iter().map(one).collect()
    }

    /// Changes of its members' health since the last call, with their URLs.
    pub(crate) fn untold(&self) -> Vec<(String, HealthChange)> {
        let mut all = Vec::new();
        for member in &self.members {
            let url = || member.upstream.target().to_string();
            all.extend(member.health.untold().into_iter().map(|change| (url(), change)));
        }
        all
    }

    /// Requests that wait for one of them.
    pub(crate) fn waiting(&self) -> u64 {
        self.held.load(Ordering::Relaxed) as u64
    }

    /// Requests that might not wait, because as many as may did.
    pub(crate) fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Connections to them that wait for a request.
    pub(crate) fn idle(&self) -> u64 {
        self.members.iter().map(|member| member.upstream.idle() as u64).sum()
    }

    /// Mean time to the head of an answer, in microseconds; 0 before the first.
    pub(crate) fn answer_us(&self) -> u64 {
        self.answer_us.load(Ordering::Relaxed)
    }
}

impl Member {
    /// It gave no answer. Whether that changes what is known of it.
    fn failed(&self, error: &UpstreamError) -> bool {
        let checked = self.check.probe.is_some();
        let out = error.sent_nothing().then_some(if checked { self.check.interval } else { OUT });
        // A page that fails says little of a server that is asked how it is.
        if checked && out.is_none() {
            return false;
        }
        self.health.failed(&error.message, out.map(|out| Instant::now() + out))
    }
}

impl health::Checked for Member {
    fn interval(&self) -> Option<Duration> {
        self.check.probe.as_ref().map(|_| self.check.interval)
    }

    fn due(&self) -> &Due {
        &self.due
    }

    async fn check(&self) {
        let found = health::check(&self.upstream, &self.check).await;
        let passed = found.is_ok();
        self.health.checked(found, &self.check);
        if passed {
            self.back.notify_waiters();
        }
    }
}

impl UpstreamError {
    /// The local server got nothing of the request: another one may have it, whatever it is.
    fn sent_nothing(&self) -> bool {
        self.passes() || self.kind == UpstreamErrorKind::Tls
    }

    /// A server that is being started looks like this.
    fn passes(&self) -> bool {
        matches!(
            self.kind,
            UpstreamErrorKind::ConnectionRefused
                | UpstreamErrorKind::ConnectTimeout
                | UpstreamErrorKind::Dns
                | UpstreamErrorKind::Unreachable
        )
    }
}

/// One of the `count` that `may`: of two that are chosen at random the one with less to do.
fn of_two(
    count: usize,
    may: impl Fn(usize) -> bool,
    open: impl Fn(usize) -> usize,
    random: u64,
) -> Option<usize> {
    let those = (0..count).filter(|member| may(*member)).count();
    let nth = |n: usize| (0..count).filter(|member| may(*member)).nth(n);
    // The two halves are two random numbers.
    let below = |half: u64, bound: usize| {
        usize::try_from((half & 0xffff_ffff) % u64::try_from(bound).ok()?).ok()
    };
    match those {
        0 => None,
        1 => nth(0),
        _ => {
            let one = below(random, those)?;
            let other = (one + 1 + below(random >> 32, those - 1)?) % those;
            let (one, other) = (nth(one)?, nth(other)?);
            Some(if open(other) < open(one) { other } else { one })
        }
    }
}

/// One request's way to a local server: it counts as under way there as long as this lives.
#[derive(Debug)]
pub(crate) struct Turn {
    pool: Arc<Pool>,
    member: usize,
    /// Only after a connection that failed.
    retry: Option<Box<Retry>>,
}

#[derive(Debug, Default)]
struct Retry {
    /// Members that took no connection in this round, and what they were like.
    tried: Vec<usize>,
    reasons: Vec<String>,
    held: Option<Held>,
}

/// A request that waits for a local server.
#[derive(Debug)]
struct Held {
    pool: Arc<Pool>,
    until: Instant,
    delay: Duration,
    /// It tries for all that wait.
    knocks: Option<OwnedSemaphorePermit>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pool.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.pool.shares_out() {
            self.pool.members[self.member].open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Turn {
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.pool.members[self.member].upstream
    }

    /// There is a connection: those who wait for one may try too.
    pub(crate) fn connected(&mut self) {
        if let Some(retry) = self.retry.take()
            && retry.held.is_some()
        {
            self.pool.back.notify_waiters();
        }
    }

    /// There is an answer, `after` this long, where that is the local server's time alone. Whether that
    /// changes what is known.
    pub(crate) fn answered(&self, after: Option<Duration>) -> bool {
        if let Some(after) = after {
            let after = u64::try_from(after.as_micros()).unwrap_or(u64::MAX).max(1);
            let mean = &self.pool.answer_us;
            // Two that come at once count as one, which is all the same to a mean.
            mean.store(moved(mean.load(Ordering::Relaxed), after), Ordering::Relaxed);
        }
        self.pool.members[self.member].health.answered()
    }

    /// There was a connection and no answer.
    pub(crate) fn unanswered(&self, error: &UpstreamError) {
        // What came before the request was sent is known already.
        if !error.sent_nothing() {
            self.pool.members[self.member].failed(error);
        }
    }

    /// There was no connection: goes on to another member, or waits until one may do better.
    ///
    /// # Errors
    /// [`UpstreamError`], in the end.
    pub(crate) async fn failed(&mut self, error: UpstreamError) -> Result<(), UpstreamError> {
        self.pool.members[self.member].failed(&error);
        if !error.sent_nothing() {
            return Err(error);
        }
        let retry = self.retry.get_or_insert_default();
        retry.tried.push(self.member);
        retry.reasons.push(error.message.clone());
        let mut next = self.pool.pick(&retry.tried);
        if next.is_none() {
            let reasons = std::mem::take(&mut retry.reasons);
            let error = UpstreamError { message: reasons.join("; "), ..error };
            if !error.passes() || self.pool.hold.is_zero() {
                return Err(error);
            }
            retry.tried.clear();
            retry.held(&self.pool, error.clone())?.wait(error).await?;
            next = self.pool.pick(&[]);
        }
        if let Some(next) = next.filter(|_| self.pool.shares_out()) {
            self.pool.members[next].open.fetch_add(1, Ordering::Relaxed);
            self.pool.members[self.member].open.fetch_sub(1, Ordering::Relaxed);
            self.member = next;
        }
        Ok(())
    }
}

/// A mean that follows what comes.
fn moved(mean: u64, value: u64) -> u64 {
    match mean {
        0 => value,
        mean => (mean * (WEIGHT - 1)).saturating_add(value) / WEIGHT,
    }
}

impl Retry {
    /// A place among those that wait.
    fn held(&mut self, pool: &Arc<Pool>, error: UpstreamError) -> Result<&mut Held, UpstreamError> {
        if self.held.is_none() && pool.held.fetch_add(1, Ordering::Relaxed) >= MAX_HELD {
            pool.held.fetch_sub(1, Ordering::Relaxed);
            pool.turned_away.fetch_add(1, Ordering::Relaxed);
            let UpstreamError { kind, message } = error;
            let message = format!("{message} ({MAX_HELD} requests wait for it already)");
            return Err(UpstreamError { kind, message });
        }
        Ok(self.held.get_or_insert_with(|| Held {
            pool: Arc::clone(pool),
            until: Instant::now() + pool.hold,
            delay: KNOCK_FIRST,
            knocks: None,
        }))
    }
}

impl Held {
    /// Until it is worth another try.
    async fn wait(&mut self, error: UpstreamError) -> Result<(), UpstreamError> {
        let Self { pool, until, delay, knocks } = self;
        let trying = async {
            if knocks.is_none() {
                *knocks = Arc::clone(&pool.knocking).acquire_owned().await.ok();
            }
            sleep(*delay).await;
            *delay = (*delay * 2).min(KNOCK_MOST);
        };
        let waiting = async {
            tokio::select! {
                () = pool.back.notified() => {}
                () = trying => {}
            }
        };
        timeout_at(*until, waiting).await.map_err(|_| UpstreamError {
            message: format!("{} (waited {:?} for it)", error.message, pool.hold),
            ..error
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{Protocol, Trust};

    fn pool(count: u16, hold: Duration, check: HealthCheck) -> Arc<Pool> {
        let mut servers = (1..=count).map(|port| {
            let target = port.to_string().parse().unwrap();
            Upstream::new(target, &Trust::System, Duration::from_secs(1), Protocol::Auto).unwrap()
        });
        let first = servers.next().unwrap();
        Arc::new(Pool::new(first, servers, PoolSettings { check, hold }, 7))
    }

    fn refused(turn: &Turn) -> UpstreamError {
        let message = format!("nothing listens on {}", turn.upstream().target());
        UpstreamError::new(UpstreamErrorKind::ConnectionRefused, message)
    }

    #[test]
    fn the_one_of_two_with_less_to_do() {
        let open = [5, 3, 9, 0];
        for random in 0..1_000_u64 {
            let random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let picked = of_two(4, |_| true, |member| open[member], random).unwrap();
            assert_ne!(picked, 2, "there is always one with less");
            assert_eq!(of_two(4, |m| m == 2, |m| open[m], random), Some(2));
            assert_eq!(of_two(4, |_| false, |m| open[m], random), None);
            let picked = of_two(4, |m| m < 2, |m| open[m], random);
            assert_eq!(picked, Some(1), "both are looked at");
        }
    }

    #[test]
    fn requests_are_shared_out_evenly() {
        let pool = pool(4, Duration::ZERO, HealthCheck::default());
        let turns: Vec<_> = (0..400).map(|_| Arc::clone(&pool).turn()).collect();
        for member in &pool.members {
            let open = member.open.load(Ordering::Relaxed);
            assert!((95..=105).contains(&open), "{open}");
        }
        drop(turns);
        assert!(pool.members.iter().all(|member| member.open.load(Ordering::Relaxed) == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_refuses_a_connection_is_passed_over_for_a_while() {
        let pool = pool(3, Duration::ZERO, HealthCheck::default());
        let mut turn = Arc::clone(&pool).turn();
        let bad = turn.member;
        turn.failed(refused(&turn)).await.unwrap();
        assert_ne!(turn.member, bad);
        turn.connected();
        turn.answered(Some(Duration::from_millis(4)));
        let picks = |count| (0..count).map(|_| pool.pick(&[]).unwrap()).collect::<Vec<_>>();
        assert!(!picks(100).contains(&bad));
        tokio::time::advance(OUT).await;
        assert!(picks(100).contains(&bad));
        assert_eq!(pool.health(), Some(Ok(())), "the others are there");
    }

    #[tokio::test(start_paused = true)]
    async fn all_are_tried_once_and_all_are_named() {
        let pool = pool(3, Duration::ZERO, HealthCheck::default());
        let mut turn = Arc::clone(&pool).turn();
        let mut tried = vec![turn.member];
        let error = loop {
            match turn.failed(refused(&turn)).await {
                Ok(()) => tried.push(turn.member),
                Err(error) => break error,
            }
        };
        tried.sort_unstable();
        assert_eq!(tried, [0, 1, 2]);
        for port in 1..=3 {
            let named = format!("nothing listens on http://localhost:{port}");
            assert!(error.message.contains(&named), "{error}");
        }
        assert_eq!(pool.health().unwrap().unwrap_err().matches("nothing listens").count(), 3);
        // With nobody left those that are thought ill of are asked all the same.
        assert!(pool.pick(&[]).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_is_not_sent_elsewhere() {
        let pool = pool(2, Duration::from_secs(1), HealthCheck::default());
        let mut turn = Arc::clone(&pool).turn();
        let error = UpstreamError::new(UpstreamErrorKind::ConnectionReset, "closed");
        assert_eq!(turn.failed(error.clone()).await, Err(error));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_as_long_as_it_may() {
        let hold = Duration::from_secs(3);
        let pool = pool(1, hold, HealthCheck::default());
        let began = Instant::now();
        let mut turn = Arc::clone(&pool).turn();
        let mut at = Vec::new();
        let error = loop {
            match turn.failed(refused(&turn)).await {
                Ok(()) => at.push(began.elapsed().as_millis()),
                Err(error) => break error,
            }
        };
        assert_eq!(at, [50, 150, 350, 750, 1_250, 1_750, 2_250, 2_750]);
        assert_eq!(began.elapsed(), hold);
        assert_eq!(error.message, "nothing listens on http://localhost:1 (waited 3s for it)");
        drop(turn);
        assert_eq!(pool.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_tries_for_all_that_wait_and_all_go_on_when_it_gets_through() {
        let pool = pool(1, Duration::from_secs(10), HealthCheck::default());
        let there = Instant::now() + Duration::from_secs(2);
        let tries = Arc::new(AtomicUsize::new(0));
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (pool, tries) = (Arc::clone(&pool), Arc::clone(&tries));
            waiting.spawn(async move {
                let mut turn = pool.turn();
                while Instant::now() < there {
                    tries.fetch_add(1, Ordering::Relaxed);
                    turn.failed(refused(&turn)).await.unwrap();
                }
                turn.connected();
                Instant::now()
            });
        }
        let through = waiting.join_all().await;
        assert!(through.iter().all(|at| *at < there + KNOCK_MOST), "all at once");
        let tries = tries.load(Ordering::Relaxed);
        assert!((100..110).contains(&tries), "{tries}: each once, and one of them again and again");
    }

    #[tokio::test(start_paused = true)]
    async fn who_tries_for_all_may_leave() {
        let pool = pool(1, Duration::from_secs(10), HealthCheck::default());
        let wait = |pool: Arc<Pool>| async move {
            let mut turn = pool.turn();
            turn.failed(refused(&turn)).await.unwrap();
        };
        let first = tokio::spawn(wait(Arc::clone(&pool)));
        tokio::task::yield_now().await;
        let second = tokio::spawn(wait(Arc::clone(&pool)));
        tokio::task::yield_now().await;
        first.abort();
        let began = Instant::now();
        second.await.unwrap();
        assert!(began.elapsed() <= KNOCK_FIRST);
        assert_eq!(pool.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_are_bounded() {
        let pool = pool(1, Duration::from_secs(10), HealthCheck::default());
        pool.held.store(MAX_HELD, Ordering::Relaxed);
        let mut turn = Arc::clone(&pool).turn();
        let error = turn.failed(refused(&turn)).await.unwrap_err();
        assert!(error.message.ends_with("(1000 requests wait for it already)"), "{error}");
        assert_eq!(pool.held.load(Ordering::Relaxed), MAX_HELD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_passes_ends_the_wait() {
        let pool = pool(1, Duration::from_secs(10), HealthCheck::tcp());
        let mut turn = Arc::clone(&pool).turn();
        turn.failed(refused(&turn)).await.unwrap();
        let error = refused(&turn);
        let began = Instant::now();
        let woken = async {
            sleep(Duration::from_millis(10)).await;
            pool.back.notify_waiters();
        };
        let (failed, ()) = tokio::join!(turn.failed(error), woken);
        failed.unwrap();
        assert_eq!(began.elapsed(), Duration::from_millis(10));
    }

    #[test]
    fn a_page_that_fails_says_nothing_of_a_server_that_is_checked() {
        let slow = UpstreamError::new(UpstreamErrorKind::ResponseTimeout, "slow");
        let unchecked = pool(1, Duration::ZERO, HealthCheck::default());
        unchecked.report(0, Some(&slow));
        assert_eq!(unchecked.health(), Some(Err("slow".to_owned())));
        let checked = pool(1, Duration::ZERO, HealthCheck::tcp());
        checked.report(0, Some(&slow));
        assert_eq!(checked.health(), None);
    }

    #[test]
    fn the_mean_follows() {
        assert_eq!(moved(0, 800), 800);
        let mean = (0..50).fold(800, |mean, _| moved(mean, 100));
        assert!((95..=110).contains(&mean), "{mean}");
    }
}
