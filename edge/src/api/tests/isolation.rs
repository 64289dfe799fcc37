//! T21: nobody sees or changes what is somebody else's. Every operation of the description is tried;
//! one without a row here fails the test.

use http::Method;
use uuid::Uuid;

use super::*;
use crate::{
    services::Ban,
    store::{RequestRow, Row, SessionRow, Timestamp, values},
};

/// Ann has one of everything, Bob has nothing.
struct Tenants {
    world: World,
    ann: String,
    bob: String,
    operator: String,
    admin: String,
    ids: Ids,
}

#[derive(Clone, Debug)]
struct Ids {
    user: String,
    tunnel: String,
    token: String,
    domain: String,
    session: String,
    request: String,
    invite: String,
}

impl Tenants {
    async fn new() -> Self {
        let world = World::new().await;
        let ann = world.token("ann@example.com", Role::User).await;
        let bob = world.token("bob@example.com", Role::User).await;
        let operator = world.token("op@example.com", Role::Operator).await;
        let admin = world.token("root@example.com", Role::Admin).await;
        let id = |value: Value| value["id"].as_str().unwrap().to_owned();
        let user = id(world.get("/users/me", &ann).await.is(200));
        let tunnel = world.post("/tunnels", Some(&ann), &json!({ "name": "shop" })).await;
        let tunnel = id(tunnel.is(201));
        let token = id(world.post("/tokens", Some(&ann), &json!({ "name": "t" })).await.is(201));
        let domain = json!({ "name": "shop.example.com", "tunnel_id": tunnel });
        let domain = id(world.post("/domains", Some(&ann), &domain).await.is(201));
        let invite = id(world.post("/invites", Some(&admin), &json!({})).await.is(201));
        let plan = json!({ "tunnels": 3 });
        world.send("PUT", "/plans/spare", Some(&admin), Some(&plan), &[]).await.is(200);
        let (session, request) = served(&world, tunnel.parse().unwrap()).await;
        let until = Timestamp::now().plus(std::time::Duration::from_secs(60));
        world.live.bans.lock().push(Ban {
            address: BANNED.parse().unwrap(),
            rule: "x".into(),
            until,
        });
        let ids = Ids { user, tunnel, token, domain, session, request, invite };
        Self { world, ann, bob, operator, admin, ids }
    }

    /// All that the store has of what tenants own, as text.
    async fn dump(&self) -> String {
        let mut dump = String::new();
        for table in [
            "tunnels",
            "tunnel_tokens",
            "domains",
            "tunnel_sessions",
            "users",
            "invites",
            "plans",
            "signing_keys",
        ] {
            let order = if table == "plans" {
                "name"
            } else if table == "signing_keys" {
                "kid"
            } else {
                "id"
            };
            let sql = format!("SELECT * FROM {table} ORDER BY {order}");
            let rows: Vec<Row> = self.world.services.store.rows(&sql, vec![]).await.unwrap();
            dump += &format!("{table}: {rows:?}\n");
        }
        dump
    }

    async fn try_it(&self, operation: &Operation, token: Option<&str>, path: &str) -> Answer {
        let body = operation.body.as_ref();
        self.world.send(operation.method.as_str(), path, token, body, &[]).await
    }
}

const BANNED: &str = "192.0.2.7";

/// A session and a request of a tunnel, as an edge writes them.
async fn served(world: &World, tunnel: Uuid) -> (String, String) {
    let (session, request, now) = (Uuid::now_v7(), Uuid::now_v7(), Timestamp::now());
    let row = SessionRow {
        id: Uuid::now_v7(),
        session_id: session,
        tunnel_id: tunnel,
        client_id: "laptop".into(),
        server_id: "edge-1".into(),
        token_id: None,
        peer: "192.0.2.1".into(),
        agent_version: "0.1.0".into(),
        connected_at: now,
        disconnected_at: None,
        last_heartbeat: Some(now),
        status: "connected".into(),
    };
    world.services.store.open_session(&[row], vec![]).await.unwrap();
    let row = RequestRow {
        id: request,
        tunnel_id: tunnel,
        request_id: request.simple().to_string(),
        method: "GET".into(),
        path: "/secret".into(),
        status_code: Some(200),
        latency_ms: Some(5),
        request_size: Some(1),
        response_size: Some(2),
        created_at: now,
        visitor: "198.51.100.1".into(),
        error_code: 0,
    };
    world.services.store.insert_requests(&[row]).await.unwrap();
    (session.to_string(), request.simple().to_string())
}

/// One operation of the description.
struct Operation {
    method: Method,
    path: String,
    /// Who may call; `None`: everybody.
    role: Option<Role>,
    body: Option<Value>,
}

/// A good body for each operation; `None`: it has none.
fn body(method: &str, path: &str, ids: &Ids) -> Option<Value> {
    Some(match (method, path) {
        ("post", "/auth/login") => json!({ "email": "bob@example.com", "password": PASSWORD }),
        ("post", "/auth/refresh") => json!({ "refresh_token": "x" }),
        ("post", "/auth/signup") => json!({ "email": "x@example.com", "password": PASSWORD }),
        ("post", "/auth/password") => {
            json!({ "old_password": PASSWORD, "new_password": "a new long password" })
        }
        ("post", "/auth/logout" | "/tunnels" | "/tokens" | "/tokens/{id}/rotate" | "/invites") => {
            json!({})
        }
        ("post", "/users") => json!({ "email": "new@example.com" }),
        ("patch", "/users/{id}") => json!({ "role": "operator" }),
        ("patch", "/tunnels/{id}") => json!({ "local_url": "http://evil.example" }),
        ("patch", "/tokens/{id}") => json!({ "name": "taken over" }),
        ("post", "/domains") => json!({ "name": "b.example.com", "tunnel_id": ids.tunnel }),
        ("patch", "/domains/{id}") => json!({ "tunnel_id": null }),
        ("put", "/plans/{name}") => json!({ "tunnels": 9 }),
        ("get" | "delete", _)
        | ("post", "/tunnels/{id}/pause" | "/tunnels/{id}/resume" | "/keys/rotate") => return None,
        _ => panic!("{method} {path} has no row in the table of tenant isolation"),
    })
}

/// The path with ids in it: Ann's, or ones that nobody has.
fn filled(path: &str, ids: &Ids) -> String {
    let (of, _) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let id = match of {
        "tunnels" => &ids.tunnel,
        "tokens" => &ids.token,
        "domains" => &ids.domain,
        "sessions" => &ids.session,
        "requests" => &ids.request,
        "users" => &ids.user,
        "invites" => &ids.invite,
        _ if path.contains("{id}") => panic!("{path} has no row in the table of tenant isolation"),
        _ => "",
    };
    path.replace("{id}", id).replace("{name}", "spare").replace("{address}", BANNED)
}

fn all(ids: &Ids) -> Vec<Operation> {
    let document = document();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.strip_prefix("/api/v1").unwrap();
        for (method, operation) in item.as_object().unwrap() {
            let body = body(method, path, ids);
            assert_eq!(body.is_some(), operation["requestBody"].is_object(), "{method} {path}");
            all.push(Operation {
                method: Method::from_bytes(method.to_uppercase().as_bytes()).unwrap(),
                path: path.to_owned(),
                role: gate::role(operation),
                body,
            });
        }
    }
    all
}

/// What everybody may do without a login; nothing else.
const PUBLIC: &[&str] =
    &["/auth/login", "/auth/refresh", "/auth/signup", "/health", "/openapi.json"];
/// What is not about things of Ann's, for whoever is logged in.
const OWN: &[&str] = &[
    "/auth/logout",
    "/auth/password",
    "/users/me",
    "/tunnels",
    "/tokens",
    "/domains",
    "/sessions",
    "/events",
    "/usage",
];

#[tokio::test]
async fn nothing_goes_without_a_login() {
    let tenants = Tenants::new().await;
    let before = tenants.dump().await;
    for operation in all(&tenants.ids) {
        let path = filled(&operation.path, &tenants.ids);
        if operation.role.is_none() {
            assert!(PUBLIC.contains(&operation.path.as_str()), "{path}");
            continue;
        }
        for token in [None, Some("x"), Some("ur_0000000000000000")] {
            let answer = tenants.try_it(&operation, token, &path).await;
            answer.is_problem(401, "UR-4020");
            assert!(answer.headers.contains_key("www-authenticate"), "{path}");
        }
    }
    assert_eq!(tenants.dump().await, before);
}

#[tokio::test]
async fn t21_what_is_somebody_elses_looks_as_if_it_was_not_there() {
    let tenants = Tenants::new().await;
    let before = tenants.dump().await;
    let mut nobody = tenants.ids.clone();
    let id = Uuid::now_v7();
    for slot in [&mut nobody.tunnel, &mut nobody.token, &mut nobody.domain, &mut nobody.session] {
        *slot = id.to_string();
    }
    nobody.request = id.simple().to_string();
    let mut tried = 0;
    for operation in all(&tenants.ids) {
        if operation.role != Some(Role::User) || OWN.contains(&operation.path.as_str()) {
            continue;
        }
        assert!(operation.path.contains('{'), "{} has no row", operation.path);
        let told = async |ids| {
            let path = filled(&operation.path, ids);
            let answer = tenants.try_it(&operation, Some(&tenants.bob), &path).await;
            let mut problem = answer.is_problem(404, "UR-4030");
            problem["request_id"] = Value::Null;
            problem
        };
        assert_eq!(told(&tenants.ids).await, told(&nobody).await, "{}", operation.path);
        tried += 1;
    }
    assert!(tried >= 17, "{tried}");
    assert_eq!(tenants.dump().await, before);
    assert!(tenants.world.live.cut.lock().is_empty());
}

#[tokio::test]
async fn t21_lists_show_ones_own_only() {
    let tenants = Tenants::new().await;
    let ids = &tenants.ids;
    for list in ["/tunnels", "/tokens", "/domains", "/sessions", "/events", "/usage"] {
        let queries = ["".to_owned(), format!("?user_id={}", ids.user)];
        for query in &queries {
            let path = format!("{list}{query}");
            let seen = tenants.world.get(&path, &tenants.bob).await;
            if list == "/usage" && !query.is_empty() {
                seen.is_problem(404, "UR-4030");
                continue;
            }
            seen.is(200);
            for id in [&ids.user, &ids.tunnel, &ids.token, &ids.domain, &ids.session] {
                assert!(!seen.text.contains(id.as_str()), "{path}: {}", seen.text);
            }
            let own = tenants.world.get(&path, &tenants.ann).await;
            let needle = if list == "/usage" { &ids.user } else { &ids.tunnel };
            let needle = if list == "/tokens" { &ids.token } else { needle };
            assert!(own.text.contains(needle.as_str()), "{path}: {}", own.text);
            let operator = tenants.world.get(&path, &tenants.operator).await;
            if list != "/usage" || !query.is_empty() {
                assert!(operator.text.contains(needle.as_str()), "{path}: {}", operator.text);
            }
        }
    }
    let query = format!("/events?tunnel_id={}", ids.tunnel);
    assert_eq!(tenants.world.get(&query, &tenants.bob).await.is(200)["items"], json!([]));
    let domain = json!({ "name": "b.example.com", "tunnel_id": ids.tunnel });
    let refused = tenants.world.post("/domains", Some(&tenants.bob), &domain).await;
    refused.is_problem(404, "UR-4030");
}

#[tokio::test]
async fn a_role_is_needed_where_the_description_says_so() {
    let tenants = Tenants::new().await;
    let before = tenants.dump().await;
    let mut tried = 0;
    for operation in all(&tenants.ids) {
        let path = filled(&operation.path, &tenants.ids);
        for (role, token) in [(Role::User, &tenants.bob), (Role::Operator, &tenants.operator)] {
            if operation.role.is_some_and(|needed| needed > role) {
                let answer = tenants.try_it(&operation, Some(token), &path).await;
                answer.is_problem(403, "UR-4023");
                tried += 1;
            }
        }
    }
    assert!(tried > 25, "{tried}");
    assert_eq!(tenants.dump().await, before);
    assert_eq!(tenants.world.live.bans.lock().len(), 1);
}

#[tokio::test]
async fn operators_see_all_and_change_what_is_theirs_to_change() {
    let tenants = Tenants::new().await;
    for operation in all(&tenants.ids) {
        let may = |path: &str| {
            operation.method == Method::GET
                || path.ends_with("/pause")
                || path.ends_with("/resume")
                || path.starts_with("/sessions")
        };
        if operation.role != Some(Role::User) || !operation.path.contains('{') {
            continue;
        }
        let path = filled(&operation.path, &tenants.ids);
        let answer = tenants.try_it(&operation, Some(&tenants.operator), &path).await;
        if may(&operation.path) {
            assert!(answer.status < 300, "{path}: {}", answer.text);
        } else {
            answer.is_problem(403, "UR-4023");
        }
    }
}

#[tokio::test]
async fn every_operation_works_for_whom_it_is() {
    // What would end the others' subject comes last.
    let order = |operation: &Operation| {
        let is_last = operation.path == "/tunnels/{id}" || operation.path.starts_with("/auth/");
        (operation.method == Method::DELETE, is_last, operation.path == "/auth/logout")
    };
    let tenants = Tenants::new().await;
    let mut operations = all(&tenants.ids);
    operations.sort_by_key(order);
    for operation in &operations {
        let path = filled(&operation.path, &tenants.ids);
        let token = match operation.role {
            None => None,
            Some(Role::User) => Some(&tenants.ann),
            Some(Role::Operator) => Some(&tenants.operator),
            Some(Role::Admin) => Some(&tenants.admin),
        };
        let answer = tenants.try_it(operation, token.map(String::as_str), &path).await;
        let expected: &[u16] = match operation.path.as_str() {
            "/auth/refresh" => &[401],
            "/auth/signup" => &[403],
            // It has the names of tunnels.
            "/users/{id}" if operation.method == Method::DELETE => &[409],
            _ => &[200, 201, 204],
        };
        let what = format!("{} {path}: {}", operation.method, answer.text);
        // After the log-out there is no login for what comes then.
        let out = operation.method == Method::DELETE && operation.role == Some(Role::User);
        assert!(expected.contains(&answer.status) || (out && answer.status == 401), "{what}");
    }
    let left = tenants.world.services.store.rows("SELECT id FROM invites", values![]).await;
    assert_eq!(left.unwrap().len(), 1, "one was made, and another one taken back");
}
