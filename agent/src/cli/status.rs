//! `uniroute status` and `uniroute ready`: how the agents that run here are, for people and for
//! scripts.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use time::UtcOffset;
use tokio::time::{Instant, sleep};

use super::agents::{Agents, Asked};
use crate::output::{
    seen::{self, Seen, Snapshot, State},
    text::Look,
    view::{self, Page},
};

/// Between two looks of one that waits.
const LOOK: Duration = Duration::from_millis(200);
/// Columns, where nothing says how many there are.
const COLUMNS: usize = 80;
/// Longest wait, in seconds.
const MAX_WAIT: f64 = 86_400.0;

#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    /// text, or json: one object for each agent, as its local API gives it, with `pid` and
    /// `inspector_url`.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    output: Form,
    #[command(flatten)]
    agents: Agents,
}

/// How it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Json,
}

impl StatusCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        // Before there are threads.
        let offset = UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC);
        let asked = block_on(self.agents.ask())?;
        if asked.is_empty() {
            bail!("{}", self.agents.none());
        }
        let mut silent = Vec::new();
        let several = asked.len() > 1;
        for (number, asked) in asked.into_iter().enumerate() {
            match (&asked.status, self.output) {
                (Err(why), _) => silent.push(format!("{}: {why}", asked.label())),
                (Ok(status), Form::Json) => say(&with_place(status, &asked))?,
                (Ok(status), Form::Text) => {
                    let gap = if number == 0 { "" } else { "\n" };
                    let which =
                        if several { format!("{}\n", asked.label()) } else { String::new() };
                    say(&format!("{gap}{which}{}", table(status, &asked, offset)?))?;
                }
            }
        }
        if silent.is_empty() { Ok(()) } else { Err(anyhow!(silent.join("\n"))) }
    }
}

fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(future))
}

fn with_place(status: &Value, asked: &Asked) -> String {
    let mut status = status.clone();
    if let Some(fields) = status.as_object_mut() {
        fields.insert("pid".to_owned(), json!(asked.running.as_ref().map(|running| running.pid)));
        fields.insert("inspector_url".to_owned(), json!(asked.inspector));
    }
    status.to_string()
}

/// What the live view shows, once.
fn table(status: &Value, asked: &Asked, offset: UtcOffset) -> anyhow::Result<String> {
    let odd = || format!("{} says something that this version does not know", asked.label());
    let server = status["sessions"][0]["server"].as_str().unwrap_or("not connected").to_owned();
    let snapshot: Snapshot = serde_json::from_value(status.clone()).with_context(odd)?;
    let mut seen = Seen::of(server, snapshot);
    seen.inspector.clone_from(&asked.inspector);
    let terminal = io::stdout().is_terminal();
    let look = if terminal { Look::of_environment() } else { Look::PLAIN };
    let columns = terminal_size::terminal_size().filter(|_| terminal);
    let columns = columns.map_or(COLUMNS, |(columns, _)| columns.0.into());
    let page = Page { columns, rows: usize::MAX, look, offset, now: seen::now() };
    let lines: Vec<_> = view::once(&seen, page).iter().map(|line| line.paint(look)).collect();
    Ok(lines.join("\n"))
}

#[derive(Debug, Args)]
pub(crate) struct ReadyCommand {
    /// Seconds to wait for it.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    timeout: f64,
    /// Only this tunnel, by the word in `[tunnels.NAME]`; may be given several times.
    #[arg(long = "tunnel", value_name = "NAME")]
    tunnels: Vec<String>,
    #[command(flatten)]
    agents: Agents,
}

impl ReadyCommand {
    /// Ends well when all wanted tunnels take requests; says why not otherwise.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if !(0.0..=MAX_WAIT).contains(&self.timeout) {
            bail!("--timeout {}: use 0 to {MAX_WAIT} seconds", self.timeout);
        }
        let said = block_on(self.wait())??;
        Ok(say(&said)?)
    }

    async fn wait(&self) -> anyhow::Result<String> {
        let end = Instant::now() + Duration::from_secs_f64(self.timeout);
        loop {
            let asked = self.agents.ask().await;
            let said = if asked.is_empty() {
                Err(self.agents.none())
            } else {
                judge(&asked, &self.tunnels)
            };
            match said {
                Ok(said) => return Ok(said),
                Err(why) if Instant::now() >= end => bail!("not ready: {why}"),
                Err(_) => sleep(LOOK).await,
            }
        }
    }
}

/// Whether all that is wanted is ready: what is, or what is not.
fn judge(asked: &[Asked], wanted: &[String]) -> Result<String, String> {
    let (mut ready, mut faults, mut known) = (Vec::new(), Vec::new(), Vec::new());
    for asked in asked {
        let snapshot = match &asked.status {
            Ok(status) => serde_json::from_value::<Snapshot>(status.clone()),
            // Its tunnels may be the wanted ones.
            Err(why) => {
                faults.push(format!("{}: {why}", asked.label()));
                continue;
            }
        };
        let snapshot = snapshot.map_err(|error| format!("{}: {error}", asked.label()))?;
        for tunnel in &snapshot.tunnels {
            if !wanted.is_empty() && !wanted.contains(&tunnel.key) {
                continue;
            }
            known.push(tunnel.key.clone());
            if tunnel.state == State::Ready {
                ready.push(format!("{} {}", tunnel.key, tunnel.url));
                continue;
            }
            let why = match &snapshot.trouble {
                trouble if !trouble.is_empty() => trouble,
                _ => &tunnel.reason,
            };
            let state = format!("{:?}", tunnel.state).to_lowercase();
            let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
            faults.push(format!("tunnel {} is {state}{why}", tunnel.key));
        }
    }
    let missing = wanted.iter().filter(|name| !known.contains(name));
    faults.extend(missing.map(|name| format!("no agent has a tunnel {name}")));
    if known.is_empty() && wanted.is_empty() && faults.is_empty() {
        faults.push("there are no tunnels".to_owned());
    }
    if faults.is_empty() {
        Ok(format!("ready: {}", ready.join(", ")))
    } else {
        Err(faults.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(tunnels: &[(&str, &str)]) -> Asked {
        let tunnel = |(key, state): &(&str, &str)| json!({ "key": key, "state": state, "url": format!("https://{key}.test"), "reason": "r" });
        let tunnels: Vec<_> = tunnels.iter().map(tunnel).collect();
        let status = Ok(json!({ "tunnels": tunnels, "sessions": [{ "edge": "e" }] }));
        Asked { running: None, inspector: Some("http://127.0.0.1:4040".into()), status }
    }

    #[test]
    fn ready_is_when_all_that_is_wanted_is() {
        let said = |tunnels: &[(&str, &str)], wanted: &[&str]| {
            let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
            judge(&[asked(tunnels)], &wanted)
        };
        let both = [("web", "ready"), ("api", "waiting")];
        assert_eq!(said(&both[..1], &[]).unwrap(), "ready: web https://web.test");
        assert_eq!(said(&both, &[]).unwrap_err(), "tunnel api is waiting (r)");
        assert!(said(&both, &["web"]).is_ok());
        assert_eq!(said(&both, &["wbe"]).unwrap_err(), "no agent has a tunnel wbe");
        assert_eq!(said(&[], &[]).unwrap_err(), "there are no tunnels");
        assert!(said(&[("web", "paused")], &[]).unwrap_err().contains("paused"));
        let silent = Asked { status: Err("no answer".into()), ..asked(&[]) };
        let why = judge(&[asked(&both[..1]), silent], &[]).unwrap_err();
        assert_eq!(why, "agent at http://127.0.0.1:4040: no answer");
    }

    #[test]
    fn the_table_is_the_live_views() {
        let offset = UtcOffset::UTC;
        let asked = asked(&[("web", "ready"), ("api", "refused")]);
        let table = table(asked.status.as_ref().unwrap(), &asked, offset).unwrap();
        for part in ["UniRoute  * online", "https://web.test", "refused", "http://127.0.0.1:4040"] {
            assert!(table.contains(part), "{table}");
        }
    }
}
