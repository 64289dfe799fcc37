//! The two programs as people run them: exit codes, ready lines, signals, what they say of mistakes.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tokio::process::Command;

use crate::harness::{
    eventually,
    hand::{HandEdge, challenge},
    process::{self, Process, run},
    upstream::{TestUpstream, text},
    wire::Wire,
    within,
};

/// A token that must be in no output.
const CANARY: &str = "ur_canary_4f1d9be07c";

/// `uniroute-edge serve` with [`CANARY`] for a token, on free ports, ready.
struct Serving {
    process: Process,
    home: tempfile::TempDir,
    http: SocketAddr,
    admin: SocketAddr,
}

impl Serving {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), format!("# ours\n{CANARY}\n")).unwrap();
        let mut command = process::edge(home.path());
        command.args(["serve", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.args(["--token-file", "token", "--log-format", "json", "--log-level", "trace"]);
        let process = Process::start(&mut command);
        let line: Value = serde_json::from_str(&process.err_line("\"listening\"").await).unwrap();
        let address = |name: &str| find(&line, name).parse().unwrap();
        let (http, admin) = (address("http"), address("admin"));
        Self { process, home, http, admin }
    }

    /// `uniroute http UPSTREAM` for this edge.
    fn agent(&self, upstream: &str) -> Command {
        let mut command = process::agent(self.home.path());
        command.args([
            "http",
            upstream,
            "--server",
            &format!("http://localhost:{}", self.http.port()),
        ]);
        command.args(["--token-file", "token"]);
        command
    }
}

/// The text of the field `name`, wherever the log has it.
fn find<'a>(line: &'a Value, name: &str) -> &'a str {
    let nested = line.get("fields").and_then(|fields| fields.get(name));
    line.get(name).or(nested).and_then(Value::as_str).unwrap_or_else(|| panic!("no {name}: {line}"))
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_from_two_commands() {
    let edge = Serving::start().await;
    let upstream = TestUpstream::saying("served").await;
    let mut command = edge.agent(&upstream.address.to_string());
    let agent = Process::start(command.args(["--name", "demo", "--output", "json"]));
    let line = agent.out_line("\"ready\"").await;
    let ready: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(ready["event"], "ready");
    assert_eq!(ready["name"], "demo");
    assert_eq!(ready["url"], format!("http://demo.localhost:{}", edge.http.port()));
    assert_eq!(ready["upstream"], upstream.url());
    assert!(ready.get("inspector").is_some());
    let mut visitor = Wire::connect(edge.http).await;
    visitor.send("GET / HTTP/1.1\r\nhost: demo.localhost\r\n\r\n").await;
    visitor.answer("GET").await.assert_ok("served");
    agent.signal("INT").await;
    let ended = agent.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.out.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{}",
        ended.out
    );
    edge.process.signal("TERM").await;
    let ended = edge.process.ended().await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_url_alone() {
    let edge = Serving::start().await;
    let mut command = edge.agent("3000");
    let agent = Process::start(command.args(["--name", "demo", "--output", "url"]));
    agent.out_line("http").await;
    agent.signal("TERM").await;
    let ended = agent.ended().await;
    assert_eq!(ended.code, Some(0));
    assert_eq!(ended.out, format!("http://demo.localhost:{}", edge.http.port()));
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_prints_an_agent_command_that_works() {
    let home = tempfile::tempdir().unwrap();
    let mut command = process::edge(home.path());
    let edge = Process::start(command.args([
        "dev",
        "--http",
        "127.0.0.1:0",
        "--admin",
        "off",
        "--data-dir",
        "data",
    ]));
    let line = edge.err_line("uniroute http 3000").await;
    let words: Vec<_> = line.split_whitespace().skip(1).collect();
    let upstream = TestUpstream::saying("dev").await;
    let mut command = process::agent(home.path());
    let words =
        words.iter().map(|word| if *word == "3000" { upstream.url() } else { (*word).to_owned() });
    let agent = Process::start(command.args(words).args(["--output", "json", "--name", "demo"]));
    let ready: Value = serde_json::from_str(&agent.out_line("\"ready\"").await).unwrap();
    let port = ready["url"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let mut visitor = Wire::connect(SocketAddr::from(([127, 0, 0, 1], port))).await;
    visitor.send("GET / HTTP/1.1\r\nhost: demo.localhost\r\n\r\n").await;
    visitor.answer("GET").await.assert_ok("dev");
    // The token is its owner's alone.
    let token = std::fs::metadata(home.path().join("data/token")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&token.permissions()) & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_2_for_a_command_line_that_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 8] = [
        &[],
        &["http"],
        &["http", "3000", "--nonsense"],
        &["http", "3000", "--output", "xml"],
        &["https", "3000"],
        // No token anywhere.
        &["http", "3000"],
        // A local server that can't be.
        &["http", "70000"],
        &["http", "3000", "--server", "edge.test"],
    ];
    for arguments in cases {
        let ended = run(process::agent(home.path()).args(arguments)).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.out.is_empty() && !ended.err.is_empty(), "{arguments:?}: {ended:?}");
    }
    let cases: [&[&str]; 3] = [&[], &["serve", "--nonsense"], &["serve", "--http", "somewhere"]];
    for arguments in cases {
        let ended = run(process::edge(home.path()).args(arguments)).await;
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_3_for_a_file_that_is_wrong_with_the_place_and_the_way_out() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    write(dir, "token", CANARY);
    write(
        dir,
        "uniroute.toml",
        "version = 1\nagent.token_file = \"token\"\n\n[tunnels.web]\nupstrem = \"3000\"\n",
    );
    for arguments in [
        &["start", "--all", "--config", "uniroute.toml"][..],
        &["start", "web", "--config", "uniroute.toml"],
        &["http", "3000", "--config", "uniroute.toml"],
        &["config", "check", "uniroute.toml"],
    ] {
        let ended = run(process::agent(dir).args(arguments)).await;
        assert_eq!(ended.code, Some(3), "{arguments:?}: {ended:?}");
        for part in ["uniroute.toml:5:", "upstrem", "upstream"] {
            assert!(ended.err.contains(part), "{arguments:?}: {}", ended.err);
        }
    }
    write(dir, "edge.toml", "version = 1\nhtpp = \"127.0.0.1:0\"\n\n[limits]\nsesions = 5\n");
    for arguments in [&["serve", "--config", "edge.toml"][..], &["config", "check", "edge.toml"]] {
        let ended = run(process::edge(dir).args(arguments)).await;
        assert_eq!(ended.code, Some(3), "{arguments:?}: {ended:?}");
        // Every fault at once.
        for part in ["edge.toml:2:", "htpp", "\"http\"", "edge.toml:5:", "sesions", "sessions"] {
            assert!(ended.err.contains(part), "{arguments:?}: {}", ended.err);
        }
    }
    for (text, part) in [
        ("", "version"),
        ("version = 2\n", "version"),
        ("version = 1\nhttp = 5\n", "edge.toml:2:"),
        ("version = 1\nhttp = \n", "edge.toml:2:"),
        ("version = 1\ndomain = \"a b\"\n", "a b"),
        ("version = 1\ntoken_file = \"missing\"\n", "missing"),
    ] {
        write(dir, "edge.toml", text);
        let ended = run(process::edge(dir).args(["serve", "--config", "edge.toml"])).await;
        assert_eq!(ended.code, Some(3), "{text:?}: {ended:?}");
        assert!(ended.err.contains(part), "{text:?}: {}", ended.err);
    }
    let ended = run(process::edge(dir).args(["serve", "--token-file", "missing"])).await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    for (arguments, part) in [
        (&["--store", "mysql://db.test/edge"][..], "sqlite:PATH"),
        (&["--state", "redis://127.0.0.1:1"], "postgres://"),
        (&["--store", "postgres://edge@127.0.0.1:1/edge"], "--secret-file"),
    ] {
        let ended = run(process::edge(dir).arg("serve").args(arguments)).await;
        assert_eq!(ended.code, Some(3), "{ended:?}");
        assert!(ended.err.contains(part), "{}", ended.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_samples_are_fine() {
    let home = tempfile::tempdir().unwrap();
    for (command, name) in
        [(process::edge as fn(&Path) -> Command, "edge.toml"), (process::agent, "uniroute.toml")]
    {
        let sample = run(command(home.path()).args(["config", "init"])).await;
        assert_eq!(sample.code, Some(0));
        write(home.path(), name, &sample.out);
        let checked = run(command(home.path()).args(["config", "check", name])).await;
        assert_eq!(checked.code, Some(0), "{checked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_4_for_a_token_that_the_edge_refuses() {
    let edge = Serving::start().await;
    let mut command = edge.agent("3000");
    let wrong = "ur_wrong_4f1d9be07c";
    let ended = run(command.env("UNIROUTE_TOKEN", wrong).args(["--log-level", "trace"])).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.err.contains("UR-4001") && !ended.err.contains(wrong), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_5_for_an_edge_that_is_not_there() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), "token", CANARY);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let not_an_edge = TestUpstream::saying("hello").await;
    for server in [
        format!("http://127.0.0.1:{port}"),
        not_an_edge.url(),
        "http://no-such-host.invalid".into(),
    ] {
        let mut command = process::agent(home.path());
        command.args(["http", "3000", "--token-file", "token", "--fail-fast", "--server", &server]);
        let ended = run(&mut command).await;
        assert_eq!(ended.code, Some(5), "{server}: {ended:?}");
        assert!(!ended.err.is_empty(), "{server}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_6_for_a_name_that_cannot_be_had() {
    let edge = Serving::start().await;
    let mut command = edge.agent("3000");
    let holder = Process::start(command.args([
        "--name",
        "mine",
        "--output",
        "json",
        "--state-dir",
        "other",
    ]));
    holder.out_line("\"ready\"").await;
    for (name, code) in [("mine", "UR-1101"), ("www", "UR-1102")] {
        let ended = run(edge.agent("3000").args(["--name", name])).await;
        assert_eq!(ended.code, Some(6), "{name}: {ended:?}");
        assert!(ended.err.contains(code) && ended.err.contains(name), "{}", ended.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_7_for_a_local_server_that_must_be_there() {
    let edge = Serving::start().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let ended = run(edge.agent(&address).arg("--require-local")).await;
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(ended.err.contains(&address), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_8_for_an_edge_of_another_version() {
    let home = tempfile::tempdir().unwrap();
    write(home.path(), "token", CANARY);
    let edge = HandEdge::bind().await;
    let mut command = process::agent(home.path());
    command.args([
        "http",
        "3000",
        "--token-file",
        "token",
        "--server",
        &format!("http://{}", edge.address()),
    ]);
    let agent = Process::start(&mut command);
    let mut hand = edge.accept().await;
    hand.send(challenge(9)).await;
    let ended = agent.ended().await;
    assert_eq!(ended.code, Some(8), "{ended:?}");
    assert!(ended.err.contains("version"), "{}", ended.err);
}

/// SIGTERM: what is under way comes to its end, in the agent and in the edge.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_drains() {
    let (go, gate) = tokio::sync::watch::channel(0);
    let (asked, mut arrived) = tokio::sync::mpsc::channel(8);
    let upstream = TestUpstream::start(move |request| {
        let (mut gate, asked) = (gate.clone(), asked.clone());
        async move {
            let number: i32 = request.uri().path()[1..].parse().unwrap();
            asked.send(()).await.unwrap();
            gate.wait_for(|open| *open >= number).await.unwrap();
            text("finished")
        }
    })
    .await;
    let edge = Serving::start().await;
    let start_agent =
        || Process::start(edge.agent(&upstream.url()).args(["--name", "demo", "--output", "json"]));
    let request = async |path: &str| {
        let mut visitor = Wire::connect(edge.http).await;
        visitor.send(format!("GET {path} HTTP/1.1\r\nhost: demo.localhost\r\n\r\n")).await;
        visitor
    };

    let agent = start_agent();
    agent.out_line("\"ready\"").await;
    let mut visitor = request("/1").await;
    within("the request", arrived.recv()).await.unwrap();
    agent.signal("TERM").await;
    // The name is free as soon as the agent has said that it goes.
    eventually("the agent goes", async || {
        let mut other = request("/0").await;
        (other.answer("GET").await.status() == 404).then_some(())
    })
    .await;
    while arrived.try_recv().is_ok() {}
    go.send(1).unwrap();
    visitor.answer("GET").await.assert_ok("finished");
    assert_eq!(agent.ended().await.code, Some(0));

    let agent = start_agent();
    agent.out_line("\"ready\"").await;
    let mut visitor = request("/2").await;
    within("the request", arrived.recv()).await.unwrap();
    edge.process.signal("TERM").await;
    edge.process.err_line("draining").await;
    go.send(2).unwrap();
    visitor.answer("GET").await.assert_ok("finished");
    assert_eq!(edge.process.ended().await.code, Some(0));
}

/// Nobody waits for a second signal.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once() {
    let upstream = TestUpstream::start(|_| std::future::pending()).await;
    let edge = Serving::start().await;
    let agent =
        Process::start(edge.agent(&upstream.url()).args(["--name", "demo", "--output", "json"]));
    agent.out_line("\"ready\"").await;
    let mut visitor = Wire::connect(edge.http).await;
    visitor.send("GET / HTTP/1.1\r\nhost: demo.localhost\r\n\r\n").await;
    eventually("it is under way", async || {
        let mut operator = Wire::connect(edge.admin).await;
        let status = operator.get("edge", "/debug/status").await;
        status.text().contains("\"streams\": 2").then_some(())
    })
    .await;
    edge.process.signal("TERM").await;
    edge.process.err_line("draining").await;
    edge.process.signal("INT").await;
    edge.process.ended().await;
    agent.signal("TERM").await;
    agent.signal("TERM").await;
    agent.ended().await;
}

/// T20: with everything logged, what is secret is in no line of either program.
#[tokio::test(flavor = "multi_thread")]
async fn t20_secrets_are_in_no_output() {
    const SECRETS: [&str; 5] =
        [CANARY, "canary-cookie", "canary-basic", "canary-answer", "canary-body"];
    let edge = Serving::start().await;
    let upstream = TestUpstream::start(|_| async {
        let mut response = text("canary-body");
        response.headers_mut().insert("set-cookie", "id=canary-answer".parse().unwrap());
        response
    })
    .await;
    let mut command = edge.agent(&upstream.url());
    let agent = Process::start(command.args([
        "--name",
        "demo",
        "--output",
        "json",
        "--log-level",
        "trace",
    ]));
    agent.out_line("\"ready\"").await;
    for host in ["demo.localhost", "nobody.localhost"] {
        let mut visitor = Wire::connect(edge.http).await;
        visitor
            .send(format!(
                "POST / HTTP/1.1\r\nhost: {host}\r\ncookie: id=canary-cookie\r\nauthorization: Basic canary-basic\r\n\
                 content-length: 11\r\n\r\ncanary-body"
            ))
            .await;
        visitor.answer("POST").await;
    }
    // A wrong token is a secret too: it may be right elsewhere.
    let wrong = "ur_canary_wrong_4f1d";
    let refused = run(edge.agent("3000").env("UNIROUTE_TOKEN", wrong)).await;
    assert_eq!(refused.code, Some(4));
    let metrics = {
        let mut operator = Wire::connect(edge.admin).await;
        let metrics = operator.get("edge", "/metrics").await.text().to_owned();
        metrics + operator.get("edge", "/debug/status").await.text()
    };
    agent.signal("TERM").await;
    let agent = agent.ended().await;
    edge.process.signal("TERM").await;
    let edge = edge.process.ended().await;
    let all =
        [agent.out, agent.err, edge.out, edge.err, refused.out, refused.err, metrics].concat();
    assert!(all.contains("demo"));
    for secret in SECRETS.into_iter().chain([wrong]) {
        let place = all.lines().find(|line| line.contains(secret));
        assert!(place.is_none(), "{secret}: {place:?}");
    }
}

/// T22: nothing listens but what the ready line says, on loopback addresses.
#[tokio::test(flavor = "multi_thread")]
async fn t22_only_what_is_said_listens() {
    let edge = Serving::start().await;
    let upstream = TestUpstream::saying("served").await;
    let agent =
        Process::start(edge.agent(&upstream.url()).args(["--name", "demo", "--output", "json"]));
    let ready: Value = serde_json::from_str(&agent.out_line("\"ready\"").await).unwrap();
    let inspector = ready["inspector"].as_str().and_then(|url| url.strip_prefix("http://"));
    let inspector: SocketAddr = inspector.unwrap().parse().unwrap();
    assert!(inspector.ip().is_loopback(), "{inspector}");
    assert_eq!(listeners(edge.process.id()), HashSet::from([edge.http, edge.admin]));
    assert_eq!(listeners(agent.id()), HashSet::from([inspector]));
    let mut visitor = Wire::connect(edge.http).await;
    visitor.send("GET / HTTP/1.1\r\nhost: demo.localhost\r\n\r\n").await;
    visitor.answer("GET").await.assert_ok("served");
}

/// Where a process listens, as the kernel knows it.
pub(crate) fn listeners(process: u32) -> HashSet<SocketAddr> {
    let folder = PathBuf::from(format!("/proc/{process}"));
    let sockets: HashSet<String> = std::fs::read_dir(folder.join("fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = |name: &str| std::fs::read_to_string(folder.join("net").join(name)).unwrap();
    assert!(
        table("tcp6")
            .lines()
            .skip(1)
            .filter_map(listening)
            .all(|(_, inode)| !sockets.contains(&inode))
    );
    let mine = table("tcp")
        .lines()
        .skip(1)
        .filter_map(listening)
        .filter(|(_, inode)| sockets.contains(inode))
        .collect::<Vec<_>>();
    mine.into_iter().map(|(address, _)| v4(&address)).collect()
}

/// Address and inode of a line, if its socket listens.
fn listening(line: &str) -> Option<(String, String)> {
    let columns: Vec<_> = line.split_whitespace().collect();
    (columns[3] == "0A").then(|| (columns[1].to_owned(), columns[9].to_owned()))
}

/// `0100007F:1F90`, the address in the machine's byte order.
fn v4(text: &str) -> SocketAddr {
    let (address, port) = text.split_once(':').unwrap();
    let address = u32::from_str_radix(address, 16).unwrap().to_ne_bytes();
    (address, u16::from_str_radix(port, 16).unwrap()).into()
}
