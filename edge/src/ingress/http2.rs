//! A visitor's connection with HTTP/2 (RFC 9113) on it: the `h2` crate speaks it, each request is a
//! task, and what goes to the agent is the same as with HTTP/1.1. What a flood could make grow has a
//! bound here (T04).

use std::{
    future::poll_fn,
    io::Cursor,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    ext::Protocol,
    server::{Connection, SendResponse},
};
use http::{Method, Request, Response, StatusCode, request::Parts};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout},
};
use tracing::debug;
use uniroute_proto::v1::HttpVersion;
use uniroute_shared::{
    carrier::upgrade::accept_key,
    copy,
    deadline::Deadline,
    headers::{self, Framing},
    http1::head::MAX_FIELDS,
    http2::{Incoming, Outgoing},
    id::RequestId,
    message::{Fields, Piece, RequestHead, Source},
};

use self::{raw::RawStream, turns::Turns};
use super::{
    error::ProxyError,
    forwarded,
    own::{self, Own},
    proxy::{Answer, Asked, Exchange, Reply},
    record, router,
    visitor::{Patience, Visitor},
};
use crate::ingress::{self, Place};

mod raw;
mod turns;

/// What a client of HTTP/2 says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The preface and the first settings have to be there after this long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this long, as with HTTP/1.1.
const IDLE: Duration = Duration::from_secs(75);
/// A connection that was told to end is closed after this long: its visitor may not answer.
const GOODBYE: Duration = Duration::from_secs(10);
/// Requests of one connection at a time.
const MAX_STREAMS: u32 = 128;
/// Bytes that a visitor may send on a stream, and on all of a connection, before they are read.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes of a body that nobody wants which are thrown away, and for how long.
const MAX_DISCARDED: usize = 1024 * 1024;
const LINGER: Duration = Duration::from_secs(2);
/// Bytes of a request's fields, names and all.
const MAX_HEADERS: u32 = 64 * 1024;
/// Bytes of an answer that wait in a stream for the visitor's window.
const SEND_BUFFER: usize = 128 * 1024;
/// Streams that were reset and are remembered for frames that are still on their way.
const REMEMBERED: usize = 64;
/// Requests that a visitor may take back before he looks like a flood: this many, and one more for
/// each that he lets be answered (CVE-2023-44487).
const MAX_TAKEN_BACK: usize = 100;

/// Whether a connection that begins with `first` speaks HTTP/2; the preface may still be cut.
pub(crate) fn begins(first: &[u8]) -> bool {
    first.len() >= 3 && first.iter().zip(PREFACE).all(|(byte, expected)| byte == expected)
}

/// Serves `socket`, of which `early` was read already, to its end.
pub(crate) async fn serve(visitor: Arc<Visitor>, socket: TcpStream, early: Bytes) {
    let (read, write) = socket.into_split();
    let io = tokio::io::join(Turns::new(Cursor::new(early).chain(read)), write);
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(REMEMBERED)
        .max_pending_accept_reset_streams(MAX_TAKEN_BACK)
        .enable_connect_protocol()
        .handshake(io);
    let peer = visitor.peer;
    match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(connection)) => {
            if let Err(error) = run(visitor, connection).await {
                debug!(%peer, %error, "a connection broke off");
            }
        }
        Ok(Err(error)) => debug!(%peer, %error, "no HTTP/2 came about"),
        Err(_) => debug!(%peer, "a connection said nothing"),
    }
}

/// What the requests of a connection have become.
#[derive(Default)]
struct Counts {
    under_way: AtomicUsize,
    answered: AtomicUsize,
    taken_back: AtomicUsize,
}

impl Counts {
    fn is_flood(&self) -> bool {
        let answered = self.answered.load(Ordering::Relaxed);
        self.taken_back.load(Ordering::Relaxed) > MAX_TAKEN_BACK + answered
    }
}

/// A request under way, in the counts.
struct Counted(Arc<Counts>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn run<Io>(
    visitor: Arc<Visitor>,
    mut connection: Connection<Io, Bytes>,
) -> Result<(), h2::Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let counts = Arc::new(Counts::default());
    let mut idle = Deadline::at(Instant::now() + IDLE);
    let mut stop = pin!(visitor.edge.stop.cancelled());
    let (mut stopping, mut told, mut flooded) = (false, false, false);
    loop {
        let accepted = poll_fn(|cx| {
            if !stopping && stop.as_mut().poll(cx).is_ready() {
                stopping = true;
                connection.graceful_shutdown();
            }
            if !flooded && counts.is_flood() {
                flooded = true;
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                idle.set(Instant::now() + GOODBYE);
            }
            while idle.poll(cx).is_ready() {
                let idles = counts.under_way.load(Ordering::Relaxed) == 0;
                if flooded || told && idles {
                    return Poll::Ready(None);
                }
                if idles {
                    connection.graceful_shutdown();
                }
                told |= idles;
                idle.set(Instant::now() + if idles { GOODBYE } else { IDLE });
            }
            connection.poll_accept(cx)
        });
        let Some(accepted) = accepted.await else { return Ok(()) };
        let (request, respond) = accepted?;
        if !flooded {
            idle.set(Instant::now() + IDLE);
        }
        counts.under_way.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&counts));
        let stream = Stream { visitor: Arc::clone(&visitor), respond, timer: None };
        visitor.edge.metrics.requests.inc();
        visitor.edge.tasks.spawn(async move { Box::pin(stream.serve(request, &counted.0)).await });
    }
}

/// One request and its answer.
struct Stream {
    visitor: Arc<Visitor>,
    respond: SendResponse<Bytes>,
    timer: Option<Deadline>,
}

/// Why a request has no whole answer.
enum Failed {
    /// Nothing of an answer went out: there is a page to say it.
    Before(ProxyError),
    /// The answer broke off, or the visitor's stream did.
    Broken,
    /// The visitor took the request back.
    TakenBack,
}

impl From<ProxyError> for Failed {
    fn from(error: ProxyError) -> Self {
        Self::Before(error)
    }
}

impl From<h2::Error> for Failed {
    fn from(_: h2::Error) -> Self {
        Self::Broken
    }
}

impl Stream {
    async fn serve(mut self, request: Request<RecvStream>, counts: &Counts) {
        let id = RequestId::new();
        let (parts, body) = request.into_parts();
        let mut fields = Fields::from_map(&parts.headers);
        if let Some(authority) = parts.uri.authority() {
            // As the log and the page of a failure know it.
            fields.set("host", Bytes::copy_from_slice(authority.as_str().as_bytes()));
        }
        let to_head = parts.method == Method::HEAD;
        let mut body = Incoming::new(body);
        match self.answer(id, parts, &mut body).await {
            Ok(()) => {
                counts.answered.fetch_add(1, Ordering::Relaxed);
                discard(body).await;
            }
            Err(Failed::TakenBack) => _ = counts.taken_back.fetch_add(1, Ordering::Relaxed),
            Err(Failed::Broken) => self.respond.send_reset(Reason::INTERNAL_ERROR),
            Err(Failed::Before(error)) => {
                let page = ingress::refusal(&self.visitor, &error, &id, &fields);
                let count = match self.send_page(page, to_head) {
                    Ok(()) => &counts.answered,
                    Err(error) => {
                        debug!(%error, "nobody reads the page");
                        &counts.taken_back
                    }
                };
                count.fetch_add(1, Ordering::Relaxed);
                discard(body).await;
            }
        }
    }

    async fn answer(
        &mut self,
        id: RequestId,
        parts: Parts,
        body: &mut Incoming,
    ) -> Result<(), Failed> {
        let visitor = Arc::clone(&self.visitor);
        let (asked, key) = asked(&visitor, id, &parts, body)?;
        let mut exchange = match ingress::place(&visitor, &asked)? {
            Place::Tunnel(tunnel, found) => Exchange::begin(&visitor, tunnel, found, &asked)?,
            Place::Guarded(guard) => {
                let mut guarded = guard.admit(&visitor, &asked).await?;
                guarded.check_body(&asked, body).await?;
                guarded.begin(&visitor, &asked)?
            }
            // Agents connect with HTTP/1.1.
            Place::Edge => {
                if let Own::Watch = own::find(&visitor.edge, &asked)? {
                    return Box::pin(self.watch(&asked, body)).await;
                }
                let answer = Box::pin(own::answer(&visitor, &asked, body)).await?;
                let to_head = parts.method == Method::HEAD;
                return self.send_page(answer, to_head).map_err(Into::into);
            }
        };
        let answer = loop {
            match poll_fn(|cx| self.poll_reply(cx, &mut exchange, body)).await? {
                Reply::Final(answer) => break answer,
                Reply::Informational(status, _, fields) => {
                    self.respond.send_informational(head(status, &fields)?)?;
                }
            }
        };
        if answer.status == 101 {
            return self.switch(exchange, answer, key.as_deref(), body).await;
        }
        let mut head = head(answer.status, &answer.fields)?;
        via(&mut head);
        let stream = self.respond.send_response(head, answer.end)?;
        let left = answer.length.filter(|_| !answer.end);
        let grpc = headers::is_grpc(&answer.fields);
        let out = Outgoing::new(stream, answer.end);
        let timer = self.timer.get_or_insert_with(|| Deadline::at(Instant::now() + IDLE));
        let patience = Patience::new(&visitor, timer);
        let mut pump = Pump { out, body, exchange, left, grpc, patience };
        poll_fn(|cx| pump.poll(cx)).await
    }

    fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        exchange: &mut Exchange,
        body: &mut Incoming,
    ) -> Poll<Result<Reply, Failed>> {
        if self.respond.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Failed::TakenBack));
        }
        let timer = self.timer.get_or_insert_with(|| Deadline::at(Instant::now() + IDLE));
        exchange.poll_reply(cx, timer, body).map_err(|error| match error {
            ProxyError::Body(_) => Failed::TakenBack,
            error => Failed::Before(error),
        })
    }

    fn send_page(&mut self, page: Response<Bytes>, to_head: bool) -> Result<(), h2::Error> {
        let (mut parts, body) = page.into_parts();
        for name in ["connection", "upgrade"] {
            parts.headers.remove(name);
        }
        let end = to_head || body.is_empty();
        let mut stream = self.respond.send_response(Response::from_parts(parts, ()), end)?;
        // Pages are shorter than any window that a sane visitor gives.
        if end { Ok(()) } else { stream.send_data(body, true) }
    }

    /// Somebody wants to be told what happens (RFC 8441).
    async fn watch(&mut self, asked: &Asked, body: &mut Incoming) -> Result<(), Failed> {
        let visitor = Arc::clone(&self.visitor);
        let watcher = match own::watch(&visitor, asked).await? {
            Ok(watcher) => watcher,
            Err(page) => {
                let to_head = asked.head.method == "HEAD";
                return self.send_page(page, to_head).map_err(Into::into);
            }
        };
        let mut head = Response::new(());
        *head.headers_mut() = watcher.answer().headers().clone();
        for name in ["connection", "upgrade", "sec-websocket-accept"] {
            head.headers_mut().remove(name);
        }
        let stream = self.respond.send_response(head, false)?;
        watcher.run(RawStream::new(stream, body), Bytes::new()).await;
        Ok(())
    }

    /// RFC 8441: the stream carries the protocol's bytes from here on.
    async fn switch(
        &mut self,
        exchange: Exchange,
        answer: Answer,
        key: Option<&str>,
        body: &mut Incoming,
    ) -> Result<(), Failed> {
        let mut fields = answer.fields;
        let accept = fields.get("sec-websocket-accept").cloned();
        let proven = key.is_none_or(|key| {
            accept.is_some_and(|accept| accept == accept_key(key.as_bytes()).as_bytes())
        });
        let raw = exchange.into_raw().filter(|_| proven);
        let (sender, from_stream, record) =
            raw.ok_or_else(|| ProxyError::Answer("it switches protocols without a proof".into()))?;
        for name in ["sec-websocket-accept", "content-length"] {
            fields.remove(name);
        }
        let mut head = head(200, &fields)?;
        via(&mut head);
        let stream = self.respond.send_response(head, false)?;
        let io = record::Counted::new(RawStream::new(stream, body), record);
        let stop = self.visitor.edge.stop.clone();
        tokio::select! {
            copied = copy::splice((io, Bytes::new()), sender, from_stream) => {
                copied.map_err(|_| Failed::Broken)
            }
            () = stop.cancelled() => Ok(()),
        }
    }
}

/// Throws away what comes of a body that nobody wants, for a while. A reset behind the answer would
/// say the same (RFC 9113, section 8.1), but some clients lose the answer over it.
async fn discard(mut body: Incoming) {
    if body.is_over() {
        return;
    }
    let discarding = async {
        let mut left = MAX_DISCARDED;
        while let Ok(Some(Piece::Data(data))) = poll_fn(|cx| body.poll_piece(cx)).await {
            match left.checked_sub(data.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    let _ = timeout(LINGER, discarding).await;
}

/// A request's head as one of HTTP/1.1 would be; and the key of a WebSocket handshake, which HTTP/2
/// has none of and the local server wants.
fn asked(
    visitor: &Visitor,
    id: RequestId,
    parts: &Parts,
    body: &Incoming,
) -> Result<(Asked, Option<String>), ProxyError> {
    if parts.headers.len() > MAX_FIELDS {
        return Err(ProxyError::HeadTooLarge);
    }
    let mut fields = Fields::from_map(&parts.headers);
    // RFC 9113, section 8.2.1; in HTTP/1.1 they would vanish.
    if fields.iter().any(|(_, value)| value.trim_ascii().len() != value.len()) {
        return Err(ProxyError::BadRequest("a field's value begins or ends with a blank"));
    }
    let protocol = parts.extensions.get::<Protocol>().filter(|_| parts.method == Method::CONNECT);
    let mut method = Bytes::copy_from_slice(parts.method.as_str().as_bytes());
    if protocol.is_none() {
        ingress::check_method(&method)?;
    }
    let named = parts.uri.authority().map(|host| Bytes::copy_from_slice(host.as_str().as_bytes()));
    let authority = router::authority(named.as_ref(), &fields).ok_or(ProxyError::BadHost)?;
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let target = Bytes::copy_from_slice(target.as_bytes());
    let length = Framing::of(&fields).map_err(ProxyError::BadRequest)?.length;
    join_cookies(&mut fields);
    let came = forwarded::settle(visitor, &mut fields, &authority);
    fields.remove("host");
    fields.0.insert(
        0,
        uniroute_proto::v1::Header { name: Bytes::from_static(b"Host"), value: authority.clone() },
    );
    let mut upgrade = Bytes::new();
    let mut key = None;
    if let Some(protocol) = protocol {
        upgrade = Bytes::copy_from_slice(protocol.as_str().as_bytes());
        if !headers::is_protocol(&upgrade) {
            return Err(ProxyError::BadRequest("the protocol can't be switched to"));
        }
        method = Bytes::from_static(b"GET");
        if upgrade.eq_ignore_ascii_case(b"websocket") {
            let fresh = new_key();
            fields.set("Sec-WebSocket-Key", fresh.clone());
            key = Some(fresh);
        }
    }
    let length = if body.is_over() { Some(0) } else { length };
    let version = HttpVersion::HttpVersion2;
    let head = RequestHead { method, target, authority, version, fields };
    Ok((Asked { id, head, upgrade, length, came }, key))
}

fn new_key() -> String {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).expect("the system has a random source");
    STANDARD.encode(nonce)
}

/// HTTP/2 may split a cookie; a server of HTTP/1.1 expects one field (RFC 9113, section 8.2.3).
fn join_cookies(fields: &mut Fields) {
    let crumbs: Vec<&[u8]> = fields.all("cookie").map(|value| &value[..]).collect();
    if crumbs.len() > 1 {
        let whole = crumbs.join(&b"; "[..]);
        fields.set("cookie", whole);
    }
}

fn head(status: u16, fields: &Fields) -> Result<Response<()>, ProxyError> {
    let status = StatusCode::from_u16(status);
    let status = status.map_err(|_| ProxyError::Answer("its status is none".into()))?;
    let mut head = Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = fields.to_map();
    head.headers_mut().remove(http::header::TE);
    Ok(head)
}

fn via(head: &mut Response<()>) {
    let via = http::HeaderValue::from_static("1.1 uniroute");
    head.headers_mut().append(http::header::VIA, via);
}

/// How a gRPC call ends that nobody ends any more. A reset would be an internal error to its client,
/// and not a reason to try again.
fn unavailable() -> Fields {
    let mut fields = Fields::default();
    fields.push("grpc-status", "14");
    fields.push("grpc-message", "the answer broke off on its way through the tunnel");
    fields
}

/// An answer's body on its way to the visitor, and the rest of his own on its way out.
struct Pump<'a> {
    out: Outgoing,
    body: &'a mut Incoming,
    exchange: Exchange,
    /// Bytes that the head promises.
    left: Option<u64>,
    /// Trailers say how a call ended.
    grpc: bool,
    patience: Patience<'a>,
}

impl Pump<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        if !self.out.is_over() && self.exchange.poll_over(cx).is_ready() {
            return Poll::Ready(Err(Failed::Broken));
        }
        if self.exchange.poll_upload(cx, self.body).is_ready() {
            self.exchange.stop_upload();
        }
        while !self.out.is_over() {
            if self.out.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Failed::TakenBack));
            }
            let room = self.out.poll_room(cx)?;
            if self.patience.poll(cx, room.is_ready()).is_ready() {
                return Poll::Ready(Err(Failed::TakenBack));
            }
            ready!(room);
            match ready!(self.exchange.poll_download(cx)) {
                Ok(piece) => {
                    self.measure(&piece)?;
                    self.out.send(piece)?;
                }
                Err(error) => {
                    debug!(%error, "an answer broke off");
                    if !self.grpc {
                        return Poll::Ready(Err(Failed::Broken));
                    }
                    self.out.send(Some(Piece::Trailers(unavailable())))?;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What is longer or shorter than it says is broken.
    fn measure(&mut self, piece: &Option<Piece>) -> Result<(), Failed> {
        let Some(left) = &mut self.left else { return Ok(()) };
        match piece {
            Some(Piece::Data(data)) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Failed::Broken)?;
                Ok(())
            }
            _ if *left > 0 => Err(Failed::Broken),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preface_is_told_from_requests() {
        assert!(
            begins(PREFACE)
                && begins(&PREFACE[..3])
                && begins(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0")
        );
        for other in
            [&b""[..], b"PR", b"GET / HTTP/1.1", b"PRI / HTTP/2.0", b"PRI * HTTP/2.0\r\nHost"]
        {
            assert!(!begins(other));
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("Application/gRPC+proto", true),
            ("application/grpc; charset=utf-8", true),
            // Its trailers are part of the body.
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut fields = Fields::default();
            fields.push("content-type", kind);
            assert_eq!(headers::is_grpc(&fields), expected, "{kind}");
        }
        assert!(!headers::is_grpc(&Fields::default()));
    }

    #[test]
    fn crumbs_are_one_cookie() {
        let mut fields = Fields::default();
        for (name, value) in [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")] {
            fields.push(name, value);
        }
        join_cookies(&mut fields);
        let fields: Vec<_> = fields.iter().collect();
        assert_eq!(fields, [(&b"cookie"[..], &b"a=1; b=2"[..]), (b"x", b"y")]);
    }
}
