//! Which path goes to which local server.
//!
//! Servers do not agree on what a path means: whether `%2f` parts segments, whether `..` is followed
//! before or after decoding, whether `\` or `//` is `/`, whether `;x` belongs to a segment. A route
//! must hold whatever the local server thinks (nobody gets past its prefix, and nobody reaches by
//! another route what this one leads to), so a tunnel with routes reads a path in two ways: as it is
//! written, and as the most lenient server would. Where the two name different routes, or where the
//! lenient reading has a dot segment, the request is refused. A tunnel without routes passes every
//! path on as it is.

use bytes::{BufMut, Bytes, BytesMut};
use uniroute_proto::v1;

use super::{PolicyError, host::Origin};

/// How often a path may be decoded between here and where it is looked up.
const DECODINGS: usize = 2;
/// Most routes of a tunnel.
pub const MAX_ROUTES: usize = 64;
/// Longest path and longest prefix, in bytes.
pub const MAX_PATH: usize = 1_024;

/// A path that servers read in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("servers would read the path in different ways, and that decides where it goes")]
pub struct AmbiguousPath;

/// Where a request goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// From 1 in the order of the policy; 0: the tunnel's default.
    pub number: u32,
}

/// The routes of a tunnel.
#[derive(Debug, Default)]
pub struct Routes {
    /// In the order of their numbers.
    routes: Vec<Route>,
    /// Exact ones first, then the longest first.
    by_precedence: Vec<usize>,
}

#[derive(Debug)]
struct Route {
    /// Without a slash at its end.
    path: Vec<u8>,
    exact: bool,
    strip: bool,
    /// Without a slash at its end; empty for none.
    prefix: Vec<u8>,
    local: Option<Origin>,
}

impl Route {
    fn compile(index: usize, route: &v1::HttpRoute) -> Result<Self, PolicyError> {
        let key = |name: &str| format!("routes[{index}].{name}");
        check_path(&route.path).map_err(|what| PolicyError::new(key("path"), what))?;
        if !route.prefix.is_empty() {
            check_path(&route.prefix).map_err(|what| PolicyError::new(key("prefix"), what))?;
        }
        let local = Origin::optional(&route.local_origin)
            .map_err(|what| PolicyError::new(key("upstream"), what))?;
        let trimmed = |path: &str| path.trim_end_matches('/').as_bytes().to_vec();
        let exact = route.path.as_bytes().to_vec();
        Ok(Self {
            path: if route.exact { exact } else { trimmed(&route.path) },
            exact: route.exact,
            strip: route.strip,
            prefix: trimmed(&route.prefix),
            local,
        })
    }

    fn matches(&self, path: &[u8]) -> bool {
        match path.strip_prefix(&self.path[..]) {
            Some(rest) if self.exact => rest.is_empty(),
            Some(rest) => rest.is_empty() || rest.starts_with(b"/"),
            None => false,
        }
    }
}

impl Routes {
    pub(super) fn compile(routes: &[v1::HttpRoute]) -> Result<Self, PolicyError> {
        PolicyError::at_most("routes", routes.len(), MAX_ROUTES)?;
        let route = |(index, route)| Route::compile(index, route);
        let routes: Vec<Route> = routes.iter().enumerate().map(route).collect::<Result<_, _>>()?;
        for (index, route) in routes.iter().enumerate() {
            let same = |other: &Route| other.path == route.path && other.exact == route.exact;
            if let Some(first) = routes[..index].iter().position(same) {
                let what = format!("routes[{first}] has the same path");
                return Err(PolicyError::new(format!("routes[{index}].path"), what));
            }
        }
        let mut by_precedence: Vec<usize> = (0..routes.len()).collect();
        by_precedence.sort_by_key(|index| {
            let route = &routes[*index];
            (!route.exact, std::cmp::Reverse(route.path.len()))
        });
        Ok(Self { routes, by_precedence })
    }

    /// Where the request for `path` (without a query) goes.
    ///
    /// # Errors
    /// [`AmbiguousPath`]; never where there are no routes.
    pub fn find(&self, path: &[u8]) -> Result<RouteMatch, AmbiguousPath> {
        if self.routes.is_empty() {
            return Ok(RouteMatch::default());
        }
        let found = self.matching(path);
        if is_plain(path) {
            return Ok(found);
        }
        match self.is_read_as(found, path, DECODINGS)? {
            true => Ok(found),
            false => Err(AmbiguousPath),
        }
    }

    /// Whether everybody finds the same. Some look at segments as they are, some decode first, some do
    /// both in turns.
    fn is_read_as(
        &self,
        found: RouteMatch,
        path: &[u8],
        decodings: usize,
    ) -> Result<bool, AmbiguousPath> {
        let read = lenient(path)?;
        if self.matching(&read) != found {
            return Ok(false);
        }
        let Some(decodings) = decodings.checked_sub(1) else { return Ok(true) };
        Ok(self.is_read_as(found, &decoded(path), decodings)?
            && self.is_read_as(found, &decoded(&read), decodings)?)
    }

    fn matching(&self, path: &[u8]) -> RouteMatch {
        let found = self.by_precedence.iter().find(|index| self.routes[**index].matches(path));
        let number = found.map_or(0, |index| index + 1);
        RouteMatch { number: u32::try_from(number).unwrap_or(0) }
    }

    fn get(&self, found: RouteMatch) -> Option<&Route> {
        self.routes.get(usize::try_from(found.number).ok()?.checked_sub(1)?)
    }

    /// The target that the local server gets, if it is another one than the visitor's. `found` is
    /// what [`Routes::find`] said of it.
    pub(super) fn target(&self, found: RouteMatch, target: &Bytes) -> Option<Bytes> {
        let route = self.get(found).filter(|route| route.strip || !route.prefix.is_empty())?;
        let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
        let (path, query) = target.split_at(end);
        let kept = if route.strip { path.get(route.path.len()..)? } else { path };
        let mut out = BytesMut::with_capacity(route.prefix.len() + kept.len() + query.len() + 1);
        out.put_slice(&route.prefix);
        if !kept.is_empty() || route.prefix.is_empty() {
            // Exactly one slash: a path that begins with two would be read as a host.
            let slashes = kept.iter().take_while(|byte| **byte == b'/').count();
            out.put_u8(b'/');
            out.put_slice(&kept[slashes..]);
        }
        out.put_slice(query);
        Some(out.freeze())
    }

    /// What is taken away from the path on this route, for links that the local server makes.
    pub(super) fn stripped(&self, found: RouteMatch) -> Option<&[u8]> {
        let route = self.get(found).filter(|route| route.strip && !route.path.is_empty())?;
        Some(&route.path)
    }

    /// How the local server of this route names itself, where it is not the tunnel's default.
    pub(super) fn local(&self, found: RouteMatch) -> Option<&Origin> {
        self.get(found)?.local.as_ref()
    }
}

/// Refuses what is no path, or could be read as another one.
///
/// # Errors
/// What is wrong with it.
pub fn check_path(path: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,=:@".contains(&byte);
    if !path.starts_with('/') {
        return Err(format!(
            "{path:?} does not begin with a slash; write {:?}",
            format!("/{path}")
        ));
    }
    if path.len() > MAX_PATH {
        return Err(format!("longer than {MAX_PATH} bytes"));
    }
    if let Some(other) = path.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        return Err(format!("{path:?} holds {other:?}, which servers read in different ways"));
    }
    if path.contains("//") || path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(format!("{path:?} has an empty or a dot segment; write what it leads to"));
    }
    Ok(())
}

/// Whether all servers read `path` alike. Nearly all paths are plain.
fn is_plain(path: &[u8]) -> bool {
    let special = |byte: &u8| matches!(byte, b'%' | b'\\' | b';' | 0);
    !path.iter().any(special) && !path.windows(2).any(|two| two == b"//" || two == b"/.")
}

/// A path as the most lenient server would read it: with every kind of slash as a border,
/// without parameters and without empty segments but the last.
fn lenient(path: &[u8]) -> Result<Vec<u8>, AmbiguousPath> {
    if path.contains(&0) {
        return Err(AmbiguousPath);
    }
    let mut segments = path.split(|byte| matches!(byte, b'/' | b'\\'));
    // In front of the first slash there is nothing in a path; `*` is not one.
    let mut read = segments.next().unwrap_or_default().to_vec();
    let mut segments = segments.peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        if matches!(name, b"." | b"..") {
            return Err(AmbiguousPath);
        }
        if !name.is_empty() || segments.peek().is_none() {
            read.push(b'/');
            read.extend_from_slice(name);
        }
    }
    Ok(read)
}

/// Without its percent encodings; what only looks like one stays.
fn decoded(path: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if let (b'%', [high, low, after @ ..]) = (first, tail)
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            out.push(high * 16 + low);
            rest = after;
        } else {
            out.push(*first);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route(path: &str) -> v1::HttpRoute {
        v1::HttpRoute { path: path.into(), ..Default::default() }
    }

    fn routes(paths: &[&str]) -> Routes {
        let routes: Vec<_> = paths.iter().map(|path| route(path)).collect();
        Routes::compile(&routes).unwrap()
    }

    fn number(routes: &Routes, path: &str) -> Option<u32> {
        routes.find(path.as_bytes()).ok().map(|found| found.number)
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let routes = routes(&["/api", "/api/v2/", "/apix"]);
        for (path, expected) in [
            ("/api", 1),
            ("/api/", 1),
            ("/api/x", 1),
            ("/apiy", 0),
            ("/apix", 3),
            ("/api/v2", 2),
            ("/api/v2/", 2),
            ("/api/v2/x", 2),
            ("/api/v22", 1),
            ("/API", 0),
            ("/", 0),
            ("/x/api", 0),
            ("*", 0),
            ("", 0),
        ] {
            assert_eq!(number(&routes, path), Some(expected), "{path}");
        }
        assert_eq!(number(&self::routes(&["/", "/a"]), "/b"), Some(1));
    }

    #[test]
    fn an_exact_path_goes_first() {
        let exact = v1::HttpRoute { exact: true, ..route("/api/health") };
        let routes = Routes::compile(&[route("/api/health"), exact]).unwrap();
        assert_eq!(number(&routes, "/api/health"), Some(2));
        assert_eq!(number(&routes, "/api/health/"), Some(1));
        assert_eq!(number(&routes, "/api/health/x"), Some(1));
    }

    #[test]
    fn what_could_be_read_as_another_route_is_refused() {
        let routes = routes(&["/api", "/admin"]);
        for path in [
            "/api/../admin",
            "/api/..",
            "/api/.",
            "/./api",
            "/api/%2e%2e/admin",
            "/api/%2E./admin",
            "/api/.%2e",
            "/api/%252e%252e/admin",
            "/api/..;x=1/admin",
            "/api/..%2fadmin",
            "/api\\..\\admin",
            "/api/..%5cadmin",
            "/%61dmin",
            "/admin%2fx",
            "/admin%252fx",
            "/admin%5cx",
            "/admin\\x",
            "//admin",
            "/%2fadmin",
            "/admin;x=1",
            "/;x/admin",
            "/admin%00",
            "/api/%00/x",
            "/;%252fapi",
            "/%3b%2fapi",
        ] {
            assert_eq!(number(&routes, path), None, "{path}");
        }
        for (path, expected) in [
            ("/api/a%2fb", 1),
            ("/api/a%20b", 1),
            ("/api//x", 1),
            ("/api/;v=1", 1),
            ("/api/.well-known/x", 1),
            ("/api/...", 1),
            ("/api/%zz%", 1),
            ("/api/x%", 1),
            ("/x;y=1", 0),
            ("/.well-known/acme-challenge/x", 0),
            ("/a..b", 0),
        ] {
            assert_eq!(number(&routes, path), Some(expected), "{path}");
        }
        let none = Routes::default();
        assert_eq!(number(&none, "/../%2e%2e/\\;//"), Some(0), "without routes all paths pass");
    }

    #[test]
    fn paths_are_stripped_and_prefixed() {
        let target = |strip, path: &str, prefix: &str, target: &'static str| {
            let route = v1::HttpRoute { strip, prefix: prefix.into(), ..route(path) };
            let routes = Routes::compile(&[route]).unwrap();
            let found = routes.find(target.split('?').next().unwrap().as_bytes()).unwrap();
            assert_eq!(found.number, 1);
            let target = Bytes::from_static(target.as_bytes());
            let got = routes.target(found, &target).unwrap_or(target);
            String::from_utf8(got.to_vec()).unwrap()
        };
        for (strip, prefix, from, to) in [
            (false, "", "/api/x?y", "/api/x?y"),
            (true, "", "/api", "/"),
            (true, "", "/api?q=/", "/?q=/"),
            (true, "", "/api/", "/"),
            (true, "", "/api/x/?y", "/x/?y"),
            (true, "", "/api//evil.example/", "/evil.example/"),
            (true, "/v1", "/api/x", "/v1/x"),
            (true, "/v1/", "/api", "/v1"),
            (true, "/v1", "/api/", "/v1/"),
            (true, "/v1", "/api?y", "/v1?y"),
            (false, "/v1", "/api/x", "/v1/api/x"),
            (true, "/", "/api/x", "/x"),
        ] {
            assert_eq!(target(strip, "/api", prefix, from), to, "{from}");
        }
        assert_eq!(target(true, "/", "/v1", "/x"), "/v1/x");
        assert_eq!(target(true, "/", "", "/x"), "/x");
    }

    #[test]
    fn paths_that_cannot_be_are_named() {
        for bad in ["", "api", "/a//b", "/a/../b", "/./a", "/a%2f", "/a?b", "/a b", "/ü", "/a;b"] {
            let error = Routes::compile(&[route("/ok"), route(bad)]).unwrap_err();
            assert_eq!(error.key, "routes[1].path", "{bad}");
        }
        let twice = Routes::compile(&[route("/a"), route("/a/")]).unwrap_err();
        assert!(twice.what.contains("routes[0]"));
        let many: Vec<_> = (0..65).map(|n| route(&format!("/{n}"))).collect();
        assert_eq!(Routes::compile(&many).unwrap_err().key, "routes");
        let bad = v1::HttpRoute { prefix: "v1".into(), ..route("/a") };
        assert_eq!(Routes::compile(&[bad]).unwrap_err().key, "routes[0].prefix");
    }

    /// A server that decodes, then follows dot segments: the segments that it ends up with.
    fn as_a_lenient_server(path: &[u8], decodings: usize) -> Vec<Vec<u8>> {
        let mut path = path.to_vec();
        for _ in 0..decodings {
            path = decoded(&path);
        }
        let mut segments: Vec<Vec<u8>> = Vec::new();
        for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
            match segment.split(|byte| *byte == b';').next().unwrap() {
                b"" | b"." => {}
                b".." => drop(segments.pop()),
                name => segments.push(name.to_vec()),
            }
        }
        segments
    }

    fn hostile_path() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "/", "api", "admin", "v1", ".", "..", "%2e", "%2E%2e", "%2f", "%5c", "\\", ";", ";x=1",
            "%", "%61", "%252e", "%252f", "x", "//", "%00", "%c0%ae", "?",
        ]);
        prop::collection::vec(piece, 0..10).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_path_or_refused(path: Vec<u8>) {
            let routes = routes(&["/api", "/"]);
            if let Ok(found) = routes.find(&path) {
                let _ = routes.target(found, &path.into());
            }
        }

        /// Whatever the local server makes of a path, it stays behind the route's prefix, and only
        /// by its route can anybody get to what a route leads to.
        #[test]
        fn a_route_cannot_be_escaped_and_not_be_got_around(path in hostile_path()) {
            let target = Bytes::from(path.clone());
            let path = path.split('?').next().unwrap().as_bytes();
            let api = v1::HttpRoute { strip: true, prefix: "/v1".into(), ..route("/api") };
            let routes = Routes::compile(&[api, route("/admin")]).unwrap();
            let Ok(found) = routes.find(path) else { return Ok(()) };
            let sent = routes.target(found, &target).unwrap_or(target);
            let sent = sent.split(|byte| *byte == b'?').next().unwrap();
            for decodings in 0..=DECODINGS {
                let seen = as_a_lenient_server(sent, decodings);
                let first = seen.first().map(Vec::as_slice);
                match found.number {
                    1 => prop_assert_eq!(first, Some(&b"v1"[..])),
                    2 => prop_assert_eq!(first, Some(&b"admin"[..])),
                    _ => prop_assert!(first != Some(b"admin") && first != Some(b"api")),
                }
            }
        }
    }
}
