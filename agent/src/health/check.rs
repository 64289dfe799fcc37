//! One check of a local server, on a connection of its own.

use std::task::Poll;

use bytes::Bytes;
use tokio::time::timeout;
use uniroute_shared::message::Fields;

use super::{HealthCheck, HealthProbe};
use crate::upstream::{Connection, Head, NoAnswer, Protocol, Scheme, Target, Upload, Upstream};

/// Who asks, for the local server's log.
const USER_AGENT: &str = concat!("uniroute-health/", env!("CARGO_PKG_VERSION"));
/// Informational answers to one check.
const MAX_INFORMATIONAL: usize = 8;

/// Looks at a local server.
///
/// # Errors
/// Why it does not pass, in words.
pub(crate) async fn check(upstream: &Upstream, check: &HealthCheck) -> Result<(), String> {
    let checking = async {
        match &check.probe {
            None => Ok(()),
            Some(HealthProbe::Tcp) => connects(upstream).await,
            Some(HealthProbe::Http { path, status }) => {
                let answered = match upstream.protocol() {
                    Protocol::Http2 => ask_http2(upstream, path).await?,
                    Protocol::Auto | Protocol::Http1 => ask(upstream, path).await?,
                };
                judge(upstream.target(), path, answered, *status)
            }
        }
    };
    let checked = timeout(check.timeout, checking).await;
    checked.unwrap_or_else(|_| {
        Err(format!(
            "{} did not answer its health check within {:?}",
            upstream.target(),
            check.timeout
        ))
    })
}

async fn connects(upstream: &Upstream) -> Result<(), String> {
    upstream.dial().await.map(drop).map_err(|error| error.message)
}

fn judge(target: &Target, path: &str, status: u16, wanted: Option<u16>) -> Result<(), String> {
    match wanted {
        Some(wanted) if status != wanted => {
            Err(format!("{target} answered its health check {path} with {status}, not {wanted}"))
        }
        None if !(200..400).contains(&status) => {
            Err(format!("{target} answered its health check {path} with {status}"))
        }
        _ => Ok(()),
    }
}

/// Host and port as they stand in the target.
fn authority(target: &Target) -> String {
    let origin = target.origin();
    origin.split_once("://").map_or("localhost", |(_, authority)| authority).to_owned()
}

/// The answer's status, over HTTP/1.1. Its body is not read: the connection is dropped.
async fn ask(upstream: &Upstream, path: &str) -> Result<u16, String> {
    let mut connection = upstream.connect().await.map_err(|error| error.message)?;
    let mut fields = Fields::default();
    fields.push("Host", Bytes::from(authority(upstream.target())));
    fields.push("User-Agent", Bytes::from_static(USER_AGENT.as_bytes()));
    fields.push("Accept", Bytes::from_static(b"*/*"));
    let head = Head {
        method: b"GET",
        target: path.as_bytes(),
        fields: &fields,
        upgrade: b"",
        chunked: false,
    };
    connection.begin(&head, None);
    for _ in 0..MAX_INFORMATIONAL {
        let status = status(&mut connection, upstream).await?;
        if status >= 200 {
            return Ok(status);
        }
    }
    Err(upstream.bad_answer("too many informational answers").message)
}

async fn status(connection: &mut Connection, upstream: &Upstream) -> Result<u16, String> {
    let never = |_: &mut std::task::Context<'_>| Poll::<std::convert::Infallible>::Pending;
    match connection.answer(&mut Upload::none(), never).await {
        Ok(line) => Ok(line.status),
        Err(NoAnswer::Failed(fault)) => Err(upstream.failed(&fault).message),
        // There is no body and no deadline of its own.
        Err(_) => Err(upstream.bad_answer("no answer").message),
    }
}

/// The same over HTTP/2.
async fn ask_http2(upstream: &Upstream, path: &str) -> Result<u16, String> {
    let wrong = |error: h2::Error| upstream.failed_http2(&error).message;
    let io = upstream.dial_http2().await.map_err(|error| error.message)?;
    let (mut requests, connection) = h2::client::handshake(io).await.map_err(wrong)?;
    let scheme = match upstream.target().scheme {
        Scheme::Https => "https",
        _ => "http",
    };
    let uri = format!("{scheme}://{}{path}", authority(upstream.target()));
    let request = http::Request::get(uri).header("user-agent", USER_AGENT).header("accept", "*/*");
    let request = request.body(()).map_err(|error| error.to_string())?;
    let (answer, _) = requests.send_request(request, true).map_err(wrong)?;
    tokio::select! {
        biased;
        answer = answer => Ok(answer.map_err(wrong)?.status().as_u16()),
        ended = connection => {
            ended.map_err(wrong)?;
            Err(upstream.bad_answer("the connection ended").message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_judged() {
        let target: Target = "3000".parse().unwrap();
        for good in [200, 204, 301, 399] {
            judge(&target, "/", good, None).unwrap();
        }
        for bad in [199, 400, 404, 500, 503] {
            let why = judge(&target, "/up", bad, None).unwrap_err();
            assert_eq!(
                why,
                format!("http://localhost:3000 answered its health check /up with {bad}")
            );
        }
        judge(&target, "/", 401, Some(401)).unwrap();
        let why = judge(&target, "/", 200, Some(401)).unwrap_err();
        assert!(why.ends_with("with 200, not 401"), "{why}");
    }

    #[test]
    fn the_server_is_asked_by_its_own_name() {
        for (target, host) in [
            ("3000", "localhost:3000"),
            ("https://dev.test", "dev.test"),
            ("[::1]:80", "[::1]"),
            ("unix:app.sock", "localhost"),
        ] {
            assert_eq!(authority(&target.parse().unwrap()), host);
        }
    }
}
