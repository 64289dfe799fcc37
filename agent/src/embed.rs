//! A public URL for a server of this very program: no local port, and no second process.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use axum::{Router, routing::get};
//! use uniroute_agent::Tunnel;
//!
//! let app = Router::new().route("/", get(|| async { "hello" }));
//! let tunnel = Tunnel::http("https://tunnels.example.com".parse()?, "ur_…".parse()?).name("hello");
//! let listener = tunnel.listen().await?;
//! println!("{}", listener.url());
//! axum::serve(listener, app).await?;
//! # Ok(()) }
//! ```

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uniroute_shared::id::Token;

use crate::{
    Agent, AgentError, Event, Handle, Settings, TunnelError, TunnelSettings,
    connect::ServerUrl,
    upstream::{Place, Scheme, Target},
};

/// Connections that wait for [`Listener::accept`]; the next ones wait for room.
const BACKLOG: usize = 128;
/// Bytes of a connection that wait to be read, each way.
const BUFFER: usize = 64 * 1024;
/// The tunnel's key, of which there is one.
const KEY: &str = "tunnel";

/// A tunnel to this program, before it is opened.
#[derive(Debug)]
pub struct Tunnel {
    settings: Settings,
    tunnel: TunnelSettings,
    incoming: mpsc::Receiver<Connection>,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What was asked for can't be.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The edge does not give it.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The agent was stopped before the edge had answered.
    #[error("the agent has ended before the tunnel was ready")]
    Ended,
}

impl Tunnel {
    /// A tunnel for HTTP through the edge at `server`, with a name of the edge's choice.
    #[must_use]
    pub fn http(server: ServerUrl, token: Token) -> Self {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let target = Target { place: Place::Program(Program(sender)), scheme: Scheme::Http };
        let settings = Settings::new(server, token, Vec::new());
        Self { settings, tunnel: TunnelSettings::http(KEY, target), incoming }
    }

    /// Wants this public name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.tunnel.name = Some(name.into());
        self
    }

    /// Changes anything else of the agent.
    #[must_use]
    pub fn with_settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Changes anything else of the tunnel, such as its policy. Its target stays this program.
    #[must_use]
    pub fn with_tunnel(mut self, change: impl FnOnce(&mut TunnelSettings)) -> Self {
        let target = self.tunnel.target.clone();
        change(&mut self.tunnel);
        self.tunnel.target = target;
        self
    }

    /// Opens it: an agent runs as a task of this runtime from now on, keeps the tunnel through lost
    /// connections and restarts of the edge, and ends with the listener.
    ///
    /// # Errors
    /// [`OpenError`]; with [`Settings::fail_fast`] also when the edge can't be reached, which is
    /// tried for ever otherwise.
    pub async fn listen(self) -> Result<Listener, OpenError> {
        let Self { mut settings, tunnel, incoming } = self;
        settings.tunnels = vec![tunnel];
        let (agent, mut events) = Agent::new(settings)?;
        let (handle, stop) = (agent.handle(), CancellationToken::new());
        let guard = stop.clone().drop_guard();
        let mut running = tokio::spawn(agent.run(stop.clone()));
        let (name, url) = loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Ready { name, url, .. }) => break (name, url),
                    Some(_) => {}
                    None => return Err(ended(running.await)),
                },
                result = &mut running => return Err(ended(result)),
            }
        };
        Ok(Listener { name, url, incoming, handle, stop, running, _guard: guard })
    }
}

fn ended(result: Result<Result<(), AgentError>, tokio::task::JoinError>) -> OpenError {
    match result {
        Ok(Err(error)) => error.into(),
        _ => OpenError::Ended,
    }
}

/// Gives out the connections of visitors. It is an [`axum::serve::Listener`], and
/// [`Listener::accept`] serves every other server. Dropping it ends the tunnel: the name is free, and
/// what is open has half a minute for its end while the runtime goes on.
#[derive(Debug)]
pub struct Listener {
    name: String,
    url: String,
    incoming: mpsc::Receiver<Connection>,
    handle: Handle,
    stop: CancellationToken,
    running: JoinHandle<Result<(), AgentError>>,
    _guard: DropGuard,
}

impl Listener {
    /// The tunnel's public name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where visitors find it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// To look at the agent, and to change its tunnel.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The next connection. It speaks HTTP/1.1, request after request. `None`: the agent has ended,
    /// and [`Listener::close`] says why.
    pub async fn accept(&mut self) -> Option<Connection> {
        tokio::select! {
            connection = self.incoming.recv() => connection,
            () = self.stop.cancelled() => None,
        }
    }

    /// Ends the tunnel, and waits until what is open has come to its end.
    ///
    /// # Errors
    /// Why the agent has ended, if it did before.
    pub async fn close(self) -> Result<(), AgentError> {
        self.stop.cancel();
        self.running.await.unwrap_or(Ok(()))
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = Address;

    async fn accept(&mut self) -> (Connection, Address) {
        match Self::accept(self).await {
            Some(connection) => (connection, Address(self.url.clone())),
            // There will never be one more, and a server that is to end is told so by its owner.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address(self.url.clone()))
    }
}

/// Where a connection has come to: the tunnel's URL. Who the visitor is, is said by each request's
/// `X-Forwarded-For`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A connection to this program.
#[derive(Debug)]
pub struct Connection(DuplexStream);

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The way to a server of this program.
#[derive(Clone, Debug)]
pub struct Program(mpsc::Sender<Connection>);

impl Program {
    /// # Errors
    /// Nobody accepts connections any more.
    pub(crate) async fn connect(&self) -> io::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let sent = self.0.send(Connection(theirs)).await;
        sent.map(|()| ours).map_err(|_| io::ErrorKind::ConnectionRefused.into())
    }
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }
}

impl Eq for Program {}
