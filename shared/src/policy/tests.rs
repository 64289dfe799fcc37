//! The whole policy over whole heads.

use uniroute_proto::v1::HttpVersion;

use super::*;

fn head(target: &'static str, fields: &[(&'static str, &'static str)]) -> RequestHead {
    let mut all = Fields::default();
    all.push("Host", "demo.example.com:8080");
    fields.iter().for_each(|(name, value)| all.push(*name, *value));
    RequestHead {
        method: "GET".into(),
        target: target.into(),
        authority: "demo.example.com:8080".into(),
        version: HttpVersion::HttpVersion11,
        fields: all,
    }
}

fn seen(https: bool) -> Seen {
    Seen { visitor: IpAddr::from([203, 0, 113, 9]), https, https_port: 443 }
}

fn compile(policy: &v1::HttpPolicy) -> Policy {
    Policy::compile(policy).unwrap()
}

fn refused(policy: &Policy, head: &RequestHead) -> u16 {
    match policy.admit(head, seen(true)) {
        Admit::Refuse(refusal) => refusal.code().number,
        other => panic!("not refused: {other:?}"),
    }
}

fn passed(policy: &Policy, head: &RequestHead) -> Pass {
    match policy.admit(head, seen(true)) {
        Admit::Pass(pass) => pass,
        other => panic!("not passed: {other:?}"),
    }
}

#[test]
fn an_empty_policy_lets_everything_through_unchanged() {
    let policy = compile(&v1::HttpPolicy::default());
    let mut request = head("/../%2e?x", &[("Authorization", "Basic eDp5"), ("Origin", "null")]);
    let before = request.clone();
    let pass = passed(&policy, &request);
    assert!(pass.credentials.is_none() && pass.whole_body.is_none() && pass.max_body.is_none());
    let public = Public::new(true, request.authority.clone());
    policy.rewrite_request(&mut request, pass.route, &public);
    assert_eq!(request, before);
    policy.rewrite_response(&mut request.fields, pass.route, &public);
    assert_eq!(request, before);
}

#[test]
fn http_is_sent_to_https_but_for_certificates() {
    let policy = compile(&v1::HttpPolicy { redirect_https: true, ..Default::default() });
    let location = |target, https_port| {
        let seen = Seen { https_port, ..seen(false) };
        match policy.admit(&head(target, &[]), seen) {
            Admit::Redirect(location) => Some(String::from_utf8(location.to_vec()).unwrap()),
            _ => None,
        }
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(location("/a?b=c", 443), text("https://demo.example.com/a?b=c"));
    assert_eq!(location("/", 8443), text("https://demo.example.com:8443/"));
    assert_eq!(location("*", 443), text("https://demo.example.com/"));
    assert_eq!(location("/.well-known/acme-challenge/token", 443), None);
    assert!(location("/.well-known/acme-challenge", 443).is_some());
    passed(&policy, &head("/", &[]));
}

#[test]
fn rules_are_asked_in_order() {
    let policy = v1::HttpPolicy {
        deny: vec!["203.0.113.9".into()],
        redirect_https: true,
        routes: vec![v1::HttpRoute { path: "/api".into(), ..Default::default() }],
        basic_auth: Some(v1::BasicAuth {
            users: vec![v1::BasicUser { name: "ann".into(), hash: password::hash(b"secret") }],
            forward: false,
        }),
        max_body: 10,
        ..Default::default()
    };
    let long = [("content-length", "11"), ("authorization", "Basic YW5uOnNlY3JldA==")];
    let mut policy = policy;
    assert_eq!(refused(&compile(&policy), &head("/api/..", &[])), 4010);
    policy.deny.clear();
    assert_eq!(refused(&compile(&policy), &head("/api/..", &[])), 1120);
    assert_eq!(refused(&compile(&policy), &head("/api", &long[..1])), 4011);
    assert_eq!(refused(&compile(&policy), &head("/api", &long)), 5020);
    let pass = passed(&compile(&policy), &head("/api", &long[1..]));
    assert_eq!((pass.route.number, pass.max_body), (1, Some(10)));
    assert_eq!(pass.credentials.unwrap().password, b"secret");
}

#[test]
fn the_password_stays_at_the_edge_unless_it_is_wanted() {
    let with = |forward| {
        let users = vec![v1::BasicUser { name: "ann".into(), hash: password::hash(b"x") }];
        compile(&v1::HttpPolicy {
            basic_auth: Some(v1::BasicAuth { users, forward }),
            ..Default::default()
        })
    };
    for forward in [false, true] {
        let mut request = head("/", &[("Authorization", "Basic YW5uOng=")]);
        let public = Public::new(true, request.authority.clone());
        with(forward).rewrite_request(&mut request, RouteMatch::default(), &public);
        assert_eq!(request.fields.contains("authorization"), forward);
    }
}

#[test]
fn a_webhook_wants_the_whole_body_within_both_limits() {
    let webhook = v1::Webhook {
        kind: v1::WebhookKind::Github.into(),
        secrets: vec!["secret".into()],
        max_body: 100,
        ..Default::default()
    };
    let policy = |max_body| {
        compile(&v1::HttpPolicy { webhook: Some(webhook.clone()), max_body, ..Default::default() })
    };
    assert_eq!(passed(&policy(0), &head("/", &[])).whole_body, Some(100));
    assert_eq!(passed(&policy(10), &head("/", &[])).whole_body, Some(10));
    assert_eq!(refused(&policy(0), &head("/", &[("content-length", "101")])), 5020);
    let error = policy(0).check_webhook(&Fields::default(), b"", 0).unwrap_err();
    assert_eq!(error.code().number, 4013);
}

#[test]
fn a_stripped_prefix_is_told() {
    let route = v1::HttpRoute { path: "/api".into(), strip: true, ..Default::default() };
    let policy = compile(&v1::HttpPolicy { routes: vec![route], ..Default::default() });
    let mut request = head("/api/x", &[("X-Forwarded-Prefix", "/forged")]);
    let pass = passed(&policy, &request);
    let public = Public::new(true, request.authority.clone());
    policy.rewrite_request(&mut request, pass.route, &public);
    assert_eq!(request.target, "/x");
    assert_eq!(request.fields.all("x-forwarded-prefix").collect::<Vec<_>>(), ["/api"]);
}

#[test]
fn a_page_that_is_too_long_is_refused() {
    let page = vec![b' '; MAX_ERROR_PAGE + 1].into();
    let error = Policy::compile(&v1::HttpPolicy { error_page: page, ..Default::default() });
    assert_eq!(error.unwrap_err().key, "error_page");
}
