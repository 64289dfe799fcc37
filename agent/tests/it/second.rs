//! Several agents of one user on one machine, as processes with one state folder.

use std::process::Stdio;

use axum::{Router, routing::get};
use serde_json::Value;
use tokio::process::Command;

use crate::harness::{
    Edge, Upstream, eventually,
    process::{Ended, Process, run},
};

/// `uniroute http UPSTREAM …` with lines for people.
async fn started(edge: &Edge, upstream: &Upstream, further: &[&str]) -> Process {
    let port = upstream.port();
    let process = Process::start(edge.agent(&["http", &port]).args(further));
    process.out_line("ready http").await;
    process
}

/// What `uniroute status --output json` says of each agent, in the order in which they began.
async fn statuses(edge: &Edge) -> Vec<Value> {
    let status = run(&mut edge.agent(&["status", "--output", "json"])).await;
    assert_eq!(status.code, Some(0), "{status:?}");
    status.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn id_of(status: &Value) -> &str {
    status["agent_id"].as_str().unwrap()
}

async fn says(edge: &Edge, name: &str, text: &str) {
    let (status, answer) = edge.get(name, "/").await;
    assert!(status == 200 && answer.ends_with(text), "{name}: {answer}");
}

/// Each terminal has a tunnel, an inspector and an identity of its own, and gets its own name back
/// after a crash, whichever is started first.
#[tokio::test]
async fn two_terminals_are_two_agents() {
    let edge = Edge::start().await;
    let (one, two) = (Upstream::saying("one").await, Upstream::saying("two").await);
    let mut first = started(&edge, &one, &["--name", "one"]).await;
    let mut second = started(&edge, &two, &["--name", "two"]).await;
    for (agent, name) in [(&first, "one"), (&second, "two")] {
        let line = agent.out_line("inspector http://127.0.0.1:").await;
        assert_eq!(line.ends_with(":4040"), !line.contains("(port 4040 is taken)"), "{line}");
        says(&edge, name, name).await;
    }
    let before = statuses(&edge).await;
    assert_eq!(before.len(), 2);
    assert_ne!(id_of(&before[0]), id_of(&before[1]));

    first.kill().await;
    second.kill().await;
    let second = started(&edge, &two, &["--name", "two"]).await;
    let first = started(&edge, &one, &["--name", "one"]).await;
    says(&edge, "one", "one").await;
    says(&edge, "two", "two").await;
    let after = statuses(&edge).await;
    assert_eq!([id_of(&after[1]), id_of(&after[0])], [id_of(&before[0]), id_of(&before[1])]);
    for agent in [first, second] {
        agent.signal("INT").await;
        assert_eq!(agent.ended().await.code, Some(0));
    }
}

#[tokio::test]
async fn names_of_the_edges_choice_differ() {
    let edge = Edge::start().await;
    let (one, two) = (Upstream::saying("one").await, Upstream::saying("two").await);
    let (first, second) = (started(&edge, &one, &[]).await, started(&edge, &two, &[]).await);
    for (agent, text) in [(&first, "one"), (&second, "two")] {
        let line = agent.out_line("ready http").await;
        let host = line.split("://").nth(1).unwrap();
        says(&edge, host.split('.').next().unwrap(), text).await;
    }
}

/// One that asks for a name of another's is told who has it, and takes nothing away.
#[tokio::test]
async fn a_name_that_is_served_is_refused_to_the_second() {
    let edge = Edge::start().await;
    let (one, two) = (Upstream::saying("one").await, Upstream::saying("two").await);
    let first = started(&edge, &one, &["--name", "demo"]).await;
    let ended = run(&mut edge.agent(&["http", &two.port(), "--name", "demo"])).await;
    assert_eq!(ended.code, Some(6), "{ended:?}");
    let pid = first.id();
    for part in [
        "by another agent of yours",
        "connected from 127.0.0.1 (UR-1101)",
        "uniroute status",
        &format!("served on this machine by process {pid}"),
    ] {
        assert!(ended.err.contains(part), "{part} in {}", ended.err);
    }
    says(&edge, "demo", "one").await;
    first.signal("INT").await;
    assert_eq!(first.ended().await.code, Some(0));
    let third = started(&edge, &two, &["--name", "demo"]).await;
    says(&edge, "demo", "two").await;
    drop(third);
}

/// One that drains has given its id and its names up, whatever it still has to finish.
#[tokio::test]
async fn a_new_one_takes_over_from_one_that_drains() {
    let edge = Edge::start().await;
    let (reached, on) = (tokio::sync::Semaphore::new(0), tokio::sync::Semaphore::new(0));
    let gates = std::sync::Arc::new((reached, on));
    let held = std::sync::Arc::clone(&gates);
    let slow = get(async move || {
        held.0.add_permits(1);
        held.1.acquire().await.unwrap().forget();
        "slow"
    });
    let one = Upstream::start(Router::new().route("/", slow)).await;
    let two = Upstream::saying("two").await;
    let first = started(&edge, &one, &["--name", "demo"]).await;
    let id = id_of(&statuses(&edge).await[0]).to_owned();
    let asked = edge.get("demo", "/");
    let meanwhile = async {
        gates.0.acquire().await.unwrap().forget();
        first.signal("INT").await;
        first.out_line("draining").await;
        let second = started(&edge, &two, &["--name", "demo"]).await;
        eventually("the new one serves", async || {
            (edge.get("demo", "/new").await.1.ends_with("two")).then_some(())
        })
        .await;
        let ids: Vec<_> = statuses(&edge).await.iter().map(|s| id_of(s).to_owned()).collect();
        assert_eq!(ids, [id.clone(), id]);
        gates.1.add_permits(1);
        second
    };
    let ((status, answer), _second) = tokio::join!(asked, meanwhile);
    assert!(status == 200 && answer.ends_with("slow"), "{answer}");
    let ended: Ended = first.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// Where several run, commands that are for one want to know which.
#[tokio::test]
async fn commands_ask_all_or_the_one_that_is_chosen() {
    let edge = Edge::start().await;
    let (one, two) = (Upstream::saying("one").await, Upstream::saying("two").await);
    let first = started(&edge, &one, &["--name", "one"]).await;
    let second = started(&edge, &two, &["--name", "two"]).await;
    says(&edge, "two", "two").await;
    let status = run(&mut edge.agent(&["status"])).await;
    for part in [format!("agent {}", first.id()), format!("agent {}", second.id())] {
        assert!(status.out.contains(&part), "{}", status.out);
    }
    let ready = run(&mut edge.agent(&["ready"])).await;
    assert!(ready.code == Some(0) && ready.out.matches("http://").count() == 2, "{ready:?}");
    let list = run(&mut edge.agent(&["inspect", "list"])).await;
    assert_eq!(list.code, Some(1));
    for (agent, upstream) in [(&first, &one), (&second, &two)] {
        let line = list.err.lines().find(|line| line.contains(&format!("--pid {}", agent.id())));
        assert!(line.unwrap().contains(&upstream.port()), "{}", list.err);
    }
    let pid = second.id().to_string();
    eventually("its request", async || {
        let list = run(&mut edge.agent(&["inspect", "--pid", &pid, "list"])).await;
        (list.code == Some(0) && list.out.contains("GET")).then_some(())
    })
    .await;
}

/// Files of variables and compose files have variables that are empty.
#[tokio::test]
async fn an_empty_variable_counts_as_not_set() {
    let edge = Edge::start().await;
    let upstream = Upstream::saying("served").await;
    let config = format!("version = 1\n[agent]\ntoken_file = {:?}\n", edge.token_file());
    std::fs::write(edge.home.path().join("uniroute.toml"), config).unwrap();
    let empty = |command: &mut Command| {
        for name in [
            "UNIROUTE_TOKEN",
            "UNIROUTE_TOKEN_FILE",
            "UNIROUTE_NAME",
            "UNIROUTE_PROXY",
            "UNIROUTE_PROXY_CREDENTIALS",
            "UNIROUTE_LANES",
            "UNIROUTE_STATE_DIR",
            "UNIROUTE_IN_FLIGHT",
            "HTTPS_PROXY",
            "XDG_STATE_HOME",
        ] {
            command.env(name, "");
        }
    };
    let mut command = edge.agent(&["http", &upstream.port(), "--config", "uniroute.toml"]);
    empty(&mut command);
    let agent = Process::start(command.stdin(Stdio::null()));
    agent.out_line("ready http").await;
    assert!(edge.home.path().join(".local/state/uniroute/agent-id").exists());

    // What keeps visitors out is no variable that may be forgotten.
    for (name, words) in
        [("UNIROUTE_ALLOW", "--allow"), ("UNIROUTE_BASIC_AUTH", "nobody could come in")]
    {
        let ended = run(edge.agent(&["http", &upstream.port()]).env(name, "")).await;
        assert_eq!(ended.code, Some(2), "{name}: {ended:?}");
        assert!(ended.err.contains(words), "{name}: {}", ended.err);
    }
}
