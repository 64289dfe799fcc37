//! A large database: a million tunnels, a hundred thousand users.

use std::time::Duration;

use tokio::time::Instant;
use uniroute_edge::store::{
    RequestFilter, SessionFilter, Store, StoreOptions, TunnelFilter, Value,
};
use uuid::Uuid;

use super::{noon, seconds};
use crate::harness::{eventually, postgres::TestPostgres};

/// What tables are filled with: ids are numbers.
const FILL: &[&str] = &[
    // Foreign keys are not looked at meanwhile.
    "SET session_replication_role = 'replica'",
    "CREATE FUNCTION id(n BIGINT) RETURNS UUID LANGUAGE sql IMMUTABLE AS \
     $$ SELECT lpad(to_hex(n), 32, '0')::uuid $$",
    "INSERT INTO users (id, email, password_hash, created_at, updated_at) \
     SELECT id(n), 'u' || n || '@example.com', '!', now(), now() FROM generate_series(1, 100000) n",
    "INSERT INTO tunnels (id, user_id, subdomain, status, created_at, updated_at, held_until) \
     SELECT id(n), id(n % 100000 + 1), 'site-' || n, \
     CASE WHEN n % 10 = 0 THEN 'deleted' ELSE 'active' END, now(), now(), \
     now() + interval '1 hour' FROM generate_series(1, 1000000) n",
    "INSERT INTO tunnel_sessions (id, session_id, tunnel_id, client_id, server_id, connected_at, \
     last_heartbeat, status) SELECT id(n), id(n / 2), id(n % 20000 + 1), 'a', 'e', now(), now(), \
     CASE WHEN n % 10 = 0 THEN 'connected' ELSE 'disconnected' END \
     FROM generate_series(1, 200000) n",
    "INSERT INTO tunnel_requests (id, tunnel_id, request_id, method, path, created_at) \
     SELECT id(n), id(n % 1000 + 1), 'r', 'GET', '/', \
     timestamptz '2026-11-25T12:00:00Z' + n * interval '1 second' \
     FROM generate_series(1, 200000) n",
    "INSERT INTO tunnel_tokens (id, user_id, token_hash, hint, created_at) \
     SELECT id(n), id(n), md5(n::text) || md5(n::text), 'ur_', now() \
     FROM generate_series(1, 100000) n",
    "SET session_replication_role = 'origin'",
    "ANALYZE",
];

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

async fn median<T>(times: usize, mut call: impl AsyncFnMut(usize) -> T) -> Duration {
    let mut taken = Vec::with_capacity(times);
    for time in 0..times {
        let began = Instant::now();
        call(time).await;
        taken.push(began.elapsed());
    }
    taken.sort();
    taken[times / 2]
}

/// Runs `call` often enough for the server to choose a plan for good, and gives the plans.
async fn plans<T>(
    postgres: &TestPostgres,
    store: &Store,
    call: impl AsyncFn() -> T,
) -> Vec<String> {
    let before = postgres.said().len();
    for _ in 0..8 {
        call().await;
    }
    let end = format!("SELECT 'end-{}'", Uuid::now_v7());
    store.rows(&end, Vec::new()).await.unwrap();
    eventually("the plans are logged", async || {
        let said = postgres.said();
        let said = &said[before..];
        said.iter().any(|line| line.contains(&end)).then(|| said.to_vec())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_tunnels() {
    let settings = ["max_wal_size=4GB", "maintenance_work_mem=256MB", "shared_buffers=256MB"];
    let postgres = TestPostgres::with(&settings, &[]).await;
    postgres.store().await;
    let options =
        StoreOptions { connections: 1, statement: Duration::from_secs(120), ..Default::default() };
    let store = Store::open(&postgres.url("postgres"), &options).await.unwrap();
    store.make_partitions(noon(), 5).await.unwrap();
    for sql in FILL {
        store.execute(sql, Vec::new()).await.unwrap();
    }

    let lookup = median(500, async |time| {
        let name = format!("site-{}", time * 1_997 + 1);
        let row = store.tunnel_by_name(&name).await.unwrap();
        assert_eq!(row.is_some(), (time * 1_997 + 1) % 10 != 0);
    })
    .await;
    let page = TunnelFilter { user: Some(id(77)), limit: 50, ..Default::default() };
    let own = median(50, async |_| {
        assert_eq!(store.list_tunnels(&page).await.unwrap().len(), 10);
    })
    .await;
    let everything = TunnelFilter { after: Some(id(500_000)), limit: 50, ..Default::default() };
    let all = median(50, async |_| {
        assert_eq!(store.list_tunnels(&everything).await.unwrap().len(), 50);
    })
    .await;
    let requests = RequestFilter { limit: 50, ..Default::default() };
    let log = median(50, async |_| {
        assert_eq!(store.list_requests(id(5), &requests).await.unwrap().len(), 50);
    })
    .await;
    assert!(lookup < Duration::from_millis(2), "a look-up by name takes {lookup:?}");
    for (what, time) in [("own tunnels", own), ("all tunnels", all), ("requests", log)] {
        assert!(time < Duration::from_millis(20), "a page of {what} takes {time:?}");
    }

    for sql in ["LOAD 'auto_explain'", "SET auto_explain.log_min_duration = 0"] {
        store.execute(sql, Vec::new()).await.unwrap();
    }
    let mut wrong = Vec::new();
    let mut check = |what: &str, indexes: &[&str], said: &[String]| {
        let plans = said.join("\n");
        // Of several names one is enough.
        let uses = |index: &&str| {
            let is_used = |name| {
                plans.contains(&format!("using {name} "))
                    || plans.contains(&format!("Index Scan on {name} "))
            };
            index.split('|').any(is_used)
        };
        let logged = plans.matches("Query Text:").count() > 8;
        // That of an empty partition costs nothing.
        let scanned = said
            .iter()
            .any(|line| line.contains("Seq Scan") && !line.contains("(cost=0.00..0.00 "));
        if !logged || scanned || !indexes.iter().all(uses) {
            let first = said.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
            wrong.push(format!("{what} ({indexes:?}):\n{first}"));
        }
    };
    macro_rules! uses {
        ($indexes:expr, $call:expr) => {
            let said = plans(&postgres, &store, async || $call.await.unwrap()).await;
            check(stringify!($call), &$indexes, &said);
        };
    }
    let now = noon();
    uses!(["idx_tunnels_subdomain"], store.tunnel_by_name("site-4711"));
    uses!(["tunnels_pkey|idx_tunnels_user_id"], store.tunnel_of(id(4_711), id(1)));
    uses!(["idx_tunnels_user_id"], store.list_tunnels(&page));
    uses!(["tunnels_pkey"], store.list_tunnels(&everything));
    uses!(["idx_tunnels_user_id"], store.count_tunnels(id(77)));
    uses!(["idx_tunnels_status"], store.expire_held(now.minus(seconds(100_000_000))));
    uses!(["tunnels_pkey"], store.renew(&[(id(1), 1), (id(2), 1)], now, now, now));
    let claim = || super::claim(id(1), "agent", "new-name", now);
    uses!(["idx_tunnels_subdomain"], async { store.claim(&claim(), &[]).await });
    let of_tunnel = SessionFilter { tunnel: Some(id(5)), limit: 50, ..Default::default() };
    uses!(["idx_sessions_tunnel_id"], store.list_sessions(&of_tunnel));
    let of_user = SessionFilter { user: Some(id(5)), live: true, limit: 50, ..Default::default() };
    uses!(["idx_tunnels_user_id", "idx_sessions_tunnel_id"], store.list_sessions(&of_user));
    uses!(["idx_sessions_session_id"], store.close_session(id(7_000_000), now));
    uses!(["idx_sessions_session_id"], store.heartbeat(&[id(50), id(51)], now));
    uses!(["idx_sessions_status"], store.close_orphans(&[], now.minus(seconds(100_000_000))));
    // Partitions have indexes of their own, which are made of this one.
    uses!(["tunnel_requests_20261126_tunnel_id_id_idx"], store.list_requests(id(5), &requests));
    uses!(["tunnel_requests_20261126_pkey"], store.request(Some(id(5)), id(90_000)));
    let hash = Value::from("x");
    let by_hash = "SELECT id FROM tunnel_tokens WHERE token_hash = $1 AND is_active";
    let said = plans(&postgres, &store, async || {
        store.rows(by_hash, vec![hash.clone()]).await.unwrap();
    })
    .await;
    check("tokens", &["idx_tokens_hash|tunnel_tokens_token_hash_key"], &said);
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
