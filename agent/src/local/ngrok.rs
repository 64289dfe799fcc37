//! The shapes that scripts for ngrok's agent read: `/api/tunnels` and `/api/requests/http`.

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use uniroute_shared::code::Code;

use super::{
    App, Shared, inspector,
    problem::{Asked, Named, Payload, Problem},
};
use crate::{
    inspect::{self, Inspector, Record, Side, View},
    status::TunnelStatus,
};

/// Requests of one answer.
const LIMIT: usize = 50;
const MAX_LIMIT: usize = 1000;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/tunnels", get(tunnels))
        .route("/tunnels/{name}", get(tunnel))
        .route("/requests/http", get(requests).post(replay).delete(clear))
        .route("/requests/http/{id}", get(request))
}

async fn tunnels(State(app): Shared) -> Json<Value> {
    let times = times(&app).await;
    let tunnels = app.handle.status().tunnels;
    let tunnels: Vec<_> = tunnels.iter().map(|tunnel| shown(&app, tunnel, &times)).collect();
    Json(json!({ "tunnels": tunnels, "uri": "/api/tunnels" }))
}

async fn tunnel(State(app): Shared, Named(name): Named) -> Result<Json<Value>, Problem> {
    let times = times(&app).await;
    let tunnels = app.handle.status().tunnels;
    let tunnel = tunnels.iter().find(|tunnel| tunnel.key == name);
    let tunnel = tunnel.ok_or_else(|| Problem::of(&Code::TUNNEL_NOT_SERVED))?;
    Ok(Json(shown(&app, tunnel, &times)))
}

/// When requests of a tunnel came, in milliseconds ago, and how long they took, in microseconds.
struct Time {
    tunnel: Arc<str>,
    ago_ms: u128,
    took_us: u64,
}

async fn times(app: &Arc<App>) -> Vec<Time> {
    let times = app.work(|inspector| {
        let time = |record: Arc<Record>| Time {
            ago_ms: record.began.elapsed().as_millis(),
            took_us: record.us(record.state().ended),
            tunnel: Arc::clone(&record.tunnel),
        };
        Ok(inspector.all().into_iter().map(time).collect())
    });
    times.await.unwrap_or_default()
}

fn shown(app: &App, tunnel: &TunnelStatus, times: &[Time]) -> Value {
    let TunnelStatus { key, url, kind, .. } = tunnel;
    let proto = match *kind {
        "http" if url.starts_with("http:") => "http",
        "http" => "https",
        other => other,
    };
    let all = app.handle.shared.tunnels.all();
    let inspected = all.iter().any(|other| other.key == *key && other.served().inspect.is_some());
    let metrics = metrics(tunnel, times);
    json!({
        "name": key,
        "ID": key,
        "uri": format!("/api/tunnels/{key}"),
        "public_url": url,
        "proto": proto,
        "config": {
            "addr": tunnel.upstreams.first().map(|upstream| &upstream.url),
            "inspect": inspected && app.inspector().is_some(),
        },
        "metrics": { "conns": metrics, "http": metrics },
    })
}

/// Rates are requests a second over so many minutes, of those that are kept; times are nanoseconds.
fn metrics(tunnel: &TunnelStatus, times: &[Time]) -> Value {
    let own = || times.iter().filter(|time| *time.tunnel == *tunnel.key);
    let rate = |minutes: u32| {
        let within = u128::from(minutes) * 60_000;
        let count = own().filter(|time| time.ago_ms < within).count();
        f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / f64::from(minutes * 60)
    };
    let mut took: Vec<_> = own().map(|time| time.took_us).filter(|us| *us > 0).collect();
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).map_or(0, |us| us * 1000);
    json!({
        "count": tunnel.requests, "gauge": tunnel.open,
        "rate1": rate(1), "rate5": rate(5), "rate15": rate(15),
        "p50": at(50), "p90": at(90), "p95": at(95), "p99": at(99),
    })
}

#[derive(Deserialize)]
struct Wanted {
    limit: Option<usize>,
    tunnel_name: Option<String>,
}

async fn requests(
    State(app): Shared,
    Asked(Wanted { limit, tunnel_name }): Asked<Wanted>,
) -> Result<Json<Value>, Problem> {
    app.work(move |inspector| {
        let own =
            |record: &Arc<Record>| tunnel_name.as_ref().is_none_or(|name| *record.tunnel == **name);
        let all = inspector.all().into_iter().filter(own);
        let wanted = all.take(limit.unwrap_or(LIMIT).min(MAX_LIMIT));
        let requests = wanted.map(|record| entry(&View::new(&record, inspector), inspector));
        let requests: Vec<_> = requests.collect();
        Ok(Json(json!({ "uri": "/api/requests/http", "requests": requests })))
    })
    .await
}

async fn request(State(app): Shared, Named(id): Named) -> Result<Json<Value>, Problem> {
    app.work(move |inspector| {
        let view = inspector::found(inspector, &id)?;
        Ok(Json(entry(&view, inspector)))
    })
    .await
}

#[derive(Deserialize)]
struct Again {
    id: String,
}

async fn replay(State(app): Shared, body: Payload) -> Result<StatusCode, Problem> {
    let Again { id } = body.json()?;
    inspector::start(&app, id, inspect::Replayed::default()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn clear(State(app): Shared) -> Result<StatusCode, Problem> {
    app.work(|inspector| {
        inspector.clear();
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

fn entry(view: &View, inspector: &Inspector) -> Value {
    let id = view.id();
    let fields = inspect::shown(inspector, &view.request_fields().0);
    let path = view.path(inspector);
    let first = format!("{} {path} {}", view.method(), view.http_version());
    let response = view.reply.as_ref().map(|reply| {
        let fields = inspect::shown(inspector, &reply.headers);
        let status = format!("{} {}", view.status, view.reason());
        let first = format!("{} {status}", view.http_version());
        json!({
            "status": status,
            "status_code": view.status,
            "proto": view.http_version(),
            "headers": by_name(&fields),
            "raw": raw(&first, &fields, view, Side::Upstream, inspector),
        })
    });
    json!({
        "uri": format!("/api/requests/http/{id}"),
        "id": id,
        "tunnel_name": &*view.record.tunnel,
        "remote_addr": view.open.visitor,
        "start": inspect::date(view.began_ms()),
        "duration": view.elapsed_us().saturating_mul(1000),
        "request": {
            "method": view.method(),
            "proto": view.http_version(),
            "headers": by_name(&fields),
            "uri": path,
            "raw": raw(&first, &fields, view, Side::Visitor, inspector),
        },
        "response": response,
    })
}

fn by_name(fields: &[[String; 2]]) -> Value {
    let mut map = Map::new();
    for [name, value] in fields {
        let values = map.entry(name).or_insert_with(|| json!([]));
        if let Value::Array(values) = values {
            values.push(value.as_str().into());
        }
    }
    map.into()
}

/// A message as it would be on the line, without secrets.
fn raw(
    first: &str,
    fields: &[[String; 2]],
    view: &View,
    side: Side,
    inspector: &Inspector,
) -> String {
    let lines = fields.iter().map(|[name, value]| format!("{name}: {value}\r\n"));
    let head = format!("{first}\r\n{}\r\n", lines.collect::<String>());
    let body = view.body(side);
    let body = match body.encoding.is_empty().then(|| body.text(inspector, usize::MAX)).flatten() {
        Some((text, _)) => text.into_bytes(),
        None => body.head,
    };
    BASE64_STANDARD.encode([head.as_bytes(), &body].concat())
}
