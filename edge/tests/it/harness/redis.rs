//! Redis servers of their own: on free ports of 127.0.0.1, in folders of their own, killed with
//! their values. The one that Debian may have started on 6379 is never touched.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use uniroute_edge::state::{State, StateOptions, StateUrl};

use super::eventually;

/// Starts until a port is given up on that somebody else was quicker to take.
const TRIES: usize = 5;
/// In Redis Cluster.
const SLOTS: usize = 16_384;

/// How a server is to be.
#[derive(Clone, Default)]
pub(crate) struct Wish {
    /// Writes a log of its own, so that a restart loses nothing.
    pub(crate) durable: bool,
    /// Only this user gets in.
    pub(crate) user: Option<(&'static str, &'static str)>,
    /// Its certificate is in [`TestRedis::ca_file`].
    pub(crate) tls: bool,
    /// See [`TestRedisCluster`].
    pub(crate) cluster: bool,
}

/// One server.
pub(crate) struct TestRedis {
    port: u16,
    bus: u16,
    wish: Wish,
    folder: TempDir,
    child: Option<Child>,
}

impl TestRedis {
    pub(crate) async fn start() -> Self {
        Self::with(Wish::default()).await
    }

    pub(crate) async fn with(wish: Wish) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut redis = Self { port: 0, bus: 0, wish, folder, child: None };
        redis.prepare();
        for _ in 0..TRIES {
            (redis.port, redis.bus) = free_ports();
            if redis.run().await {
                return redis;
            }
        }
        panic!("no Redis: {}", redis.log());
    }

    /// Files that the settings point to.
    fn prepare(&self) {
        if let Some((user, password)) = self.wish.user {
            // What `state/redis.rs` says that a user needs.
            let rules = "resetchannels &tunnel:* ~tunnel:* +@read +@write +@connection +@scripting \
                +@pubsub +time +info +cluster";
            let text = format!(
                "user default off\nuser {user} on >{password} {rules}\n\
                user root on >root ~* &* +@all\n"
            );
            std::fs::write(self.file("users.acl"), text).unwrap();
        }
        if self.wish.tls {
            let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            std::fs::write(self.file("cert.pem"), made.cert.pem()).unwrap();
            std::fs::write(self.file("key.pem"), made.signing_key.serialize_pem()).unwrap();
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// Whether it got its ports and answers.
    async fn run(&mut self) -> bool {
        let mut command = command("redis-server", self.folder.path());
        let port = self.port.to_string();
        command.args(["--bind", "127.0.0.1", "--save", "", "--logfile", "log", "--dir"]);
        command.arg(self.folder.path());
        command.args(["--appendonly", if self.wish.durable { "yes" } else { "no" }]);
        command.args(["--appendfsync", "always"]);
        match self.wish.tls {
            false => command.args(["--port", &port]),
            true => command
                .args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"])
                .args(["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem"])
                .args(["--tls-ca-cert-file", "cert.pem"]),
        };
        if self.wish.user.is_some() {
            command.args(["--aclfile", "users.acl"]);
        }
        if self.wish.cluster {
            let bus = self.bus.to_string();
            command.args(["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
            command.args(["--cluster-port", &bus, "--repl-diskless-sync-delay", "0"]);
        }
        let mut child =
            command.spawn().expect("redis-server: scripts/install-test-deps.sh installs it");
        let up = eventually("Redis answers", async || {
            let over = child.try_wait().unwrap().is_some();
            let answers = self.try_cli(&["ping"]).is_some_and(|answer| answer == "PONG");
            (over || answers).then_some(answers && !over)
        })
        .await;
        self.child = Some(child);
        up
    }

    pub(crate) fn url(&self) -> String {
        let login = self.wish.user.map(|(user, password)| format!("{user}:{password}@"));
        let scheme = if self.wish.tls { "rediss" } else { "redis" };
        format!("{scheme}://{}127.0.0.1:{}", login.unwrap_or_default(), self.port)
    }

    /// What its certificate is trusted by.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.file("cert.pem")
    }

    /// A state that is connected to it.
    pub(crate) async fn state(&self) -> State {
        let ca_file = self.wish.tls.then(|| self.ca_file());
        let state = open(&self.url(), StateOptions { ca_file, ..Default::default() }).await;
        assert!(state.is_well(), "not connected: {}", self.log());
        state
    }

    /// What a command says, past all of ours.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        self.try_cli(args).unwrap_or_else(|| panic!("redis-cli {args:?}: {}", self.log()))
    }

    fn try_cli(&self, args: &[&str]) -> Option<String> {
        let mut command = command("redis-cli", self.folder.path());
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if self.wish.user.is_some() {
            command.args(["--user", "root", "--pass", "root", "--no-auth-warning"]);
        }
        if self.wish.tls {
            command.args(["--tls", "--cacert", "cert.pem"]);
        }
        let done = command.args(args).stdout(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).trim_end().to_owned();
        done.status.success().then_some(said)
    }

    /// Gone at once, with every connection.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be over already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// On the same port, with what it has on disk.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        assert!(self.run().await, "no Redis any more: {}", self.log());
    }

    /// It is there, and does nothing.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three masters, a third of the slots each; then their replicas, if there are any.
pub(crate) struct TestRedisCluster {
    pub(crate) nodes: Vec<TestRedis>,
}

impl TestRedisCluster {
    pub(crate) async fn start() -> Self {
        let wish = Wish { cluster: true, ..Wish::default() };
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(TestRedis::with(wish.clone()).await);
        }
        for (number, node) in nodes.iter().enumerate() {
            let slots = [number * SLOTS / 3, (number + 1) * SLOTS / 3 - 1].map(|s| s.to_string());
            node.cli(&["cluster", "set-config-epoch", &(number + 1).to_string()]);
            node.cli(&["cluster", "addslotsrange", &slots[0], &slots[1]]);
            let (port, bus) = (nodes[0].port.to_string(), nodes[0].bus.to_string());
            if number > 0 {
                node.cli(&["cluster", "meet", "127.0.0.1", &port, &bus]);
            }
        }
        let cluster = Self { nodes };
        cluster.ready().await;
        cluster
    }

    /// With a replica of each master, in the same order.
    pub(crate) async fn with_replicas() -> Self {
        let mut cluster = Self::start().await;
        let first = [cluster.nodes[0].port.to_string(), cluster.nodes[0].bus.to_string()];
        for master in 0..3 {
            let replica = TestRedis::with(Wish { cluster: true, ..Wish::default() }).await;
            let id = cluster.nodes[master].cli(&["cluster", "myid"]);
            replica.cli(&["cluster", "meet", "127.0.0.1", &first[0], &first[1]]);
            eventually("it replicates", async || {
                (replica.cli(&["cluster", "replicate", &id]) == "OK").then_some(())
            })
            .await;
            eventually("the replica has it all", async || {
                let info = replica.cli(&["info", "replication"]);
                info.contains("master_link_status:up").then_some(())
            })
            .await;
            cluster.nodes.push(replica);
        }
        cluster.ready().await;
        cluster
    }

    /// Waits until all nodes know of each other.
    pub(crate) async fn ready(&self) {
        let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
        eventually("the cluster is there", async || {
            let sure = |node: &TestRedis| {
                let info = node.try_cli(&["cluster", "info"]).unwrap_or_default();
                info.contains("cluster_state:ok")
                    && info.contains("cluster_size:3")
                    && info.contains(&known)
            };
            self.nodes.iter().all(sure).then_some(())
        })
        .await;
    }

    pub(crate) fn url(&self) -> String {
        let nodes: Vec<_> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis-cluster://{}", nodes.join(","))
    }

    pub(crate) async fn state(&self) -> State {
        let state = open(&self.url(), StateOptions::default()).await;
        assert!(state.is_well(), "not connected: {}", self.nodes[0].log());
        state
    }
}

/// A sentinel that watches one server, under the name `main`.
pub(crate) struct TestSentinel {
    port: u16,
    _folder: TempDir,
    child: Child,
}

impl TestSentinel {
    pub(crate) async fn start(of: &TestRedis) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_ports().0;
        let watched = of.port;
        let text =
            format!("port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {watched} 1\n");
        std::fs::write(folder.path().join("sentinel.conf"), text).unwrap();
        let mut server = command("redis-server", folder.path());
        let child = server.args(["sentinel.conf", "--sentinel"]).spawn().unwrap();
        let sentinel = Self { port, _folder: folder, child };
        eventually("the sentinel answers", async || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        })
        .await;
        sentinel
    }

    pub(crate) fn url(&self) -> String {
        format!("redis-sentinel://127.0.0.1:{}/main", self.port)
    }
}

impl Drop for TestSentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether somebody answers there or not.
pub(crate) async fn open(url: &str, options: StateOptions) -> State {
    State::open(&url.parse::<StateUrl>().unwrap(), options).await.unwrap()
}

/// Two ports that nobody has now.
fn free_ports() -> (u16, u16) {
    let listener = || TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (a, b) = (listener(), listener());
    (a.local_addr().unwrap().port(), b.local_addr().unwrap().port())
}

fn command(program: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
