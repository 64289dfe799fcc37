//! The head of an HTTP message, whatever version it came in: fields in their order and, where it
//! was HTTP/1, in their spelling. It is what the wire between edge and agent carries, so nothing is
//! translated on the way. And its body, piece by piece.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use uniroute_proto::v1::{Header, HttpVersion};

/// A request's head. Its parts were checked when it was made: the method and the fields' names are
/// tokens, no part holds CR, LF or NUL.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestHead {
    /// The method, as it was written.
    pub method: Bytes,
    /// Path and query, byte for byte; or `*`.
    pub target: Bytes,
    /// The one host that it names, with a port if there was one.
    pub authority: Bytes,
    /// The version that it came with.
    pub version: HttpVersion,
    /// All fields, `Host` among them where there was one.
    pub fields: Fields,
}

impl RequestHead {
    /// The target without its query.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        let end = self.target.iter().position(|byte| *byte == b'?');
        &self.target[..end.unwrap_or(self.target.len())]
    }
}

/// The fields of a head or a trailer section.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(pub Vec<Header>);

impl Fields {
    /// No fields yet, and room for some.
    #[must_use]
    pub fn with_capacity(fields: usize) -> Self {
        Self(Vec::with_capacity(fields))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Name and value of each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.0.iter().map(|field| (&field.name[..], &field.value[..]))
    }

    /// The values of the fields called `name`, in any case of letters, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Bytes> {
        self.0.iter().filter(move |field| is(field, name)).map(|field| &field.value)
    }

    /// The value of the first field called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|field| is(field, name)).map(|field| &field.value)
    }

    /// Whether there is a field called `name`.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// One field more, behind the others.
    pub fn push(&mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.0.push(Header { name: name.into(), value: value.into() });
    }

    /// Makes it the only field called `name`: where the first one was, or behind the others.
    pub fn set(&mut self, name: &str, value: impl Into<Bytes>) {
        let value = value.into();
        match self.0.iter().position(|field| is(field, name)) {
            Some(at) => {
                let mut index = 0;
                self.0.retain(|field| {
                    index += 1;
                    index - 1 == at || !is(field, name)
                });
                self.0[at].value = value;
            }
            None => self.push(Bytes::copy_from_slice(name.as_bytes()), value),
        }
    }

    /// Takes all fields called `name` away; whether there were any.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|field| !is(field, name));
        self.0.len() < before
    }

    /// Whether a list field, such as `Connection`, has `token` among its elements (RFC 9110,
    /// section 5.6.1).
    #[must_use]
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| {
            let mut elements = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            elements.any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
        })
    }

    /// The fields of a message of HTTP/2, where names have no spelling.
    #[must_use]
    pub fn from_map(map: &HeaderMap) -> Self {
        let field = |(name, value): (&HeaderName, &HeaderValue)| Header {
            name: Bytes::copy_from_slice(name.as_str().as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        };
        Self(map.iter().map(field).collect())
    }

    /// The same for a library that wants a map. Fields that it can't hold are left out; there are
    /// none in a head that was checked.
    #[must_use]
    pub fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.len());
        for field in &self.0 {
            let name = HeaderName::from_bytes(&field.name);
            let value = HeaderValue::from_maybe_shared(field.value.clone());
            if let (Ok(name), Ok(value)) = (name, value) {
                map.append(name, value);
            }
        }
        map
    }
}

/// Whether `field` is called `name`, in any case of letters.
#[must_use]
pub fn is(field: &Header, name: &str) -> bool {
    field.name.eq_ignore_ascii_case(name.as_bytes())
}

/// A part of a body, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Some bytes.
    Data(Bytes),
    /// Fields behind the last byte; nothing follows.
    Trailers(Fields),
}

/// Where a body comes from.
pub trait Source {
    /// Why it broke off.
    type Error: std::fmt::Display;

    /// The next piece; `None` when it is over.
    ///
    /// # Errors
    /// When it broke off; what came is not the whole then.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Piece>, Self::Error>>;

    /// Whether the last piece was taken, as far as is known.
    fn is_over(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> Fields {
        let mut fields = Fields::default();
        pairs.iter().for_each(|(name, value)| fields.push(*name, *value));
        fields
    }

    #[test]
    fn order_and_spelling_stay_and_names_have_no_case() {
        let mut all = fields(&[("X-A", "1"), ("B", "2"), ("x-a", "3"), ("c", "4")]);
        assert_eq!(all.all("x-A").collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(all.get("X-a").unwrap(), "1");
        all.set("x-a", "5");
        assert_eq!(all, fields(&[("X-A", "5"), ("B", "2"), ("c", "4")]));
        assert!(all.remove("b") && !all.remove("b"));
        all.set("d", "6");
        assert_eq!(all, fields(&[("X-A", "5"), ("c", "4"), ("d", "6")]));
        assert_eq!(Fields::from_map(&all.to_map()).get("x-a").unwrap(), "5");
    }

    #[test]
    fn tokens_of_lists() {
        let all = fields(&[("connection", "a , Upgrade"), ("Connection", "close")]);
        assert!(all.has_token("connection", "upgrade") && all.has_token("connection", "CLOSE"));
        assert!(!all.has_token("connection", "up") && !all.has_token("te", "a"));
    }

    #[test]
    fn a_path_ends_where_the_query_begins() {
        let head = RequestHead {
            method: "GET".into(),
            target: "/a?b?c".into(),
            authority: "a".into(),
            version: HttpVersion::HttpVersion11,
            fields: Fields::default(),
        };
        assert_eq!(head.path(), b"/a");
    }
}
