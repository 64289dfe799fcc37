//! UDP tunnels: a socket for each port that a tunnel has, and a flow for each visitor's address and
//! port. A flow is one stream; a datagram is one frame on it.
//!
//! Nothing waits here: what a stream does not take at once is dropped and counted, as a network
//! would. A flow ends when nothing has moved on it for a while, since nothing else tells its end.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use socket2::SockRef;
use tokio::{
    net::UdpSocket,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tracing::debug;
use uniroute_proto::{
    codec::{self, Kind as FrameKind, MAX_DATAGRAM},
    v1::{self, UdpOpen, stream_open::Kind as Open, stream_reply::Reply},
};
use uniroute_shared::{
    code::Code,
    id::RequestId,
    session::{OpenError, Receiver, Sender},
    stream::{FrameReader, ReadError},
};

use super::{ACCEPT_PAUSE, end};
use crate::{
    Shared,
    ingress::error::upstream_code,
    metrics::Traffic,
    registry::{Target, Tunnel},
};

/// Where there are as many flows as may be, the one that was quiet for the longest makes room, if it
/// was for this long at least: a crowd of new visitors must not end what is under way.
const EVICT_AFTER: Duration = Duration::from_millis(200);
/// The same for one whose last datagram was an answer: a resolver asks from a new port each time, and
/// is done with it then.
const EVICT_ANSWERED_AFTER: Duration = Duration::from_millis(20);
/// A flow on which nothing has moved for this long ends, where the tunnel says nothing else.
const IDLE: Duration = Duration::from_secs(60);
/// How often flows are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is looked at whether the tunnel's name is still held.
const LOOK_AT_NAME: Duration = Duration::from_secs(30);
/// What the kernel may hold of datagrams that have not been read, in bytes.
const RECEIVE_BUFFER: usize = 1024 * 1024;

/// Listens on the port of `tunnel` until the tunnel is gone or the edge stops.
pub(super) fn listen(edge: &Arc<Shared>, worker: usize, tunnel: &Arc<Tunnel>) -> io::Result<()> {
    let number = tunnel.port.as_ref().map_or(0, |port| port.number);
    let socket = std::net::UdpSocket::bind((edge.ports_at, number))?;
    socket.set_nonblocking(true)?;
    if let Err(error) = SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER) {
        debug!(%error, "a UDP socket keeps its buffer");
    }
    let serving = serve(Arc::clone(edge), Arc::clone(tunnel), socket);
    edge.tasks.spawn_on(serving, &edge.workers[worker]);
    Ok(())
}

async fn serve(edge: Arc<Shared>, tunnel: Arc<Tunnel>, socket: std::net::UdpSocket) {
    let Some(port) = &tunnel.port else { return };
    let bound = socket.local_addr().and_then(|local| Ok((local, UdpSocket::from_std(socket)?)));
    let (local, socket) = match bound {
        Ok((local, socket)) => (local, Arc::new(socket)),
        Err(error) => return tracing::error!(%error, port = port.number, "a port can't be served"),
    };
    let mut flows = Flows {
        edge: Arc::clone(&edge),
        tunnel: Arc::clone(&tunnel),
        socket: Arc::clone(&socket),
        local,
        began: Instant::now(),
        flows: HashMap::new(),
    };
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look_at_name = interval(LOOK_AT_NAME);
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            () = port.closed.cancelled() => return,
            () = edge.stop.cancelled() => return,
            _ = look_at_name.tick() => edge.registry.sweep(),
            _ = look.tick(), if !flows.flows.is_empty() => flows.expire(),
            received = socket.recv_from(&mut buffer) => match received {
                Ok((length, visitor)) => flows.take(&buffer[..length], visitor),
                Err(error) => {
                    debug!(%error, port = port.number, "no datagram can be received");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// The flows of one tunnel.
struct Flows {
    edge: Arc<Shared>,
    tunnel: Arc<Tunnel>,
    socket: Arc<UdpSocket>,
    local: SocketAddr,
    began: Instant,
    flows: HashMap<SocketAddr, Flow>,
}

/// Dropped, it resets its stream, and that ends its task.
struct Flow {
    sender: Sender,
    state: Arc<State>,
}

/// What a flow's two directions share.
struct State {
    began: Instant,
    /// When something moved last, in milliseconds after `began`.
    moved: AtomicU64,
    /// What moved last was an answer.
    answered: AtomicBool,
    idle: Duration,
    /// Its stream is over.
    ended: AtomicBool,
    traffic: Traffic,
}

impl State {
    fn moves(&self, answer: bool) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(now, Ordering::Relaxed);
        self.answered.store(answer, Ordering::Relaxed);
    }

    /// Whether it may end for the sake of a new one.
    fn makes_room(&self) -> bool {
        let answered = self.answered.load(Ordering::Relaxed);
        let after = if answered { EVICT_ANSWERED_AFTER } else { EVICT_AFTER };
        self.is_over() || self.quiet_for() >= after
    }

    fn quiet_for(&self) -> Duration {
        let moved = Duration::from_millis(self.moved.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(moved)
    }

    fn is_over(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || self.quiet_for() >= self.idle
    }
}

impl Flows {
    /// A datagram from a visitor.
    fn take(&mut self, payload: &[u8], visitor: SocketAddr) {
        if self.flows.get(&visitor).is_some_and(|flow| flow.state.ended.load(Ordering::Relaxed)) {
            self.flows.remove(&visitor);
        }
        if !self.flows.contains_key(&visitor) {
            match self.open(visitor) {
                Ok(flow) => {
                    self.flows.insert(visitor, flow);
                }
                Err(code) => {
                    self.edge.metrics.failed(code);
                    return self.dropped(code.name);
                }
            }
        }
        let Some(flow) = self.flows.get_mut(&visitor) else { return };
        match flow.send(payload) {
            Ok(true) => {
                let bytes = payload.len() as u64;
                self.tunnel.counts.bytes_in.fetch_add(bytes, Ordering::Relaxed);
                self.tunnel.account.transferred(bytes);
                self.edge.metrics.sockets.datagrams_in.inc();
            }
            Ok(false) => self.dropped("stream-full"),
            Err(()) => {
                self.flows.remove(&visitor);
                self.dropped(Code::LINK_LOST.name);
            }
        }
    }

    fn dropped(&self, reason: &'static str) {
        self.edge.metrics.sockets.dropped(reason);
    }

    fn open(&mut self, visitor: SocketAddr) -> Result<Flow, &'static Code> {
        let target = self.edge.registry.target_of(&self.tunnel).ok_or(&Code::NO_AGENT)?;
        self.make_room()?;
        let (mut sender, receiver): (Sender, Receiver) =
            target.session.carried.open().map_err(|error| match error {
                OpenError::TooManyStreams => &Code::STREAM_LIMIT,
                _ => &Code::NO_AGENT,
            })?;
        sender
            .send(codec::message(&self.stream_open(visitor), false), false)
            .map_err(|_| &Code::NO_AGENT)?;
        self.edge.journal.connected(&target.tunnel);
        let state = Arc::new(State {
            began: self.began,
            moved: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            idle: target.idle_timeout.unwrap_or(IDLE),
            ended: AtomicBool::new(false),
            traffic: self.edge.metrics.sockets.open(self.tunnel.kind),
        });
        state.moves(false);
        self.spawn_answers(&target, visitor, &state, receiver);
        Ok(Flow { sender, state })
    }

    fn stream_open(&self, visitor: SocketAddr) -> v1::StreamOpen {
        v1::StreamOpen {
            tunnel_id: Bytes::copy_from_slice(self.tunnel.id.as_bytes()),
            request_id: Bytes::copy_from_slice(RequestId::new().as_bytes()),
            visitor: visitor.ip().to_canonical().to_string(),
            kind: Some(Open::Udp(UdpOpen { peer: end(visitor), local: end(self.local) })),
            ..v1::StreamOpen::default()
        }
    }

    fn spawn_answers(
        &self,
        target: &Target,
        visitor: SocketAddr,
        state: &Arc<State>,
        receiver: Receiver,
    ) {
        let answers = Answers {
            edge: Arc::clone(&self.edge),
            tunnel: Arc::clone(&self.tunnel),
            socket: Arc::clone(&self.socket),
            visitor,
            state: Arc::clone(state),
        };
        let running = answers.run(FrameReader::new(receiver));
        self.edge.tasks.spawn_on(running, &self.edge.workers[target.session.worker]);
    }

    /// For one flow more.
    fn make_room(&mut self) -> Result<(), &'static Code> {
        let most = self.tunnel.most_connections(self.edge.sockets.max_tunnel_flows);
        if self.flows.len() < most {
            return Ok(());
        }
        let dispensable = self.flows.iter().filter(|(_, flow)| flow.state.makes_room());
        let quietest = dispensable.max_by_key(|(_, flow)| flow.state.quiet_for());
        let visitor = quietest.map(|(visitor, _)| *visitor).ok_or(&Code::FLOW_LIMIT)?;
        self.flows.remove(&visitor);
        Ok(())
    }

    fn expire(&mut self) {
        self.flows.retain(|_, flow| !flow.state.is_over());
    }
}

impl Flow {
    /// Whether the stream took it; an error once it takes nothing any more.
    fn send(&mut self, payload: &[u8]) -> Result<bool, ()> {
        self.state.moves(false);
        match self.sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => return Ok(false),
            Poll::Ready(ready) => ready.map_err(|_| ())?,
        }
        self.state.traffic.bytes_in.inc_by(payload.len() as u64);
        let header = codec::header(FrameKind::Datagram, false, payload.len());
        let payload = Bytes::copy_from_slice(payload);
        self.sender.send_framed(header, payload, false).map(|()| true).map_err(|_| ())
    }
}

/// What comes back on a flow.
struct Answers {
    edge: Arc<Shared>,
    tunnel: Arc<Tunnel>,
    socket: Arc<UdpSocket>,
    visitor: SocketAddr,
    state: Arc<State>,
}

/// Why no more comes back.
#[derive(Debug, thiserror::Error)]
enum FlowEnd {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{}", .0.message)]
    Refused(v1::UpstreamError),
    #[error("the answer to a flow is no answer to it")]
    NoAnswer,
    #[error("the agent ended it")]
    Ended,
}

impl FlowEnd {
    fn code(&self) -> Option<&'static Code> {
        match self {
            Self::Refused(error) => Some(upstream_code(error.kind())),
            Self::NoAnswer | Self::Read(ReadError::Codec(_)) => Some(&Code::AGENT_PROTOCOL),
            Self::Read(_) | Self::Ended => None,
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
    }
}

impl Answers {
    async fn run(self, mut reader: FrameReader) {
        let Err(end) = self.pass_on(&mut reader).await;
        if let Some(code) = end.code() {
            self.edge.metrics.failed(code);
        }
        debug!(visitor = %self.visitor, tunnel = %self.tunnel.name, reason = %end, "a flow ended");
    }

    async fn pass_on(&self, reader: &mut FrameReader) -> Result<std::convert::Infallible, FlowEnd> {
        let (reply, _) = reader.message::<v1::StreamReply>("StreamReply").await?;
        match reply.reply {
            Some(Reply::Connected(_)) => {}
            Some(Reply::Error(error)) => return Err(FlowEnd::Refused(error)),
            _ => return Err(FlowEnd::NoAnswer),
        }
        loop {
            let frame = std::future::poll_fn(|cx| reader.poll_frame(cx)).await?;
            let frame = frame.ok_or(FlowEnd::Ended)?;
            if frame.kind != FrameKind::Datagram {
                return Err(FlowEnd::NoAnswer);
            }
            self.answer(&frame.payload).await;
        }
    }

    async fn answer(&self, payload: &[u8]) {
        self.state.moves(true);
        let length = payload.len() as u64;
        match self.socket.send_to(payload, self.visitor).await {
            Ok(_) => {
                self.state.traffic.bytes_out.inc_by(length);
                self.tunnel.counts.bytes_out.fetch_add(length, Ordering::Relaxed);
                self.tunnel.account.transferred(length);
                self.edge.metrics.sockets.datagrams_out.inc();
            }
            Err(error) => {
                debug!(visitor = %self.visitor, %error, "a datagram could not be sent");
                self.edge.metrics.sockets.dropped("not-sent");
            }
        }
    }
}
