//! Tunnels, tokens, domains and the rest: what changes, who is told, and what is written down.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::{
    auth::agent_tokens::AgentToken,
    events::Kind,
    histogram,
    store::{Minute, Timestamp, values},
};

fn id(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

#[tokio::test]
async fn a_tunnel_is_made_changed_paused_and_deleted() {
    let mut world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let body = json!({
        "name": "Shop", "kind": "http", "local_url": "http://localhost:3000", "region": "eu",
        "metadata": { "team": "web" }, "requests_per_second": 50,
    });
    let made = world.post("/tunnels", Some(&ann), &body).await;
    let tunnel = made.is(201);
    assert_eq!(made.headers["etag"], "\"1\"");
    assert_eq!(tunnel["name"], "shop");
    assert_eq!(tunnel["public_url"], "http://shop.edge.test");
    assert_eq!(tunnel["metadata"], json!({ "team": "web" }));
    assert_eq!((&tunnel["status"], &tunnel["is_reserved"]), (&json!("active"), &json!(true)));
    let path = format!("/tunnels/{}", id(&tunnel));
    assert_eq!(world.get(&path, &ann).await.is(200), tunnel);
    let patch = json!({ "local_url": "http://localhost:4000", "requests_per_second": null });
    let changed = world.patch(&path, &ann, &patch).await;
    let tunnel = changed.is(200);
    assert_eq!(changed.headers["etag"], "\"2\"");
    assert_eq!(tunnel["local_url"], "http://localhost:4000");
    assert_eq!(tunnel["requests_per_second"], Value::Null);
    assert_eq!((&tunnel["region"], &tunnel["metadata"]), (&json!("eu"), &json!({ "team": "web" })));
    let act = async |what: &str| {
        world.send("POST", &format!("{path}/{what}"), Some(&ann), None, &[]).await.is(200)
    };
    assert_eq!(act("pause").await["status"], "paused");
    assert_eq!(act("pause").await["status"], "paused");
    assert_eq!(act("resume").await["status"], "active");
    world.delete(&path, &ann).await.is(204);
    world.get(&path, &ann).await.is_problem(404, "UR-4030");
    world.delete(&path, &ann).await.is_problem(404, "UR-4030");
    let kinds: Vec<_> = world
        .told()
        .into_iter()
        .map(|event| (event.kind, event.tunnel.map(|id| id.to_string())))
        .collect();
    let expected = [
        Kind::TunnelCreated,
        Kind::TunnelUpdated,
        Kind::TunnelPaused,
        Kind::TunnelResumed,
        Kind::TunnelDeleted,
    ];
    let tunnel = Some(id(&tunnel).to_owned());
    assert_eq!(kinds[2..], expected.map(|kind| (kind, tunnel.clone())));
}

#[tokio::test]
async fn a_name_is_one_accounts_and_stays_so_for_a_while() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let bob = world.token("bob@example.com", Role::User).await;
    let body = json!({ "name": "shop" });
    let tunnel = world.post("/tunnels", Some(&ann), &body).await.is(201);
    for token in [&ann, &bob] {
        world.post("/tunnels", Some(token), &body).await.is_problem(409, "UR-4040");
    }
    world.post("/tunnels", Some(&bob), &json!({ "name": "API" })).await.is_problem(409, "UR-4040");
    world.delete(&format!("/tunnels/{}", id(&tunnel)), &ann).await.is(204);
    world.post("/tunnels", Some(&bob), &body).await.is_problem(409, "UR-4040");
    world.post("/tunnels", Some(&ann), &body).await.is(201);
    let random = world.post("/tunnels", Some(&bob), &json!({})).await.is(201);
    assert_eq!(random["name"].as_str().unwrap().split('-').count(), 3);
}

#[tokio::test]
async fn a_plan_limits_tunnels() {
    let world = World::new().await;
    let admin = world.token("root@example.com", Role::Admin).await;
    let ann = world.token("ann@example.com", Role::User).await;
    let plan = json!({ "tunnels": 1, "requests_per_second": 100 });
    world.send("PUT", "/plans/small", Some(&admin), Some(&plan), &[]).await.is(200);
    let me = world.get("/users/me", &ann).await.is(200);
    let path = format!("/users/{}", id(&me));
    let refused = world.patch(&path, &admin, &json!({ "plan": "none" })).await;
    assert_eq!(refused.is_problem(422, "UR-4045")["errors"][0]["pointer"], "/plan");
    world.patch(&path, &admin, &json!({ "plan": "small" })).await.is(200);
    world.delete("/plans/small", &admin).await.is_problem(409, "UR-4040");
    world.delete("/plans/default", &admin).await.is_problem(409, "UR-4040");
    world.delete("/plans/none", &admin).await.is_problem(404, "UR-4030");
    world.post("/tunnels", Some(&ann), &json!({})).await.is(201);
    world.post("/tunnels", Some(&ann), &json!({})).await.is_problem(403, "UR-4044");
    let usage = world.get("/usage", &ann).await.is(200);
    assert_eq!((&usage["plan"], &usage["tunnels"]), (&json!("small"), &json!(1)));
    let plans = world.get("/plans", &admin).await.is(200);
    let names: Vec<_> = plans["items"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(names, ["default", "small"]);
    assert_eq!(plans["items"][1]["limits"]["tunnels"], 1);
    assert_eq!(plans["items"][1]["limits"]["agents"], Value::Null);
}

#[tokio::test]
async fn an_older_version_is_not_overwritten() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let tunnel = world.post("/tunnels", Some(&ann), &json!({})).await.is(201);
    let path = format!("/tunnels/{}", id(&tunnel));
    let patch = async |tag: &str, url: &str| {
        let body = json!({ "local_url": url });
        world.send("PATCH", &path, Some(&ann), Some(&body), &[("if-match", tag)]).await
    };
    patch("\"1\"", "one").await.is(200);
    patch("\"1\"", "two").await.is_problem(412, "UR-4041");
    assert_eq!(world.get(&path, &ann).await.is(200)["local_url"], "one");
    patch("*", "three").await.is(200);
    patch("\"3\"", "four").await.is(200);
    for bad in ["1", "W/\"4\"", "\"x\"", ""] {
        patch(bad, "five").await.is_problem(412, "UR-4041");
    }
}

#[tokio::test]
async fn lists_go_on_where_they_ended() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    for n in 0..7 {
        let kind = if n % 2 == 0 { "http" } else { "tcp" };
        let body = json!({ "name": format!("shop-{n}"), "kind": kind });
        world.post("/tunnels", Some(&ann), &body).await.is(201);
    }
    let mut names = Vec::new();
    let mut path = "/tunnels?limit=3".to_owned();
    loop {
        let page = world.get(&path, &ann).await.is(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 3);
        names.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/tunnels?limit=3&after={next}");
    }
    let expected: Vec<_> = (0..7).rev().map(|n| format!("shop-{n}")).collect();
    assert_eq!(names, expected);
    let count = async |query: &str| {
        let page = world.get(&format!("/tunnels?{query}"), &ann).await.is(200);
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(count("kind=tcp").await, 3);
    assert_eq!(count("name=OP-3").await, 1);
    assert_eq!(count("status=paused").await, 0);
    assert_eq!(count("limit=7").await, 7);
}

#[tokio::test]
async fn a_token_is_told_once_rotated_and_revoked() {
    let mut world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let scopes = json!({ "names": ["shop", "staging-*"], "ports": [{ "first": 20000, "last": 20010 }],
        "kinds": ["http"], "cidrs": ["192.0.2.0/24"] });
    let body = json!({ "name": "laptop", "scopes": scopes });
    let made = world.post("/tokens", Some(&ann), &body).await.is(201);
    let secret = AgentToken::parse(made["token"].as_str().unwrap()).unwrap();
    assert_eq!(made["scopes"], scopes);
    assert_eq!(made["hint"], secret.hint());
    let path = format!("/tokens/{}", id(&made));
    let store = &world.services.store;
    let held = store.token_by_hash(&secret.hash()).await.unwrap().unwrap();
    assert!(held.token.is_good(Timestamp::now()) && held.user_is_active);
    assert_eq!(held.plan.name, "default");
    assert!(held.token.scopes.allows_name("staging-1") && !held.token.scopes.allows_name("x"));
    store.touch_tokens(&[(held.token.id, Timestamp::now())]).await.unwrap();
    assert_ne!(world.get(&path, &ann).await.is(200)["last_used_at"], Value::Null);

    let body = json!({ "overlap_seconds": 60 });
    let rotated = world.post(&format!("{path}/rotate"), Some(&ann), &body).await.is(201);
    assert_eq!((&rotated["replaces"], &rotated["name"]), (&made["id"], &made["name"]));
    assert_eq!(rotated["scopes"], scopes);
    let old = store.token_by_hash(&secret.hash()).await.unwrap().unwrap().token;
    let now = Timestamp::now();
    assert!(old.is_good(now) && !old.is_good(now.plus(Duration::from_secs(61))));
    let end = json!({ "overlap_seconds": 2_592_001 });
    world.post(&format!("{path}/rotate"), Some(&ann), &end).await.is_problem(400, "UR-4032");

    let new = format!("/tokens/{}", id(&rotated));
    let patch = json!({ "name": "desk", "expires_at": "2096-01-01T00:00:00Z", "scopes": {} });
    let changed = world.patch(&new, &ann, &patch).await.is(200);
    assert_eq!(changed["expires_at"], "2096-01-01T00:00:00Z");
    let changed = world.patch(&new, &ann, &json!({ "expires_at": null })).await.is(200);
    assert_eq!((&changed["expires_at"], &changed["name"]), (&Value::Null, &json!("desk")));
    world.delete(&new, &ann).await.is(204);
    world.delete(&new, &ann).await.is(204);
    let revoked = world.get(&new, &ann).await.is(200);
    assert_eq!((&revoked["is_revoked"], &revoked["is_good"]), (&json!(true), &json!(false)));
    world.patch(&new, &ann, &json!({ "name": "x" })).await.is_problem(409, "UR-4040");
    world.post(&format!("{new}/rotate"), Some(&ann), &json!({})).await.is_problem(409, "UR-4040");
    let good = world.get("/tokens?good=true", &ann).await.is(200);
    assert_eq!(good["items"].as_array().unwrap().len(), 1);
    let kinds: Vec<_> = world.told().into_iter().map(|event| (event.kind, event.object)).collect();
    let revoked = (Kind::TokenRevoked, Some(id(&rotated).parse().unwrap()));
    assert_eq!(kinds.last(), Some(&revoked), "edges cut its sessions by this");
    assert_eq!(kinds.iter().filter(|(kind, _)| *kind == Kind::TokenRevoked).count(), 1);
}

#[tokio::test]
async fn scopes_that_make_no_sense_are_refused() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let body = json!({ "expires_at": "2020-01-01T00:00:00Z", "scopes": {
        "ports": [{ "first": 2, "last": 1 }], "cidrs": ["10.0.0.1/8"] } });
    let problem = world.post("/tokens", Some(&ann), &body).await.is_problem(422, "UR-4045");
    let places: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|fault| &fault["pointer"]).collect();
    assert_eq!(places, ["/scopes/ports/0/last", "/scopes/cidrs/0", "/expires_at"]);
}

#[tokio::test]
async fn a_domain_says_how_to_prove_it() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let tunnel = world.post("/tunnels", Some(&ann), &json!({})).await.is(201);
    let body = json!({ "name": "Shop.Example.com", "tunnel_id": tunnel["id"] });
    let domain = world.post("/domains", Some(&ann), &body).await.is(201);
    assert_eq!(domain["name"], "shop.example.com");
    assert_eq!(domain["status"], "unverified");
    assert_eq!(domain["record"]["name"], "_uniroute.shop.example.com");
    assert!(domain["record"]["value"].as_str().unwrap().len() > 40);
    world.post("/domains", Some(&ann), &body).await.is_problem(409, "UR-4040");
    // Another account may say so, too: its proof is another one.
    let bob = world.token("bob@example.com", Role::User).await;
    let other = json!({ "name": "shop.example.com" });
    let other = world.post("/domains", Some(&bob), &other).await.is(201);
    assert_ne!(other["record"]["value"], domain["record"]["value"]);
    for ours in ["edge.test", "x.edge.test", "a.b.EDGE.test"] {
        let refused = world.post("/domains", Some(&ann), &json!({ "name": ours })).await;
        refused.is_problem(422, "UR-4045");
    }
    let path = format!("/domains/{}", id(&domain));
    let moved = world.patch(&path, &ann, &json!({ "tunnel_id": null })).await.is(200);
    assert_eq!(moved["tunnel_id"], Value::Null);
    assert_eq!(world.patch(&path, &ann, &json!({})).await.faults(), ["/tunnel_id"]);
    world.delete(&path, &ann).await.is(204);
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let world = World::new().await;
    let admin = world.token("root@example.com", Role::Admin).await;
    let me = world.get("/users/me", &admin).await.is(200);
    let path = format!("/users/{}", id(&me));
    for patch in [json!({ "role": "user" }), json!({ "is_active": false })] {
        world.patch(&path, &admin, &patch).await.is_problem(409, "UR-4040");
    }
    world.delete(&path, &admin).await.is_problem(409, "UR-4040");
    let second = json!({ "email": "two@example.com", "role": "admin" });
    let second = world.post("/users", Some(&admin), &second).await.is(201);
    world.patch(&path, &admin, &json!({ "role": "user" })).await.is(200);
    world.get("/users", &admin).await.is_problem(403, "UR-4023");
    let _ = second;
}

#[tokio::test]
async fn an_account_goes_when_it_has_no_names() {
    let world = World::new().await;
    let admin = world.token("root@example.com", Role::Admin).await;
    let ann = world.token("ann@example.com", Role::User).await;
    let me = world.get("/users/me", &ann).await.is(200);
    let tunnel = world.post("/tunnels", Some(&ann), &json!({})).await.is(201);
    let path = format!("/users/{}", id(&me));
    world.delete(&path, &admin).await.is_problem(409, "UR-4040");
    world.delete(&format!("/tunnels/{}", id(&tunnel)), &ann).await.is(204);
    world.delete(&path, &admin).await.is_problem(409, "UR-4040");
    let past = Timestamp::now().minus(Duration::from_secs(1));
    let sql = "UPDATE tunnels SET held_until = $1";
    world.services.store.execute(sql, values![past]).await.unwrap();
    world.delete(&path, &admin).await.is(204);
    world.get("/users/me", &ann).await.is_problem(401, "UR-4020");
    world.get(&path, &admin).await.is_problem(404, "UR-4030");
    // What it did is still known.
    let sql = "SELECT count(*) FROM audit_log WHERE user_id = $1";
    let user: Uuid = id(&me).parse().unwrap();
    let row = world.services.store.row(sql, values![user]).await.unwrap();
    assert!(row.unwrap().take::<u64>().unwrap() >= 4);
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_with_its_event() {
    let mut world = World::new().await;
    let began = Timestamp::now();
    let ann = world.token("ann@example.com", Role::User).await;
    let tunnel = world.post("/tunnels", Some(&ann), &json!({ "name": "shop" })).await.is(201);
    let token = world.post("/tokens", Some(&ann), &json!({})).await.is(201);
    world.delete(&format!("/tokens/{}", id(&token)), &ann).await.is(204);
    world.delete(&format!("/tunnels/{}", id(&tunnel)), &ann).await.is(204);
    let rows = world.services.store.audit_after(began, 100).await.unwrap();
    let told = world.told();
    let written: Vec<_> = rows.iter().map(|row| row.event.clone()).collect();
    assert_eq!(written, told, "an edge that polls learns just what it would have been told");
    let events = world.get("/events?kind=tunnel.created", &ann).await.is(200);
    let entry = &events["items"][0];
    assert_eq!(entry["actor"]["name"], "ann@example.com");
    assert_eq!(entry["actor"]["peer"], ADDRESS.to_string());
    assert_eq!((&entry["tunnel_id"], &entry["data"]["name"]), (&tunnel["id"], &json!("shop")));
    let later = world.get("/events?from=2096-01-01T00:00:00Z", &ann).await.is(200);
    assert_eq!(later["items"], json!([]));
    // No secret is in it.
    let dump = format!("{rows:?}");
    assert!(!dump.contains(token["token"].as_str().unwrap()) && !dump.contains(PASSWORD));
}

#[tokio::test]
async fn statistics_come_from_roll_ups() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let tunnel = world.post("/tunnels", Some(&ann), &json!({})).await.is(201);
    let path = format!("/tunnels/{}", id(&tunnel));
    let empty = world.get(&format!("{path}/stats"), &ann).await.is(200);
    assert_eq!((&empty["total"]["requests"], &empty["is_online"]), (&json!(0), &json!(false)));
    assert_eq!(empty["recent"][2]["latency_ms"]["p99"], Value::Null);

    let counts = histogram::Live::default();
    for millis in 1..=100 {
        counts.add(millis * 1000);
    }
    let latencies = counts.snapshot().since(&histogram::Snapshot::empty()).encode();
    let minute = 60_000_000;
    let now = Timestamp::now().0 / minute * minute;
    let row = |ago: i64, edge: &str| Minute {
        tunnel: id(&tunnel).parse().unwrap(),
        minute: Timestamp(now - ago * minute),
        server_id: edge.into(),
        requests: 100,
        errors: 10,
        bytes_in: 1_000,
        bytes_out: 60_000,
        latencies: latencies.clone(),
    };
    let rows = [row(1, "edge-1"), row(1, "edge-2"), row(3, "edge-1"), row(600, "edge-1")];
    world.services.store.write_minutes(&rows).await.unwrap();
    let stats = world.get(&format!("{path}/stats"), &ann).await.is(200);
    assert_eq!((&stats["total"]["requests"], &stats["total"]["errors"]), (&json!(400), &json!(40)));
    let five = &stats["recent"][1];
    assert_eq!((&five["minutes"], &five["requests"]), (&json!(5), &json!(300)));
    assert_eq!(
        (&five["requests_per_second"], &five["bytes_out_per_second"]),
        (&json!(1.0), &json!(600.0))
    );
    let p95 = five["latency_ms"]["p95"].as_f64().unwrap();
    assert!((p95 - 95.0).abs() < 5.0, "{p95}");

    let metrics = world.get(&format!("{path}/metrics?step=minute"), &ann).await.is(200);
    let points = metrics["points"].as_array().unwrap();
    let counts: Vec<_> = points.iter().map(|point| &point["requests"]).collect();
    assert_eq!(counts, [100, 200], "oldest first, edges together, the last hour");
    let usage = world.get("/usage", &ann).await.is(200);
    let months = usage["months"].as_array().unwrap().iter();
    assert_eq!(months.map(|month| month["requests"].as_u64().unwrap()).sum::<u64>(), 400);
    let from = "from=0001-01-01T00:00:00Z&to=9999-12-31T23:59:59Z";
    for step in ["minute", "hour"] {
        let path = format!("{path}/metrics?step={step}&{from}");
        assert_eq!(world.get(&path, &ann).await.is(200)["points"], json!([]));
    }
}

#[tokio::test]
async fn bans_are_seen_and_lifted() {
    let world = World::new().await;
    let operator = world.token("op@example.com", Role::Operator).await;
    let until = Timestamp::now().plus(Duration::from_secs(60));
    for n in [3, 1, 2] {
        let address = IpAddr::from([192, 0, 2, n]);
        let ban = crate::services::Ban { address, rule: "login-guessing".into(), until };
        world.live.bans.lock().push(ban);
    }
    let page = world.get("/bans?limit=2", &operator).await.is(200);
    let of = |page: &Value| {
        let items = page["items"].as_array().unwrap().iter();
        items.map(|ban| ban["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        (of(&page), &page["next"]),
        (vec!["192.0.2.1".into(), "192.0.2.2".into()], &json!("192.0.2.2"))
    );
    let rest = world.get("/bans?after=192.0.2.2", &operator).await.is(200);
    assert_eq!((of(&rest), &rest["next"]), (vec!["192.0.2.3".to_owned()], &Value::Null));
    world.delete("/bans/192.0.2.2", &operator).await.is(204);
    world.delete("/bans/192.0.2.2", &operator).await.is_problem(404, "UR-4030");
    world.delete("/bans/nonsense", &operator).await.is_problem(404, "UR-4030");
    assert_eq!(world.live.bans.lock().len(), 2);
    let events = world.get("/events?kind=address.ban-lifted", &operator).await.is(200);
    assert_eq!(events["items"][0]["data"]["address"], "192.0.2.2");
}
