//! Long bodies on disk, whole. A thread of its own writes them; when it lags too far behind, a body is
//! given up rather than a request slowed. When the disk's share is full, the oldest go.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::warn;

use super::Limits;

/// Bytes that wait for the disk at most.
const MAX_QUEUED: usize = 32 * 1024 * 1024;
/// What the folders' names begin with.
const PREFIX: &str = "uniroute-spool-";
/// In a folder, locked while its agent lives.
const LOCK: &str = "lock";

/// The folder, and the thread that writes to it. All of it is deleted with the value.
#[derive(Debug)]
pub(super) struct Spool {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    queued: AtomicUsize,
    on_disk: AtomicU64,
    max: u64,
    next: AtomicU64,
    lost: AtomicU64,
}

/// How much there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) on_disk: u64,
    pub(crate) waiting: usize,
    pub(crate) most_waiting: usize,
    /// Bodies that went to disk.
    pub(crate) bodies: u64,
    /// Those that were given up.
    pub(crate) lost: u64,
}

/// A body on disk.
#[derive(Debug)]
pub(crate) struct Spooled {
    pub(crate) file: Arc<SpoolFile>,
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct SpoolFile {
    path: PathBuf,
    written: AtomicU64,
    /// Something of it is missing.
    broken: AtomicBool,
    ended: AtomicBool,
}

#[derive(Debug)]
enum Job {
    Write(Arc<SpoolFile>, Bytes),
    End(Arc<SpoolFile>),
    Delete(Arc<SpoolFile>),
    Stop,
}

impl SpoolFile {
    /// Opens it, if it holds all of a body of `size` bytes.
    pub(crate) fn open(&self, size: u64) -> Option<File> {
        self.is_whole(size).then(|| File::open(&self.path).ok()).flatten()
    }

    pub(crate) fn is_whole(&self, size: u64) -> bool {
        self.ended.load(Ordering::Acquire)
            && !self.broken.load(Ordering::Acquire)
            && self.written.load(Ordering::Acquire) == size
    }

    /// Why it does not hold all of the body, in words.
    pub(crate) fn why_not(&self) -> &'static str {
        if self.broken.load(Ordering::Acquire) {
            "the disk was too slow or full, or newer bodies took its place"
        } else {
            "it is still being written"
        }
    }
}

impl Spool {
    pub(super) fn new(limits: &Limits) -> io::Result<Self> {
        let parent = limits.spool_dir.clone().unwrap_or_else(std::env::temp_dir);
        crate::local::running::make_private(&parent)?;
        delete_stale(&parent);
        let builder = &mut tempfile::Builder::new();
        // The folder is for this user only.
        let folder = builder.prefix(PREFIX).tempdir_in(&parent)?.keep();
        let lock = private(&folder.join(LOCK))?;
        lock.try_lock().map_err(io::Error::from)?;
        let shared = Arc::new(Shared {
            folder,
            queued: AtomicUsize::new(0),
            on_disk: AtomicU64::new(0),
            max: limits.max_spool,
            next: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let (jobs, queue) = mpsc::channel();
        let writer =
            Writer { shared: Arc::clone(&shared), open: None, files: VecDeque::new(), lock };
        let thread = thread::Builder::new().name("spool".to_owned());
        let thread = Mutex::new(Some(thread.spawn(move || writer.run(&queue))?));
        Ok(Self { jobs, shared, thread })
    }

    /// How much there is.
    pub(super) fn figures(&self) -> Figures {
        let Shared { on_disk, queued, next, lost, .. } = &*self.shared;
        Figures {
            on_disk: on_disk.load(Ordering::Relaxed),
            waiting: queued.load(Ordering::Relaxed),
            most_waiting: MAX_QUEUED,
            bodies: next.load(Ordering::Relaxed),
            lost: lost.load(Ordering::Relaxed),
        }
    }

    /// Bytes on disk.
    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.figures().on_disk
    }

    /// A body that begins with `head`.
    pub(super) fn begin(&self, head: &[u8]) -> Spooled {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(SpoolFile {
            path: self.shared.folder.join(format!("{number}")),
            written: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let spooled = Spooled { file, jobs: self.jobs.clone(), shared: Arc::clone(&self.shared) };
        spooled.push(Bytes::copy_from_slice(head));
        spooled
    }

    /// Deletes all of it, and keeps nothing more.
    pub(super) fn close(&self) {
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Spooled {
    /// The next piece.
    pub(super) fn push(&self, data: Bytes) {
        if self.file.broken.load(Ordering::Relaxed) {
            return;
        }
        let length = data.len();
        let queued = self.shared.queued.fetch_add(length, Ordering::Relaxed) + length;
        let lags = queued > MAX_QUEUED;
        if lags || self.jobs.send(Job::Write(Arc::clone(&self.file), data)).is_err() {
            self.shared.queued.fetch_sub(length, Ordering::Relaxed);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            self.file.broken.store(true, Ordering::Release);
        }
    }

    /// That was all.
    pub(super) fn end(&self) {
        let _ = self.jobs.send(Job::End(Arc::clone(&self.file)));
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::Delete(Arc::clone(&self.file)));
    }
}

struct Writer {
    shared: Arc<Shared>,
    /// The file written last.
    open: Option<(Arc<SpoolFile>, File)>,
    /// All that are on disk, the oldest first.
    files: VecDeque<Weak<SpoolFile>>,
    lock: File,
}

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<Job>) {
        while let Ok(job) = queue.recv() {
            match job {
                Job::Write(file, data) => {
                    self.write(&file, &data);
                    self.shared.queued.fetch_sub(data.len(), Ordering::Relaxed);
                }
                Job::End(file) => {
                    if self.open.as_ref().is_some_and(|(open, _)| Arc::ptr_eq(open, &file)) {
                        self.open = None;
                    }
                    file.ended.store(true, Ordering::Release);
                }
                Job::Delete(file) => self.delete(&file),
                Job::Stop => break,
            }
        }
        drop(self.lock);
        let _ = fs::remove_dir_all(&self.shared.folder);
    }

    fn write(&mut self, file: &Arc<SpoolFile>, data: &[u8]) {
        if file.broken.load(Ordering::Relaxed) {
            // What is there of it is of no use.
            return self.delete(file);
        }
        if let Err(error) = self.try_write(file, data) {
            warn!(%error, "a long body is not kept for the inspector");
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            self.delete(file);
        }
    }

    fn try_write(&mut self, file: &Arc<SpoolFile>, data: &[u8]) -> io::Result<()> {
        let length = data.len() as u64;
        while self.shared.on_disk.load(Ordering::Relaxed) + length > self.shared.max {
            // This one too may be the oldest: then it is too long.
            let Some(oldest) = self.files.pop_front() else {
                return Err(io::Error::other("it is longer than all that may be on disk"));
            };
            if let Some(oldest) = oldest.upgrade() {
                self.delete(&oldest);
            }
            if file.broken.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        if !matches!(&self.open, Some((open, _)) if Arc::ptr_eq(open, file)) {
            let opened = if file.written.load(Ordering::Relaxed) == 0 {
                self.files.push_back(Arc::downgrade(file));
                private(&file.path)?
            } else {
                OpenOptions::new().append(true).open(&file.path)?
            };
            self.open = Some((Arc::clone(file), opened));
        }
        if let Some((_, open)) = &mut self.open {
            open.write_all(data)?;
        }
        file.written.fetch_add(length, Ordering::Release);
        self.shared.on_disk.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    fn delete(&mut self, file: &Arc<SpoolFile>) {
        file.broken.store(true, Ordering::Release);
        if self.open.as_ref().is_some_and(|(open, _)| Arc::ptr_eq(open, file)) {
            self.open = None;
        }
        let written = file.written.swap(0, Ordering::AcqRel);
        self.shared.on_disk.fetch_sub(written, Ordering::Relaxed);
        self.files.retain(|other| other.upgrade().is_some_and(|other| !Arc::ptr_eq(&other, file)));
        // It may never have been made.
        let _ = fs::remove_file(&file.path);
    }
}

/// A new file that is for this user only.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Takes away what agents have left that ended without a chance to.
fn delete_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let lock = entry.path().join(LOCK);
        if ours && File::open(lock).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, time::Duration};

    use super::*;

    fn limits(folder: &Path, max_spool: u64) -> Limits {
        Limits { spool: true, spool_dir: Some(folder.to_owned()), max_spool, ..Limits::default() }
    }

    #[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
    fn eventually(mut look: impl FnMut() -> bool) {
        for _ in 0..500 {
            if look() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("not in time");
    }

    fn files(folder: &Path) -> usize {
        let folders = fs::read_dir(folder).unwrap().flatten();
        folders.map(|f| fs::read_dir(f.path()).unwrap().count() - 1).sum()
    }

    #[test]
    fn bodies_are_there_whole_until_nobody_needs_them() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::new(&limits(home.path(), 1000)).unwrap();
        let body = spool.begin(b"head ");
        body.push(Bytes::from_static(b"and rest"));
        assert!(body.file.open(13).is_none());
        body.end();
        eventually(|| body.file.is_whole(13));
        let mut text = String::new();
        body.file.open(13).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((&text[..], spool.bytes(), files(home.path())), ("head and rest", 13, 1));
        assert!(body.file.open(14).is_none());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(&body.file.path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        drop(body);
        eventually(|| spool.bytes() == 0 && files(home.path()) == 0);
        drop(spool);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_oldest_make_room() {
        let home = tempfile::tempdir().unwrap();
        let spool = Spool::new(&limits(home.path(), 100)).unwrap();
        let bodies: Vec<_> = (0..5).map(|_| spool.begin(&[b'x'; 40])).collect();
        bodies.iter().for_each(Spooled::end);
        eventually(|| bodies[4].file.is_whole(40));
        let whole: Vec<_> = bodies.iter().map(|body| body.file.is_whole(40)).collect();
        assert_eq!(whole, [false, false, false, true, true]);
        let long = spool.begin(&[b'x'; 101]);
        long.end();
        eventually(|| long.file.broken.load(Ordering::Relaxed));
        assert!(spool.bytes() <= 100);
    }

    #[test]
    fn what_was_left_behind_is_taken_away() {
        let home = tempfile::tempdir().unwrap();
        let left = home.path().join(format!("{PREFIX}left"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        fs::write(left.join("0"), "secret").unwrap();
        let first = Spool::new(&limits(home.path(), 100)).unwrap();
        assert!(!left.exists());
        // One that lives keeps its own.
        let _second = Spool::new(&limits(home.path(), 100)).unwrap();
        assert!(first.shared.folder.exists());
    }
}
