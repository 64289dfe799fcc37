//! The part of a file that a request wants (RFC 9110, section 14). One part is given; who asks for
//! several gets the whole, as the RFC allows.

/// What `Range` means for a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// Nothing, or nothing that is understood.
    Whole,
    /// These bytes, at least one.
    Part(std::ops::Range<u64>),
    /// None of what the file has.
    Unsatisfiable,
}

impl Range {
    pub(super) fn parse(value: &[u8], length: u64) -> Self {
        let text = std::str::from_utf8(value).unwrap_or_default();
        match text.split_once('=') {
            Some((unit, spec)) if unit.trim().eq_ignore_ascii_case("bytes") => {
                part(spec.trim(), length).unwrap_or(Self::Whole)
            }
            _ => Self::Whole,
        }
    }
}

/// `None`: not understood.
fn part(spec: &str, length: u64) -> Option<Range> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        let suffix = number(last)?;
        let start = length.saturating_sub(suffix);
        return Some(if start < length {
            Range::Part(start..length)
        } else {
            Range::Unsatisfiable
        });
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    if first >= length {
        return Some(Range::Unsatisfiable);
    }
    Some(Range::Part(first..last.saturating_add(1).min(length)))
}

fn number(digits: &str) -> Option<u64> {
    digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-0", Range::Part(0..1)),
            ("bytes=2-", Range::Part(2..10)),
            ("Bytes = 2-4", Range::Part(2..5)),
            ("bytes=2-99", Range::Part(2..10)),
            ("bytes=-3", Range::Part(7..10)),
            ("bytes=-99", Range::Part(0..10)),
            ("bytes=0-18446744073709551615", Range::Part(0..10)),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=10-11", Range::Unsatisfiable),
            ("bytes=4-2", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("bytes=+1-2", Range::Whole),
            ("bytes=-", Range::Whole),
            ("bytes=", Range::Whole),
            ("items=0-1", Range::Whole),
            ("", Range::Whole),
        ] {
            assert_eq!(Range::parse(text.as_bytes(), 10), expected, "{text}");
        }
        assert_eq!(Range::parse(b"bytes=0-", 0), Range::Unsatisfiable);
        assert_eq!(Range::parse(b"bytes=-1", 0), Range::Unsatisfiable);
    }
}
