//! What is known of an agent, from its events or from what it tells of itself: what the live view and
//! `uniroute status` show.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use uniroute_agent::{Applied, Event, Settings, Status, TunnelSettings};
use uniroute_shared::code::Code;

use super::text::printable;

/// Requests that are kept to be shown, the latest first.
const REQUESTS: usize = 50;
/// Answers whose times are kept.
const ANSWERS: usize = 100;
/// Messages that are kept, the latest last.
const MESSAGES: usize = 20;
/// Hints at a time.
const HINTS: usize = 8;
/// How long a hint is shown after its last cause.
pub(super) const HINT: Duration = Duration::from_secs(60);
/// How long a message is shown.
pub(super) const MESSAGE: Duration = Duration::from_secs(5 * 60);

/// Milliseconds since 1970.
pub(crate) type Millis = u64;

pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    millis(since)
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An agent as its local API tells of it: `Status` of the library, in as much as is shown.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Snapshot {
    pub(crate) version: String,
    pub(crate) started_ms: Millis,
    pub(crate) sessions: Vec<Session>,
    pub(crate) trouble: String,
    pub(crate) tunnels: Vec<Tunnel>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Session {
    pub(crate) edge: String,
    pub(crate) carrier: String,
    pub(crate) since_ms: Millis,
    /// 0: not measured yet.
    pub(crate) rtt_us: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Tunnel {
    pub(crate) key: String,
    pub(crate) kind: String,
    pub(crate) url: String,
    pub(crate) state: State,
    pub(crate) reason: String,
    /// What to do about it.
    #[serde(skip)]
    pub(crate) fix: String,
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) open: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    #[default]
    Waiting,
    Ready,
    Paused,
    Refused,
    Deleted,
    /// The agent has ended.
    #[serde(skip)]
    Closed,
    /// Of a later version.
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Upstream {
    pub(crate) url: String,
    pub(crate) healthy: Option<bool>,
    pub(crate) reason: String,
    pub(crate) since_ms: Millis,
}

impl Snapshot {
    /// What this process' own agent tells of itself.
    pub(crate) fn of(status: &Status) -> Option<Self> {
        serde_json::from_value(serde_json::to_value(status).ok()?).ok()
    }
}

impl Tunnel {
    /// One that is still to come.
    fn wanted(settings: &TunnelSettings) -> Self {
        Self {
            key: settings.key.clone(),
            kind: settings.kind.as_str().to_owned(),
            upstreams: vec![Upstream { url: settings.target.to_string(), ..Upstream::default() }],
            ..Self::default()
        }
    }

    /// The local servers that don't answer.
    pub(crate) fn down(&self) -> impl Iterator<Item = &Upstream> {
        self.upstreams.iter().filter(|upstream| upstream.healthy == Some(false))
    }
}

/// How far the agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Connecting,
    Online,
    /// The next try comes.
    Waiting {
        reason: String,
        until: Millis,
    },
    /// No new requests; open ones go on.
    Draining,
    Ended,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) at: Millis,
    pub(crate) tunnel: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) duration: Duration,
}

/// How bad a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warning,
    Error,
}

/// A line of the log, as often as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) at: Millis,
    pub(crate) level: Level,
    pub(crate) text: String,
    pub(crate) times: u32,
}

/// Something that the agent has recognised, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    pub(crate) at: Millis,
    pub(crate) key: String,
    pub(crate) title: String,
    pub(crate) fix: String,
}

/// All that is known.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Where the edge is looked for.
    pub(crate) server: String,
    pub(crate) phase: Phase,
    pub(crate) agent: Snapshot,
    pub(crate) inspector: Option<String>,
    /// The inspector's usual port was taken.
    pub(crate) moved: bool,
    pub(crate) requests: VecDeque<Request>,
    /// Times of the last answers.
    answers: VecDeque<Duration>,
    pub(crate) messages: VecDeque<Message>,
    pub(crate) hints: VecDeque<Hint>,
    /// The agent counts requests itself, and tells of it.
    told: bool,
}

impl Seen {
    /// An agent that has just begun.
    pub(crate) fn new(settings: &Settings) -> Self {
        let server = settings.servers.first().map(ToString::to_string).unwrap_or_default();
        let agent = Snapshot {
            started_ms: now(),
            tunnels: settings.tunnels.iter().map(Tunnel::wanted).collect(),
            ..Snapshot::default()
        };
        Self { phase: Phase::Connecting, told: false, ..Self::of(server, agent) }
    }

    /// An agent that tells of itself.
    pub(crate) fn of(server: String, agent: Snapshot) -> Self {
        let phase = match agent.sessions.is_empty() {
            true => Phase::Waiting { reason: agent.trouble.clone(), until: 0 },
            false => Phase::Online,
        };
        Self {
            server,
            phase,
            agent,
            inspector: None,
            moved: false,
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            messages: VecDeque::new(),
            hints: VecDeque::new(),
            told: true,
        }
    }

    /// What the agent says of itself goes over what its events said.
    pub(crate) fn tell(&mut self, mut agent: Snapshot) {
        for tunnel in &mut agent.tunnels {
            let before = self.agent.tunnels.iter().find(|before| before.key == tunnel.key);
            let Some(before) = before.filter(|before| before.state == tunnel.state) else {
                continue;
            };
            tunnel.fix.clone_from(&before.fix);
        }
        if !agent.sessions.is_empty() && !matches!(self.phase, Phase::Draining | Phase::Ended) {
            self.phase = Phase::Online;
        }
        self.agent = agent;
        self.told = true;
    }

    /// What has happened.
    pub(crate) fn take(&mut self, event: Event, now: Millis) {
        match event {
            Event::Connecting if self.agent.sessions.is_empty() => self.phase_is(Phase::Connecting),
            Event::Connected { edge, carrier } => {
                self.phase_is(Phase::Online);
                self.agent.sessions.retain(|session| session.edge != edge);
                let carrier = carrier.as_str().to_owned();
                self.agent.sessions.push(Session { edge, carrier, since_ms: now, rtt_us: 0 });
            }
            Event::Disconnected { reason, retry_in } => {
                self.agent.sessions.clear();
                for tunnel in &mut self.agent.tunnels {
                    if tunnel.state == State::Ready {
                        tunnel.state = State::Waiting;
                    }
                }
                self.phase_is(Phase::Waiting { reason, until: now + millis(retry_in) });
            }
            Event::RoundTrip(rtt) => {
                if let Some(session) = self.agent.sessions.last_mut() {
                    session.rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                }
            }
            Event::Ready { key, url, upstream, .. } => {
                let tunnel = self.tunnel(&key);
                (tunnel.state, tunnel.url) = (State::Ready, url);
                (tunnel.reason, tunnel.fix) = Default::default();
                if tunnel.upstreams.is_empty() {
                    tunnel.upstreams.push(Upstream::default());
                }
                if tunnel.upstreams[0].url != upstream {
                    tunnel.upstreams[0] = Upstream { url: upstream, ..Upstream::default() };
                }
            }
            Event::Refused { key, code, message } => {
                let tunnel = self.tunnel(&key);
                tunnel.state = match Code::from_number(code) {
                    Some(code) if *code == Code::TUNNEL_DELETED => State::Deleted,
                    _ => State::Refused,
                };
                tunnel.reason = format!("{message} (UR-{code:04})");
                tunnel.fix = Code::from_number(code).map_or("", |code| code.fix).to_owned();
            }
            Event::Paused { key, paused } => {
                self.tunnel(&key).state = if paused { State::Paused } else { State::Ready };
            }
            Event::Upstream { key, upstream, healthy, reason } => {
                let upstreams = &mut self.tunnel(&key).upstreams;
                if !upstreams.iter().any(|known| known.url == upstream) {
                    upstreams.push(Upstream { url: upstream.clone(), ..Upstream::default() });
                }
                for known in upstreams.iter_mut().filter(|known| known.url == upstream) {
                    if known.healthy != Some(healthy) {
                        (known.healthy, known.since_ms) = (Some(healthy), now);
                    }
                    known.reason.clone_from(&reason);
                }
            }
            Event::Applied(applied) => {
                self.agent.tunnels.retain(|tunnel| !applied.removed.contains(&tunnel.key));
                let text = format!("The config file was read again: {}.", in_words(&applied));
                self.message(Message { at: now, level: Level::Info, text, times: 1 });
            }
            Event::Hint { key, title, fix } => {
                self.hints.retain(|hint| (&hint.key, &hint.title) != (&key, &title));
                self.hints.truncate(HINTS - 1);
                self.hints.push_front(Hint { at: now, key, title, fix });
            }
            Event::Request { tunnel, method, path, status, duration } => {
                if !self.told {
                    self.tunnel(&tunnel).requests += 1;
                }
                self.requests.truncate(REQUESTS - 1);
                let (method, path) = (printable(&method), without_query(&path));
                let request = Request { at: now, tunnel, method, path, status, duration };
                self.requests.push_front(request);
                self.answers.truncate(ANSWERS - 1);
                self.answers.push_front(duration);
            }
            _ => {}
        }
    }

    /// The agent is no more; what it had is still to be seen.
    pub(crate) fn end(&mut self) {
        self.phase = Phase::Ended;
        self.agent.sessions.clear();
        for tunnel in &mut self.agent.tunnels {
            if !matches!(tunnel.state, State::Refused | State::Deleted) {
                (tunnel.state, tunnel.reason) = (State::Closed, String::new());
                tunnel.upstreams.iter_mut().for_each(|upstream| upstream.healthy = None);
            }
        }
    }

    /// A line of the log.
    pub(crate) fn message(&mut self, message: Message) {
        let same = |known: &Message| known.text == message.text && known.level == message.level;
        let times = match self.messages.iter().position(same) {
            Some(place) => self.messages.remove(place).map_or(0, |known| known.times),
            None => 0,
        };
        if self.messages.len() == MESSAGES {
            self.messages.pop_front();
        }
        self.messages.push_back(Message { times: times.saturating_add(message.times), ..message });
    }

    /// An agent that is about to end is not about to connect.
    pub(crate) fn phase_is(&mut self, phase: Phase) {
        if !matches!(self.phase, Phase::Draining | Phase::Ended) {
            self.phase = phase;
        }
    }

    /// Half of the last answers took no longer than the first, 99 of 100 no longer than the second.
    pub(crate) fn percentiles(&self) -> Option<(Duration, Duration)> {
        let mut times: Vec<_> = self.answers.iter().copied().collect();
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        Some((times[last / 2], times[last * 99 / 100]))
    }

    /// Requests, failed ones and open ones of all tunnels.
    pub(crate) fn totals(&self) -> (u64, u64, u64) {
        let sum = |of: fn(&Tunnel) -> u64| self.agent.tunnels.iter().map(of).sum();
        (sum(|tunnel| tunnel.requests), sum(|tunnel| tunnel.failed), sum(|tunnel| tunnel.open))
    }

    fn tunnel(&mut self, key: &str) -> &mut Tunnel {
        let tunnels = &mut self.agent.tunnels;
        let place = tunnels.iter().position(|tunnel| tunnel.key == key).unwrap_or_else(|| {
            tunnels.push(Tunnel { key: key.to_owned(), ..Tunnel::default() });
            tunnels.len() - 1
        });
        &mut tunnels[place]
    }
}

/// What has become of the tunnels.
fn in_words(Applied { added, changed, removed, unchanged }: &Applied) -> String {
    let part = |what: &str, keys: &[String]| format!("{what} {}", keys.join(", "));
    let parts = [("added", added), ("changed", changed), ("removed", removed)];
    let parts = parts.iter().filter(|(_, keys)| !keys.is_empty());
    let mut parts: Vec<_> = parts.map(|(what, keys)| part(what, keys)).collect();
    parts.push(format!("{unchanged} unchanged"));
    parts.join("; ")
}

/// There are secrets in queries at times, and people show their terminals to others.
fn without_query(path: &str) -> String {
    match path.split_once('?') {
        Some((path, _)) => printable(path) + "?",
        None => printable(path),
    }
}
