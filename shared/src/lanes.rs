//! Lanes: more connections beside a session's first one, for long bodies.
//!
//! One TCP connection couples all its streams: a lost packet holds up everything behind it, and what
//! the kernel has taken can't be overtaken. So every stream begins on the session's first
//! connection, and a body that turns out to be long goes on over a lane; what is left on the first
//! connection is control, heads and short bodies.
//!
//! ```text
//! first connection   stream 42: MESSAGE(StreamReply) DATA MOVED               FIN (when all is sent)
//! lane               stream  7:                      MOVED(42) DATA DATA … END FIN
//! ```
//!
//! The stream on the first connection stays open as long as its body is under way: it is how either
//! side cancels, and it ends last. Either side may move what it sends. A lane that is lost takes the
//! bodies on it with it, and nothing else.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::debug;
use uniroute_proto::codec::{self, Decoder, Kind};

use crate::mux::{self, StreamError};

/// Lanes that an edge lets a session have.
pub const MAX_LANES: usize = 8;
/// Lanes that an agent opens by default: a few long bodies don't share one, and the first connection
/// and these make no more than a browser's usual six.
pub const DEFAULT_LANES: usize = 4;

/// How long a long body waits for a lane of its own before it shares one.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a lane is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A lane that carries something, from which nothing came for this long, has died.
const SILENCE: Duration = Duration::from_secs(15);
/// A lane that carried nothing for this long is closed by its agent.
const IDLE: Duration = Duration::from_secs(60);
/// What bodies on a lane have when their session ends.
const FINISH: Duration = Duration::from_secs(5);
/// How often a lane is looked at then.
const FINISH_LOOK: Duration = Duration::from_millis(50);
/// A stream on a lane says at once what it belongs to.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// Streams on one lane that have not said it yet; a frame's beginning may be cut off anywhere.
const MAX_NAMELESS: usize = 64;
/// The first connection's first stream.
const CONTROL_STREAM: u32 = 1;
/// WebSocket close code for reasons of this protocol (RFC 6455, section 7.4.2).
const CLOSE_CODE: u16 = 4000;

/// The lanes of one session.
#[derive(Debug)]
pub(crate) struct Lanes {
    max: usize,
    count: AtomicUsize,
    state: Mutex<State>,
    wish: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<mux::Session>,
    /// Long bodies that wait for a lane of their own.
    waiting: usize,
    /// Lanes that this side has asked for so far.
    wanted: usize,
}

impl Lanes {
    pub(crate) fn new(max: usize) -> Self {
        let (count, state) = (AtomicUsize::new(0), Mutex::default());
        Self { max, count, state, wish: Notify::new() }
    }

    /// Lanes that are open now.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.count() < self.max
    }

    /// Lanes that end soon: they take no new streams.
    pub(crate) fn leaving(&self) -> usize {
        let state = self.state.lock();
        state.open.len() - state.of_use().count()
    }

    pub(crate) fn open_now(&self) -> Vec<mux::Session> {
        self.state.lock().open.clone()
    }

    /// Resolves when long bodies would like more lanes: with how many there should be.
    pub(crate) async fn wanted(&self) -> usize {
        self.wish.notified().await;
        self.state.lock().wanted
    }

    /// Lets bodies move to `lane`; `false` when there are as many as there may be.
    fn add(&self, lane: &mux::Session) -> bool {
        let mut state = self.state.lock();
        if state.open.len() >= self.max {
            return false;
        }
        state.open.push(lane.clone());
        self.count.store(state.open.len(), Ordering::Relaxed);
        true
    }

    fn remove(&self, lane: &mux::Session) {
        let mut state = self.state.lock();
        state.open.retain(|open| !open.is_same(lane));
        state.ask_again();
        self.count.store(state.open.len(), Ordering::Relaxed);
    }

    /// A stream for a long body, on a lane that nothing else is on, or, when there will be no more
    /// lanes or none came for too long, on the one that has the least to do.
    fn open(&self, wait: &mut Wait) -> Option<(mux::Sender, mux::Receiver)> {
        let mut state = self.state.lock();
        let lane = state.of_use().min_by_key(|lane| lane.backlog());
        let idle = lane.is_some_and(|lane| lane.stats().streams <= 1);
        let takes = idle || wait.is_over() || state.of_use().count() >= self.max;
        if let Some(lane) = lane.filter(|_| takes) {
            let stream = lane.open().ok()?;
            wait.given_up = !idle;
            wait.end(&mut state);
            return Some(stream);
        }
        wait.begin(&mut state);
        // Again, if another body took the lane that was to come.
        let wanted = self.max.min(state.of_use().count() + state.waiting);
        if wanted > state.wanted {
            state.wanted = wanted;
            self.wish.notify_one();
        }
        None
    }
}

impl State {
    /// Lanes that bodies may move to; the others end soon.
    fn of_use(&self) -> impl Iterator<Item = &mux::Session> {
        self.open.iter().filter(|lane| lane.takes_streams())
    }

    /// What was asked for beyond the lanes there are may be asked for again.
    fn ask_again(&mut self) {
        self.wanted = self.wanted.min(self.of_use().count());
    }
}

/// A long body's wait for a lane of its own.
#[derive(Debug, Default)]
pub(crate) struct Wait {
    since: Option<Instant>,
    given_up: bool,
}

impl Wait {
    fn begin(&mut self, state: &mut State) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
            state.waiting += 1;
        }
    }

    fn is_over(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() > PATIENCE)
    }

    fn end(&mut self, state: &mut State) {
        if self.since.take().is_some() {
            state.waiting -= 1;
            if self.given_up {
                // Asked in vain.
                state.ask_again();
            }
        }
    }

    /// The body is over, or has moved.
    pub(crate) fn finish(mut self, lanes: &Lanes) {
        if self.since.is_some() {
            self.given_up = self.is_over();
            self.end(&mut lanes.state.lock());
        }
    }
}

/// What `sender` still sends goes over a lane from here on, if there is one. Returns whether it
/// does; to be called between two frames, again and again until it does.
pub(crate) fn move_to_lane(sender: &mut mux::Sender) -> bool {
    let Some((lanes, wait)) = sender.lanes() else { return false };
    let Some((mut lane, mut back)) = lanes.open(wait) else { return false };
    // Nothing comes back on it but the end.
    back.complete();
    if lane.send(codec::moved_from(sender.id()), false).is_err() {
        return false;
    }
    let moved = codec::header(Kind::Moved, false, 0);
    sender.send_framed(moved, Bytes::new(), false).is_ok_and(|()| {
        sender.go_on_with(lane);
        true
    })
}

/// Runs a lane of the session `first` until either ends. `closes_idle`: this side opened it, and
/// closes it when it has carried nothing for a minute.
pub(crate) async fn run(
    first: &mux::Session,
    lane: &mux::Session,
    acceptor: &mut mux::Acceptor,
    closes_idle: bool,
) {
    if let Some(lanes) = first.lanes().filter(|lanes| lanes.add(lane)) {
        lane.become_lane_of(first);
        let _place = Place { lanes, lane };
        tokio::select! {
            _ = first.closed() => finish(lane).await,
            _ = lane.closed() => {}
            () = take_bodies(first, acceptor) => {}
            reason = watch(first, lane, closes_idle) => {
                if let Some(reason) = reason {
                    lane.abort(CLOSE_CODE, reason);
                }
            }
        }
    }
    lane.close();
}

/// The session is over: what was sent to its end before may still be on its way.
async fn finish(lane: &mux::Session) {
    let streams_end = async {
        while lane.stats().streams > 1 {
            sleep(FINISH_LOOK).await;
        }
    };
    tokio::select! {
        _ = lane.closed() => {}
        _ = timeout(FINISH, streams_end) => {}
    }
}

/// A lane's place among those of its session, for as long as this lives.
struct Place<'a> {
    lanes: &'a Lanes,
    lane: &'a mux::Session,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.lanes.remove(self.lane);
    }
}

/// Gives each body that comes on a lane to the stream that it belongs to.
async fn take_bodies(first: &mux::Session, acceptor: &mut mux::Acceptor) {
    let mut nameless = FuturesUnordered::new();
    loop {
        let named = tokio::select! {
            accepted = acceptor.accept() => {
                let Some((mut back, receiver)) = accepted else { return };
                // Nothing goes back on it.
                let _ = back.send(Bytes::new(), true);
                let mut naming = Box::pin(timeout(FIRST_FRAME, belongs_to(receiver)));
                match naming.as_mut().now_or_never() {
                    Some(named) => named,
                    None if nameless.len() >= MAX_NAMELESS => {
                        debug!("too many streams on a lane that say nothing");
                        continue;
                    }
                    None => {
                        nameless.push(naming);
                        continue;
                    }
                }
            }
            Some(named) = nameless.next() => named,
        };
        match named {
            Ok(Ok(Some((CONTROL_STREAM, ..)))) => debug!("the control stream does not move"),
            // A stream that is over by now has no use for it: dropping it tells the peer.
            Ok(Ok(Some((stream, receiver, rest)))) => first.go_on_with(stream, receiver, rest),
            Ok(Ok(None)) => debug!("a stream on a lane that says not what it belongs to"),
            Ok(Err(error)) => debug!(%error, "a stream on a lane ended at once"),
            Err(_) => debug!("a stream on a lane that says nothing"),
        }
    }
}

/// The stream that the first frame names, and what follows it.
async fn belongs_to(
    mut receiver: mux::Receiver,
) -> Result<Option<(u32, mux::Receiver, Bytes)>, StreamError> {
    let mut decoder = Decoder::new();
    while let Some(mut chunk) = receiver.recv().await? {
        match decoder.decode(&mut chunk) {
            Ok(None) => {}
            Ok(Some(frame)) => {
                return Ok(codec::moved_stream(&frame).map(|stream| (stream, receiver, chunk)));
            }
            Err(_) => break,
        }
    }
    Ok(None)
}

/// Says why the lane is to end; without a reason if it was idle. Then the peer was told before, and
/// what it opened meanwhile has come to its end.
async fn watch(
    first: &mux::Session,
    lane: &mux::Session,
    closes_idle: bool,
) -> Option<&'static str> {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut busy = Instant::now();
    let mut retiring = false;
    loop {
        look.tick().await;
        first.forget_early();
        // One stream is the handshake's.
        if lane.stats().streams > 1 {
            busy = Instant::now();
            let silent = lane.last_received().elapsed();
            if silent > SILENCE {
                return Some("UR-2104: nothing comes on this lane");
            }
            if silent > LOOK {
                lane.ping();
            }
        } else if retiring {
            return None;
        } else if closes_idle && busy.elapsed() > IDLE {
            lane.go_away();
            retiring = true;
        }
    }
}

#[cfg(test)]
mod tests;
