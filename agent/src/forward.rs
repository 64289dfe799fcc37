//! Each stream of the edge to its local server, and the answer back. One task a stream.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONNECTION, HOST, UPGRADE},
};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::debug;
use uniroute_proto::{
    codec, head,
    v1::{self, UpstreamErrorKind, stream_open::Kind, stream_reply::Reply},
};
use uniroute_shared::{
    copy,
    headers::{EndToEnd, content_length},
    session::{Receiver, Sender, StreamError},
    stream::{FrameReader, OnDrop, SendError, StreamBody, header_map, send_body},
};

use crate::{
    Event, TunnelKind, Tunnels, sockets,
    tunnel::Tunnel,
    upstream::{
        AnswerBody, Connection, NoAnswer, RequestBody, Upstream, UpstreamError, UpstreamIo,
    },
};

/// The edge sends a stream's first message at once; later than this it never comes.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a stream's work ended early.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    /// The visitor left, or the session ended: nobody waits for an answer.
    #[error("cancelled: {0}")]
    Cancelled(#[from] StreamError),
    /// No answer, and the visitor is told.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The answer broke off; the visitor sees that.
    #[error("the answer broke off: {0}")]
    Broken(String),
}

/// Serves one stream to its end.
pub(crate) async fn serve(tunnels: Arc<Tunnels>, mut sender: Sender, receiver: Receiver) {
    let mut reader = FrameReader::new(receiver);
    let opening =
        tokio::time::timeout(OPEN_TIMEOUT, reader.message::<v1::StreamOpen>("StreamOpen"));
    let (open, end) = match opening.await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return debug!(%error, "a stream began wrongly"),
        Err(_) => return debug!("a stream began with silence"),
    };
    // The edge names one of this agent's tunnels, never a target (T23).
    let tunnel = tunnels.by_id(&open.tunnel_id);
    let (tunnel, kind) = match (tunnel, open.kind) {
        (Some(tunnel), Some(kind)) if tunnel.kind != TunnelKind::Http => {
            // Kept out of every request's future.
            return Box::pin(sockets::serve(tunnel, kind, sender, reader)).await;
        }
        request => request,
    };
    let mut reader = Some(reader);
    let result = match (tunnel, kind) {
        (Some(tunnel), Some(Kind::Http(http))) => {
            let request = StreamRequest { http, end, tunnel };
            request.forward(&tunnels, &mut sender, &mut reader).await
        }
        (None, _) => {
            Err(refusal(UpstreamErrorKind::UnknownTunnel, "this agent serves no such tunnel"))
        }
        (_, _) => {
            Err(refusal(UpstreamErrorKind::BadRequest, "this kind of stream is unknown here"))
        }
    };
    match result {
        Ok(None) => {}
        Ok(Some(Switched { io, rest })) => {
            // Rare and long: kept out of every other request's future.
            if let Err(error) = Box::pin(copy::splice(io, sender, rest)).await {
                debug!(%error, "an upgraded connection broke off");
            }
        }
        Err(ForwardError::Upstream(error)) => {
            // What the visitor still sends is not wanted, the answer is.
            if let Some(reader) = reader.filter(|reader| !reader.ended()) {
                reader.stop();
            }
            let reply = v1::UpstreamError { kind: error.kind.into(), message: error.message };
            let reply = v1::StreamReply { reply: Some(Reply::Error(reply)) };
            if let Err(error) = sender.send(codec::message(&reply, true), true) {
                debug!(%error, "nobody waits for the error");
            }
        }
        Err(error) => debug!(%error, "a request ended early"),
    }
}

fn refusal(kind: UpstreamErrorKind, message: &str) -> ForwardError {
    UpstreamError { kind, message: message.to_owned() }.into()
}

/// A request as it came in over its stream.
struct StreamRequest {
    http: v1::HttpOpen,
    /// It has no body.
    end: bool,
    tunnel: Arc<Tunnel>,
}

impl StreamRequest {
    async fn forward(
        self,
        tunnels: &Tunnels,
        sender: &mut Sender,
        reader: &mut Option<FrameReader>,
    ) -> Result<Option<Switched>, ForwardError> {
        let began = Instant::now();
        let Self { http, end, tunnel } = self;
        let upstream = tunnel.upstream();
        let mut upgrading = false;
        let exchanged = if end {
            exchange_bodyless(&tunnel, &upstream, sender, &http).await
        } else if let Some(token) = upgrade_token(&http)? {
            upgrading = true;
            Box::pin(exchange_upgrade(&tunnel, &upstream, sender, &http, token)).await
        } else {
            exchange_with_body(&upstream, sender, reader.take(), &http).await
        };
        let (mut connection, answer) = exchanged.inspect_err(|error| match error.upstream() {
            // Says nothing of the local server.
            Some(error) if error.kind == UpstreamErrorKind::BadRequest => {}
            error => tunnel.report(error),
        })?;
        tunnel.report(None);
        debug!(
            tunnel = tunnel.key,
            method = text(&http.method),
            target = text(&http.target),
            status = answer.status().as_u16(),
            duration_ms = began.elapsed().as_secs_f64() * 1e3,
            "request"
        );
        tunnels.request_event(|| Event::Request {
            tunnel: tunnel.key.clone(),
            method: text(&http.method).to_owned(),
            path: text(&http.target).to_owned(),
            status: answer.status().as_u16(),
            duration: began.elapsed(),
        });
        match reader.take().filter(|_| upgrading) {
            Some(reader) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let fields = EndToEnd::of(answer.headers());
                sender.send(head::response(101, || fields.iter(), false), false)?;
                let io = connection.into_raw().await;
                return Ok(Some(Switched { io, rest: reader.into_raw() }));
            }
            // Declined: an answer like any other.
            Some(reader) => reader.stop(),
            None => {}
        }
        send_answer(&upstream, sender, &mut connection, answer).await?;
        upstream.put_back(connection);
        Ok(None)
    }
}

/// Both sides have switched protocols: from here on bytes are copied.
struct Switched {
    io: (UpstreamIo, Bytes),
    rest: (Receiver, Bytes),
}

impl ForwardError {
    fn upstream(&self) -> Option<&UpstreamError> {
        match self {
            Self::Upstream(error) => Some(error),
            _ => None,
        }
    }
}

/// The request for the local server, made anew each time that it is sent.
fn request(
    http: &v1::HttpOpen,
    body: impl FnOnce(&HeaderMap) -> RequestBody,
) -> Result<Request<RequestBody>, ForwardError> {
    let wrong = |why: &str| refusal(UpstreamErrorKind::BadRequest, why);
    let method = Method::from_bytes(&http.method).map_err(|_| wrong("the method is no token"))?;
    let target = Uri::from_maybe_shared(http.target.clone())
        .ok()
        .filter(|uri| uri.scheme().is_none() && uri.authority().is_none())
        .ok_or_else(|| wrong("the target is no path"))?;
    let mut headers =
        header_map("StreamOpen", &http.headers).map_err(|error| wrong(&error.to_string()))?;
    // One routing key: what the edge routed by is what the local server sees (T02).
    let host = HeaderValue::from_maybe_shared(http.authority.clone())
        .map_err(|_| wrong("the authority holds a forbidden byte"))?;
    headers.insert(HOST, host);
    content_length(&headers).map_err(|()| wrong("Content-Length can't be read"))?;
    let mut request = Request::new(body(&headers));
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.headers_mut() = headers;
    Ok(request)
}

fn bodyless(_: &HeaderMap) -> RequestBody {
    RequestBody::Empty
}

/// Of a field that [`request`] has found to be text.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

type Exchanged = Result<(Box<Connection>, Response<Incoming>), ForwardError>;

/// Without a body a request can be sent again, so a pooled connection that turns out to be closed
/// costs nothing but a new one. What is not idempotent is sent again only if it never went out.
async fn exchange_bodyless(
    tunnel: &Tunnel,
    upstream: &Upstream,
    sender: &mut Sender,
    http: &v1::HttpOpen,
) -> Exchanged {
    let deadline = tunnel.response_timeout.map(|limit| Instant::now() + limit);
    let first = request(http, bodyless)?;
    let idempotent = first.method().is_idempotent();
    let (mut connection, reused) = cancellable(sender, upstream.connection()).await??;
    match answer(upstream, sender, &mut connection, first, deadline).await? {
        Ok(answer) => Ok((connection, answer)),
        Err(error) if reused && (error.is_canceled() || (idempotent && may_repeat(&error))) => {
            let mut connection = cancellable(sender, upstream.connect()).await??;
            let again = request(http, bodyless)?;
            let answered = answer(upstream, sender, &mut connection, again, deadline).await?;
            Ok((connection, answered.map_err(|error| upstream.failed(&error))?))
        }
        Err(error) => Err(upstream.failed(&error).into()),
    }
}

/// Nothing of an answer came; for a method for which asking twice is as good as once (RFC 9110,
/// section 9.2.2).
fn may_repeat(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || !error.is_parse()
}

async fn exchange_with_body(
    upstream: &Upstream,
    sender: &mut Sender,
    reader: Option<FrameReader>,
    http: &v1::HttpOpen,
) -> Exchanged {
    let request = request(http, |headers| {
        let length = content_length(headers).unwrap_or_default();
        let body = |reader| RequestBody::Stream(StreamBody::new(reader, length, OnDrop::Stop));
        reader.map_or(RequestBody::Empty, body)
    })?;
    let (mut connection, _) = cancellable(sender, upstream.connection()).await??;
    // The edge counts the wait from the end of the request, which is not seen here.
    let answered = answer(upstream, sender, &mut connection, request, None).await?;
    Ok((connection, answered.map_err(|error| upstream.failed(&error))?))
}

/// A request to switch protocols, on a connection of its own: it will not come back.
async fn exchange_upgrade(
    tunnel: &Tunnel,
    upstream: &Upstream,
    sender: &mut Sender,
    http: &v1::HttpOpen,
    token: HeaderValue,
) -> Exchanged {
    let deadline = tunnel.response_timeout.map(|limit| Instant::now() + limit);
    let mut request = request(http, bodyless)?;
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert(UPGRADE, token);
    let mut connection = cancellable(sender, upstream.connect()).await??;
    let answered = answer(upstream, sender, &mut connection, request, deadline).await?;
    Ok((connection, answered.map_err(|error| upstream.failed(&error))?))
}

fn upgrade_token(http: &v1::HttpOpen) -> Result<Option<HeaderValue>, ForwardError> {
    if http.upgrade.is_empty() {
        return Ok(None);
    }
    let token = HeaderValue::from_maybe_shared(http.upgrade.clone());
    token.map(Some).map_err(|_| refusal(UpstreamErrorKind::BadRequest, "the upgrade is no token"))
}

/// Sends a request and waits for the answer's head.
async fn answer(
    upstream: &Upstream,
    sender: &mut Sender,
    connection: &mut Connection,
    request: Request<RequestBody>,
    deadline: Option<Instant>,
) -> Result<Result<Response<Incoming>, hyper::Error>, ForwardError> {
    match connection.send(request, deadline, |cx| sender.poll_reset(cx)).await {
        Ok(answer) => Ok(Ok(answer)),
        Err(NoAnswer::Failed(error)) => Ok(Err(error)),
        Err(NoAnswer::Cancelled(error)) => Err(error.into()),
        Err(NoAnswer::TimedOut) => {
            let message = format!("{} gave no answer in time", upstream.target());
            Err(UpstreamError { kind: UpstreamErrorKind::ResponseTimeout, message }.into())
        }
    }
}

/// `future`, unless the visitor leaves first.
async fn cancellable<F: Future>(sender: &mut Sender, future: F) -> Result<F::Output, StreamError> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx: &mut Context<'_>| {
        if let Poll::Ready(error) = sender.poll_reset(cx) {
            return Poll::Ready(Err(error));
        }
        future.as_mut().poll(cx).map(Ok)
    })
    .await
}

async fn send_answer(
    upstream: &Upstream,
    sender: &mut Sender,
    connection: &mut Connection,
    answer: Response<Incoming>,
) -> Result<(), ForwardError> {
    let (parts, body) = answer.into_parts();
    if parts.status.is_informational() {
        let message = format!("{} switches protocols, which nobody asked for", upstream.target());
        return Err(refusal(UpstreamErrorKind::BadResponse, &message));
    }
    let end = body.is_end_stream();
    let fields = EndToEnd::of(&parts.headers);
    sender.send(head::response(parts.status.as_u16(), || fields.iter(), end), end)?;
    if end {
        return Ok(());
    }
    match send_body(sender, AnswerBody { connection, body }).await {
        Ok(()) => Ok(()),
        Err(SendError::Stream(error)) => Err(error.into()),
        Err(SendError::Body(error)) => Err(ForwardError::Broken(error.to_string())),
    }
}
