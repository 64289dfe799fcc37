//! The agents that run on this machine under one state folder, so that `uniroute status` and
//! `uniroute inspect` find them: a file for each, and another one that is locked while its agent lives.
//! There are two because on Windows nobody reads a file that another program has locked.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Of the state folder.
const FOLDER: &str = "agents";
/// What an agent says of itself is in `PID.json`, its lock in `PID.lock`.
const KIND: &str = "json";
const LOCK: &str = "lock";
/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// An agent that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// Where its local API is, such as `http://127.0.0.1:4040`; `None`: it has none.
    pub inspector: Option<String>,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// The config file that it runs with, if it has one.
    pub config: Option<PathBuf>,
    /// The local servers that it began with, so that people tell it from others.
    #[serde(default)]
    pub upstreams: Vec<String>,
}

impl Running {
    /// This process.
    #[must_use]
    pub fn this(inspector: Option<String>, config: Option<PathBuf>) -> Self {
        let started_ms = crate::status::now_ms();
        let upstreams = Vec::new();
        Self { pid: std::process::id(), inspector, started_ms, config, upstreams }
    }

    /// With the local servers that it begins with.
    #[must_use]
    pub fn serving(self, upstreams: Vec<String>) -> Self {
        Self { upstreams, ..self }
    }
}

/// An agent's files; gone with their value.
#[derive(Debug)]
pub struct Registration {
    path: PathBuf,
    /// Says that the agent lives.
    _lock: File,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // What stays is found to be stale.
        delete(&self.path);
    }
}

/// Lets others find this agent while the value lives.
///
/// # Errors
/// When the folder can't be written to.
pub fn register(state_dir: &Path, running: &Running) -> io::Result<Registration> {
    let folder = state_dir.join(FOLDER);
    make_private(&folder)?;
    let path = folder.join(format!("{}.{KIND}", running.pid));
    let lock = private(&path.with_extension(LOCK))?;
    lock.try_lock().map_err(io::Error::from)?;
    // Whoever looks meanwhile sees all of it or nothing.
    let unfinished = path.with_extension("new");
    private(&unfinished)?.write_all(&serde_json::to_vec(running)?)?;
    fs::rename(&unfinished, &path)?;
    Ok(Registration { path, _lock: lock })
}

/// A file for this user only, with nothing in it.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The agents that run, the youngest last. Files of those that are gone are taken away.
#[must_use]
pub fn find(state_dir: &Path) -> Vec<Running> {
    let Ok(entries) = fs::read_dir(state_dir.join(FOLDER)) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let files = paths.filter(|path| path.extension().is_some_and(|kind| kind == KIND));
    let mut all: Vec<Running> = files.filter_map(|path| look(&path)).collect();
    all.sort_by_key(|running| (running.started_ms, running.pid));
    all
}

fn look(path: &Path) -> Option<Running> {
    if is_stale(&path.with_extension(LOCK)) {
        delete(path);
        return None;
    }
    let file = File::open(path).ok()?;
    if file.metadata().ok()?.len() > MAX_FILE {
        return None;
    }
    serde_json::from_reader(file).ok()
}

/// Whether nobody has the lock. Where that can't be told, better one agent too many than one too few.
fn is_stale(lock: &Path) -> bool {
    match File::open(lock) {
        Ok(file) => file.try_lock_shared().is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn delete(path: &Path) {
    // The lock goes last: without it, what is said of the agent is stale.
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(path.with_extension(LOCK));
}

/// A folder for this user only.
pub(crate) fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_found_while_it_lives() {
        let home = tempfile::tempdir().unwrap();
        assert!(find(home.path()).is_empty());
        let address = Some("http://127.0.0.1:4041".to_owned());
        let this = Running::this(address, Some("uniroute.toml".into()));
        let registration = register(home.path(), &this).unwrap();
        assert_eq!(find(home.path()), std::slice::from_ref(&this));
        assert_eq!(find(home.path()), std::slice::from_ref(&this));
        drop(registration);
        assert!(find(home.path()).is_empty());
        // One that had no time to clean up.
        let stale = home.path().join(FOLDER).join("1.json");
        fs::write(&stale, serde_json::to_vec(&this).unwrap()).unwrap();
        assert!(find(home.path()).is_empty() && !stale.exists());
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_can_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let registration = register(home.path(), &Running::this(None, None)).unwrap();
        for path in [&registration.path, &registration.path.with_extension(LOCK)] {
            let mode = fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{path:?}");
        }
    }
}
