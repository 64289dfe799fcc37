//! The measured work: what each scenario does to a system, and the figures that come out of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio::time::sleep;

use crate::net::command;
use crate::process::{Child, Output};
use crate::report::{BulkReport, RequestsReport};
use crate::system::System;

/// What a download may take to find the rate of a link that is long or loses packets.
const SETTLE: f64 = 3.0;
/// Connections of small requests: enough that every process has several requests at hand.
const CONNECTIONS: u32 = 64;
/// Connections of small requests beside downloads, as a few visitors beside them.
const CONNECTIONS_BESIDE: u32 = 8;
const DOWNLOADS_BESIDE: u32 = 4;
const ECHO_CONNECTIONS: u32 = 16;
/// The length of a download that is cut when its neighbours have been measured.
const ENDLESS: u64 = 1 << 50;
const STARTED: Duration = Duration::from_secs(20);
/// What a load may take beyond its own time; a bulk load has no time, only bytes.
const SPARE: Duration = Duration::from_secs(120);

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    work: Work,
}

/// What a system may be unable to do, or not worth measuring with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Requests,
    NewConnections,
    Echo,
    Bulk,
    Beside,
}

#[derive(Clone, Copy)]
enum Work {
    /// Small requests on kept connections.
    Requests {
        connections: u32,
        seconds: f64,
    },
    /// Small requests, each on a connection of its own.
    NewConnections {
        at_once: u32,
        seconds: f64,
    },
    /// Small WebSocket messages back and forth.
    Echo {
        seconds: f64,
    },
    Bulk {
        way: &'static str,
        streams: u32,
        bytes: u64,
    },
    /// One download for a time, its start apart.
    Steady {
        seconds: f64,
    },
    /// `settle`: how long the downloads have the way to themselves.
    Beside {
        seconds: f64,
        settle: f64,
        pace: Option<u32>,
    },
}

impl Scenario {
    pub(crate) fn kind(&self) -> Kind {
        match self.work {
            Work::Requests { .. } => Kind::Requests,
            Work::NewConnections { .. } => Kind::NewConnections,
            Work::Echo { .. } => Kind::Echo,
            Work::Bulk { .. } | Work::Steady { .. } => Kind::Bulk,
            Work::Beside { .. } => Kind::Beside,
        }
    }
}

/// How long and how much.
pub(crate) struct Size {
    pub(crate) seconds: f64,
    pub(crate) bulk_bytes: u64,
}

pub(crate) fn all(size: &Size) -> Vec<Scenario> {
    let seconds = size.seconds;
    let scenario = |name, work| Scenario { name, work };
    let bulk = |name, way, streams| {
        let bytes = size.bulk_bytes / u64::from(streams);
        scenario(name, Work::Bulk { way, streams, bytes })
    };
    let beside = |name, pace| scenario(name, Work::Beside { seconds, settle: 0.0, pace });
    vec![
        scenario(
            "1 KiB requests, 64 connections",
            Work::Requests { connections: CONNECTIONS, seconds },
        ),
        scenario(
            "1 KiB requests, a new connection for each, 64 at once",
            Work::NewConnections { at_once: CONNECTIONS, seconds },
        ),
        scenario("WebSocket echo, 16 at once", Work::Echo { seconds }),
        bulk("download, 1 stream", "download", 1),
        bulk("download, 8 streams", "download", 8),
        bulk("upload, 1 stream", "upload", 1),
        bulk("upload, 8 streams", "upload", 8),
        beside("1 KiB requests beside 4 downloads, unbounded", None),
        beside("1 KiB requests beside 4 downloads, 60 MB/s each", Some(60)),
    ]
}

/// What is measured over a link. `short` divides all times.
pub(crate) fn over_a_link(short: f64) -> Vec<Scenario> {
    let scenario = |name, work| Scenario { name, work };
    let connections = CONNECTIONS_BESIDE;
    vec![
        scenario("one download", Work::Steady { seconds: 10.0 / short }),
        scenario("1 KiB requests", Work::Requests { connections, seconds: 8.0 / short }),
        scenario(
            "1 KiB requests, a new connection for each",
            Work::NewConnections { at_once: connections, seconds: 6.0 / short },
        ),
        scenario(
            "1 KiB requests beside 4 downloads",
            Work::Beside { seconds: 20.0 / short, settle: SETTLE, pace: None },
        ),
    ]
}

/// One figure of one run.
pub(crate) struct Sample {
    pub(crate) metric: String,
    pub(crate) value: f64,
}

fn sample(metric: impl Into<String>, value: f64) -> Sample {
    Sample { metric: metric.into(), value }
}

/// Runs loads as processes of their own, so that one load's work does not delay another's clock.
pub(crate) struct Runner {
    pub(crate) program: PathBuf,
    dir: PathBuf,
    /// Errors of all loads so far, with what they were.
    pub(crate) errors: Vec<String>,
}

impl Runner {
    pub(crate) fn new(program: PathBuf, dir: &Path) -> Self {
        Self { program, dir: dir.to_owned(), errors: Vec::new() }
    }

    /// Opens connections, grows buffers and pools, and faults pages in before anything counts.
    pub(crate) async fn warm_up(&mut self, system: &mut System) -> anyhow::Result<()> {
        for work in [
            Work::Requests { connections: CONNECTIONS, seconds: 0.5 },
            Work::Bulk { way: "download", streams: 4, bytes: 16 << 20 },
            Work::Bulk { way: "upload", streams: 4, bytes: 16 << 20 },
        ] {
            self.measure(system, &Scenario { name: "warm-up", work }).await?;
        }
        Ok(())
    }

    pub(crate) async fn measure(
        &mut self,
        system: &mut System,
        scenario: &Scenario,
    ) -> anyhow::Result<Vec<Sample>> {
        let samples = self.run(system, scenario).await;
        // A process that died is the cause of whatever else went wrong.
        system.check()?;
        samples.with_context(|| format!("{}: {}", system.name, scenario.name))
    }

    async fn run(&mut self, system: &System, scenario: &Scenario) -> anyhow::Result<Vec<Sample>> {
        let before = system.cpu_time()?;
        let (mut samples, done) = match scenario.work {
            Work::Requests { connections, seconds } => {
                let command = self.small(system, "requests", connections, seconds);
                self.requests(system, scenario.name, command, "requests").await?
            }
            Work::NewConnections { at_once, seconds } => {
                let mut command = self.small(system, "requests", at_once, seconds);
                command.arg("--new-connections");
                self.requests(system, scenario.name, command, "requests").await?
            }
            Work::Echo { seconds } => {
                let command = self.small(system, "echo", ECHO_CONNECTIONS, seconds);
                self.requests(system, scenario.name, command, "round trips").await?
            }
            Work::Bulk { way, streams, bytes } => {
                let bytes = bytes / system.bulk_divisor;
                let mut command = self.load(way, system);
                command.args(["--streams", &streams.to_string(), "--bytes", &bytes.to_string()]);
                self.bulk(system, scenario.name, command).await?
            }
            Work::Steady { seconds } => {
                let mut command = self.load("download", system);
                command
                    .args(["--bytes", &ENDLESS.to_string(), "--settle", &SETTLE.to_string()])
                    .args(["--seconds", &(SETTLE + seconds).to_string()]);
                self.bulk(system, scenario.name, command).await?
            }
            Work::Beside { seconds, settle, pace } => {
                return self.beside(system, scenario.name, seconds, settle, pace).await;
            }
        };
        let after = system.cpu_time()?;
        let spent = |before: Duration, after: Duration| {
            after.saturating_sub(before).as_secs_f64() / done.count
        };
        if !system.middle.is_empty() {
            let value = spent(before.all, after.all);
            samples.push(sample(format!("CPU-s per {}", done.unit), value));
        }
        if system.terminator.is_some() {
            let value = spent(before.terminator, after.terminator);
            samples.push(sample("of that, the TLS terminator's", value));
        }
        Ok(samples)
    }

    async fn requests(
        &mut self,
        system: &System,
        scenario: &str,
        command: Command,
        what: &str,
    ) -> anyhow::Result<(Vec<Sample>, Done)> {
        let report = self.small_load(system, scenario, command).await?;
        let samples = vec![
            sample(format!("{what}/s"), report.rps),
            sample("p50 ms", report.p50_ms),
            sample("p99 ms", report.p99_ms),
            sample("p99.9 ms", report.p999_ms),
        ];
        let count = report.requests as f64 / 1e3;
        Ok((samples, Done { count, unit: format!("1,000 {what}") }))
    }

    async fn bulk(
        &mut self,
        system: &System,
        scenario: &str,
        command: Command,
    ) -> anyhow::Result<(Vec<Sample>, Done)> {
        let child = Child::start("load", &self.dir, command)?;
        let report: BulkReport = last_line(&child.finish(SPARE).await?)?;
        self.note(system, scenario, report.errors, report.first_error);
        let mut samples = vec![sample("MB/s", report.mb_per_s)];
        if let Some(start) = report.settling_mb_per_s {
            samples.push(sample(format!("MB/s in the first {SETTLE} s"), start));
        }
        let count = report.bytes as f64 / f64::from(1 << 30);
        Ok((samples, Done { count, unit: "GiB".to_owned() }))
    }

    async fn beside(
        &mut self,
        system: &System,
        scenario: &str,
        seconds: f64,
        settle: f64,
        pace: Option<u32>,
    ) -> anyhow::Result<Vec<Sample>> {
        let mut command = self.load("download", system);
        command
            .args(["--streams", &DOWNLOADS_BESIDE.to_string(), "--bytes", &ENDLESS.to_string()])
            .args(["--seconds", &SPARE.as_secs().to_string(), "--settle", &settle.to_string()]);
        if let Some(pace) = pace {
            command.args(["--pace", &pace.to_string()]);
        }
        let mut downloads = Child::start("downloads", &self.dir, command)?;
        downloads
            .wait_for_line(Output::Stdout, STARTED, |line| line.contains("started").then_some(()))
            .await?;
        sleep(Duration::try_from_secs_f64(settle)?).await;
        let command = self.small(system, "requests", CONNECTIONS_BESIDE, seconds);
        let small = self.small_load(system, scenario, command).await?;
        let bulk: BulkReport = last_line(&downloads.terminate().await?)?;
        self.note(system, scenario, bulk.errors, bulk.first_error);
        Ok(vec![
            sample("requests/s", small.rps),
            sample("p50 ms", small.p50_ms),
            sample("p99 ms", small.p99_ms),
            sample("MB/s beside", bulk.mb_per_s),
        ])
    }

    async fn small_load(
        &mut self,
        system: &System,
        scenario: &str,
        command: Command,
    ) -> anyhow::Result<RequestsReport> {
        let child = Child::start("requests", &self.dir, command)?;
        let report: RequestsReport = last_line(&child.finish(SPARE).await?)?;
        self.note(system, scenario, report.errors, report.first_error.clone());
        Ok(report)
    }

    fn small(&self, system: &System, kind: &str, connections: u32, seconds: f64) -> Command {
        let mut command = self.load(kind, system);
        command
            .args(["--connections", &connections.to_string()])
            .args(["--seconds", &seconds.to_string()]);
        command
    }

    fn load(&self, kind: &str, system: &System) -> Command {
        let mut command = command(system.namespace.as_deref(), &self.program);
        let url = format!("http://{}/1k", system.target.address);
        command.args(["load", kind, "--url", &url, "--host", &system.target.host]);
        command
    }

    fn note(&mut self, system: &System, scenario: &str, errors: u64, first: Option<String>) {
        if errors > 0 {
            let first = first.unwrap_or_default();
            self.errors.push(format!("{}: {scenario}: {errors} errors ({first})", system.name));
        }
    }
}

/// What the processes in the middle spent their time on.
struct Done {
    count: f64,
    unit: String,
}

fn last_line<T: DeserializeOwned>(output: &str) -> anyhow::Result<T> {
    let line = output.lines().last().context("a load printed no report")?;
    serde_json::from_str(line).with_context(|| format!("a load's report: {line}"))
}
