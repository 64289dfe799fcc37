//! Our mux against hashicorp's, the library that the wire format comes from, in both roles.
//!
//! It needs a Go compiler and the library's Debian package (`scripts/install-test-deps.sh` installs
//! both). Without them the tests say so and pass, unless `UNIROUTE_REQUIRE_GO=1` is set.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpListener,
    process::{ChildStdout, Command},
    sync::OnceCell,
    task::JoinSet,
};
use uniroute_shared::mux::{Config, Side};

use crate::{
    harness::{Tasks, both_open, bounded, eventually, joined},
    service::{self, Ask, ask},
};

/// Where Debian puts Go libraries.
const GOPATH: &str = "/usr/share/gocode";

/// The compiled peer, if it can be had.
async fn peer() -> Option<&'static Path> {
    static PEER: OnceCell<Option<PathBuf>> = OnceCell::const_new();
    PEER.get_or_init(build).await.as_deref()
}

#[expect(clippy::print_stderr, reason = "a skipped test has to say so")]
async fn build() -> Option<PathBuf> {
    let library = Path::new(GOPATH).join("src/github.com/hashicorp/yamux");
    let lacking = if !library.exists() {
        format!("{} is not there", library.display())
    } else if let Err(error) = Command::new("go").arg("version").output().await {
        format!("go does not run: {error}")
    } else {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = dir.join("yamux-peer");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/go/main.go");
        let built = Command::new("go")
            .args(["build", "-o"])
            .args([&program, Path::new(source)])
            .envs([("GO111MODULE", "off"), ("GOPATH", GOPATH), ("GOFLAGS", "")])
            .env("GOCACHE", dir.join("go-cache"))
            .output()
            .await
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        return Some(program);
    };
    let required = std::env::var_os("UNIROUTE_REQUIRE_GO").is_some_and(|value| value == "1");
    assert!(!required, "{lacking}");
    eprintln!("SKIPPED, nothing was tested against hashicorp/yamux: {lacking}");
    None
}

/// Runs `asks` on streams that we open, and has the Go side run `theirs` (streams, body, want).
async fn exchange(config: Config, asks: Vec<Ask>, theirs: &[[usize; 3]]) {
    let Some(program) = peer().await else { return };
    let tasks = Tasks::count();
    let role = if config.side == Side::Server { "client" } else { "server" };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut process = Command::new(program)
        .args([role, &listener.local_addr().unwrap().to_string()])
        .args(theirs.iter().flatten().map(ToString::to_string))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
    let (mut socket, _) = listener.accept().await.unwrap();

    // The Go side speaks plain TCP; what it says is carried over a WebSocket to our side.
    let (ours, mut web_socket) = joined(config).await;
    let bridge = tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut web_socket, &mut socket).await;
    });
    let serving = tokio::spawn(service::serve(ours.acceptor));
    let mut asking = JoinSet::new();
    for one in asks {
        let session = ours.session.clone();
        asking.spawn(async move { ask(&session, one).await });
    }
    while asking.join_next().await.transpose().unwrap().is_some() {}
    assert_eq!(said(&mut output).await.as_deref(), Some("asked"));
    eventually("every stream is gone", || ours.session.stats().streams == 0).await;
    assert_eq!(ours.session.stats().granted, 0);
    eventually("the peer answers pings", || ours.session.stats().min_rtt.is_some()).await;
    ours.session.close();
    ours.driver.await.unwrap();
    bridge.await.unwrap();
    serving.await.unwrap();
    assert_eq!(said(&mut output).await, None);
    assert!(process.wait().await.unwrap().success());
    tasks.none_left().await;
}

/// The next line that matters. The library warns of what the specification allows: credit that
/// arrives for a stream just closed, a ping just before the end.
async fn said(output: &mut Lines<BufReader<ChildStdout>>) -> Option<String> {
    loop {
        let line = output.next_line().await.unwrap()?;
        if !line.contains("[WARN] yamux: f") {
            return Some(line);
        }
    }
}

#[tokio::test]
async fn a_go_agent_answers_the_edge() {
    bounded(exchange(Config::edge(), vec![Ask::SMALL; 200], &[])).await;
}

#[tokio::test]
async fn the_agent_answers_a_go_edge() {
    bounded(exchange(Config::agent(), Vec::new(), &[[200, 100, 1_000]])).await;
}

#[tokio::test]
async fn megabytes_both_ways_in_both_roles_opened_by_either() {
    let up = Ask { body: 5_000_000, want: 10, half_close: true };
    let down = Ask { body: 10, want: 20_000_000, half_close: true };
    let both = Ask { body: 3_000_000, want: 3_000_000, half_close: false };
    let theirs = [[2, 5_000_000, 10], [2, 10, 20_000_000], [2, 3_000_000, 3_000_000], [50, 1, 1]];
    for side in [Side::Server, Side::Client] {
        bounded(exchange(both_open(side), vec![up, down, both, Ask::SMALL], &theirs)).await;
    }
}
