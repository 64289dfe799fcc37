//! Everything in one go: start all parts, measure in interleaved rounds, compare, end all parts.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Target;
use crate::scenario::{self, Runner, Size};
use crate::system::System;
use crate::table::Results;
use crate::{nginx, origin, output, procfs, tunnel};

const RATIOS: [(&str, &str); 3] =
    [("nginx", "direct"), ("uniroute", "direct"), ("uniroute", "nginx")];

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    tunnel: tunnel::Args,
    /// Leave edge and agent out
    #[arg(long)]
    skip_tunnel: bool,
    /// How bodies pass through the nginx chain
    #[arg(long, value_enum, default_value_t = nginx::Setup::Streaming)]
    nginx: nginx::Setup,
    /// Rounds, each of which measures every scenario on every system; figures are medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// One short round, to see that everything works rather than how fast
    #[arg(long)]
    quick: bool,
    /// Also write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Args {
    fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    fn size(&self) -> Size {
        if self.quick {
            Size { requests_seconds: 1.0, beside_seconds: 1.0, bulk_bytes: 256 << 20 }
        } else {
            Size { requests_seconds: 5.0, beside_seconds: 4.0, bulk_bytes: 2 << 30 }
        }
    }
}

/// Fails when a part cannot be started, ends early, or any load saw an error.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    // On a signal the future is dropped, and with it every child process and the temporary folder.
    tokio::select! {
        done = compare(&args) => done,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

async fn compare(args: &Args) -> anyhow::Result<()> {
    let temporary = tempfile::Builder::new().prefix("uniroute-bench-").tempdir()?;
    let dir = temporary.path();
    let program = std::env::current_exe()?;
    let (origin, address) = origin::start(Command::new(&program), "127.0.0.1:0", dir).await?;

    let mut systems = vec![System {
        name: "direct",
        target: Target { address: address.to_string(), host: "bench.localhost".to_owned() },
        namespace: None,
        middle: Vec::new(),
    }];
    let nginx_note = match nginx::find() {
        Some(nginx) => {
            systems.push(nginx::start(&nginx, args.nginx, dir, address).await?);
            format!("{}: {}", nginx::version(&nginx).await?, args.nginx.describe())
        }
        None => "nginx chain: skipped, as nginx is not installed".to_owned(),
    };
    if !args.skip_tunnel {
        let setup = tunnel::Setup::here();
        let mut system = tunnel::start(&args.tunnel, "uniroute", setup, dir, address).await?.system;
        system.wait_until_answering().await?;
        systems.push(system);
    }

    let mut runner = Runner::new(program, dir);
    let results = measure(args, &mut runner, &mut systems).await?;

    let names: Vec<&str> = systems.iter().map(|system| system.name).collect();
    let head = format!("{}\n{nginx_note}", procfs::machine());
    output::line(format_args!(
        "{head}\n{} round(s), medians, MB are millions of bytes",
        args.rounds()
    ));
    output::line(results.to_table(&names, &RATIOS));
    if let Some(path) = &args.json {
        let report = json!({
            "machine": procfs::machine(),
            "rounds": args.rounds(),
            "quick": args.quick,
            "nginx": nginx_note,
            "systems": names,
            "figures": results.to_json(&["direct", "nginx"])?,
            "errors": runner.errors,
        });
        fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }

    for child in systems.into_iter().flat_map(|system| system.middle.into_iter().rev()) {
        child.stop().await?;
    }
    origin.stop().await?;
    if !runner.errors.is_empty() {
        bail!("some requests failed:\n  {}", runner.errors.join("\n  "));
    }
    Ok(())
}

async fn measure(
    args: &Args,
    runner: &mut Runner,
    systems: &mut [System],
) -> anyhow::Result<Results> {
    let mut results = Results::default();
    for system in &mut *systems {
        runner.warm_up(system).await?;
        record_memory(&mut results, system, "memory after warm-up", |memory| memory.now)?;
    }
    let scenarios = scenario::all(&args.size());
    for round in 0..args.rounds() {
        for scenario in &scenarios {
            output::progress(format_args!("round {}: {}", round + 1, scenario.name));
            // Whoever goes first changes, so that a drift of the machine does not favour one of them.
            for turn in 0..systems.len() {
                let index = (turn + round as usize) % systems.len();
                let system = &mut systems[index];
                for sample in runner.measure(system, scenario).await? {
                    results.record(scenario.name, sample.metric, system.name, sample.value);
                }
            }
        }
    }
    for system in systems {
        record_memory(&mut results, system, "memory, peak", |memory| memory.peak)?;
        record_memory(&mut results, system, "memory at the end", |memory| memory.now)?;
    }
    Ok(results)
}

/// Each process of the middle by its name, and their sum.
fn record_memory(
    results: &mut Results,
    system: &System,
    scenario: &str,
    figure: impl Fn(procfs::Memory) -> u64,
) -> anyhow::Result<()> {
    let mut sum = 0.0;
    for process in system.memory()? {
        let mib = figure(process.memory) as f64 / 1024.0;
        sum += mib;
        results.record(scenario, &format!("{} MiB", process.process), system.name, mib);
    }
    if sum > 0.0 {
        results.record(scenario, "all MiB", system.name, sum);
    }
    Ok(())
}
