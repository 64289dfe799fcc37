//! Tunnels while they come to be, and the file that is made of them.

use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value, value};
use uniroute_shared::policy::password;

use super::{
    super::{File, SettingsError},
    document::{Document, Place},
};

/// Faults of one tunnel that are taken out of it, one after another.
const MAX_FAULTS: usize = 20;

/// Keys that stand first in a tunnel.
const FIRST: [&str; 4] = ["kind", "upstream", "name", "port"];

/// What becomes `[agent]`, and the tunnels.
#[derive(Default)]
pub(super) struct Drafts {
    pub(super) agent: Table,
    pub(super) tunnels: Vec<Draft>,
}

/// One tunnel.
pub(super) struct Draft {
    key: String,
    /// Where it comes from.
    from: String,
    line: usize,
    table: Table,
    routes: ArrayOfTables,
}

impl Drafts {
    /// A key that no other tunnel has, like `wish`.
    pub(super) fn key(&self, wish: &str) -> String {
        let bare = |c: char| match c.is_ascii_alphanumeric() || c == '_' || c == '-' {
            true => c,
            false => '-',
        };
        let wish: String = wish.chars().map(bare).collect();
        let wish = wish.trim_matches('-');
        let wish = if wish.is_empty() { "tunnel" } else { wish };
        let taken = |key: &str| self.tunnels.iter().any(|tunnel| tunnel.key == key);
        let numbered = (2..).map(|number| format!("{wish}-{number}"));
        let mut keys = std::iter::once(wish.to_owned()).chain(numbered);
        keys.find(|key| !taken(key)).unwrap_or_default()
    }

    pub(super) fn draft(&self, wish: &str, place: &Place<'_>) -> Draft {
        Draft {
            key: self.key(wish),
            from: place.to_string(),
            line: place.line(),
            table: Table::new(),
            routes: ArrayOfTables::new(),
        }
    }

    /// Says something of the agent, in one of its sections if `section` names one.
    pub(super) fn agent(&mut self, section: &str, key: &str, text: impl Into<Value>) {
        let table = match section {
            "" => Some(&mut self.agent),
            section => {
                let table = self.agent.entry(section).or_insert_with(toml_edit::table);
                table.as_table_mut()
            }
        };
        if let Some(table) = table {
            table.insert(key, value(text));
        }
    }

    /// Takes out of each tunnel what could not be: a result always passes its own check.
    pub(super) fn check(&mut self, document: &Document) {
        self.agent.sort_values();
        self.tunnels.retain_mut(|draft| draft.check(document));
        while let Some((key, what)) = first_fault(&self.agent_document().to_string()) {
            document.note_at(1, &format!("{key}: {what}; it was left out"));
            let mut table = &mut self.agent;
            let mut keys: Vec<_> = key.split('.').skip(1).collect();
            let last = keys.pop().unwrap_or_default();
            for key in keys {
                match table.get_mut(key).and_then(Item::as_table_mut) {
                    Some(inner) => table = inner,
                    None => return self.agent.clear(),
                }
            }
            if table.remove(last).is_none() {
                return self.agent.clear();
            }
        }
    }

    fn agent_document(&self) -> DocumentMut {
        let mut document = DocumentMut::new();
        document.insert("version", value(1));
        if !self.agent.is_empty() {
            let mut agent = self.agent.clone();
            agent.set_implicit(true);
            document.insert("agent", Item::Table(agent));
        }
        document
    }

    pub(super) fn text(&self, name: &str) -> String {
        let mut document = self.agent_document();
        if !self.tunnels.is_empty() {
            let mut tunnels = Table::new();
            tunnels.set_implicit(true);
            for draft in &self.tunnels {
                let mut table = draft.whole();
                table
                    .decor_mut()
                    .set_prefix(format!("\n# From {name}:{}, {}\n", draft.line, draft.from));
                tunnels.insert(&draft.key, Item::Table(table));
            }
            document.insert("tunnels", Item::Table(tunnels));
        }
        format!("# Imported from {name}. The edge and its token: `uniroute login`.\n{document}")
    }
}

/// The key and the words of what is wrong with a file, if something is.
fn first_fault(text: &str) -> Option<(String, String)> {
    let error = File::parse(text, "").and_then(|file| file.check()).err()?;
    let SettingsError::File(uniroute_shared::config_file::ConfigError::Invalid(faults)) = error
    else {
        return Some((String::new(), error.to_string()));
    };
    let fault = faults.into_iter().next()?;
    let what = fault.what.strip_prefix(&format!("{}: ", fault.path)).unwrap_or(&fault.what);
    Some((fault.path.clone(), what.to_owned()))
}

impl Draft {
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn set(&mut self, key: &str, text: impl Into<Value>) {
        self.table.insert(key, value(text));
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.table.get(key)?.as_str()
    }

    /// Whether something was said at `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// One more of a list.
    pub(super) fn push(&mut self, key: &str, text: impl Into<Value>) {
        let list = self.table.entry(key).or_insert_with(|| value(Array::new()));
        if let Some(list) = list.as_array_mut() {
            list.push(text);
        }
    }

    /// A further local server.
    pub(super) fn push_upstream(&mut self, text: &str) {
        if let Some(first) = self.get("upstream").map(str::to_owned) {
            self.set("upstream", Value::Array([first].into_iter().collect()));
        }
        self.push("upstream", text);
    }

    /// Something inside of a table of its own, such as `health`.
    pub(super) fn inside(&mut self, table: &str, key: &str, text: impl Into<Value>) {
        let table = self.table.entry(table).or_insert_with(toml_edit::table);
        if let Some(table) = table.as_table_mut() {
            table.insert(key, value(text));
        }
    }

    /// A change of a head's fields: `which` is `request_headers` or `response_headers`, `how` is `set`
    /// or `add`.
    pub(super) fn header(&mut self, which: &str, how: &str, name: &str, text: &str) {
        let changes = self.table.entry(which).or_insert_with(|| value(InlineTable::new()));
        let Some(changes) = changes.as_inline_table_mut() else { return };
        let fields = changes.entry(how).or_insert_with(|| InlineTable::new().into());
        if let Some(fields) = fields.as_inline_table_mut() {
            fields.insert(name, text.into());
        }
    }

    pub(super) fn remove_header(&mut self, which: &str, name: &str) {
        let changes = self.table.entry(which).or_insert_with(|| value(InlineTable::new()));
        let Some(changes) = changes.as_inline_table_mut() else { return };
        let names = changes.entry("remove").or_insert_with(|| Array::new().into());
        if let Some(names) = names.as_array_mut() {
            names.push(name);
        }
    }

    /// Whoever knows the password may come in. It is written as its hash.
    pub(super) fn user(&mut self, name: &str, secret: &str) {
        self.push("basic_auth", format!("{name}:{}", password::hash(secret.as_bytes())));
    }

    /// Nobody may come in: what kept others out could not be carried over.
    pub(super) fn close(&mut self, place: &Place<'_>, why: &str) {
        place.note(&format!(
            "{why} So that nobody comes in who should not, the tunnel {} is closed by `deny`: put something in its place, and then remove that",
            self.key
        ));
        if !self.has("deny") {
            self.push("deny", "0.0.0.0/0");
            self.push("deny", "::/0");
        }
    }

    pub(super) fn route(&mut self, path: &str, upstream: &str, exact: bool) {
        let mut route = Table::new();
        route.insert("path", value(path));
        route.insert("upstream", value(upstream));
        if exact {
            route.insert("exact", value(true));
        }
        self.routes.push(route);
    }

    fn whole(&self) -> Table {
        let mut table = self.table.clone();
        let rank = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
        table.sort_values_by(|one, _, other, _| rank(one.get()).cmp(&rank(other.get())));
        if !self.routes.is_empty() {
            table.insert("routes", Item::ArrayOfTables(self.routes.clone()));
        }
        table
    }

    /// Whether anything is left of it that can be.
    fn check(&mut self, document: &Document) -> bool {
        for _ in 0..MAX_FAULTS {
            let mut alone = Table::new();
            alone.set_implicit(true);
            alone.insert("t", Item::Table(self.whole()));
            let mut file = DocumentMut::new();
            file.insert("version", value(1));
            file.insert("tunnels", Item::Table(alone));
            let Some((path, what)) = first_fault(&file.to_string()) else { return true };
            let key = path.strip_prefix("tunnels.t.").unwrap_or_default();
            let key = key.split(['.', '[']).next().unwrap_or_default();
            if key.is_empty() || matches!(key, "upstream" | "kind") {
                let from = &self.from;
                document.note_at(self.line, &format!("{from}: {what}; the tunnel was left out"));
                return false;
            }
            document.note_at(self.line, &format!("{}: {key}: {what}; it was left out", self.from));
            match key {
                "routes" => self.routes.clear(),
                _ => drop(self.table.remove(key)),
            }
        }
        false
    }
}

impl Draft {
    /// The public port that is wished for.
    pub(super) fn port(&self) -> Option<i64> {
        self.table.get("port")?.as_integer()
    }
}
