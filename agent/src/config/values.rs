//! Kinds of values in the config file and on the command line, each with one way to be written in
//! both.

use std::{
    fmt::{self, Display},
    marker::PhantomData,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};

use crate::config;

/// Longest time that can be written.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A length of time: a number of seconds, or a text with its unit (`500ms`, `10s`, `5m`, `1h`). A day
/// at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) struct Span(pub(crate) Duration);

/// What was written is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no length of time: write seconds, or 500ms, 10s, 5m, 1h; from 0 to 24h")]
pub(crate) struct SpanError(String);

impl Span {
    pub(crate) const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    fn of_seconds(seconds: f64, text: impl Display) -> Result<Self, SpanError> {
        let length = Duration::try_from_secs_f64(seconds).ok().filter(|length| *length <= LONGEST);
        length.map(Self).ok_or_else(|| SpanError(text.to_string()))
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[number.len()..] {
            "" | "s" => 1.0,
            "ms" => 0.001,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(SpanError(text.to_owned())),
        };
        let number: f64 = number.trim().parse().map_err(|_| SpanError(text.to_owned()))?;
        Self::of_seconds(number * unit, text)
    }
}

/// A length of time as it is written in the file; as a text it may be what `T` knows beside.
struct WrittenSpan<T>(PhantomData<T>);

impl<T: FromStr + From<Span>> Visitor<'_> for WrittenSpan<T>
where
    T::Err: Display,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("seconds, or a text such as \"500ms\", \"10s\", \"5m\" or \"1h\"")
    }

    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<T, E> {
        #[expect(clippy::cast_precision_loss, reason = "a day has fewer seconds than f64")]
        Span::of_seconds(seconds as f64, seconds).map(T::from).map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<T, E> {
        Span::of_seconds(seconds, seconds).map(T::from).map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WrittenSpan(PhantomData))
    }
}

/// The same, or `off`, which is no time at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanOrOff(pub(crate) Duration);

impl From<Span> for SpanOrOff {
    fn from(Span(length): Span) -> Self {
        Self(length)
    }
}

impl FromStr for SpanOrOff {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        if text == "off" { Ok(Self(Duration::ZERO)) } else { text.parse().map(Span::into) }
    }
}

impl<'de> Deserialize<'de> for SpanOrOff {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WrittenSpan(PhantomData))
    }
}

impl JsonSchema for SpanOrOff {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TimeOrOff".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Seconds, a text with a unit (500ms, 10s, 5m, 1h), or off.",
            "anyOf": [
                { "type": "number", "minimum": 0, "maximum": 86400 },
                { "type": "string", "pattern": "^([0-9]+([.][0-9]+)?(ms|s|m|h)?|off)$" },
            ],
        })
    }
}

impl JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Seconds, or a text with a unit: 500ms, 10s, 5m, 1h.",
            "anyOf": [
                { "type": "number", "minimum": 0, "maximum": 86400 },
                { "type": "string", "pattern": "^[0-9]+([.][0-9]+)?(ms|s|m|h)?$" },
            ],
        })
    }
}

/// A number of bytes, or a text with its unit (`10MB`, `1GiB`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

/// What was written is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no size: write bytes, or 64KiB, 10MB, 1GiB")]
pub(crate) struct SizeError(String);

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let wrong = || SizeError(text.to_owned());
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match text[number.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" => 1_000,
            "m" | "mb" => 1_000_000,
            "g" | "gb" => 1_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            _ => return Err(wrong()),
        };
        let number: u64 = number.trim().parse().map_err(|_| wrong())?;
        number.checked_mul(unit).map(Self).ok_or_else(wrong)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes, or a text such as \"64KiB\", \"10MB\" or \"1GiB\"")
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom(SizeError(bytes.to_string())))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Written)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bytes, or a text with a unit: 64KiB, 10MB, 1GiB.",
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+([kKmMgG]?[bB]?|[kKmMgG]i[bB])$" },
            ],
        })
    }
}

/// One value, or a list of them.
pub(super) fn one_or_many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + FromStr,
    T::Err: Display,
{
    struct Either<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de> + FromStr> Visitor<'de> for Either<T>
    where
        T::Err: Display,
    {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of texts")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            text.parse().map(|one| vec![one]).map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Either(PhantomData))
}

/// A value that is written as a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written<T>(pub(crate) T);

impl<T: FromStr> FromStr for Written<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.parse().map(Self)
    }
}

impl<'de, T: FromStr> Deserialize<'de> for Written<T>
where
    T::Err: Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text<T>(PhantomData<T>);
        impl<T: FromStr> Visitor<'_> for Text<T>
        where
            T::Err: Display,
        {
            type Value = Written<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Written<T>, E> {
                text.parse().map(Written).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text(PhantomData))
    }
}

impl<T> JsonSchema for Written<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// What is said higher up goes over what is said below it: flag and environment over the file.
pub(crate) trait Over {
    /// This, and from `below` what is not said here.
    fn over(self, below: Self) -> Self;
}

impl<T> Over for Option<T> {
    fn over(self, below: Self) -> Self {
        self.or(below)
    }
}

impl<T> Over for Vec<T> {
    fn over(self, below: Self) -> Self {
        if self.is_empty() { below } else { self }
    }
}

/// [`Over`] for a struct, field by field; one that is left out does not compile.
macro_rules! over {
    ($name:ty { $($field:ident),* $(,)? }) => {
        impl $crate::config::values::Over for $name {
            fn over(self, below: Self) -> Self {
                Self { $($field: $crate::config::values::Over::over(self.$field, below.$field)),* }
            }
        }
    };
}
pub(super) use over;

/// Where a path of a file in `folder` leads: from that folder, if it is not absolute; `~/` is this
/// user's home.
pub(crate) fn from_folder(path: &Path, folder: &Path) -> PathBuf {
    if path == Path::new("-") {
        return path.to_owned();
    }
    match (path.strip_prefix("~"), config::home()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => folder.join(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, milliseconds) in [
            ("0", 0),
            ("1.5", 1_500),
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("24h", 86_400_000),
        ] {
            let Span(length) = text.parse().unwrap();
            assert_eq!(length.as_millis(), milliseconds, "{text}");
        }
        for text in ["", "s", "-1", "1d", "25h", "nan", "inf", "1 s s", "1e99"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("0", 0), ("1024", 1024), ("10MB", 10_000_000), ("1GiB", 1 << 30), ("64 kib", 65_536)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in
            ["", "MB", "-1", "1.5MB", "1TB", "99999999999999999999", "18446744073709551615GB"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn paths_begin_at_the_file() {
        let from = |path: &str| from_folder(Path::new(path), Path::new("/etc/uniroute"));
        assert_eq!(from("token"), Path::new("/etc/uniroute/token"));
        assert_eq!(from("/token"), Path::new("/token"));
        assert_eq!(from("-"), Path::new("-"));
        if let Some(home) = std::env::var_os("HOME") {
            assert_eq!(from("~/token"), Path::new(&home).join("token"));
        }
    }
}
