//! The config file, read again while the agent runs: when it has changed, on SIGHUP, and when the local
//! API asks for it. What can't be used changes nothing, and is said.

use std::{fs::Metadata, path::Path, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};
use uniroute_agent::{Applied, Handle};

use crate::config::{Selection, identity::Identity};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Requests for a reload that wait for the one that is under way.
const WAITING: usize = 8;

/// What a reload has brought; in words why it brought nothing.
pub(crate) type Reloaded = Result<Applied, String>;

/// Asks for a reload.
#[derive(Clone, Debug)]
pub(crate) struct Asker(mpsc::Sender<oneshot::Sender<Reloaded>>);

impl Asker {
    /// Reads the file now. Blocks the thread until that is done.
    pub(crate) fn reload(&self) -> Reloaded {
        let (answer, answered) = oneshot::channel();
        let over = || "the agent is ending".to_owned();
        self.0.blocking_send(answer).map_err(|_| over())?;
        answered.blocking_recv().map_err(|_| over())?
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Reloader {
    selection: Arc<Selection>,
    handle: Handle,
    identity: Arc<Identity>,
    asked: mpsc::Receiver<oneshot::Sender<Reloaded>>,
}

impl Reloader {
    pub(crate) fn new(
        selection: Selection,
        handle: Handle,
        identity: Arc<Identity>,
    ) -> (Self, Asker) {
        let (asker, asked) = mpsc::channel(WAITING);
        (Self { selection: Arc::new(selection), handle, identity, asked }, Asker(asker))
    }

    /// For ever. `begins` and `ended` hear of each reload.
    pub(crate) async fn run(mut self, begins: impl Fn(), ended: impl Fn(&Reloaded)) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hangup = Hangup::new();
        let path = self.selection.path.clone();
        let (mut read, mut seen) = (Stamp::of(&path), Stamp::of(&path));
        loop {
            let answer = tokio::select! {
                _ = look.tick() => {
                    let now = Stamp::of(&path);
                    // A file that is still being written has another time at the next look.
                    let settled = now == std::mem::replace(&mut seen, now);
                    if !settled || now == read || now == Stamp(None) {
                        continue;
                    }
                    None
                }
                () = hangup.next() => None,
                Some(answer) = self.asked.recv() => Some(answer),
            };
            begins();
            // Before it is read: what is written meanwhile is read once more.
            read = Stamp::of(&path);
            let reloaded = self.reload().await;
            match &reloaded {
                Ok(Applied { added, changed, removed, unchanged }) => {
                    info!(?added, ?changed, ?removed, unchanged, "the config file was read again");
                }
                Err(why) => warn!("the config file can't be used, and nothing is changed: {why}"),
            }
            ended(&reloaded);
            if let Some(answer) = answer {
                // Who asked may have gone.
                let _ = answer.send(reloaded);
            }
        }
    }

    async fn reload(&self) -> Reloaded {
        let selection = Arc::clone(&self.selection);
        // Reads files, and hashes passwords for a good while.
        let loaded = tokio::task::spawn_blocking(move || selection.load_any()).await;
        let (_, tunnels) = loaded.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        // Before anything is asked for: a crash in between must not lose names.
        self.identity.serves(&tunnels);
        self.handle.apply(tunnels).map_err(|error| error.to_string())
    }
}

/// What shows that a file was written, or another one put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(Option<(std::time::SystemTime, u64, u64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        let stamp = |file: Metadata| Some((file.modified().ok()?, file.len(), inode(&file)));
        Self(std::fs::metadata(path).ok().and_then(stamp))
    }
}

#[cfg(unix)]
fn inode(file: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[cfg(not(unix))]
fn inode(_file: &Metadata) -> u64 {
    0
}

/// SIGHUP, where there is one.
struct Hangup {
    #[cfg(unix)]
    signal: Option<tokio::signal::unix::Signal>,
}

impl Hangup {
    #[cfg(unix)]
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let signal = signal(SignalKind::hangup());
        Self { signal: signal.inspect_err(|error| warn!(%error, "no SIGHUP")).ok() }
    }

    #[cfg(not(unix))]
    fn new() -> Self {
        Self {}
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.signal
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}
