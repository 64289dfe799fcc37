//! Which agent a process is, to its edge: an id that is kept in the state folder, so that an agent that
//! is started again takes its names back.
//!
//! Agents that run at once have an id each. An id's file is locked for as long as its agent runs, so
//! that the next one takes the next file; the kernel frees the lock of one that has crashed. A file
//! also tells which names its agent has asked for, until it has given them up: the edge keeps them for
//! that id, so an agent that wants one of them should be that one.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use uniroute_agent::TunnelSettings;
use uniroute_shared::id::AgentId;

/// Ids that are kept at most; agents that run beside so many others have one for that run only.
const MAX_KEPT: usize = 16;
/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Identity {
    id: AgentId,
    kept: Mutex<Option<Kept>>,
    trouble: Option<String>,
}

/// An id's file, which is this process's alone.
#[derive(Debug)]
struct Kept {
    file: File,
    id: AgentId,
    writable: bool,
    locked: bool,
}

/// What an agent that wants certain names finds in an id's file, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// The edge may keep one of the names for this id.
    Same,
    /// No name is kept for it.
    Free,
    /// It may keep others, whose agent may come back.
    Others,
}

impl Identity {
    /// An id that no other agent of this machine has now, for one that wants these tunnels.
    pub(crate) fn take(state_dir: &Path, wanted: &[TunnelSettings]) -> Self {
        let names = names(wanted);
        match Kept::find(state_dir, &names) {
            Ok(kept) => {
                let trouble = (!kept.locked).then(|| {
                    format!(
                        "files in {} can't be locked: agents with this state folder that run at once take each other's names. Give each one a folder of its own by --state-dir",
                        state_dir.display()
                    )
                });
                let identity = Self { id: kept.id.clone(), kept: Mutex::new(Some(kept)), trouble };
                identity.remember(&names);
                identity
            }
            Err(error) => {
                let trouble = format!(
                    "the agent's id can't be kept in {}: {error}. After a crash this agent gets its names back only after a while",
                    state_dir.display()
                );
                let (id, kept) = (AgentId::random(), Mutex::default());
                Self { id, kept, trouble: Some(trouble) }
            }
        }
    }

    pub(crate) fn id(&self) -> &AgentId {
        &self.id
    }

    /// What its owner should know.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The agent wants these tunnels from now on.
    pub(crate) fn serves(&self, tunnels: &[TunnelSettings]) {
        self.remember(&names(tunnels));
    }

    /// The agent gives up its names and makes no more sessions: the next one may have the id.
    pub(crate) fn release(&self) {
        self.remember(&[]);
        self.kept.lock().take();
    }

    fn remember(&self, names: &[String]) {
        let mut kept = self.kept.lock();
        let Some(kept) = kept.as_mut().filter(|kept| kept.writable) else { return };
        if let Err(error) = kept.write(names) {
            tracing::debug!(%error, "the names that the agent wants are not kept");
        }
    }
}

impl Kept {
    /// The file that fits best of those that no agent has.
    fn find(state_dir: &Path, names: &[String]) -> io::Result<Self> {
        // What can't be made shows with the files.
        let made = super::make_folder(state_dir);
        let mut places: Vec<_> = (1..=MAX_KEPT)
            .map(|number| path(state_dir, number))
            .map(|path| (fit(&path, names), path))
            .collect();
        places.sort_by_key(|(fit, _)| *fit);
        let mut failed = made.err();
        for (_, path) in places {
            match Self::lock(&path) {
                Ok(Some(kept)) => return Ok(kept),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        let many = || io::Error::other(format!("{MAX_KEPT} agents run with it already"));
        Err(failed.unwrap_or_else(many))
    }

    /// `None`: another agent has it.
    fn lock(path: &Path) -> io::Result<Option<Self>> {
        let (file, writable) = open(path)?;
        let locked = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => return Ok(None),
            // Some disks of networks have no locks.
            Err(TryLockError::Error(_)) => false,
        };
        let text = read(&file)?;
        match AgentId::parse(text.lines().next().unwrap_or_default().trim()) {
            Ok(id) => Ok(Some(Self { file, id, writable, locked })),
            Err(error) if !writable => Err(io::Error::other(error)),
            Err(_) => {
                let mut kept = Self { file, id: AgentId::random(), writable, locked };
                kept.write(&[])?;
                Ok(Some(kept))
            }
        }
    }

    fn write(&mut self, names: &[String]) -> io::Result<()> {
        let mut text = format!("{}\n", self.id);
        names.iter().for_each(|name| text.extend([name, "\n"]));
        // Shortened last: whoever looks meanwhile, or after a crash, finds the id.
        self.file.rewind()?;
        self.file.write_all(text.as_bytes())?;
        self.file.set_len(text.len() as u64)
    }
}

/// `agent-id`, `agent-id-2` and so on.
fn path(state_dir: &Path, number: usize) -> PathBuf {
    match number {
        1 => state_dir.join("agent-id"),
        number => state_dir.join(format!("agent-id-{number}")),
    }
}

/// Looks without a lock: what another agent writes meanwhile makes the choice a worse one at most.
fn fit(path: &Path, names: &[String]) -> Fit {
    let text = File::open(path).and_then(|file| read(&file)).unwrap_or_default();
    let mut kept = text.lines().skip(1).peekable();
    if kept.peek().is_none() {
        return Fit::Free;
    }
    match kept.any(|name| names.iter().any(|wanted| wanted == name)) {
        true => Fit::Same,
        false => Fit::Others,
    }
}

/// For this user only, and made if it is not there; to be read only, if it can't be written.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) => match File::open(path) {
            Ok(file) => Ok((file, false)),
            Err(_) => Err(error),
        },
    }
}

fn read(mut file: &File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// What the edge would keep for the agent: names, and ports where there is no name.
fn names(tunnels: &[TunnelSettings]) -> Vec<String> {
    let name = |tunnel: &TunnelSettings| match (&tunnel.name, tunnel.port) {
        (Some(name), _) => Some(name.to_ascii_lowercase()),
        (None, Some(port)) => Some(format!("{}/{port}", tunnel.kind.as_str())),
        (None, None) => None,
    };
    tunnels.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn wants(names: &[&str]) -> Vec<TunnelSettings> {
        let tunnel = |name: &&str| TunnelSettings {
            name: Some((*name).to_owned()),
            ..TunnelSettings::http("web", "3000".parse().unwrap())
        };
        names.iter().map(tunnel).collect()
    }

    #[test]
    fn agents_that_run_at_once_have_ids_of_their_own_and_find_them_again() {
        let home = tempfile::tempdir().unwrap();
        let take = || Identity::take(&home.path().join("state"), &[]);
        let (first, second) = (take(), take());
        assert!(first.id() != second.id() && first.trouble().is_none());
        let (one, two) = (first.id().clone(), second.id().clone());
        first.release();
        assert_eq!(*take().id(), one);
        drop((first, second));
        let (first, second) = (take(), take());
        assert_eq!((first.id(), second.id()), (&one, &two));
    }

    /// The edge keeps the names of one that has crashed for its id, whoever is started first then.
    #[test]
    fn an_agent_that_has_crashed_is_found_by_its_names() {
        let home = tempfile::tempdir().unwrap();
        let take = |names: &[&str]| Identity::take(home.path(), &wants(names));
        let (a, b) = (take(&["a"]), take(&["b", "c"]));
        let (one, two) = (a.id().clone(), b.id().clone());
        drop((a, b));
        let b = take(&["C"]);
        assert_eq!(*b.id(), two);
        let other = take(&[]);
        assert!(*other.id() != one, "the first one's names may still be kept for it");
        let a = take(&["x", "a"]);
        assert_eq!(*a.id(), one);
        // What is given up is nobody's.
        a.release();
        assert_eq!(*take(&["y"]).id(), one);
    }

    #[test]
    fn names_change_with_the_config_file() {
        let home = tempfile::tempdir().unwrap();
        let identity = Identity::take(home.path(), &wants(&["long-name", "b"]));
        identity.serves(&wants(&["c"]));
        let text = fs::read_to_string(home.path().join("agent-id")).unwrap();
        assert_eq!(text, format!("{}\nc\n", identity.id()));
        let port = TunnelSettings { port: Some(20_001), name: None, ..wants(&["a"]).remove(0) };
        assert_eq!(names(&[port]), ["http/20001"]);
    }

    #[test]
    fn there_is_a_bound_and_what_cannot_be_kept_is_said() {
        let home = tempfile::tempdir().unwrap();
        let all: Vec<_> = (0..=MAX_KEPT).map(|_| Identity::take(home.path(), &[])).collect();
        let ids: std::collections::HashSet<_> = all.iter().map(|one| one.id().as_str()).collect();
        assert_eq!(ids.len(), MAX_KEPT + 1);
        let troubles: Vec<_> = all.iter().filter_map(Identity::trouble).collect();
        assert!(troubles.len() == 1 && troubles[0].contains("16 agents"), "{troubles:?}");

        let file = home.path().join("a-file");
        fs::write(&file, "").unwrap();
        let nowhere = Identity::take(&file.join("state"), &[]);
        assert!(nowhere.trouble().unwrap().contains("can't be kept"), "{nowhere:?}");
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_can_read_it_and_rubbish_is_replaced() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("agent-id"), "what is this?\n").unwrap();
        let (first, _second) = (Identity::take(home.path(), &[]), Identity::take(home.path(), &[]));
        let text = fs::read_to_string(home.path().join("agent-id")).unwrap();
        assert_eq!(text, format!("{}\n", first.id()));
        let mode = fs::metadata(home.path().join("agent-id-2")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
