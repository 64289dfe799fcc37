//! Everything in one go: start all parts, measure in interleaved rounds, compare, end all parts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::json;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Target;
use crate::procfs::Memory;
use crate::scenario::{self, Kind, Runner, Size};
use crate::system::System;
use crate::table::{Column, Results};
use crate::tls::Certificate;
use crate::{crowd, nginx, origin, output, peers, procfs, tunnel};

const TLS: &str = "TLS: version 1.3 between the two hops; an nginx ends it in front of uniroute's edge, whose work is \
                   counted and also shown apart";
const NO_TLS: &str = "TLS: skipped, as nginx with its stream module is not installed";

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
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// One short round, to see that everything works rather than how fast
    #[arg(long)]
    quick: bool,
    /// Only the scenarios with this text in their name
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only these systems, as in --systems=nginx,uniroute
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Measure other tunnels too, as `scripts/install-bench-peers.sh DIR` has installed them
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Also write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Also write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Args {
    fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    fn agents(&self) -> u64 {
        if self.quick { 1_000 } else { 10_000 }
    }

    fn is_wanted(&self, scenario: &str) -> bool {
        self.only.as_ref().is_none_or(|only| scenario.contains(only))
    }

    fn size(&self) -> Size {
        if self.quick {
            Size { seconds: 1.0, bulk_bytes: 256 << 20 }
        } else {
            Size { seconds: 5.0, bulk_bytes: 2 << 30 }
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
    let (origin, address) = origin::start(Command::new(&program), tunnel::LOOPBACK, dir).await?;
    let mut notes = Vec::new();
    let mut systems = start_systems(args, dir, address, &mut notes).await?;

    let mut runner = Runner::new(program, dir);
    let mut results = measure(args, &mut runner, &mut systems).await?;
    if systems.iter().any(|system| system.name == tunnel::NAME) && args.is_wanted("idle agents") {
        output::progress("idle agents");
        crowd::measure(&args.tunnel, &runner.program, dir, args.agents(), &mut results).await?;
    }

    let columns: Vec<Column> = systems.iter().map(System::column).collect();
    let mut head = vec![procfs::machine()];
    head.extend(notes.iter().cloned());
    head.push(format!("{} round(s), medians, MB are millions of bytes", args.rounds()));
    output::line(head.join("\n"));
    output::line(results.to_text(&columns));
    if let Some(path) = &args.markdown {
        let head: String = head.iter().map(|line| format!("- {line}\n")).collect();
        output::file(path, head + &results.to_markdown(&columns))?;
    }
    if let Some(path) = &args.json {
        let report = json!({
            "machine": procfs::machine(),
            "rounds": args.rounds(),
            "quick": args.quick,
            "notes": notes,
            "figures": results.to_json(&columns)?,
            "errors": runner.errors,
        });
        output::file(path, serde_json::to_string_pretty(&report)?)?;
    }

    for system in systems {
        system.stop().await?;
    }
    origin.stop().await?;
    if !runner.errors.is_empty() {
        bail!("some requests failed:\n  {}", runner.errors.join("\n  "));
    }
    Ok(())
}

/// All systems that are there and asked for. `notes`: what a reader of the figures has to know of them.
async fn start_systems(
    args: &Args,
    dir: &Path,
    origin: SocketAddr,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<System>> {
    let wanted = |name: &str| args.systems.is_empty() || args.systems.iter().any(|of| of == name);
    let mut systems = Vec::new();
    let target = Target { address: origin.to_string(), host: "bench.localhost".to_owned() };
    systems.push(System::new("direct", None, target, Vec::new()));

    let nginx = nginx::find();
    match &nginx {
        Some(nginx) => {
            let about = args.nginx.describe();
            notes.push(format!("{}: {about}", nginx::version(nginx).await?));
            systems.push(nginx::start(nginx, args.nginx, dir, origin, None).await?);
        }
        None => notes.push("nginx chain: skipped, as nginx is not installed".to_owned()),
    }
    if !args.skip_tunnel {
        systems.push(tunnel::start(&args.tunnel, dir, origin).await?);
    }
    match &nginx {
        Some(nginx) if nginx::can_terminate() => {
            notes.push(TLS.to_owned());
            let certificate = Certificate::make(dir)?;
            let tls = Some(&certificate);
            let mut both = vec![nginx::start(nginx, args.nginx, dir, origin, tls).await?];
            if !args.skip_tunnel {
                let tunnel = &args.tunnel;
                both.push(tunnel::start_tls(tunnel, dir, origin, nginx, &certificate).await?);
            }
            for system in &mut both {
                system.skips = &[Kind::NewConnections, Kind::Echo, Kind::Beside];
            }
            systems.extend(both);
        }
        _ => notes.push(NO_TLS.to_owned()),
    }
    if let Some(peers) = &args.peers {
        systems.extend(peers::start(peers, dir, origin, wanted, notes).await?);
    }
    systems.retain(|system| wanted(system.name));
    Ok(systems)
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
    let mut scenarios = scenario::all(&args.size());
    scenarios.retain(|scenario| args.is_wanted(scenario.name));
    for round in 0..args.rounds() {
        for scenario in &scenarios {
            output::progress(format_args!("round {}: {}", round + 1, scenario.name));
            // Whoever goes first changes, so that a drift of the machine does not favour one of them.
            for turn in 0..systems.len() {
                let index = (turn + round as usize) % systems.len();
                let system = &mut systems[index];
                if system.skips.contains(&scenario.kind()) {
                    continue;
                }
                for sample in runner.measure(system, scenario).await? {
                    results.record(scenario.name, &sample.metric, system.name, sample.value);
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

/// Each side and their sum.
fn record_memory(
    results: &mut Results,
    system: &System,
    scenario: &str,
    figure: impl Fn(Memory) -> u64,
) -> anyhow::Result<()> {
    let mut sum = 0.0;
    for (side, memory) in ["visitors' side MiB", "home side MiB"].iter().zip(system.memory()?) {
        let mib = figure(memory) as f64 / 1024.0;
        sum += mib;
        results.record(scenario, side, system.name, mib);
    }
    if sum > 0.0 {
        results.record(scenario, "both MiB", system.name, sum);
    }
    Ok(())
}
