//! A closed loop over WebSockets: each connection sends its next message when the last one has come back.

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use super::TargetArgs;
use super::requests::{GRACE, Tally};
use crate::client::Target;
use crate::report::RequestsReport;

/// As long as a line of a chat.
const TEXT: &str = "0123456789abcdef0123456789abcdef";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

pub(super) async fn run(args: Args) -> anyhow::Result<RequestsReport> {
    let target = args.target.target()?;
    let end = Instant::now() + Duration::try_from_secs_f64(args.seconds)?;
    let mut workers = JoinSet::new();
    for _ in 0..args.connections {
        workers.spawn(worker(target.clone(), end));
    }
    let mut all = Tally::default();
    for tally in workers.join_all().await {
        all.merge(tally);
    }
    Ok(all.report(args.seconds))
}

async fn worker(target: Target, end: Instant) -> Tally {
    let mut tally = Tally::default();
    match timeout_at(end + GRACE, messages(&target, end, &mut tally)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tally.error(format_args!("{error:#}")),
        Err(_) => tally.error("a message did not come back in time"),
    }
    tally
}

async fn messages(target: &Target, end: Instant, tally: &mut Tally) -> anyhow::Result<()> {
    let stream = TcpStream::connect(&target.address).await?;
    stream.set_nodelay(true)?;
    let (mut socket, _) = client_async(format!("ws://{}/echo", target.host), stream).await?;
    // Text and binary in turn: a middle that reads the frames has to keep the difference.
    let mut kinds = [Message::text(TEXT), Message::binary(TEXT.as_bytes())].into_iter().cycle();
    while Instant::now() < end {
        let message = kinds.next().context("a cycle has no end")?;
        let start = Instant::now();
        socket.send(message.clone()).await?;
        let back = socket.next().await.context("the connection ended")??;
        if back != message {
            bail!("{message:?} came back as {back:?}");
        }
        tally.answered(start, end);
    }
    socket.close(None).await?;
    Ok(())
}
