//! Two network namespaces on this machine with a link between them: whole IP packets, one TUN device at each end, so
//! that both ends' kernels see loss and delay as on a real link. Needs root, `ip` and /dev/net/tun.

mod pump;
mod wire;

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use self::pump::Pump;
use self::wire::{Settings, Wire};
use crate::output;
use crate::process::{Child, Output};

pub(crate) const ADDRESS_A: &str = "10.99.0.1";
pub(crate) const ADDRESS_B: &str = "10.99.0.2";
/// Packets that a device holds until this program takes them: all that a sender can have on its way.
const DEVICE_QUEUE: u32 = 20_000;
/// The link's own queue is never shorter, or one burst of a single connection would overflow it.
const LEAST_QUEUE: u64 = 256 * 1024;
const READY: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// One way, in milliseconds
    #[arg(long, default_value_t = 20.0)]
    delay_ms: f64,
    /// Each way, in millions of bits a second
    #[arg(long, default_value_t = 400.0)]
    mbit: f64,
    /// What waits for its turn in each direction before packets are dropped, in bytes; default: what is on its way
    /// in a round trip, and at least 256 KiB
    #[arg(long)]
    queue: Option<u64>,
    /// Share of packets lost at random, in percent
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Which packets are lost; default: others each time
    #[arg(long)]
    seed: Option<u64>,
    /// Drop all UDP packets
    #[arg(long)]
    no_udp: bool,
    /// TCP congestion control in both namespaces
    #[arg(long, default_value = "cubic")]
    congestion: String,
}

/// Prints `ready NS_A NS_B ADDR_A ADDR_B` and stays until it is ended; then the namespaces are gone again.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let settings = settings(&args)?;
    let seed = args.seed.unwrap_or_else(|| RandomState::new().hash_one(0));

    allow(&args.congestion)?;
    let a = End::new("a", ADDRESS_A, &args.congestion)?;
    let b = End::new("b", ADDRESS_B, &args.congestion)?;
    let (failed, mut failure) = mpsc::channel(2);
    let there = Pump::start(&a.device, &b.device, Wire::new(settings, seed), args.no_udp, &failed)?;
    let back = Pump::start(&b.device, &a.device, Wire::new(settings, !seed), args.no_udp, &failed)?;
    output::line(format_args!("ready {} {} {ADDRESS_A} {ADDRESS_B}", a.namespace, b.namespace));

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(error) = failure.recv() => return Err(error),
    }
    output::progress(format_args!("a to b: {}", there.counts()));
    output::progress(format_args!("b to a: {}", back.counts()));
    Ok(())
}

/// The command that runs a program in a namespace, or here.
pub(crate) fn command(namespace: Option<&str>, program: &Path) -> tokio::process::Command {
    match namespace {
        Some(namespace) => {
            let mut command = tokio::process::Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(program);
            command
        }
        None => tokio::process::Command::new(program),
    }
}

/// A link run by a process of its own.
pub(crate) struct Link {
    pub(crate) process: Child,
    pub(crate) namespace_a: String,
    pub(crate) namespace_b: String,
}

impl Link {
    pub(crate) async fn start(program: &Path, dir: &Path, args: &[String]) -> anyhow::Result<Self> {
        let mut command = tokio::process::Command::new(program);
        command.arg("net").args(args);
        let mut process = Child::start_gently("link", dir, command)?;
        let namespaces = |line: &str| {
            let mut words = line.strip_prefix("ready ")?.split(' ');
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        };
        let (namespace_a, namespace_b) =
            process.wait_for_line(Output::Stdout, READY, namespaces).await?;
        Ok(Self { process, namespace_a, namespace_b })
    }
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    ensure!((0.0..=100.0).contains(&args.loss), "--loss is a percentage");
    ensure!(args.mbit > 0.0, "--mbit must be above 0");
    let delay = Duration::try_from_secs_f64(args.delay_ms / 1e3).context("--delay-ms")?;
    let bytes_per_second = args.mbit * 1e6 / 8.0;
    let round_trip = bytes_per_second * delay.as_secs_f64() * 2.0;
    let queue = args.queue.map_or(round_trip.max(LEAST_QUEUE as f64), |bytes| bytes as f64);
    Ok(Settings { delay, bytes_per_second, queue, loss: args.loss / 100.0 })
}

/// A new namespace may only choose among the machine's allowed kinds of congestion control; this adds one for good.
fn allow(congestion: &str) -> anyhow::Result<()> {
    const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let allowed = fs::read_to_string(ALLOWED).context(ALLOWED)?;
    if allowed.split_whitespace().any(|name| name == congestion) {
        return Ok(());
    }
    fs::write(ALLOWED, format!("{} {congestion}", allowed.trim()))
        .with_context(|| format!("cannot allow the congestion control {congestion}"))
}

/// One end of the link: a namespace and the device in it. Dropping it takes the namespace away.
struct End {
    namespace: String,
    device: Arc<SyncDevice>,
}

impl End {
    fn new(side: &str, address: &str, congestion: &str) -> anyhow::Result<Self> {
        let pid = std::process::id();
        let name = format!("ub{pid}{side}");
        let device = DeviceBuilder::new()
            .name(&name)
            .layer(Layer::L3)
            .build_sync()
            .with_context(|| format!("cannot make the TUN device {name}"))?;
        device.set_nonblocking(true)?;
        let namespace = format!("uniroute-bench-{pid}-{side}");
        ip(&["netns", "add", &namespace])?;
        // From here on, an error also takes the namespace away.
        let end = Self { namespace, device: device.into() };
        end.configure(&name, address, congestion)?;
        Ok(end)
    }

    fn configure(&self, device: &str, address: &str, congestion: &str) -> anyhow::Result<()> {
        let namespace = self.namespace.as_str();
        // The link carries IPv4 only; the kernel's own IPv6 chatter would use up random numbers.
        // Remembered measures of older connections would make a run depend on the one before it.
        let settings = format!(
            "set -e
             echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true
             echo 1 >/proc/sys/net/ipv4/tcp_no_metrics_save
             echo {congestion} >/proc/sys/net/ipv4/tcp_congestion_control"
        );
        ip(&["link", "set", device, "netns", namespace])?;
        ip(&["netns", "exec", namespace, "sh", "-c", &settings])?;
        ip(&["-n", namespace, "address", "add", &format!("{address}/24"), "dev", device])?;
        let queue = DEVICE_QUEUE.to_string();
        ip(&["-n", namespace, "link", "set", device, "mtu", "1500", "txqueuelen", &queue, "up"])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.namespace]) {
            output::progress(format_args!("{error:#}"));
        }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(args).output().context("cannot run ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", args.join(" "), said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(delay_ms: f64, loss: f64) -> Args {
        let congestion = "cubic".to_owned();
        let (queue, seed) = (None, None);
        Args { delay_ms, mbit: 400.0, queue, loss, seed, no_udp: false, congestion }
    }

    #[test]
    fn the_queue_holds_a_round_trip_and_a_burst_at_least() {
        let long = settings(&args(20.0, 0.1)).unwrap();
        assert_eq!(long.delay, Duration::from_millis(20));
        assert_eq!((long.bytes_per_second, long.queue), (50e6, 2e6));
        assert!((long.loss - 0.001).abs() < 1e-9);
        assert_eq!(settings(&args(1.0, 0.0)).unwrap().queue, LEAST_QUEUE as f64);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(settings(&args(-1.0, 0.0)).is_err());
        assert!(settings(&args(20.0, 101.0)).is_err());
    }
}
