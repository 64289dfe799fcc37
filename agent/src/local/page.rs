//! The inspector's page: files inside the binary, each served as it is.
//!
//! The page asks nothing of any other host, and shows what was captured as text only.

/// What the page may do, as its `Content-Security-Policy`: nothing that is not from this agent, no
/// script or style inside a document.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asset {
    /// Its media type.
    pub(crate) kind: &'static str,
    /// All of it.
    pub(crate) data: &'static [u8],
}

/// The file at `path`: `/`, or `/assets/NAME`.
pub(crate) fn asset(path: &str) -> Option<Asset> {
    let name = if path == "/" { "index.html" } else { path.strip_prefix("/assets/")? };
    let (_, data) = FILES.iter().find(|(file, _)| *file == name)?;
    let kind = match name.rsplit_once('.')?.1 {
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "text/html; charset=utf-8",
    };
    Some(Asset { kind, data })
}

/// By their names.
macro_rules! files {
    ($($name:literal)*) => { &[$(($name, include_bytes!(concat!("page/", $name)))),*] };
}

const FILES: &[(&str, &[u8])] = files! {
    "index.html" "app.css" "icon.svg"
    "api.js" "app.js" "body.js" "detail.js" "dialogs.js" "diff.js" "dom.js" "frames.js" "header.js"
    "list.js" "replay.js" "store.js" "toolbar.js"
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let mut named = 0;
        for (_, data) in FILES {
            let text = std::str::from_utf8(data).unwrap();
            for path in text.split('"').filter(|word| word.starts_with("/assets/")) {
                assert!(asset(path).is_some(), "{path}");
                named += 1;
            }
            for path in text.split('\'').filter_map(|word| word.strip_prefix("./")) {
                let script =
                    path.starts_with("types") || asset(&format!("/assets/{path}")).is_some();
                assert!(script, "{path}");
            }
        }
        assert!(named >= 14, "{named}");
        assert!(asset("/assets/types.d.ts").is_none() && asset("/assets/../page.rs").is_none());
        assert!(asset("/").is_some_and(|page| page.kind.starts_with("text/html")));
    }

    #[test]
    fn no_file_names_another_host_and_none_makes_html_of_text() {
        for (name, data) in FILES {
            let text = std::str::from_utf8(data).unwrap();
            for banned in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "srcdoc",
            ] {
                assert!(!text.contains(banned), "{name}: {banned}");
            }
            let hosts = text.match_indices("//").filter(|(at, _)| {
                text[..*at].ends_with("http:") || text[..*at].ends_with("https:")
            });
            for (at, _) in hosts {
                let host: String = text[at + 2..]
                    .chars()
                    .take_while(|char| char.is_alphanumeric() || *char == '.')
                    .collect();
                assert!(["www.w3.org", "localhost", ""].contains(&host.as_str()), "{name}: {host}");
            }
        }
    }
}
