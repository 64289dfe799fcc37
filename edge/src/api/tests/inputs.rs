//! Bad input: refused, with all that is wrong with it, and without a trace.

use super::*;

#[tokio::test]
async fn everything_that_is_wrong_is_told_at_once() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let body = json!({
        "name": "-x", "kind": "ftp", "requests_per_second": 0, "metadata": { "a b": 1 },
        "colour": "red", "local_url": "a\u{0}b",
    });
    let mut faults = world.post("/tunnels", Some(&ann), &body).await.faults();
    faults.sort_unstable();
    let expected = [
        "/colour",
        "/kind",
        "/local_url",
        "/metadata/a b",
        "/metadata/a b",
        "/name",
        "/requests_per_second",
    ];
    assert_eq!(faults, expected);
    for (body, expected) in [
        (json!([]), ""),
        (json!("x"), ""),
        (json!(null), ""),
        (json!({ "name": 1 }), "/name"),
        (json!({ "name": null }), "/name"),
        (json!({ "requests_per_second": 1.5 }), "/requests_per_second"),
        (json!({ "requests_per_second": u64::MAX }), "/requests_per_second"),
        (json!({ "region": "x".repeat(11) }), "/region"),
    ] {
        assert_eq!(world.post("/tunnels", Some(&ann), &body).await.faults(), [expected], "{body}");
    }
    let tunnels = world.get("/tunnels", &ann).await.is(200);
    assert_eq!(tunnels["items"], json!([]));
}

#[tokio::test]
async fn queries_are_strict_too() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    for (query, expected) in [
        ("limit=0", "query/limit"),
        ("limit=101", "query/limit"),
        ("limit=x", "query/limit"),
        ("limit=", "query/limit"),
        ("limit=1&limit=2", "query/limit"),
        ("after=x", "query/after"),
        ("colour=red", "query/colour"),
        ("status=deleted", "query/status"),
        ("name=a%00b", "query/name"),
        ("name=%", "query"),
        ("name=%ff", "query"),
    ] {
        let answer = world.get(&format!("/tunnels?{query}"), &ann).await;
        assert_eq!(answer.faults(), [expected], "{query}");
    }
    let long = format!("/tunnels?name={}", "a".repeat(9_000));
    assert_eq!(world.get(&long, &ann).await.faults(), ["query"]);
    assert_eq!(world.get("/users/me?x=1", &ann).await.faults(), ["query/x"]);
    let times = "from=2026-11-25T10%3A00%3A00Z&to=2026-11-25T12:00:00%2B01:00&kind=tunnel.created";
    world.get(&format!("/events?{times}"), &ann).await.is(200);
    assert_eq!(world.get("/events?from=now&kind=x", &ann).await.faults().len(), 2);
}

fn raw(content_type: Option<&str>, token: &str, body: impl Into<Bytes>) -> http::Request<Bytes> {
    let mut request = http::Request::post("/api/v1/tunnels");
    if let Some(kind) = content_type {
        request = request.header("content-type", kind);
    }
    request.header("authorization", format!("Bearer {token}")).body(body.into()).unwrap()
}

#[tokio::test]
async fn a_body_is_json_and_of_a_size() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("")] {
        let refused = world.send_raw(raw(kind, &ann, "{}")).await;
        refused.is_problem(415, "UR-4034");
    }
    for (body, place) in [
        ("", "line 1, column 0"),
        ("{", "line 1, column 1"),
        ("{\n \"name\": x}", "line 2, column 10"),
        ("{\"name\":\"a\"} x", "line 1, column 14"),
        ("\u{feff}{}", "line 1, column 1"),
    ] {
        let refused = world.send_raw(raw(Some("application/json"), &ann, body)).await;
        let problem = refused.is_problem(400, "UR-4033");
        assert!(problem["detail"].as_str().unwrap().contains(place), "{problem}");
    }
    let refused = world.send_raw(raw(Some("application/json"), &ann, vec![0xff, 0xfe])).await;
    refused.is_problem(400, "UR-4033");
    let deep = "[".repeat(100_000);
    let refused = world.send_raw(raw(Some("application/json"), &ann, deep)).await;
    refused.is_problem(400, "UR-4033");
    let large = format!("{{\"local_url\":\"{}\"}}", "x".repeat(MAX_BODY));
    let refused = world.send_raw(raw(Some("application/json"), &ann, large)).await;
    refused.is_problem(413, "UR-4035");
    let kind = Some("Application/JSON; charset=utf-8");
    world.send_raw(raw(kind, &ann, "{}")).await.is(201);
}

#[tokio::test]
async fn a_secret_never_comes_back_in_a_problem() {
    let world = World::new().await;
    let secret = "sw0rdfish-sw0rdfish";
    for body in [
        json!({ "email": "ann@example.com", "password": secret, "x": 1 }),
        json!({ "email": secret, "password": secret }),
        json!({ "email": "ann@example.com", "password": [secret] }),
        json!({ "email": "ann@example.com", "password": secret }),
    ] {
        let answer = world.post("/auth/login", None, &body).await;
        assert!(answer.status >= 400 && !answer.text.contains(secret), "{}", answer.text);
    }
}

#[tokio::test]
async fn the_same_request_under_one_key_is_done_once() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let post = async |key: &str, body: &Value, token: &str| {
        world.send("POST", "/tunnels", Some(token), Some(body), &[("idempotency-key", key)]).await
    };
    let body = json!({ "local_url": "http://localhost:3000" });
    let first = post("k1", &body, &ann).await;
    let again = post("k1", &body, &ann).await;
    assert_eq!(first.is(201), again.is(201));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert!(!first.headers.contains_key("idempotency-replayed"));
    post("k1", &json!({}), &ann).await.is_problem(422, "UR-4042");
    // The key is the account's.
    let bob = world.token("bob@example.com", Role::User).await;
    post("k1", &json!({}), &bob).await.is(201);
    assert_eq!(world.get("/tunnels", &ann).await.is(200)["items"].as_array().unwrap().len(), 1);
    // What was not done can be tried again.
    let taken = json!({ "name": "www" });
    post("k2", &taken, &ann).await.is_problem(409, "UR-4040");
    post("k2", &json!({ "name": "fine" }), &ann).await.is(201);
    for bad in ["", " ", "ü", &"k".repeat(65)] {
        assert_eq!(post(bad, &body, &ann).await.faults(), ["header/idempotency-key"], "{bad:?}");
    }
}

#[tokio::test]
async fn a_key_that_is_under_way_waits() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let body = json!({ "name": "shop" });
    let headers = [("idempotency-key", "k1")];
    let both = futures_util::future::join_all(
        (0..5).map(|_| world.send("POST", "/tunnels", Some(&ann), Some(&body), &headers)),
    );
    let answers = both.await;
    for answer in &answers {
        assert!([201, 409].contains(&answer.status), "{}", answer.text);
        if answer.status == 409 {
            answer.is_problem(409, "UR-4043");
        }
    }
    assert!(answers.iter().any(|answer| answer.status == 201));
    let after = world.send("POST", "/tunnels", Some(&ann), Some(&body), &headers).await;
    assert_eq!(after.headers["idempotency-replayed"], "true");
}

#[tokio::test]
async fn a_secret_is_told_once_and_not_kept() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let headers = [("idempotency-key", "k1")];
    let body = json!({ "name": "laptop" });
    let post = || world.send("POST", "/tokens", Some(&ann), Some(&body), &headers);
    let first = post().await.is(201);
    let secret = first["token"].as_str().unwrap();
    let again = post().await.is(201);
    assert_eq!((&again["id"], &again["token"]), (&first["id"], &Value::Null));
    let list = world.get("/tokens", &ann).await;
    assert!(!list.text.contains(secret));
    let kept = world
        .services
        .store
        .rows("SELECT body FROM idempotency_keys", vec![])
        .await
        .unwrap()
        .remove(0)
        .take::<Vec<u8>>()
        .unwrap();
    assert!(!String::from_utf8(kept).unwrap().contains(secret));
}
