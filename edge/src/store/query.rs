//! Queries that are put together from the filters of a list.

use super::Value;

/// Rows of one page at most, whatever is asked for.
pub(super) const MAX_PAGE: u32 = 1_000;

/// A statement, and the parameters that belong to it.
pub(super) struct Query {
    pub(super) sql: String,
    pub(super) params: Vec<Value>,
    conditions: usize,
}

impl Query {
    pub(super) fn new(select: &str) -> Self {
        Self { sql: select.to_owned(), params: Vec::new(), conditions: 0 }
    }

    /// The next parameter: its name in the statement.
    pub(super) fn bind(&mut self, value: impl Into<Value>) -> String {
        self.params.push(value.into());
        format!("${}", self.params.len())
    }

    /// One more condition.
    pub(super) fn and(&mut self, condition: &str) {
        self.sql.push_str(if self.conditions == 0 { " WHERE " } else { " AND " });
        self.sql.push_str(condition);
        self.conditions += 1;
    }

    /// One more condition, `column = value` for instance, where there is a value.
    pub(super) fn and_some(&mut self, left: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            let name = self.bind(value);
            self.and(&format!("{left} {name}"));
        }
    }

    /// Newest first, on from the last row of the page before.
    pub(super) fn page(mut self, id: &str, after: Option<uuid::Uuid>, limit: u32) -> Self {
        self.and_some(&format!("{id} <"), after);
        let limit = self.bind(limit.clamp(1, MAX_PAGE));
        self.sql.push_str(&format!(" ORDER BY {id} DESC LIMIT {limit}"));
        self
    }
}
