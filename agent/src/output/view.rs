//! The lines that show an agent, for a terminal of any size.

use time::{OffsetDateTime, UtcOffset};
use uniroute_agent::local::DEFAULT_PORT;

use super::{
    seen::{HINT, Level, MESSAGE, Millis, Phase, Request, Seen, Session, State, Tunnel},
    text::{Line, Look, Tone, count, cut, milliseconds, printable, span, width, wrap},
};

/// Columns of the labels.
const LABEL: usize = 11;
/// Requests that are shown at most.
const REQUESTS: usize = 12;
/// Room for so many requests goes before empty lines between the parts.
const BEFORE_SPACE: usize = 4;
/// Lines that one trouble or fix may take.
const TROUBLE: usize = 3;
/// Messages that are shown at most.
const MESSAGES: usize = 3;
/// Sessions that are shown at most.
const SESSIONS: usize = 4;
/// Wider lines are read no better.
const WIDEST: usize = 132;
/// Columns of the longest word for a tunnel's state: the view does not change its shape with it.
const WORD: usize = 8;
/// A terminal with fewer columns shows less of each request.
const NARROW: usize = 60;
/// Columns of a tunnel's name, at most.
const TUNNEL: usize = 12;

/// Where lines go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) columns: usize,
    /// Lines that there is room for.
    pub(crate) rows: usize,
    pub(crate) look: Look,
    /// Of the clock on the wall.
    pub(crate) offset: UtcOffset,
    pub(crate) now: Millis,
}

/// An agent that is watched.
pub(crate) fn live(seen: &Seen, page: Page) -> Vec<Line> {
    let page = Page { columns: page.columns.clamp(20, WIDEST), ..page };
    let mut parts =
        vec![head(seen, page), tunnels(seen, page), hints(seen, page), facts(seen, page)];
    let messages = messages(seen, page);
    let said = parts.iter().chain([&messages]).map(|part| rows(part, page)).sum::<usize>();
    let spaces = parts.iter().filter(|part| !part.is_empty()).count();
    let spacious = said + spaces + 2 + BEFORE_SPACE <= page.rows;
    let left = page.rows.saturating_sub(said + if spacious { spaces + 1 } else { 0 });
    parts.extend([messages, requests(seen, page, left)]);
    joined(parts, spacious, page)
}

/// An agent at one moment, in as many lines as it takes.
pub(crate) fn once(seen: &Seen, page: Page) -> Vec<Line> {
    let page = Page { columns: page.columns.clamp(20, WIDEST), rows: usize::MAX, ..page };
    joined(vec![head(seen, page), tunnels(seen, page), facts(seen, page)], true, page)
}

/// The parts below each other; what there is no room for is left out at the end.
fn joined(parts: Vec<Vec<Line>>, spacious: bool, page: Page) -> Vec<Line> {
    let mut lines = Vec::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        if spacious && !lines.is_empty() {
            lines.push(Line::new());
        }
        lines.extend(part);
    }
    while rows(&lines, page) > page.rows {
        lines.pop();
    }
    lines
}

fn head(seen: &Seen, page: Page) -> Vec<Line> {
    let look = page.look;
    let title = |tone, mark: &str, text: &str| {
        Line::of(Tone::Strong, "UniRoute").with(Tone::Plain, "  ").with(tone, mark).with(tone, text)
    };
    let (_, _, open) = seen.totals();
    let line = match &seen.phase {
        Phase::Connecting => title(Tone::Warn, look.ring(), " connecting"),
        Phase::Online => title(Tone::Good, look.dot(), " online"),
        Phase::Waiting { .. } => title(Tone::Bad, look.alert(), " not connected"),
        Phase::Draining => {
            let what = match open {
                0 => " draining".to_owned(),
                1 => " draining 1 request".to_owned(),
                open => format!(" draining {} requests", count(open)),
            };
            title(Tone::Warn, look.ring(), &what).with(Tone::Quiet, ", Ctrl-C again to stop now")
        }
        Phase::Ended => title(Tone::Quiet, look.ring(), " ended"),
    };
    let up = span(page.now.saturating_sub(seen.agent.started_ms));
    let up = if seen.phase == Phase::Ended { format!("after {up}") } else { format!("up {up}") };
    let line = line.right(Line::of(Tone::Quiet, &up), page.columns);
    let mut lines = vec![line.cut(page.columns, look)];
    if let Phase::Waiting { reason, until } = &seen.phase {
        let again = match until.saturating_sub(page.now).div_ceil(1_000) {
            0 => "trying again".to_owned(),
            s => format!("next try in {s} s"),
        };
        let reason = reason.trim_end_matches('.');
        let said = if reason.is_empty() { again } else { format!("{reason}; {again}") };
        lines.extend(paragraph("", Tone::Plain, &said, page));
    }
    lines
}

/// Each with its URL, which is always whole: it is there to be copied.
fn tunnels(seen: &Seen, page: Page) -> Vec<Line> {
    let tunnels = &seen.agent.tunnels;
    let keys = keys(tunnels);
    let urls = tunnels.iter().map(|tunnel| width(address(tunnel, page))).max().unwrap_or(0);
    let begins = 2 + if keys == 0 { 0 } else { keys + 2 };
    // One line each if all of them fit.
    let wide = tunnels
        .iter()
        .all(|tunnel| begins + urls + 4 + width(&target(tunnel)) + 2 + WORD <= page.columns);
    let mut lines = Vec::new();
    for (done, tunnel) in tunnels.iter().enumerate() {
        let mut block = if wide {
            one_line(tunnel, keys, begins + urls, page)
        } else {
            some_lines(tunnel, keys, begins, page)
        };
        block.extend(troubles(tunnel, seen.phase == Phase::Online, page));
        let rest = tunnels.len() - done;
        // One line stays free for those that are not shown.
        let room = page.rows.saturating_sub(lines.len() + 2);
        if rows(&block, page) > room && done > 0 {
            let more = format!("and {rest} more: see `uniroute status`");
            lines.push(Line::of(Tone::Quiet, &more).cut(page.columns, page.look));
            break;
        }
        lines.extend(block);
    }
    if tunnels.is_empty() {
        lines.push(Line::of(Tone::Quiet, "No tunnels."));
    }
    lines
}

/// Columns for the tunnels' names; of one alone it is not shown.
fn keys(tunnels: &[Tunnel]) -> usize {
    match tunnels.len() {
        0 | 1 => 0,
        _ => tunnels.iter().map(|tunnel| width(&tunnel.key)).max().unwrap_or(0).min(TUNNEL),
    }
}

/// Lines of the terminal that these take.
fn rows(lines: &[Line], page: Page) -> usize {
    lines.iter().map(|line| line.width().div_ceil(page.columns).max(1)).sum()
}

fn one_line(tunnel: &Tunnel, keys: usize, urls: usize, page: Page) -> Vec<Line> {
    let (tone, word) = word(tunnel);
    let mut line = mark(tunnel, page);
    if keys > 0 {
        line = line.with(Tone::Plain, &cut(&tunnel.key, keys, page.look)).to(2 + keys + 2);
    }
    let line = line.and(url(tunnel, page)).to(urls);
    let line = line.with(Tone::Quiet, &format!(" {} ", page.look.arrow()));
    let line = line.with(Tone::Plain, &target(tunnel));
    vec![line.with(Tone::Plain, "  ").with(tone, word)]
}

fn some_lines(tunnel: &Tunnel, keys: usize, begins: usize, page: Page) -> Vec<Line> {
    let (tone, word) = word(tunnel);
    let address = url(tunnel, page);
    let mut lines = Vec::new();
    let first = mark(tunnel, page);
    let first = if keys > 0 {
        first.with(Tone::Plain, &cut(&tunnel.key, page.columns / 3, page.look)).to(begins)
    } else {
        first
    };
    if first.width() + address.width() <= page.columns {
        lines.push(first.and(address));
    } else {
        // On a line of its own, from its beginning, so that it is copied in one piece.
        lines.push(first.with(tone, word).cut(page.columns, page.look));
        lines.push(address);
    }
    let goes = Line::of(Tone::Quiet, &format!("  {} ", page.look.arrow()));
    let goes = goes.with(Tone::Plain, &target(tunnel));
    let goes = match lines.len() {
        1 => goes.with(Tone::Plain, "  ").with(tone, word),
        _ => goes,
    };
    lines.push(goes.cut(page.columns, page.look));
    lines
}

/// What is wrong with it, and what to do.
fn troubles(tunnel: &Tunnel, online: bool, page: Page) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut say = |tone, text: &str| {
        if !text.is_empty() {
            lines.extend(paragraph("  ", tone, text, page));
        }
    };
    match tunnel.state {
        State::Paused => say(Tone::Warn, "Its owner has paused it: nobody is let in."),
        State::Deleted => say(Tone::Bad, "Its owner has deleted it."),
        State::Refused => {
            say(Tone::Bad, &tunnel.reason);
            say(Tone::Plain, &tunnel.fix);
        }
        State::Waiting if online => say(Tone::Quiet, &tunnel.reason),
        State::Waiting | State::Ready | State::Closed | State::Unknown => {}
    }
    for upstream in tunnel.down() {
        let which = match tunnel.upstreams.len() {
            1 => String::new(),
            _ => format!("{} ", upstream.url),
        };
        let since = match upstream.since_ms {
            0 => String::new(),
            since => format!(" for {}", span(page.now.saturating_sub(since))),
        };
        let reason = upstream.reason.trim_end_matches('.');
        say(Tone::Bad, &format!("Local server {which}down{since}: {reason}."));
    }
    lines
}

fn mark(tunnel: &Tunnel, page: Page) -> Line {
    let look = page.look;
    let mark = match word(tunnel).0 {
        Tone::Good => look.dot(),
        Tone::Bad => look.alert(),
        _ => look.ring(),
    };
    Line::of(word(tunnel).0, mark).to(2)
}

fn word(tunnel: &Tunnel) -> (Tone, &'static str) {
    let (down, all) = (tunnel.down().count(), tunnel.upstreams.len());
    match tunnel.state {
        State::Ready if down > 0 && down == all => (Tone::Bad, "down"),
        State::Ready if down > 0 => (Tone::Warn, "degraded"),
        State::Ready => (Tone::Good, "ready"),
        State::Waiting => (Tone::Warn, "waiting"),
        State::Paused => (Tone::Warn, "paused"),
        State::Refused => (Tone::Bad, "refused"),
        State::Deleted => (Tone::Bad, "deleted"),
        State::Closed => (Tone::Quiet, "closed"),
        State::Unknown => (Tone::Warn, "unknown"),
    }
}

fn address(tunnel: &Tunnel, page: Page) -> &str {
    match (&tunnel.url[..], tunnel.state) {
        ("", State::Refused | State::Deleted | State::Closed) => "no URL",
        ("", _) if page.look.unicode => "URL to come…",
        ("", _) => "URL to come",
        (url, _) => url,
    }
}

fn url(tunnel: &Tunnel, page: Page) -> Line {
    let tone = if tunnel.url.is_empty() { Tone::Quiet } else { Tone::Url };
    Line::of(tone, address(tunnel, page))
}

fn target(tunnel: &Tunnel) -> String {
    let first = tunnel.upstreams.first().map_or("", |upstream| &upstream.url);
    match tunnel.upstreams.len() {
        0 | 1 => first.to_owned(),
        all => format!("{first} and {} more", all - 1),
    }
}

/// What is worth a line for as long as it is new.
fn hints(seen: &Seen, page: Page) -> Vec<Line> {
    let mut lines = Vec::new();
    let shown = u64::try_from(HINT.as_millis()).unwrap_or(u64::MAX);
    let fresh = seen.hints.iter().filter(|hint| page.now < hint.at.saturating_add(shown));
    for hint in fresh.take(2) {
        let of = match seen.agent.tunnels.len() {
            0 | 1 => String::new(),
            _ => format!("{}: ", hint.key),
        };
        let title = paragraph("", Tone::Warn, &format!("Hint: {of}{}", hint.title), page);
        lines.extend(title);
        lines.extend(paragraph("  ", Tone::Plain, &hint.fix, page));
    }
    lines
}

fn facts(seen: &Seen, page: Page) -> Vec<Line> {
    let mut lines = sessions(seen, page);
    let (requests, failed, open) = seen.totals();
    let mut counts = vec![Line::of(Tone::Plain, &count(requests))];
    if failed > 0 {
        counts.push(Line::of(Tone::Bad, &format!("{} failed", count(failed))));
    }
    if open > 0 {
        counts.push(Line::of(Tone::Plain, &format!("{} open", count(open))));
    }
    if let Some((half, most)) = seen.percentiles() {
        let ms = |time: std::time::Duration| milliseconds(time.as_secs_f64() * 1e3);
        counts.push(Line::of(Tone::Plain, &format!("p50 {}", ms(half))));
        counts.push(Line::of(Tone::Plain, &format!("p99 {}", ms(most))));
    }
    lines.extend(row("Requests", counts, page));
    if let Some(inspector) = &seen.inspector {
        let mut items = vec![Line::of(Tone::Url, inspector)];
        if seen.moved {
            items.push(Line::of(Tone::Plain, &format!("port {DEFAULT_PORT} is taken")));
        }
        lines.extend(row("Inspector", items, page));
    }
    lines
}

fn sessions(seen: &Seen, page: Page) -> Vec<Line> {
    let sessions = &seen.agent.sessions;
    let mut lines = Vec::new();
    for (number, session) in sessions.iter().take(SESSIONS).enumerate() {
        let label = if number == 0 { "Session" } else { "" };
        lines.extend(row(label, session_items(session, page), page));
    }
    if sessions.is_empty() {
        lines.extend(row("Edge", vec![Line::of(Tone::Plain, &seen.server)], page));
    }
    lines
}

fn session_items(session: &Session, page: Page) -> Vec<Line> {
    let mut items =
        vec![Line::of(Tone::Plain, &session.edge), Line::of(Tone::Plain, &session.carrier)];
    if session.rtt_us > 0 {
        #[allow(clippy::cast_precision_loss, reason = "shown with three digits")]
        let rtt = session.rtt_us as f64 / 1e3;
        items.push(Line::of(Tone::Plain, &milliseconds(rtt)));
    }
    let since = span(page.now.saturating_sub(session.since_ms));
    items.push(Line::of(Tone::Quiet, &format!("for {since}")));
    items
}

/// A label and what belongs to it, in as many lines as that takes.
fn row(label: &str, items: Vec<Line>, page: Page) -> Vec<Line> {
    let mut lines = vec![Line::of(Tone::Quiet, label).to(LABEL)];
    let mut first = true;
    for item in items {
        let line = lines.pop().unwrap_or_default();
        let gap = if first { "" } else { page.look.between() };
        if first || line.width() + width(gap) + item.width() <= page.columns {
            lines.push(line.with(Tone::Quiet, gap).and(item));
        } else {
            lines.extend([line, Line::new().to(LABEL).and(item)]);
        }
        first = false;
    }
    lines.into_iter().map(|line| line.cut(page.columns, page.look)).collect()
}

fn paragraph(indent: &str, tone: Tone, text: &str, page: Page) -> Vec<Line> {
    let text = printable(text);
    let columns = page.columns.saturating_sub(width(indent));
    let lines = wrap(&text, columns, TROUBLE, page.look);
    lines.iter().map(|line| Line::of(Tone::Plain, indent).with(tone, line)).collect()
}

fn messages(seen: &Seen, page: Page) -> Vec<Line> {
    let shown = u64::try_from(MESSAGE.as_millis()).unwrap_or(u64::MAX);
    let fresh = seen.messages.iter().rev();
    let fresh = fresh.filter(|message| page.now < message.at.saturating_add(shown));
    let fresh: Vec<_> = fresh.take(MESSAGES).collect();
    if fresh.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![heading("Messages")];
    for message in fresh.into_iter().rev() {
        let tone = match message.level {
            Level::Info => Tone::Plain,
            Level::Warning => Tone::Warn,
            Level::Error => Tone::Bad,
        };
        let times = match message.times {
            0 | 1 => String::new(),
            times => format!(" ({times} times)"),
        };
        let mut begin = Line::of(Tone::Quiet, &clock(message.at, page)).with(Tone::Plain, "  ");
        let indent = begin.width();
        // Faults of a config file are one a line.
        let text = printable(&message.text.replace('\n', " ")) + &times;
        for part in wrap(&text, page.columns - indent, TROUBLE, page.look) {
            lines.push(begin.with(tone, &part).cut(page.columns, page.look));
            begin = Line::new().to(indent);
        }
    }
    lines
}

/// The last requests, the latest first.
fn requests(seen: &Seen, page: Page, room: usize) -> Vec<Line> {
    let room = room.min(REQUESTS + 1);
    if room < 2 {
        return Vec::new();
    }
    if seen.requests.is_empty() {
        let waits = seen.agent.tunnels.iter().any(|tunnel| tunnel.state == State::Ready);
        let waits = waits && seen.phase == Phase::Online;
        return if waits { vec![heading("No requests yet")] } else { Vec::new() };
    }
    let keys = keys(&seen.agent.tunnels);
    let shown = seen.requests.iter().take(room - 1).map(|shown| request(shown, keys, page));
    std::iter::once(heading("Last requests")).chain(shown).collect()
}

/// What has a width of its own comes first, and the path as far as it fits. `keys`: columns of the
/// tunnel's name; 0: there is one tunnel only.
fn request(request: &Request, keys: usize, page: Page) -> Line {
    let tone = match request.status {
        500.. => Tone::Bad,
        400.. => Tone::Warn,
        300.. => Tone::Plain,
        _ => Tone::Good,
    };
    let narrow = page.columns < NARROW;
    let took = milliseconds(request.duration.as_secs_f64() * 1e3);
    let mut line = Line::new();
    if !narrow {
        line = line.with(Tone::Quiet, &clock(request.at, page)).with(Tone::Plain, "  ");
    }
    line = line.with(tone, &format!("{:>3}", request.status));
    line = line.with(Tone::Quiet, &format!("{took:>9}")).with(Tone::Plain, "  ");
    if keys > 0 && !narrow {
        let begins = line.width();
        line = line.with(Tone::Plain, &cut(&request.tunnel, keys, page.look)).to(begins + keys + 2);
    }
    let method = cut(&request.method, 7, page.look);
    let method = if narrow { format!("{method:<4} ") } else { format!("{method:<7} ") };
    line.with(Tone::Plain, &method).with(Tone::Plain, &request.path).cut(page.columns, page.look)
}

fn heading(text: &str) -> Line {
    Line::of(Tone::Quiet, text)
}

/// The time of day.
fn clock(at: Millis, page: Page) -> String {
    let nanos = i128::from(at) * 1_000_000;
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (hour, minute, second) = time.to_offset(page.offset).to_hms();
    format!("{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests;
