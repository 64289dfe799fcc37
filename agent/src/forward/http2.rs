//! One request to a local server over HTTP/2, and the answer back.

use std::{
    future::{Future as _, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Method, Uri, uri::PathAndQuery};
use tokio::time::{Sleep, sleep};
use uniroute_proto::{head, v1::UpstreamErrorKind};
use uniroute_shared::{
    headers::{self, Framing},
    http2::{Incoming, Outgoing},
    message::{Fields, Source as _},
    session::Sender,
    stream::{BodySender, FrameReader, OnDrop, SendError, StreamBody},
};

use super::{ForwardError, MAX_INFORMATIONAL, Request, refusal, room};
use crate::{
    inspect::{Tap, Tapped},
    upstream::{Scheme, Upstream, UpstreamError},
};

/// A request that has a place on the connection.
pub(super) struct Exchange<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) upstream: &'a Upstream,
    pub(super) requests: SendRequest<Bytes>,
}

/// When the answer's head has to be there: it is waited for from the request's end on.
struct Due {
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What comes back before the body.
enum Reply {
    Informational(http::Response<()>),
    Final(http::Response<h2::RecvStream>),
}

impl Exchange<'_> {
    /// `told` hears the answer's status. Dropping it takes the request back.
    pub(super) async fn run(
        mut self,
        sender: &mut Sender,
        reader: &mut Option<FrameReader>,
        timeout: Option<Duration>,
        told: impl FnOnce(u16),
    ) -> Result<(), ForwardError> {
        let failed = |error: &h2::Error| ForwardError::from(self.upstream.failed_http2(error));
        let bodyless = self.request.body.is_none();
        let head = self.head()?;
        let (mut answer, stream) =
            self.requests.send_request(head, bodyless).map_err(|e| failed(&e))?;
        let tap = self.request.tap;
        let mut upload = Upload {
            tap,
            out: Outgoing::new(stream, bodyless),
            body: reader
                .take()
                .filter(|_| !bodyless)
                .map(|reader| StreamBody::new(reader, OnDrop::Stop)),
        };
        let mut due = Due { limit: timeout, timer: None };
        let mut informational = 0;
        let answer = loop {
            let reply =
                poll_fn(|cx| self.poll_reply(cx, sender, &mut upload, &mut answer, &mut due));
            match reply.await? {
                Reply::Final(answer) => break answer,
                Reply::Informational(head) => {
                    informational += 1;
                    if informational > MAX_INFORMATIONAL {
                        let error = self.upstream.bad_answer("too many informational answers");
                        return Err(error.into());
                    }
                    let mut fields = Fields::from_map(head.headers());
                    headers::to_next_hop(&mut fields);
                    room(sender).await?;
                    let status = head.status().as_u16();
                    let frame = head::response(status, b"", || fields.iter(), false);
                    if let Some(tap) = tap {
                        tap.informed(&frame);
                    }
                    sender.send(frame, false)?;
                }
            }
        };
        let (parts, body) = answer.into_parts();
        told(parts.status.as_u16());
        let mut fields = Fields::from_map(&parts.headers);
        headers::to_next_hop(&mut fields);
        let framing = Framing::of(&fields).map_err(|why| self.upstream.bad_answer(why))?;
        let mut body = Incoming::new(body);
        let end = body.is_over();
        let status = parts.status.as_u16();
        let frame = head::response(status, b"", || fields.iter(), end);
        self.request.answered(status, &fields, &frame, None);
        sender.send(frame, end)?;
        if end {
            return Ok(());
        }
        let mut sending = BodySender::new(framing.length);
        poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = upload.poll(cx) {
                return Poll::Ready(Err(error));
            }
            let mut body = Tapped { inner: &mut body, tap };
            sending.poll_send(cx, sender, &mut body).map_err(|error| match error {
                SendError::Stream(error) => error.into(),
                SendError::Body(error) => ForwardError::Broken(error.to_string()),
            })
        })
        .await
    }

    fn head(&self) -> Result<http::Request<()>, ForwardError> {
        let wrong = |why| refusal(UpstreamErrorKind::BadRequest, why);
        let mut fields = self.request.fields.clone();
        let host = fields.get("host").cloned().unwrap_or_default();
        fields.remove("host");
        let scheme = match self.upstream.target().scheme {
            Scheme::Https => "https",
            _ => "http",
        };
        let target = PathAndQuery::from_maybe_shared(self.request.target.clone());
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(&host[..])
            .path_and_query(target.map_err(|_| wrong("the target can't be one of HTTP/2"))?)
            .build();
        let mut head = http::Request::new(());
        *head.uri_mut() = uri.map_err(|_| wrong("the authority can't be one of HTTP/2"))?;
        *head.method_mut() = Method::from_bytes(&self.request.method)
            .map_err(|_| wrong("the method is no token"))?;
        *head.version_mut() = http::Version::HTTP_2;
        *head.headers_mut() = fields.to_map();
        Ok(head)
    }

    fn poll_reply(
        &self,
        cx: &mut Context<'_>,
        sender: &mut Sender,
        upload: &mut Upload<'_>,
        answer: &mut ResponseFuture,
        due: &mut Due,
    ) -> Poll<Result<Reply, ForwardError>> {
        if let Poll::Ready(error) = sender.poll_reset(cx) {
            return Poll::Ready(Err(error.into()));
        }
        if let Poll::Ready(Err(error)) = upload.poll(cx) {
            return Poll::Ready(Err(error));
        }
        if let Poll::Ready(Some(Ok(head))) = answer.poll_informational(cx) {
            return Poll::Ready(Ok(Reply::Informational(head)));
        }
        if let Poll::Ready(answer) = Pin::new(answer).poll(cx) {
            let answer = answer.map(Reply::Final);
            return Poll::Ready(answer.map_err(|error| self.upstream.failed_http2(&error).into()));
        }
        if upload.body.is_none()
            && let Some(limit) = due.limit.take()
        {
            due.timer = Some(Box::pin(sleep(limit)));
        }
        match &mut due.timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| {
                let message = format!("{} gave no answer in time", self.upstream.target());
                let kind = UpstreamErrorKind::ResponseTimeout;
                Err(UpstreamError { kind, message }.into())
            }),
            None => Poll::Pending,
        }
    }
}

/// The request's body on its way out.
struct Upload<'a> {
    out: Outgoing,
    body: Option<StreamBody>,
    tap: Option<&'a Tap>,
}

impl Upload<'_> {
    /// Ready when it is over, or the local server wants no more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ForwardError>> {
        while let Some(body) = &mut self.body {
            if ready!(self.out.poll_room(cx)).is_err() {
                self.body = None;
                break;
            }
            let piece = ready!(body.poll_piece(cx)).map_err(ForwardError::Aborted)?;
            if let Some(tap) = self.tap {
                tap.sending(piece.as_ref());
            }
            if self.out.send(piece).is_err() || self.out.is_over() {
                self.body = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}
