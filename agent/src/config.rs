//! What people write (flags, environment, file) and what the agent uses, apart from each other.

pub(crate) mod policy;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use uniroute_agent::{
    Congestion, FileSettings, Transport, TransportError, TunnelError, TunnelKind, TunnelSettings,
    connect::{ServerUrl, ServerUrlError},
    upstream::{ProtocolError, TargetError, Trust},
};
use uniroute_proto::v1;
use uniroute_shared::{
    config_file::{self, ConfigError},
    id::{AgentId, Subdomain, SubdomainError, Token, TokenError},
    lanes::MAX_LANES,
    network::Network,
    policy::password,
    proxy_protocol::UnknownVersion,
};

use self::policy::{FileHeaders, FileRoute, FileWebhook, HostHeader, User};

/// The file that `config init` writes.
pub(crate) const SAMPLE: &str = include_str!("uniroute.sample.toml");

/// The config file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    /// Always 1; checked before anything else.
    #[serde(rename = "version")]
    _version: Option<u32>,
    /// URL of the edge.
    pub(crate) server: Option<String>,
    /// Holds the token.
    pub(crate) token_file: Option<PathBuf>,
    /// `auto`, `ws` or `quic`.
    transport: Option<String>,
    /// Whether the kernel may cut long sends over QUIC into datagrams.
    pub(crate) quic_gso: Option<bool>,
    /// What decides how much is sent over QUIC.
    pub(crate) quic_congestion: Option<Congestion>,
    /// Connections for long bodies beside the session's own.
    lanes: Option<usize>,
    /// By the word that `start` takes.
    #[serde(default)]
    pub(crate) tunnels: BTreeMap<String, FileTunnel>,
}

/// The section `[tunnels.NAME]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileTunnel {
    /// What it carries: `http`, `tcp`, `tls` or `udp`.
    #[serde(default)]
    pub(crate) kind: TunnelKind,
    /// The local server.
    pub(crate) upstream: String,
    /// The public port wanted, of tcp and udp; 0: the edge chooses one.
    pub(crate) port: Option<u16>,
    /// Seconds for which nothing may move on a connection or flow, or, of http, while a body is under
    /// way; 0: for ever.
    pub(crate) idle_timeout: Option<f64>,
    /// `v1` or `v2`: the local server of a tcp or tls tunnel is told who the visitor is.
    pub(crate) proxy_protocol: Option<String>,
    /// The public name wanted; the edge chooses one otherwise.
    pub(crate) name: Option<String>,
    /// PEM file with the authorities for an https upstream.
    pub(crate) upstream_ca: Option<PathBuf>,
    /// Takes any certificate of an https upstream.
    #[serde(default)]
    pub(crate) insecure_upstream: bool,
    /// `auto`, `http1` or `h2`.
    pub(crate) upstream_protocol: Option<String>,
    /// Seconds for a connection to the local server.
    pub(crate) connect_timeout: Option<f64>,
    /// Seconds for its answer to begin; 0: for ever.
    pub(crate) response_timeout: Option<f64>,
    /// Of folders: the file for pages that are not there.
    pub(crate) file_fallback: Option<String>,
    /// Of folders: show what begins with a dot.
    #[serde(default)]
    pub(crate) file_dotfiles: bool,

    // The policy. One by one, since serde can't refuse unknown keys in what is flattened.
    /// `preserve`, `rewrite` or a host.
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
    pub(crate) allow: Vec<Network>,
    /// Networks that they may not come from.
    #[serde(default)]
    pub(crate) deny: Vec<Network>,
    /// Whose signatures are checked.
    pub(crate) webhook: Option<FileWebhook>,
    /// Longest body of a request in bytes; 0: any.
    pub(crate) max_body: Option<u64>,
    /// Seconds for a request and its answer in all; 0: for ever.
    pub(crate) total_timeout: Option<f64>,
    /// Answers are compressed.
    #[serde(default)]
    pub(crate) compression: bool,
    /// HTML for failures.
    pub(crate) error_page: Option<PathBuf>,
}

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error(transparent)]
    File(#[from] ConfigError),
    #[error("{0}: {1}")]
    Server(&'static str, ServerUrlError),
    #[error("transport {0:?}: {1}")]
    Transport(String, TransportError),
    #[error("lanes is {0}; there can be 0 to {MAX_LANES}")]
    Lanes(usize),
    #[error("tunnel {0:?}: {1}")]
    Target(String, TargetError),
    #[error("tunnel {0:?}: the name {1:?}: {2}")]
    Name(String, String, SubdomainError),
    #[error("tunnel {0:?}: {1} is {2}, which is no number of seconds from 0 to 86400")]
    Seconds(String, &'static str, f64),
    #[error("tunnel {key:?}: {what}: cannot read {}: {error}", path.display())]
    PolicyFile { key: String, what: &'static str, path: PathBuf, error: io::Error },
    #[error("tunnel {0:?}: {1}: the environment variable {2} is not set")]
    NoVariable(String, &'static str, String),
    #[error("tunnel {0:?}: {1}: its secrets come from one file or one environment variable")]
    WhichSecret(String, &'static str),
    #[error("tunnel {0:?}: basic_auth: {1}")]
    Users(String, String),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error("tunnel {0:?}: upstream_protocol is {1:?}: {2}")]
    Protocol(String, String, ProtocolError),
    #[error("tunnel {0:?}: {1} is not for {2} tunnels")]
    NotOfKind(String, &'static str, &'static str),
    #[error("tunnel {0:?}: {1}")]
    ProxyProtocol(String, UnknownVersion),
    #[error(
        "tunnel {0:?}: idle_timeout can't be 0 for udp: nothing else tells that a flow is over, and so each would stay for ever"
    )]
    EndlessFlows(String),
    #[error("tunnel {0:?}: upstream_ca and insecure_upstream exclude each other")]
    Trust(String),
    #[error("cannot read the token file {0}: {1}")]
    TokenFile(PathBuf, io::Error),
    #[error("the token in {0}: {1}")]
    Token(String, TokenError),
    #[error(
        "no token. Give one by UNIROUTE_TOKEN, by UNIROUTE_TOKEN_FILE or --token-file FILE (`-` reads standard input), or by token_file in the config file. `uniroute-edge dev` prints where its token is"
    )]
    NoToken,
    #[error("no tunnel {name:?} in {file}; there are: {known}")]
    NoTunnel { name: String, file: String, known: String },
    #[error("{0} has no tunnels: add [tunnels.NAME] with upstream = \"3000\"")]
    NoTunnels(String),
    #[error("which tunnels? Name them, or say --all. {file} has: {known}")]
    WhichTunnels { file: String, known: String },
}

impl File {
    pub(crate) fn load(path: &Path) -> Result<Self, SettingsError> {
        Ok(config_file::load(path)?)
    }

    /// The file at the usual place, if there is one.
    pub(crate) fn load_default() -> Result<Self, SettingsError> {
        let path = default_path();
        if path.exists() { Self::load(&path) } else { Ok(Self::default()) }
    }

    /// The tunnels with these names, or all.
    pub(crate) fn select(
        &self,
        file: &Path,
        names: &[String],
        all: bool,
    ) -> Result<Vec<TunnelSettings>, SettingsError> {
        let file = file.display().to_string();
        let known = || self.tunnels.keys().cloned().collect::<Vec<_>>().join(", ");
        if self.tunnels.is_empty() {
            return Err(SettingsError::NoTunnels(file));
        }
        if all {
            return self.tunnels.iter().map(|(key, tunnel)| tunnel.settings(key)).collect();
        }
        if names.is_empty() {
            return Err(SettingsError::WhichTunnels { file, known: known() });
        }
        let mut names = names.to_vec();
        names.sort_unstable();
        names.dedup();
        let one = |name: &String| match self.tunnels.get(name) {
            Some(tunnel) => tunnel.settings(name),
            None => Err(SettingsError::NoTunnel {
                name: name.clone(),
                file: file.clone(),
                known: known(),
            }),
        };
        names.iter().map(one).collect()
    }

    pub(crate) fn transport(&self) -> Result<Option<Transport>, SettingsError> {
        let parse = |text: &String| {
            text.parse().map_err(|error| SettingsError::Transport(text.clone(), error))
        };
        self.transport.as_ref().map(parse).transpose()
    }

    pub(crate) fn lanes(&self) -> Result<Option<usize>, SettingsError> {
        match self.lanes {
            Some(lanes) if lanes > MAX_LANES => Err(SettingsError::Lanes(lanes)),
            lanes => Ok(lanes),
        }
    }

    /// Every fault that shows without connecting.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        if let Some(server) = &self.server {
            server_url("server", server)?;
        }
        self.transport()?;
        self.lanes()?;
        self.tunnels
            .iter()
            .try_for_each(|(key, tunnel)| tunnel.settings_with(key, policy::no_hash).map(|_| ()))
    }
}

impl FileTunnel {
    /// Checked settings. Passwords are hashed, which takes a moment for each.
    pub(crate) fn settings(&self, key: &str) -> Result<TunnelSettings, SettingsError> {
        self.settings_with(key, password::hash)
    }

    /// The same where nobody will be let in by them.
    pub(crate) fn quick_settings(&self, key: &str) -> Result<TunnelSettings, SettingsError> {
        self.settings_with(key, policy::no_hash)
    }

    fn settings_with(
        &self,
        key: &str,
        hash: policy::Hasher,
    ) -> Result<TunnelSettings, SettingsError> {
        self.check_kind(key)?;
        let settings = TunnelSettings::of_kind(self.kind, key, &self.upstream);
        let mut settings = settings.map_err(|e| SettingsError::Target(key.to_owned(), e))?;
        if let Some(name) = &self.name {
            Subdomain::parse(name)
                .map_err(|error| SettingsError::Name(key.to_owned(), name.clone(), error))?;
        }
        settings.name.clone_from(&self.name);
        settings.port = self.port.filter(|port| *port != 0);
        settings.proxy_protocol = match &self.proxy_protocol {
            None => None,
            Some(text) => {
                let version = text.parse();
                Some(version.map_err(|e| SettingsError::ProxyProtocol(key.to_owned(), e))?)
            }
        };
        settings.trust = match (&self.upstream_ca, self.insecure_upstream) {
            (Some(_), true) => return Err(SettingsError::Trust(key.to_owned())),
            (Some(path), false) => Trust::CaFile(path.clone()),
            (None, true) => Trust::Insecure,
            (None, false) => Trust::System,
        };
        if let Some(text) = &self.upstream_protocol {
            settings.protocol = text
                .parse()
                .map_err(|error| SettingsError::Protocol(key.to_owned(), text.clone(), error))?;
        }
        if let Some(limit) = self.connect_timeout {
            settings.connect_timeout = seconds(key, "connect_timeout", limit)?;
        }
        if let Some(limit) = self.response_timeout {
            let limit = seconds(key, "response_timeout", limit)?;
            settings.response_timeout = (!limit.is_zero()).then_some(limit);
        }
        settings.files =
            FileSettings { fallback: self.file_fallback.clone(), dotfiles: self.file_dotfiles };
        let (policy, routes) = self.policy(key, hash)?;
        if self.kind == TunnelKind::Http {
            (settings.policy, settings.routes) = (policy, routes);
            settings.policy()?;
        } else {
            settings.idle_timeout = self.idle(key)?;
            let only_idle =
                v1::HttpPolicy { idle_timeout_ms: policy.idle_timeout_ms, ..Default::default() };
            if policy != only_idle {
                let kind = self.kind.as_str();
                return Err(SettingsError::NotOfKind(
                    key.to_owned(),
                    "what is done with requests",
                    kind,
                ));
            }
        }
        Ok(settings)
    }

    fn idle(&self, key: &str) -> Result<Option<Duration>, SettingsError> {
        let Some(limit) = self.idle_timeout else { return Ok(None) };
        let limit = seconds(key, "idle_timeout", limit)?;
        if limit.is_zero() && self.kind == TunnelKind::Udp {
            return Err(SettingsError::EndlessFlows(key.to_owned()));
        }
        Ok((!limit.is_zero()).then_some(limit))
    }

    /// A key that means nothing for this kind was meant for something else.
    fn check_kind(&self, key: &str) -> Result<(), SettingsError> {
        use TunnelKind::{Http, Tcp, Tls, Udp};
        let rules: [(&str, bool, &[TunnelKind]); 6] = [
            ("port", self.port.is_some(), &[Tcp, Udp]),
            ("upstream_protocol", self.upstream_protocol.is_some(), &[Http]),
            ("proxy_protocol", self.proxy_protocol.is_some(), &[Tcp, Tls]),
            ("upstream_ca", self.upstream_ca.is_some(), &[Http]),
            ("insecure_upstream", self.insecure_upstream, &[Http]),
            ("response_timeout", self.response_timeout.is_some(), &[Http]),
        ];
        for (what, said, kinds) in rules {
            if said && !kinds.contains(&self.kind) {
                let kind = self.kind.as_str();
                return Err(SettingsError::NotOfKind(key.to_owned(), what, kind));
            }
        }
        Ok(())
    }
}

fn seconds(key: &str, what: &'static str, value: f64) -> Result<Duration, SettingsError> {
    if !(0.0..=86_400.0).contains(&value) {
        return Err(SettingsError::Seconds(key.to_owned(), what, value));
    }
    Ok(Duration::from_secs_f64(value))
}

pub(crate) fn server_url(place: &'static str, text: &str) -> Result<ServerUrl, SettingsError> {
    text.parse().map_err(|error| SettingsError::Server(place, error))
}

/// The token: from the environment, from the file of the flag, or from the config file's.
pub(crate) fn token(file: Option<&Path>) -> Result<Token, SettingsError> {
    if let Ok(token) = std::env::var("UNIROUTE_TOKEN") {
        let parsed = Token::parse(token.trim());
        return parsed.map_err(|error| SettingsError::Token("UNIROUTE_TOKEN".into(), error));
    }
    let path = file.ok_or(SettingsError::NoToken)?;
    let text = read(path).map_err(|error| SettingsError::TokenFile(path.to_owned(), error))?;
    // The edge's own file may hold several, and comments: the first one is ours.
    Token::first(&text).map_err(|error| SettingsError::Token(path.display().to_string(), error))
}

fn read(path: &Path) -> io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        return io::stdin().read_to_string(&mut text).map(|_| text);
    }
    fs::read_to_string(path)
}

/// Where the config file is when nobody says otherwise.
pub(crate) fn default_path() -> PathBuf {
    folder("XDG_CONFIG_HOME", ".config").join("uniroute/uniroute.toml")
}

fn folder(variable: &str, in_home: &str) -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(in_home));
    std::env::var_os(variable).map(PathBuf::from).or_else(home).unwrap_or_else(std::env::temp_dir)
}

/// This machine's agent id: made once, kept in the user's state folder, so that a restarted agent
/// takes its names back.
///
/// # Errors
/// When the folder can't be written; the caller goes on with an id of this run's own.
pub(crate) fn agent_id(state_dir: Option<&Path>) -> io::Result<AgentId> {
    let dir = state_dir
        .map_or_else(|| folder("XDG_STATE_HOME", ".local/state").join("uniroute"), Path::to_owned);
    let path = dir.join("agent-id");
    if let Ok(text) = fs::read_to_string(&path)
        && let Ok(id) = AgentId::parse(text.trim())
    {
        return Ok(id);
    }
    fs::create_dir_all(&dir)?;
    let id = AgentId::random();
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    writeln!(options.open(&path)?, "{id}")?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<File, SettingsError> {
        Ok(config_file::parse(&format!("version = 1\n{text}"), "uniroute.toml")?)
    }

    #[test]
    fn the_sample_is_valid() {
        let file: File = config_file::parse(SAMPLE, "sample").unwrap();
        file.check().unwrap();
        assert_eq!(file.select(Path::new("x"), &[], true).unwrap().len(), 6);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
        let error = file("[tunnels.web]\nupstrem = \"3000\"\n").unwrap_err().to_string();
        for part in ["uniroute.toml:3:", "upstrem", "\"upstream\""] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn tunnels_are_selected_by_name() {
        let file =
            file("[tunnels.a]\nupstream = \"1\"\n[tunnels.b]\nupstream = \"2\"\nname = \"bee\"")
                .unwrap();
        let select = |names: &[&str], all| {
            let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
            file.select(Path::new("f"), &names, all)
        };
        assert_eq!(select(&["b", "b"], false).unwrap()[0].name.as_deref(), Some("bee"));
        assert!(select(&[], false).unwrap_err().to_string().contains("a, b"));
        assert!(select(&["c"], false).unwrap_err().to_string().contains("a, b"));
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        for (line, part) in [
            ("upstream = \"x\"", "port is missing"),
            ("upstream = \"1\"\nname = \"a_b\"", "a_b"),
            ("upstream = \"1\"\nconnect_timeout = -1.0", "connect_timeout"),
            ("upstream = \"1\"\nport = 20000", "port is not for http"),
            ("kind = \"tcp\"\nupstream = \"1\"\nresponse_timeout = 1.0", "not for tcp"),
            ("kind = \"udp\"\nupstream = \"1\"\nproxy_protocol = \"v1\"", "not for udp"),
            ("kind = \"udp\"\nupstream = \"1\"\nidle_timeout = 0.0", "stay for ever"),
            ("kind = \"tcp\"\nupstream = \"1\"\nproxy_protocol = \"v3\"", "v1 or v2"),
            ("kind = \"tls\"\nupstream = \"https://a\"", "another kind"),
            (
                "upstream = \"1\"\ninsecure_upstream = true\nupstream_ca = \"ca.pem\"",
                "exclude each other",
            ),
        ] {
            let file = file(&format!("[tunnels.web]\n{line}")).unwrap();
            let error = file.check().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("web"), "{error}");
        }
    }
}
