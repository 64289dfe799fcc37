//! From a request's target to a path inside of a folder. What could mean anything else than a file
//! or folder below it means nothing: dot segments, however they are written, backslashes, NUL,
//! drives, empty segments, and what begins with a dot.

use std::path::{Component, Path, PathBuf};

/// A folder that may be shown although its name begins with a dot (RFC 8615).
const WELL_KNOWN: &str = ".well-known";

/// What a target asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    /// Relative, of plain names only.
    pub(super) path: PathBuf,
    /// It ends in a slash.
    pub(super) folder: bool,
    /// The last segment as it was sent.
    pub(super) last: &'a [u8],
    /// With its question mark; empty for none.
    pub(super) query: &'a [u8],
}

impl<'a> Wanted<'a> {
    /// `None`: there can be no such file.
    pub(super) fn parse(target: &'a [u8], dotfiles: bool) -> Option<Self> {
        let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
        let (whole, query) = target.split_at(end);
        let inner = whole.strip_prefix(b"/")?;
        let (inner, folder) = match inner.strip_suffix(b"/") {
            Some(inner) => (inner, true),
            None => (inner, inner.is_empty()),
        };
        if inner.is_empty() {
            // `//` is no other name of the folder itself.
            return (whole == b"/").then(|| Self {
                path: PathBuf::new(),
                folder,
                last: b"",
                query,
            });
        }
        let mut path = PathBuf::new();
        for (depth, segment) in inner.split(|byte| *byte == b'/').enumerate() {
            path.push(name(segment, dotfiles, depth)?);
        }
        let last = inner.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        Some(Self { path, folder, last, query })
    }

    pub(super) fn has_extension(&self) -> bool {
        self.path.extension().is_some()
    }
}

/// The name that a segment stands for.
fn name(segment: &[u8], dotfiles: bool, depth: usize) -> Option<String> {
    let name = String::from_utf8(decoded(segment)?).ok()?;
    let hidden = name.starts_with('.') && !dotfiles && !(depth == 0 && name == WELL_KNOWN);
    if hidden || name.contains(['/', '\\', '\0']) {
        return None;
    }
    if cfg!(windows) && is_windows_alias(&name) {
        return None;
    }
    // Plain in the system's own reading, too: no `..`, no drive, nothing empty.
    let mut components = Path::new(&name).components();
    let plain = matches!(components.next(), Some(Component::Normal(part)) if part == name.as_str());
    (plain && components.next().is_none()).then_some(name)
}

/// Whether Windows may take it for another file's name: of a stream (`a.txt::$DATA`) or a short one
/// (`ENV~1` for `.env`). Devices (`NUL`) and dots at the end mean nothing in the paths that are opened
/// (`\\?\…`).
fn is_windows_alias(name: &str) -> bool {
    let short = |(_, rest): (&str, &str)| rest.starts_with(|c: char| c.is_ascii_digit());
    name.contains(':') || name.split_once('~').is_some_and(short)
}

/// Without percent encodings; `None` where one is broken.
fn decoded(segment: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut out = Vec::with_capacity(segment.len());
    let mut bytes = segment.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'%' {
            let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(*byte);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(target: &str) -> Option<String> {
        let wanted = Wanted::parse(target.as_bytes(), false)?;
        Some(wanted.path.to_str().unwrap().to_owned())
    }

    #[test]
    fn other_names_that_windows_has_for_a_file_are_known() {
        for name in ["a.txt::$DATA", "C:a", "ENV~1", "LONGNA~1.TXT"] {
            assert!(is_windows_alias(name), "{name}");
        }
        for name in ["a.txt", "~user", "backup~", "a~b"] {
            assert!(!is_windows_alias(name), "{name}");
        }
    }

    #[test]
    fn plain_paths_are_taken_as_they_are() {
        for (target, expected) in [
            ("/", ""),
            ("/a", "a"),
            ("/a/", "a"),
            ("/a/b.txt?c/../d", "a/b.txt"),
            ("/%61%20b/%C3%BC", "a b/ü"),
            ("/.well-known/x", ".well-known/x"),
            ("/a..b/c...", "a..b/c..."),
            ("/%252e%252e", "%2e%2e"),
        ] {
            assert_eq!(path(target).as_deref(), Some(expected), "{target}");
        }
        let wanted = Wanted::parse(b"/a/b%20c?q", false).unwrap();
        assert_eq!((wanted.folder, wanted.last, wanted.query), (false, &b"b%20c"[..], &b"?q"[..]));
        assert!(Wanted::parse(b"/", false).unwrap().folder);
        assert!(Wanted::parse(b"/.git/config", true).is_some());
    }

    #[test]
    fn what_leads_elsewhere_leads_nowhere() {
        for target in [
            "",
            "*",
            "a",
            "//",
            "//a",
            "/a//b",
            "/..",
            "/../a",
            "/a/../b",
            "/./a",
            "/%2e%2e/a",
            "/%2E./a",
            "/..%2fa",
            "/a%2fb",
            "/a%5c..%5cb",
            "/a\\b",
            "/a%00",
            "/a%",
            "/a%2",
            "/a%zz",
            "/%ff",
            "/.git/config",
            "/a/.env",
            "/%2eenv",
            "/a/.well-known",
            "http://a/b",
        ] {
            assert_eq!(path(target), None, "{target}");
        }
        assert_eq!(Wanted::parse(b"/..", true), None);
    }
}
