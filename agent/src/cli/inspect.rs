//! `uniroute inspect`: the requests that a running agent keeps, in the terminal.

use std::{
    collections::HashSet,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use serde_json::{Map, Value, json};
use uniroute_agent::local::{
    client::{Client, ClientError},
    running::{self, Running},
};

use crate::config;

/// How often a replay is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long its answer is waited for.
const PATIENCE: Duration = Duration::from_secs(150);
/// Requests that `tail` knows to have shown.
const MAX_SHOWN: usize = 10_000;

/// Requests that an agent of this machine keeps.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    which: Which,
    /// A table for people, or one JSON object a line. Default: text.
    #[arg(long, global = true, value_enum, default_value_t = Form::Text)]
    output: Form,
    #[command(subcommand)]
    command: InspectCommand,
}

/// The agent that is asked: the one that runs, or the one named.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Where the agent's local API is, such as 127.0.0.1:4040. Default: that of the agent that runs.
    #[arg(long, global = true, value_name = "ADDRESS")]
    address: Option<String>,
    /// The agent's process, if several run.
    #[arg(long, global = true, value_name = "PID")]
    pid: Option<u32>,
    /// Where agents that run are looked for. Default: a folder of this user's state.
    #[arg(long, global = true, env = "UNIROUTE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum InspectCommand {
    /// Shows requests as they are answered.
    Tail(Words),
    /// Shows the last requests.
    List {
        #[command(flatten)]
        words: Words,
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Shows one request and its answer.
    Show {
        /// Its id, or the beginning of it.
        id: String,
    },
    /// Sends a request once more, straight to the local server.
    Replay(Replay),
    /// Writes requests as a HAR file.
    Har {
        #[command(flatten)]
        words: Words,
        /// Where to. Default: standard output.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Forgets all requests.
    Clear,
}

/// What requests have to match.
#[derive(Debug, Args)]
struct Words {
    /// Words that must all be in the request, and fields: method:POST status:5xx path:/api type:json
    /// slow:500 is:websocket|sse|grpc|replay|error. Behind `--`, a word with `-` in front must not be
    /// in it.
    words: Vec<String>,
    /// Of this tunnel only.
    #[arg(long, value_name = "NAME")]
    tunnel: Option<String>,
}

#[derive(Debug, Args)]
struct Replay {
    /// The request's id, or the beginning of it.
    id: String,
    /// Another method.
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// Another path and query.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// A header more, or in place of the one that is there: `Name: value`.
    #[arg(long, value_name = "HEADER")]
    set_header: Vec<String>,
    /// A header less.
    #[arg(long, value_name = "NAME")]
    remove_header: Vec<String>,
    /// Another body; `@FILE` for what is in a file, `@-` for standard input.
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// Another local server: a port of this machine, or one that a tunnel of the agent has.
    #[arg(long, value_name = "UPSTREAM")]
    upstream: Option<String>,
}

impl Which {
    /// The agent's local API.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        if let Some(address) = &self.address {
            return Ok(Client::new(address));
        }
        let state_dir = config::state_dir(self.state_dir.as_deref());
        let mut all = running::find(&state_dir);
        if let Some(pid) = self.pid {
            all.retain(|running| running.pid == pid);
            ensure!(!all.is_empty(), "no agent with the process id {pid} runs here");
        }
        ensure!(
            !all.is_empty(),
            "no agent runs here: start one with `uniroute http PORT` or `uniroute start`, or name one with --address",
        );
        ensure!(all.len() == 1, "several agents run; choose one with --pid:\n{}", table_of(&all));
        match &all[0].inspector {
            Some(url) => Ok(Client::new(url)),
            None => bail!(
                "the agent (process {}) has no local API: start it without `--inspector off`",
                all[0].pid
            ),
        }
    }
}

fn table_of(all: &[Running]) -> String {
    let line = |running: &Running| {
        let config = running.config.as_deref().map(Path::display);
        let what = config.map_or_else(|| running.upstreams.join(", "), |path| path.to_string());
        let url = running.inspector.as_deref().unwrap_or("no local API");
        format!("  --pid {:<8} {url}  {what}", running.pid)
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl Words {
    /// As a query, with further parameters.
    fn query(&self, further: &[(&str, String)]) -> String {
        let mut pairs = vec![("q", self.words.join(" "))];
        pairs.extend(self.tunnel.clone().map(|tunnel| ("tunnel", tunnel)));
        pairs.extend(further.iter().cloned());
        let pair = |(name, value): &(&str, String)| format!("{name}={}", escaped(value));
        pairs.iter().map(pair).collect::<Vec<_>>().join("&")
    }

    fn is_empty(&self) -> bool {
        self.words.is_empty() && self.tunnel.is_none()
    }
}

/// A value of a query.
fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte.into());
            }
            _ => drop(write!(out, "%{byte:02X}")),
        }
        out
    })
}

impl Inspect {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let client = self.which.client()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shown = Shown::new(self.output);
        runtime.block_on(async {
            match self.command {
                InspectCommand::Tail(words) => tail(&client, &words, &shown).await,
                InspectCommand::List { words, limit } => list(&client, &words, limit, &shown).await,
                InspectCommand::Show { id } => show(&client, &id, &shown).await,
                InspectCommand::Replay(replay) => replay.run(&client, &shown).await,
                InspectCommand::Har { words, file } => har(&client, &words, file).await,
                InspectCommand::Clear => {
                    client.call(Method::DELETE, "/api/v1/requests", None).await?;
                    Ok(())
                }
            }
        })
    }
}

/// How it is shown.
struct Shown {
    form: Form,
    colour: bool,
}

impl Shown {
    fn new(form: Form) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { form, colour: !plain && io::stdout().is_terminal() }
    }

    /// `false`: nobody reads it any more.
    fn line(&self, text: &str) -> bool {
        writeln!(io::stdout(), "{text}").is_ok()
    }

    fn head(&self) -> bool {
        let text = format!(
            "{:<8}  {:<8}  {:<7} {:>6}  {:>9}  {:>9}  {}",
            "ID", "TIME", "METHOD", "STATUS", "DURATION", "SIZE", "PATH"
        );
        self.form == Form::Json || self.line(&text)
    }

    fn row(&self, summary: &Value) -> bool {
        match self.form {
            Form::Json => self.line(&summary.to_string()),
            Form::Text => self.line(&self.text_row(summary)),
        }
    }

    fn text_row(&self, summary: &Value) -> String {
        let text = |name: &str| printable(summary[name].as_str().unwrap_or_default());
        let status = match (&summary["status"], summary["state"].as_str()) {
            (Value::Number(status), _) => status.to_string(),
            (_, Some("failed")) => "failed".to_owned(),
            _ => "…".to_owned(),
        };
        let duration = summary["duration_us"].as_u64().map_or("…".to_owned(), milliseconds);
        let mut row = format!(
            "{:<8}  {:<8}  {:<7} {}  {duration:>9}  {:>9}  {}",
            text("id").get(..8).unwrap_or_default(),
            time_of_day(summary["started_ms"].as_f64().unwrap_or_default()),
            text("method"),
            self.painted(&format!("{status:>6}"), summary),
            bytes(summary["response_size"].as_u64().unwrap_or_default()),
            text("path"),
        );
        for note in ["replay_of", "error"] {
            if let Some(value) = summary[note].as_str() {
                let value = if note == "replay_of" {
                    format!("replay of {}", &value[..8.min(value.len())])
                } else {
                    value.to_owned()
                };
                row = format!("{row}  ({})", printable(&value));
            }
        }
        row
    }

    fn painted(&self, text: &str, summary: &Value) -> String {
        use anstyle::{AnsiColor, Color, Style};
        let colour = match summary["status"].as_u64() {
            Some(500..) => AnsiColor::Red,
            Some(400..) => AnsiColor::Yellow,
            Some(_) => AnsiColor::Green,
            None if summary["state"] == "failed" => AnsiColor::Red,
            None => return text.to_owned(),
        };
        if !self.colour {
            return text.to_owned();
        }
        let style = Style::new().fg_color(Some(Color::Ansi(colour)));
        format!("{style}{text}{style:#}")
    }
}

async fn list(client: &Client, words: &Words, limit: usize, shown: &Shown) -> anyhow::Result<()> {
    let query = words.query(&[("limit", limit.to_string())]);
    let list = client.get(&format!("/api/v1/requests?{query}")).await?;
    let requests = list["requests"].as_array().cloned().unwrap_or_default();
    if shown.form == Form::Text && requests.is_empty() {
        writeln!(
            io::stderr(),
            "no requests are kept{}",
            if words.is_empty() { "" } else { " that match" }
        )?;
        return Ok(());
    }
    // The oldest first, as a log has them.
    let _ = shown.head() && requests.iter().rev().all(|summary| shown.row(summary));
    Ok(())
}

async fn tail(client: &Client, words: &Words, shown: &Shown) -> anyhow::Result<()> {
    let mut events = client.send(Method::GET, "/api/v1/events", None).await?;
    shown.head();
    let (mut seen, mut text) = (HashSet::new(), Vec::new());
    while let Some(piece) = events.piece().await? {
        text.extend_from_slice(&piece);
        while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
            let block: Vec<u8> = text.drain(..end + 2).collect();
            let block = String::from_utf8_lossy(&block);
            if block.contains("event: reset") {
                writeln!(io::stderr(), "too many at once: some are left out")?;
            }
            let data = block.lines().find_map(|line| line.strip_prefix("data: "));
            let data = data.filter(|_| block.contains("event: request"));
            let Some(summary) = data.and_then(|data| serde_json::from_str::<Value>(data).ok())
            else {
                continue;
            };
            let seq = summary["seq"].as_u64().unwrap_or_default();
            if summary["state"] == "open" || !seen.insert(seq) {
                continue;
            }
            if seen.len() > MAX_SHOWN {
                seen.retain(|old| old + 1000 > seq);
            }
            if !words.is_empty() {
                let (after, before) = (seq.saturating_sub(1).to_string(), (seq + 1).to_string());
                let query = words.query(&[("after", after), ("before", before)]);
                let found = client.get(&format!("/api/v1/requests?{query}")).await?;
                if found["requests"].as_array().is_none_or(Vec::is_empty) {
                    continue;
                }
            }
            if !shown.row(&summary) {
                return Ok(());
            }
        }
    }
    bail!("the agent has ended")
}

async fn detail(client: &Client, id: &str) -> Result<Value, ClientError> {
    client.get(&format!("/api/v1/requests/{}", escaped(id))).await
}

async fn show(client: &Client, id: &str, shown: &Shown) -> anyhow::Result<()> {
    let detail = detail(client, id).await?;
    if shown.form == Form::Json {
        shown.line(&detail.to_string());
        return Ok(());
    }
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    let mut out = vec![shown.text_row(&detail), String::new()];
    out.extend(timing(&detail));
    out.push(format!("{} {}", text(&detail["method"]), text(&detail["path"])));
    message(&detail["request"], &mut out);
    let response = &detail["response"];
    if response.is_object() {
        out.push(String::new());
        out.push(format!("{} {}", response["status"], text(&response["reason"])));
        message(response, &mut out);
    }
    if detail["frames"].as_u64().is_some_and(|frames| frames > 0) {
        let path = format!("/api/v1/requests/{}/frames", text(&detail["id"]));
        out.push(String::new());
        frames(&client.get(&path).await?, &mut out);
    }
    let _ = out.iter().all(|line| shown.line(line));
    Ok(())
}

/// The legs of a request's way, in the order in which it went; nothing while it waits for an answer.
fn timing(detail: &Value) -> Option<String> {
    detail["wait_us"].as_u64()?;
    let timing = &detail["timing"];
    let legs = [
        ("held by the edge", "held_us"),
        ("edge", "edge_us"),
        ("link ≈", "link_us"),
        ("connect", "connect_us"),
        ("send", "send_us"),
        ("local server", "wait_us"),
        ("receive", "receive_us"),
        ("link ≈", "link_us"),
    ];
    let leg = |(name, key): &(&str, &str)| {
        timing[*key].as_u64().map(|us| format!("{name} {}", milliseconds(us)))
    };
    let legs: Vec<_> = legs.iter().filter_map(leg).collect();
    Some(format!("{}\n", legs.join(" · ")))
}

fn message(message: &Value, out: &mut Vec<String>) {
    let fields = |list: &Value, out: &mut Vec<String>| {
        for field in list.as_array().into_iter().flatten() {
            let part = |i: usize| printable(field[i].as_str().unwrap_or_default());
            out.push(format!("{}: {}", part(0), part(1)));
        }
    };
    fields(&message["headers"], out);
    let body = &message["body"];
    let size = body["size"].as_u64().unwrap_or_default();
    if size > 0 {
        out.push(String::new());
        match body["text_preview"].as_str() {
            Some(text) => out.extend(text.lines().map(printable)),
            None => out.push(format!("({} that are no text)", bytes(size))),
        }
        let cut =
            [&body["cut"], &body["preview_cut"]].iter().any(|cut| cut.as_bool() == Some(true));
        if cut {
            out.push(format!("(… of {} in all)", bytes(size)));
        }
    }
    fields(&message["trailers"], out);
}

fn frames(list: &Value, out: &mut Vec<String>) {
    if let Some(dropped) = list["dropped"].as_u64().filter(|dropped| *dropped > 0) {
        out.push(format!("({dropped} messages before are not kept)"));
    }
    for frame in list["frames"].as_array().into_iter().flatten() {
        let arrow = if frame["from"] == "visitor" { "->" } else { "<-" };
        let size = bytes(frame["size"].as_u64().unwrap_or_default());
        let text = frame["text"].as_str().map_or_else(|| format!("({size})"), printable);
        let at = milliseconds(frame["at_us"].as_u64().unwrap_or_default());
        out.push(format!("{at:>10} {arrow} {:<7} {text}", frame["kind"].as_str().unwrap_or("")));
    }
}

impl Replay {
    async fn run(self, client: &Client, shown: &Shown) -> anyhow::Result<()> {
        let before = detail(client, &self.id).await?;
        let id = before["id"].as_str().unwrap_or_default();
        let changes = self.changes(&before)?;
        let path = format!("/api/v1/requests/{id}/replay");
        let started = client.call(Method::POST, &path, Some(&changes)).await?;
        let id = started["id"].as_str().context("the agent names no id")?;
        let after = tokio::time::timeout(PATIENCE, ended(client, id)).await;
        match after {
            Ok(after) => {
                let failed = after?["state"] == "failed";
                show(client, id, shown).await?;
                ensure!(!failed, "the replay got no whole answer");
                Ok(())
            }
            Err(_) => bail!("no whole answer yet; `uniroute inspect show {id}` shows it later"),
        }
    }

    fn changes(&self, before: &Value) -> anyhow::Result<Value> {
        let mut changes = Map::new();
        for (name, value) in
            [("method", &self.method), ("path", &self.path), ("upstream", &self.upstream)]
        {
            changes.extend(value.clone().map(|value| (name.to_owned(), value.into())));
        }
        if let Some(data) = &self.data {
            use base64::Engine as _;
            let body = read_data(data)?;
            let text = base64::prelude::BASE64_STANDARD.encode(body);
            changes.insert("body_base64".to_owned(), text.into());
        }
        if !self.set_header.is_empty() || !self.remove_header.is_empty() {
            changes.insert("headers".to_owned(), self.headers(before)?);
        }
        Ok(changes.into())
    }

    /// All headers: those that were there, as they were shown, and the changes.
    fn headers(&self, before: &Value) -> anyhow::Result<Value> {
        let mut headers: Vec<(String, String)> =
            serde_json::from_value(before["request"]["headers"].clone())?;
        let is = |name: &str, other: &str| name.eq_ignore_ascii_case(other);
        headers.retain(|(name, _)| !self.remove_header.iter().any(|gone| is(name, gone)));
        let mut set = Vec::new();
        for header in &self.set_header {
            let (name, value) = header
                .split_once(':')
                .with_context(|| format!("--set-header {header:?}: write `Name: value`"))?;
            set.push((name.trim().to_owned(), value.trim().to_owned()));
        }
        headers.retain(|(name, _)| !set.iter().any(|(new, _)| is(name, new)));
        headers.extend(set);
        Ok(json!(headers))
    }
}

fn read_data(data: &str) -> anyhow::Result<Vec<u8>> {
    match data.strip_prefix('@') {
        Some("-") => Ok(io::read_to_string(io::stdin())?.into_bytes()),
        Some(file) => std::fs::read(file).with_context(|| format!("--data @{file}")),
        None => Ok(data.as_bytes().to_vec()),
    }
}

/// Waits until a replay is over.
async fn ended(client: &Client, id: &str) -> Result<Value, ClientError> {
    loop {
        match detail(client, id).await {
            Ok(detail) if detail["state"] != "open" => return Ok(detail),
            // It may not have begun yet.
            Ok(_) | Err(ClientError::Refused { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn har(client: &Client, words: &Words, file: Option<PathBuf>) -> anyhow::Result<()> {
    let path = format!("/api/v1/har?{}", words.query(&[]));
    let mut answer = client.send(Method::GET, &path, None).await?;
    let mut out: Box<dyn io::Write> = match &file {
        Some(path) => {
            let file = std::fs::File::create(path);
            Box::new(file.with_context(|| format!("{} can't be written", path.display()))?)
        }
        None => Box::new(io::stdout()),
    };
    while let Some(piece) = answer.piece().await? {
        out.write_all(&piece)?;
    }
    out.flush()?;
    Ok(())
}

/// What visitors and servers say must not move the cursor.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

fn milliseconds(us: u64) -> String {
    if us < 10_000_000 {
        format!("{}.{} ms", us / 1000, us % 1000 / 100)
    } else {
        format!("{} s", us / 1_000_000)
    }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..=9999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// UTC: the local time can't be known for sure once there are threads.
fn time_of_day(ms: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "far from the ends")]
    let seconds = (ms / 1e3) as i64;
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_for_people() {
        let shown = Shown { form: Form::Text, colour: false };
        let summary = json!({
            "id": "0123456789abcdef0123456789abcdef", "method": "GET", "path": "/a\u{1b}[2J?b",
            "status": 200, "state": "done", "started_ms": 3_723_000.5, "duration_us": 12_340,
            "response_size": 12_345, "replay_of": "fedcba9876543210fedcba9876543210",
        });
        assert_eq!(
            shown.text_row(&summary),
            "01234567  01:02:03  GET        200    12.3 ms      12 kB  /a[2J?b  (replay of fedcba98)"
        );
        let open = shown.text_row(&json!({ "id": "01", "state": "open" }));
        assert!(open.contains('…'), "{open}");
    }

    #[test]
    fn headers_are_changed_by_name() {
        let replay = Replay {
            id: String::new(),
            method: None,
            path: None,
            set_header: vec!["x-a: 2".into(), "New:3".into()],
            remove_header: vec!["cookie".into()],
            data: None,
            upstream: None,
        };
        let before =
            json!({ "request": { "headers": [["X-A", "1"], ["Cookie", "***"], ["B", "***"]] } });
        let headers = replay.headers(&before).unwrap();
        assert_eq!(headers, json!([["B", "***"], ["x-a", "2"], ["New", "3"]]));
        assert_eq!(escaped("a b&/ä"), "a%20b%26%2F%C3%A4");
    }
}
