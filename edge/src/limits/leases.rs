//! This edge's parts of limits that all edges share. Asked for every second, for the gates through
//! which something came; while nobody answers, the parts stay as they are.

use std::{collections::HashMap, sync::Arc};

use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::{LEASE, LEASE_ENDS};
use crate::Shared;

/// Gates that are shared out in one round; further ones keep the part that they have.
const MAX_LEASES: usize = 4_096;
/// Rounds without a request after which a gate is as it was made: whole.
const FORGET: u32 = 10;

/// Settles the parts until the edge stops.
pub(crate) async fn run(edge: Arc<Shared>) {
    let mut ticks = interval(LEASE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut quiet: HashMap<String, u32> = HashMap::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = edge.stop.cancelled() => return,
        }
        edge.addresses.sweep();
        if edge.state.is_shared() {
            round(&edge, &mut quiet).await;
        }
    }
}

/// A gate with its limit and its name in the shared state.
struct Shareable {
    key: String,
    rate: u32,
    wanted: u64,
    set: Box<dyn FnOnce(f64) + Send>,
}

async fn round(edge: &Arc<Shared>, quiet: &mut HashMap<String, u32>) {
    let mut leased = 0;
    for gate in gates(edge) {
        let rests = quiet.entry(gate.key.clone()).or_insert(FORGET);
        *rests = if gate.wanted > 0 { 0 } else { *rests + 1 };
        if *rests >= FORGET || leased >= MAX_LEASES {
            quiet.remove(&gate.key);
            (gate.set)(1.0);
            continue;
        }
        leased += 1;
        match edge.state.share(&gate.key, &edge.id, gate.wanted, LEASE_ENDS).await {
            Ok(part) => (gate.set)(part),
            Err(error) => return debug!(%error, "limits are not shared out anew"),
        }
    }
}

fn gates(edge: &Arc<Shared>) -> Vec<Shareable> {
    let mut gates = Vec::new();
    if let Some(rate) = edge.rate {
        let wanted = edge.gate.take_wanted();
        let of = Arc::clone(edge);
        let set = Box::new(move |part| of.gate.set(Some(rate), part));
        gates.push(Shareable { key: "edge".into(), rate, wanted, set });
    }
    for account in edge.accounts.all() {
        if let Some(rate) = account.allowance().requests_per_second {
            let wanted = account.gate.take_wanted();
            let key = account.user.to_string();
            let set = Box::new(move |part| account.gate.set(Some(rate), part));
            gates.push(Shareable { key, rate, wanted, set });
        }
    }
    for tunnel in edge.registry.limited() {
        if let Some(rate) = tunnel.rate() {
            let wanted = tunnel.gate.take_wanted();
            let key = tunnel.id.to_string();
            let set = Box::new(move |part| tunnel.gate.set(Some(rate), part));
            gates.push(Shareable { key, rate, wanted, set });
        }
    }
    if let Some(rate) = edge.addresses.rate() {
        for (key, address, wanted) in edge.addresses.busy() {
            let set = Box::new(move |part| address.gate.set(Some(rate), part));
            gates.push(Shareable { key: key.to_string(), rate, wanted, set });
        }
    }
    gates.retain(|gate| gate.rate > 0);
    gates
}
