//! The opening handshake of the WebSocket carrier (RFC 6455, section 4), both ends, as plain heads.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{
        CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
    },
};
use sha1::{Digest, Sha1};
use uniroute_proto::{SUBPROTOCOL, TUNNEL_PATH};

/// Says in an upgrade request which session the connection is to be a lane of, so that the edge can
/// serve it where the session is. It proves nothing and is not needed.
pub const LANE_HEADER: &str = "x-uniroute-lane";

/// Fixed by RFC 6455, section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why an upgrade did not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// The request is no WebSocket upgrade, or lacks something.
    #[error("not a WebSocket upgrade: {0}")]
    NotAnUpgrade(&'static str),
    /// No subprotocol that both sides speak.
    #[error("the subprotocol {SUBPROTOCOL} was not agreed on")]
    Subprotocol,
    /// The server answered with another status.
    #[error("the server answered {0} instead of switching to WebSocket")]
    Status(StatusCode),
    /// The server did not prove that it read the request.
    #[error("the server's Sec-WebSocket-Accept is missing or wrong")]
    Accept,
}

/// The agent's request, and the key to check the answer with. `authority` is the edge's host, with
/// its port if it is not the scheme's own; `lane_of` the session that it is to be a lane of.
///
/// # Errors
/// When `authority` can't be in a header.
pub fn request<B: Default>(
    authority: &str,
    lane_of: Option<&str>,
) -> Result<(Request<B>, String), http::Error> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).expect("the system has a random source");
    let key = STANDARD.encode(nonce);
    let mut request = Request::builder();
    if let Some(session) = lane_of {
        request = request.header(LANE_HEADER, session);
    }
    let request = request
        .method(Method::GET)
        .uri(TUNNEL_PATH)
        .header(HOST, authority)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .header(USER_AGENT, concat!("uniroute/", env!("CARGO_PKG_VERSION")))
        .body(B::default())?;
    Ok((request, key))
}

/// Whether the edge's answer to a request with `key` agrees to the carrier.
///
/// # Errors
/// [`UpgradeError`], naming what is wrong.
pub fn check_response<B>(response: &Response<B>, key: &str) -> Result<(), UpgradeError> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpgradeError::Status(response.status()));
    }
    let headers = response.headers();
    if headers
        .get(SEC_WEBSOCKET_ACCEPT)
        .is_none_or(|v| v.as_bytes() != accept_key(key.as_bytes()).as_bytes())
    {
        return Err(UpgradeError::Accept);
    }
    if headers.get(SEC_WEBSOCKET_PROTOCOL).is_none_or(|v| v != SUBPROTOCOL) {
        return Err(UpgradeError::Subprotocol);
    }
    Ok(())
}

/// The edge's answer that agrees to the carrier.
///
/// # Errors
/// [`UpgradeError`], naming what the request lacks.
pub fn response<A, B: Default>(request: &Request<A>) -> Result<Response<B>, UpgradeError> {
    let headers = request.headers();
    let lacks = |what| Err(UpgradeError::NotAnUpgrade(what));
    if request.method() != Method::GET || request.version() < Version::HTTP_11 {
        return lacks("GET with HTTP/1.1 is needed");
    }
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        return lacks("the headers Connection: Upgrade and Upgrade: websocket are needed");
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        return lacks("Sec-WebSocket-Version must be 13");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if STANDARD.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        return lacks("Sec-WebSocket-Key must be 16 bytes in base64");
    }
    if !has_token(headers, &SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Err(UpgradeError::Subprotocol);
    }
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::try_from(accept_key(key)).expect("base64 is visible ASCII");
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok(response)
}

/// Whether the comma-separated header `name` holds `token`, in any case.
#[must_use]
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// What a server proves with that it read a handshake with `key` (RFC 6455, section 4.2.2).
#[must_use]
pub fn accept_key(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new_with_prefix(key).chain_update(GUID).finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn both_ends_agree() {
        let (mut request, key) = request::<()>("edge.test:8080", None).unwrap();
        let answer = response::<_, ()>(&request).unwrap();
        assert_eq!(check_response(&answer, &key), Ok(()));
        assert_eq!(check_response(&answer, "other"), Err(UpgradeError::Accept));
        assert_eq!(
            check_response(&Response::new(()), &key),
            Err(UpgradeError::Status(StatusCode::OK))
        );
        request
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("uniroute.v9"));
        assert_eq!(response::<_, ()>(&request).unwrap_err(), UpgradeError::Subprotocol);
        request.headers_mut().remove(UPGRADE);
        assert!(matches!(response::<_, ()>(&request), Err(UpgradeError::NotAnUpgrade(_))));
    }
}
