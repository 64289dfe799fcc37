//! Two sessions with lanes, joined in memory.

use std::future::poll_fn;

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep_until,
};
use uniroute_proto::codec::{CodecError, header};

use super::*;
use crate::{
    mux::Config,
    session::{Acceptor, Receiver, Sender, Session},
    stream::{FrameReader, ReadError},
};

/// What a connection in memory holds on its way, in bytes.
const CAPACITY: usize = 20_000;
/// Longest wait for anything; the clock may be paused.
const BOUND: Duration = Duration::from_secs(120);

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {BOUND:?}"))
}

async fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    within(what, async {
        while !look() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Both ends of one connection.
struct Connection {
    agent: mux::Session,
    edge: mux::Session,
    from_edge: mux::Acceptor,
    from_agent: mux::Acceptor,
    drivers: JoinSet<()>,
}

impl Connection {
    fn over(agent: DuplexStream, edge: DuplexStream) -> Self {
        let mut drivers = JoinSet::new();
        let (agent, from_edge, mut driver) = mux::new(Config::agent(), agent, Bytes::new());
        drivers.spawn(async move { drop(driver.run().await) });
        let (edge, from_agent, mut driver) = mux::new(Config::edge(), edge, Bytes::new());
        drivers.spawn(async move { drop(driver.run().await) });
        Self { agent, edge, from_edge, from_agent, drivers }
    }

    /// With the control stream on it; its four ends live as long as what is returned.
    async fn begin(&mut self) -> impl Send + use<> {
        let mut near = self.agent.open().unwrap();
        near.0.announce();
        let far = within("the control stream", self.from_agent.accept()).await.unwrap();
        (near, far)
    }
}

/// An agent's session and its edge's.
struct Pair {
    agent: Session,
    edge: Session,
    first: (mux::Session, mux::Session),
    requests: Acceptor,
    _drivers: JoinSet<()>,
    _control: Box<dyn Send>,
}

impl Pair {
    async fn new(max: usize) -> Self {
        Self::over(max, tokio::io::duplex(CAPACITY)).await
    }

    async fn over(max: usize, (a, b): (DuplexStream, DuplexStream)) -> Self {
        let mut connection = Connection::over(a, b);
        let control = Box::new(connection.begin().await);
        let Connection { agent, edge, from_edge, drivers, .. } = connection;
        agent.allow_lanes(max);
        edge.allow_lanes(max);
        Self {
            first: (agent.clone(), edge.clone()),
            agent: agent.into(),
            edge: edge.into(),
            requests: from_edge.into(),
            _drivers: drivers,
            _control: control,
        }
    }

    async fn with_lanes(max: usize, open: usize) -> (Self, Vec<Lane>) {
        let pair = Self::new(max).await;
        let mut lanes = Vec::new();
        for _ in 0..open {
            lanes.push(pair.lane().await);
        }
        (pair, lanes)
    }

    async fn lane(&self) -> Lane {
        self.lane_over(tokio::io::duplex(CAPACITY)).await
    }

    /// One more lane, run by both ends.
    async fn lane_over(&self, (a, b): (DuplexStream, DuplexStream)) -> Lane {
        let mut connection = Connection::over(a, b);
        let control = connection.begin().await;
        let Connection { agent, edge, mut from_edge, mut from_agent, drivers } = connection;
        let before = (self.agent.lanes(), self.edge.lanes());
        let lane = (agent.clone(), edge.clone());
        let first = self.first.clone();
        let running = tokio::spawn(async move {
            let _control = control;
            tokio::join!(
                run(&first.0, &agent, &mut from_edge, true),
                run(&first.1, &edge, &mut from_agent, false),
            );
        });
        eventually("the lane is open", || {
            (self.agent.lanes(), self.edge.lanes()) == (before.0 + 1, before.1 + 1)
        })
        .await;
        Lane { agent: lane.0, edge: lane.1, drivers, running }
    }

    /// A lane that only the edge runs: its other end does what a test likes.
    async fn hostile_lane(&self) -> (mux::Session, JoinSet<()>) {
        let (a, b) = tokio::io::duplex(CAPACITY);
        let mut connection = Connection::over(a, b);
        let control = connection.begin().await;
        let Connection { agent, edge, mut from_agent, mut drivers, .. } = connection;
        let first = self.first.1.clone();
        drivers.spawn(async move {
            let _control = control;
            run(&first, &edge, &mut from_agent, false).await;
        });
        eventually("the lane is open", || self.edge.lanes() == 1).await;
        (agent, drivers)
    }

    /// A stream that both ends have; the edge's halves, and the agent's.
    async fn stream(&mut self) -> (Half, Half) {
        let (mut sender, receiver) = self.edge.open().unwrap();
        sender.send(data(b"?", false), false).unwrap();
        let (far_sender, far) = within("a stream", self.requests.accept()).await.unwrap();
        let mut far = FrameReader::new(far);
        assert_eq!(next(&mut far).await.unwrap().unwrap(), "?");
        let near = Half { sender, reader: FrameReader::new(receiver) };
        (near, Half { sender: far_sender, reader: far })
    }

    /// Nothing is left on it but the control streams.
    async fn is_quiet(&self, lanes: &[Lane]) {
        let quiet = |session: &mux::Session| session.stats().streams == 1;
        eventually("only the control streams are left", || {
            quiet(&self.first.0)
                && quiet(&self.first.1)
                && lanes.iter().all(|lane| quiet(&lane.agent) && quiet(&lane.edge))
        })
        .await;
        assert!(self.agent.is_drained() && self.edge.is_drained());
    }
}

struct Lane {
    agent: mux::Session,
    edge: mux::Session,
    drivers: JoinSet<()>,
    running: JoinHandle<()>,
}

impl Lane {
    fn cut(&mut self) {
        self.drivers.abort_all();
    }

    /// Bodies on it.
    fn bodies(&self) -> usize {
        self.edge.stats().streams.max(self.agent.stats().streams) - 1
    }
}

/// One end of a stream.
struct Half {
    sender: Sender,
    reader: FrameReader,
}

fn data(bytes: &[u8], end: bool) -> Bytes {
    [&header(Kind::Data, end, bytes.len())[..], bytes].concat().into()
}

async fn next(reader: &mut FrameReader) -> Result<Option<Bytes>, ReadError> {
    let frame = within("a frame", poll_fn(|cx| reader.poll_frame(cx))).await?;
    Ok(frame.map(|frame| frame.payload))
}

async fn read_all(reader: &mut FrameReader) -> Result<Vec<u8>, ReadError> {
    let mut all = Vec::new();
    while let Some(bytes) = next(reader).await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

/// Bytes that tell their place and their body.
fn body(seed: u8, length: usize) -> Bytes {
    (0..length).map(|n| (n.wrapping_mul(31) ^ (n >> 8)).to_le_bytes()[0] ^ seed).collect()
}

/// Sends `body` in frames of `piece`, and moves as soon as it may once `at` frames are out.
async fn send(
    sender: &mut Sender,
    mut body: Bytes,
    piece: usize,
    at: usize,
) -> Result<bool, StreamError> {
    let (mut frames, mut moved) = (0, false);
    loop {
        if frames >= at && !moved {
            moved = sender.move_to_lane();
        }
        within("room", sender.ready()).await?;
        let bytes = body.split_to(body.len().min(piece));
        sender.send(data(&bytes, body.is_empty()), body.is_empty())?;
        if body.is_empty() {
            return Ok(moved);
        }
        frames += 1;
    }
}

/// A stream of bytes through a pump that can be held.
fn gated() -> (DuplexStream, DuplexStream, watch::Sender<bool>) {
    let (near, a) = tokio::io::duplex(CAPACITY);
    let (b, far) = tokio::io::duplex(CAPACITY);
    let (gate, open) = watch::channel(true);
    let ((a_read, a_write), (b_read, b_write)) = (tokio::io::split(a), tokio::io::split(b));
    tokio::spawn(pump(a_read, b_write, open));
    tokio::spawn(pump(b_read, a_write, watch::channel(true).1));
    (near, far, gate)
}

async fn pump(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    mut open: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 4_096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        // Who never closes the gate may be gone.
        let _ = open.wait_for(|open| *open).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

// ---------------------------------------------------------------- bodies move

#[tokio::test]
async fn a_body_moves_and_arrives_whole_both_ways_at_once() {
    let (mut pair, lanes) = Pair::with_lanes(4, 2).await;
    let (mut edge, mut agent) = pair.stream().await;
    let (up, down) = (body(1, 3_000_000), body(2, 2_000_000));
    let (sent_up, sent_down, got_up, got_down) = tokio::join!(
        send(&mut edge.sender, up.clone(), 30_000, 2),
        send(&mut agent.sender, down.clone(), 10_000, 0),
        read_all(&mut agent.reader),
        read_all(&mut edge.reader),
    );
    assert_eq!((sent_up, sent_down), (Ok(true), Ok(true)), "both moved");
    assert!(got_up.unwrap() == up && got_down.unwrap() == down);
    drop((edge, agent));
    pair.is_quiet(&lanes).await;
}

/// Without lanes a body stays where it is, and nobody waits for them.
#[tokio::test]
async fn a_body_that_may_not_move_stays() {
    let (mut pair, _) = Pair::with_lanes(4, 0).await;
    let (mut edge, mut agent) = pair.stream().await;
    let up = body(1, 500_000);
    let (sent, got) =
        tokio::join!(send(&mut edge.sender, up.clone(), 30_000, 0), read_all(&mut agent.reader));
    assert_eq!(sent, Ok(false));
    assert!(got.unwrap() == up);
}

/// How one of the streams of a random run goes: body and pieces of each direction, and the frame
/// after which it moves.
type Run = [(usize, usize, usize); 2];

async fn run_at_random(capacity: usize, lane_capacities: Vec<usize>, runs: Vec<Run>) {
    let mut pair = Pair::over(4, tokio::io::duplex(capacity)).await;
    let mut lanes = Vec::new();
    for capacity in lane_capacities {
        lanes.push(pair.lane_over(tokio::io::duplex(capacity)).await);
    }
    let mut streams = JoinSet::new();
    for (number, run) in (0_u8..).zip(runs) {
        let (mut edge, mut agent) = pair.stream().await;
        streams.spawn(async move {
            let [(up_len, up_piece, up_at), (down_len, down_piece, down_at)] = run;
            let (up, down) = (body(number * 2, up_len), body(number * 2 + 1, down_len));
            let (sent_up, sent_down, got_up, got_down) = tokio::join!(
                send(&mut edge.sender, up.clone(), up_piece, up_at),
                send(&mut agent.sender, down.clone(), down_piece, down_at),
                read_all(&mut agent.reader),
                read_all(&mut edge.reader),
            );
            sent_up.unwrap();
            sent_down.unwrap();
            assert!(got_up.unwrap() == up && got_down.unwrap() == down);
        });
    }
    while let Some(done) = streams.join_next().await {
        done.unwrap();
    }
    pair.is_quiet(&lanes).await;
}

fn a_run() -> impl Strategy<Value = Run> {
    let way = || (0..600_000_usize, 1..70_000_usize, 0..12_usize);
    let way = move || way().prop_map(|(length, piece, at)| (length, piece.max(length / 300), at));
    [way(), way()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// No byte is lost, none comes twice, none out of its place, whenever a body moves and however
    /// the connections lag behind each other.
    #[test]
    fn moves_lose_and_double_nothing(
        capacity in 100..60_000_usize,
        lane_capacities in proptest::collection::vec(100..60_000_usize, 1..4),
        runs in proptest::collection::vec(a_run(), 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(run_at_random(capacity, lane_capacities, runs));
    }
}

// ---------------------------------------------------------------- bodies that end early

#[tokio::test]
async fn a_reader_that_leaves_ends_a_body_on_a_lane() {
    let (mut pair, lanes) = Pair::with_lanes(4, 1).await;
    for read in [0, 300_000] {
        let (mut edge, mut agent) = pair.stream().await;
        let sending = tokio::spawn(async move {
            let sent = send(&mut agent.sender, body(1, 100_000_000), 60_000, 0).await;
            drop(agent);
            sent
        });
        let mut got = 0;
        while got < read {
            got += next(&mut edge.reader).await.unwrap().unwrap().len();
        }
        eventually("the body is on the lane", || lanes[0].bodies() == 1).await;
        drop(edge);
        let sent = within("the sender ends", sending).await.unwrap();
        assert_eq!(sent, Err(StreamError::Reset));
        pair.is_quiet(&lanes).await;
    }
}

#[tokio::test]
async fn a_sender_that_gives_up_on_a_lane_is_seen_to() {
    let (mut pair, lanes) = Pair::with_lanes(4, 1).await;
    let (mut edge, mut agent) = pair.stream().await;
    assert!(agent.sender.move_to_lane());
    agent.sender.send(data(b"part", false), false).unwrap();
    assert_eq!(next(&mut edge.reader).await.unwrap().unwrap(), "part");
    drop(agent.sender);
    assert_eq!(next(&mut edge.reader).await, Err(StreamError::Reset.into()));
    drop((edge, agent.reader));
    pair.is_quiet(&lanes).await;
}

/// The local server answers and does not want the upload.
#[tokio::test]
async fn an_answer_comes_whole_though_the_upload_on_a_lane_is_not_read() {
    for (answer, read) in [(1_000, true), (120_000, true), (120_000, false), (3_000_000, false)] {
        let (mut pair, lanes) = Pair::with_lanes(4, 2).await;
        let (edge, mut agent) = pair.stream().await;
        let Half { sender: mut upload, mut reader } = edge;
        let uploading = tokio::spawn(async move {
            let sent = send(&mut upload, body(1, 100_000_000), 60_000, 0).await;
            (sent, upload)
        });
        eventually("the upload is on a lane", || {
            lanes.iter().any(|lane| lane.agent.stats().received_queued > 0)
        })
        .await;
        if read {
            next(&mut agent.reader).await.unwrap();
        }
        agent.reader.stop();
        let expected = body(2, answer);
        // Said all at once where the queues take it: what ends the stream on the first connection
        // may overtake what is on the lane.
        let (sent, got) = tokio::join!(
            send(&mut agent.sender, expected.clone(), 30_000, 0),
            read_all(&mut reader)
        );
        assert_eq!(sent, Ok(true), "{answer}");
        assert!(got.unwrap() == expected, "{answer} bytes");
        let (sent, upload) = within("the upload ends", uploading).await.unwrap();
        assert_eq!(sent, Err(StreamError::Reset));
        drop((upload, reader, agent.sender));
        pair.is_quiet(&lanes).await;
    }
}

/// The first connection is far ahead: the stream's end is there before its body has begun.
#[tokio::test]
async fn an_answer_on_a_slow_lane_survives_its_streams_end() {
    let mut pair = Pair::new(4).await;
    let (near, far, gate) = gated();
    let _lane = pair.lane_over((near, far)).await;
    let (mut edge, mut agent) = pair.stream().await;
    gate.send(false).unwrap();
    agent.reader.stop();
    let expected = body(1, 60_000);
    assert!(send(&mut agent.sender, expected.clone(), 60_000, 0).await.unwrap());
    drop(agent.sender);
    let reset = within("the reset", poll_fn(|cx| edge.sender.poll_reset(cx))).await;
    assert_eq!(reset, StreamError::Reset);
    gate.send(true).unwrap();
    assert!(read_all(&mut edge.reader).await.unwrap() == expected);
}

// ---------------------------------------------------------------- lanes that are lost

#[tokio::test]
async fn a_lane_that_is_lost_takes_its_bodies_with_it_and_nothing_else() {
    let (mut pair, mut lanes) = Pair::with_lanes(4, 2).await;
    let (mut edge, mut agent) = pair.stream().await;
    let lost = tokio::spawn(async move {
        let sent = send(&mut agent.sender, body(1, 100_000_000), 60_000, 0).await;
        (sent, agent)
    });
    eventually("it moved", || lanes.iter().any(|lane| lane.bodies() == 1)).await;
    let on = lanes.iter().position(|lane| lane.bodies() == 1).unwrap();
    let (mut other_edge, mut other) = pair.stream().await;
    let expected = body(2, 5_000_000);
    let whole = expected.clone();
    let other = tokio::spawn(async move {
        assert_eq!(send(&mut other.sender, whole, 60_000, 0).await, Ok(true));
        other
    });
    eventually("the other one too", || lanes[1 - on].bodies() == 1).await;
    assert!(!next(&mut edge.reader).await.unwrap().unwrap().is_empty());
    lanes[on].cut();
    let error = read_all(&mut edge.reader).await.unwrap_err();
    assert!(matches!(error, ReadError::Stream(StreamError::Session(_))), "{error}");
    let (sent, _agent) = within("the sender ends", lost).await.unwrap();
    assert!(matches!(sent, Err(StreamError::Session(_))), "{sent:?}");
    assert!(read_all(&mut other_edge.reader).await.unwrap() == expected);
    within("the other sender ends", other).await.unwrap();
    // The stream's other direction is as it was.
    edge.sender.send(data(b"still there", true), true).unwrap();
    assert_eq!(next(&mut { _agent }.reader).await.unwrap().unwrap(), "still there");
    eventually("the lane is gone", || pair.edge.lanes() == 1 && pair.agent.lanes() == 1).await;
}

/// MOVED is out, and not a byte of the lane: the reader must not wait for ever.
#[tokio::test(start_paused = true)]
async fn a_lane_that_is_lost_before_the_body_came_is_an_error_at_once() {
    let mut pair = Pair::new(4).await;
    let (near, far, gate) = gated();
    let mut lane = pair.lane_over((near, far)).await;
    let (mut edge, mut agent) = pair.stream().await;
    gate.send(false).unwrap();
    assert!(agent.sender.move_to_lane());
    agent.sender.send(data(b"lost", false), false).unwrap();
    sleep(Duration::from_millis(1)).await;
    lane.cut();
    let began = Instant::now();
    let error = within("the sender ends", poll_fn(|cx| agent.sender.poll_reset(cx))).await;
    assert!(matches!(error, StreamError::Session(_)), "{error}");
    drop(agent.sender);
    assert_eq!(next(&mut edge.reader).await, Err(StreamError::Reset.into()));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_moved_and_does_not_come_is_given_up_after_thirty_seconds() {
    let mut pair = Pair::new(4).await;
    let (mut edge, mut agent) = pair.stream().await;
    agent.sender.send(Bytes::copy_from_slice(&header(Kind::Moved, false, 0)), false).unwrap();
    let began = Instant::now();
    assert_eq!(next(&mut edge.reader).await, Err(ReadError::RestMissing));
    assert_eq!(began.elapsed().as_secs(), 30);
}

// ---------------------------------------------------------------- which lane

#[tokio::test]
async fn each_long_body_has_a_lane_of_its_own_and_beyond_the_most_they_share() {
    let (mut pair, lanes) = Pair::with_lanes(3, 3).await;
    let mut halves = Vec::new();
    for number in 1..=6 {
        let (edge, mut agent) = pair.stream().await;
        assert!(agent.sender.move_to_lane());
        agent.sender.send(data(b"begun", false), false).unwrap();
        halves.push((edge, agent));
        let mut bodies: Vec<usize> =
            lanes.iter().map(|lane| lane.agent.stats().streams - 1).collect();
        bodies.sort_unstable();
        let even = number / 3;
        assert_eq!(bodies.iter().sum::<usize>(), number);
        assert!(bodies[0] == even && bodies[2] <= even + 1, "{bodies:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_body_asks_for_a_lane_of_its_own_and_waits_a_second_for_it() {
    let (mut pair, _lanes) = Pair::with_lanes(4, 1).await;
    let (_edge, mut first) = pair.stream().await;
    assert!(first.sender.move_to_lane());
    assert!(pair.agent.lanes_wanted().now_or_never().is_none(), "it has one of its own");
    let (_edge, mut second) = pair.stream().await;
    let (_edge, mut third) = pair.stream().await;
    let began = Instant::now();
    assert!(!second.sender.move_to_lane());
    assert_eq!(pair.agent.lanes_wanted().await, 2);
    assert!(!third.sender.move_to_lane());
    assert_eq!(pair.agent.lanes_wanted().await, 3);
    // One of the two comes.
    let _lane = pair.lane().await;
    assert!(third.sender.move_to_lane());
    assert!(!second.sender.move_to_lane());
    sleep_until(began + PATIENCE).await;
    assert!(!second.sender.move_to_lane(), "not yet");
    sleep(Duration::from_millis(1)).await;
    assert!(second.sender.move_to_lane(), "it shares one");
    assert!(pair.agent.lanes_wanted().now_or_never().is_none());
    // It asked in vain: the next one asks again.
    let (_edge, mut fourth) = pair.stream().await;
    assert!(!fourth.sender.move_to_lane());
    assert_eq!(pair.agent.lanes_wanted().await, 3);
}

/// The lane that was to come for one body went to another: there is one more to come.
#[tokio::test]
async fn a_long_body_whose_lane_another_one_took_asks_for_one_more() {
    let mut pair = Pair::new(4).await;
    let (_edge, mut first) = pair.stream().await;
    assert!(!first.sender.move_to_lane());
    assert_eq!(pair.agent.lanes_wanted().await, 1);
    let _lane = pair.lane().await;
    let (_edge, mut second) = pair.stream().await;
    assert!(second.sender.move_to_lane());
    assert!(!first.sender.move_to_lane());
    assert_eq!(pair.agent.lanes_wanted().await, 2);
    // A lane that is lost is asked for again.
    assert!(!first.sender.move_to_lane());
    assert!(pair.agent.lanes_wanted().now_or_never().is_none());
    let mut lane = pair.lane().await;
    assert!(first.sender.move_to_lane());
    let (_edge, mut third) = pair.stream().await;
    assert!(!third.sender.move_to_lane());
    assert_eq!(pair.agent.lanes_wanted().await, 3);
    lane.cut();
    eventually("it is lost", || pair.agent.lanes() == 1).await;
    assert!(!third.sender.move_to_lane());
    assert_eq!(pair.agent.lanes_wanted().await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_long_body_moves_whenever_the_first_lane_comes() {
    let mut pair = Pair::new(4).await;
    let (_edge, mut agent) = pair.stream().await;
    assert!(!agent.sender.move_to_lane());
    assert_eq!(pair.agent.lanes_wanted().await, 1);
    sleep(PATIENCE * 10).await;
    assert!(!agent.sender.move_to_lane());
    let _lane = pair.lane().await;
    assert!(agent.sender.move_to_lane());
    assert!(!agent.sender.move_to_lane(), "once is enough");
}

#[tokio::test]
async fn a_body_that_ends_before_its_lane_came_wants_none() {
    let mut pair = Pair::new(4).await;
    for _ in 0..3 {
        let (edge, mut agent) = pair.stream().await;
        assert!(!agent.sender.move_to_lane());
        drop((edge, agent));
    }
    let (_edge, mut agent) = pair.stream().await;
    assert!(!agent.sender.move_to_lane());
    assert_eq!(pair.agent.lanes_wanted().await, 1, "not four");
}

#[tokio::test]
async fn there_are_no_more_lanes_than_may_be() {
    let (pair, lanes) = Pair::with_lanes(2, 2).await;
    assert!(!pair.edge.takes_lane());
    let (a, b) = tokio::io::duplex(CAPACITY);
    let Connection { agent, mut from_edge, drivers: _drivers, .. } = Connection::over(a, b);
    within("it ends at once", run(&pair.first.0, &agent, &mut from_edge, true)).await;
    assert_eq!((pair.agent.lanes(), lanes.len()), (2, 2));
}

// ---------------------------------------------------------------- lanes that end

#[tokio::test(start_paused = true)]
async fn a_lane_that_carries_nothing_ends_after_a_minute() {
    let (mut pair, mut lanes) = Pair::with_lanes(4, 1).await;
    sleep(Duration::from_secs(50)).await;
    let (mut edge, mut agent) = pair.stream().await;
    assert!(agent.sender.move_to_lane());
    agent.sender.send(data(b"begun", false), false).unwrap();
    sleep(Duration::from_secs(100)).await;
    assert_eq!(pair.edge.lanes(), 1, "it carries something");
    agent.sender.send(data(b"", true), true).unwrap();
    assert_eq!(read_all(&mut edge.reader).await.unwrap(), b"begun");
    drop((edge, agent));
    let began = Instant::now();
    within("the lane ends", &mut lanes[0].running).await.unwrap();
    assert!((60..80).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!((pair.edge.lanes(), pair.agent.lanes()), (0, 0));
}

/// The agent has said that the lane ends, and the edge has not heard of it.
#[tokio::test(start_paused = true)]
async fn a_body_that_moves_to_a_lane_that_is_about_to_end_arrives() {
    let mut pair = Pair::new(4).await;
    let (near, far, gate) = gated();
    let mut lane = pair.lane_over((near, far)).await;
    gate.send(false).unwrap();
    eventually("the lane is about to end", || pair.agent.lanes_leaving() == 1).await;
    assert_eq!(pair.edge.lanes_leaving(), 0);
    let (mut edge, mut agent) = pair.stream().await;
    assert!(!agent.sender.move_to_lane(), "the agent knows");
    assert!(edge.sender.move_to_lane(), "the edge does not");
    let expected = body(1, 2_000_000);
    let whole = expected.clone();
    let sending = tokio::spawn(async move {
        let sent = send(&mut edge.sender, whole, 50_000, usize::MAX).await;
        (sent, edge)
    });
    sleep(Duration::from_secs(2)).await;
    gate.send(true).unwrap();
    let got = read_all(&mut agent.reader).await.unwrap();
    let (sent, edge) = within("all is sent", sending).await.unwrap();
    assert!(sent.is_ok() && got == expected);
    eventually("the edge has heard of it", || pair.edge.lanes_leaving() == 1).await;
    let (_edge, mut next) = pair.stream().await;
    assert!(!next.sender.move_to_lane(), "it takes no more");
    drop((edge, agent));
    within("the lane ends", &mut lane.running).await.unwrap();
}

/// The stream on the first connection is over, and its body still waits for credit on the lane.
#[tokio::test]
async fn a_session_is_not_drained_while_a_lane_has_something_to_send() {
    let (mut pair, lanes) = Pair::with_lanes(4, 1).await;
    let (mut edge, mut agent) = pair.stream().await;
    edge.sender.send(data(b"", true), true).unwrap();
    read_all(&mut agent.reader).await.unwrap();
    let expected = body(1, 330_000);
    assert!(send(&mut agent.sender, expected.clone(), 30_000, 0).await.unwrap());
    drop(agent);
    eventually("its stream is over", || pair.first.0.stats().streams == 1).await;
    assert!(lanes[0].agent.stats().send_queued > 0, "more than the first window");
    assert!(!pair.agent.is_drained());
    assert!(read_all(&mut edge.reader).await.unwrap() == expected);
    drop(edge);
    pair.is_quiet(&lanes).await;
}

/// The session's first connection ends when it is drained; what was sent to its end on a lane may
/// be behind it.
#[tokio::test]
async fn what_is_on_its_way_on_a_lane_survives_the_sessions_end() {
    let mut pair = Pair::new(4).await;
    let (near, far, gate) = gated();
    let _lane = pair.lane_over((near, far)).await;
    let (mut edge, mut agent) = pair.stream().await;
    let expected = body(1, 60_000);
    assert!(agent.sender.move_to_lane());
    agent.sender.send(data(&expected[..10], false), false).unwrap();
    assert_eq!(next(&mut edge.reader).await.unwrap().unwrap(), expected[..10]);
    gate.send(false).unwrap();
    agent.sender.send(data(&expected[10..], true), true).unwrap();
    drop(agent);
    pair.first.0.close();
    within("the first connection ends", pair.edge.closed()).await;
    gate.send(true).unwrap();
    assert!(read_all(&mut edge.reader).await.unwrap() == expected[10..]);
}

// ---------------------------------------------------------------- hostile peers

/// T06: what is no MOVED, on the first connection.
#[tokio::test]
async fn t06_a_body_that_does_not_move_as_it_should_ends_with_an_error() {
    let moved = header(Kind::Moved, false, 0);
    let cases: [(&[u8], CodecError); 4] = [
        (&header(Kind::Moved, true, 0), CodecError::AfterEnd),
        (&codec::moved_from(2), CodecError::AfterEnd),
        (&[moved, header(Kind::Data, true, 0)].concat(), CodecError::AfterEnd),
        (
            &header(Kind::Moved, false, 5),
            CodecError::TooLong { kind: Kind::Moved, length: 5, limit: codec::MOVED_LEN },
        ),
    ];
    let (mut pair, lanes) = Pair::with_lanes(4, 1).await;
    let (mut whole_edge, mut whole) = pair.stream().await;
    for (wire, expected) in cases {
        let (mut edge, mut agent) = pair.stream().await;
        agent.sender.send(Bytes::copy_from_slice(wire), false).unwrap();
        assert_eq!(next(&mut edge.reader).await, Err(expected.into()));
        drop(edge);
        let reset = within("the reset", poll_fn(|cx| agent.sender.poll_reset(cx))).await;
        assert_eq!(reset, StreamError::Reset);
    }
    // Bytes that come later than MOVED, where it stood.
    let (mut edge, mut agent) = pair.stream().await;
    agent.sender.send(Bytes::copy_from_slice(&moved), false).unwrap();
    let mut reading = Box::pin(next(&mut edge.reader));
    assert!(timeout(Duration::from_millis(50), &mut reading).await.is_err(), "it waits");
    agent.sender.send(data(b"x", false), false).unwrap();
    assert_eq!(reading.await, Err(StreamError::Reset.into()));
    drop((edge, agent));
    assert!(whole.sender.move_to_lane());
    whole.sender.send(data(b"unharmed", true), true).unwrap();
    assert_eq!(read_all(&mut whole_edge.reader).await.unwrap(), b"unharmed");
    drop((whole, whole_edge));
    pair.is_quiet(&lanes).await;
}

#[tokio::test]
async fn t06_the_control_stream_does_not_move() {
    let (mut pair, _lanes) = Pair::with_lanes(4, 1).await;
    let (sender, receiver) = pair.edge.open().unwrap();
    let mut sender: Sender = sender;
    sender.send(Bytes::copy_from_slice(&header(Kind::Moved, false, 0)), false).unwrap();
    let (_far, far): (Sender, Receiver) = pair.requests.accept().await.unwrap();
    drop(receiver);
    let error = next(&mut FrameReader::control(far)).await.unwrap_err();
    assert!(matches!(error, ReadError::Codec(CodecError::Unexpected { .. })), "{error}");
}

impl Pair {
    /// A stream of a hostile peer on its lane, with `first` as its first bytes; whether it is reset
    /// rather than taken.
    async fn is_refused(&self, lane: &mux::Session, first: Bytes) -> bool {
        let (mut sender, mut receiver) = lane.open().unwrap();
        sender.send(first, false).unwrap();
        // What takes it ends its own direction at once.
        let taken = async {
            while within("an end", receiver.recv()).await.is_ok_and(|bytes| bytes.is_some()) {}
            sleep(Duration::from_millis(20)).await;
        };
        taken.await;
        poll_fn(|cx| sender.poll_reset(cx)).now_or_never().is_some()
    }
}

#[tokio::test]
async fn t06_streams_on_a_lane_that_belong_nowhere_are_reset_and_harm_nothing() {
    let mut pair = Pair::new(4).await;
    let (mut edge, mut agent) = pair.stream().await;
    let (_edge, _agent) = pair.stream().await;
    let (lane, _drivers) = pair.hostile_lane().await;
    for first in [
        codec::moved_from(1),
        codec::moved_from(0),
        codec::moved_from(1_000),
        codec::moved_from(u32::MAX - 1),
        data(b"no name", false),
        [&header(Kind::Moved, true, 4)[..], &[0, 0, 0, 2]].concat().into(),
        Bytes::copy_from_slice(&header(Kind::Moved, false, 0)),
        Bytes::copy_from_slice(&header(Kind::Moved, false, 5)),
        Bytes::from_static(&[0xff; 100]),
    ] {
        assert!(pair.is_refused(&lane, first.clone()).await, "{first:?}");
    }
    // A body that is there already.
    agent.sender.send(Bytes::copy_from_slice(&header(Kind::Moved, false, 0)), false).unwrap();
    let (mut sender, _receiver) = lane.open().unwrap();
    sender.send([codec::moved_from(2), data(b"a", false)].concat().into(), false).unwrap();
    assert_eq!(next(&mut edge.reader).await.unwrap().unwrap(), "a");
    let second = pair.is_refused(&lane, codec::moved_from(2)).await;
    sender.send(data(b"b", true), true).unwrap();
    assert_eq!(next(&mut edge.reader).await.unwrap().unwrap(), "b");
    assert!(next(&mut edge.reader).await.unwrap().is_none());
    assert!(!second, "one may wait with the stream, and is dropped with it");
    drop((edge, agent));
    assert!(pair.is_refused(&lane, codec::moved_from(2)).await, "it is over");
    eventually("nothing is left of it", || pair.edge.stats().streams == 2).await;
}

/// A body moves once: a second MOVED, on the lane, would let a peer chain them for ever.
#[tokio::test]
async fn t06_a_body_moves_once() {
    let mut pair = Pair::new(4).await;
    let (mut edge, mut agent) = pair.stream().await;
    let (lane, _drivers) = pair.hostile_lane().await;
    let moved = header(Kind::Moved, false, 0);
    agent.sender.send(Bytes::copy_from_slice(&moved), false).unwrap();
    let (mut sender, _receiver) = lane.open().unwrap();
    sender.send([codec::moved_from(2), data(b"a", false)].concat().into(), false).unwrap();
    assert_eq!(next(&mut edge.reader).await.unwrap().unwrap(), "a");
    sender.send(Bytes::copy_from_slice(&moved), false).unwrap();
    let error = next(&mut edge.reader).await.unwrap_err();
    assert!(matches!(error, ReadError::Codec(CodecError::Unexpected { .. })), "{error}");
}

/// T06: they would hold a window each, and the ones after them up.
#[tokio::test(start_paused = true)]
async fn t06_streams_on_a_lane_that_say_nothing_are_bounded_and_hold_nobody_up() {
    let mut pair = Pair::new(4).await;
    let (mut edge, mut agent) = pair.stream().await;
    let (lane, _drivers) = pair.hostile_lane().await;
    let held = || pair.first.1.lanes().unwrap().open_now()[0].stats().streams - 1;
    let mut silent = Vec::new();
    let mut most = 0;
    for _ in 0..10_000 {
        let Ok((mut sender, receiver)) = lane.open() else { break };
        sender.announce();
        silent.push((sender, receiver));
        if silent.len() % 100 == 0 {
            // A millisecond passes only once all that can be done is done.
            sleep(Duration::from_millis(1)).await;
            most = most.max(held());
            // As a peer that forgets the ones that were reset.
            silent.retain_mut(|(sender, _)| {
                poll_fn(|cx| sender.poll_reset(cx)).now_or_never().is_none()
            });
            if most == MAX_NAMELESS && silent.len() > MAX_NAMELESS + 1_000 {
                break;
            }
        }
    }
    assert_eq!(most, MAX_NAMELESS);
    agent.sender.send(Bytes::copy_from_slice(&header(Kind::Moved, false, 0)), false).unwrap();
    let (mut sender, _receiver) = lane.open().unwrap();
    sender.send([codec::moved_from(2), data(b"here", true)].concat().into(), false).unwrap();
    let began = Instant::now();
    assert_eq!(read_all(&mut edge.reader).await.unwrap(), b"here");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop((edge, agent, sender));
    sleep(FIRST_FRAME).await;
    eventually("they are given up", || held() == 0).await;
}

/// The windows of a session and its lanes are of one budget.
#[tokio::test]
async fn lanes_share_their_sessions_budget() {
    let (pair, lanes) = Pair::with_lanes(4, 3).await;
    let first_windows = 4 * 256 * 1024;
    assert_eq!(pair.edge.stats().granted, first_windows);
    assert_eq!(pair.edge.stats().lanes, 3);
    drop(lanes);
    eventually("the lanes are gone", || pair.edge.lanes() == 0).await;
    assert_eq!(pair.edge.stats().granted, first_windows / 4);
}
