//! Connections to an edge, one by one: where each leads, what it has carried, and an end for each.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// Forwards connections.
pub(crate) struct Ways {
    pub(crate) address: SocketAddr,
    ways: Arc<Mutex<Vec<Arc<Way>>>>,
    task: JoinHandle<()>,
}

/// One of them.
#[derive(Default)]
pub(crate) struct Way {
    carried: AtomicU64,
    cut: CancellationToken,
}

impl Drop for Ways {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ways {
    /// `to`: where the connection with this number leads, from 0.
    pub(crate) async fn start(to: impl Fn(usize) -> SocketAddr + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ways = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&ways);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            for number in 0.. {
                let (near, _) = listener.accept().await.unwrap();
                let way = Arc::new(Way::default());
                all.lock().push(Arc::clone(&way));
                open.spawn(forward(near, to(number), way));
            }
        });
        Self { address, ways, task }
    }

    /// Connections so far.
    pub(crate) fn count(&self) -> usize {
        self.ways.lock().len()
    }

    pub(crate) fn way(&self, number: usize) -> Arc<Way> {
        Arc::clone(&self.ways.lock()[number])
    }
}

impl Way {
    /// Bytes so far, both ways.
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    pub(crate) fn cut(&self) {
        self.cut.cancel();
    }
}

async fn forward(near: TcpStream, to: SocketAddr, way: Arc<Way>) {
    let Ok(far) = TcpStream::connect(to).await else { return };
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    tokio::select! {
        _ = async { tokio::join!(pump(near_read, far_write, &way), pump(far_read, near_write, &way)) } => {}
        () = way.cut.cancelled() => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: &Way) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        way.carried.fetch_add(read as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
