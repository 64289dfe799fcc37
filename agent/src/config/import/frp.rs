//! The config of frp's client: its proxies, in TOML, YAML or JSON, and in the older INI.

use super::{Document, Draft, Drafts, Place, ngrok::import_proxy, take_name};

const LOGIN: &str = "the URL of your edge and a token take its place: `uniroute login`";
const NOT_NEEDED: &str = "there is nothing like it here, and no need for it";
/// Tunnels that one range of ports becomes.
const MAX_RANGE: usize = 200;
/// Keys of the client as a whole, as they are now and as they were.
const CLIENT: [(&str, &str); 62] = [
    ("serverAddr", LOGIN),
    ("server_addr", LOGIN),
    ("serverPort", LOGIN),
    ("server_port", LOGIN),
    ("auth", LOGIN),
    ("token", LOGIN),
    ("privilege_token", LOGIN),
    ("auth_token", LOGIN),
    ("authentication_method", LOGIN),
    ("authenticate_heartbeats", LOGIN),
    ("authenticate_new_work_conns", LOGIN),
    ("oidc_client_id", LOGIN),
    ("oidc_client_secret", LOGIN),
    ("oidc_audience", LOGIN),
    ("oidc_scope", LOGIN),
    ("oidc_token_endpoint_url", LOGIN),
    ("clientID", NOT_NEEDED),
    ("user", "names of tunnels have no prefix here"),
    ("natHoleStunServer", NOT_NEEDED),
    ("nat_hole_stun_server", NOT_NEEDED),
    ("webServer", "`uniroute status` and the inspector at 127.0.0.1:4040 take its place"),
    ("admin_addr", "`uniroute status` and the inspector at 127.0.0.1:4040 take its place"),
    ("admin_port", "`uniroute status` and the inspector at 127.0.0.1:4040 take its place"),
    ("admin_user", "`uniroute status` and the inspector at 127.0.0.1:4040 take its place"),
    ("admin_pwd", "`uniroute status` and the inspector at 127.0.0.1:4040 take its place"),
    ("assets_dir", NOT_NEEDED),
    ("pprof_enable", NOT_NEEDED),
    ("dnsServer", "names are looked up as the system does"),
    ("dns_server", "names are looked up as the system does"),
    ("udpPacketSize", NOT_NEEDED),
    ("udp_packet_size", NOT_NEEDED),
    ("metadatas", NOT_NEEDED),
    ("featureGates", NOT_NEEDED),
    ("virtualNet", "private networks are not carried here"),
    ("store", NOT_NEEDED),
    ("includes", "other files are not read: import each of them for itself"),
    ("start", "all tunnels are here: `uniroute start NAME…` runs some of them"),
    ("log.to", "the log goes to standard error: redirect it, as in `2>> uniroute.log`"),
    ("log_file", "the log goes to standard error: redirect it, as in `2>> uniroute.log`"),
    ("log_way", "the log goes to standard error: redirect it, as in `2>> uniroute.log`"),
    ("log.maxDays", NOT_NEEDED),
    ("log_max_days", NOT_NEEDED),
    ("log.disablePrintColor", "NO_COLOR=1 does that"),
    ("disable_log_color", "NO_COLOR=1 does that"),
    ("transport.poolCount", NOT_NEEDED),
    ("pool_count", NOT_NEEDED),
    ("transport.tcpMux", NOT_NEEDED),
    ("tcp_mux", NOT_NEEDED),
    ("tcp_mux_keepalive_interval", NOT_NEEDED),
    (
        "transport.tls",
        "an edge with https:// speaks TLS; `server_ca`, `client_certificate` and `client_key` in [agent]",
    ),
    ("tls_enable", "an edge with https:// speaks TLS"),
    ("tls_cert_file", "`client_certificate` in [agent]"),
    ("tls_key_file", "`client_key` in [agent]"),
    ("tls_trusted_ca_file", "`server_ca` in [agent]"),
    ("tls_server_name", NOT_NEEDED),
    ("disable_custom_tls_first_byte", NOT_NEEDED),
    ("dial_server_timeout", "each step of a connection has 10 seconds here"),
    ("dial_server_keepalive", NOT_NEEDED),
    ("connect_server_local_ip", NOT_NEEDED),
    ("heartbeat_interval", "`heartbeat` in [agent]"),
    ("heartbeat_timeout", "an edge that is silent is given 5 seconds here"),
    ("quic_bind_port", NOT_NEEDED),
];

/// Reads any of the formats.
pub(super) fn read(file: &str, text: &str) -> anyhow::Result<Document> {
    let extension = std::path::Path::new(file).extension().and_then(|end| end.to_str());
    let document = match extension {
        Some("ini") => Document::ini(file, text),
        Some("yaml" | "yml" | "json") => Document::yaml(file, text),
        Some("toml") => Document::toml(file, text),
        _ if text.lines().any(|line| line.trim() == "[common]") => Document::ini(file, text),
        _ => Document::toml(file, text),
    };
    match document {
        Err(error) if text.contains("{{") => Err(error.context(format!(
            "{file} has templates ({{{{ … }}}}): write out what they stand for, and import that"
        ))),
        document => document,
    }
}

pub(super) fn import(root: &Place<'_>, drafts: &mut Drafts) {
    match root.one("common") {
        Some(common) => {
            import_client(&common, drafts);
            for (name, place) in root.entries().into_iter().filter(|(name, _)| name != "common") {
                match name.strip_prefix("range:") {
                    Some(name) => import_range(name, &place, drafts),
                    None => import_one(&name, &Proxy::new(place), drafts),
                }
            }
        }
        None => {
            import_client(root, drafts);
            for place in root.get("proxies").map(|all| all.items()).unwrap_or_default() {
                let name = place.text("name").unwrap_or("proxy").to_owned();
                import_one(&name, &Proxy::new(place), drafts);
            }
            for place in root.get("visitors").map(|all| all.items()).unwrap_or_default() {
                visitor(place.text("name").unwrap_or_default(), &place);
            }
        }
    }
}

/// Notes something of a whole proxy, with its name if the place does not have it already.
fn note(name: &str, place: &Place<'_>, why: &str) {
    match place.to_string() == name {
        true => place.note(why),
        false => place.note(&format!("{name}: {why}")),
    }
}

fn visitor(name: &str, place: &Place<'_>) {
    note(name, place, "it is a visitor of a secret tunnel, which there is not here");
}

fn import_client(place: &Place<'_>, drafts: &mut Drafts) {
    place.note_each(&CLIENT);
    if let Some(level) = place.text("log.level").or_else(|| place.text("log_level")) {
        drafts.agent("log", "level", level);
    }
    match place.get("loginFailExit").or_else(|| place.get("login_fail_exit")) {
        Some(exit) if exit.read() == Some("true") => drafts.agent("", "fail_fast", true),
        _ => {}
    }
    if let Some(proxy) = place.get("transport.proxyURL").or_else(|| place.get("http_proxy")) {
        import_proxy(&proxy, drafts);
    }
    if let Some(protocol) = place.get("transport.protocol").or_else(|| place.get("protocol")) {
        match protocol.read() {
            Some("quic") => drafts.agent("", "transport", "quic"),
            Some("websocket" | "wss" | "tcp" | "") => {}
            _ => protocol.note("sessions go over WebSocket here, or over QUIC"),
        }
    }
    if let Some(transport) = place.get("transport") {
        for (_, key) in transport.entries() {
            if key.read().is_some() || !key.entries().is_empty() {
                let known = ["proxyURL", "protocol", "poolCount", "tcpMux", "tls"];
                if !known.iter().any(|known| key.to_string() == format!("transport.{known}")) {
                    key.note("the session has its own ways here: see `heartbeat`, `transport` and `lanes` in [agent]");
                }
            }
        }
    }
    for (key, value) in place.entries() {
        if key.starts_with("meta_")
            || key.starts_with("oidc_additional_")
            || key.starts_with("quic_")
        {
            value.note(NOT_NEEDED);
        }
    }
}

/// A proxy, whose keys have two names each: the present one and the older one.
struct Proxy<'d>(Place<'d>);

impl<'d> Proxy<'d> {
    fn new(place: Place<'d>) -> Self {
        Self(place)
    }

    fn get(&self, new: &str, old: &str) -> Option<Place<'d>> {
        self.0.get(new).or_else(|| self.0.one(old))
    }

    fn text(&self, new: &str, old: &str) -> Option<&'d str> {
        self.get(new, old)?.read().filter(|text| !text.is_empty())
    }

    /// Of one text, that has commas in the older format.
    fn list(&self, new: &str, old: &str) -> Vec<(Place<'d>, &'d str)> {
        let items = self.get(new, old).map(|list| list.items()).unwrap_or_default();
        let split = items.into_iter().flat_map(|item| {
            let texts = item.read().unwrap_or_default().split(',').map(str::trim);
            texts
                .filter(|text| !text.is_empty())
                .map(|text| (item.clone(), text))
                .collect::<Vec<_>>()
        });
        split.collect()
    }
}

fn import_range(name: &str, place: &Place<'_>, drafts: &mut Drafts) {
    let ports = |key: &str| place.get(key).and_then(|ports| numbers(ports.read()?));
    let (local, remote) = (ports("local_port"), ports("remote_port"));
    let kind = place.text("type").unwrap_or("tcp");
    let (Some(local), Some(remote)) = (local, remote) else {
        place.note(&format!("range:{name}: its ports can't be read, so it was left out"));
        return;
    };
    if local.len() != remote.len() || !matches!(kind, "tcp" | "udp") {
        place.note(&format!(
            "range:{name}: as many local ports as public ones, of tcp or udp: it was left out"
        ));
        return;
    }
    let host = place.text("local_ip").unwrap_or("127.0.0.1");
    if local.len() > MAX_RANGE {
        place.note(&format!(
            "range:{name}: only the first {MAX_RANGE} of {} ports were taken",
            local.len()
        ));
    }
    for (local, remote) in local.iter().zip(&remote).take(MAX_RANGE) {
        let mut draft = drafts.draft(&format!("{name}-{remote}"), place);
        draft.set("kind", kind);
        draft.set("upstream", format!("{host}:{local}"));
        draft.set("port", i64::from(*remote));
        drafts.tunnels.push(draft);
    }
    note_transport(&Proxy::new(place.clone()));
}

/// `6010-6020,6022`
fn numbers(text: &str) -> Option<Vec<u16>> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        all.extend(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?);
    }
    Some(all)
}

fn import_one(name: &str, proxy: &Proxy<'_>, drafts: &mut Drafts) {
    let place = &proxy.0;
    if proxy.text("role", "role") == Some("visitor") {
        return visitor(name, place);
    }
    if proxy.text("enabled", "enabled") == Some("false") {
        return note(name, place, "it is switched off, so it was left out");
    }
    let kind = proxy.text("type", "type").unwrap_or("tcp");
    let mut draft = drafts.draft(name, place);
    let plugin = proxy.text("plugin.type", "plugin");
    let kind = match (kind, plugin) {
        // The plugin answers HTTP itself.
        (
            "tcp" | "http" | "https",
            Some("static_file" | "http2https" | "http2http" | "https2http" | "https2https"),
        ) => "http",
        ("tcp" | "udp" | "http", _) => kind,
        // Passed on by the server name, and not opened.
        ("https", _) => "tls",
        ("stcp" | "xtcp" | "sudp", _) => {
            return note(
                name,
                place,
                &format!(
                    "a tunnel of type {kind} is only for visitors with the secret; here a tunnel is public, so it was left out"
                ),
            );
        }
        _ => {
            return note(
                name,
                place,
                &format!("the type {kind} has no counterpart here, so it was left out"),
            );
        }
    };
    if let Err(why) = take_upstream(proxy, kind, plugin, &mut draft) {
        return note(name, place, &format!("{why}, so it was left out"));
    }
    if kind != "http" {
        draft.set("kind", kind);
    }
    take_settings(proxy, kind, &mut draft);
    match kind {
        "tcp" | "udp" => {
            let remote = proxy.get("remotePort", "remote_port");
            let port = remote.as_ref().and_then(|port| port.read()?.parse::<u16>().ok());
            match (port, remote) {
                (Some(0), _) | (None, None) => {}
                (Some(port), _) => draft.set("port", i64::from(port)),
                (None, Some(remote)) => {
                    remote.note("no port can be read from it: the edge chooses one");
                }
            }
            push(draft, proxy, drafts);
        }
        _ => {
            if let Some(remote) = proxy.get("remotePort", "remote_port") {
                remote.note("an http tunnel has a name and no port of its own");
            }
            take_hosts(draft, proxy, drafts);
        }
    }
}

/// One tunnel for each of the names.
fn take_hosts(draft: Draft, proxy: &Proxy<'_>, drafts: &mut Drafts) {
    let subdomain = proxy.list("subdomain", "subdomain");
    let hosts = subdomain.into_iter().chain(proxy.list("customDomains", "custom_domains"));
    let locations: Vec<_> = proxy.list("locations", "locations");
    let mut names: Vec<String> = Vec::new();
    let mut first = Some(draft);
    for (place, host) in hosts {
        let label = host.split('.').next().unwrap_or_default().to_owned();
        if names.contains(&label) {
            place.note(&format!("the tunnel {label} is there already; for {host} add it at your edge as a domain of your own"));
            continue;
        }
        let mut draft = match first.take() {
            Some(draft) => draft,
            None => {
                place.note(&format!(
                    "a tunnel has one name here: for {host} copy the tunnel, with the name {label}"
                ));
                continue;
            }
        };
        take_name(&mut draft, &place, host);
        names.push(label);
        push_host(draft, &locations, proxy, drafts);
    }
    if let Some(draft) = first {
        push_host(draft, &locations, proxy, drafts);
    }
}

/// Proxies with the same name are one tunnel, and their locations its routes.
fn push_host(
    mut draft: Draft,
    locations: &[(Place<'_>, &str)],
    proxy: &Proxy<'_>,
    drafts: &mut Drafts,
) {
    let whole = locations.is_empty() || locations.iter().any(|(_, path)| *path == "/");
    let upstream = draft.get("upstream").unwrap_or_default().to_owned();
    let same = |known: &&mut Draft| {
        draft.has("name")
            && !draft.has("kind")
            && !known.has("kind")
            && known.get("name") == draft.get("name")
    };
    match drafts.tunnels.iter_mut().find(same) {
        Some(known) if !whole => {
            for (_, path) in locations {
                known.route(path, &upstream, false);
            }
            proxy.0.note(&format!("it has the name of {}, so its locations are routes of that: settings of its own are gone", known.key()));
        }
        Some(known) if proxy.get("loadBalancer.group", "group").is_none() => {
            proxy.0.note(&format!("{} has the same name; it was left out", known.key()));
        }
        _ => {
            if let (false, Some((place, _))) = (whole, locations.first()) {
                draft.close(place, "frp answers 404 for other paths than these; here all of the local server would be public.");
            }
            push(draft, proxy, drafts);
        }
    }
}

/// Proxies of one group share the work: they are one tunnel with several local servers.
fn push(draft: Draft, proxy: &Proxy<'_>, drafts: &mut Drafts) {
    if let Some(group) = proxy.get("loadBalancer.group", "group") {
        let public = |draft: &Draft| {
            (
                draft.port(),
                draft.get("name").map(str::to_owned),
                draft.get("kind").map(str::to_owned),
            )
        };
        let same = drafts.tunnels.iter_mut().find(|known| public(known) == public(&draft));
        match same {
            Some(known) if draft.port().is_some() || draft.has("name") => {
                known.push_upstream(draft.get("upstream").unwrap_or_default());
                group.note(&format!("{} is a local server of the tunnel {} now", draft.key(), known.key()));
                if let Some(key) = proxy.get("loadBalancer.groupKey", "group_key") {
                    key.done();
                }
                return;
            }
            _ => group.note("local servers that share the work are a list here, `upstream`; several agents can't share a tunnel"),
        }
    }
    if let Some(key) = proxy.get("loadBalancer.groupKey", "group_key") {
        key.note("several agents can't share a tunnel");
    }
    drafts.tunnels.push(draft);
}

fn take_upstream(
    proxy: &Proxy<'_>,
    kind: &str,
    plugin: Option<&str>,
    draft: &mut Draft,
) -> Result<(), String> {
    let plugin_text =
        |new: &str, old: &str| proxy.text(&format!("plugin.{new}"), &format!("plugin_{old}"));
    let local = |scheme: &str| {
        let address = plugin_text("localAddr", "local_addr");
        address
            .map(|address| format!("{scheme}{address}"))
            .ok_or("the plugin has no localAddr".to_owned())
    };
    let upstream = match plugin {
        None => {
            let host = proxy.text("localIP", "local_ip").unwrap_or("127.0.0.1");
            let port = proxy.text("localPort", "local_port").ok_or("it has no localPort")?;
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            format!("{host}:{port}")
        }
        Some("unix_domain_socket") if kind != "udp" => {
            format!(
                "unix:{}",
                plugin_text("unixPath", "unix_path").ok_or("the plugin has no unixPath")?
            )
        }
        Some("static_file") => {
            format!(
                "file:{}",
                plugin_text("localPath", "local_path").ok_or("the plugin has no localPath")?
            )
        }
        Some("http2https" | "https2https") => {
            // As the plugin has it.
            draft.set("insecure_upstream", true);
            local("https://")?
        }
        Some("http2http" | "https2http") => local("http://")?,
        Some(plugin) => return Err(format!("the plugin {plugin} has no counterpart here")),
    };
    draft.set("upstream", upstream);
    if let (Some(user), Some(password)) =
        (plugin_text("httpUser", "http_user"), plugin_text("httpPassword", "http_passwd"))
    {
        draft.user(user, password);
    }
    if let Some(host) = plugin_text("hostHeaderRewrite", "host_header_rewrite") {
        draft.set("host_header", host);
    }
    for (name, value) in
        proxy.0.get("plugin.requestHeaders.set").map(|all| all.entries()).unwrap_or_default()
    {
        draft.header("request_headers", "set", &name, value.read().unwrap_or_default());
    }
    for (key, value) in proxy.0.entries() {
        if let Some(name) = key.strip_prefix("plugin_header_") {
            draft.header("request_headers", "set", name, value.read().unwrap_or_default());
        }
    }
    for (new, old, why) in [
        ("crtPath", "crt_path", "TLS ends at your edge, with its certificate"),
        ("keyPath", "key_path", "TLS ends at your edge, with its certificate"),
        (
            "stripPrefix",
            "strip_prefix",
            "the folder is shown at /; a route with `strip` shows it below a path",
        ),
        ("enableHTTP2", "enable_http2", NOT_NEEDED),
    ] {
        if let Some(place) = proxy.get(&format!("plugin.{new}"), &format!("plugin_{old}")) {
            place.note(why);
        }
    }
    if plugin.is_some() {
        for (new, old) in [("localIP", "local_ip"), ("localPort", "local_port")] {
            if let Some(place) = proxy.get(new, old) {
                place.done();
            }
        }
    }
    Ok(())
}

fn take_settings(proxy: &Proxy<'_>, kind: &str, draft: &mut Draft) {
    if let (Some(user), Some(password)) =
        (proxy.text("httpUser", "http_user"), proxy.text("httpPassword", "http_pwd"))
    {
        draft.user(user, password);
    }
    if let Some(host) = proxy.text("hostHeaderRewrite", "host_header_rewrite") {
        draft.set("host_header", host);
    }
    for (key, which) in
        [("requestHeaders.set", "request_headers"), ("responseHeaders.set", "response_headers")]
    {
        for (name, value) in proxy.0.get(key).map(|all| all.entries()).unwrap_or_default() {
            draft.header(which, "set", &name, value.read().unwrap_or_default());
        }
    }
    for (key, value) in proxy.0.entries() {
        if let Some(name) = key.strip_prefix("header_") {
            draft.header("request_headers", "set", name, value.read().unwrap_or_default());
        } else if key.starts_with("meta_") {
            value.note(NOT_NEEDED);
        }
    }
    if let Some(version) = proxy.get("transport.proxyProtocolVersion", "proxy_protocol_version") {
        match (version.read(), kind) {
            (Some("v1" | "v2"), "http") => version
                .note("a local server for http learns the visitor's address from X-Forwarded-For"),
            (Some(text @ ("v1" | "v2")), "tcp" | "tls") => draft.set("proxy_protocol", text),
            (Some(""), _) => {}
            _ => version.note("it is v1 or v2 here, of tcp and tls tunnels"),
        }
    }
    take_health(proxy, kind, draft);
    note_transport(proxy);
    if let Some(user) = proxy.get("routeByHTTPUser", "route_by_http_user") {
        draft.close(&user, "nothing is chosen by the visitor's user name here.");
    }
}

fn take_health(proxy: &Proxy<'_>, kind: &str, draft: &mut Draft) {
    let Some(check) = proxy.text("healthCheck.type", "health_check_type") else { return };
    if kind == "udp" {
        return proxy.0.note("a udp tunnel's local server can't be looked at");
    }
    draft.inside("health", "probe", check);
    if let Some(path) = proxy.text("healthCheck.path", "health_check_url") {
        draft.inside("health", "path", path);
    }
    let numbers = [
        ("intervalSeconds", "interval_s", "interval"),
        ("timeoutSeconds", "timeout_s", "timeout"),
        ("maxFailed", "max_failed", "fall"),
    ];
    for (new, old, key) in numbers {
        let text = proxy.text(&format!("healthCheck.{new}"), &format!("health_check_{old}"));
        if let Some(number) =
            text.and_then(|text| text.parse::<i64>().ok()).filter(|number| *number > 0)
        {
            draft.inside("health", key, number);
        }
    }
    if let Some(headers) = proxy.0.get("healthCheck.httpHeaders") {
        headers.note("checks have no fields of their own");
    }
}

fn note_transport(proxy: &Proxy<'_>) {
    let none = [
        ("transport.useEncryption", "use_encryption", "an edge with https:// encrypts everything"),
        (
            "transport.useCompression",
            "use_compression",
            "the session compresses nothing; `compression` of an http tunnel compresses answers",
        ),
        ("transport.bandwidthLimit", "bandwidth_limit", "limits are set at the edge"),
        ("transport.bandwidthLimitMode", "bandwidth_limit_mode", "limits are set at the edge"),
        ("metadatas", "metadatas", NOT_NEEDED),
        ("annotations", "annotations", NOT_NEEDED),
    ];
    for (new, old, why) in none {
        if let Some(place) = proxy.get(new, old) {
            // What is switched off is no loss.
            match place.read() {
                Some("false" | "") => {}
                _ => place.note(why),
            }
        }
    }
}
