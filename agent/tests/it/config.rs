//! `uniroute config`, and what is made of the command line.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::{harness::process, text, uniroute, uniroute_in};

#[test]
fn a_sample_is_printed_where_nobody_looks_and_written_where_it_is_named() {
    let home = tempfile::tempdir().unwrap();
    let printed = uniroute_in(home.path(), &["config", "init"]);
    assert!(text(&printed.stdout).starts_with("# Configuration of uniroute"));
    let path = home.path().join("folder/u.toml");
    let named = uniroute_in(home.path(), &["config", "init", "folder/u.toml"]);
    assert_eq!(named.status.code(), Some(0), "{}", text(&named.stderr));
    assert!(text(&named.stdout).contains("folder/u.toml is a commented sample now"));
    assert_eq!(fs::read(&path).unwrap(), printed.stdout);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = uniroute_in(home.path(), &["config", "init", "folder/u.toml"]);
    assert!(again.status.code() == Some(1) && text(&again.stderr).contains("--force"));
    fs::write(&path, "mine").unwrap();
    let forced = uniroute_in(home.path(), &["config", "init", "--force", "folder/u.toml"]);
    assert_eq!(forced.status.code(), Some(0));
    assert_eq!(fs::read(&path).unwrap(), printed.stdout);
    let checked = uniroute_in(home.path(), &["config", "check", "folder/u.toml"]);
    assert_eq!(text(&checked.stdout), "folder/u.toml: no faults\n");
}

/// Runs `config edit` with a shell script as the editor, which sees the file as $1.
async fn edit(home: &std::path::Path, script: &str, answers: &str) -> process::Ended {
    let editor = home.join("editor.sh");
    fs::write(&editor, script).unwrap();
    let mut command = process::agent(home);
    command.env("EDITOR", format!("sh {}", editor.display())).env("PATH", "/usr/bin:/bin");
    command.args(["config", "edit", "u.toml"]).stdin(std::process::Stdio::piped());
    let mut running = process::Process::start(&mut command);
    running.tell(answers).await;
    running.ended().await
}

#[tokio::test]
async fn an_edited_file_is_taken_only_without_a_fault() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("u.toml");
    let good = "version = 1\n[tunnels.web]\nupstream = \"3000\"\n";
    fs::write(&path, good).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let ended = edit(home.path(), "exit 0", "").await;
    assert!(ended.code == Some(0) && ended.out.contains("nothing was changed"), "{ended:?}");
    let ended = edit(home.path(), "sed -i s/3000/4000/ $1", "").await;
    assert!(ended.code == Some(0) && ended.out.contains("changed, no faults"), "{ended:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), good.replace("3000", "4000"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    // A fault, and enough of it.
    let ended = edit(home.path(), "sed -i s/upstream/upstrem/ $1", "n").await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    for part in ["u.toml:3:1", "did you mean \"upstream\"", "Edit again?", "is as it was"] {
        assert!(ended.err.contains(part), "{part} in {}", ended.err);
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), good.replace("3000", "4000"));
    // A fault, which the second try mends.
    let script = "if grep -q upstrem $1; then sed -i s/upstrem/upstream/ $1; else sed -i s/upstream/upstrem/ $1; sed -i s/4000/5000/ $1; fi";
    let ended = edit(home.path(), script, "y").await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), good.replace("3000", "5000"));
    let ended = edit(home.path(), "exit 7", "").await;
    assert!(ended.code == Some(1) && ended.err.contains("nothing was changed"), "{ended:?}");
}

#[test]
fn flags_go_over_the_environment_and_that_over_the_file() {
    // Each is told apart by what is wrong with it.
    let home = tempfile::tempdir().unwrap();
    let file = "version = 1\n[agent]\ntoken_file = \"of-file\"\n";
    fs::write(home.path().join("u.toml"), file).unwrap();
    let said = |flag: &[&str], variable: Option<&str>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_uniroute"));
        command.env_clear().env("HOME", home.path()).current_dir(home.path());
        command.envs(variable.map(|value| ("UNIROUTE_TOKEN_FILE", value)));
        command.args(["http", "3000", "--config", "u.toml"]).args(flag);
        text(&command.output().unwrap().stderr).to_owned()
    };
    assert!(said(&[], None).contains("of-file"));
    assert!(said(&[], Some("of-variable")).contains("of-variable"));
    assert!(said(&["--token-file", "of-flag"], Some("of-variable")).contains("of-flag"));
}

#[test]
fn a_proxys_password_is_not_for_everybody() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("u.toml");
    fs::write(&path, "version = 1\n[agent]\nproxy = \"http://u:canary@proxy.test:1\"\n").unwrap();
    for (mode, code) in [(0o644, 3), (0o600, 0)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let checked = uniroute_in(home.path(), &["config", "check", "u.toml"]);
        let error = text(&checked.stderr);
        assert_eq!(checked.status.code(), Some(code), "{error}");
        assert!(
            !error.contains("canary") && (code == 0 || error.contains("chmod 600 u.toml")),
            "{error}"
        );
    }
}

#[test]
fn every_shell_has_completions_and_every_command_a_page() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let done = uniroute(&["completion", shell]);
        assert_eq!(done.status.code(), Some(0));
        assert!(
            text(&done.stdout).contains("uniroute") && text(&done.stdout).contains("no-inspect"),
            "{shell}"
        );
    }
    let home = tempfile::tempdir().unwrap();
    let done = uniroute_in(home.path(), &["man", "pages"]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    for page in ["uniroute.1", "uniroute-http.1", "uniroute-config-import.1"] {
        let page = fs::read_to_string(home.path().join("pages").join(page)).unwrap();
        assert!(page.contains(".TH"), "{page}");
    }
    assert!(text(&uniroute(&["man"]).stdout).contains(".TH uniroute 1"));
}
