//! Jobs, and what they take away.

use uniroute_edge::store::{
    Aged, JobRow, Minute, RequestFilter, RequestRow, SessionRow, Statement, Store, StoreError,
    Timestamp,
};
use uuid::Uuid;

use super::{Stores, noon, on_both, seconds, tunnel, user, values};

on_both! {
    only_a_newer_fence_writes,
    what_is_old_goes_and_what_is_not_stays,
    requests_go_by_the_day,
}

const DAY: u64 = 86_400;

async fn only_a_newer_fence_writes(store: Stores) {
    assert_eq!(store.job("roll-up").await.unwrap(), None);
    let now = noon();
    store.finish_job("roll-up", 5, None, "ok", now).await.unwrap();
    store.finish_job("roll-up", 5, Some(now), &"x".repeat(300), now).await.unwrap();
    let expected = JobRow {
        name: "roll-up".into(),
        fence: 5,
        done_until: Some(now),
        ran_at: Some(now),
        outcome: "x".repeat(255),
    };
    assert_eq!(store.job("roll-up").await.unwrap(), Some(expected.clone()));
    let stale = store.finish_job("roll-up", 4, Some(now.plus(seconds(9))), "old", now).await;
    assert!(matches!(stale, Err(StoreError::Stale)), "{stale:?}");
    assert_eq!(store.job("roll-up").await.unwrap(), Some(expected));
    store.finish_job("other", 1, None, "", now).await.unwrap();
    store.finish_job("roll-up", 6, None, "", now).await.unwrap();
    assert_eq!(store.job("roll-up").await.unwrap().unwrap().fence, 6);
}

async fn count(store: &Store, table: &str) -> u64 {
    let sql = format!("SELECT count(*) FROM {table}");
    store.row(&sql, Vec::new()).await.unwrap().unwrap().take().unwrap()
}

async fn what_is_old_goes_and_what_is_not_stays(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let one = tunnel(&store, a, "one").await.id;
    let (old, limit, young) = (noon(), noon().plus(seconds(60)), noon().plus(seconds(120)));
    let mut statements = Vec::new();
    for at in [old, limit, young] {
        let audit = "INSERT INTO audit_log (id, at, actor, action) VALUES ($1, $2, 'a', 'b')";
        statements.push(Statement::new(audit, values([Uuid::now_v7().into(), at.into()])));
        let key = "INSERT INTO idempotency_keys (user_id, key, request_hash, created_at) \
                   VALUES ($1, $2, 'h', $3)";
        let key_values = values([a.into(), at.to_string().into(), at.into()]);
        statements.push(Statement::new(key, key_values));
    }
    store.transaction(statements).await.unwrap();
    let minutes = [old, limit, young].map(|minute| Minute {
        tunnel: one,
        minute,
        server_id: "e".into(),
        requests: 1,
        errors: 0,
        bytes_in: 0,
        bytes_out: 0,
        latencies: Vec::new(),
    });
    store.write_minutes(&minutes).await.unwrap();
    for hour in [old, limit, young] {
        store.roll_up_hour(hour, |_| Vec::new()).await.unwrap();
    }
    let session = |at: Timestamp| SessionRow {
        id: Uuid::now_v7(),
        session_id: Uuid::now_v7(),
        tunnel_id: one,
        client_id: "agent".into(),
        server_id: "e".into(),
        token_id: None,
        peer: String::new(),
        agent_version: String::new(),
        connected_at: at,
        disconnected_at: None,
        last_heartbeat: None,
        status: "connected".into(),
    };
    let sessions = [session(old), session(old), session(old)];
    store.open_session(&sessions, Vec::new()).await.unwrap();
    store.close_session(sessions[0].session_id, old).await.unwrap();
    store.close_session(sessions[1].session_id, young).await.unwrap();
    for (aged, table) in [
        (Aged::Minutes, "request_minutes"),
        (Aged::Hours, "request_hours"),
        (Aged::Audit, "audit_log"),
        (Aged::IdempotencyKeys, "idempotency_keys"),
        (Aged::Sessions, "tunnel_sessions"),
    ] {
        assert_eq!(count(&store, table).await, 3, "{table}");
        assert_eq!(store.delete_aged(aged, limit).await.unwrap(), 1, "{table}");
        assert_eq!(store.delete_aged(aged, limit).await.unwrap(), 0, "{table}");
        assert_eq!(count(&store, table).await, 2, "{table}");
    }
    // The totals stay.
    assert_eq!(store.usage(a, 1).await.unwrap()[0].requests, 3);
}

fn request(tunnel: Uuid, at: Timestamp) -> RequestRow {
    RequestRow {
        id: Uuid::now_v7(),
        tunnel_id: tunnel,
        request_id: "r".into(),
        method: "GET".into(),
        path: "/".into(),
        status_code: None,
        latency_ms: None,
        request_size: None,
        response_size: None,
        created_at: at,
        visitor: String::new(),
        error_code: 0,
    }
}

async fn requests_go_by_the_day(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let one = tunnel(&store, a, "one").await.id;
    let day = |number: u64| noon().plus(seconds(number * DAY));
    // The first day has requests before it has a partition.
    store.insert_requests(&[request(one, day(0))]).await.unwrap();
    let made = store.make_partitions(noon(), 4).await.unwrap();
    assert_eq!(made, if store.is_postgres() { 3 } else { 0 });
    assert_eq!(store.make_partitions(noon(), 4).await.unwrap(), 0);
    let rows: Vec<_> = (0..6).map(|number| request(one, day(number))).collect();
    assert_eq!(store.insert_requests(&rows).await.unwrap(), 6);
    // A slice is 5,000 rows.
    let many: Vec<_> = (0..6_000).map(|_| request(one, day(0))).collect();
    assert_eq!(store.insert_requests(&many).await.unwrap(), 6_000);
    let left = async || {
        let filter = RequestFilter { limit: 100, ..Default::default() };
        store.list_requests(one, &filter).await.unwrap().len()
    };
    let gone = store.delete_requests(day(1).minus(seconds(DAY / 4))).await.unwrap();
    assert_eq!((gone, left().await), (6_002, 5));
    // At noon of the third day, the day is not over: of a partition all stays.
    let gone = store.delete_requests(day(2).plus(seconds(1))).await.unwrap();
    if store.is_postgres() {
        assert_eq!((gone, left().await), (0, 4));
        let partitions = ["tunnel_requests_20261127", "tunnel_requests_20261128"];
        assert_eq!(store.partitions().await.unwrap(), partitions);
    } else {
        assert_eq!((gone, left().await), (2, 3));
    }
    store.delete_requests(day(10)).await.unwrap();
    assert_eq!(left().await, 0);
    assert!(store.partitions().await.unwrap().is_empty());
}
