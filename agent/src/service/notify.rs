//! What the service manager is told of the agent: systemd, or what speaks its protocol.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use uniroute_agent::{
    Status,
    status::{TunnelState, TunnelStatus},
};

/// Between two looks at the agent.
const LOOK: Duration = Duration::from_millis(500);
/// Longest text of the agent's state, in characters.
const MAX_STATUS: usize = 400;

/// Tells the service manager how the agent is, where there is one that wants to know.
#[derive(Clone, Debug)]
pub(crate) struct Notifier {
    on: bool,
    stopping: Arc<AtomicBool>,
}

impl Notifier {
    /// As the manager has said it in the environment.
    pub(crate) fn from_environment() -> Self {
        Self { on: std::env::var_os("NOTIFY_SOCKET").is_some(), stopping: Arc::default() }
    }

    /// Tells what the agent says of itself for as long as this is polled, and that its runtime turns:
    /// to be polled by the one that serves.
    pub(crate) async fn watch(&self, look: impl Fn() -> Status) {
        if !self.on {
            return std::future::pending().await;
        }
        let watchdog = send::watchdog();
        let mut tick = tokio::time::interval(watchdog.map_or(LOOK, |period| LOOK.min(period / 3)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut alive_at: Option<tokio::time::Instant> = None;
        let (mut ready, mut said) = (false, String::new());
        loop {
            tick.tick().await;
            let status = look();
            let mut news = Vec::new();
            let text = text(&status);
            if text != said {
                news.push(format!("STATUS={text}"));
                said = text;
            }
            if !ready && is_ready(&status) && !self.stopping.load(Ordering::Relaxed) {
                news.push("READY=1".to_owned());
                ready = true;
            }
            let due = |period: Duration| alive_at.is_none_or(|at| at.elapsed() * 3 >= period);
            if watchdog.is_some_and(due) {
                news.push("WATCHDOG=1".to_owned());
                alive_at = Some(tokio::time::Instant::now());
            }
            self.send(news).await;
        }
    }

    /// The settings are about to be read again.
    #[allow(dead_code, reason = "who reads them again says it")]
    pub(crate) async fn reloading(&self) {
        let mut news = vec!["RELOADING=1".to_owned()];
        news.extend(send::monotonic());
        self.send(news).await;
    }

    /// They were.
    #[allow(dead_code, reason = "who reads them again says it")]
    pub(crate) async fn reloaded(&self) {
        self.send(vec!["READY=1".to_owned()]).await;
    }

    /// The agent ends as soon as its open requests are over.
    pub(crate) async fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.send(vec!["STOPPING=1".to_owned()]).await;
    }

    /// A manager that does not read must not stop the tunnels, so another thread writes.
    async fn send(&self, news: Vec<String>) {
        if self.on && !news.is_empty() {
            let _ = tokio::task::spawn_blocking(move || send::send(&news.join("\n"))).await;
        }
    }
}

/// The edge has said something of each tunnel, and serves one at least: whoever waits for the agent
/// has what there is to have.
fn is_ready(status: &Status) -> bool {
    let answered = |tunnel: &TunnelStatus| tunnel.state != TunnelState::Waiting;
    let served =
        |tunnel: &TunnelStatus| matches!(tunnel.state, TunnelState::Ready | TunnelState::Paused);
    let tunnels = &status.tunnels;
    !status.sessions.is_empty()
        && tunnels.iter().all(answered)
        && (tunnels.is_empty() || tunnels.iter().any(served))
}

/// One line for people, in `systemctl status`.
fn text(status: &Status) -> String {
    if status.sessions.is_empty() {
        let why = if status.trouble.is_empty() { "" } else { ": " };
        return one_line(&format!("not connected{why}{}", status.trouble));
    }
    let tunnel = |tunnel: &TunnelStatus| match tunnel.state {
        TunnelState::Ready => format!("{} {}", tunnel.key, tunnel.url),
        TunnelState::Paused => format!("{} {} (paused)", tunnel.key, tunnel.url),
        TunnelState::Waiting => format!("{} waits", tunnel.key),
        TunnelState::Refused => format!("{} refused: {}", tunnel.key, tunnel.reason),
        TunnelState::Deleted => format!("{} deleted", tunnel.key),
    };
    let tunnels: Vec<_> = status.tunnels.iter().map(tunnel).collect();
    one_line(&tunnels.join(", "))
}

/// A line break would begin another message to the manager.
fn one_line(text: &str) -> String {
    crate::output::text::printable(text).chars().take(MAX_STATUS).collect()
}

#[cfg(unix)]
mod send {
    use std::time::Duration;

    use sd_notify::NotifyState;

    pub(super) fn send(news: &str) {
        // Who does not hear us does not want to.
        let _ = sd_notify::notify(&[NotifyState::Custom(news)]);
    }

    /// How often the manager wants a sign of life.
    pub(super) fn watchdog() -> Option<Duration> {
        sd_notify::watchdog_enabled().filter(|period| !period.is_zero())
    }

    pub(super) fn monotonic() -> Option<String> {
        NotifyState::monotonic_usec_now().ok().map(|now| now.to_string())
    }
}

#[cfg(not(unix))]
mod send {
    use std::time::Duration;

    pub(super) fn send(_: &str) {}

    pub(super) fn watchdog() -> Option<Duration> {
        None
    }

    pub(super) fn monotonic() -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uniroute_agent::status::SessionStatus;

    fn status(states: &[TunnelState], connected: bool) -> Status {
        let session = SessionStatus {
            edge: "edge-1".into(),
            server: "https://edge.test".into(),
            carrier: "quic",
            since_ms: 1,
            rtt_us: 1,
        };
        let tunnel = |(number, state): (usize, &TunnelState)| TunnelStatus {
            key: format!("t{number}"),
            kind: "http",
            name: "n".into(),
            url: format!("https://t{number}.test"),
            state: *state,
            reason: "taken\nREADY=1".into(),
            upstreams: Vec::new(),
            requests: 0,
            failed: 0,
            open: 0,
        };
        Status {
            agent_id: String::new(),
            version: "1",
            started_ms: 1,
            sessions: if connected { vec![session] } else { Vec::new() },
            trouble: "no such host".into(),
            tunnels: states.iter().enumerate().map(tunnel).collect(),
        }
    }

    #[test]
    fn ready_is_when_an_edge_has_answered_for_all() {
        use TunnelState::{Paused, Ready, Refused, Waiting};
        for (states, ready) in [
            (&[Ready, Ready][..], true),
            (&[Ready, Waiting], false),
            (&[Ready, Refused], true),
            (&[Paused], true),
            (&[Refused], false),
            (&[], true),
        ] {
            assert_eq!(is_ready(&status(states, true)), ready, "{states:?}");
            assert!(!is_ready(&status(states, false)));
        }
    }

    #[test]
    fn the_state_is_one_line() {
        use TunnelState::{Ready, Refused};
        let shown = text(&status(&[Ready, Refused], true));
        assert_eq!(shown, "t0 https://t0.test, t1 refused: taken\\u{a}READY=1");
        assert_eq!(text(&status(&[Ready], false)), "not connected: no such host");
        assert!(text(&status(&[Ready; 100], true)).len() <= MAX_STATUS);
    }
}
