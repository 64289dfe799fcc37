//! A local server worth tunnelling: uploads, a live event stream, downloads, and the headers that arrive.
//!
//! ```text
//! GET  /          a page that tries all of it
//! GET  /headers   the request as this server saw it, JSON
//! GET  /events    one server-sent event a second, the first at once
//! GET  /bytes/N   N bytes
//! POST /upload    reads the body as it comes, answers its size and SHA-256
//! POST /echo      sends the body back as it comes
//! ```
//!
//! No body is ever whole in memory, so sizes are bounded by patience only.

use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};

const PAGE: &str = include_str!("demo_site/index.html");
const EVENT_EVERY: Duration = Duration::from_secs(1);
const CHUNK: &[u8] = &[b'u'; 64 * 1024];

type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(listen_address(std::env::args().skip(1))?).await?;
    announce(listener.local_addr()?);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                connections.spawn(serve(stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn listen_address(mut args: impl Iterator<Item = String>) -> Result<SocketAddr, Box<dyn Error>> {
    match (args.next().as_deref(), args.next(), args.next()) {
        (None, ..) => Ok(SocketAddr::from(([127, 0, 0, 1], 0))),
        (Some("--listen"), Some(address), None) => Ok(address.parse()?),
        _ => Err("usage: demo_site [--listen ADDR]".into()),
    }
}

#[expect(clippy::print_stdout, reason = "whoever started this reads the address here")]
fn announce(address: SocketAddr) {
    println!("listening http://{address}");
}

async fn serve(stream: TcpStream) {
    // A visitor who leaves ends the connection, and with it whatever was being streamed.
    if stream.set_nodelay(true).is_ok() {
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service_fn(answer))
            .await;
    }
}

async fn answer(request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let path = request.uri().path();
    match (request.method(), path) {
        (&Method::GET, "/") => Ok(full(StatusCode::OK, "text/html; charset=utf-8", PAGE)),
        (&Method::GET, "/headers") => Ok(json_answer(&seen(&request))),
        (&Method::GET, "/events") => Ok(events()),
        (&Method::POST, "/upload") => upload(request.into_body()).await,
        (&Method::POST, "/echo") => Ok(echo(request)),
        (_, "/upload" | "/echo") => Ok(not_allowed("POST")),
        (_, "/" | "/headers" | "/events") => Ok(not_allowed("GET")),
        (&Method::GET, path) => match path.strip_prefix("/bytes/").map(str::parse) {
            Some(Ok(left)) => Ok(stream("application/octet-stream", Download { left })),
            _ => Ok(full(StatusCode::NOT_FOUND, "text/plain", "nothing here\n")),
        },
        _ => Ok(full(StatusCode::NOT_FOUND, "text/plain", "nothing here\n")),
    }
}

/// The request as it arrived: what a proxy on the way added or took away shows here.
fn seen(request: &Request<Incoming>) -> Value {
    let mut headers = Map::new();
    for (name, value) in request.headers() {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        match headers.get_mut(name.as_str()) {
            Some(Value::String(values)) => {
                values.push_str(", ");
                values.push_str(&value);
            }
            _ => {
                headers.insert(name.to_string(), Value::String(value));
            }
        }
    }
    json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "version": format!("{:?}", request.version()),
        "headers": headers,
    })
}

async fn upload(mut body: Incoming) -> Result<Answer, hyper::Error> {
    let mut size = 0_u64;
    let mut hash = Sha256::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            size += data.len() as u64;
            hash.update(&data);
        }
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(json_answer(&json!({ "size": size, "sha256": hash })))
}

fn echo(request: Request<Incoming>) -> Answer {
    let octets = HeaderValue::from_static("application/octet-stream");
    let kind = request.headers().get(CONTENT_TYPE).cloned().unwrap_or(octets);
    let mut answer = Response::new(request.into_body().boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

fn events() -> Answer {
    let mut every = tokio::time::interval(EVENT_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answer = stream("text/event-stream", Events { every, id: 0 });
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

fn json_answer(value: &Value) -> Answer {
    full(StatusCode::OK, "application/json", format!("{value}\n"))
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = full(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "wrong method\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn full(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = stream(kind, Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}

fn stream<B>(kind: &'static str, body: B) -> Answer
where
    B: Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
{
    let mut answer = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// Server-sent events for as long as somebody listens.
struct Events {
    every: Interval,
    id: u64,
}

impl Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        ready!(self.every.poll_tick(cx));
        self.id += 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
        let data = json!({ "count": self.id, "unix_ms": now });
        let event = format!("id: {}\nevent: tick\ndata: {data}\n\n", self.id);
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}

struct Download {
    left: u64,
}

impl Body for Download {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let len = usize::try_from(self.left).map_or(CHUNK.len(), |left| left.min(CHUNK.len()));
        self.left -= len as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK[..len])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
