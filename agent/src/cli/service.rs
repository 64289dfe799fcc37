//! `uniroute service`: the tunnels of a config file as a service of the system.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command as Program,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use uniroute_agent::{TunnelSettings, upstream::Place};

use crate::{
    Failure,
    config::{self, File, Selection, SettingsError},
    service::{Action, Call, Manager, Scope, Service},
};

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Makes a service that runs the tunnels of the config file, and starts it: now, and with each
    /// start of the system (--system) or each login (--user).
    Install(Box<Install>),
    /// Starts it.
    Start(Which),
    /// Ends it; open requests are finished.
    Stop(Which),
    /// Ends it and starts it anew.
    Restart(Which),
    /// What its manager says of it.
    Status(Which),
    /// Ends it and takes it away.
    Uninstall(Which),
}

/// Which service.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Of this user, with this user's rights. Default, save for root.
    #[arg(long, conflicts_with = "system")]
    user: bool,
    /// Of the machine: it runs from the system's start. For root only.
    #[arg(long)]
    system: bool,
    /// Tells it from other services of UniRoute: uniroute-NAME.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Install {
    #[command(flatten)]
    which: Which,
    /// The config file. Default: see `uniroute config path`.
    #[arg(long, env = "UNIROUTE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --system: who it runs as. Default: the owner of the config file; where that is root, a
    /// user of the service's own.
    #[arg(long, value_name = "USER", requires = "system")]
    run_as: Option<String>,
    /// Prints what would be written and called, and does nothing.
    #[arg(long)]
    dry_run: bool,
}

impl ServiceCommand {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Install(install) => install.run(),
            Self::Start(which) => which.act(Action::Start),
            Self::Stop(which) => which.act(Action::Stop),
            Self::Restart(which) => which.act(Action::Restart),
            Self::Status(which) => which.act(Action::Status),
            Self::Uninstall(which) => Ok(which.uninstall()?),
        }
    }
}

impl Which {
    /// The service with these settings; its program and its config file count only when it is made.
    fn service(&self, run_as: Option<String>) -> anyhow::Result<Service> {
        if let Some(name) = &self.name {
            Service::check_name(name).map_err(anyhow::Error::msg)?;
        }
        let uid = user_id();
        let scope = if self.system || (uid == 0 && !self.user) {
            Scope::System { run_as }
        } else {
            let home = config::home().context("HOME is not set: whose service is it?")?;
            Scope::User { home, uid }
        };
        Ok(Service {
            name: self.name.clone(),
            scope,
            program: PathBuf::new(),
            config: PathBuf::new(),
            uses_tmp: false,
        })
    }

    fn act(&self, action: Action) -> Result<(), Failure> {
        let manager = manager()?;
        let service = self.service(None)?;
        installed(manager, &service)?;
        Ok(manager.calls(&service, action).iter().try_for_each(call)?)
    }

    fn uninstall(&self) -> anyhow::Result<()> {
        let manager = manager()?;
        let service = self.service(None)?;
        installed(manager, &service)?;
        for command in manager.calls(&service, Action::Uninstall) {
            // It may be ended already, and goes all the same.
            if let Err(error) = call(&command) {
                let _ = writeln!(io::stderr(), "uniroute: {error:#}");
            }
        }
        let (path, _) = manager.file(&service);
        fs::remove_file(&path).with_context(|| cannot("remove", &path))?;
        say(&format!("Removed {}", path.display()))?;
        let token = service.token_path();
        if matches!(service.scope, Scope::System { .. }) && token.exists() {
            fs::remove_file(&token).with_context(|| cannot("remove", &token))?;
            say(&format!("Removed {}", token.display()))?;
        }
        manager.calls(&service, Action::Uninstalled).iter().try_for_each(call)
    }
}

impl Install {
    fn run(self) -> Result<(), Failure> {
        let path = self.config.clone().unwrap_or_else(config::default_path);
        let (file, tunnels) = Selection::new(path.clone(), Vec::new(), true).load()?;
        let mut service = self.which.service(None)?;
        service.config = resolved(&path).with_context(|| cannot("find", &path))?;
        service.program = std::env::current_exe().context("where this program is")?;
        service.uses_tmp = tunnels.iter().any(uses_tmp);
        let system = matches!(service.scope, Scope::System { .. });
        if system {
            let run_as =
                self.run_as.clone().map_or_else(|| owner(&service.config), |u| Ok(Some(u)));
            service.scope = Scope::System { run_as: run_as? };
        }
        let token = if system && Manager::here().is_none_or(Manager::copies_token) {
            Some(config::token(file.agent.token_file.as_deref())?)
        } else {
            check_token_file(&file)?;
            None
        };
        if self.dry_run {
            let manager = Manager::here().unwrap_or(Manager::Systemd);
            return Ok(show(manager, &service).map_err(anyhow::Error::from)?);
        }
        let manager = manager()?;
        if let Some(token) = token {
            let path = service.token_path();
            let text = format!("{}\n", token.expose());
            config::write_private(&path, &text).with_context(|| cannot("write", &path))?;
        }
        Ok(install(manager, &service)?)
    }
}

fn install(manager: Manager, service: &Service) -> anyhow::Result<()> {
    let (path, text) = manager.file(service);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| cannot("make", folder))?;
    }
    if manager == Manager::Launchd && path.exists() {
        // It loads nothing twice; what is not loaded can't be unloaded, and that is as well.
        for command in manager.calls(service, Action::Stop) {
            let _ = call(&command);
        }
    }
    fs::write(&path, text).with_context(|| cannot("write", &path))?;
    manager.calls(service, Action::Install).iter().try_for_each(call)?;
    let name = service.full_name();
    say(&format!("{name} runs, and will run again after the next start."))?;
    say(&format!("  service  {}", path.display()))?;
    say(&format!("  config   {}", service.config.display()))?;
    if matches!(service.scope, Scope::System { .. }) && manager.copies_token() {
        say(&format!("  token    {}", service.token_path().display()))?;
    }
    say(&format!("  log      {}", manager.log(service)))?;
    if manager == Manager::Systemd && matches!(service.scope, Scope::User { .. }) {
        say("It ends when you log out; so that it does not: loginctl enable-linger")?;
    }
    Ok(())
}

fn show(manager: Manager, service: &Service) -> io::Result<()> {
    let (path, text) = manager.file(service);
    say(&format!("# {}\n{text}", path.display()))?;
    let calls = manager.calls(service, Action::Install);
    calls.iter().try_for_each(|call| say(&format!("# {}", call.join(" "))))
}

fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

fn manager() -> anyhow::Result<Manager> {
    Manager::here().context(
        "this system has no systemd that could run a service, as in most containers: let what runs \
         here start `uniroute start --all` itself, and start it again unless it ends with exit code \
         0, 2, 3, 4, 6 or 8; `uniroute ready` is its probe",
    )
}

fn installed(manager: Manager, service: &Service) -> anyhow::Result<()> {
    let (path, _) = manager.file(service);
    if path.exists() {
        return Ok(());
    }
    let whose = match service.scope {
        Scope::System { .. } => "--user",
        Scope::User { .. } => "--system",
    };
    bail!(
        "there is no {}: make it with `uniroute service install`, or add {whose} if it is one of those",
        path.display()
    )
}

fn call(words: &Call) -> anyhow::Result<()> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let status = Program::new(program).args(arguments).status();
    let status = status.with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("`{}` has failed ({status})", words.join(" "));
    }
    Ok(())
}

/// A path for whoever begins somewhere else.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let real = fs::canonicalize(path)?;
    // What Windows calls the canonical path (`\\?\C:\…`) is not for people or other programs.
    if cfg!(windows) { std::path::absolute(path) } else { Ok(real) }
}

fn cannot(what: &str, path: &Path) -> String {
    format!("cannot {what} {}", path.display())
}

/// A service has not the environment of whoever makes it.
fn check_token_file(file: &File) -> Result<(), Failure> {
    match &file.agent.token_file {
        Some(path) if path == Path::new("-") => Err(no_token()),
        // Its content is looked at, too.
        Some(path) => {
            let text = fs::read_to_string(path);
            let text =
                text.map_err(|error| SettingsError::TokenFile { path: path.clone(), error })?;
            let token = uniroute_shared::id::Token::first(&text);
            token.map(drop).map_err(|error| {
                Failure::Settings(SettingsError::Token(path.display().to_string(), error))
            })
        }
        None => Err(no_token()),
    }
}

fn no_token() -> Failure {
    Failure::Other(anyhow::anyhow!(
        "the config file names no token file, and a service does not have your environment: \
         `uniroute login` makes one"
    ))
}

fn uses_tmp(tunnel: &TunnelSettings) -> bool {
    let below = |path: &Path| path.starts_with("/tmp") || path.starts_with("/var/tmp");
    std::iter::once(&tunnel.target).chain(&tunnel.further).chain(&tunnel.routes).any(|target| {
        match &target.place {
            Place::Files(path) | Place::Unix(path) => below(path),
            _ => false,
        }
    })
}

/// Who the service runs as: whoever the config file belongs to; nobody in particular where that is
/// root, for then everybody has to be able to read it.
#[cfg(unix)]
fn owner(config: &Path) -> anyhow::Result<Option<String>> {
    use std::os::unix::fs::MetadataExt as _;
    let file = fs::metadata(config).with_context(|| cannot("read", config))?;
    if file.uid() != 0 {
        let name = std::env::var("SUDO_USER").ok();
        let sudo = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
        let name = name.filter(|_| sudo == Some(file.uid()));
        return Ok(Some(name.unwrap_or_else(|| file.uid().to_string())));
    }
    if file.mode() & 0o004 == 0 {
        bail!(
            "{} is root's alone, and the service runs as a user of its own: `chmod 644` it (the \
             token is not in it), or say --run-as USER",
            config.display()
        );
    }
    Ok(None)
}

#[cfg(not(unix))]
fn owner(_config: &Path) -> anyhow::Result<Option<String>> {
    Ok(None)
}

#[cfg(unix)]
fn user_id() -> u32 {
    rustix::process::getuid().as_raw()
}

#[cfg(not(unix))]
fn user_id() -> u32 {
    1
}
