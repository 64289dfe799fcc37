//! The local server that every measured path ends at.
//!
//! `GET /1k` answers 1,024 bytes, `/varied` the same after 5 to 80 ms, `GET /bytes/N` N bytes, `POST
//! /upload` reads the body and answers its length, and `GET /echo` sends WebSocket messages back.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::body::Repeat;
use crate::output;
use crate::process::{Child, Output};

const READY: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    output::line(format_args!("listening {}", listener.local_addr()?));

    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept")?;
                connections.spawn(serve(stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Starts one as a process of its own, by the command that runs this program.
pub(crate) async fn start(
    mut command: Command,
    listen: &str,
    dir: &Path,
) -> anyhow::Result<(Child, SocketAddr)> {
    command.args(["origin", "--listen", listen]);
    let mut origin = Child::start("origin", dir, command)?;
    let address = origin
        .wait_for_line(Output::Stdout, READY, |line| line.strip_prefix("listening ")?.parse().ok())
        .await?;
    Ok((origin, address))
}

async fn serve(stream: TcpStream) {
    // A client that goes away ends its connection, and that is all there is to it.
    if stream.set_nodelay(true).is_ok() {
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
        let _ = connection.with_upgrades().await;
    }
}

type Answer = Either<Repeat, Full<Bytes>>;

async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    if request.uri().path() == "/echo" {
        return Ok(echo(request));
    }
    let (parts, body) = request.into_parts();
    let response = match (parts.method, parts.uri.path()) {
        (Method::GET, "/1k") => Response::new(Either::Left(Repeat::bytes(1024))),
        (Method::GET, "/varied") => {
            tokio::time::sleep(varied()).await;
            Response::new(Either::Left(Repeat::bytes(1024)))
        }
        (Method::POST, "/upload") => match drain(body).await {
            Ok(len) => Response::new(text(len.to_string())),
            Err(_) => status(StatusCode::BAD_REQUEST),
        },
        (Method::GET, path) => match path.strip_prefix("/bytes/").map(str::parse) {
            Some(Ok(len)) => Response::new(Either::Left(Repeat::bytes(len))),
            Some(Err(_)) => status(StatusCode::BAD_REQUEST),
            None => status(StatusCode::NOT_FOUND),
        },
        _ => status(StatusCode::NOT_FOUND),
    };
    Ok(response)
}

/// From 5 to 80 ms, another one each time, and in no order.
fn varied() -> Duration {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    Duration::from_millis(5 + count.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 76)
}

fn echo(request: Request<Incoming>) -> Response<Answer> {
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY) else {
        return status(StatusCode::UPGRADE_REQUIRED);
    };
    let accept = derive_accept_key(key.as_bytes());
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            let is_data = message.is_text() || message.is_binary();
            if is_data && socket.send(message).await.is_err() {
                break;
            }
        }
    });
    let mut response = Response::new(Either::Left(Repeat::empty()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = accept.parse() {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

async fn drain(mut body: Incoming) -> Result<u64, hyper::Error> {
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        len += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(len)
}

fn text(text: String) -> Answer {
    Either::Right(Full::new(text.into()))
}

fn status(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(text(status.to_string()));
    *response.status_mut() = status;
    response
}
