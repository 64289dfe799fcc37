//! Edge and agent, started by their command lines and known only by what they print.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use http::Uri;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::Instant;

use crate::client::Target;
use crate::net;
use crate::process::{Child, Output};
use crate::system::System;

const READY: Duration = Duration::from_secs(30);
const NAME: &str = "bench";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The edge; default: `uniroute-edge` beside this program
    #[arg(long)]
    edge_bin: Option<PathBuf>,
    /// The agent; default: `uniroute` beside this program
    #[arg(long)]
    agent_bin: Option<PathBuf>,
    /// A further argument for the edge, as in --edge-arg=--log-level=warn; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    edge_arg: Vec<String>,
    /// A further argument for the agent, as in --agent-arg=--inspector=off; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    agent_arg: Vec<String>,
}

/// Where edge and agent run, and how they find each other.
pub(crate) struct Setup {
    /// The network namespaces of edge and visitors, and of agent and local server; ours if None.
    pub(crate) edge_namespace: Option<String>,
    pub(crate) agent_namespace: Option<String>,
    pub(crate) listen: &'static str,
    /// The edge's address as the agent sees it; the one that the edge prints if None.
    pub(crate) server: Option<String>,
    pub(crate) agent_args: Vec<String>,
}

impl Setup {
    /// Both on loopback.
    pub(crate) fn here() -> Self {
        Self {
            edge_namespace: None,
            agent_namespace: None,
            listen: "127.0.0.1:0",
            server: None,
            agent_args: Vec::new(),
        }
    }
}

pub(crate) struct Tunnel {
    pub(crate) system: System,
    /// From the agent's start to its ready line.
    pub(crate) agent_ready: Duration,
}

/// What the agent says of its options.
pub(crate) async fn agent_help(args: &Args) -> anyhow::Result<String> {
    let agent_bin = binary(args.agent_bin.as_deref(), "uniroute")?;
    let output = Command::new(agent_bin).args(["http", "--help"]).output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) async fn start(
    args: &Args,
    name: &'static str,
    setup: Setup,
    dir: &Path,
    origin: SocketAddr,
) -> anyhow::Result<Tunnel> {
    let edge_bin = binary(args.edge_bin.as_deref(), "uniroute-edge")?;
    let agent_bin = binary(args.agent_bin.as_deref(), "uniroute")?;
    let token = token()?;
    let token_file = dir.join("token");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&token_file)?
        .write_all(token.as_bytes())?;

    let mut command = net::command(setup.edge_namespace.as_deref(), &edge_bin);
    command
        .args(["serve", "--http", setup.listen, "--admin", "127.0.0.1:0"])
        .args(["--domain", "localhost", "--log-format", "json", "--token-file"])
        .arg(&token_file)
        .args(&args.edge_arg);
    let mut edge = Child::start("edge", dir, command)?;
    let mut address = edge.wait_for_line(Output::Stderr, READY, listening).await?;
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let server = setup.server.unwrap_or_else(|| address.to_string());

    let mut command = net::command(setup.agent_namespace.as_deref(), &agent_bin);
    command
        .args(["http", &origin.to_string(), "--server", &format!("http://{server}")])
        .args(["--name", NAME, "--output", "json"])
        .args(&setup.agent_args)
        .args(&args.agent_arg)
        .env("UNIROUTE_TOKEN", &token);
    let started = Instant::now();
    let mut agent = Child::start("agent", dir, command)?;
    let url = agent.wait_for_line(Output::Stdout, READY, ready).await?;
    let agent_ready = started.elapsed();

    // The name in the public URL need not resolve here: the edge's address is known, the name goes into `Host`.
    let named: Uri = url.parse().with_context(|| format!("public URL {url:?}"))?;
    let target = Target { address: address.to_string(), host: Target::new(&named, None)?.host };
    let system =
        System { name, target, namespace: setup.edge_namespace, middle: vec![edge, agent] };
    Ok(Tunnel { system, agent_ready })
}

fn binary(given: Option<&Path>, name: &str) -> anyhow::Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()?.with_file_name(name),
    };
    ensure!(path.exists(), "{} is missing: build it, or use --skip-tunnel", path.display());
    Ok(path.canonicalize()?)
}

fn token() -> anyhow::Result<String> {
    let mut random = [0; 24];
    getrandom::fill(&mut random).context("random bytes")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The `http` address of the edge's `listening` event, whether its fields are nested or not.
fn listening(line: &str) -> Option<SocketAddr> {
    let event: Value = serde_json::from_str(line).ok()?;
    let fields = event.get("fields").unwrap_or(&event);
    let field = |name: &str| fields.get(name).or_else(|| event.get(name))?.as_str();
    if field("message")? != "listening" {
        return None;
    }
    let http = field("http")?;
    http.trim_start_matches("http://").trim_end_matches('/').parse().ok()
}

/// The public URL of the agent's `ready` line.
fn ready(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let is_ready = event.get("event")?.as_str()? == "ready";
    is_ready.then(|| event.get("url")?.as_str().map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_is_read_nested_or_flat() {
        let address = Some(SocketAddr::from(([127, 0, 0, 1], 81)));
        for line in [
            r#"{"level":"INFO","fields":{"message":"listening","http":"127.0.0.1:81"}}"#,
            r#"{"message":"listening","http":"http://127.0.0.1:81/","admin":"127.0.0.1:1"}"#,
        ] {
            assert_eq!(listening(line), address, "{line}");
        }
        assert_eq!(listening(r#"{"message":"starting","http":"127.0.0.1:81"}"#), None);
        assert_eq!(listening("listening 127.0.0.1:81"), None);
    }

    #[test]
    fn ready_is_told_from_other_events() {
        let line = r#"{"event":"ready","name":"bench","url":"http://bench.localhost:81"}"#;
        assert_eq!(ready(line).as_deref(), Some("http://bench.localhost:81"));
        assert_eq!(ready(r#"{"event":"request","url":"/"}"#), None);
    }
}
