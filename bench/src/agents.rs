//! Many idle agents in one process, to see what one costs an edge.

use std::path::PathBuf;

use anyhow::{Context, bail};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uniroute_agent::{Agent, Event, Settings, TunnelSettings};
use uniroute_shared::id::Token;

use crate::output;

/// Agents that connect at the same time.
const AT_ONCE: usize = 50;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// URL of the edge
    #[arg(long)]
    server: String,
    /// File with the token
    #[arg(long)]
    token_file: PathBuf,
    #[arg(long, default_value_t = 1_000)]
    count: usize,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let token = std::fs::read_to_string(&args.token_file).context("the token file")?;
    let stop = CancellationToken::new();
    let mut running = JoinSet::new();
    for batch in (0..args.count).step_by(AT_ONCE) {
        let mut listeners = Vec::new();
        for _ in batch..args.count.min(batch + AT_ONCE) {
            let tunnel = TunnelSettings::http("idle", "9".parse()?);
            let mut settings =
                Settings::new(args.server.parse()?, Token::parse(token.trim())?, vec![tunnel]);
            settings.fail_fast = true;
            let (agent, events) = Agent::new(settings)?;
            running.spawn(agent.run(stop.clone()));
            listeners.push(events);
        }
        for events in &mut listeners {
            loop {
                match events.recv().await.context("an agent ended")? {
                    Event::Ready { .. } => break,
                    Event::Refused { message, .. } => bail!("refused: {message}"),
                    _ => {}
                }
            }
        }
    }
    output::line(format_args!("ready {}", args.count));
    match running.join_next().await {
        Some(ended) => Ok(ended??),
        None => Ok(()),
    }
}
