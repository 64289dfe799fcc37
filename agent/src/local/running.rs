//! The agents that run on this machine under one state folder, so that `uniroute status` and
//! `uniroute inspect` find them: a file for each, which is locked while its agent lives.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Of the state folder.
const FOLDER: &str = "agents";
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

/// An agent's file; gone with its value.
#[derive(Debug)]
pub struct Registration {
    path: PathBuf,
    /// Its lock says that the agent lives.
    _file: File,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // What stays is found to be stale.
        let _ = fs::remove_file(&self.path);
    }
}

/// Lets others find this agent while the value lives.
///
/// # Errors
/// When the folder can't be written to.
pub fn register(state_dir: &Path, running: &Running) -> io::Result<Registration> {
    let folder = state_dir.join(FOLDER);
    make_private(&folder)?;
    let path = folder.join(format!("{}.json", running.pid));
    // Whoever looks meanwhile sees all of it, locked, or nothing.
    let unfinished = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&unfinished)?;
    file.try_lock().map_err(io::Error::from)?;
    file.write_all(&serde_json::to_vec(running)?)?;
    fs::rename(&unfinished, &path)?;
    Ok(Registration { path, _file: file })
}

/// The agents that run, the youngest last. Files of those that are gone are taken away.
#[must_use]
pub fn find(state_dir: &Path) -> Vec<Running> {
    let Ok(entries) = fs::read_dir(state_dir.join(FOLDER)) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let files = paths.filter(|path| path.extension().is_some_and(|kind| kind == "json"));
    let mut all: Vec<Running> = files.filter_map(|path| look(&path)).collect();
    all.sort_by_key(|running| (running.started_ms, running.pid));
    all
}

fn look(path: &Path) -> Option<Running> {
    let file = File::open(path).ok()?;
    match file.try_lock_shared() {
        Err(fs::TryLockError::WouldBlock) => {}
        Ok(()) => {
            let _ = fs::remove_file(path);
            return None;
        }
        // It can't be told here: better one too many than one too few.
        Err(fs::TryLockError::Error(_)) => {}
    }
    if file.metadata().ok()?.len() > MAX_FILE {
        return None;
    }
    serde_json::from_reader(file).ok()
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
        let mode = fs::metadata(&registration.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
