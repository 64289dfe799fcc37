//! The rows in Sqlite.

use super::{Row, Statement, StoreError, Value};

#[derive(Clone, Debug)]
pub(super) struct Sqlite;

fn missing() -> StoreError {
    StoreError::Other("not here yet".into())
}

#[expect(clippy::unused_async, reason = "not here yet")]
impl Sqlite {
    pub(super) async fn rows(&self, _: &str, _: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        Err(missing())
    }

    pub(super) async fn listed(&self, _: &str, _: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        Err(missing())
    }

    pub(super) async fn execute(&self, _: &str, _: Vec<Value>) -> Result<u64, StoreError> {
        Err(missing())
    }

    pub(super) async fn transaction(&self, _: Vec<Statement>) -> Result<Vec<Vec<Row>>, StoreError> {
        Err(missing())
    }
}
