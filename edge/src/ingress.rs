//! The public door: from an accepted connection to an answer.

pub(crate) mod error;
#[cfg_attr(not(test), expect(dead_code, reason = "the request path is to use it"))]
pub(crate) mod forwarded;
pub(crate) mod listener;
mod page;
pub(crate) mod proxy;
pub(crate) mod router;
pub(crate) mod seats;
pub(crate) mod socket;
pub(crate) mod visitor;

use std::{net::SocketAddr, sync::Arc};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{ACCEPT, CONNECTION, TRANSFER_ENCODING},
};
use hyper::body::Incoming;
use tracing::{debug, error, info, warn};
use uniroute_proto::TUNNEL_PATH;
use uniroute_shared::{carrier::upgrade, code::Level, headers::content_length, id::RequestId};

use self::{
    error::ProxyError,
    proxy::ResponseBody,
    router::Route,
    visitor::{Answer, Visitor},
};
use crate::{
    registry::{Lookup, Origin, ports::Kind},
    session,
};

/// Longest head of a request, in bytes. hyper lets a whole buffer pass.
const MAX_HEAD: usize = 64 * 1024;

/// Answers one request, whatever happens.
pub(crate) async fn handle(
    visitor: Arc<Visitor>,
    request: Request<Incoming>,
) -> Response<Answer<ResponseBody>> {
    let under_way = visitor.begin();
    let id = RequestId::new();
    visitor.edge.metrics.requests.inc();
    let accept = request.headers().get(ACCEPT).cloned();
    let host = request.headers().get(http::header::HOST).cloned();
    let response = match answer(&visitor, id, request).await {
        Ok(response) => response,
        Err(error) => {
            visitor.edge.metrics.failed(error.code());
            log(&error, &id, visitor.peer, host.as_ref());
            let detail = error.detail();
            let page = page::error_response(error.code(), &id, detail.as_deref(), accept.as_ref());
            let mut response = page.map(ResponseBody::Full);
            if matches!(error, ProxyError::BadRequest(_)) {
                // Where it ends is in doubt, so nothing behind it is taken for a request (T01).
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    };
    response.map(|body| Answer { body, _request: under_way })
}

async fn answer(
    visitor: &Arc<Visitor>,
    id: RequestId,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ProxyError> {
    check(&request)?;
    let edge = &visitor.edge;
    let authority =
        router::authority(request.uri(), request.headers()).ok_or(ProxyError::BadHost)?;
    let host = router::host(authority).ok_or(ProxyError::BadHost)?;
    let name = match edge.hosts.route(&host) {
        Route::Edge => return own_page(visitor, request),
        Route::Unknown => return Err(ProxyError::UnknownTunnel),
        Route::Tunnel(name) => name,
    };
    let target = match edge.registry.lookup(name) {
        Lookup::Live(target) if target.tunnel.kind != Kind::Http => {
            return Err(ProxyError::NotHttp(edge.public_url(&target.tunnel)));
        }
        Lookup::Live(target) => target,
        Lookup::Offline => return Err(ProxyError::Offline),
        Lookup::Unknown => return Err(ProxyError::UnknownTunnel),
    };
    proxy::forward(visitor, target, id, request).await
}

/// What could be read in two ways, or asks for what a tunnel is not, is refused (T01, T23).
fn check(request: &Request<Incoming>) -> Result<(), ProxyError> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(ProxyError::Method(request.method().to_string()));
    }
    let headers: &HeaderMap = request.headers();
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        let chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if !chunked || encodings.next().is_some() {
            return Err(ProxyError::BadRequest("Transfer-Encoding must be chunked, once"));
        }
        if headers.contains_key(http::header::CONTENT_LENGTH) {
            return Err(ProxyError::BadRequest("both Transfer-Encoding and Content-Length"));
        }
    }
    content_length(headers).map_err(|()| ProxyError::BadRequest("Content-Length can't be read"))?;
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    if target + fields.sum::<usize>() > MAX_HEAD {
        return Err(ProxyError::HeadTooLarge);
    }
    Ok(())
}

/// The edge's own host.
fn own_page(
    visitor: &Arc<Visitor>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ProxyError> {
    if request.uri().path() != TUNNEL_PATH {
        return Err(ProxyError::NotFound);
    }
    let edge = &visitor.edge;
    if edge.stop.is_cancelled() {
        return Err(ProxyError::Draining);
    }
    let response =
        upgrade::response(&request).map_err(|e| ProxyError::BadUpgrade(e.to_string()))?;
    let origin = Origin { worker: visitor.worker, peer: visitor.peer };
    let place = edge.session_place().ok_or(ProxyError::SessionLimit)?;
    edge.tasks.spawn(session::accept(Arc::clone(edge), origin, request, place));
    Ok(response.map(|()| ResponseBody::Full(bytes::Bytes::new())))
}

fn log(error: &ProxyError, id: &RequestId, peer: SocketAddr, host: Option<&HeaderValue>) {
    let code = error.code();
    let host = host.map(|host| String::from_utf8_lossy(host.as_bytes()));
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

/// Too many connections: said in the plainest way, since nothing else may be spent on it.
pub(crate) fn connection_refusal() -> Vec<u8> {
    let code = &uniroute_shared::code::Code::CONNECTION_LIMIT;
    let status = code.status.and_then(|s| StatusCode::from_u16(s).ok()).unwrap_or_default();
    format!(
        "HTTP/1.1 {status}\r\nx-uniroute-error: {code}\r\nretry-after: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        code.retry_after.unwrap_or(1),
    )
    .into_bytes()
}
