//! What a stream and a byte cost in the mux, both ends on one thread over an in-memory pipe, next
//! to the `yamux` crate doing the same. Ours pays for WebSocket framing too, and for masks where the
//! agent sends; the crate runs on the bare pipe.

use std::{future::poll_fn, task::Poll, time::Duration};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    runtime::Runtime,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use uniroute_shared::mux::{self, Acceptor, Config, Receiver, Session};

/// Room in the pipe, each way, in bytes.
const PIPE: usize = 1024 * 1024;
const STREAMS: usize = 1_000;
/// Requests under way at a time.
const AT_ONCE: usize = 100;
const REQUEST: usize = 500;
const ANSWER: usize = 1_000;
const BULK: usize = 64 * 1024 * 1024;
/// One write of the bulk transfer.
const PIECE: usize = 64 * 1024;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

// ---------------------------------------------------------------- ours

async fn ours() -> (Session, Acceptor) {
    let (near, far) = tokio::io::duplex(PIPE);
    let (edge, _, mut driver) = mux::new(Config::edge(), near, Bytes::new());
    tokio::spawn(async move { driver.run().await });
    let (_, acceptor, mut driver) = mux::new(Config::agent(), far, Bytes::new());
    tokio::spawn(async move { driver.run().await });
    (edge, acceptor)
}

async fn drain(receiver: &mut Receiver) -> usize {
    let mut read = 0;
    while let Some(chunk) = receiver.recv().await.expect("a stream that is not cut") {
        read += chunk.len();
    }
    read
}

async fn our_requests() {
    let (session, mut acceptor) = ours().await;
    tokio::spawn(async move {
        let answer = Bytes::from(vec![1; ANSWER]);
        while let Some((mut sender, mut receiver)) = acceptor.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                assert_eq!(drain(&mut receiver).await, REQUEST);
                sender.send(answer, true).expect("a stream that is not cut");
            });
        }
    });
    let request = Bytes::from(vec![2; REQUEST]);
    each(STREAMS, || {
        let (session, request) = (session.clone(), request.clone());
        async move {
            let (mut sender, mut receiver) = session.open().expect("room for a stream");
            sender.send(request, true).expect("a stream that is not cut");
            assert_eq!(drain(&mut receiver).await, ANSWER);
        }
    })
    .await;
    session.close();
}

/// From the agent, which masks, or from the edge.
async fn our_bulk(from_agent: bool) {
    let (session, mut acceptor) = ours().await;
    let (mut edge_sender, edge_receiver) = session.open().expect("room for a stream");
    edge_sender.announce();
    let (agent_sender, agent_receiver) = acceptor.accept().await.expect("a stream");
    let edge = (edge_sender, edge_receiver);
    let agent = (agent_sender, agent_receiver);
    let ((mut sender, _receiver), (_sender, mut receiver)) =
        if from_agent { (agent, edge) } else { (edge, agent) };
    let sending = async {
        let piece = Bytes::from(vec![1; PIECE]);
        for sent in 1..=BULK / PIECE {
            sender.ready().await.expect("a stream that is not cut");
            sender.send(piece.clone(), sent == BULK / PIECE).expect("a stream that is not cut");
        }
    };
    let (read, ()) = tokio::join!(drain(&mut receiver), sending);
    assert_eq!(read, BULK);
    session.close();
}

// ---------------------------------------------------------------- the yamux crate

type Stream = Compat<yamux::Stream>;
type Opens = mpsc::Sender<oneshot::Sender<Stream>>;

fn theirs() -> (Opens, mpsc::Receiver<Stream>) {
    let (near, far) = tokio::io::duplex(PIPE);
    (drive(near, yamux::Mode::Client).0, drive(far, yamux::Mode::Server).1)
}

fn drive(io: DuplexStream, mode: yamux::Mode) -> (Opens, mpsc::Receiver<Stream>) {
    let mut connection = yamux::Connection::new(io.compat(), yamux::Config::default(), mode);
    let (open, mut opens) = mpsc::channel::<oneshot::Sender<Stream>>(STREAMS);
    let (accepted, inbound) = mpsc::channel(STREAMS);
    let mut asked = None;
    tokio::spawn(poll_fn(move |cx| {
        loop {
            if asked.is_none()
                && let Poll::Ready(Some(reply)) = opens.poll_recv(cx)
            {
                asked = Some(reply);
            }
            if asked.is_some()
                && let Poll::Ready(stream) = connection.poll_new_outbound(cx)
            {
                let Ok(stream) = stream else { return Poll::Ready(()) };
                let _ = asked.take().map(|reply| reply.send(stream.compat()));
                continue;
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    let _ = accepted.try_send(stream.compat());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }));
    (open, inbound)
}

async fn open(opens: &Opens) -> Stream {
    let (reply, stream) = oneshot::channel();
    opens.send(reply).await.expect("a driver");
    stream.await.expect("a stream")
}

async fn their_requests() {
    let (opens, mut inbound) = theirs();
    tokio::spawn(async move {
        while let Some(mut stream) = inbound.recv().await {
            tokio::spawn(async move {
                let mut request = Vec::with_capacity(REQUEST);
                stream.read_to_end(&mut request).await.expect("a request");
                assert_eq!(request.len(), REQUEST);
                stream.write_all(&[1; ANSWER]).await.expect("a stream that is not cut");
                stream.shutdown().await.expect("a stream that is not cut");
            });
        }
    });
    each(STREAMS, || {
        let opens = opens.clone();
        async move {
            let mut stream = open(&opens).await;
            stream.write_all(&[2; REQUEST]).await.expect("a stream that is not cut");
            stream.shutdown().await.expect("a stream that is not cut");
            let mut answer = Vec::with_capacity(ANSWER);
            stream.read_to_end(&mut answer).await.expect("an answer");
            assert_eq!(answer.len(), ANSWER);
        }
    })
    .await;
}

async fn their_bulk() {
    let (opens, mut inbound) = theirs();
    let mut sender = open(&opens).await;
    let sending = async {
        let piece = vec![1; PIECE];
        for _ in 0..BULK / PIECE {
            sender.write_all(&piece).await.expect("a stream that is not cut");
        }
        sender.shutdown().await.expect("a stream that is not cut");
    };
    let receiving = async {
        let mut receiver = inbound.recv().await.expect("a stream");
        let (mut buffer, mut read) = (vec![0; PIECE], 0);
        loop {
            match receiver.read(&mut buffer).await.expect("a stream that is not cut") {
                0 => break,
                more => read += more,
            }
        }
        assert_eq!(read, BULK);
    };
    tokio::join!(sending, receiving);
}

// ---------------------------------------------------------------- both

/// `count` times `one`, [`AT_ONCE`] at a time.
async fn each<F: Future<Output = ()> + Send + 'static>(count: usize, one: impl Fn() -> F) {
    let mut running = JoinSet::new();
    for _ in 0..count {
        if running.len() == AT_ONCE {
            running.join_next().await.expect("some run").expect("no panic");
        }
        running.spawn(one());
    }
    running.join_all().await;
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("1,000 small streams, 100 at once");
    group.throughput(Throughput::Elements(STREAMS as u64));
    group.bench_function("uniroute", |b| b.iter(|| runtime().block_on(our_requests())));
    group.bench_function("yamux crate", |b| b.iter(|| runtime().block_on(their_requests())));
    group.finish();
}

fn bulk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("64 MiB on one stream");
    group.throughput(Throughput::Bytes(BULK as u64));
    group.sample_size(10);
    for (name, from_agent) in [("uniroute, edge sends", false), ("uniroute, agent sends", true)] {
        group.bench_function(name, |b| b.iter(|| runtime().block_on(our_bulk(from_agent))));
    }
    group.bench_function("yamux crate", |b| b.iter(|| runtime().block_on(their_bulk())));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(4)).warm_up_time(Duration::from_secs(1));
    targets = requests, bulk
}
criterion_main!(benches);
