//! Everything from one store into another.

use std::collections::BTreeSet;

use serde_json::json;
use uniroute_edge::store::{
    CopyError, Minute, RequestRow, SessionRow, Statement, Store, StoreOptions, StoreUrl, Value,
};
use uuid::Uuid;

use super::{Stores, noon, on_both, tunnel, user};

on_both! {
    it_knows_all_tables,
    a_target_with_users_is_refused,
    a_difference_is_noticed,
}

async fn memory() -> Store {
    let url: StoreUrl = "sqlite::memory:".parse().unwrap();
    Store::open(&url, &StoreOptions::default()).await.unwrap()
}

/// Something in every table, in more than a batch of one.
async fn fill(store: &Store) {
    let a = user(store, "a@example.com").await;
    let one = tunnel(store, a, "one").await.id;
    let now = Value::from(noon());
    let id = || Value::from(Uuid::now_v7());
    let metadata = json!({ "z": 1, "a": { "y": [1.0, 1e2, 0.1, "ü"], "b": null }, "n": 1e30 });
    let mut statements = vec![
        ("UPDATE tunnels SET metadata = $1, request_count = 5", vec![metadata.into()]),
        ("INSERT INTO plans (name, tunnels, updated_at) VALUES ('Team', 3, $1)", vec![now.clone()]),
        ("INSERT INTO plans (name, updated_at) VALUES ('_x', $1)", vec![now.clone()]),
        (
            "INSERT INTO logins (id, user_id, token_hash, created_at, refreshed_at, expires_at, \
             peer) VALUES ($1, $2, 'h', $3, $3, $3, 'p')",
            vec![id(), a.into(), now.clone()],
        ),
        ("INSERT INTO signing_keys (kid, created_at) VALUES ('k1', $1)", vec![now.clone()]),
        (
            "INSERT INTO invites (id, token_hash, created_by, created_at, expires_at) \
             VALUES ($1, 'h', $2, $3, $3)",
            vec![id(), a.into(), now.clone()],
        ),
        (
            "INSERT INTO tunnel_tokens (id, user_id, token_hash, hint, created_at, is_active, \
             scopes) VALUES ($1, $2, 'h', 'ur_', $3, $4, '{\"names\": [\"b\",  \"a\"]}')",
            vec![id(), a.into(), now.clone(), false.into()],
        ),
        (
            "INSERT INTO domains (id, user_id, name, tunnel_id, proof, created_at) \
             VALUES ($1, $2, 'x.test', $3, 'p', $4)",
            vec![id(), a.into(), one.into(), now.clone()],
        ),
        (
            "INSERT INTO acme_accounts (id, directory, credentials, created_at) \
             VALUES ($1, 'd', $2, $3)",
            vec![id(), vec![0_u8, 255].into(), now.clone()],
        ),
        (
            "INSERT INTO certificates (id, name, chain, private_key, not_before, not_after, \
             created_at) VALUES ($1, 'n', 'c', $2, $3, $3, $3)",
            vec![id(), vec![1_u8].into(), now.clone()],
        ),
        (
            "INSERT INTO captures (id, tunnel_id, request_id, created_at, head, request_body, \
             response_body) VALUES ($1, $2, 'r', $3, $4, $4, $4)",
            vec![id(), one.into(), now.clone(), Vec::<u8>::new().into()],
        ),
        ("INSERT INTO jobs (name, fence) VALUES ('j', 3)", vec![]),
        (
            "INSERT INTO idempotency_keys (user_id, key, request_hash, created_at) \
             VALUES ($1, 'K', 'h', $2)",
            vec![a.into(), now.clone()],
        ),
    ];
    for number in 0..1_234 {
        let audit = "INSERT INTO audit_log (id, at, user_id, actor, action, details) \
                     VALUES ($1, $2, $3, 'a', $4, '{}')";
        let action = format!("number {number}");
        statements.push((audit, vec![id(), now.clone(), a.into(), action.into()]));
    }
    let statements = statements.into_iter().map(|(sql, params)| Statement::new(sql, params));
    store.transaction(statements.collect()).await.unwrap();
    // Text keys that languages put in another order than their bytes.
    let minutes = ["e-10", "E-2", "e1", "É", "_"].map(|server| Minute {
        tunnel: one,
        minute: noon(),
        server_id: server.into(),
        requests: 1,
        errors: 0,
        bytes_in: 5,
        bytes_out: 1 << 40,
        latencies: vec![0, 1],
    });
    store.write_minutes(&minutes).await.unwrap();
    store.roll_up_hour(noon(), |parts| parts.concat()).await.unwrap();
    let session = SessionRow {
        id: Uuid::now_v7(),
        session_id: Uuid::now_v7(),
        tunnel_id: one,
        client_id: "agent".into(),
        server_id: "e".into(),
        token_id: None,
        peer: String::new(),
        agent_version: String::new(),
        connected_at: noon(),
        disconnected_at: None,
        last_heartbeat: None,
        status: "connected".into(),
    };
    store.open_session(&[session], Vec::new()).await.unwrap();
    let requests: Vec<_> = (0..1_700)
        .map(|number| RequestRow {
            id: Uuid::now_v7(),
            tunnel_id: one,
            request_id: "r".into(),
            method: "GET".into(),
            path: format!("/{number}"),
            status_code: Some(200),
            latency_ms: None,
            request_size: Some(number),
            response_size: None,
            created_at: noon(),
            visitor: String::new(),
            error_code: 0,
        })
        .collect();
    store.insert_requests(&requests).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn from_sqlite_to_postgresql_and_back() {
    let (from, through, back) = (super::sqlite().await, super::postgres().await, memory().await);
    fill(&from).await;
    let mut told = Vec::new();
    let there = Store::copy(&from, &through, |table, rows| told.push((table, rows))).await.unwrap();
    for table in &there {
        assert!(table.rows > 0, "{table:?}: nothing was copied");
    }
    assert!(told.contains(&("audit_log", 500)) && told.contains(&("audit_log", 1_234)), "{told:?}");
    let again = Store::copy(&through, &back, |_, _| {}).await.unwrap();
    assert_eq!(there, again);
    let tunnel = back.tunnel_by_name("one").await.unwrap();
    assert_eq!(tunnel, from.tunnel_by_name("one").await.unwrap());
    assert_eq!(tunnel, through.tunnel_by_name("one").await.unwrap());
    assert!(tunnel.is_some());
}

async fn it_knows_all_tables(store: Stores) {
    let sql = if store.is_postgres() {
        "SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
    } else {
        "SELECT name FROM sqlite_master WHERE type = 'table'"
    };
    let mut tables = BTreeSet::new();
    for mut row in store.rows(sql, Vec::new()).await.unwrap() {
        tables.insert(row.take::<String>().unwrap());
    }
    assert!(tables.remove("refinery_schema_history"));
    let copied = Store::copy(&memory().await, &store, |_, _| {}).await.unwrap();
    let copied: BTreeSet<_> = copied.iter().map(|table| table.table.to_owned()).collect();
    assert_eq!(copied, tables);
}

async fn a_target_with_users_is_refused(store: Stores) {
    user(&store, "a@example.com").await;
    let refused = Store::copy(&memory().await, &store, |_, _| {}).await;
    assert!(matches!(refused, Err(CopyError::NotEmpty("users"))), "{refused:?}");
    let sql = "ALTER TABLE logins ADD COLUMN more INTEGER";
    let target = memory().await;
    target.execute(sql, Vec::new()).await.unwrap();
    let refused = Store::copy(&store, &target, |_, _| {}).await;
    assert!(matches!(refused, Err(CopyError::Columns("logins"))), "{refused:?}");
}

async fn a_difference_is_noticed(store: Stores) {
    let target = memory().await;
    fill(&store).await;
    let trigger = "CREATE TRIGGER t AFTER INSERT ON tunnel_requests WHEN new.request_size = 1699 \
                   BEGIN UPDATE tunnel_requests SET path = '/other' WHERE id = new.id; END";
    target.execute(trigger, Vec::new()).await.unwrap();
    let noticed = Store::copy(&store, &target, |_, _| {}).await;
    let expected = matches!(
        noticed,
        Err(CopyError::Differs { table: "tunnel_requests", from: 1_700, to: 1_700 })
    );
    assert!(expected, "{noticed:?}");
}
