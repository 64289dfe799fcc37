//! Domains of users.

use axum::{Json, extract::State};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    extract::{Asked, DONE, Id, Input, Page, Paging},
    schema,
};
use crate::{
    services::{Caller, Failure, Services},
    store::{Timestamp, domains::DomainRow},
};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DomainInput {
    #[schema(schema_with = schema::domain)]
    name: String,
    /// The tunnel that it leads to.
    #[schema(schema_with = schema::id_or_null)]
    tunnel_id: Option<Uuid>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DomainPatch {
    /// The tunnel that it leads to; `null`: to none.
    #[schema(schema_with = schema::id_or_null, required = true)]
    tunnel_id: Option<Uuid>,
}

/// A domain.
#[derive(Serialize, ToSchema)]
pub(super) struct Domain {
    id: Uuid,
    user_id: Uuid,
    name: String,
    tunnel_id: Option<Uuid>,
    status: DomainStatus,
    /// The record that shows that the domain is yours.
    record: DnsRecord,
    verified_at: Option<Timestamp>,
    /// When the record was last looked for.
    checked_at: Option<Timestamp>,
    created_at: Timestamp,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum DomainStatus {
    /// Nothing goes to its tunnel yet.
    Unverified,
    Verified,
}

/// What to put into the DNS.
#[derive(Serialize, ToSchema)]
struct DnsRecord {
    #[serde(rename = "type")]
    #[schema(example = "TXT")]
    kind: &'static str,
    #[schema(example = "_uniroute.shop.example.com")]
    name: String,
    #[schema(example = "uniroute-verify=bG9uZyBhbmQgcmFuZG9t")]
    value: String,
}

impl From<DomainRow> for Domain {
    fn from(row: DomainRow) -> Self {
        let verified = row.verified_at.is_some();
        let name = format!("_uniroute.{}", row.name);
        Self {
            id: row.id,
            user_id: row.user,
            name: row.name,
            tunnel_id: row.tunnel,
            status: if verified { DomainStatus::Verified } else { DomainStatus::Unverified },
            record: DnsRecord { kind: "TXT", name, value: row.proof },
            verified_at: row.verified_at,
            checked_at: row.checked_at,
            created_at: row.created_at,
        }
    }
}

/// Which domains.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DomainFilter {
    /// That lead to this tunnel.
    tunnel_id: Option<Uuid>,
    /// Of this account; for operators.
    user_id: Option<Uuid>,
}

/// Domains.
#[utoipa::path(
    get, path = "/api/v1/domains", tag = "Domains", security(("bearer" = [])),
    params(Paging, DomainFilter),
    responses((status = 200, body = Page<Domain>)),
)]
pub(super) async fn list_domains(
    State(services): State<Services>,
    caller: Caller,
    Asked(paging): Asked<Paging>,
    Asked(filter): Asked<DomainFilter>,
) -> Result<Json<Page<Domain>>, Failure> {
    let user = caller.lists(filter.user_id);
    let limit = paging.limit;
    let rows = services.store.list_domains(user, filter.tunnel_id, paging.after, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), Domain::from)))
}

/// Adds a domain, which its DNS has to prove.
#[utoipa::path(
    post, path = "/api/v1/domains", tag = "Domains", security(("bearer" = [])),
    request_body = DomainInput,
    responses(
        (status = 201, body = Domain),
        (status = 403, description = "The account has as many as it may"),
        (status = 404, description = "There is no such tunnel"),
        (status = 409, description = "The account has it already"),
    ),
)]
pub(super) async fn create_domain(
    State(services): State<Services>,
    caller: Caller,
    Input(input): Input<DomainInput>,
) -> Result<(StatusCode, Json<Domain>), Failure> {
    let row = services.add_domain(&caller, &input.name, input.tunnel_id).await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

/// One domain.
#[utoipa::path(
    get, path = "/api/v1/domains/{id}", tag = "Domains", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the domain")),
    responses((status = 200, body = Domain)),
)]
pub(super) async fn get_domain(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<Domain>, Failure> {
    Ok(Json(services.domain(&caller, id).await?.into()))
}

/// Leads a domain to another tunnel, or to none.
#[utoipa::path(
    patch, path = "/api/v1/domains/{id}", tag = "Domains", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the domain")),
    request_body = DomainPatch,
    responses(
        (status = 200, body = Domain),
        (status = 403, description = "It is somebody else's"),
    ),
)]
pub(super) async fn update_domain(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
    Input(input): Input<DomainPatch>,
) -> Result<Json<Domain>, Failure> {
    Ok(Json(services.point_domain(&caller, id, input.tunnel_id).await?.into()))
}

/// Removes a domain.
#[utoipa::path(
    delete, path = "/api/v1/domains/{id}", tag = "Domains", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the domain")),
    responses(
        (status = 204, description = "Done"),
        (status = 403, description = "It is somebody else's"),
    ),
)]
pub(super) async fn delete_domain(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<StatusCode, Failure> {
    services.remove_domain(&caller, id).await?;
    Ok(DONE)
}
