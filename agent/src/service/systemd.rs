//! systemd: the unit, and how its manager is called.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use super::{Action, Call, Scope, Service, call};

/// Seconds in which the agent's loop has to turn.
const WATCHDOG: u32 = 30;
/// Open requests have 30 seconds when the agent ends.
const STOP: u32 = 40;
/// Exit codes that another start would not change: usage, config, token, name, version.
const FOR_GOOD: &str = "2 3 4 6 8";

pub(super) fn path(service: &Service) -> PathBuf {
    let file = file_name(service);
    match &service.scope {
        Scope::User { home, .. } => home.join(".config/systemd/user").join(file),
        Scope::System { .. } => Path::new("/etc/systemd/system").join(file),
    }
}

fn file_name(service: &Service) -> String {
    format!("{}.service", service.full_name())
}

pub(super) fn unit(service: &Service) -> String {
    let mut unit = format!(
        "# Made by `uniroute service install`; changes go to a drop-in (`systemctl edit`).\n\
         # Config file: {config}\n\
         [Unit]\n\
         Description=UniRoute tunnels{of}\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         # Ready when an edge has answered for every tunnel.\n\
         Type=notify\n\
         NotifyAccess=main\n\
         ExecStart={start}\n\
         ExecReload=/bin/kill -HUP $MAINPID\n\
         Restart=always\n\
         RestartSec=2\n\
         # What another start would not mend.\n\
         RestartPreventExitStatus={FOR_GOOD}\n\
         # An edge that is away is waited for.\n\
         TimeoutStartSec=infinity\n\
         TimeoutStopSec={STOP}\n\
         WatchdogSec={WATCHDOG}\n\
         LimitNOFILE=65536\n\
         UMask=0077\n",
        config = one_line(&service.config.to_string_lossy()),
        of = service.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default(),
        start = start(service),
    );
    match &service.scope {
        Scope::User { .. } => unit.push_str(
            "\n# More would need rights that the managers of users often lack.\n\
             NoNewPrivileges=yes\nLockPersonality=yes\nRestrictRealtime=yes\n\
             \n[Install]\nWantedBy=default.target\n",
        ),
        Scope::System { run_as } => system(&mut unit, service, run_as.as_deref()),
    }
    unit
}

fn system(unit: &mut String, service: &Service, run_as: Option<&str>) {
    let name = service.full_name();
    let tmp = if service.uses_tmp { "no" } else { "yes" };
    let user = match run_as {
        Some(user) => format!("User={}", percent(user)),
        None => "DynamicUser=yes".to_owned(),
    };
    let _ = write!(
        unit,
        "\n{user}\n\
         StateDirectory={name}\n\
         StateDirectoryMode=0700\n\
         Environment=UNIROUTE_STATE_DIR=%S/{name}\n\
         # The token, from a file that only root can read.\n\
         LoadCredential=token:{token}\n\
         \n\
         # Folders and sockets of users can be served; nothing can be written but the state.\n\
         NoNewPrivileges=yes\n\
         CapabilityBoundingSet=\n\
         ProtectSystem=strict\n\
         ProtectHome=read-only\n\
         PrivateTmp={tmp}\n\
         PrivateDevices=yes\n\
         ProtectClock=yes\n\
         ProtectControlGroups=yes\n\
         ProtectHostname=yes\n\
         ProtectKernelLogs=yes\n\
         ProtectKernelModules=yes\n\
         ProtectKernelTunables=yes\n\
         RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\n\
         RestrictNamespaces=yes\n\
         RestrictRealtime=yes\n\
         RestrictSUIDSGID=yes\n\
         LockPersonality=yes\n\
         MemoryDenyWriteExecute=yes\n\
         SystemCallArchitectures=native\n\
         \n[Install]\nWantedBy=multi-user.target\n",
        token = service.token_path().display(),
    );
}

fn start(service: &Service) -> String {
    let mut line = program(&service.program.to_string_lossy());
    for word in ["start", "--all", "--config"] {
        let _ = write!(line, " {word}");
    }
    let _ = write!(line, " {}", argument(&service.config.to_string_lossy()));
    if service.is_system() {
        line.push_str(" --token-file ${CREDENTIALS_DIRECTORY}/token");
    }
    line
}

/// A program's path as the first word of a command line, in which no variables are replaced.
fn program(text: &str) -> String {
    format!("\"{}\"", percent(&quoted(text)))
}

/// An argument of a command line, taken as it is: `$` begins a variable there.
fn argument(text: &str) -> String {
    format!("\"{}\"", percent(&quoted(text)).replace('$', "$$"))
}

/// `%` begins a specifier everywhere.
fn percent(text: &str) -> String {
    text.replace('%', "%%")
}

fn quoted(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// For a comment.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ").trim_end_matches('\\').to_owned()
}

pub(super) fn calls(service: &Service, action: Action) -> Vec<Call> {
    let file = file_name(service);
    let systemctl = |words: &[&str]| {
        let user = if service.is_system() { &[][..] } else { &["--user"] };
        call(&[&["systemctl"], user, words].concat())
    };
    match action {
        // It may be waiting for its edge, and that is no reason to wait here.
        Action::Install => vec![
            systemctl(&["daemon-reload"]),
            systemctl(&["enable", &file]),
            systemctl(&["restart", "--no-block", &file]),
        ],
        Action::Start => vec![systemctl(&["start", "--no-block", &file])],
        Action::Stop => vec![systemctl(&["stop", &file])],
        Action::Restart => vec![systemctl(&["restart", "--no-block", &file])],
        Action::Status => vec![systemctl(&["status", "--no-pager", "--full", &file])],
        Action::Uninstall => vec![systemctl(&["disable", "--now", &file])],
        Action::Uninstalled => vec![systemctl(&["daemon-reload"])],
    }
}

pub(super) fn log(service: &Service) -> String {
    let user = if service.is_system() { "" } else { "--user " };
    format!("journalctl {user}-u {} -f", file_name(service))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::tests::{of_system, of_user};

    #[test]
    fn a_users_unit() {
        insta::assert_snapshot!(unit(&of_user()));
        let path = path(&of_user());
        assert_eq!(path.to_str(), Some("/home/ann/.config/systemd/user/uniroute.service"));
    }

    #[test]
    fn a_systems_unit() {
        insta::assert_snapshot!(unit(&of_system()));
        let service = Service {
            scope: Scope::System { run_as: Some("ann".into()) },
            uses_tmp: true,
            ..of_system()
        };
        let unit = unit(&service);
        assert!(unit.contains("\nUser=ann\n") && unit.contains("\nPrivateTmp=no\n"), "{unit}");
        assert!(!unit.contains("DynamicUser"));
        assert_eq!(path(&service).to_str(), Some("/etc/systemd/system/uniroute-shop.service"));
    }

    #[test]
    fn paths_are_taken_as_they_are() {
        let service = Service {
            program: "/opt/my tools/$HOME 100%/uniroute".into(),
            config: "/srv/a b/\"x\"\\%h $MAINPID\n.toml".into(),
            ..of_user()
        };
        let expected = "\"/opt/my tools/$HOME 100%%/uniroute\" start --all --config \
                        \"/srv/a b/\\\"x\\\"\\\\%%h $$MAINPID\\x0a.toml\"";
        assert_eq!(start(&service), expected);
        assert!(unit(&service).lines().all(|line| line != ".toml\""));
    }

    #[test]
    fn its_manager_is_called() {
        let words = |action| {
            let calls = calls(&of_user(), action);
            calls.iter().map(|call| call.join(" ")).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(
            words(Action::Install),
            "systemctl --user daemon-reload; systemctl --user enable uniroute.service; \
             systemctl --user restart --no-block uniroute.service"
        );
        assert_eq!(words(Action::Uninstall), "systemctl --user disable --now uniroute.service");
        let of_system = calls(&of_system(), Action::Stop);
        assert_eq!(of_system, [["systemctl", "stop", "uniroute-shop.service"]]);
    }

    /// systemd reads it as it is meant, where there is one to ask.
    #[test]
    fn systemd_finds_no_fault() {
        let Ok(help) = std::process::Command::new("systemd-analyze").arg("--version").output()
        else {
            return;
        };
        assert!(help.status.success());
        let home = tempfile::tempdir().unwrap();
        let odd = home.path().join("a b$c%d.toml");
        std::fs::write(&odd, "").unwrap();
        let program = std::env::current_exe().unwrap();
        for service in [of_user(), of_system()] {
            let service = Service { program: program.clone(), config: odd.clone(), ..service };
            let path = home.path().join(file_name(&service));
            std::fs::write(&path, unit(&service)).unwrap();
            let mut verify = std::process::Command::new("systemd-analyze");
            verify.args(["verify", "--man=no"]).arg(&path);
            let said = verify.output().unwrap();
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            let faults: Vec<_> = said.lines().filter(|line| line.contains("uniroute")).collect();
            assert!(faults.is_empty(), "{said}");
        }
    }
}
