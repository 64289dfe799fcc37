//! Names for the tunnels of a session: what its token and its plan allow, what the store grants, and
//! a port where the kind has one.
//!
//! The store has the last word on whose a name is. While it does not answer, an agent still gets what
//! it had here before, so that a database that is away for a while takes nobody off the air.

use std::{sync::Arc, time::Duration};

use tracing::{debug, warn};
use uniroute_proto::v1::{self, ControlFrame, control_frame::Frame};
use uniroute_shared::{
    code::Code,
    id::{Subdomain, TunnelId},
};

use crate::{
    Shared,
    limits::lower,
    names,
    policy::{Policy, PolicyRefused},
    registry::{Claim, Grant, Lookup, NAME_HOLD, SessionHandle, Tunnel, Wish, Wished, ports::Kind},
    sockets::{self, WantedPort},
    store::{Claim as StoreClaim, ClaimError, StoreError, Timestamp},
};

/// Tries to find a free random name; with 64 bits of chance the first one does.
const RANDOM_TRIES: usize = 8;
/// Characters of a local address that are kept for people to look at.
const MAX_URL: usize = 255;
/// Characters of an agent's name in a refusal.
const MAX_AGENT_NAME: usize = 64;
/// Characters of a region.
const MAX_REGION: usize = 10;

/// Why a tunnel can't be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{}", .0.title)]
    Code(&'static Code),
    #[error("{title}: {0}", title = Code::POLICY_REFUSED.title)]
    Policy(#[from] PolicyRefused),
    /// Another agent of the same user has the name.
    #[error("{title} by another agent of yours{0}", title = Code::NAME_TAKEN.title)]
    OtherAgent(String),
}

impl From<&'static Code> for Refusal {
    fn from(code: &'static Code) -> Self {
        Self::Code(code)
    }
}

impl Refusal {
    fn code(&self) -> &'static Code {
        match self {
            Self::Code(code) => code,
            Self::Policy(_) => &Code::POLICY_REFUSED,
            Self::OtherAgent(_) => &Code::NAME_TAKEN,
        }
    }
}

/// Gives a session what it asks for.
pub(super) async fn claim(
    edge: &Arc<Shared>,
    session: &SessionHandle,
    spec: &v1::TunnelSpec,
) -> Result<Claim, Refusal> {
    let kind = v1::TunnelKind::try_from(spec.kind).map_err(|_| &Code::TUNNEL_KIND_UNSUPPORTED)?;
    let http = matches!(kind, v1::TunnelKind::Http | v1::TunnelKind::Unspecified);
    if spec.http.is_some() && !http {
        // Nobody would look at it, and so who is kept out would come in.
        return Err(PolicyRefused::NotHttp.into());
    }
    let number = u16::try_from(spec.port).map_err(|_| &Code::PORT_OUT_OF_RANGE)?;
    let limit = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
    let wish = Wish {
        kind: Kind::of(kind),
        port: None,
        local_url: &spec.local_url,
        response_timeout: limit(spec.response_timeout_ms),
        idle_timeout: limit(spec.idle_timeout_ms),
        wants_times: http && spec.wants_times,
        policy: Policy::compile(spec.http.as_ref(), &edge.policies)?,
        wished: wished_of(spec),
    };
    let ports = sockets::ports(edge, wish.kind)?;
    let wanted = WantedPort { number, is_hint: spec.port_is_hint };
    if !session.permit.allows_kind(wish.kind) {
        return Err(Refusal::Code(&Code::OUT_OF_SCOPE));
    }
    if ports.is_some() && number != 0 && !session.permit.allows_port(number) {
        return Err(Refusal::Code(&Code::OUT_OF_SCOPE));
    }
    let (name, grant) = named(edge, session, spec, &wish, number).await?;
    let claimed = sockets::claim(edge, session, (&name, &grant), wish, wanted).await;
    // At another edge this run of the agent may have the name, by the same claim.
    let shared = session.run_id.is_some() && edge.state.is_shared();
    if claimed.is_err() && !shared {
        edge.books.given_back(&grant);
    }
    Ok(claimed?)
}

fn wished_of(spec: &v1::TunnelSpec) -> Wished {
    let limits = spec.limits.unwrap_or_default();
    let limit = |number: u32| (number > 0).then_some(number);
    Wished {
        requests_per_second: limit(limits.requests_per_second),
        in_flight: limit(limits.in_flight),
        hold: spec.hold_ms.map(|ms| Duration::from_millis(ms.into())),
    }
}

/// The name that the session gets, and what the store says of it.
async fn named(
    edge: &Arc<Shared>,
    session: &SessionHandle,
    spec: &v1::TunnelSpec,
    wish: &Wish<'_>,
    port: u16,
) -> Result<(Subdomain, Grant), Refusal> {
    let of_port = Some(port).filter(|port| *port != 0 && spec.name.is_empty());
    let of_port =
        of_port.and_then(|port| edge.registry.name_of_port(&session.identity, wish.kind, port));
    let mut random = spec.name.is_empty() && of_port.is_none();
    let mut name = match of_port {
        Some(name) => name,
        None if random => names::random_name(),
        None => wished(&spec.name)?,
    };
    for _ in 0..RANDOM_TRIES {
        if !session.permit.allows_name(name.as_str()) {
            // A token for certain names gives no other ones.
            return Err(Refusal::Code(&Code::OUT_OF_SCOPE));
        }
        match granted(edge, session, &name, wish).await {
            Err(refusal)
                if *refusal.code() == Code::NAME_TAKEN && (random || spec.name_is_hint) =>
            {
                random = true;
                name = names::random_name();
            }
            result => return Ok((name, result?)),
        }
    }
    Err(Refusal::Code(&Code::TOO_MANY_TUNNELS))
}

fn wished(name: &str) -> Result<Subdomain, &'static Code> {
    let name = Subdomain::parse(name).map_err(|_| &Code::NAME_INVALID)?;
    if names::is_reserved(name.as_str()) {
        return Err(&Code::NAME_RESERVED);
    }
    Ok(name)
}

async fn granted(
    edge: &Arc<Shared>,
    session: &SessionHandle,
    name: &Subdomain,
    wish: &Wish<'_>,
) -> Result<Grant, Refusal> {
    let account = &session.permit.account;
    let allowance = account.allowance();
    let now = Timestamp::now();
    let claim = StoreClaim {
        id: TunnelId::new().into(),
        user: account.user,
        agent_id: session.identity.agent.as_str().to_owned(),
        run_id: session.run_id,
        subdomain: name.as_str().to_owned(),
        kind: wish.kind.as_str().to_owned(),
        port: None,
        local_url: wish.local_url.chars().take(MAX_URL).collect(),
        public_url: edge.public_url_of(name, wish.kind),
        now,
        agent_until: now.plus(NAME_HOLD),
        held_until: now.plus(edge.quarantine),
        region: session.region.chars().take(MAX_REGION).collect(),
        metadata: serde_json::json!({}),
        force: edge.registry.is_given_up(&session.identity.owner, name),
    };
    if let Some(most) = allowance.tunnels {
        check_plan(edge, &claim, most).await?;
    }
    match edge.store.claim(&claim, &[]).await {
        Ok(claimed) => {
            if claimed.created {
                edge.books.created(session, &claimed.row);
            }
            let row = claimed.row;
            Ok(Grant {
                id: TunnelId::from(row.id),
                fence: row.epoch,
                account: Arc::clone(account),
                rate: lower(row.requests_per_second, allowance.tunnel_requests_per_second),
                paused: row.status == "paused",
            })
        }
        Err(ClaimError::Taken) => Err(taken(edge, session, name).await),
        Err(ClaimError::Store(error)) => match edge.registry.known(&session.identity, name) {
            Some(grant) => {
                warn!(%error, name = name.as_str(), "the store can't be asked; the agent gets what it had");
                Ok(grant)
            }
            None => {
                warn!(%error, name = name.as_str(), "a name can't be given out");
                Err(Refusal::Code(&Code::STORE_UNAVAILABLE))
            }
        },
    }
}

/// Who has the name, as far as that is the user's to know.
async fn taken(edge: &Shared, session: &SessionHandle, name: &Subdomain) -> Refusal {
    let row = edge.store.tunnel_by_name(name.as_str()).await.ok().flatten();
    if row.is_none_or(|row| row.user_id != session.permit.account.user) {
        return Refusal::Code(&Code::NAME_TAKEN);
    }
    let minutes = NAME_HOLD.as_secs() / 60;
    let Lookup::Live(target) = edge.registry.lookup(name.as_str()) else {
        return Refusal::OtherAgent(format!(
            ", which is not connected here now: until it has been gone for {minutes} minutes the name is kept for it"
        ));
    };
    let holder = &target.session;
    let plain = holder.agent_name.chars().filter(|c| !c.is_control()).take(MAX_AGENT_NAME);
    let host: String = plain.collect();
    let host = if host.is_empty() { String::new() } else { format!(" on {host}") };
    Refusal::OtherAgent(format!("{host}, connected from {}", holder.peer.ip().to_canonical()))
}

/// Whether the user may have one more tunnel, if this would be one more.
async fn check_plan(edge: &Shared, claim: &StoreClaim, most: u32) -> Result<(), &'static Code> {
    let counted = async {
        let there = edge.store.tunnel_by_name(&claim.subdomain).await?;
        if there.is_some_and(|row| row.user_id == claim.user) {
            return Ok(true);
        }
        Ok(edge.store.count_tunnels(claim.user).await? < u64::from(most))
    };
    match counted.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(&Code::PLAN_TUNNELS),
        Err::<_, StoreError>(error) => {
            // The claim itself will say so, or find what the agent had.
            debug!(%error, "tunnels can't be counted");
            Ok(())
        }
    }
}

pub(super) fn created(edge: &Shared, key: &str, claim: &Claim) -> ControlFrame {
    Frame::TunnelCreated(v1::TunnelCreated {
        key: key.to_owned(),
        tunnel_id: claim.tunnel.id.as_bytes().to_vec().into(),
        name: claim.tunnel.name.to_string(),
        public_url: edge.public_url(&claim.tunnel),
        state: state(&claim.tunnel).into(),
        epoch: claim.epoch,
        port: claim.tunnel.port.as_ref().map_or(0, |port| port.number.into()),
        hold_ms: Some(hold_ms(edge, claim)),
    })
    .into()
}

/// For how long requests will wait for the tunnel's agent.
fn hold_ms(edge: &Shared, claim: &Claim) -> u32 {
    let edges = edge.hold.time();
    let hold = claim.wished.hold.map_or(edges, |wished| wished.min(edges));
    u32::try_from(hold.as_millis()).unwrap_or(u32::MAX)
}

/// Whether visitors are let through.
pub(super) fn state(tunnel: &Tunnel) -> v1::TunnelState {
    if tunnel.is_paused() { v1::TunnelState::Paused } else { v1::TunnelState::Active }
}

pub(super) fn refused(key: &str, refusal: &Refusal) -> ControlFrame {
    debug!(key, code = %refusal.code(), %refusal, "a tunnel was refused");
    Frame::TunnelRefused(v1::TunnelRefused {
        key: key.to_owned(),
        code: refusal.code().number.into(),
        message: refusal.to_string(),
    })
    .into()
}
