//! Settings that change while the agent runs, by the library.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uniroute_agent::{Agent, Event, Handle, Settings, TunnelSettings};

use crate::harness::{Edge, Upstream, eventually, process::Process, within};

/// An agent of this process; it drains when its value goes.
struct Running {
    handle: Handle,
    stop: CancellationToken,
    task: JoinHandle<()>,
    events: tokio::sync::mpsc::Receiver<Event>,
}

impl Running {
    async fn start(edge: &Edge, tunnels: Vec<TunnelSettings>) -> Self {
        let token = std::fs::read_to_string(edge.token_file()).unwrap();
        let token = token.trim().parse().unwrap();
        let settings = Settings::new(edge.url().parse().unwrap(), token, tunnels);
        let (agent, events) = Agent::new(settings).unwrap();
        let (handle, stop) = (agent.handle(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { agent.run(stopped).await.unwrap() });
        Self { handle, stop, task, events }
    }

    async fn ready(&mut self, key: &str) {
        let ready = async {
            while let Some(event) = self.events.recv().await {
                if matches!(&event, Event::Ready { key: ready, .. } if ready == key) {
                    return;
                }
            }
            panic!("the agent has ended");
        };
        within("the tunnel is ready", ready).await;
    }

    async fn end(self) {
        self.stop.cancel();
        within("the agent drains", self.task).await.unwrap();
    }
}

fn tunnel(name: &str, upstream: &Upstream) -> TunnelSettings {
    let mut settings = TunnelSettings::http(name, upstream.port().parse().unwrap());
    settings.name = Some(name.to_owned());
    settings
}

#[tokio::test]
async fn tunnels_come_change_and_go() {
    let edge = Edge::start().await;
    let (one, two) = (Upstream::saying("one").await, Upstream::saying("two").await);
    let mut agent = Running::start(&edge, vec![tunnel("a", &one)]).await;
    agent.ready("a").await;
    let said = |answer: (u16, String)| answer.1.rsplit("\r\n").next().unwrap().to_owned();

    agent.handle.apply(vec![tunnel("a", &one), tunnel("b", &two)]).unwrap();
    agent.ready("b").await;
    assert_eq!(said(edge.get("b", "/").await), "two");

    // The policy is the edge's part, and comes with the tunnel's next answer.
    let mut guarded = tunnel("a", &one);
    guarded.policy.deny = vec!["127.0.0.0/8".to_owned()];
    agent.handle.apply(vec![guarded, tunnel("b", &two)]).unwrap();
    agent.ready("a").await;
    assert_eq!(edge.get("a", "/").await.0, 403);
    assert_eq!(said(edge.get("b", "/").await), "two");

    let applied = agent.handle.apply(vec![tunnel("a", &two)]).unwrap();
    assert_eq!((applied.changed, applied.removed), (vec!["a".into()], vec!["b".into()]));
    eventually("a has the other server", async || {
        (said(edge.get("a", "/").await) == "two").then_some(())
    })
    .await;
    // It is held for its agent a while, which may only be restarting; then nobody has it.
    assert!(matches!(edge.get("b", "/").await.0, 404 | 503));
    agent.end().await;
}

/// An agent without tunnels has its session all the same, and what is opened later works.
#[tokio::test]
async fn an_agent_may_have_no_tunnel_for_a_while() {
    let edge = Edge::start().await;
    let one = Upstream::saying("one").await;
    let mut agent = Running::start(&edge, Vec::new()).await;
    let connected = async {
        while let Some(event) = agent.events.recv().await {
            if matches!(event, Event::Connected { .. }) {
                return;
            }
        }
        panic!("the agent has ended");
    };
    within("a session without a tunnel", connected).await;
    agent.handle.apply(vec![tunnel("a", &one)]).unwrap();
    agent.ready("a").await;
    assert_eq!(edge.get("a", "/").await.0, 200);
    agent.handle.apply(Vec::new()).unwrap();
    eventually("a is gone", async || (edge.get("a", "/").await.0 != 200).then_some(())).await;
    agent.handle.apply(vec![tunnel("b", &one)]).unwrap();
    agent.ready("b").await;
    assert_eq!(agent.handle.status().sessions.len(), 1);
    agent.end().await;
}

/// `start --all` with a config file that loses its last tunnel, and gets one again.
#[tokio::test]
async fn a_config_file_may_have_no_tunnel_for_a_while() {
    let edge = Edge::start().await;
    let one = Upstream::saying("one").await;
    let path = edge.home.path().join("uniroute.toml");
    let tunnel = format!("[tunnels.a]\nupstream = {:?}\nname = \"a\"\n", one.port());
    std::fs::write(&path, format!("version = 1\n{tunnel}")).unwrap();
    let mut command = edge.agent(&["start", "--all", "--config", "uniroute.toml"]);
    let agent = Process::start(command.args(["--log-level", "info"]));
    agent.out_line("ready a").await;
    std::fs::write(&path, "version = 1\n").unwrap();
    agent.signal("HUP").await;
    agent.out_line("reloaded: removed a;").await;
    let more = tunnel.replace("\"a\"", "\"b\"").replace("tunnels.a", "tunnels.b");
    std::fs::write(&path, format!("version = 1\n{more}")).unwrap();
    agent.signal("HUP").await;
    agent.out_line("ready b").await;
    assert_eq!(edge.get("b", "/").await.0, 200);
}

#[tokio::test]
async fn a_new_name_is_a_new_tunnel_and_the_old_one_goes() {
    let edge = Edge::start().await;
    let one = Upstream::saying("one").await;
    let mut agent = Running::start(&edge, vec![tunnel("a", &one)]).await;
    agent.ready("a").await;
    let renamed = TunnelSettings { name: Some("other".into()), ..tunnel("a", &one) };
    agent.handle.apply(vec![renamed]).unwrap();
    agent.ready("a").await;
    assert_eq!(edge.get("other", "/").await.0, 200);
    let status = agent.handle.status();
    assert_eq!((status.tunnels.len(), status.tunnels[0].name.as_str()), (1, "other"));
    agent.end().await;
}

/// What has begun goes on as it began; what is not changed does not notice.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_fails_on_untouched_tunnels_over_many_reloads() {
    let edge = Arc::new(Edge::start().await);
    let (one, two) = (Upstream::saying("one").await, Upstream::saying("two").await);
    let slow = Upstream::start(Router::new().route(
        "/",
        get(async || {
            tokio::time::sleep(Duration::from_millis(30)).await;
            "slow"
        }),
    ));
    let slow = slow.await;
    let steady = || vec![tunnel("steady", &one), tunnel("slow", &slow)];
    let mut agent = Running::start(&edge, steady()).await;
    agent.ready("slow").await;
    let (asked, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let visitors: Vec<_> = ["steady", "slow"]
        .into_iter()
        .flat_map(|name| [name; 2])
        .map(|name| {
            let (edge, asked, stop) = (Arc::clone(&edge), Arc::clone(&asked), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let (status, answer) = edge.get(name, "/").await;
                    assert_eq!(status, 200, "{name}: {answer}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for round in 0..50 {
        let before = asked.load(Ordering::Relaxed);
        let mut settings = steady();
        let mut changing = tunnel("changing", if round % 2 == 0 { &one } else { &two });
        changing.policy.compression = round % 4 < 2;
        settings.push(changing);
        if round % 3 == 0 {
            settings.push(tunnel("passing", &two));
        }
        agent.handle.apply(settings).unwrap();
        eventually("requests meanwhile", async || {
            (asked.load(Ordering::Relaxed) > before + 3).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    for visitor in visitors {
        visitor.await.unwrap();
    }
    agent.end().await;
}
