use std::time::Duration;

use uniroute_agent::{Applied, Event, Settings, TunnelKind, TunnelSettings};
use uniroute_shared::session::Carrier;

use super::*;
use crate::output::seen::{Level, Message};

/// Noon of some day.
const NOON: Millis = 1_795_608_000_000;
const MINUTE: Millis = 60_000;

fn settings(tunnels: &[(&str, &str)]) -> Settings {
    let tunnel = |(key, upstream): &(&str, &str)| {
        TunnelSettings::of_kind(TunnelKind::Http, *key, upstream).unwrap()
    };
    let server = "https://tunnel.example.com".parse().unwrap();
    let token = "a-token-of-the-edge".parse().unwrap();
    Settings::new(server, token, tunnels.iter().map(tunnel).collect())
}

fn seen(tunnels: &[(&str, &str)]) -> Seen {
    let mut seen = Seen::new(&settings(tunnels));
    seen.agent.started_ms = NOON;
    seen
}

fn ready(key: &str, upstream: &str) -> Event {
    let url = format!("https://{key}-quick-fox.tunnel.example.com");
    let (key, name) = (key.to_owned(), format!("{key}-quick-fox"));
    Event::Ready { key, name, url, upstream: upstream.to_owned() }
}

/// Two tunnels that are served, a while after the start.
fn online() -> Seen {
    let mut seen = seen(&[("web", "3000"), ("api", "4000")]);
    let carrier = Carrier::WebSocket;
    seen.take(Event::Connected { edge: "edge-1".into(), carrier }, NOON);
    seen.take(Event::RoundTrip(Duration::from_micros(12_345)), NOON);
    seen.take(ready("web", "http://localhost:3000"), NOON);
    seen.take(ready("api", "http://localhost:4000"), NOON);
    seen.inspector = Some("http://127.0.0.1:4040".into());
    seen
}

fn asked(seen: &mut Seen, tunnel: &str, what: &str, status: u16, ms: u64, at: Millis) {
    let (method, path) = what.split_once(' ').unwrap();
    let (tunnel, method, path) = (tunnel.to_owned(), method.to_owned(), path.to_owned());
    let duration = Duration::from_millis(ms);
    seen.take(Event::Request { tunnel, method, path, status, duration }, at);
}

fn page(columns: usize, rows: usize) -> Page {
    let look = Look { colour: false, unicode: true, links: false };
    Page { columns, rows, look, offset: UtcOffset::UTC, now: NOON + 5 * MINUTE }
}

fn text(seen: &Seen, page: Page) -> String {
    let lines = live(seen, page);
    assert!(rows(&lines, page) <= page.rows, "too high");
    let text: Vec<_> = lines.iter().map(|line| line.paint(page.look)).collect();
    text.join("\n")
}

/// The same at three widths, one below the other.
fn widths(seen: &Seen) -> String {
    let at = |columns| format!("== {columns} columns\n{}\n", text(seen, page(columns, 39)));
    [160, 80, 40].map(at).concat()
}

#[test]
fn connecting() {
    insta::assert_snapshot!(widths(&seen(&[("http", "3000")])));
}

#[test]
fn ready_with_two_tunnels() {
    let mut seen = online();
    insta::assert_snapshot!("no_requests_yet", widths(&seen));
    asked(&mut seen, "web", "GET /", 200, 12, NOON + MINUTE);
    asked(&mut seen, "web", "GET /assets/app.js?token=secret", 304, 1, NOON + MINUTE + 1_000);
    asked(
        &mut seen,
        "api",
        "POST /v1/a/very/long/path/that/goes/on/and/on/and/on/for/longer/than/anybody/would/read/it/to/the/end/of/it",
        502,
        1_234,
        NOON + 2 * MINUTE,
    );
    asked(&mut seen, "api", "OPTIONS /v1/\u{202e}\x1b[2J", 404, 143, NOON + 3 * MINUTE);
    insta::assert_snapshot!("ready_with_two_tunnels", widths(&seen));
}

#[test]
fn local_server_down() {
    let mut seen = online();
    let (key, upstream) = ("api".to_owned(), "http://localhost:4000".to_owned());
    let reason = "nothing listens at localhost:4000 (connection refused)".to_owned();
    seen.take(Event::Upstream { key, upstream, healthy: false, reason }, NOON + 4 * MINUTE);
    insta::assert_snapshot!(widths(&seen));
}

#[test]
fn refused() {
    let mut seen = seen(&[("web", "3000")]);
    seen.take(Event::Connected { edge: "edge-1".into(), carrier: Carrier::Quic }, NOON);
    let message = "the name is someone else's".to_owned();
    seen.take(Event::Refused { key: "web".into(), code: 1101, message }, NOON);
    insta::assert_snapshot!(widths(&seen));
}

#[test]
fn disconnected() {
    let mut seen = online();
    let reason =
        "tunnel.example.com: no connection within 10 s; is there a firewall between?".into();
    let retry_in = Duration::from_millis(1_400);
    seen.take(Event::Disconnected { reason, retry_in }, NOON + 5 * MINUTE);
    insta::assert_snapshot!(widths(&seen));
}

#[test]
fn paused() {
    let mut seen = online();
    seen.take(Event::Paused { key: "web".into(), paused: true }, NOON);
    insta::assert_snapshot!(widths(&seen));
}

#[test]
fn a_hint_and_messages() {
    let mut seen = online();
    let title = "The dev server blocks the host web-quick-fox.tunnel.example.com".to_owned();
    let fix = "Add it to server.allowedHosts in vite.config.js, or start the tunnel with --host-header rewrite.".to_owned();
    let hint = Event::Hint { key: "web".into(), title, fix };
    seen.take(hint, NOON + 5 * MINUTE - 10_000);
    for _ in 0..3 {
        let text = "the edge complains, code 2107, message too many lanes".to_owned();
        seen.message(Message { at: NOON + 4 * MINUTE, level: Level::Warning, text, times: 1 });
    }
    insta::assert_snapshot!(widths(&seen));
    let later = Page { now: NOON + 9 * MINUTE, ..page(80, 23) };
    let shown = text(&seen, later);
    assert!(!shown.contains("Hint") && !shown.contains("Messages"), "{shown}");
}

#[test]
fn a_reload_that_was_and_one_that_was_not() {
    let mut seen = online();
    let applied = Applied {
        added: vec!["docs".into()],
        removed: vec!["api".into()],
        unchanged: 1,
        ..Applied::default()
    };
    seen.take(Event::Applied(applied), NOON + 4 * MINUTE);
    let text_ = "the config file can't be used, and nothing is changed: uniroute.toml:3:1: unknown key upstrem; did you mean \"upstream\"?\nuniroute.toml:7:1: unknown key nmae".to_owned();
    seen.message(Message { at: NOON + 4 * MINUTE, level: Level::Warning, text: text_, times: 1 });
    insta::assert_snapshot!(text(&seen, page(80, 23)));
}

#[test]
fn draining() {
    let mut seen = online();
    seen.agent.tunnels[0].open = 2;
    seen.phase_is(Phase::Draining);
    seen.take(Event::Connecting, NOON);
    let shown = text(&seen, page(80, 23));
    assert!(shown.contains("draining 2 requests, Ctrl-C again to stop now"), "{shown}");
    seen.end();
    insta::assert_snapshot!("ended", text(&seen, page(80, 23)));
}

/// Whatever the size: nothing is wider or higher than the terminal, save a URL, which is whole.
#[test]
fn it_fits_any_terminal() {
    let mut seen = online();
    for n in 0..60 {
        asked(&mut seen, "web", &format!("GET /{n}"), 200, n, NOON);
    }
    let reason = "nothing listens there ".repeat(20);
    let upstream = "http://localhost:3000".to_owned();
    seen.take(Event::Upstream { key: "web".into(), upstream, healthy: false, reason }, NOON);
    for columns in [20, 40, 59, 60, 79, 80, 120, 160, 400] {
        for rows in [1, 2, 5, 8, 12, 24, 100] {
            let page = page(columns, rows);
            let lines = live(&seen, page);
            assert!(super::rows(&lines, page) <= rows, "{columns}x{rows}");
            for line in &lines {
                let shown = line.paint(page.look);
                assert!(line.width() <= columns || shown.starts_with("https://"), "{shown:?}");
            }
            if rows >= 24 && columns >= 40 {
                let shown = text(&seen, page);
                assert!(shown.contains("https://web-quick-fox.tunnel.example.com"), "{shown}");
                assert!(shown.contains("GET") && shown.contains("/59"), "{shown}");
            }
        }
    }
    let narrow = text(&seen, page(30, 30));
    assert!(narrow.lines().any(|line| line == "https://web-quick-fox.tunnel.example.com"));
}

#[test]
fn times_are_of_the_last_hundred_answers() {
    let mut seen = online();
    for ms in 1..=1_000 {
        asked(&mut seen, "web", "GET /", 200, ms, NOON);
    }
    let ms = Duration::from_millis;
    assert_eq!(seen.percentiles(), Some((ms(950), ms(999))));
}

#[test]
fn what_an_agent_tells_of_itself_goes_over_its_events() {
    let mut seen = seen(&[("web", "3000")]);
    let told = r#"{"agent_id":"x","version":"1","started_ms":1,"trouble":"","sessions":[
        {"edge":"a","server":"https://a","carrier":"quic","since_ms":1,"rtt_us":900}],
        "tunnels":[{"key":"web","kind":"http","name":"n","url":"https://n.test","state":"ready",
        "reason":"","upstreams":[{"url":"http://localhost:3000","healthy":true,"reason":"",
        "since_ms":1,"history":[]}],"requests":7,"failed":1,"open":2}],"inspector":{"captured":1}}"#;
    seen.tell(serde_json::from_str(told).unwrap());
    assert_eq!((seen.totals(), &seen.phase), ((7, 1, 2), &Phase::Online));
    let odd = r#"{"tunnels":[{"key":"web","state":"of a later version"}]}"#;
    let odd: crate::output::seen::Snapshot = serde_json::from_str(odd).unwrap();
    assert_eq!(odd.tunnels[0].state, State::Unknown);
}
