//! Over a link with a round trip, a rate and losses: the tunnel against a plain TCP connection for each visitor's.
//!
//! Visitors and edge are in one network namespace, agent and local server in another, and the link is between them.
//! Everything is started anew for each system and loss, so that no connection remembers an earlier one.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Target;
use crate::net::{self, ADDRESS_A, ADDRESS_B, Link};
use crate::scenario::{self, Runner, Scenario};
use crate::system::System;
use crate::table::{Column, Results};
use crate::tunnel::{self, Agent, Edge};
use crate::{origin, output, procfs};

const EDGE: &str = "0.0.0.0:8080";
const PLAIN: &str = "plain TCP";
const START: &str = "agent's start";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    tunnel: tunnel::Args,
    /// Rounds, each of which measures every system at every loss; figures are medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Packets lost, in percent
    #[arg(long, value_delimiter = ',', default_value = "0,0.1,1")]
    loss: Vec<f64>,
    /// Only these systems; default: plain and what the agent knows of ws, quic and auto
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// One way, in milliseconds
    #[arg(long, default_value_t = 20.0)]
    delay_ms: f64,
    /// Each way, in millions of bits a second
    #[arg(long, default_value_t = 400.0)]
    mbit: f64,
    /// TCP congestion control at both ends
    #[arg(long, default_value = "cubic")]
    congestion: String,
    /// A quarter of the time for each figure
    #[arg(long)]
    quick: bool,
    /// Also write the tables as Markdown
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Also write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One way to reach the local server.
struct Contender {
    /// As `--systems` says it.
    key: &'static str,
    name: &'static str,
    /// The agent's arguments; None leaves the tunnel out.
    agent_args: Option<&'static [&'static str]>,
    work: Measured,
}

enum Measured {
    Everything,
    /// How long the agent takes to be ready, with UDP open and blocked.
    Start,
}

const CONTENDERS: [Contender; 4] = [
    Contender { key: "plain", name: PLAIN, agent_args: None, work: Measured::Everything },
    Contender {
        key: "ws",
        name: "uniroute ws",
        agent_args: Some(&["--transport", "ws"]),
        work: Measured::Everything,
    },
    Contender {
        key: "quic",
        name: "uniroute quic",
        agent_args: Some(&["--transport", "quic"]),
        work: Measured::Everything,
    },
    Contender {
        key: "auto",
        name: "uniroute auto",
        agent_args: Some(&["--transport", "auto"]),
        work: Measured::Start,
    },
];
/// Instead of the last three if the agent has no `--transport`.
const OLD: Contender = Contender {
    key: "uniroute",
    name: "uniroute",
    agent_args: Some(&[]),
    work: Measured::Everything,
};

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
    let contenders = contenders(args).await?;
    let mut bench = Bench {
        args,
        program: std::env::current_exe()?,
        dir: temporary.path().to_owned(),
        scenarios: scenario::over_a_link(if args.quick { 4.0 } else { 1.0 }),
        results: Results::default(),
        errors: Vec::new(),
    };
    for round in 0..args.rounds {
        for (index, loss) in args.loss.iter().enumerate() {
            // The same packets are lost for every system of a round, and others in the next.
            let seed = u64::from(round) * 1000 + index as u64;
            for turn in 0..contenders.len() {
                let contender = &contenders[(turn + round as usize) % contenders.len()];
                let what = format!("round {}, {loss} % loss: {}", round + 1, contender.name);
                output::progress(&what);
                match contender.work {
                    Measured::Everything => bench.everything(contender, *loss, seed).await,
                    Measured::Start if index == 0 => bench.start_only(contender, seed).await,
                    Measured::Start => Ok(()),
                }
                .context(what)?;
            }
        }
    }
    bench.report(&contenders)
}

async fn contenders(args: &Args) -> anyhow::Result<Vec<Contender>> {
    let mut all = Vec::from(CONTENDERS);
    if !Agent::help(&args.tunnel).await?.contains("--transport") {
        output::progress("the agent has no --transport: measured as it is");
        all.truncate(1);
        all.push(OLD);
    }
    let wanted = |contender: &Contender| {
        args.systems.is_empty() || args.systems.iter().any(|key| key == contender.key)
    };
    all.retain(wanted);
    anyhow::ensure!(!all.is_empty(), "--systems names none of the systems there are");
    Ok(all)
}

struct Bench<'a> {
    args: &'a Args,
    program: PathBuf,
    dir: PathBuf,
    scenarios: Vec<Scenario>,
    results: Results,
    errors: Vec<String>,
}

impl Bench<'_> {
    async fn everything(
        &mut self,
        contender: &Contender,
        loss: f64,
        seed: u64,
    ) -> anyhow::Result<()> {
        let dir = tempfile::tempdir_in(&self.dir)?;
        let link = self.link(dir.path(), loss, seed, false).await?;
        let measured = self.measure(contender, loss, &link, dir.path()).await;
        link.process.stop().await?;
        measured
    }

    async fn measure(
        &mut self,
        contender: &Contender,
        loss: f64,
        link: &Link,
        dir: &Path,
    ) -> anyhow::Result<()> {
        let origin = net::command(Some(&link.namespace_b), &self.program);
        let (_origin, address) = origin::start(origin, &format!("{ADDRESS_B}:0"), dir).await?;
        let mut system = match contender.agent_args {
            None => {
                let target =
                    Target { address: address.to_string(), host: "bench.localhost".to_owned() };
                System::new(contender.name, None, target, Vec::new())
            }
            Some(agent_args) => {
                let (edge, agent) = self.tunnel(agent_args, link, dir, address).await?;
                let ms = agent.ready_after.as_secs_f64() * 1e3;
                let scenario = format!("{loss} % loss: {START}");
                self.results.record(&scenario, "ms until ready", contender.name, ms);
                tunnel::system(contender.name, PLAIN, edge, agent)?
            }
        };
        system.namespace = Some(link.namespace_a.clone());
        let mut runner = Runner::new(self.program.clone(), dir);
        for scenario in &self.scenarios {
            output::progress(format_args!("  {}", scenario.name));
            for sample in runner.measure(&mut system, scenario).await? {
                let scenario = format!("{loss} % loss: {}", scenario.name);
                self.results.record(&scenario, &sample.metric, contender.name, sample.value);
            }
        }
        self.errors.extend(runner.errors.iter().map(|error| format!("{loss} % loss: {error}")));
        Ok(())
    }

    async fn start_only(&mut self, contender: &Contender, seed: u64) -> anyhow::Result<()> {
        let agent_args = contender.agent_args.unwrap_or_default();
        for (no_udp, metric) in [(false, "ms until ready"), (true, "ms until ready, UDP blocked")] {
            let dir = tempfile::tempdir_in(&self.dir)?;
            let dir = dir.path();
            let link = self.link(dir, 0.0, seed, no_udp).await?;
            let origin = ([127, 0, 0, 1], 9).into();
            let tunnel = self.tunnel(agent_args, &link, dir, origin).await;
            link.process.stop().await?;
            let ms = tunnel?.1.ready_after.as_secs_f64() * 1e3;
            self.results.record(&format!("0 % loss: {START}"), metric, contender.name, ms);
        }
        Ok(())
    }

    async fn link(&self, dir: &Path, loss: f64, seed: u64, no_udp: bool) -> anyhow::Result<Link> {
        let Args { delay_ms, mbit, congestion, .. } = self.args;
        let mut args = vec![
            format!("--delay-ms={delay_ms}"),
            format!("--mbit={mbit}"),
            format!("--congestion={congestion}"),
            format!("--loss={loss}"),
            format!("--seed={seed}"),
        ];
        args.extend(no_udp.then(|| "--no-udp".to_owned()));
        Link::start(&self.program, dir, &args).await
    }

    async fn tunnel(
        &self,
        agent_args: &[&str],
        link: &Link,
        dir: &Path,
        origin: std::net::SocketAddr,
    ) -> anyhow::Result<(Edge, Agent)> {
        let args = &self.args.tunnel;
        let edge = Edge::start(args, Some(&link.namespace_a), EDGE, dir).await?;
        let home = Some(link.namespace_b.as_str());
        let server = format!("http://{ADDRESS_A}:{}", edge.address.port());
        let agent = Agent::start(args, &edge, home, &server, agent_args, dir, origin).await?;
        Ok((edge, agent))
    }

    fn report(&self, contenders: &[Contender]) -> anyhow::Result<()> {
        let Args { delay_ms, mbit, congestion, rounds, .. } = self.args;
        let column = |contender: &Contender| Column {
            system: contender.name,
            base: contender.agent_args.map(|_| PLAIN),
        };
        let columns: Vec<Column> = contenders.iter().map(column).collect();
        let link = format!("{} ms round trip, {mbit} Mbit/s, {congestion}", delay_ms * 2.0);
        let head = [
            procfs::machine(),
            link.clone(),
            format!("{rounds} round(s), medians, MB are millions of bytes"),
        ];
        output::line(head.join("\n"));
        output::line(self.results.to_text(&columns));
        if let Some(path) = &self.args.markdown {
            let head: String = head.iter().map(|line| format!("- {line}\n")).collect();
            output::file(path, head + &self.results.to_markdown(&columns))?;
        }
        if let Some(path) = &self.args.json {
            let report = json!({
                "machine": procfs::machine(),
                "link": link,
                "rounds": rounds,
                "quick": self.args.quick,
                "figures": self.results.to_json(&columns)?,
                "errors": self.errors,
            });
            output::file(path, serde_json::to_string_pretty(&report)?)?;
        }
        if !self.errors.is_empty() {
            bail!("some requests failed:\n  {}", self.errors.join("\n  "));
        }
        Ok(())
    }
}
