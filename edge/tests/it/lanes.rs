//! Lanes: long bodies go over connections of their own, and whatever happens to those, a body arrives
//! whole or visibly breaks off.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use uniroute_agent::{AgentError, Event, Settings as AgentSettings, Transport};
use uniroute_proto::{
    FEATURE_LANES, VERSION,
    codec::{self, Kind},
    v1::{self, control_frame::Frame},
};
use uniroute_shared::{lanes::MAX_LANES, mux};

use crate::harness::{
    BOUND, TestAgent, TestEdge, agent_id, eventually,
    hand::{Hand, data, reply},
    host,
    upstream::{RawUpstream, TestUpstream, channel, text},
    ways::Ways,
    wire::{Broken, Wire},
    within,
};

/// What a large transfer moves, in bytes.
const BULK: usize = 50 * 1024 * 1024;
/// Bytes of one piece of it.
const PIECE: usize = 64 * 1024;
/// What may go over the first connection before a body has moved, and for everything else.
const LITTLE: u64 = 4 * 1024 * 1024;

/// Bytes that repeat nowhere near, so that a piece in the wrong place is noticed.
fn piece(number: usize) -> Bytes {
    let mut piece = vec![number.to_le_bytes()[0]; PIECE];
    for (at, word) in piece.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(number * PIECE + at * 8).to_be_bytes());
    }
    piece.into()
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn chunk(number: usize) -> Vec<u8> {
    [format!("{PIECE:x}\r\n").as_bytes(), &piece(number), b"\r\n"].concat()
}

/// Of the first `length` bytes.
fn digest(length: usize) -> String {
    let mut digest = Sha256::new();
    (0..length / PIECE).for_each(|number| digest.update(piece(number)));
    hex(digest)
}

/// `/down` is the bulk in chunks, `/length` the same with its length, and `/endless` has no end; `/up` says the digest of what came and the trailer; everything else is
/// short.
async fn server() -> TestUpstream {
    TestUpstream::start(|request| async move {
        let path = request.uri().path().to_owned();
        let last = match path.as_str() {
            "/up" => {
                let (mut digest, mut body, mut sum) =
                    (Sha256::new(), request.into_body(), String::new());
                while let Some(frame) = body.frame().await {
                    let Ok(frame) = frame else { return text("broken") };
                    match frame.into_data() {
                        Ok(data) => digest.update(data),
                        Err(frame) => {
                            let trailers = frame.into_trailers().unwrap();
                            sum = trailers["x-sum"].to_str().unwrap().to_owned();
                        }
                    }
                }
                return text(hex(digest) + &sum);
            }
            "/length" => {
                return text((0..BULK / PIECE).map(piece).collect::<Vec<_>>().concat());
            }
            "/down" => BULK / PIECE,
            "/endless" => usize::MAX,
            _ => return text("small"),
        };
        let (mut sender, response) = channel();
        tokio::spawn(async move {
            for number in 0..last {
                if sender.send_data(piece(number)).await.is_err() {
                    return;
                }
            }
        });
        response
    })
    .await
}

fn settings(edge: std::net::SocketAddr, upstream: &str) -> AgentSettings {
    let mut settings = TestAgent::settings(edge, vec![TestAgent::tunnel("demo", upstream)]);
    // QUIC needs no lanes.
    settings.transport = Transport::WebSocket;
    settings
}

/// An edge, and an agent whose connections lead through `ways`.
struct Place {
    _upstream: TestUpstream,
    edge: TestEdge,
    ways: Ways,
    agent: TestAgent,
}

impl Place {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut AgentSettings)) -> Self {
        let upstream = server().await;
        let edge = TestEdge::start();
        let to = edge.http();
        let ways = Ways::start(move |_| to).await;
        let mut settings = settings(ways.address, &upstream.url());
        change(&mut settings);
        let agent = TestAgent::launch(settings).await;
        Self { _upstream: upstream, edge, ways, agent }
    }

    async fn lanes(&self) -> u64 {
        lanes(&self.edge).await
    }

    async fn has_lanes(&self, count: u64) {
        eventually("the lanes are there", async || (self.lanes().await == count).then_some(()))
            .await;
    }

    /// One that nothing is on.
    async fn warm(&self) {
        let mut visitor = ask(&self.edge, "/endless").await;
        visitor.head().await;
        self.has_lanes(1).await;
        drop(visitor);
        self.is_quiet().await;
    }

    async fn is_quiet(&self) {
        eventually("only the control stream is left", async || {
            (self.edge.status().await["sessions"][0]["streams"] == 1).then_some(())
        })
        .await;
    }

    /// The session that the agent began with is the one that it has.
    async fn assert_untouched(&self) {
        self.edge.get("demo", "/").await.assert_ok("small");
        let connects = |event: &Event| matches!(event, Event::Connecting).then_some(());
        assert_eq!(self.agent.seen(connects).await.len(), 1);
    }
}

async fn lanes(edge: &TestEdge) -> u64 {
    edge.status().await["sessions"][0]["lanes"].as_u64().unwrap()
}

async fn ask(edge: &TestEdge, path: &str) -> Wire {
    let mut visitor = edge.visitor().await;
    let fields = "te: trailers\r\nconnection: te";
    visitor
        .send(format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{fields}\r\n\r\n", host("demo")))
        .await;
    visitor
}

/// The rest of an answer's body, all of it: its digest.
async fn digest_of(visitor: &mut Wire) -> Result<String, Broken> {
    let head = visitor.head().await;
    let (mut digest, mut body) = (Sha256::new(), visitor.body(&head));
    while let Some(bytes) = body.next().await? {
        digest.update(bytes);
    }
    Ok(hex(digest))
}

/// Uploads the bulk, with its length or in chunks with a trailer.
async fn upload(edge: &TestEdge, chunked: bool) -> String {
    let mut visitor = edge.visitor().await;
    let framing = match chunked {
        true => "transfer-encoding: chunked\r\ntrailer: x-sum".to_owned(),
        false => format!("content-length: {BULK}"),
    };
    visitor.send(format!("POST /up HTTP/1.1\r\nhost: {}\r\n{framing}\r\n\r\n", host("demo"))).await;
    for number in 0..BULK / PIECE {
        visitor.send(if chunked { chunk(number) } else { piece(number).to_vec() }).await;
    }
    if chunked {
        visitor.send("0\r\nx-sum: 9\r\n\r\n").await;
    }
    let answer = visitor.answer("POST").await;
    assert!(answer.whole && answer.status() == 200);
    answer.text().to_owned()
}

// ---------------------------------------------------------------- bodies over lanes

#[tokio::test(flavor = "multi_thread")]
async fn short_answers_stay_on_the_first_connection_beside_long_downloads() {
    let place = Place::new().await;
    let mut downloads = Vec::new();
    for number in 1..=3 {
        let mut visitor = ask(&place.edge, "/endless").await;
        visitor.head().await;
        downloads.push(tokio::spawn(async move { while !visitor.bytes().await.is_empty() {} }));
        place.has_lanes(number).await;
    }
    let carried = || (0..4).map(|way| place.ways.way(way).carried()).collect::<Vec<_>>();
    // Each has moved: the first connection is silent.
    let mut before = carried();
    eventually("the downloads are on the lanes", async || {
        let now = carried();
        let little = now[0] - before[0] < 64 * 1024;
        let moving = (1..4).all(|lane| now[lane] - before[lane] > 256 * 1024);
        if !little {
            before = now;
        }
        (little && moving).then_some(())
    })
    .await;
    let before = carried();
    for _ in 0..100 {
        place.edge.get("demo", "/").await.assert_ok("small");
    }
    eventually("the lanes carry much", async || {
        (carried()[1..].iter().sum::<u64>() > before[1..].iter().sum::<u64>() + 32 * 1024 * 1024)
            .then_some(())
    })
    .await;
    let first = carried()[0] - before[0];
    assert!(
        (100 * 50..200_000).contains(&first),
        "{first} bytes: the short answers, and they alone"
    );
    assert_eq!(place.lanes().await, 3);
    downloads.iter().for_each(tokio::task::JoinHandle::abort);
    place.is_quiet().await;
    place.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_arrive_whole_over_lanes_whether_or_not_their_length_is_known() {
    let place = Place::new().await;
    place.warm().await;
    let before = place.ways.way(0).carried();
    let expected = digest(BULK);
    for path in ["/down", "/length"] {
        let mut visitor = ask(&place.edge, path).await;
        assert!(digest_of(&mut visitor).await.is_ok_and(|digest| digest == expected), "{path}");
    }
    assert_eq!(upload(&place.edge, false).await, expected);
    assert_eq!(upload(&place.edge, true).await, expected.clone() + "9");
    let first = place.ways.way(0).carried() - before;
    assert!(first < LITTLE, "{first} bytes of 200 MB on the first connection");
    // Both directions, many at once: more than there may be lanes.
    let both = (0..6).map(|number| {
        let (edge, expected) = (&place.edge, &expected);
        async move {
            if number % 2 == 0 {
                let mut visitor = ask(edge, "/down").await;
                let digest = within("a long download", digest_of(&mut visitor)).await;
                assert!(digest.is_ok_and(|digest| digest == *expected));
            } else {
                assert_eq!(upload(edge, number == 3).await[..64], **expected);
            }
        }
    });
    futures_util::future::join_all(both).await;
    assert!(place.lanes().await <= 4);
    place.is_quiet().await;
    place.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_follow_a_body_that_moved() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        while wire.request().await.is_some() {
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n")
                .await;
            for number in 0..BULK / PIECE {
                wire.send(chunk(number)).await;
            }
            wire.send("0\r\nx-sum: 7\r\n\r\n").await;
        }
    })
    .await;
    let edge = TestEdge::start();
    let to = edge.http();
    let ways = Ways::start(move |_| to).await;
    let _agent = TestAgent::launch(settings(ways.address, &upstream.url())).await;
    for with_lane in [false, true] {
        let before = if with_lane { ways.way(1).carried() } else { 0 };
        let mut visitor = ask(&edge, "/").await;
        let answer = visitor.answer("GET").await;
        assert!(answer.whole && answer.body.len() == BULK);
        assert_eq!(answer.trailers, [("x-sum".to_owned(), "7".to_owned())]);
        eventually("a lane is there", async || (lanes(&edge).await == 1).then_some(())).await;
        let moved = ways.way(1).carried() - before > BULK as u64 / 2;
        assert!(moved || !with_lane, "it moved");
    }
}

/// The local server answers before it has read the upload, which is on a lane.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_arrives_whole_though_the_upload_is_on_a_lane() {
    let upstream = TestUpstream::start(|request| async move {
        let mut body = request.into_body();
        let mut read = 0;
        while read < 1024 * 1024 {
            read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        // What it does not read is not to reset its connection to the agent.
        tokio::spawn(async move {
            tokio::time::sleep(BOUND).await;
            drop(body);
        });
        text((0..16).map(piece).collect::<Vec<_>>().concat())
    })
    .await;
    let edge = TestEdge::start();
    let _agent = TestAgent::launch(settings(edge.http(), &upstream.url())).await;
    let expected = (0..16).map(piece).collect::<Vec<_>>().concat();
    for _ in 0..10 {
        let mut visitor = edge.visitor().await;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: 1000000000\r\n\r\n",
            host("demo")
        );
        visitor.send(head).await;
        // A little more than the server reads; not so much that the edge's close meets bytes in the
        // visitor's socket, which would reset it.
        for number in 0..18 {
            visitor.send(piece(number)).await;
        }
        let answer = visitor.answer("POST").await;
        assert_eq!((answer.status(), answer.whole, answer.body.len()), (200, true, expected.len()));
        assert!(answer.body == expected);
    }
    eventually("nothing is left", async || {
        (edge.status().await["sessions"][0]["streams"] == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_may_have_no_lanes() {
    let place = Place::with(|settings| settings.lanes = 0).await;
    let mut visitor = ask(&place.edge, "/down").await;
    assert!(digest_of(&mut visitor).await.is_ok_and(|got| got == digest(BULK)));
    assert_eq!(upload(&place.edge, false).await, digest(BULK));
    assert_eq!((place.lanes().await, place.ways.count()), (0, 1));
    place.assert_untouched().await;
}

// ---------------------------------------------------------------- lanes that are lost or end

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_is_cut_breaks_its_bodies_and_nothing_else() {
    let place = Place::new().await;
    let mut lost = ask(&place.edge, "/endless").await;
    let head = lost.head().await;
    let mut body = lost.body(&head);
    body.next().await.unwrap();
    place.has_lanes(1).await;
    // Read on until it is there for sure.
    let lane = place.ways.way(1);
    while lane.carried() < LITTLE {
        body.next().await.unwrap();
    }
    let mut whole = ask(&place.edge, "/down").await;
    let head = whole.head().await;
    let mut kept = whole.body(&head);
    let mut digested = Sha256::new();
    digested.update(kept.next().await.unwrap().unwrap());
    place.has_lanes(2).await;
    lane.cut();
    let broken = within("the body breaks off", async {
        while body.next().await.is_ok_and(|bytes| bytes.is_some()) {}
        body.next().await
    });
    assert!(broken.await.is_err(), "it must not look whole");
    place.edge.get("demo", "/").await.assert_ok("small");
    while let Some(bytes) = kept.next().await.unwrap() {
        digested.update(bytes);
    }
    assert_eq!(hex(digested), digest(BULK));
    place.has_lanes(1).await;
    // The next ones have lanes again.
    let more = [ask(&place.edge, "/endless").await, ask(&place.edge, "/endless").await];
    let mut reading = Vec::new();
    for mut visitor in more {
        visitor.head().await;
        reading.push(tokio::spawn(async move { while !visitor.bytes().await.is_empty() {} }));
    }
    place.has_lanes(2).await;
    assert_eq!(place.ways.count(), 4, "the first connection, the lost lane, and two");
    reading.iter().for_each(tokio::task::JoinHandle::abort);
    place.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_lane_is_cut_is_never_taken_for_whole() {
    let place = Place::new().await;
    place.warm().await;
    let mut visitor = place.edge.visitor().await;
    let head =
        format!("POST /up HTTP/1.1\r\nhost: {}\r\ncontent-length: {BULK}\r\n\r\n", host("demo"));
    visitor.send(head).await;
    let lane = place.ways.way(1);
    let before = lane.carried();
    let mut number = 0;
    while lane.carried() < before + LITTLE {
        visitor.send(piece(number)).await;
        number += 1;
    }
    lane.cut();
    let answer = visitor.try_answer("POST").await;
    let failed = answer.is_none_or(|answer| answer.status() == 502);
    assert!(failed, "the server saw no end");
    place.is_quiet().await;
    place.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_replaced_finishes_the_bodies_on_its_lanes() {
    let upstream = server().await;
    let edge = TestEdge::start();
    let start = async || {
        let mut settings = settings(edge.http(), &upstream.url());
        settings.agent_id = agent_id("one");
        TestAgent::launch(settings).await
    };
    let old = start().await;
    let mut visitor = ask(&edge, "/down").await;
    let head = visitor.head().await;
    let (mut digested, mut body) = (Sha256::new(), visitor.body(&head));
    digested.update(body.next().await.unwrap().unwrap());
    eventually("its lane is there", async || (lanes(&edge).await == 1).then_some(())).await;
    let _new = start().await;
    while let Some(bytes) = body.next().await.unwrap() {
        digested.update(bytes);
    }
    assert_eq!(hex(digested), digest(BULK));
    let ended = old.ended().await;
    assert!(matches!(ended, Err(AgentError::Replaced)), "{ended:?}");
    edge.get("demo", "/").await.assert_ok("small");
    eventually("all its connections are gone", async || {
        (edge.metric("lanes_closed_total").await == edge.metric("lanes_opened_total").await)
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_and_an_agent_that_drain_finish_the_bodies_on_lanes() {
    for edge_drains in [true, false] {
        for path in ["/down", "/length", "/up"] {
            let Place { _upstream, edge, ways: _ways, agent } = Place::new().await;
            let mut visitor = if path == "/up" {
                let mut visitor = edge.visitor().await;
                let head = format!(
                    "POST /up HTTP/1.1\r\nhost: {}\r\ncontent-length: {BULK}\r\n\r\n",
                    host("demo")
                );
                visitor.send(head).await;
                for number in 0..64 {
                    visitor.send(piece(number)).await;
                }
                visitor
            } else {
                ask(&edge, path).await
            };
            eventually("its lane is there", async || (lanes(&edge).await == 1).then_some(())).await;
            let (admin, mut edge) = (edge.http(), Some(edge));
            let drained = if edge_drains {
                let edge = edge.take().unwrap();
                tokio::spawn(async move { edge.shutdown().await })
            } else {
                tokio::spawn(async move { agent.stop().await.is_ok() })
            };
            assert!(admin.port() > 0);
            if path == "/up" {
                for number in 64..BULK / PIECE {
                    visitor.send(piece(number)).await;
                }
                visitor.answer("POST").await.assert_ok(&digest(BULK));
            } else {
                let got = digest_of(&mut visitor).await;
                assert!(got.is_ok_and(|got| got == digest(BULK)), "{path} {edge_drains}");
            }
            assert!(within("it is drained", drained).await.unwrap(), "{path} {edge_drains}");
        }
    }
}

/// A visitor who reads slowly: what the agent has sent to its end waits for credit on the lane when
/// the agent is told to stop.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_drains_sends_what_a_lane_has_still_to_send() {
    let Place { _upstream, edge, ways: _ways, agent } = Place::new().await;
    let mut visitor = ask(&edge, "/length").await;
    let head = visitor.head().await;
    eventually("its lane is there", async || (lanes(&edge).await == 1).then_some(())).await;
    let stopping = tokio::spawn(agent.stop());
    let (mut digested, mut body) = (Sha256::new(), visitor.body(&head));
    let mut read = 0;
    while let Some(bytes) = body.next().await.unwrap() {
        digested.update(&bytes);
        read += bytes.len();
        // The last megabyte trickles.
        if read > BULK - 1024 * 1024 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(hex(digested), digest(BULK));
    within("the agent ends", stopping).await.unwrap().unwrap();
}

// ---------------------------------------------------------------- agents and edges that have none

/// An agent that does not speak of lanes never sees a frame of theirs.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_the_feature_is_never_told_that_a_body_moved() {
    let edge = TestEdge::start();
    let (mut hand, _, ack) = Hand::ready_agent_with(edge.http(), "demo", &["something"]).await;
    assert_eq!((ack.lanes, ack.features), (0, vec![]));
    let length = 8 * 1024 * 1024;
    let mut visitor = edge.visitor().await;
    let head =
        format!("POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n\r\n", host("demo"));
    visitor.send(head).await;
    let sending = tokio::spawn(async move {
        for number in 0..length / PIECE {
            visitor.send(piece(number)).await;
        }
        visitor
    });
    let mut request = hand.request().await;
    let mut read = 0;
    loop {
        let frame = within("a frame", std::future::poll_fn(|cx| request.reader.poll_frame(cx)));
        let Some(frame) = frame.await.unwrap() else { break };
        assert_eq!(frame.kind, Kind::Data);
        read += frame.payload.len();
        if frame.end {
            break;
        }
    }
    assert_eq!(read, length);
    request.sender.send(reply(204, &[], true), true).unwrap();
    let mut visitor = sending.await.unwrap();
    assert_eq!(visitor.answer("POST").await.status(), 204);
    assert_eq!(lanes(&edge).await, 0);
}

/// One that speaks of them is asked for as many as there are long bodies.
#[tokio::test(flavor = "multi_thread")]
async fn the_edge_asks_for_lanes_when_an_upload_would_like_one() {
    let edge = TestEdge::start();
    let (mut hand, _, ack) =
        Hand::ready_agent_with(edge.http(), "demo", &["something", FEATURE_LANES]).await;
    assert_eq!((ack.lanes, ack.features), (8, vec![FEATURE_LANES.to_owned()]));
    let mut visitors = Vec::new();
    for wanted in 1..=2 {
        let mut visitor = edge.visitor().await;
        let head =
            format!("POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: 1000000\r\n\r\n", host("demo"));
        visitor.send(head + "some").await;
        visitors.push(visitor);
        assert_eq!(hand.next().await, Frame::LanesWanted(v1::LanesWanted { lanes: wanted }));
    }
}

/// Behind a load balancer a lane may reach another edge.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_does_not_hold_the_session_refuses_and_the_agent_goes_on_without_lanes() {
    let upstream = server().await;
    let (edge, other) = (TestEdge::start(), TestEdge::start());
    let (first, second) = (edge.http(), other.http());
    let ways = Ways::start(move |number| if number == 0 { first } else { second }).await;
    let agent = TestAgent::launch(settings(ways.address, &upstream.url())).await;
    for _ in 0..3 {
        let mut visitor = ask(&edge, "/down").await;
        assert!(digest_of(&mut visitor).await.is_ok_and(|got| got == digest(BULK)));
        assert_eq!(upload(&edge, false).await, digest(BULK));
    }
    assert_eq!(lanes(&edge).await, 0);
    let refused = other.metric("failures_total{code=\"UR-2107\",reason=\"lane-refused\"}").await;
    assert!((1..=3).contains(&refused), "{refused} tries, with pauses after each");
    let connects = |event: &Event| matches!(event, Event::Connecting).then_some(());
    assert_eq!(agent.seen(connects).await.len(), 1);
}

// ---------------------------------------------------------------- hostile agents

/// An edge with an honest agent on it, who must notice nothing.
struct Neighbour {
    edge: TestEdge,
    agent: TestAgent,
    _upstream: TestUpstream,
}

impl Neighbour {
    async fn start() -> Self {
        let upstream = server().await;
        let edge = TestEdge::start();
        let agent = TestAgent::launch(settings(edge.http(), &upstream.url())).await;
        Self { edge, agent, _upstream: upstream }
    }

    async fn assert_untouched(&self) {
        let mut visitor = ask(&self.edge, "/down").await;
        assert!(digest_of(&mut visitor).await.is_ok_and(|got| got == digest(BULK)));
        let connects = |event: &Event| matches!(event, Event::Connecting).then_some(());
        assert_eq!(self.agent.seen(connects).await.len(), 1);
    }

    async fn hostile(&self) -> (Hand, v1::ReadyAck) {
        let (hand, _, ack) =
            Hand::ready_agent_with(self.edge.http(), "hostile", &[FEATURE_LANES]).await;
        (hand, ack)
    }

    async fn hostile_figure(&self, name: &str) -> u64 {
        let status = self.edge.status().await;
        let sessions = status["sessions"].as_array().unwrap();
        let session =
            sessions.iter().find(|session| session["agent_id"] == "hand-hostile").unwrap();
        session[name].as_u64().unwrap()
    }

    async fn has_lanes(&self, count: u64) {
        eventually("the lanes are there", async || {
            (self.hostile_figure("lanes").await == count).then_some(())
        })
        .await;
    }
}

/// What the agent of the session that `ack` began would say on a new lane.
fn join_of(ack: &v1::ReadyAck) -> v1::JoinLane {
    v1::JoinLane {
        version: VERSION,
        nonce: Bytes::new(),
        session_id: ack.session_id.clone(),
        resume_token: ack.resume_token.clone(),
    }
}

/// A connection that says `join` with the right nonce, unless it has one; and the edge's answer.
async fn join(edge: &TestEdge, join: &v1::JoinLane) -> (Hand, Frame) {
    let mut hand = Hand::agent(edge.http()).await;
    let Frame::AuthChallenge(challenge) = hand.next().await else { panic!("no challenge") };
    let mut join = join.clone();
    if join.nonce.is_empty() {
        join.nonce = challenge.nonce;
    }
    hand.send(Frame::JoinLane(join)).await;
    let answer = hand.next().await;
    (hand, answer)
}

async fn joined(edge: &TestEdge, ack: &v1::ReadyAck) -> Hand {
    let (hand, answer) = join(edge, &join_of(ack)).await;
    assert_eq!(answer, Frame::LaneJoined(v1::LaneJoined {}));
    hand
}

#[tokio::test(flavor = "multi_thread")]
async fn t07_a_lane_joins_no_session_but_its_own() {
    let way = Neighbour::start().await;
    let (_hand, ack) = way.hostile().await;
    let honest = way.edge.status().await["sessions"].as_array().unwrap().clone();
    let honest = honest.iter().find(|session| session["agent_id"] != "hand-hostile").unwrap();
    let honest = honest["id"].as_str().unwrap().to_owned();
    let right = join_of(&ack);
    let cases = [
        ("no session", v1::JoinLane { session_id: String::new(), ..right.clone() }, 2107),
        ("an unknown one", v1::JoinLane { session_id: "f".repeat(32), ..right.clone() }, 2107),
        ("no secret", v1::JoinLane { resume_token: Bytes::new(), ..right.clone() }, 2107),
        ("a wrong one", v1::JoinLane { resume_token: vec![0; 16].into(), ..right.clone() }, 2107),
        (
            "part of the right one",
            v1::JoinLane { resume_token: right.resume_token.slice(..15), ..right.clone() },
            2107,
        ),
        ("another session's", v1::JoinLane { session_id: honest, ..right.clone() }, 2107),
        ("a replayed nonce", v1::JoinLane { nonce: vec![7; 16].into(), ..right.clone() }, 4002),
        ("another version", v1::JoinLane { version: 9, ..right.clone() }, 2102),
    ];
    for (what, wrong, code) in cases {
        let (mut hand, answer) = join(&way.edge, &wrong).await;
        let Frame::InitError(error) = answer else { panic!("{what}: {answer:?}") };
        assert_eq!(error.code, code, "{what}: {}", error.message);
        hand.ended().await;
    }
    assert_eq!(way.hostile_figure("lanes").await, 0);
    let _lane = joined(&way.edge, &ack).await;
    way.has_lanes(1).await;
    way.assert_untouched().await;
}

/// A recorded answer to the challenge of another connection.
#[tokio::test(flavor = "multi_thread")]
async fn t07_a_recorded_join_can_not_be_played_again() {
    let way = Neighbour::start().await;
    let (_hand, ack) = way.hostile().await;
    let mut lane = Hand::agent(way.edge.http()).await;
    let Frame::AuthChallenge(challenge) = lane.next().await else { panic!("no challenge") };
    let recorded = v1::JoinLane { nonce: challenge.nonce, ..join_of(&ack) };
    lane.send(Frame::JoinLane(recorded.clone())).await;
    assert_eq!(lane.next().await, Frame::LaneJoined(v1::LaneJoined {}));
    let (_hand, answer) = join(&way.edge, &recorded).await;
    assert!(matches!(answer, Frame::InitError(error) if error.code == 4002));
}

#[tokio::test(flavor = "multi_thread")]
async fn t06_a_session_has_no_more_than_eight_lanes() {
    let way = Neighbour::start().await;
    let (hand, ack) = way.hostile().await;
    let mut lanes = Vec::new();
    for number in 1..=MAX_LANES {
        lanes.push(joined(&way.edge, &ack).await);
        way.has_lanes(number as u64).await;
    }
    let (mut ninth, answer) = join(&way.edge, &join_of(&ack)).await;
    assert!(matches!(answer, Frame::InitError(error) if error.code == 2107));
    ninth.ended().await;
    // One that leaves makes room.
    drop(lanes.pop());
    way.has_lanes(7).await;
    lanes.push(joined(&way.edge, &ack).await);
    way.has_lanes(8).await;
    // They end with the session.
    drop(hand);
    for mut lane in lanes {
        lane.ended().await;
    }
    way.assert_untouched().await;
}

/// A session over which no lanes were agreed on has none.
#[tokio::test(flavor = "multi_thread")]
async fn t06_an_agent_without_the_feature_gets_no_lane() {
    let way = Neighbour::start().await;
    let (_hand, _, ack) = Hand::ready_agent_with(way.edge.http(), "hostile", &[]).await;
    let (_lane, answer) = join(&way.edge, &join_of(&ack)).await;
    assert!(matches!(answer, Frame::InitError(error) if error.code == 2107));
}

#[tokio::test(flavor = "multi_thread")]
async fn t06_a_body_that_moves_wrongly_or_nowhere_breaks_off_for_its_visitor() {
    let way = Neighbour::start().await;
    let (mut hand, ack) = way.hostile().await;
    let _lane = joined(&way.edge, &ack).await;
    way.has_lanes(1).await;
    let moved = codec::header(Kind::Moved, false, 0);
    let cases = [
        ("END", codec::header(Kind::Moved, true, 0).to_vec()),
        ("a name", codec::moved_from(2).to_vec()),
        ("bytes", [&moved[..], &data(b"more", true)].concat()),
        ("twice", [moved, moved].concat()),
    ];
    for (what, wire) in cases {
        let mut visitor = way.edge.visitor().await;
        visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("hostile"))).await;
        let mut request = hand.request().await;
        let begun = [reply(200, &[(b"content-length", b"10")], false), data(b"begun", false)];
        request.sender.send(begun.concat().into(), false).unwrap();
        let head = visitor.head().await;
        let mut body = visitor.body(&head);
        assert_eq!(body.next().await.unwrap().unwrap(), "begun", "{what}");
        let began = Instant::now();
        request.sender.send(wire.into(), false).unwrap();
        assert!(body.next().await.is_err(), "{what}");
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
    }
    // Before the head too.
    let mut visitor = way.edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("hostile"))).await;
    let mut request = hand.request().await;
    let wire = codec::header(Kind::Moved, true, 0).to_vec();
    request.sender.send(wire.into(), false).unwrap();
    visitor.answer("GET").await.assert_failed(502, "UR-2004");
    assert_eq!(way.hostile_figure("streams").await, 1);
    way.assert_untouched().await;
}

/// Streams on a lane that name what is not theirs: another body, the control stream, nothing.
#[tokio::test(flavor = "multi_thread")]
async fn t06_streams_on_a_lane_that_name_what_is_not_theirs_harm_nothing() {
    let way = Neighbour::start().await;
    let (mut hand, ack) = way.hostile().await;
    let lane = joined(&way.edge, &ack).await;
    way.has_lanes(1).await;
    let mut streams = Vec::new();
    for id in (0..2_000).chain(u32::MAX - 10..=u32::MAX) {
        let Ok((mut sender, receiver)) = lane.mux.open() else { break };
        sender.send([codec::moved_from(id), data(b"x", true)].concat().into(), false).unwrap();
        streams.push((sender, receiver));
        if streams.len() == 500 {
            streams.clear();
        }
    }
    drop(streams);
    // The hostile session itself still works.
    let mut visitor = way.edge.visitor().await;
    visitor.send(format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", host("hostile"))).await;
    let mut request = hand.request().await;
    request.sender.send(reply(204, &[], true), true).unwrap();
    assert_eq!(visitor.answer("GET").await.status(), 204);
    way.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t06_ten_thousand_streams_on_a_lane_that_say_nothing_are_bounded() {
    let way = Neighbour::start().await;
    let (_hand, ack) = way.hostile().await;
    let before = way.hostile_figure("window_bytes").await;
    let lane = joined(&way.edge, &ack).await;
    way.has_lanes(1).await;
    let mut opened = 0;
    let mut silent: Vec<(mux::Sender, mux::Receiver)> = Vec::new();
    let mut most = 0;
    while opened < 10_000 {
        let Ok((mut sender, receiver)) = lane.mux.open() else {
            // As many as may be at a time: what was reset makes room.
            silent.retain_mut(|(sender, _)| {
                let cx = std::task::Context::from_waker(std::task::Waker::noop());
                sender.poll_reset(&cx).is_pending()
            });
            most = most.max(way.hostile_figure("window_bytes").await - before);
            continue;
        };
        sender.announce();
        silent.push((sender, receiver));
        opened += 1;
    }
    eventually("all but a few are reset", async || {
        let held = way.hostile_figure("window_bytes").await - before;
        most = most.max(held);
        // Those, and the lane's handshake.
        (held <= 65 * 256 * 1024).then_some(())
    })
    .await;
    assert!(most <= 1_024 * 256 * 1024, "{most}");
    way.assert_untouched().await;
}
