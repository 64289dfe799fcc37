//! Each stream of the edge to its local server, and the answer back. One task a stream.

use std::{
    future::Future,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use tracing::debug;
use uniroute_proto::{
    codec, head,
    v1::{self, UpstreamErrorKind, stream_open::Kind, stream_reply::Reply},
};
use uniroute_shared::{
    copy,
    headers::{self, Framing},
    http1::{BodyReader, Incoming, Length, ReadFault, StatusLine},
    message::Fields,
    session::{Receiver, Sender, StreamError},
    stream::{
        BodySender, FrameReader, OnDrop, ReadError, SendError, StreamBody, checked, is_token,
    },
};

mod http2;

use crate::{
    Event, TunnelKind, Tunnels,
    files::{FileAnswer, Files},
    slot::Shared,
    sockets,
    tunnel::{Served, Service, Tunnel},
    upstream::{Connection, Head, NoAnswer, Upload, Upstream, UpstreamError, UpstreamIo},
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

/// Serves one stream to its end.
pub(crate) async fn serve(shared: Arc<Shared>, mut sender: Sender, receiver: Receiver) {
    let mut reader = FrameReader::new(receiver);
    let opening =
        tokio::time::timeout(OPEN_TIMEOUT, reader.message::<v1::StreamOpen>("StreamOpen"));
    let (open, end) = match opening.await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return debug!(%error, "a stream began wrongly"),
        Err(_) => return debug!("a stream began with silence"),
    };
    // The edge names one of this agent's tunnels, never a target (T23).
    let tunnels = &shared.tunnels;
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
            let served = tunnel.served();
            let request = StreamRequest { http, end, tunnel: &tunnel, served: &served };
            let _open = tunnel.begin();
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
struct StreamRequest<'a> {
    http: v1::HttpOpen,
    /// It has no body.
    end: bool,
    tunnel: &'a Tunnel,
    /// What is done with it, whatever the settings say from now on.
    served: &'a Served,
}

impl StreamRequest<'_> {
    async fn forward(
        self,
        tunnels: &Tunnels,
        sender: &mut Sender,
        reader: &mut Option<FrameReader>,
    ) -> Result<Option<Switched>, ForwardError> {
        let began = Instant::now();
        let Self { http, end, tunnel, served } = self;
        let response_timeout = served.settings.response_timeout;
        // A number of this agent's own, never a target (T23).
        let service = served.service(http.route).ok_or_else(|| {
            refusal(UpstreamErrorKind::BadRequest, "this tunnel has no such route")
        })?;
        let request = Request::new(http, end)?;
        let upstream = match service {
            Service::Server(upstream) => upstream,
            Service::Files(files) => {
                let told = |status| request.tell(tunnels, tunnel, status, began);
                // These are kept out of the future of everyday requests, which is moved about.
                let done = Box::pin(request.show(files, sender, told)).await;
                return done.map(|()| None).inspect_err(|error| tunnel.report(error.upstream()));
            }
        };
        if request.upgrade.is_empty() && upstream.wants_http2(request.is_grpc()) {
            let http2 = cancellable(sender, Box::pin(upstream.http2())).await?;
            if let Some(requests) = http2.inspect_err(|error| tunnel.report(Some(error)))? {
                let told = |status| request.tell(tunnels, tunnel, status, began);
                let exchange = http2::Exchange { request: &request, upstream, requests };
                let running = exchange.run(sender, reader, response_timeout, told);
                let done = Box::pin(running).await;
                return done.map(|()| None).inspect_err(|error| tunnel.report(error.upstream()));
            }
        }
        let exchanged = request.exchange(response_timeout, upstream, sender, reader).await;
        let (mut connection, upload, line) =
            exchanged.inspect_err(|error| tunnel.report(error.upstream()))?;
        request.tell(tunnels, tunnel, line.status, began);
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
            sender.send(head::response(101, &reason, || fields.iter(), false), false)?;
            return Ok(Some(Switched { io: connection.into_raw(), rest: reader.into_raw() }));
        }
        // An upgrade that was declined: an answer like any other.
        if let Some(reader) = reader.take().filter(|reader| !reader.ended()) {
            reader.stop();
        }
        let end = length == Length::Exact(0);
        sender.send(head::response(status, &reason, || fields.iter(), end), end)?;
        let mut download = Download::new(&mut connection, upload, length);
        if !end {
            std::future::poll_fn(|cx| download.poll(cx, sender)).await?;
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
struct Request {
    method: Bytes,
    target: Bytes,
    fields: Fields,
    upgrade: Bytes,
    /// `None`: it has no body; otherwise its length, where that is known.
    body: Option<Option<u64>>,
}

type Exchanged = Result<(Box<Connection>, Upload, StatusLine), ForwardError>;

impl Request {
    fn new(http: v1::HttpOpen, end: bool) -> Result<Self, ForwardError> {
        let wrong = |why: &str| refusal(UpstreamErrorKind::BadRequest, why);
        if http.method.is_empty() || !http.method.iter().all(|byte| is_token(*byte)) {
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
        })
    }

    /// The local server has answered.
    fn tell(&self, tunnels: &Tunnels, tunnel: &Tunnel, status: u16, began: Instant) {
        tunnel.report(None);
        debug!(
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
        sender.send(head::response(status, b"", || fields.iter(), end), end)?;
        let length = fields.get("content-length").and_then(|text| text_number(text));
        let mut sending = BodySender::new(length.filter(|_| !end));
        if !end {
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

    /// Sends it and waits for the final answer's head. A body is sent once; without one a request
    /// can be sent again, so that a pooled connection that turns out to be closed costs nothing but
    /// a new one.
    async fn exchange(
        &self,
        response_timeout: Option<Duration>,
        upstream: &Upstream,
        sender: &mut Sender,
        reader: &mut Option<FrameReader>,
    ) -> Exchanged {
        // The edge counts the wait for an answer to a body from the body's end, which is not seen here.
        let limit = response_timeout.filter(|_| self.body.is_none());
        let deadline = limit.map(|limit| Instant::now() + limit);
        let repeatable = self.body.is_none() && headers::is_idempotent(&self.method);
        let (mut connection, reused) = match self.upgrade.is_empty() {
            true => cancellable(sender, upstream.connection(repeatable)).await??,
            // On a connection of its own: it will not come back.
            false => (cancellable(sender, upstream.connect()).await??, false),
        };
        let mut upload = self.upload(reader);
        match self.answer(upstream, sender, &mut connection, &mut upload, deadline).await? {
            Ok(line) => return Ok((connection, upload, line)),
            Err(ReadFault::Io(_) | ReadFault::Cut) if reused && repeatable => {}
            Err(fault) => return Err(upstream.failed(&fault).into()),
        }
        let mut connection = cancellable(sender, upstream.connect()).await??;
        let answered =
            self.answer(upstream, sender, &mut connection, &mut upload, deadline).await?;
        let line = answered.map_err(|fault| upstream.failed(&fault))?;
        Ok((connection, upload, line))
    }

    fn upload(&self, reader: &mut Option<FrameReader>) -> Upload {
        match (self.body, reader.take()) {
            (Some(length), Some(reader)) => {
                Upload::new(StreamBody::new(reader, OnDrop::Stop), length.is_none())
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
        deadline: Option<Instant>,
    ) -> Result<Result<StatusLine, ReadFault>, ForwardError> {
        connection.begin(&self.head(), deadline);
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
    ) -> Poll<Result<(), ForwardError>> {
        let Self { connection, upload, body, sending } = self;
        if let Poll::Ready(Err(error)) = upload.poll(cx, connection) {
            return Poll::Ready(Err(ForwardError::Aborted(error)));
        }
        let mut incoming = Incoming { conn: &mut connection.conn, body };
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
