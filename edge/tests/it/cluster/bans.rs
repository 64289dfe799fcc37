//! Who looks like an attacker gets no answer for a while, from any edge.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use uniroute_agent::AgentError;
use uniroute_edge::{config::Settings, setup::Role};

use crate::harness::{
    TOKEN, TestAgent, TestEdge,
    cluster::{Api, Cluster, account, agent, connect, user},
    eventually, host,
    upstream::TestUpstream,
};

const SCANNER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const GUESSER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// Where operators are, and whom nobody suspects.
const OFFICE: [u8; 4] = [127, 0, 0, 2];

fn strict(settings: &mut Settings) {
    let bans = &mut settings.durable.bans;
    (bans.tokens, bans.names, bans.logins) = (5, 10, 5);
    bans.exempt = "127.0.0.2/32".parse().unwrap();
    settings.trusted_proxies = format!("{PROXY}/32").parse().unwrap();
}

/// What a visitor from there gets of `/` at an edge; `None`: nothing.
async fn visit(edge: &TestEdge, from: Ipv4Addr, name: &str) -> Option<(u16, Option<String>)> {
    let mut wire = connect(edge.http(), from).await;
    let request = format!("GET / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", host(name));
    wire.try_send(request).await.ok()?;
    let answer = wire.try_answer("GET").await?;
    Some((answer.status(), answer.code().map(str::to_owned)))
}

/// Waits until every edge refuses `from`.
async fn locked_out(cluster: &Cluster, from: Ipv4Addr) {
    for edge in &cluster.edges {
        eventually("it is locked out", async || {
            let seen = visit(edge, from, "shop").await;
            let banned = Some((403, Some("UR-4007".to_owned())));
            (seen.is_none() || seen == banned).then_some(())
        })
        .await;
    }
}

async fn is_listed(admin: &Api, address: &str, rule: &str) {
    for edge in ["here", "there"] {
        eventually("operators see the ban", async || {
            let bans = admin.get("/bans").await;
            let this = |ban: &Value| ban["address"] == address && ban["rule"] == rule;
            bans["items"].as_array().unwrap().iter().any(this).then_some(())
        })
        .await;
        let events = eventually("it is in the audit log", async || {
            let events = admin.get("/events?limit=100").await;
            events.to_string().contains(rule).then_some(events)
        })
        .await;
        assert!(events.to_string().contains("address.banned"), "{edge}: {events}");
    }
}

async fn lifted(cluster: &Cluster, admin: &Api, address: Ipv4Addr) {
    admin.delete(&format!("/bans/{address}")).await;
    for edge in &cluster.edges {
        eventually("it is let in again", async || {
            let seen = visit(edge, address, "shop").await;
            (seen.is_some_and(|(status, _)| status == 200 || status == 404)).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t25_scanners_guessers_and_sprayers_are_locked_out_everywhere_for_a_while() {
    let cluster = Cluster::with(2, strict).await;
    let setup = cluster.setup().await;
    let admin = cluster.admin().await.from(OFFICE);
    account(&setup, "op@example.com", Role::Operator, None).await;
    let token = user(&setup, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let [edge, other] = [&cluster.edges[0], &cluster.edges[1]];
    let serving = TestAgent::launch(agent(edge, &token, "one", "shop", &upstream.url())).await;

    // Names, over one connection: it is no way around.
    let mut wire = connect(edge.http(), SCANNER).await;
    for number in 0..10 {
        wire.get(&format!("guess-{number}"), "/").await.assert_failed(404, "UR-1001");
    }
    let refused = wire.get("shop", "/").await;
    refused.assert_failed(403, "UR-4007");
    assert!(refused.head.get("retry-after").is_some());
    locked_out(&cluster, SCANNER).await;
    is_listed(&admin, "127.0.0.9", "name-scanning").await;
    lifted(&cluster, &admin.at(other), SCANNER).await;

    // Passwords.
    let guesser = Api::nobody(edge, GUESSER.octets());
    for number in 0..5 {
        let body = json!({ "email": format!("user{number}@example.com"), "password": "wrong" });
        guesser.send("POST", "/auth/login", Some(body)).await.assert_failed(401, "UR-4021");
    }
    locked_out(&cluster, GUESSER).await;
    is_listed(&admin, "127.0.0.10", "login-guessing").await;
    lifted(&cluster, &admin, GUESSER).await;

    // Tokens. The address is the agent's own, too, which stays: its connection is older.
    for _ in 0..5 {
        let mut settings = agent(edge, TOKEN, "two", "blog", &upstream.url());
        settings.fail_fast = true;
        match TestAgent::spawn(settings).ended().await {
            Err(AgentError::Token { code }) => assert_eq!(code.number, 4001),
            other => panic!("{other:?}"),
        }
    }
    let home = Ipv4Addr::LOCALHOST;
    locked_out(&cluster, home).await;
    is_listed(&admin, "127.0.0.1", "token-spraying").await;
    assert!(!serving.is_over());
    assert_eq!(visit(edge, OFFICE.into(), "shop").await, Some((200, None)));
    lifted(&cluster, &admin, home).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_is_never_locked_out_but_who_is_behind_it() {
    let cluster = Cluster::with(1, strict).await;
    let token = user(&cluster.setup().await, "ann@example.com", None).await;
    let upstream = TestUpstream::saying("hello").await;
    let edge = &cluster.edges[0];
    let _agent = TestAgent::launch(agent(edge, &token, "one", "shop", &upstream.url())).await;
    let mut wire = connect(edge.http(), PROXY).await;
    let mut through = async |name: &str, visitor: &str| {
        let head = format!("host: {}\r\nx-forwarded-for: {visitor}", host(name));
        wire.send(format!("GET / HTTP/1.1\r\n{head}\r\n\r\n")).await;
        let answer = wire.answer("GET").await;
        (answer.status(), answer.code().map(str::to_owned))
    };
    for number in 0..10 {
        assert_eq!(through(&format!("guess-{number}"), "198.51.100.7").await.0, 404);
    }
    assert_eq!(through("shop", "198.51.100.7").await, (403, Some("UR-4007".to_owned())));
    assert_eq!(through("shop", "198.51.100.8").await, (200, None));
    assert_eq!(visit(edge, PROXY, "shop").await, Some((200, None)));
    for number in 0..30 {
        let seen = visit(edge, PROXY, &format!("guess-{number}")).await;
        assert_eq!(seen.map(|seen| seen.0), Some(404));
    }
    assert_eq!(visit(edge, PROXY, "shop").await, Some((200, None)));
}
