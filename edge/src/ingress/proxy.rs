//! One request over one stream: head out, body out, head in, body in. No task of its own: the
//! visitor's connection polls all of it, and dropping it cancels all of it.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, UPGRADE},
    request::Parts,
};
use http_body::{Body as _, Frame, SizeHint};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tracing::debug;
use uniroute_proto::{head, v1};
use uniroute_shared::{
    copy,
    headers::{EndToEnd, content_length, upgrade_token},
    id::RequestId,
    session::Sender,
    stream::{FrameReader, OnDrop, ReadError, SendError, StreamBody, header_map, send_body},
};

use super::{error::ProxyError, router, socket::VisitorSocket, visitor::Visitor};
use crate::{
    Shared,
    registry::{Target, Tunnel},
};

/// A request that waits this long for its answer's first byte makes the edge see whether the agent
/// is still there.
const PROBE_AFTER: Duration = Duration::from_secs(3);

/// How visitors reach the edge's own listener.
const SCHEME: &str = "http";

type Upload = Pin<Box<dyn Future<Output = Result<(), SendError<hyper::Error>>> + Send>>;

/// Sends `request` to `target` and returns the answer as soon as its head is there.
pub(crate) async fn forward(
    visitor: &Arc<Visitor>,
    target: Arc<Target>,
    id: RequestId,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody>, ProxyError> {
    target.request();
    let began = Instant::now();
    let upgrade = upgrade_of(&mut request);
    let (parts, body) = request.into_parts();
    let bodyless = body.is_end_stream() && upgrade.is_none();
    let (mut sender, receiver) = target.session.carried.open()?;
    sender.send(
        open_frame(&target, &visitor.address, id, &parts, upgrade.as_ref(), bodyless)?,
        bodyless,
    )?;

    let mut exchange = Exchange {
        reader: FrameReader::new(receiver),
        upload: None,
        visitor: Arc::clone(visitor),
        probed: false,
        sent_at: began,
        target,
    };
    let mut idle_sender = None;
    if upgrade.is_some() {
        idle_sender = Some(sender);
    } else if !bodyless {
        let counted = Counted { body, tunnel: Arc::clone(&exchange.target.tunnel) };
        exchange.upload = Some(Box::pin(async move { send_body(&mut sender, counted).await }));
    }
    visitor.look_at(Some(began + PROBE_AFTER));
    let (head, end) = poll_fn(|cx| exchange.poll_head(cx)).await?;
    visitor.look_at(None);
    exchange.target.tunnel.answered(began.elapsed());
    if head.status == 101 {
        return switch(&visitor.edge, exchange, idle_sender, upgrade, &head);
    }
    if let Some(mut sender) = idle_sender {
        // The upgrade was declined; the request had no body. An agent that has sent its whole
        // answer by now has ended the stream, and that is no fault.
        let last = uniroute_proto::codec::header(uniroute_proto::codec::Kind::Data, true, 0);
        let _ = sender.send_framed(last, Bytes::new(), true);
    }
    answer(exchange, &parts.method, &head, end)
}

fn open_frame(
    target: &Target,
    visitor: &str,
    id: RequestId,
    parts: &Parts,
    upgrade: Option<&(HeaderValue, OnUpgrade)>,
    end: bool,
) -> Result<Bytes, ProxyError> {
    // Found before, or the request would not be here.
    let authority = router::authority(&parts.uri, &parts.headers).unwrap_or_default();
    let open = head::HttpOpen {
        tunnel_id: target.tunnel.id.as_bytes(),
        request_id: id.as_bytes(),
        visitor,
        traceparent: parts
            .headers
            .get("traceparent")
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default(),
        method: parts.method.as_str(),
        target: parts.uri.path_and_query().map_or("/", |target| target.as_str()),
        authority,
        scheme: SCHEME,
        version: match parts.version {
            Version::HTTP_10 => v1::HttpVersion::HttpVersion10,
            _ => v1::HttpVersion::HttpVersion11,
        },
        upgrade: upgrade.map_or(&[], |(token, _)| token.as_bytes()),
        route: 0,
    };
    let added: [(&[u8], &[u8]); 3] = [
        (b"x-forwarded-for", visitor.as_bytes()),
        (b"x-forwarded-proto", SCHEME.as_bytes()),
        (b"x-forwarded-host", authority.as_bytes()),
    ];
    if parts.headers.len() + added.len() > head::MAX_HEADERS {
        return Err(ProxyError::BadRequest("too many header fields"));
    }
    let fields = EndToEnd::of_visitor(&parts.headers);
    Ok(open.frame(|| fields.iter().chain(added), end))
}

/// The token of an upgrade request and the connection that will be upgraded.
fn upgrade_of(request: &mut Request<Incoming>) -> Option<(HeaderValue, OnUpgrade)> {
    if request.version() != Version::HTTP_11 || !request.body().is_end_stream() {
        return None;
    }
    let token = upgrade_token(request.headers())?.clone();
    Some((token, hyper::upgrade::on(request)))
}

/// A request under way, until its answer's head is there.
struct Exchange {
    reader: FrameReader,
    upload: Option<Upload>,
    visitor: Arc<Visitor>,
    probed: bool,
    /// When the request was out whole: its answer is due from then on.
    sent_at: Instant,
    target: Arc<Target>,
}

impl Exchange {
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(v1::ResponseHead, bool), ProxyError>> {
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(result) = upload.as_mut().poll(cx)
        {
            self.upload = None;
            self.sent_at = Instant::now();
            if let Err(SendError::Body(_)) = result {
                return Poll::Ready(Err(ProxyError::VisitorLeft));
            }
        }
        loop {
            let reply = match self.reader.poll_message::<v1::StreamReply>("StreamReply", cx) {
                Poll::Ready(reply) => reply?,
                Poll::Pending => return self.poll_timer().map(Err),
            };
            match reply {
                (v1::StreamReply { reply: Some(v1::stream_reply::Reply::Head(head)) }, end) => {
                    return Poll::Ready(Ok((head, end)));
                }
                (v1::StreamReply { reply: Some(v1::stream_reply::Reply::Error(error)) }, _) => {
                    return Poll::Ready(Err(ProxyError::Upstream(error)));
                }
                // Informational answers are not passed on yet, unknown ones never.
                (_, false) => {}
                (_, true) => return Poll::Ready(Err(ReadError::Truncated.into())),
            }
        }
    }

    /// First the agent is probed, then the request is given up.
    fn poll_timer(&mut self) -> Poll<ProxyError> {
        if self.visitor.is_due() {
            if !self.probed {
                self.probed = true;
                self.target.session.probe.notify_one();
            }
            let now = Instant::now();
            let due = match self.target.response_timeout {
                Some(limit) if self.upload.is_none() && now >= self.sent_at + limit => {
                    return Poll::Ready(ProxyError::Timeout);
                }
                Some(limit) if self.upload.is_none() => self.sent_at + limit,
                // Looked at again later: an upload that still goes on is no reason to give up.
                _ => now + PROBE_AFTER,
            };
            self.visitor.look_at(Some(due));
        }
        Poll::Pending
    }
}

fn answer(
    exchange: Exchange,
    method: &Method,
    head: &v1::ResponseHead,
    end: bool,
) -> Result<Response<ResponseBody>, ProxyError> {
    let status = status(head)?;
    let headers = header_map("ResponseHead", &head.headers)?;
    let length = content_length(&headers)
        .map_err(|()| ProxyError::Answer("its Content-Length can't be read".into()))?;
    let bodyless = *method == Method::HEAD || matches!(status.as_u16(), 204 | 304);
    if end && !bodyless && length.is_some_and(|length| length > 0) {
        return Err(ProxyError::Answer(
            "its Content-Length promises a body, and there is none".into(),
        ));
    }
    let body = if end {
        StreamBody::empty()
    } else {
        StreamBody::new(exchange.reader, length, OnDrop::Cancel)
    };
    let tunnel = Arc::clone(&exchange.target.tunnel);
    let mut response =
        Response::new(ResponseBody::Stream { body, upload: exchange.upload, tunnel });
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn status(head: &v1::ResponseHead) -> Result<StatusCode, ProxyError> {
    let status = u16::try_from(head.status).ok().filter(|status| (200..1000).contains(status));
    status
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| ProxyError::Answer(format!("status {}", head.status)))
}

/// The local server switched protocols: so does the edge, and from then on it only copies. Not a
/// byte of the visitor's goes out before (T01).
fn switch(
    edge: &Arc<Shared>,
    exchange: Exchange,
    sender: Option<Sender>,
    upgrade: Option<(HeaderValue, OnUpgrade)>,
    head: &v1::ResponseHead,
) -> Result<Response<ResponseBody>, ProxyError> {
    let (Some(sender), Some((token, upgraded))) = (sender, upgrade) else {
        return Err(ProxyError::Answer("it switches protocols, which nobody asked for".into()));
    };
    let mut headers = header_map("ResponseHead", &head.headers)?;
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, token);
    let from_stream = exchange.reader.into_raw();
    let stop = edge.stop.clone();
    edge.tasks.spawn(async move {
        let upgraded = match upgraded.await {
            Ok(upgraded) => upgraded,
            Err(error) => return debug!(%error, "the visitor left before the upgrade"),
        };
        let copied = async {
            match upgraded.downcast::<TokioIo<VisitorSocket>>() {
                Ok(parts) => {
                    let io = parts.io.into_inner().into_parts(parts.read_buf);
                    copy::splice(io, sender, from_stream).await
                }
                Err(upgraded) => {
                    copy::splice((TokioIo::new(upgraded), Bytes::new()), sender, from_stream).await
                }
            }
        };
        tokio::select! {
            copied = copied => if let Err(error) = copied {
                debug!(%error, "an upgraded connection broke off");
            },
            () = stop.cancelled() => {}
        }
    });
    let mut response = Response::new(ResponseBody::Full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    Ok(response)
}

/// A visitor's request body, counted.
struct Counted {
    body: Incoming,
    tunnel: Arc<Tunnel>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        count(&frame, &self.tunnel.bytes_in);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a visitor gets: a page of ours, or an answer as it comes.
pub(crate) enum ResponseBody {
    /// All there is.
    Full(Bytes),
    /// From the stream; a request body that is still under way is sent meanwhile.
    Stream { body: StreamBody, upload: Option<Upload>, tunnel: Arc<Tunnel> },
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        match &mut *self {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream { body, upload, tunnel } => {
                if let Some(sending) = upload
                    && sending.as_mut().poll(cx).is_ready()
                {
                    *upload = None;
                }
                let frame = Pin::new(body).poll_frame(cx);
                count(&frame, &tunnel.bytes_out);
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream { body, .. } => body.size_hint(),
        }
    }
}

fn count<E>(frame: &Poll<Option<Result<Frame<Bytes>, E>>>, counter: &std::sync::atomic::AtomicU64) {
    if let Poll::Ready(Some(Ok(frame))) = frame
        && let Some(data) = frame.data_ref()
    {
        counter.fetch_add(data.len() as u64, Ordering::Relaxed);
    }
}
