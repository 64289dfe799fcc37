//! Stream zero, seen from the edge: handshake, heartbeats, changes of tunnels, drain.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uniroute_proto::{
    FEATURE_HTTP_POLICY, FEATURE_LANES, FEATURE_TUNNEL_LIMITS, codec,
    handshake::{EdgeHandshake, EdgeStep, HandshakeError, NONCE_LEN, frame_name},
    v1::{self, ControlFrame, control_frame::Frame},
};
use uniroute_shared::{
    code::Code,
    deadline::Deadline,
    id::{AgentId, SessionId, TunnelId},
    lanes::MAX_LANES,
    session::{Acceptor, Carrier, Sender, Session, StreamError},
    stream::{FrameReader, ReadError},
};

use uuid::Uuid;

use super::claims;
use crate::{
    Shared, changes,
    registry::{Claim, Cut, Identity, Local, Origin, SessionHandle},
};

/// The whole handshake, from the connection to `Ready`.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// An agent that is asked for a sign of life has this long.
const SILENCE: Duration = Duration::from_secs(5);
/// A control frame has to fit the agent's window after this long.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for what an agent is told before its session is cut.
const LAST_WORD: Duration = Duration::from_millis(500);
/// What open streams have after a go-away.
const DRAIN: Duration = Duration::from_secs(30);
/// The same for a session whose agent goes over to another carrier.
const SWITCH_DRAIN: Duration = Duration::from_secs(60 * 60);
/// How often a draining session is looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// Characters that are kept of an agent's words on its local server.
const MAX_REASON: usize = 300;
/// WebSocket close code for sessions that ended for a reason of ours (RFC 6455, section 7.4.2).
const CLOSE_CODE: u16 = 4000;

/// The optional features that this edge speaks.
const FEATURES: [&str; 3] = [FEATURE_LANES, FEATURE_HTTP_POLICY, FEATURE_TUNNEL_LIMITS];

/// Why a session is ended by the edge.
#[derive(Debug, thiserror::Error)]
enum EndReason {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("{}", .0.title)]
    Refused(&'static Code),
    #[error("the handshake was not complete in time")]
    HandshakeTimeout,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the agent takes no control frames")]
    ControlStalled,
    #[error("the agent gives no sign of life")]
    Silent,
    #[error("all its streams are finished")]
    Drained,
    #[error("the lane is over")]
    LaneOver,
    #[error("{}", .0.title)]
    Cut(&'static Code),
}

impl EndReason {
    fn code(&self) -> &'static Code {
        match self {
            Self::Handshake(HandshakeError::Version { .. }) => &Code::VERSION_MISMATCH,
            Self::Handshake(HandshakeError::Nonce) => &Code::CHALLENGE_REPLAYED,
            Self::Handshake(_) | Self::Read(_) => &Code::BAD_FRAME,
            Self::Refused(code) | Self::Cut(code) => code,
            Self::HandshakeTimeout => &Code::HANDSHAKE_TIMEOUT,
            Self::Stream(_) | Self::ControlStalled | Self::Silent => &Code::HEARTBEAT_LOST,
            Self::Drained | Self::LaneOver => &Code::SESSION_REPLACED,
        }
    }
}

/// Runs the control stream until the session ends, or ends it.
pub(super) async fn run(
    edge: &Arc<Shared>,
    id: SessionId,
    origin: Origin,
    (carried, acceptor): (Session, Acceptor),
    place: OwnedSemaphorePermit,
) {
    let reason = tokio::select! {
        // First: a connection that ends, such as an agent's probe of the path, is no failure.
        biased;
        _ = carried.closed() => return,
        Err(reason) = serve(edge, id, origin, &carried, acceptor, place) => reason,
    };
    match &reason {
        EndReason::Drained | EndReason::LaneOver => {
            debug!(%reason, "connection ends");
            carried.close();
            return;
        }
        // The agent left, or its connection did.
        EndReason::Read(ReadError::Stream(_)) | EndReason::Stream(_) => {
            debug!(%reason, "control stream ended");
        }
        EndReason::Silent => info!(code = %reason.code(), %reason, "session ended"),
        EndReason::Refused(code) if **code == Code::LANE_REFUSED => {
            info!(code = %code, %reason, "lane refused");
        }
        _ => warn!(code = %reason.code(), %reason, "session refused"),
    }
    edge.metrics.failed(reason.code());
    match reason {
        // Said on the control stream already: let it be read.
        EndReason::Refused(_) | EndReason::Handshake(_) | EndReason::HandshakeTimeout => {
            carried.close();
        }
        reason => {
            if let EndReason::Cut(_) = reason {
                // An agent that does not hear why comes back with what it may not have.
                carried.close();
                let _ = timeout(LAST_WORD, carried.closed()).await;
            }
            carried.abort(CLOSE_CODE, format!("{}: {reason}", reason.code()));
        }
    }
}

async fn serve(
    edge: &Arc<Shared>,
    id: SessionId,
    origin: Origin,
    carried: &Session,
    mut acceptor: Acceptor,
    place: OwnedSemaphorePermit,
) -> Result<std::convert::Infallible, EndReason> {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let accepted = tokio::time::timeout_at(deadline, acceptor.accept()).await;
    let Some((sender, receiver)) = accepted.map_err(|_| EndReason::HandshakeTimeout)? else {
        return Err(EndReason::Read(ReadError::Truncated));
    };
    let mut stream = Stream { sender, reader: FrameReader::control(receiver) };
    let shaking = Box::pin(handshake(edge, id, origin, carried, &mut stream));
    let shaken = tokio::time::timeout_at(deadline, shaking).await;
    match shaken.unwrap_or(Err(EndReason::HandshakeTimeout)) {
        Ok(Shaken::Session(session)) => {
            let _place = place;
            let _seat = edge.seats.take(session.worker);
            let _present = Present(edge, Arc::clone(&session));
            Control::new(edge, session, stream).run().await
        }
        Ok(Shaken::Lane(session, connection)) => {
            // It is no agent more, but one connection more.
            drop(place);
            let _counted = Counted::new(edge);
            Box::pin(session.carried.run_lane(carried, &mut acceptor, false)).await;
            drop(connection);
            Err(EndReason::LaneOver)
        }
        Err(reason) => {
            stream.refuse(&reason);
            Err(reason)
        }
    }
}

/// A session that is ready: what it holds goes with this.
struct Present<'a>(&'a Shared, Arc<SessionHandle>);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let Self(edge, session) = self;
        edge.books.offline(session, edge.registry.release(session.id));
        edge.books.closed(session);
    }
}

/// A lane in the metrics. Its connection's end may come first and drop everything else.
struct Counted<'a>(&'a Shared);

impl<'a> Counted<'a> {
    fn new(edge: &'a Shared) -> Self {
        edge.metrics.lanes_opened.inc();
        Self(edge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.metrics.lanes_closed.inc();
    }
}

/// What a handshake has made of a connection.
enum Shaken {
    Session(Arc<SessionHandle>),
    /// A lane of this session, with its place among the connections.
    Lane(Arc<SessionHandle>, OwnedSemaphorePermit),
}

async fn handshake(
    edge: &Arc<Shared>,
    id: SessionId,
    origin: Origin,
    carried: &Session,
    stream: &mut Stream,
) -> Result<Shaken, EndReason> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).expect("the system has a random source");
    let known = edge.events.last();
    let (mut handshake, challenge) =
        EdgeHandshake::new(nonce, &edge.id, &FEATURES, edge.quic_offer(carried.carrier()));
    stream.send(challenge).await?;
    let mut made: Option<(Arc<SessionHandle>, Vec<Claim>, bool)> = None;
    let mut agreed = Agreed::default();
    loop {
        match handshake.on_frame(stream.next().await?)? {
            EdgeStep::Skip => {}
            EdgeStep::Join(join) => {
                let session = edge.registry.session(&join.session_id, &join.resume_token);
                let session = session
                    .filter(|session| session.carried.takes_lane())
                    .ok_or(EndReason::Refused(&Code::LANE_REFUSED))?;
                let place = edge.connection_place();
                let place = place.ok_or(EndReason::Refused(&Code::CONNECTION_LIMIT))?;
                debug!(of = %session.id, "a lane");
                stream.send(Frame::LaneJoined(v1::LaneJoined {}).into()).await?;
                return Ok(Shaken::Lane(session, place));
            }
            EdgeStep::Decide(init) => {
                let (session, answers, claims) = decide(edge, id, origin, carried, &init).await?;
                agreed = Agreed::on(&init, carried.carrier());
                if agreed.lanes > 0 {
                    carried.allow_lanes(agreed.lanes);
                }
                let resumed = edge.registry.resume(&session.identity, &init.resume_token);
                for answer in answers {
                    stream.send(answer).await?;
                }
                handshake.decided();
                made = Some((session, claims, resumed));
            }
            EdgeStep::Ready => {
                let Some((session, claims, resumed)) = made else {
                    return Err(EndReason::Handshake(HandshakeError::Invalid(
                        "Ready before Init".into(),
                    )));
                };
                edge.registry.activate(&session, &claims);
                edge.books.opened(&session, &claims);
                changes::catch_up(edge, known, &session, &claims).await;
                let names: Vec<&str> = claims.iter().map(|c| c.tunnel.name.as_str()).collect();
                info!(agent.id = %session.identity.agent, ?names, resumed, "session ready");
                stream.send(ready_ack(edge, &session, resumed, &agreed)).await?;
                return Ok(Shaken::Session(session));
            }
        }
    }
}

type Decided = (Arc<SessionHandle>, Vec<ControlFrame>, Vec<Claim>);

/// Checks the token and gives out the names.
async fn decide(
    edge: &Arc<Shared>,
    id: SessionId,
    origin: Origin,
    carried: &Session,
    init: &v1::Init,
) -> Result<Decided, EndReason> {
    let agent = AgentId::parse(&init.agent_id)
        .map_err(|error| HandshakeError::Invalid(format!("the agent id: {error}")))?;
    let address = origin.peer.ip().to_canonical();
    let permit = edge.permits.admit(edge, &agent, &init.token, address).await;
    let permit = permit.map_err(EndReason::Refused)?;
    let mut resume_token = [0; 16];
    getrandom::fill(&mut resume_token).expect("the system has a random source");
    let metadata = init.metadata.clone().unwrap_or_default();
    let session = Arc::new(SessionHandle {
        id,
        identity: Identity { owner: permit.account.user.to_string().into(), agent },
        run_id: Uuid::from_slice(&init.run_id).ok(),
        permit,
        peer: origin.peer,
        worker: origin.worker,
        agent_name: metadata.name,
        agent_version: metadata.version,
        region: metadata.region,
        since: std::time::Instant::now(),
        carried: carried.clone(),
        rtt_us: AtomicU32::new(0),
        resume_token,
        switches: init.switches_carrier,
        replaced: CancellationToken::new(),
        patient: AtomicBool::new(false),
        probe: Notify::new(),
        changed: Notify::new(),
        closed: Default::default(),
        cut: Cut::default(),
    });
    let (mut claims, mut answers) = (Vec::new(), Vec::new());
    for spec in &init.tunnels {
        answers.push(match claims::claim(edge, &session, spec).await {
            Ok(claim) => {
                let created = claims::created(edge, &spec.key, &claim);
                claims.push(claim);
                created
            }
            Err(refusal) => claims::refused(&spec.key, &refusal),
        });
    }
    Ok((session, answers, claims))
}

/// What both sides of a session can do.
#[derive(Default)]
struct Agreed {
    features: Vec<String>,
    lanes: usize,
}

impl Agreed {
    fn on(init: &v1::Init, carrier: Carrier) -> Self {
        // A carrier with streams of its own needs no lanes.
        let possible =
            |feature: &&&str| **feature != FEATURE_LANES || carrier == Carrier::WebSocket;
        let spoken = |feature: &&&str| init.features.iter().any(|theirs| theirs == **feature);
        let features = FEATURES.iter().filter(possible).filter(spoken);
        let features: Vec<String> = features.map(|feature| (*feature).to_owned()).collect();
        let lanes = features.iter().any(|feature| feature == FEATURE_LANES);
        Self { features, lanes: if lanes { MAX_LANES } else { 0 } }
    }
}

fn ready_ack(
    edge: &Shared,
    session: &SessionHandle,
    resumed: bool,
    agreed: &Agreed,
) -> ControlFrame {
    Frame::ReadyAck(v1::ReadyAck {
        session_id: session.id.to_string(),
        resume_token: session.resume_token.to_vec().into(),
        heartbeat_interval_ms: u32::try_from(edge.heartbeat.as_millis()).unwrap_or(u32::MAX),
        features: agreed.features.clone(),
        resumed,
        lanes: u32::try_from(agreed.lanes).unwrap_or(0),
        several_edges: edge.state.is_shared(),
    })
    .into()
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

    async fn send(&mut self, frame: ControlFrame) -> Result<(), EndReason> {
        timeout(SEND_TIMEOUT, self.sender.ready())
            .await
            .map_err(|_| EndReason::ControlStalled)??;
        Ok(self.sender.send(codec::message(&frame, false), false)?)
    }

    /// Nothing comes after this: what waits here is not thrown away with the stream.
    fn send_last(self, frame: &ControlFrame) {
        let Self { mut sender, reader } = self;
        // Before the last word: what the agent still says must not take it away.
        reader.stop();
        if let Err(error) = sender.send(codec::message(frame, true), true) {
            debug!(%error, "the last word could not be sent");
        }
    }

    /// Tells the agent why it gets no session.
    fn refuse(self, reason: &EndReason) {
        let code = reason.code();
        let retry = code.retry_after.map_or(0, |seconds| seconds * 1000);
        let error = v1::InitError {
            code: code.number.into(),
            message: reason.to_string(),
            retry_after_ms: retry,
        };
        let frame: ControlFrame = Frame::InitError(error).into();
        self.send_last(&frame);
    }
}

/// A session after its handshake.
struct Control<'a> {
    edge: &'a Arc<Shared>,
    session: Arc<SessionHandle>,
    stream: Stream,
    began: Instant,
    heartbeat_at: Instant,
    /// The agent has to give a sign of life by the second, after the first.
    asked: Option<(std::time::Instant, Instant)>,
    /// No new requests; the session ends by then.
    draining: Option<Instant>,
    /// The edge is to stop.
    stopping: bool,
}

impl<'a> Control<'a> {
    fn new(edge: &'a Arc<Shared>, session: Arc<SessionHandle>, stream: Stream) -> Self {
        let began = Instant::now();
        let heartbeat_at = began + edge.heartbeat;
        Self {
            edge,
            session,
            stream,
            began,
            heartbeat_at,
            asked: None,
            draining: None,
            stopping: false,
        }
    }

    /// Most sessions are idle nearly always, so this is written to be small: there is one timer, and
    /// what happens seldom has its memory only while it happens.
    async fn run(mut self) -> Result<std::convert::Infallible, EndReason> {
        let session = Arc::clone(&self.session);
        let mut timer = Deadline::at(self.heartbeat_at);
        loop {
            timer.set(self.due());
            tokio::select! {
                frame = self.stream.next() => Box::pin(self.on_frame(frame?)).await?,
                () = poll_fn(|cx| timer.poll(cx)) => Box::pin(self.on_time()).await?,
                lanes = session.carried.lanes_wanted() => Box::pin(self.want_lanes(lanes)).await?,
                () = session.probe.notified(), if self.asked.is_none() => {
                    Box::pin(self.ask()).await?;
                }
                code = session.cut.wanted() => return Box::pin(self.cut(code)).await,
                () = session.changed.notified() => Box::pin(self.tell_changes()).await?,
                () = session.replaced.cancelled(), if self.draining.is_none() => {
                    let patient = session.patient.load(Ordering::Relaxed);
                    let within = if patient { SWITCH_DRAIN } else { DRAIN };
                    Box::pin(self.go_away(v1::GoAwayReason::Replaced, within, false)).await?;
                }
                () = self.edge.stop.cancelled(), if !self.stopping => Box::pin(self.stop()).await?,
            }
        }
    }

    /// When something is to be done next.
    fn due(&self) -> Instant {
        let life = self.asked.map(|(_, deadline)| deadline);
        let drained = self.draining.map(|_| Instant::now() + DRAIN_LOOK);
        [life, drained].into_iter().flatten().fold(self.heartbeat_at, Instant::min)
    }

    async fn on_time(&mut self) -> Result<(), EndReason> {
        let now = Instant::now();
        if self.asked.is_some_and(|(_, deadline)| now >= deadline) {
            self.check_life()?;
        }
        if self.draining.is_some() {
            self.check_drained()?;
        }
        if now >= self.heartbeat_at {
            self.heartbeat_at = now + self.edge.heartbeat;
            self.heartbeat().await?;
        }
        Ok(())
    }

    async fn want_lanes(&mut self, lanes: usize) -> Result<(), EndReason> {
        let lanes = u32::try_from(lanes).unwrap_or(u32::MAX);
        self.stream.send(Frame::LanesWanted(v1::LanesWanted { lanes }).into()).await
    }

    async fn heartbeat(&mut self) -> Result<(), EndReason> {
        self.ask().await?;
        for status in self.statuses() {
            self.stream.send(status).await?;
        }
        Ok(())
    }

    fn statuses(&self) -> Vec<ControlFrame> {
        let mine = self.edge.registry.tunnels_of(&self.session.id);
        let status = |tunnel: Arc<crate::registry::Tunnel>| {
            let status = v1::TunnelStatus {
                tunnel_id: tunnel.id.as_bytes().to_vec().into(),
                state: claims::state(&tunnel).into(),
                requests: tunnel.counts.requests.load(Ordering::Relaxed),
                latency_ms: tunnel.latency_ms(),
                uptime_seconds: tunnel.created.elapsed().as_secs(),
            };
            Frame::TunnelStatus(status).into()
        };
        mine.into_iter().map(status).collect()
    }

    /// Wants a sign of life; any byte is one. The heartbeat is answered whatever carries it.
    async fn ask(&mut self) -> Result<(), EndReason> {
        if self.asked.is_none() {
            self.session.carried.ping();
            self.asked = Some((std::time::Instant::now(), Instant::now() + SILENCE));
        }
        let timestamp_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let rtt_us = self.session.rtt_us.load(Ordering::Relaxed);
        self.stream.send(Frame::Heartbeat(v1::Heartbeat { timestamp_us, rtt_us }).into()).await
    }

    fn check_life(&mut self) -> Result<(), EndReason> {
        match self.asked.take() {
            Some((since, _)) if self.session.carried.last_received() < since => {
                Err(EndReason::Silent)
            }
            _ => Ok(()),
        }
    }

    /// The agent is told why before its streams are cut; what it says to that is of no interest.
    async fn cut(mut self, code: &'static Code) -> Result<std::convert::Infallible, EndReason> {
        self.tell_closed().await?;
        let message = format!("{}. {}", code.title, code.fix);
        let error = v1::ControlError { code: code.number.into(), message };
        self.stream.send_last(&Frame::ControlError(error).into());
        Err(EndReason::Cut(code))
    }

    /// Somebody has paused a tunnel, let it go on, or deleted it.
    async fn tell_changes(&mut self) -> Result<(), EndReason> {
        self.tell_closed().await?;
        for status in self.statuses() {
            self.stream.send(status).await?;
        }
        Ok(())
    }

    async fn tell_closed(&mut self) -> Result<(), EndReason> {
        for close in self.session.take_closed() {
            self.stream.send(Frame::CloseTunnel(close).into()).await?;
        }
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), EndReason> {
        self.stopping = true;
        match &mut self.draining {
            None => self.go_away(v1::GoAwayReason::Drain, DRAIN, true).await,
            Some(deadline) => {
                *deadline = (*deadline).min(Instant::now() + DRAIN);
                Ok(())
            }
        }
    }

    async fn go_away(
        &mut self,
        reason: v1::GoAwayReason,
        within: Duration,
        reconnect: bool,
    ) -> Result<(), EndReason> {
        let message = match reason {
            v1::GoAwayReason::Replaced => "a newer session of this agent took over",
            _ => "the edge is shutting down",
        };
        let deadline_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        let away =
            v1::GoAway { reason: reason.into(), message: message.into(), deadline_ms, reconnect };
        self.draining = Some(Instant::now() + within);
        debug!(message, "go away");
        self.stream.send(Frame::GoAway(away).into()).await
    }

    fn check_drained(&self) -> Result<(), EndReason> {
        let over = self.draining.is_some_and(|deadline| Instant::now() >= deadline);
        if over || self.session.carried.is_drained() { Err(EndReason::Drained) } else { Ok(()) }
    }

    async fn on_frame(&mut self, frame: ControlFrame) -> Result<(), EndReason> {
        let Some(frame) = frame.frame else {
            self.edge.metrics.unknown_frames.inc();
            return Ok(());
        };
        match frame {
            Frame::Heartbeat(v1::Heartbeat { timestamp_us, .. }) => {
                self.stream
                    .send(Frame::HeartbeatAck(v1::HeartbeatAck { timestamp_us }).into())
                    .await
            }
            Frame::HeartbeatAck(ack) => {
                let sent = Duration::from_micros(ack.timestamp_us);
                let rtt = self.began.elapsed().saturating_sub(sent);
                let rtt = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX).max(1);
                self.session.rtt_us.store(rtt, Ordering::Relaxed);
                Ok(())
            }
            Frame::OpenTunnel(open) => self.open(open.tunnel.unwrap_or_default()).await,
            Frame::UpdateTunnel(update) => {
                let set = |tunnel: &crate::registry::Tunnel| {
                    tunnel.set_local_url(update.local_url.clone());
                };
                self.of_mine(&update.tunnel_id, set).await
            }
            Frame::UpstreamHealth(health) => {
                let v1::UpstreamHealth { tunnel_id, healthy, reason, latency_ms, open } = health;
                let unhealthy =
                    (!healthy).then(|| reason.chars().take(MAX_REASON).collect::<String>());
                let local = Local { unhealthy, latency_ms, open };
                self.of_mine(&tunnel_id, |tunnel| tunnel.set_local(local)).await
            }
            Frame::CloseTunnel(close) => {
                if let Ok(id) = TunnelId::from_slice(&close.tunnel_id) {
                    let tunnel = self.edge.registry.owned(&self.session.id, id.as_bytes());
                    if self.edge.registry.close(self.session.id, id)
                        && let Some(tunnel) = tunnel
                    {
                        self.edge.books.released(&tunnel);
                    }
                }
                Ok(())
            }
            Frame::GoAway(away) => {
                debug!(message = away.message, "the agent goes");
                let unserved = self.edge.registry.release(self.session.id);
                self.edge.books.offline(&self.session, unserved);
                self.draining.get_or_insert(Instant::now() + DRAIN);
                Ok(())
            }
            Frame::ControlError(error) => {
                warn!(code = error.code, message = error.message, "the agent complains");
                Ok(())
            }
            other => self.complain(format!("{} has no place here", frame_name(&other))).await,
        }
    }

    /// A tunnel more, or another setting of one that this session serves.
    async fn open(&mut self, spec: v1::TunnelSpec) -> Result<(), EndReason> {
        let answer = match claims::claim(self.edge, &self.session, &spec).await {
            Ok(claim) => {
                let created = claims::created(self.edge, &spec.key, &claim);
                let served = self.edge.registry.target_of(&claim.tunnel);
                let is_change = served.is_some_and(|target| target.session.id == self.session.id);
                let claims = [claim];
                self.edge.registry.activate(&self.session, &claims);
                if !is_change {
                    self.edge.books.opened(&self.session, &claims);
                }
                created
            }
            Err(refusal) => claims::refused(&spec.key, &refusal),
        };
        self.stream.send(answer).await
    }

    async fn of_mine(
        &mut self,
        tunnel: &[u8],
        change: impl FnOnce(&crate::registry::Tunnel),
    ) -> Result<(), EndReason> {
        match self.edge.registry.owned(&self.session.id, tunnel) {
            Some(tunnel) => {
                change(&tunnel);
                Ok(())
            }
            None => self.complain("this session serves no such tunnel".into()).await,
        }
    }

    async fn complain(&mut self, message: String) -> Result<(), EndReason> {
        let error = v1::ControlError { code: Code::BAD_FRAME.number.into(), message };
        self.stream.send(Frame::ControlError(error).into()).await
    }
}
