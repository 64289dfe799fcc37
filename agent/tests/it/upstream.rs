//! Local servers that come and go: pools, checks, requests that wait, and what is said of it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse as _,
    routing::get,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uniroute_agent::{
    Agent, Event, Handle, HealthCheck, Settings, TunnelKind, TunnelSettings,
    status::UpstreamStatus,
    upstream::{Protocol, Target},
};

use crate::harness::{Edge, eventually, process::Process, within};

/// An agent in this process, ended with its value.
struct Running {
    handle: Handle,
    events: Arc<Mutex<Vec<Event>>>,
    _stop: DropGuard,
}

impl Running {
    /// Takes requests for `tunnel`, which is called `demo`.
    async fn start(edge: &Edge, tunnel: TunnelSettings) -> Self {
        let token = std::fs::read_to_string(edge.token_file()).unwrap();
        let tunnel = TunnelSettings { name: Some("demo".to_owned()), ..tunnel };
        let server = edge.url().parse().unwrap();
        let settings = Settings::new(server, token.trim().parse().unwrap(), vec![tunnel]);
        let (agent, mut listener) = Agent::new(settings).unwrap();
        let (handle, stop) = (agent.handle(), CancellationToken::new());
        tokio::spawn(agent.run(stop.clone()));
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        tokio::spawn(async move {
            while let Some(event) = listener.recv().await {
                heard.lock().push(event);
            }
        });
        let this = Self { handle, events, _stop: stop.drop_guard() };
        this.url().await;
        this
    }

    /// The first event of which `look` makes something.
    async fn event<T>(&self, what: &str, look: impl Fn(&Event) -> Option<T>) -> T {
        eventually(what, async || self.events.lock().iter().find_map(&look)).await
    }

    async fn url(&self) -> String {
        self.event("the tunnel is ready", |event| match event {
            Event::Ready { url, .. } => Some(url.clone()),
            _ => None,
        })
        .await
    }

    /// Waits until the last that was said of `port` is that it is `healthy`; the reason.
    async fn said(&self, port: u16, wanted: bool) -> String {
        let end = format!(":{port}");
        let last = || {
            let events = self.events.lock();
            let of = |event: &Event| match event {
                Event::Upstream { upstream, healthy, reason, .. } if upstream.ends_with(&end) => {
                    Some((*healthy, reason.clone()))
                }
                _ => None,
            };
            events.iter().rev().find_map(of)
        };
        let what = format!("{port} is healthy: {wanted}");
        eventually(&what, async || {
            last().filter(|(healthy, _)| *healthy == wanted).map(|(_, reason)| reason)
        })
        .await
    }

    /// The status of the local server at `port`.
    fn upstream(&self, port: u16) -> UpstreamStatus {
        let mut upstreams = self.handle.status().tunnels.remove(0).upstreams.into_iter();
        upstreams.find(|upstream| upstream.url.ends_with(&format!(":{port}"))).unwrap()
    }
}

/// A local server that can be stopped, and started again where it was.
struct Local {
    port: u16,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Local {
    async fn start(port: u16, app: Router) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = axum::serve(listener, app).with_graceful_shutdown(stopped);
        let task = tokio::spawn(async move { serving.await.unwrap() });
        Self { port, stop, task }
    }

    /// What it has begun it finishes.
    async fn stop(self) -> u16 {
        self.stop.cancel();
        within("a local server ends", self.task).await.unwrap();
        self.port
    }
}

/// How often each request was served, by its name.
type Served = Arc<Mutex<HashMap<String, usize>>>;

/// Answers `/NAME` with `who`, and takes down that it did.
fn named(who: &'static str, served: &Served) -> Router {
    let answer = async move |Path(name): Path<String>, State(served): State<Served>| {
        *served.lock().entry(name).or_default() += 1;
        who
    };
    Router::new().route("/{name}", get(answer).post(answer)).with_state(Arc::clone(served))
}

/// A port where nobody listens.
async fn nobody() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

fn target(port: u16) -> Target {
    format!("127.0.0.1:{port}").parse().unwrap()
}

fn tunnel(ports: &[u16]) -> TunnelSettings {
    let further = ports[1..].iter().map(|port| target(*port)).collect();
    TunnelSettings { further, ..TunnelSettings::http("demo", target(ports[0])) }
}

fn every(milliseconds: u64, check: HealthCheck) -> HealthCheck {
    HealthCheck { interval: Duration::from_millis(milliseconds), fall: 1, ..check }
}

/// One request; the status and the answer's body, or all of it if it has none.
async fn ask(http: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: demo.localhost\r\nconnection: close");
    let body = if method == "POST" { "content-length: 4\r\n\r\nbody" } else { "\r\n" };
    let mut answer = Vec::new();
    let asked = async {
        let mut socket = TcpStream::connect(http).await.unwrap();
        socket.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
        socket.read_to_end(&mut answer).await.unwrap();
    };
    within("an answer", asked).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    (status.unwrap_or_else(|| panic!("{text:?}")), body)
}

/// Visitors who ask again and again, each request by a name of its own.
struct Traffic {
    go_on: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    visitors: JoinSet<(u64, Vec<String>)>,
}

impl Traffic {
    fn start(http: SocketAddr) -> Self {
        let (go_on, answered) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let mut visitors = JoinSet::new();
        for visitor in 0..4 {
            let (go_on, answered) = (Arc::clone(&go_on), Arc::clone(&answered));
            visitors.spawn(async move {
                let (mut asked, mut failed) = (0, Vec::new());
                while go_on.load(Ordering::Relaxed) {
                    let (status, body) = ask(http, "GET", &format!("/{visitor}-{asked}")).await;
                    asked += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                    if status != 200 {
                        failed.push(format!("{status} {body}"));
                    }
                }
                (asked, failed)
            });
        }
        Self { go_on, answered, visitors }
    }

    /// Waits for so many more answers.
    async fn answers(&self, more: u64) {
        let enough = self.answered.load(Ordering::Relaxed) + more;
        let answered = || self.answered.load(Ordering::Relaxed);
        eventually("more answers", async || (answered() >= enough).then_some(())).await;
    }

    /// How many were asked in all; none of them failed.
    async fn end(self) -> u64 {
        self.go_on.store(false, Ordering::Relaxed);
        let ended = self.visitors.join_all().await;
        let failed: Vec<_> = ended.iter().flat_map(|(_, failed)| failed).collect();
        assert!(failed.is_empty(), "{failed:?}");
        ended.iter().map(|(asked, _)| asked).sum()
    }
}

fn total(served: &Served) -> u64 {
    served.lock().values().sum::<usize>() as u64
}

#[tokio::test]
async fn a_member_leaves_and_comes_back_and_no_request_fails() {
    let edge = Edge::start().await;
    let all: [Served; 3] = Default::default();
    let one = Local::start(0, named("one", &all[0])).await;
    let two = Local::start(0, named("two", &all[1])).await;
    let three = Local::start(0, named("three", &all[2])).await;
    let settings = TunnelSettings {
        health: every(100, HealthCheck::tcp()),
        ..tunnel(&[one.port, two.port, three.port])
    };
    let agent = Running::start(&edge, settings).await;
    let traffic = Traffic::start(edge.http);
    for served in &all {
        eventually("each gets requests", async || (total(served) > 10).then_some(())).await;
    }
    let port = two.stop().await;
    let reason = agent.said(port, false).await;
    assert!(reason.contains("nothing listens on"), "{reason}");
    traffic.answers(100).await;
    let upstream = agent.upstream(port);
    assert_eq!((upstream.healthy, upstream.reason), (Some(false), reason));
    let before = total(&all[1]);
    let two = Local::start(port, named("two", &all[1])).await;
    agent.said(port, true).await;
    eventually("it gets requests again", async || (total(&all[1]) > before + 10).then_some(()))
        .await;
    let asked = traffic.end().await;
    assert_eq!(asked, all.iter().map(total).sum::<u64>(), "each was served once");
    let upstream = agent.upstream(port);
    let healthy: Vec<_> = upstream.history.iter().map(|change| change.healthy).collect();
    assert_eq!(healthy, [true, false, true]);
    assert!(upstream.history.is_sorted_by_key(|change| change.at_ms));
    assert_eq!(upstream.since_ms, upstream.history[2].at_ms);
    drop((one, two, three));
}

#[tokio::test]
async fn who_refuses_connections_is_no_loss_whatever_the_method() {
    let edge = Edge::start().await;
    let served = Served::default();
    let there = Local::start(0, named("there", &served)).await;
    let gone = nobody().await;
    let agent = Running::start(&edge, tunnel(&[gone, there.port])).await;
    for number in 0..20 {
        let method = if number % 2 == 0 { "POST" } else { "GET" };
        let answer = ask(edge.http, method, &format!("/{number}")).await;
        assert_eq!(answer, (200, "there".to_owned()));
    }
    assert_eq!(total(&served), 20);
    agent.said(gone, false).await;
    assert_eq!(agent.upstream(there.port).healthy, Some(true));
}

#[tokio::test]
async fn connections_of_tcp_tunnels_are_shared_out_too() {
    let edge = Edge::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            socket.write_all(b"hello").await.unwrap();
        }
    });
    let gone = nobody().await;
    let socket = |port: u16| format!("127.0.0.1:{port}");
    let settings = TunnelSettings::of_kind(TunnelKind::Tcp, "demo", &socket(gone)).unwrap();
    let further = TunnelSettings::of_kind(TunnelKind::Tcp, "demo", &socket(there)).unwrap().target;
    let settings = TunnelSettings { further: vec![further], ..settings };
    let agent = Running::start(&edge, settings).await;
    let url = agent.url().await;
    let port: u16 = url.rsplit_once(':').unwrap().1.parse().unwrap();
    // As often as it takes until chance has tried the one that is gone, too.
    eventually("the one that is gone is passed over", async || {
        let mut said = String::new();
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "hello");
        (agent.upstream(gone).healthy == Some(false)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_page_with_the_wrong_status_is_unhealthy() {
    let edge = Edge::start().await;
    let status = Arc::new(AtomicU16::new(200));
    let asked = Arc::new(Mutex::new(HeaderMap::new()));
    let (now, heard) = (Arc::clone(&status), Arc::clone(&asked));
    let ready = async move |headers: HeaderMap| {
        *heard.lock() = headers;
        StatusCode::from_u16(now.load(Ordering::Relaxed)).unwrap()
    };
    let app = Router::new().route("/ready", get(ready)).fallback(async || "a page");
    let local = Local::start(0, app).await;
    let health = every(50, HealthCheck::http("/ready"));
    let agent = Running::start(&edge, TunnelSettings { health, ..tunnel(&[local.port]) }).await;
    let known = async || agent.upstream(local.port).healthy.filter(|healthy| *healthy);
    eventually("it was checked", known).await;
    let field = |name: &str| asked.lock()[name].to_str().unwrap().to_owned();
    assert_eq!(field("host"), format!("127.0.0.1:{}", local.port));
    assert!(field("user-agent").starts_with("uniroute-health/"));
    status.store(503, Ordering::Relaxed);
    let reason = agent.said(local.port, false).await;
    assert!(reason.ends_with("answered its health check /ready with 503"), "{reason}");
    // The check may be wrong, and there is nobody else.
    assert_eq!(ask(edge.http, "GET", "/page").await, (200, "a page".to_owned()));
    assert_eq!(agent.upstream(local.port).healthy, Some(false));
    status.store(204, Ordering::Relaxed);
    agent.said(local.port, true).await;
}

#[tokio::test]
async fn requests_wait_while_their_local_server_is_started_again() {
    let edge = Edge::start().await;
    let served = Served::default();
    let local = Local::start(0, named("here", &served)).await;
    let hold_local = Duration::from_secs(20);
    let agent = Running::start(&edge, TunnelSettings { hold_local, ..tunnel(&[local.port]) }).await;
    let traffic = Traffic::start(edge.http);
    traffic.answers(50).await;
    let port = local.stop().await;
    let mut posts = JoinSet::new();
    for number in 0..50 {
        let http = edge.http;
        posts.spawn(async move { ask(http, "POST", &format!("/post-{number}")).await });
    }
    let open = async || (agent.handle.status().tunnels[0].open >= 54).then_some(());
    eventually("all of them wait", open).await;
    let reason = agent.said(port, false).await;
    assert!(reason.contains("nothing listens on"), "{reason}");
    let local = Local::start(port, named("here", &served)).await;
    for answer in posts.join_all().await {
        assert_eq!(answer, (200, "here".to_owned()));
    }
    traffic.answers(50).await;
    let asked = traffic.end().await;
    assert_eq!(asked + 50, total(&served));
    assert!(served.lock().values().all(|times| *times == 1), "each was served once");
    agent.said(local.port, true).await;
    assert_eq!(agent.handle.status().tunnels[0].failed, 0);
}

#[tokio::test]
async fn a_request_waits_no_longer_than_it_may() {
    let edge = Edge::start().await;
    let gone = nobody().await;
    let hold_local = Duration::from_millis(400);
    let response_timeout = Some(Duration::from_millis(200));
    let settings = TunnelSettings { hold_local, response_timeout, ..tunnel(&[gone]) };
    let agent = Running::start(&edge, settings).await;
    let began = Instant::now();
    let (status, body) = ask(edge.http, "GET", "/").await;
    let took = began.elapsed();
    // The edge would have said 504 after the response timeout alone.
    assert!(status == 502 && body.contains("UR-3001"), "{status} {body}");
    assert!(took >= hold_local && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(agent.handle.status().tunnels[0].failed, 1);
}

#[tokio::test]
async fn a_visitor_who_leaves_waits_no_more() {
    let edge = Edge::start().await;
    let gone = nobody().await;
    let hold_local = Duration::from_secs(60);
    let agent = Running::start(&edge, TunnelSettings { hold_local, ..tunnel(&[gone]) }).await;
    let mut visitor = TcpStream::connect(edge.http).await.unwrap();
    visitor.write_all(b"GET / HTTP/1.1\r\nhost: demo.localhost\r\n\r\n").await.unwrap();
    let open = async |wanted| (agent.handle.status().tunnels[0].open == wanted).then_some(());
    eventually("it waits", async || open(1).await).await;
    drop(visitor);
    eventually("it is over", async || open(0).await).await;
}

/// Takes connections, counts them, and says nothing.
async fn silent() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            kept.push(socket);
        }
    });
    (port, count)
}

#[tokio::test]
async fn silence_ends_with_the_response_timeout() {
    let edge = Edge::start().await;
    let (port, connections) = silent().await;
    let response_timeout = Some(Duration::from_millis(300));
    let settings = TunnelSettings { response_timeout, ..tunnel(&[port]) };
    let agent = Running::start(&edge, settings).await;
    let upgrade = "/\u{20}HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\nx: ";
    for (method, path) in [("GET", "/"), ("POST", "/"), ("GET", upgrade)] {
        let began = Instant::now();
        let (status, body) = ask(edge.http, method, path).await;
        assert!(status == 504 && body.contains("UR-3003"), "{path}: {status} {body}");
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(5), "{took:?}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 3);
    // It takes connections: a TCP check passes, and a HTTP check does not.
    let health =
        every(50, HealthCheck { timeout: Duration::from_millis(200), ..HealthCheck::http("/") });
    let name = Some("demo".to_owned());
    let checked = TunnelSettings { health, response_timeout, name, ..tunnel(&[port]) };
    agent.handle.apply(vec![checked]).unwrap();
    let checked = |reason: &str| reason.contains("did not answer its health check");
    let reason = async || Some(agent.upstream(port).reason).filter(|reason| checked(reason));
    eventually("the check fails", reason).await;
}

/// Speaks HTTP/2, and answers whatever is not `/silent`.
async fn http2() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                let mut kept = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if request.uri().path() == "/silent" {
                        kept.push(respond);
                    } else {
                        respond.send_response(().into_response().map(|_| ()), true).unwrap();
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn http2_is_checked_and_timed_as_http1_is() {
    let edge = Edge::start().await;
    let port = http2().await;
    let health = every(50, HealthCheck::http("/"));
    let response_timeout = Some(Duration::from_millis(300));
    let protocol = Protocol::Http2;
    let settings = TunnelSettings { health, response_timeout, protocol, ..tunnel(&[port]) };
    let agent = Running::start(&edge, settings.clone()).await;
    let passes = async || agent.upstream(port).healthy.filter(|healthy| *healthy);
    eventually("the check passes", passes).await;
    assert_eq!(ask(edge.http, "GET", "/").await.0, 200);
    let (status, body) = ask(edge.http, "GET", "/silent").await;
    assert!(status == 504 && body.contains("UR-3003"), "{status} {body}");
    let health =
        HealthCheck { timeout: Duration::from_millis(100), ..HealthCheck::http("/silent") };
    let name = Some("demo".to_owned());
    agent
        .handle
        .apply(vec![TunnelSettings { health: every(50, health), name, ..settings }])
        .unwrap();
    let fails = async || agent.upstream(port).healthy.filter(|healthy| !healthy);
    eventually("the check fails", fails).await;
}

#[tokio::test]
async fn a_server_of_python_is_killed_and_started_again() {
    let edge = Edge::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("page"), "python").unwrap();
    let port = nobody().await;
    let python = || {
        let program = std::path::Path::new("python3");
        let mut command = crate::harness::process::command(program, folder.path());
        command.args(["-m", "http.server", &port.to_string(), "--bind", "127.0.0.1"]);
        Process::start(&mut command)
    };
    let settings = TunnelSettings {
        health: every(100, HealthCheck::http("/page")),
        hold_local: Duration::from_secs(20),
        ..tunnel(&[port])
    };
    let mut first = python();
    let agent = Running::start(&edge, settings).await;
    let healthy = async |wanted| agent.upstream(port).healthy.filter(|healthy| *healthy == wanted);
    eventually("it is there", async || healthy(true).await).await;
    assert_eq!(ask(edge.http, "GET", "/page").await, (200, "python".to_owned()));
    first.kill().await;
    agent.said(port, false).await;
    let http = edge.http;
    let waiting = tokio::spawn(async move { ask(http, "GET", "/page").await });
    let open = async || (agent.handle.status().tunnels[0].open == 1).then_some(());
    eventually("it waits", open).await;
    let _second = python();
    assert_eq!(waiting.await.unwrap(), (200, "python".to_owned()));
    agent.said(port, true).await;
}

#[tokio::test]
async fn a_refusal_of_the_public_host_is_explained_once() {
    const VITE: &str = "Blocked request. This host (\"demo.localhost\") is not allowed.\nTo allow this host, add \"demo.localhost\" to `server.allowedHosts` in vite.config.js.";
    let edge = Edge::start().await;
    let refusing = async || (StatusCode::FORBIDDEN, VITE);
    let local = Local::start(0, Router::new().fallback(refusing)).await;
    let agent = Running::start(&edge, tunnel(&[local.port])).await;
    for _ in 0..3 {
        assert_eq!(ask(edge.http, "GET", "/").await, (403, VITE.to_owned()));
    }
    let hint = agent.event("a hint", |event| match event {
        Event::Hint { title, fix, .. } => Some((title.clone(), fix.clone())),
        _ => None,
    });
    let (title, fix) = hint.await;
    assert!(title.starts_with("Vite turned a visitor away"), "{title}");
    assert!(fix.contains("--host-header rewrite") && fix.contains("[\"demo.localhost\"]"), "{fix}");
    let hints = agent.events.lock().iter().filter(|e| matches!(e, Event::Hint { .. })).count();
    assert_eq!(hints, 1);
}
