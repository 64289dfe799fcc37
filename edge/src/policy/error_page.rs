//! The page that an owner wants browsers to see when the tunnel does not work. The fields of the
//! answer stay ours; only its body is the owner's.

use bytes::Bytes;
use uniroute_shared::{
    code::{Code, Leg},
    id::RequestId,
};

/// An owner's page.
#[derive(Debug)]
pub(crate) struct ErrorPage(String);

/// Whether an owner may speak for it: what fails behind the edge is the tunnel's own affair.
pub(super) fn is_for(code: &Code) -> bool {
    matches!(code.leg, Leg::Link | Leg::Agent | Leg::Upstream)
        && code.status.is_some_and(|status| status >= 500)
}

impl ErrorPage {
    /// `None`: no page.
    pub(super) fn new(html: &Bytes) -> Option<Self> {
        (!html.is_empty()).then(|| Self(String::from_utf8_lossy(html).into_owned()))
    }

    /// The page for one failure, with its placeholders filled in once.
    pub(crate) fn render(&self, code: &Code, request_id: &RequestId) -> Bytes {
        let mut page = String::with_capacity(self.0.len() + 128);
        let mut rest = self.0.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            page.push_str(before);
            let filled = after.split_once("}}").and_then(|(name, behind)| {
                value(name.trim(), code, request_id).map(|value| (value, behind))
            });
            match filled {
                Some((value, behind)) => {
                    page.push_str(&escaped(&value));
                    rest = behind;
                }
                None => {
                    page.push_str("{{");
                    rest = after;
                }
            }
        }
        page.push_str(rest);
        page.into()
    }
}

fn value(name: &str, code: &Code, request_id: &RequestId) -> Option<String> {
    Some(match name {
        "code" => code.to_string(),
        "status" => code.status.map_or(String::new(), |status| status.to_string()),
        "title" => code.title.to_owned(),
        "request_id" => request_id.to_string(),
        _ => return None,
    })
}

/// Harmless in an element and in a quoted attribute.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(html: &'static str) -> String {
        let page = ErrorPage::new(&html.into()).unwrap();
        let rendered = page.render(&Code::UPSTREAM_REFUSED, &RequestId::new());
        String::from_utf8(rendered.to_vec()).unwrap()
    }

    #[test]
    fn placeholders_are_filled_in_and_nothing_else() {
        assert_eq!(render("<b>{{code}}</b> {{ status }}"), "<b>UR-3001</b> 502");
        assert_eq!(render("{{title}}"), "The local server refused the connection");
        for plain in ["{{ other }}", "{{", "{{code", "{ {code} }", "}}"] {
            assert_eq!(render(plain), plain);
        }
        assert_eq!(render("{{{{code}}}}"), "{{UR-3001}}");
        assert_eq!(render("{{request_id}}").len(), RequestId::new().to_string().len());
        assert!(ErrorPage::new(&Bytes::new()).is_none());
    }

    #[test]
    fn an_owner_speaks_for_what_is_behind_the_edge() {
        for (code, expected) in [
            (&Code::UPSTREAM_REFUSED, true),
            (&Code::NO_AGENT, true),
            (&Code::LINK_LOST, true),
            (&Code::INTERNAL, false),
            (&Code::PASSWORD_NEEDED, false),
            (&Code::PATH_AMBIGUOUS, false),
            (&Code::CONNECTION_LIMIT, false),
        ] {
            assert_eq!(is_for(code), expected, "{code}");
        }
    }

    #[test]
    fn what_is_filled_in_is_harmless() {
        assert_eq!(escaped("<a href=\"'&\">"), "&lt;a href=&quot;&#39;&amp;&quot;&gt;");
    }
}
