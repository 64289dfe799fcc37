//! The config of ngrok's agent: tunnels of its versions 1 and 2, endpoints of version 3.

use super::{Draft, Drafts, Place, address, take_name};

/// The end of names that only ngrok's own network knows.
const INTERNAL: &str = ".internal";
/// What a login takes the place of.
const LOGIN: &str = "the edge has a token of its own: `uniroute login` asks for it and stores it";
const NOT_NEEDED: &str = "there is nothing like it here, and no need for it";
/// Keys of the agent without a counterpart.
const AGENT: [(&str, &str); 27] = [
    ("authtoken", LOGIN),
    ("auth_token", LOGIN),
    ("api_key", LOGIN),
    ("connect_url", "the URL of your edge takes its place: `uniroute login`"),
    ("server_addr", "the URL of your edge takes its place: `uniroute login`"),
    ("region", "your edge is where you run it"),
    (
        "root_cas",
        "the authorities of your edge's certificate: `server_ca` in [agent], if it needs one",
    ),
    (
        "connect_cas",
        "the authorities of your edge's certificate: `server_ca` in [agent], if it needs one",
    ),
    ("trust_host_root_certs", "the system's authorities are the default here"),
    ("connect_timeout", "each step of a connection has 10 seconds here"),
    ("connect_interface", NOT_NEEDED),
    ("console_ui", "`output` in [agent] says what is shown: text, json or url"),
    ("console_ui_color", NOT_NEEDED),
    ("crl_noverify", NOT_NEEDED),
    ("dns_resolver_ips", "names are looked up as the system does"),
    ("heartbeat_tolerance", "an edge that is silent is given 5 seconds here"),
    ("metadata", NOT_NEEDED),
    ("remote_management", NOT_NEEDED),
    ("update", NOT_NEEDED),
    ("update_check", NOT_NEEDED),
    ("update_channel", NOT_NEEDED),
    ("web_allow_hosts", "the inspector answers to names of this machine only"),
    ("web_inspect_address", "`address` in [agent.inspector] takes its place"),
    ("inspect_addr", "`address` in [agent.inspector] takes its place"),
    ("client_id", NOT_NEEDED),
    ("upstream_bindings", NOT_NEEDED),
    ("log", "the log goes to standard error: redirect it, as in `2>> uniroute.log`"),
];

pub(super) fn import(root: &Place<'_>, drafts: &mut Drafts) {
    if let Some(version) = root.get("version") {
        version.done();
    }
    let agent = root.get("agent");
    for place in std::iter::once(root).chain(&agent) {
        import_agent(place, drafts);
    }
    for (name, tunnel) in root.get("tunnels").map(|all| all.entries()).unwrap_or_default() {
        import_tunnel(&name, &tunnel, drafts);
    }
    for endpoint in root.get("endpoints").map(|all| all.items()).unwrap_or_default() {
        import_endpoint(&endpoint, drafts);
    }
}

fn import_agent(place: &Place<'_>, drafts: &mut Drafts) {
    place.note_each(&AGENT);
    if let Some(proxy) = place
        .get("proxy_url")
        .or_else(|| place.get("http_proxy"))
        .or_else(|| place.get("socks5_proxy"))
    {
        import_proxy(&proxy, drafts);
    }
    if let Some(text) = place.text("web_addr") {
        let off = matches!(text, "false" | "off");
        drafts.agent("inspector", "address", if off { "off" } else { text });
    }
    match place.get("inspect_db_size").and_then(|size| size.read()?.parse::<i64>().ok()) {
        Some(size) if size > 0 => drafts.agent("inspector", "max_bytes", size),
        Some(-1) => drafts.agent("inspector", "address", "off"),
        _ => {}
    }
    if let Some(text) = place.text("heartbeat_interval") {
        drafts.agent("", "heartbeat", text);
    }
    if let Some(level) = place.text("log_level") {
        drafts.agent("log", "level", if level == "crit" { "error" } else { level });
    }
    match place.get("log_format") {
        Some(format) if format.read() == Some("json") => drafts.agent("log", "format", "json"),
        Some(format) => format.note("the format is text here, or json"),
        None => {}
    }
}

/// The way out, if it has no password in it.
pub(super) fn import_proxy(place: &Place<'_>, drafts: &mut Drafts) {
    match place.read() {
        Some(url) if url.contains('@') => place.note(
            "it has a password: write `proxy` without it into [agent], and the password as USER:PASSWORD into the file `proxy_credentials_file`",
        ),
        Some(url) => drafts.agent("", "proxy", url),
        None => {}
    }
}

fn import_tunnel(name: &str, place: &Place<'_>, drafts: &mut Drafts) {
    let protocols: Vec<(String, Option<Place<'_>>)> = match place.get("proto") {
        // Version 1: by protocol, each with its address.
        Some(proto) if !proto.entries().is_empty() => {
            proto.entries().into_iter().map(|(kind, address)| (kind, Some(address))).collect()
        }
        Some(proto) => vec![(proto.read().unwrap_or("http").to_owned(), None)],
        None => vec![("http".to_owned(), None)],
    };
    let both = protocols.iter().any(|(kind, _)| kind == "http")
        && protocols.iter().any(|(kind, _)| kind == "https");
    for (kind, own) in protocols {
        // Visitors come in by both schemes here.
        if both && kind == "https" {
            if let Some(own) = own {
                own.done();
            }
            continue;
        }
        let mut draft = drafts.draft(name, place);
        let upstream = own.or_else(|| place.get("addr"));
        let Some(text) = upstream.as_ref().and_then(Place::read) else {
            place.note("it has no address of a local server, so it was left out");
            continue;
        };
        let kind = match kind.as_str() {
            "tcp" | "tls" => kind.as_str(),
            "http" | "https" => "http",
            _ => {
                place.note(&format!(
                    "{kind:?} is no protocol that is known here: http, tcp or tls; it was left out"
                ));
                continue;
            }
        };
        if kind != "http" {
            draft.set("kind", kind);
        }
        draft.set("upstream", address(text));
        if import_tunnel_keys(kind, place, &mut draft) {
            drafts.tunnels.push(draft);
        } else {
            place.done();
        }
    }
}

/// Whether the tunnel can be without what is missing.
fn import_tunnel_keys(kind: &str, place: &Place<'_>, draft: &mut Draft) -> bool {
    for key in ["crt", "key", "client_cas", "terminate_at", "agent_tls_termination"] {
        if let Some(place) = place.get(key) {
            place.note("TLS ends at the edge for http, and at the local server for tls; not in the agent. The tunnel was left out: make it an http tunnel, or let the local server speak TLS");
            return false;
        }
    }
    let hosts = ["url", "domain", "hostname", "subdomain"].into_iter();
    for host in hosts.filter_map(|key| place.get(key)) {
        for host in host.items() {
            let Some(text) = host.read() else { continue };
            let text = text.rsplit("://").next().unwrap_or(text).trim_end_matches('/');
            if kind == "tcp" || draft.has("name") {
                host.note("a tunnel has one name here, and a tcp tunnel has a port instead");
            } else {
                take_name(draft, &host, text);
            }
        }
    }
    if let Some(remote) = place.get("remote_addr").or_else(|| place.get("remote_port")) {
        take_port(&remote, draft);
    }
    if let Some(version) = place.get("proxy_proto") {
        take_proxy_protocol(&version, kind, draft);
    }
    take_flag(place, "inspect", draft);
    take_flag(place, "compression", draft);
    for auth in ["auth", "basic_auth"].into_iter().filter_map(|key| place.get(key)) {
        take_users(&auth, draft);
    }
    if let Some(host) = place.text("host_header") {
        draft.set("host_header", host);
    }
    match place.get("bind_tls") {
        Some(both) if both.read() == Some("true") => draft.set("redirect_https", true),
        Some(both) if both.read() == Some("false") => {
            both.note("visitors come in by https too, if your edge has a certificate");
        }
        _ => {}
    }
    if let Some(schemes) = place.get("schemes") {
        let all = schemes.texts();
        match (all.contains(&"http"), all.contains(&"https")) {
            (false, true) => draft.set("redirect_https", true),
            (true, false) => {
                schemes.note("visitors come in by https too, if your edge has a certificate");
            }
            _ => {}
        }
    }
    for (key, which) in
        [("request_header", "request_headers"), ("response_header", "response_headers")]
    {
        take_headers(place.get(key), which, draft);
    }
    for cidrs in ["ip_restriction.allow_cidrs", "ip_restriction.deny_cidrs"] {
        let list = if cidrs.contains("allow") { "allow" } else { "deny" };
        for network in place.get(cidrs).map(|list| list.texts()).unwrap_or_default() {
            draft.push(list, network);
        }
    }
    if place.get("app_protocol").is_some_and(|protocol| protocol.read() == Some("http2")) {
        draft.set("upstream_protocol", "h2");
    }
    let closing = [
        ("oauth", "visitors can't log in by OAuth here."),
        ("oidc", "visitors can't log in by OpenID Connect here."),
        ("saml", "visitors can't log in by SAML here."),
        ("mutual_tls_cas", "visitors' certificates are not asked for here."),
        ("user_agent_filter", "browsers can't be told apart here."),
        (
            "verify_webhook",
            "the secret was not copied: write it into a file, and name that as `secret_file` in the tunnel's section `webhook`, with `kind` github, stripe or slack.",
        ),
        (
            "verify_webhook_provider",
            "the secret was not copied: write it into a file, and name that as `secret_file` in the tunnel's section `webhook`, with `kind` github, stripe or slack.",
        ),
    ];
    for (key, why) in closing {
        if let Some(found) = place.get(key) {
            if kind != "http" {
                found.note(&format!("{why} The tunnel was left out"));
                return false;
            }
            draft.close(&found, why);
        }
    }
    place.note_each(&[
        ("verify_webhook_secret", "not copied: see verify_webhook_provider"),
        ("circuit_breaker", "nothing breaks circuits here; `health` keeps requests away from a local server that is down"),
        ("websocket_tcp_converter", "WebSockets reach the local server as they are"),
        ("metadata", NOT_NEEDED),
        ("labels", "routes of ngrok's cloud are not in this file: the tunnel is one for http with a name of its own"),
        ("use_ngrok_rust", NOT_NEEDED),
    ]);
    ["policy", "traffic_policy", "traffic_policy_file"]
        .into_iter()
        .filter_map(|key| place.get(key))
        .all(|policy| take_policy(&policy, kind, draft))
}

fn take_flag(place: &Place<'_>, key: &str, draft: &mut Draft) {
    match place.text(key) {
        Some("true") if key != "inspect" => draft.set(key, true),
        Some("false") if key == "inspect" => draft.set(key, false),
        _ => {}
    }
}

fn take_port(place: &Place<'_>, draft: &mut Draft) {
    let port = place.read().and_then(|text| text.rsplit(':').next()?.parse::<u16>().ok());
    match port {
        Some(0) => {}
        Some(port) => draft.set("port", i64::from(port)),
        None => place.note("no port can be read from it: the edge chooses one"),
    }
}

fn take_proxy_protocol(place: &Place<'_>, kind: &str, draft: &mut Draft) {
    let version = match place.read() {
        Some("1") => "v1",
        Some("2") => "v2",
        _ => return,
    };
    match kind {
        "http" => {
            place.note("a local server for http learns the visitor's address from X-Forwarded-For");
        }
        _ => draft.set("proxy_protocol", version),
    }
}

fn take_users(place: &Place<'_>, draft: &mut Draft) {
    for user in place.items() {
        match user.read().and_then(|text| text.split_once(':')) {
            Some((name, password)) if !password.contains("${") => draft.user(name, password),
            _ => draft.close(&user, "no USER:PASSWORD can be read from it."),
        }
    }
}

fn take_headers(place: Option<Place<'_>>, which: &str, draft: &mut Draft) {
    let Some(place) = place else { return };
    for field in place.get("add").map(|add| add.items()).unwrap_or_default() {
        match field.read().and_then(|text| text.split_once(':')) {
            Some((name, value)) => take_header(&field, which, name.trim(), value.trim(), draft),
            None => field.note("no NAME: VALUE can be read from it"),
        }
    }
    for name in place.get("remove").map(|remove| remove.texts()).unwrap_or_default() {
        draft.remove_header(which, name);
    }
}

fn take_header(place: &Place<'_>, which: &str, name: &str, value: &str, draft: &mut Draft) {
    if value.contains("${") {
        place.note("values are written as they are here, without variables: it was left out");
    } else {
        draft.header(which, "add", name, value);
    }
}

fn import_endpoint(place: &Place<'_>, drafts: &mut Drafts) {
    let name = place.text("name").unwrap_or("endpoint");
    let mut draft = drafts.draft(name, place);
    let url = place.get("url");
    let text = url.as_ref().and_then(Place::read).unwrap_or_default().trim_end_matches('"');
    let (scheme, host) = text.split_once("://").unwrap_or(("https", text));
    let (host, port) = match host.trim_end_matches('/').rsplit_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (host.trim_end_matches('/'), None),
    };
    let kind = match scheme {
        "tcp" | "tls" => scheme,
        _ => "http",
    };
    let binding = place.get("bindings").map(|list| list.texts()).unwrap_or_default();
    if host.ends_with(INTERNAL) || binding.iter().any(|binding| *binding != "public") {
        place.note("an endpoint that only ngrok's own network reaches: here a tunnel is public, so it was left out. What leads to it can name its local server as `upstream` itself");
        return;
    }
    let Some(upstream) = place
        .get("upstream.url")
        .or_else(|| place.get("upstream").filter(|u| u.entries().is_empty()))
    else {
        place.note("it has no `upstream`, so it was left out");
        return;
    };
    let Some(target) = upstream.read() else { return };
    if target.contains(INTERNAL) {
        upstream.note("it leads to another endpoint of ngrok's; name that one's local server as `upstream` here. The tunnel was left out");
        return;
    }
    if kind != "http" {
        draft.set("kind", kind);
    }
    draft.set("upstream", address(target));
    if let Some(url) = &url {
        match kind {
            "tcp" => match port.and_then(|port| port.parse::<u16>().ok()) {
                Some(port) if port != 0 => draft.set("port", i64::from(port)),
                _ => {}
            },
            _ if host.is_empty() => {}
            _ => take_name(&mut draft, url, host),
        }
        if scheme == "http" {
            url.note("visitors come in by https too, if your edge has a certificate");
        }
    }
    if let Some(version) = place.get("upstream.proxy_protocol") {
        take_proxy_protocol(&version, kind, &mut draft);
    }
    if place.text("upstream.protocol") == Some("http2") {
        draft.set("upstream_protocol", "h2");
    }
    if place.text("verify_upstream_tls") == Some("false") && kind == "http" {
        draft.set("insecure_upstream", true);
    }
    if let Some(file) =
        place.text("upstream_tls_verify_cas").or_else(|| place.text("upstream.tls.cas"))
    {
        draft.set("upstream_ca", file);
    }
    take_flag(place, "inspect", &mut draft);
    take_flag(place, "compression", &mut draft);
    place.note_each(&[
        ("description", NOT_NEEDED),
        ("metadata", NOT_NEEDED),
        (
            "pooling_enabled",
            "one agent holds a name; several local servers are one list, `upstream`",
        ),
        ("forwards_to", NOT_NEEDED),
    ]);
    if let Some(found) = place.get("agent_tls_termination") {
        found.note("TLS ends at the edge or at the local server, not in the agent. The tunnel was left out");
        return;
    }
    let policies = ["traffic_policy", "traffic_policy_file", "policy"].into_iter();
    if policies
        .filter_map(|key| place.get(key))
        .all(|policy| take_policy(&policy, kind, &mut draft))
    {
        drafts.tunnels.push(draft);
    }
}

/// Actions that keep somebody out, or decide what is answered.
const KEEPING_OUT: [&str; 11] = [
    "oauth",
    "openid-connect",
    "saml",
    "jwt-validation",
    "deny",
    "restrict-ips",
    "verify-webhook",
    "terminate-tls",
    "owasp-crs-request",
    "rate-limit",
    "custom-response",
];

/// What a policy says, rule by rule. Whether the tunnel can be without what is missing.
fn take_policy(policy: &Place<'_>, kind: &str, draft: &mut Draft) -> bool {
    if policy.read().is_some() {
        draft.close(policy, "the policy is in a file of its own, which was not read.");
        return kind == "http";
    }
    if policy.get("enabled").is_some_and(|enabled| enabled.read() == Some("false")) {
        policy.note("it is switched off");
        return true;
    }
    let phases = [
        ("on_http_request", "request_headers"),
        ("on_http_response", "response_headers"),
        ("on_tcp_connect", ""),
        ("inbound", "request_headers"),
        ("outbound", "response_headers"),
    ];
    for (phase, which) in phases {
        for rule in policy.get(phase).map(|rules| rules.items()).unwrap_or_default() {
            if let Some(name) = rule.get("name") {
                name.done();
            }
            let conditional = rule.get("expressions").is_some_and(|all| !all.items().is_empty());
            for action in rule.get("actions").map(|all| all.items()).unwrap_or_default() {
                if !take_action(&action, which, conditional, kind, draft) {
                    return false;
                }
            }
            if let Some(expressions) = rule.get("expressions") {
                expressions.done();
            }
        }
    }
    true
}

fn take_action(
    action: &Place<'_>,
    which: &str,
    conditional: bool,
    kind: &str,
    draft: &mut Draft,
) -> bool {
    let name = action.text("type").unwrap_or_default();
    let config = action.get("config");
    let keeps_out = KEEPING_OUT.contains(&name) || name == "basic-auth";
    if kind != "http" {
        action.note(&format!(
            "the action {name} is not for {kind} tunnels here{}",
            if keeps_out { ": the tunnel was left out" } else { "" }
        ));
        return !keeps_out;
    }
    match (name, &config) {
        (_, _) if conditional && !keeps_out => {
            action.note(&format!("the action {name} has a condition; nothing here depends on expressions. It was left out"));
        }
        (_, _) if conditional => {
            draft.close(
                action,
                &format!("the action {name} has a condition; nothing here depends on expressions."),
            );
        }
        ("basic-auth", Some(config)) => {
            if let Some(users) = config.get("credentials") {
                take_users(&users, draft);
            }
            config.done();
        }
        ("restrict-ips", Some(config)) if config.get("ip_policies").is_none() => {
            for list in ["allow", "deny"] {
                for network in config.get(list).map(|all| all.texts()).unwrap_or_default() {
                    draft.push(list, network);
                }
            }
            config.done();
        }
        ("add-headers", Some(config)) => {
            let headers = config.get("headers");
            for (name, value) in headers.as_ref().map(Place::entries).unwrap_or_default() {
                if let Some(text) = value.read() {
                    take_header(&value, which, &name, text, draft);
                }
            }
        }
        ("remove-headers", Some(config)) => {
            for name in config.get("headers").map(|all| all.texts()).unwrap_or_default() {
                draft.remove_header(which, name);
            }
        }
        ("compress-response", _) => {
            action.done();
            draft.set("compression", true);
        }
        ("forward-internal", Some(config)) => {
            config.done();
            action.note("it leads to another endpoint of ngrok's; name that one's local server as `upstream` or in a route here");
        }
        _ if keeps_out => {
            draft.close(action, &format!("the action {name} has no counterpart here."));
        }
        _ => action.note(&format!("the action {name} has no counterpart here")),
    }
    true
}
