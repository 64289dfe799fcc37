//! Logging in, staying so, and what stops who should not.

use uniroute_shared::code::Code;
use uuid::Uuid;

use super::*;
use crate::{auth::jwt, events::Kind, store::Timestamp};

#[tokio::test]
async fn a_login_is_good_until_it_is_ended() {
    let world = World::new().await;
    world.user("Ann@Example.com", Role::User).await;
    let tokens = world.login("ANN@example.COM").await;
    let access = tokens["access_token"].as_str().unwrap();
    assert_eq!(tokens["expires_in"], 900);
    let me = world.get("/users/me", access).await.is(200);
    assert_eq!((&me["email"], &me["role"]), (&json!("ann@example.com"), &json!("user")));
    let other = world.login("ann@example.com").await;
    let other = other["access_token"].as_str().unwrap();
    world.post("/auth/logout", Some(access), &json!({})).await.is(204);
    let gone = world.get("/users/me", access).await;
    gone.is_problem(401, "UR-4020");
    assert_eq!(gone.headers["www-authenticate"], "Bearer realm=\"uniroute\"");
    world.get("/users/me", other).await.is(200);
    let third = world.login("ann@example.com").await;
    let third = third["access_token"].as_str().unwrap();
    world.post("/auth/logout", Some(third), &json!({ "everywhere": true })).await.is(204);
    world.get("/users/me", other).await.is_problem(401, "UR-4020");
}

#[tokio::test]
async fn who_does_not_exist_is_refused_as_a_wrong_password_is() {
    let world = World::new().await;
    world.user("ann@example.com", Role::User).await;
    let mut answers = Vec::new();
    for email in ["ann@example.com", "bob@example.com"] {
        let body = json!({ "email": email, "password": "wrong password" });
        let mut problem = world.post("/auth/login", None, &body).await.is_problem(401, "UR-4021");
        problem["request_id"] = Value::Null;
        answers.push(problem);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(*world.suspects.lock(), [ADDRESS, ADDRESS]);
}

/// Logs in from an address of its own each time, so that only the account is counted.
async fn guess(world: &World, email: &str, password: &str, from: u8) -> &'static Code {
    let from = crate::services::logins::From {
        peer: IpAddr::from([198, 51, 100, from]),
        user_agent: String::new(),
    };
    match world.services.log_in(email, password, &from).await {
        Ok(_) => panic!("let in"),
        Err(failure) => failure.code,
    }
}

#[tokio::test]
async fn an_account_locks_whether_it_exists_or_not() {
    let mut world = World::new().await;
    world.user("ann@example.com", Role::User).await;
    for email in ["ann@example.com", "bob@example.com"] {
        for n in 0..5 {
            assert_eq!(guess(&world, email, "wrong password", n).await, &Code::LOGIN_REFUSED);
        }
        assert_eq!(guess(&world, email, PASSWORD, 9).await, &Code::LOGIN_LOCKED, "{email}");
    }
    let body = json!({ "email": "ann@example.com", "password": PASSWORD });
    let locked = world.post("/auth/login", None, &body).await;
    locked.is_problem(429, "UR-4026");
    assert!(["1", "2"].contains(&locked.headers["retry-after"].to_str().unwrap()));
    let kinds: Vec<_> = world.told().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [Kind::UserCreated, Kind::UserLocked]);
    // An operator who sets a password lets him in again.
    let admin = world.token("root@example.com", Role::Admin).await;
    let ann = world.services.store.user_by_email("ann@example.com").await.unwrap().unwrap();
    let patch = json!({ "password": "a new long password" });
    world.patch(&format!("/users/{}", ann.id), &admin, &patch).await.is(200);
    let body = json!({ "email": "ann@example.com", "password": "a new long password" });
    world.post("/auth/login", None, &body).await.is(200);
}

#[tokio::test]
async fn many_guesses_at_once_are_counted_one_by_one() {
    let world = World::new().await;
    world.user("ann@example.com", Role::User).await;
    let guesses = (0..20).map(|n| guess(&world, "ann@example.com", "wrong password", n));
    let codes = futures_util::future::join_all(guesses).await;
    let looked_at = codes.iter().filter(|code| **code == &Code::LOGIN_REFUSED).count();
    assert_eq!(looked_at, 5, "{codes:?}");
}

#[tokio::test]
async fn an_address_locks_and_those_who_are_right_do_not_count() {
    let world = World::new().await;
    world.user("ann@example.com", Role::User).await;
    for n in 0..5 {
        world.login("ann@example.com").await;
        let body = json!({ "email": format!("u{n}@example.com"), "password": "wrong password" });
        world.post("/auth/login", None, &body).await.is_problem(401, "UR-4021");
    }
    let body = json!({ "email": "ann@example.com", "password": PASSWORD });
    world.post("/auth/login", None, &body).await.is_problem(429, "UR-4026");
    assert_eq!(world.suspects.lock().len(), 6, "a try while it waits is one more");
}

#[tokio::test]
async fn a_refresh_token_is_good_once_and_its_reuse_ends_the_login() {
    let mut world = World::new().await;
    world.user("ann@example.com", Role::User).await;
    let first = world.login("ann@example.com").await;
    let refresh = |token: &Value| json!({ "refresh_token": token });
    let second = world.post("/auth/refresh", None, &refresh(&first["refresh_token"])).await.is(200);
    let third = world.post("/auth/refresh", None, &refresh(&second["refresh_token"])).await.is(200);
    let access = third["access_token"].as_str().unwrap();
    world.get("/users/me", access).await.is(200);
    let stolen = world.post("/auth/refresh", None, &refresh(&first["refresh_token"])).await;
    stolen.is_problem(401, "UR-4022");
    world.get("/users/me", access).await.is_problem(401, "UR-4020");
    let last = world.post("/auth/refresh", None, &refresh(&third["refresh_token"])).await;
    last.is_problem(401, "UR-4022");
    let kinds: Vec<_> = world.told().into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [Kind::UserCreated, Kind::UserLoggedIn, Kind::LoginReused]);
    for bad in ["x", "ur_refresh_x_y"] {
        let body = refresh(&json!(bad));
        world.post("/auth/refresh", None, &body).await.is_problem(401, "UR-4022");
    }
}

#[tokio::test]
async fn of_two_refreshes_at_once_one_gets_through() {
    let world = World::new().await;
    world.user("ann@example.com", Role::User).await;
    for _ in 0..5 {
        let tokens = world.login("ann@example.com").await;
        let body = json!({ "refresh_token": tokens["refresh_token"] });
        let both = futures_util::future::join_all(
            (0..2).map(|_| world.post("/auth/refresh", None, &body)),
        );
        let good = both.await.iter().filter(|answer| answer.status == 200).count();
        assert_eq!(good, 1);
    }
}

#[tokio::test]
async fn t12_forged_tokens_are_refused_by_the_api() {
    let world = World::new().await;
    world.user("ann@example.com", Role::User).await;
    let tokens = world.login("ann@example.com").await;
    let token = tokens["access_token"].as_str().unwrap();
    let kid = jwt::Tokens::kid(token).unwrap();
    let signer = jwt::Tokens::new(Secret::new(&[7; 32]).unwrap(), "http://edge.test".into());
    let claims = signer.check(&kid, token).unwrap();
    let (forged, good) = jwt::tests::forged(&signer, &kid, claims.sub, claims.sid);
    world.get("/users/me", &good).await.is(200);
    assert!(forged.len() >= 15);
    for (what, token) in forged {
        let answer = world.get("/users/me", &token).await;
        assert_eq!(
            (answer.status, answer.json()["code"].clone()),
            (401, json!("UR-4020")),
            "{what}"
        );
    }
    // A login of somebody else's, under a good key.
    let bob = world.user("bob@example.com", Role::User).await;
    let now = jsonwebtoken::get_current_timestamp();
    let mixed = signer.sign(&kid, bob, claims.sid, now).unwrap();
    world.get("/users/me", &mixed).await.is_problem(401, "UR-4020");
    let nobody = signer.sign(&kid, claims.sub, Uuid::now_v7(), now).unwrap();
    world.get("/users/me", &nobody).await.is_problem(401, "UR-4020");
}

#[tokio::test]
async fn keys_rotate_and_older_tokens_stay_good_until_they_are_over() {
    let world = World::new().await;
    let admin = world.token("root@example.com", Role::Admin).await;
    let rotated = world.send("POST", "/keys/rotate", Some(&admin), None, &[]).await.is(201);
    world.get("/users/me", &admin).await.is(200);
    let new = world.login("root@example.com").await;
    let new = new["access_token"].as_str().unwrap();
    assert_eq!(json!(jwt::Tokens::kid(new)), rotated["kid"]);
    world.get("/users/me", new).await.is(200);
    // When the time of the old one is over, what it has signed is, too.
    let past = Timestamp::now().minus(std::time::Duration::from_secs(1));
    let sql = "UPDATE signing_keys SET retired_at = $1 WHERE retired_at IS NOT NULL";
    world.services.store.execute(sql, crate::store::values![past]).await.unwrap();
    world.services.auth.forget_keys();
    world.get("/users/me", &admin).await.is_problem(401, "UR-4020");
    world.get("/users/me", new).await.is(200);
}

#[tokio::test]
async fn an_inactive_account_is_out_at_once() {
    let world = World::new().await;
    let admin = world.token("root@example.com", Role::Admin).await;
    let ann = world.token("ann@example.com", Role::User).await;
    let id = world.get("/users/me", &ann).await.is(200)["id"].as_str().unwrap().to_owned();
    let path = format!("/users/{id}");
    world.patch(&path, &admin, &json!({ "is_active": false })).await.is(200);
    world.get("/users/me", &ann).await.is_problem(401, "UR-4020");
    let body = json!({ "email": "ann@example.com", "password": PASSWORD });
    world.post("/auth/login", None, &body).await.is_problem(401, "UR-4021");
    world.patch(&path, &admin, &json!({ "is_active": true })).await.is(200);
    world.get("/users/me", &ann).await.is_problem(401, "UR-4020");
    world.login("ann@example.com").await;
}

#[tokio::test]
async fn a_new_password_ends_all_other_logins() {
    let world = World::new().await;
    let ann = world.token("ann@example.com", Role::User).await;
    let other = world.login("ann@example.com").await;
    let change = |old: &str, new: &str| json!({ "old_password": old, "new_password": new });
    let wrong = world.post("/auth/password", Some(&ann), &change("wrong", "long enough 1")).await;
    wrong.is_problem(403, "UR-4023");
    let same = change(PASSWORD, "ann@example.com");
    let refused = world.post("/auth/password", Some(&ann), &same).await;
    assert_eq!(refused.is_problem(422, "UR-4045")["errors"][0]["pointer"], "/new_password");
    let good = change(PASSWORD, "long enough 1");
    world.post("/auth/password", Some(&ann), &good).await.is(204);
    world.get("/users/me", &ann).await.is(200);
    let other = other["access_token"].as_str().unwrap();
    world.get("/users/me", other).await.is_problem(401, "UR-4020");
    let body = json!({ "email": "ann@example.com", "password": PASSWORD });
    world.post("/auth/login", None, &body).await.is_problem(401, "UR-4021");
}

#[tokio::test]
async fn signing_up_is_what_the_operator_allows() {
    let body = json!({ "email": "new@example.com", "password": PASSWORD });
    let closed = World::new().await;
    closed.post("/auth/signup", None, &body).await.is_problem(403, "UR-4024");
    let open = World::with(Signup::Open).await;
    let tokens = open.post("/auth/signup", None, &body).await.is(201);
    let me = open.get("/users/me", tokens["access_token"].as_str().unwrap()).await.is(200);
    assert_eq!(me["role"], "user");
    open.post("/auth/signup", None, &body).await.is_problem(409, "UR-4040");
}

#[tokio::test]
async fn an_invitation_is_good_once_and_for_whom_it_is() {
    let world = World::with(Signup::Invite).await;
    let admin = world.token("root@example.com", Role::Admin).await;
    let body = json!({ "email": "New@example.com", "password": PASSWORD });
    world.post("/auth/signup", None, &body).await.is_problem(403, "UR-4024");
    let invite = json!({ "email": "new@example.com", "role": "operator", "days": 1 });
    let invite = world.post("/invites", Some(&admin), &invite).await.is(201);
    let with = |email: &str, token: &Value| json!({ "email": email, "password": PASSWORD, "invite": token });
    let other = with("other@example.com", &invite["token"]);
    world.post("/auth/signup", None, &other).await.is_problem(403, "UR-4025");
    let wrong = with("new@example.com", &json!("ur_invite_guess"));
    world.post("/auth/signup", None, &wrong).await.is_problem(403, "UR-4025");
    let right = with("New@example.com", &invite["token"]);
    let tokens = world.post("/auth/signup", None, &right).await.is(201);
    let me = world.get("/users/me", tokens["access_token"].as_str().unwrap()).await.is(200);
    assert_eq!(me["role"], "operator");
    let again = with("new@example.com", &invite["token"]);
    world.post("/auth/signup", None, &again).await.is_problem(403, "UR-4025");
    let open = world.get("/invites?open=true", &admin).await.is(200);
    assert_eq!(open["items"], json!([]));
    let all = world.get("/invites", &admin).await;
    assert_eq!(all.is(200)["items"].as_array().unwrap().len(), 1);
    assert!(!all.text.contains(invite["token"].as_str().unwrap()));
}
