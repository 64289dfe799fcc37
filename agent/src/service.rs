//! The agent as a service of the system: what its manager is given, and what the agent tells it.
//!
//! What is written for each manager is made on every system, so that it is tested on every system.

pub(crate) mod launchd;
pub(crate) mod notify;
pub(crate) mod systemd;
pub(crate) mod tasks;

use std::path::PathBuf;

/// Longest name of a service.
const MAX_NAME: usize = 48;

/// Whose service it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Of the user, with the user's rights.
    User {
        /// The user's folder.
        home: PathBuf,
        /// The user's number.
        uid: u32,
    },
    /// Of the machine: it runs from the start, whoever is there.
    System {
        /// Who it runs as; `None`: a user of its own.
        run_as: Option<String>,
    },
}

/// A service that runs the tunnels of a config file.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Tells it from others; `None`: there is one.
    pub(crate) name: Option<String>,
    pub(crate) scope: Scope,
    /// `uniroute`.
    pub(crate) program: PathBuf,
    pub(crate) config: PathBuf,
    /// A local server is a socket or a folder below `/tmp`.
    pub(crate) uses_tmp: bool,
}

/// What is done with a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Its file is there.
    Install,
    Start,
    Stop,
    Restart,
    Status,
    /// Its file is still there.
    Uninstall,
    /// It is not there any more.
    Uninstalled,
}

/// A command of the manager's, with its arguments.
pub(crate) type Call = Vec<String>;

/// What looks after services on a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manager {
    Systemd,
    Launchd,
    /// Windows' task scheduler: the agent is no program that the service manager of Windows could
    /// talk to.
    Tasks,
}

impl Manager {
    /// The one of this system, if it has one.
    pub(crate) fn here() -> Option<Self> {
        if cfg!(windows) {
            Some(Self::Tasks)
        } else if cfg!(target_os = "macos") {
            Some(Self::Launchd)
        } else {
            // As systemd's own `sd_booted` looks.
            std::path::Path::new("/run/systemd/system").is_dir().then_some(Self::Systemd)
        }
    }

    /// The file that says what the service is, and what is in it.
    pub(crate) fn file(self, service: &Service) -> (PathBuf, String) {
        match self {
            Self::Systemd => (systemd::path(service), systemd::unit(service)),
            Self::Launchd => (launchd::path(service), launchd::plist(service)),
            Self::Tasks => (tasks::path(service), tasks::description(service)),
        }
    }

    /// Whether a service of the machine gets a copy of the token. Where it does not, the account that
    /// it runs as reads the user's own.
    pub(crate) fn copies_token(self) -> bool {
        self != Self::Tasks
    }

    /// What is called for an action, one after the other.
    pub(crate) fn calls(self, service: &Service, action: Action) -> Vec<Call> {
        match self {
            Self::Systemd => systemd::calls(service, action),
            Self::Launchd => launchd::calls(service, action),
            Self::Tasks => tasks::calls(service, action),
        }
    }

    /// Where its log is read.
    pub(crate) fn log(self, service: &Service) -> String {
        match self {
            Self::Systemd => systemd::log(service),
            Self::Launchd => format!("tail -f {}", launchd::log_path(service).display()),
            // The task scheduler keeps no output.
            Self::Tasks => "none is kept; `uniroute status` shows how it is".to_owned(),
        }
    }
}

impl Service {
    /// Whether a name can be one: it becomes a file's name, and a part of commands.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn check_name(name: &str) -> Result<(), String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
            return Err(format!(
                "{name:?} can't be a service's name: use up to {MAX_NAME} letters, digits, - and _"
            ));
        }
        Ok(())
    }

    /// `uniroute`, or `uniroute-NAME`.
    pub(crate) fn full_name(&self) -> String {
        match &self.name {
            Some(name) => format!("uniroute-{name}"),
            None => "uniroute".to_owned(),
        }
    }

    fn is_system(&self) -> bool {
        matches!(self.scope, Scope::System { .. })
    }

    /// Where a service of the machine has its token: a copy that only root can read.
    pub(crate) fn token_path(&self) -> PathBuf {
        PathBuf::from(format!("/etc/uniroute/{}.token", self.full_name()))
    }
}

/// Text in XML, in ASCII. What XML can't hold at all is left out.
fn xml_text(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\t' | '\n' | '\r' => out.extend(["&#", &u32::from(c).to_string(), ";"]),
            c if c.is_ascii_control() => {}
            c if c.is_ascii() => out.push(c),
            c => out.extend(["&#", &u32::from(c).to_string(), ";"]),
        }
    }
    out
}

fn call(words: &[&str]) -> Call {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn of_user() -> Service {
        Service {
            name: None,
            scope: Scope::User { home: "/home/ann".into(), uid: 1000 },
            program: "/usr/local/bin/uniroute".into(),
            config: "/home/ann/.config/uniroute/uniroute.toml".into(),
            uses_tmp: false,
        }
    }

    pub(crate) fn of_system() -> Service {
        Service {
            name: Some("shop".into()),
            scope: Scope::System { run_as: None },
            config: "/etc/uniroute/shop.toml".into(),
            ..of_user()
        }
    }

    #[test]
    fn names_are_plain() {
        for name in ["shop", "shop-2", "A_b"] {
            assert_eq!(Service::check_name(name), Ok(()));
        }
        for name in ["", "a b", "../a", "a%n", "a;b", "ä", &"x".repeat(49)] {
            assert!(Service::check_name(name).is_err(), "{name}");
        }
    }
}
