//! The section `[tunnels.NAME]`: what is written about one tunnel, and what the agent makes of it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use uniroute_agent::{
    FileSettings, HealthCheck, HealthProbe, TunnelKind, TunnelLimits, TunnelSettings,
    upstream::{Place, Protocol, Scheme, Target, Trust},
};
use uniroute_proto::v1;
use uniroute_shared::{id::Subdomain, network::Network, policy::password, proxy_protocol};

use super::{
    agent::OneOrMany,
    policy::{FileHeaders, FileRoute, FileWebhook, HostHeader, User},
    values::{Size, Span, SpanOrOff, Written, from_folder, one_or_many},
};

/// Longest time that a request waits for its local server.
const MAX_HOLD: Duration = Duration::from_secs(120);
/// Longest time that any edge lets a request wait for its agent.
const MAX_RECONNECT: Duration = Duration::from_secs(300);
/// Local servers of one tunnel.
const MAX_UPSTREAMS: usize = 32;
/// How often a local server is looked at.
const HEALTH_INTERVAL: Span = Span::secs(10);
/// How long a look may take.
const HEALTH_TIMEOUT: Span = Span::secs(5);
/// Failures in a row that make a local server unhealthy.
const FALL: u32 = 3;
/// Successes in a row that make it healthy again.
const RISE: u32 = 1;
/// Most of either.
const MAX_IN_A_ROW: u32 = 100;

/// One tunnel.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileTunnel {
    /// What it carries: http, tcp, tls or udp. Default: what `url` says, or http.
    #[schemars(with = "Option<String>", extend("enum" = ["http", "tcp", "tls", "udp", null]))]
    pub(crate) kind: Option<TunnelKind>,
    /// The local server: a port, HOST:PORT, http://…, https://…, unix:PATH, or file:FOLDER; several of
    /// them, for http and tcp, share the work.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany")]
    pub(crate) upstream: Vec<String>,
    /// The public URL wanted, in place of `name` and `port`: `https://NAME.DOMAIN` or
    /// `tcp://DOMAIN:PORT`.
    pub(crate) url: Option<String>,
    /// The public name wanted; the edge chooses one otherwise.
    pub(crate) name: Option<String>,
    /// The public port wanted, of tcp and udp; 0: the edge chooses one.
    pub(crate) port: Option<u16>,
    /// Requests and answers are kept for the inspector. Default: true.
    pub(crate) inspect: Option<bool>,
    /// How the local server's health is found out.
    #[serde(default)]
    pub(crate) health: FileHealth,
    /// What waits for a local server, or for the agent, that is not there.
    #[serde(default)]
    pub(crate) hold: FileHold,
    /// How much the edge lets in.
    #[serde(default)]
    pub(crate) limits: FileLimits,
    /// For which nothing may move on a connection or flow, or, of http, while a body is under way; 0:
    /// for ever.
    pub(crate) idle_timeout: Option<Span>,
    /// v1 or v2: the local server of a tcp or tls tunnel is told who the visitor is.
    #[schemars(extend("enum" = ["v1", "v2", null]))]
    pub(crate) proxy_protocol: Option<Written<proxy_protocol::Version>>,
    /// PEM file with the authorities for an https upstream.
    pub(crate) upstream_ca: Option<PathBuf>,
    /// Takes any certificate of an https upstream.
    #[serde(default)]
    pub(crate) insecure_upstream: bool,
    /// auto, http1 or h2.
    #[schemars(extend("enum" = ["auto", "http1", "h2", null]))]
    pub(crate) upstream_protocol: Option<Written<Protocol>>,
    /// For a connection to the local server. Default: 5 seconds.
    pub(crate) connect_timeout: Option<Span>,
    /// For its answer to begin; 0: for ever. Default: 120 seconds.
    pub(crate) response_timeout: Option<Span>,
    /// Of folders: the file for pages that are not there.
    pub(crate) file_fallback: Option<String>,
    /// Of folders: show what begins with a dot.
    #[serde(default)]
    pub(crate) file_dotfiles: bool,

    // The policy. One by one, since serde can't refuse unknown keys in what is flattened.
    /// What the local server sees as Host: preserve, rewrite or a host.
    #[schemars(with = "Option<String>")]
    pub(crate) host_header: Option<HostHeader>,
    /// Of what the local server gets.
    #[serde(default)]
    pub(crate) request_headers: FileHeaders,
    /// Of what the visitor gets.
    #[serde(default)]
    pub(crate) response_headers: FileHeaders,
    /// Paths that go to other local servers.
    #[serde(default)]
    pub(crate) routes: Vec<FileRoute>,
    /// http is sent to https.
    #[serde(default)]
    pub(crate) redirect_https: bool,
    /// Who may come in, each as USER:PASSWORD or USER:HASH.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(crate) basic_auth: Vec<User>,
    /// The same, one a line.
    pub(crate) basic_auth_file: Option<PathBuf>,
    /// A variable with the same.
    pub(crate) basic_auth_env: Option<String>,
    /// The local server gets the password too.
    #[serde(default)]
    pub(crate) basic_auth_forward: bool,
    /// Networks that visitors may come from.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(crate) allow: Vec<Network>,
    /// Networks that they may not come from.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(crate) deny: Vec<Network>,
    /// Whose signatures are checked.
    pub(crate) webhook: Option<FileWebhook>,
    /// Longest body of a request; 0: any.
    pub(crate) max_body: Option<Size>,
    /// For a request and its answer in all; 0: for ever.
    pub(crate) total_timeout: Option<Span>,
    /// Answers are compressed.
    #[serde(default)]
    pub(crate) compression: bool,
    /// HTML for failures.
    pub(crate) error_page: Option<PathBuf>,
}

/// `[tunnels.NAME.health]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FileHealth {
    /// tcp (it takes a connection), http (it answers a GET), or off: only what requests show counts.
    /// Default: http if there is a `path`, off otherwise.
    pub(crate) probe: Option<Probe>,
    /// Path and query of the GET. Default: /.
    pub(crate) path: Option<String>,
    /// The only status that will do. Default: any from 200 to 399.
    #[schemars(range(min = 100, max = 599))]
    pub(crate) status: Option<u16>,
    /// Between two checks. Default: 10 seconds.
    pub(crate) interval: Option<Span>,
    /// For one of them. Default: 5 seconds.
    pub(crate) timeout: Option<Span>,
    /// Successes in a row that make it healthy again. Default: 1.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) rise: Option<u32>,
    /// Failures in a row that make it unhealthy. Default: 3.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) fall: Option<u32>,
}

/// How one look is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Probe {
    /// It takes a connection.
    Tcp,
    /// It answers a GET.
    Http,
    /// Not at all.
    Off,
}

/// `[tunnels.NAME.hold]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FileHold {
    /// How long a request waits for a local server that takes no connection, such as one that is
    /// being restarted; 120 seconds at most. Default: 0: it fails at once.
    pub(crate) local: Option<Span>,
    /// How long the edge lets a request wait for this agent while it is away, such as for a
    /// connection that broke; off or 0: it fails at once. Never longer than the edge's own time, which
    /// is the default.
    pub(crate) reconnect: Option<SpanOrOff>,
}

/// `[tunnels.NAME.limits]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FileLimits {
    /// Requests a second, of tcp, tls and udp new connections or flows; a second's worth may come at
    /// once. Default: as many as the edge's own limits let in.
    #[schemars(range(min = 1))]
    pub(crate) requests_per_second: Option<u32>,
    /// Requests that are under way at a time, of tcp, tls and udp open connections or flows. Default:
    /// as many as the edge's own limits let in.
    #[schemars(range(min = 1))]
    pub(crate) in_flight: Option<u32>,
}

/// One thing wrong with a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TunnelFault {
    /// The tunnel, by its word.
    pub(crate) tunnel: String,
    /// The key, as in `health.path`.
    pub(crate) key: String,
    pub(crate) what: String,
    /// Something that is named can't be read, which is not what was written.
    pub(crate) unreadable: bool,
}

impl fmt::Display for TunnelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tunnel, key, what, .. } = self;
        write!(f, "tunnel {tunnel:?}: {key}: {what}")
    }
}

/// What is wrong with one tunnel, as far as it was looked at.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(String, String, bool)>);

impl Faults {
    pub(super) fn say(&mut self, key: impl Into<String>, what: impl fmt::Display) {
        self.0.push((key.into(), what.to_string(), false));
    }

    pub(super) fn cannot_read(&mut self, key: impl Into<String>, what: impl fmt::Display) {
        self.0.push((key.into(), what.to_string(), true));
    }

    /// What `result` holds, or a note of its fault.
    pub(super) fn take<T, E: fmt::Display>(
        &mut self,
        key: impl Into<String>,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|error| self.say(key, error)).ok()
    }
}

/// How passwords become hashes, which takes long: for who only looks for faults not at all, and for
/// who reads a file again only those that are new. An unchanged password keeps its hash, salt and all.
#[derive(Default)]
pub(crate) struct Hashes {
    known: Mutex<HashMap<HashOf, String>>,
    /// Nobody will be let in by them.
    never: bool,
}

/// Tunnel, user and password.
type HashOf = (String, String, String);

/// Takes the place of a hash where nobody will be let in by it.
const NO_HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQxMjM0NTY$mCbIFKx4QnDBBBTJbOa8rRRQLCO+RXq0e1NmbKDzjXs";

impl fmt::Debug for Hashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hashes").field("known", &self.known.lock().len()).finish_non_exhaustive()
    }
}

impl Hashes {
    /// None is made.
    pub(crate) fn none() -> Self {
        Self { never: true, ..Self::default() }
    }

    pub(super) fn hash(&self, tunnel: &str, user: &str, secret: &str) -> String {
        if self.never {
            return NO_HASH.to_owned();
        }
        let of = (tunnel.to_owned(), user.to_owned(), secret.to_owned());
        let mut known = self.known.lock();
        known.entry(of).or_insert_with(|| password::hash(secret.as_bytes())).clone()
    }

    /// Forgets passwords that are written nowhere any more.
    pub(super) fn keep(&self, used: &HashSet<&str>) {
        self.known.lock().retain(|_, hash| used.contains(hash.as_str()));
    }
}

impl FileTunnel {
    pub(crate) fn kind(&self) -> TunnelKind {
        let of_url = || match self.url.as_ref()?.split_once("://")?.0 {
            "tcp" => Some(TunnelKind::Tcp),
            "tls" => Some(TunnelKind::Tls),
            "udp" => Some(TunnelKind::Udp),
            _ => None,
        };
        self.kind.or_else(of_url).unwrap_or_default()
    }

    /// The public name wanted, said as a name or as a URL.
    pub(crate) fn public_name(&self) -> Option<String> {
        self.name.clone().or_else(|| self.place().ok()?.0)
    }

    /// Checked settings.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(crate) fn settings(
        &self,
        key: &str,
        hashes: &Hashes,
    ) -> Result<TunnelSettings, Vec<TunnelFault>> {
        let mut faults = Faults::default();
        let settings = self.settings_with(key, hashes, &mut faults);
        let fault = |(place, what, unreadable)| TunnelFault {
            tunnel: key.to_owned(),
            key: place,
            what,
            unreadable,
        };
        match settings {
            Some(settings) if faults.0.is_empty() => Ok(settings),
            _ => Err(faults.0.into_iter().map(fault).collect()),
        }
    }

    fn settings_with(
        &self,
        key: &str,
        hashes: &Hashes,
        faults: &mut Faults,
    ) -> Option<TunnelSettings> {
        self.check_kind(faults);
        let kind = self.kind();
        let targets = self.targets(faults);
        let (name, port) = self.name_and_port(faults);
        let (policy, routes) = self.policy(key, hashes, faults);
        let mut targets = targets.into_iter();
        let mut settings = TunnelSettings::http(key, targets.next()?);
        settings.kind = kind;
        settings.further = targets.collect();
        (settings.name, settings.port) = (name, port);
        settings.inspect = self.inspect.unwrap_or(true);
        settings.health = self.health.check(faults);
        settings.hold_local = self.hold.local.unwrap_or(Span::secs(0)).0;
        if settings.hold_local > MAX_HOLD {
            faults.say("hold.local", "a request waits 120 seconds at most");
        }
        settings.hold_reconnect = self.hold.reconnect.map(|SpanOrOff(length)| length);
        if settings.hold_reconnect.is_some_and(|length| length > MAX_RECONNECT) {
            faults.say("hold.reconnect", "no edge lets a request wait longer than 300 seconds");
        }
        settings.limits = self.limits.check(faults);
        settings.proxy_protocol = self.proxy_protocol.as_ref().map(|Written(version)| *version);
        settings.trust = match (&self.upstream_ca, self.insecure_upstream) {
            (Some(_), true) => {
                faults.say("upstream_ca", "it and insecure_upstream exclude each other");
                Trust::Insecure
            }
            (Some(path), false) => Trust::CaFile(path.clone()),
            (None, true) => Trust::Insecure,
            (None, false) => Trust::System,
        };
        if let Some(Written(protocol)) = self.upstream_protocol {
            settings.protocol = protocol;
        }
        if let Some(Span(limit)) = self.connect_timeout {
            if limit.is_zero() {
                faults.say("connect_timeout", "no connection is made in no time");
            }
            settings.connect_timeout = limit;
        }
        if let Some(Span(limit)) = self.response_timeout {
            settings.response_timeout = (!limit.is_zero()).then_some(limit);
        }
        settings.files =
            FileSettings { fallback: self.file_fallback.clone(), dotfiles: self.file_dotfiles };
        if kind == TunnelKind::Http {
            (settings.policy, settings.routes) = (policy, routes);
            if let Err(error) = settings.policy() {
                let error = error.to_string();
                let (place, what) = strip_tunnel(&error);
                faults.say(place, what);
            }
        } else {
            let limit = self.idle_timeout.map(|Span(limit)| limit);
            if limit.is_some_and(|limit| limit.is_zero()) && kind == TunnelKind::Udp {
                faults.say(
                    "idle_timeout",
                    "it can't be 0 for udp: nothing else tells that a flow is over, and so each would stay for ever",
                );
            }
            settings.idle_timeout = limit.filter(|limit| !limit.is_zero());
            let only_idle =
                v1::HttpPolicy { idle_timeout_ms: policy.idle_timeout_ms, ..Default::default() };
            if policy != only_idle {
                let kind = kind.as_str();
                faults.say(
                    "kind",
                    format!(
                        "what is done with requests (docs/policy.md) is not for {kind} tunnels"
                    ),
                );
            }
        }
        Some(settings)
    }

    fn targets(&self, faults: &mut Faults) -> Vec<Target> {
        let kind = self.kind();
        let target = |text: &String| match kind.scheme() {
            None => text.parse(),
            Some(scheme) => Target::socket(scheme, text),
        };
        if self.upstream.is_empty() {
            faults.say("upstream", "where does it lead to? Write a port, such as \"3000\"");
        }
        if self.upstream.len() > 1 && !matches!(kind, TunnelKind::Http | TunnelKind::Tcp) {
            faults.say("upstream", format!("{} tunnels have one local server", kind.as_str()));
        }
        if self.upstream.len() > MAX_UPSTREAMS {
            faults.say("upstream", format!("{MAX_UPSTREAMS} local servers at most"));
        }
        let targets: Vec<_> =
            self.upstream.iter().filter_map(|text| faults.take("upstream", target(text))).collect();
        let is_folder = |target: &Target| matches!(target.place, Place::Files(_));
        if targets.len() > 1 && targets.iter().any(is_folder) {
            faults.say("upstream", "a folder is no server that could share the work");
        }
        targets
    }

    /// The name and the port of `url`, not yet compared with `name` and `port`.
    fn place(&self) -> Result<(Option<String>, Option<u16>), String> {
        let Some(text) = &self.url else { return Ok((None, None)) };
        let wrong = |why: &str| {
            format!("{text:?}: {why}. Write https://NAME.DOMAIN, or tcp://DOMAIN:PORT for a port")
        };
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| wrong("the scheme is missing"))?;
        let written = match scheme {
            "http" | "https" => TunnelKind::Http,
            "tcp" => TunnelKind::Tcp,
            "tls" => TunnelKind::Tls,
            "udp" => TunnelKind::Udp,
            _ => return Err(wrong("the scheme is none of http, https, tcp, tls and udp")),
        };
        if written != self.kind() {
            let kind = self.kind().as_str();
            return Err(format!("{text:?} is of another kind than the tunnel, which is {kind}"));
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(wrong("a path or a user name means nothing here"));
        }
        let uri: Uri = authority.parse().map_err(|_| wrong("it can't be read"))?;
        let host = uri.host().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| wrong("the host is missing"))?;
        Ok(match written {
            // The port is that of the edge's own door.
            TunnelKind::Http | TunnelKind::Tls => (host.split('.').next().map(str::to_owned), None),
            TunnelKind::Tcp | TunnelKind::Udp => {
                (None, Some(uri.port_u16().ok_or_else(|| wrong("the port is missing"))?))
            }
        })
    }

    fn name_and_port(&self, faults: &mut Faults) -> (Option<String>, Option<u16>) {
        let (of_url, port_of_url) = faults.take("url", self.place()).unwrap_or_default();
        for (place, name) in [("url", &of_url), ("name", &self.name)] {
            if let Some(Err(error)) = name.as_deref().map(Subdomain::parse) {
                faults.say(place, format!("{:?}: {error}", name.as_deref().unwrap_or_default()));
            }
        }
        let other = |said: &str, other: &str| format!("it says {said}, and `url` says {other}");
        if let (Some(name), Some(of_url)) = (&self.name, &of_url)
            && !name.eq_ignore_ascii_case(of_url)
        {
            faults.say("name", other(name, of_url));
        }
        if let (Some(port), Some(of_url)) = (self.port, port_of_url)
            && port != of_url
        {
            faults.say("port", other(&port.to_string(), &of_url.to_string()));
        }
        let port = self.port.or(port_of_url).filter(|port| *port != 0);
        (self.name.clone().or(of_url), port)
    }

    /// A key that means nothing for this kind was meant for something else.
    fn check_kind(&self, faults: &mut Faults) {
        use TunnelKind::{Http, Tcp, Tls, Udp};
        let rules: [(&str, bool, &[TunnelKind]); 10] = [
            ("port", self.port.is_some(), &[Tcp, Udp]),
            ("upstream_protocol", self.upstream_protocol.is_some(), &[Http]),
            ("proxy_protocol", self.proxy_protocol.is_some(), &[Tcp, Tls]),
            ("upstream_ca", self.upstream_ca.is_some(), &[Http]),
            ("insecure_upstream", self.insecure_upstream, &[Http]),
            ("response_timeout", self.response_timeout.is_some(), &[Http]),
            ("health", self.health != FileHealth::default(), &[Http, Tcp, Tls]),
            ("hold", self.hold.local.is_some(), &[Http, Tcp, Tls]),
            ("hold.reconnect", self.hold.reconnect.is_some(), &[Http, Tcp, Tls]),
            ("file_fallback", self.file_fallback.is_some(), &[Http]),
        ];
        let kind = self.kind();
        for (what, said, kinds) in rules {
            if said && !kinds.contains(&kind) {
                faults.say(what, format!("it is not for {} tunnels", kind.as_str()));
            }
        }
    }

    /// Paths of the file in `folder` begin there.
    pub(super) fn rebase(&mut self, folder: &Path) {
        let paths = [&mut self.upstream_ca, &mut self.basic_auth_file, &mut self.error_page];
        for path in paths.into_iter().flatten() {
            *path = from_folder(path, folder);
        }
        if let Some(webhook) = &mut self.webhook {
            webhook.rebase(folder);
        }
        for text in &mut self.upstream {
            let target = Target::socket(Scheme::Tcp, text).or_else(|_| text.parse());
            match target.map(|target| target.place) {
                Ok(Place::Unix(path)) => {
                    *text = format!("unix:{}", from_folder(&path, folder).display());
                }
                Ok(Place::Files(path)) => {
                    *text = format!("file:{}", from_folder(&path, folder).display());
                }
                _ => {}
            }
        }
        for route in &mut self.routes {
            route.rebase(folder);
        }
    }
}

/// The policy's own words, short of the tunnel's name: the key, and what is wrong.
fn strip_tunnel(error: &str) -> (&str, &str) {
    let rest = match error.strip_prefix("tunnel ").and_then(|rest| rest.split_once(": ")) {
        Some((_, rest)) => rest,
        None => error,
    };
    match rest.split_once(": ") {
        Some((key, what)) if !key.contains(' ') => (key, what),
        _ => ("routes", rest),
    }
}

impl FileLimits {
    fn check(self, faults: &mut Faults) -> TunnelLimits {
        let Self { requests_per_second, in_flight } = self;
        for (key, limit) in
            [("limits.requests_per_second", requests_per_second), ("limits.in_flight", in_flight)]
        {
            if limit == Some(0) {
                faults.say(key, "0 would let nobody in: leave it out for no limit of its own");
            }
        }
        TunnelLimits { requests_per_second, in_flight }
    }
}

impl FileHealth {
    fn check(&self, faults: &mut Faults) -> HealthCheck {
        let default = if self.path.is_some() { Probe::Http } else { Probe::Off };
        let probe = self.probe.unwrap_or(default);
        if probe != Probe::Http {
            for (key, said) in
                [("health.path", self.path.is_some()), ("health.status", self.status.is_some())]
            {
                if said {
                    faults.say(key, "it is for probe = \"http\"");
                }
            }
        }
        let path = self.path.clone().unwrap_or_else(|| "/".to_owned());
        let sound = |byte: u8| byte > b' ' && byte < 0x7f && byte != b'#';
        if !path.starts_with('/') || !path.bytes().all(sound) {
            faults.say("health.path", format!("{path:?}: a path begins with / and has no blanks"));
        }
        if self.status.is_some_and(|status| !(100..=599).contains(&status)) {
            faults.say("health.status", "a status is a number from 100 to 599");
        }
        let least = Duration::from_millis(100);
        let mut time = |key: &str, written: Option<Span>, default: Span| {
            let Span(time) = written.unwrap_or(default);
            if time < least {
                faults.say(key, "a tenth of a second at least");
            }
            time
        };
        let interval = time("health.interval", self.interval, HEALTH_INTERVAL);
        let timeout = time("health.timeout", self.timeout, HEALTH_TIMEOUT);
        let mut count = |key: &str, written: Option<u32>, default: u32| {
            let count = written.unwrap_or(default);
            if !(1..=MAX_IN_A_ROW).contains(&count) {
                faults.say(key, format!("from 1 to {MAX_IN_A_ROW}"));
            }
            count
        };
        HealthCheck {
            fall: count("health.fall", self.fall, FALL),
            rise: count("health.rise", self.rise, RISE),
            interval,
            timeout,
            probe: match probe {
                Probe::Off => None,
                Probe::Tcp => Some(HealthProbe::Tcp),
                Probe::Http => Some(HealthProbe::Http { path, status: self.status }),
            },
        }
    }
}
