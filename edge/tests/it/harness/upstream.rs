//! Local servers: a well-behaved one, and one that does with its sockets whatever a test says.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, channel::Channel, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use super::wire::Wire;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// An answer 200 with all of its body.
pub(crate) fn text(body: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(body.into()).boxed())
}

/// An answer 200 whose body is what is sent into the channel.
pub(crate) fn channel() -> (http_body_util::channel::Sender<Bytes, Infallible>, Response<Body>) {
    let (sender, body) = Channel::new(1);
    (sender, Response::new(body.boxed()))
}

/// A hyper server; gone with its value.
pub(crate) struct TestUpstream {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for TestUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestUpstream {
    /// Answers every request by `answer`.
    pub(crate) async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::on(([127, 0, 0, 1], 0).into(), None, answer).await
    }

    /// Answers every request with `body`.
    pub(crate) async fn saying(body: &'static str) -> Self {
        Self::start(move |_| async move { text(body) }).await
    }

    /// The same at `address`, with TLS if `tls` is given.
    pub(crate) async fn on<F, A>(address: SocketAddr, tls: Option<TlsAcceptor>, answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let (answer, tls) = (answer.clone(), tls.clone());
                open.spawn(async move {
                    match tls {
                        None => serve(socket, answer).await,
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                serve(socket, answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, connections, task }
    }

    /// As the agent's user would write it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A server on a Unix socket, for as long as the task runs.
pub(crate) fn on_unix_socket(path: &Path, body: &'static str) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            open.spawn(serve(socket, move |_| async move { text(body) }));
        }
    })
}

async fn serve<Io, F, A>(io: Io, answer: F)
where
    Io: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // How it ends is the other side's business.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

/// A server that hands each of its connections to the test.
pub(crate) struct RawUpstream {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RawUpstream {
    /// Runs `serve` for each connection, with its number from 0. A connection closes when its
    /// `serve` returns.
    pub(crate) async fn start<F, S>(serve: F) -> Self
    where
        F: Fn(usize, Wire) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            for number in 0.. {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                open.spawn(serve(number, Wire::new(socket)));
            }
        });
        Self { address, task }
    }

    /// Answers the first request of each connection with `bytes` and closes.
    pub(crate) async fn saying(bytes: impl AsRef<[u8]>) -> Self {
        let bytes: Arc<[u8]> = bytes.as_ref().into();
        Self::start(move |_, mut wire| {
            let bytes = Arc::clone(&bytes);
            async move {
                if wire.request().await.is_some() {
                    // The agent may hang up on what it has seen of it.
                    let _ = wire.try_send(&*bytes).await;
                }
            }
        })
        .await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Cuts the connection with a reset rather than an end.
pub(crate) fn reset(socket: &TcpStream) {
    socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO)).unwrap();
}
