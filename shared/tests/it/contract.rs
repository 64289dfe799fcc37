//! What sessions and streams promise, whatever carries them: the same tests over WebSocket and over
//! QUIC.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use uniroute_shared::{
    carrier::quic::{self, endpoint},
    mux::{self, OpenError, SessionError, StreamError},
    session::{Acceptor, Carrier, Receiver, Sender, Session},
};

use crate::{
    harness::{Tasks, bounded, sockets},
    service::pattern,
};

/// One end, with its driver running.
struct End {
    session: Session,
    acceptor: Acceptor,
    driver: JoinHandle<SessionError>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A session between an edge and an agent, whose control stream is open.
struct Pair {
    edge: End,
    agent: End,
    control: [(Sender, Receiver); 2],
}

impl Pair {
    async fn over(carrier: Carrier) -> Self {
        let (mut edge, agent) = match carrier {
            Carrier::WebSocket => over_websocket().await,
            Carrier::Quic => over_quic().await,
        };
        assert_eq!(edge.session.carrier(), carrier);
        let (mut sender, receiver) = agent.session.open().unwrap();
        sender.announce();
        let accepted = edge.acceptor.accept().await.unwrap();
        Self { edge, agent, control: [(sender, receiver), accepted] }
    }

    /// A stream of the edge's, with its first byte sent: both ends of it.
    async fn stream(&mut self) -> ((Sender, Receiver), (Sender, Receiver)) {
        let (mut sender, receiver) = self.edge.session.open().unwrap();
        sender.send(Bytes::from_static(b"?"), false).unwrap();
        let (far_sender, mut far_receiver) = self.agent.acceptor.accept().await.unwrap();
        assert_eq!(far_receiver.recv().await.unwrap().unwrap(), "?");
        ((sender, receiver), (far_sender, far_receiver))
    }

    /// Only the control stream is left at either end.
    async fn all_over(&self) {
        for end in [&self.edge, &self.agent] {
            crate::harness::eventually("streams are over", || end.session.stats().streams == 1)
                .await;
        }
    }
}

async fn over_websocket() -> (End, End) {
    let (dialled, accepted) = sockets().await;
    let end = |config, io| {
        let (session, acceptor, mut driver) = mux::new(config, io, Bytes::new());
        let driver = tokio::spawn(async move { driver.run().await });
        End { session: session.into(), acceptor: acceptor.into(), driver }
    };
    (end(mux::Config::edge(), accepted), end(mux::Config::agent(), dialled))
}

async fn over_quic() -> (End, End) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let identity = endpoint::Identity::generate().unwrap();
    let options = endpoint::Options::default();
    let socket = endpoint::bind(any).unwrap().socket;
    let address = socket.local_addr().unwrap();
    let listening = endpoint::listen(socket, &identity, &[1; 32], options).unwrap();
    let accepting = async { listening.accept().await.unwrap().await.unwrap() };
    let dialling = endpoint::dial(address, identity.fingerprint(), options);
    let (accepted, dialled) = tokio::join!(accepting, dialling);
    let dialled = dialled.unwrap();
    let end = |config, connection| {
        let (session, acceptor, mut driver) = quic::new(config, connection);
        let driver = tokio::spawn(async move { driver.run().await });
        End { session: session.into(), acceptor: acceptor.into(), driver }
    };
    let edge = end(quic::Config::edge(), accepted);
    (edge, end(quic::Config::agent(), dialled.connection))
}

async fn read_all(receiver: &mut Receiver) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(chunk) = receiver.recv().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

async fn send_all(sender: &mut Sender, mut bytes: Bytes) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        sender.ready().await?;
        let piece = bytes.split_to(bytes.len().min(30_000));
        sender.send(piece, bytes.is_empty())?;
    }
    Ok(())
}

async fn reset(sender: &mut Sender) -> StreamError {
    poll_fn(|cx| sender.poll_reset(cx)).await
}

/// Whether nothing comes of `future` for a while.
async fn stays_pending(future: impl Future) -> bool {
    timeout(Duration::from_millis(150), future).await.is_err()
}

async fn bytes_come_through_both_ways(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let body = pattern(3_000_000);
    let mut echoes = JoinSet::new();
    for _ in 0..4 {
        let ((mut sender, mut receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
        echoes.spawn(async move {
            while let Some(chunk) = far_receiver.recv().await.unwrap() {
                far_sender.ready().await.unwrap();
                far_sender.send_framed([1, 2, 3, 4], chunk, false).unwrap();
            }
            far_sender.send(Bytes::new(), true).unwrap();
        });
        let body = body.clone();
        echoes.spawn(async move {
            let sending = send_all(&mut sender, body.clone());
            let (sent, got) = tokio::join!(sending, read_all(&mut receiver));
            sent.unwrap();
            assert!(got.unwrap().len() > body.len());
        });
    }
    while let Some(echoed) = echoes.join_next().await {
        echoed.unwrap();
    }
    pair.all_over().await;
}

/// Each direction ends by itself.
async fn the_end_of_one_direction_is_not_that_of_the_other(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((mut sender, mut receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
    sender.send("all".into(), true).unwrap();
    assert_eq!(sender.send("more".into(), false), Err(StreamError::Finished));
    assert_eq!(read_all(&mut far_receiver).await.unwrap(), b"all");
    assert_eq!(far_receiver.recv().await.unwrap(), None, "the end stays the end");
    drop((sender, far_receiver));
    far_sender.send("answer".into(), false).unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "answer");
    assert!(stays_pending(reset(&mut far_sender)).await);
    far_sender.send(pattern(300_000), true).unwrap();
    drop(far_sender);
    assert_eq!(read_all(&mut receiver).await.unwrap(), pattern(300_000));
    drop(receiver);
    pair.all_over().await;
}

async fn a_dropped_receiver_cancels_the_stream(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((mut sender, receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
    drop(receiver);
    assert_eq!(far_receiver.recv().await, Err(StreamError::Reset));
    assert_eq!(reset(&mut far_sender).await, StreamError::Reset);
    assert_eq!(far_sender.ready().await, Err(StreamError::Reset));
    assert_eq!(far_sender.send("x".into(), true), Err(StreamError::Reset));
    assert_eq!(sender.ready().await, Err(StreamError::Reset));
    assert_eq!(reset(&mut sender).await, StreamError::Reset);
    drop((sender, far_sender, far_receiver));
    pair.all_over().await;
}

/// Whoever waits on the other half is woken, at either end.
async fn a_dropped_sender_cancels_the_stream(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((sender, mut receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
    let near = tokio::spawn(async move { receiver.recv().await });
    let far = tokio::spawn(async move { far_receiver.recv().await });
    let far_reset = tokio::spawn(async move { reset(&mut far_sender).await });
    tokio::task::yield_now().await;
    drop(sender);
    assert_eq!(near.await.unwrap(), Err(StreamError::Reset));
    assert_eq!(far.await.unwrap(), Err(StreamError::Reset));
    assert_eq!(far_reset.await.unwrap(), StreamError::Reset);
    pair.all_over().await;
}

/// A visitor who leaves while the answer is awaited: the request is sent long since.
async fn a_receiver_dropped_after_the_last_byte_was_sent_cancels(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((mut sender, receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
    sender.send(Bytes::new(), true).unwrap();
    drop(sender);
    assert_eq!(far_receiver.recv().await.unwrap(), None);
    assert!(stays_pending(reset(&mut far_sender)).await);
    drop(receiver);
    assert_eq!(reset(&mut far_sender).await, StreamError::Reset);
    drop((far_sender, far_receiver));
    pair.all_over().await;
}

/// A stream that was cancelled in full flow ends for the sender that waits.
async fn a_cancel_reaches_a_sender_that_waits(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((sender, receiver), (mut far_sender, far_receiver)) = pair.stream().await;
    let flood = tokio::spawn(async move {
        loop {
            if let Err(error) = far_sender.ready().await {
                return error;
            }
            far_sender.send(pattern(20_000), false).unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!flood.is_finished());
    drop((sender, receiver));
    assert_eq!(flood.await.unwrap(), StreamError::Reset);
    drop(far_receiver);
    pair.all_over().await;
}

async fn a_receiver_that_is_complete_cancels_nothing(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((mut sender, mut receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
    sender.send(Bytes::new(), true).unwrap();
    assert_eq!(far_receiver.recv().await.unwrap(), None);
    far_sender.send("all that matters".into(), false).unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "all that matters");
    receiver.complete();
    drop((sender, receiver));
    assert!(stays_pending(reset(&mut far_sender)).await);
    far_sender.send(Bytes::new(), true).unwrap();
    drop((far_sender, far_receiver));
    pair.all_over().await;
}

/// Who has all of it, and gets more, ends the stream.
async fn what_comes_behind_a_complete_receiver_is_refused(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((mut sender, mut receiver), (mut far_sender, far_receiver)) = pair.stream().await;
    sender.send(Bytes::new(), true).unwrap();
    receiver.complete();
    drop((sender, receiver));
    far_sender.send("more".into(), false).unwrap();
    assert_eq!(reset(&mut far_sender).await, StreamError::Reset);
    drop((far_sender, far_receiver));
    pair.all_over().await;
}

/// No more is wanted, but the answer comes through whole; the peer is told behind it.
async fn a_receiver_that_stops_does_not_cut_the_answer(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((mut sender, mut receiver), (mut far_sender, far_receiver)) = pair.stream().await;
    sender.send("not wanted".into(), false).unwrap();
    far_receiver.stop();
    far_sender.send("begun".into(), false).unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "begun");
    assert!(stays_pending(reset(&mut sender)).await);
    let answering = tokio::spawn(async move {
        send_all(&mut far_sender, pattern(400_000)).await.unwrap();
    });
    assert_eq!(read_all(&mut receiver).await.unwrap(), pattern(400_000));
    answering.await.unwrap();
    assert_eq!(reset(&mut sender).await, StreamError::Reset);
    drop((sender, receiver));
    pair.all_over().await;
}

async fn a_sender_dropped_after_its_last_byte_delivers_all(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    // More than any window: it can't all be out when the handles go.
    let body = pattern(20 * 1024 * 1024);
    let ((mut sender, mut receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
    receiver.complete();
    sender.send(body.clone(), true).unwrap();
    far_sender.send(Bytes::new(), true).unwrap();
    drop((sender, receiver, far_sender));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(read_all(&mut far_receiver).await.unwrap() == body);
    drop(far_receiver);
    pair.all_over().await;
}

/// A reader that stands still holds a window and the sender's queue, no more; and when it reads on,
/// so does the flow.
async fn a_reader_that_stands_still_stops_its_sender(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((_sender, mut receiver), (mut far_sender, _far_receiver)) = pair.stream().await;
    let window = match carrier {
        Carrier::WebSocket => 256 * 1024,
        Carrier::Quic => quic::STREAM_WINDOW as usize,
    };
    let mut sent = 0;
    while timeout(Duration::from_millis(300), far_sender.ready()).await.is_ok() {
        far_sender.send(pattern(16_000), false).unwrap();
        sent += 16_000;
        assert!(sent <= window + 64 * 1024 + 16_000, "{sent}");
    }
    assert!(pair.agent.session.stats().send_queued <= 64 * 1024 + 16_000);
    let mut read = 0;
    while read < sent {
        read += receiver.recv().await.unwrap().unwrap().len();
    }
    far_sender.ready().await.unwrap();
}

async fn readers_that_stand_still_stop_nobody_else(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let mut held = Vec::new();
    let mut floods = JoinSet::new();
    for _ in 0..64 {
        let (near, (mut far_sender, far_receiver)) = pair.stream().await;
        held.push(near);
        floods.spawn(async move {
            while far_sender.ready().await.is_ok() {
                if far_sender.send(pattern(60_000), false).is_err() {
                    break;
                }
            }
            drop(far_receiver);
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..20 {
        let ((mut sender, mut receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
        let body = pattern(200_000);
        let answering = async {
            assert!(read_all(&mut far_receiver).await.unwrap() == body);
            send_all(&mut far_sender, body.clone()).await.unwrap();
        };
        let asking = async {
            send_all(&mut sender, body.clone()).await.unwrap();
            assert!(read_all(&mut receiver).await.unwrap() == body);
        };
        timeout(Duration::from_secs(5), async { tokio::join!(asking, answering) }).await.unwrap();
    }
    drop(held);
    while floods.join_next().await.is_some() {}
    pair.all_over().await;
}

/// A young stream does not wait behind bulk that fills the connection.
async fn small_answers_overtake_bulk(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let mut bulk = JoinSet::new();
    for _ in 0..4 {
        let ((sender, mut receiver), (mut far_sender, far_receiver)) = pair.stream().await;
        bulk.spawn(async move {
            while far_sender.ready().await.is_ok() {
                if far_sender.send(pattern(60_000), false).is_err() {
                    break;
                }
            }
            drop(far_receiver);
        });
        bulk.spawn(async move {
            let _sender = sender;
            while receiver.recv().await.is_ok() {
                // Slower than it could be: what waits, waits in the sender's queues.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let began = std::time::Instant::now();
        let ((mut sender, mut receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
        sender.send(Bytes::new(), true).unwrap();
        assert_eq!(far_receiver.recv().await.unwrap(), None);
        far_sender.send("answer".into(), true).unwrap();
        assert_eq!(read_all(&mut receiver).await.unwrap(), b"answer");
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    bulk.shutdown().await;
}

async fn a_thousand_streams_and_no_more(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let mut open = Vec::new();
    for _ in 0..mux::MAX_STREAMS - 1 {
        open.push(pair.stream().await);
    }
    assert_eq!(pair.edge.session.open().err(), Some(OpenError::TooManyStreams));
    for (number, ((sender, _), (far_sender, _))) in open.iter_mut().enumerate() {
        sender.send(format!("to {number}").into(), true).unwrap();
        far_sender.send(format!("from {number}").into(), true).unwrap();
    }
    for (number, ((_, receiver), (_, far_receiver))) in open.iter_mut().enumerate() {
        assert_eq!(read_all(receiver).await.unwrap(), format!("from {number}").into_bytes());
        assert_eq!(read_all(far_receiver).await.unwrap(), format!("to {number}").into_bytes());
    }
    drop(open);
    pair.all_over().await;
    pair.stream().await;
}

/// What was sent before the close arrives; then both ends know that it ended well.
async fn a_session_that_closes_delivers_what_was_sent(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let [(control, _near), (_far, far_control)] = &mut pair.control;
    control.send(pattern(100_000), true).unwrap();
    pair.agent.session.close();
    let done = SessionError::Local { code: 1000, reason: "done".into() };
    assert_eq!(pair.agent.session.closed().await, done);
    let mut got = Vec::new();
    while let Some(chunk) = far_control.recv().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    assert!(got.ends_with(&pattern(100_000)));
    assert_eq!(pair.edge.session.closed().await, SessionError::Ended);
    assert!(pair.edge.session.is_closed() && pair.agent.session.is_closed());
    assert_eq!((&mut pair.edge.driver).await.unwrap(), SessionError::Ended);
}

async fn an_aborted_session_says_why(carrier: Carrier) {
    let mut pair = Pair::over(carrier).await;
    let ((mut sender, mut receiver), (mut far_sender, mut far_receiver)) = pair.stream().await;
    let (near, mut far) = (
        // A handle that is dropped resets its stream, which could come before the reason.
        tokio::spawn(async move { (receiver.recv().await, receiver) }),
        pin!(async { (far_receiver.recv().await, reset(&mut far_sender).await) }),
    );
    assert!(poll_fn(|cx| Poll::Ready(far.as_mut().poll(cx).is_pending())).await);
    pair.edge.session.abort(4001, "no");
    let told = SessionError::Closed { code: 4001, reason: "no".into() };
    let said = SessionError::Local { code: 4001, reason: "no".into() };
    assert_eq!(pair.agent.session.closed().await, told);
    assert_eq!(pair.edge.session.closed().await, said);
    assert_eq!(far.await, (Err(StreamError::Session(told.clone())), StreamError::Session(told)));
    assert_eq!(near.await.unwrap().0, Err(StreamError::Session(said.clone())));
    assert_eq!(sender.ready().await, Err(StreamError::Session(said.clone())));
    assert_eq!(pair.edge.session.open().err(), Some(OpenError::Closed(said)));
    assert!(pair.agent.acceptor.accept().await.is_none());
}

/// An end whose driver is dropped is gone, and so is the other one's session.
async fn a_session_ends_with_its_driver(carrier: Carrier) {
    let tasks = Tasks::count();
    let mut pair = Pair::over(carrier).await;
    let ((mut sender, receiver), (mut far_sender, far_receiver)) = pair.stream().await;
    far_sender.send(pattern(10_000_000), true).unwrap();
    pair.agent.driver.abort();
    assert!(matches!(pair.edge.session.closed().await, SessionError::Ended | SessionError::Io(_)));
    assert!(matches!(reset(&mut sender).await, StreamError::Session(_)));
    assert!(matches!(reset(&mut far_sender).await, StreamError::Session(_)));
    drop((sender, receiver, far_sender, far_receiver));
    (&mut pair.edge.driver).await.unwrap();
    drop(pair);
    tasks.none_left().await;
}

macro_rules! over_both {
    ($($test:ident)+) => {
        mod websocket {
            use super::{Carrier, bounded};
            $(
                #[tokio::test]
                async fn $test() {
                    bounded(super::$test(Carrier::WebSocket)).await;
                }
            )+
        }

        mod quic_native {
            use super::{Carrier, bounded};
            $(
                #[tokio::test]
                async fn $test() {
                    bounded(super::$test(Carrier::Quic)).await;
                }
            )+
        }
    };
}

over_both! {
    bytes_come_through_both_ways
    the_end_of_one_direction_is_not_that_of_the_other
    a_dropped_receiver_cancels_the_stream
    a_dropped_sender_cancels_the_stream
    a_receiver_dropped_after_the_last_byte_was_sent_cancels
    a_cancel_reaches_a_sender_that_waits
    a_receiver_that_is_complete_cancels_nothing
    what_comes_behind_a_complete_receiver_is_refused
    a_receiver_that_stops_does_not_cut_the_answer
    a_sender_dropped_after_its_last_byte_delivers_all
    a_reader_that_stands_still_stops_its_sender
    readers_that_stand_still_stop_nobody_else
    small_answers_overtake_bulk
    a_thousand_streams_and_no_more
    a_session_that_closes_delivers_what_was_sent
    an_aborted_session_says_why
    a_session_ends_with_its_driver
}

/// QUIC itself lets an agent open one stream, and no other one while that is there.
#[tokio::test]
async fn t06_an_agent_opens_one_stream_over_quic() {
    bounded(async {
        let pair = Pair::over(Carrier::Quic).await;
        assert_eq!(pair.agent.session.open().err(), Some(OpenError::TooManyStreams));
    })
    .await;
}

/// Another certificate than the one that was told is refused, whatever it says.
#[tokio::test]
async fn a_wrong_certificate_is_refused() {
    bounded(async {
        let (told, real) =
            (endpoint::Identity::generate().unwrap(), endpoint::Identity::generate().unwrap());
        let options = endpoint::Options::default();
        let socket = endpoint::bind(([127, 0, 0, 1], 0).into()).unwrap().socket;
        let address = socket.local_addr().unwrap();
        let listening = endpoint::listen(socket, &real, &[1; 32], options).unwrap();
        let accepting = async { listening.accept().await.unwrap().await };
        let (accepted, dialled) =
            tokio::join!(accepting, endpoint::dial(address, told.fingerprint(), options));
        let error = dialled.unwrap_err().to_string();
        assert!(error.contains("not the certificate that the edge told"), "{error}");
        assert!(accepted.is_err());
    })
    .await;
}

/// Where nothing answers, the error says what to look at, and comes soon.
#[tokio::test]
async fn a_port_that_does_not_answer_is_named() {
    bounded(async {
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let began = std::time::Instant::now();
        let error =
            endpoint::dial(address, [0; 32], endpoint::Options::default()).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(4));
        let error = error.to_string();
        let port = format!("UDP port {}", address.port());
        assert!(error.contains(&port) && error.contains("firewall"), "{error}");
    })
    .await;
}
