//! The inspector's page in a browser: the Python programs in `tests/page` tell Chromium what to do, and
//! say of their cases how they went.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tokio::process::Command;

use crate::harness::{
    Edge,
    process::{self, Process},
};

#[tokio::test]
async fn with_ten_thousand_requests_it_reacts_at_once() {
    let home = tempfile::tempdir().unwrap();
    let mut command = python("cases.py", home.path());
    command.arg("keys_letters_and_scrolling_react_at_once");
    passes(Process::start(&mut command), 1).await;
}

#[tokio::test]
async fn shows_does_and_explains_what_it_should() {
    let home = tempfile::tempdir().unwrap();
    let mut command = python("cases.py", home.path());
    command.args([
        "what_is_looked_at_stays_while_new_ones_come",
        "the_search_is_the_agents_and_follows_what_comes",
        "all_is_done_with_the_keyboard",
        "nothing_that_was_captured_runs",
        "bodies_are_shown_as_what_they_are",
        "an_agent_that_is_gone_is_said_and_found_again",
    ]);
    passes(Process::start(&mut command), 6).await;
}

#[tokio::test]
async fn looks_right_wide_and_narrow_light_and_dark() {
    let home = tempfile::tempdir().unwrap();
    let mut command = python("cases.py", home.path());
    command.arg("it_looks_right_wide_and_narrow_light_and_dark");
    passes(Process::start(&mut command), 1).await;
}

#[tokio::test]
async fn works_with_an_agent_that_runs() {
    let edge = Edge::start().await;
    let mut program = Process::start(&mut python("real.py", edge.home.path()));
    let port = program.out_line("listening ").await;
    let port = port.trim_start_matches("listening ").to_owned();
    let words = ["http", &port, "--name", "demo", "--inspector", "127.0.0.1:0", "--output", "json"];
    let agent = Process::start(&mut edge.agent(&words));
    let ready: Value = serde_json::from_str(&agent.out_line("\"ready\"").await).unwrap();
    let inspector = ready["inspector"].as_str().unwrap_or_else(|| panic!("{ready}"));
    let host = format!("demo.localhost:{}", edge.http.port());
    program.tell(&format!("{inspector} {} {host}", edge.http)).await;
    passes(program, 5).await;
}

/// A program of `tests/page`, told where its screenshots go.
fn python(script: &str, home: &Path) -> Command {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let venv = target.join("test-venv");
    let installed = std::fs::read(venv.join("installed.txt")).ok();
    let wanted = source.join("../edge/tests/foreign/requirements.txt");
    assert!(
        installed.is_some() && installed == std::fs::read(wanted).ok(),
        "the Python packages in {} are missing or old: run scripts/install-python-peers.sh",
        venv.display(),
    );
    let mut command = process::command(&venv.join("bin/python"), home);
    // Nothing is written into the source folder.
    command.args(["-u", "-B"]).arg(source.join("tests/page").join(script)).arg(shots(target));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::piped());
    command
}

/// Where screenshots are left.
fn shots(target: &Path) -> PathBuf {
    target.join("page-shots")
}

/// All its cases pass, and there are `count`.
async fn passes(program: Process, count: usize) {
    let ended = program.ended_within(std::time::Duration::from_secs(150)).await;
    let passed = ended.out.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(ended.code == Some(0), "{passed} passed\n{}\n{}", ended.out, ended.err);
    assert_eq!(passed, count, "{}", ended.out);
}
