//! One request over one stream: head out, body out, head in, body in. No task of its own: whoever
//! has the visitor's request polls all of it, and dropping it cancels all of it.
//!
//! A request that finds no agent waits for one ([`super::hold`]). One whose stream died before any
//! answer goes out again where that is safe: its method is idempotent, or the agent says that it
//! did nothing with it; and what was sent of its body is still here.

use std::{
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use tracing::debug;
use uniroute_proto::{codec, head, v1};
use uniroute_shared::{
    code::Code,
    deadline::Deadline,
    headers::{self, Framing},
    id::RequestId,
    message::{Fields, Piece, RequestHead, Source},
    policy::Refusal,
    session::{Receiver, Sender},
    stream::{
        BodySender, FrameReader, OnDrop, ReadError, SendError, StreamBody, checked, is_value,
    },
};

use super::{
    error::ProxyError,
    forwarded::{self, Forwarded},
    guard::InForce,
    hold,
    record::Record,
    visitor::Visitor,
};
use crate::{
    limits::bandwidth::Pacer,
    registry::{Target, Tunnel},
};

/// A request that waits this long for its answer's first byte makes the edge see whether the agent
/// is still there.
const PROBE_AFTER: Duration = Duration::from_secs(3);
/// A body that is not whole has to go on after this long, while no answer has begun (T04).
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a request is sent at most.
const TRIES: usize = 4;
/// What is kept of a request's body to send it again, in bytes.
const KEPT: usize = 64 * 1024;

/// A visitor's request, as far as its head says it.
pub(crate) struct Asked {
    pub(crate) id: RequestId,
    /// Without the fields of the visitor's connection.
    pub(crate) head: RequestHead,
    /// The token of a request to switch protocols, empty otherwise.
    pub(crate) upgrade: Bytes,
    /// The body's length where the head says it; `Some(0)`: there is none.
    pub(crate) length: Option<u64>,
    /// Where it came from by the word of a trusted proxy, which is in the head already; `None`: from
    /// the connection's peer.
    pub(crate) came: Option<Box<Forwarded>>,
}

impl Asked {
    /// The stream's first message. It has the last word on what the request is: an agent sees
    /// nothing else of it.
    fn open_frame(
        &self,
        visitor: &Visitor,
        tunnel: &Tunnel,
        end: bool,
        guard: Option<&InForce>,
    ) -> Result<Bytes, ProxyError> {
        let head = &self.head;
        if head.fields.len() > head::MAX_HEADERS - ADDED {
            return Err(ProxyError::HeadTooLarge);
        }
        let told = self.came.as_ref().map(|came| came.visitor.to_string());
        let address = told.as_deref().unwrap_or(&visitor.address);
        let via = match head.version {
            v1::HttpVersion::HttpVersion10 => &b"1.0 uniroute"[..],
            v1::HttpVersion::HttpVersion2 => b"2 uniroute",
            _ => b"1.1 uniroute",
        };
        let standard =
            [visitor.node.as_bytes(), &head.authority, b"\";proto=", visitor.scheme.as_bytes()];
        let standard = standard.concat();
        let added: [(&[u8], &[u8]); ADDED] = [
            (b"Via", via),
            (b"X-Forwarded-For", visitor.address.as_bytes()),
            (b"X-Forwarded-Proto", visitor.scheme.as_bytes()),
            (b"X-Forwarded-Host", &head.authority),
            (b"X-Forwarded-Port", forwarded::port(&head.authority, visitor.scheme)),
            (b"Forwarded", &standard),
        ];
        // A trusted proxy's word is in the head, with what belongs to it.
        let added = if self.came.is_some() { &added[..1] } else { &added };
        let added = added.iter().copied();
        let Some(guard) = guard else {
            let open = self.open(head, visitor, address, tunnel, 0);
            return Ok(open.frame(|| head.fields.iter().chain(added.clone()), end));
        };
        let mut head = head.clone();
        for (name, value) in added {
            head.fields.push(Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
        }
        guard.rewrite(&mut head);
        if head.fields.len() > head::MAX_HEADERS {
            return Err(ProxyError::HeadTooLarge);
        }
        let open = self.open(&head, visitor, address, tunnel, guard.route());
        Ok(open.frame(|| head.fields.iter(), end))
    }

    /// The visitor's address.
    pub(crate) fn address(&self, visitor: &Visitor) -> IpAddr {
        self.came.as_ref().map_or(visitor.peer.ip().to_canonical(), |came| came.visitor)
    }

    /// How the visitor asked for it: `http` or `https`.
    pub(crate) fn scheme(&self, visitor: &Visitor) -> &'static str {
        self.came.as_ref().map_or(visitor.scheme, |came| came.proto)
    }

    fn open<'a>(
        &'a self,
        head: &'a RequestHead,
        visitor: &'a Visitor,
        address: &'a str,
        tunnel: &'a Tunnel,
        route: u32,
    ) -> head::HttpOpen<'a> {
        head::HttpOpen {
            tunnel_id: tunnel.id.as_bytes(),
            request_id: self.id.as_bytes(),
            visitor: address,
            traceparent: head.fields.get("traceparent").map_or(&[], |value| value),
            method: &head.method,
            target: &head.target,
            authority: &head.authority,
            scheme: self.scheme(visitor),
            version: head.version,
            upgrade: &self.upgrade,
            route,
        }
    }
}

/// Fields that the edge adds to a request.
const ADDED: usize = 6;

/// What comes back, in order: any number of informational answers, then a final one.
pub(crate) enum Reply {
    Informational(u16, Bytes, Fields),
    Final(Answer),
}

/// The head of the final answer; its body follows.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// HTTP/1's phrase, where it is not the usual one.
    pub(crate) reason: Bytes,
    /// Without the fields of the local server's connection.
    pub(crate) fields: Fields,
    /// What the head says; a body may still be over at once.
    pub(crate) length: Option<u64>,
    /// There is no body.
    pub(crate) end: bool,
}

/// A request under way.
pub(crate) struct Exchange {
    /// What will be written down of it; whose it is, and for which tunnel.
    record: Record,
    /// The stream's first message, as long as it may have to be sent again.
    open: Bytes,
    kind: Kind,
    way: Way,
    upload: Upload,
    download: StreamBody,
    /// What was sent of the body; `None`: more than is kept.
    kept: Option<Kept>,
    tries: usize,
    clock: Clock,
    /// Since when there is room for more of the body and the visitor sends nothing.
    starved: Option<Instant>,
    /// How long it waited for an agent, and since when it does.
    held: (Duration, Option<Instant>),
    /// The tunnel's policy, where it has one.
    guard: Option<Box<InForce>>,
    /// Its way through the user's bandwidth, up and down, where that is limited.
    pacers: Option<Box<Pacers>>,
}

#[derive(Default)]
struct Pacers {
    up: Pacer,
    down: Pacer,
}

/// What the request's head says of how it goes on.
struct Kind {
    length: Option<u64>,
    switches: bool,
    to_head: bool,
    idempotent: bool,
}

impl Kind {
    /// All of the request is in its head.
    fn is_bodyless(&self) -> bool {
        self.length == Some(0) && !self.switches
    }
}

/// How a request gets to its agent.
enum Way {
    /// There is none now, and it waits for one.
    Held(Pin<Box<dyn Future<Output = Result<hold::Found, ProxyError>> + Send>>),
    /// Over a stream of this target.
    Stream(Arc<Target>, FrameReader),
    /// The answer's head is here, or there will be none.
    Over,
}

enum Upload {
    /// For the answer to an upgrade.
    Waiting(Sender),
    Sending(Sender, BodySender),
    Over,
}

struct Clock {
    began: Instant,
    /// When the request was out whole: its answer is due from then on.
    sent: Instant,
    probed: bool,
    /// The timer does not know yet.
    unset: bool,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { began: now, sent: now, probed: false, unset: true }
    }
}

impl Exchange {
    /// Sends `asked` to the agent that serves `tunnel`: over what was `found`, or as soon as there is
    /// one.
    ///
    /// # Errors
    /// [`ProxyError`] when that can't be, or too many wait already.
    pub(crate) fn begin(
        visitor: &Arc<Visitor>,
        tunnel: Arc<Tunnel>,
        found: Option<hold::Found>,
        asked: &Asked,
    ) -> Result<Self, ProxyError> {
        Self::start(visitor, tunnel, found, asked, None, None)
    }

    /// The same under the tunnel's policy. `whole`: the body, if it was read already.
    ///
    /// # Errors
    /// As [`Exchange::begin`].
    pub(crate) fn begin_guarded(
        visitor: &Arc<Visitor>,
        tunnel: Arc<Tunnel>,
        found: Option<hold::Found>,
        asked: &Asked,
        guard: Box<InForce>,
        whole: Option<Bytes>,
    ) -> Result<Self, ProxyError> {
        Self::start(visitor, tunnel, found, asked, Some(guard), whole)
    }

    fn start(
        visitor: &Arc<Visitor>,
        tunnel: Arc<Tunnel>,
        found: Option<hold::Found>,
        asked: &Asked,
        guard: Option<Box<InForce>>,
        whole: Option<Bytes>,
    ) -> Result<Self, ProxyError> {
        let kind = Kind {
            length: asked.length,
            switches: !asked.upgrade.is_empty(),
            to_head: asked.head.method == "HEAD",
            idempotent: headers::is_idempotent(&asked.head.method),
        };
        let open = asked.open_frame(visitor, &tunnel, kind.is_bodyless(), guard.as_deref())?;
        let limited = tunnel.account.bandwidth.is_limited();
        let clock = Clock::start();
        let entered = tunnel.enter();
        let mut record = Record::new(Arc::clone(visitor), tunnel, asked, clock.began);
        match entered {
            Ok(place) => record.under_way = place,
            Err(code) => {
                record.failed(code);
                return Err(ProxyError::Access(code));
            }
        }
        let mut exchange = Self {
            record,
            open,
            kind,
            way: Way::Over,
            upload: Upload::Over,
            download: StreamBody::empty(),
            kept: Some(Kept::of(whole)),
            tries: 0,
            clock,
            starved: None,
            held: (Duration::ZERO, None),
            guard,
            pacers: limited.then(Box::default),
        };
        let sent = match found {
            Some(found) => exchange.send(found),
            None => exchange.hold(),
        };
        match sent {
            Ok(()) => Ok(exchange),
            Err(error) => {
                exchange.record.failed(error.code());
                Err(error)
            }
        }
    }

    /// Over a stream that was just opened.
    fn send(&mut self, (target, mut sender, receiver): hold::Found) -> Result<(), ProxyError> {
        let judged = match &self.guard {
            None => target.policy.is_none(),
            Some(guard) => guard.is_of(&target),
        };
        if !judged {
            debug!("the tunnel came back with other settings than the request was judged by");
            return Err(ProxyError::Offline);
        }
        self.tries += 1;
        self.clock = Clock { began: self.clock.began, ..Clock::start() };
        let bodyless = self.kind.is_bodyless();
        let (held, since) = &mut self.held;
        *held += since.take().map_or(Duration::ZERO, |since| self.clock.sent - since);
        let open = match target.wants_times {
            false => self.open.clone(),
            true => self.open_with_times(),
        };
        sender.send(open, bodyless)?;
        self.upload = match () {
            () if bodyless => Upload::Over,
            () if self.kind.switches => Upload::Waiting(sender),
            () => Upload::Sending(sender, BodySender::new(self.kind.length)),
        };
        if let Some(kept) = &mut self.kept {
            kept.again = 0;
        }
        self.way = Way::Stream(target, FrameReader::new(receiver));
        Ok(())
    }

    /// The stream's first message, for an agent that wants to know how long the request was here.
    fn open_with_times(&self) -> Bytes {
        let came = self.guard.as_ref().and_then(|guard| guard.came).unwrap_or(self.clock.began);
        let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let edge_us = us(self.clock.sent - came).max(1);
        head::with_times(&self.open, edge_us, us(self.held.0), self.kind.is_bodyless())
    }

    fn hold(&mut self) -> Result<(), ProxyError> {
        self.upload = Upload::Over;
        self.starved = None;
        self.held.1 = Some(Instant::now());
        let edge = Arc::clone(&self.record.visitor.edge);
        let place = hold::Place::take(&edge, &self.record.tunnel, self.open.len())?;
        self.way = Way::Held(Box::pin(hold::wait(edge, Arc::clone(&self.record.tunnel), place)));
        Ok(())
    }

    /// The next reply. `body` is the visitor's; `timer` is set and looked at here until the final
    /// answer.
    ///
    /// # Errors
    /// [`ProxyError`]; the request is over then.
    pub(crate) fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        timer: &mut Deadline,
        body: &mut impl Source,
    ) -> Poll<Result<Reply, ProxyError>> {
        let reply = ready!(self.poll_next_reply(cx, timer, body));
        if let Err(error) = &reply {
            self.record.failed(error.code());
        }
        Poll::Ready(reply)
    }

    fn poll_next_reply(
        &mut self,
        cx: &mut Context<'_>,
        timer: &mut Deadline,
        body: &mut impl Source,
    ) -> Poll<Result<Reply, ProxyError>> {
        if let Poll::Ready(code) = self.poll_over(cx) {
            return Poll::Ready(Err(ProxyError::Access(code)));
        }
        loop {
            if let Way::Held(found) = &mut self.way {
                let found = ready!(found.as_mut().poll(cx))?;
                self.send(found)?;
            }
            if std::mem::take(&mut self.clock.unset) {
                timer.set(self.clock.sent + PROBE_AFTER);
            }
            match ready!(self.poll_stream(cx, timer, body)) {
                Err(error) if self.may_repeat(&error) => {
                    debug!(%error, tries = self.tries, "a request goes out again");
                    if self.hold().is_err() {
                        return Poll::Ready(Err(error));
                    }
                }
                Ok(reply) => {
                    if matches!(reply, Reply::Final(_)) {
                        timer.clear();
                        self.record.tunnel.answered(self.clock.began.elapsed());
                    }
                    return Poll::Ready(Ok(reply));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_stream(
        &mut self,
        cx: &mut Context<'_>,
        timer: &mut Deadline,
        body: &mut impl Source,
    ) -> Poll<Result<Reply, ProxyError>> {
        if let Poll::Ready(Err(SendError::Body(error))) = self.poll_upload(cx, body) {
            return Poll::Ready(Err(match error {
                BodyError::TooLarge(refusal) => refusal.into(),
                BodyError::Broken(error) => ProxyError::Body(error.to_string()),
            }));
        }
        loop {
            let Way::Stream(target, reader) = &mut self.way else {
                return Poll::Ready(Err(ProxyError::Offline));
            };
            let Poll::Ready(reply) = reader.poll_payload("StreamReply", cx) else {
                let (target, uploading) = (Arc::clone(target), self.is_uploading());
                let starved = self.starved;
                return self.clock.poll(cx, timer, &target, uploading, starved).map(Err);
            };
            let (reply, end) = reply?;
            match head::read::stream_reply(reply).map_err(ReadError::from)?.reply {
                Some(v1::stream_reply::Reply::Head(head)) => {
                    return Poll::Ready(self.answer(head, end).map(Reply::Final));
                }
                Some(v1::stream_reply::Reply::Informational(head)) if !end => {
                    return Poll::Ready(informational(head));
                }
                Some(v1::stream_reply::Reply::Error(error)) => {
                    return Poll::Ready(Err(ProxyError::Upstream(error)));
                }
                None if !end => {}
                _ => return Poll::Ready(Err(ReadError::Truncated.into())),
            }
        }
    }

    /// Nothing came back, and it is certain that nothing is done twice; or it may be.
    fn may_repeat(&self, error: &ProxyError) -> bool {
        let stopping = self.record.visitor.edge.is_stopping();
        let whole = self.kept.is_some() && self.tries < TRIES && !stopping;
        whole
            && match error {
                ProxyError::Stream(_)
                | ProxyError::Read(ReadError::Stream(_) | ReadError::Truncated) => {
                    self.kind.idempotent
                }
                ProxyError::Upstream(error) => error.kind() == v1::UpstreamErrorKind::Unavailable,
                _ => false,
            }
    }

    /// Sends what there is of the body. Ready when no more of it is wanted.
    ///
    /// # Errors
    /// When the body broke off; or the stream did, which shows where its answer is read.
    pub(crate) fn poll_upload<S: Source>(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut S,
    ) -> Poll<Result<(), SendError<BodyError<S::Error>>>> {
        // Without room for more he is not asked, and it is not for him to go on.
        let since = self.starved.take();
        let Upload::Sending(sender, sending) = &mut self.upload else { return Poll::Ready(Ok(())) };
        let (kept, starved, record) = (&mut self.kept, &mut self.starved, &mut self.record);
        let guard = self.guard.as_deref_mut();
        let pacer = self.pacers.as_deref_mut().map(|pacers| &mut pacers.up);
        let mut body = Keeping { body, kept, record, guard, since, starved, pacer };
        let result = ready!(sending.poll_send(cx, sender, &mut body));
        self.upload = Upload::Over;
        self.clock.sent = Instant::now();
        if let Some(guard) = &mut self.guard {
            guard.uploaded();
        }
        Poll::Ready(result)
    }

    pub(crate) fn is_uploading(&self) -> bool {
        matches!(self.upload, Upload::Sending(..))
    }

    /// No more of the visitor's body is sent.
    pub(crate) fn stop_upload(&mut self) {
        self.upload = Upload::Over;
    }

    fn answer(&mut self, head: v1::ResponseHead, end: bool) -> Result<Answer, ProxyError> {
        let status = u16::try_from(head.status).ok().filter(|status| {
            (200..1000).contains(status) || (*status == 101 && self.kind.switches)
        });
        let status = status.ok_or_else(|| ProxyError::Answer(format!("status {}", head.status)))?;
        let reason = reason(head.reason)?;
        let mut fields = checked("ResponseHead", head.headers)?;
        headers::to_next_hop(&mut fields);
        let framing = Framing::of(&fields).map_err(|why| ProxyError::Answer(why.into()))?;
        let bodyless = self.kind.to_head || matches!(status, 204 | 304);
        if end && !bodyless && framing.length.is_some_and(|length| length > 0) {
            return Err(ProxyError::Answer(
                "its Content-Length promises a body, and there is none".into(),
            ));
        }
        self.record.answered(status, &fields);
        self.open = Bytes::new();
        self.kept = None;
        let guard = self.guard.as_deref_mut();
        let without = end || bodyless || status == 101;
        let compressed = guard.is_some_and(|guard| guard.answered(status, &mut fields, without));
        if status == 101 {
            return Ok(Answer { status, reason, fields, length: None, end: false });
        }
        self.decline_switch();
        if let Way::Stream(_, reader) = std::mem::replace(&mut self.way, Way::Over)
            && !end
        {
            self.download = StreamBody::new(reader, OnDrop::Cancel);
        }
        let length = framing.length.filter(|_| !compressed);
        Ok(Answer { status, reason, fields, length, end: end || bodyless })
    }

    /// The upgrade was declined; the request had no body. An agent that has sent its whole answer by
    /// now has ended the stream, and that is no fault.
    fn decline_switch(&mut self) {
        if let Upload::Waiting(sender) = &mut self.upload {
            let last = codec::header(codec::Kind::Data, true, 0);
            let _ = sender.send_framed(last, Bytes::new(), true);
            self.upload = Upload::Over;
        }
    }

    /// The next piece of the answer's body; `None` when it is over.
    ///
    /// # Errors
    /// When it broke off.
    pub(crate) fn poll_download(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Piece>, ReadError>> {
        let Self { download, guard, pacers, .. } = self;
        if let Some(pacers) = pacers {
            ready!(pacers.down.poll(cx));
        }
        let piece = ready!(match guard {
            None => download.poll_piece(cx),
            Some(guard) => guard.poll_piece(cx, |cx| download.poll_piece(cx)),
        });
        if let Ok(Some(Piece::Data(data))) = &piece {
            self.record.sent(data.len());
            if let Some(pacers) = pacers {
                pacers.down.passed(&self.record.tunnel.account.bandwidth, data.len());
            }
        }
        Poll::Ready(piece)
    }

    /// Ready when the request has taken longer than the tunnel's policy allows: it is over then.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<&'static Code> {
        match &mut self.guard {
            Some(guard) => guard.poll_over(cx),
            None => Poll::Pending,
        }
    }

    /// The stream as raw bytes, after an answer 101; and where those are counted.
    pub(crate) fn into_raw(self) -> Option<(Sender, (Receiver, Bytes), Record)> {
        match (self.upload, self.way) {
            (Upload::Waiting(sender), Way::Stream(_, reader)) => {
                Some((sender, reader.into_raw(), self.record))
            }
            _ => None,
        }
    }
}

fn informational(head: v1::ResponseHead) -> Result<Reply, ProxyError> {
    let status = u16::try_from(head.status).ok();
    let status = status.filter(|status| matches!(status, 100 | 102..=199));
    let status = status.ok_or_else(|| ProxyError::Answer(format!("status {}", head.status)))?;
    let reason = reason(head.reason)?;
    let mut fields = checked("ResponseHead", head.headers)?;
    headers::to_next_hop(&mut fields);
    Ok(Reply::Informational(status, reason, fields))
}

/// A reason phrase that can be written as it is (T10).
fn reason(reason: Bytes) -> Result<Bytes, ProxyError> {
    match is_value(&reason) {
        true => Ok(reason),
        false => Err(ProxyError::Answer("its reason phrase holds a forbidden byte".into())),
    }
}

impl Clock {
    /// First the agent is probed, then the request is given up.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        timer: &mut Deadline,
        target: &Target,
        uploading: bool,
        starved: Option<Instant>,
    ) -> Poll<ProxyError> {
        while timer.poll(cx).is_ready() {
            if !std::mem::replace(&mut self.probed, true) {
                target.session.probe.notify_one();
            }
            let now = Instant::now();
            if starved.is_some_and(|since| now >= since + BODY_TIMEOUT) {
                return Poll::Ready(ProxyError::BodyTimeout);
            }
            match target.response_timeout {
                Some(limit) if !uploading && now >= self.sent + limit => {
                    return Poll::Ready(ProxyError::Timeout);
                }
                Some(limit) if !uploading => timer.set(self.sent + limit),
                // Looked at again later: an upload that still goes on is no reason to give up.
                _ => timer.set(now + PROBE_AFTER),
            }
        }
        Poll::Pending
    }
}

/// The first bytes of a body, for as long as they may have to be sent again.
#[derive(Default)]
struct Kept {
    pieces: Vec<Bytes>,
    bytes: usize,
    /// Pieces of these that this try has sent.
    again: usize,
}

impl Kept {
    /// Of a body that was read already: all of it, however long.
    fn of(whole: Option<Bytes>) -> Self {
        let pieces: Vec<Bytes> = whole.into_iter().filter(|whole| !whole.is_empty()).collect();
        Self { bytes: pieces.iter().map(Bytes::len).sum(), pieces, again: 0 }
    }
}

/// Why a visitor's body is not sent to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError<E> {
    #[error("{0}")]
    Broken(E),
    #[error("{0}")]
    TooLarge(Refusal),
}

/// A visitor's body, counted, and kept as far as it is short.
struct Keeping<'a, S> {
    body: &'a mut S,
    kept: &'a mut Option<Kept>,
    record: &'a mut Record,
    guard: Option<&'a mut InForce>,
    pacer: Option<&'a mut Pacer>,
    /// See [`Exchange::starved`], as it was and as it becomes.
    since: Option<Instant>,
    starved: &'a mut Option<Instant>,
}

impl<S: Source> Source for Keeping<'_, S> {
    type Error = BodyError<S::Error>;

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Self::Error>> {
        if let Some(kept) = self.kept
            && let Some(piece) = kept.pieces.get(kept.again)
        {
            kept.again += 1;
            return Poll::Ready(Ok(Some(Piece::Data(piece.clone()))));
        }
        if let Some(pacer) = &mut self.pacer {
            ready!(pacer.poll(cx));
        }
        let Poll::Ready(piece) = self.body.poll_piece(cx) else {
            *self.starved = Some(self.since.unwrap_or_else(Instant::now));
            return Poll::Pending;
        };
        self.since = None;
        let piece = piece.map_err(BodyError::Broken);
        match &piece {
            Ok(Some(Piece::Data(data))) => {
                if let Some(guard) = &mut self.guard {
                    guard.received(data.len()).map_err(BodyError::TooLarge)?;
                }
                self.record.received(data.len());
                if let Some(pacer) = &mut self.pacer {
                    pacer.passed(&self.record.tunnel.account.bandwidth, data.len());
                }
                self.keep(data);
            }
            // Behind trailers a second try would find nothing.
            Ok(Some(Piece::Trailers(_))) => *self.kept = None,
            Ok(None) | Err(_) => {}
        }
        Poll::Ready(piece)
    }

    fn is_over(&self) -> bool {
        let sent = self.kept.as_ref().is_none_or(|kept| kept.again == kept.pieces.len());
        sent && self.body.is_over()
    }
}

impl<S> Keeping<'_, S> {
    fn keep(&mut self, data: &Bytes) {
        if let Some(kept) = self.kept {
            kept.bytes += data.len();
            if kept.bytes > KEPT {
                *self.kept = None;
            } else {
                kept.pieces.push(data.clone());
                kept.again += 1;
            }
        }
    }
}
