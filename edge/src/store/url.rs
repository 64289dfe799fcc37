//! Where the rows are, as an operator writes it, and how the store is used.

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use tokio_postgres::config::{Host, SslMode};

/// Connections to PostgreSQL of one edge.
pub(super) const CONNECTIONS: usize = 8;
/// How long a call waits for one of them.
pub(super) const WAIT: Duration = Duration::from_secs(2);
/// How long a new connection may take.
pub(super) const CONNECT: Duration = Duration::from_secs(3);
/// How long a statement may take; a transaction three times that.
pub(super) const STATEMENT: Duration = Duration::from_secs(10);

/// Where the rows are. It is shown without its password.
#[derive(Clone, PartialEq)]
pub struct StoreUrl(pub(super) Place);

#[derive(Clone, PartialEq)]
pub(super) enum Place {
    /// SQLite in this process, gone with it.
    Memory,
    File(PathBuf),
    Postgres(Box<Server>),
}

#[derive(Clone, PartialEq)]
pub(super) struct Server {
    pub(super) config: tokio_postgres::Config,
    /// Who is trusted, instead of whom the system trusts.
    pub(super) root_certificate: Option<PathBuf>,
}

/// How the store is used.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// A copy of the database, for lists and analytics; what it holds may be a little old.
    pub replica: Option<StoreUrl>,
    /// Connections, of each of the two.
    pub connections: usize,
    pub wait: Duration,
    pub connect: Duration,
    pub statement: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            replica: None,
            connections: CONNECTIONS,
            wait: WAIT,
            connect: CONNECT,
            statement: STATEMENT,
        }
    }
}

/// Why a text is no address of a store. It never holds a part of the text, which may be a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreUrlError {
    #[error("a store is sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE")]
    Kind,
    #[error("sqlite: what is missing is the path, as in sqlite:/var/lib/uniroute/edge.db")]
    NoPath,
    #[error("write sqlite:PATH, without slashes of its own: sqlite:/absolute or sqlite:relative")]
    Slashes,
    #[error(
        "not an address of PostgreSQL ({0}); right is postgres://USER:PASSWORD@HOST:PORT/DATABASE, \
         with ?sslmode=disable|prefer|require and sslrootcert=FILE where needed; special \
         characters of a password are written as %XX"
    )]
    Postgres(String),
    #[error("a store on PostgreSQL needs a host, as in postgres://USER:PASSWORD@HOST/DATABASE")]
    NoHost,
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, StoreUrlError> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            return sqlite(path).map(Self);
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return postgres(text).map(|server| Self(Place::Postgres(Box::new(server))));
        }
        Err(StoreUrlError::Kind)
    }
}

impl StoreUrl {
    /// SQLite in this process, gone with it.
    #[must_use]
    pub fn memory() -> Self {
        Self(Place::Memory)
    }

    /// SQLite in a file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Place::File(path.into()))
    }

    /// Whether several edges can share it.
    pub fn is_postgres(&self) -> bool {
        matches!(self.0, Place::Postgres(_))
    }
}

fn sqlite(path: &str) -> Result<Place, StoreUrlError> {
    match path {
        "" => Err(StoreUrlError::NoPath),
        ":memory:" => Ok(Place::Memory),
        path if path.starts_with("//") => Err(StoreUrlError::Slashes),
        path => Ok(Place::File(path.into())),
    }
}

/// The library knows most of such an address; `sslrootcert` and the modes that say what is always
/// done here (the certificate and the name in it are verified) are looked at first.
fn postgres(text: &str) -> Result<Server, StoreUrlError> {
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    let mut url = base.to_owned();
    let (mut root_certificate, mut glue) = (None, '?');
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let pair = match pair.split_once('=') {
            Some(("sslrootcert", path)) => {
                root_certificate = Some(PathBuf::from(unescaped(path)));
                continue;
            }
            Some(("sslmode", "verify-ca" | "verify-full")) => "sslmode=require",
            _ => pair,
        };
        url.push(glue);
        url.push_str(pair);
        glue = '&';
    }
    // What the library says names the option that is wrong, and never its value.
    let config: tokio_postgres::Config = url.parse().map_err(|error: tokio_postgres::Error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        StoreUrlError::Postgres(
            source
                .filter(|text| is_harmless(text))
                .unwrap_or_else(|| "something in it is not known".into()),
        )
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(StoreUrlError::NoHost);
    }
    Ok(Server { config, root_certificate })
}

/// Of all messages this one names a known option only; others quote what was written, which may be
/// the end of a password with a question mark in it.
fn is_harmless(message: &str) -> bool {
    message.starts_with("invalid value for option")
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Memory => f.write_str("sqlite::memory:"),
            Place::File(path) => write!(f, "sqlite:{}", path.display()),
            Place::Postgres(server) => server.fmt(f),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        f.write_str("postgres://")?;
        if let Some(user) = config.get_user() {
            f.write_str(user)?;
            f.write_str(if config.get_password().is_some() { ":***@" } else { "@" })?;
        }
        for (number, host) in config.get_hosts().iter().enumerate() {
            if number > 0 {
                f.write_char(',')?;
            }
            match host {
                Host::Tcp(name) => f.write_str(name)?,
                #[cfg(unix)]
                Host::Unix(path) => write!(f, "{}", path.display())?,
            }
            if let Some(port) = config.get_ports().get(number) {
                write!(f, ":{port}")?;
            }
        }
        write!(f, "/{}", config.get_dbname().unwrap_or_default())?;
        match config.get_ssl_mode() {
            SslMode::Disable => f.write_str("?sslmode=disable"),
            SslMode::Require => f.write_str("?sslmode=require"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_right() {
        for (text, shown) in [
            ("sqlite::memory:", "sqlite::memory:"),
            ("sqlite:/var/lib/edge.db", "sqlite:/var/lib/edge.db"),
            ("sqlite:edge.db", "sqlite:edge.db"),
            ("postgres://u:secret@db.test:5433/edge", "postgres://u:***@db.test:5433/edge"),
            (
                "postgresql://u@db.test/edge?sslmode=disable",
                "postgres://u@db.test:5432/edge?sslmode=disable",
            ),
            (
                "postgres://u:secret@a:1,b:2/edge?sslmode=verify-full&sslrootcert=/x%20y.pem",
                "postgres://u:***@a:1,b:2/edge?sslmode=require",
            ),
        ] {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?} {url}").contains("secret"));
        }
        let url: StoreUrl = "postgres://u@h/d?sslrootcert=/x%20y.pem".parse().unwrap();
        let Place::Postgres(server) = url.0 else { panic!() };
        assert_eq!(server.root_certificate, Some(PathBuf::from("/x y.pem")));
    }

    #[test]
    fn addresses_that_are_wrong_say_what_is_right_and_no_secret() {
        for (text, says) in [
            ("", "sqlite:PATH"),
            ("mysql://u:secret@h/d", "sqlite:PATH"),
            ("sqlite:", "path"),
            ("sqlite://edge.db", "sqlite:relative"),
            ("postgres://u:secret@h:secret/d", "postgres://USER"),
            ("postgres://u:secret@h/d?sslmode=secret", "sslmode"),
            ("postgres://u:secret@h/d?secret=1", "postgres://USER"),
            ("postgres:///d", "needs a host"),
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err();
            assert!(error.to_string().contains(says), "{text}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{text}: {error}");
        }
    }
}
