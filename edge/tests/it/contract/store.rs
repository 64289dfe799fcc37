//! What the store promises, on SQLite and on PostgreSQL.

mod calls;

use tempfile::TempDir;
use uniroute_edge::store::{Store, StoreOptions, StoreUrl, Timestamp, Value};
use uuid::Uuid;

use crate::harness::postgres::TestPostgres;

/// Each function over a [`Stores`] is a test on both databases.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::contract::store::sqlite().await).await;
            })*
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name($crate::contract::store::postgres().await).await;
            })*
        }
    };
}
use on_both;

/// A store, and what it stands on.
struct Stores {
    store: Store,
    on: On,
}

enum On {
    Sqlite(TempDir),
    Postgres(Box<TestPostgres>),
}

impl Stores {
    /// One more handle on the same rows, as another edge has it.
    async fn another(&self) -> Store {
        match &self.on {
            On::Sqlite(folder) => open(&file(folder)).await,
            On::Postgres(postgres) => postgres.store().await,
        }
    }
}

impl std::ops::Deref for Stores {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

async fn sqlite() -> Stores {
    let folder = tempfile::tempdir().unwrap();
    Stores { store: open(&file(&folder)).await, on: On::Sqlite(folder) }
}

async fn postgres() -> Stores {
    let postgres = TestPostgres::start().await;
    Stores { store: postgres.store().await, on: On::Postgres(Box::new(postgres)) }
}

fn file(folder: &TempDir) -> StoreUrl {
    StoreUrl::file(folder.path().join("edge/edge.db"))
}

async fn open(url: &StoreUrl) -> Store {
    Store::open(url, &StoreOptions::default()).await.unwrap()
}

fn values<const N: usize>(values: [Value; N]) -> Vec<Value> {
    values.into()
}

/// A new user.
async fn user(store: &Store, email: &str) -> Uuid {
    let (id, now) = (Uuid::now_v7(), Timestamp::now());
    let sql = "INSERT INTO users (id, email, password_hash, created_at, updated_at) \
               VALUES ($1, $2, '!', $3, $3)";
    let params = values([id.into(), email.into(), now.into()]);
    assert_eq!(store.execute(sql, params).await.unwrap(), 1);
    id
}
