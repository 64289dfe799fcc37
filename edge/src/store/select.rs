//! A query whose conditions depend on what is asked.

use super::{Row, Store, StoreError, Value};

/// A `SELECT` that grows; see [`Select::and`].
#[derive(Debug)]
pub(crate) struct Select {
    sql: String,
    params: Vec<Value>,
    has_where: bool,
}

impl Select {
    /// From a statement without `WHERE` and parameters.
    pub(crate) fn new(start: impl Into<String>) -> Self {
        Self { sql: start.into(), params: Vec::new(), has_where: false }
    }

    /// One more condition; its one `?` stands for the value.
    pub(crate) fn and(mut self, condition: &str, value: impl Into<Value>) -> Self {
        self.params.push(value.into());
        let number = format!("${}", self.params.len());
        self.sql += if self.has_where { " AND " } else { " WHERE " };
        self.sql += &condition.replacen('?', &number, 1);
        self.has_where = true;
        self
    }

    /// The same, if there is a value.
    pub(crate) fn and_if<T: Into<Value>>(self, condition: &str, value: Option<T>) -> Self {
        match value {
            Some(value) => self.and(condition, value),
            None => self,
        }
    }

    /// A condition without a value.
    pub(crate) fn and_also(mut self, condition: &str) -> Self {
        self.sql += if self.has_where { " AND " } else { " WHERE " };
        self.sql += condition;
        self.has_where = true;
        self
    }

    /// The last part: order and number of rows.
    pub(crate) fn ordered(mut self, order: &str, limit: u32) -> Self {
        self.params.push(limit.into());
        self.sql += &format!(" ORDER BY {order} LIMIT ${}", self.params.len());
        self
    }

    /// Asks where lists are asked; see [`Store::listed`].
    pub(crate) async fn list<T>(
        self,
        store: &Store,
        read: impl Fn(Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        store.listed(&self.sql, self.params).await?.into_iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_numbered_as_they_come() {
        let select = Select::new("SELECT a FROM b")
            .and("c = ?", 1_i64)
            .and_if("d = ?", None::<i64>)
            .and_if("e < ?", Some("x"))
            .and_also("f IS NULL")
            .ordered("a DESC", 5);
        let expected = "SELECT a FROM b WHERE c = $1 AND e < $2 AND f IS NULL ORDER BY a DESC LIMIT $3";
        assert_eq!(select.sql, expected);
        assert_eq!(select.params, [Value::Int(1), Value::Text("x".into()), Value::Int(5)]);
    }
}
