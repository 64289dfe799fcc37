//! What local servers say to visitors whose host they don't know, and what to do about it.
//!
//! Servers for development take only hosts that they know, so that no page of a stranger reaches them
//! by a name of its own. A tunnel's public host is not among them, and what the visitor then sees
//! seldom says what its owner is to do.

use std::task::{Context, Poll, ready};

use uniroute_shared::{
    http1::Length,
    message::{Fields, Piece, Source},
};

/// How much of an answer is looked at: the pages of some begin with long styles.
const LOOKED_AT: usize = 8 * 1024;
/// Longest public host in a hint.
const MAX_HOST: usize = 253;
/// Of the whole answer of older versions of webpack-dev-server, which comes with status 200.
const INVALID_HOST: &str = "Invalid Host header";

/// A local server that turns hosts away.
struct Known {
    status: &'static [u16],
    /// All of them are in the answer.
    texts: &'static [&'static str],
    /// Part of the request's path, where the text alone says too little.
    path: &'static str,
    title: &'static str,
    /// Where its hosts are; `{host}` is the public one.
    setting: &'static str,
    /// It looks at nothing but `Host`, and at fields that are made to name the same host.
    rewriting_helps: bool,
}

/// The more special ones first.
const KNOWN: [Known; 10] = [
    Known {
        status: &[403],
        texts: &["Blocked request. This host (", "angular.json"],
        path: "",
        title: "Angular's dev server turned a visitor away: it does not know the public host",
        setting: "add \"allowedHosts\": [\"{host}\"] to the options of the serve target in angular.json",
        rewriting_helps: true,
    },
    Known {
        status: &[403],
        texts: &["Blocked request. This host (", "preview.allowedHosts"],
        path: "",
        title: "Vite turned a visitor away: it does not know the public host",
        setting: "set preview.allowedHosts: [\"{host}\"] in vite.config.js",
        rewriting_helps: true,
    },
    Known {
        status: &[403],
        texts: &["Blocked request. This host ("],
        path: "",
        title: "Vite turned a visitor away: it does not know the public host",
        setting: "set server.allowedHosts: [\"{host}\"] in vite.config.js",
        rewriting_helps: true,
    },
    Known {
        status: &[200, 403],
        texts: &[INVALID_HOST],
        path: "",
        title: "webpack's dev server turned a visitor away: it does not know the public host",
        setting: "set devServer.allowedHosts: [\"{host}\"] in webpack's config (create-react-app: the variable DANGEROUSLY_DISABLE_HOST_CHECK=true; Vue CLI: vue.config.js)",
        rewriting_helps: true,
    },
    Known {
        status: &[403],
        texts: &["Unauthorized"],
        // Also /__nextjs_font and the like.
        path: "_next",
        title: "Next.js turned a request for its own files away: it does not know the public host",
        setting: "set allowedDevOrigins: [\"{host}\"] in next.config.js",
        rewriting_helps: true,
    },
    Known {
        status: &[400],
        texts: &["DisallowedHost"],
        path: "",
        title: "Django turned a visitor away: the public host is not in ALLOWED_HOSTS",
        setting: "add \"{host}\" to ALLOWED_HOSTS in settings.py (and \"https://{host}\" to CSRF_TRUSTED_ORIGINS, for forms)",
        rewriting_helps: true,
    },
    Known {
        status: &[403],
        texts: &["Blocked host", "config.hosts"],
        path: "",
        title: "Rails turned a visitor away: it does not know the public host",
        // It looks at X-Forwarded-Host as well.
        setting: "add config.hosts << \"{host}\" to config/environments/development.rb",
        rewriting_helps: false,
    },
    Known {
        status: &[400],
        texts: &["Host &#39;", "is not trusted."],
        path: "",
        title: "Flask turned a visitor away: the public host is not in TRUSTED_HOSTS",
        setting: "add \"{host}\" to TRUSTED_HOSTS in the app's config",
        rewriting_helps: true,
    },
    Known {
        status: &[400],
        texts: &["Invalid host header"],
        path: "",
        title: "Starlette or FastAPI turned a visitor away: TrustedHostMiddleware does not know the public host",
        setting: "add \"{host}\" to allowed_hosts of TrustedHostMiddleware",
        rewriting_helps: true,
    },
    Known {
        status: &[400],
        texts: &["The request hostname is invalid."],
        path: "",
        title: "ASP.NET turned a visitor away: it does not know the public host",
        setting: "add \"{host}\" to AllowedHosts in appsettings.json",
        rewriting_helps: true,
    },
];

/// What to tell the owner of a tunnel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) title: &'static str,
    pub(crate) fix: String,
}

/// Whether an answer may be one of these; asked of each.
pub(crate) fn may_be(status: u16, length: Length) -> bool {
    matches!(status, 400 | 403) || length == Length::Exact(INVALID_HOST.len() as u64)
}

/// Whether its text can be read as it is. Some of these say no type at all.
pub(crate) fn is_text(fields: &Fields) -> bool {
    let text = |value: &[u8]| value.len() < 5 || value[..5].eq_ignore_ascii_case(b"text/");
    !fields.contains("content-encoding")
        && fields.get("content-type").is_none_or(|value| text(value))
}

/// The beginning of an answer that may be one of these.
#[derive(Debug, Default)]
pub(crate) struct Beginning(Vec<u8>);

/// An answer's body, whose beginning is kept if it is wanted.
pub(crate) struct Watched<'a, S> {
    pub(crate) inner: S,
    pub(crate) beginning: Option<&'a mut Beginning>,
}

impl<S: Source> Source for Watched<'_, S> {
    type Error = S::Error;

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, S::Error>> {
        let piece = ready!(self.inner.poll_piece(cx));
        if let (Some(Beginning(kept)), Ok(Some(Piece::Data(data)))) = (&mut self.beginning, &piece)
        {
            let room = LOOKED_AT.saturating_sub(kept.len()).min(data.len());
            kept.extend_from_slice(&data[..room]);
        }
        Poll::Ready(piece)
    }

    fn is_over(&self) -> bool {
        self.inner.is_over()
    }
}

impl Beginning {
    /// What to do, if it is one of these. `host`: what the local server was asked for. `rewritten`: that
    /// is its own name already.
    pub(crate) fn hint(
        &self,
        status: u16,
        path: &[u8],
        host: &[u8],
        rewritten: bool,
    ) -> Option<Hint> {
        let Self(body) = self;
        let fits = |known: &&Known| {
            known.status.contains(&status)
                && contains(path, known.path.as_bytes())
                && known.texts.iter().all(|text| contains(body, text.as_bytes()))
        };
        let known = KNOWN.iter().find(fits)?;
        let host = std::str::from_utf8(host).ok().filter(|host| host.len() <= MAX_HOST);
        let setting =
            known.setting.replace("{host}", without_port(host.unwrap_or("the public host")));
        let fix = match known.rewriting_helps && !rewritten {
            true => format!(
                "Run uniroute with --host-header rewrite (in its config file: host_header = \"rewrite\"), or {setting}"
            ),
            false => capitalized(&setting),
        };
        Some(Hint { title: known.title, fix })
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn capitalized(text: &str) -> String {
    let (first, rest) = text.split_at(text.floor_char_boundary(1));
    format!("{}{rest}", first.to_ascii_uppercase())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(status: u16, path: &str, body: &str) -> Option<Hint> {
        let beginning = Beginning(body.as_bytes()[..body.len().min(LOOKED_AT)].to_vec());
        beginning.hint(status, path.as_bytes(), b"demo.example.com:8080", false)
    }

    /// What the servers' sources say today, and what their older versions said.
    #[test]
    fn refusals_are_recognised() {
        let vite = "Blocked request. This host (\"demo.example.com\") is not allowed.\nTo allow this host, add \"demo.example.com\" to `server.allowedHosts` in vite.config.js.";
        let preview = vite.replace("server.allowedHosts", "preview.allowedHosts");
        let angular = "<!doctype html>\n<html>\n  <head>\n    <title>Blocked request</title>\n  </head>\n  <body>\n    <main>\n      <h1>Blocked request. This host (\"demo.example.com\") is not allowed.</h1>\n      <p>To allow this host, add it to <code>allowedHosts</code> under the <code>serve</code> target in <code>angular.json</code>.</p>";
        let django = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n  <meta http-equiv=\"content-type\" content=\"text/html; charset=utf-8\">\n  <meta name=\"robots\" content=\"NONE,NOARCHIVE\">\n  <title>DisallowedHost\n          at /</title>";
        let rails = "<header role=\"banner\">\n  <h1>Blocked hosts: demo.example.com</h1>\n</header>\n<main role=\"main\" id=\"container\">\n  <h2>To allow requests to these hosts, make sure they are valid hostnames (containing only numbers, letters, dashes and dots), then add the following to your environment configuration:</h2>\n  <pre>config.hosts &lt;&lt; &quot;demo.example.com&quot;</pre>";
        let rails = format!("<head><style>{}</style></head>{rails}", "a { b: c }\n".repeat(400));
        let older_rails = "Blocked host: demo.example.com\n\nTo allow requests to demo.example.com, add the following to your environment configuration:\n\n    config.hosts << \"demo.example.com\"\n";
        let flask = "<!doctype html>\n<html lang=en>\n<title>400 Bad Request</title>\n<h1>Bad Request</h1>\n<p>Host &#39;demo.example.com&#39; is not trusted.</p>\n";
        let asp = "<!DOCTYPE HTML PUBLIC \"-//W3C//DTD HTML 4.01//EN\"\"http://www.w3.org/TR/html4/strict.dtd\">\r\n<HTML><HEAD><TITLE>Bad Request</TITLE>\r\n<META HTTP-EQUIV=\"Content-Type\" Content=\"text/html; charset=us-ascii\"></ HEAD >\r\n<BODY><h2>Bad Request - Invalid Hostname</h2>\r\n<hr><p>HTTP Error 400. The request hostname is invalid.</p>\r\n</BODY></HTML>";
        for (status, path, body, who, setting) in [
            (403, "/", vite, "Vite", "server.allowedHosts: [\"demo.example.com\"]"),
            (403, "/", preview.as_str(), "Vite", "preview.allowedHosts: [\"demo.example.com\"]"),
            (403, "/", angular, "Angular", "angular.json"),
            (403, "/", "Invalid Host header", "webpack", "devServer.allowedHosts"),
            (200, "/", "Invalid Host header", "webpack", "DANGEROUSLY_DISABLE_HOST_CHECK=true"),
            (403, "/_next/static/chunks/main.js", "Unauthorized", "Next.js", "allowedDevOrigins"),
            (403, "/__nextjs_font/a.woff2", "Unauthorized", "Next.js", "allowedDevOrigins"),
            (400, "/", django, "Django", "ALLOWED_HOSTS"),
            (403, "/", &rails, "Rails", "config.hosts << \"demo.example.com\""),
            (403, "/", older_rails, "Rails", "config.hosts << \"demo.example.com\""),
            (400, "/", flask, "Flask", "TRUSTED_HOSTS"),
            (400, "/", "Invalid host header", "Starlette", "allowed_hosts"),
            (400, "/", asp, "ASP.NET", "AllowedHosts"),
        ] {
            let Some(Hint { title, fix }) = hint(status, path, body) else { panic!("{body}") };
            assert!(title.starts_with(who) && fix.contains(setting), "{title}\n{fix}");
            assert!(!fix.contains("{host}") && !fix.contains("8080"), "{fix}");
            assert_eq!(fix.contains("--host-header rewrite"), who != "Rails", "{fix}");
        }
    }

    #[test]
    fn other_answers_are_not() {
        for (status, path, body) in [
            (403, "/", "Forbidden"),
            (403, "/admin", "Unauthorized"),
            (400, "/_next/data", "Unauthorized"),
            (200, "/", "Invalid host header"),
            (400, "/", "{\"error\":\"this is not trusted.\"}"),
            (404, "/", "Blocked request. This host (\"a\") is not allowed."),
        ] {
            assert_eq!(hint(status, path, body), None, "{body}");
        }
    }

    #[test]
    fn who_rewrites_already_is_not_told_to() {
        let beginning = Beginning(INVALID_HOST.as_bytes().to_vec());
        let Hint { fix, .. } = beginning.hint(403, b"/", b"app.test", true).unwrap();
        assert!(fix.starts_with("Set devServer.allowedHosts: [\"app.test\"]"), "{fix}");
    }

    #[test]
    fn few_answers_are_looked_at() {
        assert!(may_be(403, Length::Chunked) && may_be(400, Length::Exact(5)));
        assert!(may_be(200, Length::Exact(19)));
        assert!(!may_be(200, Length::Exact(20)) && !may_be(404, Length::Chunked));
        let fields = |name: &'static str, value: &'static str| {
            let mut fields = Fields::default();
            fields.push(name, value);
            fields
        };
        assert!(is_text(&Fields::default()) && is_text(&fields("content-type", "Text/plain")));
        assert!(!is_text(&fields("Content-Type", "application/json")));
        assert!(!is_text(&fields("Content-Encoding", "gzip")));
    }

    struct Pieces(Vec<&'static [u8]>);

    impl Source for Pieces {
        type Error = std::convert::Infallible;

        fn poll_piece(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Piece>, Self::Error>> {
            let next = (!self.0.is_empty()).then(|| self.0.remove(0));
            Poll::Ready(Ok(next.map(|data| Piece::Data(data.into()))))
        }

        fn is_over(&self) -> bool {
            self.0.is_empty()
        }
    }

    #[test]
    fn only_the_beginning_is_kept_and_all_is_passed_on() {
        let mut beginning = Beginning::default();
        let inner = Pieces(vec![&[b'a'; 5_000], &[b'b'; 5_000], &[b'c'; 5_000]]);
        let mut watched = Watched { inner, beginning: Some(&mut beginning) };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut passed = 0;
        while let Poll::Ready(Ok(Some(Piece::Data(data)))) = watched.poll_piece(&mut cx) {
            passed += data.len();
        }
        assert!(watched.is_over());
        assert_eq!((passed, beginning.0.len()), (15_000, LOOKED_AT));
        assert!(beginning.0.ends_with(b"b"));
    }
}
