//! Logging, set up once for each process: to standard error, as text for people or JSON for
//! programs.

use std::fmt;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;
use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line an event. The default.
    #[default]
    Text,
    /// One JSON object a line: `timestamp`, `level`, `target`, and the fields of the event beside
    /// them, `message` among them.
    Json,
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(TelemetryError::Format(text.to_owned())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// What is logged: a level (`info`) or a list of directives (`info,uniroute_edge=debug`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLevel(String);

impl LogLevel {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogLevel {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        filter(text).map(|_| Self(text.to_owned()))
    }
}

/// A logging setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TelemetryError {
    /// Neither a level nor a list of directives.
    #[error(
        "log level {0:?} is not valid: use off, error, warn, info, debug or trace, \
         or directives such as \"info,uniroute_edge=debug\""
    )]
    Level(String),
    /// No such format.
    #[error("log format {0:?} is not valid: use text or json")]
    Format(String),
}

/// Sends the log of this process to standard error from now on.
///
/// `level` is a level (`info`) or a list of directives (`info,uniroute_edge=debug`). Text is
/// coloured when standard error is a terminal and `NO_COLOR` is unset or empty. Where logging is
/// set up already, that stays and this does nothing.
///
/// # Errors
/// When `level` cannot be read; nothing has changed then.
pub fn init(level: &str, format: LogFormat) -> Result<(), TelemetryError> {
    let colour = io::stderr().is_terminal() && no_color_is_unset();
    set(dispatch(filter(level)?, format, colour, io::stderr));
    Ok(())
}

/// The same to what `writer` gives, one JSON object a line, each in one write.
///
/// # Errors
/// As of [`init`].
pub fn init_json<W: io::Write>(
    level: &str,
    writer: impl Fn() -> W + Send + Sync + 'static,
) -> Result<(), TelemetryError> {
    set(dispatch(filter(level)?, LogFormat::Json, false, writer));
    Ok(())
}

/// It fails only where logging is set up already.
fn set(dispatch: Dispatch) {
    let _ = tracing::dispatcher::set_global_default(dispatch);
}

fn no_color_is_unset() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let invalid = || TelemetryError::Level(level.to_owned());
    let directives: Vec<_> = level.split(',').map(str::trim).collect();
    if !directives.iter().all(|directive| says_a_level(directive)) {
        return Err(invalid());
    }
    EnvFilter::try_new(directives.join(",")).map_err(|_| invalid())
}

/// A bare word must be a level: `EnvFilter` would take a mistyped one for the name of a module and
/// silence all others.
fn says_a_level(directive: &str) -> bool {
    let is_level = || directive.parse::<LevelFilter>().is_ok();
    !directive.is_empty() && (directive.contains(['=', '[', ']', '}']) || is_level())
}

fn dispatch<W>(filter: EnvFilter, format: LogFormat, colour: bool, writer: W) -> Dispatch
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A closed standard error must not end the process, so failures to write are not reported.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_writer(writer)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => Dispatch::new(builder.finish()),
        LogFormat::Json => Dispatch::new(builder.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What `emit` logs under these settings.
    fn log(level: &str, format: LogFormat, emit: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Buffer(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Buffer {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let dispatch = dispatch(filter(level).unwrap(), format, false, move || writer.clone());
        tracing::dispatcher::with_default(&dispatch, emit);
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn json_is_one_flat_object_a_line() {
        let line = log("info", LogFormat::Json, || {
            tracing::info!(http = "127.0.0.1:8080", admin = "127.0.0.1:9090", "listening");
            tracing::debug!("left out");
        });
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with('{') && line.ends_with("}\n"), "{line}");
        assert!(line.contains(r#""timestamp":"2"#) && line.contains(r#""level":"INFO""#), "{line}");
        let fields = r#""message":"listening","http":"127.0.0.1:8080","admin":"127.0.0.1:9090""#;
        assert!(line.contains(fields) && !line.contains(r#""fields""#), "{line}");
        assert!(line.contains(r#""target":"uniroute_shared::telemetry"#), "{line}");
    }

    #[test]
    fn text_is_plain_without_colour() {
        let line = log("info", LogFormat::Text, || tracing::info!(http = 8080, "listening"));
        assert!(line.contains("INFO") && line.contains("listening http=8080"), "{line}");
        assert!(!line.contains('\x1b'), "{line}");
    }

    #[test]
    fn directives_choose_modules() {
        let emit = || {
            tracing::debug!(target: "uniroute_edge", "wanted");
            tracing::debug!(target: "hyper", "unwanted");
        };
        let text = log("info,uniroute_edge=debug", LogFormat::Text, emit);
        assert!(text.contains(" wanted") && !text.contains("unwanted"), "{text}");
    }

    #[test]
    fn a_level_that_means_nothing_is_refused() {
        for level in ["", " ", "inof", "info,", "uniroute_edge", "uniroute_edge=loud"] {
            let error = filter(level).unwrap_err();
            assert_eq!(error, TelemetryError::Level(level.into()));
        }
        let hint = filter("inof").unwrap_err().to_string();
        assert!(hint.starts_with("log level \"inof\" is not valid: use off, error,"), "{hint}");
        for level in ["off", "INFO", "warn, uniroute_edge=debug", "[request{id=7}]=trace"] {
            assert!(filter(level).is_ok(), "{level}");
        }
    }

    #[test]
    fn formats_read_and_print_the_same() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("yaml".parse::<LogFormat>().is_err());
    }

    #[test]
    fn a_second_init_is_harmless() {
        assert_eq!(init("warn", LogFormat::Text), Ok(()));
        assert_eq!(init("warn", LogFormat::Json), Ok(()));
        assert!(init("inof", LogFormat::Json).is_err());
    }
}
