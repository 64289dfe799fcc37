//! What tests of the agent stand on: the edge as a program of its own, and a local server.

// The same files as the edge's tests have.
#[path = "../../../edge/tests/it/harness/process.rs"]
#[allow(dead_code, reason = "not all of it is for the agent's tests")]
pub(crate) mod process;
#[path = "../../../edge/tests/it/harness/waiting.rs"]
mod waiting;

use std::{net::SocketAddr, path::PathBuf};

use axum::Router;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinHandle,
};

use self::process::Process;
pub(crate) use self::waiting::{eventually, within};

/// `uniroute-edge dev` on free ports; gone with its value.
pub(crate) struct Edge {
    /// Ends it when it goes.
    _process: Process,
    pub(crate) home: tempfile::TempDir,
    pub(crate) http: SocketAddr,
}

impl Edge {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = process::edge(home.path());
        command.args(["dev", "--http", "127.0.0.1:0", "--https", "off", "--admin", "127.0.0.1:0"]);
        command.args(["--log-format", "json", "--data-dir", "data"]).args(arguments);
        let process = Process::start(&mut command);
        let line = process.err_line("\"listening\"").await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let http = line["http"].as_str().or_else(|| line["fields"]["http"].as_str());
        let http = http.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        Self { _process: process, home, http }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http.port())
    }

    /// The file with the token that it takes.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.home.path().join("data/token")
    }

    /// `uniroute ARGUMENTS` in the edge's home, told of the edge by the environment.
    pub(crate) fn agent(&self, arguments: &[&str]) -> Command {
        let mut command = process::agent(self.home.path());
        command.env("UNIROUTE_SERVER", self.url()).env("UNIROUTE_TOKEN_FILE", self.token_file());
        command.args(arguments);
        command
    }

    /// What a visitor of the tunnel `name` gets for `GET path`: the status and all of the answer.
    pub(crate) async fn get(&self, name: &str, path: &str) -> (u16, String) {
        let host = format!("{name}.localhost:{}", self.http.port());
        get(self.http, &host, path).await
    }
}

/// One request on a connection of its own; the status and all of the answer, head included.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let asked = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        socket.read_to_end(&mut answer).await.unwrap();
    };
    within("an answer", asked).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {text:?}")), text)
}

/// A local server; gone with its value.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Upstream {
    pub(crate) async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, task }
    }

    /// Answers every GET with `text`.
    pub(crate) async fn saying(text: &'static str) -> Self {
        Self::start(Router::new().fallback(move || async move { text })).await
    }

    pub(crate) fn port(&self) -> String {
        self.address.port().to_string()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}
