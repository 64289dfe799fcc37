//! Whether local servers are there, and speak what they are thought to.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{State, Step};
use crate::{
    TunnelKind, TunnelSettings, check_local,
    upstream::{Place, Scheme, Target},
};

/// How long a local server has to begin an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// One step for each local server of a tunnel.
pub(super) async fn look(tunnel: &TunnelSettings) -> Vec<Step> {
    let mut steps = Vec::new();
    for target in [&tunnel.target].into_iter().chain(&tunnel.further).chain(&tunnel.routes) {
        // Each by itself, so that one that is down does not hide the others.
        let mut one = tunnel.clone();
        one.target = target.clone();
        (one.further, one.routes) = (Vec::new(), Vec::new());
        let began = Instant::now();
        steps.push(look_at(&one).await.of(&tunnel.key).since(began));
    }
    steps
}

async fn look_at(tunnel: &TunnelSettings) -> Step {
    let target = &tunnel.target;
    if let Err(error) = check_local(tunnel).await {
        return Step::new("local", State::Fail, format!("{target}: {error}"))
            .fix("Start the local server, or set the tunnel's upstream to where it is");
    }
    if tunnel.kind == TunnelKind::Udp {
        let says = format!("{target}: of a UDP server there is nothing to see");
        return Step::new("local", State::Skip, says);
    }
    match (&target.place, target.scheme) {
        (Place::Tcp(host, port), Scheme::Http) => {
            let says = timeout(ANSWER, ask(host, *port)).await;
            answer(target, says.ok().and_then(Result::ok).unwrap_or_default())
        }
        (Place::Files(_), _) => Step::new("local", State::Pass, format!("{target}: can be read")),
        _ => Step::new("local", State::Pass, format!("{target}: takes connections")),
    }
}

/// The first bytes of an answer to `GET /`.
async fn ask(host: &str, port: u16) -> std::io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect((host, port)).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut first = vec![0; 32];
    let mut length = 0;
    while length < first.len() {
        match socket.read(&mut first[length..]).await? {
            0 => break,
            read => length += read,
        }
    }
    first.truncate(length);
    Ok(first)
}

fn answer(target: &Target, first: Vec<u8>) -> Step {
    let status = String::from_utf8(first).ok().and_then(|text| {
        let status = text.strip_prefix("HTTP/1.")?.get(2..5)?.to_owned();
        status.bytes().all(|byte| byte.is_ascii_digit()).then_some(status)
    });
    match status {
        Some(status) => {
            Step::new("local", State::Pass, format!("{target}: answers GET / with {status}"))
        }
        None => Step::new("local", State::Warn, format!("{target}: takes connections, but gives no answer of HTTP/1.1 to GET / within 5 s"))
            .fix("If it speaks TLS write https:// in front of it; if it is no web server use `uniroute tcp`; if it speaks HTTP/2 only set upstream_protocol to h2"),
    }
}
