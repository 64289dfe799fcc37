//! A measured system: where to send requests, and the processes in the middle that do the work.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use crate::body::Repeat;
use crate::client::{Connection, Target};
use crate::process::Child;
use crate::procfs::{self, Memory};

const READY: Duration = Duration::from_secs(10);

pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    /// The network namespace that its visitors are in, if not ours.
    pub(crate) namespace: Option<String>,
    /// None when requests go straight to the origin.
    pub(crate) middle: Vec<Child>,
}

pub(crate) struct ProcessMemory {
    pub(crate) process: String,
    pub(crate) memory: Memory,
}

impl System {
    /// The run time of all processes in the middle, their children included.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut sum = Duration::ZERO;
        for child in &self.middle {
            for pid in procfs::family(child.pid())? {
                sum +=
                    procfs::cpu_time(pid).with_context(|| format!("{} is gone", child.name()))?;
            }
        }
        Ok(sum)
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Vec<ProcessMemory>> {
        let mut all = Vec::new();
        for child in &self.middle {
            for (index, pid) in procfs::family(child.pid())?.into_iter().enumerate() {
                let process = match index {
                    0 => child.name().to_owned(),
                    index => format!("{} worker {index}", child.name()),
                };
                all.push(ProcessMemory { process, memory: procfs::memory(pid)? });
            }
        }
        Ok(all)
    }

    /// Fails if a process in the middle has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.middle.iter_mut().try_for_each(Child::check)
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
