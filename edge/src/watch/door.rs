//! Who is let in: the right page, a good login, and a proper handshake. All of it is checked before
//! anything is switched, so that a refusal is told as the API tells it.

use std::{net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{
        CONNECTION, ORIGIN, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use uniroute_shared::{
    carrier::upgrade::{accept_key, has_token},
    code::Code,
};
use uuid::Uuid;

use super::{Scope, Watcher, feed, pipe};
use crate::{
    Shared,
    api::{self, bearer},
    auth::Role,
    services::{Caller, Failure, Fault, Services},
};

/// The subprotocol, for those who name one.
const PROTOCOL: &str = "uniroute.events.v1";
/// Before an access token in the list of subprotocols: browsers let a page set no other field.
const BEARER: &str = "bearer.";
/// Longest query that is looked at.
const MAX_QUERY: usize = 1_024;

/// Somebody at the door.
pub(crate) struct Knock {
    pub(crate) request: Request<()>,
    pub(crate) peer: IpAddr,
    /// The edge's own origin, as the visitor has it.
    pub(crate) origin: String,
}

/// Which updates a path is about.
#[derive(Clone, Copy)]
enum Page {
    User,
    Tunnel(Uuid),
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        if path == "/ws/user" {
            return Some(Self::User);
        }
        let id = path.strip_prefix("/ws/tunnels/").filter(|id| id.len() == 36)?;
        Uuid::try_parse(id).ok().map(Self::Tunnel)
    }

    /// What the caller is to be told of, if he may be.
    async fn scope(
        self,
        services: &Services,
        caller: &Caller,
        all: bool,
    ) -> Result<Scope, Failure> {
        match self {
            Self::Tunnel(id) => Ok(Scope::Tunnel(services.tunnel(caller, id).await?.id)),
            Self::User if !all => Ok(Scope::User(caller.user)),
            Self::User if caller.role >= Role::Operator => Ok(Scope::All),
            Self::User => {
                let detail = format!("`all` is for the role `{}`", Role::Operator.as_str());
                Err(Failure::because(&Code::ROLE_NEEDED, detail))
            }
        }
    }
}

/// What a query asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    /// The last event that the client has.
    after: Option<u64>,
    /// The edge that its number is of.
    edge: Option<String>,
    all: bool,
}

impl Wish {
    fn read(query: &str, page: Page) -> Result<Self, Failure> {
        let fault = |name: &str, what: &str| {
            let shown: String = name.chars().take(64).collect();
            let fault = Fault::new(format!("query/{shown}"), what);
            Failure::faults(&Code::INPUT_INVALID, vec![fault])
        };
        let pairs = (query.len() <= MAX_QUERY).then(|| api::pairs(query)).flatten();
        let pairs = pairs.ok_or_else(|| fault("", "can't be read"))?;
        let mut wish = Self::default();
        for (name, text) in &pairs {
            match name.as_str() {
                "after" if wish.after.is_none() => {
                    let number = text.parse().map_err(|_| fault(name, "is no number"))?;
                    wish.after = Some(number);
                }
                "edge" if wish.edge.is_none() => wish.edge = Some(text.clone()),
                "all" if matches!(page, Page::User) => match text.as_str() {
                    "true" => wish.all = true,
                    "false" => wish.all = false,
                    _ => return Err(fault(name, "is neither `true` nor `false`")),
                },
                "after" | "edge" => return Err(fault(name, "is there twice")),
                _ => return Err(fault(name, "is not known")),
            }
        }
        Ok(wish)
    }

    /// The number to go on from: those of another edge, or of one that was restarted, say nothing.
    fn resumes(&self, edge: &str) -> Option<u64> {
        self.after.filter(|_| self.edge.as_deref() == Some(edge))
    }
}

impl Watcher {
    /// Lets somebody in.
    ///
    /// # Errors
    /// Why not, for him to read.
    pub(crate) async fn admit(edge: &Arc<Shared>, knock: &Knock) -> Result<Self, Failure> {
        let (request, headers) = (&knock.request, knock.request.headers());
        let services = match edge.api.get() {
            Some(api) => api.services.clone(),
            None => return Err(Failure::new(&Code::DRAINING)),
        };
        let page = Page::at(request.uri().path()).ok_or_else(Failure::no_such_thing)?;
        check_origin(headers, &knock.origin)?;
        let token = token(headers).ok_or_else(|| Failure::new(&Code::LOGIN_NEEDED))?;
        let caller = services.authenticate(token, knock.peer).await?;
        let wish = Wish::read(request.uri().query().unwrap_or_default(), page)?;
        let scope = page.scope(&services, &caller, wish.all).await?;
        let answer = handshake(request)?;
        let place = edge.watchers.enter(caller.user, scope).map_err(Failure::new)?;
        let (outlet, pipe) = pipe::new(edge.heartbeat);
        let resume = wish.resumes(&edge.id);
        let feed = feed::Feed::new(Arc::clone(edge), services, caller, scope, resume, outlet);
        Ok(Self { edge: Arc::clone(edge), answer, feed, pipe, place })
    }
}

/// A browser says whose page it acts for: only the edge's own may (T15).
fn check_origin(headers: &HeaderMap, own: &str) -> Result<(), Failure> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let is_own = match (origins.next(), origins.next()) {
        (None, _) => true,
        (Some(origin), None) => origin.to_str().is_ok_and(|origin| plain(origin) == plain(own)),
        (Some(_), Some(_)) => false,
    };
    is_own.then_some(()).ok_or_else(|| Failure::new(&Code::ORIGIN_REFUSED))
}

/// An origin in lower case, without the port that its scheme has anyway.
fn plain(origin: &str) -> String {
    let origin = origin.to_ascii_lowercase();
    let port = if origin.starts_with("https:") { ":443" } else { ":80" };
    origin.strip_suffix(port).map(str::to_owned).unwrap_or(origin)
}

/// Subprotocols that the client offers.
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim)
}

/// The access token: of its own field, or among the subprotocols.
fn token(headers: &HeaderMap) -> Option<&str> {
    if headers.contains_key(http::header::AUTHORIZATION) {
        return bearer(headers);
    }
    let mut tokens = offered(headers).filter_map(|protocol| protocol.strip_prefix(BEARER));
    let (token, None) = (tokens.next()?, tokens.next()) else { return None };
    Some(token)
}

/// The answer that switches to WebSocket (RFC 6455, section 4.2; RFC 8441 over HTTP/2).
fn handshake(request: &Request<()>) -> Result<Response<Bytes>, Failure> {
    let headers = request.headers();
    let lacks = |what| Err(Failure::because(&Code::BAD_UPGRADE, what));
    if request.method() != Method::GET || request.version() < Version::HTTP_11 {
        return lacks("live updates are a WebSocket: GET with HTTP/1.1 or HTTP/2 is needed");
    }
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        return lacks("live updates are a WebSocket: the request does not ask for one");
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return lacks("Sec-WebSocket-Version must be 13");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if STANDARD.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        return lacks("Sec-WebSocket-Key must be 16 bytes in base64");
    }
    let named = offered(headers).any(|protocol| protocol == PROTOCOL);
    if !named && offered(headers).any(|protocol| protocol.starts_with(BEARER)) {
        return lacks(
            "with a token among the subprotocols, uniroute.events.v1 has to be there too",
        );
    }
    let mut answer = Response::new(Bytes::new());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = answer.headers_mut();
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(accept_key(key)) {
        fields.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    if named {
        fields.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn t15_pages_of_others_are_refused() {
        let own = "https://edge.example";
        let check = |origins: &[&str]| {
            let fields: Vec<_> = origins.iter().map(|origin| ("origin", *origin)).collect();
            check_origin(&headers(&fields), own).is_ok()
        };
        for good in [&[][..], &["https://edge.example"], &["https://EDGE.example:443"]] {
            assert!(check(good), "{good:?}");
        }
        for bad in [
            &["http://edge.example"][..],
            &["https://edge.example:8443"],
            &["https://edge.example.evil.test"],
            &["https://evil.test"],
            &["https://demo.edge.example"],
            &["https://edge.example/"],
            &["null"],
            &[""],
            &["https://edge.example", "https://edge.example"],
        ] {
            assert!(!check(bad), "{bad:?}");
        }
        assert!(check_origin(&headers(&[("origin", "http://a:80")]), "http://a").is_ok());
        assert!(check_origin(&headers(&[("origin", "http://a:443")]), "http://a").is_err());
    }

    #[test]
    fn a_token_is_in_its_field_or_among_the_subprotocols() {
        let of = |fields: &[(&'static str, &str)]| token(&headers(fields)).map(str::to_owned);
        assert_eq!(of(&[("authorization", "Bearer a")]), Some("a".into()));
        let protocols = ("sec-websocket-protocol", "uniroute.events.v1, bearer.a.b.c");
        assert_eq!(of(&[protocols]), Some("a.b.c".into()));
        assert_eq!(of(&[("authorization", "Basic a"), protocols]), None);
        assert_eq!(of(&[("sec-websocket-protocol", "bearer.a, bearer.b")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_query_is_as_described_or_refused() {
        let read = |query: &str| Wish::read(query, Page::User).ok();
        let wish = read("after=7&edge=edge-1").unwrap();
        assert_eq!((wish.resumes("edge-1"), wish.resumes("edge-2")), (Some(7), None));
        assert_eq!(read("after=7").unwrap().resumes("edge-1"), None);
        assert_eq!(read("all=true"), Some(Wish { all: true, ..Wish::default() }));
        for bad in ["token=a", "after=x", "after=-1", "after=1&after=2", "all=yes", "edge=%zz"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert!(Wish::read("all=true", Page::Tunnel(Uuid::nil())).is_err());
    }

    #[test]
    fn paths_are_exact() {
        assert!(matches!(Page::at("/ws/user"), Some(Page::User)));
        let id = Uuid::now_v7();
        assert!(
            matches!(Page::at(&format!("/ws/tunnels/{id}")), Some(Page::Tunnel(it)) if it == id)
        );
        for bad in ["/ws/", "/ws/user/", "/ws/tunnels/", "/ws/tunnels/x", "/ws/users"] {
            assert!(Page::at(bad).is_none(), "{bad}");
        }
        assert!(Page::at(&format!("/ws/tunnels/{}", id.simple())).is_none());
    }
}
