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
/// The length of a download that is cut when its neighbours have been measured.
const ENDLESS: u64 = 1 << 50;
const STARTED: Duration = Duration::from_secs(20);
/// What a load may take beyond its own time; a bulk load has no time, only bytes.
const SPARE: Duration = Duration::from_secs(120);

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    work: Work,
}

enum Work {
    Requests {
        connections: u32,
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

/// How long and how much.
pub(crate) struct Size {
    pub(crate) requests_seconds: f64,
    pub(crate) beside_seconds: f64,
    pub(crate) bulk_bytes: u64,
}

pub(crate) fn all(size: &Size) -> Vec<Scenario> {
    let bulk = |name, way, streams| {
        let bytes = size.bulk_bytes / u64::from(streams);
        Scenario { name, work: Work::Bulk { way, streams, bytes } }
    };
    let beside = |name, pace| {
        let work = Work::Beside { seconds: size.beside_seconds, settle: 0.0, pace };
        Scenario { name, work }
    };
    vec![
        Scenario {
            name: "1 KiB requests, 64 connections",
            work: Work::Requests { connections: CONNECTIONS, seconds: size.requests_seconds },
        },
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
            "1 KiB requests beside 4 downloads",
            Work::Beside { seconds: 20.0 / short, settle: SETTLE, pace: None },
        ),
    ]
}

/// One figure of one run.
pub(crate) struct Sample {
    pub(crate) metric: &'static str,
    pub(crate) value: f64,
}

/// Runs loads as processes of their own, so that one load's work does not delay another's clock.
pub(crate) struct Runner {
    program: PathBuf,
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
        match scenario.work {
            Work::Requests { connections, seconds } => {
                self.requests(system, scenario.name, connections, seconds).await
            }
            Work::Steady { seconds } => self.steady(system, scenario.name, seconds).await,
            Work::Bulk { way, streams, bytes } => {
                self.bulk(system, scenario.name, way, streams, bytes).await
            }
            Work::Beside { seconds, settle, pace } => {
                self.beside(system, scenario.name, seconds, settle, pace).await
            }
        }
    }

    async fn requests(
        &mut self,
        system: &System,
        scenario: &str,
        connections: u32,
        seconds: f64,
    ) -> anyhow::Result<Vec<Sample>> {
        let before = system.cpu_time()?;
        let report = self.small_load(system, scenario, connections, seconds).await?;
        let cpu = system.cpu_time()?.saturating_sub(before).as_secs_f64();
        let mut samples = vec![
            Sample { metric: "requests/s", value: report.rps },
            Sample { metric: "p50 ms", value: report.p50_ms },
            Sample { metric: "p99 ms", value: report.p99_ms },
            Sample { metric: "p99.9 ms", value: report.p999_ms },
        ];
        if !system.middle.is_empty() {
            let value = cpu * 1e3 / report.requests as f64;
            samples.push(Sample { metric: "CPU-s per 1,000 requests", value });
        }
        Ok(samples)
    }

    async fn bulk(
        &mut self,
        system: &System,
        scenario: &str,
        way: &str,
        streams: u32,
        bytes: u64,
    ) -> anyhow::Result<Vec<Sample>> {
        let mut command = self.load(way, system);
        command.args(["--streams", &streams.to_string(), "--bytes", &bytes.to_string()]);
        let before = system.cpu_time()?;
        let child = Child::start("load", &self.dir, command)?;
        let report: BulkReport = last_line(&child.finish(SPARE).await?)?;
        let cpu = system.cpu_time()?.saturating_sub(before).as_secs_f64();
        self.note(system, scenario, report.errors, report.first_error);
        let mut samples = vec![Sample { metric: "MB/s", value: report.mb_per_s }];
        samples.extend(cpu_per_gib(system, cpu, report.bytes));
        Ok(samples)
    }

    async fn steady(
        &mut self,
        system: &System,
        scenario: &str,
        seconds: f64,
    ) -> anyhow::Result<Vec<Sample>> {
        let mut command = self.load("download", system);
        command
            .args(["--bytes", &ENDLESS.to_string(), "--settle", &SETTLE.to_string()])
            .args(["--seconds", &(SETTLE + seconds).to_string()]);
        let before = system.cpu_time()?;
        let child = Child::start("load", &self.dir, command)?;
        let report: BulkReport = last_line(&child.finish(SPARE).await?)?;
        let cpu = system.cpu_time()?.saturating_sub(before).as_secs_f64();
        self.note(system, scenario, report.errors, report.first_error);
        let start = report.settling_mb_per_s.context("a download ended before it had settled")?;
        let mut samples = vec![
            Sample { metric: "MB/s", value: report.mb_per_s },
            Sample { metric: "MB/s in the first 3 s", value: start },
        ];
        samples.extend(cpu_per_gib(system, cpu, report.bytes));
        Ok(samples)
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
        let small = self.small_load(system, scenario, CONNECTIONS_BESIDE, seconds).await?;
        let bulk: BulkReport = last_line(&downloads.terminate().await?)?;
        self.note(system, scenario, bulk.errors, bulk.first_error);
        Ok(vec![
            Sample { metric: "requests/s", value: small.rps },
            Sample { metric: "p50 ms", value: small.p50_ms },
            Sample { metric: "p99 ms", value: small.p99_ms },
            Sample { metric: "MB/s beside", value: bulk.mb_per_s },
        ])
    }

    async fn small_load(
        &mut self,
        system: &System,
        scenario: &str,
        connections: u32,
        seconds: f64,
    ) -> anyhow::Result<RequestsReport> {
        let mut command = self.load("requests", system);
        command
            .args(["--connections", &connections.to_string()])
            .args(["--seconds", &seconds.to_string()]);
        let child = Child::start("requests", &self.dir, command)?;
        let bound = SPARE + Duration::try_from_secs_f64(seconds)?;
        let report: RequestsReport = last_line(&child.finish(bound).await?)?;
        self.note(system, scenario, report.errors, report.first_error.clone());
        Ok(report)
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

fn cpu_per_gib(system: &System, cpu: f64, bytes: u64) -> Option<Sample> {
    let gib = bytes as f64 / f64::from(1 << 30);
    (!system.middle.is_empty()).then_some(Sample { metric: "CPU-s per GiB", value: cpu / gib })
}

fn last_line<T: DeserializeOwned>(output: &str) -> anyhow::Result<T> {
    let line = output.lines().last().context("a load printed no report")?;
    serde_json::from_str(line).with_context(|| format!("a load's report: {line}"))
}
