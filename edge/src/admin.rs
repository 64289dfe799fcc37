//! The operator's door, on a loopback address unless told otherwise: health, readiness, metrics and
//! what is live, as JSON.

use std::{convert::Infallible, sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

use crate::Shared;

/// A request's head has to be complete after this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Operators' connections at a time; the next one waits.
const MAX_CONNECTIONS: usize = 64;

/// Serves until the edge has stopped; readiness says so as soon as it begins to.
pub(crate) async fn serve(edge: Arc<Shared>, listener: TcpListener) {
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let edge = Arc::clone(&edge);
                tokio::spawn(async move {
                    let _place = place;
                    serve_connection(edge, socket).await;
                });
            }
            Err(error) => {
                debug!(%error, "no operator's connection can be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_connection(edge: Arc<Shared>, socket: TcpStream) {
    let service = service_fn(move |request| {
        let answer = answer(&edge, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "an operator's connection broke off");
    }
}

fn answer(edge: &Shared, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    match request.uri().path() {
        "/healthz" => page(StatusCode::OK, "text/plain", "ok\n".into()),
        "/readyz" if edge.stop.is_cancelled() => {
            page(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining\n".into())
        }
        "/readyz" => page(StatusCode::OK, "text/plain", readiness(edge)),
        "/metrics" => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            page(StatusCode::OK, kind, edge.metrics.render(edge.now()))
        }
        "/debug/status" => page(StatusCode::OK, "application/json", status(edge)),
        _ => page(
            StatusCode::NOT_FOUND,
            "text/plain",
            "here are /healthz, /readyz, /metrics and /debug/status\n".into(),
        ),
    }
}

/// Tunnels are served whatever else is away, so the edge is ready; but it says what is.
fn readiness(edge: &Shared) -> String {
    let mut said = String::from("ready\n");
    let store = edge.store.health();
    if !store.is_well() {
        said.push_str(
            "the store does not answer: nobody new comes in, requests are taken down later\n",
        );
    }
    if !edge.state.is_well() {
        said.push_str(
            "the shared state does not answer: other edges are not told what happens here\n",
        );
    }
    said
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn status(edge: &Shared) -> String {
    let sessions = edge.registry.sessions();
    let sessions: Vec<_> = sessions
        .iter()
        .map(|session| {
            let stats = session.carried.stats();
            json!({
                "id": session.id.to_string(),
                "agent_id": session.identity.agent.as_str(),
                "agent_name": session.agent_name,
                "agent_version": session.agent_version,
                "peer": session.peer.to_string(),
                "carrier": session.carried.carrier().as_str(),
                "age_seconds": session.since.elapsed().as_secs(),
                "rtt_us": session.rtt_us.load(Ordering::Relaxed),
                "streams": stats.streams,
                "lanes": stats.lanes,
                "window_bytes": stats.granted,
                "received_queued_bytes": stats.received_queued,
                "send_queued_bytes": stats.send_queued,
            })
        })
        .collect();
    let tunnels = edge.registry.tunnels();
    let tunnels: Vec<_> = tunnels
        .iter()
        .map(|(tunnel, epoch, session)| {
            let local = tunnel.local();
            json!({
                "id": tunnel.id.to_string(),
                "name": tunnel.name.as_str(),
                "kind": tunnel.kind.as_str(),
                "url": edge.public_url(tunnel),
                "epoch": epoch,
                "session": session.as_ref().map(ToString::to_string),
                "local_url": tunnel.local_url(),
                "unhealthy": local.unhealthy,
                "local_latency_ms": local.latency_ms,
                "local_open": local.open,
                "connections": tunnel.connections.load(Ordering::Relaxed),
                "paused": tunnel.is_paused(),
                "requests": tunnel.counts.requests.load(Ordering::Relaxed),
                "bytes_in": tunnel.counts.bytes_in.load(Ordering::Relaxed),
                "bytes_out": tunnel.counts.bytes_out.load(Ordering::Relaxed),
                "latency_ms": tunnel.latency_ms(),
            })
        })
        .collect();
    let body = json!({ "edge": edge.id, "sessions": sessions, "tunnels": tunnels });
    format!("{body:#}\n")
}
