//! The public door: from an accepted connection to an answer.

pub(crate) mod error;
pub(crate) mod forwarded;
pub(crate) mod guard;
pub(crate) mod hold;
mod http1;
mod http2;
pub(crate) mod listener;
mod own;
mod page;
pub(crate) mod proxy;
pub(crate) mod record;
pub(crate) mod router;
pub(crate) mod seats;
pub(crate) mod visitor;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::RETRY_AFTER};
use tracing::{debug, error, info, warn};
use uniroute_shared::{
    code::{Code, Level},
    headers,
    id::RequestId,
    message::{Fields, RequestHead},
};

use self::{
    error::ProxyError, guard::Guard, hold::Found, proxy::Asked, router::Route, visitor::Visitor,
};
use crate::{
    Shared,
    abuse::Rule,
    limits,
    policy::Policy,
    registry::{Lookup, Tunnel, ports::Kind},
};

/// Who answers a request.
pub(crate) enum Place {
    /// The edge itself.
    Edge,
    /// The local server of a tunnel; over this stream, or as soon as there is one.
    Tunnel(Arc<Tunnel>, Option<Found>),
    /// The same, if the tunnel's policy lets it in.
    Guarded(Guard),
}

/// Who answers the request, by the one host that it names; if it may be asked now.
pub(crate) fn place(visitor: &Visitor, asked: &Asked) -> Result<Place, ProxyError> {
    let edge = &visitor.edge;
    visitor.check_rate(asked)?;
    let found = look_up(edge, &asked.head);
    if let Err(ProxyError::UnknownTunnel) = &found {
        edge.abuse.strike(edge, Rule::NameScanning, asked.address(visitor));
    }
    if let Ok(Place::Tunnel(tunnel, _) | Place::Guarded(Guard { tunnel, .. })) = &found {
        check_limits(tunnel)?;
    }
    found
}

/// What the tunnel's owner may have used up.
fn check_limits(tunnel: &Tunnel) -> Result<(), ProxyError> {
    if tunnel.is_paused() {
        return Err(ProxyError::Paused);
    }
    limits::check(&tunnel.gate, &Code::TUNNEL_RATE)?;
    limits::check(&tunnel.account.gate, &Code::USER_RATE)?;
    match tunnel.account.may_transfer() {
        true => Ok(()),
        false => Err(ProxyError::Limited(&Code::TRANSFER_USED, limits::to_next_month())),
    }
}

fn look_up(edge: &Arc<Shared>, head: &RequestHead) -> Result<Place, ProxyError> {
    let authority = std::str::from_utf8(&head.authority).map_err(|_| ProxyError::BadHost)?;
    let host = router::host(authority).ok_or(ProxyError::BadHost)?;
    let name = match edge.hosts.route(&host) {
        Route::Edge => return Ok(Place::Edge),
        Route::Unknown => return Err(ProxyError::UnknownTunnel),
        Route::Tunnel(name) => name,
    };
    match edge.registry.lookup(name) {
        Lookup::Live(target) if target.tunnel.kind != Kind::Http => {
            Err(ProxyError::NotHttp(edge.public_url(&target.tunnel)))
        }
        Lookup::Live(target) => {
            let tunnel = Arc::clone(&target.tunnel);
            if let Some(policy) = target.policy.clone() {
                return Ok(Place::Guarded(Guard { tunnel, policy, target: Some(target) }));
            }
            Ok(Place::Tunnel(tunnel, hold::open(edge, target)?))
        }
        // Only for a while: a tunnel whose agent is off all day is not worth any wait.
        Lookup::Offline(tunnel, Some(since)) if since.elapsed() >= edge.hold.of(&tunnel) => {
            Err(ProxyError::Offline)
        }
        Lookup::Offline(tunnel, _) => Ok(match tunnel.policy() {
            Some(policy) => Place::Guarded(Guard { tunnel, policy, target: None }),
            None => Place::Tunnel(tunnel, None),
        }),
        Lookup::Unknown => Err(ProxyError::UnknownTunnel),
    }
}

/// What asks for something that a tunnel is not is refused (T23).
pub(crate) fn check_method(method: &Bytes) -> Result<(), ProxyError> {
    match &method[..] {
        b"CONNECT" | b"TRACE" => {
            Err(ProxyError::Method(String::from_utf8_lossy(method).into_owned()))
        }
        _ => Ok(()),
    }
}

/// The page for a request that has failed; counted and logged. `fields` are the request's.
pub(crate) fn refusal(
    visitor: &Visitor,
    error: &ProxyError,
    id: &RequestId,
    fields: &Fields,
) -> Response<Bytes> {
    if let ProxyError::Moved(location) = error {
        return page::moved(location);
    }
    visitor.edge.metrics.failed(error.code());
    log(error, id, visitor.peer, fields.get("host"));
    let accept = fields.get("accept").map(|accept| &accept[..]);
    let policy = fields.get("host").and_then(|host| policy(&visitor.edge, host));
    let detail = error.detail();
    if headers::is_grpc(fields) {
        return page::grpc_response(error.code(), id, detail.as_deref());
    }
    let code = error.code();
    let mut page = page::error_response(code, id, detail.as_deref(), accept, policy.as_deref());
    if let ProxyError::Limited(_, wait) = error {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        page.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    page
}

/// Of the tunnel that `authority` names. Looked up anew: only for failures.
fn policy(edge: &Shared, authority: &[u8]) -> Option<Arc<Policy>> {
    let host = router::host(std::str::from_utf8(authority).ok()?)?;
    let Route::Tunnel(name) = edge.hosts.route(&host) else { return None };
    match edge.registry.lookup(name) {
        Lookup::Live(target) => target.policy.clone(),
        Lookup::Offline(tunnel, _) => tunnel.policy(),
        Lookup::Unknown => None,
    }
}

fn log(error: &ProxyError, id: &RequestId, peer: SocketAddr, host: Option<&Bytes>) {
    let code = error.code();
    let host = host.map(|host| String::from_utf8_lossy(host));
    let host = host.as_deref().unwrap_or_default();
    macro_rules! say {
        ($level:ident) => {
            $level!(code = %code, request.id = %id, %peer, host, reason = %error, "request failed")
        };
    }
    match code.level {
        Level::Debug => say!(debug),
        Level::Info => say!(info),
        Level::Warn => say!(warn),
        Level::Error => say!(error),
    }
}

/// A connection that is not served: said in the plainest way, since nothing else may be spent on it.
pub(crate) fn connection_refusal(refused: &Refused) -> Vec<u8> {
    let Refused { code, wait } = refused;
    let status = code.status.and_then(|s| StatusCode::from_u16(s).ok()).unwrap_or_default();
    let wait = wait.as_secs().max(u64::from(code.retry_after.unwrap_or(1)));
    format!(
        "HTTP/1.1 {status}\r\nx-uniroute-error: {code}\r\nretry-after: {wait}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    )
    .into_bytes()
}

/// Why a connection is not served.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) code: &'static Code,
    /// Until it may be.
    pub(crate) wait: Duration,
}
