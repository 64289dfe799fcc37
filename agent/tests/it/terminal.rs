//! What the agent shows, and what it tells service managers and scripts.

use std::{io::Write as _, os::unix::net::UnixDatagram, path::Path, time::Duration};

use axum::{Json, Router, routing::get};
use serde_json::json;

use crate::harness::{
    Edge, Upstream, eventually,
    process::{self, Process},
};

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, heard: Vec::new() }
    }

    fn listen(&mut self) -> usize {
        let mut bytes = [0; 4_096];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
            self.heard.extend(text.lines().map(str::to_owned));
        }
        self.heard.len()
    }

    /// The first line from `after` on that begins with `text`, and the place behind it.
    async fn hears(&mut self, text: &str, after: usize) -> (String, usize) {
        eventually(&format!("the manager hears {text}"), async || {
            self.listen();
            let place = self.heard[after..].iter().position(|line| line.starts_with(text))?;
            Some((self.heard[after + place].clone(), after + place + 1))
        })
        .await
    }
}

fn config(edge: &Edge, tunnels: &str) -> String {
    let path = edge.home.path().join("uniroute.toml");
    std::fs::write(&path, format!("version = 1\n{tunnels}")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_service_manager_hears_how_the_agent_is() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("x").await;
    let port = upstream.port();
    let file = config(&edge, &format!("[tunnels.web]\nupstream = \"{port}\"\nname = \"demo\"\n"));
    let path = edge.home.path().join("notify");
    let mut manager = Manager::new(&path);
    let mut command = edge.agent(&["start", "--all", "--config", &file]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let agent = Process::start(&mut command);
    let (_, ready) = manager.hears("READY=1", 0).await;
    let (status, _) = manager.hears("STATUS=web http://demo.localhost:", 0).await;
    assert!(status.ends_with(&edge.http.port().to_string()), "{status}");
    let mut alive = ready;
    let began = std::time::Instant::now();
    for _ in 0..5 {
        (_, alive) = manager.hears("WATCHDOG=1", alive).await;
    }
    let period = Duration::from_micros(300_000);
    assert!(began.elapsed() < 5 * period, "five signs of life in {:?}", began.elapsed());

    agent.signal("HUP").await;
    let (_, reloading) = manager.hears("RELOADING=1", ready).await;
    let (_, at) = manager.hears("MONOTONIC_USEC=", reloading).await;
    assert_eq!(at, reloading + 1, "both in one message");
    manager.hears("READY=1", at).await;

    agent.signal("TERM").await;
    manager.hears("STOPPING=1", at).await;
    assert_eq!(agent.ended().await.code, Some(0));
}

#[tokio::test]
async fn without_an_edge_it_lives_and_is_not_ready() {
    let edge = Edge::start().await;
    let path = edge.home.path().join("notify");
    let mut manager = Manager::new(&path);
    let mut command = edge.agent(&["http", "3000", "--server", "http://127.0.0.1:9"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let agent = Process::start(&mut command);
    let (_, mut alive) = manager.hears("STATUS=not connected: ", 0).await;
    for _ in 0..3 {
        (_, alive) = manager.hears("WATCHDOG=1", alive).await;
    }
    assert!(!manager.heard.iter().any(|line| line == "READY=1"), "{:?}", manager.heard);
    agent.signal("TERM").await;
    manager.hears("STOPPING=1", 0).await;
    assert_eq!(agent.ended().await.code, Some(0));
}

#[tokio::test]
async fn scripts_learn_whether_tunnels_are_ready() {
    let home = tempfile::tempdir().unwrap();
    let run =
        async |arguments: &[&str]| process::run(process::agent(home.path()).args(arguments)).await;
    for command in ["status", "ready"] {
        let ended = run(&[command]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.contains("no agent runs here (looked in "), "{ended:?}");
    }
    let status = json!({
        "version": "1", "started_ms": 1, "trouble": "",
        "sessions": [{ "edge": "edge-1", "server": "https://e.test", "carrier": "quic", "since_ms": 1, "rtt_us": 900 }],
        "tunnels": [
            { "key": "web", "kind": "http", "url": "https://web.test", "state": "ready", "requests": 7 },
            { "key": "api", "kind": "http", "url": "", "state": "waiting", "reason": "not yet" },
        ],
    });
    let api = Router::new().route("/api/v1/status", get(move || async { Json(status) }));
    let api = Upstream::start(api).await;
    let address = api.address.to_string();
    let ended = run(&["ready", "--address", &address, "--tunnel", "web"]).await;
    assert_eq!((ended.code, &ended.out[..]), (Some(0), "ready: web https://web.test"));
    let began = std::time::Instant::now();
    let ended = run(&["ready", "--address", &address, "--timeout", "0.5"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("not ready: tunnel api is waiting (not yet)"), "{ended:?}");
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    let ended = run(&["status", "--address", &address]).await;
    assert!(ended.code == Some(0) && ended.out.contains("https://web.test -> "), "{ended:?}");
    let ended = run(&["status", "--address", &address, "--output", "json"]).await;
    let told: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&told["tunnels"][0]["requests"], &told["pid"]), (&json!(7), &json!(null)));
    let ended = run(&["status", "--address", "127.0.0.1:9"]).await;
    assert!(
        ended.code == Some(1) && ended.err.contains("no agent answers at http://127.0.0.1:9"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn an_agent_is_found_by_its_state_folder() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("x").await;
    let agent = Process::start(&mut edge.agent(&["http", &upstream.port(), "--name", "demo"]));
    let run = async |arguments: &[&str]| {
        process::run(process::agent(edge.home.path()).args(arguments)).await
    };
    let ended = run(&["ready", "--timeout", "20"]).await;
    assert!(ended.code == Some(0) && ended.out.contains("http http://demo."), "{ended:?}");
    let ended = run(&["status"]).await;
    for part in ["online", "http://demo.localhost:", "ready", "Session", "Inspector"] {
        assert!(ended.out.contains(part), "{ended:?}");
    }
    let ended = run(&["status", "--pid", &agent.id().to_string(), "--output", "json"]).await;
    let told: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&told["pid"], &told["tunnels"][0]["name"]), (&json!(agent.id()), &json!("demo")));
    agent.signal("INT").await;
    assert_eq!(agent.ended().await.code, Some(0));
    assert_eq!(run(&["ready"]).await.code, Some(1));
}

#[tokio::test]
async fn a_service_is_described_before_it_is_made() {
    let edge = Edge::start().await;
    let token = edge.token_file();
    let token = token.to_str().unwrap();
    let section = format!("[agent]\ntoken_file = {token:?}\n");
    let file = config(&edge, &format!("{section}[tunnels.web]\nupstream = \"unix:/tmp/a.sock\"\n"));
    let run = async |arguments: &[&str]| {
        let mut command = process::agent(edge.home.path());
        process::run(command.args(["service"]).args(arguments)).await
    };
    let ended = run(&["install", "--user", "--config", &file, "--dry-run"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains(&format!("start --all --config \"{file}\"\n")), "{}", ended.out);
    let system = ["install", "--system", "--name", "shop", "--config", &file, "--dry-run"];
    let ended = run(&system).await;
    for part in ["PrivateTmp=no", "LoadCredential=token:/etc/uniroute/uniroute-shop.token"] {
        assert!(ended.out.contains(part), "{ended:?}");
    }
    let secret = std::fs::read_to_string(token).unwrap();
    assert!(
        !ended.out.contains(secret.trim())
            && !Path::new("/etc/uniroute/uniroute-shop.token").exists()
    );

    let ended = run(&["install", "--user", "--name", "../x", "--config", &file]).await;
    assert!(ended.err.contains("can't be a service's name"), "{ended:?}");
    let ended = run(&["install", "--user", "--config", "none.toml"]).await;
    assert!(ended.code == Some(3) && ended.err.contains("none.toml"), "{ended:?}");
    let bare = config(&edge, "[tunnels.web]\nupstream = \"3000\"\n");
    let ended = run(&["install", "--user", "--config", &bare]).await;
    assert!(ended.err.contains("`uniroute login` makes one"), "{ended:?}");
}

#[tokio::test]
async fn each_request_is_a_line_of_the_log_if_that_is_wanted() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("x").await;
    let log = ["--log-requests", "--log-format", "json"];
    let mut command = edge.agent(&["http", &upstream.port(), "--name", "demo"]);
    let agent = Process::start(command.args(log));
    let line = agent.out_line("ready http http://demo.localhost:").await;
    assert!(line.ends_with(&format!(" -> http://localhost:{}", upstream.port())), "{line}");
    let (status, _) = edge.get("demo", "/a/b?token=secret").await;
    assert_eq!(status, 200);
    let line = agent.err_line("\"request\"").await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let said = (&line["tunnel"], &line["method"], &line["path"], &line["status"]);
    assert_eq!(said, (&json!("http"), &json!("GET"), &json!("/a/b"), &json!(200)));
    agent.signal("INT").await;
    let ended = agent.ended().await;
    assert!(ended.code == Some(0) && !ended.err.contains("secret"), "{ended:?}");
    assert!(ended.out.contains("\ndraining: "), "{ended:?}");
}

/// `uniroute ARGUMENTS` in a terminal, which `script` (of util-linux) makes.
fn in_terminal(edge: &Edge, arguments: &str, term: &str) -> Process {
    let agent = edge.agent(&[]);
    let program = agent.as_std().get_program().to_str().unwrap().to_owned();
    let mut command = process::command(Path::new("/usr/bin/script"), edge.home.path());
    let run = format!("stty rows 24 cols 100; echo $$ >pid; exec {program} {arguments}");
    command.args(["-qec", &run, "/dev/null"]).env("TERM", term).env("PATH", "/usr/bin:/bin");
    command.env("UNIROUTE_SERVER", edge.url()).env("UNIROUTE_TOKEN_FILE", edge.token_file());
    Process::start(&mut command)
}

/// `uniroute login` in a terminal in which `keys` are typed once the token is asked for; how it ended,
/// and the terminal's settings after it.
async fn logged_in(edge: &Edge, keys: &str) -> process::Ended {
    let agent = edge.agent(&[]);
    let program = agent.as_std().get_program().to_str().unwrap().to_owned();
    let home = edge.home.path();
    let mut command = process::command(Path::new("/usr/bin/script"), home);
    // The shell is not ended by what is typed, and says how it finds the terminal afterwards.
    let run = format!("trap : INT; {program} login --server {}; echo code $?; stty -a", edge.url());
    command.args(["-qefc", &run, "shown"]).env("TERM", "xterm").env("PATH", "/usr/bin:/bin");
    let (input, mut fingers) = std::io::pipe().unwrap();
    let terminal = Process::start(command.stdin(input));
    // Not a whole line, so it is looked for in the record.
    eventually("the question", async || {
        let shown = std::fs::read_to_string(home.join("shown")).ok()?;
        shown.contains("Token (it is not shown): ").then_some(())
    })
    .await;
    fingers.write_all(keys.as_bytes()).unwrap();
    terminal.ended().await
}

#[tokio::test]
async fn a_token_that_is_typed_is_not_shown() {
    let edge = Edge::start().await;
    let token = std::fs::read_to_string(edge.token_file()).unwrap();
    let token = token.trim();
    // As pasted from somewhere, with a slip of the fingers that is taken back.
    let ended = logged_in(&edge, &format!("  {token}x\x7f \t\n")).await;
    assert!(ended.out.contains("Logged in at ") && ended.out.contains("code 0"), "{ended:?}");
    assert!(!ended.out.contains(token), "{ended:?}");
    assert!(!ended.out.contains("-echo ") && !ended.out.contains("-isig"), "{ended:?}");
    let stored = edge.home.path().join(".config/uniroute/token");
    assert_eq!(std::fs::read_to_string(stored).unwrap().trim(), token);
}

#[tokio::test]
async fn who_gives_up_has_the_terminal_back() {
    let edge = Edge::start().await;
    let ended = logged_in(&edge, "half-of-a-token\x03").await;
    assert!(ended.out.contains("given up: nothing is stored"), "{ended:?}");
    assert!(ended.out.contains("code 130") && !ended.out.contains("half-of"), "{ended:?}");
    assert!(!ended.out.contains("-echo ") && !ended.out.contains("-isig"), "{ended:?}");
    assert!(!edge.home.path().join(".config").exists());
}

async fn signal(edge: &Edge, name: &str) {
    let pid = std::fs::read_to_string(edge.home.path().join("pid")).unwrap();
    let mut kill = process::command(Path::new("/bin/sh"), edge.home.path());
    let ended = process::run(kill.args(["-c", &format!("kill -{name} {pid}")])).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

#[tokio::test]
async fn a_terminal_shows_a_live_view_and_has_its_cursor_back() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("x").await;
    let shown = in_terminal(&edge, &format!("http {} --name demo --qr", upstream.port()), "xterm");
    shown.out_line("No requests yet").await;
    edge.get("demo", "/shown?secret").await;
    shown.out_line("/shown?").await;
    signal(&edge, "TERM").await;
    let ended = shown.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (hidden, back) = (ended.out.rfind("\x1b[?25l"), ended.out.rfind("\x1b[?25h"));
    assert!(hidden.is_some() && back > hidden, "{ended:?}");
    let last = ended.out.rsplit("UniRoute").next().unwrap();
    assert!(last.contains("ended"), "{last:?}");
    assert!(ended.out.contains('▀') && !ended.out.contains("secret"), "{ended:?}");
}

#[tokio::test]
async fn a_simple_terminal_gets_plain_lines() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("x").await;
    let shown = in_terminal(&edge, &format!("http {} --name demo", upstream.port()), "dumb");
    shown.out_line("ready http http://demo.localhost:").await;
    signal(&edge, "INT").await;
    let ended = shown.ended().await;
    assert!(ended.code == Some(0) && !ended.out.contains('\x1b'), "{ended:?}");
}
