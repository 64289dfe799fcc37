//! Acts on what happens elsewhere: in the API, on the command line, on other edges. Events come at once
//! over the shared state; and once a second the audit log is read, where everything that changes
//! something stands, so that what no event told is done a moment later all the same.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, info};
use uniroute_shared::{code::Code, id::TunnelId};
use uuid::Uuid;

use crate::{
    Shared,
    events::{Event, Kind, Numbered, Since},
    limits::lower,
    registry::{Claim, SessionHandle, Tunnel},
    store::{StoreError, Timestamp},
};

/// How often the audit log is read.
const FEED: Duration = Duration::from_secs(1);
/// How far back it is read each time: a row stands in it a moment after the time that it has.
const BACK: Duration = Duration::from_secs(5);
/// Rows that are read at a time.
const ROWS: u32 = 1_000;
/// A lost fence: above every one that there is.
const ENDED: u64 = u64::MAX;

/// Acts on events until the edge stops.
pub(crate) async fn act(edge: Arc<Shared>, missed: Arc<Notify>) {
    let mut events = edge.events.subscribe();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = edge.drained.cancelled() => return,
        };
        match event {
            Ok(numbered) => on_event(&edge, &numbered.event).await,
            Err(RecvError::Lagged(_)) => missed.notify_one(),
            Err(RecvError::Closed) => return,
        }
    }
}

async fn on_event(edge: &Arc<Shared>, event: &Event) {
    match event.kind {
        Kind::TunnelUpdated | Kind::TunnelPaused | Kind::TunnelResumed => {
            if let Some(tunnel) = known(edge, event.tunnel) {
                // At once, whatever the store says.
                match event.kind {
                    Kind::TunnelPaused => _ = pause(edge, &tunnel, true),
                    Kind::TunnelResumed => _ = pause(edge, &tunnel, false),
                    _ => {}
                }
                reload(edge, &tunnel).await;
            }
        }
        Kind::TunnelDeleted => {
            if let Some(tunnel) = known(edge, event.tunnel) {
                lose(edge, &tunnel, ENDED, &Code::TUNNEL_DELETED);
            }
        }
        Kind::TunnelOnline => {
            let text = |name: &str| event.data.get(name).and_then(|value| value.as_str());
            let fence = event.data.get("epoch").and_then(serde_json::Value::as_u64);
            if text("edge").is_some_and(|other| other != edge.id)
                && let (Some(tunnel), Some(fence)) = (known(edge, event.tunnel), fence)
            {
                lose(edge, &tunnel, fence, &Code::TUNNEL_TAKEN_OVER);
            }
        }
        Kind::TokenRevoked | Kind::TokenUpdated | Kind::TokenRotated => {
            if let Some(token) = event.object {
                edge.permits.forget(token);
                match event.kind {
                    Kind::TokenRevoked => revoke(edge, token),
                    _ => reload_token(edge, token).await,
                }
            }
        }
        Kind::UserUpdated | Kind::UserDeleted => {
            if let Some(user) = event.object.or(event.user) {
                edge.permits.forget(user);
                reload_user(edge, user).await;
            }
        }
        Kind::PlanUpdated | Kind::PlanDeleted => {
            edge.permits.forget_all();
            for account in edge.accounts.all() {
                reload_user(edge, account.user).await;
            }
        }
        Kind::SessionCut => {
            if let Some(id) = event.object {
                cut(edge, |session| Uuid::from(session.id) == id, &Code::SESSION_CUT);
            }
        }
        Kind::AddressBanned | Kind::BanLifted => edge.abuse.heard(event),
        _ => {}
    }
}

/// Acts once more on what was told while `session` was being made, behind the event `from`: it may
/// have looked a moment too early, and nobody could tell it anything yet.
pub(crate) async fn catch_up(
    edge: &Arc<Shared>,
    from: u64,
    session: &SessionHandle,
    claims: &[Claim],
) {
    if edge.events.last() == from {
        return;
    }
    let user = session.permit.account.user;
    let events = match edge.events.since(from) {
        Since::All(events) => events,
        Since::TooOld(_) => {
            // Whatever it was: look again.
            edge.permits.forget(user);
            reload_user(edge, user).await;
            if let Some(token) = session.permit.token {
                reload_token(edge, token).await;
            }
            return;
        }
    };
    for Numbered { event, .. } in events {
        let tunnel = |claim: &Claim| event.tunnel == Some(claim.tunnel.id.into());
        let concerns = match event.kind {
            Kind::TunnelOnline | Kind::TunnelDeleted | Kind::TunnelUpdated => {
                claims.iter().any(tunnel)
            }
            Kind::TunnelPaused | Kind::TunnelResumed => claims.iter().any(tunnel),
            Kind::TokenRevoked | Kind::TokenUpdated | Kind::TokenRotated => {
                event.object == session.permit.token
            }
            Kind::UserUpdated | Kind::UserDeleted => event.object.or(event.user) == Some(user),
            Kind::PlanUpdated | Kind::PlanDeleted => true,
            _ => false,
        };
        if concerns {
            on_event(edge, &event).await;
        }
    }
}

fn known(edge: &Shared, tunnel: Option<Uuid>) -> Option<Arc<Tunnel>> {
    edge.registry.by_id(TunnelId::from(tunnel?))
}

/// Ends sessions.
pub(crate) fn cut(edge: &Shared, which: impl Fn(&SessionHandle) -> bool, code: &'static Code) {
    for session in edge.registry.sessions_that(which) {
        info!(session.id = %session.id, %code, "a session is cut");
        session.cut.now(code);
    }
}

fn pause(edge: &Shared, tunnel: &Tunnel, paused: bool) -> bool {
    let changed = tunnel.pause(paused);
    if changed && let Some(session) = edge.registry.serving(tunnel.id) {
        session.changed.notify_one();
    }
    changed
}

/// Nobody is led to the tunnel here any more, and its agent is told.
pub(crate) fn lose(edge: &Shared, tunnel: &Tunnel, fence: u64, code: &'static Code) {
    let Some(session) = edge.registry.lose(tunnel.id, fence) else { return };
    debug!(tunnel.id = %tunnel.id, %code, "a tunnel is served here no more");
    session.close(tunnel, code);
    if !edge.registry.serves(&session.id) {
        session.cut_or_replace(code);
    }
}

/// What the owner has set for a tunnel, anew.
async fn reload(edge: &Arc<Shared>, tunnel: &Arc<Tunnel>) {
    match edge.store.tunnel(tunnel.id.into()).await {
        Ok(Some(row)) if row.status != "deleted" => {
            let allowance = tunnel.account.allowance();
            tunnel.limit(lower(row.requests_per_second, allowance.tunnel_requests_per_second));
            pause(edge, tunnel, row.status == "paused");
        }
        Ok(_) => lose(edge, tunnel, ENDED, &Code::TUNNEL_DELETED),
        Err(error) => debug!(%error, tunnel.id = %tunnel.id, "a tunnel can't be looked up"),
    }
}

fn revoke(edge: &Shared, token: Uuid) {
    cut(edge, |session| session.permit.token == Some(token), &Code::TOKEN_REVOKED);
}

/// How long a token is good, anew, for the sessions that came with it.
async fn reload_token(edge: &Shared, token: Uuid) {
    let sessions = edge.registry.sessions_that(|session| session.permit.token == Some(token));
    if sessions.is_empty() {
        return;
    }
    match edge.store.token(token, None).await {
        Ok(Some(row)) if row.is_active => {
            for session in sessions {
                session.permit.expires_at(row.expires_at);
            }
        }
        Ok(_) => revoke(edge, token),
        Err(error) => debug!(%error, token.id = %token, "a token can't be looked up"),
    }
}

/// What a user is allowed, anew; his sessions end if he is nobody any more.
async fn reload_user(edge: &Arc<Shared>, user: Uuid) {
    let Some(account) = edge.accounts.get(&user) else { return };
    if user == crate::session::permit::OWNER {
        return;
    }
    let found = async {
        let Some(row) = edge.store.user(user).await?.filter(|row| row.is_active) else {
            return Ok::<_, StoreError>(None);
        };
        let plan = edge.store.plan(&row.plan).await?;
        Ok(Some(plan.map(|plan| plan.limits).unwrap_or_default()))
    };
    match found.await {
        Ok(Some(allowance)) => {
            account.allow(&allowance);
            for target in edge.registry.targets() {
                if target.tunnel.account.user == user {
                    reload(edge, &target.tunnel).await;
                }
            }
        }
        Ok(None) => {
            cut(edge, |session| session.permit.account.user == user, &Code::TOKEN_REVOKED);
        }
        Err(error) => debug!(%error, user.id = %user, "a user can't be looked up"),
    }
}

/// Reads the audit log until the edge stops; at once when something was `missed`.
pub(crate) async fn follow(edge: Arc<Shared>, missed: Arc<Notify>) {
    let mut ticks = interval(edge.feed);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut from = Timestamp::now().minus(BACK);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = missed.notified() => edge.abuse.learn(&edge).await,
            () = edge.drained.cancelled() => return,
        }
        match read(&edge, from).await {
            Ok(next) => from = next,
            // What is not read now is read later: nothing is skipped.
            Err(error) => debug!(%error, "the audit log can't be read"),
        }
    }
}

/// The time to read from next.
async fn read(edge: &Shared, mut from: Timestamp) -> Result<Timestamp, StoreError> {
    let began = Timestamp::now();
    loop {
        let rows = edge.store.audit_after(from, ROWS).await?;
        let full = rows.len() >= ROWS as usize;
        let last = rows.last().map(|row| row.event.at);
        for row in rows {
            edge.events.heard(row.event);
        }
        match last.filter(|last| full && *last > from) {
            Some(last) => from = last,
            None => return Ok(from.max(began.minus(BACK))),
        }
    }
}

/// See [`FEED`].
pub(crate) const EVERY: Duration = FEED;
