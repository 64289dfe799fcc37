//! Rests of bodies that come on lanes: when they find their stream, and what becomes of them when
//! they don't.

use tokio::io::DuplexStream;

use super::*;
use crate::mux::{self, Session};

/// A stream of another connection, the end of which shows whether the rest still lives.
struct Lane {
    session: Session,
    _sender: mux::Sender,
    _driver: mux::Driver<DuplexStream>,
}

impl Lane {
    fn has_the_rest(&self) -> bool {
        self.session.stats().streams == 1
    }
}

fn rest(read: &'static str) -> (Box<Rest>, Lane) {
    let (session, _, driver) = mux::new(Config::agent(), tokio::io::duplex(1).0, Bytes::new());
    let (sender, receiver) = session.open().unwrap();
    let lane = Lane { session, _sender: sender, _driver: driver };
    (Box::new(Rest { receiver, read: read.into() }), lane)
}

impl End {
    /// Whether there was a use for it.
    fn go_on_with(&mut self, id: u32, rest: Box<Rest>, now: Instant) -> bool {
        self.core.go_on_with(id, rest, now).0.is_none()
    }

    /// What was read of the rest that is there.
    fn rest(&mut self, id: u32) -> Poll<Result<Bytes, StreamError>> {
        self.core.poll_rest(id, &cx()).map(|polled| polled.map(|rest| rest.read))
    }
}

#[test]
fn a_rest_that_is_here_before_its_stream_waits_for_it() {
    let mut pair = Pair::new();
    let id = pair.edge.open();
    let (early, lane) = rest("early");
    assert!(pair.agent.go_on_with(id, early, pair.now));
    pair.edge.send(id, "head", false);
    pair.down();
    assert_eq!(pair.agent.accept(), Some(id));
    assert_eq!(pair.agent.read(id, pair.now).0, b"head");
    assert_eq!(pair.agent.rest(id), Poll::Ready(Ok("early".into())));
    assert!(!lane.has_the_rest(), "the receiver was taken, and dropped by the test");
    assert_eq!(pair.agent.rest(id), Poll::Pending, "there is one");
    assert!(pair.agent.core.early.is_empty());
}

#[test]
fn what_came_early_is_given_back_after_ten_seconds() {
    let mut end = End::new(Config::agent());
    let now = Instant::now();
    let ((first, _first), (second, _second)) = (rest("first"), rest("second"));
    assert!(end.go_on_with(2, first, now));
    assert!(end.go_on_with(4, second, now + Duration::from_secs(5)));
    assert!(end.core.forget_early(now + Duration::from_secs(10)).is_empty());
    let late = end.core.forget_early(now + Duration::from_millis(10_001));
    assert_eq!(late.iter().map(|rest| &rest.read[..]).collect::<Vec<_>>(), [b"first"]);
    let late = end.core.forget_early(now + Duration::from_secs(60));
    assert_eq!(late.iter().map(|rest| &rest.read[..]).collect::<Vec<_>>(), [b"second"]);
}

/// T06: a peer that names streams which never come.
#[test]
fn t06_no_more_than_128_rests_wait_for_their_streams() {
    let mut end = End::new(Config::agent());
    let now = Instant::now();
    let mut lanes = Vec::new();
    for number in 1..=1_000 {
        let (early, lane) = rest("");
        assert_eq!(end.go_on_with(number * 2, early, now), lanes.len() < MAX_EARLY);
        lanes.push(lane);
    }
    assert_eq!(lanes.iter().filter(|lane| lane.has_the_rest()).count(), 128);
    end.core.close(SessionError::Ended);
    assert!(!lanes.iter().any(Lane::has_the_rest), "they end with the session");
}

#[test]
fn a_rest_that_nobody_waits_for_is_given_back() {
    let mut pair = Pair::new();
    let (unread, complete) = (pair.stream(), pair.stream());
    let give = |end: &mut End, id| {
        let (rest, lane) = rest("");
        let taken = end.go_on_with(id, rest, Instant::now());
        assert_eq!(taken, lane.has_the_rest());
        (taken, lane)
    };
    // The edge opens the streams: one that it does not know will not come any more.
    assert!(!give(&mut pair.edge, 1_000).0);
    let (taken, lane) = give(&mut pair.edge, unread);
    assert!(taken);
    assert!(!give(&mut pair.edge, unread).0, "a stream has one");
    assert!(lane.has_the_rest());
    pair.edge.core.drop_receiver(complete, ReceiverEnd::Complete);
    assert!(!give(&mut pair.edge, complete).0, "all was read");
    pair.edge.drop_both(unread);
    assert!(!lane.has_the_rest());
    assert!(!give(&mut pair.edge, unread).0, "it is over");
    let cut = pair.stream();
    pair.agent.drop_both(cut);
    pair.settle();
    assert!(!give(&mut pair.edge, cut).0, "it was cut");
    pair.edge.core.close(SessionError::Ended);
    assert!(!give(&mut pair.edge, complete).0, "the session is over");
}

#[test]
fn a_reset_of_the_stream_ends_the_rest_too() {
    for by_peer in [true, false] {
        let mut pair = Pair::new();
        let id = pair.stream();
        let (rest, lane) = rest("");
        assert!(pair.edge.go_on_with(id, rest, pair.now));
        if by_peer {
            pair.agent.drop_both(id);
            pair.settle();
            assert_eq!(pair.edge.rest(id), Poll::Ready(Err(StreamError::Reset)));
        }
        pair.edge.drop_both(id);
        assert!(!lane.has_the_rest(), "{by_peer}");
        nothing_left(&pair.edge);
    }
}

/// An answer that came before the upload was read: the agent says all of it and then that it wants
/// no more. What it said may still be on its way on a lane.
#[test]
fn a_reset_after_the_peers_last_byte_leaves_the_rest_of_use() {
    for early in [true, false] {
        let mut pair = Pair::new();
        let id = pair.stream();
        let (rest, _lane) = rest("answer");
        let mut rest = Some(rest);
        if early {
            assert!(pair.edge.go_on_with(id, rest.take().unwrap(), pair.now));
        }
        pair.agent.core.drop_receiver(id, ReceiverEnd::Stop);
        pair.agent.send(id, "", true);
        assert_eq!(pair.up(), [fin(id), rst(id)]);
        if let Some(rest) = rest {
            assert_eq!(pair.edge.rest(id), Poll::Pending);
            assert!(pair.edge.go_on_with(id, rest, pair.now));
        }
        assert_eq!(pair.edge.rest(id), Poll::Ready(Ok("answer".into())));
    }
}

#[test]
fn a_stopped_reader_keeps_the_rest_to_the_end_of_the_stream() {
    let mut pair = Pair::new();
    let (before, after) = (pair.stream(), pair.stream());
    let (rest_before, lane_before) = rest("");
    assert!(pair.agent.go_on_with(before, rest_before, pair.now));
    for id in [before, after] {
        pair.agent.core.drop_receiver(id, ReceiverEnd::Stop);
    }
    let (rest_after, lane_after) = rest("");
    assert!(pair.agent.go_on_with(after, rest_after, pair.now));
    assert!(pair.up().is_empty());
    assert!(lane_before.has_the_rest() && lane_after.has_the_rest(), "else it looks cancelled");
    for id in [before, after] {
        pair.agent.send(id, "answer", true);
    }
    pair.up();
    assert!(!lane_before.has_the_rest() && !lane_after.has_the_rest());
}

/// Nothing follows MOVED where it stood.
#[test]
fn t06_a_rest_is_of_no_use_to_a_stream_that_goes_on_where_it_was() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.agent.send(id, "more", false);
    pair.up();
    let (rest, _lane) = rest("");
    assert!(pair.edge.go_on_with(id, rest, pair.now));
    assert_eq!(pair.edge.rest(id), Poll::Ready(Err(StreamError::Reset)));
}

#[test]
fn whoever_waits_for_a_rest_is_woken() {
    let mut pair = Pair::new();
    let (comes, cut) = (pair.stream(), pair.stream());
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let cx = Context::from_waker(&waker);
    assert!(pair.edge.core.poll_rest(comes, &cx).is_pending());
    assert!(pair.edge.core.poll_rest(cut, &cx).is_pending());
    let (rest, _lane) = rest("");
    let (_, waker) = pair.edge.core.go_on_with(comes, rest, pair.now);
    waker.expect("the reader's").wake();
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    pair.agent.drop_both(cut);
    let wire = pair.agent.gather(&mut Vec::new());
    let mut woken = Vec::new();
    pair.edge.take_waking(&wire, pair.now, &mut woken).unwrap();
    woken.into_iter().for_each(Waker::wake);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
}
