//! The REST API under `/api/v1`: JSON over the use cases of `services`. Conventions are in
//! `docs/api.md`.
//!
//! Handlers translate and nothing else. What a request looks like, and in which role it may be made,
//! is said once, in the description of its operation; `gate` holds everybody to it.

#![allow(unused_qualifications, reason = "what utoipa makes of its parameters has some")]

mod accounts;
mod domains;
mod extract;
mod gate;
mod operators;
mod problem;
mod schema;
mod statistics;
mod tokens;
mod told;
mod tunnels;

pub(crate) use self::{
    gate::{bearer, pairs},
    told::{session_told, stats_told, tunnel_told},
};

use std::{net::IpAddr, sync::Arc};

use axum::{Router, body::Body, body::to_bytes, middleware};
use bytes::Bytes;
use http::{HeaderValue, Method, header};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use uniroute_shared::{code::Code, id::RequestId};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::services::{Failure, Services};

/// Largest body of a request.
pub(crate) const MAX_BODY: usize = 256 * 1024;
/// Largest answer; lists are far smaller.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Who sends a request, as the edge's door sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// Whether it came encrypted.
    pub(crate) secure: bool,
}

/// The API of one edge.
pub(crate) struct Api {
    router: Router,
    /// What it stands on.
    pub(crate) services: Services,
}

/// A failure as the API tells it, of a request that is not the API's own.
pub(crate) fn refusal(failure: Failure, request: &RequestId) -> http::Response<Bytes> {
    use axum::response::IntoResponse as _;
    let mut response = failure.into_response().map(|_| Bytes::new());
    finish(&mut response, request);
    response
}

/// What all answers have in common.
fn finish(response: &mut http::Response<Bytes>, request: &RequestId) {
    problem::render(response, request);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.remove(header::CONTENT_LENGTH);
    if let Ok(id) = HeaderValue::try_from(request.to_string()) {
        headers.insert("x-uniroute-request-id", id);
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "UniRoute Tunnel",
        version = "1",
        description = "Accounts, tunnels and what goes through them. Errors are \
            `application/problem+json` with a code of the form `UR-nnnn`. Lists are newest first and \
            go on with `after=NEXT`. See `docs/api.md`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(problem::Problem)),
    modifiers(&Bearer),
    tags(
        (name = "Login", description = "Logging in, and staying so."),
        (name = "Tunnels", description = "Names, and where they lead."),
        (name = "Statistics", description = "What goes through tunnels."),
        (name = "Tokens", description = "What agents connect with."),
        (name = "Domains", description = "Names of one's own."),
        (name = "Sessions", description = "Agents that are connected."),
        (name = "Accounts", description = "For administrators."),
        (name = "Operation", description = "For who runs the edge."),
    ),
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(
                Some("The access token of a login; a role in its list has to be the caller's."),
            );
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme.build()));
    }
}

/// All operations, and their description.
fn operations() -> OpenApiRouter<State> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(accounts::login))
        .routes(routes!(accounts::refresh))
        .routes(routes!(accounts::logout))
        .routes(routes!(accounts::signup))
        .routes(routes!(accounts::change_password))
        .routes(routes!(accounts::me))
        .routes(routes!(accounts::list_users, accounts::create_user))
        .routes(routes!(accounts::get_user, accounts::update_user, accounts::delete_user))
        .routes(routes!(accounts::list_invites, accounts::create_invite))
        .routes(routes!(accounts::delete_invite))
        .routes(routes!(tunnels::list_tunnels, tunnels::create_tunnel))
        .routes(routes!(tunnels::get_tunnel, tunnels::update_tunnel, tunnels::delete_tunnel))
        .routes(routes!(tunnels::pause_tunnel))
        .routes(routes!(tunnels::resume_tunnel))
        .routes(routes!(statistics::tunnel_stats))
        .routes(routes!(statistics::tunnel_requests))
        .routes(routes!(statistics::tunnel_metrics))
        .routes(routes!(statistics::get_request))
        .routes(routes!(statistics::usage))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::get_token, tokens::update_token, tokens::revoke_token))
        .routes(routes!(tokens::rotate_token))
        .routes(routes!(domains::list_domains, domains::create_domain))
        .routes(routes!(domains::get_domain, domains::update_domain, domains::delete_domain))
        .routes(routes!(operators::list_sessions))
        .routes(routes!(operators::cut_session))
        .routes(routes!(operators::list_events))
        .routes(routes!(operators::list_plans))
        .routes(routes!(operators::get_plan, operators::put_plan, operators::delete_plan))
        .routes(routes!(operators::list_bans))
        .routes(routes!(operators::lift_ban))
        .routes(routes!(operators::rotate_keys))
        .routes(routes!(operators::health))
        .routes(routes!(operators::openapi))
}

/// What handlers get.
#[derive(Clone)]
pub(crate) struct State {
    services: Services,
    document: Arc<Bytes>,
}

impl axum::extract::FromRef<State> for Services {
    fn from_ref(state: &State) -> Self {
        state.services.clone()
    }
}

impl Api {
    /// Builds the router and reads its own description.
    pub(crate) fn new(services: Services) -> Self {
        let (router, description) = operations().split_for_parts();
        let document = complete(serde_json::to_value(description).unwrap_or_default());
        let served = Bytes::from(serde_json::to_vec(&document).unwrap_or_default());
        let schemas = schema::Schemas::new(document).expect("our own patterns, which a test reads");
        let gate = Arc::new(gate::Gate::new(services.clone(), Arc::new(schemas)));
        let state = State { services: services.clone(), document: Arc::new(served) };
        let router =
            router.route_layer(middleware::from_fn_with_state(gate, gate::pass)).with_state(state);
        Self { router, services }
    }

    /// Answers a request for a path under `/api/`, of which the whole body is here.
    pub(crate) async fn answer(
        &self,
        mut request: http::Request<Bytes>,
        peer: Peer,
    ) -> http::Response<Bytes> {
        let id = request.extensions().get::<RequestId>().copied().unwrap_or_else(RequestId::new);
        let is_head = request.method() == Method::HEAD;
        request.extensions_mut().insert(peer);
        let too_large = request.body().len() > MAX_BODY;
        let response = if too_large {
            use axum::response::IntoResponse as _;
            Failure::new(&Code::API_BODY_TOO_LARGE).into_response()
        } else {
            let Ok(response) = self.router.clone().oneshot(request.map(Body::from)).await;
            response
        };
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, MAX_ANSWER).await.unwrap_or_default();
        let mut response = http::Response::from_parts(parts, body);
        finish(&mut response, &id);
        if is_head {
            response.body_mut().clear();
        }
        response
    }
}

/// The description, and in it what is the same for all operations and follows from their kind.
fn complete(mut document: Value) -> Value {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (path, item) in paths {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            complete_operation(path, method, operation);
        }
    }
    document
}

fn complete_operation(path: &str, method: &str, operation: &mut Value) {
    let role = gate::role(operation);
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        // Outside of JSON there is no `null`: what is not given is not there.
        if let Some(Value::Array(types)) = parameter.pointer_mut("/schema/type") {
            types.retain(|name| name != "null");
        }
    }
    let has_body = operation["requestBody"].is_object();
    if method == "post" && role.is_some() {
        add_idempotency(operation);
    }
    let mut more = vec![
        (400, "The request is not as described here"),
        (429, "Too many requests"),
        (500, "A fault of the edge"),
        (503, "The edge cannot do it right now"),
    ];
    if has_body {
        more.push((413, "The body is too large"));
        more.push((415, "The body is not JSON"));
        more.push((422, "It is well formed, and makes no sense"));
    }
    if method == "post" && role.is_some() {
        more.push((409, "It is taken, or the same request is under way"));
        more.push((422, "The idempotency key was used for another request"));
    }
    if role.is_some() {
        more.push((401, "A valid access token is needed"));
    }
    if role.is_some_and(|role| role > crate::auth::Role::User) {
        more.push((403, "The account may not do this"));
    }
    if path.contains('{') {
        more.push((404, "There is no such thing, or it is somebody else's"));
    }
    for (status, description) in more {
        let known = &mut operation["responses"][status.to_string()];
        if known.is_null() {
            *known = json!({ "description": description });
        }
    }
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if status.starts_with(['4', '5']) {
            complete_failure(status, response);
        }
    }
}

fn complete_failure(status: &str, response: &mut Value) {
    response["content"] = json!({
        "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } },
    });
    let text = |description| json!({ "description": description, "schema": { "type": "string" } });
    match status {
        "401" => response["headers"]["www-authenticate"] = text("How to show who one is."),
        "429" | "503" => {
            response["headers"]["retry-after"] = json!({
                "description": "Seconds to wait.", "schema": { "type": "integer" },
            });
        }
        _ => {}
    }
}

fn add_idempotency(operation: &mut Value) {
    let parameter = json!({
        "name": gate::IDEMPOTENCY_KEY,
        "in": "header",
        "required": false,
        "description": "Chosen by the caller, new for each request: the same request under the same \
            key within 24 hours gets the answer of the first one (a secret in it is `null` then).",
        "schema": {
            "type": "string", "minLength": 1, "maxLength": 64, "pattern": gate::KEY_PATTERN,
        },
    });
    match operation.get_mut("parameters").and_then(Value::as_array_mut) {
        Some(parameters) => parameters.push(parameter),
        None => operation["parameters"] = json!([parameter]),
    }
}

#[cfg(test)]
mod tests;
