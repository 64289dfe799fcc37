//! What was counted.

use uniroute_edge::store::{Hour, Minute, Timestamp, Usage};
use uuid::Uuid;

use super::{Stores, noon, on_both, seconds, tunnel, user};

on_both! {
    writing_again_counts_nothing_twice,
    two_writes_of_the_same_at_once_count_once,
    hours_are_made_of_minutes,
}

fn minute(tunnel: Uuid, minute: Timestamp, server: &str, requests: u64) -> Minute {
    Minute {
        tunnel,
        minute,
        server_id: server.into(),
        requests,
        errors: requests / 10,
        bytes_in: requests * 100,
        bytes_out: requests * 1_000,
        latencies: vec![u8::try_from(requests % 256).unwrap()],
    }
}

fn month(text: &str, requests: u64) -> Usage {
    Usage {
        month: text.parse().unwrap(),
        requests,
        bytes_in: requests * 100,
        bytes_out: requests * 1_000,
    }
}

async fn writing_again_counts_nothing_twice(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let (one, two) = (tunnel(&store, a, "one").await.id, tunnel(&store, a, "two").await.id);
    let gone = Uuid::now_v7();
    let (now, next) = (noon(), "2026-12-01T00:00:00Z".parse().unwrap());
    let first = [
        minute(one, now, "e1", 10),
        minute(gone, now, "e1", 99),
        minute(two, now, "e1", 5),
        minute(one, now, "e2", 7),
        minute(one, next, "e1", 1),
    ];
    for _ in 0..2 {
        store.write_minutes(&first).await.unwrap();
    }
    let count = async |id| store.tunnel(id).await.unwrap().unwrap().request_count;
    assert_eq!((count(one).await, count(two).await), (18, 5));
    let used = [month("2026-12-01T00:00:00Z", 1), month("2026-11-01T00:00:00Z", 22)];
    assert_eq!(store.usage(a, 12).await.unwrap(), used);
    assert_eq!(store.usage(a, 1).await.unwrap(), used[..1]);
    // It has grown meanwhile; of two in a batch the last one counts.
    let grown = [minute(one, now, "e1", 15), minute(one, now, "e1", 25)];
    store.write_minutes(&grown).await.unwrap();
    assert_eq!(count(one).await, 33);
    assert_eq!(store.usage(a, 12).await.unwrap()[1], month("2026-11-01T00:00:00Z", 37));
    let row = store.tunnel(one).await.unwrap().unwrap();
    assert_eq!(row.last_active_at, Some(next));
    let written = store.minutes(one, now, next).await.unwrap();
    assert_eq!(written, [minute(one, now, "e1", 25), minute(one, now, "e2", 7)]);
    assert_eq!(store.minutes(one, now, next.plus(seconds(1))).await.unwrap().len(), 3);
    assert!(store.minutes(gone, now, next).await.unwrap().is_empty());
    // An older minute does not make it less active.
    store.write_minutes(&[minute(one, now.minus(seconds(60)), "e1", 1)]).await.unwrap();
    assert_eq!(store.tunnel(one).await.unwrap().unwrap().last_active_at, Some(next));
    store.write_minutes(&[]).await.unwrap();
}

/// As when an answer was lost, and the server is still at it.
async fn two_writes_of_the_same_at_once_count_once(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let mut tunnels = Vec::new();
    for number in 0..20 {
        tunnels.push(tunnel(&store, a, &format!("t{number}")).await.id);
    }
    let other = store.another().await;
    for round in 1..=10 {
        let rows: Vec<_> =
            tunnels.iter().map(|tunnel| minute(*tunnel, noon(), "e1", round * 10)).collect();
        let mut back = rows.clone();
        back.reverse();
        let (one, two, three) = tokio::join!(
            store.write_minutes(&rows),
            other.write_minutes(&back),
            store.write_minutes(&back),
        );
        one.and(two).and(three).unwrap();
        for tunnel in &tunnels {
            let row = store.tunnel(*tunnel).await.unwrap().unwrap();
            assert_eq!(row.request_count, round * 10);
        }
    }
    assert_eq!(store.usage(a, 1).await.unwrap(), [month("2026-11-01T00:00:00Z", 2_000)]);
}

async fn hours_are_made_of_minutes(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let hour = noon();
    let after = hour.plus(seconds(3_600));
    let mut tunnels = Vec::new();
    // More than are made at a time.
    for number in 0..205 {
        tunnels.push(tunnel(&store, a, &format!("t{number}")).await.id);
    }
    let mut rows = vec![minute(tunnels[0], after, "e1", 50)];
    rows.push(minute(tunnels[0], hour.minus(seconds(60)), "e1", 60));
    for tunnel in &tunnels {
        for at in [0, 60, 3_540] {
            rows.push(minute(*tunnel, hour.plus(seconds(at)), "e1", 10));
        }
    }
    rows.push(minute(tunnels[7], hour, "e2", 4));
    store.write_minutes(&rows).await.unwrap();
    let merge: fn(&[Vec<u8>]) -> Vec<u8> = |parts| {
        let mut parts = parts.concat();
        parts.sort();
        parts
    };
    for _ in 0..2 {
        assert_eq!(store.roll_up_hour(hour, merge).await.unwrap(), 205);
    }
    let expected = Hour {
        tunnel: tunnels[7],
        hour,
        requests: 34,
        errors: 3,
        bytes_in: 3_400,
        bytes_out: 34_000,
        latencies: vec![4, 10, 10, 10],
    };
    assert_eq!(store.hours(tunnels[7], hour, after).await.unwrap(), [expected]);
    for tunnel in &tunnels {
        assert_eq!(store.hours(*tunnel, hour, after.plus(seconds(1))).await.unwrap().len(), 1);
    }
    // A minute that came late.
    store.write_minutes(&[minute(tunnels[7], hour, "e3", 6)]).await.unwrap();
    store.roll_up_hour(hour, merge).await.unwrap();
    assert_eq!(store.hours(tunnels[7], hour, after).await.unwrap()[0].requests, 40);
    assert_eq!(store.roll_up_hour(after, merge).await.unwrap(), 1);
    assert_eq!(store.roll_up_hour(after.plus(seconds(3_600)), merge).await.unwrap(), 0);
}
