//! What the kernel says about other processes.

use std::fs;
use std::iter::Sum;
use std::time::Duration;

use anyhow::Context;

/// A process and everything below it, the process first.
pub(crate) fn family(pid: u32) -> anyhow::Result<Vec<u32>> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid).ok()?.parent)))
        .collect();
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    Ok(family)
}

/// The time that a process has run on a core. The scheduler's nanoseconds of all living threads where the kernel
/// counts them, which leaves out threads that have ended; else the coarser clock ticks.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    match threads_cpu_time(pid) {
        Ok(time) => Ok(time),
        Err(_) => Ok(stat(pid)?.cpu_time),
    }
}

/// Resident memory in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) peak: u64,
}

impl Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        let none = Self { now: 0, peak: 0 };
        all.fold(none, |sum, one| Self { now: sum.now + one.now, peak: sum.peak + one.peak })
    }
}

pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("{path}: no {name}"))
    };
    Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
}

/// Kernel, processor and number of cores, for a report's head.
pub(crate) fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = model.trim_start_matches([' ', '\t', ':']);
    format!("{cores} x {model}, Linux {}", kernel.trim())
}

fn threads_cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the two reads; that it was counted before is acceptable.
        if let Ok(schedstat) = fs::read_to_string(thread?.path().join("schedstat")) {
            let run: u64 = schedstat.split(' ').next().unwrap_or_default().parse()?;
            nanos += run;
        }
    }
    anyhow::ensure!(nanos > 0, "no scheduler statistics");
    Ok(Duration::from_nanos(nanos))
}

struct Stat {
    parent: u32,
    cpu_time: Duration,
}

fn stat(pid: u32) -> anyhow::Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    parse_stat(&stat, rustix::param::clock_ticks_per_second()).with_context(|| path)
}

/// The name in parentheses may hold anything, so fields are counted from its end.
fn parse_stat(stat: &str, ticks_per_second: u64) -> Option<Stat> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    Some(Stat {
        parent: u32::try_from(number(1)?).ok()?,
        cpu_time: Duration::from_millis(ticks * 1000 / ticks_per_second),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_look_like_fields() {
        let line = "7 (a) R 1 (b) S 42 7 7 0 -1 4194560 1 2 0 0 250 50 0 0 20 0 1 0 9 1 1";
        let stat = parse_stat(line, 100).unwrap();
        assert_eq!((stat.parent, stat.cpu_time), (42, Duration::from_secs(3)));
    }

    #[test]
    fn this_process_has_run_and_holds_memory() {
        let pid = std::process::id();
        assert_eq!(family(pid).unwrap().first(), Some(&pid));
        assert!(cpu_time(pid).unwrap() > Duration::ZERO);
        let memory = memory(pid).unwrap();
        assert!(memory.now > 0 && memory.peak >= memory.now);
    }
}
