//! A request as a command line of curl.

use std::fmt::Write as _;

use super::{Inspector, View, capture::Side, redact::HIDDEN, view};

/// The edge or curl says these itself.
const OURS: [&str; 9] = [
    "host",
    "content-length",
    "connection",
    "upgrade",
    "forwarded",
    "via",
    "te",
    "accept-encoding",
    "traceparent",
];
/// Longest body on the command line, in bytes: longer ones don't fit everywhere.
const MAX_BODY: usize = 64 * 1024;

/// Does what `view` did, from the visitor's side.
pub(crate) fn command(view: &View, inspector: &Inspector) -> String {
    let mut out = String::from("curl --globoff --path-as-is");
    let mut notes = Vec::new();
    let method = view.method();
    let body = view.body(Side::Visitor);
    match (&method[..], body.size) {
        ("GET", 0) | ("POST", 1..) => {}
        ("HEAD", 0) => out.push_str(" --head"),
        _ => {
            let _ = write!(out, " --request {}", quoted(&method));
        }
    }
    let mut hidden = false;
    for [name, value] in view::shown(inspector, &view.request_fields().0) {
        let lower = name.to_ascii_lowercase();
        let ours = OURS.contains(&&lower[..]) || lower.starts_with("x-forwarded-");
        if lower == "accept-encoding" {
            out.push_str(" \\\n  --compressed");
        }
        if ours || lower.starts_with("x-uniroute-") || lower == "x-real-ip" {
            continue;
        }
        hidden |= value.contains(HIDDEN);
        // Without a value curl would take the field away.
        let line = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
        let _ = write!(out, " \\\n  --header {}", quoted(&line));
    }
    if body.size > 0 {
        let plain = body.encoding.is_empty().then(|| body.text(inspector, MAX_BODY)).flatten();
        match plain {
            Some((text, false)) => {
                hidden |= text.contains(HIDDEN);
                // Of --data-binary this would be a file's name.
                let flag = if text.starts_with('@') { "--data-raw" } else { "--data-binary" };
                let _ = write!(out, " \\\n  {flag} {}", quoted(&text));
            }
            _ => {
                out.push_str(" \\\n  --data-binary @body");
                notes.push(format!(
                    "The body ({} bytes) is not here: save it from the inspector as the file \"body\".",
                    body.size
                ));
            }
        }
    }
    let url = view.url(inspector);
    hidden |= url.contains(HIDDEN);
    let _ = write!(out, " \\\n  {}", quoted(&url));
    if hidden {
        notes.push(format!("Secrets are not shown: put them in where {HIDDEN} is."));
    }
    let notes: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    format!("{notes}{out}\n")
}

/// One word of a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_sees_one_word() {
        let nasty = "a'b\"c $(d) `e` \\ \n%!#~";
        let command = format!("printf %s {}", quoted(nasty));
        let said = std::process::Command::new("sh").arg("-c").arg(command).output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), nasty);
    }
}
