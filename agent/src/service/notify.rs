//! What the service manager is told of the agent: systemd, or what speaks its protocol.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use uniroute_agent::{
    Status,
    status::{TunnelState, TunnelStatus},
};

/// Between two looks at the agent.
const LOOK: Duration = Duration::from_millis(500);
/// The service does what it is there for.
const READY: &str = "READY=1";
/// Longest text of the agent's state, in characters.
const MAX_STATUS: usize = 400;

/// What waits to be told; later news are left out.
const WAITING: usize = 16;

/// Hears what there is to tell.
#[derive(Clone, Debug)]
pub(crate) struct Notifier(Option<mpsc::Sender<News>>);

/// What the agent does not tell of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Reloading,
    Reloaded,
    Stopping,
}

/// Tells the service manager how the agent is, where there is one that wants to know.
#[derive(Debug)]
pub(crate) struct Watch {
    news: Option<mpsc::Receiver<News>>,
    ready: bool,
    stopping: bool,
}

impl Notifier {
    /// As the manager has said it in the environment.
    pub(crate) fn from_environment() -> (Self, Watch) {
        let on = std::env::var_os("NOTIFY_SOCKET").is_some();
        let (sender, receiver) = on.then(|| mpsc::channel(WAITING)).unzip();
        (Self(sender), Watch { news: receiver, ready: false, stopping: false })
    }

    /// The settings are about to be read again.
    pub(crate) fn reloading(&self) {
        self.tell(News::Reloading);
    }

    /// They were.
    pub(crate) fn reloaded(&self) {
        self.tell(News::Reloaded);
    }

    /// The agent ends as soon as its open requests are over.
    pub(crate) fn stopping(&self) {
        self.tell(News::Stopping);
    }

    fn tell(&self, news: News) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(news);
        }
    }
}

impl Watch {
    /// Tells what the agent says of itself for as long as this is polled, and that its runtime turns:
    /// to be polled by the one that serves.
    pub(crate) async fn run(&mut self, look: impl Fn() -> Status) {
        if self.news.is_none() {
            return std::future::pending().await;
        }
        let watchdog = send::watchdog();
        let mut tick = interval(watchdog.map_or(LOOK, |period| LOOK.min(period / 3)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut said, mut alive_at) = (String::new(), None::<Instant>);
        loop {
            let mut lines = tokio::select! {
                _ = tick.tick() => Vec::new(),
                Some(news) = next(&mut self.news) => self.lines(news),
            };
            let status = look();
            let text = text(&status);
            if text != said {
                lines.push(format!("STATUS={text}"));
                said = text;
            }
            if !self.ready && !self.stopping && is_ready(&status) {
                lines.push(READY.to_owned());
                self.ready = true;
            }
            let due = |period: Duration| alive_at.is_none_or(|at| at.elapsed() * 3 >= period);
            if watchdog.is_some_and(due) {
                lines.push("WATCHDOG=1".to_owned());
                alive_at = Some(Instant::now());
            }
            // A manager that does not read must not stop the tunnels, so another thread writes.
            let _ = tokio::task::spawn_blocking(move || send::send(&lines)).await;
        }
    }

    /// The agent has ended.
    pub(crate) fn end(mut self) {
        if let Some(mut news) = self.news.take() {
            while let Ok(news) = news.try_recv() {
                send::send(&self.lines(news));
            }
        }
    }

    fn lines(&mut self, news: News) -> Vec<String> {
        match news {
            News::Reloading => {
                std::iter::once("RELOADING=1".to_owned()).chain(send::monotonic()).collect()
            }
            // Who was not ready before is not ready by this.
            News::Reloaded => self.ready.then(|| READY.to_owned()).into_iter().collect(),
            News::Stopping => {
                self.stopping = true;
                vec!["STOPPING=1".to_owned()]
            }
        }
    }
}

async fn next(news: &mut Option<mpsc::Receiver<News>>) -> Option<News> {
    news.as_mut()?.recv().await
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

    pub(super) fn send(lines: &[String]) {
        if !lines.is_empty() {
            // Who does not hear us does not want to.
            let _ = sd_notify::notify(&[NotifyState::Custom(&lines.join("\n"))]);
        }
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

    pub(super) fn send(_: &[String]) {}

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
