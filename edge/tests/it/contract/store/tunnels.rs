//! Tunnels and their names.

use futures_util::future::join_all;
use serde_json::json;
use uniroute_edge::store::{
    Claim, ClaimError, Claimed, NewTunnel, Statement, Store, StoreError, Timestamp, TunnelChanges,
    TunnelFilter, TunnelRow,
};
use uuid::Uuid;

use super::{Stores, claim, noon, on_both, seconds, tunnel, user, values};

on_both! {
    every_column_is_written_and_read,
    a_name_is_of_one_user_and_one_agent,
    sessions_of_one_run_share_an_epoch,
    a_reserved_name_stays_reserved,
    a_deleted_name_is_only_its_owners_for_a_while,
    what_goes_along_is_done_with_it_or_not_at_all,
    lists_are_paged_and_filtered,
    changes_are_of_ones_own_and_of_the_expected_version,
    renewing_is_fenced,
    names_that_run_out_are_given_up,
    claims_of_one_agent_at_once_have_an_epoch_each,
    t07_one_name_has_one_winner,
}

async fn take(store: &Store, claim: Claim) -> Claimed {
    store.claim(&claim, &[]).await.unwrap()
}

async fn taken(store: &Store, claim: Claim) {
    let outcome = store.claim(&claim, &[]).await;
    assert!(matches!(outcome, Err(ClaimError::Taken)), "{outcome:?}");
}

fn reserved(user: Uuid, name: &str, now: Timestamp) -> NewTunnel {
    NewTunnel {
        id: Uuid::now_v7(),
        user,
        subdomain: name.into(),
        kind: "tcp".into(),
        port: Some(40_000),
        custom_domain: Some("www.example.com".into()),
        local_url: "127.0.0.1:5432".into(),
        public_url: "tcp://tunnels.test:40000".into(),
        region: "ap".into(),
        metadata: json!({ "team": "ü", "tags": [1, 2.5, null] }),
        requests_per_second: Some(7),
        now,
    }
}

async fn every_column_is_written_and_read(store: Stores) {
    let (owner, now) = (user(&store, "a@example.com").await, noon());
    let new = reserved(owner, "db", now);
    let made = store.create_reserved(&new, Vec::new()).await.unwrap();
    let expected = TunnelRow {
        id: new.id,
        user_id: owner,
        subdomain: "db".into(),
        kind: "tcp".into(),
        port: Some(40_000),
        custom_domain: Some("www.example.com".into()),
        local_url: "127.0.0.1:5432".into(),
        public_url: "tcp://tunnels.test:40000".into(),
        status: "active".into(),
        region: "ap".into(),
        created_at: now,
        updated_at: now,
        last_active_at: None,
        request_count: 0,
        metadata: json!({ "team": "ü", "tags": [1, 2.5, null] }),
        version: 1,
        requests_per_second: Some(7),
        agent_id: None,
        epoch: 0,
        agent_until: None,
        held_until: None,
    };
    assert_eq!(made, expected);
    let later = now.plus(seconds(5));
    let mut wanted = claim(owner, "agent-1", "db", later);
    wanted.kind = "tcp".into();
    wanted.port = Some(40_001);
    let claimed = take(&store, wanted).await;
    assert!(!claimed.created);
    let expected = TunnelRow {
        port: Some(40_001),
        local_url: "http://127.0.0.1:3000".into(),
        public_url: "https://db.tunnels.test".into(),
        region: "eu".into(),
        updated_at: later,
        last_active_at: Some(later),
        agent_id: Some("agent-1".into()),
        epoch: 1,
        agent_until: Some(later.plus(seconds(60))),
        ..expected
    };
    assert_eq!(claimed.row, expected);
    let changes = TunnelChanges {
        status: Some("paused".into()),
        local_url: Some("l".into()),
        public_url: Some("p".into()),
        region: Some("us".into()),
        custom_domain: Some(None),
        requests_per_second: Some(None),
        metadata: Some(json!({})),
        held_until: Some(Some(later)),
    };
    let changed = store.update_tunnel(new.id, None, Some(1), &changes, later, Vec::new()).await;
    let expected = TunnelRow {
        status: "paused".into(),
        local_url: "l".into(),
        public_url: "p".into(),
        region: "us".into(),
        custom_domain: None,
        requests_per_second: None,
        metadata: json!({}),
        held_until: Some(later),
        version: 2,
        ..expected
    };
    assert_eq!(changed.unwrap(), Some(expected.clone()));
    for found in [
        store.tunnel(new.id).await,
        store.tunnel_of(owner, new.id).await,
        store.tunnel_by_name("db").await,
    ] {
        assert_eq!(found.unwrap(), Some(expected.clone()));
    }
    // What the database does not take is refused and not bent.
    let changes = TunnelChanges { status: Some("gone".into()), ..Default::default() };
    let refused = store.update_tunnel(new.id, None, None, &changes, later, Vec::new()).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    let changes = TunnelChanges { region: Some("x".repeat(11)), ..Default::default() };
    let refused = store.update_tunnel(new.id, None, None, &changes, later, Vec::new()).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
}

async fn a_name_is_of_one_user_and_one_agent(store: Stores) {
    let (a, b) = (user(&store, "a@example.com").await, user(&store, "b@example.com").await);
    let now = noon();
    let first = take(&store, claim(a, "one", "web", now)).await;
    assert!(first.created);
    assert_eq!((first.row.epoch, first.row.held_until), (1, Some(now.plus(seconds(600)))));
    let again = take(&store, claim(a, "one", "web", now)).await;
    assert!(!again.created);
    assert_eq!((again.row.id, again.row.epoch), (first.row.id, 2));
    taken(&store, claim(a, "two", "web", now.plus(seconds(59)))).await;
    taken(&store, claim(b, "one", "web", now.plus(seconds(59)))).await;
    let forced = take(&store, Claim { force: true, ..claim(a, "two", "web", now) }).await;
    assert_eq!((forced.row.epoch, forced.row.agent_id.as_deref()), (3, Some("two")));
    // Its time is over.
    let later = take(&store, claim(a, "one", "web", now.plus(seconds(60)))).await;
    assert_eq!((later.row.epoch, later.row.agent_id.as_deref()), (4, Some("one")));
    // Given up, but not by those who have lost it.
    let (id, held) = (first.row.id, now.plus(seconds(300)));
    assert!(!store.release_tunnel(id, 3, held, now).await.unwrap());
    assert!(store.release_tunnel(id, 4, held, now).await.unwrap());
    let row = store.tunnel(id).await.unwrap().unwrap();
    assert_eq!((row.agent_id, row.held_until), (None, Some(held)));
    taken(&store, claim(b, "one", "web", held.minus(seconds(1)))).await;
    // Even by force it does not go over.
    let force = Claim { force: true, ..claim(b, "one", "web", held.minus(seconds(1))) };
    taken(&store, force).await;
    let over = take(&store, claim(b, "one", "web", held)).await;
    assert!(over.created && over.row.id != id && over.row.epoch == 5 && over.row.user_id == b);
    assert_eq!(store.tunnel(id).await.unwrap().unwrap().status, "deleted");
    taken(&store, claim(a, "one", "web", held)).await;
    assert_eq!(store.tunnel_by_name("web").await.unwrap().unwrap().id, over.row.id);
}

async fn sessions_of_one_run_share_an_epoch(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let now = noon();
    let of = |run: Uuid, agent: &str| Claim { run_id: Some(run), ..claim(a, agent, "web", now) };
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(take(&store, of(first, "one")).await.row.epoch, 1);
    // At another edge, and with other settings.
    let moved = Claim { local_url: "http://127.0.0.1:4000".into(), ..of(first, "one") };
    let row = take(&store, moved).await.row;
    assert_eq!((row.epoch, row.local_url.as_str()), (1, "http://127.0.0.1:4000"));
    // The agent was started again, and again by somebody who does not say so.
    assert_eq!(take(&store, of(second, "one")).await.row.epoch, 2);
    assert_eq!(take(&store, claim(a, "one", "web", now)).await.row.epoch, 3);
    assert_eq!(
        take(&store, of(second, "one")).await.row.epoch,
        4,
        "no claim after another's is shared"
    );
    // A run is of one agent.
    let other = Claim { force: true, ..of(second, "two") };
    assert_eq!(take(&store, other).await.row.epoch, 5);
}

async fn a_reserved_name_stays_reserved(store: Stores) {
    let (a, b) = (user(&store, "a@example.com").await, user(&store, "b@example.com").await);
    let (now, far) = (noon(), noon().plus(seconds(100_000_000)));
    let row = store.create_reserved(&reserved(a, "mine", now), Vec::new()).await.unwrap();
    for owner in [a, b] {
        let again = store.create_reserved(&reserved(owner, "mine", far), Vec::new()).await;
        assert!(matches!(again, Err(ClaimError::Taken)), "{again:?}");
    }
    taken(&store, claim(b, "one", "mine", far)).await;
    let claimed = take(&store, claim(a, "one", "mine", now)).await;
    assert_eq!((claimed.row.held_until, claimed.row.epoch), (None, 1));
    let renewed = store.renew(&[(row.id, 1)], far, far, now).await.unwrap();
    assert_eq!(renewed, [row.id]);
    assert!(store.release_tunnel(row.id, 1, now, now).await.unwrap());
    let row = store.tunnel(row.id).await.unwrap().unwrap();
    assert_eq!((row.held_until, row.agent_id), (None, None));
    assert!(store.expire_held(far).await.unwrap().is_empty());
    taken(&store, claim(b, "one", "mine", far)).await;
    // A name that somebody only held is had.
    take(&store, claim(b, "one", "old", now)).await;
    let late = now.plus(seconds(600));
    let early = reserved(a, "old", late.minus(seconds(1)));
    let early = store.create_reserved(&early, Vec::new()).await;
    assert!(matches!(early, Err(ClaimError::Taken)), "{early:?}");
    let had = store.create_reserved(&reserved(a, "old", late), Vec::new()).await.unwrap();
    assert_eq!(had.epoch, 1);
    assert_eq!(take(&store, claim(a, "one", "old", late)).await.row.epoch, 2);
}

async fn a_deleted_name_is_only_its_owners_for_a_while(store: Stores) {
    let (a, b) = (user(&store, "a@example.com").await, user(&store, "b@example.com").await);
    let now = noon();
    let first = take(&store, claim(a, "one", "web", now)).await.row;
    let until = now.plus(seconds(3600));
    let delete = |id, owner| store.delete_tunnel(id, Some(owner), until, now, Vec::new());
    assert_eq!(delete(first.id, b).await.unwrap(), None);
    let deleted = delete(first.id, a).await.unwrap().unwrap();
    assert_eq!((deleted.status.as_str(), deleted.version), ("deleted", first.version + 1));
    assert_eq!(delete(first.id, a).await.unwrap(), None);
    assert_eq!(store.tunnel_by_name("web").await.unwrap(), None);
    assert_eq!(store.tunnel_of(a, first.id).await.unwrap(), None);
    assert_eq!(store.count_tunnels(a).await.unwrap(), 0);

    taken(&store, claim(b, "one", "web", until.minus(seconds(1)))).await;
    let other = store.create_reserved(&reserved(b, "web", now), Vec::new()).await;
    assert!(matches!(other, Err(ClaimError::Taken)), "{other:?}");
    let back = take(&store, claim(a, "two", "web", now)).await;
    assert!(back.created);
    assert_eq!((back.row.epoch, store.count_tunnels(a).await.unwrap()), (2, 1));
    delete(back.row.id, a).await.unwrap().unwrap();
    let over = take(&store, claim(b, "one", "web", until)).await;
    assert_eq!((over.created, over.row.epoch), (true, 3));
}

async fn what_goes_along_is_done_with_it_or_not_at_all(store: Stores) {
    let (a, b) = (user(&store, "a@example.com").await, user(&store, "b@example.com").await);
    let now = noon();
    let audit = |action: &str| {
        let sql = "INSERT INTO audit_log (id, at, actor, action) VALUES ($1, $2, 'test', $3)";
        Statement::new(sql, values([Uuid::now_v7().into(), now.into(), action.into()]))
    };
    let mut logged = Vec::new();
    let row = store.claim(&claim(a, "one", "web", now), &[audit("claim")]).await.unwrap().row;
    logged.push("claim");
    store.claim(&claim(b, "one", "web", now), &[audit("no")]).await.unwrap_err();
    let fault = Statement::new("UPDATE users SET role = 'king'", Vec::new());
    store.claim(&claim(b, "one", "x", now), &[audit("no"), fault]).await.unwrap_err();
    assert_eq!(store.tunnel_by_name("x").await.unwrap(), None);
    store.create_reserved(&reserved(b, "web", now), vec![audit("no")]).await.unwrap_err();
    store.create_reserved(&reserved(b, "y", now), vec![audit("create")]).await.unwrap();
    logged.push("create");
    let status = |version, also| {
        let changes = TunnelChanges { region: Some("us".into()), ..Default::default() };
        let store = &store;
        async move { store.update_tunnel(row.id, Some(a), version, &changes, now, also).await }
    };
    assert_eq!(status(Some(9), vec![audit("no")]).await.unwrap(), None);
    status(Some(1), vec![audit("update")]).await.unwrap().unwrap();
    logged.push("update");
    store.delete_tunnel(row.id, Some(b), now, now, vec![audit("no")]).await.unwrap();
    store.delete_tunnel(row.id, Some(a), now, now, vec![audit("delete")]).await.unwrap().unwrap();
    logged.push("delete");
    let mut actions = Vec::new();
    for mut row in store.rows("SELECT action FROM audit_log ORDER BY id", Vec::new()).await.unwrap()
    {
        actions.push(row.take::<String>().unwrap());
    }
    assert_eq!(actions, logged);
}

async fn lists_are_paged_and_filtered(store: Stores) {
    let (a, b) = (user(&store, "a@example.com").await, user(&store, "b@example.com").await);
    let mut ids = Vec::new();
    for number in 0..7 {
        ids.push(tunnel(&store, a, &format!("site-{number}")).await.id);
    }
    tunnel(&store, b, "site-b").await;
    let all: Vec<_> = ids.iter().rev().copied().collect();
    let list = |filter: TunnelFilter| {
        let store = &store;
        async move {
            let rows = store.list_tunnels(&filter).await.unwrap();
            rows.iter().map(|row| row.id).collect::<Vec<_>>()
        }
    };
    let of_a = TunnelFilter { user: Some(a), limit: 3, ..Default::default() };
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = list(TunnelFilter { after, ..of_a.clone() }).await;
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = Some(*last);
        pages.extend(page);
    }
    assert_eq!(pages, all);
    let many = TunnelFilter { limit: 100, ..of_a };
    store.set_status(ids[2], Some(a), "paused", noon(), Vec::new()).await.unwrap().unwrap();
    store.delete_tunnel(ids[3], Some(a), noon(), noon(), Vec::new()).await.unwrap().unwrap();
    let with = |status: &str| TunnelFilter { status: Some(status.into()), ..many.clone() };
    assert_eq!(list(with("paused")).await, [ids[2]]);
    assert_eq!(list(with("deleted")).await, [ids[3]]);
    assert_eq!(list(with("active")).await.len(), 5);
    assert_eq!(list(many.clone()).await.len(), 6);
    let kind = TunnelFilter { kind: Some("tcp".into()), ..many.clone() };
    assert!(list(kind).await.is_empty());
    for (part, found) in [("TE-5", 0), ("te-5", 1), ("site", 6), ("%", 0), ("_", 0)] {
        let part = TunnelFilter { name_contains: Some(part.into()), ..many.clone() };
        assert_eq!(list(part.clone()).await.len(), found, "{part:?}");
    }
    assert_eq!(list(TunnelFilter { user: None, ..many }).await.len(), 7);
}

async fn changes_are_of_ones_own_and_of_the_expected_version(store: Stores) {
    let (a, b) = (user(&store, "a@example.com").await, user(&store, "b@example.com").await);
    let id = tunnel(&store, a, "web").await.id;
    let now = noon().plus(seconds(1));
    let changes = TunnelChanges { region: Some("us".into()), ..Default::default() };
    for (user, version) in [(Some(b), None), (Some(a), Some(2)), (None, Some(0))] {
        let none = store.update_tunnel(id, user, version, &changes, now, Vec::new()).await;
        assert_eq!(none.unwrap(), None, "{user:?} {version:?}");
    }
    let row = store.update_tunnel(id, Some(a), Some(1), &changes, now, Vec::new()).await;
    let row = row.unwrap().unwrap();
    assert_eq!((row.version, row.region.as_str(), row.updated_at), (2, "us", now));
    assert_eq!(store.set_status(id, Some(b), "paused", now, Vec::new()).await.unwrap(), None);
    let row = store.set_status(id, None, "paused", now, Vec::new()).await.unwrap().unwrap();
    assert_eq!((row.version, row.status.as_str()), (3, "paused"));
    assert_eq!(store.tunnel_of(b, id).await.unwrap(), None);
    assert_eq!(store.tunnel_of(a, id).await.unwrap(), Some(row));
    // An agent's claim is no change of the user's.
    let row = take(&store, claim(a, "agent", "web", now)).await.row;
    assert_eq!((row.version, row.status.as_str()), (3, "paused"));
}

async fn renewing_is_fenced(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let mut claims = Vec::new();
    for number in 0..5 {
        claims.push((tunnel(&store, a, &format!("n{number}")).await.id, 1));
    }
    take(&store, claim(a, "agent", "n1", noon())).await;
    store.delete_tunnel(claims[2].0, None, noon(), noon(), Vec::new()).await.unwrap().unwrap();
    assert!(store.release_tunnel(claims[3].0, 1, noon(), noon()).await.unwrap());
    claims.push((Uuid::now_v7(), 1));
    let (until, held) = (noon().plus(seconds(1_000)), noon().plus(seconds(2_000)));
    let mut renewed = store.renew(&claims, until, held, noon().plus(seconds(7))).await.unwrap();
    renewed.sort();
    assert_eq!(renewed, [claims[0].0, claims[4].0]);
    let row = store.tunnel(claims[4].0).await.unwrap().unwrap();
    assert_eq!((row.agent_until, row.held_until), (Some(until), Some(held)));
    assert_eq!(row.last_active_at, Some(noon().plus(seconds(7))));
    let row = store.tunnel(claims[1].0).await.unwrap().unwrap();
    assert_eq!((row.epoch, row.agent_until), (2, Some(noon().plus(seconds(60)))));
    assert!(store.renew(&[], until, held, held).await.unwrap().is_empty());
}

async fn names_that_run_out_are_given_up(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let old = tunnel(&store, a, "old").await.id;
    take(&store, claim(a, "agent", "young", noon().plus(seconds(1)))).await;
    store.create_reserved(&reserved(a, "kept", noon()), Vec::new()).await.unwrap();
    store.set_status(old, None, "paused", noon(), Vec::new()).await.unwrap().unwrap();
    let over = noon().plus(seconds(600));
    assert!(store.expire_held(over.minus(seconds(1))).await.unwrap().is_empty());
    let expired = store.expire_held(over).await.unwrap();
    assert_eq!(expired.iter().map(|row| row.id).collect::<Vec<_>>(), [old]);
    assert_eq!((expired[0].status.as_str(), &expired[0].agent_id), ("deleted", &None));
    assert!(store.expire_held(over).await.unwrap().is_empty());
    // There is no quarantine then.
    let b = user(&store, "b@example.com").await;
    assert_eq!(take(&store, claim(b, "one", "old", over)).await.row.epoch, 2);
}

/// The newest session wins, whichever that is: none is told that the name is taken.
async fn claims_of_one_agent_at_once_have_an_epoch_each(store: Stores) {
    let a = user(&store, "a@example.com").await;
    let edges = [store.another().await, store.another().await];
    let claims = (0..20).map(|number| {
        let (edge, claim) = (edges[number % 2].clone(), claim(a, "agent", "web", noon()));
        tokio::spawn(async move { edge.claim(&claim, &[]).await.unwrap() })
    });
    let claimed = join_all(claims).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    let mut epochs: Vec<_> = claimed.iter().map(|claimed| claimed.row.epoch).collect();
    epochs.sort_unstable();
    assert_eq!(epochs, (1..=20).collect::<Vec<_>>());
    assert_eq!(claimed.iter().filter(|claimed| claimed.created).count(), 1);
    assert_eq!(store.tunnel_by_name("web").await.unwrap().unwrap().epoch, 20);
}

/// Fifty want a name at once, from three edges: one gets it. Half the time they are agents of one
/// user, half the time of many.
async fn t07_one_name_has_one_winner(store: Stores) {
    const ROUNDS: usize = 200;
    const CLAIMS: usize = 50;
    let edges = [store.another().await, store.another().await, store.another().await];
    let mut users = Vec::new();
    for number in 0..CLAIMS {
        users.push(user(&store, &format!("u{number}@example.com")).await);
    }
    for round in 0..ROUNDS {
        let name = format!("name-{round}");
        let claims = (0..CLAIMS).map(|number| {
            let edge = edges[number % edges.len()].clone();
            let user = if round % 2 == 0 { users[number] } else { users[0] };
            let claim = claim(user, &format!("agent-{number}"), &name, noon());
            tokio::spawn(async move { edge.claim(&claim, &[]).await })
        });
        let mut winners = Vec::new();
        for outcome in join_all(claims).await {
            match outcome.unwrap() {
                Ok(claimed) => winners.push(claimed),
                Err(ClaimError::Taken) => {}
                Err(error) => panic!("round {round}: {error}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert!(winners[0].created && winners[0].row.epoch == 1);
        let row = store.tunnel_by_name(&name).await.unwrap();
        assert_eq!(row.as_ref(), Some(&winners[0].row), "round {round}");
    }
    let count = "SELECT count(*) FROM tunnels";
    let mut row = store.row(count, Vec::new()).await.unwrap().unwrap();
    assert_eq!(row.take::<u64>().unwrap(), ROUNDS as u64);
}
