//! One line for each event, for people without a live view and for programs.

use std::collections::HashMap;

use serde_json::{Value, json};
use uniroute_agent::{Applied, Event, local::DEFAULT_PORT};
use uniroute_shared::code::Code;

use super::{Program, text::printable};
use crate::cli::Output;

/// Writes lines in one of the ways that there are.
pub(super) struct Plain {
    output: Output,
    /// The URL of each tunnel that was said.
    known: HashMap<String, String>,
}

impl Plain {
    pub(super) fn new(output: Output) -> Self {
        Self { output, known: HashMap::new() }
    }

    /// The line for an event, if it has one.
    pub(super) fn event(&mut self, event: &Event, program: &Program) -> Option<String> {
        match self.output {
            Output::Json => json_line(event, program),
            Output::Url => self.new_url(event).map(str::to_owned),
            Output::Text => self.text(event).map(|line| printable(&line)),
        }
    }

    /// The line for a change of the program's own.
    pub(super) fn program(&self, before: &Program, now: &Program) -> Vec<String> {
        let mut lines = Vec::new();
        if self.output != Output::Text {
            return lines;
        }
        if let Some(url) = now.inspector.as_ref().filter(|_| before.inspector != now.inspector) {
            let taken = format!(" (port {DEFAULT_PORT} is taken)");
            lines.push(format!("inspector {url}{}", if now.moved { &taken } else { "" }));
        }
        if now.draining && !before.draining {
            lines.push("draining: open requests are finished; a second signal ends at once".into());
        }
        lines
    }

    /// The URL of a tunnel, once, and again if it has changed.
    fn new_url<'a>(&mut self, event: &'a Event) -> Option<&'a str> {
        let Event::Ready { key, url, .. } = event else { return None };
        let before = self.known.insert(key.clone(), url.clone());
        (before.as_ref() != Some(url)).then_some(url)
    }

    /// The first word says what has happened, the second to which tunnel.
    fn text(&mut self, event: &Event) -> Option<String> {
        Some(match event {
            Event::Connected { edge, carrier } => format!("connected to {edge} over {carrier}"),
            Event::Ready { key, upstream, .. } => {
                let url = self.new_url(event)?;
                format!("ready {key} {url} -> {upstream}")
            }
            Event::Refused { key, code, message } => {
                let fix = Code::from_number(*code).map_or("", |code| code.fix);
                format!("refused {key}: {message} (UR-{code:04}). {fix}")
            }
            Event::Applied(Applied { added, changed, removed, unchanged }) => {
                let part = |what: &str, keys: &[String]| match keys {
                    [] => String::new(),
                    keys => format!(" {what} {};", keys.join(", ")),
                };
                let parts =
                    [part("added", added), part("changed", changed), part("removed", removed)];
                format!("reloaded:{} {unchanged} unchanged", parts.concat())
            }
            Event::Paused { key, paused: true } => format!("paused {key}: nobody is let in"),
            Event::Paused { key, paused: false } => format!("resumed {key}"),
            Event::Disconnected { reason, retry_in } => {
                format!("disconnected: {reason}; next try in {:.1} s", retry_in.as_secs_f32())
            }
            Event::Upstream { key, upstream, healthy: true, .. } => format!("up {key} {upstream}"),
            Event::Upstream { key, upstream, healthy: false, reason } => {
                format!("down {key} {upstream}: {reason}")
            }
            Event::Hint { key, title, fix } => format!("hint {key}: {title}. {fix}"),
            _ => return None,
        })
    }
}

fn json_line(event: &Event, program: &Program) -> Option<String> {
    let value: Value = match event {
        Event::Connecting => json!({ "event": "connecting" }),
        Event::Connected { edge, carrier } => json!({
            "event": "connected", "edge": edge, "carrier": carrier.as_str(),
        }),
        Event::Ready { key, name, url, upstream } => json!({
            "event": "ready", "tunnel": key, "name": name, "url": url, "upstream": upstream,
            "inspector": program.inspector,
        }),
        Event::Refused { key, code, message } => json!({
            "event": "refused", "tunnel": key, "code": format!("UR-{code:04}"), "message": message,
        }),
        Event::Disconnected { reason, retry_in } => json!({
            "event": "disconnected", "reason": reason, "retry_in_ms": retry_in.as_millis(),
        }),
        Event::Applied(Applied { added, changed, removed, unchanged }) => json!({
            "event": "reloaded", "added": added, "changed": changed, "removed": removed,
            "unchanged": unchanged,
        }),
        Event::Paused { key, paused } => json!({
            "event": if *paused { "paused" } else { "resumed" }, "tunnel": key,
        }),
        Event::RoundTrip(rtt) => json!({ "event": "round_trip", "rtt_us": rtt.as_micros() }),
        Event::Status { key, requests, latency_ms, uptime_seconds, paused } => json!({
            "event": "status", "tunnel": key, "requests": requests, "latency_ms": latency_ms,
            "uptime_seconds": uptime_seconds, "paused": paused,
        }),
        Event::Upstream { key, upstream, healthy, reason } => json!({
            "event": "upstream", "tunnel": key, "upstream": upstream, "healthy": healthy,
            "reason": reason,
        }),
        Event::Hint { key, title, fix } => json!({
            "event": "hint", "tunnel": key, "title": title, "fix": fix,
        }),
        // Too many for a stream of events; they are in the log at level debug.
        _ => return None,
    };
    Some(value.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ready(url: &str) -> Event {
        let [key, name, upstream] = ["web", "demo", "http://localhost:3000"].map(str::to_owned);
        Event::Ready { key, name, url: url.to_owned(), upstream }
    }

    #[test]
    fn each_event_has_one_line_that_can_be_searched_for() {
        let refused =
            Event::Refused { key: "web".into(), code: 1101, message: "taken\x1b[2J".into() };
        let waits = Duration::from_millis(1_234);
        let events = [
            Event::Connecting,
            ready("https://demo.test"),
            ready("https://demo.test"),
            refused,
            Event::Disconnected { reason: "no such host".into(), retry_in: waits },
            Event::Upstream {
                key: "web".into(),
                upstream: "http://localhost:3000".into(),
                healthy: false,
                reason: "nothing listens there".into(),
            },
        ];
        let mut plain = Plain::new(Output::Text);
        let program = Program::default();
        let lines: Vec<_> = events.iter().filter_map(|e| plain.event(e, &program)).collect();
        assert_eq!(lines[0], "ready web https://demo.test -> http://localhost:3000");
        assert!(lines[1].starts_with("refused web: taken\\u{1b}[2J (UR-1101). "), "{}", lines[1]);
        assert_eq!(lines[2], "disconnected: no such host; next try in 1.2 s");
        assert_eq!(lines[3], "down web http://localhost:3000: nothing listens there");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn json_says_where_the_inspector_is() {
        let inspector = Some("http://127.0.0.1:4040".to_owned());
        let program = Program { inspector, ..Program::default() };
        let line = Plain::new(Output::Json).event(&ready("https://a.test"), &program).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["inspector"], "http://127.0.0.1:4040");
        assert_eq!((&line["event"], &line["tunnel"]), (&json!("ready"), &json!("web")));
    }
}
