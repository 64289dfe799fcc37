//! The API at its face, over a store in memory.

mod inputs;
mod isolation;
mod logins;
mod things;

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::{
    auth::{Role, passwords::Passwords, secret::Secret},
    events::{Event, Events, Numbered},
    services::{
        Settings, Signup,
        accounts::{DEFAULT_PLAN, NewUser},
        tests::NothingLive,
    },
    store::{Store, StoreOptions, StoreUrl, audit::Actor},
};

pub(super) const PASSWORD: &str = "correct horse battery";
pub(super) const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 9));

/// An API with a store of its own.
pub(super) struct World {
    pub(super) api: Api,
    pub(super) services: Services,
    pub(super) live: Arc<NothingLive>,
    pub(super) suspects: Arc<Mutex<Vec<IpAddr>>>,
    pub(super) events: tokio::sync::broadcast::Receiver<Numbered>,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: http::HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    /// Checks the status and gives the body.
    pub(super) fn is(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        if self.text.is_empty() { Value::Null } else { self.json() }
    }

    /// Checks that it is this problem, told as all are.
    pub(super) fn is_problem(&self, status: u16, code: &str) -> Value {
        let problem = self.is(status);
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.headers["x-uniroute-error"], code);
        assert_eq!(problem["request_id"], self.headers["x-uniroute-request-id"].to_str().unwrap());
        problem
    }

    /// Places of the faults that it names.
    pub(super) fn faults(&self) -> Vec<String> {
        let problem = self.is_problem(400, "UR-4032");
        let faults = problem["errors"].as_array().unwrap().iter();
        faults.map(|fault| fault["pointer"].as_str().unwrap().to_owned()).collect()
    }
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(Signup::Closed).await
    }

    pub(super) async fn with(signup: Signup) -> Self {
        let url: StoreUrl = "sqlite::memory:".parse().unwrap();
        let store = Store::open(&url, &StoreOptions::default()).await.unwrap();
        let live = Arc::new(NothingLive::default());
        let suspects = Arc::<Mutex<Vec<IpAddr>>>::default();
        let seen = suspects.clone();
        let settings = Settings {
            signup,
            issuer: "http://edge.test".into(),
            domain: "edge.test".into(),
            quarantine: std::time::Duration::from_secs(3600),
            url_of: Box::new(|kind, name, _| format!("{}://{name}.edge.test", kind.as_str())),
        };
        let events = Events::default();
        let told = events.subscribe();
        let services = Services::new(
            store,
            events,
            live.clone(),
            settings,
            Secret::new(&[7; 32]).unwrap(),
            Passwords::cheap(),
            Arc::new(move |address, _| seen.lock().push(address)),
        );
        let api = Api::new(services.clone());
        Self { api, services, live, suspects, events: told }
    }

    /// What was told since the last time.
    pub(super) fn told(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok())
            .map(|numbered| numbered.event.as_ref().clone())
            .collect()
    }

    /// A new account with [`PASSWORD`].
    pub(super) async fn user(&self, email: &str, role: Role) -> uuid::Uuid {
        let new = NewUser {
            email: email.into(),
            password: Some(PASSWORD.into()),
            role,
            plan: DEFAULT_PLAN.into(),
        };
        self.services.add_user(new, &Actor::command_line()).await.unwrap().id
    }

    /// A new account, logged in: its access token.
    pub(super) async fn token(&self, email: &str, role: Role) -> String {
        self.user(email, role).await;
        self.login(email).await["access_token"].as_str().unwrap().to_owned()
    }

    pub(super) async fn login(&self, email: &str) -> Value {
        let body = json!({ "email": email, "password": PASSWORD });
        self.post("/auth/login", None, &body).await.is(200)
    }

    pub(super) async fn get(&self, path: &str, token: &str) -> Answer {
        self.send("GET", path, Some(token), None, &[]).await
    }

    pub(super) async fn delete(&self, path: &str, token: &str) -> Answer {
        self.send("DELETE", path, Some(token), None, &[]).await
    }

    pub(super) async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        self.send("POST", path, token, Some(body), &[]).await
    }

    pub(super) async fn patch(&self, path: &str, token: &str, body: &Value) -> Answer {
        self.send("PATCH", path, Some(token), Some(body), &[]).await
    }

    /// Sends a request for a path below `/api/v1`.
    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = http::Request::builder().method(method).uri(format!("/api/v1{path}"));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.send_raw(request.body(body).unwrap()).await
    }

    pub(super) async fn send_raw(&self, request: http::Request<Bytes>) -> Answer {
        let peer = Peer { address: ADDRESS, secure: true };
        let response = self.api.answer(request, peer).await;
        let (parts, body) = response.into_parts();
        assert_eq!(parts.headers["cache-control"], "no-store");
        assert_eq!(parts.headers["x-content-type-options"], "nosniff");
        let text = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text }
    }
}

fn document() -> Value {
    complete(serde_json::to_value(operations().into_openapi()).unwrap())
}

#[test]
fn the_page_of_the_api_is_what_is_served() {
    let served = format!("{:#}\n", document());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let page = std::fs::read_to_string(path).unwrap_or_default();
    if page != served {
        let new = format!("{}/openapi.json", std::env::temp_dir().display());
        std::fs::write(&new, &served).unwrap();
        panic!("docs/openapi.json is not what is served: it should read as {new}");
    }
}

/// Words of JSON Schema that the gate acts on, and those that say nothing about what is valid.
const CHECKED: &[&str] = &[
    "$ref",
    "oneOf",
    "type",
    "enum",
    "format",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "maxItems",
    "items",
    "required",
    "properties",
    "additionalProperties",
    "propertyNames",
    "maxProperties",
];
const TOLD: &[&str] = &["description", "default", "example", "examples", "writeOnly"];
const FORMATS: &[&str] = &["uuid", "date-time", "password", "int32", "int64"];

fn check_words(document: &Value, schema: &Value) {
    let Some(schema) = schema.as_object() else { return };
    for (word, value) in schema {
        assert!(CHECKED.contains(&word.as_str()) || TOLD.contains(&word.as_str()), "{word}");
        match word.as_str() {
            "$ref" => {
                let target = value.as_str().unwrap().trim_start_matches('#');
                check_words(document, document.pointer(target).unwrap());
            }
            "format" => assert!(FORMATS.contains(&value.as_str().unwrap()), "{value}"),
            "oneOf" => value.as_array().unwrap().iter().for_each(|one| check_words(document, one)),
            "properties" => {
                value.as_object().unwrap().values().for_each(|one| check_words(document, one));
            }
            "items" | "additionalProperties" | "propertyNames" => check_words(document, value),
            _ => {}
        }
    }
    if schema.get("type") == Some(&json!("object")) {
        assert!(schema.contains_key("additionalProperties"), "objects are closed: {schema:?}");
    }
    // Text without a rule would let in control characters.
    if schema.get("type") == Some(&json!("string")) {
        let format = schema.get("format").filter(|format| *format != "password");
        let ruled = format.is_some() || schema.contains_key("enum");
        assert!(ruled || schema.contains_key("pattern"), "{schema:?}");
    }
}

#[test]
fn the_gate_knows_all_that_the_description_says_of_inputs() {
    let document = document();
    let mut seen = 0;
    for item in document["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values() {
            let body = operation.pointer("/requestBody/content/application~1json/schema");
            check_words(&document, body.unwrap_or(&Value::Null));
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            for parameter in parameters.filter(|parameter| parameter["in"] != "path") {
                // A tag that is none of ours is no fault: it fits no version.
                if parameter["name"] != "if-match" {
                    check_words(&document, &parameter["schema"]);
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn no_two_things_have_one_name() {
    let source = [
        include_str!("accounts.rs"),
        include_str!("domains.rs"),
        include_str!("extract.rs"),
        include_str!("operators.rs"),
        include_str!("problem.rs"),
        include_str!("statistics.rs"),
        include_str!("tokens.rs"),
        include_str!("tunnels.rs"),
    ];
    let mut seen = std::collections::HashSet::new();
    for line in source.concat().lines() {
        let words: Vec<_> = line.split([' ', '<']).collect();
        let at = words.iter().position(|word| ["struct", "enum"].contains(word));
        if let Some(name) = at.and_then(|at| words.get(at + 1)) {
            assert!(seen.insert((*name).to_owned()), "the description has room for one {name}");
        }
    }
}

#[test]
fn every_operation_says_what_can_go_wrong() {
    let document = document();
    let mut ids = std::collections::HashSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let what = format!("{method} {path}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{what}");
            assert!(!operation["summary"].as_str().unwrap_or_default().is_empty(), "{what}");
            let says = |status: &str| operation["responses"].get(status).is_some();
            assert!(says("400") && says("500") && says("503"), "{what}");
            let secured = operation["security"].is_array();
            let by_secret = path.ends_with("/login") || path.ends_with("/refresh");
            assert_eq!(says("401"), secured || by_secret, "{what}");
            assert_eq!(says("413") && says("415"), operation["requestBody"].is_object(), "{what}");
        }
    }
}

#[tokio::test]
async fn it_is_well_and_says_so_to_everybody() {
    let world = World::new().await;
    let health = world.send("GET", "/health", None, None, &[]).await.is(200);
    assert_eq!((&health["status"], &health["store"]), (&json!("ok"), &json!(true)));
    let served = world.send("GET", "/openapi.json", None, None, &[]).await;
    assert_eq!(served.is(200), document());
    let head = world.send("HEAD", "/openapi.json", None, None, &[]).await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
}

#[tokio::test]
async fn what_is_not_there_is_told_as_a_problem() {
    let world = World::new().await;
    let token = world.token("ann@example.com", Role::User).await;
    for path in ["", "/", "/nothing", "/tunnels/", "/tunnels/x/y/z", "/health/"] {
        world.get(path, &token).await.is_problem(404, "UR-4030");
    }
    let refused = world.send("PUT", "/tunnels", Some(&token), None, &[]).await;
    refused.is_problem(405, "UR-4031");
    let mut allowed: Vec<_> = refused.headers["allow"].to_str().unwrap().split(',').collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    for id in ["x", "0", "{00000000-0000-0000-0000-000000000000}", "%00", "%ff", "..%2f"] {
        world.get(&format!("/tunnels/{id}"), &token).await.is_problem(404, "UR-4030");
    }
}
