//! The way to the edge through a proxy: HTTP CONNECT and SOCKS5.
//!
//! It is our own: hyper-util's `Tunnel` drops what it read too far and says of a refusal that it was
//! "unsuccessful", and its `Matcher` goes past a proxy that it can't read. What it knows of NO_PROXY is
//! used.

mod ask;

use std::{env, fmt, io, net::SocketAddr, str::FromStr, sync::Arc};

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use self::ask::To;
use super::{ConnectError, EdgeIo, Route, STEP_TIMEOUT, ServerUrl, Way, addresses, look_up, race};

/// Where credentials can be written, for people.
const HOW: &str = "Write http://[USER:PASSWORD@]HOST:PORT (or https://, socks5://, socks5h://), with special characters of user and password as %XX";

/// The way out of this network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxy {
    /// What the variables `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy` say.
    #[default]
    Environment,
    /// None, whatever the environment says.
    None,
    /// This one, for everything.
    Url(ProxyUrl),
}

/// A proxy: how it is spoken to, where it is, and what it is told of who asks. It prints without
/// user and password.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    pub(super) kind: Kind,
    /// A name or an address, IPv6 without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) login: Option<Login>,
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// CONNECT.
    Http,
    /// CONNECT inside TLS.
    Https,
    /// SOCKS5, with addresses that are looked up here.
    Socks5,
    /// SOCKS5, with names that the proxy looks up.
    Socks5h,
}

/// User and password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

/// What was written names no proxy. It never repeats what was written: there may be a password in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProxyError(pub(crate) String);

/// What went wrong at a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyFault {
    /// Its name does not resolve.
    #[error("its name does not resolve: {0}")]
    Dns(io::Error),
    /// It takes no connection.
    #[error("no connection to {0}: {1}. Is it running, and is this its address?")]
    Tcp(SocketAddr, io::Error),
    /// TLS with it failed.
    #[error("the TLS handshake with it failed: {0}")]
    Tls(String),
    /// It wants to know who asks, or knows them not.
    #[error("{0}")]
    Login(String),
    /// It does not make the connection.
    #[error("{0}")]
    Refused(String),
    /// What answers is no proxy.
    #[error("what answers is no proxy of that kind: {0}")]
    NoProxy(String),
    /// The connection to it ended.
    #[error("it closed the connection: {0}")]
    Lost(io::Error),
    /// It said nothing.
    #[error("it gives no answer in time ({0})")]
    Timeout(&'static str),
}

impl ProxyFault {
    /// Nothing is there, so asking again soon costs nobody anything.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Dns(_) | Self::Tcp(..) | Self::Lost(_) | Self::Timeout("TCP" | "DNS"))
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    /// `env`, `none`, or a proxy's URL.
    fn from_str(text: &str) -> Result<Self, ProxyError> {
        Ok(match text {
            "env" => Self::Environment,
            "none" => Self::None,
            url => Self::Url(url.parse()?),
        })
    }
}

impl FromStr for ProxyUrl {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        parse(text.trim())
            .map_err(|why| ProxyError(format!("the proxy's URL can't be used: {why}. {HOW}")))
    }
}

fn parse(text: &str) -> Result<ProxyUrl, &'static str> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let (kind, default_port) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (Kind::Http, 80),
        "https" => (Kind::Https, 443),
        "socks5" | "socks" => (Kind::Socks5, 1080),
        "socks5h" => (Kind::Socks5h, 1080),
        "socks4" | "socks4a" => return Err("SOCKS4 is not spoken, but SOCKS5 is"),
        _ => return Err("its scheme is none of http, https, socks5 and socks5h"),
    };
    // The last @: one in a password may have been left as it is.
    let (login, place) = match rest.rsplit_once('@') {
        Some((login, place)) => (Some(Login::parse(login)?), place),
        None => (None, rest),
    };
    let place = place.strip_suffix('/').unwrap_or(place);
    if place.contains(['/', '?', '#']) {
        return Err("there is a path behind the host");
    }
    let (host, port) = host_and_port(place)?;
    if host.is_empty() {
        return Err("the host is missing");
    }
    Ok(ProxyUrl { kind, host: host.to_owned(), port: port.unwrap_or(default_port), login })
}

fn host_and_port(place: &str) -> Result<(&str, Option<u16>), &'static str> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("a ] is missing")?;
            (host, port.strip_prefix(':'))
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = port.map(|port| port.parse().ok().filter(|port| *port != 0));
    match port {
        Some(None) => Err("the port is none"),
        Some(port) => Ok((host, port)),
        None => Ok((host, None)),
    }
}

impl Login {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        let decode = |text| decode(text).ok_or("user or password hold a % without two hex digits");
        let login = Self { user: decode(user)?, password: decode(password)? };
        // SOCKS5 has one byte for each length, and a line of HTTP must stay one.
        if login.user.len() > 255 || login.password.len() > 255 {
            return Err("user or password are longer than 255 bytes");
        }
        if login.user.chars().chain(login.password.chars()).any(char::is_control) {
            return Err("user or password hold a control character");
        }
        Ok(login)
    }
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (hex, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            Kind::Http => "http",
            Kind::Https => "https",
            Kind::Socks5 => "socks5",
            Kind::Socks5h => "socks5h",
        };
        write!(f, "{scheme}://{}", authority(&self.host, self.port))
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ProxyUrl {
    /// Whether it is told names, and not addresses.
    pub(crate) fn looks_up(&self) -> bool {
        self.kind != Kind::Socks5
    }
}

/// Host and port as they stand in a URL.
pub(super) fn authority(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

impl Proxy {
    /// The proxy on the way to `server`, if there is one.
    ///
    /// # Errors
    /// [`ProxyError`] when the variable that counts names none: going past it could be what nobody
    /// wants.
    pub fn to(&self, server: &ServerUrl) -> Result<Option<ProxyUrl>, ProxyError> {
        match self {
            Self::None => Ok(None),
            Self::Url(url) => Ok(Some(url.clone())),
            Self::Environment => from_variables(server, |name| env::var(name).ok()),
        }
    }
}

/// Addresses of the edge that a proxy is asked for, one after the other.
const MAX_ASKED: usize = 4;

/// A connection, bare or inside the TLS of a proxy.
pub(crate) enum Reached {
    Bare(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection to `server` that `proxy` has made. `edge` is its address, if that is known.
///
/// # Errors
/// [`ConnectError::Proxy`], and [`ConnectError::Dns`] where the name is looked up here.
pub(super) async fn through(
    proxy: &ProxyUrl,
    server: &ServerUrl,
    way: &Way,
    edge: Option<SocketAddr>,
) -> Result<(Reached, Route), ConnectError> {
    let at_proxy = |fault| ConnectError::Proxy { proxy: proxy.to_string(), fault };
    let name = (server.host.as_str(), server.port);
    let login = proxy.login.as_ref();
    match proxy.kind {
        Kind::Http => {
            let (mut socket, peer) = dial(proxy).await.map_err(at_proxy)?;
            let asked = within("CONNECT", ask::connect(&mut socket, name, login)).await;
            asked.map_err(at_proxy)?;
            Ok((Reached::Bare(socket), Route { peer, edge: None }))
        }
        Kind::Https => {
            let (socket, peer) = dial(proxy).await.map_err(at_proxy)?;
            let mut stream = shake(proxy, way, socket).await.map_err(at_proxy)?;
            let asked = within("CONNECT", ask::connect(&mut stream, name, login)).await;
            asked.map_err(at_proxy)?;
            Ok((Reached::Tls(Box::new(stream)), Route { peer, edge: None }))
        }
        Kind::Socks5h => {
            let to = server.host.parse().map_or(To::Name(name.0, name.1), |ip| {
                To::Address(SocketAddr::new(ip, server.port))
            });
            let (socket, peer) = socks(proxy, &to).await.map_err(at_proxy)?;
            Ok((Reached::Bare(socket), Route { peer, edge: None }))
        }
        Kind::Socks5 => {
            let addresses = match edge {
                Some(edge) => vec![edge],
                None => look_up(server).await?,
            };
            let mut failed = ProxyFault::Timeout("DNS");
            for address in addresses.into_iter().take(MAX_ASKED) {
                match socks(proxy, &To::Address(address)).await {
                    Ok((socket, peer)) => {
                        return Ok((Reached::Bare(socket), Route { peer, edge: Some(address) }));
                    }
                    // Another address may be one that it can reach.
                    Err(fault @ ProxyFault::Refused(_)) => failed = fault,
                    Err(fault) => return Err(at_proxy(fault)),
                }
            }
            Err(at_proxy(failed))
        }
    }
}

/// Connects to the proxy itself.
///
/// # Errors
/// [`ProxyFault`]
pub(crate) async fn dial(proxy: &ProxyUrl) -> Result<(TcpStream, SocketAddr), ProxyFault> {
    let found = addresses(&proxy.host, proxy.port).await.ok_or(ProxyFault::Timeout("DNS"))?;
    let connected = race::connect(found.map_err(ProxyFault::Dns)?).await;
    let (socket, address) =
        connected.map_err(|(address, error)| ProxyFault::Tcp(address, error))?;
    super::tune(&socket);
    Ok((socket, address))
}

async fn socks(proxy: &ProxyUrl, to: &To<'_>) -> Result<(TcpStream, SocketAddr), ProxyFault> {
    let (mut socket, peer) = dial(proxy).await?;
    within("SOCKS", ask::socks5(&mut socket, to, proxy.login.as_ref())).await?;
    Ok((socket, peer))
}

async fn shake<Io: EdgeIo>(
    proxy: &ProxyUrl,
    way: &Way,
    socket: Io,
) -> Result<TlsStream<Io>, ProxyFault> {
    let wrong = |error: &dyn fmt::Display| ProxyFault::Tls(error.to_string());
    let name = ServerName::try_from(proxy.host.clone()).map_err(|error| wrong(&error))?;
    let connector = TlsConnector::from(Arc::clone(&way.proxy_tls().map_err(|e| wrong(&e))?));
    let shaken = timeout(STEP_TIMEOUT, connector.connect(name, socket)).await;
    shaken.map_err(|_| ProxyFault::Timeout("TLS"))?.map_err(|error| wrong(&error))
}

async fn within<T>(
    step: &'static str,
    asking: impl Future<Output = Result<T, ProxyFault>>,
) -> Result<T, ProxyFault> {
    timeout(STEP_TIMEOUT, asking).await.map_err(|_| ProxyFault::Timeout(step))?
}

/// As curl reads them: small letters first; `HTTP_PROXY` not at all, which in a CGI program's
/// environment comes from a visitor. Unlike curl, an edge on this machine is never looked for
/// through a proxy.
fn from_variables(
    server: &ServerUrl,
    get: impl Fn(&str) -> Option<String>,
) -> Result<Option<ProxyUrl>, ProxyError> {
    let names: &[&str] = match server.tls {
        true => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        false => &["http_proxy", "all_proxy", "ALL_PROXY"],
    };
    let Some((name, value)) = first_of(names, &get) else { return Ok(None) };
    let excluded = first_of(&["no_proxy", "NO_PROXY"], &get).map(|(_, list)| list);
    if server.is_local() || is_excluded(server, &excluded.unwrap_or_default()) {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|ProxyError(why)| {
        ProxyError(format!("the environment variable {name}: {why}; or set it to nothing"))
    })
}

fn first_of<'a>(
    names: &[&'a str],
    get: impl Fn(&str) -> Option<String>,
) -> Option<(&'a str, String)> {
    let mut values = names.iter().filter_map(|name| Some((*name, get(name)?)));
    values.find(|(_, value)| !value.trim().is_empty())
}

/// Whether `list`, as NO_PROXY has it, holds the server: names with all below them, addresses,
/// networks, `*`; each may have a port, which then has to be the server's.
fn is_excluded(server: &ServerUrl, list: &str) -> bool {
    let entries = list.split([',', ' ', '\t']).map(str::trim).filter(|entry| !entry.is_empty());
    let entries = entries.filter_map(|entry| {
        // `*.corp.example` is what many write for `.corp.example`.
        let entry = entry.strip_prefix('*').filter(|rest| !rest.is_empty()).unwrap_or(entry);
        match entry.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                let same = port.parse() == Ok(server.port);
                same.then(|| host.trim_start_matches('[').trim_end_matches(']'))
            }
            _ => Some(entry.trim_start_matches('[').trim_end_matches(']')),
        }
    });
    let list = entries.collect::<Vec<_>>().join(",");
    let matcher = Matcher::builder().all("http://proxy.invalid").no(list).build();
    let url = format!("http://{}/", authority(&server.host, server.port));
    let Ok(url) = url.parse::<Uri>() else { return false };
    matcher.intercept(&url).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ProxyUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn urls_of_proxies() {
        for (text, printed) in [
            ("proxy.test", "http://proxy.test:80"),
            ("proxy.test:3128", "http://proxy.test:3128"),
            ("HTTP://proxy.test:3128/", "http://proxy.test:3128"),
            ("https://proxy.test", "https://proxy.test:443"),
            ("socks5://[::1]", "socks5://[::1]:1080"),
            ("socks5h://10.0.0.1:9", "socks5h://10.0.0.1:9"),
            ("http://ann:secret@proxy.test:1", "http://proxy.test:1"),
        ] {
            assert_eq!(url(text).to_string(), printed);
            assert_eq!(format!("{:?}", url(text)), printed, "the same without a password");
        }
        let login = url("http://ann%40corp:p%3Aa%2fs@s@proxy.test").login.unwrap();
        assert_eq!((login.user.as_str(), login.password.as_str()), ("ann@corp", "p:a/s@s"));
        assert_eq!(url("socks5://ann@proxy.test").login.unwrap().password, "");
    }

    #[test]
    fn what_names_no_proxy_is_said_without_its_password() {
        for (bad, why) in [
            ("ftp://u:hunter2@proxy.test", "its scheme is none of"),
            ("socks4://u:hunter2@proxy.test", "SOCKS4 is not spoken"),
            ("http://u:hunter2@", "the host is missing"),
            ("http://u:hunter2@proxy.test:0", "the port is none"),
            ("http://u:hunter2@proxy.test:99999", "the port is none"),
            ("http://u:hunter2@proxy.test/way", "there is a path"),
            ("http://u:hunter2%@proxy.test", "a % without"),
            ("http://u:hunter2%0a@proxy.test", "a control character"),
            ("http://u:hunter2@[::1", "a ] is missing"),
        ] {
            let error = bad.parse::<ProxyUrl>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    fn chosen(server: &str, variables: &[(&str, &str)]) -> Option<String> {
        let server = server.parse().unwrap();
        let get = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        from_variables(&server, get).unwrap().map(|proxy| proxy.host)
    }

    #[test]
    fn variables_count_as_curl_has_them() {
        let all = [("ALL_PROXY", "all"), ("HTTPS_PROXY", "big"), ("HTTP_PROXY", "httpoxy")];
        assert_eq!(chosen("https://edge.test", &all).as_deref(), Some("big"));
        assert_eq!(chosen("http://edge.test", &all).as_deref(), Some("all"));
        let small = [("https_proxy", "small"), ("HTTPS_PROXY", "big"), ("http_proxy", "plain")];
        assert_eq!(chosen("wss://edge.test", &small).as_deref(), Some("small"));
        assert_eq!(chosen("ws://edge.test", &small).as_deref(), Some("plain"));
        assert_eq!(
            chosen("https://edge.test", &[("https_proxy", ""), ("all_proxy", "a")]).as_deref(),
            Some("a")
        );
        assert_eq!(chosen("http://edge.test", &[("HTTP_PROXY", "httpoxy")]), None);
        assert_eq!(chosen("http://127.0.0.1:8080", &all), None, "this machine");
        assert_eq!(chosen("http://localhost:8080", &all), None, "this machine");
    }

    #[test]
    fn servers_that_no_proxy_leads_to() {
        let excluded = |server: &str, list: &str| {
            chosen(server, &[("all_proxy", "p"), ("NO_PROXY", list)]).is_none()
        };
        for list in [
            "edge.corp.test",
            "corp.test",
            ".corp.test",
            "*.corp.test",
            "*",
            "a, CORP.test b",
            "corp.test:443",
        ] {
            assert!(excluded("https://edge.corp.test", list), "{list}");
        }
        for list in ["orp.test", "x.edge.corp.test", "corp.test:8443", "10.0.0.0/8", ""] {
            assert!(!excluded("https://edge.corp.test", list), "{list}");
        }
        assert!(excluded("https://10.1.2.3", "10.0.0.0/8"));
        assert!(excluded("https://10.1.2.3:8443", "10.1.2.3:8443"));
        assert!(excluded("https://[2001:db8::7]", "2001:db8::/32"));
        assert!(excluded("https://[2001:db8::7]", "[2001:db8::7]"));
        assert!(!excluded("https://11.1.2.3", "10.0.0.0/8"));
    }

    #[test]
    fn a_variable_that_names_no_proxy_is_no_way_past_it() {
        let server = "https://edge.test".parse().unwrap();
        let get = |name: &str| (name == "HTTPS_PROXY").then(|| "gopher://proxy".to_owned());
        let error = from_variables(&server, get).unwrap_err().to_string();
        assert!(error.starts_with("the environment variable HTTPS_PROXY: "), "{error}");
    }
}
