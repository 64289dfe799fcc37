//! A folder as the local server of a tunnel: `file:./dist`.
//!
//! Files are read in pieces on threads apart, as the visitor takes them; nothing is held whole that
//! is longer than a piece. A path can only name what is in the folder: see [`path`].

mod kind;
mod path;
mod range;

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::SystemTime,
};

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};
use uniroute_proto::v1::UpstreamErrorKind;
use uniroute_shared::message::{Fields, Piece, Source};

use self::{path::Wanted, range::Range};
use crate::upstream::UpstreamError;

/// What is read at a time, in bytes.
const PIECE: u64 = 64 * 1024;
/// What a folder shows.
const INDEX: &str = "index.html";
/// Shown for what is not there, if there is one.
const NOT_FOUND: &str = "404.html";

/// How files are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSettings {
    /// The file for pages that are not there, as applications want it that route in the browser.
    pub fallback: Option<String>,
    /// Show files and folders whose name begins with a dot; without it only `.well-known`.
    pub dotfiles: bool,
}

/// A folder that is shown.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    root: PathBuf,
    settings: FileSettings,
}

/// An answer, as a local server would give it.
#[derive(Debug)]
pub(crate) struct FileAnswer {
    /// The status.
    pub(crate) status: u16,
    /// All fields, `Content-Length` among them.
    pub(crate) fields: Fields,
    /// As long as `Content-Length` says; empty for HEAD.
    pub(crate) body: FileBody,
}

/// What is left of an answer's body. A file that is cut meanwhile breaks it off, so that a short body
/// never looks complete.
#[derive(Debug, Default)]
pub(crate) struct FileBody {
    first: Bytes,
    rest: Rest,
}

/// What is not read yet.
#[derive(Debug, Default)]
enum Rest {
    #[default]
    Nothing,
    Here(File, u64),
    Reading(JoinHandle<io::Result<(Bytes, File)>>, u64),
}

impl Rest {
    fn new(file: File, left: u64) -> Self {
        if left > 0 { Self::Here(file, left) } else { Self::Nothing }
    }
}

impl FileBody {
    /// These bytes.
    pub(crate) fn of(bytes: Bytes) -> Self {
        Self { first: bytes, rest: Rest::Nothing }
    }

    /// The first `length` bytes of a file.
    pub(crate) fn of_file(file: File, length: u64) -> Self {
        Self { first: Bytes::new(), rest: Rest::new(file, length) }
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && matches!(self.rest, Rest::Nothing)
    }
}

impl Source for FileBody {
    type Error = io::Error;

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Piece>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Ok(Some(Piece::Data(std::mem::take(&mut self.first)))));
        }
        let (mut reading, left) = match std::mem::take(&mut self.rest) {
            Rest::Nothing => return Poll::Ready(Ok(None)),
            Rest::Here(mut file, left) => {
                (spawn_blocking(move || Ok((read_piece(&mut file, left)?, file))), left)
            }
            Rest::Reading(reading, left) => (reading, left),
        };
        let Poll::Ready(read) = Pin::new(&mut reading).poll(cx) else {
            self.rest = Rest::Reading(reading, left);
            return Poll::Pending;
        };
        let (piece, file) = read.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        self.rest = Rest::new(file, left - piece.len() as u64);
        Poll::Ready(Ok(Some(Piece::Data(piece))))
    }

    fn is_over(&self) -> bool {
        self.is_empty()
    }
}

fn read_piece(file: &mut File, left: u64) -> io::Result<Bytes> {
    let length = usize::try_from(left.min(PIECE)).unwrap_or(0);
    let mut piece = vec![0; length];
    file.read_exact(&mut piece)?;
    Ok(piece.into())
}

/// A request, as far as files depend on it.
#[derive(Clone, Debug, Default)]
struct Asked {
    head: bool,
    /// A page is wanted, and not a part of one.
    page: bool,
    if_match: Option<Bytes>,
    if_none_match: Option<Bytes>,
    if_modified_since: Option<SystemTime>,
    if_range: Option<Bytes>,
    range: Option<Bytes>,
}

impl Asked {
    fn new(method: &[u8], fields: &Fields) -> Self {
        let date = |name| {
            let text = std::str::from_utf8(fields.get(name)?).ok()?;
            httpdate::parse_http_date(text).ok()
        };
        let one = |name| fields.get(name).cloned();
        let accept = fields.get("accept").map(|value| &value[..]).unwrap_or_default();
        Self {
            head: method == b"HEAD",
            page: accept.windows(9).any(|nine| nine.eq_ignore_ascii_case(b"text/html")),
            if_match: one("if-match"),
            if_none_match: one("if-none-match"),
            if_modified_since: date("if-modified-since"),
            if_range: one("if-range"),
            range: one("range").filter(|_| method == b"GET"),
        }
    }
}

impl Files {
    /// As people write it.
    pub(crate) fn label(&self) -> String {
        format!("file:{}", self.root.display())
    }

    /// The files in `root`, which need not be there yet.
    pub(crate) fn new(root: PathBuf, settings: FileSettings) -> Self {
        Self { root, settings }
    }

    /// Whether the folder is there.
    ///
    /// # Errors
    /// [`UpstreamError`] when it is not.
    pub(crate) fn check(&self) -> Result<(), UpstreamError> {
        self.canonical_root().map(|_| ())
    }

    /// The answer to a request. `target`: path and query, as it was sent.
    ///
    /// # Errors
    /// [`UpstreamError`] when the folder itself can't be read.
    pub(crate) async fn answer(
        &self,
        method: &[u8],
        target: &[u8],
        fields: &Fields,
    ) -> Result<FileAnswer, UpstreamError> {
        if !matches!(method, b"GET" | b"HEAD") {
            let mut answer = text(405, "Files can only be read.\n", false);
            answer.fields.push("allow", "GET, HEAD");
            return Ok(answer);
        }
        let asked = Asked::new(method, fields);
        let (files, target) = (self.clone(), target.to_vec());
        let answering = spawn_blocking(move || files.find(&target, &asked));
        answering.await.unwrap_or_else(|error| Err(self.failed(&error)))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> UpstreamError {
        let message = format!("the folder {} can't be read: {error}", self.root.display());
        UpstreamError::new(UpstreamErrorKind::Unreachable, message)
    }

    fn canonical_root(&self) -> Result<PathBuf, UpstreamError> {
        let root = self.root.canonicalize().and_then(|root| match root.is_dir() {
            true => Ok(root),
            false => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        });
        root.map_err(|error| self.failed(&error))
    }

    fn find(&self, target: &[u8], asked: &Asked) -> Result<FileAnswer, UpstreamError> {
        let root = self.canonical_root()?;
        let Some(wanted) = Wanted::parse(target, self.settings.dotfiles) else {
            return Ok(self.missing(&root, asked));
        };
        let found = resolve(&root, &wanted.path);
        let found = match found {
            Some(folder) if folder.is_dir() => match wanted.folder {
                true => resolve(&root, &wanted.path.join(INDEX)),
                false => return Ok(to_folder(&wanted)),
            },
            file => file.filter(|_| !wanted.folder),
        };
        if let Some(answer) = found.and_then(|file| show(&file, asked, 200)) {
            return Ok(answer);
        }
        if let Some(fallback) = &self.settings.fallback
            && (asked.page || !wanted.has_extension())
            && let Some(file) = resolve(&root, Path::new(fallback))
            && let Some(answer) = show(&file, asked, 200)
        {
            return Ok(answer);
        }
        Ok(self.missing(&root, asked))
    }

    fn missing(&self, root: &Path, asked: &Asked) -> FileAnswer {
        // A page of its own is no page that could be asked for in part.
        let asked = Asked { head: asked.head, ..Asked::default() };
        let page = resolve(root, Path::new(NOT_FOUND));
        let own = page.and_then(|page| show(&page, &asked, 404));
        own.unwrap_or_else(|| text(404, "There is no such file.\n", asked.head))
    }
}

/// What `path` leads to, if that is inside of `root`: a link may lead out.
fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    let found = root.join(path).canonicalize().ok()?;
    found.starts_with(root).then_some(found)
}

/// Relative, for the visitor may see this folder at another path.
fn to_folder(wanted: &Wanted<'_>) -> FileAnswer {
    let mut answer = text(308, "", false);
    answer.fields.push("location", [b"./", wanted.last, b"/", wanted.query].concat());
    answer
}

fn text(status: u16, text: &'static str, head: bool) -> FileAnswer {
    let mut fields = Fields::with_capacity(4);
    if !text.is_empty() {
        fields.push("content-type", "text/plain; charset=utf-8");
    }
    fields.push("content-length", text.len().to_string());
    let first = if head { Bytes::new() } else { Bytes::from_static(text.as_bytes()) };
    FileAnswer { status, fields, body: FileBody { first, rest: Rest::Nothing } }
}

/// The file at `path`; `None` when it is none or can't be read.
fn show(path: &Path, asked: &Asked, status: u16) -> Option<FileAnswer> {
    // Asked before it is opened: opening a pipe would wait for its other end.
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let mut file = File::open(path).ok()?;
    let length = metadata.len();
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let etag = etag(modified, length);
    let mut fields = Fields::with_capacity(8);
    fields.push("etag", etag.clone());
    fields.push("last-modified", httpdate::fmt_http_date(modified));
    // Shown again at once when it has changed; what has not costs no body.
    fields.push("cache-control", "no-cache");
    let bodyless = |status, fields| Some(FileAnswer { status, fields, body: FileBody::default() });
    if status == 200 {
        if asked.if_match.as_ref().is_some_and(|tags| !matches(tags, &etag, false)) {
            return bodyless(412, fields);
        }
        if is_known(asked, &etag, modified) {
            return bodyless(304, fields);
        }
        fields.push("accept-ranges", "bytes");
    }
    fields.push("content-type", kind::of(path));
    let range = match wanted_range(asked, &etag, modified, length) {
        Range::Whole => 0..length,
        Range::Part(part) => {
            let (first, last) = (part.start, part.end - 1);
            fields.push("content-range", format!("bytes {first}-{last}/{length}"));
            part
        }
        Range::Unsatisfiable => {
            fields.remove("content-type");
            fields.push("content-range", format!("bytes */{length}"));
            fields.push("content-length", "0");
            return bodyless(416, fields);
        }
    };
    let status = if fields.contains("content-range") { 206 } else { status };
    let left = range.end - range.start;
    fields.push("content-length", left.to_string());
    if asked.head || left == 0 {
        return bodyless(status, fields);
    }
    if range.start > 0 {
        file.seek(SeekFrom::Start(range.start)).ok()?;
    }
    let first = read_piece(&mut file, left).ok()?;
    let rest = Rest::new(file, left - first.len() as u64);
    Some(FileAnswer { status, fields, body: FileBody { first, rest } })
}

/// Changes with the file, as far as its time and length tell.
fn etag(modified: SystemTime, length: u64) -> String {
    let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("\"{:x}-{length:x}\"", since.as_nanos())
}

/// Whether the visitor has it already (RFC 9110, section 13.2.2).
fn is_known(asked: &Asked, etag: &str, modified: SystemTime) -> bool {
    match (&asked.if_none_match, asked.if_modified_since) {
        (Some(tags), _) => matches(tags, etag, true),
        (None, Some(since)) => is_not_after(modified, since),
        (None, None) => false,
    }
}

/// Dates in fields have whole seconds.
fn is_not_after(modified: SystemTime, since: SystemTime) -> bool {
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    };
    seconds(modified) <= seconds(since)
}

/// Whether a list of tags has `etag`. `weak`: marks of weakness do not count.
fn matches(tags: &[u8], etag: &str, weak: bool) -> bool {
    let mut tags = tags.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tags.any(|tag| {
        let tag = if weak { tag.strip_prefix(b"W/").unwrap_or(tag) } else { tag };
        tag == b"*" || tag == etag.as_bytes()
    })
}

/// The part that is wanted, if the visitor's other parts are of this very file.
fn wanted_range(asked: &Asked, etag: &str, modified: SystemTime, length: u64) -> Range {
    let Some(range) = &asked.range else { return Range::Whole };
    let same = match &asked.if_range {
        None => true,
        Some(tag) if tag.starts_with(b"\"") => &tag[..] == etag.as_bytes(),
        Some(date) => &date[..] == httpdate::fmt_http_date(modified).as_bytes(),
    };
    if same { Range::parse(range, length) } else { Range::Whole }
}

#[cfg(test)]
mod tests;
