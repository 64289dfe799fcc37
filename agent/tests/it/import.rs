//! Configs of ngrok, cloudflared and frp that people have published, imported: each tunnel of theirs
//! is there, or its absence is noted. What a file holds is read here in a way of its own.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use yaml_serde::Value;

use crate::{text, uniroute, uniroute_in};

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/import");

/// What one tunnel of theirs says.
#[derive(Debug)]
struct Theirs {
    /// As notes name it.
    place: String,
    kind: &'static str,
    /// The local server; a list of them where a range is meant.
    upstreams: Vec<String>,
    /// Of the public name, the first label.
    name: Option<String>,
    port: Option<i64>,
}

/// Ours, as far as it matters here.
#[derive(Debug)]
struct Ours {
    kind: String,
    upstreams: Vec<String>,
    name: Option<String>,
    port: Option<i64>,
}

fn samples(of: &str) -> Vec<PathBuf> {
    let folder = Path::new(SAMPLES).join(of);
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn import(of: &str, file: &Path) -> (String, Vec<String>) {
    let name = file.file_name().unwrap().to_str().unwrap();
    let folder = file.parent().unwrap();
    let done = uniroute_in(folder, &["config", "import", "--from", of, name]);
    assert_eq!(done.status.code(), Some(0), "{name}: {}", text(&done.stderr));
    let notes = text(&done.stderr).lines().map(str::to_owned).collect();
    (text(&done.stdout).to_owned(), notes)
}

fn ours(toml: &str) -> Vec<Ours> {
    let file: toml::Table = toml.parse().unwrap();
    let tunnels = file.get("tunnels").and_then(toml::Value::as_table).into_iter().flatten();
    let texts = |value: &toml::Value| match value {
        toml::Value::String(one) => vec![one.clone()],
        toml::Value::Array(all) => all.iter().map(|one| one.as_str().unwrap().to_owned()).collect(),
        other => panic!("{other}"),
    };
    let tunnel = |(_, tunnel): (&String, &toml::Value)| {
        let routes = tunnel.get("routes").and_then(toml::Value::as_array).into_iter().flatten();
        let mut upstreams = texts(&tunnel["upstream"]);
        upstreams.extend(routes.flat_map(|route| texts(&route["upstream"])));
        Ours {
            kind: tunnel.get("kind").map_or("http", |kind| kind.as_str().unwrap()).to_owned(),
            upstreams,
            name: tunnel.get("name").map(|name| name.as_str().unwrap().to_owned()),
            port: tunnel.get("port").map(|port| port.as_integer().unwrap()),
        }
    };
    tunnels.map(tunnel).collect()
}

/// A scalar as a text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is) => Some(is.to_string()),
        _ => None,
    }
}

fn at(value: &Value, key: &str) -> Option<String> {
    scalar(value.get(key)?)
}

fn label(host: &str) -> Option<String> {
    let host = host.rsplit("://").next()?;
    Some(host.split(['.', '/']).next()?.to_owned())
}

fn ngrok(text: &str) -> Vec<Theirs> {
    let file: Value = yaml_serde::from_str(text).unwrap();
    let mut all = Vec::new();
    let tunnels = file.get("tunnels").and_then(Value::as_mapping);
    for (name, tunnel) in tunnels.into_iter().flatten() {
        let old = tunnel.get("proto").and_then(Value::as_mapping);
        let old = old.and_then(|proto| {
            Some((scalar(proto.iter().next()?.0)?, scalar(proto.iter().next()?.1)?))
        });
        let (kind, address) = old.unwrap_or_else(|| {
            (at(tunnel, "proto").unwrap_or("http".to_owned()), at(tunnel, "addr").unwrap())
        });
        let host = ["domain", "hostname", "subdomain"].iter().find_map(|key| at(tunnel, key));
        let remote = at(tunnel, "remote_addr");
        all.push(Theirs {
            place: format!("tunnels.{}", scalar(name).unwrap()),
            kind: if kind == "tcp" {
                "tcp"
            } else if kind == "tls" {
                "tls"
            } else {
                "http"
            },
            upstreams: vec![address],
            name: host.and_then(|host| label(&host)),
            port: remote.map(|remote| remote.rsplit(':').next().unwrap().parse().unwrap()),
        });
    }
    let endpoints = file.get("endpoints").and_then(Value::as_sequence);
    for (index, endpoint) in endpoints.into_iter().flatten().enumerate() {
        let url = at(endpoint, "url").unwrap_or_default();
        let kind = if url.starts_with("tcp:") {
            "tcp"
        } else if url.starts_with("tls:") {
            "tls"
        } else {
            "http"
        };
        let port = url.rsplit(':').next().and_then(|port| port.parse().ok());
        all.push(Theirs {
            place: format!("endpoints[{index}]"),
            kind,
            upstreams: vec![at(endpoint.get("upstream").unwrap(), "url").unwrap()],
            name: label(&url).filter(|name| kind != "tcp" && !name.is_empty()),
            port: port.filter(|_| kind == "tcp"),
        });
    }
    all
}

fn cloudflared(text: &str) -> Vec<Theirs> {
    let file: Value = yaml_serde::from_str(text).unwrap();
    let rules = file.get("ingress").and_then(Value::as_sequence);
    let theirs = |(index, rule): (usize, &Value)| {
        let service = at(rule, "service").unwrap();
        let (scheme, rest) = service.split_once("://").unwrap_or(("", &service));
        let (kind, upstream) = match scheme {
            "ws" => ("http", format!("http://{rest}")),
            "wss" => ("http", format!("https://{rest}")),
            "ssh" => ("tcp", format!("{rest}:22")),
            "tcp" if rest.contains(':') => ("tcp", rest.to_owned()),
            "tcp" => ("tcp", format!("{rest}:7864")),
            _ => ("http", service.clone()),
        };
        let host = at(rule, "hostname").filter(|host| host != "*");
        Theirs {
            place: format!("ingress[{index}]"),
            kind,
            upstreams: vec![upstream],
            name: host.and_then(|host| label(&host)).filter(|_| kind == "http"),
            port: None,
        }
    };
    rules.into_iter().flatten().enumerate().map(theirs).collect()
}

fn frp_proxy(place: String, get: &dyn Fn(&str, &str) -> Option<String>) -> Theirs {
    let kind = match get("type", "type").as_deref().unwrap_or("tcp") {
        "udp" => "udp",
        "http" => "http",
        "https" => "tls",
        _ => "tcp",
    };
    let host = get("localIP", "local_ip").unwrap_or("127.0.0.1".to_owned());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let plugin = get("plugin.type", "plugin");
    let (kind, upstream) = match plugin.as_deref() {
        None => (kind, format!("{host}:{}", get("localPort", "local_port").unwrap_or_default())),
        Some("unix_domain_socket") => {
            (kind, format!("unix:{}", get("plugin.unixPath", "plugin_unix_path").unwrap()))
        }
        Some("static_file") => {
            ("http", format!("file:{}", get("plugin.localPath", "plugin_local_path").unwrap()))
        }
        Some(plugin) => {
            let scheme = if plugin.ends_with("https") { "https" } else { "http" };
            let address = get("plugin.localAddr", "plugin_local_addr").unwrap_or_default();
            ("http", format!("{scheme}://{address}"))
        }
    };
    let name = get("subdomain", "subdomain").or_else(|| get("customDomains", "custom_domains"));
    let port = get("remotePort", "remote_port").and_then(|port| port.parse().ok());
    Theirs {
        place,
        kind,
        upstreams: vec![upstream],
        name: name.and_then(|host| label(&host)).filter(|_| kind == "http" || kind == "tls"),
        port: port.filter(|port| *port != 0 && kind != "http"),
    }
}

fn frp(path: &Path, text: &str) -> Vec<Theirs> {
    if path.extension().is_some_and(|end| end == "ini") {
        return frp_ini(text);
    }
    let file: Value = match path.extension().is_some_and(|end| end == "toml") {
        true => yaml_serde::to_value(text.parse::<toml::Table>().unwrap()).unwrap(),
        false => yaml_serde::from_str(text).unwrap(),
    };
    let lists =
        ["proxies", "visitors"].map(|key| (key, file.get(key).and_then(Value::as_sequence)));
    let mut all = Vec::new();
    for (key, list) in lists {
        for (index, proxy) in list.into_iter().flatten().enumerate() {
            let get = |new: &str, _: &str| {
                let found = new.split('.').try_fold(proxy, |value, key| value.get(key))?;
                scalar(found.as_sequence().map_or(found, |list| &list[0]))
            };
            all.push(frp_proxy(format!("{key}[{index}]"), &get));
        }
    }
    all
}

fn frp_ini(text: &str) -> Vec<Theirs> {
    let mut all = Vec::new();
    for section in text.split("\n[").skip(1).filter(|section| !section.starts_with("common]")) {
        let (name, body) = section.split_once(']').unwrap();
        let get = |_: &str, old: &str| {
            let lines = body.lines().filter_map(|line| line.split_once('='));
            lines
                .map(|(k, v)| (k.trim(), v.trim()))
                .find(|(k, _)| *k == old)
                .map(|(_, v)| v.to_owned())
        };
        if name.starts_with("range:") {
            // Of each range, its ends.
            let ends = get("", "local_port").unwrap();
            for end in
                [ends.split(['-', ',']).next().unwrap(), ends.rsplit(['-', ',']).next().unwrap()]
            {
                let one = |new: &str, old: &str| match old {
                    "local_port" | "remote_port" => Some(end.to_owned()),
                    _ => get(new, old),
                };
                all.push(frp_proxy(name.to_owned(), &one));
            }
        } else {
            all.push(frp_proxy(name.to_owned(), &get));
        }
    }
    all
}

/// Whether one of ours leads where theirs does.
fn is_there(theirs: &Theirs, ours: &[Ours]) -> bool {
    ours.iter().any(|ours| {
        ours.kind == theirs.kind
            && theirs.upstreams.iter().all(|upstream| ours.upstreams.contains(upstream))
            && (ours.name == theirs.name || (theirs.kind != "http" && theirs.kind != "tls"))
            && ours.port == theirs.port
    })
}

/// Whether a note says what became of it.
fn is_noted(theirs: &Theirs, notes: &[String]) -> bool {
    let place = &theirs.place;
    notes.iter().any(|note| {
        let text = note.splitn(3, ':').nth(2).unwrap().trim_start();
        let Some(rest) = text.strip_prefix(place.as_str()) else { return false };
        let of_name = [
            ".hostname: ",
            ".domain: ",
            ".subdomain: ",
            ".url: ",
            ".custom_domains: ",
            ".customDomains[0]: ",
        ];
        rest.starts_with(": ")
            || rest.starts_with(".service: ")
            || rest.starts_with(".path: ")
            || rest.contains("left out")
            || of_name.iter().any(|key| rest.starts_with(key)) && rest.contains("the edge chooses")
    })
}

fn check(of: &str, theirs: impl Fn(&Path, &str) -> Vec<Theirs>) {
    for path in samples(of) {
        let shown = path.display();
        let source = std::fs::read_to_string(&path).unwrap();
        let (toml, notes) = import(of, &path);
        let ours = ours(&toml);
        for one in theirs(&path, &source) {
            let told = is_there(&one, &ours) || is_noted(&one, &notes);
            assert!(told, "{shown}: {one:?} is neither in\n{toml}\nnor in\n{}", notes.join("\n"));
        }
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("uniroute.toml"), &toml).unwrap();
        let checked = uniroute_in(home.path(), &["config", "check", "uniroute.toml"]);
        assert_eq!(checked.status.code(), Some(0), "{shown}: {}", text(&checked.stderr));
        let all = format!("{toml}\n{}", notes.join("\n"));
        assert!(!all.contains("canary"), "{shown}: a secret in\n{all}");
        let name = format!("{of}__{}", path.file_name().unwrap().to_str().unwrap());
        insta::with_settings!({
            snapshot_path => "../import/snapshots",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!(name, without_salts(&all)) });
    }
}

/// Hashes of passwords are other ones each time.
fn without_salts(text: &str) -> String {
    let mut parts = text.split("$argon2id$");
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let end = part.find('"').unwrap();
        write!(out, "$argon2id$…{}", &part[end..]).unwrap();
    }
    out
}

#[test]
fn ngroks_configs_are_imported() {
    check("ngrok", |_, text| ngrok(text));
}

#[test]
fn cloudflareds_configs_are_imported() {
    check("cloudflared", |_, text| cloudflared(text));
}

#[test]
fn frps_configs_are_imported() {
    check("frp", frp);
}

#[test]
fn twenty_samples_and_more_are_public() {
    let all = ["ngrok", "cloudflared", "frp"].map(samples).concat();
    let own = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("own_");
    let public = all.len() - all.iter().filter(own).count();
    assert!(public >= 30, "{public}");
    let sources = std::fs::read_to_string(Path::new(SAMPLES).join("SOURCES.md")).unwrap();
    for path in all.iter().filter(|path| !own(path)) {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(sources.contains(name) || name.starts_with("readme_"), "{name} has no source");
    }
}

#[test]
fn what_cannot_be_read_is_code_3() {
    for (of, name, content, part) in [
        ("ngrok", "a.yml", "a: [", "a.yml is no YAML"),
        ("ngrok", "a.yml", "- 1\n", "holds no keys"),
        ("frp", "a.toml", "a = \n", "a.toml is no TOML"),
        ("frp", "a.toml", "a = {{ .Envs.A }}\n", "write out what they stand for"),
        ("frp", "a.ini", "[common]\nx\n", "a.ini:2:"),
    ] {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join(name), content).unwrap();
        let done = uniroute_in(home.path(), &["config", "import", "--from", of, name]);
        assert_eq!(done.status.code(), Some(3), "{content:?}");
        assert!(
            done.stdout.is_empty() && text(&done.stderr).contains(part),
            "{}",
            text(&done.stderr)
        );
    }
    let done = uniroute(&["config", "import", "--from", "ngrok", "missing.yml"]);
    assert_eq!(done.status.code(), Some(3));
    assert!(text(&done.stderr).contains("cannot read missing.yml"));
}

#[test]
fn the_result_goes_to_a_file_that_is_not_there_yet() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("ngrok.yml"), "tunnels: {a: {proto: http, addr: 80}}").unwrap();
    let arguments = ["config", "import", "--from", "ngrok", "ngrok.yml", "--output", "out.toml"];
    assert_eq!(uniroute_in(home.path(), &arguments).status.code(), Some(0));
    let written = std::fs::read_to_string(home.path().join("out.toml")).unwrap();
    assert!(written.contains("[tunnels.a]"), "{written}");
    let again = uniroute_in(home.path(), &arguments);
    assert!(again.status.code() == Some(1) && text(&again.stderr).contains("is there already"));
}
