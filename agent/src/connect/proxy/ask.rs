//! What is said to a proxy until it has made the connection. Nothing is read too far: answers are
//! short, come once for each connection, and are read byte by byte.

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, SocketAddr},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{Login, ProxyFault, authority};

/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// What is shown of a proxy's words, in characters.
const SHOWN: usize = 100;
/// Where credentials go, for people.
const WHERE: &str = "as USER:PASSWORD in UNIROUTE_PROXY_CREDENTIALS or in the file of `agent.proxy_credentials_file`, or in front of the proxy's host (USER:PASSWORD@HOST) in the variable that names it";

/// Asks an HTTP proxy for a connection to `host`.
///
/// # Errors
/// [`ProxyFault`]
pub(in crate::connect) async fn connect<Io: AsyncRead + AsyncWrite + Unpin>(
    io: &mut Io,
    (host, port): (&str, u16),
    login: Option<&Login>,
) -> Result<(), ProxyFault> {
    let to = authority(host, port);
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    request.push_str(concat!("User-Agent: uniroute/", env!("CARGO_PKG_VERSION"), "\r\n"));
    if let Some(Login { user, password }) = login {
        let basic = BASE64.encode(format!("{user}:{password}"));
        let _ = write!(request, "Proxy-Authorization: Basic {basic}\r\n");
    }
    request.push_str("\r\n");
    io.write_all(request.as_bytes()).await.map_err(ProxyFault::Lost)?;
    let head = read_head(io).await?;
    let mut lines = head.lines();
    let line = lines.next().unwrap_or_default();
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split_once(' '))
        .and_then(|(_, status)| status.get(..3)?.parse::<u16>().ok())
        .ok_or_else(|| ProxyFault::NoProxy(format!("it says {:?}", shown(line))))?;
    let answer = shown(line.split_once(' ').map_or("", |(_, answer)| answer));
    match status {
        200..=299 => Ok(()),
        // Some say 401 of wrong credentials.
        401 | 407 => Err(ProxyFault::Login(wants_login(&head, status, login.is_some()))),
        403 | 405 => Err(ProxyFault::Refused(format!(
            "it does not allow connections to {to} (it answered {answer}). Ask whoever runs it to allow CONNECT to {to}"
        ))),
        500..=599 => Err(ProxyFault::Refused(format!(
            "it can't reach {to} (it answered {answer}). Is the server's name right, and may the proxy go there?"
        ))),
        400 | 404 => Err(ProxyFault::NoProxy(format!("it answered {answer} to CONNECT"))),
        _ => Err(ProxyFault::Refused(format!("it answered {answer} to CONNECT {to}"))),
    }
}

fn wants_login(head: &str, status: u16, had_login: bool) -> String {
    let schemes: Vec<&str> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authenticate"))
        .filter_map(|(_, value)| value.split_whitespace().next())
        .collect();
    if !schemes.is_empty() && !schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic")) {
        let schemes = shown(&schemes.join(", "));
        return format!(
            "it wants {schemes}, and only Basic is spoken here: use a helper on this machine that speaks it (such as px or cntlm) as the proxy"
        );
    }
    match had_login {
        true => {
            format!(
                "it does not take this user and password ({status}). Set the right ones, {WHERE}"
            )
        }
        false => format!("it wants a user and a password ({status}). Set them, {WHERE}"),
    }
}

async fn read_head<Io: AsyncRead + Unpin>(io: &mut Io) -> Result<String, ProxyFault> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        if head.len() >= MAX_HEAD {
            return Err(ProxyFault::NoProxy("its answer's head does not end".into()));
        }
        match io.read_u8().await {
            Ok(byte) => head.push(byte),
            // Whatever came may say why.
            Err(error) if head.is_empty() || error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(ProxyFault::Lost(error));
            }
            Err(_) => break,
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn shown(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(SHOWN).collect();
    text.trim().to_owned()
}

/// Where a SOCKS5 proxy is to connect to.
pub(in crate::connect) enum To<'a> {
    Address(SocketAddr),
    Name(&'a str, u16),
}

const VERSION: u8 = 5;
const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
const NONE_OF_THESE: u8 = 0xff;

/// Asks a SOCKS5 proxy for a connection (RFC 1928, RFC 1929).
///
/// # Errors
/// [`ProxyFault`]
pub(in crate::connect) async fn socks5<Io: AsyncRead + AsyncWrite + Unpin>(
    io: &mut Io,
    to: &To<'_>,
    login: Option<&Login>,
) -> Result<(), ProxyFault> {
    let greeting: &[u8] = match login {
        None => &[VERSION, 1, NO_LOGIN],
        Some(_) => &[VERSION, 2, NO_LOGIN, LOGIN],
    };
    io.write_all(greeting).await.map_err(ProxyFault::Lost)?;
    let [version, method] = read(io).await?;
    if version != VERSION {
        return Err(no_socks(version));
    }
    match (method, login) {
        (NO_LOGIN, _) => {}
        (LOGIN, Some(login)) => log_in(io, login).await?,
        (LOGIN | NONE_OF_THESE, None) => {
            return Err(ProxyFault::Login(format!(
                "it wants a user and a password. Set them, {WHERE}"
            )));
        }
        (NONE_OF_THESE, Some(_)) => {
            return Err(ProxyFault::Login("it takes no users with passwords".into()));
        }
        (method, _) => {
            return Err(ProxyFault::NoProxy(format!(
                "it chose method {method}, which was not offered"
            )));
        }
    }
    let mut request = vec![VERSION, 1, 0];
    let port = match to {
        To::Address(address) => {
            match address.ip() {
                IpAddr::V4(ip) => {
                    request.push(1);
                    request.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    request.push(4);
                    request.extend(ip.octets());
                }
            }
            address.port()
        }
        To::Name(name, port) => {
            let length = u8::try_from(name.len())
                .map_err(|_| ProxyFault::Refused("the server's name is too long for it".into()))?;
            request.extend([3, length]);
            request.extend(name.as_bytes());
            *port
        }
    };
    request.extend(port.to_be_bytes());
    io.write_all(&request).await.map_err(ProxyFault::Lost)?;
    let [version, reply, _, kind] = read(io).await?;
    if version != VERSION {
        return Err(no_socks(version));
    }
    if reply != 0 {
        return Err(ProxyFault::Refused(refusal(reply, to)));
    }
    // The address that it connects from is of no use here.
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(read::<1, _>(io).await?[0]),
        kind => return Err(ProxyFault::NoProxy(format!("an address of kind {kind}"))),
    };
    let mut bound = vec![0; length + 2];
    io.read_exact(&mut bound).await.map_err(ProxyFault::Lost)?;
    Ok(())
}

async fn log_in<Io: AsyncRead + AsyncWrite + Unpin>(
    io: &mut Io,
    Login { user, password }: &Login,
) -> Result<(), ProxyFault> {
    let mut message = vec![1];
    for text in [user, password] {
        // Checked when it was read.
        message.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        message.extend(text.as_bytes());
    }
    io.write_all(&message).await.map_err(ProxyFault::Lost)?;
    let refused = || {
        ProxyFault::Login(format!(
            "it does not take this user and password. Set the right ones, {WHERE}"
        ))
    };
    match read(io).await {
        Ok([_, 0]) => Ok(()),
        // Some close without a word.
        Ok([_, _]) => Err(refused()),
        Err(ProxyFault::Lost(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(refused())
        }
        Err(error) => Err(error),
    }
}

async fn read<const N: usize, Io: AsyncRead + Unpin>(io: &mut Io) -> Result<[u8; N], ProxyFault> {
    let mut bytes = [0; N];
    io.read_exact(&mut bytes).await.map_err(ProxyFault::Lost)?;
    Ok(bytes)
}

fn no_socks(version: u8) -> ProxyFault {
    ProxyFault::NoProxy(match version {
        b'H' => "it speaks HTTP: write http:// in front of it".into(),
        _ => format!("it answers with version {version}"),
    })
}

fn refusal(reply: u8, to: &To<'_>) -> String {
    let to = match to {
        To::Address(address) => address.to_string(),
        To::Name(name, port) => authority(name, *port),
    };
    let why = match reply {
        1 => "it failed, and says no more",
        2 => "its rules do not allow that. Ask whoever runs it to allow it",
        3 => "it has no way to that network",
        4 => "it can't reach that host",
        5 => "the connection was refused there. Is the server running, and is the port right?",
        6 => "it took too long",
        7 => "it does not make connections",
        8 => "it does not know that kind of address; try socks5h:// or socks5://",
        _ => "it gives a reason that nobody knows",
    };
    format!("it does not connect to {to}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of an exchange with a proxy that says `answer`, and what it was told.
    async fn asked(
        answer: &[u8],
        ask: impl AsyncFnOnce(&mut tokio::io::DuplexStream) -> Result<(), ProxyFault>,
    ) -> (Result<Vec<u8>, String>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(answer).await.unwrap();
        far.shutdown().await.unwrap();
        let outcome = ask(&mut near).await.map_err(|fault| fault.to_string());
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        drop(near);
        let mut told = Vec::new();
        far.read_to_end(&mut told).await.unwrap();
        (outcome.map(|()| rest), told)
    }

    fn ann() -> Login {
        Login { user: "ann".into(), password: "hunter2".into() }
    }

    async fn connected(answer: &str, login: Option<Login>) -> (Result<Vec<u8>, String>, String) {
        let ask = async |io: &mut _| connect(io, ("::1", 8443), login.as_ref()).await;
        let (outcome, told) = asked(answer.as_bytes(), ask).await;
        (outcome, String::from_utf8(told).unwrap())
    }

    #[tokio::test]
    async fn connect_leaves_what_is_behind_the_answer() {
        let (rest, told) = connected("HTTP/1.0 200 OK\r\nVia: x\r\n\r\nearly", Some(ann())).await;
        assert_eq!(rest.unwrap(), b"early");
        assert!(told.starts_with("CONNECT [::1]:8443 HTTP/1.1\r\nHost: [::1]:8443\r\n"), "{told}");
        assert!(told.contains("\r\nProxy-Authorization: Basic YW5uOmh1bnRlcjI=\r\n"), "{told}");
    }

    #[tokio::test]
    async fn each_refusal_says_what_to_do() {
        let basic = "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\n\r\n";
        let ntlm =
            "HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n";
        for (answer, login, says) in [
            (basic, None, "it wants a user and a password (407)"),
            (basic, Some(ann()), "it does not take this user and password (407)"),
            (ntlm, None, "it wants Negotiate, NTLM, and only Basic is spoken"),
            (
                "HTTP/1.1 403 Filtered\r\n\r\n",
                None,
                "it does not allow connections to [::1]:8443 (it answered 403 Filtered)",
            ),
            ("HTTP/1.1 502 Bad\r\n\r\n", None, "it can't reach [::1]:8443 (it answered 502 Bad)"),
            ("HTTP/1.1 404 What\r\n\r\n", None, "no proxy of that kind: it answered 404 What"),
            ("SSH-2.0-x\r\n\r\n", None, "no proxy of that kind: it says \"SSH-2.0-x\""),
            ("", None, "it closed the connection"),
        ] {
            let error = connected(answer, login).await.0.unwrap_err();
            assert!(error.contains(says) && !error.contains("hunter2"), "{error}");
        }
        let endless = "HTTP/1.1 200 OK\r\n".to_owned() + &"x: y\r\n".repeat(MAX_HEAD / 6 + 1);
        assert!(connected(&endless, None).await.0.unwrap_err().contains("does not end"));
    }

    #[tokio::test]
    async fn socks_by_name_with_a_login() {
        let answer = [5, 2, 1, 0, 5, 0, 0, 3, 2, b'a', b'b', 0, 80, b'!'];
        let ask = async |io: &mut _| socks5(io, &To::Name("edge.test", 443), Some(&ann())).await;
        let (rest, told) = asked(&answer, ask).await;
        assert_eq!(rest.unwrap(), b"!");
        let mut wanted =
            b"\x05\x02\x00\x02\x01\x03ann\x07hunter2\x05\x01\x00\x03\x09edge.test".to_vec();
        wanted.extend(443_u16.to_be_bytes());
        assert_eq!(told, wanted);
    }

    #[tokio::test]
    async fn socks_by_address_and_its_refusals() {
        let to = To::Address("10.1.2.3:443".parse().unwrap());
        let ask = async |io: &mut _| socks5(io, &to, None).await;
        let (rest, told) = asked(&[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0], ask).await;
        assert_eq!(rest.unwrap(), b"");
        assert_eq!(told, [5, 1, 0, 5, 1, 0, 1, 10, 1, 2, 3, 1, 187]);
        for (answer, login, says) in [
            (&[5, 0xff][..], None, "it wants a user and a password"),
            (&[5, 2, 1, 1], Some(ann()), "it does not take this user and password"),
            (&[5, 2], Some(ann()), "it does not take this user and password"),
            (&[5, 0, 5, 2, 0, 1], None, "its rules do not allow that"),
            (
                &[5, 0, 5, 5, 0, 1],
                None,
                "it does not connect to 10.1.2.3:443: the connection was refused",
            ),
            (b"HTTP/1.1 400 Bad", None, "it speaks HTTP"),
            (&[4, 0], None, "it answers with version 4"),
        ] {
            let ask = async |io: &mut _| socks5(io, &to, login.as_ref()).await;
            let error = asked(answer, ask).await.0.unwrap_err();
            assert!(error.contains(says) && !error.contains("hunter2"), "{error}");
        }
    }
}
