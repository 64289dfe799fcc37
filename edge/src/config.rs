//! What an operator writes (flags, environment, file) and what the edge uses, apart from each other.

mod durable;
mod sockets;

use std::{
    fs,
    io::{self, Read as _},
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use uniroute_shared::{
    carrier::quic::endpoint::{Congestion, Options},
    config_file::{self, ConfigError},
    id::{TokenSet, TokenSetError},
    network::Networks,
    telemetry::LogFormat,
};

use crate::store::StoreUrlError;

pub use self::{
    durable::{
        BanRules, Durable, DurableFile, QUARANTINE, RequestLog, SecretSource, default_data_dir,
    },
    sockets::{Https, Sockets},
};
pub use crate::{abuse::Bans, jobs::Retention, services::Signup, traffic::Log};

/// Heartbeats of sessions, both ways.
pub const HEARTBEAT: Duration = Duration::from_secs(30);
/// Connections, of visitors and agents together.
pub const MAX_CONNECTIONS: usize = 20_000;
/// Agents at a time.
pub const MAX_SESSIONS: usize = 15_000;
/// How long requests wait for an agent that has gone: longer than a restart takes, shorter than
/// most visitors' patience.
pub const HOLD: Duration = Duration::from_secs(10);
/// How long a visitor may take nothing of an answer that waits for him: longer than other servers
/// allow, for people pause downloads.
pub const STALL: Duration = Duration::from_secs(120);
/// Requests that wait so at a time.
pub const MAX_HELD: usize = 10_000;

/// Checked settings of one edge.
#[derive(Debug)]
pub struct Settings {
    /// Visitors and agents.
    pub http: SocketAddr,
    /// Agents over QUIC.
    pub quic: Quic,
    /// Operators; `None`: nobody.
    pub admin: Option<SocketAddr>,
    /// How QUIC sends.
    pub quic_options: Options,
    /// Tunnels are one label below this name.
    pub domain: String,
    /// Whether every host name that is no tunnel's is the edge's own, or the bare domain only.
    pub any_host_is_own: bool,
    /// How visitors reach the edge, where that is not the address it listens on.
    pub public_url: Option<PublicBase>,
    /// Tokens that agents may come with, beside those of users; all of one built-in owner.
    pub tokens: Option<TokenSet>,
    /// What lasts, and whose it is.
    pub durable: Durable,
    /// How often each side of a session gives a sign of life.
    pub heartbeat: Duration,
    /// How long a request waits for a tunnel whose agent has gone; zero: not at all.
    pub hold: Duration,
    /// Requests that wait so at a time, in all tunnels together.
    pub max_held: usize,
    /// How long a visitor may take nothing of an answer that waits for him, before his connection is
    /// closed; zero: for ever.
    pub stall: Duration,
    /// Threads, each with its own runtime.
    pub workers: NonZeroUsize,
    /// Connections at a time; the next one is answered 503 and closed.
    pub max_connections: usize,
    /// Agents at a time; the next one is answered 503.
    pub max_sessions: usize,
    /// What is not HTTP.
    pub sockets: Sockets,
    /// Proxies whose word is taken on where a request came from (`X-Forwarded-For`, `Forwarded`).
    pub trusted_proxies: Networks,
}

/// Where agents may connect over QUIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quic {
    /// At the address and port number of `http`; if that can't be had, nowhere, with a warning.
    BesideHttp,
    /// There, or the edge does not start.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// Scheme and port that visitors see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicBase {
    /// `http` or `https`.
    pub scheme: String,
    /// `None`: the scheme's own.
    pub port: Option<u16>,
}

/// The file of `serve --config`, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Always 1; checked before anything else.
    #[serde(rename = "version")]
    _version: Option<u32>,
    /// See [`Settings::http`].
    pub http: Option<SocketAddr>,
    /// An address, or `off`; see [`Settings::quic`].
    pub quic: Option<String>,
    /// See [`Options::gso`].
    pub quic_gso: Option<bool>,
    /// See [`Options::congestion`].
    pub quic_congestion: Option<Congestion>,
    /// An address, or `off`.
    pub admin: Option<String>,
    /// An address, or `off`; see [`Sockets::https`].
    pub https: Option<String>,
    /// `FIRST-LAST`, or `off`; see [`Sockets::tcp_ports`].
    pub tcp_ports: Option<String>,
    /// The same; see [`Sockets::udp_ports`].
    pub udp_ports: Option<String>,
    /// See [`Sockets::proxy_protocol`].
    pub proxy_protocol: Option<Networks>,
    /// See [`Settings::trusted_proxies`].
    pub trusted_proxies: Option<Networks>,
    /// See [`Settings::domain`].
    pub domain: Option<String>,
    /// Such as `https://tunnels.example.com`.
    pub public_url: Option<String>,
    /// One token a line.
    pub token_file: Option<PathBuf>,
    /// Where the edge keeps its files.
    pub data_dir: Option<PathBuf>,
    /// See [`Durable::store`].
    pub store: Option<String>,
    /// A copy of the database, for lists and analytics.
    pub store_replica: Option<String>,
    /// Connections to the database.
    pub store_connections: Option<usize>,
    /// See [`Durable::state`].
    pub state: Option<String>,
    /// Whom to trust over TLS there, instead of whom the system trusts.
    pub state_ca_file: Option<PathBuf>,
    /// See [`Durable::secret`].
    pub secret_file: Option<PathBuf>,
    /// See [`Durable::signup`].
    pub signup: Option<Signup>,
    /// How requests are written down.
    #[serde(default)]
    pub request_log: RequestLog,
    /// When an address is locked out.
    #[serde(default)]
    pub bans: BanRules,
    /// Directives of the log.
    pub log_level: Option<String>,
    /// `text` or `json`.
    pub log_format: Option<LogFormat>,
    /// See [`Settings::workers`].
    pub workers: Option<NonZeroUsize>,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
}

/// The section `[limits]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// See [`Settings::max_connections`].
    pub connections: Option<usize>,
    /// See [`Settings::max_sessions`].
    pub sessions: Option<usize>,
    /// See [`Settings::hold`]; 0 to 300.
    pub hold_seconds: Option<f64>,
    /// See [`Settings::max_held`].
    pub held_requests: Option<usize>,
    /// See [`Settings::stall`]; 0 to 86,400.
    pub stall_seconds: Option<f64>,
    /// See [`Durable::requests_per_second`]; 0: any number.
    pub requests_per_second: Option<u32>,
    /// See [`Durable::address_requests_per_second`]; 0: any number.
    pub address_requests_per_second: Option<u32>,
    /// See [`Durable::address_connections`].
    pub address_connections: Option<u32>,
    /// See [`Durable::quarantine`].
    pub name_quarantine_hours: Option<u32>,
    /// See [`Sockets::max_tunnel_connections`].
    pub tunnel_connections: Option<usize>,
    /// See [`Sockets::max_tunnel_flows`].
    pub tunnel_flows: Option<usize>,
}

/// The file that `config init` writes: every key with its default.
pub const SAMPLE: &str = include_str!("edge.sample.toml");

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// `domain` is no host name.
    #[error("domain {0:?} is not a host name such as tunnels.example.com")]
    Domain(String),
    /// `public_url` is no URL, or has more than scheme, host and port.
    #[error("public_url {0:?} must be http(s)://HOST[:PORT] with the host {1:?}, and nothing more")]
    PublicUrl(String, String),
    /// `admin` is no address.
    #[error("admin {0:?} is neither an address such as 127.0.0.1:9090 nor \"off\"")]
    Admin(String),
    /// `quic` is no address.
    #[error("quic {0:?} is neither an address such as 0.0.0.0:8080 nor \"off\"")]
    Quic(String),
    /// `hold_seconds` is no time to wait.
    #[error("limits.hold_seconds is {0}, which is no number of seconds from 0 to 300")]
    Hold(f64),
    /// `stall_seconds` is no time to wait.
    #[error("limits.stall_seconds is {0}, which is no number of seconds from 0 to 86400")]
    Stall(f64),
    /// `https` is no address.
    #[error("https {0:?} is neither an address such as 0.0.0.0:443 nor \"off\"")]
    Https(String),
    /// `tcp_ports` or `udp_ports` is no range.
    #[error("{0} {1:?} is neither a range of ports such as 20000-20999 nor \"off\"")]
    Ports(&'static str, String),
    /// The token file can't be read.
    #[error("cannot read the token file {0}: {1}")]
    TokenFile(PathBuf, io::Error),
    /// The token file holds something else.
    #[error("the token file {0}: {1}")]
    Tokens(PathBuf, TokenSetError),
    /// `store` or `store_replica` is no address of one.
    #[error("{0}: {1}")]
    Store(&'static str, StoreUrlError),
    /// `state` is no address of one.
    #[error("state: {0}")]
    State(String),
    /// A state that edges share, and a store that they can't.
    #[error(
        "state is shared between edges, and store is SQLite, which can't be: give store = \"postgres://…\" too"
    )]
    SharedState,
    /// `store_connections` is no number of connections.
    #[error("store_connections is {0}, which is no number from 1 to 1000")]
    StoreConnections(usize),
    /// There is no secret that edges share.
    #[error(
        "no secret: edges that share a database need the same one. Make a file with at least 32 random bytes (such as `openssl rand -hex 32`), readable by the edge alone, and give it to every edge (--secret-file FILE, UNIROUTE_SECRET_FILE, or secret_file in the config file)"
    )]
    NoSecret,
}

impl File {
    /// Reads a config file.
    ///
    /// # Errors
    /// Every fault in it, with key, file and line.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        Ok(config_file::load(path)?)
    }

    /// The settings that the file says, with what it leaves out at its default.
    ///
    /// # Errors
    /// [`SettingsError`] for values that can't be.
    pub fn settings(mut self) -> Result<Settings, SettingsError> {
        let durable = self.durable()?;
        let domain = domain(self.domain.as_deref().unwrap_or("localhost"))?;
        let sockets = self.sockets()?;
        Ok(Settings {
            http: self.http.unwrap_or_else(|| ([0, 0, 0, 0], 8080).into()),
            quic: quic(self.quic.as_deref())?,
            quic_options: Options {
                gso: self.quic_gso.unwrap_or(true),
                congestion: self.quic_congestion.unwrap_or_default(),
            },
            admin: admin(self.admin.as_deref().unwrap_or("127.0.0.1:9090"))?,
            public_url: self
                .public_url
                .as_deref()
                .map(|url| public_base(url, &domain))
                .transpose()?,
            tokens: self.token_file.as_deref().map(read_tokens).transpose()?,
            durable,
            domain,
            any_host_is_own: false,
            heartbeat: HEARTBEAT,
            hold: hold(self.limits.hold_seconds)?,
            stall: stall(self.limits.stall_seconds)?,
            max_held: self.limits.held_requests.unwrap_or(MAX_HELD),
            workers: self.workers.unwrap_or_else(cores),
            max_connections: self.limits.connections.unwrap_or(MAX_CONNECTIONS),
            max_sessions: self.limits.sessions.unwrap_or(MAX_SESSIONS),
            sockets,
            trusted_proxies: self.trusted_proxies.unwrap_or_default(),
        })
    }

    fn durable(&mut self) -> Result<Durable, SettingsError> {
        let file = DurableFile {
            data_dir: self.data_dir.clone(),
            store: self.store.as_deref(),
            store_replica: self.store_replica.as_deref(),
            store_connections: self.store_connections,
            state: self.state.as_deref(),
            state_ca_file: self.state_ca_file.clone(),
            secret_file: self.secret_file.clone(),
            signup: self.signup,
            log: std::mem::take(&mut self.request_log),
            bans: std::mem::take(&mut self.bans),
        };
        let limits = &self.limits;
        let some = |limit: Option<u32>| limit.filter(|limit| *limit > 0);
        let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 60 * 60);
        let half = limits.connections.unwrap_or(MAX_CONNECTIONS) / 2;
        let half = u32::try_from(half).unwrap_or(u32::MAX);
        Ok(Durable {
            requests_per_second: some(limits.requests_per_second),
            address_requests_per_second: some(limits.address_requests_per_second),
            address_connections: limits.address_connections.unwrap_or(half),
            quarantine: limits.name_quarantine_hours.map_or(QUARANTINE, hours),
            ..file.settings()?
        })
    }

    fn sockets(&self) -> Result<Sockets, SettingsError> {
        let default = Sockets::default();
        Ok(Sockets {
            https: sockets::https(self.https.as_deref())?,
            tcp_ports: sockets::ports("tcp_ports", self.tcp_ports.as_deref())?,
            udp_ports: sockets::ports("udp_ports", self.udp_ports.as_deref())?,
            proxy_protocol: self.proxy_protocol.clone().unwrap_or_default(),
            max_tunnel_connections: self
                .limits
                .tunnel_connections
                .unwrap_or(default.max_tunnel_connections),
            max_tunnel_flows: self.limits.tunnel_flows.unwrap_or(default.max_tunnel_flows),
        })
    }
}

/// One thread for each core.
#[must_use]
pub fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Reads a token file; `-` is standard input.
///
/// # Errors
/// When it can't be read, or what is in it are no tokens; never with a token in the words.
pub fn read_tokens(path: &Path) -> Result<TokenSet, SettingsError> {
    let read = || {
        if path == Path::new("-") {
            let mut text = String::new();
            return io::stdin().read_to_string(&mut text).map(|_| text);
        }
        fs::read_to_string(path)
    };
    let text = read().map_err(|error| SettingsError::TokenFile(path.to_owned(), error))?;
    TokenSet::parse(&text).map_err(|error| SettingsError::Tokens(path.to_owned(), error))
}

/// An address, or nothing for `off`.
///
/// # Errors
/// When it is neither.
pub fn admin(text: &str) -> Result<Option<SocketAddr>, SettingsError> {
    match text {
        "off" => Ok(None),
        text => text.parse().map(Some).map_err(|_| SettingsError::Admin(text.to_owned())),
    }
}

/// An address, `off`, or nothing said.
fn quic(text: Option<&str>) -> Result<Quic, SettingsError> {
    match text {
        None => Ok(Quic::BesideHttp),
        Some("off") => Ok(Quic::Off),
        Some(text) => text.parse().map(Quic::At).map_err(|_| SettingsError::Quic(text.to_owned())),
    }
}

fn hold(seconds: Option<f64>) -> Result<Duration, SettingsError> {
    match seconds {
        None => Ok(HOLD),
        Some(seconds) if (0.0..=300.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Some(seconds) => Err(SettingsError::Hold(seconds)),
    }
}

fn stall(seconds: Option<f64>) -> Result<Duration, SettingsError> {
    match seconds {
        None => Ok(STALL),
        Some(seconds) if (0.0..=86_400.0).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        Some(seconds) => Err(SettingsError::Stall(seconds)),
    }
}

fn domain(text: &str) -> Result<String, SettingsError> {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    // 63 bytes and a dot are left for a tunnel's name (RFC 1035, section 2.3.4).
    if text.len() > 253 - 64 || !text.split('.').all(label) {
        return Err(SettingsError::Domain(text));
    }
    Ok(text)
}

fn public_base(url: &str, domain: &str) -> Result<PublicBase, SettingsError> {
    let wrong = || SettingsError::PublicUrl(url.to_owned(), domain.to_owned());
    let uri: http::Uri = url.parse().map_err(|_| wrong())?;
    let scheme = uri.scheme_str().filter(|s| matches!(*s, "http" | "https")).ok_or_else(wrong)?;
    if uri.host() != Some(domain) || uri.path() != "/" || uri.query().is_some() {
        return Err(wrong());
    }
    Ok(PublicBase { scheme: scheme.to_owned(), port: uri.port_u16() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_valid_and_holds_the_defaults() {
        let file: File = config_file::parse(SAMPLE, "sample").unwrap();
        let mut plain = File::default();
        let dir = tempfile::tempdir().unwrap();
        let tokens = dir.path().join("token");
        fs::write(&tokens, "0123456789abcdef\n").unwrap();
        plain.token_file = Some(tokens.clone());
        let (file, plain) = (
            File { token_file: Some(tokens), ..file }.settings().unwrap(),
            plain.settings().unwrap(),
        );
        assert_eq!(format!("{file:?}"), format!("{plain:?}"));
        assert!(!format!("{file:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        assert!(domain("Tunnels.Example.").is_ok_and(|d| d == "tunnels.example"));
        for bad in ["", "a..b", "-a.example", "a b", "a/b"] {
            assert!(domain(bad).is_err(), "{bad}");
        }
        assert!(
            public_base("https://t.example:8443", "t.example").is_ok_and(|b| b.port == Some(8443))
        );
        for bad in ["t.example", "https://other.example", "https://t.example/x", "ftp://t.example"]
        {
            assert!(public_base(bad, "t.example").is_err(), "{bad}");
        }
        assert!(admin("off").unwrap().is_none());
        assert_eq!(quic(Some("off")).unwrap(), Quic::Off);
        assert!(quic(Some("8080")).unwrap_err().to_string().contains("0.0.0.0:8080"));
        assert!(admin("9090").unwrap_err().to_string().contains("127.0.0.1:9090"));
    }
}
