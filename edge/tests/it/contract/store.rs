//! What the store promises, on SQLite and on PostgreSQL.

mod calls;
mod copy;
mod jobs;
mod requests;
mod rollups;
mod scale;
mod sessions;
mod trouble;
mod tunnels;

use std::time::Duration;

use tempfile::TempDir;
use uniroute_edge::store::{Claim, Store, StoreOptions, StoreUrl, Timestamp, TunnelRow, Value};
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

/// An instant in whole seconds, some time ago.
fn noon() -> Timestamp {
    "2026-11-25T12:00:00Z".parse().unwrap()
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// A claim at `now`: the agent's for a minute, the user's for ten.
fn claim(user: Uuid, agent: &str, name: &str, now: Timestamp) -> Claim {
    Claim {
        id: Uuid::now_v7(),
        user,
        agent_id: agent.into(),
        run_id: None,
        subdomain: name.into(),
        kind: "http".into(),
        port: None,
        local_url: "http://127.0.0.1:3000".into(),
        public_url: format!("https://{name}.tunnels.test"),
        region: "eu".into(),
        metadata: serde_json::json!({}),
        now,
        agent_until: now.plus(seconds(60)),
        held_until: now.plus(seconds(600)),
        force: false,
    }
}

/// A tunnel of `user`.
async fn tunnel(store: &Store, user: Uuid, name: &str) -> TunnelRow {
    store.claim(&claim(user, "agent", name, noon()), &[]).await.unwrap().row
}
