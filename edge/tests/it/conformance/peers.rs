//! Both ends of the way, by hand: every byte that comes is taken down, and whoever waits for
//! something waits for bytes and not for time.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, WriteHalf},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::{
    case::{Reply, Say},
    message::{self, Kind, Message, find},
};

/// Longest wait for anything that has to come; far more than it takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Requests that show that everything before them was dealt with; they are in no record.
pub(crate) const FENCE: &str = "/fence";
const FENCE_ANSWER: &str = "HTTP/1.1 200 OK\r\nX-Fence: 1\r\nContent-Length: 5\r\n\r\nfence";

/// What came over one connection.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    taken: Arc<watch::Sender<Taken>>,
    /// Rings whenever something comes.
    bell: Bell,
}

/// Shared by the connections of one peer.
type Bell = Arc<watch::Sender<()>>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) bytes: Vec<u8>,
    /// The connection has ended, in order or not.
    pub(crate) over: bool,
}

impl Log {
    fn new(bell: Bell) -> Self {
        Self { taken: Arc::default(), bell }
    }

    pub(crate) fn now(&self) -> Taken {
        self.taken.borrow().clone()
    }

    pub(crate) fn has(&self, needle: &[u8]) -> bool {
        find(&self.taken.borrow().bytes, needle).is_some()
    }

    /// Waits until `look` is satisfied; `false` if that takes too long.
    pub(crate) async fn until(&self, mut look: impl FnMut(&[u8], bool) -> bool) -> bool {
        let mut taken = self.taken.subscribe();
        let waiting = taken.wait_for(|taken| look(&taken.bytes, taken.over));
        tokio::time::timeout(PATIENCE, waiting).await.is_ok_and(|seen| seen.is_ok())
    }

    /// Takes down all that comes.
    async fn take(self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match from.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    self.change(|taken| taken.bytes.extend_from_slice(&buffer[..read]));
                }
            }
        }
        self.change(|taken| taken.over = true);
    }

    fn change(&self, change: impl FnOnce(&mut Taken)) {
        self.taken.send_modify(change);
        self.bell.send_modify(|()| {});
    }
}

pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// A visitor's connection.
pub(crate) struct Client {
    pub(crate) log: Log,
    writer: Option<WriteHalf<Box<dyn Socket>>>,
    reader: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Client {
    pub(crate) fn new(socket: Box<dyn Socket>) -> Self {
        let (reader, writer) = tokio::io::split(socket);
        let log = Log::new(Bell::default());
        let reader = tokio::spawn(log.clone().take(reader));
        Self { log, writer: Some(writer), reader }
    }

    /// What is refused early is not read to its end, so a failure says nothing.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        if let Some(writer) = &mut self.writer {
            let _ = tokio::time::timeout(PATIENCE, writer.write_all(bytes)).await;
        }
    }

    /// Ends its own direction.
    pub(crate) async fn shut(&mut self) {
        if let Some(writer) = &mut self.writer {
            let _ = writer.shutdown().await;
        }
    }

    /// Is gone.
    pub(crate) async fn leave(&mut self) {
        self.writer = None;
        self.reader.abort();
        let _ = (&mut self.reader).await;
    }

    pub(crate) fn has_left(&self) -> bool {
        self.writer.is_none()
    }
}

/// The local server: it reads requests strictly, and answers each as its script says.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    task: Option<JoinHandle<()>>,
    /// Bound and not listened on, for one that refuses connections.
    _closed: Option<socket2::Socket>,
}

struct State {
    replies: Vec<Reply>,
    /// How many of them are given.
    given: AtomicUsize,
    gate: watch::Sender<usize>,
    bell: Bell,
    connections: Mutex<Vec<Connection>>,
}

#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) log: Log,
    /// From here on it is no HTTP.
    switched_at: Arc<Mutex<Option<usize>>>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Origin {
    pub(crate) async fn start(replies: Vec<Reply>, is_dark: bool) -> Self {
        let state = Arc::new(State {
            replies,
            given: AtomicUsize::new(0),
            gate: watch::Sender::new(0),
            bell: Bell::default(),
            connections: Mutex::default(),
        });
        if is_dark {
            let (socket, address) = closed_port();
            return Self { address, state, task: None, _closed: Some(socket) };
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Self { address, state, task: Some(task), _closed: None }
    }

    /// Lets a script go on that waits at its gate.
    pub(crate) fn open_gate(&self) {
        self.state.gate.send_modify(|open| *open += 1);
    }

    /// Waits until some connection's record satisfies `look`; `false` if that takes too long.
    pub(crate) async fn until(&self, look: impl Fn(&[u8], bool) -> bool) -> bool {
        let mut rings = self.state.bell.subscribe();
        let seen = rings.wait_for(|()| {
            self.connections().iter().any(|connection| {
                let taken = connection.log.taken.borrow();
                look(&taken.bytes, taken.over)
            })
        });
        tokio::time::timeout(PATIENCE, seen).await.is_ok_and(|seen| seen.is_ok())
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> Vec<Connection> {
        self.state.connections.lock().clone()
    }
}

impl Connection {
    /// The requests on it but for fences, and what came after or between them that is none.
    pub(crate) fn read(&self) -> (Vec<Message>, Vec<u8>, Result<(), String>) {
        let taken = self.log.now();
        let switched_at = *self.switched_at.lock();
        let bytes = &taken.bytes[..switched_at.unwrap_or(taken.bytes.len())];
        let (mut requests, mut raw, mut at) = (Vec::new(), Vec::new(), 0);
        let result = loop {
            match message::read(bytes, at, taken.over, Kind::Request) {
                Ok(Some(request)) => {
                    at = request.range.end;
                    let is_fence = request.target() == FENCE.as_bytes();
                    if !is_fence {
                        raw.extend_from_slice(&bytes[request.range.clone()]);
                        requests.push(request);
                    }
                    if requests.last().is_some_and(|request| !request.whole) {
                        break Ok(());
                    }
                }
                Ok(None) if at < bytes.len() => break Err("half a head".to_owned()),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        raw.extend_from_slice(&taken.bytes[at..]);
        (requests, raw, result)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut open = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        open.spawn(serve(socket, Arc::clone(&state)));
    }
}

/// One connection; it closes when this returns.
async fn serve(socket: TcpStream, state: Arc<State>) {
    let (reader, mut writer) = socket.into_split();
    let log = Log::new(Arc::clone(&state.bell));
    let connection = Connection { log: log.clone(), switched_at: Arc::default() };
    state.connections.lock().push(connection.clone());
    let mut reading = JoinSet::new();
    reading.spawn(log.clone().take(reader));
    let mut at = 0;
    loop {
        let Some(request) = next(&log, at, |_| true).await else { return };
        if request.target() == FENCE.as_bytes() {
            let Some(request) = next(&log, at, |request| request.whole).await else { return };
            at = request.range.end;
            if writer.write_all(FENCE_ANSWER.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        let reply = state.replies.get(state.given.fetch_add(1, Ordering::Relaxed)).cloned();
        let reply = reply.unwrap_or_default();
        if !reply.at_head && next(&log, at, |request| request.whole).await.is_none() {
            return;
        }
        for say in &reply.says {
            if !perform(say, &log, &mut writer, &state, &connection, at).await {
                return;
            }
        }
        if connection.switched_at.lock().is_some() {
            log.until(|_, over| over).await;
            return;
        }
        let Some(request) = next(&log, at, |request| request.whole).await else { return };
        at = request.range.end;
    }
}

/// The request at `at` once it `suits`; `None` if it never will. Waits for as long as the
/// connection is there.
async fn next(log: &Log, at: usize, suits: impl Fn(&Message) -> bool) -> Option<Message> {
    let mut taken = log.taken.subscribe();
    loop {
        let over = {
            let taken = taken.borrow_and_update();
            match message::read(&taken.bytes, at, taken.over, Kind::Request) {
                Ok(Some(request)) if suits(&request) => return Some(request),
                Ok(_) => taken.over,
                Err(_) => true,
            }
        };
        if over || taken.changed().await.is_err() {
            return None;
        }
    }
}

/// `false`: the connection closes.
async fn perform(
    say: &Say,
    log: &Log,
    writer: &mut OwnedWriteHalf,
    state: &State,
    connection: &Connection,
    at: usize,
) -> bool {
    match say {
        Say::Accepting(text) => {
            let accept = accept_key(&log.now().bytes[at..]);
            let bytes = Say::Bytes(text.replace("{ACCEPT}", &accept).into_bytes());
            Box::pin(perform(&bytes, log, writer, state, connection, at)).await
        }
        Say::Bytes(bytes) => {
            if bytes.starts_with(b"HTTP/1.1 101") {
                let taken = log.now().bytes;
                let head = find(&taken[at..], b"\r\n\r\n").map_or(taken.len(), |end| at + end + 4);
                *connection.switched_at.lock() = Some(head);
            }
            let writing = tokio::time::timeout(PATIENCE, writer.write_all(bytes)).await;
            writing.is_ok_and(|written| written.is_ok())
        }
        Say::Until(needle) => {
            log.until(|bytes, over| over || find(&bytes[at..], needle).is_some()).await
        }
        Say::Gate => {
            let mut gate = state.gate.subscribe();
            let opened = gate.wait_for(|open| *open > 0);
            let opened = tokio::time::timeout(PATIENCE, opened).await.is_ok();
            state.gate.send_modify(|open| *open = open.saturating_sub(1));
            opened
        }
        Say::Wait => {
            log.until(|_, over| over).await;
            false
        }
        Say::Close => {
            let _ = writer.shutdown().await;
            false
        }
        Say::Reset => {
            crate::harness::upstream::reset(writer.as_ref());
            false
        }
    }
}

/// RFC 6455, section 4.2.2.
fn accept_key(bytes: &[u8]) -> String {
    let request = message::read(bytes, 0, false, Kind::Request).ok().flatten().unwrap_or_default();
    let key = request.all("sec-websocket-key").first().copied().unwrap_or_default().to_vec();
    tokio_tungstenite::tungstenite::handshake::derive_accept_key(&key)
}

/// A port where nothing listens, for as long as the socket is there.
fn closed_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}
