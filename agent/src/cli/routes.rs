//! `uniroute routes test URL`: which rule of a tunnel answers a request, and what its local server
//! would see. The edge's own code decides, so what is said here is what will be.

use std::{
    fmt,
    io::{self, Write as _},
    net::IpAddr,
    path::PathBuf,
};

use bytes::Bytes;
use clap::{Args, Subcommand};
use uniroute_agent::TunnelSettings;
use uniroute_proto::v1::HttpVersion;
use uniroute_shared::{
    message::{Fields, RequestHead},
    policy::{Admit, Pass, Policy, Public, Seen},
};

use crate::config::{self, File, policy::Field, tunnel::Hashes};

/// About the tunnels of the config file; nothing is sent.
#[derive(Debug, Subcommand)]
pub(crate) enum RoutesCommand {
    /// Says which rule answers a request for URL, and what the local server would see.
    Test(Test),
}

/// A request that might come.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// As a visitor would write it, such as `https://my-site.example.com/api?x=1`. The tunnel is the
    /// one whose name the host begins with.
    url: String,
    /// The tunnel, by the word in [tunnels.NAME], where the host does not tell it.
    #[arg(long, value_name = "NAME")]
    tunnel: Option<String>,
    /// The request's method.
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// A field of the request; may be given several times.
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<Field>,
    /// The visitor's address.
    #[arg(long, value_name = "IP", default_value = "203.0.113.1")]
    from: IpAddr,
    /// The config file. Default: see `uniroute config path`.
    #[arg(long, env = "UNIROUTE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl RoutesCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let Self::Test(test) = self;
        let path = test.config.clone().unwrap_or_else(config::default_path);
        let file = File::load(&path)?;
        let request = test.request()?;
        let key = test.tunnel(&file, request.host())?;
        let settings = quick_settings(&file, key)?;
        let verdict = Verdict::of(&settings, request)?;
        Ok(write!(io::stdout(), "tunnel:   {key}\n{verdict}")?)
    }
}

/// A request, and how it came.
struct Request {
    head: RequestHead,
    https: bool,
    https_port: u16,
    from: IpAddr,
}

impl Request {
    fn host(&self) -> &str {
        let authority = std::str::from_utf8(&self.head.authority).unwrap_or_default();
        authority.split(':').next().unwrap_or_default()
    }
}

impl Test {
    fn request(&self) -> anyhow::Result<Request> {
        // What `Uri` would refuse or change in a path is what this is for.
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("https", &self.url));
        anyhow::ensure!(
            matches!(scheme, "http" | "https"),
            "{}: write http:// or https://",
            self.url
        );
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let authority: http::uri::Authority = authority.parse()?;
        let target = target.split('#').next().unwrap_or_default();
        let slash = if target.starts_with('/') { "" } else { "/" };
        let target = format!("{slash}{target}");
        let sound = |byte: u8| byte > b' ' && byte != 0x7f;
        anyhow::ensure!(target.bytes().all(sound), "{}: a path holds no blanks", self.url);
        http::Method::from_bytes(self.method.as_bytes())?;
        let mut fields = Fields::default();
        fields.push("Host", Bytes::copy_from_slice(authority.as_str().as_bytes()));
        for field in &self.header {
            let (name, value) = field.clone().into_pair();
            fields.push(name, value);
        }
        Ok(Request {
            head: RequestHead {
                method: self.method.clone().into(),
                target: target.into(),
                authority: authority.as_str().to_owned().into(),
                version: HttpVersion::HttpVersion11,
                fields,
            },
            https: scheme == "https",
            https_port: authority.port_u16().filter(|_| scheme == "https").unwrap_or(443),
            from: self.from,
        })
    }

    /// By its word, by the public name, or because there is no other.
    fn tunnel<'f>(&self, file: &'f File, host: &str) -> anyhow::Result<&'f str> {
        let label = host.split('.').next().unwrap_or_default();
        let mut tunnels = file.tunnels.iter();
        let found = match &self.tunnel {
            Some(key) => tunnels.find(|(known, _)| *known == key),
            None => tunnels.find(|(_, tunnel)| {
                tunnel.public_name().is_some_and(|name| name.eq_ignore_ascii_case(label))
            }),
        };
        let only = || file.tunnels.iter().next().filter(|_| file.tunnels.len() == 1);
        let only =
            || only().filter(|(_, tunnel)| self.tunnel.is_none() && tunnel.public_name().is_none());
        let known = || file.tunnels.keys().cloned().collect::<Vec<_>>().join(", ");
        let found = found.or_else(only).ok_or_else(|| {
            let wanted = self.tunnel.as_deref().unwrap_or(label);
            anyhow::anyhow!("no tunnel for {wanted:?}; say --tunnel NAME, there are: {}", known())
        })?;
        Ok(found.0)
    }
}

/// The settings of a tunnel that nobody will come in by.
fn quick_settings(file: &File, key: &str) -> anyhow::Result<TunnelSettings> {
    let settings = file.settings(key, &Hashes::none());
    Ok(settings.ok_or_else(|| anyhow::anyhow!("no tunnel {key:?}"))??)
}

/// What becomes of a request, for people.
#[derive(Debug)]
struct Verdict {
    lines: Vec<(&'static str, String)>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(what, text)| {
            let colon = if what.is_empty() { ' ' } else { ':' };
            writeln!(
                f,
                "{what}{colon}{:width$}{text}",
                "",
                width = 9_usize.saturating_sub(what.len())
            )
        })
    }
}

impl Verdict {
    fn of(settings: &TunnelSettings, request: Request) -> anyhow::Result<Self> {
        let policy = settings.policy()?.unwrap_or_default();
        let policy = Policy::compile(&policy)?;
        let Request { head, https, https_port, from } = request;
        let mut verdict = Self { lines: Vec::new() };
        match policy.admit(&head, Seen { visitor: from, https, https_port }) {
            Admit::Redirect(location) => {
                verdict.say("answer", format!("308 to {}", lossy(&location)));
                verdict.say("why", "`redirect_https`, and the request came by http".to_owned());
            }
            Admit::Refuse(refusal) => {
                let code = refusal.code();
                let status = code.status.map_or(String::new(), |status| status.to_string());
                verdict.say("answer", format!("{status} ({code}): {}", code.title));
                verdict.say("why", format!("{from}: {refusal}"));
            }
            Admit::Pass(pass) => verdict.passes(settings, &policy, head, &pass, https),
        }
        Ok(verdict)
    }

    fn say(&mut self, what: &'static str, text: String) {
        self.lines.push((what, text));
    }

    fn passes(
        &mut self,
        settings: &TunnelSettings,
        policy: &Policy,
        mut head: RequestHead,
        pass: &Pass,
        https: bool,
    ) {
        let number = usize::try_from(pass.route.number).unwrap_or_default();
        let target = number.checked_sub(1).and_then(|index| settings.routes.get(index));
        self.say("answer", format!("from {}", target.unwrap_or(&settings.target)));
        let why = match number.checked_sub(1).and_then(|i| settings.policy.routes.get(i)) {
            Some(route) => format!("route {number}, path {:?}", route.path),
            None if settings.policy.routes.is_empty() => "the only upstream".to_owned(),
            None => "no route has this path".to_owned(),
        };
        self.say("why", why);
        if pass.credentials.is_some() {
            self.say("if", "the password is right (`basic_auth`)".to_owned());
        }
        if let Some(limit) = pass.whole_body {
            self.say("if", format!("the body is signed (`webhook`), and {limit} bytes at most"));
        } else if let Some(limit) = pass.max_body {
            self.say("if", format!("the body is {limit} bytes at most (`max_body`)"));
        }
        let public = Public::new(https, head.authority.clone());
        policy.rewrite_request(&mut head, pass.route, &public);
        self.say("request", format!("{} {}", lossy(&head.method), lossy(&head.target)));
        for (name, value) in head.fields.iter() {
            let hidden = name.eq_ignore_ascii_case(b"authorization");
            let value = if hidden { "***".into() } else { lossy(value) };
            self.say("", format!("{}: {value}", lossy(name)));
        }
    }
}

fn lossy(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    const FILE: &str = r#"
version = 1
[tunnels.web]
upstream = "3000"
name = "my-site"
host_header = "rewrite"
redirect_https = true
deny = ["198.51.100.0/24"]
request_headers = { set = { "X-Env" = "dev" }, remove = ["Cookie"] }
basic_auth = ["ann:secret"]
max_body = 1000
[[tunnels.web.routes]]
path = "/api"
upstream = "4000"
strip = true
prefix = "/v1"
[tunnels.hooks]
upstream = "file:./dist"
name = "hooks"
"#;

    fn test(arguments: &[&str]) -> anyhow::Result<String> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("uniroute.toml");
        std::fs::write(&path, FILE)?;
        let config = ["--config", path.to_str().unwrap()];
        let all = ["uniroute", "routes", "test"].iter().chain(&config).chain(arguments);
        let crate::cli::Command::Routes(RoutesCommand::Test(test)) = Cli::parse_from(all).command
        else {
            panic!("another command")
        };
        let file = File::load(&path)?;
        let request = test.request()?;
        let key = test.tunnel(&file, request.host())?;
        let verdict = Verdict::of(&quick_settings(&file, key)?, request)?;
        Ok(format!("{key}\n{verdict}"))
    }

    const SITE: &str = "https://my-site.example.com";

    #[test]
    fn refusals_are_told_with_their_rule() {
        let text = test(&["http://my-site.example.com/a?b"]).unwrap();
        assert!(text.contains("308 to https://my-site.example.com/a?b"), "{text}");
        let text = test(&[SITE, "--from", "198.51.100.7"]).unwrap();
        assert!(text.contains("403 (UR-4010)") && text.contains("`deny`"), "{text}");
        let text = test(&[&format!("{SITE}/api/../x")]).unwrap();
        assert!(text.contains("400 (UR-1120)"), "{text}");
        let text = test(&[SITE]).unwrap();
        assert!(text.contains("401 (UR-4011)") && text.contains("`basic_auth`"), "{text}");
    }

    #[test]
    fn what_passes_is_shown_as_the_local_server_would_see_it() {
        let url = format!("{SITE}/api/users?x=1");
        let text = test(&[
            &url,
            "--header",
            "Authorization: Basic YW5uOnNlY3JldA==",
            "--header",
            "Cookie: a=b",
            "--header",
            "Origin: https://my-site.example.com",
        ]);
        let text = text.unwrap();
        for part in [
            "from http://localhost:4000",
            "route 1, path \"/api\"",
            "the password is right",
            "1000 bytes at most",
            "GET /v1/users?x=1",
            "Host: localhost:4000",
            "Origin: http://localhost:4000",
            "X-Env: dev",
            "x-forwarded-prefix: /api",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("Cookie") && !text.contains("YW5u"), "{text}");
    }

    #[test]
    fn tunnels_are_found_by_name_or_word() {
        let text = test(&["https://hooks.example.com/"]).unwrap();
        assert!(text.contains("hooks\n") && text.contains("/./dist"), "{text}");
        assert!(text.contains("the only upstream"), "{text}");
        let text = test(&["https://other.example.com/", "--tunnel", "hooks"]).unwrap();
        assert!(text.starts_with("hooks\n"), "{text}");
        let error = test(&["https://other.example.com/"]).unwrap_err().to_string();
        assert!(error.contains("hooks, web"), "{error}");
        assert!(test(&["ftp://hooks.example.com/"]).is_err());
    }
}
