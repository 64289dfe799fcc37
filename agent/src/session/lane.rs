//! The agent's part in lanes ([`uniroute_shared::lanes`]): it dials them, when a long body of either
//! side would like one more, and gives them up when they are of no use.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, timeout},
};
use tracing::{debug, info};
use uniroute_proto::{handshake, v1};
use uniroute_shared::{backoff::Backoff, mux, session::Session, stream::FrameReader};

use super::{HANDSHAKE_TIMEOUT, Stream};
use crate::{
    connect::{self, ConnectError, Dialled, LaneOf, ServerUrl, Way},
    random,
};

/// After a lane that could not be had, the next one is tried after this long and up to twice that at
/// first.
const BACKOFF_BASE: Duration = Duration::from_secs(10);
/// Later it may be this long: behind a load balancer lanes may reach another edge.
const BACKOFF_CAP: Duration = Duration::from_secs(300);

/// How to reach the edge once more.
#[derive(Clone, Debug)]
pub(crate) struct Dialler {
    pub(crate) server: ServerUrl,
    pub(crate) way: Way,
    /// Lanes that there may be.
    pub(crate) max: usize,
}

/// The lanes of one session; they end with it.
pub(super) struct Lanes {
    dialler: Dialler,
    edge: Option<SocketAddr>,
    moved: Arc<AtomicU64>,
    join: v1::JoinLane,
    session: Session,
    max: usize,
    running: JoinSet<Result<(), ConnectError>>,
    /// Lanes that are to be there once those that are about to end have made room.
    unmet: usize,
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl Lanes {
    pub(super) fn new(
        dialler: Dialler,
        (edge, moved): (Option<SocketAddr>, Arc<AtomicU64>),
        ack: &v1::ReadyAck,
        session: Session,
    ) -> Self {
        let max = usize::try_from(ack.lanes).unwrap_or(0).min(dialler.max);
        session.allow_lanes(max);
        let join = v1::JoinLane {
            session_id: ack.session_id.clone(),
            resume_token: ack.resume_token.clone(),
            ..v1::JoinLane::default()
        };
        let (running, backoff) = (JoinSet::new(), Backoff::new(BACKOFF_BASE, BACKOFF_CAP));
        Self {
            dialler,
            edge,
            moved,
            join,
            session,
            max,
            running,
            unmet: 0,
            backoff,
            not_before: None,
        }
    }

    /// Dials lanes until there are `wanted`, or as many as there may be; none if the last try
    /// failed a short while ago.
    pub(super) fn open(&mut self, wanted: usize) {
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let leaving = self.session.lanes_leaving();
        while self.running.len() < (wanted + leaving).min(self.max) {
            let (dialler, edge) = (self.dialler.clone(), self.edge);
            let (join, session) = (self.join.clone(), self.session.clone());
            let moved = Arc::clone(&self.moved);
            self.running.spawn(async move {
                let lane = LaneOf { session: &join.session_id, edge };
                let dialling = connect::dial_at(&dialler.server, &dialler.way, Some(lane), moved);
                let dialled = tokio::select! {
                    dialled = dialling => dialled?,
                    _ = session.closed() => return Ok(()),
                };
                run(dialled, join, session).await
            });
        }
        self.unmet = if leaving > 0 { wanted } else { 0 };
    }

    /// The next lane that ended or could not be had.
    pub(super) async fn ended(&mut self) -> Option<Ended> {
        self.running.join_next().await
    }

    /// The session is over: what is on the lanes comes to its end first.
    pub(super) async fn finish(&mut self) {
        while self.running.join_next().await.is_some() {}
    }

    pub(super) fn on_end(&mut self, ended: Ended) {
        let reason = match ended {
            Ok(Ok(())) => {
                debug!("a lane ended");
                self.backoff.reset();
                let wanted = std::mem::take(&mut self.unmet);
                return self.open(wanted);
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let wait = BACKOFF_BASE + self.backoff.next(random());
        self.not_before = Some(Instant::now() + wait);
        info!(
            reason,
            retry_in_ms = wait.as_millis(),
            "no lane: long bodies stay on the session's connection"
        );
    }
}

pub(super) type Ended = Result<Result<(), ConnectError>, JoinError>;

/// One lane, from its connection to its end.
async fn run(dialled: Dialled, join: v1::JoinLane, session: Session) -> Result<(), ConnectError> {
    let lost = |what: &dyn std::fmt::Display| ConnectError::Lost(what.to_string());
    let (lane, acceptor, mut driver) = mux::new(mux::Config::agent(), dialled.io, dialled.early);
    let (sender, receiver) = lane.open().map_err(|error| lost(&error))?;
    let stream = Stream { sender: sender.into(), reader: FrameReader::control(receiver) };
    let (lane, mut acceptor) = (lane.into(), acceptor.into());
    let carrying = async {
        let joined = timeout(HANDSHAKE_TIMEOUT, shake(stream, join)).await;
        let _stream = joined.map_err(|_| ConnectError::Timeout("lane"))??;
        debug!("a lane joined");
        session.run_lane(&lane, &mut acceptor, true).await;
        Ok(())
    };
    let mut carrying = std::pin::pin!(carrying);
    tokio::select! {
        ended = driver.run() => match carrying.await {
            Err(ConnectError::Lost(_)) => Err(lost(&ended)),
            carried => carried,
        },
        carried = &mut carrying => {
            // What was said at the end still has to go out.
            let _ = timeout(super::SILENCE, driver.run()).await;
            carried
        }
    }
}

/// Returns the control stream, which the lane keeps to its end.
async fn shake(mut stream: Stream, join: v1::JoinLane) -> Result<Stream, ConnectError> {
    let lost = |what: &dyn std::fmt::Display| ConnectError::Lost(what.to_string());
    // The edge speaks first, so it has to see the stream.
    stream.sender.announce();
    loop {
        let frame = stream.next().await.map_err(|error| lost(&error))?;
        match handshake::join_lane(&join, frame)? {
            Some(answer) => stream.send(answer).await.map_err(|error| lost(&error))?,
            None => return Ok(stream),
        }
    }
}
