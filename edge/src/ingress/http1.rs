//! A visitor's connection with HTTP/1.1 (RFC 9112) on it: one request after the other, each answered
//! before the next is looked at. One task, which polls the request under way too.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::debug;
use uniroute_proto::v1::HttpVersion;
use uniroute_shared::{
    copy,
    deadline::Deadline,
    headers,
    http1::{
        BodyReader, Conn, HeadError, Incoming, Length, ReadFault, RequestLine,
        head::{self, put_end, put_field, put_status_line},
    },
    id::RequestId,
    message::{Fields, Piece, RequestHead},
};

use super::{
    error::ProxyError,
    forwarded,
    own::{self, Own},
    proxy::{Answer, Asked, Exchange, Reply},
    record::Counted,
    visitor::{Patience, Visitor},
};
use crate::{
    ingress::{self, Place},
    registry::Origin,
    session,
    watch::Watcher,
};

/// A connection's first head has to be complete after this long (T04).
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A later one after this long, idle time included: a slow head then costs no more than an idle
/// connection. Longer than load balancers keep theirs (60 s is usual), so that they close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// A visitor whose body was not wanted may read the answer for this long, while the rest of the body
/// is thrown away: closing at once would take the answer from him (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);
/// Pieces of an unwanted body that are thrown away for the sake of the connection.
const MAX_DISCARDED: usize = 64;

/// Serves `socket`, which was accepted at `since` and of which `early` was read already, to its end.
pub(crate) async fn serve(visitor: Arc<Visitor>, socket: TcpStream, early: Bytes, since: Instant) {
    let peer = visitor.peer;
    let stop = visitor.edge.stop.clone().cancelled_owned();
    let mut server = Server {
        conn: Conn::server(socket, early),
        visitor,
        timer: Deadline::at(since + HEAD_TIMEOUT),
        stop: Box::pin(stop),
        stop_seen: None,
    };
    let next = loop {
        match server.next().await {
            Ok(Next::Request) => {}
            Ok(next) => break next,
            Err(error) => return debug!(%peer, %error, "a connection broke off"),
        }
    };
    match next {
        Next::Request | Next::Close => {}
        Next::Linger => server.linger().await,
        Next::Cut => server.cut(),
        Next::Session(place) => {
            let Server { conn, visitor, .. } = server;
            let origin = Origin { worker: visitor.worker, peer };
            let accepted =
                session::accept(Arc::clone(&visitor.edge), origin, conn.into_parts(), place);
            visitor.edge.tasks.spawn(accepted);
        }
        Next::Switched(exchange) => server.splice(*exchange).await,
        Next::Watch(watcher) => {
            // The visitor keeps his place among the connections until it ends.
            let Server { conn, visitor: _visitor, .. } = server;
            let (socket, early) = conn.into_parts();
            watcher.serve(socket, early).await;
        }
    }
}

/// What a connection does when a request is over.
enum Next {
    /// It waits for another one.
    Request,
    Close,
    /// It closes once the visitor has read the answer.
    Linger,
    /// It breaks off, so that nobody takes what came for the whole.
    Cut,
    /// It is an agent's.
    Session(tokio::sync::OwnedSemaphorePermit),
    /// It speaks another protocol from here on.
    Switched(Box<Exchange>),
    /// It is told what happens from here on.
    Watch(Box<Watcher>),
}

struct Server {
    conn: Conn<TcpStream>,
    visitor: Arc<Visitor>,
    timer: Deadline,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Polled once, to be woken by it; after that a flag is enough, since asking it again on every
    /// wake-up costs a lock that all connections share.
    stop_seen: Option<()>,
}

/// What the head of a request means for the connection.
struct Manner {
    /// The number behind `HTTP/1.`.
    minor: u8,
    to_head: bool,
    /// More requests may come.
    keep_alive: bool,
    /// Trailers are read (RFC 9110, section 6.5.1).
    trailers: bool,
    /// The visitor may wait for an answer 100 before he sends the body.
    expects: bool,
}

impl Server {
    /// One request, from its head to the end of its answer.
    async fn next(&mut self) -> Result<Next, io::Error> {
        let block = match poll_fn(|cx| self.poll_head(cx)).await {
            Ok(Some(block)) => block,
            Ok(None) | Err(ReadFault::Cut) => return Ok(Next::Close),
            Err(ReadFault::Io(error)) => return Err(error),
            Err(ReadFault::Head(error)) => return self.refuse_head(error).await,
            Err(ReadFault::Body(_)) => return Ok(Next::Close),
        };
        self.timer.clear();
        self.visitor.edge.metrics.requests.inc();
        let id = RequestId::new();
        let next = match head::request(&block) {
            Ok(line) => self.request(id, line).await,
            Err(error) => self.refuse_head(error).await,
        };
        self.timer.set(Instant::now() + IDLE_TIMEOUT);
        next
    }

    /// `None`: the visitor has gone, says nothing, or the edge stops.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ReadFault>> {
        if let Poll::Ready(head) = self.conn.poll_head(cx) {
            return Poll::Ready(head);
        }
        // Whoever says nothing, or too slowly, is cut without a word.
        if self.poll_stop(cx) && !self.conn.has_input() || self.timer.poll(cx).is_ready() {
            return Poll::Ready(Ok(None));
        }
        Poll::Pending
    }

    /// Whether the edge stops; the task is woken when it does.
    fn poll_stop(&mut self, cx: &mut Context<'_>) -> bool {
        if self.stop_seen.is_none() {
            self.stop_seen = Some(());
            let _ = self.stop.as_mut().poll(cx);
        }
        self.visitor.edge.stopping.load(Ordering::Relaxed)
    }

    async fn refuse_head(&mut self, error: HeadError) -> Result<Next, io::Error> {
        let error = match error {
            HeadError::TooLong | HeadError::TooManyFields => ProxyError::HeadTooLarge,
            HeadError::Version => ProxyError::Version,
            HeadError::Malformed(why) => ProxyError::BadRequest(why),
        };
        let manner =
            Manner { minor: 1, to_head: false, keep_alive: false, trailers: false, expects: false };
        self.refuse(&error, RequestId::new(), &manner, &Fields::default()).await?;
        Ok(Next::Linger)
    }

    async fn request(&mut self, id: RequestId, line: RequestLine) -> Result<Next, io::Error> {
        let keep_alive = keeps_alive(&line) && !self.visitor.edge.is_stopping();
        let mut manner = Manner {
            minor: line.minor,
            to_head: line.method == "HEAD",
            keep_alive,
            trailers: line.fields.has_token("te", "trailers"),
            expects: line.minor == 1 && line.fields.has_token("expect", "100-continue"),
        };
        let length = headers::request_length(&line.fields, line.minor);
        let mut body = BodyReader::new(length.unwrap_or(Length::Exact(0)));
        let fields = line.fields.clone();
        let answered = match length.map_err(ProxyError::BadRequest) {
            Ok(length) => self.answer(id, line, length, &mut body, &mut manner).await,
            Err(error) => Err(Failed::Before(error)),
        };
        match answered {
            Ok(Next::Request) => Ok(self.after(&mut body, &manner)),
            Ok(next) => Ok(next),
            Err(Failed::Io(error)) => Err(error),
            Err(Failed::Visitor) => Ok(Next::Close),
            // Elsewhere the visitor sees that something is missing.
            Err(Failed::Answer(Framing::ToTheEnd)) => Ok(Next::Cut),
            Err(Failed::Answer(_)) => Ok(Next::Close),
            Err(Failed::Before(error)) => {
                if matches!(error, ProxyError::BadRequest(_) | ProxyError::Body(_)) {
                    // Where it ends is in doubt, so nothing behind it is taken for a request (T01).
                    manner.keep_alive = false;
                }
                if !manner.expects {
                    self.discard(&mut body);
                }
                manner.keep_alive &= body.is_over();
                self.refuse(&error, id, &manner, &fields).await?;
                Ok(if manner.keep_alive { Next::Request } else { Next::Linger })
            }
        }
    }

    /// The request is answered: the connection goes on if nothing of the body is left.
    fn after(&mut self, body: &mut BodyReader, manner: &Manner) -> Next {
        if !body.is_over() && !manner.expects {
            self.discard(body);
        }
        match body.is_over() {
            true if manner.keep_alive => Next::Request,
            true => Next::Close,
            false => Next::Linger,
        }
    }

    /// Throws away what is here of a body that nobody wants.
    fn discard(&mut self, body: &mut BodyReader) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..MAX_DISCARDED {
            match self.conn.poll_body(&mut cx, body) {
                Poll::Ready(Ok(Some(_))) => {}
                _ => return,
            }
        }
    }

    async fn answer(
        &mut self,
        id: RequestId,
        line: RequestLine,
        length: Length,
        body: &mut BodyReader,
        manner: &mut Manner,
    ) -> Result<Next, Failed> {
        let visitor = Arc::clone(&self.visitor);
        let asked = asked(&visitor, id, line, length)?;
        let mut exchange = match ingress::place(&visitor, &asked)? {
            Place::Tunnel(tunnel, found) => Exchange::begin(&visitor, tunnel, found, &asked)?,
            Place::Guarded(guard) => {
                let mut guarded = guard.admit(&visitor, &asked).await?;
                if guarded.whole_body.is_some() && std::mem::take(&mut manner.expects) {
                    self.ask_for_body().await?;
                }
                let conn = &mut self.conn;
                guarded.check_body(&asked, &mut Incoming { conn, body: &mut *body }).await?;
                guarded.begin(&visitor, &asked)?
            }
            Place::Edge => return Box::pin(self.own_page(&asked, body, manner)).await,
        };
        let answer = loop {
            let Self { conn, timer, .. } = self;
            match poll_fn(|cx| poll_reply(cx, &mut exchange, conn, timer, body)).await? {
                Reply::Final(answer) => break answer,
                Reply::Informational(status, reason, fields) if manner.minor == 1 => {
                    // The body comes now.
                    manner.expects &= status != 100;
                    put_status_line(status, &reason, self.conn.head());
                    fields.iter().for_each(|(n, v)| put_field(n, v, self.conn.head()));
                    put_end(self.conn.head());
                }
                // HTTP/1.0 knows none (RFC 9110, section 15.2).
                Reply::Informational(..) => {}
            }
        };
        if answer.status == 101 {
            return self.switch(exchange, &answer, &asked.upgrade).await;
        }
        let framing = self.write_answer(&answer, manner);
        let (conn, trailers) = (&mut self.conn, manner.trailers);
        let left = answer.length.unwrap_or(u64::MAX);
        let patience = Patience::new(&visitor, &mut self.timer);
        let over = answer.end;
        let mut pump = Pump { conn, body, exchange, framing, trailers, left, patience, over };
        poll_fn(|cx| pump.poll(cx)).await?;
        Ok(Next::Request)
    }

    /// The head of the local server's answer; how its body will be framed.
    fn write_answer(&mut self, answer: &Answer, manner: &mut Manner) -> Framing {
        let bodyless = manner.to_head || matches!(answer.status, 204 | 304);
        let framing = match answer.length {
            _ if bodyless => Framing::None,
            Some(_) => Framing::Plain,
            None if answer.end => Framing::Empty,
            None if manner.minor == 1 => Framing::Chunked,
            None => Framing::ToTheEnd,
        };
        manner.keep_alive &= framing != Framing::ToTheEnd;
        let out = self.conn.head();
        put_status_line(answer.status, &answer.reason, out);
        for (name, value) in answer.fields.iter() {
            if answer.status != 204 || !name.eq_ignore_ascii_case(b"content-length") {
                put_field(name, value, out);
            }
        }
        put_field(b"Via", b"1.1 uniroute", out);
        match framing {
            Framing::Chunked => put_field(b"Transfer-Encoding", b"chunked", out),
            Framing::Empty => put_field(b"Content-Length", b"0", out),
            Framing::None | Framing::Plain | Framing::ToTheEnd => {}
        }
        put_connection(manner, out);
        put_end(out);
        framing
    }

    /// A page of ours instead of an answer.
    async fn refuse(
        &mut self,
        error: &ProxyError,
        id: RequestId,
        manner: &Manner,
        fields: &Fields,
    ) -> Result<(), io::Error> {
        let page = ingress::refusal(&self.visitor, error, &id, fields);
        self.write_page(&page, manner);
        poll_fn(|cx| self.conn.poll_flush(cx)).await
    }

    fn write_page(&mut self, page: &Response<Bytes>, manner: &Manner) {
        let out = self.conn.head();
        put_status_line(page.status().as_u16(), b"", out);
        for (name, value) in page.headers() {
            put_field(name.as_str().as_bytes(), value.as_bytes(), out);
        }
        if !page.headers().contains_key(http::header::CONNECTION) {
            put_connection(manner, out);
        }
        put_end(out);
        if !manner.to_head {
            self.conn.write(page.body().clone());
        }
    }

    /// The edge's own host: agents, the API, and whoever watches.
    async fn own_page(
        &mut self,
        asked: &Asked,
        body: &mut BodyReader,
        manner: &mut Manner,
    ) -> Result<Next, Failed> {
        match own::find(&self.visitor.edge, asked)? {
            Own::Agent(answer, place) => {
                manner.keep_alive = true;
                self.write_page(&answer, manner);
                poll_fn(|cx| self.conn.poll_flush(cx)).await.map_err(Failed::Io)?;
                Ok(Next::Session(place))
            }
            Own::Api => {
                if std::mem::take(&mut manner.expects) {
                    self.ask_for_body().await?;
                }
                let visitor = Arc::clone(&self.visitor);
                let mut body = Incoming { conn: &mut self.conn, body };
                let answer = own::answer(&visitor, asked, &mut body).await?;
                self.write_page(&answer, manner);
                poll_fn(|cx| self.conn.poll_flush(cx)).await.map_err(Failed::Io)?;
                Ok(Next::Request)
            }
            Own::Watch => {
                let visitor = Arc::clone(&self.visitor);
                let opened = own::watch(&visitor, asked).await?;
                manner.keep_alive |= opened.is_ok();
                self.write_page(opened.as_ref().map_or_else(|page| page, Watcher::answer), manner);
                poll_fn(|cx| self.conn.poll_flush(cx)).await.map_err(Failed::Io)?;
                Ok(opened.map_or(Next::Request, |watcher| Next::Watch(Box::new(watcher))))
            }
        }
    }

    async fn ask_for_body(&mut self) -> Result<(), Failed> {
        put_status_line(100, b"", self.conn.head());
        put_end(self.conn.head());
        poll_fn(|cx| self.conn.poll_flush(cx)).await.map_err(Failed::Io)
    }

    /// The local server switched protocols: so does the edge, and from then on it only copies. Not a
    /// byte of the visitor's goes out before (T01).
    async fn switch(
        &mut self,
        exchange: Exchange,
        answer: &Answer,
        token: &Bytes,
    ) -> Result<Next, Failed> {
        let out = self.conn.head();
        put_status_line(101, &answer.reason, out);
        for (name, value) in answer.fields.iter() {
            // A switch has no body to measure (RFC 9110, section 8.6).
            if !name.eq_ignore_ascii_case(b"content-length") {
                put_field(name, value, out);
            }
        }
        put_field(b"Via", b"1.1 uniroute", out);
        put_field(b"Upgrade", token, out);
        put_field(b"Connection", b"Upgrade", out);
        put_end(out);
        poll_fn(|cx| self.conn.poll_flush(cx)).await.map_err(Failed::Io)?;
        Ok(Next::Switched(Box::new(exchange)))
    }

    async fn splice(self, exchange: Exchange) {
        let Some((sender, from_stream, mut record)) = exchange.into_raw() else { return };
        let (socket, early) = self.conn.into_parts();
        record.received(early.len());
        let io = Counted::new(socket, record);
        let copied = copy::splice((io, early), sender, from_stream);
        tokio::select! {
            copied = copied => if let Err(error) = copied {
                debug!(%error, "an upgraded connection broke off");
            },
            () = self.stop => {}
        }
    }

    /// Lets the visitor read the answer to a body that was not wanted.
    async fn linger(mut self) {
        let lingering = async {
            poll_fn(|cx| self.conn.poll_flush(cx)).await?;
            poll_fn(|cx| self.conn.poll_shutdown(cx)).await?;
            poll_fn(|cx| self.conn.poll_discard(cx)).await
        };
        if let Ok(Err(error)) = timeout(LINGER, lingering).await {
            debug!(%error, "a visitor left before the answer's end");
        }
    }

    /// Breaks the connection off with a reset: an answer that ends with its connection would look
    /// whole otherwise.
    fn cut(self) {
        let (socket, _) = self.conn.into_parts();
        let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    }
}

/// Why a request has no whole answer.
enum Failed {
    /// Nothing of an answer went out: there is a page to say it.
    Before(ProxyError),
    /// The answer, framed so, broke off.
    Answer(Framing),
    /// The visitor has gone.
    Visitor,
    Io(io::Error),
}

impl From<ProxyError> for Failed {
    fn from(error: ProxyError) -> Self {
        Self::Before(error)
    }
}

/// How an answer's body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// There is none by the rules, whatever the head says of its length.
    None,
    /// There is none, and the head does not say so.
    Empty,
    /// As it is: the head says how long.
    Plain,
    Chunked,
    /// As it is; the connection's end is its end.
    ToTheEnd,
}

/// Waits for the next reply; sends what the visitor sends, and sees when he leaves.
fn poll_reply(
    cx: &mut Context<'_>,
    exchange: &mut Exchange,
    conn: &mut Conn<TcpStream>,
    timer: &mut Deadline,
    body: &mut BodyReader,
) -> Poll<Result<Reply, Failed>> {
    if conn.poll_flush(cx).map_err(Failed::Io)?.is_pending() {
        return Poll::Pending;
    }
    let reply = exchange.poll_reply(cx, timer, &mut Incoming { conn, body });
    if let Poll::Ready(reply) = reply {
        return Poll::Ready(reply.map_err(|error| match error {
            ProxyError::Body(_) if conn.has_ended() => Failed::Visitor,
            error => Failed::Before(error),
        }));
    }
    if !exchange.is_uploading() {
        // He who says that he sends no more counts as gone; see THREATS on half-closed visitors.
        return conn.poll_left(cx).map(|_| Err(Failed::Visitor));
    }
    Poll::Pending
}

/// An answer's body on its way to the visitor, and the rest of his own on its way out.
struct Pump<'a> {
    conn: &'a mut Conn<TcpStream>,
    body: &'a mut BodyReader,
    exchange: Exchange,
    framing: Framing,
    trailers: bool,
    /// Bytes that the head promises; what is more or less would blur where the next answer begins.
    left: u64,
    patience: Patience<'a>,
    /// All of the answer is written.
    over: bool,
}

impl Pump<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        if !self.over && self.exchange.poll_over(cx).is_ready() {
            return Poll::Ready(Err(Failed::Answer(self.framing)));
        }
        let Self { conn, body, exchange, .. } = self;
        if exchange.poll_upload(cx, &mut Incoming { conn, body }).is_ready() {
            exchange.stop_upload();
        }
        while !self.over {
            let room = self.conn.poll_room(cx).map_err(Failed::Io)?;
            if self.patience.poll(cx, room.is_ready()).is_ready() {
                return Poll::Ready(Err(Failed::Visitor));
            }
            ready!(room);
            match self.exchange.poll_download(cx) {
                Poll::Ready(Ok(piece)) if self.fits(&piece) => self.write(piece),
                Poll::Ready(Ok(_)) => {
                    debug!("an answer is longer or shorter than it says");
                    return Poll::Ready(Err(Failed::Answer(self.framing)));
                }
                Poll::Ready(Err(error)) => {
                    debug!(%error, "an answer broke off");
                    return Poll::Ready(Err(Failed::Answer(self.framing)));
                }
                Poll::Pending => {
                    let _ = self.conn.poll_flush(cx).map_err(Failed::Io)?;
                    if self.body.is_over() && self.conn.poll_left(cx).is_ready() {
                        return Poll::Ready(Err(Failed::Visitor));
                    }
                    return Poll::Pending;
                }
            }
        }
        let flushed = self.conn.poll_flush(cx).map_err(Failed::Io)?;
        if self.patience.poll(cx, flushed.is_ready()).is_ready() {
            return Poll::Ready(Err(Failed::Visitor));
        }
        flushed.map(Ok)
    }

    fn fits(&mut self, piece: &Option<Piece>) -> bool {
        let data = match piece {
            Some(Piece::Data(data)) => data.len() as u64,
            _ => return self.framing != Framing::Plain || self.left == 0,
        };
        let left = self.left.checked_sub(data);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    fn write(&mut self, piece: Option<Piece>) {
        match (piece, self.framing) {
            (Some(Piece::Data(_)), Framing::None | Framing::Empty) => {}
            (Some(Piece::Data(data)), Framing::Chunked) => self.conn.write_chunk(data),
            (Some(Piece::Data(data)), _) => self.conn.write(data),
            (Some(Piece::Trailers(fields)), Framing::Chunked) if self.trailers => {
                self.over = true;
                self.conn.write_last_chunk(fields.iter());
            }
            (_, framing) => {
                self.over = true;
                if framing == Framing::Chunked {
                    self.conn.write_last_chunk(std::iter::empty());
                }
            }
        }
    }
}

/// A request's head, freed of what belongs to the connection.
fn asked(
    visitor: &Visitor,
    id: RequestId,
    line: RequestLine,
    length: Length,
) -> Result<Asked, ProxyError> {
    let RequestLine { method, target, minor, mut fields } = line;
    ingress::check_method(&method)?;
    let (target, authority) = split_target(&method, &target)?;
    if minor == 1 && !fields.contains("host") {
        return Err(ProxyError::BadHost);
    }
    let authority = super::router::authority(authority.as_ref(), &fields);
    let authority = authority.ok_or(ProxyError::BadHost)?;
    // What is behind such a head may not be what the head says, so it switches nothing.
    let bodyless = length == Length::Exact(0);
    let upgrade = headers::upgrade_token(&fields).filter(|_| minor == 1 && bodyless).cloned();
    let came = forwarded::settle(visitor, &mut fields, &authority);
    let version = if minor == 1 { HttpVersion::HttpVersion11 } else { HttpVersion::HttpVersion10 };
    Ok(Asked {
        id,
        head: RequestHead { method, target, authority, version, fields },
        upgrade: upgrade.unwrap_or_default(),
        length: match length {
            Length::Exact(length) => Some(length),
            Length::Chunked | Length::ToTheEnd => None,
        },
        came,
    })
}

/// The target in origin form, and the authority of its absolute form (RFC 9112, section 3.2).
fn split_target(method: &Bytes, target: &Bytes) -> Result<(Bytes, Option<Bytes>), ProxyError> {
    if target.starts_with(b"/") || (target == "*" && method == "OPTIONS") {
        return Ok((target.clone(), None));
    }
    let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| {
        target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    let scheme = scheme.ok_or(ProxyError::BadRequest("the target is neither a path nor a URL"))?;
    let rest = target.slice(scheme.len()..);
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = (rest.slice(..end), rest.slice(end..));
    let path = match path.first() {
        Some(b'/') => path,
        None if method == "OPTIONS" => Bytes::from_static(b"*"),
        _ => [b"/", &path[..]].concat().into(),
    };
    Ok((path, Some(authority)))
}

fn keeps_alive(line: &RequestLine) -> bool {
    match line.minor {
        0 => line.fields.has_token("connection", "keep-alive"),
        _ => !line.fields.has_token("connection", "close"),
    }
}

fn put_connection(manner: &Manner, out: &mut bytes::BytesMut) {
    match (manner.keep_alive, manner.minor) {
        (false, _) => put_field(b"Connection", b"close", out),
        (true, 0) => put_field(b"Connection", b"keep-alive", out),
        _ => {}
    }
}
