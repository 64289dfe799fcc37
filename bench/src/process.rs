//! Child processes: started with their output in files, waited for by what they print, ended by their id.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::procfs;

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);
/// How long a process may take to end by itself once asked.
const END: Duration = Duration::from_secs(10);
/// Lines of a log shown with an error.
const TAIL: usize = 20;

/// Dropping it kills the process and its children at once; `stop` asks first.
pub(crate) struct Child {
    name: String,
    /// Sent when it is dropped.
    last: Signal,
    child: tokio::process::Child,
    pid: u32,
    ended: bool,
    log: PathBuf,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

impl Child {
    /// Starts a process whose output goes to `NAME.out` and `NAME.err` in `dir`, its working directory.
    pub(crate) fn start(name: &str, dir: &Path, command: Command) -> anyhow::Result<Self> {
        Self::start_with(name, dir, command, Signal::KILL)
    }

    /// For a process that has something to take back: dropping this only asks it to end.
    pub(crate) fn start_gently(name: &str, dir: &Path, command: Command) -> anyhow::Result<Self> {
        Self::start_with(name, dir, command, Signal::TERM)
    }

    fn start_with(
        name: &str,
        dir: &Path,
        mut command: Command,
        last: Signal,
    ) -> anyhow::Result<Self> {
        let log = dir.join(name);
        // Settings of the caller's own tunnels must not change what is measured.
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("UNIROUTE_") && !is_set(&command, &key) {
                command.env_remove(key);
            }
        }
        let child = command
            .current_dir(dir)
            .env("HOME", dir)
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::null())
            .stdout(File::create(log.with_extension("out"))?)
            .stderr(File::create(log.with_extension("err"))?)
            .kill_on_drop(last == Signal::KILL)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let pid = child.id().context("a new process has an id")?;
        Ok(Self { name: name.to_owned(), last, child, pid, ended: false, log })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until a line of the output is what `find` looks for.
    pub(crate) async fn wait_for_line<T>(
        &mut self,
        output: Output,
        bound: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> anyhow::Result<T> {
        let end = Instant::now() + bound;
        loop {
            // Asked before the output is read, so that a last line is not missed.
            let ended = self.child.try_wait()?;
            let text = self.output(output)?;
            let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some(found) = whole.lines().find_map(&find) {
                return Ok(found);
            }
            if let Some(status) = ended {
                self.ended = true;
                bail!("{} ended ({status}) before it was ready\n{}", self.name, self.tail());
            }
            if Instant::now() > end {
                bail!("{} was not ready within {bound:?}\n{}", self.name, self.tail());
            }
            sleep(POLL).await;
        }
    }

    /// Waits for the process to end well, and answers with its standard output.
    pub(crate) async fn finish(mut self, bound: Duration) -> anyhow::Result<String> {
        let Ok(status) = timeout(bound, self.child.wait()).await else {
            bail!("{} did not end within {bound:?}\n{}", self.name, self.tail());
        };
        let status = status?;
        self.ended = true;
        if !status.success() {
            bail!("{} failed: {status}\n{}", self.name, self.tail());
        }
        self.output(Output::Stdout)
    }

    /// SIGTERM, then `finish`.
    pub(crate) async fn terminate(self) -> anyhow::Result<String> {
        send(self.pid, Signal::TERM);
        self.finish(END).await
    }

    /// SIGTERM and a bounded wait; what is left is killed. A process that has ended already is an error.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.check()?;
        send(self.pid, Signal::TERM);
        self.ended = timeout(END, self.child.wait()).await.is_ok();
        Ok(())
    }

    /// Fails, with the end of its log, if the process has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            self.ended = true;
            bail!("{} ended by itself: {status}\n{}", self.name, self.tail());
        }
        Ok(())
    }

    fn output(&self, output: Output) -> anyhow::Result<String> {
        let path = self.log.with_extension(match output {
            Output::Stdout => "out",
            Output::Stderr => "err",
        });
        let bytes = fs::read(&path).with_context(|| format!("output of {}", self.name))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn tail(&self) -> String {
        let mut text = String::new();
        for output in [Output::Stdout, Output::Stderr] {
            let log = self.output(output).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(TAIL)..] {
                text.push_str(&format!("  {}: {line}\n", self.name));
            }
        }
        text
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // An ended process has been reaped, and its id may belong to another by now.
        if !self.ended {
            for pid in procfs::family(self.pid).unwrap_or_else(|_| vec![self.pid]) {
                send(pid, self.last);
            }
        }
    }
}

/// Lets this process and its children open as many files as they may: the usual limit is 1,024.
pub(crate) fn raise_open_files() -> anyhow::Result<u64> {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum })?;
    Ok(limits.maximum.unwrap_or(u64::MAX))
}

/// A process that is already gone needs no signal.
fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn is_set(command: &Command, key: &std::ffi::OsStr) -> bool {
    command.as_std().get_envs().any(|(name, value)| name == key && value.is_some())
}
