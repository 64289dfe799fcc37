//! Requests that are kept: `/api/v1/requests` and what belongs to it.

use std::{
    fs::File,
    io::{self, Read as _},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use uniroute_shared::code::Code;

use super::{
    App, Shared, download,
    problem::{Asked, Named, Payload, Problem},
};
use crate::inspect::{self, Inspector, Record, ReplayError, Side, View};

/// Requests of one answer.
const LIMIT: usize = 200;
const MAX_LIMIT: usize = 1000;
/// What is read of a file at a time, in bytes.
const PIECE: usize = 64 * 1024;
/// Pieces of an export that wait for the reader.
const AHEAD: usize = 4;

const X_BODY: HeaderName = HeaderName::from_static("x-uniroute-body");
const X_CUT: HeaderName = HeaderName::from_static("x-uniroute-cut");

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/recording", post(recording))
        .route("/requests", get(list).delete(clear))
        .route("/requests/{id}", get(detail))
        .route("/requests/{id}/request/body", get(request_body))
        .route("/requests/{id}/response/body", get(response_body))
        .route("/requests/{id}/curl", get(curl))
        .route("/requests/{id}/frames", get(frames))
        .route("/requests/{id}/replay", post(replay))
        .route("/har", get(har))
        .route("/diff", get(diff))
}

/// Which requests are wanted.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    limit: Option<usize>,
    before: Option<u64>,
    after: Option<u64>,
    tunnel: Option<String>,
    #[serde(default)]
    q: String,
}

impl Wanted {
    /// Those that match, wherever they are, the newest first.
    fn matching(&self, inspector: &Inspector) -> Vec<Arc<Record>> {
        let query = inspect::Query::new(&self.q);
        let mut all = inspector.all();
        all.retain(|record| {
            self.tunnel.as_ref().is_none_or(|tunnel| *record.tunnel == **tunnel)
                && query.matches(record, inspector)
        });
        all
    }

    fn list(&self, inspector: &Inspector) -> Value {
        let matching = self.matching(inspector);
        let within = |record: &&Arc<Record>| {
            self.before.is_none_or(|before| record.seq < before)
                && self.after.is_none_or(|after| record.seq > after)
        };
        let limit = self.limit.unwrap_or(LIMIT).clamp(1, MAX_LIMIT);
        let mut rest = matching.iter().filter(within);
        let shown: Vec<_> = rest.by_ref().take(limit).collect();
        let next = rest.next().and(shown.last()).map(|record| record.seq);
        let summary = |record: &&Arc<Record>| View::new(record, inspector).summary(inspector);
        json!({
            "requests": shown.iter().map(summary).collect::<Vec<_>>(),
            "next": next,
            "total": matching.len(),
            "latest": inspector.latest(),
        })
    }
}

async fn list(State(app): Shared, Asked(wanted): Asked<Wanted>) -> Result<Json<Value>, Problem> {
    app.work(move |inspector| Ok(Json(wanted.list(inspector)))).await
}

async fn clear(State(app): Shared) -> Result<StatusCode, Problem> {
    app.work(|inspector| {
        inspector.clear();
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

#[derive(Deserialize)]
struct Recording {
    on: bool,
}

async fn recording(State(app): Shared, body: Payload) -> Result<Json<Value>, Problem> {
    let Recording { on } = body.json()?;
    app.work(move |inspector| {
        inspector.record(on);
        Ok(Json(json!({ "recording": on })))
    })
    .await
}

/// The request with this id.
pub(super) fn found(inspector: &Inspector, id: &str) -> Result<View, Problem> {
    inspector.find(id).ok_or_else(|| Problem::of(&Code::REQUEST_NOT_KEPT))
}

async fn detail(State(app): Shared, Named(id): Named) -> Result<Json<Value>, Problem> {
    app.work(move |inspector| Ok(Json(found(inspector, &id)?.detail(inspector)))).await
}

async fn curl(State(app): Shared, Named(id): Named) -> Result<String, Problem> {
    app.work(move |inspector| Ok(inspect::curl(&found(inspector, &id)?, inspector))).await
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn frames(
    State(app): Shared,
    Named(id): Named,
    Asked(After { after }): Asked<After>,
) -> Result<Json<Value>, Problem> {
    app.work(move |inspector| Ok(Json(found(inspector, &id)?.frames(after, inspector)))).await
}

#[derive(Deserialize)]
struct Decoded {
    decoded: Option<String>,
}

async fn request_body(
    State(app): Shared,
    Named(id): Named,
    Asked(decoded): Asked<Decoded>,
) -> Result<Response, Problem> {
    body(app, id, decoded, Side::Visitor).await
}

async fn response_body(
    State(app): Shared,
    Named(id): Named,
    Asked(decoded): Asked<Decoded>,
) -> Result<Response, Problem> {
    body(app, id, decoded, Side::Upstream).await
}

async fn body(
    app: Arc<App>,
    id: String,
    Decoded { decoded }: Decoded,
    side: Side,
) -> Result<Response, Problem> {
    let decoded = decoded.is_some_and(|decoded| decoded == "1");
    app.work(move |inspector| {
        let view = found(inspector, &id)?;
        let mut kept = view.body(side);
        let place = match kept.file {
            Some(_) => "spool",
            None if kept.is_whole() => "whole",
            None => "head",
        };
        let side = if side == Side::Visitor { "request" } else { "response" };
        let name = format!("{side}-{}.bin", &view.id()[..8]);
        let (body, cut) = if decoded {
            let (bytes, cut) = kept.decoded(inspector).ok_or_else(|| {
                let what = format!("the encoding {:?} can't be undone here", kept.encoding);
                Problem::new(&Code::BODY_ENCODED, what)
            })?;
            (Body::from(bytes), cut)
        } else {
            match kept.file.take() {
                Some(file) => (file_body(file), false),
                None => (Body::from(kept.head), false),
            }
        };
        let mut response = body.into_response();
        let headers = response.headers_mut();
        download(headers, "application/octet-stream", &name);
        headers.insert(X_BODY, HeaderValue::from_static(place));
        if cut {
            headers.insert(X_CUT, HeaderValue::from_static("1"));
        }
        Ok(response)
    })
    .await
}

/// A file, read as it is taken.
fn file_body(file: File) -> Body {
    Body::from_stream(stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let read = file.read(&mut piece)?;
            piece.truncate(read);
            Ok::<_, io::Error>((Bytes::from(piece), file))
        });
        match reading.await {
            Ok(Ok((piece, _))) if piece.is_empty() => None,
            Ok(Ok((piece, file))) => Some((Ok(piece), Some(file))),
            Ok(Err(error)) => Some((Err(error), None)),
            Err(error) => Some((Err(io::Error::other(error)), None)),
        }
    }))
}

/// An export has no end in memory: it is made as it is taken.
async fn har(State(app): Shared, Asked(wanted): Asked<Wanted>) -> Result<Response, Problem> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let records = app
        .work(move |inspector| {
            let inspector = Arc::clone(inspector);
            let mut records = wanted.matching(&inspector);
            records.reverse();
            Ok((records, inspector))
        })
        .await?;
    tokio::task::spawn_blocking(move || write_har(&records.0, &records.1, &sender));
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (Ok::<_, io::Error>(piece), receiver))
    });
    let mut response = Body::from_stream(pieces).into_response();
    let kind = "application/json";
    download(response.headers_mut(), kind, "uniroute.har");
    Ok(response)
}

fn write_har(records: &[Arc<Record>], inspector: &Inspector, sender: &mpsc::Sender<Bytes>) {
    let (begin, end) = inspect::har_frame();
    let mut piece = begin;
    for (i, record) in records.iter().enumerate() {
        let entry = inspect::har_entry(&View::new(record, inspector), inspector);
        if i > 0 {
            piece.push(',');
        }
        piece.push_str(&entry.to_string());
        if piece.len() >= PIECE && sender.blocking_send(std::mem::take(&mut piece).into()).is_err()
        {
            return;
        }
    }
    piece.push_str(&end);
    let _ = sender.blocking_send(piece.into());
}

#[derive(Deserialize)]
struct Two {
    a: String,
    b: String,
}

async fn diff(State(app): Shared, Asked(Two { a, b }): Asked<Two>) -> Result<Json<Value>, Problem> {
    app.work(move |inspector| {
        let (a, b) = (found(inspector, &a)?, found(inspector, &b)?);
        Ok(Json(inspect::diff(&a, &b, inspector)))
    })
    .await
}

async fn replay(
    State(app): Shared,
    Named(id): Named,
    body: Payload,
) -> Result<Json<Value>, Problem> {
    let changes = if body.0.is_empty() { inspect::Replayed::default() } else { body.json()? };
    let id = start(&app, id, changes).await?;
    Ok(Json(json!({ "id": id })))
}

/// Begins a replay; its id.
pub(super) async fn start(
    app: &Arc<App>,
    id: String,
    changes: inspect::Replayed,
) -> Result<String, Problem> {
    let shared = Arc::clone(&app.handle.shared);
    app.work(move |inspector| {
        let view = found(inspector, &id)?;
        inspect::replay(&shared, inspector, &view, &changes)
            .map_err(|ReplayError { code, detail }| Problem::new(code, detail))
    })
    .await
}
