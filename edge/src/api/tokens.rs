//! Tokens of agents.

use std::time::Duration;

use axum::{Json, extract::State, response::IntoResponse};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    extract::{Asked, DONE, Id, Input, Page, Paging},
    gate::Once,
    schema,
};
use crate::{
    auth::agent_tokens::{AgentToken, TokenScopes},
    services::{
        Caller, Failure, Services,
        tokens::{OVERLAP, TokenChange},
    },
    store::{Timestamp, tokens::TokenRow},
};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenInput {
    /// By which its owner knows it.
    #[schema(schema_with = schema::title)]
    #[serde(default)]
    name: String,
    /// Default: it has no end.
    #[schema(schema_with = schema::time)]
    expires_at: Option<Timestamp>,
    #[serde(default)]
    scopes: TokenScopes,
}

/// What is not given stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenPatch {
    #[schema(schema_with = schema::title)]
    name: Option<String>,
    /// `null`: it has no end.
    #[schema(schema_with = schema::time_or_null)]
    #[serde(default, deserialize_with = "schema::given")]
    expires_at: Option<Option<Timestamp>>,
    #[schema(schema_with = schema::scopes)]
    scopes: Option<TokenScopes>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateInput {
    /// Seconds for which the old token goes on; 0: it ends now.
    #[serde(default = "overlap")]
    #[schema(minimum = 0, maximum = 2_592_000, default = 86_400)]
    overlap_seconds: u32,
}

fn overlap() -> u32 {
    u32::try_from(OVERLAP.as_secs()).unwrap_or(u32::MAX)
}

/// A token of agents.
#[derive(Serialize, ToSchema)]
pub(super) struct Token {
    id: Uuid,
    user_id: Uuid,
    name: String,
    /// Its first characters.
    hint: String,
    scopes: TokenScopes,
    expires_at: Option<Timestamp>,
    created_at: Timestamp,
    /// Roughly: it is not written at every use.
    last_used_at: Option<Timestamp>,
    /// Whether it is neither revoked nor over.
    is_good: bool,
    is_revoked: bool,
    /// The token that it took over from.
    replaces: Option<Uuid>,
}

impl From<TokenRow> for Token {
    fn from(row: TokenRow) -> Self {
        Self {
            is_good: row.is_good(Timestamp::now()),
            id: row.id,
            user_id: row.user,
            name: row.name,
            hint: row.hint,
            scopes: row.scopes,
            expires_at: row.expires_at,
            created_at: row.created_at,
            last_used_at: row.last_used_at,
            is_revoked: !row.is_active,
            replaces: row.replaces,
        }
    }
}

/// A new token.
#[derive(Serialize, ToSchema)]
pub(super) struct NewToken {
    #[serde(flatten)]
    row: Token,
    /// The token itself; told this once (`null` in a repeated answer).
    token: Option<String>,
}

fn told(row: TokenRow, secret: &AgentToken) -> impl IntoResponse + use<> {
    let told = NewToken { row: row.into(), token: Some(secret.expose().to_owned()) };
    (StatusCode::CREATED, axum::Extension(Once("token")), Json(told))
}

/// Which tokens.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TokenFilter {
    /// Only those that are neither revoked nor over.
    #[param(schema_with = schema::boolean)]
    good: Option<bool>,
    /// Of this account; for operators.
    user_id: Option<Uuid>,
}

/// Tokens.
#[utoipa::path(
    get, path = "/api/v1/tokens", tag = "Tokens", security(("bearer" = [])),
    params(Paging, TokenFilter),
    responses((status = 200, body = Page<Token>)),
)]
pub(super) async fn list_tokens(
    State(services): State<Services>,
    caller: Caller,
    Asked(paging): Asked<Paging>,
    Asked(filter): Asked<TokenFilter>,
) -> Result<Json<Page<Token>>, Failure> {
    let user = caller.lists(filter.user_id);
    let good_at = filter.good.filter(|good| *good).map(|_| Timestamp::now());
    let limit = paging.limit;
    let rows = services.store.list_tokens(user, good_at, paging.after, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), Token::from)))
}

/// Makes a token.
#[utoipa::path(
    post, path = "/api/v1/tokens", tag = "Tokens", security(("bearer" = [])),
    request_body = TokenInput,
    responses(
        (status = 201, body = NewToken),
        (status = 403, description = "The account has as many as it may"),
    ),
)]
pub(super) async fn create_token(
    State(services): State<Services>,
    caller: Caller,
    Input(input): Input<TokenInput>,
) -> Result<impl IntoResponse, Failure> {
    let (user, actor) = (caller.user, caller.actor());
    let made = services.add_token(user, input.name, input.expires_at, input.scopes, &actor);
    let (row, secret) = made.await?;
    Ok(told(row, &secret))
}

/// One token.
#[utoipa::path(
    get, path = "/api/v1/tokens/{id}", tag = "Tokens", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the token")),
    responses((status = 200, body = Token)),
)]
pub(super) async fn get_token(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<Token>, Failure> {
    Ok(Json(services.token(&caller, id).await?.into()))
}

/// Changes a token's name, end and scopes.
#[utoipa::path(
    patch, path = "/api/v1/tokens/{id}", tag = "Tokens", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the token")),
    request_body = TokenPatch,
    responses(
        (status = 200, body = Token),
        (status = 403, description = "It is somebody else's"),
        (status = 409, description = "It is revoked"),
    ),
)]
pub(super) async fn update_token(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
    Input(input): Input<TokenPatch>,
) -> Result<Json<Token>, Failure> {
    let (name, expires_at, scopes) = (input.name, input.expires_at, input.scopes);
    let change = TokenChange { name, expires_at, scopes };
    Ok(Json(services.change_token(&caller, id, change).await?.into()))
}

/// Revokes a token: its sessions end.
#[utoipa::path(
    delete, path = "/api/v1/tokens/{id}", tag = "Tokens", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the token")),
    responses(
        (status = 204, description = "Done"),
        (status = 403, description = "It is somebody else's"),
    ),
)]
pub(super) async fn revoke_token(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
) -> Result<StatusCode, Failure> {
    services.revoke_token(&caller, id).await?;
    Ok(DONE)
}

/// Makes a new token in the place of this one, which goes on for a while.
#[utoipa::path(
    post, path = "/api/v1/tokens/{id}/rotate", tag = "Tokens", security(("bearer" = [])),
    params(("id" = Uuid, Path, description = "Of the token")),
    request_body = RotateInput,
    responses(
        (status = 201, body = NewToken),
        (status = 403, description = "It is somebody else's"),
        (status = 409, description = "It is revoked, or over"),
    ),
)]
pub(super) async fn rotate_token(
    State(services): State<Services>,
    caller: Caller,
    Id(id): Id,
    Input(input): Input<RotateInput>,
) -> Result<impl IntoResponse, Failure> {
    let overlap = Duration::from_secs(input.overlap_seconds.into());
    let (row, secret) = services.rotate_token(&caller, id, overlap).await?;
    Ok(told(row, &secret))
}
