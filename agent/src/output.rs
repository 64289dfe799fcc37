//! What standard output shows of the agent's events: plain lines, JSON, URLs, or a live view.

mod live;

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _, Write as _},
};

use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;
use uniroute_agent::Event;

use self::live::Live;
use crate::cli::Output;

/// Shows events until there are no more.
pub(crate) async fn show(mut events: Receiver<Event>, output: Output, live: Option<Live>) {
    if let Some(live) = live {
        return live.run(events).await;
    }
    let mut known = HashMap::new();
    while let Some(event) = events.recv().await {
        let line = match output {
            Output::Json => json_line(&event),
            Output::Url => url_line(&event, &mut known),
            Output::Text => text_line(&event, &mut known),
        };
        if let Some(line) = line {
            // Who closed our output does not want to see any more of it; the tunnel goes on.
            let _ = writeln!(io::stdout(), "{line}");
        }
    }
}

/// A live view, if standard output is a terminal that can show one.
pub(crate) fn live_view(output: Output, server: &str) -> Option<Live> {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    (output == Output::Text && io::stdout().is_terminal() && !dumb).then(|| Live::new(server))
}

/// The URL of each tunnel, once, and again if it has changed.
fn url_line(event: &Event, known: &mut HashMap<String, String>) -> Option<String> {
    match event {
        Event::Ready { key, url, .. } => {
            let before = known.insert(key.clone(), url.clone());
            (before.as_ref() != Some(url)).then(|| url.clone())
        }
        _ => None,
    }
}

fn text_line(event: &Event, known: &mut HashMap<String, String>) -> Option<String> {
    match event {
        Event::Connecting | Event::RoundTrip(_) | Event::Status { .. } | Event::Request { .. } => {
            None
        }
        Event::Connected { edge, carrier } => Some(format!("connected to {edge} over {carrier}")),
        Event::Ready { upstream, .. } => {
            url_line(event, known).map(|url| format!("{url} -> {upstream}"))
        }
        Event::Refused { key, code, message } => {
            Some(format!("tunnel {key:?} refused: {message} (UR-{code:04})"))
        }
        Event::Paused { key, paused: true } => {
            Some(format!("tunnel {key:?} is paused: nobody is let in"))
        }
        Event::Paused { key, paused: false } => Some(format!("tunnel {key:?} goes on")),
        Event::Disconnected { reason, retry_in } => {
            Some(format!("not connected: {reason}; next try in {:.1} s", retry_in.as_secs_f32()))
        }
        _ => None,
    }
}

fn json_line(event: &Event) -> Option<String> {
    let value: Value = match event {
        Event::Connecting => json!({ "event": "connecting" }),
        Event::Connected { edge, carrier } => json!({
            "event": "connected", "edge": edge, "carrier": carrier.as_str(),
        }),
        Event::Ready { key, name, url, upstream } => json!({
            "event": "ready", "tunnel": key, "name": name, "url": url, "upstream": upstream, "inspector": null,
        }),
        Event::Refused { key, code, message } => json!({
            "event": "refused", "tunnel": key, "code": format!("UR-{code:04}"), "message": message,
        }),
        Event::Disconnected { reason, retry_in } => json!({
            "event": "disconnected", "reason": reason, "retry_in_ms": retry_in.as_millis(),
        }),
        Event::Paused { key, paused } => json!({
            "event": if *paused { "paused" } else { "resumed" }, "tunnel": key,
        }),
        Event::RoundTrip(rtt) => json!({ "event": "round_trip", "rtt_us": rtt.as_micros() }),
        Event::Status { key, requests, latency_ms, uptime_seconds, paused } => json!({
            "event": "status", "tunnel": key, "requests": requests, "latency_ms": latency_ms,
            "uptime_seconds": uptime_seconds, "paused": paused,
        }),
        // Too many for a stream of events; they are in the log at level debug.
        _ => return None,
    };
    Some(value.to_string())
}
