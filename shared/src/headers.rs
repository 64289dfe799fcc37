//! What both ends of a tunnel let through: hop-by-hop fields, our own fields and what would blur
//! where a message ends never pass (RFC 9110, section 7.6.1; RFC 9112, section 6).

use http::{
    HeaderMap, HeaderName,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
};

/// Fields that say where a request came from; whatever a visitor sends in them is dropped, and the
/// edge writes its own.
pub const FORWARDED: [&str; 5] =
    ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"];

/// The fields of a message that may go on to the next hop.
#[derive(Clone, Copy, Debug)]
pub struct EndToEnd<'a> {
    headers: &'a HeaderMap,
    /// `Connection` names further fields; rare, so looked at only then.
    nominates: bool,
    keep_forwarded: bool,
}

impl<'a> EndToEnd<'a> {
    /// Of a visitor's request: what claims to say where it came from does not pass (T03).
    #[must_use]
    pub fn of_visitor(headers: &'a HeaderMap) -> Self {
        Self { keep_forwarded: false, ..Self::of(headers) }
    }

    /// Of a message inside the tunnel or from the local server.
    #[must_use]
    pub fn of(headers: &'a HeaderMap) -> Self {
        let ordinary = |value: &http::HeaderValue| {
            let value = value.as_bytes();
            [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|t| value.eq_ignore_ascii_case(t))
        };
        let nominates = headers.get_all(CONNECTION).iter().any(|value| !ordinary(value));
        Self { headers, nominates, keep_forwarded: true }
    }

    /// Name and value of each field, in order.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.headers
            .iter()
            .filter(move |(name, _)| self.passes(name))
            .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
    }

    fn passes(self, name: &HeaderName) -> bool {
        if is_hop_by_hop(name) || is_ours(name) {
            return false;
        }
        // The edge itself asks for the body, so nobody further on has to.
        if !self.keep_forwarded && (is_forwarded(name) || *name == EXPECT) {
            return false;
        }
        !(self.nominates && is_nominated(self.headers, name))
    }
}

/// Whether the field belongs to one connection only. `Trailer` passes, since trailers do.
#[must_use]
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    [&CONNECTION, &TRANSFER_ENCODING, &UPGRADE, &TE, &PROXY_AUTHENTICATE, &PROXY_AUTHORIZATION]
        .contains(&name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Whether the field is one that only we write.
#[must_use]
pub fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.len() > 11 && (name.starts_with("x-uniroute-") || name.starts_with("x_uniroute_"))
}

/// Whether the field says where a request came from; underscores are read as hyphens, as many
/// local servers do.
fn is_forwarded(name: &HeaderName) -> bool {
    let name = name.as_str();
    if !matches!(name.as_bytes().first(), Some(b'x' | b'f')) {
        return false;
    }
    FORWARDED.iter().any(|known| {
        known.len() == name.len()
            && known.bytes().zip(name.bytes()).all(|(k, n)| k == n || (k == b'-' && n == b'_'))
    })
}

/// Whether `Connection` names the field. It can't take away what a message needs.
fn is_nominated(headers: &HeaderMap, name: &HeaderName) -> bool {
    let needed = [
        &CONTENT_LENGTH,
        &TRAILER,
        &http::header::HOST,
        &http::header::AUTHORIZATION,
        &http::header::COOKIE,
    ];
    !needed.contains(&name)
        && crate::carrier::upgrade::has_token(headers, &CONNECTION, name.as_str())
}

/// The token of a request that asks for another protocol on this connection, such as `websocket`.
/// `h2c` is none: it would let a second request hide behind the first one (T01).
#[must_use]
pub fn upgrade_token(headers: &HeaderMap) -> Option<&http::HeaderValue> {
    let mut tokens = headers.get_all(UPGRADE).iter();
    let token = tokens.next().filter(|_| tokens.next().is_none())?;
    let asked = crate::carrier::upgrade::has_token(headers, &CONNECTION, "upgrade");
    (asked && !token.as_bytes().eq_ignore_ascii_case(b"h2c")).then_some(token)
}

/// The length that a message's header gives its body. `Err`: given twice, or no number.
///
/// # Errors
/// `()` when no one length can be read from it.
#[expect(clippy::result_unit_err, reason = "there is one way to be wrong, and callers name it")]
pub fn content_length(headers: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(());
    }
    let text = value.to_str().map_err(|_| ())?;
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(());
    }
    text.parse().map(Some).map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        map
    }

    fn names(fields: EndToEnd<'_>) -> Vec<String> {
        fields.iter().map(|(n, _)| String::from_utf8(n.to_vec()).unwrap()).collect()
    }

    /// T03: forged identity.
    #[test]
    fn t03_visitors_can_forge_nothing_and_take_nothing_away() {
        let headers = map(&[
            ("host", "a"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-uniroute-request-id", "1"),
            ("connection", "close, x-forwarded-for, x-mine, content-length, host"),
            ("x-mine", "1"),
            ("content-length", "3"),
            ("te", "trailers"),
            ("x-other", "1"),
        ]);
        assert_eq!(names(EndToEnd::of_visitor(&headers)), ["host", "content-length", "x-other"]);
        let headers = map(&[("x-forwarded-for", "1.2.3.4"), ("transfer-encoding", "chunked")]);
        assert_eq!(names(EndToEnd::of(&headers)), ["x-forwarded-for"]);
    }

    #[test]
    fn upgrades_are_asked_for_in_full() {
        let upgrade = |fields: &[(&str, &str)]| upgrade_token(&map(fields)).is_some();
        assert!(upgrade(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]));
        assert!(!upgrade(&[("upgrade", "websocket")]));
        assert!(!upgrade(&[("connection", "upgrade"), ("upgrade", "h2c")]));
        assert!(!upgrade(&[("connection", "upgrade"), ("upgrade", "a"), ("upgrade", "b")]));
    }

    #[test]
    fn one_length_or_none() {
        assert_eq!(content_length(&map(&[])), Ok(None));
        assert_eq!(content_length(&map(&[("content-length", "12")])), Ok(Some(12)));
        for bad in [
            &[("content-length", "1"), ("content-length", "1")][..],
            &[("content-length", "+1")],
            &[("content-length", "1, 1")],
        ] {
            assert_eq!(content_length(&map(bad)), Err(()));
        }
    }
}
