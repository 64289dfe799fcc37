//! One request, as it is written down. What could be a secret in a query is not (T20).

use std::time::Duration;

use uniroute_shared::id::{RequestId, TunnelId};

use super::Finished;
use crate::store::Timestamp;

/// Characters of a path that are kept.
const MAX_PATH: usize = 500;
/// What stands for the rest of a longer one.
const CUT: char = '…';
/// Bytes that a row takes at most.
pub(super) const MAX_ROW: usize = MAX_PATH * 4 + 256;
/// Parts of a parameter's name that say its value is nobody's business.
const SECRET: &[&str] = &[
    "token",
    "secret",
    "passw",
    "pwd",
    "auth",
    "key",
    "sig",
    "session",
    "code",
    "jwt",
    "credential",
];

/// See the module.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: RequestId,
    pub(super) tunnel: TunnelId,
    pub(super) method: Box<str>,
    pub(super) path: Box<str>,
    pub(super) visitor: Box<str>,
    pub(super) status: Option<u16>,
    pub(super) error: u16,
    pub(super) took: Duration,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// When it ended.
    pub(super) at: Timestamp,
}

impl Row {
    pub(super) fn new(tunnel: TunnelId, request: &Finished<'_>, took: Duration) -> Self {
        Self {
            id: request.id,
            tunnel,
            method: text(request.method, 32).into(),
            path: path(request.target).into(),
            visitor: request.visitor.into(),
            status: request.status,
            error: request.error.map_or(0, |code| code.number),
            took,
            bytes_in: request.bytes_in,
            bytes_out: request.bytes_out,
            at: Timestamp::now(),
        }
    }

    /// Bytes that it takes, about.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.method.len() + self.path.len() + self.visitor.len()
    }
}

/// What can be read of `bytes`, `most` characters at most. Databases take no NUL.
fn text(bytes: &[u8], most: usize) -> String {
    // No character has more than four bytes, and no more than this is looked at.
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(most * 4)]);
    let clean = |character: char| if character.is_control() { '\u{FFFD}' } else { character };
    text.chars().map(clean).take(most).collect()
}

/// A target as it is kept.
fn path(target: &[u8]) -> String {
    let (path, query) = match target.iter().position(|byte| *byte == b'?') {
        Some(mark) => (&target[..mark], Some(&target[mark + 1..])),
        None => (target, None),
    };
    let mut kept = text(path, MAX_PATH + 1);
    for (number, pair) in
        query.into_iter().flat_map(|query| query.split(|byte| *byte == b'&')).enumerate()
    {
        if kept.len() > MAX_PATH * 4 {
            break;
        }
        kept.push(if number == 0 { '?' } else { '&' });
        let pair = text(pair, MAX_PATH);
        match pair.split_once('=') {
            Some((name, _)) if is_secret(name) => {
                kept.push_str(name);
                kept.push_str("=***");
            }
            _ => kept.push_str(&pair),
        }
    }
    if kept.chars().count() > MAX_PATH {
        kept = kept.chars().take(MAX_PATH - 1).chain([CUT]).collect();
    }
    kept
}

fn is_secret(name: &str) -> bool {
    // `%5F` and the like can't hide it for long.
    let name = name.to_ascii_lowercase();
    name.contains('%') || SECRET.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t20_secrets_of_a_query_are_not_kept() {
        let cases = [
            ("/a?x=1&token=canary&y=2", "/a?x=1&token=***&y=2"),
            ("/a?Access_Token=canary", "/a?Access_Token=***"),
            (
                "/a?X-Amz-Signature=canary&X-Amz-Credential=canary",
                "/a?X-Amz-Signature=***&X-Amz-Credential=***",
            ),
            ("/a?t%6Fken=canary", "/a?t%6Fken=***"),
            ("/a?q=", "/a?q="),
            ("/a?", "/a?"),
            ("*", "*"),
        ];
        for (target, kept) in cases {
            assert_eq!(path(target.as_bytes()), kept);
        }
    }

    #[test]
    fn long_and_odd_paths_are_cut_and_made_readable() {
        let long = format!("/{}", "é".repeat(600));
        let kept = path(long.as_bytes());
        assert_eq!((kept.chars().count(), kept.chars().last()), (500, Some('…')));
        assert_eq!(path(format!("/{}", "a".repeat(499)).as_bytes()).len(), 500);
        assert_eq!(path(b"/\x00\xFF\r"), "/\u{FFFD}\u{FFFD}\u{FFFD}");
        let queries = format!("/?{}", "a=b&".repeat(10_000));
        assert_eq!(path(queries.as_bytes()).chars().count(), 500);
        assert_eq!(text(b"PROPFIND", 4), "PROP");
    }
}
