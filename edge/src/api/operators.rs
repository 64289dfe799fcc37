//! Sessions, the audit log, plans, bans, keys, and whether the edge is well.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    extract::{Asked, By, DONE, Id, Input, Name, Page, Paging},
    schema,
};
use crate::{
    events::Kind,
    services::{Ban, Caller, Failure, Services},
    store::{
        self, SessionRow, Timestamp,
        audit::{AuditFilter, AuditRow},
        keys::KeyRow,
        plans::{Plan, PlanLimits},
    },
};

/// An agent's connection, and one tunnel that it serves.
#[derive(Serialize, ToSchema)]
pub(super) struct Session {
    /// Of the entry: a session has one for each tunnel that it serves.
    id: Uuid,
    /// Of the connection: to be cut by.
    session_id: Uuid,
    tunnel_id: Uuid,
    /// The token that it came with.
    token_id: Option<Uuid>,
    agent: String,
    agent_version: String,
    /// The edge that it is connected to.
    edge: String,
    /// From where.
    peer: String,
    connected_at: Timestamp,
    disconnected_at: Option<Timestamp>,
    last_heartbeat: Option<Timestamp>,
    is_connected: bool,
}

impl From<SessionRow> for Session {
    fn from(row: SessionRow) -> Self {
        Self {
            id: row.id,
            session_id: row.session_id,
            tunnel_id: row.tunnel_id,
            token_id: row.token_id,
            agent: row.client_id,
            agent_version: row.agent_version,
            edge: row.server_id,
            peer: row.peer,
            connected_at: row.connected_at,
            is_connected: row.disconnected_at.is_none(),
            disconnected_at: row.disconnected_at,
            last_heartbeat: row.last_heartbeat,
        }
    }
}

/// Which sessions.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SessionFilter {
    /// That serve this tunnel.
    tunnel_id: Option<Uuid>,
    /// Of this account; for operators.
    user_id: Option<Uuid>,
    /// `false`: also those that have ended. Default: `true`.
    #[param(schema_with = schema::boolean)]
    connected: Option<bool>,
}

/// Sessions of agents.
#[utoipa::path(
    get, path = "/api/v1/sessions", tag = "Sessions", security(("bearer" = [])),
    params(Paging, SessionFilter),
    responses((status = 200, body = Page<Session>)),
)]
pub(super) async fn list_sessions(
    State(services): State<Services>,
    caller: Caller,
    Asked(paging): Asked<Paging>,
    Asked(filter): Asked<SessionFilter>,
) -> Result<Json<Page<Session>>, Failure> {
    let limit = paging.limit;
    let asked = store::SessionFilter {
        user: caller.lists(filter.user_id),
        tunnel: filter.tunnel_id,
        session: None,
        live: filter.connected.unwrap_or(true),
        after: paging.after,
        limit: limit + 1,
    };
    let rows = services.list_sessions(&asked).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), Session::from)))
}

/// Ends a session.
///
/// Its agent may connect again at once; to keep it out, revoke its token.
#[utoipa::path(
    delete, path = "/api/v1/sessions/{id}", tag = "Sessions", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "The `session_id`")),
    responses((status = 204, description = "Done")),
)]
pub(super) async fn cut_session(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<StatusCode, Failure> {
    services.cut_session(&caller, id).await?;
    Ok(DONE)
}

/// Something that has happened.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditEntry {
    id: Uuid,
    at: Timestamp,
    #[schema(schema_with = schema::event_kind)]
    kind: &'static str,
    /// Whose it is.
    user_id: Option<Uuid>,
    tunnel_id: Option<Uuid>,
    /// What else it is about: a token, a session, an account.
    object_id: Option<Uuid>,
    actor: Actor,
    /// More of it, by kind.
    #[schema(schema_with = schema::anything)]
    data: serde_json::Value,
}

/// Who did it.
#[derive(Serialize, ToSchema)]
struct Actor {
    /// An account, if it was one.
    user_id: Option<Uuid>,
    name: String,
    /// From where.
    peer: String,
}

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.id,
            at: row.event.at,
            kind: row.event.kind.as_str(),
            user_id: row.event.user,
            tunnel_id: row.event.tunnel,
            object_id: row.event.object,
            actor: Actor { user_id: row.actor, name: row.actor_name, peer: row.peer },
            data: row.event.data,
        }
    }
}

/// Which events.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventFilter {
    #[param(schema_with = schema::event_kind)]
    kind: Option<String>,
    /// About this tunnel.
    tunnel_id: Option<Uuid>,
    /// Of this account; for operators.
    user_id: Option<Uuid>,
    /// Not before this.
    #[param(schema_with = schema::time)]
    from: Option<Timestamp>,
    /// Before this.
    #[param(schema_with = schema::time)]
    to: Option<Timestamp>,
}

/// The audit log: every change, by whom and from where.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "Operation", security(("bearer" = [])),
    params(Paging, EventFilter),
    responses((status = 200, body = Page<AuditEntry>)),
)]
pub(super) async fn list_events(
    State(services): State<Services>,
    caller: Caller,
    Asked(paging): Asked<Paging>,
    Asked(filter): Asked<EventFilter>,
) -> Result<Json<Page<AuditEntry>>, Failure> {
    let asked = AuditFilter {
        user: caller.lists(filter.user_id),
        tunnel: filter.tunnel_id,
        kind: filter.kind.as_deref().and_then(Kind::parse),
        from: filter.from,
        to: filter.to,
        after: paging.after,
    };
    let rows = services.store.list_audit(&asked, paging.limit + 1).await?;
    Ok(Json(Page::of(rows, paging.limit, |row| row.id.to_string(), AuditEntry::from)))
}

/// Limits of a plan; `null`, or not there: no limit.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Of all tunnels of an account together.
    #[schema(schema_with = schema::rate_or_null)]
    requests_per_second: Option<u32>,
    /// Of each tunnel.
    #[schema(schema_with = schema::rate_or_null)]
    tunnel_requests_per_second: Option<u32>,
    #[schema(schema_with = schema::count_or_null)]
    tunnels: Option<u32>,
    /// Sessions at a time.
    #[schema(schema_with = schema::count_or_null)]
    agents: Option<u32>,
    #[schema(schema_with = schema::bytes_or_null)]
    bandwidth_bytes_per_second: Option<u64>,
    #[schema(schema_with = schema::bytes_or_null)]
    transfer_bytes_per_month: Option<u64>,
}

impl From<Limits> for PlanLimits {
    fn from(limits: Limits) -> Self {
        Self {
            requests_per_second: limits.requests_per_second,
            tunnel_requests_per_second: limits.tunnel_requests_per_second,
            tunnels: limits.tunnels,
            agents: limits.agents,
            bandwidth_bytes_per_second: limits.bandwidth_bytes_per_second,
            transfer_bytes_per_month: limits.transfer_bytes_per_month,
        }
    }
}

impl From<PlanLimits> for Limits {
    fn from(limits: PlanLimits) -> Self {
        Self {
            requests_per_second: limits.requests_per_second,
            tunnel_requests_per_second: limits.tunnel_requests_per_second,
            tunnels: limits.tunnels,
            agents: limits.agents,
            bandwidth_bytes_per_second: limits.bandwidth_bytes_per_second,
            transfer_bytes_per_month: limits.transfer_bytes_per_month,
        }
    }
}

/// What accounts may use at most.
#[derive(Serialize, ToSchema)]
pub(super) struct PlanAnswer {
    name: String,
    limits: Limits,
    updated_at: Timestamp,
}

impl From<Plan> for PlanAnswer {
    fn from(plan: Plan) -> Self {
        Self { name: plan.name, limits: plan.limits.into(), updated_at: plan.updated_at }
    }
}

/// Which part of the list of plans.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PlanPaging {
    /// Items at most.
    #[param(minimum = 1, maximum = 100, default = 50)]
    #[serde(default = "fifty")]
    limit: u32,
    /// Go on behind this plan: the `next` of the part before.
    #[param(schema_with = schema::plan_name)]
    after: Option<String>,
}

fn fifty() -> u32 {
    50
}

/// Plans, by name.
#[utoipa::path(
    get, path = "/api/v1/plans", tag = "Accounts", security(("bearer" = ["admin"])),
    params(PlanPaging),
    responses((status = 200, body = Page<PlanAnswer>)),
)]
pub(super) async fn list_plans(
    State(services): State<Services>,
    Asked(paging): Asked<PlanPaging>,
) -> Result<Json<Page<PlanAnswer>>, Failure> {
    let rows = services.store.list_plans(paging.after.as_deref(), paging.limit + 1).await?;
    Ok(Json(Page::of(rows, paging.limit, |plan| plan.name.clone(), PlanAnswer::from)))
}

/// One plan.
#[utoipa::path(
    get, path = "/api/v1/plans/{name}", tag = "Accounts", security(("bearer" = ["admin"])),
    params(("name" = String, Path, pattern = "^[a-z0-9][a-z0-9_-]*$", max_length = 64)),
    responses((status = 200, body = PlanAnswer)),
)]
pub(super) async fn get_plan(
    State(services): State<Services>,
    Name(name): Name,
) -> Result<Json<PlanAnswer>, Failure> {
    Ok(Json(services.plan(&name).await?.into()))
}

/// Writes a plan, new or not: who has it has the new limits at once.
#[utoipa::path(
    put, path = "/api/v1/plans/{name}", tag = "Accounts", security(("bearer" = ["admin"])),
    params(("name" = String, Path, pattern = "^[a-z0-9][a-z0-9_-]*$", max_length = 64)),
    request_body = Limits,
    responses((status = 200, body = PlanAnswer)),
)]
pub(super) async fn put_plan(
    State(services): State<Services>,
    By(actor): By,
    Name(name): Name,
    Input(limits): Input<Limits>,
) -> Result<Json<PlanAnswer>, Failure> {
    if !schema::is_plan_name(&name) {
        return Err(Failure::no_such_thing());
    }
    Ok(Json(services.put_plan(&name, limits.into(), &actor).await?.into()))
}

/// Removes a plan that no account has.
#[utoipa::path(
    delete, path = "/api/v1/plans/{name}", tag = "Accounts", security(("bearer" = ["admin"])),
    params(("name" = String, Path, pattern = "^[a-z0-9][a-z0-9_-]*$", max_length = 64)),
    responses(
        (status = 204, description = "Done"),
        (status = 409, description = "Accounts have it, or it is the default one"),
    ),
)]
pub(super) async fn delete_plan(
    State(services): State<Services>,
    By(actor): By,
    Name(name): Name,
) -> Result<StatusCode, Failure> {
    services.remove_plan(&name, &actor).await?;
    Ok(DONE)
}

/// An address that is kept out for a while.
#[derive(Serialize, ToSchema)]
pub(super) struct BanAnswer {
    #[schema(example = "203.0.113.9")]
    address: String,
    /// Which rule it has broken.
    rule: String,
    until: Timestamp,
}

impl From<Ban> for BanAnswer {
    fn from(ban: Ban) -> Self {
        Self { address: ban.address.to_string(), rule: ban.rule, until: ban.until }
    }
}

/// Which part of the list of bans.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BanPaging {
    /// Items at most.
    #[param(minimum = 1, maximum = 100, default = 50)]
    #[serde(default = "fifty")]
    limit: u32,
    /// Go on behind this address: the `next` of the part before.
    #[param(schema_with = schema::address)]
    after: Option<std::net::IpAddr>,
}

/// Addresses that are kept out, in order.
#[utoipa::path(
    get, path = "/api/v1/bans", tag = "Operation", security(("bearer" = ["operator"])),
    params(BanPaging),
    responses((status = 200, body = Page<BanAnswer>)),
)]
pub(super) async fn list_bans(
    State(services): State<Services>,
    Asked(paging): Asked<BanPaging>,
) -> Json<Page<BanAnswer>> {
    let bans = services.bans().await.into_iter();
    let rest = bans.filter(|ban| paging.after.is_none_or(|after| ban.address > after));
    let rows = rest.take(paging.limit as usize + 1).collect();
    Json(Page::of(rows, paging.limit, |ban| ban.address.to_string(), BanAnswer::from))
}

/// Lets an address in again.
#[utoipa::path(
    delete, path = "/api/v1/bans/{address}", tag = "Operation",
    security(("bearer" = ["operator"])),
    params(("address" = String, Path, example = "203.0.113.9", max_length = 45)),
    responses((status = 204, description = "Done")),
)]
pub(super) async fn lift_ban(
    State(services): State<Services>,
    By(actor): By,
    Name(address): Name,
) -> Result<StatusCode, Failure> {
    let address = address.parse().map_err(|_| Failure::no_such_thing())?;
    services.lift_ban(address, &actor).await?;
    Ok(DONE)
}

/// A key of access tokens; never the key itself.
#[derive(Serialize, ToSchema)]
pub(super) struct Key {
    kid: String,
    created_at: Timestamp,
}

impl From<KeyRow> for Key {
    fn from(row: KeyRow) -> Self {
        Self { kid: row.kid, created_at: row.created_at }
    }
}

/// Signs access tokens with a new key from now on.
///
/// Those that older keys have signed stay good until they are over. To end logins at once, make the
/// account inactive or set a new password.
#[utoipa::path(
    post, path = "/api/v1/keys/rotate", tag = "Operation", security(("bearer" = ["admin"])),
    responses((status = 201, body = Key)),
)]
pub(super) async fn rotate_keys(
    State(services): State<Services>,
    By(actor): By,
) -> Result<(StatusCode, Json<Key>), Failure> {
    Ok((StatusCode::CREATED, Json(services.rotate_keys(&actor).await?.into())))
}

/// What answers.
#[derive(Serialize, ToSchema)]
pub(super) struct HealthAnswer {
    status: HealthStatus,
    /// Whether the store answers.
    store: bool,
    /// Whether the shared state answers.
    state: bool,
    /// Of the edge.
    #[schema(example = "0.1.0")]
    version: &'static str,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum HealthStatus {
    Ok,
    /// Tunnels that are connected go on.
    Degraded,
}

/// Whether the edge is well.
#[utoipa::path(
    get, path = "/api/v1/health", tag = "Operation",
    responses((status = 200, body = HealthAnswer)),
)]
pub(super) async fn health(State(services): State<Services>) -> Json<HealthAnswer> {
    let health = services.health().await;
    let well = health.store && health.state;
    Json(HealthAnswer {
        status: if well { HealthStatus::Ok } else { HealthStatus::Degraded },
        store: health.store,
        state: health.state,
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// This description.
#[utoipa::path(
    get, path = "/api/v1/openapi.json", tag = "Operation",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value)),
)]
pub(super) async fn openapi(State(state): State<super::State>) -> Response {
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (kind, state.document.as_ref().clone()).into_response()
}
