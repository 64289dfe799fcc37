//! What must not be seen from outside: secrets, who has an account, ports that nobody knows of.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use uniroute_edge::setup::Role;

use crate::harness::{
    cluster::{Alone, Api, account, figure},
    process::{self, Process, run},
    upstream::TestUpstream,
    wire::Wire,
};

/// `uniroute-edge serve` in a folder, with its log at its loudest.
struct Serving {
    home: tempfile::TempDir,
    process: Process,
    http: SocketAddr,
    admin: SocketAddr,
}

impl Serving {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = process::edge(home.path());
        command.args([
            "serve",
            "--http",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--data-dir",
            "data",
        ]);
        command.args(["--log-format", "json", "--log-level", "trace"]);
        let process = Process::start(&mut command);
        let line: Value = serde_json::from_str(&process.err_line("\"listening\"").await).unwrap();
        let address = |name: &str| {
            let nested = line.get("fields").and_then(|fields| fields.get(name));
            line.get(name).or(nested).and_then(Value::as_str).unwrap().parse().unwrap()
        };
        let (http, admin) = (address("http"), address("admin"));
        Self { home, process, http, admin }
    }

    async fn send(&self, text: &str) -> crate::harness::wire::Answer {
        let mut wire = Wire::connect(self.http).await;
        wire.send(text).await;
        wire.answer("GET").await
    }

    async fn metrics(&self) -> String {
        let mut wire = Wire::connect(self.admin).await;
        wire.send("GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
        wire.answer("GET").await.text().to_owned()
    }
}

/// All bytes of all files in a folder.
fn bytes_of(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(bytes_of(&path)),
            false => all.extend(std::fs::read(&path).unwrap()),
        }
    }
    all
}

fn has(all: &[u8], text: &str) -> bool {
    all.windows(text.len()).any(|part| part == text.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn t20_secrets_are_in_no_log_no_database_and_no_metric() {
    const PASSWORD: &str = "canary-password-5b1f";
    const HEADER: &str = "canary-header-77aa";
    const QUERY: &str = "canary-query-03cd";
    let serving = Serving::start().await;
    let home = serving.home.path();
    std::fs::write(home.join("password"), PASSWORD).unwrap();
    let edge = |args: &[&str]| {
        let mut command = process::edge(home);
        command.args(args).args(["--data-dir", "data"]);
        command
    };
    let added =
        run(&mut edge(&["user", "add", "ann@example.com", "--password-file", "password"])).await;
    assert_eq!(added.code, Some(0), "{added:?}");
    let token = run(&mut edge(&["token", "add", "ann@example.com"])).await.out.trim().to_owned();
    assert!(token.starts_with("ur_"), "{token}");

    let body = json!({ "email": "ann@example.com", "password": PASSWORD }).to_string();
    let head = "host: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let length = body.len();
    let login = serving
        .send(&format!(
            "POST /api/v1/auth/login HTTP/1.1\r\n{head}content-length: {length}\r\n\r\n{body}"
        ))
        .await;
    assert_eq!(login.status(), 200, "{}", login.text());
    let login: Value = serde_json::from_slice(&login.body).unwrap();
    let (access, refresh) = (
        login["access_token"].as_str().unwrap().to_owned(),
        login["refresh_token"].as_str().unwrap().to_owned(),
    );
    let mine = serving
        .send(&format!(
            "GET /api/v1/tokens HTTP/1.1\r\n{head}authorization: Bearer {access}\r\n\r\n"
        ))
        .await;
    assert_eq!(mine.status(), 200);

    let upstream = TestUpstream::saying("served").await;
    std::fs::write(home.join("token"), &token).unwrap();
    let mut command = process::agent(home);
    command.args(["http", &upstream.url(), "--name", "shop", "--token-file", "token", "--server"]);
    command.arg(format!("http://{}", serving.http)).args(["--log-level", "trace"]);
    let agent = Process::start(&mut command);
    agent.out_line("ready http").await;
    let visit = format!(
        "GET /page?token={QUERY}&x=visible-part HTTP/1.1\r\nhost: shop.localhost\r\n\
         authorization: Bearer {HEADER}\r\ncookie: session={HEADER}\r\nconnection: close\r\n\r\n"
    );
    serving.send(&visit).await.assert_ok("served");
    let metrics = serving.metrics().await;
    agent.signal("INT").await;
    let agent = agent.ended().await;
    serving.process.signal("TERM").await;
    let ended = serving.process.ended().await;
    let database = bytes_of(&home.join("data"));
    assert!(has(&database, "visible-part"), "the request is in the log");
    assert!(has(&database, "ann@example.com"));
    let random = &token[3 + 5..];
    let secrets = [PASSWORD, HEADER, QUERY, &token, random, &access, &refresh];
    for secret in secrets {
        let place = [
            ("the edge's log", ended.err.as_bytes()),
            ("the edge's output", ended.out.as_bytes()),
            ("the agent's log", agent.err.as_bytes()),
            ("the database", &database),
            ("a metric", metrics.as_bytes()),
        ]
        .into_iter()
        .find(|(_, text)| has(text, secret));
        if let Some((place, _)) = place {
            let kind = secrets.iter().position(|other| *other == secret);
            let line = ended.err.lines().find(|line| line.contains(secret)).unwrap_or_default();
            panic!("secret {kind:?} is in {place}: {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t20_hosts_and_paths_make_no_new_metrics() {
    let alone = Alone::start().await;
    let series = async || {
        let metrics = alone.edge.ask_admin("/metrics").await;
        metrics.text().lines().filter(|line| !line.starts_with('#')).count()
    };
    let mut wire = alone.edge.visitor().await;
    for number in 0..20 {
        wire.get(&format!("first-{number}"), "/").await.assert_failed(404, "UR-1001");
    }
    let before = series().await;
    for number in 0..2_000 {
        let answer = wire.get(&format!("name-{number}"), &format!("/path-{number}")).await;
        answer.assert_failed(404, "UR-1001");
    }
    assert_eq!(series().await, before);
}

/// Ports on which a process listens, as the kernel has it.
fn listening(pid: u32) -> BTreeSet<(&'static str, u16)> {
    let mut sockets = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        if let Ok(target) = std::fs::read_link(entry.path()) {
            let target = target.to_string_lossy().into_owned();
            if let Some(inode) = target.strip_prefix("socket:[") {
                sockets.insert(inode.trim_end_matches(']').to_owned());
            }
        }
    }
    let mut ports = BTreeSet::new();
    for (protocol, listens) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let table =
            std::fs::read_to_string(format!("/proc/{pid}/net/{protocol}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if fields[3] == listens && sockets.contains(fields[9]) {
                let port = fields[1].rsplit(':').next().unwrap();
                let port = u16::from_str_radix(port, 16).unwrap();
                ports.insert((protocol.trim_end_matches('6').to_owned().leak() as &str, port));
            }
        }
    }
    ports
}

#[tokio::test(flavor = "multi_thread")]
async fn t22_only_documented_ports_are_open() {
    let serving = Serving::start().await;
    let http = serving.http.port();
    let wanted = BTreeSet::from([("tcp", http), ("udp", http), ("tcp", serving.admin.port())]);
    let mut open = listening(serving.process.id());
    // The port for TLS is the system's choice or the default, where it can be had.
    open.retain(|(protocol, port)| !(*protocol == "tcp" && *port == 443 || *port == 8443));
    assert_eq!(open, wanted);
    // No page for operators at visitors' door.
    for path in ["/metrics", "/debug/status", "/readyz", "/healthz"] {
        let answer = serving.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
        assert_eq!(answer.status(), 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t24_a_login_takes_as_long_whether_there_is_such_an_account_or_not() {
    const ACCOUNTS: usize = 8;
    const EACH: usize = 3;
    let alone = Alone::with(|settings| settings.durable.bans.logins = 0).await;
    let setup = alone.setup().await;
    for number in 0..ACCOUNTS {
        account(&setup, &format!("user{number}@example.com"), Role::User, None).await;
    }
    let mut took = [Vec::new(), Vec::new()];
    for number in 0..ACCOUNTS * EACH {
        let emails = [
            format!("user{}@example.com", number % ACCOUNTS),
            format!("nobody{}@example.com", number % ACCOUNTS),
        ];
        // Each is the first one half of the time.
        for turn in [number % 2, (number + 1) % 2] {
            let (email, took) = (&emails[turn], &mut took[turn]);
            let api = Api::nobody(
                &alone.edge,
                [127, 1, u8::try_from(turn).unwrap(), u8::try_from(number + 1).unwrap()],
            );
            let body = json!({ "email": email, "password": "not the password at all" });
            let began = Instant::now();
            let answer = api.send("POST", "/auth/login", Some(body)).await;
            took.push(began.elapsed());
            answer.assert_failed(401, "UR-4021");
        }
    }
    // Of the quicker half: others use the machine, too.
    let mean = |took: &mut Vec<Duration>| {
        took.sort_unstable();
        let quick = &took[..took.len() / 2];
        quick.iter().sum::<Duration>().as_secs_f64() / quick.len() as f64
    };
    let [known, unknown] = took.each_mut().map(mean);
    figure(format_args!("login: {:.1} ms known, {:.1} ms unknown", known * 1e3, unknown * 1e3));
    assert!((known / unknown - 1.0).abs() < 0.10, "{known} s and {unknown} s");
}
