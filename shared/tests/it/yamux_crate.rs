//! Our mux against the `yamux` crate, over WebSocket on real sockets, in both roles.

use std::{future::poll_fn, task::Poll};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use uniroute_shared::mux::{Config, Side, StreamError};

use crate::{
    harness::{Ours, Tasks, WsIo, both_open, bounded, eventually, joined},
    service::{self, Ask, ask, ask_io, serve_io},
};

pub(crate) type PeerStream = Compat<yamux::Stream>;

/// The other implementation, with what it needs to be driven.
pub(crate) struct Peer {
    open: mpsc::Sender<oneshot::Sender<PeerStream>>,
    inbound: mpsc::Receiver<PeerStream>,
    driver: tokio::task::JoinHandle<()>,
}

impl Peer {
    fn over(io: WsIo, mode: yamux::Mode) -> Self {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(1024);
        let connection = yamux::Connection::new(io.compat(), config, mode);
        let (open, opens) = mpsc::channel(16);
        let (accepted, inbound) = mpsc::channel(1024);
        let driver = tokio::spawn(drive(connection, opens, accepted));
        Self { open, inbound, driver }
    }

    pub(crate) async fn open(&self) -> PeerStream {
        let (reply, stream) = oneshot::channel();
        self.open.send(reply).await.unwrap();
        stream.await.unwrap()
    }
}

/// Until the connection ends, or nobody wants streams any more.
async fn drive(
    mut connection: yamux::Connection<Compat<WsIo>>,
    mut opens: mpsc::Receiver<oneshot::Sender<PeerStream>>,
    accepted: mpsc::Sender<PeerStream>,
) {
    let mut asked: Option<oneshot::Sender<PeerStream>> = None;
    poll_fn(|cx| {
        loop {
            if asked.is_none() {
                match opens.poll_recv(cx) {
                    Poll::Ready(Some(reply)) => asked = Some(reply),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            if asked.is_some()
                && let Poll::Ready(stream) = connection.poll_new_outbound(cx)
            {
                let Ok(stream) = stream else { return Poll::Ready(()) };
                let _ = asked.take().map(|reply| reply.send(stream.compat()));
                continue;
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => accepted.try_send(stream.compat()).unwrap(),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    let _ = poll_fn(|cx| connection.poll_close(cx)).await;
}

pub(crate) async fn pair(config: Config) -> (Ours, Peer) {
    let mode = if config.side == Side::Server { yamux::Mode::Client } else { yamux::Mode::Server };
    let (ours, io) = joined(config).await;
    (ours, Peer::over(io, mode))
}

/// Runs `asks` at once on streams that we open, and as many on streams that the peer opens.
async fn exchange(config: Config, asks: Vec<Ask>, peer_too: bool) {
    let tasks = Tasks::count();
    let (ours, mut peer) = pair(config).await;
    let serving = tokio::spawn(service::serve(ours.acceptor));
    let peer_serving = tokio::spawn(async move {
        let mut streams = JoinSet::new();
        while let Some(stream) = peer.inbound.recv().await {
            streams.spawn(serve_io(stream));
        }
        while streams.join_next().await.transpose().unwrap().is_some() {}
    });
    let mut asking = JoinSet::new();
    for one in asks {
        let session = ours.session.clone();
        asking.spawn(async move { ask(&session, one).await });
        if peer_too {
            let stream = peer.open.clone();
            asking.spawn(async move {
                let (reply, opened) = oneshot::channel();
                stream.send(reply).await.unwrap();
                ask_io(opened.await.unwrap(), one).await;
            });
        }
    }
    while asking.join_next().await.transpose().unwrap().is_some() {}
    eventually("every stream is gone", || ours.session.stats().streams == 0).await;
    let stats = ours.session.stats();
    assert_eq!((stats.granted, stats.received_queued, stats.send_queued), (0, 0, 0));
    ours.session.ping();
    eventually("the peer answers pings", || ours.session.stats().min_rtt.is_some()).await;
    ours.session.close();
    ours.driver.await.unwrap();
    drop(peer.open);
    peer.driver.await.unwrap();
    serving.await.unwrap();
    peer_serving.await.unwrap();
    tasks.none_left().await;
}

#[tokio::test]
async fn the_edge_opens_streams_to_a_yamux_agent() {
    // The agent may open no stream but its control stream; the test opens none.
    bounded(exchange(Config::edge(), vec![Ask::SMALL; 500], false)).await;
}

#[tokio::test]
async fn a_yamux_edge_opens_streams_to_the_agent() {
    bounded(exchange(Config::agent(), vec![Ask::SMALL; 250], true)).await;
}

#[tokio::test]
async fn megabytes_up_and_down_in_both_roles_opened_by_either() {
    let up = Ask { body: 5_000_000, want: 10, half_close: true };
    let down = Ask { body: 10, want: 20_000_000, half_close: true };
    let both = Ask { body: 3_000_000, want: 3_000_000, half_close: false };
    for side in [Side::Server, Side::Client] {
        bounded(exchange(both_open(side), vec![up, down, both, Ask::SMALL], true)).await;
    }
}

#[tokio::test]
async fn five_hundred_streams_each_way_at_once() {
    for side in [Side::Server, Side::Client] {
        let config = Config { max_streams: 2_000, ..both_open(side) };
        bounded(exchange(config, vec![Ask::SMALL; 500], true)).await;
    }
}

#[tokio::test]
async fn a_stream_reset_by_either_is_over_for_both() {
    for side in [Side::Server, Side::Client] {
        bounded(resets(side)).await;
    }
}

async fn resets(side: Side) {
    let tasks = Tasks::count();
    let (mut ours, mut peer) = pair(both_open(side)).await;

    // The peer drops a stream of ours.
    let (mut sender, mut receiver) = ours.session.open().unwrap();
    sender.send(Bytes::from_static(b"hello"), false).unwrap();
    drop(peer.inbound.recv().await.unwrap());
    assert_eq!(receiver.recv().await, Err(StreamError::Reset));
    assert_eq!(poll_fn(|cx| sender.poll_reset(cx)).await, StreamError::Reset);
    drop((sender, receiver));

    // We drop one that we opened, and one that the peer opened.
    let (mut sender, receiver) = ours.session.open().unwrap();
    sender.send(Bytes::from_static(b"hello"), false).unwrap();
    let mut far = peer.inbound.recv().await.unwrap();
    drop((sender, receiver));
    is_cut(&mut far).await;
    let mut far = peer.open().await;
    far.write_all(b"hello").await.unwrap();
    far.flush().await.unwrap();
    drop(ours.acceptor.accept().await.unwrap());
    is_cut(&mut far).await;

    eventually("every stream is gone", || ours.session.stats().streams == 0).await;
    // The session goes on.
    let serving = tokio::spawn(service::serve(ours.acceptor));
    ask_io(peer.open().await, Ask::SMALL).await;
    ours.session.close();
    ours.driver.await.unwrap();
    drop((far, peer));
    serving.await.unwrap();
    tasks.none_left().await;
}

/// The crate's reader takes a reset for an end; its writer tells.
async fn is_cut(far: &mut PeerStream) {
    let _ = far.read_to_end(&mut Vec::new()).await;
    while far.write_all(&[0; 1_000]).await.is_ok() && far.flush().await.is_ok() {}
}

#[tokio::test]
async fn the_peer_going_ends_the_session_and_its_streams() {
    bounded(async {
        let tasks = Tasks::count();
        let (ours, peer) = pair(Config::edge()).await;
        let (mut sender, mut receiver) = ours.session.open().unwrap();
        sender.send(Bytes::from_static(b"hello"), false).unwrap();
        let Peer { open, mut inbound, driver } = peer;
        let stream = inbound.recv().await.unwrap();
        drop(open);
        driver.await.unwrap();
        let ended = ours.driver.await.unwrap();
        assert!(matches!(receiver.recv().await, Err(StreamError::Session(e)) if e == ended));
        assert!(ours.session.is_closed());
        drop((stream, sender, receiver));
        assert_eq!(ours.session.stats().streams, 0);
        tasks.none_left().await;
    })
    .await;
}
