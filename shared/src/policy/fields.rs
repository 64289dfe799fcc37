//! Fields that an owner removes, sets and adds.

use http::{HeaderName, HeaderValue};
use uniroute_proto::v1::{Header, HeaderChanges};

use super::PolicyError;
use crate::{
    headers::{is_hop_by_hop, is_ours},
    message::{self, Fields},
};

/// Most changes in one direction.
pub const MAX_CHANGES: usize = 64;
/// Longest name and longest value, in bytes.
pub const MAX_LENGTH: usize = 8 * 1024;

/// Which heads are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those of requests, for the local server.
    Request,
    /// Those of answers, for the visitor.
    Response,
}

impl Direction {
    /// The key in a config file.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Request => "request_headers",
            Self::Response => "response_headers",
        }
    }
}

/// Changes that were checked.
#[derive(Debug, Default)]
pub(super) struct Changes {
    remove: Vec<String>,
    set: Vec<Header>,
    add: Vec<Header>,
}

impl Changes {
    pub(super) fn compile(
        direction: Direction,
        changes: &HeaderChanges,
    ) -> Result<Self, PolicyError> {
        let key = direction.key();
        let count = changes.remove.len() + changes.set.len() + changes.add.len();
        PolicyError::at_most(key, count, MAX_CHANGES)?;
        for name in &changes.remove {
            check_name(name.as_bytes())
                .map_err(|what| PolicyError::new(format!("{key}.remove"), what))?;
        }
        for (part, headers) in [("set", &changes.set), ("add", &changes.add)] {
            for header in headers {
                let name = String::from_utf8_lossy(&header.name);
                let wrong = |what| PolicyError::new(format!("{key}.{part}.{name:?}"), what);
                check_name(&header.name).map_err(wrong)?;
                check_value(&header.value).map_err(wrong)?;
            }
        }
        Ok(Self {
            remove: changes.remove.clone(),
            set: changes.set.clone(),
            add: changes.add.clone(),
        })
    }

    pub(super) fn apply(&self, fields: &mut Fields) {
        for name in &self.remove {
            fields.remove(name);
        }
        for header in &self.set {
            set(fields, header);
        }
        fields.0.extend(self.add.iter().cloned());
    }
}

/// As [`Fields::set`], with the owner's spelling.
fn set(fields: &mut Fields, header: &Header) {
    match std::str::from_utf8(&header.name) {
        Ok(name) if fields.0.iter().any(|field| message::is(field, name)) => {
            fields.set(name, header.value.clone());
        }
        _ => fields.0.push(header.clone()),
    }
}

/// Refuses a name that is no token or that the tunnel itself must write.
///
/// # Errors
/// What is wrong with it, and what to do instead.
pub fn check_name(name: &[u8]) -> Result<(), String> {
    let shown = String::from_utf8_lossy(name);
    let parsed = HeaderName::from_bytes(name).ok().filter(|_| name.len() <= MAX_LENGTH);
    let Some(parsed) = parsed else {
        return Err(format!(
            "{shown:?} is no name of a header field: letters, digits and hyphens, such as X-Name"
        ));
    };
    if parsed == http::header::HOST {
        return Err("Host is changed by `host_header`".to_owned());
    }
    if is_hop_by_hop(parsed.as_str().as_bytes())
        || matches!(parsed.as_str(), "content-length" | "trailer" | "expect")
    {
        return Err(format!(
            "{shown} belongs to one connection or says where a message ends, so the tunnel writes it"
        ));
    }
    if is_ours(parsed.as_str().as_bytes()) {
        return Err(format!("{shown}: names beginning with x-uniroute- are the tunnel's own"));
    }
    Ok(())
}

/// Refuses a value that would be more than a value (T10).
///
/// # Errors
/// What is wrong with it.
pub fn check_value(value: &[u8]) -> Result<(), String> {
    if value.len() > MAX_LENGTH {
        return Err(format!("the value is longer than {MAX_LENGTH} bytes"));
    }
    match HeaderValue::from_bytes(value) {
        Ok(_) => Ok(()),
        Err(_) => Err("the value holds a line break or another control character".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(name: &str, value: &str) -> Header {
        Header { name: name.to_owned().into(), value: value.to_owned().into() }
    }

    #[test]
    fn fields_are_removed_then_set_then_added() {
        let changes = HeaderChanges {
            remove: vec!["x-a".into(), "X-B".into()],
            set: vec![header("X-B", "new"), header("x-c", "only")],
            add: vec![header("X-D", "1"), header("X-D", "2")],
        };
        let mut fields = Fields::default();
        for (name, value) in [("X-A", "1"), ("x-b", "old"), ("X-C", "1"), ("X-C", "2")] {
            fields.push(name, value);
        }
        Changes::compile(Direction::Request, &changes).unwrap().apply(&mut fields);
        let got: Vec<_> = fields.iter().collect();
        let expected: [(&[u8], &[u8]); 4] =
            [(b"X-C", b"only"), (b"X-B", b"new"), (b"X-D", b"1"), (b"X-D", b"2")];
        assert_eq!(got, expected);
    }

    #[test]
    fn what_the_tunnel_writes_is_not_the_owners() {
        for name in [
            "Connection",
            "content-length",
            "Transfer-Encoding",
            "Host",
            "upgrade",
            "TE",
            "trailer",
            "X-Uniroute-Error",
            "x_uniroute_request_id",
            "keep-alive",
            "proxy-connection",
            "a b",
            "a:",
            "",
            "a\r\nb",
        ] {
            assert!(check_name(name.as_bytes()).is_err(), "{name:?}");
            let changes = HeaderChanges { remove: vec![name.into()], ..Default::default() };
            let error = Changes::compile(Direction::Response, &changes).unwrap_err();
            assert_eq!(error.key, "response_headers.remove");
        }
        for name in ["X-Forwarded-Proto", "set-cookie", "Authorization", "origin"] {
            assert_eq!(check_name(name.as_bytes()), Ok(()), "{name}");
        }
    }

    proptest! {
        /// T10: header injection.
        #[test]
        fn t10_no_line_break_comes_through(name: Vec<u8>, value: Vec<u8>) {
            let header = Header { name: name.into(), value: value.into() };
            let changes = HeaderChanges { set: vec![header], ..Default::default() };
            if let Ok(changes) = Changes::compile(Direction::Request, &changes) {
                let mut fields = Fields::default();
                changes.apply(&mut fields);
                let text: Vec<u8> = fields.iter().flat_map(|(n, v)| [n, v].concat()).collect();
                prop_assert!(!text.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
            }
        }
    }
}
