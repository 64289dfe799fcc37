//! Writes down what was counted: rows in batches, counts as minutes. The minute that is going on is
//! written again and again as it stands, so that nothing is counted twice when it is not known whether
//! a write was done. While the store is away, both wait.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, warn};
use uniroute_shared::id::TunnelId;
use uuid::Uuid;

use super::{Traffic, row::Row};
use crate::{
    Shared,
    registry::Tunnel,
    state::Totals,
    store::{Minute, RequestRow, Store, StoreError, Timestamp},
};

/// Rows of one statement.
const ROWS: usize = 1_000;
/// Minutes of one transaction.
const MINUTES: usize = 500;
/// Minutes of tunnels that wait for the store; of more, the oldest are lost.
const MAX_MINUTES: usize = 50_000;
/// Pauses after failures: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often the use of the month is asked for.
const USAGE: Duration = Duration::from_secs(10);
/// What is left when the edge stops has this long to be written.
const LAST_WORDS: Duration = Duration::from_secs(5);

const MINUTE: i64 = 60_000_000;

/// Writes until the edge stops, and then what is left.
pub(crate) async fn run(edge: Arc<Shared>, every: Duration) {
    let mut writer = Writer::new(Arc::clone(&edge));
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = edge.stop.cancelled() => break,
        }
        writer.round().await;
    }
    // Requests that are under way now are still to come.
    edge.drained.cancelled().await;
    let last = Instant::now() + LAST_WORDS;
    writer.count(true);
    while Instant::now() < last && !writer.write().await {
        sleep_until(writer.pause_until.min(last)).await;
    }
}

struct Writer {
    edge: Arc<Shared>,
    /// The minute that is going on.
    minute: i64,
    /// Tunnels with requests in it; one that went and came back is there twice.
    busy: HashMap<TunnelId, Vec<Arc<Tunnel>>>,
    /// Minutes to be written, oldest first.
    minutes: BTreeMap<(i64, Uuid), Traffic>,
    /// Of which the shared state is to be told.
    untold: Vec<Arc<Tunnel>>,
    telling: Option<JoinHandle<()>>,
    pause: Duration,
    pause_until: Instant,
    usage_at: Instant,
    failed: bool,
}

impl Writer {
    fn new(edge: Arc<Shared>) -> Self {
        Self {
            edge,
            minute: this_minute(),
            busy: HashMap::new(),
            minutes: BTreeMap::new(),
            untold: Vec::new(),
            telling: None,
            pause: PAUSES.0,
            pause_until: Instant::now(),
            usage_at: Instant::now(),
            failed: false,
        }
    }

    async fn round(&mut self) {
        let now = this_minute();
        let over = now != self.minute;
        self.count(over);
        self.minute = now;
        if Instant::now() < self.pause_until {
            return;
        }
        self.write().await;
        self.look_at_usage().await;
    }

    /// Takes over what was counted; `over`: the minute is.
    fn count(&mut self, over: bool) {
        let mut changed = HashSet::new();
        for tunnel in self.edge.journal.take_dirty() {
            // Before the counts are read: what comes later makes it dirty anew.
            tunnel.counts.dirty.store(false, Ordering::Relaxed);
            changed.insert(tunnel.id);
            let same = self.busy.entry(tunnel.id).or_default();
            if !same.iter().any(|known| Arc::ptr_eq(known, &tunnel)) {
                same.push(Arc::clone(&tunnel));
            }
            self.untold.push(tunnel);
        }
        for id in changed {
            let mut traffic = Traffic::default();
            for tunnel in &self.busy[&id] {
                traffic.add(&tunnel.counts.this_minute());
            }
            self.minutes.insert((self.minute, id.into()), traffic);
        }
        if over {
            for (id, same) in self.busy.drain() {
                let mut traffic = Traffic::default();
                for tunnel in &same {
                    traffic.add(&tunnel.counts.end_minute());
                }
                self.minutes.insert((self.minute, id.into()), traffic);
            }
        }
        self.tell_state();
        while self.minutes.len() > MAX_MINUTES {
            self.minutes.pop_first();
            self.edge.metrics.minutes_lost.inc();
        }
    }

    /// Adds to the totals that all edges share, beside everything else; what fails, or is still under
    /// way, is made up for by a later round.
    fn tell_state(&mut self) {
        let busy = self.telling.as_ref().is_some_and(|telling| !telling.is_finished());
        if busy || self.untold.is_empty() {
            return;
        }
        let (edge, untold) = (Arc::clone(&self.edge), std::mem::take(&mut self.untold));
        self.telling = Some(tokio::spawn(async move {
            for tunnel in untold {
                let more = tunnel.counts.take_untold();
                if more == Totals::default() {
                    continue;
                }
                if let Err(error) = edge.state.add_totals(tunnel.id.into(), more).await {
                    tunnel.counts.give_untold(more);
                    edge.journal.touch(&tunnel);
                    debug!(%error, "running totals are behind");
                }
            }
        }));
    }

    /// Writes what there is; whether all of it was.
    async fn write(&mut self) -> bool {
        let store = &self.edge.store;
        let result = async {
            write_minutes(store, &self.edge.id, &mut self.minutes).await?;
            write_rows(&self.edge).await
        };
        match result.await {
            Ok(()) => {
                if std::mem::take(&mut self.failed) {
                    tracing::info!("the store takes requests down again");
                }
                self.pause = PAUSES.0;
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    warn!(%error, "requests can't be taken down in the store; they wait");
                }
                self.pause_until = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(PAUSES.1);
                false
            }
        }
    }

    async fn look_at_usage(&mut self) {
        if Instant::now() < self.usage_at {
            return;
        }
        self.usage_at = Instant::now() + USAGE;
        for account in self.edge.accounts.all() {
            if account.allowance().transfer_bytes_per_month.is_none() {
                continue;
            }
            match used_this_month(&self.edge.store, account.user).await {
                Ok(used) => account.set_transferred(used),
                Err(error) => return debug!(%error, "the use of the month is not known"),
            }
        }
    }
}

/// Bytes, both ways together.
pub(crate) async fn used_this_month(store: &Store, user: Uuid) -> Result<u64, StoreError> {
    let now = time::OffsetDateTime::now_utc();
    let begin = now.replace_day(1).map_or(now, |first| first.replace_time(time::Time::MIDNIGHT));
    let begin = Timestamp(begin.unix_timestamp() * 1_000_000);
    let last = store.usage(user, 1).await?.into_iter().next();
    let this = last.filter(|usage| usage.month == begin);
    Ok(this.map_or(0, |usage| usage.bytes_in.saturating_add(usage.bytes_out)))
}

fn this_minute() -> i64 {
    let now = Timestamp::now().0;
    now - now.rem_euclid(MINUTE)
}

async fn write_minutes(
    store: &Store,
    server: &str,
    minutes: &mut BTreeMap<(i64, Uuid), Traffic>,
) -> Result<(), StoreError> {
    while !minutes.is_empty() {
        let batch: Vec<Minute> = minutes
            .iter()
            .take(MINUTES)
            .map(|((minute, tunnel), traffic)| Minute {
                tunnel: *tunnel,
                minute: Timestamp(*minute),
                server_id: server.to_owned(),
                requests: traffic.requests,
                errors: traffic.errors,
                bytes_in: traffic.bytes_in,
                bytes_out: traffic.bytes_out,
                latencies: traffic.took.encode(),
            })
            .collect();
        store.write_minutes(&batch).await?;
        for row in batch {
            minutes.remove(&(row.minute.0, row.tunnel));
        }
    }
    Ok(())
}

async fn write_rows(edge: &Shared) -> Result<(), StoreError> {
    let journal = &edge.journal;
    let mut rows = journal.take_rows();
    let mut done = 0;
    for batch in rows.chunks(ROWS) {
        let batch: Vec<RequestRow> = batch.iter().map(request_row).collect();
        if let Err(error) = edge.store.insert_requests(&batch).await {
            journal.give_back(rows.split_off(done));
            return Err(error);
        }
        done += batch.len();
        journal.written.fetch_add(batch.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn request_row(row: &Row) -> RequestRow {
    RequestRow {
        id: Uuid::from_bytes(*row.id.as_bytes()),
        tunnel_id: row.tunnel.into(),
        request_id: row.id.to_string(),
        method: row.method.as_ref().to_owned(),
        path: row.path.as_ref().to_owned(),
        status_code: row.status,
        latency_ms: Some(u32::try_from(row.took.as_millis()).unwrap_or(u32::MAX)),
        request_size: Some(row.bytes_in),
        response_size: Some(row.bytes_out),
        created_at: row.at,
        visitor: row.visitor.as_ref().to_owned(),
        error_code: row.error.into(),
    }
}
