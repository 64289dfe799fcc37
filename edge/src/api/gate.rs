//! What every request to the API goes through before its handler: who calls, in which role, and
//! whether the request is as the description says. The description decides all of it, so what is
//! documented is what holds. Then the handler runs, once for each idempotency key.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    body::{Body, to_bytes},
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use serde_json::Value;
use tracing::warn;
use uniroute_shared::code::Code;

use super::{MAX_BODY, Peer, schema};
use crate::{
    auth::{Role, sha256_hex},
    services::{Caller, Failure, Fault, Services},
    store::{Timestamp, idempotency::Kept},
};

/// How long a handler may take; the store's own time-outs are shorter.
const MAX_TIME: Duration = Duration::from_secs(30);
/// Longest query that is looked at.
const MAX_QUERY: usize = 8 * 1024;
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// What an idempotency key looks like.
pub(super) const KEY_PATTERN: &str = "^[!-~]{1,64}$";

/// What is known of each operation, from the description.
pub(super) struct Gate {
    services: Services,
    schemas: Arc<schema::Schemas>,
    operations: HashMap<(Method, String), Operation>,
}

struct Operation {
    /// Who may call; `None`: everybody, without a login.
    role: Option<Role>,
    query: Vec<Parameter>,
    headers: Vec<Parameter>,
    /// The schema of the body, if there is to be one.
    body: Option<Value>,
    is_idempotent: bool,
}

struct Parameter {
    name: String,
    schema: Value,
    required: bool,
}

/// The body, as JSON that fits its schema.
#[derive(Clone)]
pub(super) struct Checked(pub(super) Value);

/// Marks an answer with a member that is told once, and never kept.
#[derive(Clone, Copy)]
pub(super) struct Once(pub(super) &'static str);

impl Gate {
    pub(super) fn new(services: Services, schemas: Arc<schema::Schemas>) -> Self {
        let mut operations = HashMap::new();
        let paths = schemas.document()["paths"].as_object().into_iter().flatten();
        for (path, item) in paths {
            for (method, described) in item.as_object().into_iter().flatten() {
                if let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) {
                    operations.insert((method, path.clone()), Operation::read(described));
                }
            }
        }
        Self { services, schemas, operations }
    }

    /// The operation that the router has found, if the path takes the method.
    fn operation(&self, parts: &Parts) -> Option<&Operation> {
        let path = parts.extensions.get::<MatchedPath>()?.as_str();
        let method = if parts.method == Method::HEAD { Method::GET } else { parts.method.clone() };
        self.operations.get(&(method, path.to_owned()))
    }

    async fn caller(&self, role: Role, parts: &Parts) -> Result<Caller, Failure> {
        let peer = parts.extensions.get::<Peer>().copied();
        let peer = peer.ok_or_else(|| Failure::new(&Code::INTERNAL))?;
        let token = bearer(&parts.headers).ok_or_else(|| Failure::new(&Code::LOGIN_NEEDED))?;
        let caller = self.services.authenticate(token, peer.address).await?;
        if caller.role < role {
            let detail = format!("this is for accounts with the role `{}`", role.as_str());
            return Err(Failure::because(&Code::ROLE_NEEDED, detail));
        }
        Ok(caller)
    }

    /// Everything that is wrong with the request, at once.
    fn check(
        &self,
        operation: &Operation,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<Option<Value>, Failure> {
        let mut faults = Vec::new();
        let mut read = None;
        self.check_query(operation, parts, &mut faults);
        for parameter in &operation.headers {
            self.check_header(parameter, &parts.headers, &mut faults);
        }
        if let Some(schema) = &operation.body {
            let body = read_json(&parts.headers, body)?;
            self.schemas.check(schema, &body, "", &mut faults);
            read = Some(body);
        }
        if faults.is_empty() {
            Ok(read)
        } else {
            Err(Failure::faults(&Code::INPUT_INVALID, faults))
        }
    }

    fn check_query(&self, operation: &Operation, parts: &Parts, faults: &mut Vec<Fault>) {
        let query = parts.uri.query().unwrap_or_default();
        if query.len() > MAX_QUERY {
            return faults.push(Fault::new("query", "is too long"));
        }
        let Some(pairs) = pairs(query) else {
            return faults.push(Fault::new("query", "is not UTF-8, or has a broken percent sign"));
        };
        let mut seen: Vec<&str> = Vec::new();
        for (name, text) in &pairs {
            let shown: String = name.chars().take(64).collect();
            let at = format!("query/{shown}");
            let Some(known) = operation.query.iter().find(|known| known.name == *name) else {
                faults.push(Fault::new(at, "is not known"));
                continue;
            };
            if seen.contains(&name.as_str()) {
                faults.push(Fault::new(at, "is there twice"));
                continue;
            }
            seen.push(name);
            self.schemas.check(&known.schema, &schema::parameter(&known.schema, text), &at, faults);
        }
        for known in &operation.query {
            if known.required && !seen.contains(&known.name.as_str()) {
                faults.push(Fault::new(format!("query/{}", known.name), "is missing"));
            }
        }
    }

    fn check_header(&self, known: &Parameter, headers: &HeaderMap, faults: &mut Vec<Fault>) {
        let mut values = headers.get_all(known.name.as_str()).iter();
        let at = format!("header/{}", known.name);
        match (values.next(), values.next()) {
            (None, _) if known.required => faults.push(Fault::new(at, "is missing")),
            (None, _) => {}
            (Some(_), Some(_)) => faults.push(Fault::new(at, "is there twice")),
            (Some(value), None) => {
                let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                self.schemas.check(&known.schema, &Value::String(text), &at, faults);
            }
        }
    }
}

impl Operation {
    fn read(described: &Value) -> Self {
        let parameters = described["parameters"].as_array().into_iter().flatten();
        let of = |place: &str| {
            let here = parameters.clone().filter(|parameter| parameter["in"] == place);
            let read = |parameter: &Value| Parameter {
                name: parameter["name"].as_str().unwrap_or_default().to_lowercase(),
                schema: parameter["schema"].clone(),
                required: parameter["required"] == true,
            };
            here.map(read).collect::<Vec<_>>()
        };
        let (query, headers) = (of("query"), of("header"));
        let is_idempotent = headers.iter().any(|header| header.name == IDEMPOTENCY_KEY);
        let body = described.pointer("/requestBody/content/application~1json/schema").cloned();
        Self { role: role(described), query, headers, body, is_idempotent }
    }
}

/// The role that an operation's description asks for; `None`: no login.
pub(super) fn role(described: &Value) -> Option<Role> {
    let roles = described.pointer("/security/0/bearer")?.as_array()?;
    let named = roles.first().and_then(Value::as_str).and_then(Role::parse);
    Some(named.unwrap_or(Role::User))
}

/// The way of every request that the router has found a path for.
pub(super) async fn pass(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let passed = gate.enter(request, next).await;
    passed.unwrap_or_else(IntoResponse::into_response)
}

impl Gate {
    async fn enter(&self, request: Request, next: Next) -> Result<Response, Failure> {
        let (mut parts, body) = request.into_parts();
        let Some(operation) = self.operation(&parts) else {
            // The router answers that the path does not take the method.
            return Ok(next.run(Request::from_parts(parts, body)).await);
        };
        let caller = match operation.role {
            Some(role) => Some(self.caller(role, &parts).await?),
            None => None,
        };
        let body = to_bytes(body, MAX_BODY).await;
        let body = body.map_err(|_| Failure::new(&Code::API_BODY_TOO_LARGE))?;
        if let Some(read) = self.check(operation, &parts, &body)? {
            parts.extensions.insert(Checked(read));
        }
        let key = parts.headers.get(IDEMPOTENCY_KEY).filter(|_| operation.is_idempotent);
        let key = key.and_then(|key| key.to_str().ok()).map(str::to_owned);
        let hash = hash(&parts, &body);
        if let Some(caller) = &caller {
            parts.extensions.insert(caller.clone());
        }
        let request = Request::from_parts(parts, Body::from(body));
        match (key, caller) {
            (Some(key), Some(caller)) => self.once(&caller, key, &hash, request, next).await,
            _ => Ok(run(request, next).await),
        }
    }

    /// Runs the handler, unless it has run for this key.
    async fn once(
        &self,
        caller: &Caller,
        key: String,
        hash: &str,
        request: Request,
        next: Next,
    ) -> Result<Response, Failure> {
        let user = caller.user;
        let begun = self.services.store.begin_request(user, &key, hash, Timestamp::now()).await?;
        match begun {
            Kept::Other => return Err(Failure::new(&Code::KEY_REUSED)),
            Kept::UnderWay => return Err(Failure::new(&Code::KEY_UNDER_WAY)),
            Kept::Answer { status, body } => return Ok(replayed(status, body)),
            Kept::New => {}
        }
        let store = self.services.store.clone();
        // A task of its own: a caller that hangs up does not leave the key under way.
        let task = tokio::spawn(async move {
            let response = run(request, next).await;
            let (parts, body) = response.into_parts();
            let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
            let kept = if parts.status.is_success() {
                let once = parts.extensions.get::<Once>();
                let kept = once.and_then(|once| without(&body, once.0));
                let kept = kept.unwrap_or_else(|| body.to_vec());
                store.finish_request(user, &key, parts.status.as_u16(), &kept).await
            } else {
                // Nothing was done, so the same may be tried again.
                store.drop_request(user, &key).await
            };
            if let Err(error) = kept {
                warn!(%error, "the answer to an idempotent request could not be kept");
            }
            Response::from_parts(parts, Body::from(body))
        });
        task.await.map_err(|_| Failure::new(&Code::INTERNAL))
    }
}

async fn run(request: Request, next: Next) -> Response {
    match tokio::time::timeout(MAX_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::new(&Code::STORE_AWAY).into_response(),
    }
}

/// The body with one member `null`.
fn without(body: &[u8], member: &str) -> Option<Vec<u8>> {
    let mut body: Value = serde_json::from_slice(body).ok()?;
    *body.get_mut(member)? = Value::Null;
    serde_json::to_vec(&body).ok()
}

fn replayed(status: u16, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}

/// What tells one request from another.
fn hash(parts: &Parts, body: &[u8]) -> String {
    let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let head = format!("{} {target}\n", parts.method);
    sha256_hex(&[head.as_bytes(), body].concat())
}

/// The token of `authorization: Bearer TOKEN`, if the field is there once.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn read_json(headers: &HeaderMap, body: &[u8]) -> Result<Value, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/json")) {
        return Err(Failure::new(&Code::MEDIA_TYPE));
    }
    serde_json::from_slice(body).map(whole_numbers).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Eof => "it ends too early",
            _ => "it is not valid JSON",
        };
        let detail = format!("{what}: line {}, column {}", error.line(), error.column());
        Failure::because(&Code::BODY_UNREADABLE, detail)
    })
}

/// The same value, with whole numbers as integers however they are written: `1.0` is 1 in JSON.
fn whole_numbers(value: Value) -> Value {
    /// Up to here every whole number has a float of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|_| number.is_f64());
            let whole = whole.filter(|whole| whole.fract() == 0.0 && whole.abs() < EXACT);
            #[expect(clippy::cast_possible_truncation, reason = "it is whole, and not too large")]
            whole.map_or(Value::Number(number), |whole| Value::from(whole as i64))
        }
        Value::Array(items) => items.into_iter().map(whole_numbers).collect(),
        Value::Object(map) => {
            map.into_iter().map(|(name, value)| (name, whole_numbers(value))).collect()
        }
        other => other,
    }
}

/// The names and values of a query; `None`: it cannot be read without guessing.
pub(crate) fn pairs(query: &str) -> Option<Vec<(String, String)>> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        Some((decoded(name)?, decoded(value)?))
    };
    parts.map(pair).collect()
}

/// Undoes percent encoding and `+`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, more @ ..] = rest {
        rest = more;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let [high, low, more @ ..] = more else { return None };
                rest = more;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?
            }
            byte => *byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_one_way_or_not_at_all() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(pairs(""), Some(vec![]));
        assert_eq!(
            pairs("a=1&b=%2F+x&c"),
            Some(vec![pair("a", "1"), pair("b", "/ x"), pair("c", "")])
        );
        for bad in ["a=%", "a=%4", "a=%zz", "a=%ff", "%=1"] {
            assert_eq!(pairs(bad), None, "{bad}");
        }
    }

    #[test]
    fn whole_numbers_are_integers() {
        let read = |text: &str| whole_numbers(serde_json::from_str(text).unwrap()).to_string();
        assert_eq!(read("[1.0, {\"a\": -2e3}, 0.5, 7]"), "[1,{\"a\":-2000},0.5,7]");
        assert_eq!(read("-0.0"), "0");
        assert_eq!(read("1e300"), "1e+300");
        assert_eq!(read("18446744073709551615"), "18446744073709551615");
    }

    #[test]
    fn a_bearer_token_is_there_once() {
        let headers = |values: &[&str]| {
            let name =
                |value: &&str| (header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            values.iter().map(name).collect::<HeaderMap>()
        };
        assert_eq!(bearer(&headers(&["Bearer abc"])), Some("abc"));
        assert_eq!(bearer(&headers(&["bearer abc"])), Some("abc"));
        for bad in [&[][..], &["abc"], &["Basic abc"], &["Bearer"], &["Bearer a", "Bearer b"]] {
            assert_eq!(bearer(&headers(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn a_secret_is_not_kept() {
        let kept = without(br#"{"id":1,"token":"ur_x"}"#, "token").unwrap();
        assert_eq!(kept, br#"{"id":1,"token":null}"#);
        assert_eq!(without(b"[]", "token"), None);
    }
}
