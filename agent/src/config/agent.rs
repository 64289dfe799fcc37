//! The section `[agent]`, and the flags and variables that say the same: one struct for all three, so
//! that nothing can be said in one place only.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, builder::BoolishValueParser};
use schemars::JsonSchema;
use serde::Deserialize;
use uniroute_agent::{Congestion, Pin, Proxy, Transport, connect::ServerUrl};
use uniroute_shared::{
    lanes::MAX_LANES,
    telemetry::{LogFormat, LogLevel},
};

use super::{
    SettingsError,
    inspector::Inspector,
    values::{Span, Written, from_folder, one_or_many, over},
};

/// What belongs to the agent as a whole.
///
/// Order: flag, environment, config file, default. Each flag NAME is the config key `agent.NAME`, with
/// underscores, unless its help says another.
#[derive(Clone, Debug, Default, Args, Deserialize, JsonSchema)]
#[command(next_help_heading = "The agent")]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AgentSection {
    /// URL of the edge: scheme (http, https, ws or wss), host and port; several, with commas: one that
    /// fails is followed by the next. Config key `agent.server`. Default: http://127.0.0.1:8080.
    #[arg(long, env = "UNIROUTE_SERVER", value_name = "URL", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany")]
    pub(crate) server: Vec<Written<ServerUrl>>,
    /// A file with the token, `-` for standard input; UNIROUTE_TOKEN goes over it.
    /// Config key `agent.token_file`. Default: what `uniroute login` has written.
    #[arg(long, env = "UNIROUTE_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Sessions with the edge at once, to different edges where there are several: 1 to 4.
    /// Config key `agent.sessions`. Default: 2.
    #[arg(long, env = "UNIROUTE_SESSIONS", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=4))]
    #[schemars(range(min = 1, max = 4))]
    pub(crate) sessions: Option<u8>,
    /// Longest time between two signs of life from the edge; the edge may want them more often.
    /// Config key `agent.heartbeat`. Default: the edge's.
    #[arg(long, env = "UNIROUTE_HEARTBEAT", value_name = "TIME")]
    pub(crate) heartbeat: Option<Span>,
    /// What carries the session: ws (WebSocket over TCP or TLS), quic (over UDP), or auto: ws at
    /// first, and quic where that was measured to be better. Config key `agent.transport`.
    /// Default: auto.
    #[arg(long, env = "UNIROUTE_TRANSPORT", value_name = "auto|ws|quic")]
    #[schemars(extend("enum" = ["auto", "ws", "quic", null]))]
    pub(crate) transport: Option<Written<Transport>>,
    /// Let the kernel cut long sends over QUIC into datagrams. Config key `agent.quic_gso`.
    /// Default: true.
    #[arg(skip)]
    pub(crate) quic_gso: Option<bool>,
    /// What decides how much is sent over QUIC: bbr or cubic. Config key `agent.quic_congestion`.
    /// Default: bbr.
    #[arg(skip)]
    #[schemars(with = "Option<String>", extend("enum" = ["bbr", "cubic", null]))]
    pub(crate) quic_congestion: Option<Congestion>,
    /// Connections for long bodies beside the session's own, opened when there are some; 0 to 8, only
    /// over WebSocket. Config key `agent.lanes`. Default: 4.
    #[arg(long, env = "UNIROUTE_LANES", value_name = "N", value_parser = clap::value_parser!(u8).range(..=8))]
    #[schemars(range(max = 8))]
    pub(crate) lanes: Option<u8>,
    /// PEM file with the authorities for the edge's certificate. Config key `agent.server_ca`.
    /// Default: the system's.
    #[arg(long, env = "UNIROUTE_SERVER_CA", value_name = "FILE")]
    pub(crate) server_ca: Option<PathBuf>,
    /// Take the edge's certificate only if its public key has this hash; several with commas.
    /// Config key `agent.server_pin`. Default: any key that is trusted.
    #[arg(long, env = "UNIROUTE_SERVER_PIN", value_name = "sha256/BASE64", value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(with = "OneOrMany")]
    pub(crate) server_pin: Vec<Written<Pin>>,
    /// PEM file with the agent's own certificate, where the edge's front asks for one.
    /// Config key `agent.client_certificate`. Default: none.
    #[arg(long, env = "UNIROUTE_CLIENT_CERTIFICATE", value_name = "FILE")]
    pub(crate) client_certificate: Option<PathBuf>,
    /// PEM file with its private key. Config key `agent.client_key`. Default: none.
    #[arg(long, env = "UNIROUTE_CLIENT_KEY", value_name = "FILE")]
    pub(crate) client_key: Option<PathBuf>,
    /// The way out of this network: env (what HTTPS_PROXY, ALL_PROXY and NO_PROXY say), none, or
    /// http://HOST:PORT, https://…, socks5://…, socks5h://…; its credentials come from
    /// UNIROUTE_PROXY_CREDENTIALS (USER:PASSWORD). Config key `agent.proxy`. Default: env.
    #[arg(long, env = "UNIROUTE_PROXY", value_name = "env|none|URL", hide_env_values = true)]
    #[schemars(with = "Option<String>")]
    pub(crate) proxy: Option<ProxyText>,
    /// A file with USER:PASSWORD for the proxy; UNIROUTE_PROXY_CREDENTIALS goes over it.
    /// Config key `agent.proxy_credentials_file`. Default: none.
    #[arg(long, env = "UNIROUTE_PROXY_CREDENTIALS_FILE", value_name = "FILE")]
    pub(crate) proxy_credentials_file: Option<PathBuf>,
    /// Where the agent's id is kept. Config key `agent.state_dir`. Default: a folder of this user's
    /// state.
    #[arg(long, env = "UNIROUTE_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// What standard output gets: text (a live view on a terminal), one JSON object a line, or
    /// only the URLs. Config key `agent.output`. Default: text.
    #[arg(long, env = "UNIROUTE_OUTPUT", value_enum)]
    pub(crate) output: Option<Output>,
    /// Show the URL as a QR code too. Config key `agent.qr`. Default: false.
    #[arg(long, env = "UNIROUTE_QR", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub(crate) qr: Option<bool>,
    /// End with exit code 5 when the edge can't be reached at the start. Config key
    /// `agent.fail_fast`. Default: false.
    #[arg(long, env = "UNIROUTE_FAIL_FAST", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub(crate) fail_fast: Option<bool>,
    /// End with exit code 7 when a local server takes no connection at the start. Config key
    /// `agent.require_local`. Default: false.
    #[arg(long, env = "UNIROUTE_REQUIRE_LOCAL", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub(crate) require_local: Option<bool>,
    /// The log on standard error.
    #[command(flatten)]
    pub(crate) log: Log,
    /// The inspector of requests.
    #[command(flatten)]
    pub(crate) inspector: Inspector,
}

over!(AgentSection {
    server,
    token_file,
    sessions,
    heartbeat,
    transport,
    quic_gso,
    quic_congestion,
    lanes,
    server_ca,
    server_pin,
    client_certificate,
    client_key,
    proxy,
    proxy_credentials_file,
    state_dir,
    output,
    qr,
    fail_fast,
    require_local,
    log,
    inspector,
});

/// For the schema: a text, or a list of texts.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it is only described")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// What standard output gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Output {
    /// For people; a live view on a terminal.
    Text,
    /// One object a line.
    Json,
    /// One URL a line.
    Url,
}

/// `[agent.log]`.
#[derive(Clone, Debug, Default, Args, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// off, error, warn, info, debug, trace, or directives. Config key `agent.log.level`.
    /// Default: warn.
    #[arg(id = "log_level", long = "log-level", env = "UNIROUTE_LOG_LEVEL", value_name = "LEVEL")]
    #[schemars(with = "Option<String>")]
    pub(crate) level: Option<Written<LogLevel>>,
    /// text or json. Config key `agent.log.format`. Default: text.
    #[arg(
        id = "log_format",
        long = "log-format",
        env = "UNIROUTE_LOG_FORMAT",
        value_name = "FORMAT"
    )]
    #[schemars(extend("enum" = ["text", "json", null]))]
    pub(crate) format: Option<Written<LogFormat>>,
    /// A line for each request, with its tunnel, method, path without query, status and time. Config
    /// key `agent.log.requests`. Default: false.
    #[arg(id = "log_requests", long = "log-requests", env = "UNIROUTE_LOG_REQUESTS", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub(crate) requests: Option<bool>,
}

over!(Log { level, format, requests });

/// The way out, as it is written. It prints without what may be a password.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ProxyText(String);

impl std::fmt::Debug for ProxyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProxyText")
    }
}

impl std::str::FromStr for ProxyText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for ProxyText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// User and password of the proxy.
const CREDENTIALS: &str = "UNIROUTE_PROXY_CREDENTIALS";
/// Longest file with them, in bytes.
const MAX_CREDENTIALS: u64 = 4096;
/// The most sessions at once.
const MAX_SESSIONS: u8 = 4;

impl ProxyText {
    fn has_password(&self) -> bool {
        let rest = self.0.split_once("://").map_or(&*self.0, |(_, rest)| rest);
        let authority = rest.split('/').next().unwrap_or_default();
        authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    }

    /// The same with the user and password of `credentials`, as a URL writes them.
    fn with(&self, credentials: &str) -> Result<String, &'static str> {
        let (user, password) = credentials.split_once(':').ok_or("write USER:PASSWORD")?;
        let (scheme, rest) = self.0.split_once("://").ok_or("they are for a proxy with a URL")?;
        if rest.contains('@') {
            return Err("the proxy's URL has a user already");
        }
        Ok(format!("{scheme}://{}:{}@{rest}", escaped(user), escaped(password)))
    }
}

/// What may not stand in a URL's user or password as it is becomes `%XX`.
fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let escape = |byte: u8| match plain(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

impl AgentSection {
    /// What is wrong with it, by key.
    pub(crate) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = self.inspector.faults();
        if self.sessions.is_some_and(|count| !(1..=MAX_SESSIONS).contains(&count)) {
            faults.push(("sessions", format!("from 1 to {MAX_SESSIONS}")));
        }
        if self.lanes.is_some_and(|lanes| usize::from(lanes) > MAX_LANES) {
            faults.push(("lanes", format!("from 0 to {MAX_LANES}")));
        }
        if self.heartbeat.is_some_and(|Span(length)| length.is_zero()) {
            faults.push(("heartbeat", "longer than 0".to_owned()));
        }
        match (&self.client_certificate, &self.client_key) {
            (Some(_), None) => {
                let what = "client_key is missing: a certificate proves nothing without its key";
                faults.push(("client_certificate", what.to_owned()));
            }
            (None, Some(_)) => {
                faults.push(("client_key", "client_certificate is missing".to_owned()));
            }
            _ => {}
        }
        if let Some(ProxyText(text)) = &self.proxy
            && let Err(error) = text.parse::<Proxy>()
        {
            faults.push(("proxy", error.to_string()));
        }
        faults
    }

    /// What is wrong with a file that others may read, if it has a password.
    pub(super) fn exposed(&self, file: &Path) -> Option<String> {
        self.proxy.as_ref().filter(|proxy| proxy.has_password())?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(file).ok()?.permissions().mode();
            (mode & 0o077 != 0).then(|| {
                let file = file.display();
                format!(
                    "the proxy's password is in a file that others can read: `chmod 600 {file}`, or move it into proxy_credentials_file"
                )
            })
        }
        #[cfg(not(unix))]
        {
            let _ = file;
            None
        }
    }

    /// What was said on the command line must hold no password: others can read that.
    pub(crate) fn check_arguments(&self) -> Result<(), SettingsError> {
        let of_environment = |text: &str| std::env::var("UNIROUTE_PROXY").is_ok_and(|v| v == text);
        match &self.proxy {
            Some(proxy) if proxy.has_password() && !of_environment(&proxy.0) => {
                Err(SettingsError::Agent(format!(
                    "--proxy: everybody on this machine can read a password on the command line: give it by {CREDENTIALS} (USER:PASSWORD)"
                )))
            }
            _ => Ok(()),
        }
    }

    /// The way out, with its credentials.
    pub(crate) fn proxy(&self) -> Result<Proxy, SettingsError> {
        let wrong = |what: String| SettingsError::Agent(format!("the proxy: {what}"));
        let Some(proxy) = &self.proxy else { return Ok(Proxy::default()) };
        let text = match self.proxy_credentials()? {
            Some(credentials) => proxy
                .with(credentials.trim())
                .map_err(|what| wrong(format!("its credentials: {what}")))?,
            None => proxy.0.clone(),
        };
        text.parse().map_err(|error: uniroute_agent::ProxyError| wrong(error.to_string()))
    }

    fn proxy_credentials(&self) -> Result<Option<String>, SettingsError> {
        if let Some(credentials) = super::variable(CREDENTIALS) {
            return Ok(Some(credentials.to_string_lossy().into_owned()));
        }
        let Some(path) = &self.proxy_credentials_file else { return Ok(None) };
        let bytes = super::policy::read_bounded(path, MAX_CREDENTIALS);
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
        text.map(Some).map_err(|error| {
            SettingsError::Agent(format!(
                "cannot read the proxy's credentials in {}: {error}",
                path.display()
            ))
        })
    }

    /// Paths of the file in `folder` begin there.
    pub(super) fn rebase(&mut self, folder: &Path) {
        let paths = [
            &mut self.token_file,
            &mut self.server_ca,
            &mut self.client_certificate,
            &mut self.client_key,
            &mut self.proxy_credentials_file,
            &mut self.state_dir,
            &mut self.inspector.spool_dir,
        ];
        for path in paths.into_iter().flatten() {
            *path = from_folder(path, folder);
        }
    }
}
