//! T06: hostile peers on real sockets. Each may end its own session, with a reason, and nothing
//! else: no panic, no other session harmed, no task left behind, memory bounded.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use uniroute_shared::{
    carrier::ws::{self, Decoder, Event, MAX_HEADER_LEN, WsError},
    mux::{
        Config, SessionError, Side, StreamError,
        frame::{Header, HeaderError, Type, flag},
    },
};

use crate::{
    harness::{Ours, Tasks, both_open, bounded, eventually, sockets},
    service::{self, Ask, ask_io, send_all},
    yamux_crate::pair,
};

/// As an edge with little patience.
fn edge() -> Config {
    Config { write_stall: Duration::from_millis(200), ..Config::edge() }
}

/// An edge's session, and the socket of a peer that may send on it what it likes.
async fn victim(config: Config) -> (Ours, TcpStream) {
    let (peer, accepted) = sockets().await;
    (Ours::over(config, accepted, Bytes::new()), peer)
}

/// `payload` as a client's WebSocket message.
fn message(payload: &[u8]) -> Vec<u8> {
    let (mut space, mask) = ([0; MAX_HEADER_LEN], [1, 2, 3, 4]);
    let start = ws::put_binary_header(&mut space, payload.len(), Some(mask));
    let mut bytes = [&space[start..], payload].concat();
    let body = bytes.len() - payload.len();
    ws::apply_mask(&mut bytes[body..], mask);
    bytes
}

fn frame(kind: Type, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    Header { kind, flags, stream, length }.encode().to_vec()
}

/// Sends `bytes` to an edge; returns how the session ended, and the code that the peer was told.
async fn attack(bytes: Vec<u8>) -> (SessionError, Option<u16>) {
    let (ours, peer) = victim(edge()).await;
    let (mut reader, mut writer) = peer.into_split();
    let writing = tokio::spawn(async move {
        // The session may end before all is taken.
        let _ = writer.write_all(&bytes).await;
        writer
    });
    let mut told = bytes::BytesMut::new();
    while reader.read_buf(&mut told).await.is_ok_and(|read| read > 0) {}
    drop(writing.await.unwrap());
    let error = ours.driver.await.unwrap();
    assert_eq!(ours.session.closed().await, error);
    assert_eq!(ours.session.stats().streams, 0);
    let mut decoder = Decoder::new(Side::Client);
    let code = loop {
        match decoder.next(&mut told).unwrap() {
            Some(Event::Close(code, _)) => break Some(code),
            Some(_) => {}
            None => break None,
        }
    };
    (error, code)
}

#[tokio::test]
async fn t06_what_is_no_protocol_ends_the_session_with_a_reason() {
    let protocol = SessionError::Protocol;
    let bad_version = [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    let cases = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), WsError::Reserved(b'G').into()),
        (vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc], WsError::Reserved(0x16).into()),
        (vec![0x82, 1, b'x'], WsError::Mask.into()),
        (vec![0x81, 0x81, 0, 0, 0, 0, b'x'], WsError::Text.into()),
        (vec![0x89, 0xfe, 0xff, 0xff, 0, 0, 0, 0], WsError::Control.into()),
        ([&[0x82, 0xff][..], &[0xff; 8], &[0; 4]].concat(), WsError::Length.into()),
        (message(&[9; 12]), HeaderError::Version(9).into()),
        (message(&bad_version), HeaderError::Version(1).into()),
        (message(&[0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), HeaderError::Type(4).into()),
        (
            message(&frame(Type::Data, flag::SYN, 1, 1 << 24)),
            protocol("more data than the window allows"),
        ),
        (
            message(&frame(Type::Data, flag::SYN, 2, 0)),
            protocol("a new stream with an id of the other side"),
        ),
        (
            message(&frame(Type::WindowUpdate, flag::SYN, 1, u32::MAX)),
            protocol("a window update overflows"),
        ),
        (
            message(&frame(Type::Data, flag::SYN, 1, 0).repeat(2)),
            protocol("a new stream with an id in use"),
        ),
        (
            (0..1_000).flat_map(|n| message(&frame(Type::Data, flag::SYN, 1 + 2 * n, 0))).collect(),
            protocol("too many streams opened"),
        ),
    ];
    bounded(async {
        let tasks = Tasks::count();
        for (bytes, expected) in cases {
            let (error, code) = attack(bytes).await;
            let due = if matches!(expected, SessionError::WebSocket(WsError::Text)) {
                1003
            } else {
                1002
            };
            assert_eq!((error, code), (expected, Some(due)));
        }
        tasks.none_left().await;
    })
    .await;
}

/// A message of 2^62 bytes is only a header: its frames are taken as they come, none is stored.
#[tokio::test]
async fn t06_an_endless_message_allocates_nothing() {
    bounded(async {
        let (ours, mut peer) = victim(edge()).await;
        let header = [0x82, 0xff, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        peer.write_all(&header).await.unwrap();
        peer.write_all(&frame(Type::Ping, flag::SYN, 0, 7)).await.unwrap();
        let mut answer = [0; 100];
        let mut read = 0;
        // Its own ping, then the answer to ours.
        while !answer[..read].ends_with(&frame(Type::Ping, flag::ACK, 0, 7)) {
            read += peer.read(&mut answer[read..]).await.unwrap();
        }
        drop(peer);
        assert_eq!(ours.driver.await.unwrap(), SessionError::Ended);
    })
    .await;
}

#[tokio::test]
async fn t06_a_peer_that_never_reads_is_cut_off_and_its_memory_is_bounded() {
    bounded(async {
        let tasks = Tasks::count();
        let (ours, peer) = victim(edge()).await;
        let mut senders = JoinSet::new();
        for _ in 0..100 {
            let (mut sender, receiver) = ours.session.open().unwrap();
            senders.spawn(async move {
                let error = send_all(&mut sender, vec![0; 200_000].into(), true).await.err();
                drop(receiver);
                error
            });
        }
        let most = async {
            let mut most = 0;
            while !ours.session.is_closed() {
                most = most.max(ours.session.stats().send_queued);
                tokio::task::yield_now().await;
            }
            most
        };
        let most = most.await;
        assert!(most <= 100 * (64 * 1024 + 50_000), "{most} bytes were queued");
        assert_eq!(ours.driver.await.unwrap(), SessionError::WriteStalled);
        while let Some(error) = senders.join_next().await {
            let stalled = StreamError::Session(SessionError::WriteStalled);
            assert!([None, Some(stalled)].contains(&error.unwrap()));
        }
        assert_eq!(ours.session.stats().streams, 0);
        drop(peer);
        tasks.none_left().await;
    })
    .await;
}

#[tokio::test]
async fn t06_pings_from_a_peer_that_reads_no_answer_end_the_session() {
    bounded(async {
        let (ours, peer) = victim(edge()).await;
        let (_unread, mut writer) = peer.into_split();
        let flood = message(&frame(Type::Ping, flag::SYN, 0, 1).repeat(1_000));
        let flooding = tokio::spawn(async move { while writer.write_all(&flood).await.is_ok() {} });
        let error = ours.driver.await.unwrap();
        let too_many = SessionError::Protocol("the peer asks for answers and reads none");
        assert!(error == SessionError::WriteStalled || error == too_many, "{error}");
        flooding.await.unwrap();
    })
    .await;
}

/// RFC 6455 lets one answer stand for all: pongs never pile up.
#[tokio::test]
async fn t06_many_websocket_pings_get_few_answers() {
    bounded(async {
        let (ours, peer) = victim(edge()).await;
        let (mut reader, mut writer) = peer.into_split();
        let ping = |payload: u8| [&[0x89, 0xfd, 0, 0, 0, 0][..], &[payload; 125]].concat();
        let flood = ping(1).repeat(100_000);
        let flooding = tokio::spawn(async move {
            writer.write_all(&flood).await.unwrap();
            writer.write_all(&ping(2)).await.unwrap();
            writer
        });
        let mut answers = Vec::new();
        while !answers.ends_with(&[2; 125]) {
            assert!(reader.read_buf(&mut answers).await.unwrap() > 0);
        }
        assert!(answers.len() < 100_000 * 127 / 10, "{} bytes of pongs", answers.len());
        drop((flooding.await.unwrap(), reader));
        ours.driver.await.unwrap();
    })
    .await;
}

/// Streams that nobody reads stop their senders, and no one else.
#[tokio::test]
async fn t06_stalled_streams_keep_to_their_windows_and_stop_nobody_else() {
    bounded(async {
        let tasks = Tasks::count();
        let (mut ours, peer) = pair(both_open(Side::Server)).await;
        let mut floods = JoinSet::new();
        let mut held = Vec::new();
        for _ in 0..50 {
            let mut stream = peer.open().await;
            floods.spawn(async move {
                while stream.write_all(&[1; 10_000]).await.is_ok() && stream.flush().await.is_ok() {
                }
            });
            held.push(ours.acceptor.accept().await.unwrap());
        }
        let full = 50 * 256 * 1024;
        eventually("windows are full", || ours.session.stats().received_queued == full).await;
        let serving = tokio::spawn(service::serve(ours.acceptor));
        ask_io(peer.open().await, Ask::SMALL).await;
        assert_eq!(ours.session.stats().received_queued, full);
        drop(held);
        while floods.join_next().await.is_some() {}
        eventually("every stream is gone", || ours.session.stats().streams == 0).await;
        assert_eq!(ours.session.stats().received_queued, 0);
        ours.session.close();
        ours.driver.await.unwrap();
        drop(peer);
        serving.await.unwrap();
        tasks.none_left().await;
    })
    .await;
}

/// What one peer does is of no concern to another session of the same process.
#[tokio::test]
async fn t06_other_sessions_do_not_notice() {
    bounded(async {
        let (good, peer) = pair(both_open(Side::Server)).await;
        let serving = tokio::spawn(service::serve(good.acceptor));
        for round in 0..20_u8 {
            let garbage =
                (0..50_000_u32).map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()[0] ^ round);
            attack(garbage.collect()).await;
            attack(message(&vec![round | 4; 100_000])).await;
            ask_io(peer.open().await, Ask::SMALL).await;
        }
        good.session.close();
        good.driver.await.unwrap();
        serving.await.unwrap();
    })
    .await;
}
