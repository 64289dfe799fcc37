//! The command line of `uniroute-edge`.

mod accounts;
mod store;

use std::{
    env, fs,
    io::{self, Write as _},
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{
    Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, builder::Resettable,
};
use uniroute_edge::config::{self, File, Https, SAMPLE, Settings, SettingsError};
use uniroute_shared::{id::Token, network::Networks, telemetry::LogFormat};

/// The public server of UniRoute Tunnel.
#[derive(Debug, Parser)]
#[command(name = "uniroute-edge", version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// What the command line and the environment say; ends the process where that can't be read, or
    /// help is wanted. A variable that is empty counts as not set, as files of variables and compose
    /// files have it.
    pub(crate) fn of_process() -> Self {
        let matches = without_empty(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

fn without_empty(command: clap::Command) -> clap::Command {
    let arg = |arg: Arg| match arg.get_env() {
        Some(name) if env::var_os(name).is_some_and(|value| value.is_empty()) => {
            arg.env(Resettable::Reset)
        }
        _ => arg,
    };
    command.mut_args(arg).mut_subcommands(without_empty)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All in one on this machine, to try it out: prints the exact agent command.
    Dev(Dev),
    /// The server.
    Serve(Serve),
    /// The config file.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Makes the tables of the store, or brings them up to this release.
    Migrate(store::Migrate),
    /// The store as a whole.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Accounts, on the store directly.
    User(accounts::User),
    /// Tokens of agents, on the store directly.
    Token(accounts::Token),
    /// Invitations to make an account, on the store directly.
    Invite(accounts::Invite),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Prints a commented sample with every key at its default.
    Init,
    /// Names every fault of a config file.
    Check {
        /// The file.
        file: PathBuf,
    },
}

/// Flags that `dev` and `serve` have in common. Order: flag, environment, file, default.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Where visitors and agents connect; port 0 takes a free one.
    /// Config key `http`. Default: 127.0.0.1:8080 in dev, 0.0.0.0:8080 in serve.
    #[arg(long, env = "UNIROUTE_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Where agents may connect over QUIC (UDP), or `off`. Config key `quic`.
    /// Default: as `http`, if that UDP port is free.
    #[arg(long, env = "UNIROUTE_QUIC", value_name = "ADDR|off")]
    quic: Option<String>,
    /// Where visitors reach TLS tunnels, by the server name that they ask for, or `off`.
    /// Config key `https`. Default: off in serve; in dev port 8443 beside `http`, if it is free.
    #[arg(long, env = "UNIROUTE_HTTPS", value_name = "ADDR|off")]
    https: Option<String>,
    /// Public ports of TCP tunnels, at the address of `http`, or `off`. A port listens only while a
    /// tunnel has it. Config key `tcp_ports`. Default: 20000-20999.
    #[arg(long, env = "UNIROUTE_TCP_PORTS", value_name = "FIRST-LAST|off")]
    tcp_ports: Option<String>,
    /// The same of UDP tunnels. Config key `udp_ports`. Default: 20000-20999.
    #[arg(long, env = "UNIROUTE_UDP_PORTS", value_name = "FIRST-LAST|off")]
    udp_ports: Option<String>,
    /// Load balancers, as networks or addresses, whose connections begin with a PROXY protocol header
    /// (version 1 or 2) that says who the visitor is. Config key `proxy_protocol`. Default: none.
    #[arg(long, env = "UNIROUTE_PROXY_PROTOCOL", value_name = "CIDR,..")]
    proxy_protocol: Option<Networks>,
    /// Proxies in front, as networks or addresses, whose X-Forwarded-For, X-Forwarded-Proto,
    /// X-Forwarded-Host and Forwarded are believed. Config key `trusted_proxies`. Default: none.
    #[arg(long, env = "UNIROUTE_TRUSTED_PROXIES", value_name = "CIDR,..")]
    trusted_proxies: Option<Networks>,
    /// Accounts, tunnels and the request log: sqlite:PATH or postgres://USER@HOST/DATABASE. Give a
    /// password by the environment or the config file. Config key `store`. Default: DATA_DIR/edge.db.
    #[arg(long, env = "UNIROUTE_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
    /// What edges tell each other: memory:, redis://…, rediss://…, redis-cluster://…,
    /// redis-sentinel://…. Config key `state`. Default: memory:.
    #[arg(long, env = "UNIROUTE_STATE", value_name = "URL", hide_env_values = true)]
    state: Option<String>,
    /// Where the edge keeps its files. Config key `data_dir`. Default: a folder of this user's state.
    #[arg(long, env = "UNIROUTE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// At least 32 random bytes, the same on every edge of a cluster. Config key `secret_file`.
    /// Default: DATA_DIR/secret, made if it is not there.
    #[arg(long, env = "UNIROUTE_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Where operators look, or `off`. Config key `admin`. Default: 127.0.0.1:9090.
    #[arg(long, env = "UNIROUTE_ADMIN", value_name = "ADDR|off")]
    admin: Option<String>,
    /// Tunnels are one label below this name. Config key `domain`. Default: localhost.
    #[arg(long, env = "UNIROUTE_DOMAIN", value_name = "NAME")]
    domain: Option<String>,
    /// How visitors reach the edge when that is not the address it listens on.
    /// Config key `public_url`. Default: http://DOMAIN:PORT.
    #[arg(long, env = "UNIROUTE_PUBLIC_URL", value_name = "URL")]
    public_url: Option<String>,
    /// Threads. Config key `workers`. Default: one for each core.
    #[arg(long, env = "UNIROUTE_WORKERS", value_name = "N")]
    workers: Option<NonZeroUsize>,
    /// off, error, warn, info, debug, trace, or directives. Config key `log_level`. Default: info.
    #[arg(long, env = "UNIROUTE_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json. Config key `log_format`. Default: text.
    #[arg(long, env = "UNIROUTE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
pub(crate) struct Dev {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    common: Common,
    /// The config file; see `config init`.
    #[arg(long, env = "UNIROUTE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// One token of at least 16 characters a line; `-` reads standard input.
    /// Config key `token_file`.
    #[arg(long, env = "UNIROUTE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// What to run, and how to log it.
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) log_level: String,
    pub(crate) log_format: LogFormat,
    /// Where `dev` keeps its token.
    pub(crate) dev_token: Option<PathBuf>,
}

impl Common {
    /// What is given on the command line or in the environment goes over what the file says.
    fn over(self, mut file: File) -> (File, String, LogFormat) {
        file.http = self.http.or(file.http);
        file.quic = self.quic.or(file.quic);
        file.admin = self.admin.or(file.admin);
        file.store = self.store.or(file.store);
        file.state = self.state.or(file.state);
        file.data_dir = self.data_dir.or(file.data_dir);
        file.secret_file = self.secret_file.or(file.secret_file);
        file.https = self.https.or(file.https);
        file.tcp_ports = self.tcp_ports.or(file.tcp_ports);
        file.udp_ports = self.udp_ports.or(file.udp_ports);
        file.proxy_protocol = self.proxy_protocol.or(file.proxy_protocol);
        file.trusted_proxies = self.trusted_proxies.or(file.trusted_proxies);
        file.domain = self.domain.or(file.domain);
        file.public_url = self.public_url.or(file.public_url);
        file.workers = self.workers.or(file.workers);
        let level = self.log_level.or(file.log_level.take()).unwrap_or_else(|| "info".into());
        let format = self.log_format.or(file.log_format).unwrap_or_default();
        (file, level, format)
    }
}

impl Serve {
    pub(crate) fn plan(self) -> Result<Plan, SettingsError> {
        let file = self.config.as_deref().map(File::load).transpose()?.unwrap_or_default();
        let (mut file, log_level, log_format) = self.common.over(file);
        file.token_file = self.token_file.or(file.token_file);
        Ok(Plan { settings: file.settings()?, log_level, log_format, dev_token: None })
    }
}

impl Dev {
    pub(crate) fn plan(self) -> anyhow::Result<Plan> {
        let (mut file, log_level, log_format) = self.common.over(File::default());
        let dir = file.data_dir.take().unwrap_or_else(default_data_dir);
        let token = dev_token(&dir)?;
        file.store.get_or_insert_with(|| "sqlite::memory:".into());
        file.data_dir = Some(dir);
        file.token_file = Some(token.clone());
        file.http = file.http.or(Some(([127, 0, 0, 1], 8080).into()));
        let https_is_said = file.https.is_some();
        let mut settings = Settings { any_host_is_own: true, ..file.settings()? };
        if !https_is_said {
            settings.sockets.https = Https::in_dev(settings.http.ip());
        }
        Ok(Plan { settings, log_level, log_format, dev_token: Some(token) })
    }
}

fn default_data_dir() -> PathBuf {
    config::default_data_dir().with_file_name("edge-dev")
}

/// The token file of `dev`: the one that is there, so that agents' settings stay right, or a new
/// one.
fn dev_token(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let path = dir.join("token");
    if path.exists() {
        config::read_tokens(&path)?;
        return Ok(path);
    }
    let mut secret = [0; 24];
    getrandom::fill(&mut secret).context("no random numbers from the system")?;
    let token: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let token = Token::parse(&format!("ur_dev_{token}"))?;
    write_secret(&path, token.expose())
        .with_context(|| format!("cannot write the token to {}", path.display()))?;
    Ok(path)
}

fn write_secret(path: &Path, secret: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    writeln!(options.open(path)?, "{secret}")
}

impl ConfigCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Init => io::stdout().write_all(SAMPLE.as_bytes())?,
            Self::Check { file } => {
                let checked = File::load(&file)?.settings();
                // A file without a secret is whole all the same: it may come by flag.
                if let Err(error) = checked
                    && !matches!(error, SettingsError::NoSecret)
                {
                    bail!("{}: {error}", file.display());
                }
                writeln!(io::stdout(), "{}: no faults", file.display())?;
            }
        }
        Ok(())
    }
}
