//! Failures as the API tells them: `application/problem+json` (RFC 9457).

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use uniroute_shared::{code::Code, id::RequestId};
use utoipa::ToSchema;

use crate::services::{Failure, Fault};

/// Where the codes are explained.
const DOCS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/errors.md");

/// Why a request was not done.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// A page that explains the code.
    #[serde(rename = "type")]
    kind: String,
    /// What happened, in a few words; always the same for a code.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is special about this case.
    detail: String,
    /// `UR-` and four digits; see `docs/errors.md`.
    #[schema(pattern = "^UR-[0-9]{4}$", example = "UR-4032")]
    code: String,
    /// As in the log.
    request_id: String,
    /// Faults of the input, one by one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<Fault>,
}

/// Travels in an answer's extensions until [`render`] writes it down.
#[derive(Clone)]
struct Carried(Arc<Failure>);

fn status(code: &Code) -> StatusCode {
    let status = code.status.and_then(|status| StatusCode::from_u16(status).ok());
    status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = status(self.code).into_response();
        response.extensions_mut().insert(Carried(Arc::new(self)));
        response
    }
}

/// Makes a whole answer of a failed one; every other stays as it is. What failed below our own
/// handlers (no such path, no such method) is told in the same way.
pub(super) fn render(response: &mut http::Response<Bytes>, request: &RequestId) {
    let carried = response.extensions_mut().remove::<Carried>();
    let failure = match (carried, response.status().as_u16()) {
        (Some(Carried(failure)), _) => failure,
        (None, 404) => Arc::new(Failure::new(&Code::NO_SUCH_THING)),
        (None, 405) => Arc::new(Failure::new(&Code::API_METHOD)),
        (None, 400..) if !is_problem(response) => Arc::new(Failure::new(&Code::INTERNAL)),
        _ => return,
    };
    let status = status(failure.code);
    *response.status_mut() = status;
    let problem = Problem {
        kind: format!("{DOCS}#{}", failure.code.to_string().to_lowercase()),
        title: failure.code.title,
        status: status.as_u16(),
        detail: failure.detail.clone().unwrap_or_else(|| failure.code.cause.to_owned()),
        code: failure.code.to_string(),
        request_id: request.to_string(),
        errors: failure.faults.clone(),
    };
    *response.body_mut() = serde_json::to_vec(&problem).unwrap_or_default().into();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Ok(code) = HeaderValue::try_from(problem.code) {
        headers.insert("x-uniroute-error", code);
    }
    let retry = failure.wait.map(|wait| wait.as_secs() + 1);
    let retry = retry.or(failure.code.retry_after.map(u64::from));
    if let Some(seconds) = retry {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"uniroute\"");
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
}

fn is_problem(response: &http::Response<Bytes>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind == "application/problem+json")
}
