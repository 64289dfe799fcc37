//! Bad days: databases that go away, fill up, or are asked for too much.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use uniroute_edge::store::{Statement, Store, StoreError, StoreOptions, StoreUrl, Timestamp};
use uuid::Uuid;

use super::{noon, tunnel, user, values};
use crate::harness::{eventually, postgres::TestPostgres};

fn url(text: &str) -> StoreUrl {
    text.parse().unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "what a call gave, as it is")]
fn unavailable<T: std::fmt::Debug>(outcome: Result<T, StoreError>) {
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_goes_away_and_comes_back() {
    let mut postgres = TestPostgres::start().await;
    let store = postgres.store().await;
    let owner = user(&store, "a@example.com").await;
    let one = tunnel(&store, owner, "one").await;
    // Several connections are in the pool.
    let sleeps = (0..6).map(|_| store.rows("SELECT pg_sleep(0.05)", Vec::new()));
    for outcome in join_all(sleeps).await {
        outcome.unwrap();
    }
    postgres.stop().await;
    let began = Instant::now();
    unavailable(store.tunnel(one.id).await);
    unavailable(store.set_status(one.id, None, "paused", noon(), Vec::new()).await);
    unavailable(store.ping().await);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!store.health().is_well());
    postgres.start_again().await;
    // A read is asked again, whatever the connection was that it had first.
    assert_eq!(store.tunnel(one.id).await.unwrap().unwrap().status, "active");
    assert!(store.health().is_well());
    store.set_status(one.id, None, "paused", noon(), Vec::new()).await.unwrap().unwrap();

    // Nobody calls while it restarts.
    postgres.stop().await;
    postgres.start_again().await;
    assert_eq!(store.tunnel(one.id).await.unwrap().unwrap().status, "paused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_too_long_is_given_up() {
    let postgres = TestPostgres::start().await;
    let options = StoreOptions {
        statement: Duration::from_millis(300),
        connections: 1,
        ..Default::default()
    };
    let store = Store::open(&postgres.url("postgres"), &options).await.unwrap();
    let began = Instant::now();
    unavailable(store.rows("SELECT pg_sleep(30)", Vec::new()).await);
    assert!(began.elapsed() < Duration::from_secs(5));
    // The connection is not held up by it.
    store.ping().await.unwrap();
    // And nothing goes on at the server.
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' \
               AND state = 'active' AND pid <> pg_backend_pid()";
    eventually("the server has given up, too", async || {
        let mut row = store.row(sql, Vec::new()).await.unwrap().unwrap();
        (row.take::<i64>().unwrap() == 0).then_some(())
    })
    .await;
}

/// A call whose connection dies under it: a sequence counts how often it was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_asked_again_and_a_write_is_not() {
    let postgres = TestPostgres::start().await;
    let store = postgres.store().await;
    store.execute("CREATE SEQUENCE tries", Vec::new()).await.unwrap();
    let tries = async || {
        let row = store.row("SELECT last_value FROM tries", Vec::new()).await.unwrap();
        row.unwrap().take::<i64>().unwrap()
    };
    let write = "WITH t AS (SELECT nextval('tries')) SELECT pg_terminate_backend(pg_backend_pid()) \
                 FROM t";
    unavailable(store.rows(write, Vec::new()).await);
    assert_eq!(tries().await, 1);
    let write = "UPDATE plans SET tunnels = nextval('tries') \
                 WHERE pg_terminate_backend(pg_backend_pid()) RETURNING tunnels";
    let statement = Statement::new(write, Vec::new());
    unavailable(store.transaction(vec![statement]).await);
    assert!(tries().await <= 2);
    let before = tries().await;
    let read = "SELECT nextval('tries'), pg_terminate_backend(pg_backend_pid())";
    unavailable(store.rows(read, Vec::new()).await);
    assert_eq!(tries().await, before + 2);
    store.ping().await.unwrap();
}

/// Two hundred calls at once on four connections: all are served, by four.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_stays_within_the_pool() {
    let postgres = TestPostgres::start().await;
    let address = format!(
        "postgres://test@127.0.0.1:{}/postgres?sslmode=disable&application_name=burst",
        postgres.port()
    );
    let options =
        StoreOptions { connections: 4, wait: Duration::from_secs(20), ..Default::default() };
    let store = Store::open(&url(&address), &options).await.unwrap();
    let watcher = postgres.store().await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'burst'";
    let calls = (0..200).map(|_| {
        let (store, watcher) = (&store, &watcher);
        async move {
            store.rows("SELECT pg_sleep(0.005)", Vec::new()).await.unwrap();
            assert!(store.figures().in_use <= 4);
            let mut row = watcher.row(sql, Vec::new()).await.unwrap().unwrap();
            row.take::<i64>().unwrap()
        }
    });
    let most = join_all(calls).await.into_iter().max();
    assert_eq!(most, Some(4));
    let figures = store.figures();
    assert_eq!((figures.calls, figures.failures, figures.in_use), (200, 0, 0));
    assert!(figures.waited > Duration::from_millis(100), "{figures:?}");
    // Who waits for longer than the bound is told so.
    let options =
        StoreOptions { connections: 1, wait: Duration::from_millis(50), ..Default::default() };
    let store = Store::open(&postgres.url("postgres"), &options).await.unwrap();
    store.ping().await.unwrap();
    let (long, short) = tokio::join!(store.rows("SELECT pg_sleep(0.5)", Vec::new()), store.ping());
    long.unwrap();
    unavailable(short);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_migrated_says_what_to_do() {
    let postgres = TestPostgres::start().await;
    let empty = postgres.database("empty").await;
    let store = Store::open(&empty, &StoreOptions::default()).await.unwrap();
    for outcome in [store.check_migrated().await, store.tunnel_by_name("x").await.map(drop)] {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("uniroute-edge migrate"), "{error}");
    }
    // Several do it at once: each step is done once.
    let other = Store::open(&empty, &StoreOptions::default()).await.unwrap();
    let (one, two) = tokio::join!(store.migrate(), other.migrate());
    let mut ran = one.unwrap();
    ran.extend(two.unwrap());
    ran.sort_unstable();
    assert_eq!(ran, ["V1__first", "V2__agent_runs"]);
    store.check_migrated().await.unwrap();
    assert_eq!(store.tunnel_by_name("x").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_used_and_the_server_has_to_prove_its_name() {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let files = [("server.crt", certificate.as_str()), ("server.key", &key.serialize_pem())];
    let postgres = TestPostgres::with(&["ssl=on"], &files).await;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.pem");
    std::fs::write(&root, &certificate).unwrap();
    let (port, root) = (postgres.port(), root.display());
    let open = async |text: String| {
        let options = StoreOptions { connect: Duration::from_secs(10), ..Default::default() };
        Store::open(&url(&text), &options).await
    };
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    for mode in ["require", "verify-full", "prefer"] {
        let text =
            format!("postgres://test@localhost:{port}/postgres?sslmode={mode}&sslrootcert={root}");
        let mut row = open(text).await.unwrap().row(sql, Vec::new()).await.unwrap().unwrap();
        assert!(row.take::<bool>().unwrap(), "{mode}");
    }
    let wrong = [
        format!("postgres://test@127.0.0.1:{port}/postgres?sslmode=require&sslrootcert={root}"),
        format!("postgres://test@localhost:{port}/postgres?sslmode=prefer"),
    ];
    for text in wrong {
        let error = open(text).await.unwrap().ping().await.unwrap_err();
        assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
        unavailable(Err::<(), _>(error));
    }
    let missing = format!("postgres://test@localhost:{port}/p?sslrootcert=/nowhere.pem");
    let error = open(missing).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere.pem"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_from_the_replica_and_without_it_from_the_primary() {
    let postgres = TestPostgres::start().await;
    let primary = postgres.store().await;
    user(&primary, "primary@example.com").await;
    let replica_url = postgres.database("replica").await;
    let replica = Store::open(&replica_url, &StoreOptions::default()).await.unwrap();
    replica.migrate().await.unwrap();
    user(&replica, "replica@example.com").await;
    let with = async |replica: StoreUrl| {
        let options = StoreOptions { replica: Some(replica), ..Default::default() };
        Store::open(&postgres.url("postgres"), &options).await.unwrap()
    };
    let sql = "SELECT email FROM users";
    let store = with(replica_url).await;
    let mut row = store.listed(sql, Vec::new()).await.unwrap().remove(0);
    assert_eq!(row.take::<String>().unwrap(), "replica@example.com");
    let mut row = store.rows(sql, Vec::new()).await.unwrap().remove(0);
    assert_eq!(row.take::<String>().unwrap(), "primary@example.com");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let store = with(url(&format!("postgres://test@{nobody}/x?sslmode=disable"))).await;
    let mut row = store.listed(sql, Vec::new()).await.unwrap().remove(0);
    assert_eq!(row.take::<String>().unwrap(), "primary@example.com");
    let options = StoreOptions { replica: Some(url("postgres://x@y/z")), ..Default::default() };
    assert!(Store::open(&url("sqlite::memory:"), &options).await.is_err());
}

/// As on a disk that is full: what is written is refused, with a word for it, and reading goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_sqlite() {
    let store = super::sqlite().await;
    let owner = user(&store, "a@example.com").await;
    let one = tunnel(&store, owner, "one").await;
    store.rows("PRAGMA max_page_count = 1", Vec::new()).await.unwrap();
    let audit = "INSERT INTO audit_log (id, at, actor, action, details) \
                 VALUES ($1, $2, 'a', 'b', $3)";
    let write = async || {
        let details = serde_json::json!("x".repeat(4_000));
        let params = values([Uuid::now_v7().into(), Timestamp::now().into(), details.into()]);
        store.execute(audit, params).await
    };
    let error = eventually("the disk is full", async || write().await.err()).await;
    assert!(matches!(error, StoreError::ReadOnly(_)), "{error:?}");
    assert!(!store.health().is_well());
    assert_eq!(store.tunnel(one.id).await.unwrap(), Some(one));
    store.rows("PRAGMA max_page_count = 100000", Vec::new()).await.unwrap();
    write().await.unwrap();
    assert!(store.health().is_well());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_calls_for_sqlite_are_refused_at_once() {
    let store = super::sqlite().await;
    // Some tenths of a second, on the connection that writes.
    let long = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) \
                SELECT max(i) FROM n";
    let one = user(&store, "a@example.com").await;
    let update = "UPDATE users SET failed_logins = failed_logins + 1 WHERE id = $1";
    let mut calls = Vec::new();
    for _ in 0..1_200 {
        calls.push(store.execute(update, values([one.into()])));
    }
    let (first, outcomes) = tokio::join!(biased; store.rows(long, Vec::new()), join_all(calls));
    first.unwrap();
    let refused = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, Ok(1) | Err(StoreError::Unavailable(_))))
    );
    assert_eq!(refused, 1_200 - 1_023);
    let mut row = store.row("SELECT failed_logins FROM users", Vec::new()).await.unwrap().unwrap();
    assert_eq!(row.take::<i64>().unwrap(), 1_023);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_for_its_user_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let store = super::sqlite().await;
    user(&store, "a@example.com").await;
    let super::On::Sqlite(folder) = &store.on else { panic!() };
    let mode = |path: &str| {
        let metadata = std::fs::metadata(folder.path().join(path)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("edge"), 0o700);
    for file in ["edge/edge.db", "edge/edge.db-wal", "edge/edge.db-shm"] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
    let nowhere = Store::open(&url("sqlite:/proc/nowhere/x.db"), &StoreOptions::default()).await;
    assert!(matches!(nowhere, Err(StoreError::ReadOnly(_))), "{nowhere:?}");
    let broken = folder.path().join("broken.db");
    std::fs::write(&broken, "this is no database, but a text that is long enough").unwrap();
    let broken = Store::open(&StoreUrl::file(broken), &StoreOptions::default()).await;
    assert!(matches!(broken, Err(StoreError::Other(_))), "{broken:?}");
}
