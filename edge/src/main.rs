//! `uniroute-edge`: parse, start, wait for a signal, drain.

mod cli;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    ops::RangeInclusive,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use tracing::{info, warn};
use uniroute_edge::{Edge, config::SettingsError};
use uniroute_shared::{shutdown::Signals, telemetry};

use crate::cli::{Cli, Command, Plan};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What requests under way have after the first signal.
const DRAIN: Duration = Duration::from_secs(30);

const CONFIG_INVALID: u8 = 3;

fn main() -> ExitCode {
    let result = match Cli::of_process().command {
        Command::Dev(dev) => dev.plan().and_then(run),
        Command::Serve(serve) => serve.plan().map_err(Into::into).and_then(run),
        Command::Config(command) => command.run(),
        Command::Migrate(migrate) => migrate.run(),
        Command::Store(command) => command.run(),
        Command::User(user) => user.run(),
        Command::Token(token) => token.run(),
        Command::Invite(invite) => invite.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "uniroute-edge: {error:#}");
            ExitCode::from(if error.is::<SettingsError>() { CONFIG_INVALID } else { 1 })
        }
    }
}

fn run(plan: Plan) -> anyhow::Result<()> {
    telemetry::init(&plan.log_level, plan.log_format)?;
    // Signals and the drain; the workers have runtimes of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let domain = plan.settings.domain.clone();
        let ports = |range: &Option<RangeInclusive<u16>>| {
            let text = |range: &RangeInclusive<u16>| format!("{}-{}", range.start(), range.end());
            range.as_ref().map_or_else(|| "off".to_owned(), text)
        };
        let tcp_ports = ports(&plan.settings.sockets.tcp_ports);
        let udp_ports = ports(&plan.settings.sockets.udp_ports);
        let edge = Edge::start(plan.settings)?;
        let or_off = |address: Option<SocketAddr>| {
            address.map_or_else(|| "off".to_owned(), |address| address.to_string())
        };
        let (https, quic, admin) =
            (or_off(edge.https()), or_off(edge.quic()), or_off(edge.admin()));
        info!(http = %edge.http(), https, quic, admin, tcp_ports, udp_ports, domain, "listening");
        if let Some(token) = &plan.dev_token {
            say_how_to_go_on(&edge, token);
        }
        signals.next().await;
        tokio::select! {
            drained = edge.shutdown(DRAIN) => if !drained {
                warn!("stopped with requests under way: they took longer than the drain allows");
            },
            () = signals.next() => warn!("stopped at once"),
        }
        Ok(())
    })
}

fn say_how_to_go_on(edge: &Edge, token: &Path) {
    let _ = writeln!(
        io::stderr(),
        "\n  The edge runs. Put a local server (port 3000, say) on it with:\n\n    \
         uniroute http 3000 --server http://{} --token-file {}\n",
        edge.http(),
        std::path::absolute(token).unwrap_or_else(|_| token.to_owned()).display(),
    );
}
