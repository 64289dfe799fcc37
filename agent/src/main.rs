//! `uniroute`: parse, connect, show what happens, drain on a signal.

mod cli;
mod config;
mod output;
mod reload;
mod service;

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use tokio::task::JoinHandle;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use uniroute_agent::{
    Agent, AgentError, CheckError, Handle, LoginError, Refusal, Settings, TunnelError,
    TunnelSettings, check_local,
    local::{
        self, Bound, Local,
        running::{self, Registration, Running},
    },
};
use uniroute_shared::{code::Code, shutdown::Signals, telemetry};

use crate::{
    cli::{Cli, Command, Plan, agents},
    config::{Selection, SettingsError, identity::Identity},
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
    #[error("{}", with_the_way(.0))]
    Agent(AgentError),
    /// The same, and which agents of this machine have what was refused.
    #[error("{error}{here}")]
    Taken { error: AgentError, here: String },
    #[error(transparent)]
    Login(LoginError),
    #[error("the local server is not there: {0}")]
    Local(#[from] CheckError),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// Where the edge can't be reached, with what looks at each step of the way.
fn with_the_way(error: &AgentError) -> String {
    let way = match error {
        AgentError::Unreachable(_) => {
            "\n`uniroute diagnose` looks at each step of the way to the edge"
        }
        _ => "",
    };
    format!("{error}{way}")
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
            Self::Other(error) if error.is::<SettingsError>() || error.is::<TunnelError>() => 3,
            Self::Login(_) => 3,
            Self::Settings(error) => error.exit_code(),
            Self::Agent(AgentError::Token { .. }) => 4,
            Self::Agent(AgentError::Unreachable(_)) => 5,
            Self::Agent(AgentError::Refused(_)) | Self::Taken { .. } => 6,
            Self::Local(_) => 7,
            Self::Agent(AgentError::Version(_)) => 8,
            Self::Agent(AgentError::Replaced) | Self::Other(_) => 1,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::of_process().command {
        Command::Http(http) => http.plan().map_err(Failure::from).and_then(run),
        Command::Tcp(tcp) => tcp.plan().map_err(Failure::from).and_then(run),
        Command::Tls(tls) => tls.plan().map_err(Failure::from).and_then(run),
        Command::Udp(udp) => udp.plan().map_err(Failure::from).and_then(run),
        Command::Start(start) => start.plan().map_err(Failure::from).and_then(run),
        Command::Config(command) => command.run().map_err(Failure::from),
        Command::Routes(command) => command.run().map_err(Failure::from),
        Command::Inspect(command) => command.run().map_err(Failure::from),
        Command::Login(command) => command.run(),
        Command::Logout(command) => command.run().map_err(Failure::from),
        Command::Diagnose(command) => match command.run() {
            Ok(0) => Ok(()),
            Ok(code) => return ExitCode::from(code),
            Err(failure) => Err(failure),
        },
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
    if let Some(trouble) = plan.identity.trouble() {
        tracing::warn!("{trouble}");
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
        let mut missing = JoinSet::new();
        if !plan.require_local {
            missing.spawn(warn_of_missing(plan.settings.tunnels.clone()));
        }
        let bound = local::bind(plan.inspector.listen).await.map_err(anyhow::Error::from)?;
        let moved = bound.as_ref().is_some_and(Bound::has_moved);
        let tunnels = &plan.settings.tunnels;
        let upstreams = tunnels.iter().map(|tunnel| tunnel.target.to_string()).collect();
        let inspector = bound.is_some().then_some(plan.inspector.limits);
        let settings = Settings { request_events: show.is_live(), inspector, ..plan.settings };
        let (agent, events) = Agent::new(settings).map_err(anyhow::Error::from)?;
        let handle = agent.handle();
        let url = bound.as_ref().map(Bound::url);
        let this = Running::this(url.clone(), plan.selection.as_ref().map(|s| s.path.clone()));
        let _found = register(&plan.state_dir, &this.serving(upstreams));
        let (notifier, mut watch) = Notifier::from_environment();
        let identity = plan.identity;
        let reload_by = |selection| reload_by(selection, handle.clone(), &identity, &notifier);
        let (reloading, reload) = plan.selection.map(reload_by).unzip();
        let local = Local::new(handle.clone());
        let local = match reload {
            Some(reload) => local.with_reload(reload),
            None => local,
        };
        let local = bound.map(|bound| serve_locally(bound, local));
        let asked = handle.clone();
        let ask = Box::new(move || Snapshot::of(&asked.status()));
        let shown = show.start(events, ask).map_err(anyhow::Error::from)?;
        if let Some(url) = &url {
            shown.inspector(url, moved);
        }
        let result = tokio::select! {
            result = until_signalled(agent, &shown, &identity, &notifier) => result,
            () = watch.run(|| handle.status()) => Ok(()),
        };
        watch.end();
        drop(reloading);
        if let Some((running, ended)) = local {
            drop(running);
            // What it has on disk goes with it.
            let _ = ended.await;
        }
        // The last events are still to be shown.
        shown.end().await;
        match result {
            Err(Failure::Agent(AgentError::Refused(refusals))) => {
                let here = holders(&plan.state_dir, &refusals).await;
                Err(Failure::Taken { error: AgentError::Refused(refusals), here })
            }
            result => result,
        }
    })
}

/// Which agents of this machine have the names that this one was refused; in lines of their own.
async fn holders(state_dir: &Path, refusals: &[Refusal]) -> String {
    let mut lines = String::new();
    for Refusal { name, .. } in refusals.iter().filter(|r| r.code == Code::NAME_TAKEN.number) {
        if let Some(holder) = agents::serving(state_dir, name).await {
            let pid = holder.pid;
            lines += &format!(
                "\nName {name:?} is served on this machine by process {pid} (`uniroute status --pid {pid}`)"
            );
        }
    }
    lines
}

/// Says which local servers take no connection at the start. Their tunnels stand all the same; one
/// with checks of its own is told of by them.
async fn warn_of_missing(tunnels: Vec<TunnelSettings>) {
    for tunnel in tunnels.iter().filter(|tunnel| tunnel.health.probe.is_none()) {
        if let Err(error) = check_local(tunnel).await {
            tracing::warn!(
                tunnel = tunnel.key,
                "the local server does not answer: {error}. Start it, or is its port another one? The tunnel stands, and visitors see an error until then"
            );
        }
    }
}

/// Serves the local API while the first value lives; the second is the task that does.
fn serve_locally(bound: Bound, local: Local) -> (DropGuard, JoinHandle<()>) {
    let stop = CancellationToken::new();
    let serving = tokio::spawn(local::serve(bound, local, stop.clone()));
    (stop.drop_guard(), serving)
}

/// Reads the config file again, now and then, while the first value lives, and whenever the second is
/// called.
fn reload_by(
    selection: Selection,
    handle: Handle,
    identity: &Arc<Identity>,
    notifier: &Notifier,
) -> (JoinSet<()>, local::Reload) {
    let (reloader, asker) = Reloader::new(selection, handle, Arc::clone(identity));
    let (before, after) = (notifier.clone(), notifier.clone());
    let mut running = JoinSet::new();
    running.spawn(reloader.run(move || before.reloading(), move |_| after.reloaded()));
    (running, Arc::new(move || asker.reload()))
}

/// Lets `uniroute status` and others find this agent while the value lives.
fn register(state_dir: &Path, this: &Running) -> Option<Registration> {
    running::register(state_dir, this)
        .inspect_err(|error| {
            tracing::warn!(%error, "`uniroute status` and `uniroute inspect` won't find this agent");
        })
        .ok()
}

async fn until_signalled(
    agent: Agent,
    shown: &Shown,
    identity: &Identity,
    notifier: &Notifier,
) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(anyhow::Error::from)?;
    let stop = CancellationToken::new();
    let mut running = std::pin::pin!(agent.run(stop.clone()));
    tokio::select! {
        result = &mut running => return Ok(result?),
        () = signals.next() => stop.cancel(),
        () = shown.gone() => stop.cancel(),
    }
    shown.draining();
    // It only finishes what it has: one that is started meanwhile takes its names over.
    identity.release();
    notifier.stopping();
    tokio::select! {
        result = running => Ok(result?),
        () = signals.next() => Ok(()),
    }
}
