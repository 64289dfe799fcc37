//! A PostgreSQL of a test's own, on a free port and gone with its value, also where tests run as
//! root. Its folder is made by `initdb` once and copied then; nothing of it has to outlive the
//! machine, so it never waits for the disk.

use std::{
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use tokio::process::Command;
use uniroute_edge::store::{Store, StoreOptions, StoreUrl};

use super::process::{self, Process, run};
use crate::foreign::program;

/// Settings that make it small, quick and careless.
const SETTINGS: &[&str] = &[
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "shared_buffers=32MB",
    "max_connections=100",
    "autovacuum=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    // Nothing is left in the system's memory, however it ends.
    "shared_memory_type=mmap",
    "dynamic_shared_memory_type=mmap",
];

pub(crate) struct TestPostgres {
    home: TempDir,
    port: u16,
    settings: Vec<String>,
    server: Option<Process>,
}

impl TestPostgres {
    pub(crate) async fn start() -> Self {
        Self::with(&[], &[]).await
    }

    /// With more settings, such as `ssl=on`, and files in its folder that they name.
    pub(crate) async fn with(settings: &[&str], files: &[(&str, &str)]) -> Self {
        let home = folder();
        let data = home.path().join("data");
        let copied = Command::new("cp").arg("-a").arg(template().await).arg(&data).status().await;
        assert!(copied.unwrap().success());
        for (name, text) in files {
            let path = data.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            give(&path).await;
        }
        give(home.path()).await;
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut postgres = Self { home, port, settings, server: None };
        postgres.start_again().await;
        postgres
    }

    /// On the same port, with what was in it.
    pub(crate) async fn start_again(&mut self) {
        let mut command = server("postgres", self.home.path());
        command.arg("-D").arg(self.home.path().join("data"));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-k", ""]);
        for setting in SETTINGS.iter().copied().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        let server = Process::start(&mut command);
        server.err_line("ready to accept connections").await;
        self.server = Some(server);
    }

    /// In order; connections are cut.
    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.signal("INT").await;
            assert_eq!(server.ended().await.code, Some(0));
        }
    }

    /// Its database `name`, which is made.
    pub(crate) async fn database(&self, name: &str) -> StoreUrl {
        let store = Store::open(&self.url("postgres"), &StoreOptions::default()).await.unwrap();
        store.execute(&format!("CREATE DATABASE {name}"), Vec::new()).await.unwrap();
        self.url(name)
    }

    /// What the server has logged.
    pub(crate) fn said(&self) -> Vec<String> {
        self.server.as_ref().map(Process::err_lines).unwrap_or_default()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self, database: &str) -> StoreUrl {
        let port = self.port;
        format!("postgres://test@127.0.0.1:{port}/{database}?sslmode=disable").parse().unwrap()
    }

    /// A migrated store on its own database.
    pub(crate) async fn store(&self) -> Store {
        let options = StoreOptions { wait: Duration::from_secs(10), ..Default::default() };
        let store = Store::open(&self.url("postgres"), &options).await.unwrap();
        store.migrate().await.unwrap();
        store
    }
}

/// Short, as the path of a socket has to be.
fn folder() -> TempDir {
    tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap()
}

/// What `initdb` makes, made once for all tests.
async fn template() -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres-template");
    if kept.exists() {
        return kept;
    }
    let home = folder();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for path in [home.path(), &data] {
        give(path).await;
    }
    let mut initdb = server("initdb", home.path());
    initdb.arg("-D").arg(&data).args(["-U", "test", "--auth=trust", "--no-sync", "-E", "UTF8"]);
    let made = run(initdb.args(["--locale=C.UTF-8", "--wal-segsize=1"])).await;
    assert!(made.code == Some(0), "{made:?}");
    // Whole at once, and by one test only: others that come here meanwhile throw theirs away.
    let own = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let copy = own.path().join("data");
    let copied = Command::new("cp").arg("-a").arg(&data).arg(&copy).status().await;
    assert!(copied.unwrap().success());
    if let Err(error) = std::fs::rename(&copy, &kept) {
        assert!(kept.exists(), "{error}");
    }
    kept
}

/// A program of the server, which doesn't run as root.
pub(crate) fn server(name: &str, home: &Path) -> Command {
    if !is_root() {
        return process::command(&program(name), home);
    }
    let mut command = process::command(&program("setpriv"), home);
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program(name));
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Gives a folder or file to whom the server runs as.
pub(crate) async fn give(path: &Path) {
    if is_root() {
        let home = Path::new("/");
        let ended = run(process::command(&program("id"), home).args(["-u", "postgres"])).await;
        let user = ended.out.trim().parse();
        let user = user.expect("no user postgres: run scripts/install-test-deps.sh");
        chown(path, Some(user), None).unwrap();
    }
}
