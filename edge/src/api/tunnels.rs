//! Tunnels.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use uniroute_shared::code::Code;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    extract::{Asked, DONE, Id, Input, Page, Paging},
    schema,
};
use crate::{
    auth::agent_tokens::TunnelKind,
    services::{Caller, Failure, Services, tunnels::TunnelWish},
    store::{Timestamp, TunnelChanges, TunnelFilter, TunnelRow},
};

/// Region of tunnels whose owner does not say.
const REGION: &str = "us";

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TunnelInput {
    /// The label that visitors use. Default: a readable random one.
    #[schema(schema_with = schema::subdomain)]
    name: Option<String>,
    #[serde(default)]
    #[schema(default = "http")]
    kind: TunnelKind,
    /// Where the agent finds the local server; a note, which the edge does not act on.
    #[schema(schema_with = schema::local_url)]
    #[serde(default)]
    local_url: String,
    #[schema(schema_with = schema::region)]
    region: Option<String>,
    /// Labels of the owner's own.
    #[schema(schema_with = schema::metadata)]
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// `null`: as the plan says.
    #[schema(schema_with = schema::rate_or_null)]
    requests_per_second: Option<u32>,
}

/// What is not given stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TunnelPatch {
    #[schema(schema_with = schema::local_url)]
    local_url: Option<String>,
    #[schema(schema_with = schema::region)]
    region: Option<String>,
    /// Takes the place of all that are there.
    #[schema(schema_with = schema::metadata)]
    metadata: Option<BTreeMap<String, String>>,
    /// `null`: as the plan says.
    #[schema(schema_with = schema::rate_or_null)]
    #[serde(default, deserialize_with = "schema::given")]
    requests_per_second: Option<Option<u32>>,
}

/// A tunnel.
#[derive(Serialize, ToSchema)]
pub(super) struct Tunnel {
    id: Uuid,
    user_id: Uuid,
    /// The label that visitors use.
    name: String,
    kind: TunnelKind,
    status: TunnelStatus,
    public_url: String,
    local_url: String,
    /// The public port, of a TCP or UDP tunnel that has been served.
    port: Option<u16>,
    custom_domain: Option<String>,
    region: String,
    metadata: BTreeMap<String, String>,
    requests_per_second: Option<u32>,
    /// Whether the name is the owner's until the tunnel is deleted. One that an agent has claimed
    /// without that is its owner's while it is served, and for a while after.
    is_reserved: bool,
    request_count: u64,
    /// The agent that has the name now.
    agent: Option<String>,
    /// Grows with every change of what its owner may set; the `etag`.
    version: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
    last_active_at: Option<Timestamp>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum TunnelStatus {
    Active,
    /// Visitors are told so; its agent stays connected.
    Paused,
}

impl From<TunnelRow> for Tunnel {
    fn from(row: TunnelRow) -> Self {
        let paused = row.status == "paused";
        Self {
            id: row.id,
            user_id: row.user_id,
            name: row.subdomain,
            kind: TunnelKind::parse(&row.kind).unwrap_or_default(),
            status: if paused { TunnelStatus::Paused } else { TunnelStatus::Active },
            public_url: row.public_url,
            local_url: row.local_url,
            port: row.port,
            custom_domain: row.custom_domain,
            region: row.region,
            // What agents have written is not always text.
            metadata: serde_json::from_value(row.metadata).unwrap_or_default(),
            requests_per_second: row.requests_per_second,
            is_reserved: row.held_until.is_none(),
            request_count: row.request_count,
            agent: row.agent_id,
            version: row.version,
            created_at: row.created_at,
            updated_at: row.updated_at,
            last_active_at: row.last_active_at,
        }
    }
}

/// The tunnel, with its version as `etag`.
fn tagged(status: StatusCode, row: TunnelRow) -> Response {
    let tag = HeaderValue::try_from(format!("\"{}\"", row.version));
    let mut response = (status, Json(Tunnel::from(row))).into_response();
    if let Ok(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Which tunnels.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TunnelQuery {
    /// Whose name has this part.
    #[param(schema_with = schema::name_part)]
    name: Option<String>,
    #[param(schema_with = schema::kind)]
    kind: Option<TunnelKind>,
    #[param(schema_with = schema::tunnel_status)]
    status: Option<String>,
    /// Of this account; for operators.
    user_id: Option<Uuid>,
}

/// Tunnels.
#[utoipa::path(
    get, path = "/api/v1/tunnels", tag = "Tunnels", security(("bearer" = [])),
    params(Paging, TunnelQuery),
    responses((status = 200, body = Page<Tunnel>)),
)]
pub(super) async fn list_tunnels(
    State(services): State<Services>,
    caller: Caller,
    Asked(paging): Asked<Paging>,
    Asked(query): Asked<TunnelQuery>,
) -> Result<Json<Page<Tunnel>>, Failure> {
    let filter = TunnelFilter {
        user: caller.lists(query.user_id),
        status: query.status,
        kind: query.kind.map(|kind| kind.as_str().to_owned()),
        name_contains: query.name.map(|name| name.to_ascii_lowercase()),
        after: paging.after,
        limit: paging.limit + 1,
    };
    let rows = services.list_tunnels(&filter).await?;
    Ok(Json(Page::of(rows, paging.limit, |row| row.id.to_string(), Tunnel::from)))
}

/// Makes a tunnel, whose name is yours until it is deleted.
///
/// An agent of yours that asks for the name gets it.
#[utoipa::path(
    post, path = "/api/v1/tunnels", tag = "Tunnels", security(("bearer" = [])),
    request_body = TunnelInput,
    responses(
        (status = 201, body = Tunnel,
            headers(("etag" = String, description = "Its version, for `if-match`"))),
        (status = 403, description = "The plan allows no more"),
        (status = 409, description = "The name is taken, reserved, or of a tunnel deleted lately"),
    ),
)]
pub(super) async fn create_tunnel(
    State(services): State<Services>,
    caller: Caller,
    Input(input): Input<TunnelInput>,
) -> Result<Response, Failure> {
    let wish = TunnelWish {
        name: input.name,
        kind: input.kind,
        local_url: input.local_url,
        region: input.region.unwrap_or_else(|| REGION.to_owned()),
        metadata: serde_json::json!(input.metadata),
        requests_per_second: input.requests_per_second,
    };
    Ok(tagged(StatusCode::CREATED, services.add_tunnel(&caller, &wish).await?))
}

/// One tunnel.
#[utoipa::path(
    get, path = "/api/v1/tunnels/{id}", tag = "Tunnels", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the tunnel")),
    responses((status = 200, body = Tunnel,
        headers(("etag" = String, description = "Its version, for `if-match`")))),
)]
pub(super) async fn get_tunnel(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<Response, Failure> {
    Ok(tagged(StatusCode::OK, services.tunnel(&caller, id).await?))
}

/// Changes a tunnel.
#[utoipa::path(
    patch, path = "/api/v1/tunnels/{id}", tag = "Tunnels", security(("bearer" = [])),
    params(
        ("id" = Uuid, Path, description = "Of the tunnel"),
        ("if-match" = Option<String>, Header, example = "\"1\"",
            description = "The `etag` of the version that is to be changed: another one stays. `*`: \
                whichever it is"),
    ),
    request_body = TunnelPatch,
    responses(
        (status = 200, body = Tunnel,
            headers(("etag" = String, description = "Its version, for `if-match`"))),
        (status = 403, description = "It is somebody else's"),
        (status = 412, description = "It has another version"),
    ),
)]
pub(super) async fn update_tunnel(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
    headers: HeaderMap,
    Input(input): Input<TunnelPatch>,
) -> Result<Response, Failure> {
    let changes = TunnelChanges {
        local_url: input.local_url,
        region: input.region,
        metadata: input.metadata.map(|labels| serde_json::json!(labels)),
        requests_per_second: input.requests_per_second,
        ..Default::default()
    };
    let expected = expected_version(&headers)?;
    let row = services.change_tunnel(&caller, id, expected, &changes).await?;
    Ok(tagged(StatusCode::OK, row))
}

/// The version of `if-match`; `*` stands for any.
fn expected_version(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = tag.to_str().unwrap_or_default();
    if text == "*" {
        return Ok(None);
    }
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let version = inner.and_then(|version| version.parse().ok());
    // What is none of our tags fits no version.
    version.map(Some).ok_or_else(|| Failure::new(&Code::CHANGED_MEANWHILE))
}

/// Deletes a tunnel. Its name stays yours for a while: nobody else gets its visitors.
#[utoipa::path(
    delete, path = "/api/v1/tunnels/{id}", tag = "Tunnels", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the tunnel")),
    responses(
        (status = 204, description = "Done"),
        (status = 403, description = "It is somebody else's"),
    ),
)]
pub(super) async fn delete_tunnel(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<StatusCode, Failure> {
    services.remove_tunnel(&caller, id).await?;
    Ok(DONE)
}

/// Pauses a tunnel: visitors are told so, at once and at every edge. Its agent stays connected.
#[utoipa::path(
    post, path = "/api/v1/tunnels/{id}/pause", tag = "Tunnels", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the tunnel")),
    responses((status = 200, body = Tunnel)),
)]
pub(super) async fn pause_tunnel(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<Response, Failure> {
    Ok(tagged(StatusCode::OK, services.pause_tunnel(&caller, id, true).await?))
}

/// Lets a paused tunnel go on.
#[utoipa::path(
    post, path = "/api/v1/tunnels/{id}/resume", tag = "Tunnels", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the tunnel")),
    responses((status = 200, body = Tunnel)),
)]
pub(super) async fn resume_tunnel(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<Response, Failure> {
    Ok(tagged(StatusCode::OK, services.pause_tunnel(&caller, id, false).await?))
}
