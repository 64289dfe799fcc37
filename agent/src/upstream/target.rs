//! What people write for a local server, and what it means.

use std::{fmt, path::PathBuf, str::FromStr};

use http::Uri;

use crate::embed::Program;

/// A local server's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// How to get there.
    pub place: Place,
    /// What it speaks.
    pub scheme: Scheme,
}

/// What a local server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP.
    Http,
    /// HTTP over TLS, which the agent speaks with it.
    Https,
    /// Something over TCP that the agent does not look into.
    Tcp,
    /// TLS that the agent does not look into.
    Tls,
    /// Datagrams.
    Udp,
}

impl Scheme {
    /// As it stands in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Udp => "udp",
        }
    }
}

/// How to get to a local server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Host (name or address, IPv6 without brackets) and port.
    Tcp(String, u16),
    /// A Unix socket.
    Unix(PathBuf),
    /// No server: the files in this folder.
    Files(PathBuf),
    /// A server of this very program.
    Program(Program),
}

/// Whose word a local server's certificate is taken on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The system's certificate authorities.
    #[default]
    System,
    /// The authorities in this PEM file, and no others.
    CaFile(PathBuf),
    /// Anybody's: for self-signed certificates on one's own machine.
    Insecure,
}

/// What was written is no place of a local server.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The text can't be read.
    #[error(
        "{text:?} is not a local server: {why}. Write a port (3000), HOST:PORT, http://HOST:PORT, https://HOST:PORT, unix:PATH or file:FOLDER"
    )]
    Invalid {
        /// As it was written.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The same for a local server that is not one for HTTP.
    #[error("{text:?} is not a local server: {why}. Write a port (5432), HOST:PORT or unix:PATH")]
    InvalidSocket {
        /// As it was written.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The CA file can't be read or used.
    #[error("the CA file {0}: {1}")]
    CaFile(PathBuf, String),
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        parse(text).map_err(|why| TargetError::Invalid { text: text.to_owned(), why })
    }
}

impl Target {
    /// A local server that is not one for HTTP: a port, HOST:PORT, or unix:PATH except for UDP; with
    /// the scheme in front if one likes.
    ///
    /// # Errors
    /// [`TargetError::InvalidSocket`]
    pub fn socket(scheme: Scheme, text: &str) -> Result<Self, TargetError> {
        let wrong = |why| TargetError::InvalidSocket { text: text.to_owned(), why };
        let rest = match text.split_once("://") {
            Some((written, rest)) if written == scheme.as_str() => rest,
            Some(("unix", _)) | None => text,
            Some(_) => return Err(wrong("it is for a tunnel of another kind")),
        };
        let target = parse(rest).map_err(wrong)?;
        if scheme == Scheme::Udp && matches!(target.place, Place::Unix(_)) {
            return Err(wrong("datagrams go to a port"));
        }
        Ok(Self { scheme, ..target })
    }
}

fn parse(text: &str) -> Result<Target, &'static str> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err("the path of the socket is missing");
        }
        if cfg!(not(unix)) {
            return Err("this system's programs have no Unix sockets");
        }
        return Ok(Target { place: Place::Unix(path.into()), scheme: Scheme::Http });
    }
    if let Some(path) = text.strip_prefix("file:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err("the path of the folder is missing");
        }
        return Ok(Target { place: Place::Files(path.into()), scheme: Scheme::Http });
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let place = Place::Tcp("localhost".into(), port(text)?);
        return Ok(Target { place, scheme: Scheme::Http });
    }
    let (tls, rest) = match text.split_once("://") {
        None => (false, text),
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some(_) => return Err("only http, https, unix and file can be forwarded to"),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("it must not have a path");
    }
    if authority.contains('@') {
        return Err("it must not have a user name");
    }
    let uri: Uri = authority.parse().map_err(|_| "the host or port can't be read")?;
    let host = uri.host().filter(|host| !host.is_empty()).ok_or("the host is missing")?;
    let port = match authority.rsplit_once(':') {
        Some((_, digits)) if !digits.ends_with(']') => port(digits)?,
        _ if text.contains("://") => {
            if tls {
                443
            } else {
                80
            }
        }
        _ => return Err("the port is missing"),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let scheme = if tls { Scheme::Https } else { Scheme::Http };
    Ok(Target { place: Place::Tcp(host.to_owned(), port), scheme })
}

fn port(digits: &str) -> Result<u16, &'static str> {
    digits.parse().ok().filter(|port| *port != 0).ok_or("a port is a number from 1 to 65535")
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme.as_str();
        match &self.place {
            Place::Tcp(host, port) if host.contains(':') => write!(f, "{scheme}://[{host}]:{port}"),
            Place::Tcp(host, port) => write!(f, "{scheme}://{host}:{port}"),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
            Place::Files(path) => write!(f, "file:{}", path.display()),
            Place::Program(_) => f.write_str("this program"),
        }
    }
}

impl Target {
    /// What its own links begin with, and what it expects in `Host`.
    #[must_use]
    pub fn origin(&self) -> String {
        let (scheme, default) = match self.scheme {
            Scheme::Https => ("https", 443),
            _ => ("http", 80),
        };
        match &self.place {
            Place::Tcp(host, port) => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                let port = if *port == default { String::new() } else { format!(":{port}") };
                format!("{scheme}://{host}{port}")
            }
            Place::Unix(_) | Place::Files(_) | Place::Program(_) => format!("{scheme}://localhost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        let cases = [
            ("3000", "http://localhost:3000"),
            ("localhost:3000", "http://localhost:3000"),
            ("127.0.0.1:80", "http://127.0.0.1:80"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("http://dev.test", "http://dev.test:80"),
            ("https://dev.test/", "https://dev.test:443"),
            ("https://localhost:8443", "https://localhost:8443"),
            ("unix:app.sock", "unix:app.sock"),
            ("unix:///run/app.sock", "unix:/run/app.sock"),
            ("file:./dist", "file:./dist"),
            ("file:///srv/www", "file:/srv/www"),
        ];
        for (text, shown) in cases {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_servers_call_themselves() {
        for (text, origin) in [
            ("3000", "http://localhost:3000"),
            ("http://dev.test:80", "http://dev.test"),
            ("https://[::1]", "https://[::1]"),
            ("https://[::1]:80", "https://[::1]:80"),
            ("unix:app.sock", "http://localhost"),
            ("file:dist", "http://localhost"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().origin(), origin, "{text}");
        }
    }

    #[test]
    fn what_is_not_for_http() {
        let socket = |scheme, text| Target::socket(scheme, text).map(|target| target.to_string());
        assert_eq!(socket(Scheme::Tcp, "5432").unwrap(), "tcp://localhost:5432");
        assert_eq!(socket(Scheme::Tcp, "tcp://db.test:5432").unwrap(), "tcp://db.test:5432");
        assert_eq!(socket(Scheme::Tls, "[::1]:8443").unwrap(), "tls://[::1]:8443");
        assert_eq!(socket(Scheme::Udp, "127.0.0.1:53").unwrap(), "udp://127.0.0.1:53");
        assert_eq!(socket(Scheme::Tcp, "unix:db.sock").unwrap(), "unix:db.sock");
        for (scheme, text, why) in [
            (Scheme::Udp, "unix:db.sock", "to a port"),
            (Scheme::Tcp, "http://localhost:80", "another kind"),
            (Scheme::Tcp, "localhost", "port is missing"),
            (Scheme::Tcp, "0", "65535"),
        ] {
            let error = socket(scheme, text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("5432"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("0", "65535"),
            ("70000", "65535"),
            ("localhost", "port is missing"),
            ("localhost:http", "65535"),
            ("ftp://a", "only http"),
            ("http://a/b", "path"),
            ("http://u@a", "user name"),
            ("unix:", "path of the socket"),
            ("file:", "path of the folder"),
            ("", "can't be read"),
        ];
        for (text, why) in cases {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
