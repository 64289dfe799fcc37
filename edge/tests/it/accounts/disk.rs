//! A disk that is full: tunnels go on, and it is said.

use std::{net::SocketAddr, path::Path, process::Stdio};

use serde_json::Value;
use tokio::process::Command;

use crate::harness::{
    TestAgent, eventually,
    process::{self, Process, run},
    upstream::TestUpstream,
    wire::{Answer, Wire},
};

/// Bytes that a file may have: the journal of the database reaches them soon.
const FULL: u64 = 1_000_000;

/// `uniroute-edge serve` with files that can't grow beyond [`FULL`].
async fn serve(home: &Path) -> (Process, SocketAddr, SocketAddr) {
    let edge = process::edge(home);
    let mut command = Command::new("sh");
    command.env_clear().env("HOME", home).current_dir(home).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A write that fails, rather than a signal.
    command.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]).arg(edge.as_std().get_program());
    command.args(["serve", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.args(["--data-dir", "data", "--log-format", "json"]);
    let process = Process::start(&mut command);
    let line: Value = serde_json::from_str(&process.err_line("\"listening\"").await).unwrap();
    let address = |name: &str| {
        let nested = line.get("fields").and_then(|fields| fields.get(name));
        line.get(name).or(nested).and_then(Value::as_str).unwrap().parse().unwrap()
    };
    let (http, admin) = (address("http"), address("admin"));
    (process, http, admin)
}

async fn limit(process: &Process, bytes: &str) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &process.id().to_string(), &format!("--fsize={bytes}:unlimited")]);
    assert!(prlimit.status().await.unwrap().success());
}

async fn ask(to: SocketAddr, host: &str, path: &str) -> Answer {
    let mut wire = Wire::connect(to).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
    wire.answer("GET").await
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_go_on_when_the_disk_is_full() {
    let home = tempfile::tempdir().unwrap();
    let (edge, http, admin) = serve(home.path()).await;
    let command = |args: &[&str]| {
        let mut command = process::edge(home.path());
        command.args(args).args(["--data-dir", "data"]);
        command
    };
    assert_eq!(run(&mut command(&["user", "add", "ann@example.com"])).await.code, Some(0));
    let token = run(&mut command(&["token", "add", "ann@example.com"])).await.out;
    let upstream = TestUpstream::saying("hello").await;
    let mut settings = TestAgent::settings(http, vec![TestAgent::tunnel("shop", &upstream.url())]);
    settings.token = token.trim().parse().unwrap();
    let _agent = TestAgent::launch(settings).await;
    limit(&edge, &FULL.to_string()).await;
    let mut wire = Wire::connect(http).await;
    let path = format!("/{}", "x".repeat(400));
    let mut visit = async || {
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: shop.localhost\r\n\r\n")).await;
        wire.answer("GET").await.assert_ok("hello");
    };
    let mut visits = 0_u64;
    eventually("the disk is full", async || {
        for _ in 0..20 {
            visit().await;
            visits += 1;
        }
        let said = ask(admin, "admin", "/readyz").await.text().to_owned();
        said.contains("the store does not answer").then_some(())
    })
    .await;
    edge.err_line("requests can't be taken down in the store").await;
    for _ in 0..200 {
        visit().await;
        visits += 1;
    }
    // There is room again.
    limit(&edge, "unlimited").await;
    eventually("it is well again, and everything is written", async || {
        let said = ask(admin, "admin", "/readyz").await.text().to_owned();
        let metrics = ask(admin, "admin", "/metrics").await.text().to_owned();
        let count = |name: &str| {
            let prefix = format!("uniroute_edge_{name} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&prefix));
            line.unwrap().parse::<u64>().unwrap()
        };
        let rows = count("request_rows_written_total") + count("request_rows_left_out_total");
        (said == "ready\n" && rows == visits).then_some(())
    })
    .await;
}
