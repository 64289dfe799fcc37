//! The live view: a few lines of a terminal, drawn again when something has changed.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    io::{self, Write as _},
    time::Duration,
};

use anstyle::{AnsiColor, Color, Style};
use tokio::{sync::mpsc::Receiver, time::interval};
use uniroute_agent::Event;

/// Requests that are shown, the latest last.
const REQUESTS: usize = 8;
/// Time between two drawings; what happens in between is drawn together.
const FRAME: Duration = Duration::from_millis(100);

/// What the view shows.
pub(crate) struct Live {
    server: String,
    session: String,
    connected: bool,
    rtt: Option<Duration>,
    tunnels: BTreeMap<String, Row>,
    requests: VecDeque<String>,
    served: u64,
    colour: bool,
    /// Lines of the last drawing.
    lines: usize,
}

#[derive(Default)]
struct Row {
    url: String,
    upstream: String,
    fault: String,
}

impl Live {
    pub(crate) fn new(server: &str) -> Self {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            server: server.to_owned(),
            session: "connecting".into(),
            connected: false,
            rtt: None,
            tunnels: BTreeMap::new(),
            requests: VecDeque::new(),
            served: 0,
            colour,
            lines: 0,
        }
    }

    pub(crate) async fn run(mut self, mut events: Receiver<Event>) {
        let mut frame = interval(FRAME);
        let mut changed = true;
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => {
                        self.take(event);
                        changed = true;
                    }
                    None => return self.draw(),
                },
                _ = frame.tick(), if changed => {
                    self.draw();
                    changed = false;
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Connecting if !self.connected => self.session = "connecting".into(),
            Event::Connected { edge, carrier } => {
                self.connected = true;
                self.session = format!("online ({edge}, {carrier})");
            }
            Event::Ready { key, url, upstream, .. } => {
                self.tunnels.insert(key, Row { url, upstream, fault: String::new() });
            }
            Event::Refused { key, code, message } => {
                self.tunnels.entry(key).or_default().fault = format!("{message} (UR-{code:04})");
            }
            Event::Paused { key, paused } => {
                let fault = if paused { "paused: nobody is let in" } else { "" };
                self.tunnels.entry(key).or_default().fault = fault.into();
            }
            Event::Disconnected { reason, retry_in } => {
                self.connected = false;
                self.rtt = None;
                self.session = format!("{reason}; next try in {:.1} s", retry_in.as_secs_f32());
            }
            Event::RoundTrip(rtt) => self.rtt = Some(rtt),
            Event::Request { method, path, status, duration, .. } => {
                self.served += 1;
                if self.requests.len() == REQUESTS {
                    self.requests.pop_front();
                }
                let status = self.paint(status_colour(status), &status.to_string());
                let line = format!(
                    "{method:<7} {status} {:>7.1} ms  {path}",
                    duration.as_secs_f64() * 1e3
                );
                self.requests.push_back(line);
            }
            _ => {}
        }
    }

    fn draw(&mut self) {
        let text = self.text();
        let mut out = String::new();
        if self.lines > 0 {
            // Up to the first line of the last drawing.
            let _ = write!(out, "\x1b[{}F", self.lines);
        }
        for line in text.lines() {
            let _ = writeln!(out, "{line}\x1b[K");
        }
        out.push_str("\x1b[J");
        self.lines = text.lines().count();
        // A terminal that is gone shows nothing; the tunnel goes on.
        let _ = io::stdout().write_all(out.as_bytes());
        let _ = io::stdout().flush();
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let colour = if self.connected { AnsiColor::Green } else { AnsiColor::Yellow };
        let mut row = |label: &str, value: &str| {
            let _ = writeln!(text, "{label:<12} {}", cut(value));
        };
        row("Session", &self.paint(colour, &printable(&self.session)));
        row("Edge", &self.server);
        if let Some(rtt) = self.rtt {
            row("Latency", &format!("{:.1} ms", rtt.as_secs_f64() * 1e3));
        }
        for Row { url, upstream, fault } in self.tunnels.values() {
            if fault.is_empty() {
                row("Forwarding", &format!("{} -> {upstream}", self.paint(AnsiColor::Cyan, url)));
            } else {
                row("Refused", &self.paint(AnsiColor::Red, &printable(fault)));
            }
        }
        row("Requests", &self.served.to_string());
        for request in &self.requests {
            let _ = writeln!(text, "  {}", cut(&printable_keep_style(request)));
        }
        text
    }

    fn paint(&self, colour: AnsiColor, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let style = Style::new().fg_color(Some(Color::Ansi(colour)));
        format!("{style}{text}{style:#}")
    }
}

fn status_colour(status: u16) -> AnsiColor {
    match status {
        500.. => AnsiColor::Red,
        400.. => AnsiColor::Yellow,
        _ => AnsiColor::Green,
    }
}

/// What visitors and edges say must not move the cursor.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// The same for a line that holds our own colours: paths are already free of control characters,
/// since a request's target can't hold any.
fn printable_keep_style(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\x1b').collect()
}

/// One line of a terminal, as far as its width is known: a drawing must not wrap. Colours don't
/// count.
fn cut(text: &str) -> String {
    let width = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(100);
    let (mut shown, mut in_escape, mut out) = (0, false, String::new());
    for c in text.chars() {
        in_escape |= c == '\x1b';
        if in_escape || shown < width - 14 {
            out.push(c);
        }
        if in_escape {
            in_escape = !c.is_ascii_alphabetic();
        } else {
            shown += 1;
        }
    }
    out
}
