//! Long bodies: each stream has a connection of its own and moves a body once, or again and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use http_body_util::BodyExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::TargetArgs;
use crate::body::Repeat;
use crate::client::{Connection, Target};
use crate::output;
use crate::report::BulkReport;

#[derive(clap::Args)]
pub(crate) struct BulkArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[arg(long, default_value_t = 1)]
    streams: u32,
    /// Length of each body
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// Start bodies again until this long has passed; SIGTERM ends sooner, and is answered with a report too
    #[arg(long)]
    seconds: Option<f64>,
    /// Leave the first seconds out of the figure, and report them apart
    #[arg(long, default_value_t = 0.0)]
    settle: f64,
}

#[derive(clap::Args)]
pub(crate) struct DownloadArgs {
    #[command(flatten)]
    bulk: BulkArgs,
    /// Read each stream no faster than this many million bytes a second
    #[arg(long)]
    pace: Option<f64>,
}

pub(super) async fn download(args: DownloadArgs) -> anyhow::Result<BulkReport> {
    run(args.bulk, Way::Down { pace: args.pace }).await
}

pub(super) async fn upload(args: BulkArgs) -> anyhow::Result<BulkReport> {
    run(args, Way::Up).await
}

#[derive(Clone, Copy)]
enum Way {
    Down { pace: Option<f64> },
    Up,
}

struct Plan {
    target: Target,
    way: Way,
    len: u64,
    again: bool,
    bytes: AtomicU64,
    /// One permit for each stream that has moved its first bytes.
    started: Semaphore,
}

async fn run(args: BulkArgs, way: Way) -> anyhow::Result<BulkReport> {
    let mut terminate = signal(SignalKind::terminate())?;
    let limit = args.seconds.map(Duration::try_from_secs_f64).transpose()?;
    let plan = Arc::new(Plan {
        target: args.target.target()?,
        way,
        len: args.bytes,
        again: limit.is_some(),
        bytes: AtomicU64::new(0),
        started: Semaphore::new(0),
    });

    let settle = Duration::try_from_secs_f64(args.settle)?;
    let start = Instant::now();
    let mut settled = None;
    let mut streams = JoinSet::new();
    for _ in 0..args.streams {
        streams.spawn(Stream::run(Arc::clone(&plan)));
    }
    let mut errors = 0;
    let mut first_error = None;
    let mut announced = false;
    loop {
        tokio::select! {
            ended = streams.join_next() => match ended {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => {
                    errors += 1;
                    first_error.get_or_insert(format!("{error:#}"));
                }
                Some(Err(panic)) => return Err(panic).context("stream"),
                None => break,
            },
            _ = plan.started.acquire_many(args.streams), if !announced => {
                announced = true;
                output::line(r#"{"event":"started"}"#);
            }
            () = sleep_until(start + settle), if settled.is_none() && !settle.is_zero() => {
                settled = Some((start.elapsed(), plan.bytes.load(Ordering::Relaxed)));
            }
            () = sleep_until(start + limit.unwrap_or_default()), if limit.is_some() => break,
            _ = terminate.recv() => break,
        }
    }
    let rate = |bytes: u64, time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
    let bytes = plan.bytes.load(Ordering::Relaxed);
    let taken = start.elapsed();
    let (before, bytes_before) = settled.unwrap_or_default();
    Ok(BulkReport {
        bytes,
        seconds: taken.as_secs_f64(),
        mb_per_s: rate(bytes - bytes_before, taken - before),
        settling_mb_per_s: settled.map(|(time, bytes)| rate(bytes, time)),
        errors,
        first_error,
    })
}

struct Stream {
    plan: Arc<Plan>,
    connection: Connection,
    started: bool,
}

impl Stream {
    async fn run(plan: Arc<Plan>) -> anyhow::Result<()> {
        let connection = Connection::open(&plan.target).await?;
        let mut stream = Self { plan, connection, started: false };
        loop {
            match stream.plan.way {
                Way::Down { pace } => stream.download(pace).await?,
                Way::Up => stream.upload().await?,
            }
            if !stream.plan.again {
                return Ok(());
            }
            if !stream.connection.is_usable().await {
                stream.connection = Connection::open(&stream.plan.target).await?;
            }
        }
    }

    async fn download(&mut self, pace: Option<f64>) -> anyhow::Result<()> {
        let path = format!("/bytes/{}", self.plan.len);
        let mut body = self.connection.send(Method::GET, &path, Repeat::empty()).await?;
        let start = Instant::now();
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            let len = frame?.data_ref().map_or(0, |data| data.len() as u64);
            self.moved(len);
            read += len;
            if let Some(megabytes) = pace {
                let due = Duration::try_from_secs_f64(read as f64 / (megabytes * 1e6))?;
                sleep(due.saturating_sub(start.elapsed())).await;
            }
        }
        ensure!(read == self.plan.len, "{path} ended after {read} bytes");
        Ok(())
    }

    async fn upload(&mut self) -> anyhow::Result<()> {
        let len = self.plan.len;
        let body = self.connection.send(Method::POST, "/upload", Repeat::bytes(len)).await?;
        let answer = body.collect().await?.to_bytes();
        let said = std::str::from_utf8(&answer).ok().and_then(|text| text.trim().parse().ok());
        ensure!(said == Some(len), "the server read {said:?} of {len} bytes");
        self.moved(len);
        Ok(())
    }

    fn moved(&mut self, len: u64) {
        self.plan.bytes.fetch_add(len, Ordering::Relaxed);
        if !std::mem::replace(&mut self.started, true) {
            self.plan.started.add_permits(1);
        }
    }
}
