//! Strict TOML files: every fault at once, each with its place and a hint.
//!
//! This module owns reading and reporting; which keys exist is up to the type that is read. That
//! type denies unknown fields and does not use `toml::Spanned`, whose spans would be wrong here.
//!
//! Serde stops at the first fault, so a faulty entry is taken out of the parsed file and the rest
//! is tried again. To know which entry a fault means, each is given its number in place of its
//! span.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::mem;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, Deserializer};

/// The only version of the file format, the value of the key `version`.
const VERSION: i64 = 1;

/// Faults listed for one file; who has more fixes these first.
const MAX_FAULTS: usize = 50;

/// Reads a configuration file; see [`parse`] for what is checked.
///
/// # Errors
/// When the file cannot be read as UTF-8 text, or for every fault in it.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { file: path.to_owned(), source })?;
    parse(&text, &path.display().to_string())
}

/// Reads configuration text, with `file_name` only for its errors.
///
/// The top-level key `version` must be there and be 1; `T` may have a field for it or not. `T` and
/// the structs in it must carry `#[serde(deny_unknown_fields)]` for unknown keys to be faults.
///
/// # Errors
/// Every fault, at most 50, in the order of the file. Of several keys missing from one table, the
/// first is told. A syntax error or an unknown version hides the faults behind it.
pub fn parse<T: DeserializeOwned>(text: &str, file_name: &str) -> Result<T, ConfigError> {
    let (root, syntax) = DeTable::parse_recoverable(text);
    if syntax.is_empty() {
        Checker::new(text, file_name, root).check()
    } else {
        Err(ConfigError::Invalid(syntax_faults(&syntax, text, file_name)))
    }
}

/// A fault that the program found by itself, once the file could be read: at the key `path`, or at
/// the nearest table around it that is in the text.
#[must_use]
pub fn fault_at(text: &str, file_name: &str, path: &str, what: &str) -> Fault {
    let (root, _) = DeTable::parse_recoverable(text);
    let entries = Checker::new(text, file_name, root).entries;
    let mut around = path;
    let start = loop {
        let found = entries.iter().find(|entry| entry.path.to_string() == around);
        if found.is_some() || around.is_empty() {
            break found.map_or(0, |entry| entry.value_start);
        }
        around = around.rfind(['.', '[']).map_or("", |end| &around[..end]);
    };
    Fault::new(file_name, text, start, path.to_owned(), &format!("{path}: {what}"))
}

/// One fault for each broken line: what the parser finds in the rest of it follows from the first.
fn syntax_faults(errors: &[toml::de::Error], text: &str, file_name: &str) -> Vec<Fault> {
    let fault = |error: &toml::de::Error| {
        let start = error.span().map_or(text.len(), |span| span.start);
        Fault::new(file_name, text, start, String::new(), error.message())
    };
    let mut faults: Vec<_> = errors.iter().take(MAX_FAULTS).map(fault).collect();
    faults.dedup_by_key(|fault| fault.line);
    faults
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is missing or cannot be read.
    #[error("cannot read the config file {}: {source}", file.display())]
    Read {
        /// The path as it was given.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What is in the file is wrong; printed as one fault a line.
    #[error("{}", lines(.0))]
    Invalid(Vec<Fault>),
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}

/// One thing wrong in a configuration file. Printed as `file:line:column: what; hints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, as in `tunnels.web.port` or `edges[0].url`; empty for a fault of syntax.
    pub path: String,
    /// The name of the file as it was given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong. No value of a key that looks like a secret is in it.
    pub what: String,
    /// For an unknown key, the valid one that was likely meant.
    pub nearest: Option<String>,
    /// For an unknown key, all that are valid in its place.
    pub valid: Vec<String>,
}

impl Fault {
    fn new(file: &str, text: &str, offset: usize, path: String, what: &str) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let start_of_line = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            path,
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[start_of_line..].chars().count() + 1,
            what: what.replace(char::is_control, " "),
            nearest: None,
            valid: Vec::new(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, what, .. } = self;
        write!(f, "{file}:{line}:{column}: {what}")?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; did you mean \"{nearest}\"?")?;
        }
        if !self.valid.is_empty() {
            write!(f, " (valid: {})", self.valid.join(", "))?;
        }
        Ok(())
    }
}

/// The work on one file: what is left to try, and what was found.
struct Checker<'t> {
    text: &'t str,
    file: &'t str,
    /// What is left of the file; the spans in it are made by [`key_span`] and [`value_span`].
    root: Spanned<DeTable<'t>>,
    /// Every entry of the whole file by its number; the root is number 0.
    entries: Vec<Entry>,
    faults: Vec<Fault>,
    /// Keys whose absence needs no fault: they were taken out, or are there but mistyped.
    explained: HashSet<KeyPath>,
}

impl<'t> Checker<'t> {
    fn new(text: &'t str, file: &'t str, root: Spanned<DeTable<'t>>) -> Self {
        let top = KeyPath::default();
        let mut entries = vec![Entry { path: top.clone(), key_start: 0, value_start: 0 }];
        let root = number_table(root.into_inner(), &top, &mut entries);
        let root = Spanned::new(value_span(0), root);
        Self { text, file, root, entries, faults: Vec::new(), explained: HashSet::new() }
    }

    fn check<T: DeserializeOwned>(mut self) -> Result<T, ConfigError> {
        if self.version_is_known() {
            // Each round takes out one entry or more.
            for _ in 0..self.entries.len() {
                match T::deserialize(Deserializer::from(self.root.clone())) {
                    Ok(config) if self.faults.is_empty() => return Ok(config),
                    Ok(_) => break,
                    Err(error) => {
                        let span = error.span().unwrap_or(value_span(0));
                        if !self.take_out(&span, error.message()) {
                            break;
                        }
                    }
                }
            }
        }
        self.faults.sort_by_key(|fault| (fault.path != "version", fault.line, fault.column));
        Err(ConfigError::Invalid(self.faults))
    }

    /// Whether the rest of the file means what this program thinks.
    fn version_is_known(&mut self) -> bool {
        let (known, what) = match self.root.get_ref().get("version").map(Spanned::get_ref) {
            Some(DeValue::Integer(number)) => {
                if i64::from_str_radix(number.as_str(), number.radix()) == Ok(VERSION) {
                    return true;
                }
                (false, format!("version {number} is not known here, only version {VERSION} is"))
            }
            Some(_) => (true, format!("version must be the number {VERSION}")),
            None => (true, format!("missing key \"version\": write `version = {VERSION}` on top")),
        };
        let path = KeyPath::default().key("version");
        let start = self.number_of(&path).map_or(0, |number| self.entries[number].value_start);
        self.report(&path, start, &what);
        known
    }

    /// Notes the fault of one entry and takes the entry out. False when nothing is left to try.
    fn take_out(&mut self, span: &Range<usize>, message: &str) -> bool {
        let mut number = span.start;
        if let Some(key) = self.unknown_key(span, message) {
            number = key;
            self.note_unknown(key, message);
        } else if let Some(name) = quoted(message, "missing field `") {
            self.note_missing(number, name);
        } else {
            self.note_invalid(number, message);
        }
        self.explained.insert(self.entries[number].path.clone());
        remove(self.root.get_mut(), number);
        number != 0 && self.faults.len() < MAX_FAULTS
    }

    /// The entry that an "unknown field" is about. Types that serde buffers blame the whole table.
    fn unknown_key(&self, span: &Range<usize>, message: &str) -> Option<usize> {
        let name = quoted(message, UNKNOWN_FIELD)?;
        if *span == key_span(span.start) {
            return Some(span.start);
        }
        self.number_of(&self.entries[span.start].path.key(name))
    }

    fn note_unknown(&mut self, number: usize, message: &str) {
        let Entry { path, key_start, .. } = self.entries[number].clone();
        if path == KeyPath::default().key("version") {
            return; // `T` need not have it.
        }
        let (parent, name) = path.split_last();
        let expected = message.get(UNKNOWN_FIELD.len() + name.len() + 1..).unwrap_or_default();
        let mut valid: Vec<String> =
            expected.split('`').skip(1).step_by(2).map(Into::into).collect();
        if parent.0.is_empty() && !valid.iter().any(|key| key == "version") {
            valid.push("version".to_owned());
        }
        let nearest = nearest(&name, &valid);
        self.explained.extend(nearest.iter().map(|key| parent.key(key)));
        let what = format!("unknown key \"{name}\" {}", parent.place());
        let fault = self.report(&path, key_start, &what);
        fault.nearest = nearest;
        fault.valid = valid;
    }

    fn note_missing(&mut self, number: usize, name: &str) {
        let Entry { path: parent, value_start, .. } = self.entries[number].clone();
        let path = parent.key(name);
        let version_was_judged = parent.0.is_empty() && name == "version";
        if !version_was_judged && !self.explained.contains(&path) {
            let what = format!("missing key \"{name}\" {}", parent.place());
            self.report(&path, value_start, &what);
        }
    }

    fn note_invalid(&mut self, number: usize, message: &str) {
        let Entry { path, value_start, .. } = self.entries[number].clone();
        // A table that had an entry taken out may fail for want of it.
        let follows = self.explained.iter().any(|inner| inner.is_under(&path));
        let told = self.faults.iter().any(|fault| fault.path == path.to_string());
        if told || (follows && !self.faults.is_empty()) {
            return;
        }
        let problem =
            if self.holds_secret(&path) { without_value(message) } else { message.to_owned() };
        let what = if path.0.is_empty() { problem } else { format!("{path}: {problem}") };
        self.report(&path, value_start, &what);
    }

    fn report(&mut self, path: &KeyPath, start: usize, what: &str) -> &mut Fault {
        let fault = Fault::new(self.file, self.text, start, path.to_string(), what);
        self.faults.push(fault);
        self.faults.last_mut().expect("one was pushed")
    }

    fn number_of(&self, path: &KeyPath) -> Option<usize> {
        self.entries.iter().position(|entry| entry.path == *path)
    }

    /// Whether a secret may stand in the value at `path` or inside it.
    fn holds_secret(&self, path: &KeyPath) -> bool {
        let inside = |entry: &&Entry| entry.path == *path || entry.path.is_under(path);
        self.entries.iter().filter(inside).any(|entry| entry.path.is_secret())
    }
}

/// How serde begins its word for a key that a struct does not have.
const UNKNOWN_FIELD: &str = "unknown field `";

/// What stands between `prefix`, which ends in a backtick, and the next backtick.
fn quoted<'m>(message: &'m str, prefix: &str) -> Option<&'m str> {
    message.strip_prefix(prefix)?.split_once('`').map(|(name, _)| name)
}

/// Serde's words about a value, short of the value: only what it says it expected at the very end.
fn without_value(message: &str) -> String {
    let expected = message
        .starts_with("invalid type: ")
        .then(|| message.rsplit_once(", expected "))
        .flatten()
        .map_or(String::new(), |(_, expected)| format!(", expected {expected}"));
    format!("invalid value (not shown, as it may be a secret){expected}")
}

/// The valid key that `name` was likely meant to be: a third of its letters wrong, at most.
fn nearest(name: &str, valid: &[String]) -> Option<String> {
    let distance = |key: &String| strsim::damerau_levenshtein(&name.to_lowercase(), key);
    let best = valid.iter().min_by_key(|key| distance(key))?;
    (distance(best) <= name.chars().count().max(3) / 3).then(|| best.clone())
}

/// One key with its value, or one element of an array, where it stands in the text.
#[derive(Debug, Clone)]
struct Entry {
    path: KeyPath,
    key_start: usize,
    value_start: usize,
}

/// What stands in for the span of the key of entry `number`.
fn key_span(number: usize) -> Range<usize> {
    number..number
}

/// What stands in for the span of the value of entry `number`.
fn value_span(number: usize) -> Range<usize> {
    number..number + 1
}

fn number_table<'t>(table: DeTable<'t>, parent: &KeyPath, entries: &mut Vec<Entry>) -> DeTable<'t> {
    let mut number_entry = |(key, value): (Spanned<DeString<'t>>, Spanned<DeValue<'t>>)| {
        let path = parent.key(key.get_ref());
        let numbered = Spanned::new(key_span(entries.len()), key.get_ref().clone());
        (numbered, number_value(value, &path, key.span().start, entries))
    };
    table.into_iter().map(&mut number_entry).collect()
}

fn number_value<'t>(
    value: Spanned<DeValue<'t>>,
    path: &KeyPath,
    key_start: usize,
    entries: &mut Vec<Entry>,
) -> Spanned<DeValue<'t>> {
    let number = entries.len();
    entries.push(Entry { path: path.clone(), key_start, value_start: value.span().start });
    let numbered = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(number_table(table, path, entries)),
        DeValue::Array(array) => {
            let mut number_item = |(index, item): (usize, Spanned<DeValue<'t>>)| {
                let start = item.span().start;
                number_value(item, &path.index(index), start, entries)
            };
            DeValue::Array(array.into_iter().enumerate().map(&mut number_item).collect())
        }
        scalar => scalar,
    };
    Spanned::new(value_span(number), numbered)
}

/// Takes the entry `number` out of `table`, however deep it is.
fn remove(table: &mut DeTable<'_>, number: usize) {
    let entries = mem::take(table).into_iter();
    let kept = entries.filter(|(key, _)| key.span().start != number).map(|(key, mut value)| {
        remove_inside(value.get_mut(), number);
        (key, value)
    });
    *table = kept.collect();
}

fn remove_inside(value: &mut DeValue<'_>, number: usize) {
    match value {
        DeValue::Table(table) => remove(table, number),
        DeValue::Array(array) => {
            array.iter_mut().for_each(|item| remove_inside(item.get_mut(), number));
            let kept = array.iter().filter(|item| item.span().start != number).cloned();
            *array = kept.collect();
        }
        _ => {}
    }
}

/// Where an entry is in the tree of the file; empty for the file itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct KeyPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Key(String),
    Index(usize),
}

impl KeyPath {
    fn key(&self, name: &str) -> Self {
        self.then(Step::Key(name.to_owned()))
    }

    fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    fn then(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }

    /// The path of what holds this, and the name in it.
    fn split_last(&self) -> (Self, String) {
        match self.0.split_last() {
            Some((Step::Key(name), parent)) => (Self(parent.to_vec()), name.clone()),
            Some((Step::Index(index), parent)) => (Self(parent.to_vec()), index.to_string()),
            None => (Self::default(), String::new()),
        }
    }

    fn is_under(&self, ancestor: &Self) -> bool {
        self.0.len() > ancestor.0.len() && self.0.starts_with(&ancestor.0)
    }

    fn is_secret(&self) -> bool {
        self.0.iter().any(|step| match step {
            Step::Key(name) => {
                let name = name.to_lowercase();
                ["token", "secret", "password", "basic_auth"].iter().any(|word| name.contains(word))
            }
            Step::Index(_) => false,
        })
    }

    fn place(&self) -> String {
        if self.0.is_empty() { "at the top level".to_owned() } else { format!("in [{self}]") }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(name) => {
                    let dot = if position == 0 { "" } else { "." };
                    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                    if !name.is_empty() && name.chars().all(bare) {
                        write!(f, "{dot}{name}")?;
                    } else {
                        write!(f, "{dot}{name:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        domain: String,
        port: u16,
        ports: Vec<u16>,
        auth: Auth,
        edges: Vec<Edge>,
        tunnels: BTreeMap<String, Tunnel>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Auth {
        token: Option<u64>,
        admin_passwords: Vec<u64>,
        mode: Option<Mode>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Open,
        Closed,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "read for its faults")]
    struct Edge {
        url: String,
        weight: Option<u8>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Tunnel {
        upstream: String,
        #[serde(default)]
        host: Option<String>,
    }

    fn read(text: &str) -> Result<Config, ConfigError> {
        parse(text, "u.toml")
    }

    fn faults(text: &str) -> Vec<Fault> {
        match read(text).unwrap_err() {
            ConfigError::Invalid(faults) => faults,
            ConfigError::Read { .. } => unreachable!("nothing was read"),
        }
    }

    fn report(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn a_good_file_becomes_a_value() {
        let text = "version = 1\nport = 80\n[tunnels.web]\nupstream = \"x\"\nhost = \"h\"\n";
        let config = read(text).unwrap();
        assert_eq!((config.port, &*config.tunnels["web"].upstream), (80, "x"));
        assert_eq!(config.tunnels["web"].host.as_deref(), Some("h"));
        let config = read("version = 1\nauth.mode = \"closed\"").unwrap();
        assert!(matches!(config.auth.mode, Some(Mode::Closed)));
    }

    #[test]
    fn the_type_may_have_the_version_too() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Own {
            version: u8,
            #[expect(dead_code, reason = "missing on purpose")]
            name: String,
        }
        let own: Own = parse("version = 1\nname = \"x\"", "u.toml").unwrap();
        assert_eq!(own.version, 1);
        let error = parse::<Own>("version = 2\nname = 1", "u.toml").unwrap_err();
        assert_eq!(
            error.to_string(),
            "u.toml:1:11: version 2 is not known here, only version 1 is"
        );
        let error = parse::<Own>("version = \"1\"\nname = 1", "u.toml").unwrap_err();
        let name = "u.toml:2:8: name: invalid type: integer `1`, expected a string";
        assert_eq!(error.to_string(), format!("u.toml:1:11: version must be the number 1\n{name}"));
        let error = parse::<Own>("", "u.toml").unwrap_err().to_string();
        assert!(
            error.starts_with("u.toml:1:1: missing key \"version\": write `version = 1`"),
            "{error}"
        );
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let text = "version = 1\n\n[tunnels.web]\nhost = \"h\"\n\n\nupstrem = \"x\"\n";
        let line =
            "u.toml:7:1: unknown key \"upstrem\" in [tunnels.web]; did you mean \"upstream\"?";
        assert_eq!(report(text), format!("{line} (valid: upstream, host)"));
        let fault = &faults(text)[0];
        assert_eq!((&*fault.path, &*fault.file), ("tunnels.web.upstrem", "u.toml"));
        assert_eq!(fault.nearest.as_deref(), Some("upstream"));
    }

    #[test]
    fn an_unknown_key_far_from_all_only_lists_them() {
        let line = "u.toml:2:1: unknown key \"colour\" at the top level";
        let valid = " (valid: domain, port, ports, auth, edges, tunnels, version)";
        assert_eq!(report("version = 1\ncolour = 1"), format!("{line}{valid}"));
    }

    #[test]
    fn all_faults_are_told_in_the_order_of_the_file() {
        let text = r#"
port = "http"
ports = [1, "two", 3, "four"]
tunels = 1
domain = 5

[[edges]]
url = "a"
wieght = 1

[[edges]]
weight = 300

[[edges]]
weight = 3

[tunnels.web]
upstream = 3000
hots = "h"

[tunnels."a.b"]
host = ["x"]
upstream = "x"
"#;
        let found: Vec<_> = faults(text).into_iter().map(|f| (f.path, f.line, f.column)).collect();
        let expected = [
            ("version", 1, 1),
            ("port", 2, 8),
            ("ports[1]", 3, 13),
            ("ports[3]", 3, 23),
            ("tunels", 4, 1),
            ("domain", 5, 10),
            ("edges[0].wieght", 9, 1),
            ("edges[1].url", 11, 1),
            ("edges[1].weight", 12, 10),
            ("edges[2].url", 14, 1),
            ("tunnels.web.upstream", 18, 12),
            ("tunnels.web.hots", 19, 1),
            ("tunnels.\"a.b\".host", 22, 8),
        ];
        let found: Vec<_> = found.iter().map(|(path, l, c)| (&**path, *l, *c)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_wrong_value_is_shown_with_what_is_expected() {
        assert_eq!(
            report("version = 1\nport = \"http\""),
            "u.toml:2:8: port: invalid type: string \"http\", expected u16"
        );
        let mode = "unknown variant `opn`, expected `open` or `closed`";
        let text = "version = 1\nauth = { mode = \"opn\" }";
        assert_eq!(report(text), format!("u.toml:2:17: auth.mode: {mode}"));
    }

    #[test]
    fn a_missing_key_is_told_where_its_table_begins() {
        let text = "version = 1\n[tunnels.web]\n[tunnels.api]\nupstream = \"x\"";
        assert_eq!(report(text), "u.toml:2:1: missing key \"upstream\" in [tunnels.web]");
    }

    #[test]
    fn a_key_that_was_wrong_is_not_told_as_missing() {
        let text = "version = 1\n[tunnels.web]\nupstream = 1";
        assert_eq!(faults(text).len(), 1);
        let text = "version = 1\n[tunnels.web]\nUpstream = \"x\"";
        assert_eq!(faults(text).len(), 1, "{}", report(text));
    }

    #[test]
    fn tagged_types_are_told_key_by_key() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "read for its faults")]
        struct Outer {
            kind: Kind,
        }
        #[derive(Debug, Deserialize)]
        #[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
        #[expect(dead_code, reason = "read for its faults")]
        enum Kind {
            File { path: String, token: u8 },
        }
        let read = |text| parse::<Outer>(text, "u.toml").unwrap_err().to_string();
        let text = "version = 1\n[kind]\ntype = \"file\"\npaht = \"x\"\ntoken = 1\n";
        let line = "u.toml:4:1: unknown key \"paht\" in [kind]; did you mean \"path\"?";
        assert_eq!(read(text), format!("{line} (valid: path, token)"));
        let text = "version = 1\n[kind]\ntype = \"file\"\npath = \"x\"\ntoken = \"hunter2\"\n";
        let error = read(text);
        assert!(error.contains("expected u8") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        let text = r#"
version = 1
[auth]
token = "hunter2, expected x"
admin_passwords = ["hunter2"]
mode = "hunter3"
"#;
        let report = report(text);
        assert!(!report.contains("hunter2") && report.contains("hunter3"), "{report}");
        let line = "u.toml:4:9: auth.token: invalid value (not shown, as it may be a secret)";
        assert!(report.contains(&format!("{line}, expected u64\n")), "{report}");
        let syntax = self::report("version = 1\ntoken = \"hunter2\nother = 1");
        assert!(!syntax.contains("hunter2"), "{syntax}");
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        assert_eq!(report("version = 1\nport = = 1"), "u.toml:2:8: extra `=`, expected nothing");
        let twice = faults("version = 1\nport = 1\nport = 2");
        assert_eq!((twice[0].line, twice[0].column, &*twice[0].what), (3, 1, "duplicate key"));
    }

    #[test]
    fn columns_count_characters() {
        let text = "version = 1\r\nauth = { \"ä\" = 1 , x = 1 }";
        let places: Vec<_> = faults(text).iter().map(|f| (f.line, f.column)).collect();
        assert_eq!(places, [(2, 10), (2, 20)]);
    }

    #[test]
    fn faults_are_bounded() {
        let keys: String = (0..80).map(|n| format!("key{n:02} = 1\n")).collect();
        assert_eq!(faults(&format!("version = 1\n{keys}")).len(), MAX_FAULTS);
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uniroute.toml");
        let error = load::<Config>(&path).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read the config file ") && error.contains("uniroute.toml: ")
        );
        fs::write(&path, "version = 1\nport = 8080").unwrap();
        assert_eq!(load::<Config>(&path).unwrap().port, 8080);
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(load::<Config>(&path).unwrap_err().to_string().contains("UTF-8"));
    }
}
