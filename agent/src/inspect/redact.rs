//! What looks like a secret is not shown.

use std::borrow::Cow;

use super::Limits;

/// Stands for what is not shown.
pub(crate) const HIDDEN: &str = "***";

/// Fields whose values are secrets.
const FIELDS: [&str; 3] = ["authorization", "proxy-authorization", "x-api-key"];
/// What is in the names of others, and of parameters and keys.
const WORDS: [&str; 9] = [
    "token",
    "secret",
    "password",
    "passwd",
    "api-key",
    "api_key",
    "apikey",
    "signature",
    "session",
];

/// Knows which names have secrets.
#[derive(Debug)]
pub(crate) struct Redactor {
    off: bool,
    /// In lower case.
    further: Vec<String>,
}

impl Redactor {
    pub(super) fn new(limits: &Limits) -> Self {
        let further = limits.redact.iter().map(|name| name.to_ascii_lowercase()).collect();
        Self { off: limits.show_secrets, further }
    }

    /// Whether what is called `name` is a secret.
    pub(crate) fn is_secret(&self, name: &[u8]) -> bool {
        if self.off {
            return false;
        }
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        FIELDS.iter().any(|field| is(field))
            || self.further.iter().any(|field| is(field))
            || WORDS.iter().any(|word| {
                name.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word.as_bytes()))
            })
    }

    /// A field's value as it may be shown.
    pub(crate) fn field<'a>(&self, name: &[u8], value: &'a [u8]) -> Cow<'a, [u8]> {
        if self.off {
            return value.into();
        }
        if name.eq_ignore_ascii_case(b"cookie") {
            let crumbs = value.split(|byte| *byte == b';').map(hide_value);
            return crumbs.collect::<Vec<_>>().join(&b';').into();
        }
        if name.eq_ignore_ascii_case(b"set-cookie") {
            let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
            return [&hide_value(&value[..end])[..], &value[end..]].concat().into();
        }
        if self.is_secret(name) {
            return HIDDEN.as_bytes().into();
        }
        // It may be a URL, or hold one.
        match value.iter().position(|byte| *byte == b'?') {
            Some(_) => self.target(value),
            None => value.into(),
        }
    }

    /// A path or URL, with the values of its query's secret parameters hidden.
    pub(crate) fn target<'a>(&self, target: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(at) = target.iter().position(|byte| *byte == b'?').filter(|_| !self.off) else {
            return target.into();
        };
        match self.parameters(&target[at + 1..]) {
            Cow::Borrowed(_) => target.into(),
            Cow::Owned(query) => [&target[..=at], &query].concat().into(),
        }
    }

    /// `a=b&c=d`, as in queries and forms.
    fn parameters<'a>(&self, query: &'a [u8]) -> Cow<'a, [u8]> {
        let secret = |pair: &[u8]| {
            let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
            pair.contains(&b'=') && self.is_secret(&percent_decoded(name))
        };
        let pairs = query.split(|byte| *byte == b'&');
        if !pairs.clone().any(secret) {
            return query.into();
        }
        let shown = |pair: &[u8]| if secret(pair) { hide_value(pair) } else { pair.to_vec() };
        pairs.map(shown).collect::<Vec<_>>().join(&b'&').into()
    }

    /// The text of a body of the media type `kind`, or a message's.
    pub(crate) fn text(&self, kind: &str, text: &str) -> String {
        if self.off {
            return text.to_owned();
        }
        if kind == "application/x-www-form-urlencoded" {
            return String::from_utf8_lossy(&self.parameters(text.as_bytes())).into_owned();
        }
        if kind.starts_with("multipart/") {
            return self.multipart(text);
        }
        self.json(text)
    }

    /// The values of secret keys in JSON, which need not be complete, or be JSON at all.
    fn json(&self, text: &str) -> String {
        let bytes = text.as_bytes();
        let (mut out, mut copied, mut at) = (String::new(), 0, 0);
        while let Some(begin) = memchr::memchr(b'"', &bytes[at..]).map(|found| at + found) {
            let Some(end) = string_end(bytes, begin) else { break };
            at = end;
            let colon = end + spaces(&bytes[end..]);
            if bytes.get(colon) != Some(&b':') || !self.is_secret_key(&text[begin..end]) {
                continue;
            }
            let value = colon + 1 + spaces(&bytes[colon + 1..]);
            let stop = match bytes.get(value) {
                // What is inside is looked at by itself.
                Some(b'{' | b'[') => continue,
                Some(b'"') => string_end(bytes, value).unwrap_or(bytes.len()),
                _ => {
                    let ends =
                        |byte: &u8| matches!(byte, b',' | b'}' | b']' | b'\r' | b'\n' | b' ');
                    value + bytes[value..].iter().position(ends).unwrap_or(bytes.len() - value)
                }
            };
            out.push_str(&text[copied..value]);
            out.push('"');
            out.push_str(HIDDEN);
            out.push('"');
            (copied, at) = (stop, stop);
        }
        out.push_str(&text[copied..]);
        out
    }

    /// `literal` is in its quotes.
    fn is_secret_key(&self, literal: &str) -> bool {
        let plain = &literal[1..literal.len() - 1];
        if !plain.contains('\\') {
            return self.is_secret(plain.as_bytes());
        }
        let key = serde_json::from_str::<String>(literal).unwrap_or_else(|_| plain.to_owned());
        self.is_secret(key.as_bytes())
    }

    /// Parts whose name is one of a secret.
    fn multipart(&self, text: &str) -> String {
        let part = |part: &str| {
            let head = part.split("\r\n\r\n").next().unwrap_or_default();
            let name = head.split("name=\"").nth(1).and_then(|rest| rest.split('"').next());
            if head.len() < part.len() && name.is_some_and(|name| self.is_secret(name.as_bytes())) {
                format!("{head}\r\n\r\n{HIDDEN}")
            } else {
                part.to_owned()
            }
        };
        text.split("\r\n--").map(part).collect::<Vec<_>>().join("\r\n--")
    }

    /// The real value in place of a hidden one that came back unchanged: `shown` is what somebody
    /// sent of a field called `name`, `originals` what there was under that name.
    pub(crate) fn restore<'a>(
        &self,
        name: &[u8],
        shown: &[u8],
        originals: impl Iterator<Item = &'a [u8]>,
    ) -> Option<&'a [u8]> {
        let mut originals = originals;
        originals.find(|original| self.field(name, original)[..] == *shown)
    }

    /// The same for a target.
    pub(crate) fn restore_target(&self, shown: &[u8], original: &[u8]) -> Vec<u8> {
        let split = |target: &[u8]| -> (Vec<u8>, Vec<Vec<u8>>) {
            let mut halves = target.splitn(2, |byte| *byte == b'?');
            let path = halves.next().unwrap_or_default().to_vec();
            let query = halves.next().map(|query| query.split(|byte| *byte == b'&'));
            (path, query.into_iter().flatten().map(<[u8]>::to_vec).collect())
        };
        let (path, pairs) = split(shown);
        let (_, mut real) = split(original);
        let pairs: Vec<_> = pairs
            .into_iter()
            .map(|pair| {
                let same = |real: &Vec<u8>| !self.off && hide_value(real) == pair;
                match real.iter().position(same) {
                    Some(at) => real.remove(at),
                    None => pair,
                }
            })
            .collect();
        match shown.contains(&b'?') {
            true => [&path[..], b"?", &pairs.join(&b'&')].concat(),
            false => path,
        }
    }
}

/// `name=***`.
fn hide_value(pair: &[u8]) -> Vec<u8> {
    match pair.iter().position(|byte| *byte == b'=') {
        Some(at) => [&pair[..=at], HIDDEN.as_bytes()].concat(),
        None => HIDDEN.as_bytes().to_vec(),
    }
}

/// Behind the string that begins at `begin` with its quote.
fn string_end(bytes: &[u8], begin: usize) -> Option<usize> {
    let mut at = begin + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

fn spaces(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

fn percent_decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.contains(&b'%') {
        return text.into();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let pair = text.get(at + 1..at + 3).filter(|_| *byte == b'%');
        let value = pair.and_then(|pair| std::str::from_utf8(pair).ok());
        match value.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn redactor(limits: &Limits) -> Redactor {
        Redactor::new(limits)
    }

    /// T20: what is hidden, and what is not.
    #[test]
    fn t20_secrets_are_hidden_wherever_they_are() {
        let limits = Limits { redact: vec!["X-Mine".into()], ..Limits::default() };
        let redactor = redactor(&limits);
        let field = |name: &str, value: &str| {
            String::from_utf8(redactor.field(name.as_bytes(), value.as_bytes()).into()).unwrap()
        };
        for (name, value, shown) in [
            ("Authorization", "Bearer canary", "***"),
            ("X-API-Key", "canary", "***"),
            ("x-csrf-Token", "canary", "***"),
            ("X-Hub-Signature-256", "canary", "***"),
            ("x-mine", "canary", "***"),
            ("Cookie", "a=canary; b=canary", "a=***; b=***"),
            ("Cookie", "canary", "***"),
            ("Set-Cookie", "id=canary; Path=/; HttpOnly", "id=***; Path=/; HttpOnly"),
            ("Referer", "http://a/b?x=1&token=canary", "http://a/b?x=1&token=***"),
            ("X-Other", "shown", "shown"),
        ] {
            assert_eq!(field(name, value), shown);
        }
        let target =
            |text: &str| String::from_utf8(redactor.target(text.as_bytes()).into()).unwrap();
        assert_eq!(target("/a?b=1&access_token=canary&c"), "/a?b=1&access_token=***&c");
        assert_eq!(target("/a?to%6ben=canary"), "/a?to%6ben=***");
        assert_eq!(target("/a?b=token"), "/a?b=token");
        let json = "application/json";
        for (text, shown) in [
            (r#"{"a":1,"password" : "ca\"nary","b":2}"#, r#"{"a":1,"password" : "***","b":2}"#),
            (
                r#"{"apiKey":12345,"x":[{"secret":null}]}"#,
                r#"{"apiKey":"***","x":[{"secret":"***"}]}"#,
            ),
            (r#"{"p\u0061ssword":"canary"}"#, r#"{"p\u0061ssword":"***"}"#),
            (r#"{"token":"canary that is cut"#, r#"{"token":"***""#),
            (r#"{"tokens":{"a":"b"}}"#, r#"{"tokens":{"a":"b"}}"#),
            ("no json \"", "no json \""),
        ] {
            assert_eq!(redactor.text(json, text), shown);
        }
        let form = "application/x-www-form-urlencoded";
        assert_eq!(redactor.text(form, "user=a&password=canary"), "user=a&password=***");
        let parts = "--b\r\nContent-Disposition: form-data; name=\"password\"\r\n\r\ncanary\r\n--b\r\n\
                     Content-Disposition: form-data; name=\"a\"\r\n\r\nshown\r\n--b--";
        let shown = redactor.text("multipart/form-data", parts);
        assert!(!shown.contains("canary") && shown.contains("shown"), "{shown}");
    }

    proptest! {
        /// Whatever a visitor sends: no panic, and a secret between others is hidden.
        #[test]
        fn any_text_can_be_shown(before in "[a-zä\\\\\"{}:,=&;?%\\r\\n -]{0,40}", after in ".{0,40}") {
            let redactor = redactor(&Limits::default());
            for kind in ["", "application/json", "application/x-www-form-urlencoded", "multipart/mixed"] {
                redactor.text(kind, &format!("{before}{after}"));
            }
            let value = format!("{before}{after}");
            for name in ["cookie", "set-cookie", "referer"] {
                redactor.field(name.as_bytes(), value.as_bytes());
            }
            redactor.restore_target(value.as_bytes(), after.as_bytes());
            let object = serde_json::json!({ "a": before, "token": "canary", "z": after }).to_string();
            prop_assert!(!redactor.text("application/json", &object).contains("canary"));
        }
    }

    #[test]
    fn it_can_be_switched_off() {
        let redactor = redactor(&Limits { show_secrets: true, ..Limits::default() });
        assert_eq!(&redactor.field(b"cookie", b"a=b")[..], b"a=b");
        assert_eq!(redactor.text("application/json", "{\"token\":1}"), "{\"token\":1}");
    }

    #[test]
    fn what_was_hidden_comes_back() {
        let redactor = redactor(&Limits::default());
        let originals = [&b"a=1; b=2"[..], b"c=3"];
        let restored = redactor.restore(b"cookie", b"c=***", originals.into_iter());
        assert_eq!(restored, Some(&b"c=3"[..]));
        assert_eq!(redactor.restore(b"cookie", b"d=4", originals.into_iter()), None);
        let target = redactor.restore_target(b"/new?token=***&b=2", b"/old?token=real&b=1");
        assert_eq!(target, b"/new?token=real&b=2");
    }
}
