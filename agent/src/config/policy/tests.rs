//! Policies as people write them.

use super::*;
use crate::config::{File, SettingsError};

fn load(text: &str) -> Result<File, String> {
    let text = format!("version = 1\n[tunnels.web]\nupstream = \"3000\"\n{text}");
    File::parse(&text, "u.toml").map_err(|error| error.to_string())
}

fn policy(text: &str) -> Result<(v1::HttpPolicy, Vec<Target>), String> {
    let file = load(text)?;
    let settings = file.settings("web", &Hashes::none()).unwrap();
    let settings = settings.map_err(|error: SettingsError| error.to_string())?;
    Ok((settings.policy, settings.routes))
}

fn fault(text: &str) -> String {
    policy(text).unwrap_err()
}

#[test]
fn a_tunnel_without_any_of_it_has_no_policy() {
    assert_eq!(policy("").unwrap(), (v1::HttpPolicy::default(), vec![]));
}

#[test]
fn every_key_becomes_its_part_of_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let users = write("users", "# comment\n\nbob:pass:word\n");
    let secrets = write("secrets", "one\ntwo\n");
    let page = write("page.html", "<p>");
    let text = format!(
        r#"
host_header = "app.test:80"
request_headers = {{ set = {{ "X-A" = "1" }}, add = {{ "X-B" = "2" }}, remove = ["Cookie"] }}
response_headers = {{ remove = ["Server"] }}
redirect_https = true
basic_auth = ["ann:secret"]
basic_auth_file = '{users}'
basic_auth_forward = true
allow = ["203.0.113.0/24", "::1"]
deny = ["203.0.113.9"]
max_body = 1000
idle_timeout = 1.5
total_timeout = 60
compression = true
error_page = '{page}'
[tunnels.web.webhook]
kind = "hmac"
secret_file = '{secrets}'
header = "X-Sig"
algorithm = "sha512"
encoding = "base64"
prefix = "v1="
timestamp_header = "X-Time"
tolerance = 60
max_body = 500
[[tunnels.web.routes]]
path = "/api"
upstream = "4000"
exact = true
strip = true
prefix = "/v1"
"#
    );
    let (policy, routes) = policy(&text).unwrap();
    assert_eq!((policy.host_mode(), &*policy.host), (v1::HostMode::Literal, "app.test:80"));
    let request = policy.request_headers.unwrap();
    assert_eq!((&request.remove[..], request.set.len()), (&["Cookie".to_owned()][..], 1));
    assert_eq!(request.add[0].name, "X-B");
    assert_eq!(policy.response_headers.unwrap().remove, ["Server"]);
    let basic = policy.basic_auth.unwrap();
    let names: Vec<_> = basic.users.iter().map(|user| &*user.name).collect();
    assert_eq!((names, basic.forward), (vec!["ann", "bob"], true));
    assert_eq!(policy.allow, ["203.0.113.0/24", "::1/128"]);
    assert_eq!(policy.deny, ["203.0.113.9/32"]);
    let webhook = policy.webhook.unwrap();
    assert_eq!((webhook.kind(), webhook.hash()), (v1::WebhookKind::Hmac, v1::WebhookHash::Sha512));
    assert_eq!(webhook.secrets, ["one", "two"]);
    assert_eq!((webhook.base64, webhook.tolerance_s, webhook.max_body), (true, 60, 500));
    assert_eq!((policy.max_body, policy.idle_timeout_ms), (1000, 1500));
    assert_eq!((policy.total_timeout_ms, policy.compression), (60_000, true));
    assert_eq!(policy.error_page, "<p>");
    assert_eq!((&*policy.routes[0].path, &*policy.routes[0].prefix), ("/api", "/v1"));
    assert_eq!(routes[0].to_string(), "http://localhost:4000");
}

#[test]
fn faults_have_their_key_and_their_place() {
    for (text, parts) in [
        ("request_headers = { set = { Host = \"a\" } }", &["u.toml:4:", "host_header"][..]),
        (
            "response_headers = { remove = [\"content-length\"] }",
            &["u.toml:4:32", "response_headers.remove[0]", "content-length"],
        ),
        ("request_headers = { set = { \"X-A\" = \"a\\nb\" } }", &["u.toml:4:37", "line break"]),
        (
            "request_headers = { add = { \"X-Uniroute-A\" = \"\" } }",
            &["u.toml:4:", "the tunnel's own"],
        ),
        ("request_headers = { sets = {} }", &["u.toml:4:21", "\"set\""]),
        ("allow = [\"::1\", \"home\"]", &["u.toml:4:9", "allow", "\"home\""]),
        ("host_header = \"a b\"", &["web", "host_header", "\"rewrite\""]),
        ("max_body = -1", &["u.toml:4:12", "max_body"]),
        ("idle_timeout = -1.0", &["web", "idle_timeout"]),
        ("redirct_https = true", &["u.toml:4:1", "redirect_https"]),
        ("error_page = \"/nowhere.html\"", &["web", "error_page", "/nowhere.html"]),
        ("basic_auth_env = \"NO_SUCH_VARIABLE_HERE\"", &["web", "NO_SUCH_VARIABLE_HERE"]),
        ("[tunnels.web.webhook]\nkind = \"gitlab\"", &["u.toml:5:8", "github"]),
        ("[tunnels.web.webhook]\nkind = \"github\"", &["web", "webhook", "one file"]),
        (
            "[[tunnels.web.routes]]\npath = \"api\"\nupstream = \"1\"",
            &["u.toml:5:8", "routes[0].path", "\"/api\""],
        ),
        (
            "[[tunnels.web.routes]]\npath = \"/api\"\nupstream = \"x\"",
            &["u.toml:6:12", "routes[0].upstream", "port is missing"],
        ),
        (
            "[[tunnels.web.routes]]\npath = \"/a\"\nupstream = \"1\"\n\
             [[tunnels.web.routes]]\npath = \"/a/\"\nupstream = \"1\"",
            &["web", "routes[1].path", "same path"],
        ),
    ] {
        let fault = fault(text);
        for part in parts {
            assert!(fault.contains(part), "{part} in {fault}");
        }
    }
}

/// T20: secrets in logs.
#[test]
fn t20_passwords_are_not_in_faults() {
    for text in
        ["basic_auth = [\"canary\"]", "basic_auth = [\"a:$2y$canary\"]", "basic_auth = [1234]"]
    {
        let fault = fault(text);
        assert!(fault.contains("u.toml:4:") && fault.contains("USER:PASSWORD"), "got {fault}");
        assert!(!fault.contains("canary") && !fault.contains("1234"), "{fault}");
    }
    let file = load("basic_auth = [\"ann:canary\"]").unwrap();
    assert!(!format!("{file:?}").contains("canary"));
    let settings = file.settings("web", &Hashes::default()).unwrap().unwrap();
    assert!(!format!("{settings:?}").contains("canary"));
    let hash = &settings.policy.basic_auth.unwrap().users[0].hash;
    assert!(password::verify(hash, b"canary"), "the password travels as its hash");
}

#[test]
fn users_of_a_file_are_named_by_line() {
    assert_eq!(User::all("ann:x\n\n# c\nbob\n").unwrap_err(), "line 4: write USER:PASSWORD");
    let error = User::all("bob:$2y$05$x").unwrap_err();
    assert!(error.starts_with("line 1") && !error.contains("05"), "{error}");
    let hash = Hashes::none().hash("", "", "");
    let users = User::all(&format!("ann:{hash}")).unwrap();
    // It would be another one.
    assert_eq!(users[0].hashed("web", &Hashes::default()).hash, hash);
}

#[test]
fn what_stands_on_the_command_line() {
    let pair = |text: &str| text.parse::<Field>().map(Field::into_pair);
    assert_eq!(pair("X-A:  b: c ").unwrap(), ("X-A".to_owned(), "b: c".to_owned()));
    assert_eq!(pair("X-A:").unwrap().1, "");
    assert!(pair("X-A").is_err() && pair("Host: a").is_err() && pair("A: b\r\nC: d").is_err());
    let webhook: FileWebhook = "github:/run/secret".parse().unwrap();
    assert_eq!(webhook.kind, Sender::Github);
    for bad in ["github", "github:", "hmac:x", "x:y"] {
        assert!(bad.parse::<FileWebhook>().is_err(), "{bad}");
    }
}
