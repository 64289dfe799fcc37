//! A link between two ends on this machine: every byte arrives `delay` after it was sent, no more than `rate` bytes a
//! second pass in each direction, and no more than the link holds are on their way. A sender that is faster has to
//! wait, as on a real one.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::output;

/// What one read takes at most.
const PIECE: usize = 16 * 1024;

#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The other end
    #[arg(long)]
    to: SocketAddr,
    /// One way, in milliseconds
    #[arg(long, default_value_t = 20)]
    delay_ms: u64,
    /// Each way, in millions of bits a second
    #[arg(long, default_value_t = 400)]
    mbit: u64,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    output::line(format_args!("listening {}", listener.local_addr()?));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("accept")?;
                connections.spawn(connect(stream, args));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connect(near: TcpStream, args: Args) -> anyhow::Result<()> {
    let far = TcpStream::connect(args.to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::try_join!(direction(near_read, far_write, args), direction(far_read, near_write, args))?;
    Ok(())
}

async fn direction(from: OwnedReadHalf, to: OwnedWriteHalf, args: Args) -> anyhow::Result<()> {
    let rate = args.mbit * 1_000_000 / 8;
    let held = usize::try_from(rate * args.delay_ms / 1_000 / PIECE as u64)?.max(4);
    let (sender, receiver) = mpsc::channel(held * 2);
    tokio::try_join!(take(from, sender, rate, args.delay_ms), give(to, receiver))?;
    Ok(())
}

/// Reads no faster than the link's rate, and stamps each piece with the time of its arrival.
async fn take(
    mut from: OwnedReadHalf,
    to: mpsc::Sender<(Instant, Bytes)>,
    rate: u64,
    delay_ms: u64,
) -> anyhow::Result<()> {
    let mut free_at = Instant::now();
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        let read = from.read_buf(&mut (&mut buffer).limit(PIECE)).await?;
        let now = Instant::now();
        free_at = free_at.max(now) + Duration::from_nanos(read as u64 * 1_000_000_000 / rate);
        let arrives = free_at + Duration::from_millis(delay_ms);
        to.send((arrives, buffer.split().freeze())).await?;
        if read == 0 {
            return Ok(());
        }
        // Timers tick in milliseconds: shorter debts are paid together.
        if free_at > now + Duration::from_millis(2) {
            sleep_until(free_at).await;
        }
    }
}

async fn give(
    mut to: OwnedWriteHalf,
    mut from: mpsc::Receiver<(Instant, Bytes)>,
) -> anyhow::Result<()> {
    while let Some((arrives, bytes)) = from.recv().await {
        sleep_until(arrives).await;
        if bytes.is_empty() {
            to.shutdown().await?;
            return Ok(());
        }
        to.write_all(&bytes).await?;
    }
    Ok(())
}
