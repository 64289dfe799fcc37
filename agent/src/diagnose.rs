//! Looks at each step of the way from here to the edges and to the local servers, and says of each
//! whether it works, how long it took, and what to do if it does not.

mod certificate;
mod edge;
mod local;

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{Settings, connect::Way, local::running::Running};

/// What is to be looked at.
#[derive(Debug)]
pub struct Question {
    /// What was found of the settings before anything was connected.
    pub before: Vec<Step>,
    /// How to connect, and the local servers; none if the settings can't be used.
    pub settings: Option<Settings>,
    /// Why there is no token; the one in `settings` is none then.
    pub no_token: Option<String>,
    /// The agents that run here.
    pub agents: Vec<Running>,
}

/// Every step, in the order of the way.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// This program's version.
    pub version: &'static str,
    /// Where it runs.
    pub platform: String,
    /// What came of all this, as an exit code: 0 when nothing failed.
    pub exit_code: u8,
    /// One after the other.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// Of which server.
    pub of: String,
    /// What came of it.
    pub state: State,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// What was seen, in words.
    pub says: String,
    /// What to do; empty where there is nothing to do.
    pub fix: String,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// It works.
    Pass,
    /// It works, and something about it is not as it should be.
    Warn,
    /// It does not work.
    Fail,
    /// It was not tried.
    Skip,
}

impl State {
    /// In four letters.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
            Self::Skip => "SKIP",
        }
    }
}

impl Step {
    /// A step that has taken no time.
    #[must_use]
    pub fn new(name: &'static str, state: State, says: impl Into<String>) -> Self {
        let (says, of, fix) = (says.into(), String::new(), String::new());
        Self { name, of, state, took_ms: 0.0, says, fix }
    }

    /// With what to do.
    #[must_use]
    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: fix.into(), ..self }
    }

    fn of(self, of: &str) -> Self {
        Self { of: of.to_owned(), ..self }
    }

    fn since(self, began: Instant) -> Self {
        // To a hundredth: more would only look exact.
        Self { took_ms: (began.elapsed().as_secs_f64() * 1e5).round() / 100.0, ..self }
    }

    fn failed(&self) -> bool {
        self.state == State::Fail
    }
}

/// The exit code of a failure in a step of this name.
fn exit_code(name: &str) -> u8 {
    match name {
        "config" => 3,
        "token" => 4,
        "dns" | "proxy" | "tcp" | "tls" | "websocket" => 5,
        "local" => 7,
        _ => 1,
    }
}

/// Looks at everything.
pub async fn diagnose(question: Question) -> Report {
    let mut steps = question.before;
    steps.push(open_files());
    steps.push(agents(&question.agents));
    match question.settings {
        Some(settings) => {
            let way = Way::new(
                &settings.trust,
                &settings.pins,
                settings.identity.as_ref(),
                &settings.proxy,
            );
            match way {
                Ok(way) => {
                    for server in &settings.servers {
                        let no_token = question.no_token.as_deref();
                        steps.extend(edge::look(server, &way, &settings, no_token).await);
                    }
                }
                Err(error) => steps.push(Step::new("config", State::Fail, error.to_string())),
            }
            for tunnel in &settings.tunnels {
                steps.extend(local::look(tunnel).await);
            }
        }
        None => {
            let why = "the settings have to be right first";
            for name in edge::NAMES.into_iter().chain(["local"]) {
                steps.push(Step::new(name, State::Skip, why));
            }
        }
    }
    let first = steps.iter().find(|step| step.failed());
    Report {
        version: env!("CARGO_PKG_VERSION"),
        platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        exit_code: first.map_or(0, |step| exit_code(step.name)),
        steps,
    }
}

/// Files that a process should be able to have open: each request may need two.
const OPEN_FILES: u64 = 1024;

fn open_files() -> Step {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    match line.and_then(|line| line.split_whitespace().next()) {
        Some("unlimited") => Step::new("open files", State::Pass, "as many as wanted"),
        Some(limit) => {
            let enough = limit.parse::<u64>().is_ok_and(|limit| limit >= OPEN_FILES);
            let says = format!("{limit} at a time");
            match enough {
                true => Step::new("open files", State::Pass, says),
                false => Step::new("open files", State::Warn, says)
                    .fix("Raise the limit before the agent starts: `ulimit -n 65536`, or LimitNOFILE= in its service"),
            }
        }
        None => Step::new("open files", State::Skip, "this system does not tell"),
    }
}

fn agents(agents: &[Running]) -> Step {
    let one = |agent: &Running| match &agent.inspector {
        Some(inspector) => format!("process {}, inspector at {inspector}", agent.pid),
        None => format!("process {}", agent.pid),
    };
    match agents {
        [] => Step::new("agent", State::Pass, "none runs here now"),
        agents => {
            let list = agents.iter().map(one).collect::<Vec<_>>().join("; ");
            Step::new("agent", State::Pass, format!("runs: {list}"))
        }
    }
}

/// Milliseconds for people.
fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
