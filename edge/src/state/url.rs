//! Where the shared state is, as people write it.

use std::{fmt, str::FromStr};

use super::SetupError;

/// Servers of a cluster or sentinels that may be named.
const MOST_HOSTS: usize = 64;

/// Where the shared state is: `memory:`, `redis://[user[:password]@]host[:port][/db]`,
/// `redis-cluster://host:port,host:port`, `redis-sentinel://host:port,host:port/service`, and with an
/// `s` after `redis` the same over TLS. A password is never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateUrl(pub(super) Place);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Memory,
    Redis(Servers),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Servers {
    pub(super) kind: Kind,
    pub(super) tls: bool,
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Single { database: u8 },
    Cluster,
    Sentinel { service: String },
}

/// What is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl FromStr for StateUrl {
    type Err = SetupError;

    /// # Errors
    /// What is wrong with it, without a word of what may be secret.
    fn from_str(text: &str) -> Result<Self, SetupError> {
        if text == "memory:" {
            return Ok(Self(Place::Memory));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong(UNKNOWN))?;
        let servers = Servers::parse(scheme, rest).map_err(wrong)?;
        Ok(Self(Place::Redis(servers)))
    }
}

const UNKNOWN: &str = "it is memory:, redis://HOST, redis-cluster://HOST:PORT,HOST:PORT or \
    redis-sentinel://HOST:PORT,HOST:PORT/SERVICE, or one of them with rediss for TLS";

fn wrong(why: &str) -> SetupError {
    SetupError(format!("its URL is wrong: {why}"))
}

impl Servers {
    fn parse(scheme: &str, rest: &str) -> Result<Self, &'static str> {
        let (tls, what) = match scheme.strip_prefix("rediss") {
            Some(what) => (true, what),
            None => (false, scheme.strip_prefix("redis").ok_or(UNKNOWN)?),
        };
        if rest.contains(['?', '#']) {
            return Err("nothing may follow after ? or #; in a password they are %3F and %23");
        }
        let (login, place) = rest.rsplit_once('@').map_or((None, rest), |(l, p)| (Some(l), p));
        let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
        let (kind, port) = match what {
            "" => (Kind::Single { database: database(path)? }, Some(6379)),
            "-cluster" if path.is_empty() => (Kind::Cluster, None),
            "-cluster" => return Err("a cluster has one database, so no path"),
            "-sentinel" if path.is_empty() => return Err("the name of the service is missing"),
            "-sentinel" => (Kind::Sentinel { service: decode(path)? }, None),
            _ => return Err(UNKNOWN),
        };
        let hosts: Vec<_> =
            hosts.split(',').map(|one| host(one, port)).collect::<Result<_, _>>()?;
        if hosts.len() > MOST_HOSTS || (matches!(kind, Kind::Single { .. }) && hosts.len() > 1) {
            return Err("it has too many hosts");
        }
        let (user, password) = login.map_or(Ok((None, None)), credentials)?;
        Ok(Self { kind, tls, hosts, user, password })
    }
}

fn database(path: &str) -> Result<u8, &'static str> {
    if path.is_empty() {
        return Ok(0);
    }
    path.parse().map_err(|_| "the database is a number from 0 to 255")
}

fn credentials(login: &str) -> Result<(Option<String>, Option<Secret>), &'static str> {
    let (user, password) = login.split_once(':').ok_or("a user has a password: USER:PASSWORD@")?;
    let user = Some(decode(user)?).filter(|user| !user.is_empty());
    let password = Some(decode(password)?).filter(|password| !password.is_empty());
    if password.is_none() {
        return Err("the password is empty");
    }
    Ok((user, password.map(Secret)))
}

/// `default`: the port, where none need be said.
fn host(text: &str, default: Option<u16>) -> Result<(String, u16), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or("a host has a [ without a ]")?;
            (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some("")))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("")),
        },
    };
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(good) {
        return Err("a host is missing, or has characters that no host has");
    }
    const PORT: &str = "a port is a number from 1 to 65535, and has to be said for each server";
    let port = match port.ok_or(PORT)? {
        "" => default.ok_or(PORT)?,
        port => port.parse().ok().filter(|port| *port != 0).ok_or(PORT)?,
    };
    Ok((host.to_owned(), port))
}

/// Undoes `%41`.
fn decode(text: &str) -> Result<String, &'static str> {
    const WRONG: &str = "a % is followed by two hexadecimal digits; itself it is %25";
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or(WRONG)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| WRONG)?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).map_err(|_| "what is written with % is not UTF-8")
}

impl StateUrl {
    /// This process's memory.
    #[must_use]
    pub fn memory() -> Self {
        Self(Place::Memory)
    }

    /// Whether no other edge can share it.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        matches!(self.0, Place::Memory)
    }
}

impl fmt::Display for StateUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place::Redis(servers) = &self.0 else { return f.write_str("memory:") };
        f.write_str(if servers.tls { "rediss" } else { "redis" })?;
        f.write_str(match servers.kind {
            Kind::Single { .. } => "://",
            Kind::Cluster => "-cluster://",
            Kind::Sentinel { .. } => "-sentinel://",
        })?;
        if servers.password.is_some() {
            write!(f, "{}:***@", servers.user.as_deref().unwrap_or_default())?;
        }
        for (number, (host, port)) in servers.hosts.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            match host.contains(':') {
                true => write!(f, "{comma}[{host}]:{port}")?,
                false => write!(f, "{comma}{host}:{port}")?,
            }
        }
        match &servers.kind {
            Kind::Single { database: 0 } | Kind::Cluster => Ok(()),
            Kind::Single { database } => write!(f, "/{database}"),
            Kind::Sentinel { service } => write!(f, "/{service}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Servers {
        match text.parse::<StateUrl>().unwrap().0 {
            Place::Redis(servers) => servers,
            Place::Memory => panic!("{text} is not memory"),
        }
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!("memory:".parse::<StateUrl>().unwrap().0, Place::Memory);
        let plain = parse("redis://cache");
        assert_eq!(plain.hosts, [("cache".to_owned(), 6379)]);
        assert_eq!((plain.tls, plain.user, plain.password), (false, None, None));
        let full = parse("rediss://edge:p%40s%2Fs:w@[::1]:7000/3");
        assert_eq!(full.hosts, [("::1".to_owned(), 7000)]);
        assert_eq!((full.tls, full.kind), (true, Kind::Single { database: 3 }));
        assert_eq!(full.user.as_deref(), Some("edge"));
        assert_eq!(full.password.unwrap().reveal(), "p@s/s:w");
        let only_password = parse("redis://:pw@h");
        assert_eq!((only_password.user, only_password.password), (None, Some(Secret::new("pw"))));
        let cluster = parse("rediss-cluster://u:pw@a:1,b:2,c:3");
        assert_eq!((cluster.tls, cluster.kind, cluster.hosts.len()), (true, Kind::Cluster, 3));
        let sentinel = parse("redis-sentinel://a:26379,b:26379/main");
        assert_eq!(sentinel.kind, Kind::Sentinel { service: "main".into() });
    }

    #[test]
    fn what_is_wrong_is_refused_without_telling_a_secret() {
        for text in [
            "",
            "memory",
            "redis:",
            "redis://",
            "http://h",
            "redis-x://h",
            "redis://h:0",
            "redis://h:x",
            "redis://h:70000",
            "redis://h/256",
            "redis://h/a",
            "redis://a,b",
            "redis://h?db=1",
            "redis://hunter2@h",
            "redis://u:@h",
            "redis://u:hunter2%@h",
            "redis://u:hunter2%+1@h",
            "redis://u:hunter2@h h",
            "redis://u:hunter2%ff@h",
            "redis-cluster://u:hunter2@h",
            "redis-cluster://h:1/0",
            "redis-sentinel://h:1",
            "redis://[::1",
            "redis://[::1]x",
            "redis-cluster://a:1,",
        ] {
            let error = text.parse::<StateUrl>().expect_err(text).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_is_shown_has_no_password() {
        for (text, shown) in [
            ("memory:", "memory:"),
            ("redis://u:hunter2@h/2", "redis://u:***@h:6379/2"),
            ("rediss-cluster://:hunter2@[::1]:1,b:2", "rediss-cluster://:***@[::1]:1,b:2"),
            ("redis-sentinel://a:1/main", "redis-sentinel://a:1/main"),
        ] {
            let url: StateUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("hunter2"));
        }
    }
}
