//! A network in between, in user space: it delays and limits each direction, and breaks on demand.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// What one read takes at most, in bytes.
const PIECE: usize = 16 * 1024;

/// How a link treats each direction of each connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nature {
    /// From one end to the other.
    pub(crate) delay: Duration,
    /// Bytes a second.
    pub(crate) rate: Option<f64>,
    /// Bytes that are on the way at most; when it is full, the sender waits.
    pub(crate) queue: usize,
}

impl Nature {
    pub(crate) const PLAIN: Self = Self { delay: Duration::ZERO, rate: None, queue: 1024 * 1024 };
}

/// Forwards connections to one address.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    breaks: Arc<Mutex<Breaks>>,
    task: JoinHandle<()>,
}

/// What connections from now on listen to.
#[derive(Default)]
struct Breaks {
    silence: CancellationToken,
    cut: CancellationToken,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    pub(crate) async fn start(to: SocketAddr, nature: Nature) -> Self {
        Self::start_at("127.0.0.1:0", to, nature).await
    }

    pub(crate) async fn start_at(at: &str, to: SocketAddr, nature: Nature) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let breaks = Arc::new(Mutex::new(Breaks::default()));
        let current = Arc::clone(&breaks);
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let (silence, cut) = {
                    let breaks = current.lock();
                    (breaks.silence.clone(), breaks.cut.clone())
                };
                tokio::spawn(forward(near, to, nature, silence, cut));
            }
        });
        Self { address, breaks, task }
    }

    /// From now on nothing passes on the connections that are open, and nobody is told. New ones
    /// work.
    pub(crate) fn black_hole(&self) {
        std::mem::take(&mut self.breaks.lock().silence).cancel();
    }

    /// Closes the connections that are open. New ones work.
    pub(crate) fn cut(&self) {
        std::mem::take(&mut self.breaks.lock().cut).cancel();
    }
}

async fn forward(
    near: TcpStream,
    to: SocketAddr,
    nature: Nature,
    silence: CancellationToken,
    cut: CancellationToken,
) {
    let Ok(far) = TcpStream::connect(to).await else { return };
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let pumps = async {
        tokio::join!(
            pump(near_read, far_write, nature, &silence),
            pump(far_read, near_write, nature, &silence),
        )
    };
    tokio::select! {
        _ = pumps => {}
        () = cut.cancelled() => {}
    }
}

/// One direction: what is read is written `delay` later, not faster than `rate`.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    nature: Nature,
    silence: &CancellationToken,
) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>((nature.queue / PIECE).max(1));
    let reading = async {
        let sender = sender;
        let mut free = Instant::now();
        loop {
            // Room first: what is read counts as on its way.
            let Ok(place) = sender.reserve().await else { return };
            let mut piece = BytesMut::with_capacity(PIECE);
            if !from.read_buf(&mut piece).await.is_ok_and(|read| read > 0) {
                return;
            }
            let now = Instant::now();
            if let Some(rate) = nature.rate {
                free = free.max(now) + Duration::from_secs_f64(piece.len() as f64 / rate);
            }
            place.send((free.max(now) + nature.delay, piece.freeze()));
        }
    };
    let writing = async {
        while let Some((due, piece)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    // Silent means that nobody is told: the connections stay open.
    tokio::select! {
        _ = async { tokio::join!(reading, writing) } => {}
        () = silence.cancelled() => std::future::pending().await,
    }
}
