//! Says again and again what is served here: to the shared state, so that others find it, and to the
//! store, so that names stay with those who use them. Both forget by themselves; a claim that was
//! made elsewhere since is noticed by its higher epoch, and obeyed.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info};
use uniroute_shared::code::Code;
use uuid::Uuid;

use crate::{
    Shared, changes,
    registry::{NAME_HOLD, Target},
    session::books,
    store::Timestamp,
};

/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(1);
/// How often the shared state is told; a third of how long it remembers.
const TELL_STATE: Duration = Duration::from_secs(20);
/// How often the store is.
const TELL_STORE: Duration = Duration::from_secs(60);
/// Tunnels of one statement.
const BATCH: usize = 500;

/// Until the edge stops.
pub(crate) async fn run(edge: Arc<Shared>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut state_at, mut store_at) = (Instant::now() + TELL_STATE, Instant::now() + TELL_STORE);
    let mut was_well = edge.state.is_well();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = edge.stop.cancelled() => return,
        }
        let (now, well) = (Instant::now(), edge.state.is_well());
        if well && !was_well {
            info!("the shared state is back; it is told everything anew");
        }
        if well && (!was_well || now >= state_at) {
            state_at = now + TELL_STATE;
            tell_state(&edge).await;
        }
        was_well = well;
        if now >= store_at {
            store_at = now + TELL_STORE;
            tell_store(&edge).await;
        }
        end_expired(&edge);
        tell_waiting(&edge).await;
    }
}

async fn tell_state(edge: &Arc<Shared>) {
    for target in edge.registry.targets() {
        let presence = edge.books.presence(&target.session, &target.tunnel);
        books::announce(edge, &target.tunnel, &presence).await;
    }
}

async fn tell_store(edge: &Arc<Shared>) {
    let now = Timestamp::now();
    let targets = edge.registry.targets();
    for batch in targets.chunks(BATCH) {
        let claims: Vec<(Uuid, u64)> =
            batch.iter().map(|t| (t.tunnel.id.into(), t.tunnel.fence())).collect();
        let until = (now.plus(NAME_HOLD), now.plus(edge.quarantine));
        let renewed = edge.store.renew(&claims, until.0, until.1, now).await;
        match renewed {
            Ok(kept) => drop_others(edge, batch, &kept),
            Err(error) => return debug!(%error, "names can't be renewed now"),
        }
    }
    let sessions: Vec<Uuid> = edge.registry.sessions().iter().map(|s| s.id.into()).collect();
    for batch in sessions.chunks(BATCH) {
        if let Err(error) = edge.store.heartbeat(batch, now).await {
            return debug!(%error, "sessions can't be renewed now");
        }
    }
}

/// What was claimed elsewhere meanwhile is not ours any more.
fn drop_others(edge: &Shared, batch: &[Arc<Target>], kept: &[Uuid]) {
    for target in batch {
        let tunnel = &target.tunnel;
        if !kept.contains(&tunnel.id.into()) {
            changes::lose(edge, tunnel, tunnel.fence() + 1, &Code::TUNNEL_TAKEN_OVER);
        }
    }
}

/// Sessions whose tokens are over.
fn end_expired(edge: &Shared) {
    let now = Timestamp::now();
    changes::cut(edge, |session| session.permit.is_expired(now), &Code::TOKEN_EXPIRED);
}

/// How many requests wait here, and for which tunnels.
async fn tell_waiting(edge: &Arc<Shared>) {
    for (tunnel, waiting) in edge.hold.counts() {
        let said = edge.state.set_waiting(tunnel.into(), &edge.id, waiting, books::PRESENCE).await;
        if let Err(error) = said {
            return debug!(%error, "others don't know how many requests wait");
        }
    }
}
