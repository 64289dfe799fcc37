//! The two programs: `uniroute tcp`, `tls` and `udp`, and what an edge listens on then.

use std::{
    collections::HashSet,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::{Local, connect, exchange, free_ports};
use crate::{
    cli::listeners,
    harness::{
        TOKEN, eventually,
        process::{self, Process, run},
    },
};

/// `uniroute-edge serve`, ready.
struct Serving {
    process: Process,
    home: TempDir,
    listening: Value,
}

impl Serving {
    async fn start(flags: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), TOKEN).unwrap();
        let mut command = process::edge(home.path());
        command.args(["serve", "--http", "127.0.0.1:0", "--admin", "off", "--quic", "off"]);
        command.args(["--token-file", "token", "--log-format", "json"]).args(flags);
        let process = Process::start(&mut command);
        let line = process.err_line("\"listening\"").await;
        Self { process, home, listening: serde_json::from_str(&line).unwrap() }
    }

    fn address(&self, name: &str) -> SocketAddr {
        let nested = self.listening.get("fields").and_then(|fields| fields.get(name));
        let text = self.listening.get(name).or(nested).and_then(Value::as_str).unwrap();
        text.parse().unwrap()
    }

    fn agent(&self, words: &[&str]) -> Command {
        let mut command = process::agent(self.home.path());
        command.args(words).args([
            "--output",
            "json",
            "--token-file",
            "token",
            "--inspector",
            "off",
        ]);
        command.args(["--server", &format!("http://{}", self.address("http"))]);
        command
    }

    /// An agent that is ready, and its URL.
    async fn tunnel(&self, words: &[&str]) -> (Process, String) {
        let agent = Process::start(&mut self.agent(words));
        let ready: Value = serde_json::from_str(&agent.out_line("\"ready\"").await).unwrap();
        (agent, ready["url"].as_str().unwrap().to_owned())
    }
}

fn port(url: &str) -> u16 {
    url.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// T22: a port listens while a tunnel has it, and nothing else does.
#[tokio::test(flavor = "multi_thread")]
async fn t22_a_port_listens_while_a_tunnel_has_it() {
    let edge = Serving::start(&["--https", "127.0.0.1:0"]).await;
    let plain = HashSet::from([edge.address("http"), edge.address("https")]);
    assert_eq!(listeners(edge.process.id()), plain);
    let local = Local::echo().await;
    let upstream = local.address.port().to_string();
    let (agent, url) = edge.tunnel(&["tcp", &upstream]).await;
    assert!(url.starts_with("tcp://localhost:"), "{url}");
    let public = SocketAddr::from(([127, 0, 0, 1], port(&url)));
    assert!((20_000..=20_999).contains(&public.port()), "{url}");
    let with_port: HashSet<_> = plain.iter().copied().chain([public]).collect();
    assert_eq!(listeners(edge.process.id()), with_port);
    assert_eq!(listeners(agent.id()), HashSet::new());
    assert_eq!(exchange(&mut connect(public).await, b"through").await, b"through");
    agent.signal("INT").await;
    assert_eq!(agent.ended().await.code, Some(0));
    eventually("the port is closed", async || {
        (listeners(edge.process.id()) == plain).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_of_each_kind() {
    let range = free_ports();
    let wanted = range.start().to_string();
    let edge = Serving::start(&["--https", "127.0.0.1:0", "--tcp-ports", &wanted]).await;
    let (_tcp, url) = edge.tunnel(&["tcp", "127.0.0.1:1", "--port", &wanted]).await;
    assert_eq!(url, format!("tcp://localhost:{wanted}"));
    let (_tls, url) = edge.tunnel(&["tls", "127.0.0.1:1", "--name", "private"]).await;
    assert_eq!(url, format!("tls://private.localhost:{}", edge.address("https").port()));
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let upstream = echo.local_addr().unwrap().to_string();
    let (_udp, url) = edge.tunnel(&["udp", &upstream]).await;
    let visitor = UdpSocket::bind("127.0.0.1:0").unwrap();
    visitor.send_to(b"hello", ("127.0.0.1", port(&url))).unwrap();
    echo.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut got = [0; 9];
    assert_eq!(echo.recv(&mut got).unwrap(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_says_why() {
    let edge = Serving::start(&["--tcp-ports", "off", "--udp-ports", "7000-7001"]).await;
    for (words, code, why) in [
        (&["tcp", "5432"][..], 6, "UR-1105"),
        (&["tls", "8443"], 6, "UR-1105"),
        (&["udp", "53", "--port", "6999"], 6, "UR-1112"),
        (&["udp", "53", "--idle-timeout", "0"], 2, "stay for ever"),
        (&["udp", "unix:dns.sock"], 2, "datagrams go to a port"),
        (&["tcp", "https://localhost"], 2, "another kind"),
        (&["tcp", "5432", "--proxy-protocol", "v3"], 2, "v1 or v2"),
    ] {
        let ended = run(&mut edge.agent(words)).await;
        assert_eq!(ended.code, Some(code), "{words:?}: {}", ended.err);
        assert!(ended.err.contains(why), "{words:?}: {}", ended.err);
    }
    for flags in [["--tcp-ports", "9-8"], ["--https", "443"]] {
        let mut command = process::edge(edge.home.path());
        command.args(["serve", "--token-file", "token"]).args(flags);
        let ended = run(&mut command).await;
        assert!(ended.code == Some(3) && ended.err.contains(flags[1]), "{}", ended.err);
    }
}

/// Flag, environment and config key of each, as for HTTP.
#[tokio::test(flavor = "multi_thread")]
async fn the_help_shows_all_three() {
    let home = tempfile::tempdir().unwrap();
    for (word, parts) in [
        (
            "tcp",
            &["--port", "UNIROUTE_PORT", "`port`", "UNIROUTE_PROXY_PROTOCOL", "`idle_timeout`"],
        ),
        (
            "tls",
            &["--name", "UNIROUTE_NAME", "`name`", "UNIROUTE_IDLE_TIMEOUT", "`proxy_protocol`"],
        ),
        ("udp", &["--port", "UNIROUTE_PORT", "`port`", "UNIROUTE_IDLE_TIMEOUT", "`idle_timeout`"]),
    ] {
        let help = run(process::agent(home.path()).args([word, "--help"])).await;
        for part in parts {
            assert!(help.out.contains(part), "{word}: {part}: {}", help.out);
        }
    }
}
