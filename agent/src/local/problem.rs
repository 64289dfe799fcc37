//! What the local API does not do, and why: in RFC 9457's form, with a code of the error table and what
//! to do now.

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use uniroute_shared::code::Code;

/// Where the codes are explained.
const DOCS: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/errors.md");

const X_ERROR: HeaderName = HeaderName::from_static("x-uniroute-error");

/// A refusal.
#[derive(Debug)]
pub(super) struct Problem {
    code: &'static Code,
    /// What is special about this case.
    detail: Option<String>,
}

impl Problem {
    /// With the words of the table.
    pub(super) fn of(code: &'static Code) -> Self {
        Self { code, detail: None }
    }

    /// With what is special about this case.
    pub(super) fn new(code: &'static Code, detail: impl Into<String>) -> Self {
        Self { code, detail: Some(detail.into()) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { code, detail } = self;
        let status = code.status.and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let name = code.to_string();
        let body = json!({
            "type": format!("{DOCS}#{}", name.to_lowercase()),
            "title": code.title,
            "status": status.as_u16(),
            "code": name,
            "detail": detail.as_deref().unwrap_or(code.cause),
            "fix": code.fix,
        });
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if let Ok(name) = HeaderValue::try_from(name) {
            headers.insert(X_ERROR, name);
        }
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(code.retry_after.unwrap_or(1)));
        }
        response
    }
}

/// What a query says.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let asked = Query::try_from_uri(&parts.uri);
        let Query(asked) =
            asked.map_err(|error| Problem::new(&Code::LOCAL_INPUT, error.body_text()))?;
        Ok(Self(asked))
    }
}

/// The one name in a path.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let named = Path::from_request_parts(parts, state).await;
        let Path(name) =
            named.map_err(|error| Problem::new(&Code::LOCAL_INPUT, error.body_text()))?;
        Ok(Self(name))
    }
}

/// A body, whole.
pub(super) struct Payload(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Payload {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::of(&Code::LOCAL_BODY_TOO_LARGE),
            _ => Problem::new(&Code::LOCAL_INPUT, error.body_text()),
        })?;
        Ok(Self(body))
    }
}

impl Payload {
    /// The JSON in it.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.0).map_err(|error| {
            Problem::new(&Code::LOCAL_INPUT, format!("the body can't be read: {error}"))
        })
    }
}
