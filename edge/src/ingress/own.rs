//! The edge's own host: agents come in at `/tunnel`, people and programs at `/api` and `/ws`. Bodies
//! and answers there are short, and held whole; the API itself runs apart from the workers, so that
//! nothing it does slows a visitor.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, Version, header};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tracing::error;
use uniroute_proto::{TUNNEL_PATH, v1::HttpVersion};
use uniroute_shared::{
    carrier::upgrade,
    message::{Piece, Source},
};

use super::{error::ProxyError, proxy::Asked, visitor::Visitor};
use crate::{
    Shared,
    api::{self, Peer},
    watch::{Knock, Watcher},
};

/// A body has to be here after this long.
const BODY: Duration = Duration::from_secs(30);
/// Bytes of it.
const MAX_BODY: usize = 1024 * 1024;
/// Where the API is.
const API: &[u8] = b"/api/";
/// Where live updates are.
const WATCH: &[u8] = b"/ws/";

/// What is at a path of the edge's own host.
pub(super) enum Own {
    /// An agent's connection, and the answer that lets it in.
    Agent(Response<Bytes>, OwnedSemaphorePermit),
    /// The API.
    Api,
    /// Live updates.
    Watch,
}

/// Who answers a request for the edge itself.
///
/// # Errors
/// [`ProxyError`] when nobody does, or no agent is let in now.
pub(super) fn find(edge: &Shared, asked: &Asked) -> Result<Own, ProxyError> {
    let path = asked.head.path();
    if path.starts_with(API) {
        return Ok(Own::Api);
    }
    if path.starts_with(WATCH) {
        return Ok(Own::Watch);
    }
    if path != TUNNEL_PATH.as_bytes() || asked.head.version == HttpVersion::HttpVersion2 {
        return Err(ProxyError::NotFound);
    }
    if edge.is_stopping() {
        return Err(ProxyError::Draining);
    }
    let request = request(asked, ());
    let answer = upgrade::response(&request).map_err(|e| ProxyError::BadUpgrade(e.to_string()))?;
    let place = edge.session_place().ok_or(ProxyError::SessionLimit)?;
    Ok(Own::Agent(answer, place))
}

/// The API's answer.
///
/// # Errors
/// [`ProxyError`] when the body is none that anybody would read.
pub(super) async fn answer<S: Source>(
    visitor: &Visitor,
    asked: &Asked,
    body: &mut S,
) -> Result<Response<Bytes>, ProxyError> {
    let edge = &visitor.edge;
    let body = timeout(BODY, whole(asked, body)).await.map_err(|_| ProxyError::BodyTimeout)??;
    let peer = Peer { address: asked.address(visitor), secure: asked.scheme(visitor) == "https" };
    let request = request(asked, body);
    let edge = Arc::clone(edge);
    let answering = edge.background.clone().spawn(async move {
        let api = edge.api.get().ok_or(ProxyError::Draining)?;
        Ok::<_, ProxyError>(api.answer(request, peer).await)
    });
    let mut answer = answering.await.map_err(|fault| {
        error!(%fault, "a call of the API has failed");
        ProxyError::Internal
    })??;
    complete(asked, &mut answer);
    Ok(answer)
}

fn complete(asked: &Asked, answer: &mut Response<Bytes>) {
    let length = HeaderValue::from(answer.body().len());
    let headers = answer.headers_mut();
    if asked.head.method != "HEAD" || !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    headers.entry(header::DATE).or_insert_with(super::page::date);
}

/// Lets somebody in who wants to be told what happens; else the inner error is the answer.
///
/// # Errors
/// [`ProxyError`] when nobody is let in now.
pub(super) async fn watch(
    visitor: &Visitor,
    asked: &Asked,
) -> Result<Result<Watcher, Response<Bytes>>, ProxyError> {
    let edge = &visitor.edge;
    if edge.is_stopping() {
        return Err(ProxyError::Draining);
    }
    let host = asked.came.as_ref().and_then(|came| came.host.as_ref());
    let host = String::from_utf8_lossy(host.unwrap_or(&asked.head.authority));
    let knock = Knock {
        request: request(asked, ()),
        peer: asked.address(visitor),
        origin: format!("{}://{host}", asked.scheme(visitor)),
    };
    let edge = Arc::clone(edge);
    let opening = edge.background.clone().spawn(async move { Watcher::admit(&edge, &knock).await });
    let opened = opening.await.map_err(|fault| {
        error!(%fault, "letting a watcher in has failed");
        ProxyError::Internal
    })?;
    Ok(opened.map_err(|failure| {
        let mut page = api::refusal(failure, &asked.id);
        complete(asked, &mut page);
        page
    }))
}

async fn whole<S: Source>(asked: &Asked, body: &mut S) -> Result<Bytes, ProxyError> {
    if asked.length.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(ProxyError::OwnBodyTooLarge);
    }
    let mut whole = BytesMut::new();
    loop {
        match poll_fn(|cx| body.poll_piece(cx)).await {
            Ok(Some(Piece::Data(data))) if whole.len() + data.len() > MAX_BODY => {
                return Err(ProxyError::OwnBodyTooLarge);
            }
            Ok(Some(Piece::Data(data))) => whole.extend_from_slice(&data),
            Ok(Some(Piece::Trailers(_)) | None) => return Ok(whole.freeze()),
            Err(_) => return Err(ProxyError::Body("it broke off".into())),
        }
        if body.is_over() {
            return Ok(whole.freeze());
        }
    }
}

/// The request with the fields of its connection that it was freed of.
fn request<B>(asked: &Asked, body: B) -> Request<B> {
    let head = &asked.head;
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(&head.method).unwrap_or_default();
    *request.version_mut() = match head.version {
        HttpVersion::HttpVersion11 => Version::HTTP_11,
        HttpVersion::HttpVersion2 => Version::HTTP_2,
        _ => Version::HTTP_10,
    };
    // What can't be one is at no path that there is.
    let target = std::str::from_utf8(&head.target).ok().and_then(|target| target.parse().ok());
    *request.uri_mut() = target.unwrap_or_default();
    let mut fields = head.fields.clone();
    if !asked.upgrade.is_empty() {
        fields.push("connection", "upgrade");
        fields.push("upgrade", asked.upgrade.clone());
    }
    *request.headers_mut() = fields.to_map();
    request
}
