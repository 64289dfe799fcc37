//! The handshake of a session, as two pure state machines: frames in, frames and verdicts out.
//!
//! ```text
//! edge  → agent   AuthChallenge (nonce, versions, features)
//! agent → edge    Init (version, nonce, token, agent id, resume token, tunnels)
//! edge  → agent   TunnelCreated | TunnelRefused, one for each tunnel   or InitError, and the end
//! agent → edge    Ready
//! edge  → agent   ReadyAck (session id, resume token)
//! ```
//!
//! An agent that asks for no tunnel sends `Ready` right behind `Init`. No request reaches a tunnel before
//! its session's `Ready`. Time limits are the caller's.

use bytes::Bytes;

use crate::{
    FEATURE_HTTP_POLICY, FEATURE_TUNNEL_LIMITS, VERSION,
    v1::{self, ControlFrame, control_frame::Frame},
};

/// Most tunnels that one session may ask for.
pub const MAX_TUNNELS: usize = 256;
/// Of the error table: the settings of the tunnel can't be used.
const POLICY_REFUSED: u32 = 1121;
/// Length of the challenge's nonce, in bytes.
pub const NONCE_LEN: usize = 16;

/// Why a handshake ended without a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// No version that both sides speak.
    #[error("protocol version {theirs} is not spoken here (this side speaks {min} to {max})")]
    Version {
        /// What the other side wanted, or the lowest it speaks.
        theirs: u32,
        /// Lowest version of this side.
        min: u32,
        /// Highest version of this side.
        max: u32,
    },
    /// `Init` does not repeat this connection's nonce: a recording of another one.
    #[error("the challenge's nonce was not repeated")]
    Nonce,
    /// A frame that has no place here.
    #[error("{got} where {expected} was due")]
    Unexpected {
        /// What was due.
        expected: &'static str,
        /// What came.
        got: &'static str,
    },
    /// A field that can't be right.
    #[error("{0}")]
    Invalid(String),
    /// The edge refused, and said why.
    #[error("the edge refused: {message}")]
    Refused {
        /// Code of the error table.
        code: u32,
        /// In the edge's words.
        message: String,
        /// Worth trying again after this many milliseconds; `None`: not as it is.
        retry_after_ms: Option<u32>,
    },
    /// The edge sent the agent away before the session began.
    #[error("the edge said go away: {0}")]
    GoAway(String),
}

/// The edge's side.
#[derive(Debug)]
pub struct EdgeHandshake {
    nonce: Bytes,
    state: EdgeState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EdgeState {
    AwaitInit,
    Deciding,
    AwaitReady,
    Done,
}

/// What the edge has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum EdgeStep {
    /// Check the token and make the tunnels, then call [`EdgeHandshake::decided`].
    Decide(Box<v1::Init>),
    /// Let requests in, then send `ReadyAck`.
    Ready,
    /// The connection wants to be a lane: check that it may, then send `LaneJoined`.
    Join(Box<v1::JoinLane>),
    /// The frame is unknown here and was skipped.
    Skip,
}

impl EdgeHandshake {
    /// Begins, with the challenge to send. `nonce` must be random and used for nothing else.
    /// `quic`: where the session could go instead.
    #[must_use]
    pub fn new(
        nonce: [u8; NONCE_LEN],
        edge_id: &str,
        features: &[&str],
        quic: Option<v1::QuicOffer>,
    ) -> (Self, ControlFrame) {
        let nonce = Bytes::copy_from_slice(&nonce);
        let challenge = v1::AuthChallenge {
            nonce: nonce.clone(),
            version_min: VERSION,
            version_max: VERSION,
            features: features.iter().map(|f| (*f).to_owned()).collect(),
            edge_id: edge_id.to_owned(),
            quic,
        };
        (Self { nonce, state: EdgeState::AwaitInit }, Frame::AuthChallenge(challenge).into())
    }

    /// Takes the agent's next frame.
    ///
    /// # Errors
    /// [`HandshakeError`]; the caller answers with `InitError` and closes.
    pub fn on_frame(&mut self, frame: ControlFrame) -> Result<EdgeStep, HandshakeError> {
        match (self.state, frame.frame) {
            (_, None) => Ok(EdgeStep::Skip),
            (EdgeState::AwaitInit, Some(Frame::JoinLane(join))) => {
                self.check_challenge(join.version, &join.nonce)?;
                self.state = EdgeState::Done;
                Ok(EdgeStep::Join(Box::new(join)))
            }
            (EdgeState::AwaitInit, Some(Frame::Init(init))) => {
                self.check(&init)?;
                self.state = EdgeState::Deciding;
                Ok(EdgeStep::Decide(Box::new(init)))
            }
            (EdgeState::AwaitReady, Some(Frame::Ready(_))) => {
                self.state = EdgeState::Done;
                Ok(EdgeStep::Ready)
            }
            (EdgeState::AwaitInit, Some(frame)) => Err(unexpected("Init", &frame)),
            (_, Some(frame)) => Err(unexpected("Ready", &frame)),
        }
    }

    /// The caller has sent an answer for each tunnel: `Ready` may come.
    pub fn decided(&mut self) {
        self.state = EdgeState::AwaitReady;
    }

    fn check_challenge(&self, version: u32, nonce: &Bytes) -> Result<(), HandshakeError> {
        if version != VERSION {
            return Err(HandshakeError::Version { theirs: version, min: VERSION, max: VERSION });
        }
        if *nonce != self.nonce {
            return Err(HandshakeError::Nonce);
        }
        Ok(())
    }

    fn check(&self, init: &v1::Init) -> Result<(), HandshakeError> {
        self.check_challenge(init.version, &init.nonce)?;
        let count = init.tunnels.len();
        if count > MAX_TUNNELS {
            return Err(HandshakeError::Invalid(format!("{count} tunnels, at most {MAX_TUNNELS}")));
        }
        let mut keys: Vec<&str> = init.tunnels.iter().map(|t| t.key.as_str()).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(HandshakeError::Invalid("two tunnels have the same key".into()));
        }
        Ok(())
    }
}

/// The agent's side.
#[derive(Debug)]
pub struct AgentHandshake {
    init: v1::Init,
    waiting: Vec<String>,
    session: Established,
    state: AgentState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AgentState {
    Challenge,
    Tunnels,
    Ack,
}

/// What the agent has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentStep {
    /// Send these frames.
    Send(Vec<ControlFrame>),
    /// Wait for the next frame.
    Wait,
    /// The session stands.
    Done(Box<Established>),
}

/// A session, as the agent's handshake left it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Established {
    /// The edge that holds the session.
    pub edge_id: String,
    /// Where it takes sessions over QUIC, if it does.
    pub quic: Option<v1::QuicOffer>,
    /// The features that it speaks.
    pub features: Vec<String>,
    /// Its name for the session.
    pub ack: v1::ReadyAck,
    /// Tunnels that exist.
    pub created: Vec<v1::TunnelCreated>,
    /// Tunnels that could not be had.
    pub refused: Vec<v1::TunnelRefused>,
}

impl AgentHandshake {
    /// Begins; `init` is sent once the challenge is there, with its nonce and the version set.
    #[must_use]
    pub fn new(init: v1::Init) -> Self {
        let waiting = init.tunnels.iter().map(|t| t.key.clone()).collect();
        let state = AgentState::Challenge;
        Self { init, waiting, session: Established::default(), state }
    }

    /// Takes the edge's next frame.
    ///
    /// # Errors
    /// [`HandshakeError`]; the caller closes the connection.
    pub fn on_frame(&mut self, frame: ControlFrame) -> Result<AgentStep, HandshakeError> {
        match (self.state, frame.frame) {
            (_, None) => Ok(AgentStep::Wait),
            (_, Some(Frame::InitError(error))) => Err(refused(error)),
            (_, Some(Frame::GoAway(away))) => Err(HandshakeError::GoAway(away.message)),
            (AgentState::Challenge, Some(Frame::AuthChallenge(challenge))) => {
                self.on_challenge(challenge)
            }
            (AgentState::Tunnels, Some(Frame::TunnelCreated(created))) => {
                self.answered(&created.key)?;
                self.session.created.push(created);
                Ok(self.ready_or_wait())
            }
            (AgentState::Tunnels, Some(Frame::TunnelRefused(refused))) => {
                self.answered(&refused.key)?;
                self.session.refused.push(refused);
                Ok(self.ready_or_wait())
            }
            (AgentState::Ack, Some(Frame::ReadyAck(ack))) => {
                self.session.ack = ack;
                Ok(AgentStep::Done(Box::new(std::mem::take(&mut self.session))))
            }
            (AgentState::Challenge, Some(frame)) => Err(unexpected("AuthChallenge", &frame)),
            (AgentState::Tunnels, Some(frame)) => Err(unexpected("TunnelCreated", &frame)),
            (AgentState::Ack, Some(frame)) => Err(unexpected("ReadyAck", &frame)),
        }
    }

    fn on_challenge(&mut self, challenge: v1::AuthChallenge) -> Result<AgentStep, HandshakeError> {
        check_version(&challenge)?;
        self.hold_back(&challenge.features)?;
        self.session.edge_id = challenge.edge_id;
        self.session.quic = challenge.quic;
        self.session.features = challenge.features;
        self.init.version = VERSION;
        self.init.nonce = challenge.nonce;
        self.state = AgentState::Tunnels;
        let mut frames = vec![Frame::Init(std::mem::take(&mut self.init)).into()];
        frames.extend(self.ready_if_complete());
        Ok(AgentStep::Send(frames))
    }

    /// Tunnels that the edge knows not enough for are not asked for.
    fn hold_back(&mut self, features: &[String]) -> Result<(), HandshakeError> {
        let held_back = self.init.tunnels.extract_if(.., |tunnel| !suffices(features, tunnel));
        self.session.refused.extend(held_back.map(|tunnel| too_old(tunnel.key)));
        self.waiting.retain(|key| self.session.refused.iter().all(|refused| refused.key != *key));
        if self.waiting.is_empty() && !self.session.refused.is_empty() {
            let v1::TunnelRefused { code, message, .. } = too_old(String::new());
            return Err(HandshakeError::Refused { code, message, retry_after_ms: None });
        }
        Ok(())
    }

    fn answered(&mut self, key: &str) -> Result<(), HandshakeError> {
        let place = self.waiting.iter().position(|k| k == key);
        let place = place.ok_or_else(|| {
            HandshakeError::Invalid(format!("an answer for tunnel {key:?}, which nobody asked for"))
        })?;
        self.waiting.swap_remove(place);
        Ok(())
    }

    fn ready_or_wait(&mut self) -> AgentStep {
        self.ready_if_complete().map_or(AgentStep::Wait, |ready| AgentStep::Send(vec![ready]))
    }

    fn ready_if_complete(&mut self) -> Option<ControlFrame> {
        if !self.waiting.is_empty() {
            return None;
        }
        self.state = AgentState::Ack;
        Some(Frame::Ready(v1::Ready {}).into())
    }
}

/// Whether an edge that speaks `features` may be asked for `tunnel`: one that knows no policies or no
/// limits would let in whom they keep out.
#[must_use]
pub fn suffices(features: &[String], tunnel: &v1::TunnelSpec) -> bool {
    let speaks = |feature: &str| features.iter().any(|spoken| spoken == feature);
    (tunnel.http.is_none() || speaks(FEATURE_HTTP_POLICY))
        && (tunnel.limits.is_none() || speaks(FEATURE_TUNNEL_LIMITS))
}

/// What the edge would say of a tunnel for which its features do not suffice, if it knew.
#[must_use]
pub fn too_old(key: String) -> v1::TunnelRefused {
    let message = "the edge is too old for the settings of this tunnel".into();
    v1::TunnelRefused { key, code: POLICY_REFUSED, message }
}

fn check_version(challenge: &v1::AuthChallenge) -> Result<(), HandshakeError> {
    let (min, max) = (challenge.version_min, challenge.version_max);
    if !(min..=max).contains(&VERSION) {
        return Err(HandshakeError::Version { theirs: min, min: VERSION, max: VERSION });
    }
    Ok(())
}

fn refused(error: v1::InitError) -> HandshakeError {
    HandshakeError::Refused {
        code: error.code,
        message: error.message,
        retry_after_ms: (error.retry_after_ms > 0).then_some(error.retry_after_ms),
    }
}

/// The agent's side of a lane's handshake. Returns the frame to send, or `None` once the connection
/// is a lane.
///
/// # Errors
/// [`HandshakeError`]; the caller closes the connection.
pub fn join_lane(
    join: &v1::JoinLane,
    frame: ControlFrame,
) -> Result<Option<ControlFrame>, HandshakeError> {
    match frame.frame {
        Some(Frame::AuthChallenge(challenge)) => {
            check_version(&challenge)?;
            let join = v1::JoinLane { version: VERSION, nonce: challenge.nonce, ..join.clone() };
            Ok(Some(Frame::JoinLane(join).into()))
        }
        Some(Frame::LaneJoined(_)) => Ok(None),
        Some(Frame::InitError(error)) => Err(refused(error)),
        Some(frame) => Err(unexpected("LaneJoined", &frame)),
        None => Err(HandshakeError::Invalid("an unknown frame where LaneJoined was due".into())),
    }
}

impl From<Frame> for ControlFrame {
    fn from(frame: Frame) -> Self {
        Self { frame: Some(frame) }
    }
}

/// The name of a control frame, for logs and errors.
#[must_use]
pub fn frame_name(frame: &Frame) -> &'static str {
    match frame {
        Frame::AuthChallenge(_) => "AuthChallenge",
        Frame::Init(_) => "Init",
        Frame::InitError(_) => "InitError",
        Frame::TunnelCreated(_) => "TunnelCreated",
        Frame::TunnelRefused(_) => "TunnelRefused",
        Frame::Ready(_) => "Ready",
        Frame::ReadyAck(_) => "ReadyAck",
        Frame::Heartbeat(_) => "Heartbeat",
        Frame::HeartbeatAck(_) => "HeartbeatAck",
        Frame::OpenTunnel(_) => "OpenTunnel",
        Frame::UpdateTunnel(_) => "UpdateTunnel",
        Frame::CloseTunnel(_) => "CloseTunnel",
        Frame::TunnelStatus(_) => "TunnelStatus",
        Frame::UpstreamHealth(_) => "UpstreamHealth",
        Frame::GoAway(_) => "GoAway",
        Frame::ControlError(_) => "ControlError",
        Frame::JoinLane(_) => "JoinLane",
        Frame::LaneJoined(_) => "LaneJoined",
        Frame::LanesWanted(_) => "LanesWanted",
    }
}

fn unexpected(expected: &'static str, got: &Frame) -> HandshakeError {
    HandshakeError::Unexpected { expected, got: frame_name(got) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(key: &str) -> v1::TunnelSpec {
        v1::TunnelSpec { key: key.into(), ..Default::default() }
    }

    fn offer() -> v1::QuicOffer {
        v1::QuicOffer { port: 8443, certificate_sha256: vec![1; 32].into() }
    }

    fn created(key: &str) -> ControlFrame {
        Frame::TunnelCreated(v1::TunnelCreated { key: key.into(), ..Default::default() }).into()
    }

    fn init(tunnels: &[&str]) -> v1::Init {
        v1::Init {
            token: "secret".into(),
            tunnels: tunnels.iter().map(|k| spec(k)).collect(),
            ..Default::default()
        }
    }

    fn sent(step: AgentStep) -> ControlFrame {
        match step {
            AgentStep::Send(mut frames) => frames.remove(0),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_sides_meet() {
        let (mut edge, challenge) = EdgeHandshake::new([7; 16], "edge-1", &[], Some(offer()));
        let mut agent = AgentHandshake::new(init(&["a", "b"]));
        let hello = sent(agent.on_frame(challenge).unwrap());
        assert!(
            matches!(edge.on_frame(hello).unwrap(), EdgeStep::Decide(i) if i.token == "secret")
        );
        edge.decided();
        assert_eq!(agent.on_frame(created("b")).unwrap(), AgentStep::Wait);
        let refused = v1::TunnelRefused { key: "a".into(), code: 1101, message: "taken".into() };
        let ready = sent(agent.on_frame(Frame::TunnelRefused(refused).into()).unwrap());
        assert_eq!(edge.on_frame(ready).unwrap(), EdgeStep::Ready);
        let ack = v1::ReadyAck { session_id: "s".into(), ..Default::default() };
        match agent.on_frame(Frame::ReadyAck(ack).into()).unwrap() {
            AgentStep::Done(done) => {
                assert_eq!((done.edge_id.as_str(), done.ack.session_id.as_str()), ("edge-1", "s"));
                assert_eq!((done.created.len(), done.refused.len()), (1, 1));
                assert_eq!(done.quic, Some(offer()));
            }
            other => panic!("{other:?}"),
        }
    }

    /// An edge that knows no policies would let in whom the owner keeps out.
    #[test]
    fn tunnels_with_a_policy_are_kept_from_edges_without() {
        let with_policy = |tunnels: &[&str], key: &str| {
            let mut init = init(tunnels);
            let tunnel = init.tunnels.iter_mut().find(|tunnel| tunnel.key == key).unwrap();
            tunnel.http = Some(v1::HttpPolicy { redirect_https: true, ..Default::default() });
            AgentHandshake::new(init)
        };
        let old = || EdgeHandshake::new([1; 16], "", &["lanes"], None).1;
        let mut agent = with_policy(&["a", "b"], "b");
        let Some(Frame::Init(hello)) = sent(agent.on_frame(old()).unwrap()).frame else {
            panic!("no Init")
        };
        assert_eq!(hello.tunnels, [spec("a")]);
        sent(agent.on_frame(created("a")).unwrap());
        let AgentStep::Done(done) =
            agent.on_frame(Frame::ReadyAck(v1::ReadyAck::default()).into()).unwrap()
        else {
            panic!("not done")
        };
        assert_eq!((done.refused[0].key.as_str(), done.refused[0].code), ("b", 1121));

        let error = with_policy(&["a"], "a").on_frame(old()).unwrap_err();
        assert!(matches!(error, HandshakeError::Refused { code: 1121, .. }));

        let (_, new) = EdgeHandshake::new([1; 16], "", &[FEATURE_HTTP_POLICY], None);
        let Some(Frame::Init(hello)) = sent(with_policy(&["a"], "a").on_frame(new).unwrap()).frame
        else {
            panic!("no Init")
        };
        assert!(hello.tunnels[0].http.is_some());
    }

    #[test]
    fn tunnels_with_limits_are_kept_from_edges_without() {
        let mut init = init(&["a", "b"]);
        init.tunnels[1].limits = Some(v1::TunnelLimits { in_flight: 1, ..Default::default() });
        let hello = |features: &[&str]| {
            let (_, challenge) = EdgeHandshake::new([1; 16], "", features, None);
            let mut agent = AgentHandshake::new(init.clone());
            match sent(agent.on_frame(challenge).unwrap()).frame {
                Some(Frame::Init(hello)) => hello.tunnels.len(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((hello(&[]), hello(&[FEATURE_TUNNEL_LIMITS])), (1, 2));
    }

    #[test]
    fn both_sides_meet_without_a_tunnel() {
        let (mut edge, challenge) = EdgeHandshake::new([7; 16], "edge-1", &[], None);
        let mut agent = AgentHandshake::new(init(&[]));
        let AgentStep::Send(frames) = agent.on_frame(challenge).unwrap() else { panic!() };
        let [hello, ready] = <[ControlFrame; 2]>::try_from(frames).unwrap();
        assert!(matches!(edge.on_frame(hello).unwrap(), EdgeStep::Decide(_)));
        edge.decided();
        assert_eq!(edge.on_frame(ready).unwrap(), EdgeStep::Ready);
        let ack = Frame::ReadyAck(v1::ReadyAck::default());
        assert!(matches!(agent.on_frame(ack.into()).unwrap(), AgentStep::Done(_)));
    }

    #[test]
    fn a_replayed_init_is_refused() {
        let (_, old) = EdgeHandshake::new([1; 16], "", &[], None);
        let hello = sent(AgentHandshake::new(init(&[])).on_frame(old).unwrap());
        let (mut edge, _) = EdgeHandshake::new([2; 16], "", &[], None);
        assert_eq!(edge.on_frame(hello).unwrap_err(), HandshakeError::Nonce);
    }

    #[test]
    fn versions_must_overlap() {
        let challenge = v1::AuthChallenge { version_min: 2, version_max: 3, ..Default::default() };
        let error = AgentHandshake::new(init(&[]))
            .on_frame(Frame::AuthChallenge(challenge).into())
            .unwrap_err();
        assert_eq!(error, HandshakeError::Version { theirs: 2, min: 1, max: 1 });
        let (mut edge, _) = EdgeHandshake::new([1; 16], "", &[], None);
        let hello = v1::Init { version: 9, nonce: vec![1; 16].into(), ..Default::default() };
        let error = edge.on_frame(Frame::Init(hello).into()).unwrap_err();
        assert_eq!(error, HandshakeError::Version { theirs: 9, min: 1, max: 1 });
    }

    #[test]
    fn frames_out_of_turn_are_named() {
        let (mut edge, _) = EdgeHandshake::new([1; 16], "", &[], None);
        let error = edge.on_frame(Frame::Ready(v1::Ready {}).into()).unwrap_err();
        assert_eq!(error.to_string(), "Ready where Init was due");
        assert_eq!(edge.on_frame(ControlFrame { frame: None }).unwrap(), EdgeStep::Skip);
        let error = AgentHandshake::new(init(&["a"])).on_frame(created("a")).unwrap_err();
        assert_eq!(error.to_string(), "TunnelCreated where AuthChallenge was due");
    }

    #[test]
    fn answers_for_unknown_or_repeated_tunnels_are_refused() {
        let (_, challenge) = EdgeHandshake::new([1; 16], "", &[], None);
        let mut agent = AgentHandshake::new(init(&["a", "b"]));
        agent.on_frame(challenge).unwrap();
        agent.on_frame(created("a")).unwrap();
        assert!(agent.on_frame(created("a")).is_err());
        let (mut edge, _) = EdgeHandshake::new([1; 16], "", &[], None);
        let mut twice = init(&["a", "a"]);
        (twice.version, twice.nonce) = (VERSION, vec![1; 16].into());
        assert!(matches!(
            edge.on_frame(Frame::Init(twice).into()),
            Err(HandshakeError::Invalid(_))
        ));
    }

    #[test]
    fn a_refusal_carries_its_code() {
        let refusal = v1::InitError { code: 4001, message: "no".into(), retry_after_ms: 0 };
        let error =
            AgentHandshake::new(init(&[])).on_frame(Frame::InitError(refusal).into()).unwrap_err();
        assert_eq!(
            error,
            HandshakeError::Refused { code: 4001, message: "no".into(), retry_after_ms: None }
        );
    }
}
