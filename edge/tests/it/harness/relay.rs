//! A UDP network in between, in user space: it loses datagrams, every so many, or all of them.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::{net::UdpSocket, task::JoinSet};

/// Loses everything.
const DEAD: u32 = 1;
/// Longest datagram.
const LONGEST: usize = 65_536;

/// Forwards datagrams to one address and back; gone with its value.
pub(crate) struct Relay {
    loss: Arc<AtomicU32>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// Listens at `at`.
    pub(crate) async fn start(at: SocketAddr, to: SocketAddr) -> Self {
        let socket = Arc::new(UdpSocket::bind(at).await.unwrap());
        let loss = Arc::new(AtomicU32::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(socket, to, Arc::clone(&loss)));
        Self { loss, _tasks: tasks }
    }

    /// From now on one of `every` datagrams is lost; 0: none.
    pub(crate) fn lose(&self, every: u32) {
        assert!(every != DEAD);
        self.loss.store(every, Ordering::Relaxed);
    }

    /// From now on nothing passes.
    pub(crate) fn black_hole(&self) {
        self.loss.store(DEAD, Ordering::Relaxed);
    }
}

fn lost(loss: &AtomicU32, count: &mut u32) -> bool {
    *count = count.wrapping_add(1);
    let every = loss.load(Ordering::Relaxed);
    every != 0 && count.is_multiple_of(every)
}

async fn forward(near: Arc<UdpSocket>, to: SocketAddr, loss: Arc<AtomicU32>) {
    let mut far: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut backs = JoinSet::new();
    let (mut buffer, mut count) = (vec![0; LONGEST], 0);
    loop {
        let Ok((length, client)) = near.recv_from(&mut buffer).await else { continue };
        let socket = match far.entry(client) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                socket.connect(to).await.unwrap();
                let back = back(Arc::clone(&socket), Arc::clone(&near), client, Arc::clone(&loss));
                backs.spawn(back);
                new.insert(socket)
            }
        };
        if !lost(&loss, &mut count) {
            let _ = socket.send(&buffer[..length]).await;
        }
    }
}

async fn back(far: Arc<UdpSocket>, near: Arc<UdpSocket>, client: SocketAddr, loss: Arc<AtomicU32>) {
    let (mut buffer, mut count) = (vec![0; LONGEST], 0);
    loop {
        // An error is only news of a datagram that found nobody.
        let Ok(length) = far.recv(&mut buffer).await else { continue };
        if !lost(&loss, &mut count) {
            let _ = near.send_to(&buffer[..length], client).await;
        }
    }
}
