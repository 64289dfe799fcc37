//! `uniroute diagnose`: what it says of each thing that may be wrong. Times and ports are left out of
//! the snapshots, since they are others each time.

use std::{path::Path, process::Stdio};

use tokio::process::Command;

use crate::{
    connect::{foreign, fronts::Authority},
    harness::{Edge, Upstream, process},
};

/// Runs it in a home of its own; the exit code, and what it prints.
async fn run(home: &Path, command: &mut Command) -> (Option<i32>, String) {
    let ended = process::run(command.stdin(Stdio::null())).await;
    let text = format!("{}\n{}", ended.out.trim(), ended.err.trim());
    (ended.code, plain(text.trim(), home))
}

/// Without what differs from run to run.
fn plain(text: &str, home: &Path) -> String {
    let text = text.replace(home.to_str().unwrap(), "HOME");
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number = rest[..end].trim_end_matches('.');
        rest = &rest[number.len()..];
        // Ports and times; addresses, statuses and codes stay.
        let after = rest.trim_start();
        let varies = (plain.ends_with(':') && number.len() > 3) || after.starts_with("ms");
        plain.push_str(if varies { "N" } else { number });
    }
    plain.push_str(rest);
    let lines = plain.lines().map(|line| match line.split_once("  open files") {
        Some((state, _)) => format!("{state}  open files  …"),
        None => line.to_owned(),
    });
    // What took no full millisecond has no time, at times.
    lines.map(|line| line.replace(" (N ms)", "")).collect::<Vec<_>>().join("\n")
}

fn diagnose(edge: &Edge, arguments: &[&str]) -> Command {
    let mut command = edge.agent(&["diagnose"]);
    command.args(arguments);
    command
}

/// The edge's own name is another one each time.
fn nameless(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let words = line.split(' ').map(|word| match word.starts_with("edge-0") {
            true => "EDGE",
            false => word,
        });
        lines.push(words.collect::<Vec<_>>().join(" "));
    }
    lines.join("\n")
}

#[tokio::test]
async fn everything_is_fine() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let (code, text) = run(edge.home.path(), &mut diagnose(&edge, &[&upstream.port()])).await;
    assert_eq!(code, Some(0), "{text}");
    insta::assert_snapshot!(nameless(&text));
}

#[tokio::test]
async fn the_edge_is_down() {
    let edge = Edge::start().await;
    let nobody = foreign::free().await;
    let mut command = diagnose(&edge, &["--server", &format!("http://{nobody}")]);
    let (code, text) = run(edge.home.path(), &mut command).await;
    assert_eq!(code, Some(5), "{text}");
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn what_answers_is_no_edge() {
    let edge = Edge::start().await;
    let site = Upstream::start(axum::Router::new().fallback(async || {
        ([("server", "nginx/1.22.1")], axum::response::Html("<title>Welcome!</title>"))
    }))
    .await;
    let mut command = diagnose(&edge, &["--server", &format!("http://{}", site.address)]);
    let (code, text) = run(edge.home.path(), &mut command).await;
    assert_eq!(code, Some(5), "{text}");
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn the_token_is_wrong() {
    let edge = Edge::start().await;
    let mut command = diagnose(&edge, &[]);
    command.env("UNIROUTE_TOKEN", "canary-wrong-token-0001");
    let (code, text) = run(edge.home.path(), &mut command).await;
    assert_eq!(code, Some(4), "{text}");
    assert!(!text.contains("canary"), "{text}");
    insta::assert_snapshot!(nameless(&text));
    let mut none = diagnose(&edge, &[]);
    none.env_remove("UNIROUTE_TOKEN_FILE");
    let (code, text) = run(edge.home.path(), &mut none).await;
    assert!(code == Some(4) && text.contains("no token. `uniroute login`"), "{text}");
}

#[tokio::test]
async fn the_local_server_is_down() {
    let edge = Edge::start().await;
    let nobody = foreign::free().await;
    let mut command = diagnose(&edge, &[&nobody.port().to_string()]);
    let (code, text) = run(edge.home.path(), &mut command).await;
    assert_eq!(code, Some(7), "{text}");
    insta::assert_snapshot!(nameless(&text));
}

#[tokio::test]
async fn the_config_file_is_wrong() {
    let edge = Edge::start().await;
    let file = edge.home.path().join("uniroute.toml");
    let text = "version = 1\n[tunnels.web]\nupstrem = \"3000\"\nbasic_auth = \"canary:canary\"\n";
    std::fs::write(&file, text).unwrap();
    let mut command = diagnose(&edge, &["--config", "uniroute.toml"]);
    command.env_remove("UNIROUTE_SERVER");
    let (code, text) = run(edge.home.path(), &mut command).await;
    assert_eq!(code, Some(3), "{text}");
    assert!(!text.contains("canary"), "{text}");
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn the_name_does_not_resolve() {
    let edge = Edge::start().await;
    let mut command = diagnose(&edge, &["--server", "https://edge.invalid"]);
    let (code, text) = run(edge.home.path(), &mut command).await;
    assert_eq!(code, Some(5), "{text}");
    // Why a resolver finds nothing it says in its own words.
    let step = text.lines().find(|line| line.contains("  dns ")).unwrap();
    assert!(step.starts_with("FAIL  dns"), "{text}");
    assert!(
        text.contains("SKIP  tcp, tls, websocket, ping, clock, quic, token  dns has to work first"),
        "{text}"
    );
}

#[tokio::test]
async fn certificates_are_described_and_proxies_named() {
    let edge = Edge::start().await;
    let authority = Authority::new();
    let front = foreign::nginx(edge.http, authority.certify("localhost").pair(), true, "").await;
    let proxy = foreign::tinyproxy("BasicAuth ann canary-proxy").await;
    let server = format!("https://localhost:{}", front.address.port());
    let ca = authority.file();
    let mut command = diagnose(&edge, &["--server", &server, "--server-ca", ca.to_str().unwrap()]);
    command.args(["--proxy", &format!("http://{}", proxy.address), "--json"]);
    command.env("UNIROUTE_PROXY_CREDENTIALS", "ann:canary-proxy");
    let ended = process::run(&mut command).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
    let says = |name: &str| {
        let step = report["steps"].as_array().unwrap().iter().find(|step| step["name"] == name);
        let step = step.unwrap();
        format!("{} {}", step["state"].as_str().unwrap(), step["says"].as_str().unwrap())
    };
    assert_eq!(says("proxy"), format!("PASS http://{0} takes connections at {0}", proxy.address));
    assert!(says("tcp").starts_with("PASS http://127.0.0.1:"), "{}", says("tcp"));
    let tls = says("tls");
    assert!(tls.starts_with("PASS TLS 1.3; for localhost, by CN="), "{tls}");
    assert!(tls.contains(" days left, key sha256/"), "{tls}");
    assert_eq!(says("quic"), "SKIP it goes through no proxy");
    assert!(says("clock").starts_with("PASS as the edge's"), "{}", says("clock"));
    assert!(!ended.out.contains("canary"), "{}", ended.out);

    command.env("UNIROUTE_PROXY_CREDENTIALS", "ann:canary-wrong");
    let ended = process::run(&mut command).await;
    assert!(ended.code == Some(5) && ended.out.contains("it does not take this user"), "{ended:?}");
    assert!(!ended.out.contains("canary") && !ended.err.contains("canary"), "{ended:?}");
}

#[tokio::test]
async fn t20_no_secret_is_in_what_goes_with_a_bug_report() {
    let edge = Edge::start().await;
    let home = edge.home.path();
    std::fs::write(home.join("uniroute.toml"), CONFIG).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(home.join("uniroute.toml"), mode).unwrap();
    let mut command = diagnose(&edge, &["--config", "uniroute.toml", "--bundle", "bug.tar.gz"]);
    command.env("UNIROUTE_TOKEN", "canary-token-of-the-environment");
    command.env("SOMETHING_ELSE", "canary-variable").env("ALL_PROXY", "http://canary:canary@p");
    let ended = process::run(&mut command).await;
    assert!(!ended.out.contains("canary") && !ended.err.contains("canary"), "{ended:?}");
    // tar itself reads it.
    let unpacked = process::run(
        Command::new("tar")
            .args(["-xzf", "bug.tar.gz"])
            .current_dir(home)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
    .await;
    assert_eq!(unpacked.code, Some(0), "{unpacked:?}");
    let read = |name: &str| std::fs::read_to_string(home.join(name)).unwrap();
    let (report, config, about) = (read("report.json"), read("config.toml"), read("about.json"));
    for text in [&report, &config, &about] {
        assert!(!text.contains("canary"), "{text}");
    }
    for part in [
        "upstream = \"3000\"",
        "max_body = 7",
        "basic_auth = [\"(removed)\"]",
        "proxy = \"http://(removed)@127.0.0.1:9\"",
        "token_file = \"token\"",
    ] {
        assert!(config.contains(part), "{part}: {config}");
    }
    assert!(about.contains("\"SOMETHING_ELSE\""), "{about}");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(ended.code, report["exit_code"].as_i64().and_then(|code| code.try_into().ok()));
    // Nothing is written over.
    let again = process::run(&mut command).await;
    assert!(again.code == Some(1) && again.err.contains("cannot write bug.tar.gz"), "{again:?}");
}

const CONFIG: &str = r#"# canary in a comment
version = 1
[agent]
token_file = "token"
proxy = "http://ann:canary-proxy@127.0.0.1:9"
[tunnels.web]
upstream = "3000"
max_body = 7
basic_auth = ["ann:canary-password"]
[tunnels.web.request_headers]
set = { Authorization = "Bearer canary-header" }
[tunnels.web.webhook]
provider = "github"
secret = "canary-webhook"
"#;
