//! Connections to the local server: TCP, Unix sockets, TLS over TCP.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use uniroute_proto::v1::UpstreamErrorKind;

use super::{
    UpstreamError,
    target::{Place, Scheme, Target, TargetError, Trust},
};
use crate::{connect::race, tls};

/// Makes connections to one place.
pub(super) struct Connector {
    target: Target,
    tls: Option<Tls>,
    /// Where `localhost` was found last.
    winner: AtomicU8,
    /// Of a name with several addresses, the one that took the last connection.
    answered: Mutex<Option<SocketAddr>>,
}

struct Tls {
    config: Arc<ClientConfig>,
    /// The same, for HTTP/2 and nothing else.
    http2: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(target: &Target, trust: &Trust) -> Result<Self, TargetError> {
        let tls = match &target.place {
            Place::Tcp(host, _) if target.scheme == Scheme::Https => {
                let name =
                    ServerName::try_from(host.clone()).map_err(|_| TargetError::Invalid {
                        text: target.to_string(),
                        why: "the host can't be in a certificate",
                    })?;
                let config = tls::config(trust)?;
                let mut http2 = ClientConfig::clone(&config);
                http2.alpn_protocols = vec![b"h2".to_vec()];
                Some(Tls { config, http2: Arc::new(http2), name })
            }
            _ => None,
        };
        Ok(Self {
            target: target.clone(),
            tls,
            winner: AtomicU8::new(NOBODY),
            answered: Mutex::new(None),
        })
    }

    pub(super) async fn connect(&self) -> Result<UpstreamIo, UpstreamError> {
        let config = self.tls.as_ref().map(|tls| &tls.config);
        self.connect_with(config).await
    }

    /// For HTTP/2, which TLS agrees on.
    pub(super) async fn connect_http2(&self) -> Result<UpstreamIo, UpstreamError> {
        let io = self.connect_with(self.tls.as_ref().map(|tls| &tls.http2)).await?;
        if let UpstreamIo::Tls(stream) = &io
            && stream.get_ref().1.alpn_protocol() != Some(b"h2")
        {
            let message = format!("{} does not speak HTTP/2 over TLS", self.target);
            return Err(UpstreamError::new(UpstreamErrorKind::BadResponse, message));
        }
        Ok(io)
    }

    async fn connect_with(
        &self,
        config: Option<&Arc<ClientConfig>>,
    ) -> Result<UpstreamIo, UpstreamError> {
        let socket = match &self.target.place {
            #[cfg(unix)]
            Place::Unix(path) => {
                let socket = tokio::net::UnixStream::connect(path).await;
                return socket.map(UpstreamIo::Unix).map_err(|error| self.no_connection(&error));
            }
            #[cfg(not(unix))]
            Place::Unix(_) => {
                let error = io::Error::new(io::ErrorKind::Unsupported, "no Unix sockets here");
                return Err(self.no_connection(&error));
            }
            Place::Files(_) => {
                let error = io::Error::new(io::ErrorKind::Unsupported, "files are no server");
                return Err(self.no_connection(&error));
            }
            Place::Program(program) => {
                let connected = program.connect().await;
                return connected
                    .map(UpstreamIo::Program)
                    .map_err(|error| self.no_connection(&error));
            }
            Place::Tcp(host, port) if host.eq_ignore_ascii_case("localhost") => {
                self.connect_localhost(*port).await.map_err(|error| self.no_connection(&error))?
            }
            Place::Tcp(host, port) => self.connect_host(host, *port).await?,
        };
        socket.set_nodelay(true).map_err(|error| self.no_connection(&error))?;
        let (Some(config), Some(tls)) = (config, &self.tls) else {
            return Ok(UpstreamIo::Tcp(socket));
        };
        let connecting = TlsConnector::from(Arc::clone(config)).connect(tls.name.clone(), socket);
        let stream = connecting.await.map_err(|error| {
            let message = format!("the TLS handshake with {} failed: {error}", self.target);
            UpstreamError::new(UpstreamErrorKind::Tls, message)
        })?;
        Ok(UpstreamIo::Tls(Box::new(stream)))
    }

    /// Servers listen on ::1, on 127.0.0.1 or on both. Both are tried together, and the one that
    /// answered is tried first from then on.
    async fn connect_localhost(&self, port: u16) -> io::Result<TcpStream> {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let winner = self.winner.load(Ordering::Relaxed);
        let (first, second) = if winner == V6 { (v6, v4) } else { (v4, v6) };
        let socket = if winner == NOBODY {
            race(first, second).await?
        } else {
            match TcpStream::connect(first).await {
                Ok(socket) => socket,
                Err(error) => TcpStream::connect(second).await.map_err(|_| error)?,
            }
        };
        let answered = if socket.peer_addr()?.is_ipv4() { V4 } else { V6 };
        self.winner.store(answered, Ordering::Relaxed);
        Ok(socket)
    }

    async fn connect_host(&self, host: &str, port: u16) -> Result<TcpStream, UpstreamError> {
        let unknown = |why: &dyn std::fmt::Display| {
            let message = format!("the name {host} does not resolve: {why}");
            UpstreamError::new(UpstreamErrorKind::Dns, message)
        };
        let found = tokio::net::lookup_host((host, port)).await.map_err(|error| unknown(&error))?;
        let mut addresses = race::interleaved(found.collect());
        if let Some(answered) = *self.answered.lock()
            && let Some(at) = addresses.iter().position(|address| *address == answered)
        {
            addresses[..=at].rotate_right(1);
        }
        if addresses.is_empty() {
            return Err(unknown(&"it has no address"));
        }
        let connected = race::connect(addresses).await;
        let (socket, address) = connected.map_err(|(_, error)| self.no_connection(&error))?;
        *self.answered.lock() = Some(address);
        Ok(socket)
    }

    fn no_connection(&self, error: &io::Error) -> UpstreamError {
        let target = &self.target;
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => UpstreamError::new(
                UpstreamErrorKind::ConnectionRefused,
                format!("nothing listens on {target}"),
            ),
            io::ErrorKind::TimedOut => UpstreamError::new(
                UpstreamErrorKind::ConnectTimeout,
                format!("{target} does not answer"),
            ),
            _ => UpstreamError::new(
                UpstreamErrorKind::Unreachable,
                format!("{target} can't be reached: {error}"),
            ),
        }
    }
}

const NOBODY: u8 = 0;
const V4: u8 = 4;
const V6: u8 = 6;

/// The first of two connections that comes about; the first address's error if neither does.
async fn race(first: SocketAddr, second: SocketAddr) -> io::Result<TcpStream> {
    let mut one = std::pin::pin!(TcpStream::connect(first));
    let mut other = std::pin::pin!(TcpStream::connect(second));
    tokio::select! {
        biased;
        connected = &mut one => match connected {
            Ok(socket) => Ok(socket),
            Err(error) => other.await.map_err(|_| error),
        },
        connected = &mut other => match connected {
            Ok(socket) => Ok(socket),
            Err(_) => one.await,
        },
    }
}

/// A connection to the local server.
#[derive(Debug)]
pub(crate) enum UpstreamIo {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
    Program(DuplexStream),
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Tcp($io) => $call,
            #[cfg(unix)]
            Self::Unix($io) => $call,
            Self::Tls($io) => $call,
            Self::Program($io) => $call,
        }
    };
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buffer))
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            #[cfg(unix)]
            Self::Unix(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
            Self::Program(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
