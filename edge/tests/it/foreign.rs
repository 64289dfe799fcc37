//! Clients and servers of other implementations, at both ends of the two programs as people run them.
//! What speaks a protocol in detail is a Python program in `tests/foreign`: its cases say of
//! themselves how they went, and a test here counts them.

mod curl;
mod dns;
mod grpc;
mod inspector;
mod postgres;
mod rest;
mod tls;
mod websocket;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::harness::{
    TOKEN, over_quic,
    process::{self, Process},
};

/// `uniroute-edge serve` on free ports, ready.
struct Serving {
    home: TempDir,
    _process: Process,
    http: SocketAddr,
    https: SocketAddr,
}

impl Serving {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(flags: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), TOKEN).unwrap();
        let mut command = process::edge(home.path());
        command.args(["serve", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0"]);
        command.args(["--admin", "off", "--token-file", "token", "--log-format", "json"]);
        command.args(flags);
        let process = Process::start(&mut command);
        let line: Value = serde_json::from_str(&process.err_line("\"listening\"").await).unwrap();
        let address = |name: &str| {
            let nested = line.get("fields").and_then(|fields| fields.get(name));
            line.get(name).or(nested).and_then(Value::as_str).unwrap().parse().unwrap()
        };
        let (http, https) = (address("http"), address("https"));
        Self { home, _process: process, http, https }
    }

    /// An agent that is ready.
    async fn tunnel(&self, words: &[&str]) -> Tunnel {
        // Tunnels of one test side by side: each agent is one of its own.
        let state = tempfile::tempdir_in(self.home.path()).unwrap().keep();
        self.tunnel_of(&state, words).await
    }

    /// The same of the agent whose state is in this folder.
    async fn tunnel_of(&self, state: &Path, words: &[&str]) -> Tunnel {
        let mut command = process::agent(self.home.path());
        command.args(words).args(["--server", &format!("http://{}", self.http)]);
        command.args(["--token-file", "token", "--output", "json", "--log-level", "info"]);
        command.arg("--state-dir").arg(state);
        command.args(["--transport", if over_quic() { "quic" } else { "ws" }]);
        let process = Process::start(&mut command);
        let ready: Value = serde_json::from_str(&process.out_line("\"ready\"").await).unwrap();
        let url = ready["url"].as_str().unwrap().to_owned();
        let inspector = ready["inspector"].as_str().and_then(|url| url.strip_prefix("http://"));
        let inspector = inspector.map(|address| address.parse().unwrap());
        Tunnel { process, url, inspector }
    }
}

/// `uniroute`, and where its visitors come in.
struct Tunnel {
    process: Process,
    url: String,
    /// Where its local API is.
    inspector: Option<SocketAddr>,
}

impl Tunnel {
    /// The public port.
    fn port(&self) -> u16 {
        self.url.rsplit_once(':').unwrap().1.parse().unwrap()
    }
}

/// A program of Debian's, wherever it keeps it.
pub(crate) fn program(name: &str) -> PathBuf {
    let postgresql = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<_> = postgresql.map(|version| version.path().join("bin")).collect();
    folders.sort();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders.push("/usr/sbin".into());
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: run scripts/install-test-deps.sh"))
}

/// Where the Python packages are that the tests need.
fn venv() -> PathBuf {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-venv");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign");
    let installed = std::fs::read(venv.join("installed.txt")).ok();
    assert!(
        installed.is_some() && installed == std::fs::read(scripts.join("requirements.txt")).ok(),
        "the Python packages in {} are missing or old: run scripts/install-python-peers.sh",
        venv.display(),
    );
    venv
}

/// A Python program of `tests/foreign`, with the packages it needs.
fn python(script: &str, home: &Path) -> Command {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign");
    let mut command = process::command(&venv().join("bin/python"), home);
    // Nothing is written into the source folder.
    command.args(["-u", "-B"]).arg(scripts.join(script)).stdin(Stdio::piped());
    command
}

/// A Python program that serves on a local port, and begins with its cases when told where visitors
/// come in.
struct Peer {
    process: Process,
    port: u16,
}

impl Peer {
    async fn start(edge: &Serving, script: &str, words: &[&str]) -> Self {
        let process = Process::start(python(script, edge.home.path()).args(words));
        let line = process.out_line("listening ").await;
        let port = line.trim_start_matches("listening ").parse().unwrap();
        Self { process, port }
    }

    /// All its cases pass, and there are `count`.
    async fn passes(mut self, to: &str, count: usize) {
        self.process.tell(to).await;
        let ended = self.process.ended().await;
        let passed = ended.out.lines().filter(|line| line.starts_with("ok ")).count();
        assert!(ended.code == Some(0), "{passed} passed\n{}\n{}", ended.out, ended.err);
        assert_eq!(passed, count, "{}", ended.out);
    }
}
