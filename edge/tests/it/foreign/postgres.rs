//! PostgreSQL and its own clients, through a TCP tunnel.

use std::{path::PathBuf, time::Duration};

use tempfile::TempDir;
use tokio::process::Command;

use super::{Serving, Tunnel, program};
use crate::harness::{
    BOUND, eventually,
    postgres::{give, server},
    process::{self, Process, run},
};

/// How long `pgbench` runs, in seconds; the acceptance takes a minute.
const PGBENCH: &str = "UNIROUTE_PGBENCH_SECONDS";

/// A server with a folder of its own, on a Unix socket there.
struct Postgres {
    home: TempDir,
    server: Process,
}

impl Postgres {
    async fn start() -> Self {
        // Short, as the path of a socket has to be.
        let home = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        let data = home.path().join("data");
        std::fs::create_dir(&data).unwrap();
        for path in [home.path(), &data] {
            give(path).await;
        }
        let mut initdb = server("initdb", home.path());
        initdb.arg("-D").arg(&data).args(["-U", "test", "--auth=trust", "--no-sync", "-E", "UTF8"]);
        let made = run(initdb.args(["--locale=C"])).await;
        assert!(made.code == Some(0), "{made:?}");
        let mut postgres = server("postgres", home.path());
        postgres.arg("-D").arg(&data).arg("-k").arg(home.path()).args(["-h", "", "-F"]);
        // Nothing is left in the system's memory, however it ends.
        for setting in ["shared_memory_type=mmap", "dynamic_shared_memory_type=mmap"] {
            postgres.args(["-c", setting]);
        }
        let server = Process::start(&mut postgres);
        server.err_line("ready to accept connections").await;
        Self { home, server }
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join(".s.PGSQL.5432")
    }

    /// `uniroute tcp` to it.
    async fn tunnel(&self, edge: &Serving) -> Tunnel {
        edge.tunnel(&["tcp", &format!("unix:{}", self.socket().display())]).await
    }

    /// Ends with its children.
    async fn stop(self) {
        self.server.signal("INT").await;
        assert_eq!(self.server.ended().await.code, Some(0));
    }
}

/// A client, to the server behind `tunnel`.
fn client(name: &str, edge: &Serving, tunnel: &Tunnel) -> Command {
    let mut command = process::command(&program(name), edge.home.path());
    command.env("PGHOST", "127.0.0.1").env("PGPORT", tunnel.port().to_string());
    command.env("PGUSER", "test").env("PGDATABASE", "postgres").env("PGCONNECT_TIMEOUT", "20");
    command
}

fn psql(edge: &Serving, tunnel: &Tunnel, commands: &[&str]) -> Command {
    let mut command = client("psql", edge, tunnel);
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    for text in commands {
        command.args(["-c", text]);
    }
    command
}

/// What `psql` says of `commands`.
async fn said(edge: &Serving, tunnel: &Tunnel, commands: &[&str]) -> String {
    let ended = run(&mut psql(edge, tunnel, commands)).await;
    assert!(ended.code == Some(0), "{ended:?}");
    ended.out
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_copies_and_notices() {
    let (edge, postgres) = tokio::join!(Serving::start(), Postgres::start());
    let tunnel = postgres.tunnel(&edge).await;
    assert_eq!(said(&edge, &tunnel, &["select 6 * 7"]).await, "42");
    // Rows of 100 bytes, 10 MB in all, in and out again.
    let rows: String = (0..100_000).map(|row| format!("{row:0>99}\n")).collect();
    let home = edge.home.path();
    std::fs::write(home.join("in"), &rows).unwrap();
    let counted = said(
        &edge,
        &tunnel,
        &[
            "create table lines (line text)",
            "\\copy lines from in",
            "\\copy lines to out",
            "select count(*), sum(line::int) from lines",
        ],
    )
    .await;
    assert_eq!(counted, "100000|4999950000");
    assert!(std::fs::read(home.join("out")).unwrap() == rows.as_bytes());
    // A connection that is still for three seconds, and gets a notice then.
    let script = "listen news; select 'listening';\n\\! sleep 3\nselect 1;";
    std::fs::write(home.join("listen.sql"), script).unwrap();
    let mut listening = psql(&edge, &tunnel, &[]);
    let listening =
        Process::start(listening.args(["-f", "listen.sql"]).env("PATH", "/usr/bin:/bin"));
    listening.out_line("listening").await;
    said(&edge, &tunnel, &["notify news, 'it is here'"]).await;
    let ended = listening.ended().await;
    assert!(ended.out.contains("\"news\" with payload \"it is here\""), "{ended:?}");
    assert_eq!(ended.code, Some(0));
    postgres.stop().await;
}

/// A cancel request is a second connection, with the first one's key.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_cancelled() {
    let (edge, postgres) = tokio::join!(Serving::start(), Postgres::start());
    let tunnel = postgres.tunnel(&edge).await;
    let sleeping = Process::start(&mut psql(&edge, &tunnel, &["select pg_sleep(60)"]));
    eventually("the query runs", async || {
        let running = "select count(*) from pg_stat_activity where query like 'select pg_sleep%'";
        (said(&edge, &tunnel, &[running]).await == "1").then_some(())
    })
    .await;
    // As Ctrl-C does.
    sleeping.signal("INT").await;
    let ended = sleeping.ended().await;
    assert!(ended.err.contains("canceling statement due to user request"), "{ended:?}");
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_without_an_error() {
    let seconds = std::env::var(PGBENCH).unwrap_or_else(|_| "5".into());
    let (edge, postgres) = tokio::join!(Serving::start(), Postgres::start());
    let tunnel = postgres.tunnel(&edge).await;
    let made = run(client("pgbench", &edge, &tunnel).args(["-i", "-q", "-s", "2"])).await;
    assert!(made.code == Some(0), "{made:?}");
    let mut bench = client("pgbench", &edge, &tunnel);
    let bench = bench.args(["-c", "8", "-j", "2", "-T", &seconds]).output();
    let bound = Duration::from_secs(seconds.parse::<u64>().unwrap()) + BOUND;
    let ended = tokio::time::timeout(bound, bench).await.expect("pgbench ends").unwrap();
    let (out, err) =
        (String::from_utf8(ended.stdout).unwrap(), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success() && !err.contains("error"), "{out}\n{err}");
    assert!(out.contains("number of failed transactions: 0 (0.000%)"), "{out}");
    println!("{out}");
    postgres.stop().await;
}
