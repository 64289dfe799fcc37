//! A file of any of the formats as one tree, in which every value knows its line, and which knows
//! what of it was read.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
};

use anyhow::Context as _;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A value; whatever is no list and no table is a text.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing was written.
    Nothing,
    Text(String),
    List(Vec<Value>),
    Table(Vec<(String, Value)>),
}

/// Where a value is in its document.
type Path = Vec<Step>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    Key(String),
    Index(usize),
}

/// How lines are known.
enum Lines {
    /// Of every value, beforehand.
    Known(HashMap<Path, usize>),
    /// From the text, once one is asked for: the YAML reader tells places only of what it refuses.
    Yaml(String),
}

pub(super) struct Document {
    file: String,
    root: Value,
    lines: Lines,
    used: RefCell<HashSet<Path>>,
    notes: RefCell<BTreeSet<(usize, String)>>,
}

impl Document {
    fn new(file: &str, root: Value, lines: Lines) -> Self {
        let (used, notes) = Default::default();
        Self { file: file.to_owned(), root, lines, used, notes }
    }

    /// Of YAML, or JSON.
    pub(super) fn yaml(file: &str, text: &str) -> anyhow::Result<Self> {
        let mut value: yaml_serde::Value =
            yaml_serde::from_str(text).with_context(|| format!("{file} is no YAML"))?;
        value.apply_merge().with_context(|| format!("{file}: a merge key (<<)"))?;
        let root = of_yaml(value);
        let empty = matches!(root, Value::Nothing);
        anyhow::ensure!(empty || matches!(root, Value::Table(_)), "{file} holds no keys");
        Ok(Self::new(file, root, Lines::Yaml(text.to_owned())))
    }

    /// Of TOML.
    pub(super) fn toml(file: &str, text: &str) -> anyhow::Result<Self> {
        let table = DeTable::parse(text).with_context(|| format!("{file} is no TOML"))?;
        let mut lines = HashMap::new();
        let line = |offset: usize| text.get(..offset).map_or(1, |t| t.matches('\n').count() + 1);
        let mut path = Vec::new();
        let root = of_toml(&DeValue::Table(table.into_inner()), &mut path, &mut lines, &line);
        Ok(Self::new(file, root, Lines::Known(lines)))
    }

    /// Of INI as frp has it: sections, `key = value`, comments only on lines of their own.
    pub(super) fn ini(file: &str, text: &str) -> anyhow::Result<Self> {
        let mut sections: Vec<(String, Value)> = Vec::new();
        let mut lines = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let (number, line) = (number + 1, line.trim().trim_start_matches('\u{feff}'));
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                let name = name.trim().to_owned();
                lines.insert(vec![Step::Key(name.clone())], number);
                sections.push((name, Value::Table(Vec::new())));
                continue;
            }
            let (key, value) = line
                .split_once('=')
                .with_context(|| format!("{file}:{number}: no `key = value` and no [section]"))?;
            let (section, keys) = match sections.last_mut() {
                Some((section, Value::Table(keys))) => (section.clone(), keys),
                _ => anyhow::bail!("{file}:{number}: it stands before the first [section]"),
            };
            let (key, value) = (key.trim().to_owned(), unquoted(value.trim()).to_owned());
            lines.insert(vec![Step::Key(section), Step::Key(key.clone())], number);
            keys.push((key, Value::Text(value)));
        }
        Ok(Self::new(file, Value::Table(sections), Lines::Known(lines)))
    }

    pub(super) fn root(&self) -> Place<'_> {
        Place { document: self, value: &self.root, path: Vec::new() }
    }

    fn line(&self, path: &[Step]) -> usize {
        match &self.lines {
            Lines::Yaml(text) => yaml_line(text, path).unwrap_or(1),
            Lines::Known(lines) => {
                let around = (0..=path.len()).rev().find_map(|end| lines.get(&path[..end]));
                around.copied().unwrap_or(1)
            }
        }
    }

    pub(super) fn note_at(&self, line: usize, text: &str) {
        let note = format!("{}:{line}: {text}", self.file);
        self.notes.borrow_mut().insert((line, note));
    }

    /// Notes what nobody has asked for.
    pub(super) fn note_unused(&self) {
        self.root().note_unused();
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.notes.borrow().iter().map(|(_, note)| note.clone()).collect()
    }
}

fn unquoted(text: &str) -> &str {
    let inner = |quote| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inner('"').or_else(|| inner('`')).unwrap_or(text)
}

fn of_yaml(value: yaml_serde::Value) -> Value {
    use yaml_serde::Value as Yaml;
    match value {
        Yaml::Null => Value::Nothing,
        Yaml::Bool(it) => Value::Text(it.to_string()),
        Yaml::Number(it) => Value::Text(it.to_string()),
        Yaml::String(it) => Value::Text(it),
        Yaml::Sequence(list) => Value::List(list.into_iter().map(of_yaml).collect()),
        Yaml::Mapping(table) => {
            let key = |key| match of_yaml(key) {
                Value::Text(key) => key,
                _ => String::new(),
            };
            Value::Table(table.into_iter().map(|(k, v)| (key(k), of_yaml(v))).collect())
        }
        Yaml::Tagged(tagged) => of_yaml(tagged.value),
    }
}

fn of_toml(
    value: &DeValue<'_>,
    path: &mut Path,
    lines: &mut HashMap<Path, usize>,
    line: &dyn Fn(usize) -> usize,
) -> Value {
    match value {
        DeValue::String(it) => Value::Text(it.to_string()),
        DeValue::Integer(it) => Value::Text(it.to_string()),
        DeValue::Float(it) => Value::Text(it.to_string()),
        DeValue::Boolean(it) => Value::Text(it.to_string()),
        DeValue::Datetime(it) => Value::Text(it.to_string()),
        DeValue::Array(list) => {
            let item = |(index, item): (usize, &Spanned<DeValue<'_>>)| {
                path.push(Step::Index(index));
                lines.insert(path.clone(), line(item.span().start));
                let value = of_toml(item.get_ref(), path, lines, line);
                path.pop();
                value
            };
            Value::List(list.iter().enumerate().map(item).collect())
        }
        DeValue::Table(table) => {
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_by_key(|(key, _)| key.span().start);
            let entry = |(key, item): (&Spanned<toml::de::DeString<'_>>, &Spanned<DeValue<'_>>)| {
                path.push(Step::Key(key.get_ref().to_string()));
                lines.insert(path.clone(), line(key.span().start));
                let value = of_toml(item.get_ref(), path, lines, line);
                path.pop();
                (key.get_ref().to_string(), value)
            };
            Value::Table(entries.into_iter().map(entry).collect())
        }
    }
}

/// A value of a document.
#[derive(Clone)]
pub(super) struct Place<'d> {
    document: &'d Document,
    value: &'d Value,
    path: Path,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.path.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if number == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

impl<'d> Place<'d> {
    fn at(&self, step: Step, value: &'d Value) -> Self {
        let path = self.path.iter().cloned().chain([step]).collect();
        Place { document: self.document, value, path }
    }

    pub(super) fn line(&self) -> usize {
        self.document.line(&self.path)
    }

    /// What is at a key, or at keys with dots inside of each other, if something is.
    pub(super) fn get(&self, keys: &str) -> Option<Self> {
        keys.split('.').try_fold(self.clone(), |place, key| place.one(key))
    }

    /// What is at this very key.
    pub(super) fn one(&self, key: &str) -> Option<Self> {
        let Value::Table(entries) = self.value else { return None };
        let (_, value) = entries.iter().rev().find(|(known, _)| known == key)?;
        if matches!(value, Value::Nothing) {
            self.at(Step::Key(key.to_owned()), value).done();
            return None;
        }
        Some(self.at(Step::Key(key.to_owned()), value))
    }

    /// The text at a key, or a part of it, which is used up.
    pub(super) fn text(&self, keys: &str) -> Option<&'d str> {
        self.get(keys)?.read()
    }

    /// This text, which is used up.
    pub(super) fn read(&self) -> Option<&'d str> {
        let Value::Text(text) = self.value else { return None };
        self.done();
        Some(text)
    }

    /// The entries of a table.
    pub(super) fn entries(&self) -> Vec<(String, Self)> {
        let Value::Table(entries) = self.value else { return Vec::new() };
        let entry = |(key, value): &'d (String, Value)| {
            (key.clone(), self.at(Step::Key(key.clone()), value))
        };
        entries.iter().map(entry).collect()
    }

    /// The items of a list; of a single text, that.
    pub(super) fn items(&self) -> Vec<Self> {
        match self.value {
            Value::List(items) => {
                let item = |(index, value)| self.at(Step::Index(index), value);
                items.iter().enumerate().map(item).collect()
            }
            Value::Text(_) => vec![self.clone()],
            _ => Vec::new(),
        }
    }

    /// All texts of a list, which are used up.
    pub(super) fn texts(&self) -> Vec<&'d str> {
        self.items().iter().filter_map(Self::read).collect()
    }

    /// All of it was read.
    pub(super) fn done(&self) {
        self.document.used.borrow_mut().insert(self.path.clone());
    }

    /// It is not carried over, and why; all of it counts as read.
    pub(super) fn note(&self, why: &str) {
        self.done();
        self.document.note_at(self.line(), &format!("{self}: {why}"));
    }

    /// The same for each of some keys, if it is there.
    pub(super) fn note_each(&self, keys: &[(&str, &str)]) {
        for (key, why) in keys {
            if let Some(place) = self.get(key) {
                place.note(why);
            }
        }
    }

    fn is_used(&self) -> bool {
        self.document.used.borrow().contains(&self.path)
    }

    fn note_unused(&self) {
        if self.is_used() {
            return;
        }
        match self.value {
            Value::Nothing => {}
            Value::Text(_) => self.note("not known here, so it was left out"),
            Value::List(items) => {
                let all = items.iter().enumerate();
                all.for_each(|(i, value)| self.at(Step::Index(i), value).note_unused());
            }
            Value::Table(_) => self.entries().iter().for_each(|(_, place)| place.note_unused()),
        }
    }
}

/// The line of a value in YAML: it is read again up to there, and refused.
fn yaml_line(text: &str, path: &[Step]) -> Option<usize> {
    if path.is_empty() {
        return Some(1);
    }
    let document = yaml_serde::Deserializer::from_str(text).next()?;
    let error = Seek(path).deserialize(document).err()?;
    error.location().map(|location| location.line())
}

/// Refuses the value at a path, or its key.
struct Seek<'p>(&'p [Step]);

const HERE: &str = "here";

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HERE)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.0.split_first() else {
            return Err(de::Error::custom(HERE));
        };
        while let Some(found) = map.next_key_seed(SeekKey { wanted, last: rest.is_empty() })? {
            if found {
                map.next_value_seed(Seek(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.0.split_first() else {
            return Err(de::Error::custom(HERE));
        };
        for _ in 0..*wanted {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(Seek(rest)).map(drop)
    }
}

struct SeekKey<'p> {
    wanted: &'p str,
    /// Its key is what is sought.
    last: bool,
}

impl<'de> DeserializeSeed<'de> for SeekKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SeekKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.wanted, self.last) {
            (true, true) => Err(E::custom(HERE)),
            (found, _) => Ok(found),
        }
    }

    fn visit_u64<E: de::Error>(self, key: u64) -> Result<bool, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_i64<E: de::Error>(self, key: i64) -> Result<bool, E> {
        self.visit_str(&key.to_string())
    }

    fn visit_bool<E: de::Error>(self, key: bool) -> Result<bool, E> {
        self.visit_str(&key.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines() {
        let yaml = "a: 1\nb:\n  - x: 1\n    y: {z: 2,\n      w: 3}\n  -\n    x: 4\n";
        let toml = "a = 1\n\n[[b]]\nx = 1\ny.z = 2\ny.w = 3\n[[b]]\n\nx = 4\n";
        for (document, lines) in [
            (Document::yaml("f", yaml).unwrap(), [1, 4, 5, 7]),
            (Document::toml("f", toml).unwrap(), [1, 5, 6, 9]),
        ] {
            let root = document.root();
            let item = |index: usize| root.get("b").unwrap().items()[index].clone();
            let found = [
                root.get("a").unwrap().line(),
                item(0).get("y.z").unwrap().line(),
                item(0).get("y.w").unwrap().line(),
                item(1).get("x").unwrap().line(),
            ];
            assert_eq!(found, lines);
        }
        let ini = Document::ini("f", "; c\n[common]\na = \"1 # 2\"\n\n[x y]\nb=\n").unwrap();
        assert_eq!(ini.root().text("common.a"), Some("1 # 2"));
        assert_eq!(ini.root().one("x y").unwrap().get("b").unwrap().line(), 6);
    }

    #[test]
    fn what_was_not_read_is_noted() {
        let document = Document::yaml("f.yml", "a: 1\nb:\n  c: 2\n  d: [3]\ne:\n").unwrap();
        assert_eq!(document.root().text("b.c"), Some("2"));
        document.root().get("a").unwrap().note("no");
        document.note_unused();
        let left_out = "f.yml:4: b.d[0]: not known here, so it was left out";
        assert_eq!(document.notes(), ["f.yml:1: a: no", left_out]);
    }
}
