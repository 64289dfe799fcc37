//! Edge and agent, started by their command lines and known only by what they print.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
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
use crate::process::{Child, Output};
use crate::system::System;
use crate::tls::Certificate;
use crate::{net, nginx};

const READY: Duration = Duration::from_secs(30);
/// Of the system, and what it is measured as.
pub(crate) const NAME: &str = "uniroute";
/// What its tunnel is called.
const TUNNEL: &str = "bench";
pub(crate) const LOOPBACK: &str = "127.0.0.1:0";

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

/// An edge of its own token, without agents yet.
pub(crate) struct Edge {
    pub(crate) process: Child,
    /// Where its visitors find it.
    pub(crate) address: SocketAddr,
    token: String,
    pub(crate) token_file: PathBuf,
}

impl Edge {
    pub(crate) async fn start(
        args: &Args,
        namespace: Option<&str>,
        listen: &str,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let bin = binary(args.edge_bin.as_deref(), "uniroute-edge")?;
        let token = token()?;
        let token_file = dir.join("token");
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&token_file)?
            .write_all(token.as_bytes())?;

        let mut command = net::command(namespace, &bin);
        command
            .args(["serve", "--http", listen, "--admin", "127.0.0.1:0"])
            .args(["--domain", "localhost", "--log-format", "json", "--token-file"])
            .arg(&token_file)
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args(&args.edge_arg);
        let mut process = Child::start("edge", dir, command)?;
        let mut address = process.wait_for_line(Output::Stderr, READY, listening).await?;
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        Ok(Self { process, address, token, token_file })
    }
}

pub(crate) struct Agent {
    process: Child,
    /// What visitors ask for.
    url: String,
    /// From its start to its ready line.
    pub(crate) ready_after: Duration,
}

impl Agent {
    /// `server`: the edge's URL as the agent sees it. `more`: further arguments.
    pub(crate) async fn start<S: AsRef<OsStr>>(
        args: &Args,
        edge: &Edge,
        namespace: Option<&str>,
        server: &str,
        more: &[S],
        dir: &Path,
        origin: SocketAddr,
    ) -> anyhow::Result<Self> {
        let bin = binary(args.agent_bin.as_deref(), "uniroute")?;
        let mut command = net::command(namespace, &bin);
        command
            .args(["http", &origin.to_string(), "--server", server])
            .args(["--name", TUNNEL, "--output", "json"])
            .args(more)
            .args(&args.agent_arg)
            .env("UNIROUTE_TOKEN", &edge.token);
        let started = Instant::now();
        let mut process = Child::start("agent", dir, command)?;
        let url = process.wait_for_line(Output::Stdout, READY, ready).await?;
        Ok(Self { process, url, ready_after: started.elapsed() })
    }

    /// What the agent says of its options.
    pub(crate) async fn help(args: &Args) -> anyhow::Result<String> {
        let bin = binary(args.agent_bin.as_deref(), "uniroute")?;
        let output = Command::new(bin).args(["http", "--help"]).output().await?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The two as a system.
pub(crate) fn system(
    name: &'static str,
    base: &'static str,
    edge: Edge,
    agent: Agent,
) -> anyhow::Result<System> {
    let url = agent.url;
    // The name in the public URL need not resolve here: the edge's address is known, the name goes into `Host`.
    let named: Uri = url.parse().with_context(|| format!("public URL {url:?}"))?;
    let target =
        Target { address: edge.address.to_string(), host: Target::new(&named, None)?.host };
    Ok(System::new(name, Some(base), target, vec![edge.process, agent.process]))
}

/// Edge and agent on loopback, without TLS.
pub(crate) async fn start(args: &Args, dir: &Path, origin: SocketAddr) -> anyhow::Result<System> {
    let edge = Edge::start(args, None, LOOPBACK, dir).await?;
    let server = format!("http://{}", edge.address);
    let agent = Agent::start::<&str>(args, &edge, None, &server, &[], dir, origin).await?;
    let mut system = system(NAME, "nginx", edge, agent)?;
    system.wait_until_answering().await?;
    Ok(system)
}

/// The same with TLS between the two, which an nginx ends on the edge's behalf.
pub(crate) async fn start_tls(
    args: &Args,
    dir: &Path,
    origin: SocketAddr,
    nginx: &Path,
    certificate: &Certificate,
) -> anyhow::Result<System> {
    let dir = dir.join("uniroute-tls");
    fs::create_dir(&dir)?;
    let edge = Edge::start(args, None, LOOPBACK, &dir).await?;
    let (terminator, address) =
        nginx::start_terminator(nginx, &dir, edge.address, certificate).await?;
    let trust = [OsStr::new("--server-ca"), certificate.chain.as_os_str()];
    let server = format!("https://{address}");
    let agent = Agent::start(args, &edge, None, &server, &trust, &dir, origin).await?;
    let mut system = system("uniroute TLS", nginx::TLS, edge, agent)?;
    system.terminator = Some(terminator);
    system.wait_until_answering().await?;
    Ok(system)
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
