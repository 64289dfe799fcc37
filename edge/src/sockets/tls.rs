//! TLS connections: the server name that a ClientHello asks for says which tunnel one goes to, and
//! every byte of it goes there, the ClientHello too. Nobody but the local server can read it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tracing::debug;
use uniroute_proto::v1::{TlsOpen, stream_open::Kind as Open};
use uniroute_shared::code::Code;

use super::{
    Proxied, after_accept_error,
    connection::{self, Visit},
    end, refuse, tune,
};
use crate::{
    Shared,
    ingress::router,
    registry::{Tunnel, ports::Kind},
};

/// Longest ClientHello, with its records, in bytes. Those with post-quantum key shares have some
/// 2 KiB.
const MAX_HELLO: usize = 16 * 1024;
/// It has to be whole after this long.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that takes no alert does not get one.
const ALERT_TIMEOUT: Duration = Duration::from_secs(1);

/// Fatal alert `unrecognized_name` (RFC 6066, section 3) in a record of its own.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Where a TLS connection goes.
enum Route {
    /// As it is, to a TLS tunnel.
    Passthrough(Arc<Tunnel>),
    /// Nowhere: nobody has this name here.
    Unknown,
}

/// Accepts until the edge stops.
pub(crate) async fn serve(edge: Arc<Shared>, worker: usize, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a worker can't accept TLS connections"),
    };
    loop {
        tokio::select! {
            () = edge.stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => admit(&edge, worker, socket, peer),
                Err(error) => after_accept_error(&error).await,
            },
        }
    }
}

fn admit(edge: &Arc<Shared>, worker: usize, socket: TcpStream, peer: SocketAddr) {
    let proxied = edge.sockets.proxy_protocol.contains(peer.ip());
    let admitted = match edge.admit(peer.ip(), proxied) {
        Ok(admitted) => admitted,
        Err(refused) => return refuse(edge, &socket, peer, refused.code),
    };
    let edge = Arc::clone(edge);
    edge.tasks.clone().spawn(async move {
        let _admitted = admitted;
        if let Some(visit) = begin(&edge, socket, peer).await {
            connection::serve(edge, worker, visit).await;
        }
    });
}

async fn begin(edge: &Shared, mut socket: TcpStream, peer: SocketAddr) -> Option<Visit> {
    tune(&socket);
    let local = socket.local_addr().ok()?;
    let Proxied { peer, local, early } = Proxied::accept(edge, &mut socket, peer, local).await?;
    let read = timeout(HELLO_TIMEOUT, Hello::read(&mut socket, early)).await;
    let hello = match read.unwrap_or(Err(HelloError::Timeout)) {
        Ok(hello) => hello,
        Err(error) => {
            edge.metrics.failed(&Code::BAD_CLIENT_HELLO);
            debug!(code = %Code::BAD_CLIENT_HELLO, %peer, %error, "no TLS connection");
            if let HelloError::Tls(_, alert) = error {
                say(&mut socket, &alert).await;
            }
            return None;
        }
    };
    let Route::Passthrough(tunnel) = route(edge, &hello.server_name) else {
        edge.metrics.failed(&Code::UNKNOWN_SERVER_NAME);
        let name = &hello.server_name;
        debug!(code = %Code::UNKNOWN_SERVER_NAME, %peer, name, "no TLS tunnel");
        say(&mut socket, &UNRECOGNIZED_NAME).await;
        return None;
    };
    let (from, to) = (end(peer), end(local));
    let open = Open::Tls(TlsOpen { peer: from, local: to, server_name: hello.server_name });
    Some(Visit { tunnel, socket, early: hello.bytes, peer, open })
}

/// No name is as good as an unknown one.
fn route(edge: &Shared, server_name: &str) -> Route {
    let router::Route::Tunnel(name) = edge.hosts.route(server_name) else { return Route::Unknown };
    match edge.registry.tunnel(name) {
        Some(tunnel) if tunnel.kind == Kind::Tls => Route::Passthrough(tunnel),
        _ => Route::Unknown,
    }
}

/// The last word on a connection.
async fn say(socket: &mut TcpStream, alert: &[u8]) {
    let saying = async {
        socket.write_all(alert).await?;
        socket.shutdown().await
    };
    if let Ok(Err(error)) = timeout(ALERT_TIMEOUT, saying).await {
        debug!(%error, "an alert could not be sent");
    }
}

/// The beginning of a TLS connection.
struct Hello {
    /// All that was read.
    bytes: Bytes,
    /// In lower case; empty if it asks for none.
    server_name: String,
}

#[derive(Debug, thiserror::Error)]
enum HelloError {
    #[error("the ClientHello is too long")]
    TooLong,
    #[error("the ClientHello was not whole in time")]
    Timeout,
    #[error("{0}")]
    Tls(rustls::Error, Vec<u8>),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Hello {
    async fn read(socket: &mut TcpStream, early: Bytes) -> Result<Self, HelloError> {
        let mut acceptor = Acceptor::default();
        let mut bytes = BytesMut::from(early);
        let mut fed = 0;
        loop {
            while fed < bytes.len() {
                let mut rest = &bytes[fed..];
                fed += acceptor.read_tls(&mut rest)?;
                if let Some(server_name) = server_name(&mut acceptor)? {
                    return Ok(Self { bytes: bytes.freeze(), server_name });
                }
            }
            if bytes.len() >= MAX_HELLO {
                return Err(HelloError::TooLong);
            }
            if socket.read_buf(&mut bytes).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

/// Once the ClientHello is whole. It has to be one of TLS 1.2 or later, with signature algorithms:
/// anything older is refused here, since nothing else would be safe to judge by.
fn server_name(acceptor: &mut Acceptor) -> Result<Option<String>, HelloError> {
    match acceptor.accept() {
        Ok(None) => Ok(None),
        Ok(Some(accepted)) => {
            let hello = accepted.client_hello();
            let name = hello.server_name().unwrap_or_default();
            Ok(Some(name.trim_end_matches('.').to_ascii_lowercase()))
        }
        Err((error, mut alert)) => {
            let mut said = Vec::new();
            alert.write_all(&mut said)?;
            Err(HelloError::Tls(error, said))
        }
    }
}
