//! What one edge does for all of them: roll-ups, retention, closing what nobody closed. Whoever has
//! the lock runs a job; a fence keeps one that was thought dead from writing over its successor.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::{
    Shared,
    histogram::Histogram,
    store::{Aged, StoreError, Timestamp},
};

/// How often it is looked whether a job is due.
const LOOK: Duration = Duration::from_secs(5);
/// For how long a lock is held; the longest that a job may take.
const LEASE: Duration = Duration::from_secs(5 * 60);
/// A minute's counts are complete this long after its end, unless the store was away.
const SETTLED: Duration = Duration::from_secs(90);
/// Hours that are rolled up again: what came late is in then.
const AGAIN: i64 = 3;
/// A session without a sign of life for so long has ended with its edge.
const ORPHAN: Duration = Duration::from_secs(5 * 60);
/// Partitions that are made ahead, in days.
pub(crate) const AHEAD: u32 = 3;

const HOUR: i64 = 60 * 60 * 1_000_000;

/// For how long things are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Rows of requests.
    pub requests: Duration,
    /// Counts by the minute.
    pub minutes: Duration,
    /// Counts by the hour.
    pub hours: Duration,
    /// The audit log.
    pub audit: Duration,
    /// Sessions that have ended.
    pub sessions: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
        Self {
            requests: days(7),
            minutes: days(7),
            hours: days(400),
            audit: days(400),
            sessions: days(30),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Minutes into hours.
    RollUp,
    /// Sessions and names that nobody has any more.
    Orphans,
    /// Partitions, and what is too old.
    Retention,
}

impl Job {
    const ALL: [Self; 3] = [Self::RollUp, Self::Orphans, Self::Retention];

    fn name(self) -> &'static str {
        match self {
            Self::RollUp => "roll-up",
            Self::Orphans => "orphans",
            Self::Retention => "retention",
        }
    }

    fn every(self) -> Duration {
        match self {
            Self::RollUp | Self::Orphans => Duration::from_secs(60),
            Self::Retention => Duration::from_secs(60 * 60),
        }
    }
}

/// Runs what is due until the edge stops.
pub(crate) async fn run(edge: Arc<Shared>) {
    let mut ticks = interval(edge.jobs_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = edge.stop.cancelled() => return,
        }
        for job in Job::ALL {
            let running = try_run(&edge, job);
            tokio::select! {
                ran = running => if let Err(error) = ran {
                    debug!(%error, job = job.name(), "a job did not run");
                },
                () = edge.stop.cancelled() => return,
            }
        }
    }
}

/// See [`LOOK`].
pub(crate) const EVERY: Duration = LOOK;

async fn try_run(edge: &Shared, job: Job) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let before = edge.store.job(job.name()).await?;
    let ran = before.as_ref().and_then(|row| row.ran_at);
    if ran.is_some_and(|at| at.plus(job.every()) > now) {
        return Ok(());
    }
    let lock = format!("job-{}", job.name());
    let fence = match edge.state.lock(&lock, &edge.id, LEASE).await {
        Ok(Some(fence)) => fence,
        Ok(None) => return Ok(()),
        Err(error) => return Err(StoreError::Unavailable(error.to_string())),
    };
    // A state that has lost its memory counts from the beginning; the store knows better.
    let fence = fence.max(before.as_ref().map_or(0, |row| row.fence + 1));
    let done_until = before.and_then(|row| row.done_until);
    let outcome = match job {
        Job::RollUp => roll_up(edge, done_until, now).await,
        Job::Orphans => orphans(edge, now).await,
        Job::Retention => retain(edge, now).await,
    };
    let (until, said) = match &outcome {
        Ok((until, said)) => (*until, said.clone()),
        Err(error) => (done_until, format!("failed: {error}").chars().take(200).collect()),
    };
    let finished = edge.store.finish_job(job.name(), fence, until, &said, now).await;
    let _ = edge.state.unlock(&lock, &edge.id).await;
    finished?;
    match outcome {
        Ok((_, said)) => debug!(job = job.name(), outcome = said, "a job has run"),
        Err(error) => warn!(%error, job = job.name(), "a job failed"),
    }
    Ok(())
}

type Outcome = Result<(Option<Timestamp>, String), StoreError>;

async fn roll_up(edge: &Shared, done_until: Option<Timestamp>, now: Timestamp) -> Outcome {
    let this = hour_of(now.minus(SETTLED));
    let first = match done_until {
        Some(done) => hour_of(done).0 - AGAIN * HOUR,
        None => hour_of(now.minus(edge.retention.minutes)).0,
    };
    let mut hours = 0;
    let mut hour = first;
    // The hour that is going on too: a graph has its last point at once.
    while hour <= hour_of(now).0 {
        edge.store.roll_up_hour(Timestamp(hour), Histogram::merge_encoded).await?;
        hours += 1;
        hour += HOUR;
    }
    Ok((Some(this), format!("{hours} hours")))
}

fn hour_of(at: Timestamp) -> Timestamp {
    Timestamp(at.0 - at.0.rem_euclid(HOUR))
}

async fn orphans(edge: &Shared, now: Timestamp) -> Outcome {
    let alive = [edge.id.clone()];
    let (mut sessions, mut names) = (0, 0);
    loop {
        let closed = edge.store.close_orphans(&alive, now.minus(ORPHAN)).await?;
        let freed = edge.store.expire_held(now).await?;
        for row in &freed {
            info!(tunnel.id = %row.id, name = row.subdomain, "nobody came back for a name: it is free");
        }
        sessions += closed.len();
        names += freed.len();
        if closed.is_empty() && freed.is_empty() {
            return Ok((None, format!("{sessions} sessions closed, {names} names freed")));
        }
    }
}

async fn retain(edge: &Shared, now: Timestamp) -> Outcome {
    let keep = &edge.retention;
    let store = &edge.store;
    store.make_partitions(now, AHEAD).await?;
    let requests = store.delete_requests(now.minus(keep.requests)).await?;
    let day = Duration::from_secs(24 * 60 * 60);
    let minutes = store.delete_aged(Aged::Minutes, now.minus(keep.minutes)).await?;
    let hours = store.delete_aged(Aged::Hours, now.minus(keep.hours)).await?;
    let audit = store.delete_aged(Aged::Audit, now.minus(keep.audit)).await?;
    let sessions = store.delete_aged(Aged::Sessions, now.minus(keep.sessions)).await?;
    let keys = store.delete_aged(Aged::IdempotencyKeys, now.minus(day)).await?;
    let said = format!(
        "{requests} requests, {minutes} minutes, {hours} hours, {audit} events, {sessions} sessions, {keys} keys deleted"
    );
    Ok((None, said))
}
