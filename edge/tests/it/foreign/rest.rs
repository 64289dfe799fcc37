//! Schemathesis makes requests of the served description of the API, right ones and wrong ones, and
//! looks whether the answers are as described.

use std::{path::Path, time::Duration};

use uniroute_edge::setup::Role;

use super::venv;
use crate::{
    api::Office,
    harness::process::{self, run_within},
};

/// All of it, with little of each: `make test` has to end some time.
const EXAMPLES: &str = "8";
const BOUND: Duration = Duration::from_secs(240);
/// They end the login under which the others are tried, and have a run of their own.
const ENDING: [&str; 2] = ["/api/v1/auth/logout", "/api/v1/auth/password"];

async fn passes(role: Role, which: &str, paths: &[&str]) {
    let home = tempfile::tempdir().unwrap();
    let office = Office::new(home.path()).await;
    let client = office.account("ada@example.com", role).await;
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/schemathesis.toml");
    let mut command = process::command(&venv().join("bin/schemathesis"), home.path());
    command.arg("--config-file").arg(config).arg("run");
    command.arg(format!("http://{}/api/v1/openapi.json", office.edge.http()));
    command.arg("--header").arg(format!("Authorization: Bearer {}", client.token));
    command.args(["--checks", "all", "--max-examples", EXAMPLES, "--no-color"]);
    // The same cases each time: what others find is for those who look for it.
    command.args(["--suppress-health-check", "all", "--seed", "20261126"]);
    for path in paths {
        command.args([which, path]);
    }
    let ended = run_within(&mut command, BOUND).await;
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.out, ended.err);
    assert!(ended.out.contains("passed"), "nothing was tried:\n{}", ended.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_as_it_is_described_to_an_admin() {
    passes(Role::Admin, "--exclude-path", &ENDING).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_as_it_is_described_to_a_user() {
    passes(Role::User, "--exclude-path", &ENDING).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_login_is_as_it_is_described() {
    passes(Role::User, "--include-path", &ENDING).await;
}
