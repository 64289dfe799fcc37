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
async fn in_chromium_with_ten_thousand_requests() {
    let home = tempfile::tempdir().unwrap();
    let program = Process::start(&mut python("cases.py", home.path()));
    passes(program, 8).await;
}

#[tokio::test]
async fn in_chromium_with_an_agent_that_runs() {
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
    println!("{}", ended.out);
}
