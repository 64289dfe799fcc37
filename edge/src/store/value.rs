//! What goes into statements and comes out of rows, whichever database it is.

use std::{fmt, time::SystemTime};

use uuid::Uuid;

use super::StoreError;

/// An instant: microseconds since 1970 (UTC). JSON has it as RFC 3339.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// By the clock of this machine.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    pub fn plus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    pub fn minus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, with microseconds where there are any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0) * 1000;
        let at = time::OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(|_| fmt::Error)?;
        let text = at.format(&time::format_description::well_known::Rfc3339);
        f.write_str(&text.map_err(|_| fmt::Error)?)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = time::error::Parse;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let format = &time::format_description::well_known::Rfc3339;
        let at = time::OffsetDateTime::parse(text, format)?;
        Ok(Self(i64::try_from(at.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)))
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One value of a statement or a row.
#[derive(Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    /// Also JSON.
    Text(String),
    Bytes(Vec<u8>),
    Uuid(Uuid),
    Time(Timestamp),
    /// An array, which only PostgreSQL has.
    List(Vec<Self>),
}

impl Value {
    /// An array of `values`.
    pub(super) fn list<T: Into<Self>>(values: impl IntoIterator<Item = T>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

impl fmt::Debug for Value {
    /// Texts and bytes may be secrets: only how long they are is said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Bool(value) => write!(f, "Bool({value})"),
            Self::Int(value) => write!(f, "Int({value})"),
            Self::Text(value) => write!(f, "Text({} bytes)", value.len()),
            Self::Bytes(value) => write!(f, "Bytes({} bytes)", value.len()),
            Self::Uuid(value) => write!(f, "Uuid({value})"),
            Self::Time(value) => write!(f, "Time({})", value.0),
            Self::List(values) => write!(f, "List({} values)", values.len()),
        }
    }
}

macro_rules! value_of {
    ($($kind:ty => |$value:ident| $made:expr;)*) => {
        $(impl From<$kind> for Value {
            fn from($value: $kind) -> Self {
                $made
            }
        })*
    };
}

value_of! {
    bool => |value| Self::Bool(value);
    i64 => |value| Self::Int(value);
    i32 => |value| Self::Int(value.into());
    u32 => |value| Self::Int(value.into());
    u16 => |value| Self::Int(value.into());
    u64 => |value| Self::Int(i64::try_from(value).unwrap_or(i64::MAX));
    &str => |value| Self::Text(value.to_owned());
    &String => |value| Self::Text(value.clone());
    String => |value| Self::Text(value);
    &[u8] => |value| Self::Bytes(value.to_vec());
    Vec<u8> => |value| Self::Bytes(value);
    Uuid => |value| Self::Uuid(value);
    Timestamp => |value| Self::Time(value);
    serde_json::Value => |value| Self::Text(value.to_string());
    &serde_json::Value => |value| Self::Text(value.to_string());
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The parameters of a statement: `values![id, name, now]`.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::store::Value::from($value)),*] };
}
pub(crate) use values;

/// One row of an answer; its columns are read in the order of the statement.
#[derive(Debug)]
pub struct Row {
    values: std::vec::IntoIter<Value>,
}

impl Row {
    pub(super) fn new(values: Vec<Value>) -> Self {
        Self { values: values.into_iter() }
    }

    /// What is left of it.
    pub(super) fn into_values(self) -> Vec<Value> {
        self.values.collect()
    }

    /// The next column.
    ///
    /// # Errors
    /// When it is of another kind, or there is none.
    pub fn take<T: FromValue>(&mut self) -> Result<T, StoreError> {
        let value = self.values.next();
        let value = value.ok_or_else(|| StoreError::Other("a row is too short".into()))?;
        T::from_value(value)
            .map_err(|value| StoreError::Other(format!("a column holds {value:?}, unexpectedly")))
    }
}

/// What a column can be read as.
pub trait FromValue: Sized {
    /// # Errors
    /// The value, when it is of another kind.
    fn from_value(value: Value) -> Result<Self, Value>;
}

macro_rules! from_value {
    ($($kind:ty: $($pattern:pat => $made:expr),+;)*) => {
        $(impl FromValue for $kind {
            fn from_value(value: Value) -> Result<Self, Value> {
                match value {
                    $($pattern => Ok($made),)+
                    #[allow(unreachable_patterns, reason = "some take everything")]
                    other => Err(other),
                }
            }
        })*
    };
}

from_value! {
    // SQLite has no booleans, times or identifiers of its own: its columns say numbers and bytes.
    bool: Value::Bool(value) => value, Value::Int(value @ 0..=1) => value == 1;
    i64: Value::Int(value) => value;
    String: Value::Text(value) => value;
    Vec<u8>: Value::Bytes(value) => value, Value::Null => Vec::new();
    Timestamp: Value::Time(value) => value, Value::Int(value) => Timestamp(value);
    Value: value => value;
}

impl FromValue for Uuid {
    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Uuid(id) => Ok(id),
            Value::Bytes(bytes) => Self::from_slice(&bytes).map_err(|_| Value::Bytes(bytes)),
            other => Err(other),
        }
    }
}

impl FromValue for u64 {
    fn from_value(value: Value) -> Result<Self, Value> {
        i64::from_value(value).map(|value| Self::try_from(value).unwrap_or(0))
    }
}

impl FromValue for u32 {
    fn from_value(value: Value) -> Result<Self, Value> {
        i64::from_value(value)
            .and_then(|value| Self::try_from(value).map_err(|_| Value::Int(value)))
    }
}

impl FromValue for u16 {
    fn from_value(value: Value) -> Result<Self, Value> {
        i64::from_value(value)
            .and_then(|value| Self::try_from(value).map_err(|_| Value::Int(value)))
    }
}

impl FromValue for serde_json::Value {
    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Text(text) => serde_json::from_str(&text).map_err(|_| Value::Text(text)),
            other => Err(other),
        }
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Null => Ok(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
