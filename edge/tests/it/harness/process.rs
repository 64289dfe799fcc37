//! The two programs themselves.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};

use super::{eventually, within};

/// `uniroute-edge`, without the environment of whoever runs the tests.
pub(crate) fn edge(home: &Path) -> Command {
    command(&ours("uniroute-edge"), home)
}

/// `uniroute`, likewise.
pub(crate) fn agent(home: &Path) -> Command {
    command(&ours("uniroute"), home)
}

/// One of our programs, beside this one. It may be of another package, so it has to be there already.
fn ours(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let folder = tests.parent().and_then(Path::parent).unwrap();
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is missing: `cargo build --workspace --bins` makes it",
        program.display(),
    );
    program
}

/// Any program, without the environment of whoever runs the tests.
pub(crate) fn command(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", home).current_dir(home);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A program that runs; killed with its value.
pub(crate) struct Process {
    child: Child,
    out: Arc<Mutex<Vec<String>>>,
    err: Arc<Mutex<Vec<String>>>,
    readers: [JoinHandle<()>; 2],
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (out, err) = (Arc::default(), Arc::default());
        let readers = [
            tokio::spawn(read_lines(child.stdout.take().unwrap(), Arc::clone(&out))),
            tokio::spawn(read_lines(child.stderr.take().unwrap(), Arc::clone(&err))),
        ];
        Self { child, out, err, readers }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Writes a line to a standard input that is piped, and closes it.
    pub(crate) async fn tell(&mut self, line: &str) {
        let mut input = self.child.stdin.take().unwrap();
        input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// The first line on standard output with `text` in it.
    pub(crate) async fn out_line(&self, text: &str) -> String {
        self.line(&self.out, text).await
    }

    /// The first line on standard error with `text` in it.
    pub(crate) async fn err_line(&self, text: &str) -> String {
        self.line(&self.err, text).await
    }

    /// All lines on standard error up to now.
    pub(crate) fn err_lines(&self) -> Vec<String> {
        self.err.lock().clone()
    }

    async fn line(&self, lines: &Mutex<Vec<String>>, text: &str) -> String {
        let what = format!("a line with {text:?}");
        eventually(&what, async || {
            let found = lines.lock().iter().find(|line| line.contains(text)).cloned();
            if found.is_none() && self.readers.iter().all(JoinHandle::is_finished) {
                panic!("no {what}: {:?} {:?}", self.out.lock(), self.err.lock());
            }
            found
        })
        .await
    }

    /// Sends a signal such as `TERM`.
    pub(crate) async fn signal(&self, name: &str) {
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.id())).status();
        assert!(sent.await.unwrap().success());
    }

    /// Ends it at once, without a word from it.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn ended(self) -> impl Future<Output = Ended> {
        within("the program ends", self.end())
    }

    /// The same for one that takes longer than others.
    pub(crate) async fn ended_within(self, bound: Duration) -> Ended {
        let ended = tokio::time::timeout(bound, self.end()).await;
        ended.unwrap_or_else(|_| panic!("the program has not ended within {bound:?}"))
    }

    async fn end(self) -> Ended {
        let Self { mut child, out, err, readers } = self;
        let code = child.wait().await.unwrap().code();
        for reader in readers {
            reader.await.unwrap();
        }
        let text = |lines: &Mutex<Vec<String>>| lines.lock().join("\n");
        Ended { code, out: text(&out), err: text(&err) }
    }
}

/// Runs a program to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> impl Future<Output = Ended> {
    Process::start(command).ended()
}

/// The same for one that takes longer than others.
pub(crate) async fn run_within(command: &mut Command, bound: Duration) -> Ended {
    Process::start(command).ended_within(bound).await
}

async fn read_lines(from: impl AsyncRead + Unpin, into: Arc<Mutex<Vec<String>>>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        into.lock().push(line);
    }
}
