//! Accounts by the command line, tokens by the API, agents that come with them.

use std::path::Path;

use serde_json::{Value, json};
use uniroute_agent::{AgentError, Event, Settings, TunnelKind, TunnelSettings};
use uniroute_edge::{
    setup::{Role, Setup},
    store::{Store, StoreOptions, StoreUrl, Timestamp},
};

use crate::harness::{
    TestAgent,
    cluster::{Alone, Api, PASSWORD, account, agent, id},
    eventually,
    process::{self, Ended, run},
    upstream::TestUpstream,
};

/// The command line on an edge's files.
async fn command(folder: &Path, args: &[&str]) -> Ended {
    let mut edge = process::edge(folder);
    let ended = run(edge.args(args).arg("--data-dir").arg(folder)).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn from_an_account_on_the_command_line_to_a_visitors_page() {
    let alone = Alone::start().await;
    let folder = alone.folder.path();
    std::fs::write(folder.join("password"), format!("{PASSWORD}\n")).unwrap();
    let password = ["user", "add", "ann@example.com", "--password-file", "password"];
    command(folder, &password).await;
    let ann = Api::login(&alone.edge, "ann@example.com").await;
    let token = ann.post("/tokens", json!({ "name": "laptop" })).await;
    let upstream = TestUpstream::saying("served").await;
    let settings =
        agent(&alone.edge, token["token"].as_str().unwrap(), "laptop", "shop", &upstream.url());
    let _agent = TestAgent::launch(settings).await;
    alone.edge.get("shop", "/").await.assert_ok("served");
    let tunnel = ann.tunnel("shop").await;
    assert_eq!((&tunnel["status"], &tunnel["agent"]), (&json!("active"), &json!("laptop")));
    let by_command = command(folder, &["token", "add", "ann@example.com"]).await.out;
    let settings = agent(&alone.edge, by_command.trim(), "server", "blog", &upstream.url());
    let _second = TestAgent::launch(settings).await;
    alone.edge.get("blog", "/").await.assert_ok("served");
    eventually("uses of tokens are seen", async || {
        let tokens = ann.get("/tokens").await;
        let used = |token: &&Value| !token["last_used_at"].is_null();
        (tokens["items"].as_array().unwrap().iter().filter(used).count() == 2).then_some(())
    })
    .await;
}

/// How an agent ends that is not let in.
async fn refused(settings: Settings) -> (u16, String) {
    match TestAgent::spawn(settings).ended().await {
        Err(error @ AgentError::Token { code }) => (code.number, error.to_string()),
        Err(AgentError::Refused(list)) => {
            let error = AgentError::Refused(list.clone());
            (list[0].code, error.to_string())
        }
        other => panic!("{other:?}"),
    }
}

/// A good token of somebody else's edge.
async fn foreign_token() -> String {
    let folder = tempfile::tempdir().unwrap();
    let url = StoreUrl::file(folder.path().join("edge.db"));
    Store::open(&url, &StoreOptions::default()).await.unwrap();
    let setup = Setup::open(&url, &StoreOptions::default()).await.unwrap();
    account(&setup, "bob@example.com", Role::User, None).await;
    setup.add_token("bob@example.com", "", None, Vec::new()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn t11_what_a_token_is_not_for_is_refused_with_a_word_on_what_to_do() {
    let alone = Alone::start().await;
    account(&alone.setup().await, "ann@example.com", Role::User, None).await;
    let ann = Api::login(&alone.edge, "ann@example.com").await;
    let make = async |body: Value| {
        let made = ann.post("/tokens", body).await;
        (id(&made), made["token"].as_str().unwrap().to_owned())
    };
    let wants = |token: &str| agent(&alone.edge, token, "one", "shop", "3000");
    let said = |(code, text): (u16, String), wanted: u16, fix: &str| {
        assert_eq!(code, wanted, "{text}");
        assert!(text.contains(fix), "{text}");
    };

    let (_, good) = make(json!({})).await;
    let last = if good.ends_with('0') { "1" } else { "0" };
    let mistyped = format!("{}{last}", &good[..good.len() - 1]);
    said(refused(wants(&mistyped)).await, 4001, "ask the edge's operator for a new token");
    said(refused(wants(&foreign_token().await)).await, 4001, "Check `UNIROUTE_TOKEN`");

    let (revoked_id, revoked) = make(json!({})).await;
    ann.delete(&format!("/tokens/{revoked_id}")).await;
    said(refused(wants(&revoked)).await, 4003, "Make a new token");

    let soon = Timestamp::now().plus(std::time::Duration::from_millis(1_500));
    let (short_id, short) = make(json!({ "expires_at": soon })).await;
    eventually("the token is over", async || {
        let token = ann.get(&format!("/tokens/{short_id}")).await;
        (token["is_good"] == false).then_some(())
    })
    .await;
    said(refused(wants(&short)).await, 4004, "Make a new token");

    let (_, elsewhere) = make(json!({ "scopes": { "cidrs": ["192.0.2.0/24"] } })).await;
    said(refused(wants(&elsewhere)).await, 4005, "network");

    let (_, named) = make(json!({ "scopes": { "names": ["blog-*"] } })).await;
    said(refused(wants(&named)).await, 4006, "wider scopes");
    let (_, kind) = make(json!({ "scopes": { "kinds": ["tcp"] } })).await;
    said(refused(wants(&kind)).await, 4006, "wider scopes");
    let ports = json!({ "scopes": { "ports": [{ "first": 20_500, "last": 20_501 }] } });
    let (_, ports) = make(ports).await;
    let mut tcp = TunnelSettings::of_kind(TunnelKind::Tcp, "ssh", "22").unwrap();
    tcp.port = Some(20_502);
    let mut settings = wants(&ports);
    settings.tunnels = vec![tcp];
    said(refused(settings).await, 4006, "wider scopes");

    // Several tunnels, of which the token allows some: those are served.
    let upstream = TestUpstream::saying("served").await;
    let mut settings = agent(&alone.edge, &named, "two", "blog-1", &upstream.url());
    settings.tunnels.push(TestAgent::tunnel("shop", &upstream.url()));
    let agent = TestAgent::spawn(settings);
    agent.readies(1).await;
    alone.edge.get("blog-1", "/").await.assert_ok("served");
    let code = |event: &Event| match event {
        Event::Refused { code, .. } => Some(*code),
        _ => None,
    };
    eventually("the other one is refused", async || {
        (agent.seen(code).await == [4006]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_programs_exit_codes_tell_tokens_from_names() {
    let alone = Alone::start().await;
    let setup = alone.setup().await;
    account(&setup, "ann@example.com", Role::User, None).await;
    let named = setup.add_token("ann@example.com", "", None, vec!["blog".into()]).await.unwrap();
    let revoked = setup.add_token("ann@example.com", "", None, Vec::new()).await.unwrap();
    let listed = setup.tokens("ann@example.com").await.unwrap();
    setup.revoke_token(listed[0].id).await.unwrap();
    for (token, code, words) in [(revoked, 4, "UR-4003"), (named, 6, "UR-4006")] {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), token).unwrap();
        let mut program = process::agent(home.path());
        program.args(["http", "3000", "--name", "shop", "--token-file", "token", "--server"]);
        let ended = run(program.arg(format!("http://{}", alone.edge.http()))).await;
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.err.contains(words), "{ended:?}");
    }
}

/// K3: without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_in_the_file_is_used_when_the_old_one_is_over() {
    let alone = Alone::start().await;
    account(&alone.setup().await, "ann@example.com", Role::User, None).await;
    let ann = Api::login(&alone.edge, "ann@example.com").await;
    let made = [ann.post("/tokens", json!({})).await, ann.post("/tokens", json!({})).await];
    let [old, new] = made.each_ref().map(|made| made["token"].as_str().unwrap());
    let file = alone.folder.path().join("agent-token");
    std::fs::write(&file, old).unwrap();
    let upstream = TestUpstream::saying("served").await;
    let mut settings = agent(&alone.edge, old, "laptop", "shop", &upstream.url());
    settings.token_file = Some(file.clone());
    let agent = TestAgent::launch(settings).await;
    std::fs::write(&file, format!("# rotated\n{new}\n")).unwrap();
    ann.delete(&format!("/tokens/{}", id(&made[0]))).await;
    agent.readies(2).await;
    alone.edge.get("shop", "/").await.assert_ok("served");
}
