//! The first minute of a new user: with the program and a token to a URL that answers, and what is
//! said at each wrong step on the way.

use std::{
    fmt::Write as _,
    net::TcpListener,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use axum::Router;
use tokio::process::Command;

use crate::harness::{
    Edge, Upstream,
    process::{self, Process, run},
};

/// From the command to the URL, in a build for tests.
const TO_THE_URL: Duration = Duration::from_secs(2);

/// `uniroute ARGUMENTS` of a user in `home` who has set nothing.
fn user(home: &Path, arguments: &[&str]) -> Command {
    let mut command = process::agent(home);
    command.args(arguments);
    command
}

/// The same with a line on standard input.
async fn told(home: &Path, arguments: &[&str], line: &str) -> process::Ended {
    let mut command = user(home, arguments);
    let mut process = Process::start(command.stdin(Stdio::piped()));
    process.tell(line).await;
    process.ended().await
}

fn token(edge: &Edge) -> String {
    std::fs::read_to_string(edge.token_file()).unwrap()
}

/// What is said, with what is another one each time left out.
struct Said {
    text: String,
    hidden: Vec<(String, &'static str)>,
}

impl Said {
    fn new(hidden: &[(&str, &'static str)]) -> Self {
        let own = |(text, name): &(&str, &'static str)| ((*text).to_owned(), *name);
        Self { text: String::new(), hidden: hidden.iter().map(own).collect() }
    }

    fn step(&mut self, what: &str, code: Option<i32>, out: &str, err: &str) {
        let code = code.map_or("goes on".to_owned(), |code| format!("exit code {code}"));
        let mut all = format!("{out}\n{err}");
        for (text, name) in &self.hidden {
            all = all.replace(text.as_str(), name);
        }
        let lines = all
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| format!("  {}\n", without_times(line)));
        write!(self.text, "# {what}: {code}\n{}\n", lines.collect::<String>()).unwrap();
    }
}

/// Short of what is another one each time: when it was, the edge's own name, when the next try is, and
/// the system's words for a name that there is not.
fn without_times(line: &str) -> String {
    let line = match line.split_once("Z ") {
        Some((time, rest)) if time.starts_with("20") && !time.contains(' ') => rest.trim_start(),
        _ => line,
    };
    let mut line = line.to_owned();
    for (before, after) in [("does not resolve: ", "; "), ("next try in ", "\n"), (" edge-", " ")] {
        if let Some((head, rest)) = line.split_once(before) {
            let rest = rest.find(after).map_or("", |end| &rest[end..]);
            line = format!("{head}{before}…{rest}");
        }
    }
    line
}

#[tokio::test]
async fn from_a_token_to_a_url_that_answers() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let home = tempfile::tempdir().unwrap();
    let mut said = Said::new(&[
        (&edge.url(), "http://EDGE"),
        (&edge.http.port().to_string(), "EDGEPORT"),
        (&upstream.port(), "LOCALPORT"),
        (home.path().to_str().unwrap(), "HOME"),
    ]);
    let login = told(home.path(), &["login", "--server", &edge.url()], &token(&edge)).await;
    let out = login.out.split_once(" (edge ").unwrap();
    let out = format!("{} (edge …){}", out.0, out.1.split_once(')').unwrap().1);
    said.step("login", login.code, &out, &login.err);
    let folder = home.path().join(".config/uniroute");
    for (path, mode) in [("", 0o700), ("token", 0o600), ("uniroute.toml", 0o600)] {
        let path = folder.join(path);
        let rights = std::fs::metadata(&path).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&rights) & 0o777, mode, "{path:?}");
    }
    let config = std::fs::read_to_string(folder.join("uniroute.toml")).unwrap();
    said.step("the config file then", None, &config, "");

    let began = Instant::now();
    let arguments = ["http", &upstream.port(), "--name", "demo", "--inspector", "off"];
    let agent = Process::start(&mut user(home.path(), &arguments));
    let line = agent.out_line("http://demo.").await;
    let took = began.elapsed();
    assert!(took < TO_THE_URL, "{took:?}");
    eprintln!("from the command to the URL: {took:?}");
    said.step("http", None, &line, "");
    let (status, answer) = edge.get("demo", "/").await;
    assert!(status == 200 && answer.ends_with("served"), "{answer}");
    agent.signal("INT").await;
    assert_eq!(agent.ended().await.code, Some(0));

    let logout = run(&mut user(home.path(), &["logout"])).await;
    said.step("logout", logout.code, &logout.out, &logout.err);
    let config = std::fs::read_to_string(folder.join("uniroute.toml")).unwrap();
    said.step("the config file then", None, &config, "");
    assert!(!folder.join("token").exists());
    let again = run(&mut user(home.path(), &["logout"])).await;
    said.step("logout again", again.code, &again.out, &again.err);
    let http = run(&mut user(home.path(), &["http", "3000"])).await;
    said.step("http after it", http.code, &http.out, &http.err);
    insta::assert_snapshot!(said.text);
}

#[tokio::test]
async fn login_keeps_what_is_in_the_config_file() {
    let edge = Edge::start().await;
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/uniroute");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("uniroute.toml");
    let before = "# mine\nversion = 1\n\n[agent] # about me\nserver = \"http://old.test\" # the old one\nlanes = 2\n\n[tunnels.web]\nupstream = \"3000\" # the site\n";
    std::fs::write(&path, before).unwrap();
    let login = told(home.path(), &["login", "--server", &edge.url()], &token(&edge)).await;
    assert_eq!(login.code, Some(0), "{login:?}");
    let after = std::fs::read_to_string(&path).unwrap();
    let expected = before.replace("http://old.test", &edge.url());
    assert_eq!(after, expected.replace("lanes = 2\n", "lanes = 2\ntoken_file = \"token\"\n"));
    // One of several stays among them.
    let several = after.replace(
        &format!("\"{}\"", edge.url()),
        &format!("[\"http://other.test\", \"{}\"]", edge.url()),
    );
    std::fs::write(&path, &several).unwrap();
    let login = told(home.path(), &["login", "--server", &edge.url()], &token(&edge)).await;
    assert_eq!(login.code, Some(0), "{login:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), several);
}

#[tokio::test]
async fn wrong_steps_with_an_edge() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port().to_string();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let mut said = Said::new(&[
        // A machine may have no name.
        (&format!("of yours on {},", host.trim()), "of yours,"),
        (&edge.url(), "http://EDGE"),
        (&edge.http.port().to_string(), "EDGEPORT"),
        (&upstream.port(), "LOCALPORT"),
        (&taken_port, "TAKENPORT"),
        (&free, "FREEPORT"),
        (home.path().to_str().unwrap(), "HOME"),
    ]);
    let url = edge.url();
    let wrong = "ur_wrong_4f1d9be07c";
    let login = told(home.path(), &["login", "--server", &url], wrong).await;
    assert!(!login.err.contains(wrong));
    said.step("login with a wrong token", login.code, &login.out, &login.err);
    let login = told(home.path(), &["login", "--server", &url], "short").await;
    said.step("login with what is no token", login.code, &login.out, &login.err);
    assert!(!home.path().join(".config").exists(), "nothing is stored");

    let ended =
        run(user(home.path(), &["http", &upstream.port(), "--server", &url, "--inspector", "off"])
            .env("UNIROUTE_TOKEN", wrong))
        .await;
    said.step("http with a wrong token", ended.code, &ended.out, &ended.err);

    let good = |arguments: &[&str]| {
        let mut command = user(home.path(), arguments);
        command.env("UNIROUTE_SERVER", &url).env("UNIROUTE_TOKEN_FILE", edge.token_file());
        command
    };
    let ended = run(&mut good(&[
        "http",
        &upstream.port(),
        "--inspector",
        &format!("127.0.0.1:{taken_port}"),
    ]))
    .await;
    said.step("the inspector's port is taken", ended.code, &ended.out, &ended.err);

    let agent =
        Process::start(&mut good(&["http", &free, "--name", "nobody", "--inspector", "off"]));
    let ready = agent.out_line("http://nobody.").await;
    let warning = agent.err_line(&free).await;
    said.step("nothing listens on the port", None, &ready, &warning);
    agent.signal("INT").await;
    agent.ended().await;

    let ended = run(&mut good(&["http", &free, "--require-local", "--inspector", "off"])).await;
    said.step("nothing listens, with --require-local", ended.code, &ended.out, &ended.err);

    let mut first = good(&["http", &upstream.port(), "--name", "demo", "--inspector", "off"]);
    let first = Process::start(&mut first);
    first.out_line("http://demo.").await;
    let mut second = good(&["http", &upstream.port(), "--name", "demo", "--inspector", "off"]);
    let ended = run(second.args(["--state-dir", "other"])).await;
    said.step("the name is taken", ended.code, &ended.out, &ended.err);
    first.signal("INT").await;
    first.ended().await;
    insta::assert_snapshot!(said.text);
}

#[tokio::test]
async fn wrong_steps_without_an_edge() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let other = Upstream::start(Router::new().fallback(|| async { "hello" })).await;
    let tls = untrusted().await;
    let mut said = Said::new(&[
        (&free, "FREEPORT"),
        (&other.port(), "OTHERPORT"),
        (&tls.to_string(), "TLSPORT"),
        (dir.to_str().unwrap(), "HOME"),
    ]);
    std::fs::write(dir.join("token"), "ur_some_token_0123456789").unwrap();
    std::fs::write(dir.join("empty"), "").unwrap();
    let typo = "version = 1\nserver = \"http://localhost\"\n[agent]\nheartbaet = 5\n[agent.log]\nlevel = \"loud\"\n[tunnels.web]\nupstrem = \"3000\"\n[tunnels.api]\nupstream = \"99999\"\nurl = \"demo\"\n";
    std::fs::write(dir.join("typo.toml"), typo).unwrap();
    std::fs::write(dir.join("more.toml"), "version = 1\n[tunnels.web]\nupstream = \"x\"\nname = \"a_b\"\nport = 1\n[tunnels.dns]\nkind = \"udp\"\nupstream = \"53\"\nidle_timeout = 0\n").unwrap();
    std::fs::write(dir.join("none.toml"), "version = 1\n").unwrap();
    std::fs::write(
        dir.join("two.toml"),
        "version = 1\n[tunnels.web]\nupstream = \"1\"\n[tunnels.api]\nupstream = \"2\"\n",
    )
    .unwrap();
    let down = format!("http://127.0.0.1:{free}");
    let not_an_edge = format!("http://127.0.0.1:{}", other.port());
    let untrusted = format!("https://localhost:{tls}");
    let local = other.port();
    let with = |more: &[&'static str]| -> Vec<String> {
        let all = ["http", &local, "--inspector", "off", "--fail-fast", "--token-file", "token"];
        all.iter().chain(more).map(|word| (*word).to_owned()).collect()
    };
    let to = |server: &str, more: &[&'static str]| -> Vec<String> {
        with(more).into_iter().chain(["--server".to_owned(), server.to_owned()]).collect()
    };
    let words = |all: &[&str]| all.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let cases = [
        ("no token", words(&["http", "3000"])),
        ("no such local server", words(&["http", "99999"])),
        ("a word for the local server", words(&["http", "localhost"])),
        ("a name that can't be", words(&["http", "3000", "--name", "my_site"])),
        ("a URL that contradicts", words(&["tcp", "22", "--url", "https://a.test"])),
        ("a flag that is not there", words(&["http", "3000", "--nmae", "x"])),
        ("the token's file is missing", words(&["http", "3000", "--token-file", "missing"])),
        ("the token's file is a folder", words(&["http", "3000", "--token-file", "."])),
        ("the token's file is empty", words(&["http", "3000", "--token-file", "empty"])),
        ("a password in the arguments", with(&["--proxy", "http://u:canary@proxy.test:1"])),
        ("an inspector that can't be", words(&["http", "3000", "--inspector", "4040x"])),
        ("no scheme", to("edge.test", &[])),
        ("the edge is down", to(&down, &[])),
        ("not an edge", to(&not_an_edge, &[])),
        ("no such host", to("http://no-such-host.invalid", &[])),
        ("an authority that is not known", to(&untrusted, &[])),
        ("a CA file that is not there", to(&untrusted, &["--server-ca", "missing.pem"])),
        ("a CA file that is none", to(&untrusted, &["--server-ca", "token"])),
        ("a pin that is none", to(&untrusted, &["--server-pin", "abc"])),
        ("a certificate without its key", to(&untrusted, &["--client-certificate", "c.pem"])),
        ("no config file", words(&["start", "--all"])),
        ("typos in the config file", words(&["start", "--all", "--config", "typo.toml"])),
        ("faults in the config file", words(&["config", "check", "more.toml"])),
        ("no tunnels in it", words(&["start", "--all", "--config", "none.toml"])),
        ("which of them", words(&["start", "--config", "two.toml"])),
        ("not one of them", words(&["start", "wbe", "--config", "two.toml"])),
        ("login without a URL", words(&["login"])),
    ];
    for (what, arguments) in cases {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let ended = run(&mut user(dir, &arguments)).await;
        assert!(!ended.err.contains("canary"), "{what}: {}", ended.err);
        said.step(what, ended.code, &ended.out, &ended.err);
    }
    // Without --fail-fast it goes on, and says so.
    let arguments =
        ["http", "3000", "--inspector", "off", "--token-file", "token", "--server", &down];
    let agent = Process::start(&mut user(dir, &arguments));
    let line = agent.out_line("next try in").await;
    said.step("the edge is down, and may come back", None, &line, "");
    agent.signal("INT").await;
    assert_eq!(agent.ended().await.code, Some(0));
    insta::assert_snapshot!(said.text);
}

/// The port of a server with a certificate that nobody vouches for.
async fn untrusted() -> u16 {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let private =
        rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![key.cert.der().clone()], private)
    .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(acceptor.clone().accept(socket));
        }
    });
    port
}
