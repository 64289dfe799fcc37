//! Sessions of agents.

use uniroute_edge::store::{SessionFilter, SessionRow, Timestamp};
use uuid::Uuid;

use super::{Stores, noon, on_both, seconds, tunnel, user};

on_both! {
    a_session_is_written_down_from_its_start_to_its_end,
    what_a_dead_edge_left_behind_is_closed,
}

fn row(session: Uuid, tunnel: Uuid, server: &str, at: Timestamp) -> SessionRow {
    SessionRow {
        id: Uuid::now_v7(),
        session_id: session,
        tunnel_id: tunnel,
        client_id: "agent".into(),
        server_id: server.into(),
        token_id: Some(Uuid::from_u128(7)),
        peer: "192.0.2.1:5".into(),
        agent_version: "0.1.0".into(),
        connected_at: at,
        disconnected_at: None,
        last_heartbeat: Some(at),
        status: "connected".into(),
    }
}

async fn a_session_is_written_down_from_its_start_to_its_end(store: Stores) {
    let (a, b) = (user(&store, "a@example.com").await, user(&store, "b@example.com").await);
    let (one, two) = (tunnel(&store, a, "one").await.id, tunnel(&store, a, "two").await.id);
    let other = tunnel(&store, b, "other").await.id;
    let now = noon();
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let rows = [row(first, one, "e1", now), row(first, two, "e1", now)];
    let vanished = row(first, Uuid::now_v7(), "e1", now);
    store.open_session(&[rows[0].clone(), rows[1].clone(), vanished], Vec::new()).await.unwrap();
    let later = SessionRow { token_id: None, ..row(second, other, "e1", now.plus(seconds(1))) };
    store.open_session(std::slice::from_ref(&later), Vec::new()).await.unwrap();
    let list = |filter: SessionFilter| {
        let store = &store;
        async move {
            let filter = SessionFilter { limit: filter.limit.max(10), ..filter };
            store.list_sessions(&filter).await.unwrap()
        }
    };
    let of = |user| SessionFilter { user: Some(user), ..Default::default() };
    let mut newest_first = rows.to_vec();
    newest_first.reverse();
    assert_eq!(list(of(a)).await, newest_first);
    assert_eq!(list(of(b)).await, [later]);
    assert_eq!(
        list(SessionFilter { tunnel: Some(one), ..Default::default() }).await,
        [rows[0].clone()]
    );
    let by_session = SessionFilter { session: Some(first), ..Default::default() };
    assert_eq!(list(by_session.clone()).await, newest_first);
    let foreign = SessionFilter { tunnel: Some(one), ..of(b) };
    assert!(list(foreign).await.is_empty());
    let page = SessionFilter { after: Some(rows[1].id), ..of(a) };
    assert_eq!(list(page).await, [rows[0].clone()]);

    let beat = now.plus(seconds(30));
    assert_eq!(store.heartbeat(&[first, Uuid::now_v7()], beat).await.unwrap(), 2);
    let ended = now.plus(seconds(40));
    assert_eq!(store.close_session(first, ended).await.unwrap(), 2);
    assert_eq!(store.close_session(first, ended.plus(seconds(9))).await.unwrap(), 0);
    assert_eq!(store.heartbeat(&[first], ended).await.unwrap(), 0);
    let closed = list(by_session).await;
    assert_eq!(closed.len(), 2);
    for row in closed {
        assert_eq!((row.last_heartbeat, row.disconnected_at), (Some(beat), Some(ended)));
        assert_eq!(row.status, "disconnected");
    }
    let live = SessionFilter { live: true, ..Default::default() };
    let live = list(live).await;
    assert_eq!(live.iter().map(|row| row.session_id).collect::<Vec<_>>(), [second]);
}

async fn what_a_dead_edge_left_behind_is_closed(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let one = tunnel(&store, a, "one").await.id;
    let now = noon();
    let dead = row(Uuid::now_v7(), one, "dead", now);
    // Its edge lives, and could not write for a while.
    let late = row(Uuid::now_v7(), one, "lives", now);
    // Nobody has heard of the edge yet.
    let fresh = row(Uuid::now_v7(), one, "new", now.plus(seconds(100)));
    store.open_session(&[dead.clone(), late, fresh], Vec::new()).await.unwrap();
    let (alive, silent) = (vec!["lives".to_owned(), "e'2".to_owned()], now.plus(seconds(90)));
    assert!(store.close_orphans(&alive, now).await.unwrap().is_empty());
    let closed = store.close_orphans(&alive, silent).await.unwrap();
    let expected = SessionRow { status: "disconnected".into(), disconnected_at: Some(now), ..dead };
    assert_eq!(closed, [expected]);
    assert!(store.close_orphans(&alive, silent).await.unwrap().is_empty());
    assert_eq!(store.close_orphans(&[], silent).await.unwrap().len(), 1);
}
