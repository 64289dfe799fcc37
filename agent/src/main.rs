//! `uniroute`: parse, connect, show what happens, drain on a signal.

mod cli;
mod config;
mod output;
mod reload;
mod service;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use tokio_util::sync::CancellationToken;
use uniroute_agent::{Agent, AgentError, CheckError, LoginError, Settings, check_local};
use uniroute_shared::{shutdown::Signals, telemetry};

use crate::{
    cli::{Cli, Command, Plan},
    config::SettingsError,
    output::{Show, Shown, seen::Snapshot},
    reload::Reloader,
    service::notify::Notifier,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Why the program ends, as its exit code says it.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Agent(AgentError),
    #[error(transparent)]
    Login(LoginError),
    #[error("the local server is not there: {0}")]
    Local(#[from] CheckError),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::Agent(error)
    }
}

impl From<LoginError> for Failure {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::Edge(error) => Self::Agent(error),
            LoginError::Settings(_) => Self::Login(error),
        }
    }
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Other(error) if error.is::<SettingsError>() => 3,
            Self::Login(_) => 3,
            Self::Settings(error) => error.exit_code(),
            Self::Agent(AgentError::Token { .. }) => 4,
            Self::Agent(AgentError::Unreachable(_)) => 5,
            Self::Agent(AgentError::Refused(_)) => 6,
            Self::Local(_) => 7,
            Self::Agent(AgentError::Version(_)) => 8,
            Self::Agent(AgentError::Replaced) | Self::Other(_) => 1,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Http(http) => http.plan().map_err(Failure::from).and_then(run),
        Command::Tcp(tcp) => tcp.plan().map_err(Failure::from).and_then(run),
        Command::Tls(tls) => tls.plan().map_err(Failure::from).and_then(run),
        Command::Udp(udp) => udp.plan().map_err(Failure::from).and_then(run),
        Command::Start(start) => start.plan().map_err(Failure::from).and_then(run),
        Command::Config(command) => command.run().map_err(Failure::from),
        Command::Routes(command) => command.run().map_err(Failure::from),
        Command::Login(command) => command.run(),
        Command::Logout(command) => command.run().map_err(Failure::from),
        Command::Status(command) => command.run().map_err(Failure::from),
        Command::Ready(command) => command.run().map_err(Failure::from),
        Command::Service(command) => command.run(),
        Command::Completion(command) => command.run().map_err(Failure::from),
        Command::Man(command) => command.run().map_err(Failure::from),
        Command::Version => {
            let version = concat!("uniroute ", env!("CARGO_PKG_VERSION"));
            writeln!(io::stdout(), "{version}").map_err(|error| Failure::Other(error.into()))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "uniroute: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(plan: Plan) -> Result<(), Failure> {
    let logs = plan.log_level.is_some() || plan.log_requests;
    let show = Show::new(plan.output, plan.qr, logs, &plan.settings);
    let mut level = plan.log_level.unwrap_or_else(|| "warn".to_owned());
    if plan.log_requests {
        // Where it is logged it costs nothing while nobody wants it.
        level.push_str(",uniroute::request=debug");
    }
    let logging = match show.messages().filter(|_| !logs) {
        Some(messages) => telemetry::init_json(&level, move || messages.clone()),
        None => telemetry::init(&level, plan.log_format),
    };
    logging.map_err(anyhow::Error::from)?;
    if let Some(error) = &plan.id_error {
        tracing::warn!(%error, "the agent's id can't be kept: a restarted agent gets its names back only after a while");
    }
    // One thread: a session and its requests share it, so nobody wakes another thread.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().event_interval(4).build();
    let runtime = runtime.map_err(anyhow::Error::from)?;
    runtime.block_on(async {
        if plan.require_local {
            for tunnel in &plan.settings.tunnels {
                check_local(tunnel).await?;
            }
        }
        let settings = Settings { request_events: show.is_live(), ..plan.settings };
        let (agent, events) = Agent::new(settings).map_err(anyhow::Error::from)?;
        let handle = agent.handle();
        let (notifier, mut watch) = Notifier::from_environment();
        // Ends with this block.
        let mut reloading = tokio::task::JoinSet::new();
        if let Some(selection) = plan.selection {
            let (reloader, _asker) = Reloader::new(selection, handle.clone());
            let (before, after) = (notifier.clone(), notifier.clone());
            reloading.spawn(reloader.run(move || before.reloading(), move |_| after.reloaded()));
        }
        let asked = handle.clone();
        let ask = Box::new(move || Snapshot::of(&asked.status()));
        let shown = show.start(events, ask).map_err(anyhow::Error::from)?;
        let result = tokio::select! {
            result = until_signalled(agent, &shown, &notifier) => result,
            () = watch.run(|| handle.status()) => Ok(()),
        };
        watch.end();
        // The last events are still to be shown.
        shown.end().await;
        result
    })
}

async fn until_signalled(agent: Agent, shown: &Shown, notifier: &Notifier) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(anyhow::Error::from)?;
    let stop = CancellationToken::new();
    let mut running = std::pin::pin!(agent.run(stop.clone()));
    tokio::select! {
        result = &mut running => return Ok(result?),
        () = signals.next() => stop.cancel(),
        () = shown.gone() => stop.cancel(),
    }
    shown.draining();
    notifier.stopping();
    tokio::select! {
        result = running => Ok(result?),
        () = signals.next() => Ok(()),
    }
}
