//! A closed loop: each connection sends its next request when the last one is answered.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::TargetArgs;
use crate::body::Repeat;
use crate::client::{Connection, Target};
use crate::histogram::Histogram;
use crate::report::RequestsReport;

/// A request under way when the time is up may still take this long; its latency counts, or stalls would not show.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Between two attempts while the server refuses connections.
const RETRY: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// A connection of its own for each request, which asks for its close
    #[arg(long)]
    new_connections: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<RequestsReport> {
    let path = args.target.url.path_and_query().map_or("/", |path| path.as_str());
    let plan = Arc::new(Plan {
        target: args.target.target()?,
        path: path.to_owned(),
        new_connections: args.new_connections,
        end: Instant::now() + Duration::try_from_secs_f64(args.seconds)?,
    });

    let mut workers = JoinSet::new();
    for _ in 0..args.connections {
        workers.spawn(worker(Arc::clone(&plan)));
    }
    let mut all = Tally::default();
    for tally in workers.join_all().await {
        all.merge(tally);
    }
    Ok(all.report(args.seconds))
}

struct Plan {
    target: Target,
    path: String,
    new_connections: bool,
    end: Instant,
}

/// What a worker has seen.
#[derive(Default)]
pub(super) struct Tally {
    latencies: Histogram,
    in_time: u64,
    errors: u64,
    reconnects: u64,
    first_error: Option<String>,
}

impl Tally {
    pub(super) fn merge(&mut self, other: Self) {
        self.latencies.merge(&other.latencies);
        self.in_time += other.in_time;
        self.errors += other.errors;
        self.reconnects += other.reconnects;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    pub(super) fn answered(&mut self, start: Instant, plan_end: Instant) {
        let end = Instant::now();
        self.latencies.record(end - start);
        self.in_time += u64::from(end <= plan_end);
    }

    pub(super) fn report(self, seconds: f64) -> RequestsReport {
        RequestsReport {
            requests: self.latencies.total(),
            seconds,
            rps: self.in_time as f64 / seconds,
            p50_ms: self.latencies.quantile_ms(0.5),
            p99_ms: self.latencies.quantile_ms(0.99),
            p999_ms: self.latencies.quantile_ms(0.999),
            max_ms: self.latencies.max_ms(),
            errors: self.errors,
            reconnects: self.reconnects,
            first_error: self.first_error,
        }
    }

    pub(super) fn error(&mut self, error: impl std::fmt::Display) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{error:#}"));
    }
}

async fn worker(plan: Arc<Plan>) -> Tally {
    let mut tally = Tally::default();
    if timeout_at(plan.end + GRACE, requests(&plan, &mut tally)).await.is_err() {
        tally.error("a request was not answered in time");
    }
    tally
}

async fn requests(plan: &Plan, tally: &mut Tally) {
    let closing = |connection: Connection| match plan.new_connections {
        true => connection.closing(),
        false => connection,
    };
    let mut connection = None;
    while Instant::now() < plan.end {
        let before = Instant::now();
        let open = match &mut connection {
            Some(open) => open,
            None => match Connection::open(&plan.target).await.map(closing) {
                Ok(opened) => connection.insert(opened),
                Err(error) => {
                    tally.error(error);
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            },
        };
        if !open.is_usable().await {
            tally.reconnects += 1;
            connection = None;
            continue;
        }
        let start = if plan.new_connections { before } else { Instant::now() };
        match open.exchange(Method::GET, &plan.path, Repeat::empty()).await {
            Ok(_) => {
                tally.answered(start, plan.end);
                if plan.new_connections {
                    connection = None;
                }
            }
            Err(error) => {
                tally.error(error);
                connection = None;
            }
        }
    }
}
