//! The request log.

use uniroute_edge::store::{PATH_MAX, RequestFilter, RequestRow, Timestamp};
use uuid::Uuid;

use super::{Stores, noon, on_both, seconds, tunnel, user};

on_both! {
    every_column_is_written_and_read,
    a_batch_arrives_without_what_has_vanished_and_only_once,
    lists_are_paged_and_filtered,
}

fn row(tunnel: Uuid, path: &str, at: Timestamp) -> RequestRow {
    let id = Uuid::now_v7();
    RequestRow {
        id,
        tunnel_id: tunnel,
        request_id: id.to_string(),
        method: "GET".into(),
        path: path.into(),
        status_code: Some(200),
        latency_ms: Some(12),
        request_size: Some(0),
        response_size: Some(1),
        created_at: at,
        visitor: "192.0.2.1".into(),
        error_code: 0,
    }
}

async fn every_column_is_written_and_read(store: Stores) {
    let (a, b) = (user(&store, "a@example.com").await, user(&store, "b@example.com").await);
    let one = tunnel(&store, a, "one").await.id;
    let whole = RequestRow {
        method: "PROPFIND".into(),
        status_code: Some(502),
        latency_ms: Some(u32::MAX),
        request_size: Some(5_000_000_000),
        response_size: Some(1 << 62),
        visitor: "2001:db8::1".into(),
        error_code: 3001,
        ..row(one, "/ä?q=1", noon())
    };
    let empty = RequestRow {
        status_code: None,
        latency_ms: None,
        request_size: None,
        response_size: None,
        ..row(one, "", noon())
    };
    let long = row(one, &"ö".repeat(PATH_MAX + 1), noon());
    let exact = row(one, &"ö".repeat(PATH_MAX), noon());
    let zero = RequestRow { visitor: "x".repeat(100), ..row(one, "/a\0b", noon()) };
    let rows = [whole.clone(), empty.clone(), long.clone(), exact.clone(), zero.clone()];
    assert_eq!(store.insert_requests(&rows).await.unwrap(), 5);
    let read = async |id| store.request(Some(a), id).await.unwrap();
    let latency_ms = Some(i32::MAX as u32);
    assert_eq!(read(whole.id).await, Some(RequestRow { latency_ms, ..whole.clone() }));
    assert_eq!(read(empty.id).await, Some(empty.clone()));
    assert_eq!(read(exact.id).await, Some(exact));
    let cut = read(long.id).await.unwrap().path;
    assert_eq!(cut, format!("{}…", "ö".repeat(PATH_MAX - 1)));
    assert_eq!(read(zero.id).await.unwrap().path, "/a\u{fffd}b");
    assert_eq!(store.request(Some(b), whole.id).await.unwrap(), None);
    assert!(store.request(None, whole.id).await.unwrap().is_some());
    assert_eq!(read(Uuid::now_v7()).await, None);
}

async fn a_batch_arrives_without_what_has_vanished_and_only_once(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let one = tunnel(&store, a, "one").await.id;
    let gone = Uuid::now_v7();
    let mut rows = Vec::new();
    for number in 0..2_500 {
        let tunnel = if number % 10 == 0 { gone } else { one };
        rows.push(row(tunnel, &format!("/{number}"), noon().plus(seconds(number))));
    }
    assert_eq!(store.insert_requests(&rows).await.unwrap(), 2_250);
    assert_eq!(store.insert_requests(&rows).await.unwrap(), 0);
    rows.push(row(one, "/last", noon()));
    assert_eq!(store.insert_requests(&rows).await.unwrap(), 1);
    assert_eq!(store.insert_requests(&[]).await.unwrap(), 0);
}

async fn lists_are_paged_and_filtered(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let (one, two) = (tunnel(&store, a, "one").await.id, tunnel(&store, a, "two").await.id);
    // Over several days, with a partition for one of them.
    let day = 86_400;
    store.make_partitions(noon().plus(seconds(day)), 1).await.unwrap();
    let mut rows = Vec::new();
    for number in 0..30_u16 {
        let at = noon().plus(seconds(u64::from(number) * day / 10));
        let mut row = row(one, &format!("/p_{number}"), at);
        row.status_code = [Some(200), Some(404), Some(503), None][usize::from(number % 4)];
        row.error_code = if number % 4 == 3 { 2001 } else { 0 };
        row.method = if number % 2 == 0 { "GET" } else { "POST" }.into();
        rows.push(row);
    }
    rows.push(row(two, "/p_other", noon()));
    assert_eq!(store.insert_requests(&rows).await.unwrap(), 31);
    rows.pop();
    let list = |filter: RequestFilter| {
        let (store, limit) = (&store, filter.limit);
        let filter = RequestFilter { limit: if limit == 0 { 100 } else { limit }, ..filter };
        async move { store.list_requests(one, &filter).await.unwrap() }
    };
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = list(RequestFilter { after, limit: 7, ..Default::default() }).await;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        assert!(page.len() <= 7);
        all.extend(page);
    }
    all.reverse();
    assert_eq!(all, rows);
    let count = async |filter| list(filter).await.len();
    let some = RequestFilter::default;
    let status = |from, to| RequestFilter { status_from: from, status_to: to, ..some() };
    assert_eq!(count(status(Some(400), Some(499))).await, 8);
    assert_eq!(count(status(Some(404), None)).await, 15);
    assert_eq!(count(status(None, Some(200))).await, 8);
    assert_eq!(count(RequestFilter { method: Some("POST".into()), ..some() }).await, 15);
    let path = |part: &str| RequestFilter { path_contains: Some(part.into()), ..some() };
    assert_eq!(count(path("p_1")).await, 11);
    assert_eq!(count(path("P_1")).await, 0);
    assert_eq!(count(path("p%1")).await, 0);
    assert_eq!(count(RequestFilter { errors_only: true, ..some() }).await, 14);
    let (from, to) = (Some(rows[10].created_at), Some(rows[20].created_at));
    assert_eq!(list(RequestFilter { from, to, ..some() }).await.len(), 10);
    let both = RequestFilter { from, method: Some("GET".into()), limit: 3, ..some() };
    assert_eq!(count(both).await, 3);
}
