//! One session with the edge: its handshake, stream zero, and the streams that come in.

pub(crate) mod lane;
mod life;

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{
    Instant, MissedTickBehavior, interval, interval_at, sleep_until, timeout, timeout_at,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};
use uniroute_proto::{
    codec,
    handshake::{AgentHandshake, AgentStep, Established, frame_name, suffices, too_old},
    v1::{self, ControlFrame, control_frame::Frame},
};
use uniroute_shared::{
    carrier::quic,
    code::Code,
    mux,
    session::{self, Acceptor, Sender, SessionError, StreamError},
    stream::{FrameReader, ReadError},
    task::Owned,
};

use bytes::Bytes;

use self::life::{Life, SILENCE, Why};
use crate::{
    Event, Tunnels,
    connect::{ConnectError, Dialled, Route},
    forward,
    network::LOOK,
    refused_until,
    slot::Shared,
    transport::QuicDoor,
    tunnel::{Said, Tunnel},
};

/// The whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two looks for the answer to a ping.
const PING_LOOK: Duration = Duration::from_millis(1);
/// A control frame has to fit the edge's window after this long.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// What open streams have when the agent is to end.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);
/// What a session that is sent away has at most, whatever its edge allows.
const LONGEST_DRAIN: Duration = Duration::from_secs(60 * 60);
/// The same while draining.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// Shortest heartbeat interval that an edge may ask for.
const MIN_HEARTBEAT: Duration = Duration::from_millis(100);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionEnd {
    #[error("{0}")]
    Carrier(SessionError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the edge takes no control frames")]
    ControlStalled,
    #[error("the edge gives no sign of life")]
    Silent,
    #[error("another session of this agent took over")]
    Replaced,
    #[error("the edge said go away: {0}")]
    GoAway(String),
    /// This side wished it, and its streams are finished or their time is up.
    #[error("drained")]
    Drained,
}

/// Moves a session's bytes; ends with it, and cuts it when dropped.
type Driving = Pin<Box<dyn Future<Output = SessionError> + Send>>;

/// A session after its handshake, before it runs.
pub(crate) struct Session {
    carried: session::Session,
    acceptor: Acceptor,
    driving: Driving,
    stream: Stream,
    pub(crate) established: Established,
    /// The tunnels that its edge was asked for.
    asked: Vec<Told>,
    /// Where the connection leads to.
    route: Route,
    moved: Arc<AtomicU64>,
    rtt_us: Arc<AtomicU64>,
}

/// What an agent asks an edge for at the beginning of a session.
pub(crate) struct Request {
    pub(crate) init: v1::Init,
    /// The tunnels in it, and the revision that they have there.
    pub(crate) tunnels: Vec<(Arc<Tunnel>, u64)>,
    /// Edges at which this agent has a session already: none of them is to get another one.
    pub(crate) elsewhere: Vec<String>,
}

/// What a session's edge was told of a tunnel.
struct Told {
    tunnel: Arc<Tunnel>,
    /// Of its settings.
    revision: u64,
    /// Of its local servers.
    said: Said,
    /// The edge's name for it, once it has made it.
    id: Option<Bytes>,
}

/// What can be seen of a session while it runs.
pub(crate) struct View {
    pub(crate) carried: session::Session,
    /// Where its edge takes sessions over QUIC.
    pub(crate) door: Option<QuicDoor>,
    /// The last measured round trip in microseconds; 0 before the first.
    pub(crate) rtt_us: Arc<AtomicU64>,
    moved: Arc<AtomicU64>,
}

impl View {
    /// Bytes that a WebSocket session has moved so far, both ways.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// What counts them.
    pub(crate) fn moved_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.moved)
    }
}

/// Shakes hands over a fresh connection.
///
/// # Errors
/// [`ConnectError`]; the connection is gone then.
pub(crate) async fn establish(
    Dialled { io, early, route, moved }: Dialled,
    request: Request,
) -> Result<Session, ConnectError> {
    let (session, acceptor, mut driver) = mux::new(mux::Config::agent(), io, early);
    let driving = Box::pin(async move { driver.run().await });
    let session = begin((session.into(), acceptor.into()), driving, route, request).await?;
    Ok(Session { moved, ..session })
}

/// Shakes hands over a fresh QUIC connection.
///
/// # Errors
/// [`ConnectError`]; the connection is gone then.
pub(crate) async fn establish_quic(
    quic::endpoint::Dialled { connection, endpoint, .. }: quic::endpoint::Dialled,
    request: Request,
) -> Result<Session, ConnectError> {
    let route = Route::straight(connection.remote_address());
    let (session, acceptor, driver) = quic::new(quic::Config::agent(), connection);
    let mut driver = driver.with_endpoint(endpoint);
    let driving = Box::pin(async move { driver.run().await });
    begin((session.into(), acceptor.into()), driving, route, request).await
}

/// Asks an edge where it takes sessions over QUIC, and says no more.
///
/// # Errors
/// [`ConnectError`]
pub(crate) async fn ask_for_quic(dialled: Dialled) -> Result<Option<v1::QuicOffer>, ConnectError> {
    meet(dialled, async |_, challenge| challenge.quic).await
}

/// What an edge says of itself, and how long it takes to.
pub(crate) struct Seen {
    pub(crate) edge: String,
    pub(crate) quic: Option<v1::QuicOffer>,
    pub(crate) trips: Vec<Duration>,
}

/// Asks an edge for nothing but so many signs of life.
///
/// # Errors
/// [`ConnectError`]
pub(crate) async fn look_at(dialled: Dialled, pings: usize) -> Result<Seen, ConnectError> {
    let asking = async |session: &mux::Session, challenge: v1::AuthChallenge| {
        let mut trips = Vec::with_capacity(pings);
        while trips.len() < pings {
            let began = std::time::Instant::now();
            session.ping();
            while session.last_received() <= began {
                tokio::time::sleep(PING_LOOK).await;
            }
            trips.push(session.last_received() - began);
        }
        Seen { edge: challenge.edge_id, quic: challenge.quic, trips }
    };
    meet(dialled, asking).await
}

/// Hears what an edge says first, does something with it, and leaves.
async fn meet<T>(
    Dialled { io, early, .. }: Dialled,
    then: impl AsyncFnOnce(&mux::Session, v1::AuthChallenge) -> T,
) -> Result<T, ConnectError> {
    let lost = |what: &dyn std::fmt::Display| ConnectError::Lost(what.to_string());
    let (session, _acceptor, mut driver) = mux::new(mux::Config::agent(), io, early);
    let (sender, receiver) = session.open().map_err(|error| lost(&error))?;
    let mut stream = Stream { sender: sender.into(), reader: FrameReader::control(receiver) };
    stream.sender.announce();
    let asking = async {
        loop {
            let frame = stream.next().await.map_err(|error| lost(&error))?;
            match frame.frame {
                Some(Frame::AuthChallenge(challenge)) => return Ok(then(&session, challenge).await),
                Some(frame) => return Err(lost(&frame_name(&frame))),
                None => {}
            }
        }
    };
    let asked = async {
        tokio::select! {
            asked = asking => asked,
            ended = driver.run() => Err(lost(&ended)),
        }
    };
    let asked = timeout(HANDSHAKE_TIMEOUT, asked).await;
    asked.map_err(|_| ConnectError::Timeout("handshake"))?
}

/// Shakes hands over any carrier.
async fn begin(
    (carried, acceptor): (session::Session, Acceptor),
    mut driving: Driving,
    route: Route,
    Request { init, tunnels, elsewhere }: Request,
) -> Result<Session, ConnectError> {
    let lost = |what: &dyn std::fmt::Display| ConnectError::Lost(what.to_string());
    let (sender, receiver) = carried.open().map_err(|error| lost(&error))?;
    let mut stream = Stream { sender, reader: FrameReader::control(receiver) };
    let shaken = {
        let shaking =
            timeout_at(Instant::now() + HANDSHAKE_TIMEOUT, shake(&mut stream, init, &elsewhere));
        let mut shaking = std::pin::pin!(shaking);
        tokio::select! {
            shaken = &mut shaking => shaken.map_err(|_| ConnectError::Timeout("handshake"))?,
            ended = &mut driving => match shaking.await {
                // A refusal may come in one piece with the connection's end.
                Ok(Err(refused @ (ConnectError::Handshake(_) | ConnectError::SameEdge(_)))) => {
                    Err(refused)
                }
                _ => Err(lost(&ended)),
            },
        }
    };
    let established = shaken?;
    let (moved, rtt_us) = (Arc::default(), Arc::default());
    let told = |(tunnel, revision)| Told { tunnel, revision, said: Said::default(), id: None };
    let asked = tunnels.into_iter().map(told).collect();
    Ok(Session { carried, acceptor, driving, stream, established, asked, route, moved, rtt_us })
}

async fn shake(
    stream: &mut Stream,
    init: v1::Init,
    elsewhere: &[String],
) -> Result<Established, ConnectError> {
    let lost = |what: &dyn std::fmt::Display| ConnectError::Lost(what.to_string());
    let mut handshake = AgentHandshake::new(init);
    // The edge speaks first, so it has to see the stream.
    stream.sender.announce();
    loop {
        let frame = stream.next().await.map_err(|error| lost(&error))?;
        if let Some(Frame::AuthChallenge(challenge)) = &frame.frame
            && elsewhere.contains(&challenge.edge_id)
        {
            return Err(ConnectError::SameEdge(challenge.edge_id.clone()));
        }
        match handshake.on_frame(frame)? {
            AgentStep::Wait => {}
            AgentStep::Send(frames) => {
                for frame in frames {
                    stream.send(frame).await.map_err(|error| lost(&error))?;
                }
            }
            AgentStep::Done(established) => return Ok(*established),
        }
    }
}

/// The control stream's two directions.
struct Stream {
    sender: Sender,
    reader: FrameReader,
}

impl Stream {
    async fn next(&mut self) -> Result<ControlFrame, ReadError> {
        Ok(self.reader.message::<ControlFrame>("ControlFrame").await?.0)
    }

    async fn send(&mut self, frame: ControlFrame) -> Result<(), SessionEnd> {
        timeout(SEND_TIMEOUT, self.sender.ready())
            .await
            .map_err(|_| SessionEnd::ControlStalled)??;
        Ok(self.sender.send(codec::message(&frame, false), false)?)
    }
}

impl Session {
    /// What can be seen of it while it runs.
    pub(crate) fn view(&self) -> View {
        let offer = self.established.quic.as_ref();
        View {
            carried: self.carried.clone(),
            door: offer.zip(self.route.direct()).and_then(|(offer, at)| QuicDoor::new(at, offer)),
            rtt_us: Arc::clone(&self.rtt_us),
            moved: Arc::clone(&self.moved),
        }
    }

    /// Takes in what the handshake has brought.
    pub(crate) fn take_in(&mut self, tunnels: &Tunnels) {
        for created in &self.established.created {
            let mut asked = self.asked.iter_mut();
            let Some(told) = asked.find(|told| told.tunnel.key == created.key) else { continue };
            told.id = Some(created.tunnel_id.clone());
            tunnels.created(&told.tunnel, created);
        }
        for refused in &self.established.refused {
            let told = self.asked.iter().find(|told| told.tunnel.key == refused.key);
            if let Some(told) = told {
                told.tunnel.refused(&refused.message);
            }
        }
    }

    /// Runs the session to its end. `leaving`: it takes no new requests any more, and a new
    /// session should take its place. `stop`: the agent is to end.
    pub(crate) async fn run(
        self,
        shared: Arc<Shared>,
        dialler: lane::Dialler,
        leaving: CancellationToken,
        stop: CancellationToken,
    ) -> SessionEnd {
        let Self { carried, acceptor, mut driving, stream, established, asked, .. } = self;
        let (route, moved, rtt_us) = (self.route, self.moved, self.rtt_us);
        let life = Life::new(route.peer);
        let counted = (route.edge, Arc::clone(&moved));
        let lanes = lane::Lanes::new(dialler, counted, &established.ack, carried.clone());
        let interval = Duration::from_millis(established.ack.heartbeat_interval_ms.into());
        let longest = shared.settings.heartbeat.unwrap_or(interval);
        let mut control = Control {
            carried: carried.clone(),
            stream,
            features: established.features,
            lanes,
            shared: Arc::clone(&shared),
            heartbeat: interval.min(longest).max(MIN_HEARTBEAT),
            began: Instant::now(),
            rtt_us: Arc::clone(&rtt_us),
            asked: None,
            life,
            moved,
            draining: None,
            ended_as: None,
            told: asked,
            unanswered: VecDeque::new(),
            later: Vec::new(),
            later_at: None,
            stopping: false,
            leaving,
            stop,
        };
        for refused in established.refused {
            control.ask_later(refused);
        }
        let streams = accept_streams(acceptor, shared, Arc::clone(&rtt_us));
        // A task of its own: what moves a request's bytes does not ask control's timers each time.
        let closing = carried.clone();
        let mut controlled = Owned::spawn(async move {
            let Err(end) = control.run().await;
            match end {
                SessionEnd::Drained | SessionEnd::Replaced | SessionEnd::GoAway(_) => {
                    closing.close();
                    let _ = timeout(SILENCE, control.lanes.finish()).await;
                }
                _ => closing.abort(4000, end.to_string()),
            }
            end
        });
        // The driver ends last: what control said at the end still has to go out.
        let driven = async {
            tokio::select! {
                ended = &mut driving => ended,
                () = streams => carried.closed().await,
            }
        };
        tokio::select! {
            ended = driven => match timeout(SILENCE, controlled).await {
                // What came just before the connection's end says why it came.
                Ok(end @ (SessionEnd::Drained | SessionEnd::Replaced | SessionEnd::GoAway(_))) => end,
                _ => SessionEnd::Carrier(ended),
            },
            end = &mut controlled => {
                // To an edge that is silent nothing gets through: its connection is cut at once.
                if !matches!(end, SessionEnd::Silent) {
                    let _ = timeout(SILENCE, driving).await;
                }
                end
            }
        }
    }
}

/// One task for each stream. The streams end with the session, and the tasks with their streams.
async fn accept_streams(mut acceptor: Acceptor, shared: Arc<Shared>, rtt_us: Arc<AtomicU64>) {
    let tasks = TaskTracker::new();
    while let Some((sender, receiver)) = acceptor.accept().await {
        // Boxed: spawning moves its future around several times, and this one is large.
        let rtt_us = u32::try_from(rtt_us.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        tasks.spawn(Box::pin(forward::serve(Arc::clone(&shared), sender, receiver, rtt_us)));
    }
    tasks.close();
    if timeout(SILENCE, tasks.wait()).await.is_err() {
        warn!(left = tasks.len(), "requests outlive their session");
    }
}

struct Control {
    carried: session::Session,
    stream: Stream,
    /// Of the edge.
    features: Vec<String>,
    lanes: lane::Lanes,
    shared: Arc<Shared>,
    heartbeat: Duration,
    began: Instant,
    rtt_us: Arc<AtomicU64>,
    /// The edge has to give a sign of life by the second, after the first.
    asked: Option<(std::time::Instant, Instant)>,
    life: Life,
    /// Bytes that a WebSocket session has moved.
    moved: Arc<AtomicU64>,
    draining: Option<Instant>,
    ended_as: Option<SessionEnd>,
    /// What the edge knows of the tunnels.
    told: Vec<Told>,
    /// Those that it was asked for since, and has not answered yet, in this order.
    unanswered: VecDeque<Arc<Tunnel>>,
    /// Tunnels that the edge could not say anything of yet, by their keys, and when to ask again.
    later: Vec<String>,
    later_at: Option<Instant>,
    /// The agent is to end.
    stopping: bool,
    leaving: CancellationToken,
    stop: CancellationToken,
}

impl Control {
    async fn run(&mut self) -> Result<std::convert::Infallible, SessionEnd> {
        let stop = self.stop.clone();
        let shared = Arc::clone(&self.shared);
        let mut heartbeat = interval_at(Instant::now() + self.heartbeat, self.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = shared.tunnels.changes();
        // What has changed since the handshake began.
        changes.mark_changed();
        // The first round trip is known at once, and not after half a minute.
        self.beat().await?;
        loop {
            let deadline = self.asked.map(|(_, deadline)| deadline);
            let later_at = self.later_at;
            tokio::select! {
                frame = self.stream.next() => match (frame, self.ended_as.take()) {
                    (Ok(frame), end) => {
                        self.ended_as = end;
                        self.on_frame(frame).await?;
                    }
                    // The edge closes first when it sent this session away.
                    (Err(_), Some(end)) => return Err(end),
                    (Err(error), None) => return Err(error.into()),
                },
                _ = heartbeat.tick() => {
                    self.ask(SILENCE).await?;
                    self.tell_health(true).await?;
                }
                _ = look.tick() => {
                    self.look_for_life().await?;
                    self.tell_health(false).await?;
                }
                Ok(()) = changes.changed(), if self.draining.is_none() => self.reconcile().await?,
                wanted = self.carried.lanes_wanted() => self.lanes.open(wanted),
                Some(ended) = self.lanes.ended() => self.lanes.on_end(ended),
                () = at(deadline) => self.check_life()?,
                () = at(later_at) => self.ask_again().await?,
                () = stop.cancelled(), if !self.stopping => self.stop().await?,
                () = tokio::time::sleep(DRAIN_LOOK), if self.draining.is_some() => self.check_drained()?,
            }
        }
    }

    /// Asks for a sign of life when one is due.
    async fn look_for_life(&mut self) -> Result<(), SessionEnd> {
        let last_received = self.carried.last_received();
        if self.asked.is_some_and(|(since, _)| last_received >= since) {
            self.asked = None;
        }
        let moved = match self.carried.path() {
            Some(path) => path.bytes,
            None => self.moved.load(Ordering::Relaxed),
        };
        let Some(why) = self.life.look(moved, last_received) else { return Ok(()) };
        match why {
            Why::Quiet => debug!("nothing comes any more: is the edge still there?"),
            Why::Slept(slept) => {
                info!(
                    asleep_seconds = slept.as_secs(),
                    "the clock jumped: is the edge still there?"
                );
            }
            Why::OtherNetwork => info!("the network is another: is the edge still there?"),
        }
        self.ask(why.patience()).await
    }

    /// Wants a sign of life; any byte is one. The heartbeat is answered whatever carries it.
    async fn ask(&mut self, patience: Duration) -> Result<(), SessionEnd> {
        let by = Instant::now() + patience;
        match &mut self.asked {
            Some((_, deadline)) => *deadline = by.min(*deadline),
            None => {
                self.carried.ping();
                self.asked = Some((std::time::Instant::now(), by));
            }
        }
        self.beat().await
    }

    /// Measures the round trip.
    async fn beat(&mut self) -> Result<(), SessionEnd> {
        self.life.control();
        let timestamp_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let rtt_us = u32::try_from(self.rtt_us.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        self.stream.send(Frame::Heartbeat(v1::Heartbeat { timestamp_us, rtt_us }).into()).await
    }

    fn check_life(&mut self) -> Result<(), SessionEnd> {
        match self.asked.take() {
            Some((since, _)) if self.carried.last_received() < since => Err(SessionEnd::Silent),
            _ => Ok(()),
        }
    }

    async fn stop(&mut self) -> Result<(), SessionEnd> {
        self.stopping = true;
        match &mut self.draining {
            None => self.say_goodbye().await,
            // It is leaving already, and may have had more time for it.
            Some(deadline) => {
                *deadline = (*deadline).min(Instant::now() + DRAIN);
                Ok(())
            }
        }
    }

    /// The agent is to end: its names are free at once, open streams go on for a while.
    async fn say_goodbye(&mut self) -> Result<(), SessionEnd> {
        for id in std::mem::take(&mut self.told).into_iter().filter_map(|told| told.id) {
            self.close(id).await?;
        }
        let away = v1::GoAway {
            reason: v1::GoAwayReason::Drain.into(),
            message: "the agent is shutting down".into(),
            deadline_ms: u32::try_from(DRAIN.as_millis()).unwrap_or(u32::MAX),
            reconnect: false,
        };
        self.stream.send(Frame::GoAway(away).into()).await?;
        self.drain(SessionEnd::Drained, DRAIN);
        Ok(())
    }

    fn drain(&mut self, end: SessionEnd, within: Duration) {
        if self.draining.is_none() {
            self.draining = Some(Instant::now() + within);
            self.ended_as = Some(end);
        }
    }

    /// The edge closes when the last stream is over: it alone knows which ones it has opened, of
    /// which some may still be on their way here.
    fn check_drained(&mut self) -> Result<(), SessionEnd> {
        if self.draining.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(self.ended_as.take().unwrap_or(SessionEnd::Drained));
        }
        Ok(())
    }

    async fn on_frame(&mut self, frame: ControlFrame) -> Result<(), SessionEnd> {
        let Some(frame) = frame.frame else { return Ok(()) };
        self.life.control();
        match frame {
            Frame::Heartbeat(v1::Heartbeat { timestamp_us, .. }) => {
                self.stream
                    .send(Frame::HeartbeatAck(v1::HeartbeatAck { timestamp_us }).into())
                    .await
            }
            Frame::HeartbeatAck(ack) => {
                let sent = Duration::from_micros(ack.timestamp_us);
                let rtt = self.began.elapsed().saturating_sub(sent);
                let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                self.rtt_us.store(rtt_us.max(1), Ordering::Relaxed);
                self.shared.tunnels.event(|| Event::RoundTrip(rtt));
                Ok(())
            }
            Frame::TunnelStatus(status) => {
                if let Some(tunnel) = self.shared.tunnels.by_id(&status.tunnel_id) {
                    self.shared.tunnels.paused(&tunnel, status.state());
                    self.shared.tunnels.event(|| Event::Status {
                        key: tunnel.key.clone(),
                        requests: status.requests,
                        latency_ms: status.latency_ms,
                        uptime_seconds: status.uptime_seconds,
                        paused: status.state() == v1::TunnelState::Paused,
                    });
                }
                Ok(())
            }
            Frame::TunnelCreated(created) => self.on_created(created).await,
            Frame::TunnelRefused(refused) => {
                let tunnel = self.unanswered.pop_front();
                self.on_refused(tunnel.as_deref(), refused);
                Ok(())
            }
            Frame::LanesWanted(wanted) => {
                self.lanes.open(usize::try_from(wanted.lanes).unwrap_or(0));
                Ok(())
            }
            Frame::GoAway(away) => {
                self.on_go_away(&away);
                Ok(())
            }
            Frame::CloseTunnel(close) => {
                warn!(code = close.code, message = close.message, "the edge closed a tunnel");
                if close.code == u32::from(Code::TUNNEL_DELETED.number) {
                    self.shared.tunnels.deleted(&close.tunnel_id, &close);
                }
                Ok(())
            }
            Frame::ControlError(error) => {
                warn!(code = error.code, message = error.message, "the edge complains");
                Ok(())
            }
            other => {
                debug!(frame = frame_name(&other), "a control frame that has no place here");
                Ok(())
            }
        }
    }

    fn on_refused(&mut self, tunnel: Option<&Tunnel>, refused: v1::TunnelRefused) {
        if let Some(tunnel) = tunnel {
            tunnel.refused(&refused.message);
        }
        warn!(tunnel = refused.key, code = refused.code, "a tunnel was refused");
        self.shared.tunnels.event(|| Event::Refused {
            key: refused.key.clone(),
            code: u16::try_from(refused.code).unwrap_or_default(),
            message: refused.message.clone(),
        });
        self.ask_later(refused);
    }

    /// Keeps a refused tunnel in mind that may be had later.
    fn ask_later(&mut self, refused: v1::TunnelRefused) {
        if let Some(wait) = refused_until(refused.code) {
            self.later.push(refused.key);
            self.later_at = Some(Instant::now() + wait);
        }
    }

    async fn ask_again(&mut self) -> Result<(), SessionEnd> {
        self.later_at = None;
        let later = std::mem::take(&mut self.later);
        for tunnel in self.shared.tunnels.wanted() {
            if later.contains(&tunnel.key) {
                self.open(&tunnel).await?;
            }
        }
        Ok(())
    }

    /// Tells the edge what it does not know yet: tunnels that are no more, new ones, and changes.
    async fn reconcile(&mut self) -> Result<(), SessionEnd> {
        let wanted = self.shared.tunnels.wanted();
        let is_wanted = |told: &Told| wanted.iter().any(|tunnel| Arc::ptr_eq(tunnel, &told.tunnel));
        let gone: Vec<Told> = self.told.extract_if(.., |told| !is_wanted(told)).collect();
        for id in gone.into_iter().filter_map(|told| told.id) {
            self.close(id).await?;
        }
        for tunnel in wanted {
            let revision = tunnel.revision();
            match self.told.iter_mut().find(|told| Arc::ptr_eq(&told.tunnel, &tunnel)) {
                Some(told) if told.revision == revision => continue,
                Some(told) => told.revision = revision,
                None => {
                    let tunnel = Arc::clone(&tunnel);
                    self.told.push(Told { tunnel, revision, said: Said::default(), id: None });
                }
            }
            self.open(&tunnel).await?;
        }
        Ok(())
    }

    /// Asks for a tunnel; for one that this session serves already, that changes it at once.
    async fn open(&mut self, tunnel: &Arc<Tunnel>) -> Result<(), SessionEnd> {
        let spec = tunnel.spec();
        if !suffices(&self.features, &spec) {
            self.on_refused(Some(tunnel), too_old(spec.key));
            return Ok(());
        }
        self.unanswered.push_back(Arc::clone(tunnel));
        let open = v1::OpenTunnel { tunnel: Some(spec) };
        self.stream.send(Frame::OpenTunnel(open).into()).await
    }

    async fn close(&mut self, tunnel_id: Bytes) -> Result<(), SessionEnd> {
        let close = v1::CloseTunnel { tunnel_id, code: 0, message: String::new() };
        self.stream.send(Frame::CloseTunnel(close).into()).await
    }

    async fn on_created(&mut self, created: v1::TunnelCreated) -> Result<(), SessionEnd> {
        let Some(tunnel) = self.unanswered.pop_front() else {
            debug!(tunnel = created.key, "a tunnel that nobody asked for");
            return Ok(());
        };
        self.shared.tunnels.created(&tunnel, &created);
        match self.told.iter_mut().find(|told| Arc::ptr_eq(&told.tunnel, &tunnel)) {
            Some(told) => told.id = Some(created.tunnel_id),
            // It was taken away meanwhile.
            None => self.close(created.tunnel_id).await?,
        }
        Ok(())
    }

    /// Tells the edge what it does not know yet of local servers; `figures`: with what came since.
    async fn tell_health(&mut self, figures: bool) -> Result<(), SessionEnd> {
        for Told { tunnel, said, id, .. } in &mut self.told {
            let news = id.as_ref().and_then(|id| tunnel.news(id, said, figures));
            if let Some(health) = news {
                self.stream.send(Frame::UpstreamHealth(health).into()).await?;
            }
        }
        Ok(())
    }

    fn on_go_away(&mut self, away: &v1::GoAway) {
        info!(message = away.message, "the edge sends this session away");
        let within = Duration::from_millis(away.deadline_ms.into()).min(LONGEST_DRAIN);
        if away.reconnect {
            self.leaving.cancel();
        }
        let end = match away.reason() {
            v1::GoAwayReason::Replaced => SessionEnd::Replaced,
            _ => SessionEnd::GoAway(away.message.clone()),
        };
        self.drain(end, within);
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
