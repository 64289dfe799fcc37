//! cloudflared's config.yml: its ingress rules, grouped by the host name that they are for.

use super::{Draft, Drafts, Place, take_name};

const LOGIN: &str = "the edge knows you by a token: `uniroute login` asks for it and stores it";
const NOT_NEEDED: &str = "there is nothing like it here, and no need for it";
const TOP: [(&str, &str); 30] = [
    ("tunnel", LOGIN),
    ("credentials-file", LOGIN),
    ("credentials-contents", LOGIN),
    ("token", LOGIN),
    ("token-file", LOGIN),
    ("origincert", LOGIN),
    ("name", LOGIN),
    ("metrics", NOT_NEEDED),
    ("metrics-update-freq", NOT_NEEDED),
    ("no-autoupdate", NOT_NEEDED),
    ("autoupdate-freq", NOT_NEEDED),
    ("edge-ip-version", NOT_NEEDED),
    ("edge-bind-address", NOT_NEEDED),
    ("region", "your edge is where you run it"),
    ("edge", "your edge is where you run it"),
    ("tag", NOT_NEEDED),
    ("label", NOT_NEEDED),
    ("pidfile", NOT_NEEDED),
    ("retries", "the agent tries for ever; `fail_fast` in [agent] ends it"),
    ("grace-period", "requests have 30 seconds to end when the agent ends"),
    ("ha-connections", "`sessions` in [agent]: 2 by default"),
    ("heartbeat-interval", "`heartbeat` in [agent]"),
    ("heartbeat-count", NOT_NEEDED),
    ("logfile", "the log goes to standard error: redirect it, as in `2>> uniroute.log`"),
    ("log-directory", "the log goes to standard error: redirect it, as in `2>> uniroute.log`"),
    ("transport-loglevel", NOT_NEEDED),
    ("warp-routing", "private networks are not carried here, only tunnels with a name or a port"),
    ("post-quantum", NOT_NEEDED),
    ("management-diagnostics", NOT_NEEDED),
    ("hello-world", "there is no test server here: `uniroute http file:FOLDER` shows a folder"),
];

/// A rule that leads somewhere.
struct Rule<'d> {
    place: Place<'d>,
    host: Option<Place<'d>>,
    path: Option<Place<'d>>,
    service: Place<'d>,
}

pub(super) fn import(root: &Place<'_>, drafts: &mut Drafts) {
    root.note_each(&TOP);
    if let Some(level) = root.text("loglevel") {
        drafts.agent("log", "level", if level == "fatal" { "error" } else { level });
    }
    match root.get("protocol").map(|place| (place.read(), place)) {
        Some((Some("quic"), _)) => drafts.agent("", "transport", "quic"),
        Some((Some("auto"), _)) | None => {}
        Some((_, place)) => place.note("sessions go over WebSocket here, or over QUIC"),
    }
    let all = root.get("ingress").map(|rules| rules.items()).unwrap_or_default();
    let rules: Vec<_> = all.into_iter().filter_map(rule).collect();
    let single = root.get("url").or_else(|| root.get("unix-socket"));
    if let (Some(service), true) = (single, rules.is_empty()) {
        let rule = Rule { place: service.clone(), host: root.get("hostname"), path: None, service };
        import_host(&[&rule], root.get("originRequest").as_ref(), None, drafts);
    } else if let Some(host) = root.get("hostname") {
        host.note("the rules under `ingress` count");
    }
    // Where whatever no other rule is for goes to.
    let rest = rules.iter().rev().find(|rule| rule.host.is_none() && rule.path.is_none());
    let rest = rest.and_then(|rule| match service(rule.service.read()?, false) {
        Service::Leads("http", upstream) => Some(upstream),
        _ => None,
    });
    let mut hosts: Vec<Option<&str>> = Vec::new();
    for rule in &rules {
        let host = rule.host.as_ref().and_then(Place::read);
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    for host in hosts {
        let same = |rule: &&Rule<'_>| rule.host.as_ref().and_then(Place::read) == host;
        let rules: Vec<_> = rules.iter().filter(same).collect();
        import_host(&rules, root.get("originRequest").as_ref(), rest.as_deref(), drafts);
    }
    if let Some(global) = root.get("originRequest") {
        global.done();
    }
}

fn rule(place: Place<'_>) -> Option<Rule<'_>> {
    let host =
        place.get("hostname").filter(|host| host.read() != Some("*") && host.read() != Some(""));
    if let Some(host) = place.get("hostname") {
        host.done();
    }
    match place.get("service") {
        Some(service) => Some(Rule { host, path: place.get("path"), service, place }),
        None => {
            place.note("it has no service, so it was left out");
            None
        }
    }
}

/// What a service becomes: its kind, and the local server.
enum Service {
    Leads(&'static str, String),
    /// Somewhere that there is not here.
    Nowhere(String),
}

fn service(text: &str, has_host: bool) -> Service {
    let Some((scheme, rest)) = text.split_once("://") else {
        return match text.split_once(':') {
            Some(("unix", path)) => Service::Leads("http", format!("unix:{path}")),
            Some(("unix+tls", _)) => {
                Service::Nowhere("a Unix socket is spoken to without TLS here".to_owned())
            }
            Some(("http_status", "404")) if !has_host => Service::Nowhere(
                "the edge itself answers 404 for names that no tunnel has".to_owned(),
            ),
            Some(("http_status", code)) => Service::Nowhere(format!(
                "an answer of status {code} without a local server is nothing that there is here"
            )),
            _ if text == "hello_world" => {
                Service::Nowhere("there is no test server here".to_owned())
            }
            _ if text == "bastion" || text == "socks-proxy" => Service::Nowhere(
                "the agent leads to what its own file names, never to what a visitor names"
                    .to_owned(),
            ),
            _ => Service::Nowhere("it is no service that is known here".to_owned()),
        };
    };
    let with_port = |port: u16| {
        let host = rest.trim_end_matches('/');
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port { host.to_owned() } else { format!("{host}:{port}") }
    };
    match scheme {
        "http" | "https" => Service::Leads("http", text.to_owned()),
        "ws" => Service::Leads("http", format!("http://{rest}")),
        "wss" => Service::Leads("http", format!("https://{rest}")),
        "unix" => Service::Leads("http", format!("unix:{rest}")),
        "tcp" => Service::Leads("tcp", with_port(7864)),
        "ssh" => Service::Leads("tcp", with_port(22)),
        "rdp" => Service::Leads("tcp", with_port(3389)),
        "smb" => Service::Leads("tcp", with_port(445)),
        _ => Service::Nowhere("it is no service that is known here".to_owned()),
    }
}

/// The rules of one host: one for the rest, and one for each path.
fn import_host(
    rules: &[&Rule<'_>],
    global: Option<&Place<'_>>,
    rest: Option<&str>,
    drafts: &mut Drafts,
) {
    let host = rules.first().and_then(|rule| rule.host.clone());
    let mut draft: Option<Draft> = None;
    let default =
        rules.iter().find(|rule| rule.path.as_ref().is_none_or(|path| path.read() == Some("")));
    let others =
        rules.iter().filter(|rule| !default.is_some_and(|default| std::ptr::eq(**rule, *default)));
    // A path that leads nowhere is to be seen by nobody.
    let mut hidden: Vec<&Place<'_>> = Vec::new();
    for rule in default.into_iter().chain(others) {
        let text = rule.service.read().unwrap_or_default();
        let (kind, upstream) = match service(text, host.is_some()) {
            Service::Leads(kind, upstream) => (kind, upstream),
            Service::Nowhere(why) => {
                rule.service
                    .note(&format!("{text}: {why}{}", of(host.as_ref(), rule.path.as_ref())));
                rule.place.done();
                hidden.extend(rule.path.as_ref().filter(|path| path.read() != Some("")));
                continue;
            }
        };
        let path = rule.path.as_ref().filter(|path| path.read() != Some(""));
        match (&mut draft, path) {
            (None, path) => {
                let wish = host.as_ref().and_then(Place::read).unwrap_or("rest");
                let wish = wish.trim_start_matches("*.").split('.').next().unwrap_or("tunnel");
                let mut new = drafts.draft(wish, &rule.place);
                if kind != "http" {
                    new.set("kind", kind);
                    rule.service.note("with cloudflared visitors need `cloudflared access`; here it is a public port of your edge, for anybody");
                }
                new.set("upstream", upstream.as_str());
                if let Some(host) = &host {
                    match kind {
                        "http" => take_name(&mut new, host, host.read().unwrap_or_default()),
                        _ => host.note("a tcp tunnel has a port, which the edge chooses; `port` wishes for one"),
                    }
                } else {
                    rule.place.note("the tunnel for whatever has no other rule gets a name that the edge chooses");
                }
                if !take_origin(rule, global, kind, &mut new) {
                    continue;
                }
                if let Some(path) = path {
                    take_path(path, &upstream, &mut new);
                    match rest {
                        Some(rest) => new.set("upstream", rest),
                        None => new.close(path, "no rule is for other paths of this host, which lead to the same local server here."),
                    }
                }
                draft = Some(new);
            }
            (Some(draft), Some(path)) if kind == "http" && !draft.has("kind") => {
                if let Some(own) = rule.place.get("originRequest") {
                    own.note("a route has no settings of its own: those of the tunnel count");
                }
                take_path(path, &upstream, draft);
            }
            (Some(_), _) => {
                rule.place
                    .note("an earlier rule is for the same host and path, so it was left out");
            }
        }
    }
    if let Some(draft) = &mut draft {
        for path in hidden {
            draft.close(path, "no path can be kept from visitors here.");
        }
    }
    drafts.tunnels.extend(draft);
}

/// Which rule it is, for people.
fn of(host: Option<&Place<'_>>, path: Option<&Place<'_>>) -> String {
    let host = host.and_then(Place::read).map(|host| format!(" (of {host})"));
    let path = path.and_then(Place::read).map(|path| format!(" (path {path})"));
    format!("{}{}", host.unwrap_or_default(), path.unwrap_or_default())
}

/// A route for a pattern that is the beginning of a path, or a whole one.
fn take_path(place: &Place<'_>, upstream: &str, draft: &mut Draft) {
    let Some(pattern) = place.read() else { return };
    let anchored = pattern.strip_prefix('^').unwrap_or(pattern);
    let ends = ["(/.*)?$", "(/.*)?", "/.*$", "/.*", ".*$", ".*", "/*", "*", "$"];
    let end = ends.into_iter().find(|end| anchored.ends_with(end)).unwrap_or_default();
    let exact = end == "$";
    let plain = anchored.strip_suffix(end).unwrap_or(anchored);
    let plain = plain.replace("\\.", ".").replace("\\/", "/").replace("\\-", "-");
    let path = if plain.starts_with('/') { plain } else { format!("/{plain}") };
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    if path.contains(['(', ')', '[', ']', '{', '}', '|', '?', '*', '+', '^', '$', '\\']) {
        place.note(&format!(
            "{pattern}: a route is a path here and no pattern; the rule to {upstream} was left out"
        ));
        return;
    }
    if uniroute_shared::policy::routes::check_path(path).is_err() {
        place.note(&format!(
            "{pattern}: {path:?} can't be a route; the rule to {upstream} was left out"
        ));
        return;
    }
    if !pattern.starts_with('^') || !pattern.ends_with('$') {
        place.note(&format!("{pattern} is a pattern that matches anywhere in a path; here it is the path {path} and what is below it"));
    }
    draft.route(path, upstream, exact);
}

/// How the local server is spoken to. Whether the tunnel can be without what is missing.
fn take_origin(rule: &Rule<'_>, global: Option<&Place<'_>>, kind: &str, draft: &mut Draft) -> bool {
    let own = rule.place.get("originRequest");
    let find = |key: &str| {
        own.as_ref()
            .and_then(|own| own.get(key))
            .or_else(|| global.and_then(|global| global.get(key)))
    };
    if let Some(limit) = find("connectTimeout").and_then(|limit| limit.read()) {
        draft.set("connect_timeout", limit);
    }
    if find("access.required").is_some_and(|required| required.read() == Some("true"))
        && let Some(access) = find("access")
    {
        if kind != "http" {
            access.note("Cloudflare Access guards nothing here: the tunnel was left out");
            return false;
        }
        draft.close(&access, "Cloudflare Access guards nothing here.");
    }
    if kind == "http" {
        let https = draft.get("upstream").is_some_and(|upstream| upstream.starts_with("https:"));
        if https && find("noTLSVerify").is_some_and(|off| off.read() == Some("true")) {
            draft.set("insecure_upstream", true);
        } else if let Some(file) =
            find("caPool").and_then(|file| file.read()).filter(|file| !file.is_empty())
        {
            draft.set("upstream_ca", file);
        }
        if let Some(host) =
            find("httpHostHeader").and_then(|host| host.read()).filter(|host| !host.is_empty())
        {
            draft.set("host_header", host);
        }
        if find("http2Origin").is_some_and(|on| on.read() == Some("true")) {
            draft.set("upstream_protocol", "h2");
        }
    }
    let no_counterpart = [
        (
            "originServerName",
            "the name in the local server's certificate is the host of `upstream` here",
        ),
        (
            "matchSNItoHost",
            "the name in the local server's certificate is the host of `upstream` here",
        ),
        ("tlsTimeout", "`connect_timeout` is for TLS too"),
        ("tcpKeepAlive", NOT_NEEDED),
        ("noHappyEyeballs", NOT_NEEDED),
        ("keepAliveConnections", NOT_NEEDED),
        ("keepAliveTimeout", NOT_NEEDED),
        ("disableChunkedEncoding", "bodies reach the local server as they came"),
        ("proxyAddress", "the agent is no proxy"),
        ("proxyPort", "the agent is no proxy"),
        ("proxyType", "the agent is no proxy"),
        (
            "bastionMode",
            "the agent leads to what its own file names, never to what a visitor names",
        ),
        ("ipRules", "they are for proxies, and the agent is none"),
    ];
    for (key, why) in no_counterpart {
        if let Some(place) = find(key) {
            place.note(why);
        }
    }
    if let Some(own) = own {
        for key in
            ["noTLSVerify", "caPool", "httpHostHeader", "http2Origin", "access", "connectTimeout"]
        {
            if let Some(place) = own.get(key) {
                place.done();
            }
        }
    }
    true
}
