//! What `uniroute` does, with an edge as a program beside it where one is needed.
#![expect(clippy::unwrap_used, reason = "a test that can't go on panics, which says where")]

mod config;
mod connect;
mod diagnose;
mod embed;
mod first_run;
mod harness;
mod import;
mod inspect;
mod limits;
mod page;
mod reload;
mod second;
mod terminal;
mod tunnel;
mod upstream;

use std::{
    path::Path,
    process::{Command, Output},
};

/// Runs `uniroute` in a home of its own, without the environment of whoever runs the tests.
fn uniroute(arguments: &[&str]) -> Output {
    uniroute_in(tempfile::tempdir().unwrap().path(), arguments)
}

/// The same in this folder, which is its home too.
fn uniroute_in(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uniroute"));
    command.env_clear().env("HOME", home).current_dir(home).args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn help_names_every_command_and_each_flag_its_twins() {
    let help = uniroute(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for command in ["http", "start", "config", "version"] {
        assert!(text(&help.stdout).contains(command), "{command}");
    }
    let help = uniroute(&["http", "--help"]);
    for flag in ["--server", "UNIROUTE_SERVER", "server", "http://127.0.0.1:8080"] {
        assert!(text(&help.stdout).contains(flag), "{flag}");
    }
}

#[test]
fn version_is_one_line() {
    let version = uniroute(&["version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(text(&version.stdout), concat!("uniroute ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_mistake_is_said_on_standard_error_only() {
    let wrong = uniroute(&["http", "3000", "--tokenn"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stdout.is_empty() && text(&wrong.stderr).contains("--token-file"));
}
