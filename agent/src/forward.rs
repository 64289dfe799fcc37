//! Each stream of the edge to its local server, and the answer back. One task a stream.

use std::{
    future::Future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::time::Instant;
use tracing::debug;
use uniroute_proto::{
    codec::{self, CodecError},
    head,
    v1::{self, UpstreamErrorKind, stream_open::Kind, stream_reply::Reply},
};
use uniroute_shared::{
    copy,
    headers::{self, Framing},
    http1::{BodyReader, Incoming, Length, ReadFault, StatusLine},
    message::Fields,
    session::{Receiver, Sender, StreamError},
    stream::{BodySender, FrameReader, OnDrop, ReadError, SendError, StreamBody, checked, is_name},
};

mod http2;

use crate::{
    Event, TunnelKind, Tunnels,
    files::{FileAnswer, Files},
    hints::{self, Beginning, Watched},
    inspect::{Capture, Replay, Side, Tap, Tapped},
    slot::Shared,
    sockets,
    tunnel::{Open, Served, Service, Tunnel},
    upstream::{
        Connection, Head, NoAnswer, Upload, Upstream, UpstreamError, UpstreamIo, pool::Turn,
    },
};

/// Informational answers to one request.
const MAX_INFORMATIONAL: usize = 64;

/// The edge sends a stream's first message at once; later than this it never comes.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a stream's work ended early.
#[derive(Debug, thiserror::Error)]
enum ForwardError {
    /// The visitor left, or the session ended: nobody waits for an answer.
    #[error("cancelled: {0}")]
    Cancelled(#[from] StreamError),
    /// The visitor's body broke off: he has left.
    #[error("cancelled: {0}")]
    Aborted(ReadError),
    /// No answer, and the visitor is told.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The answer broke off; the visitor sees that.
    #[error("the answer broke off: {0}")]
    Broken(String),
}

/// Serves one stream of an edge to its end.
/// `rtt_us`: the session's round trip as it was measured last.
pub(crate) fn serve(
    shared: Arc<Shared>,
    sender: Sender,
    receiver: Receiver,
    rtt_us: u32,
) -> impl Future<Output = ()> {
    run(shared, sender, receiver, rtt_us, None)
}

/// The same for a request that is repeated.
pub(crate) fn replay(
    shared: Arc<Shared>,
    sender: Sender,
    receiver: Receiver,
    replay: Box<Replay>,
) -> impl Future<Output = ()> {
    run(shared, sender, receiver, 0, Some(replay))
}

/// The first message, and its bytes if they are wanted.
async fn opening(
    reader: &mut FrameReader,
    wanted: bool,
) -> Result<(v1::StreamOpen, bool, Bytes), ReadError> {
    let frame = std::future::poll_fn(|cx| reader.poll_frame(cx)).await?;
    let frame = frame.ok_or(ReadError::Truncated)?;
    if frame.kind != codec::Kind::Message {
        return Err(CodecError::Unexpected { expected: "StreamOpen", got: frame.kind }.into());
    }
    let bytes = if wanted { frame.payload.clone() } else { Bytes::new() };
    Ok((head::read::stream_open(frame.payload)?, frame.end, bytes))
}

async fn run(
    shared: Arc<Shared>,
    mut sender: Sender,
    receiver: Receiver,
    rtt_us: u32,
    replay: Option<Box<Replay>>,
) {
    let mut reader = FrameReader::new(receiver);
    let inspector = shared.inspector.as_ref();
    let opening = tokio::time::timeout(OPEN_TIMEOUT, opening(&mut reader, inspector.is_some()));
    let (open, end, bytes) = match opening.await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return debug!(%error, "a stream began wrongly"),
        Err(_) => return debug!("a stream began with silence"),
    };
    // The edge names one of this agent's tunnels, never a target (T23).
    let tunnels = &shared.tunnels;
    let tunnel = match &replay {
        None => tunnels.by_id(&open.tunnel_id),
        Some(replay) => Some(Arc::clone(&replay.tunnel)),
    };
    let (tunnel, kind) = match (tunnel, open.kind) {
        (Some(tunnel), Some(kind)) if tunnel.kind != TunnelKind::Http => {
            // Kept out of every request's future.
            return Box::pin(sockets::serve(tunnel, kind, sender, reader)).await;
        }
        request => request,
    };
    let mut reader = Some(reader);
    let mut capture = None;
    // Also while a connection that was upgraded lasts.
    let mut under_way = None;
    let result = match (&tunnel, kind) {
        (Some(tunnel), Some(Kind::Http(http))) => {
            let served = tunnel.served();
            let began = Instant::now();
            if let (Some(inspector), Some(key)) = (inspector, &served.inspect) {
                let of = replay.as_deref().map(|replay| &replay.of[..]);
                let began = (began.into_std(), rtt_us);
                capture = Capture::begin(inspector, key, &bytes, began, of);
            }
            drop(bytes);
            let tap = capture.as_ref().map(Capture::tap);
            let open = under_way.insert(tunnel.begin());
            let request = StreamRequest { http, end, tunnel, served: &served, open, began, tap };
            request.forward(tunnels, &mut sender, &mut reader).await
        }
        (None, _) => {
            Err(refusal(UpstreamErrorKind::UnknownTunnel, "this agent serves no such tunnel"))
        }
        (_, _) => {
            Err(refusal(UpstreamErrorKind::BadRequest, "this kind of stream is unknown here"))
        }
    };
    match result {
        Ok(None) => {
            if let Some(capture) = capture {
                capture.end(None);
            }
        }
        // Rare and long: kept out of every other request's future.
        Ok(Some(switched)) => Box::pin(switched.copy(sender, capture)).await,
        Err(ForwardError::Upstream(error)) => {
            if let Some(capture) = capture {
                capture.end(Some(error.with_code()));
            }
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
        Err(error) => {
            debug!(%error, "a request ended early");
            if let Some(capture) = capture {
                capture.end(Some(error.to_string()));
            }
        }
    }
}

fn refusal(kind: UpstreamErrorKind, message: &str) -> ForwardError {
    UpstreamError { kind, message: message.to_owned() }.into()
}

/// A request as it came in over its stream.
struct StreamRequest<'a> {
    http: v1::HttpOpen,
    /// It has no body.
    end: bool,
    tunnel: &'a Tunnel,
    /// What is done with it, whatever the settings say from now on.
    served: &'a Served,
    /// It counts as under way there.
    open: &'a Open<'a>,
    began: Instant,
    /// Somebody may want to look at it.
    tap: Option<&'a Tap>,
}

impl StreamRequest<'_> {
    async fn forward(
        self,
        tunnels: &Tunnels,
        sender: &mut Sender,
        reader: &mut Option<FrameReader>,
    ) -> Result<Option<Switched>, ForwardError> {
        let Self { http, end, tunnel, served, open, began, tap } = self;
        let (route, response_timeout) = (http.route, served.settings.response_timeout);
        // A number of this agent's own, never a target (T23).
        let service = served.service(route).ok_or_else(|| {
            refusal(UpstreamErrorKind::BadRequest, "this tunnel has no such route")
        })?;
        let request = Request::new(http, end, tap)?;
        let mut turn = match service {
            Service::Server(pool) => Arc::clone(pool).turn(),
            Service::Files(files) => {
                request.asked(|| files.label().into());
                let told = |status| {
                    if route == 0 {
                        tunnel.report(None);
                    }
                    open.answered(status);
                    request.tell(tunnels, tunnel, status, began);
                };
                // These are kept out of the future of everyday requests, which is moved about.
                let done = Box::pin(request.show(files, sender, told)).await;
                return done.map(|()| None).inspect_err(|error| {
                    let Some(error) = error.upstream() else { return };
                    tunnel.unanswered();
                    if route == 0 {
                        tunnel.report(Some(error));
                    }
                });
            }
        };
        request.asked(|| Arc::clone(turn.upstream().label()));
        let failed = |turn: &Turn, error: &ForwardError| {
            if let Some(error) = error.upstream() {
                turn.unanswered(error);
                tunnel.unanswered();
                tunnels.tell_health_of(tunnel);
            }
        };
        if request.upgrade.is_empty() && turn.upstream().wants_http2(request.is_grpc()) {
            let place = Box::pin(request.place_on_http2(&mut turn, sender)).await;
            if let Some((requests, reused)) = place.inspect_err(|error| failed(&turn, error))? {
                let began_there = Instant::now();
                if let Some(tap) = request.tap {
                    tap.connected(reused, turn.upstream().label());
                }
                let told = |status| {
                    if turn.answered(request.body.is_none().then(|| began_there.elapsed())) {
                        tunnels.tell_health_of(tunnel);
                    }
                    open.answered(status);
                    request.tell(tunnels, tunnel, status, began);
                };
                let upstream = turn.upstream();
                let exchange = http2::Exchange { request: &request, upstream, requests };
                let running = exchange.run(sender, reader, response_timeout, told);
                let done = Box::pin(running).await;
                return done.map(|()| None).inspect_err(|error| failed(&turn, error));
            }
        }
        let exchanged = request.exchange(response_timeout, &mut turn, sender, reader).await;
        let Answer { mut connection, upload, line, sent } =
            exchanged.inspect_err(|error| failed(&turn, error))?;
        let bodyless = request.body.is_none();
        let answered = (bodyless || request.tap.is_some()).then(Instant::now);
        if turn.answered(answered.filter(|_| bodyless).map(|answered| answered - sent)) {
            tunnels.tell_health_of(tunnel);
        }
        open.answered(line.status);
        request.tell(tunnels, tunnel, line.status, began);
        let upstream = turn.upstream();
        let StatusLine { status, minor, reason, mut fields } = line;
        let closes = match minor {
            0 => !fields.has_token("connection", "keep-alive"),
            _ => fields.has_token("connection", "close"),
        };
        let length = headers::answer_length(status, &fields, minor, request.method == "HEAD")
            .map_err(|why| upstream.bad_answer(why))?;
        headers::to_next_hop(&mut fields);
        if status == 101 {
            let reader = reader.take().filter(|_| !request.upgrade.is_empty());
            let reader = reader.ok_or_else(|| {
                upstream.bad_answer("it switches protocols, which nobody asked for")
            })?;
            let frame = head::response(101, &reason, || fields.iter(), false);
            request.answered(101, &fields, &frame, answered);
            sender.send(frame, false)?;
            let (io, rest) = (connection.into_raw(), reader.into_raw());
            return Ok(Some(Switched { io, rest, turn }));
        }
        // An upgrade that was declined: an answer like any other.
        if let Some(reader) = reader.take().filter(|reader| !reader.ended()) {
            reader.stop();
        }
        let end = length == Length::Exact(0);
        let frame = head::response(status, &reason, || fields.iter(), end);
        request.answered(status, &fields, &frame, answered);
        sender.send(frame, end)?;
        let mut download = Download::new(&mut connection, upload, length);
        if !end {
            let tap = request.tap;
            let may_hint = hints::may_be(status, length) && !tunnel.is_hinted();
            let mut beginning = match may_hint && hints::is_text(&fields) {
                false => None,
                true => Some(Beginning::default()),
            };
            let passing = |cx: &mut Context<'_>| download.poll(cx, sender, tap, beginning.as_mut());
            std::future::poll_fn(passing).await?;
            if let Some(beginning) = beginning {
                let rewritten = served.settings.policy.host_mode() != v1::HostMode::Unspecified;
                let host = request.fields.get("host").map_or(&b""[..], |host| host);
                let hint = beginning.hint(status, &request.target, host, rewritten);
                if let Some(hint) = hint {
                    tunnels.hint(tunnel, hint);
                }
            }
        }
        if download.leaves_clean() && !closes && length != Length::ToTheEnd {
            upstream.put_back(connection);
        }
        Ok(None)
    }
}

/// Both sides have switched protocols: from here on bytes are copied.
struct Switched {
    io: (UpstreamIo, Bytes),
    rest: (Receiver, Bytes),
    /// It is under way at its local server until it is over.
    turn: Turn,
}

impl Switched {
    async fn copy(self, sender: Sender, capture: Option<Capture>) {
        let Self { io: (io, early), rest, turn: _turn } = self;
        let tap = capture.as_ref().map(Capture::tap);
        if let Some(tap) = tap {
            tap.passed(Side::Upstream, &early);
        }
        let copied = match tap {
            None => copy::splice((io, early), sender, rest).await,
            tap => copy::splice((Tapped { inner: io, tap }, early), sender, rest).await,
        };
        if let Err(error) = &copied {
            debug!(%error, "an upgraded connection broke off");
        }
        if let Some(capture) = capture {
            capture.end(copied.err().map(|error| error.to_string()));
        }
    }
}

impl ForwardError {
    fn upstream(&self) -> Option<&UpstreamError> {
        match self {
            Self::Upstream(error) => Some(error),
            _ => None,
        }
    }
}

/// A request, checked: whatever an edge sends, the local server gets one request and no more.
struct Request<'a> {
    method: Bytes,
    target: Bytes,
    fields: Fields,
    upgrade: Bytes,
    /// `None`: it has no body; otherwise its length, where that is known.
    body: Option<Option<u64>>,
    tap: Option<&'a Tap>,
}

/// A final answer's head, and what it came on.
struct Answer {
    connection: Box<Connection>,
    upload: Upload,
    line: StatusLine,
    /// When the request was sent.
    sent: Instant,
}

impl<'a> Request<'a> {
    fn new(http: v1::HttpOpen, end: bool, tap: Option<&'a Tap>) -> Result<Self, ForwardError> {
        let wrong = |why: &str| refusal(UpstreamErrorKind::BadRequest, why);
        if !is_name(&http.method) {
            return Err(wrong("the method is no token"));
        }
        let visible = http.target.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
        if !visible || !(http.target.starts_with(b"/") || http.target == "*") {
            return Err(wrong("the target is no path"));
        }
        if !http.upgrade.is_empty() && !headers::is_protocol(&http.upgrade) {
            return Err(wrong("the upgrade is no token"));
        }
        if http.authority.is_empty() || !http.authority.iter().all(u8::is_ascii_graphic) {
            return Err(wrong("the authority is no host"));
        }
        let mut fields =
            checked("StreamOpen", http.headers).map_err(|error| wrong(&error.to_string()))?;
        headers::to_next_hop(&mut fields);
        // One routing key: what the edge routed by is what the local server sees (T02).
        fields.set("Host", http.authority);
        let framing = Framing::of(&fields).map_err(wrong)?;
        if end && framing.length.is_some_and(|length| length > 0) {
            return Err(wrong("Content-Length promises a body, and there is none"));
        }
        let upgrade = if end { Bytes::new() } else { http.upgrade };
        let bodyless = end || !upgrade.is_empty();
        Ok(Self {
            method: http.method,
            target: http.target,
            fields,
            upgrade,
            body: (!bodyless).then_some(framing.length),
            tap,
        })
    }

    /// It is known which local server it goes to.
    fn asked(&self, label: impl FnOnce() -> Arc<str>) {
        if let Some(tap) = self.tap {
            tap.asked(&self.method, &self.fields, label());
        }
    }

    /// The answer's head, which came at `at` or now, goes out to the edge as `frame`.
    fn answered(&self, status: u16, fields: &Fields, frame: &[u8], at: Option<Instant>) {
        if let Some(tap) = self.tap {
            tap.answered(status, fields, frame, at.unwrap_or_else(Instant::now).into_std());
        }
    }

    /// The local server has answered.
    fn tell(&self, tunnels: &Tunnels, tunnel: &Tunnel, status: u16, began: Instant) {
        debug!(
            target: "uniroute::request",
            tunnel = tunnel.key,
            method = text(&self.method),
            // Without its query, in which there are secrets at times.
            path = text(self.target.split(|byte| *byte == b'?').next().unwrap_or_default()),
            status,
            duration_ms = began.elapsed().as_secs_f64() * 1e3,
            "request"
        );
        tunnels.request_event(|| Event::Request {
            tunnel: tunnel.key.clone(),
            method: text(&self.method).to_owned(),
            path: text(&self.target).to_owned(),
            status,
            duration: began.elapsed(),
        });
    }

    /// Answered from a folder. What a visitor sends as a body is not wanted.
    async fn show(
        &self,
        files: &Files,
        sender: &mut Sender,
        told: impl FnOnce(u16),
    ) -> Result<(), ForwardError> {
        let answering = files.answer(&self.method, &self.target, &self.fields);
        let FileAnswer { status, fields, mut body } = cancellable(sender, answering).await??;
        told(status);
        let end = body.is_empty();
        let frame = head::response(status, b"", || fields.iter(), end);
        self.answered(status, &fields, &frame, None);
        sender.send(frame, end)?;
        let length = fields.get("content-length").and_then(|text| text_number(text));
        let mut sending = BodySender::new(length.filter(|_| !end));
        if !end {
            let mut body = Tapped { inner: &mut body, tap: self.tap };
            std::future::poll_fn(|cx| sending.poll_send(cx, sender, &mut body)).await.map_err(
                |error| match error {
                    SendError::Stream(error) => error.into(),
                    SendError::Body(error) => ForwardError::Broken(error.to_string()),
                },
            )?;
        }
        Ok(())
    }

    /// gRPC needs HTTP/2 (its calls go both ways at once, and end with trailers).
    fn is_grpc(&self) -> bool {
        headers::is_grpc(&self.fields) && self.fields.contains("te")
    }

    fn head(&self) -> Head<'_> {
        Head {
            method: &self.method,
            target: &self.target,
            fields: &self.fields,
            upgrade: &self.upgrade,
            chunked: self.body == Some(None),
        }
    }

    /// A place on a connection with HTTP/2, and whether that was used before; `None`: it goes out with
    /// HTTP/1.1.
    async fn place_on_http2(
        &self,
        turn: &mut Turn,
        sender: &mut Sender,
    ) -> Result<Option<(SendRequest<Bytes>, bool)>, ForwardError> {
        loop {
            match cancellable(sender, turn.upstream().http2()).await? {
                Ok(place) => {
                    turn.connected();
                    return Ok(place);
                }
                Err(error) => cancellable(sender, turn.failed(error)).await??,
            }
        }
    }

    /// A connection, and whether it was used before. `fresh`: it must not have been.
    async fn connection(
        &self,
        turn: &mut Turn,
        sender: &mut Sender,
        (fresh, repeatable): (bool, bool),
    ) -> Result<(Box<Connection>, bool), ForwardError> {
        loop {
            let upstream = turn.upstream();
            let connected = match fresh {
                false => cancellable(sender, upstream.connection(repeatable)).await?,
                true => {
                    let connected = cancellable(sender, upstream.connect()).await?;
                    connected.map(|connection| (connection, false))
                }
            };
            match connected {
                Ok(connected) => {
                    turn.connected();
                    return Ok(connected);
                }
                // Rare, and long: kept out of every request's future.
                Err(error) => Box::pin(cancellable(sender, turn.failed(error))).await??,
            }
        }
    }

    /// Sends it and waits for the final answer's head. A body is sent once; without one a request
    /// can be sent again, so that a pooled connection that turns out to be closed costs nothing but
    /// a new one.
    async fn exchange(
        &self,
        response_timeout: Option<Duration>,
        turn: &mut Turn,
        sender: &mut Sender,
        reader: &mut Option<FrameReader>,
    ) -> Result<Answer, ForwardError> {
        let repeatable = self.body.is_none() && headers::is_idempotent(&self.method);
        // One that switches protocols does not come back.
        let mut fresh = !self.upgrade.is_empty();
        let mut upload = None;
        loop {
            let (mut connection, reused) =
                self.connection(turn, sender, (fresh, repeatable)).await?;
            if let Some(tap) = self.tap {
                tap.connected(reused, turn.upstream().label());
            }
            let sent = Instant::now();
            let upstream = turn.upstream();
            let mut sending = upload.take().unwrap_or_else(|| self.upload(reader));
            match self
                .answer(upstream, sender, &mut connection, &mut sending, response_timeout)
                .await?
            {
                Ok(line) => return Ok(Answer { connection, upload: sending, line, sent }),
                Err(ReadFault::Io(_) | ReadFault::Cut) if reused && repeatable => fresh = true,
                Err(fault) => return Err(upstream.failed(&fault).into()),
            }
            upload = Some(sending);
        }
    }

    fn upload(&self, reader: &mut Option<FrameReader>) -> Upload {
        match (self.body, reader.take()) {
            (Some(length), Some(reader)) => {
                let body = StreamBody::new(reader, OnDrop::Stop);
                Upload::new(body, length.is_none(), self.tap.cloned())
            }
            (_, other) => {
                *reader = other;
                Upload::none()
            }
        }
    }

    /// Informational answers are passed on as they come (RFC 9110, section 15.2).
    async fn answer(
        &self,
        upstream: &Upstream,
        sender: &mut Sender,
        connection: &mut Connection,
        upload: &mut Upload,
        response_timeout: Option<Duration>,
    ) -> Result<Result<StatusLine, ReadFault>, ForwardError> {
        connection.begin(&self.head(), response_timeout);
        for _ in 0..MAX_INFORMATIONAL {
            let line = match connection.answer(upload, |cx| sender.poll_reset(cx)).await {
                Ok(line) => line,
                Err(NoAnswer::Failed(fault)) => return Ok(Err(fault)),
                Err(NoAnswer::Cancelled(error)) => return Err(error.into()),
                Err(NoAnswer::Aborted(error)) => return Err(ForwardError::Aborted(error)),
                Err(NoAnswer::TimedOut) => {
                    let message = format!("{} gave no answer in time", upstream.target());
                    let kind = UpstreamErrorKind::ResponseTimeout;
                    return Err(UpstreamError { kind, message }.into());
                }
            };
            if !matches!(line.status, 100 | 102..=199) {
                return Ok(Ok(line));
            }
            let mut fields = line.fields;
            headers::to_next_hop(&mut fields);
            room(sender).await?;
            let frame = head::response(line.status, &line.reason, || fields.iter(), false);
            if let Some(tap) = self.tap {
                tap.informed(&frame);
            }
            sender.send(frame, false)?;
        }
        Err(upstream.bad_answer("too many informational answers").into())
    }
}

fn text_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Of a field that [`Request::new`] has found to be text.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
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

/// Waits until the stream takes more, or the visitor leaves.
async fn room(sender: &mut Sender) -> Result<(), StreamError> {
    std::future::poll_fn(|cx| match sender.poll_reset(cx) {
        Poll::Ready(error) => Poll::Ready(Err(error)),
        Poll::Pending => sender.poll_ready(cx),
    })
    .await
}

/// The answer's body on its way to the edge, and the rest of the request's to the local server.
struct Download<'a> {
    connection: &'a mut Connection,
    upload: Upload,
    body: BodyReader,
    sending: BodySender,
}

impl<'a> Download<'a> {
    fn new(connection: &'a mut Connection, upload: Upload, length: Length) -> Self {
        let known = match length {
            Length::Exact(length) => Some(length),
            Length::Chunked | Length::ToTheEnd => None,
        };
        let (body, sending) = (BodyReader::new(length), BodySender::new(known));
        Self { connection, upload, body, sending }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        sender: &mut Sender,
        tap: Option<&Tap>,
        beginning: Option<&mut Beginning>,
    ) -> Poll<Result<(), ForwardError>> {
        let Self { connection, upload, body, sending } = self;
        if let Poll::Ready(Err(error)) = upload.poll(cx, connection) {
            return Poll::Ready(Err(ForwardError::Aborted(error)));
        }
        let mut incoming = Incoming { conn: &mut connection.conn, body };
        let incoming = Tapped { inner: &mut incoming, tap };
        let mut incoming = Watched { inner: incoming, beginning };
        sending.poll_send(cx, sender, &mut incoming).map_err(|error| match error {
            SendError::Stream(error) => error.into(),
            SendError::Body(error) => ForwardError::Broken(error.to_string()),
        })
    }

    /// Whether nothing of either message is left on the connection.
    fn leaves_clean(&self) -> bool {
        let conn = &self.connection.conn;
        self.upload.is_whole() && self.body.is_over() && !conn.has_input() && !conn.has_ended()
    }
}
