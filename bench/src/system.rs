//! A measured system: where to send requests, and the processes in the middle that do the work.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use crate::body::Repeat;
use crate::client::{Connection, Target};
use crate::process::Child;
use crate::procfs::{self, Memory};
use crate::scenario::Kind;
use crate::table::Column;

const READY: Duration = Duration::from_secs(10);

pub(crate) struct System {
    pub(crate) name: &'static str,
    /// The system that its figures are compared with.
    pub(crate) base: Option<&'static str>,
    pub(crate) target: Target,
    /// The network namespace that its visitors are in, if not ours.
    pub(crate) namespace: Option<String>,
    /// The visitors' side first; none when requests go straight to the origin.
    pub(crate) middle: Vec<Child>,
    /// Ends TLS before the visitors' side, which cannot do it itself; its work is reported apart.
    pub(crate) terminator: Option<Child>,
    /// What it is not measured with.
    pub(crate) skips: &'static [Kind],
    /// A slow one moves a part of the bytes that the others move.
    pub(crate) bulk_divisor: u64,
}

/// Children's included.
pub(crate) struct CpuTime {
    pub(crate) all: Duration,
    pub(crate) terminator: Duration,
}

impl System {
    /// With nothing special about it.
    pub(crate) fn new(
        name: &'static str,
        base: Option<&'static str>,
        target: Target,
        middle: Vec<Child>,
    ) -> Self {
        Self {
            name,
            base,
            target,
            namespace: None,
            middle,
            terminator: None,
            skips: &[],
            bulk_divisor: 1,
        }
    }

    pub(crate) fn column(&self) -> Column {
        Column { system: self.name, base: self.base }
    }

    /// The run time of all processes in the middle.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<CpuTime> {
        let of = |children: &[Child]| children.iter().map(family_cpu_time).sum();
        let middle: anyhow::Result<Duration> = of(&self.middle);
        let terminator = of(self.terminator.as_slice())?;
        Ok(CpuTime { all: middle? + terminator, terminator })
    }

    /// Of each process in the middle, with its children.
    pub(crate) fn memory(&self) -> anyhow::Result<Vec<Memory>> {
        self.middle
            .iter()
            .map(|child| procfs::family(child.pid())?.into_iter().map(procfs::memory).sum())
            .collect()
    }

    /// Fails if a process in the middle has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.middle.iter_mut().chain(&mut self.terminator).try_for_each(Child::check)
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        // The home side first, so that it does not look for the other in vain.
        for child in self.middle.into_iter().rev().chain(self.terminator) {
            child.stop().await?;
        }
        Ok(())
    }

    /// Waits until a small request gets through to the origin.
    pub(crate) async fn wait_until_answering(&mut self) -> anyhow::Result<()> {
        let end = Instant::now() + READY;
        loop {
            self.check()?;
            match self.try_once().await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > end => {
                    return Err(error).with_context(|| format!("{} does not answer", self.name));
                }
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn try_once(&self) -> anyhow::Result<()> {
        let mut connection = Connection::open(&self.target).await?;
        let len = connection.exchange(http::Method::GET, "/1k", Repeat::empty()).await?;
        anyhow::ensure!(len == 1024, "/1k answered {len} bytes");
        Ok(())
    }
}

fn family_cpu_time(child: &Child) -> anyhow::Result<Duration> {
    let family = procfs::family(child.pid())?.into_iter().map(procfs::cpu_time);
    family.sum::<anyhow::Result<Duration>>().with_context(|| format!("{} is gone", child.name()))
}
