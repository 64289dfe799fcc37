//! What goes with a bug report: the report, the config file without its secrets, and the machine.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
    time::SystemTime,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use toml::Value;
use uniroute_agent::diagnose::Report;

/// What stands for a value that may be a secret.
const REMOVED: &str = "(removed)";
/// Keys whose texts are no secrets.
const SHOWN: [&str; 27] = [
    "allow",
    "address",
    "client_certificate",
    "client_key",
    "deny",
    "error_page",
    "file_fallback",
    "format",
    "heartbeat",
    "host_header",
    "kind",
    "level",
    "name",
    "output",
    "path",
    "protocol",
    "proxy",
    "proxy_protocol",
    "quic_congestion",
    "server",
    "server_ca",
    "server_pin",
    "transport",
    "upstream",
    "upstream_ca",
    "upstream_protocol",
    "url",
];
/// What other keys that are shown end with: they hold paths and times.
const SHOWN_ENDS: [&str; 5] = ["_file", "_dir", "_timeout", "_interval", "_env"];
/// Longest config file that is taken along, in bytes.
const MAX_CONFIG: u64 = 1024 * 1024;
/// A tar is made of such blocks, in bytes.
const BLOCK: usize = 512;

/// # Errors
/// When the file can't be written, or is there already.
pub(super) fn write(file: &Path, report: &Report, config: &Path) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut tar = Tar(GzEncoder::new(options.open(file)?, Compression::default()));
    tar.add("report.json", &serde_json::to_vec_pretty(report)?)?;
    tar.add("config.toml", config_without_secrets(config).as_bytes())?;
    tar.add("about.json", &serde_json::to_vec_pretty(&about(report))?)?;
    Ok(tar.end()?)
}

/// Of the environment there are names only.
fn about(report: &Report) -> serde_json::Value {
    let mut names: Vec<String> =
        std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    json!({
        "version": report.version,
        "platform": report.platform,
        "kernel": kernel.trim(),
        "system": system.map(|name| name.trim_matches('"')),
        "environment": names,
    })
}

fn config_without_secrets(path: &Path) -> String {
    let length = fs::metadata(path).map_or(0, |file| file.len());
    if length > MAX_CONFIG {
        return format!("# It has {length} bytes, and was left out.\n");
    }
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return format!("# It can't be read: {}\n", error.kind()),
    };
    // What can't be read can't be cleaned either. Comments go, too.
    match text.parse::<toml::Table>() {
        Ok(mut table) => {
            table.iter_mut().for_each(|(key, value)| clean(key, value));
            toml::to_string_pretty(&table).unwrap_or_default()
        }
        Err(_) => "# It is no TOML, and was left out.\n".to_owned(),
    }
}

/// Takes out every text whose key is not known to be harmless.
fn clean(key: &str, value: &mut Value) {
    match value {
        Value::String(text) => {
            let shown = SHOWN.contains(&key) || SHOWN_ENDS.iter().any(|end| key.ends_with(end));
            *text = if shown { without_credentials(text) } else { REMOVED.to_owned() };
        }
        Value::Array(values) => values.iter_mut().for_each(|value| clean(key, value)),
        Value::Table(table) => table.iter_mut().for_each(|(key, value)| clean(key, value)),
        _ => {}
    }
}

/// A URL without user, password, query and fragment.
fn without_credentials(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    match rest.rsplit_once('@') {
        Some((_, rest)) => format!("{scheme}{REMOVED}@{rest}"),
        None => format!("{scheme}{rest}"),
    }
}

/// A tar in the format of POSIX, of a few short files.
struct Tar<W: Write>(GzEncoder<W>);

impl<W: Write> Tar<W> {
    fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut head = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, b"0000600\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", content.len()).as_bytes());
        put(136, format!("{:011o}\0", now.as_secs()).as_bytes());
        // The checksum counts itself as spaces.
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.write_all(&head)?;
        self.0.write_all(content)?;
        let rest = content.len().next_multiple_of(BLOCK) - content.len();
        self.0.write_all(&[0; BLOCK][..rest])
    }

    fn end(mut self) -> io::Result<()> {
        self.0.write_all(&[0; 2 * BLOCK])?;
        self.0.finish()?.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_of_urls() {
        for (text, shown) in [
            ("http://ann:hunter2@proxy:1", "http://(removed)@proxy:1"),
            ("ann:hunter2@proxy:1", "(removed)@proxy:1"),
            ("https://a:p@ss@b/x?token=hunter2", "https://(removed)@b/x"),
            ("3000", "3000"),
            ("unix:app.sock", "unix:app.sock"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }
}
