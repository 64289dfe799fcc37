//! Text for a terminal: what strangers say can't do anything there, widths are known, and a line is
//! made of pieces that each have a tone.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Color, Style};
use unicode_width::UnicodeWidthChar as _;

/// Longest text that is taken from anybody, in characters; the rest is nobody's line.
const LONGEST: usize = 2_048;

/// What a terminal can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) colour: bool,
    /// Other characters than ASCII's.
    pub(crate) unicode: bool,
    /// URLs that can be clicked on (OSC 8).
    pub(crate) links: bool,
}

impl Look {
    /// No colours, no links, and characters that are everywhere.
    pub(crate) const PLAIN: Self = Self { colour: false, unicode: false, links: false };

    /// As the environment says it of the terminal.
    pub(crate) fn of_environment() -> Self {
        let get = |name| std::env::var(name).unwrap_or_default();
        Self {
            colour: get("NO_COLOR").is_empty(),
            // Consoles of Windows take UTF-16 of everybody.
            unicode: cfg!(windows) || is_unicode([&get("LC_ALL"), &get("LC_CTYPE"), &get("LANG")]),
            links: has_links(&get("TERM"), &get("VTE_VERSION")),
        }
    }

    pub(crate) fn arrow(self) -> &'static str {
        if self.unicode { "→" } else { "->" }
    }

    pub(crate) fn more(self) -> &'static str {
        if self.unicode { "…" } else { "..." }
    }

    pub(crate) fn between(self) -> &'static str {
        if self.unicode { " · " } else { " | " }
    }

    /// In front of what is as it should be, or soon will.
    pub(crate) fn dot(self) -> &'static str {
        if self.unicode { "●" } else { "*" }
    }

    pub(crate) fn ring(self) -> &'static str {
        if self.unicode { "○" } else { "o" }
    }

    pub(crate) fn alert(self) -> &'static str {
        if self.unicode { "▲" } else { "!" }
    }
}

/// The first variable that is set decides, as everywhere; none is set in most containers, and the
/// terminal in front of them shows what everyone's does.
fn is_unicode(variables: [&str; 3]) -> bool {
    let set = variables.into_iter().find(|value| !value.is_empty());
    set.is_none_or(|value| {
        let value = value.to_ascii_lowercase();
        value.contains("utf-8") || value.contains("utf8")
    })
}

/// The others ignore what they don't know, save the console of Linux and old VTEs.
fn has_links(term: &str, vte: &str) -> bool {
    let old = vte.parse::<u32>().is_ok_and(|version| version < 5_000);
    !(old || term.is_empty() || ["linux", "dumb", "vt100"].contains(&term))
}

/// What is shown of a text that a visitor, an edge or a local server has written: nothing in it
/// moves the cursor, hides, or turns the order of what follows. Such characters are written as their
/// numbers.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(LONGEST));
    for c in text.chars().take(LONGEST) {
        match c {
            // Many terminals leave these out, whatever their width is said to be.
            '\u{ad}' | '\u{115f}' | '\u{2028}' | '\u{2029}' => out.extend(c.escape_unicode()),
            _ if c.width().is_some_and(|width| width > 0) => out.push(c),
            _ => out.extend(c.escape_unicode()),
        }
    }
    out
}

/// Columns of a text that is printable.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// As much of a printable text as fits, with a mark if that is not all.
pub(crate) fn cut(text: &str, columns: usize, look: Look) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let more = look.more();
    let Some(mut left) = columns.checked_sub(width(more)) else { return String::new() };
    let mut out = String::new();
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if wide > left {
            break;
        }
        left -= wide;
        out.push(c);
    }
    out + more
}

/// A printable text in lines that break between words, at most `most` of them.
pub(crate) fn wrap(text: &str, columns: usize, most: usize, look: Look) -> Vec<String> {
    let columns = columns.max(8);
    let mut lines = vec![String::new()];
    let mut words = text.split(' ').filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.next() {
        let last = lines.len() == most;
        let line = lines.last_mut().expect("it has one line from the start");
        let space = usize::from(!line.is_empty());
        if width(line) + space + width(word) <= columns {
            line.push_str(&" "[..space]);
            line.push_str(word);
        } else if last {
            let rest: Vec<_> = std::iter::once(word).chain(words).collect();
            *line = cut(&format!("{line} {}", rest.join(" ")), columns, look);
            break;
        } else if line.is_empty() {
            *line = cut(word, columns, look);
        } else {
            lines.push(cut(word, columns, look));
        }
    }
    lines
}

/// How a piece of a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Strong,
    Quiet,
    Good,
    Warn,
    Bad,
    /// What is to be clicked on or copied.
    Url,
}

impl Tone {
    fn style(self) -> Style {
        let colour = |colour| Style::new().fg_color(Some(Color::Ansi(colour)));
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Quiet => Style::new().dimmed(),
            Self::Good => colour(AnsiColor::Green),
            Self::Warn => colour(AnsiColor::Yellow),
            Self::Bad => colour(AnsiColor::Red),
            Self::Url => colour(AnsiColor::Cyan).bold(),
        }
    }
}

/// One line, which may be wider than its terminal: then that breaks it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pieces: Vec<(Tone, String)>,
    width: usize,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn of(tone: Tone, text: &str) -> Self {
        Self::new().with(tone, text)
    }

    /// With a piece more, which is made printable.
    #[must_use]
    pub(crate) fn with(mut self, tone: Tone, text: &str) -> Self {
        let text = printable(text);
        self.width += width(&text);
        self.pieces.push((tone, text));
        self
    }

    /// With another line's pieces.
    #[must_use]
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.width += other.width;
        self.pieces.extend(other.pieces);
        self
    }

    /// Filled up to a column.
    #[must_use]
    pub(crate) fn to(self, column: usize) -> Self {
        let gap = column.saturating_sub(self.width);
        if gap == 0 { self } else { self.with(Tone::Plain, &" ".repeat(gap)) }
    }

    /// With another at the right edge, if there is room for it.
    #[must_use]
    pub(crate) fn right(self, other: Self, columns: usize) -> Self {
        match columns.checked_sub(self.width + other.width) {
            Some(gap) if gap >= 2 => {
                let column = columns - other.width;
                self.to(column).and(other)
            }
            _ => self,
        }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// As much of it as fits.
    #[must_use]
    pub(crate) fn cut(self, columns: usize, look: Look) -> Self {
        if self.width <= columns {
            return self;
        }
        let mut out = Self::new();
        for (tone, text) in self.pieces {
            if out.width + width(&text) > columns {
                let text = cut(&text, columns - out.width, look);
                return out.with(tone, &text);
            }
            out = out.with(tone, &text);
        }
        out
    }

    /// What is written to the terminal.
    pub(crate) fn paint(&self, look: Look) -> String {
        let mut out = String::new();
        for (tone, text) in &self.pieces {
            let text = if look.unicode { text.clone() } else { ascii(text) };
            let link = *tone == Tone::Url && look.links && is_link(&text);
            let style = if look.colour { tone.style() } else { Style::new() };
            if link {
                let _ = write!(out, "\x1b]8;;{text}\x1b\\");
            }
            let _ = write!(out, "{style}{text}{style:#}");
            if link {
                out.push_str("\x1b]8;;\x1b\\");
            }
        }
        // A drawing is compared with the one before: what can't be seen is no difference.
        if look.colour || look.links { out } else { out.trim_end().to_owned() }
    }
}

/// The same width in characters that every terminal has.
fn ascii(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c.width() {
            _ if c.is_ascii() => out.push(c),
            Some(2) => out.push_str("??"),
            _ => out.push('?'),
        }
    }
    out
}

/// Only what a browser opens, in the characters that URLs have.
fn is_link(text: &str) -> bool {
    let known = text.starts_with("http://") || text.starts_with("https://");
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    known && text.bytes().all(allowed)
}

/// `12.3 ms`, `1.2 s`: three digits at most.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 9.95 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms if ms < 59_950.0 => format!("{:.1} s", ms / 1e3),
        ms => format!("{:.0} min", ms / 60e3),
    }
}

/// `12 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`.
pub(crate) fn span(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// `1,234,567`
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNICODE: Look = Look { colour: false, unicode: true, links: false };

    /// T14: nothing that a visitor or an edge writes does anything to the terminal.
    #[test]
    fn t14_nothing_hidden_reaches_the_terminal() {
        let bad = "a\x1b[2J\r\n\t\x07\u{9b}31m\u{202e}\u{2066}\u{2069}\u{200b}\u{200d}\u{feff}\u{ad}\u{2028}\u{e0041}\u{301}z";
        let shown = printable(bad);
        assert!(shown.starts_with("a\\u{1b}[2J\\u{d}\\u{a}") && shown.ends_with("\\u{301}z"));
        assert!(shown.chars().all(|c| (' '..='~').contains(&c)), "{shown:?}");
        assert_eq!(printable("/späti/日本?q=%1b"), "/späti/日本?q=%1b");
        let line = Line::of(Tone::Url, "http://a.test/\x1b]8;;http://evil.test\x1b\\");
        let look = Look { links: true, ..UNICODE };
        assert!(!line.paint(look).contains('\x1b'), "a URL that is none is no link");
        assert_eq!(printable(&"x".repeat(10_000)).len(), LONGEST);
    }

    #[test]
    fn lines_are_cut_by_what_is_seen() {
        assert_eq!(cut("abcdef", 6, UNICODE), "abcdef");
        assert_eq!(cut("abcdefg", 6, UNICODE), "abcde…");
        assert_eq!(cut("日本語", 5, UNICODE), "日本…");
        assert_eq!(cut("日本語", 4, UNICODE), "日…");
        assert_eq!(cut("abcdefg", 6, Look::PLAIN), "abc...");
        assert_eq!(cut("abcdefg", 2, Look::PLAIN), "");
        let line = Line::of(Tone::Good, "abc").with(Tone::Bad, "defgh");
        assert_eq!(line.clone().cut(5, UNICODE).paint(UNICODE), "abcd…");
        assert_eq!(line.cut(8, UNICODE).width(), 8);
    }

    #[test]
    fn long_texts_break_between_words() {
        let text = "nothing listens there; start the local server";
        assert_eq!(
            wrap(text, 16, 9, UNICODE),
            ["nothing listens", "there; start the", "local server"]
        );
        assert_eq!(wrap(text, 16, 2, UNICODE), ["nothing listens", "there; start th…"]);
        assert_eq!(wrap("abcdefghijkl m", 8, 9, UNICODE), ["abcdefg…", "m"]);
        assert_eq!(wrap("", 8, 9, UNICODE), [""]);
    }

    #[test]
    fn colours_and_links_are_only_where_they_are_wanted() {
        let line = Line::of(Tone::Url, "https://a.test").with(Tone::Plain, " ●");
        assert_eq!(line.paint(UNICODE), "https://a.test ●");
        assert_eq!(line.paint(Look::PLAIN), "https://a.test ?");
        let all = Look { colour: true, unicode: true, links: true };
        let link =
            "\x1b]8;;https://a.test\x1b\\\x1b[1m\x1b[36mhttps://a.test\x1b[0m\x1b]8;;\x1b\\ ●";
        assert_eq!(line.paint(all), link);
        assert!(has_links("xterm-256color", "") && has_links("xterm", "6003"));
        assert!(!has_links("linux", "") && !has_links("xterm", "4205") && !has_links("", ""));
        assert!(is_unicode(["", "", "de_DE.UTF-8"]) && is_unicode(["", "", ""]));
        assert!(!is_unicode(["C", "", "de_DE.UTF-8"]) && !is_unicode(["", "", "POSIX"]));
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.04, 9.94, 12.6, 999.4, 1_234.0, 61e3].map(milliseconds);
        assert_eq!(shown, ["0.0 ms", "9.9 ms", "13 ms", "999 ms", "1.2 s", "1 min"]);
        let shown = [900, 59_999, 61_000, 3_661_000, 90_000_000].map(span);
        assert_eq!(shown, ["0 s", "59 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
        assert_eq!([7, 1_000, 1_234_567].map(count), ["7", "1,000", "1,234,567"]);
    }
}
