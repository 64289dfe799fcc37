//! Logging in, accounts and invitations.

use axum::{Json, extract::State, response::IntoResponse};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    extract::{Asked, By, DONE, Id, Input, Page, Paging},
    gate::Once,
    schema,
};
use crate::{
    auth::{Role, jwt},
    services::{
        Caller, Failure, Services,
        accounts::{DEFAULT_PLAN, NewUser},
        logins,
    },
    store::{
        Timestamp,
        invites::InviteRow,
        users::{UserChange, UserRow},
    },
};

/// Who one is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginInput {
    #[schema(schema_with = schema::email)]
    email: String,
    #[schema(schema_with = schema::old_password)]
    password: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RefreshInput {
    #[schema(schema_with = schema::secret)]
    refresh_token: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogoutInput {
    /// End all logins of the account, not this one only.
    #[serde(default)]
    everywhere: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignupInput {
    #[schema(schema_with = schema::email)]
    email: String,
    #[schema(schema_with = schema::new_password)]
    password: String,
    /// The secret of an invitation.
    #[schema(schema_with = schema::secret)]
    invite: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordInput {
    #[schema(schema_with = schema::old_password)]
    old_password: String,
    #[schema(schema_with = schema::new_password)]
    new_password: String,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserInput {
    #[schema(schema_with = schema::email)]
    email: String,
    /// Without one nobody can log in to the account until it is set.
    #[schema(schema_with = schema::new_password)]
    password: Option<String>,
    #[serde(default = "user_role")]
    #[schema(default = "user")]
    role: Role,
    /// Name of a plan. Default: `default`.
    #[schema(schema_with = schema::plan_name)]
    plan: Option<String>,
}

fn user_role() -> Role {
    Role::User
}

/// What is not given stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserPatch {
    #[schema(schema_with = schema::role)]
    role: Option<Role>,
    #[schema(schema_with = schema::plan_name)]
    plan: Option<String>,
    /// An inactive account can do nothing, and its sessions end.
    #[schema(schema_with = schema::boolean)]
    is_active: Option<bool>,
    /// Sets a new password; all logins of the account end.
    #[schema(schema_with = schema::new_password)]
    password: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InviteInput {
    /// The only address that may use it. Default: any.
    #[schema(schema_with = schema::email)]
    email: Option<String>,
    #[serde(default = "user_role")]
    #[schema(default = "user")]
    role: Role,
    /// Days until it is over.
    #[serde(default = "seven")]
    #[schema(minimum = 1, maximum = 90, default = 7)]
    days: u32,
}

fn seven() -> u32 {
    7
}

/// Tokens of a login. Both are secrets.
#[derive(Serialize, ToSchema)]
pub(super) struct LoginTokens {
    /// For `authorization: Bearer`.
    access_token: String,
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// Seconds until the access token is over.
    expires_in: u64,
    /// Gets the next tokens, once; good for 30 days.
    refresh_token: String,
}

impl From<logins::Tokens> for LoginTokens {
    fn from(tokens: logins::Tokens) -> Self {
        Self {
            access_token: tokens.access,
            token_type: "Bearer",
            expires_in: jwt::LIFETIME_SECONDS,
            refresh_token: tokens.refresh.expose(),
        }
    }
}

/// An account.
#[derive(Serialize, ToSchema)]
pub(super) struct User {
    id: Uuid,
    email: String,
    role: Role,
    plan: String,
    is_active: bool,
    /// No login before this, after too many wrong passwords.
    locked_until: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> Self {
        Self {
            id: row.id,
            email: row.email,
            role: row.role,
            plan: row.plan,
            is_active: row.is_active,
            locked_until: row.locked_until.filter(|until| *until > Timestamp::now()),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// An invitation.
#[derive(Serialize, ToSchema)]
pub(super) struct Invite {
    id: Uuid,
    email: Option<String>,
    role: Role,
    created_by: Option<Uuid>,
    created_at: Timestamp,
    expires_at: Timestamp,
    used_at: Option<Timestamp>,
}

impl From<InviteRow> for Invite {
    fn from(row: InviteRow) -> Self {
        Self {
            id: row.id,
            email: row.email,
            role: row.role,
            created_by: row.created_by,
            created_at: row.created_at,
            expires_at: row.expires_at,
            used_at: row.used_at,
        }
    }
}

/// A new invitation.
#[derive(Serialize, ToSchema)]
pub(super) struct NewInvite {
    #[serde(flatten)]
    invite: Invite,
    /// What its receiver signs up with; told this once (`null` in a repeated answer).
    token: Option<String>,
}

/// Begins a login.
///
/// After five wrong passwords in a row an account, or an address, waits longer and longer.
#[utoipa::path(
    post, path = "/api/v1/auth/login", tag = "Login",
    request_body = LoginInput,
    responses((status = 200, body = LoginTokens), (status = 401, description = "Wrong")),
)]
pub(super) async fn login(
    State(services): State<Services>,
    from: logins::From,
    Input(input): Input<LoginInput>,
) -> Result<Json<LoginTokens>, Failure> {
    let (_, tokens) = services.log_in(&input.email, &input.password, &from).await?;
    Ok(Json(tokens.into()))
}

/// Gets new tokens for a refresh token, which is used up.
///
/// One that was used before ends the login: somebody has a copy of it.
#[utoipa::path(
    post, path = "/api/v1/auth/refresh", tag = "Login",
    request_body = RefreshInput,
    responses((status = 200, body = LoginTokens), (status = 401, description = "Not good")),
)]
pub(super) async fn refresh(
    State(services): State<Services>,
    from: logins::From,
    Input(input): Input<RefreshInput>,
) -> Result<Json<LoginTokens>, Failure> {
    Ok(Json(services.refresh(&input.refresh_token, from.peer).await?.into()))
}

/// Ends the login, or all of the account.
#[utoipa::path(
    post, path = "/api/v1/auth/logout", tag = "Login", security(("bearer" = [])),
    request_body = LogoutInput,
    responses((status = 204, description = "Done")),
)]
pub(super) async fn logout(
    State(services): State<Services>,
    caller: Caller,
    Input(input): Input<LogoutInput>,
) -> Result<StatusCode, Failure> {
    services.log_out(&caller, input.everywhere).await?;
    Ok(DONE)
}

/// Makes an account and logs in, where the operator allows it.
#[utoipa::path(
    post, path = "/api/v1/auth/signup", tag = "Login",
    request_body = SignupInput,
    responses(
        (status = 201, body = LoginTokens),
        (status = 403, description = "Closed, or the invitation is not good"),
        (status = 409, description = "There is an account with this address"),
    ),
)]
pub(super) async fn signup(
    State(services): State<Services>,
    from: logins::From,
    Input(input): Input<SignupInput>,
) -> Result<(StatusCode, Json<LoginTokens>), Failure> {
    let invite = input.invite.as_deref();
    let (_, tokens) = services.sign_up(&input.email, &input.password, invite, &from).await?;
    Ok((StatusCode::CREATED, Json(tokens.into())))
}

/// Sets a new password of one's own. All other logins end.
#[utoipa::path(
    post, path = "/api/v1/auth/password", tag = "Login", security(("bearer" = [])),
    request_body = PasswordInput,
    responses(
        (status = 204, description = "Done"),
        (status = 403, description = "The old password is wrong"),
    ),
)]
pub(super) async fn change_password(
    State(services): State<Services>,
    caller: Caller,
    Input(input): Input<PasswordInput>,
) -> Result<StatusCode, Failure> {
    services.change_password(&caller, &input.old_password, &input.new_password).await?;
    Ok(DONE)
}

/// One's own account.
#[utoipa::path(
    get, path = "/api/v1/users/me", tag = "Login", security(("bearer" = [])),
    responses((status = 200, body = User)),
)]
pub(super) async fn me(
    State(services): State<Services>,
    caller: Caller,
) -> Result<Json<User>, Failure> {
    Ok(Json(services.user(caller.user).await?.into()))
}

/// Which accounts.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UserFilter {
    /// With this e-mail address.
    #[param(schema_with = schema::email)]
    email: Option<String>,
    #[param(schema_with = schema::role)]
    role: Option<Role>,
    #[param(schema_with = schema::boolean)]
    is_active: Option<bool>,
}

/// Accounts.
#[utoipa::path(
    get, path = "/api/v1/users", tag = "Accounts", security(("bearer" = ["admin"])),
    params(Paging, UserFilter),
    responses((status = 200, body = Page<User>)),
)]
pub(super) async fn list_users(
    State(services): State<Services>,
    Asked(paging): Asked<Paging>,
    Asked(filter): Asked<UserFilter>,
) -> Result<Json<Page<User>>, Failure> {
    let (email, role) = (filter.email.as_deref(), filter.role);
    let limit = paging.limit;
    let rows =
        services.store.list_users(email, role, filter.is_active, paging.after, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string(), User::from)))
}

/// Makes an account.
#[utoipa::path(
    post, path = "/api/v1/users", tag = "Accounts", security(("bearer" = ["admin"])),
    request_body = UserInput,
    responses((status = 201, body = User)),
)]
pub(super) async fn create_user(
    State(services): State<Services>,
    By(actor): By,
    Input(input): Input<UserInput>,
) -> Result<(StatusCode, Json<User>), Failure> {
    let new = NewUser {
        email: input.email,
        password: input.password,
        role: input.role,
        plan: input.plan.unwrap_or_else(|| DEFAULT_PLAN.to_owned()),
    };
    let user = services.add_user(new, &actor).await?;
    Ok((StatusCode::CREATED, Json(user.into())))
}

/// One account.
#[utoipa::path(
    get, path = "/api/v1/users/{id}", tag = "Accounts", security(("bearer" = ["admin"])),
    params(("id" = Uuid, Path, description = "Of the account")),
    responses((status = 200, body = User)),
)]
pub(super) async fn get_user(
    State(services): State<Services>,
    Id(id): Id,
) -> Result<Json<User>, Failure> {
    Ok(Json(services.user(id).await?.into()))
}

/// Changes an account.
#[utoipa::path(
    patch, path = "/api/v1/users/{id}", tag = "Accounts", security(("bearer" = ["admin"])),
    params(("id" = Uuid, Path, description = "Of the account")),
    request_body = UserPatch,
    responses(
        (status = 200, body = User),
        (status = 409, description = "It is the last active administrator"),
    ),
)]
pub(super) async fn update_user(
    State(services): State<Services>,
    By(actor): By,
    Id(id): Id,
    Input(input): Input<UserPatch>,
) -> Result<Json<User>, Failure> {
    let (role, plan, is_active) = (input.role, input.plan, input.is_active);
    let change = UserChange { role, plan, is_active };
    let user = services.change_user(id, change, input.password.as_deref(), &actor).await?;
    Ok(Json(user.into()))
}

/// Removes an account with all that it has.
///
/// Not while it has tunnels, or names of deleted ones that nobody else may get yet.
#[utoipa::path(
    delete, path = "/api/v1/users/{id}", tag = "Accounts", security(("bearer" = ["admin"])),
    params(("id" = Uuid, Path, description = "Of the account")),
    responses(
        (status = 204, description = "Done"),
        (status = 409, description = "It has names, or is the last active administrator"),
    ),
)]
pub(super) async fn delete_user(
    State(services): State<Services>,
    By(actor): By,
    Id(id): Id,
) -> Result<StatusCode, Failure> {
    services.remove_user(id, &actor).await?;
    Ok(DONE)
}

/// Which invitations.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct InviteFilter {
    /// Only those that can be used now.
    #[param(schema_with = schema::boolean)]
    open: Option<bool>,
}

/// Invitations.
#[utoipa::path(
    get, path = "/api/v1/invites", tag = "Accounts", security(("bearer" = ["admin"])),
    params(Paging, InviteFilter),
    responses((status = 200, body = Page<Invite>)),
)]
pub(super) async fn list_invites(
    State(services): State<Services>,
    Asked(paging): Asked<Paging>,
    Asked(filter): Asked<InviteFilter>,
) -> Result<Json<Page<Invite>>, Failure> {
    let open_at = filter.open.filter(|open| *open).map(|_| Timestamp::now());
    let rows = services.store.list_invites(open_at, paging.after, paging.limit + 1).await?;
    Ok(Json(Page::of(rows, paging.limit, |row| row.id.to_string(), Invite::from)))
}

/// Invites somebody.
#[utoipa::path(
    post, path = "/api/v1/invites", tag = "Accounts", security(("bearer" = ["admin"])),
    request_body = InviteInput,
    responses((status = 201, body = NewInvite)),
)]
pub(super) async fn create_invite(
    State(services): State<Services>,
    By(actor): By,
    Input(input): Input<InviteInput>,
) -> Result<impl IntoResponse, Failure> {
    let (email, role, days) = (input.email, input.role, input.days);
    let (row, secret) = services.add_invite(email, role, days, &actor).await?;
    let told = NewInvite { invite: row.into(), token: Some(secret) };
    Ok((StatusCode::CREATED, axum::Extension(Once("token")), Json(told)))
}

/// Takes an invitation back.
#[utoipa::path(
    delete, path = "/api/v1/invites/{id}", tag = "Accounts", security(("bearer" = ["admin"])),
    params(("id" = Uuid, Path, description = "Of the invitation")),
    responses((status = 204, description = "Done")),
)]
pub(super) async fn delete_invite(
    State(services): State<Services>,
    By(actor): By,
    Id(id): Id,
) -> Result<StatusCode, Failure> {
    services.remove_invite(id, &actor).await?;
    Ok(DONE)
}
