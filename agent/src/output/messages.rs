//! The log of a program that has a live view: its lines go there.

use std::{collections::VecDeque, fmt::Write as _, io, sync::Arc};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::seen::{self, Level, Message};

/// Lines that wait to be shown; later ones are left out.
const WAITING: usize = 64;
/// What events say, too, and better.
const SAID_ELSEWHERE: [&str; 3] =
    ["not connected", "a tunnel was refused", "a local server does not answer"];

/// Takes the lines of a log, each a JSON object.
#[derive(Clone, Default)]
pub(crate) struct Messages(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Mutex<VecDeque<Message>>,
    some: Notify,
}

impl Messages {
    /// Waits until there are some.
    pub(super) async fn some(&self) {
        self.0.some.notified().await;
    }

    pub(super) fn take(&self) -> VecDeque<Message> {
        std::mem::take(&mut self.0.waiting.lock())
    }

    fn line(&self, line: &str) {
        let Some(message) = message(line) else { return };
        let mut waiting = self.0.waiting.lock();
        if waiting.len() < WAITING {
            waiting.push_back(message);
            self.0.some.notify_one();
        }
    }
}

/// Each line comes in one piece.
impl io::Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        String::from_utf8_lossy(bytes).lines().for_each(|line| self.line(line));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn message(line: &str) -> Option<Message> {
    let fields: Map<String, Value> = serde_json::from_str(line).ok()?;
    let mut text = fields.get("message")?.as_str()?.to_owned();
    // What has a fix is a hint, too.
    if SAID_ELSEWHERE.contains(&&text[..]) || fields.contains_key("fix") {
        return None;
    }
    for (name, value) in &fields {
        if ["timestamp", "level", "target", "message"].contains(&&name[..]) {
            continue;
        }
        let _ = match value {
            Value::String(value) => write!(text, ", {name} {value}"),
            value => write!(text, ", {name} {value}"),
        };
    }
    let level = match fields.get("level").and_then(Value::as_str) {
        Some("ERROR") => Level::Error,
        Some("WARN") => Level::Warning,
        _ => Level::Info,
    };
    Some(Message { at: seen::now(), level, text, times: 1 })
}

#[cfg(test)]
mod tests {
    use io::Write as _;

    use super::*;

    #[test]
    fn log_lines_become_messages() {
        let mut messages = Messages::default();
        let line = r#"{"timestamp":"2026","level":"WARN","message":"the edge complains","code":2107,"why":"too many","target":"x"}"#;
        writeln!(messages, "{line}").unwrap();
        writeln!(messages, r#"{{"level":"WARN","message":"not connected"}}"#).unwrap();
        writeln!(messages, "no log line").unwrap();
        let taken = messages.take();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].text, "the edge complains, code 2107, why too many");
        assert!(taken[0].level == Level::Warning && messages.take().is_empty());
    }
}
