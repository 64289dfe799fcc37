//! The calls that all rows go through.

use uniroute_edge::store::{Statement, StoreError, Timestamp, Value};
use uuid::Uuid;

use super::{Stores, on_both, user, values};

on_both! {
    every_kind_of_value_comes_back,
    a_transaction_is_all_or_nothing,
    faults_are_told_apart,
    migrating_again_changes_nothing,
    what_is_written_is_there_after_a_restart,
}

async fn every_kind_of_value_comes_back(store: Stores) {
    let (id, at) = (Uuid::now_v7(), Timestamp(-1_234_567_890_123_456));
    let owner = user(&store, "a@example.com").await;
    let details = serde_json::json!({ "a": [1, "ü"], "b": null });
    let sql = "INSERT INTO audit_log (id, at, user_id, actor, action, details) \
               VALUES ($1, $2, $3, $4, 'x', $5)";
    let text = "ein \"Wort\" ' $1 ? 🚇";
    let params = values([id.into(), at.into(), owner.into(), text.into(), details.clone().into()]);
    assert_eq!(store.execute(sql, params).await.unwrap(), 1);
    let sql = "SELECT id, at, user_id, tunnel_id, actor, details FROM audit_log WHERE id = $1";
    let mut row = store.row(sql, values([id.into()])).await.unwrap().unwrap();
    assert_eq!(row.take::<Uuid>().unwrap(), id);
    assert_eq!(row.take::<Timestamp>().unwrap(), at);
    assert_eq!(row.take::<Option<Uuid>>().unwrap(), Some(owner));
    assert_eq!(row.take::<Option<Uuid>>().unwrap(), None);
    assert_eq!(row.take::<String>().unwrap(), text);
    assert_eq!(row.take::<serde_json::Value>().unwrap(), details);
    assert!(row.take::<i64>().is_err());

    let sql = "INSERT INTO idempotency_keys (user_id, key, request_hash, status, body, created_at) \
               VALUES ($1, 'k', 'h', $2, $3, $4)";
    let params = values([owner.into(), 201.into(), vec![0_u8, 255, 7].into(), at.into()]);
    store.execute(sql, params).await.unwrap();
    let sql = "SELECT status, body FROM idempotency_keys WHERE user_id = $1";
    let mut row = store.listed(sql, values([owner.into()])).await.unwrap().remove(0);
    assert_eq!(row.take::<u16>().unwrap(), 201);
    assert_eq!(row.take::<Vec<u8>>().unwrap(), [0, 255, 7]);

    let sql = "UPDATE users SET is_active = $2 WHERE id = $1 RETURNING is_active";
    let mut row = store.row(sql, values([owner.into(), false.into()])).await.unwrap().unwrap();
    assert!(!row.take::<bool>().unwrap());
    // Sums are of a kind of their own in PostgreSQL.
    let sql = "SELECT count(*), sum(v), sum(v) - 1 - sum(v) FROM \
               (SELECT CAST(70001 AS BIGINT) AS v UNION ALL SELECT 1000000000000) AS t";
    let mut row = store.row(sql, Vec::new()).await.unwrap().unwrap();
    assert_eq!(row.take::<i64>().unwrap(), 2);
    assert_eq!(row.take::<i64>().unwrap(), 1_000_000_070_001);
    assert_eq!(row.take::<i64>().unwrap(), -1);
}

async fn a_transaction_is_all_or_nothing(store: Stores) {
    let user = user(&store, "a@example.com").await;
    let rename = |email: &str, expect: u64| {
        let params = values([user.into(), email.into()]);
        Statement::new("UPDATE users SET email = $2 WHERE id = $1 RETURNING email", params)
            .expect(expect)
    };
    let mut rows = store.transaction(vec![rename("b@x.y", 1), rename("c@x.y", 1)]).await.unwrap();
    assert_eq!(rows.remove(1).remove(0).take::<String>().unwrap(), "c@x.y");
    let stale = store.transaction(vec![rename("d@x.y", 1), rename("e@x.y", 2)]).await;
    assert!(matches!(stale, Err(StoreError::Stale)), "{stale:?}");
    let broken =
        Statement::new("UPDATE users SET plan = 'none' WHERE id = $1", values([user.into()]));
    let refused = store.transaction(vec![rename("f@x.y", 1), broken]).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    let mut row = store.row("SELECT email FROM users", Vec::new()).await.unwrap().unwrap();
    assert_eq!(row.take::<String>().unwrap(), "c@x.y");
}

async fn faults_are_told_apart(store: Stores) {
    let first = user(&store, "a@example.com").await;
    let again = "INSERT INTO users (id, email, password_hash, created_at, updated_at) \
                 VALUES ($1, $2, '!', $3, $3)";
    let now = Timestamp::now();
    let duplicate = |index: &str, outcome: Result<u64, StoreError>| match outcome {
        Err(StoreError::Duplicate(name)) => assert_eq!(name, index),
        other => panic!("{other:?}"),
    };
    let params = values([Uuid::now_v7().into(), "A@EXAMPLE.com".into(), now.into()]);
    duplicate("idx_users_email", store.execute(again, params).await);
    let params = values([first.into(), "b@example.com".into(), now.into()]);
    duplicate("users_pkey", store.execute(again, params).await);
    let domain = "INSERT INTO domains (id, user_id, name, proof, created_at) \
                  VALUES ($1, $2, 'a.test', 'p', $3)";
    let params = || values([Uuid::now_v7().into(), first.into(), now.into()]);
    store.execute(domain, params()).await.unwrap();
    duplicate("idx_domains_user_name", store.execute(domain, params()).await);
    let token = "INSERT INTO tunnel_tokens (id, user_id, token_hash, hint, created_at) \
                 VALUES ($1, $2, 'h', 'ur_', $3)";
    store.execute(token, params()).await.unwrap();
    duplicate("tunnel_tokens_token_hash_key", store.execute(token, params()).await);

    let refused = [
        ("UPDATE users SET role = 'king'", Vec::new()),
        ("UPDATE users SET email = NULL", Vec::new()),
        (domain, values([Uuid::now_v7().into(), Uuid::now_v7().into(), now.into()])),
    ];
    for (sql, params) in refused {
        let outcome = store.execute(sql, params).await;
        assert!(matches!(outcome, Err(StoreError::Refused(_))), "{sql}: {outcome:?}");
    }
    assert!(store.health().is_well());
    let outcome = store.rows("SELECT nothing FROM nowhere", Vec::new()).await;
    assert!(matches!(outcome, Err(StoreError::Other(_))), "{outcome:?}");
    assert!(!store.health().is_well() && store.health().reason.is_some());
    store.ping().await.unwrap();
    assert!(store.health().is_well());
    let figures = store.figures();
    assert!(figures.calls >= 12 && figures.failures == 1 && figures.in_use == 0, "{figures:?}");
    // Nothing that was in a statement is in what is said.
    let secret = Value::from("secret");
    let outcome = store.execute("UPDATE users SET role = $1", vec![secret.clone()]).await;
    assert!(outcome.is_err());
    assert!(!format!("{outcome:?} {secret:?}").contains("secret"));
}

async fn migrating_again_changes_nothing(store: Stores) {
    store.check_migrated().await.unwrap();
    user(&store, "a@example.com").await;
    assert!(store.migrate().await.unwrap().is_empty());
    // A newer release was here.
    let sql = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum) \
               VALUES (1000, 'later', '2030-01-01T00:00:00Z', '1')";
    store.execute(sql, Vec::new()).await.unwrap();
    let other = store.another().await;
    assert!(other.migrate().await.unwrap().is_empty());
    other.check_migrated().await.unwrap();
    assert_eq!(other.rows("SELECT id FROM users", Vec::new()).await.unwrap().len(), 1);
}

async fn what_is_written_is_there_after_a_restart(mut store: Stores) {
    let id = user(&store, "a@example.com").await;
    if let super::On::Postgres(postgres) = &mut store.on {
        postgres.stop().await;
        postgres.start_again().await;
    }
    let other = store.another().await;
    let mut row = other.row("SELECT id FROM users", Vec::new()).await.unwrap().unwrap();
    assert_eq!(row.take::<Uuid>().unwrap(), id);
}
