//! Two cores joined in memory, their bytes going through the WebSocket framing as they do on a
//! real connection, but with a clock and a network that the test drives.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::BytesMut;

use super::{super::batch, *};
use crate::carrier::ws::{Decoder, Event};

#[path = "core_tests/attacks.rs"]
mod attacks;
#[path = "core_tests/random.rs"]
mod random;
#[path = "core_tests/rests.rs"]
mod rests;

/// Bytes of a frame's header and payload.
type Frames = Vec<(Header, Bytes)>;

/// One core with what its driver would hold.
struct End {
    side: Side,
    core: Core,
    decoder: Decoder,
    incoming: BytesMut,
}

impl End {
    fn new(config: Config) -> Self {
        Self {
            side: config.side,
            decoder: Decoder::new(config.side),
            core: Core::new(config),
            incoming: BytesMut::new(),
        }
    }

    /// One batch as it goes over the wire; empty if there is nothing to say.
    fn gather(&mut self, wakers: &mut Vec<Waker>) -> BytesMut {
        match self.poll_gather(&cx(), wakers) {
            Poll::Ready(wire) => wire,
            Poll::Pending => BytesMut::new(),
        }
    }

    fn poll_gather(&mut self, cx: &Context<'_>, wakers: &mut Vec<Waker>) -> Poll<BytesMut> {
        let mut batch = Batch::new(self.side);
        let mut wire = BytesMut::new();
        match self.core.poll_gather(cx, &mut batch, wakers) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(false) => return Poll::Ready(wire),
            Poll::Ready(true) => batch.seal(),
        }
        while !batch.is_empty() {
            let take = batch.front().len();
            wire.extend_from_slice(batch.front());
            batch.advance(take);
        }
        Poll::Ready(wire)
    }

    fn take(&mut self, wire: &[u8], now: Instant) -> Result<(), SessionError> {
        self.take_waking(wire, now, &mut Vec::new())
    }

    fn take_waking(
        &mut self,
        wire: &[u8],
        now: Instant,
        wakers: &mut Vec<Waker>,
    ) -> Result<(), SessionError> {
        self.incoming.extend_from_slice(wire);
        while let Some(event) = self.decoder.next(&mut self.incoming)? {
            let Event::Data(data) = event else { panic!("{event:?}") };
            self.core.on_bytes(data, now, wakers)?;
        }
        Ok(())
    }

    fn open(&mut self) -> u32 {
        self.core.open().unwrap()
    }

    fn send(&mut self, id: u32, bytes: impl Into<Bytes>, last: bool) {
        self.core.send(id, None, bytes.into(), last).unwrap();
    }

    fn accept(&mut self) -> Option<u32> {
        match self.core.poll_accept(&cx()) {
            Poll::Ready(id) => id,
            Poll::Pending => None,
        }
    }

    fn recv(&mut self, id: u32, now: Instant) -> Poll<Result<Option<Bytes>, StreamError>> {
        self.core.poll_recv(id, &cx(), || now).0
    }

    /// What can be read now, and how it ends: `None` if more may come.
    fn read(&mut self, id: u32, now: Instant) -> (Vec<u8>, Option<Result<(), StreamError>>) {
        let mut all = Vec::new();
        loop {
            match self.recv(id, now) {
                Poll::Pending => return (all, None),
                Poll::Ready(Ok(None)) => return (all, Some(Ok(()))),
                Poll::Ready(Err(error)) => return (all, Some(Err(error))),
                Poll::Ready(Ok(Some(chunk))) => all.extend_from_slice(&chunk),
            }
        }
    }

    fn drop_both(&mut self, id: u32) {
        self.core.drop_sender(id);
        self.core.drop_receiver(id, ReceiverEnd::Cancel);
    }

    /// A frame as a hostile peer would send it, past our own writer.
    fn on(
        &mut self,
        kind: Type,
        flags: u16,
        stream: u32,
        payload: &[u8],
    ) -> Result<(), SessionError> {
        let length = payload.len().try_into().unwrap();
        let header = Header { kind, flags, stream, length };
        self.on_raw(&[&header.encode()[..], payload].concat())
    }

    fn on_word(
        &mut self,
        kind: Type,
        flags: u16,
        stream: u32,
        length: u32,
    ) -> Result<(), SessionError> {
        self.on_raw(&Header { kind, flags, stream, length }.encode())
    }

    fn on_raw(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.core.on_bytes(Bytes::copy_from_slice(bytes), Instant::now(), &mut Vec::new())
    }
}

/// The edge (it opens the streams) and the agent.
struct Pair {
    edge: End,
    agent: End,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl Fn(&mut Config)) -> Self {
        let (mut edge, mut agent) = (Config::edge(), Config::agent());
        change(&mut edge);
        change(&mut agent);
        Self { edge: End::new(edge), agent: End::new(agent), now: Instant::now() }
    }

    /// Takes all that both have to say across, until both are silent.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let down = self.down();
            let up = self.up();
            if down.is_empty() && up.is_empty() {
                return;
            }
        }
        panic!("the two never fall silent");
    }

    /// One batch from the edge to the agent.
    fn down(&mut self) -> Frames {
        let wire = self.edge.gather(&mut Vec::new());
        self.agent.take(&wire, self.now).unwrap();
        frames(Side::Client, &wire)
    }

    /// One batch from the agent to the edge.
    fn up(&mut self) -> Frames {
        let wire = self.agent.gather(&mut Vec::new());
        self.edge.take(&wire, self.now).unwrap();
        frames(Side::Server, &wire)
    }

    /// A stream that both ends know and have said nothing on but a byte each.
    fn stream(&mut self) -> u32 {
        let id = self.edge.open();
        self.edge.send(id, "?", false);
        self.down();
        assert_eq!(self.agent.accept(), Some(id));
        assert_eq!(self.agent.read(id, self.now).0, b"?");
        self.agent.send(id, "!", false);
        self.up();
        assert_eq!(self.edge.read(id, self.now).0, b"!");
        id
    }

    fn ping(&mut self, round_trip: Duration) {
        self.agent.core.ping(self.now);
        self.up();
        self.now += round_trip;
        self.down();
        assert_eq!(self.agent.core.stats().min_rtt, Some(round_trip));
    }
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// The mux frames in what was written.
fn frames(reader: Side, wire: &[u8]) -> Frames {
    let (mut decoder, mut buffer) = (Decoder::new(reader), BytesMut::from(wire));
    let mut bytes = BytesMut::new();
    while let Some(event) = decoder.next(&mut buffer).unwrap() {
        let Event::Data(data) = event else { panic!("{event:?}") };
        bytes.extend_from_slice(&data);
    }
    let mut bytes = bytes.freeze();
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header = Header::decode(bytes.split_to(HEADER_LEN)[..].try_into().unwrap()).unwrap();
        let payload = if header.kind == Type::Data { header.length } else { 0 };
        frames.push((header, bytes.split_to(payload.try_into().unwrap())));
    }
    frames
}

fn data(flags: u16, stream: u32, payload: &'static str) -> (Header, Bytes) {
    let length = payload.len().try_into().unwrap();
    (Header { kind: Type::Data, flags, stream, length }, payload.into())
}

fn fin(stream: u32) -> (Header, Bytes) {
    data(flag::FIN, stream, "")
}

fn rst(stream: u32) -> (Header, Bytes) {
    (Header { kind: Type::WindowUpdate, flags: flag::RST, stream, length: 0 }, Bytes::new())
}

fn nothing_left(end: &End) {
    let stats = end.core.stats();
    assert_eq!(stats, Stats { min_rtt: stats.min_rtt, ..Stats::default() });
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// ---------------------------------------------------------------- life cycle

#[test]
fn a_small_exchange_is_one_batch_each_way_and_leaves_nothing() {
    let mut pair = Pair::new();
    let id = pair.edge.open();
    assert!(pair.down().is_empty(), "opening alone says nothing");
    pair.edge.send(id, "hello", true);
    assert_eq!(pair.down(), [data(flag::SYN, 2, "hello"), fin(2)]);
    assert_eq!(pair.agent.accept(), Some(id));
    assert_eq!(pair.agent.read(id, pair.now), (b"hello".to_vec(), Some(Ok(()))));
    pair.agent.send(id, "you", true);
    assert_eq!(pair.up(), [data(flag::ACK, 2, "you"), fin(2)]);
    assert_eq!(pair.edge.read(id, pair.now), (b"you".to_vec(), Some(Ok(()))));
    for end in [&mut pair.edge, &mut pair.agent] {
        assert_eq!(end.core.stats().streams, 1);
        end.drop_both(id);
        nothing_left(end);
    }
    assert!(pair.down().is_empty() && pair.up().is_empty());
    assert_eq!(pair.edge.open(), 4, "an id is used once");
}

#[test]
fn the_handles_may_go_before_the_last_bytes_do() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.edge.send(id, "bye", true);
    pair.edge.core.drop_sender(id);
    pair.edge.core.drop_receiver(id, ReceiverEnd::Complete);
    assert_eq!(pair.down(), [data(0, id, "bye"), fin(id)]);
    assert_eq!(pair.edge.core.stats().streams, 1, "the agent's FIN is still to come");
    pair.agent.send(id, "", true);
    assert_eq!(pair.up(), [fin(id)]);
    nothing_left(&pair.edge);
    assert_eq!(pair.agent.read(id, pair.now), (b"bye".to_vec(), Some(Ok(()))));
    pair.agent.drop_both(id);
    nothing_left(&pair.agent);
    assert!(pair.up().is_empty(), "no reset for what is over");
}

#[test]
fn after_the_last_byte_nothing_more_is_taken() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.edge.send(id, "end", true);
    let more = pair.edge.core.send(id, None, "x".into(), false);
    assert_eq!(more.err(), Some(StreamError::Finished));
    pair.down();
    let more = pair.edge.core.send(id, None, "x".into(), true);
    assert_eq!(more.err(), Some(StreamError::Finished));
}

#[test]
fn a_stream_can_be_announced_before_it_has_anything_to_say() {
    let mut pair = Pair::new();
    let (spoken, given_up) = (pair.edge.open(), pair.edge.open());
    for id in [spoken, given_up] {
        pair.edge.core.announce(id);
        pair.edge.core.announce(id);
    }
    pair.edge.drop_both(given_up);
    let syn = Header { kind: Type::WindowUpdate, flags: flag::SYN, stream: spoken, length: 0 };
    assert_eq!(pair.down(), [(syn, Bytes::new())]);
    assert_eq!((pair.agent.accept(), pair.agent.accept()), (Some(spoken), None));
    pair.edge.send(spoken, "", true);
    assert_eq!(pair.down(), [fin(spoken)]);
    assert_eq!(pair.agent.read(spoken, pair.now), (Vec::new(), Some(Ok(()))));
    pair.edge.drop_both(spoken);
    assert_eq!(pair.down(), [rst(spoken)], "the peer has heard of it");
}

#[test]
fn a_stream_that_never_spoke_is_given_up_in_silence() {
    let mut pair = Pair::new();
    let id = pair.edge.open();
    pair.edge.send(id, "hello", false);
    pair.edge.drop_both(id);
    assert!(pair.down().is_empty());
    nothing_left(&pair.edge);
}

#[test]
fn either_half_dropped_early_resets_the_stream_on_both_ends() {
    for by_edge in [true, false] {
        for half in ["sender", "receiver"] {
            let mut pair = Pair::new();
            let id = pair.stream();
            let (near, far) = if by_edge {
                (&mut pair.edge, &mut pair.agent)
            } else {
                (&mut pair.agent, &mut pair.edge)
            };
            far.send(id, vec![0; 100_000], false);
            match half {
                "sender" => near.core.drop_sender(id),
                _ => near.core.drop_receiver(id, ReceiverEnd::Cancel),
            };
            nothing_left(near);
            assert_eq!(near.core.poll_reset(id, &cx()), Poll::Ready(StreamError::Reset));
            let said = if by_edge { pair.down() } else { pair.up() };
            assert_eq!(said, [rst(id)]);
            let far = if by_edge { &mut pair.agent } else { &mut pair.edge };
            assert_eq!(far.core.stats().send_queued, 0, "what is of no use is let go");
            assert_eq!(far.core.poll_reset(id, &cx()), Poll::Ready(StreamError::Reset));
            assert_eq!(far.read(id, pair.now), (Vec::new(), Some(Err(StreamError::Reset))));
            far.drop_both(id);
            nothing_left(far);
            pair.settle();
            nothing_left(&pair.edge);
            nothing_left(&pair.agent);
        }
    }
}

#[test]
fn what_came_before_a_reset_can_be_read_and_looks_cut() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.agent.send(id, "part", false);
    pair.up();
    pair.agent.drop_both(id);
    pair.up();
    assert_eq!(pair.edge.read(id, pair.now), (b"part".to_vec(), Some(Err(StreamError::Reset))));
}

#[test]
fn a_stopped_reader_is_told_of_after_our_last_byte() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.agent.core.drop_receiver(id, ReceiverEnd::Stop);
    assert!(pair.up().is_empty(), "the peer is left alone while we still answer");
    pair.edge.send(id, vec![0; 1_000], false);
    pair.down();
    assert_eq!(pair.agent.core.stats().received_queued, 0, "what comes is thrown away");
    pair.agent.send(id, "answer", true);
    assert_eq!(pair.up(), [data(0, id, "answer"), fin(id), rst(id)]);
    assert_eq!(pair.edge.read(id, pair.now), (b"answer".to_vec(), Some(Ok(()))));
    let more = pair.edge.core.send(id, None, "x".into(), true);
    assert_eq!(more.err(), Some(StreamError::Reset));
    pair.agent.core.drop_sender(id);
    pair.edge.drop_both(id);
    nothing_left(&pair.edge);
    nothing_left(&pair.agent);
    assert!(pair.down().is_empty());
}

#[test]
fn a_reader_stopped_after_our_last_byte_resets_at_once_unless_the_peer_is_done() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.agent.send(id, "answer", true);
    pair.up();
    pair.agent.core.drop_receiver(id, ReceiverEnd::Stop);
    assert_eq!(pair.up(), [rst(id)]);
    let id = pair.stream();
    pair.edge.send(id, "all", true);
    pair.down();
    pair.agent.core.drop_receiver(id, ReceiverEnd::Stop);
    pair.agent.send(id, "answer", true);
    assert_eq!(pair.up(), [data(0, id, "answer"), fin(id)]);
}

/// It would otherwise hold its place in the session for ever.
#[test]
fn a_peer_that_goes_on_after_all_was_read_is_told_to_stop() {
    for unread in [true, false] {
        let mut pair = Pair::new();
        let id = pair.stream();
        pair.edge.send(id, "request", true);
        pair.down();
        if unread {
            pair.agent.send(id, "more", false);
            pair.up();
        }
        pair.edge.core.drop_sender(id);
        pair.edge.core.drop_receiver(id, ReceiverEnd::Complete);
        if !unread {
            pair.agent.send(id, "more", false);
            pair.up();
        }
        assert_eq!(pair.down(), [rst(id)]);
        nothing_left(&pair.edge);
    }
}

#[test]
fn what_comes_for_a_stream_just_given_up_is_ignored() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.agent.send(id, vec![7; 50_000], true);
    let wire = pair.agent.gather(&mut Vec::new());
    // Gone in the middle of a frame.
    let (first, rest) = wire.split_at(1_000);
    pair.edge.take(first, pair.now).unwrap();
    pair.edge.drop_both(id);
    pair.edge.take(rest, pair.now).unwrap();
    nothing_left(&pair.edge);
    pair.edge.on_word(Type::WindowUpdate, 0, id, 1).unwrap();
    pair.edge.on_word(Type::WindowUpdate, flag::RST, id, 0).unwrap();
    pair.edge.on(Type::Data, flag::FIN, id, b"late").unwrap();
    nothing_left(&pair.edge);
    pair.stream();
}

#[test]
fn a_session_that_ends_fails_every_stream_and_keeps_nothing() {
    let mut pair = Pair::new();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let (finishing, open, unread) = (pair.stream(), pair.stream(), pair.stream());
    pair.edge.send(finishing, vec![0; 1_000], true);
    pair.agent.send(unread, "unread", false);
    pair.up();
    let core = &mut pair.edge.core;
    let context = Context::from_waker(&waker);
    assert!(core.poll_recv(open, &context, || pair.now).0.is_pending());
    assert!(core.poll_reset(finishing, &context).is_pending());
    assert!(core.poll_accept(&context).is_pending());
    assert!(core.poll_closed(&context).is_pending());
    core.close(SessionError::Ended).into_iter().for_each(Waker::wake);
    core.close(SessionError::WriteStalled);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 4);
    let over = StreamError::Session(SessionError::Ended);
    assert_eq!(core.open(), Err(OpenError::Closed(SessionError::Ended)));
    assert_eq!(core.send(open, None, "x".into(), false).err(), Some(over.clone()));
    assert_eq!(core.poll_accept(&cx()), Poll::Ready(None));
    assert_eq!(pair.edge.read(unread, pair.now), (b"unread".to_vec(), Some(Err(over.clone()))));
    assert_eq!(pair.edge.read(finishing, pair.now), (Vec::new(), Some(Err(over))));
    pair.edge.core.drop_receiver(finishing, ReceiverEnd::Complete);
    pair.edge.core.drop_sender(finishing);
    pair.edge.drop_both(open);
    pair.edge.core.drop_sender(unread);
    pair.edge.core.drop_receiver(unread, ReceiverEnd::Stop);
    nothing_left(&pair.edge);
    assert!(pair.edge.gather(&mut Vec::new()).is_empty());
}

#[test]
fn limits_of_opening() {
    let mut pair = Pair::with(|config| config.max_streams = 2);
    let first = pair.stream();
    pair.stream();
    assert_eq!(pair.edge.core.open(), Err(OpenError::TooManyStreams));
    pair.edge.drop_both(first);
    let id = pair.edge.open();
    pair.agent.core.go_away(0);
    pair.up();
    assert_eq!(pair.edge.core.open(), Err(OpenError::GoAway));
    pair.edge.send(id, "goes on", true);
    pair.settle();
    let mut last = End::new(Config::agent());
    last.core.next_id = u32::MAX - 2;
    assert_eq!(last.core.open(), Ok(u32::MAX - 2));
    assert_eq!(last.core.open(), Err(OpenError::Exhausted));
}

#[test]
fn a_closing_session_writes_what_is_queued_first() {
    let mut pair = Pair::new();
    let id = pair.edge.open();
    pair.edge.send(id, "last words", true);
    pair.edge.core.close_when_written();
    assert_eq!(pair.edge.core.open(), Err(OpenError::GoAway));
    assert_eq!(pair.down(), [data(flag::SYN, id, "last words"), fin(id)]);
    let mut batch = Batch::new(Side::Server);
    assert_eq!(pair.edge.core.poll_gather(&cx(), &mut batch, &mut Vec::new()), Poll::Ready(false));
}

// ---------------------------------------------------------------- credit and windows

#[test]
fn a_sender_stops_at_the_window_and_goes_on_after_reads() {
    let mut pair = Pair::with(|config| config.max_window = INITIAL_WINDOW);
    pair.ping(Duration::from_millis(10));
    let id = pair.stream();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let chunk = Bytes::from(vec![1; 50_000]);
    let mut sent = 0;
    loop {
        while pair.edge.core.poll_send_ready(id, &Context::from_waker(&waker)).is_ready() {
            pair.edge.send(id, chunk.clone(), false);
            sent += chunk.len();
        }
        let mut woken = Vec::new();
        let wire = pair.edge.gather(&mut woken);
        if wire.is_empty() {
            break;
        }
        woken.into_iter().for_each(Waker::wake);
        pair.agent.take(&wire, pair.now).unwrap();
        assert!(pair.up().is_empty(), "no credit for what nobody has read");
    }
    let stats = pair.agent.core.stats();
    // The test stream's own byte was read, so it is part of the window that is not given back yet.
    assert_eq!(stats.received_queued, INITIAL_WINDOW as usize - 1);
    assert!((SEND_BUFFER..SEND_BUFFER + chunk.len()).contains(&pair.edge.core.stats().send_queued));
    let before = wakes.0.load(Ordering::Relaxed);

    // Less than half read: no credit yet. Half: all that was read comes back at once.
    let mut read = 0;
    while read < INITIAL_WINDOW as usize / 2 {
        assert!(pair.up().is_empty());
        match pair.agent.recv(id, pair.now) {
            Poll::Ready(Ok(Some(chunk))) => read += chunk.len(),
            other => panic!("{other:?}"),
        }
    }
    let [(update, _)] = pair.up()[..] else { panic!("one window update was due") };
    assert_eq!((update.kind, update.length as usize), (Type::WindowUpdate, read + 1));
    let mut woken = Vec::new();
    let wire = pair.edge.gather(&mut woken);
    woken.into_iter().for_each(Waker::wake);
    assert_eq!(
        wakes.0.load(Ordering::Relaxed),
        before + 1,
        "the sender is told that there is room"
    );
    pair.agent.take(&wire, pair.now).unwrap();
    let mut got = read;
    for _ in 0..100 {
        got += pair.agent.read(id, pair.now).0.len();
        pair.settle();
    }
    assert_eq!(got, sent);
    assert_eq!(pair.edge.core.stats().granted, u64::from(INITIAL_WINDOW));
}

/// Reads as fast as a sender that is never idle delivers, `after` each batch, and returns the
/// reader's window.
fn window_after(pair: &mut Pair, id: u32, rounds: usize, after: Duration) -> u32 {
    for _ in 0..rounds {
        while pair.edge.core.poll_send_ready(id, &cx()).is_ready() {
            pair.edge.send(id, vec![0; 60_000], false);
        }
        while !pair.down().is_empty() {}
        pair.now += after;
        pair.agent.read(id, pair.now);
        pair.up();
    }
    pair.agent.core.streams[&id].window
}

#[test]
fn a_window_doubles_only_for_a_quick_reader_and_never_over_its_limit() {
    let ms = Duration::from_millis;
    let mut pair = Pair::with(|config| config.max_window = 3 * 1024 * 1024);
    let id = pair.stream();
    pair.ping(ms(10));
    // Whatever the pace, the first update makes it 1 MiB; a slow reader stays there.
    assert_eq!(window_after(&mut pair, id, 100, ms(50)), SECOND_WINDOW);
    assert_eq!(window_after(&mut pair, id, 1_000, Duration::ZERO), 3 * 1024 * 1024);
    let granted = pair.agent.core.stats().granted;
    assert_eq!(granted, 3 * 1024 * 1024);
    pair.agent.drop_both(id);
    assert_eq!(pair.agent.core.stats().granted, 0);
}

#[test]
fn a_window_that_is_no_longer_needed_shrinks_to_the_second_size() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.ping(Duration::from_millis(10));
    assert_eq!(
        window_after(&mut pair, id, 1_000, Duration::ZERO),
        pair.agent.core.config.max_window
    );
    // Half a window each time in eleven seconds.
    assert_eq!(window_after(&mut pair, id, 10_000, Duration::from_secs(11)), SECOND_WINDOW);
    assert_eq!(pair.agent.core.stats().granted, u64::from(SECOND_WINDOW));
    assert_eq!(
        window_after(&mut pair, id, 1_000, Duration::ZERO),
        pair.agent.core.config.max_window
    );
}

#[test]
fn without_a_round_trip_measured_windows_stay_at_the_second_size() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.agent.core.round_trip.pending = Some((77, pair.now));
    assert_eq!(window_after(&mut pair, id, 200, Duration::ZERO), SECOND_WINDOW);
}

#[test]
fn the_windows_of_a_session_share_its_budget_and_stalled_ones_stop_nobody() {
    let budget = 4 * 1024 * 1024_u64;
    let mut pair = Pair::with(|config| config.session_window = 4 * 1024 * 1024);
    pair.ping(Duration::from_millis(10));
    let greedy = pair.stream();
    window_after(&mut pair, greedy, 1_000, Duration::ZERO);
    assert_eq!(pair.agent.core.stats().granted, budget);
    // Every further stream gets its first window all the same.
    let others: Vec<u32> = (0..30).map(|_| pair.stream()).collect();
    let first = u64::from(INITIAL_WINDOW);
    assert_eq!(pair.agent.core.stats().granted, budget + 30 * first);
    for id in &others {
        assert_eq!(window_after(&mut pair, *id, 40, Duration::ZERO), INITIAL_WINDOW);
    }
    assert_eq!(pair.agent.core.stats().granted, budget + 30 * first, "but it can't grow");
}

// ---------------------------------------------------------------- fairness

#[test]
fn a_small_frame_waits_for_one_turn_of_each_bulk_stream() {
    let mut pair = Pair::new();
    let bulk: Vec<u32> = (0..3).map(|_| pair.stream()).collect();
    let small = pair.stream();
    for id in &bulk {
        pair.edge.send(*id, vec![0; 200_000], false);
    }
    pair.edge.send(small, "quick", true);
    let batch = pair.down();
    let place = batch.iter().position(|(header, _)| header.stream == small).unwrap();
    assert_eq!(place, 3);
    let ahead: u32 = batch[..place].iter().map(|(header, _)| header.length).sum();
    assert!(ahead as usize <= 3 * QUANTUM);

    // The same with one stream in bulk: it is within the first two turns.
    let mut pair = Pair::new();
    let (bulk, small) = (pair.stream(), pair.stream());
    pair.edge.send(bulk, vec![0; 200_000], false);
    pair.edge.send(small, "quick", true);
    let batch = pair.down();
    let ahead = batch.iter().take_while(|(header, _)| header.stream != small);
    assert!(ahead.map(|(header, _)| header.length as usize).sum::<usize>() <= 2 * QUANTUM);
}

#[test]
fn turns_are_even_and_a_lone_stream_takes_longer_ones() {
    let mut pair = Pair::new();
    let (a, b) = (pair.stream(), pair.stream());
    for id in [a, b] {
        pair.edge.send(id, vec![0; 100_000], false);
    }
    let batch = pair.down();
    let bytes = |id| batch.iter().filter(|f| f.0.stream == id).map(|f| f.0.length).sum::<u32>();
    assert_eq!((bytes(a), bytes(b)), (100_000, 100_000));
    assert!(batch[..8].chunks(2).all(|turn| turn[0].0.stream == a && turn[1].0.stream == b));
    assert!(batch[..8].iter().all(|(header, _)| header.length as usize == QUANTUM));
    pair.edge.send(a, vec![0; 100_000], false);
    assert_eq!(pair.down()[0].0.length as usize, LONE_QUANTUM);
}

#[test]
fn control_frames_and_the_control_stream_go_first() {
    let mut pair = Pair::new();
    let control = pair.agent.open();
    pair.agent.send(control, "hi", false);
    pair.up();
    assert_eq!(pair.edge.accept(), Some(control));
    assert_eq!(pair.edge.read(control, pair.now).0, b"hi");
    let (bulk, cancelled) = (pair.stream(), pair.stream());
    pair.agent.send(bulk, vec![0; 200_000], false);
    pair.up();
    pair.edge.send(bulk, vec![0; 300_000], false);
    pair.edge.read(bulk, pair.now);
    pair.edge.drop_both(cancelled);
    pair.edge.core.ping(pair.now);
    pair.edge.send(control, "heartbeat", false);
    let order: Vec<(Type, u32)> = pair.down().iter().map(|f| (f.0.kind, f.0.stream)).collect();
    // The first ping was the reader's own: its window grew by a round trip not yet measured.
    let pings =
        order.iter().take_while(|(kind, _)| *kind == Type::Ping || *kind == Type::WindowUpdate);
    let before = pings.count();
    assert_eq!(order[before], (Type::Data, control));
    assert!(order[..before].contains(&(Type::WindowUpdate, cancelled)));
    assert!(order[..before].contains(&(Type::WindowUpdate, bulk)));
    assert!(order[..before].contains(&(Type::Ping, 0)));
    assert!(order[before + 1..].iter().all(|f| *f == (Type::Data, bulk)));
}

#[test]
fn a_batch_is_bounded() {
    let mut pair = Pair::new();
    for _ in 0..500 {
        let id = pair.edge.open();
        pair.edge.send(id, vec![0; 64 * 1024], false);
    }
    let mut rounds = 0;
    loop {
        let wire = pair.edge.gather(&mut Vec::new());
        if wire.is_empty() {
            break;
        }
        assert!(wire.len() <= batch::FULL + LONE_QUANTUM + 2 * HEADER_LEN + 14);
        rounds += 1;
    }
    assert!(rounds >= 500 * 64 / 256);
}
