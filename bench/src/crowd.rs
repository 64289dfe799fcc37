//! What many idle agents cost an edge, and how fast they connect. An edge of its own: what others did before would
//! show in its memory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::time::sleep;

use crate::process::{Child, Output, raise_open_files};
use crate::procfs;
use crate::table::Results;
use crate::tunnel::{self, Edge};

/// Those whose rate of connecting is measured.
const FIRST: u64 = 1_000;
/// Files that an edge or a crowd has open for other things.
const OTHER_FILES: u64 = 200;
const READY: Duration = Duration::from_secs(60);
/// Until what connecting took has been given back.
const REST: Duration = Duration::from_secs(2);

/// `wanted` agents, or as many as files may be open.
pub(crate) async fn measure(
    args: &tunnel::Args,
    program: &Path,
    dir: &Path,
    wanted: u64,
    results: &mut Results,
) -> anyhow::Result<()> {
    let count = wanted.min(raise_open_files()?.saturating_sub(OTHER_FILES));
    let dir = dir.join("crowd");
    fs::create_dir(&dir)?;
    let mut edge = Edge::start(args, None, tunnel::LOOPBACK, &dir).await?;
    let memory = |edge: &Edge| Ok::<_, anyhow::Error>(procfs::memory(edge.process.pid())?.now);

    let before = memory(&edge)?;
    let mut crowds = Vec::new();
    let mut all = 0.0;
    for (index, size) in [FIRST.min(count), count.saturating_sub(FIRST)].into_iter().enumerate() {
        if size > 0 {
            let (crowd, seconds) = connect(program, &edge, size, index, &dir).await?;
            crowds.push(crowd);
            all += seconds;
            if index == 0 {
                let metric = format!("agents/s while the first {size} connect");
                let name = scenario(count);
                results.record(&name, &metric, tunnel::NAME, size as f64 / seconds);
            }
        }
    }
    sleep(REST).await;
    edge.process.check()?;
    let each = memory(&edge)?.saturating_sub(before) as f64 / count as f64;
    results.record(&scenario(count), "s until all are connected", tunnel::NAME, all);
    results.record(&scenario(count), "KiB at the edge, each", tunnel::NAME, each);
    for crowd in crowds {
        crowd.stop().await?;
    }
    edge.process.stop().await
}

fn scenario(count: u64) -> String {
    format!("{count} idle agents")
}

/// A process with `size` agents, and the seconds until all of them were ready.
async fn connect(
    program: &Path,
    edge: &Edge,
    size: u64,
    index: usize,
    dir: &Path,
) -> anyhow::Result<(Child, f64)> {
    let mut command = Command::new(program);
    command
        .args(["agents", "--server", &format!("http://{}", edge.address)])
        .args(["--count", &size.to_string(), "--token-file"])
        .arg(&edge.token_file);
    let mut crowd = Child::start(&format!("crowd-{index}"), dir, command)?;
    let seconds = |line: &str| {
        let taken = line.strip_prefix(&format!("ready {size} in "))?;
        taken.strip_suffix(" s")?.parse().ok()
    };
    let seconds =
        crowd.wait_for_line(Output::Stdout, READY, seconds).await.context("a crowd of agents")?;
    Ok((crowd, seconds))
}
